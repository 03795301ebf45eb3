"""Secrets that files name: looked up in folders, in variables that an operator allows, and by commands.

What commands have answered is kept in memory, and nowhere else. It is asked again in threads, in nobody's way.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import re
import selectors
import signal
import subprocess  # noqa: TID251 - an operator's own program, asked before there is a cell
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gateway import backoff
from gateway.files import identity, read_file, unusable
from gateway.observe.redact import SHORTEST, Redactor
from gateway.observe.telling import secrets_in, secrets_within
from gateway.units import Duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

NAME = re.compile(r"(?=.{1,200}\Z)[A-Za-z0-9_.][A-Za-z0-9_.\-]*(?:/[A-Za-z0-9_.\-]+)*")
"""Names of secrets. Those with a `/` are for commands alone."""
LARGEST = 1 << 16  # bytes of a value: of more, redaction would withhold every text
TIMEOUT = 10.0  # seconds that a command may take
PATIENCE = TIMEOUT + 1.0  # seconds that a round waits for commands; what comes later heals what lacks it
AT_ONCE = 8  # commands
REAPED = 1.0  # seconds in which a process that was killed is gone
LAST_RETRY = 10.0  # seconds at most until a command that failed is asked again
FILES = 1000  # of a folder that are looked at for what a command has complained of
SAID = 300  # characters of what a command complains that are told
SYSTEMD = "CREDENTIALS_DIRECTORY"
"""The variable in which systemd says where a service's credentials are."""
PLACE = "{name}"
"""What stands in a command for the secret's name."""
_VARIABLE = re.compile(r"\$(?P<escaped>\$?)\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}")
_KEY = "secret"

Keys = tuple[str | int, ...]
State = tuple[object, ...]


class NoSecret(Exception):
    """There is no such secret, or it cannot be used. It tells where was looked, and never a value."""


class SecretsSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `secrets:` section."""

    dir: str | list[str] = "/run/secrets"
    """A folder, or a list of them, with a file for each secret."""
    env: list[str] = []
    """Names of variables, or patterns of them, that are secrets."""
    command: dict[str, list[str]] = {}
    """Commands that print a secret, by what they are called in messages; `{name}` in a word is the secret's name."""
    ttl: Duration = Duration(300)
    """How long what a command has printed is good for."""

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        for name, words in self.command.items():
            if not words or not words[0]:
                raise ValueError(f"command: {name} is empty: write the program and its arguments as a list")
            if not any(PLACE in word for word in words[1:]):
                raise ValueError(f"command: no argument of {name} has {PLACE}, so it would answer the same to all")
        if not self.ttl:
            raise ValueError("ttl is no time at all: write 5m")


class Looked(NamedTuple):
    """A secret that was found."""

    value: str
    origin: str
    """A file's path, `variable NAME` or `command NAME`."""
    since: float | None
    """When the file was changed, or the command answered, in seconds since 1970."""


class Use(NamedTuple):
    """A place that names a secret."""

    name: str
    keys: Keys
    is_variable: bool = False
    """It is `${NAME}` within a text: a variable of the environment, and nothing else."""
    is_missing: bool = False
    is_short: bool = False
    """Its value is too short to be found in texts."""


class _Printed:
    """What a command has said about one name."""

    def __init__(self) -> None:
        self.value: str | None = None
        self.problem = "it has not answered yet"
        self.version = 0
        """Counts the values."""
        self.since = 0.0
        self.due = 0.0
        """When it is to be asked again, in the time of `time.monotonic`."""
        self.failures = 0
        self.running: Future[None] | None = None


