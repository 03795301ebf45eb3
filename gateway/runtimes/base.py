"""What a runtime has to answer: which command line runs the connector, and what has to be built for it first."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import msgspec

from gateway.errors import Quarantine
from gateway.files import check_file, open_file, read_file, unusable, walk

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from gateway.sections import Mode
    from gateway.yaml_document import YamlNode

MARKER = "build.json"
FAILED = "failed.json"
LOG = "build.log"
LOCK = "requirements.lock"
SOURCES = 300  # files of a connector's own code that are looked at twice a second
FOLDERS = 300  # folders that are searched for them
BUILT = {"__pycache__", "node_modules", "target"}
"""Folders that tools fill."""
CODE = {
    *(".R", ".awk", ".bash", ".cjs", ".clj", ".exs", ".groovy", ".jar", ".jl", ".js", ".ksh", ".lua", ".mjs", ".phar"),
    *(".php", ".pl", ".pm", ".ps1", ".py", ".pyc", ".pyz", ".r", ".rb", ".sed", ".sh", ".tcl", ".ts", ".war", ".wasm"),
}
"""How files end that an interpreter reads."""
_LOOK = 512  # bytes of a file's beginning that tell how it is started

T = TypeVar("T")


class Home(NamedTuple):
    """Where a connector is defined and may keep what is built for it. Paths are absolute."""

    name: str
    node: YamlNode
    folder: Path
    state_dir: Path
    path: str
    memory: int
    """Bytes that a run may use."""
    env: tuple[str, ...]
    """Names of the variables that the entry declares."""

    @property
    def builds(self) -> Path:
        """The folder of this connector's builds; `current` in it links to the one that serves."""
        return self.state_dir / "runtimes" / self.name

    def variable(self, name: str) -> str:
        """Return what the entry's `env` says of a variable; nothing where it says nothing."""
        return str(self.node.data["env"][name]) if name in self.env else ""

    def resolve(self, text: str, *keys: str | int) -> Path:
        """Return a path as the file that holds the key means it."""
        mark = self.node.mark(keys)
        return Path(os.path.normpath((mark.path.parent if mark else self.folder) / text))


class CommandLine(msgspec.Struct, frozen=True, kw_only=True):
    """How to start the connector: `argv[0]` is absolute; a change of one of `files` means another connector."""

    argv: tuple[str, ...]
    files: tuple[Path, ...] = ()
    made_of: tuple[Path, ...] = ()
    """What its build was made of: a change is to be told, and leaves the connector as it is."""
    result_on_fd3: bool = False
    """The runtime's own host writes its result there, whatever the entry says."""
    result_in_line: bool = False
    """That host ends its result with a line break, and has none in it."""
    code: tuple[Path, ...] = ()
    """Its own files and folders: what it may read, and not write."""
    needs: tuple[Path, ...] = ()
    """What it cannot do without besides: libraries, interpreters other than `argv[0]` and what its #! line names."""
    resident: dict[str, tuple[str, ...]] = {}
    """The command lines of a process that serves more than one request, by mode (fork, persistent)."""
    env: dict[str, str] = {}
    """What the runtime itself needs in the environment."""
    cleanup: tuple[str, ...] = ()
    """A command line to run after a run that was stopped or died."""
    heap_full: str | None = None
    """What its log says when it ends because its heap is full."""
    notice: str | None = None
    """What an operator should know although it works."""


class Tools(Protocol):
    """What a build may use."""

    offline: bool
    wheels_only: bool
    """Nothing is built of a Python package's sources, so that none of its code runs."""
    upgrade: bool
    """A lock of ours is made anew."""
    variables: frozenset[str]
    """Names of what its programs find in their environment."""
    index: tuple[str, ...]
    """Options for Python's package index, as uv takes them."""

    async def shared(self, name: str, make: Callable[[Path], Awaitable[None]]) -> Path:
        """Return the file that builds of all connectors share under a name; `make` writes it where there is none yet.

        Raises:
            BuildFailed: it could not be made.
        """

    async def together(self, name: str, folder: Path, work: Callable[[list[Path]], Awaitable[object]]) -> None:
        """Have work done in this folder, and at once in those that others have named while such work went on.

        Raises:
            BuildFailed: it could not be done for this one alone either.
        """

    def note(self, text: str) -> None:
        """Tell what an operator should know of the build, although it works."""

    async def run(self, *argv: str, env: dict[str, str] | None = None, stdin: bytes = b"") -> str:
        """Run a program to its end, and return what it wrote to stdout.

        Raises:
            BuildFailed: its exit status is not 0; the message has the end of its output.
        """

    async def try_out(self, *argv: str, stdin: bytes | None = None) -> None:
        """Start what was built, with the `env` of its entry, and have it answer a request: what it can do, as a rule.

        What it raises may be due to what is there only when it serves, and is told, without more.

        Raises:
            BuildFailed: it did not start or died, or lacks code that the build should have given it.
        """