class Secrets:
    """Where secrets are looked up. All methods may be called in any thread."""

    def __init__(self, environ: Mapping[str, str], folder: Path) -> None:
        """Relative paths begin at `folder`."""
        self._environ = environ
        self._base = folder
        self._lock = threading.Lock()
        self._asked: dict[tuple[str, str], _Printed] = {}
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._pool: ThreadPoolExecutor | None = None
        self._until = 0.0
        self._states: dict[str, State] = {}
        """The states of what was looked up in this round, by the names."""
        self.section = SecretsSection()
        self.folders: tuple[Path, ...] = ()
        self.use(self.section)

    def use(self, section: SecretsSection) -> None:
        """Look things up as a section says from now on."""
        said = [section.dir] if isinstance(section.dir, str) else section.dir
        of_systemd = self._environ.get(SYSTEMD)
        folders = [self._base / one for one in (*said, *([of_systemd] if of_systemd else []))]
        with self._lock:
            if section.command != self.section.command:
                self._asked = {}
            self.section = section
            self.folders = tuple(dict.fromkeys(folders))

    # --- looking up

    def find(self, name: str) -> Looked:
        """Return a secret. It may take as long as its command, which is waited for the first time only.

        Raises:
            NoSecret: it is in no source, or its source cannot be used.
        """
        if not NAME.fullmatch(name) or not {".", ".."}.isdisjoint(name.split("/")):
            raise NoSecret("this is no name of a secret: it is made of letters, digits, _ - and .")
        state = self._state_of_files(name)
        versions: dict[str, int] = {}
        try:
            return self._found(name, versions)
        finally:
            self._states[name] = (*state, *self._versions(name, versions))

    def variable(self, name: str) -> str:
        """Return a variable that is a secret.

        Raises:
            NoSecret: it is not set, or empty.
        """
        value = self._environ.get(name)
        if not value:
            raise NoSecret(f"the variable {name} is {'not set' if value is None else 'empty'}")
        return value

    def allows(self, variable: str) -> bool:
        """Tell whether `secrets.env` names a variable."""
        return any(fnmatch.fnmatchcase(variable, pattern) for pattern in self.section.env)

    @contextlib.contextmanager
    def round(self) -> Iterator[None]:
        """Look up anew all that is used; all of a round together wait for commands no longer than one alone."""
        before, self._states = self._states, {}
        self._until = time.monotonic() + PATIENCE
        try:
            yield
        except BaseException:
            self._states = before
            raise
        finally:
            self._until = 0.0

    def begin(self, names: Iterable[str]) -> None:
        """Ask commands for names that nothing else has, without waiting for their answers."""
        commands = list(self.section.command)
        for name in names if commands else ():
            if NAME.fullmatch(name) and not self._is_here(name):
                self._ask(commands[0], name, time.monotonic())

    # --- what changes

    def known(self) -> State:
        """Return the state of all that was looked up in this round, as it was then."""
        return tuple(sorted(self._states.items()))

    def now(self) -> State:
        """Return the state that it has now. What is due is asked again, and not waited for."""
        self._refresh()
        return tuple((name, (*self._state_of_files(name), *self._versions(name, {}))) for name in sorted(self._states))

    def told_by(self, name: str) -> State:
        """Return what tells one state of a secret from another and says nothing about its value."""
        return self._state_of_files(name)

    def stale(self) -> dict[str, str]:
        """Return the names of secrets whose command fails by now, with the reason: what it said last is served on."""
        with self._lock:
            return {
                name: f"command {command}: {one.problem}"
                for (command, name), one in self._asked.items()
                if one.value is not None and one.problem and name in self._states
            }

    def close(self) -> None:
        """End the commands that run."""
        with self._lock:
            pool, self._pool = self._pool, None
            for process in self._processes:
                _kill(process)
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    # --- private: the sources

    def _found(self, name: str, versions: dict[str, int]) -> Looked:
        looked = []
        local = "/" not in name
        for folder in self.folders if local else ():
            found = _of_file(folder / name)
            if found is not None:
                return found
            looked.append(f"the file {folder / name}")
        value = self._environ.get(name) if local else None
        if local and self.allows(name):
            if value:
                return Looked(value, f"variable {name}", None)
            looked.append(f"the variable {name}" if value is None else f"the variable {name}, which is empty")
        elif value is not None:
            looked.append("no variable, since secrets.env does not name the one that is there")
        for command in self.section.command:
            answer = self._of_command(command, name, versions)
            if isinstance(answer, Looked):
                return answer
            looked.append(f"the command {command} ({answer})")
        told = "; ".join(looked) or "nothing, since a name with a / is for commands"
        hint = f"Write it into {self.folders[0] / name}, or say" if self.folders and local else "Say"
        raise NoSecret(f"there is no secret {name}. Looked for: {told}. {hint} in `secrets:` where it is")

    def _is_here(self, name: str) -> bool:
        if "/" in name:
            return False
        return any(os.path.lexists(folder / name) for folder in self.folders) or (
            self.allows(name) and bool(self._environ.get(name))
        )

    def _state_of_files(self, name: str) -> State:
        return tuple(identity(folder / name) for folder in self.folders) if "/" not in name else ()

    def _versions(self, name: str, known: Mapping[str, int]) -> State:
        with self._lock:
            asked = [(command, self._asked.get((command, name))) for command in self.section.command]
        return tuple(known.get(command, one.version if one is not None else 0) for command, one in asked)

    # --- private: commands

    def _of_command(self, command: str, name: str, versions: dict[str, int]) -> Looked | str:
        """Return what a command says, or why it says nothing; who asks first waits for it."""
        asked = self._ask(command, name, 0.0)
        running = asked.running
        if running is not None and asked.due == 0.0:  # it has never answered
            until = self._until or time.monotonic() + PATIENCE
            wait((running,), timeout=max(0.0, until - time.monotonic()))
        with self._lock:
            versions[command] = asked.version
            if asked.value is None:
                return asked.problem
            return Looked(asked.value, f"command {command}", asked.since)

    def _refresh(self) -> None:
        now = time.monotonic()
        with self._lock:
            due = [at for at, one in self._asked.items() if one.due <= now and at[1] in self._states]
        for command, name in due:
            self._ask(command, name, now)

    def _ask(self, command: str, name: str, now: float) -> _Printed:
        """Have a command asked that never was, or whose time has come by `now`."""
        words = [word.replace(PLACE, name) for word in self.section.command[command]]
        with self._lock:
            asked = self._asked.setdefault((command, name), _Printed())
            if asked.running is None and (asked.due == 0.0 or asked.due <= now):
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="secrets")
                asked.running = self._pool.submit(self._answer, asked, words)
            return asked

    def _answer(self, asked: _Printed, words: list[str]) -> None:
        """Ask, in a thread."""
        try:
            value, problem = self._output(words), ""
        except NoSecret as failed:
            value, problem = None, str(failed)
        except Exception as failed:  # noqa: BLE001 - whatever it is, it is not to be waited for
            value, problem = None, type(failed).__name__
        with self._lock:
            asked.running = None
            asked.problem = problem
            asked.failures = asked.failures + 1 if problem else 0
            ttl = float(self.section.ttl)
            pause = min(ttl, backoff.wait(asked.failures - 1, 1.0, LAST_RETRY)) if problem else ttl
            asked.due = time.monotonic() + pause
            if value is not None:
                asked.since = time.time()
                asked.version += value != asked.value
                asked.value = value

    def _output(self, words: list[str]) -> str:
        try:
            # In our session: what is of another one is taken for what a cell has left.
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env=dict(self._environ), cwd=self._base, process_group=0,
            )  # fmt: skip
        except (OSError, ValueError) as problem:
            reason = problem.strerror if isinstance(problem, OSError) else "there is a NUL in it"
            raise NoSecret(f"{words[0]} could not be started: {reason}") from problem
        with self._lock:
            self._processes.add(process)
        try:
            told, complained = _read(process, time.monotonic() + TIMEOUT)
        except BaseException:
            _kill(process)
            raise
        finally:
            _leave(process)
            with self._lock:
                self._processes.discard(process)
        if process.returncode != 0:
            ended = f"exit status {process.returncode}" if process.returncode > 0 else "killed by a signal"
            raise NoSecret(f"{ended}{self._complaint(complained, told)}")
        if not told.strip():
            raise NoSecret(f"it printed nothing{self._complaint(complained, told)}")
        return _text(told, "what it printed")

    def _complaint(self, complained: bytes, told: bytes) -> str:
        """Return the end of what a command has complained, without what may be secret in it."""
        text, output = (one.decode(errors="replace") for one in (complained, told))
        with self._lock:
            values = [one.value for one in self._asked.values() if one.value is not None]
        values += [*self._of_folders(), output.strip(), *secrets_within(text), *secrets_in(dict(self._environ))]
        shown = Redactor(values)(text)
        words = " ".join(shown.split())
        return f": {words[-SAID:]}" if words else ""

    def _of_folders(self) -> Iterator[str]:
        """Yield the values of all files in the folders: a command may complain of any of them."""
        for folder in self.folders:
            with contextlib.suppress(OSError):
                for name in sorted(os.listdir(folder))[:FILES]:
                    with contextlib.suppress(NoSecret):
                        found = _of_file(folder / name)
                        yield from [found.value] if found is not None else []


# --- references


class Filler:
    """Puts values in the place of references, and notes what was used."""

    def __init__(
        self,
        secrets: Secrets,
        failed: Callable[[Keys, NoSecret], object],
        left: Callable[[Keys], bool],
        mapping: Callable[[Keys], bool],
    ) -> None:
        """Prepare.

        Args:
            secrets: where they are looked up.
            failed: raises for what is missing; where it returns, what would have held it is left out.
            left: tells by its keys what stays as it is written.
            mapping: tells by its keys what can only be a mapping, and so is no reference; its values may be.
        """
        self.uses: list[Use] = []
        self.values: list[str] = []
        self._secrets = secrets
        self._failed = failed
        self._left = left
        self._mapping = mapping

    def whole(self, value: Any) -> Any:
        """Return a value with what it names, None where nothing is left of it."""
        found = self._filled(value, ())
        return None if found is _GONE else found

    def _filled(self, value: Any, keys: Keys) -> Any:
        if self._left(keys):
            return value
        name = reference(value)
        if name is not None and not self._mapping(keys):
            return self._looked_up(Use(name, keys), lambda: self._secrets.find(name).value)
        if isinstance(value, dict):
            items = ((key, self._filled(one, (*keys, key))) for key, one in value.items())
            return {key: one for key, one in items if one is not _GONE}
        if isinstance(value, list):
            listed = (self._filled(one, (*keys, number)) for number, one in enumerate(value))
            return [one for one in listed if one is not _GONE]
        return self._text(value, keys) if isinstance(value, str) and "${" in value else value

    def _text(self, text: str, keys: Keys) -> Any:
        parts: list[Any] = []
        at = 0
        for found in _VARIABLE.finditer(text):
            name = found["name"]
            if not self._secrets.allows(name):
                continue
            parts.append(text[at : found.start()])
            at = found.end()
            if found["escaped"]:
                parts.append(found[0][1:])
            else:
                use = Use(name, keys, is_variable=True)
                parts.append(self._looked_up(use, lambda name=name: self._secrets.variable(name)))  # type: ignore[misc]
        return _GONE if _GONE in parts else "".join((*parts, text[at:]))

    def _looked_up(self, use: Use, look: Callable[[], str]) -> Any:
        try:
            value = look()
        except NoSecret as problem:
            self.uses.append(use._replace(is_missing=True))
            self._failed(use.keys, problem)
            return _GONE
        self.uses.append(use._replace(is_short=len(value.strip().encode(errors="surrogatepass")) < SHORTEST))
        self.values.append(value)
        return value