class BuildFailed(Exception):
    """A build did not succeed; the old one goes on serving."""


def _sound(_folder: Path) -> str | None:
    return None


class Build(NamedTuple):
    """What `gateway install` makes for a connector. `inputs` is a hash of all that it is made from."""

    inputs: Callable[[], str]
    make: Callable[[Path, Tools], Awaitable[None]]
    broken: Callable[[Path], str | None] = _sound
    """Says why a build that was complete cannot be used any more."""
    secrets: tuple[str, ...] = ()
    """What is not to be shown of what its tools say, besides the secrets of the entry."""
    variables: frozenset[str] = frozenset()
    """Names of variables that are filled into what it is made of, and whose values are not to be shown either."""
    files: tuple[Path, ...] = ()
    """What it is made of, where a change is to be noticed; the first `SOURCES` of each folder."""


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """The marker of a complete build. `notices`: what an operator should know of it, although it works."""

    inputs: str
    notices: tuple[str, ...] = ()
    at: str = ""
    """The folder that it was made in, which it may know by its path."""

    def serves(self, build: Build, folder: Path) -> bool:
        """Tell whether it is what would be built now, here."""
        return self.inputs == build.inputs() and not self.moved(folder) and build.broken(folder) is None

    def moved(self, folder: Path) -> bool:
        """Tell whether it lies elsewhere than where it was made."""
        return self.at not in {"", str(folder)}


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a build that failed: what it was to be made from, and why it was not."""

    inputs: str
    problem: str

    def said(self, name: str) -> str:
        """Say it again."""
        return f"gateway install {name} failed: {self.problem}"


class Runtime(Protocol):
    """A kind of connector."""

    @property
    def options(self) -> type[msgspec.Struct]:
        """The keys that this runtime adds to a connector's entry."""

    @property
    def mode(self) -> Mode:
        """How its processes are obtained when the entry does not say."""

    def command_line(self, options: Any, place: Home) -> CommandLine:
        """Return how to start it.

        Raises:
            Quarantine: something is missing; the message says what to do.
            ConfigError: the options do not make sense together.
        """

    def build(self, options: Any, place: Home) -> Build | None:
        """Return what has to be built, None when nothing has to.

        Raises:
            Quarantine: something is missing; the message says what to do.
            ConfigError: the options do not make sense together.
        """


def built(place: Home, build: Build) -> tuple[Path, str | None]:
    """Return the folder of the build that serves, and what an operator should know, also that it is not the newest.

    Raises:
        Quarantine: there is none yet.
    """
    wanted = build.inputs()
    failed, run = _decoded(place.builds / FAILED, Failed), f"run gateway install {place.name}"
    try:
        made = msgspec.json.decode(read_file(place.builds / "current" / MARKER), type=Made)
    except (FileNotFoundError, msgspec.MsgspecError) as problem:
        raise Quarantine(f"not installed: {failed.said(place.name) if failed else run}") from problem
    folder = (place.builds / "current").resolve()
    said = failed.said(place.name) if failed and failed.inputs == wanted else run
    if (broken := build.broken(folder)) is not None:
        raise Quarantine(f"its build cannot be used: {broken}: {said}")
    notices = list(made.notices)
    if made.inputs != wanted:
        notices.insert(0, f"its entry has changed: {said}")
    elif made.moved(folder):
        notices.insert(0, f"it was built in {made.at}, and moved since: {said}")
    return folder, "; ".join(notices) or None


def made_at(folder: Path) -> Made | None:
    """Return the marker of a build's folder, None when the build is not complete."""
    return _decoded(folder / MARKER, Made)