_GONE = object()


def reference(value: object) -> str | None:
    """Return the name of the secret that a value stands for; None where it stands for itself."""
    name = value.get(_KEY) if isinstance(value, dict) and len(value) == 1 else None
    return name if isinstance(name, str) else None


def nowhere(_keys: Keys) -> bool:
    """Tell that nothing is at some keys."""
    return False


def named(
    value: object, left: Callable[[Keys], bool] = nowhere, mapping: Callable[[Keys], bool] = nowhere, keys: Keys = ()
) -> Iterator[str]:
    """Yield the names of all secrets that a value refers to, at any depth; the rest as for `Filler`."""
    name = reference(value)
    if left(keys):
        return
    if name is not None and not mapping(keys):
        yield name
    elif isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from named(one, left, mapping, (*keys, key))


def literal(value: Any) -> Any:
    """Return a value without its references: a secret's name is none."""
    if isinstance(value, dict):
        return {key: literal(one) for key, one in value.items() if reference(one) is None}
    if isinstance(value, list):
        return [literal(one) for one in value if reference(one) is None]
    return value


def variables(value: object, keys: Keys = ()) -> Iterator[tuple[str, Keys]]:
    """Yield the names of variables that texts may mean, `${NAME}`, with the keys that lead there."""
    if isinstance(value, str):
        yield from ((found["name"], keys) for found in _VARIABLE.finditer(value) if not found["escaped"])
    elif isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from variables(one, (*keys, key))


# --- private: bytes


def _of_file(path: Path) -> Looked | None:
    """Return what a file holds, None when there is none.

    Raises:
        NoSecret: what is there cannot be used.
    """
    try:
        data = read_file(path, most=LARGEST)
        since = os.stat(path).st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as problem:
        if problem.errno == errno.EFBIG:
            raise NoSecret(f"{path}: {_too_large('it')}") from problem
        raise NoSecret(unusable(problem)) from problem
    value = _text(data, str(path))
    if not value:
        raise NoSecret(f"{path}: it is empty")
    return Looked(value, str(path), since)


def _text(data: bytes, what: str) -> str:
    """Return a value. The line break at its end is no part of it."""
    try:
        text = data.decode()
    except UnicodeDecodeError as problem:
        raise NoSecret(f"{what} is no text in UTF-8") from problem
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def _read(process: subprocess.Popen[bytes], until: float) -> tuple[bytes, bytes]:
    """Return what a process prints to its end, and the end of what it complains.

    Raises:
        NoSecret: it takes too long, or prints too much.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    told, complained = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, told)
        selector.register(process.stderr, selectors.EVENT_READ, complained)
        while selector.get_map():
            ready = selector.select(max(0.0, until - time.monotonic()))
            if not ready and time.monotonic() >= until:
                raise NoSecret(f"no answer within {TIMEOUT:g} s")
            for key, _ in ready:
                data = os.read(key.fd, LARGEST)
                key.data.extend(data)
                if not data:
                    selector.unregister(key.fileobj)
            if len(told) > LARGEST:
                raise NoSecret(_too_large("what it prints"))
            del complained[:-LARGEST]
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, until - time.monotonic()))
        return bytes(told), bytes(complained)
    raise NoSecret(f"no answer within {TIMEOUT:g} s")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that we have not reaped yet, with all of its group; `sudo`, say, is not ours to kill."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)


def _leave(process: subprocess.Popen[bytes]) -> None:
    """Take no more from a process, and reap it if it ends."""
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(REAPED)


def _too_large(what: str) -> str:
    return f"{what} is larger than {LARGEST >> 10} KiB"