def _decoded(file: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(read_file(file), type=kind)
    except (OSError, msgspec.MsgspecError):
        return None


def digest(parts: Iterable[object]) -> str:
    """Return a hash of what a build is made from."""
    return hashlib.sha256(repr(list(parts)).encode()).hexdigest()


def tree_facts(path: Path, *, left_out: Callable[[str], bool] = lambda _name: False) -> list[tuple[str, str]]:
    """Return the names and hashes of a file, or of everything below a folder whose name is not left out.

    Times do not count: a fresh checkout has new ones, and builds write what they generate again.
    """
    if path.is_file():
        files = [path]
    else:
        files = [file for file in map(Path, walk(path, left_out)) if not left_out(file.name)]
    found = sorted(file for file in files if file.is_file())
    return [(str(one.relative_to(path.parent)), _hash(one)) for one in found]


def _hash(file: Path) -> str:
    facts = file.stat()
    return _hash_of(file, facts.st_ino, facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=10_000)
def _hash_of(file: Path, *_state: int) -> str:
    with open_file(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def find_program(name: str, path: str) -> Path:
    """Return the absolute path of a program.

    Raises:
        Quarantine: the machine lacks it.
    """
    found = shutil.which(name, path=path)
    if found is None:
        raise Quarantine(f"{name} not found: install it, or name it by its path")
    return Path(os.path.abspath(found))


def installation(said: str | None, name: str, place: Home) -> Path:
    """Return the program that runs a connector: the machine's, or the one that the key of its name chooses.

    `said`: a home (its bin/ is looked into) or an executable, as a path; a word without `/` is looked up on PATH.

    Raises:
        Quarantine: there is no such program.
    """
    if said is None:
        return find_program(name, place.path)
    if "/" not in said:
        try:
            return find_program(said, place.path)
        except Quarantine as missing:
            raise Quarantine(f"{name}: {missing}") from missing
    path = must_exist(place.resolve(said, name), name)
    program = path / "bin" / name if path.is_dir() else path
    problem = start_problem(program, place.path)
    if problem is not None:
        raise Quarantine(f"{name}: {problem}")
    return program


def heap(memory: int, *, beside: int) -> int:
    """Return how many bytes of `max_memory` a heap may have: three quarters, or less where `beside` needs more.

    A quarter is the least. With so little the run is rather killed than refused a start.
    """
    return max(memory // 4, min(memory // 4 * 3, memory - beside))


def must_exist(file: Path, key: str) -> Path:
    """Return the file.

    Raises:
        Quarantine: it does not exist.
    """
    if not file.exists():
        raise Quarantine(f"{key}: {file} does not exist")
    return file


def sources(folder: Path, *suffixes: str, left_out: Path | None = None) -> list[Path]:
    """Return the source files in a folder and below it, the nearest first: processes that are kept may have read them.

    Hidden folders, those that tools fill, virtual environments and links to folders are left out.
    """
    found: list[str] = []
    folders = deque([str(folder)])
    for _ in range(FOLDERS):
        if not folders or len(found) >= SOURCES:
            break
        parent = folders.popleft()
        with contextlib.suppress(OSError), os.scandir(parent) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
            if parent != str(folder) and any(entry.name == "pyvenv.cfg" for entry in entries):
                continue
            for entry in entries:
                if entry.name.endswith(suffixes):
                    found.append(entry.path)
                elif entry.is_dir(follow_symlinks=False) and not _is_left_out(entry, left_out):
                    folders.append(entry.path)
    return [Path(file) for file in found[:SOURCES]]


def _is_left_out(folder: os.DirEntry[str], left_out: Path | None) -> bool:
    if folder.name.startswith(".") or folder.name in BUILT:
        return True
    return left_out is not None and folder.name == left_out.name and Path(folder.path).resolve() == left_out


def start_problem(program: Path, path: str) -> str | None:
    """Return why the kernel would not start a file, and what to do; None where it would, or nobody can tell."""
    try:
        check_file(program)
        mode = os.stat(program).st_mode
    except FileNotFoundError:
        return f"{program} does not exist"
    except OSError as problem:
        return unusable(problem)
    if not os.access(program, os.X_OK):
        cure = (
            f"executable for the gateway's user, {os.geteuid()}: chmod a+rx" if mode & 0o111 else "executable: chmod +x"
        )
        return f"{program} is not {cure} {program}"
    return script_problem(program, path) or _form_problem(program)


def script_problem(program: Path, path: str) -> str | None:
    """Return what keeps an executable script's interpreter from running it."""
    try:
        first = _beginning(program)
    except PermissionError as problem:  # of no matter to a binary
        return unusable(problem) if program.suffix in CODE else None
    return _interpreter_problem(program, first.partition(b"\n")[0], path) if first.startswith(b"#!") else None


def _form_problem(program: Path) -> str | None:
    try:
        first = _beginning(program)
    except PermissionError:
        return None
    if first.startswith(b"\xef\xbb\xbf#!"):
        return f"{program} begins with a byte order mark, which hides its #! line: save it as UTF-8 without one"
    if first.startswith(b"#!") or b"\0" in first:  # or some binary format, which the kernel may know
        return None
    return f"{program} {'has no #! line' if first else 'is empty'}: begin it with one, for example #!/bin/sh"


def _beginning(file: Path) -> bytes:
    """Return a file's first bytes; zeros where there are none to be had."""
    try:
        with open_file(file) as stream:
            return stream.read(_LOOK)
    except PermissionError:
        raise
    except OSError:
        return b"\0"


def _interpreter_problem(script: Path, line: bytes, path: str) -> str | None:
    if line.endswith(b"\r"):
        fix = f"sed -i 's/\\r$//' {script}"
        return f"the #! line of {script.name} ends with a carriage return, as on Windows: {fix}"
    words = line[2:].decode(errors="replace").split()
    if not words:
        return f"the #! line of {script.name} names no interpreter"
    if not os.access(words[0], os.X_OK):
        what = "is not executable" if os.path.exists(words[0]) else "not found"
        return f"{words[0]} {what}: the #! line of {script.name} needs it"
    if os.path.basename(words[0]) == "env":
        names = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
        if names and shutil.which(names[0], path=path) is None:
            return f"{names[0]} not found: the #! line of {script.name} needs it"
    return None
