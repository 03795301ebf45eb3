"""Builds what connectors need into `state_dir`: venvs, jars, node_modules. A build never disturbs the one that serves.

runtimes/NAME/BUILD/           a build; complete when it has its marker
runtimes/NAME/current          a link to the one that serves
runtimes/NAME/failed.json      why the latest one was not made
runtimes/NAME/build.log        what the latest one printed, made or not
runtimes/.shared/              what builds of several connectors have in common
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import uuid
from typing import TYPE_CHECKING

import msgspec

from gateway.cells.removing import remove
from gateway.connectors.build_log import BuildLog
from gateway.connectors.definition import LOCALE, Recognised, recognise, redactor
from gateway.errors import ConnectorInvalidOutput, Quarantine
from gateway.files import unusable
from gateway.locks import lock
from gateway.observe.telling import secrets_in
from gateway.processes.completed import StartFailed
from gateway.processes.launch import Bounds, Launch
from gateway.protocol.description import read_description
from gateway.protocol.request import DescribeRequest, one_line
from gateway.protocol.result import interpret
from gateway.runtimes import Build, BuildFailed, Made, made_at
from gateway.runtimes.base import FAILED, LOCK, MARKER, Failed
from gateway.sandbox import STANDARD, Sandbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from gateway.connectors.sources import Sources
    from gateway.processes.base import Pool
    from gateway.processes.completed import Completed
    from gateway.settings import Settings

TIMEOUT = 1800.0  # seconds that one program of a build may take
AT_ONCE = max(4, os.cpu_count() or 1)
SHARED = ".shared"  # no connector is called so
KEPT = 2  # complete builds: the one that serves, and the one before, which work in flight may still use
BOUNDS = Bounds(output=1 << 20, log=4 << 20, memory=0)
SANDBOX = Sandbox(level=STANDARD, max_pids=4096, max_disk=1 << 40)
"""What is built sees no process but its own: whoever reads /proc as root would have their environments."""
UNLOADABLE = {"ModuleNotFoundError", "ImportError", "SyntaxError", "IndentationError", "TabError"}
"""What Python raises for want of code, or of code that it can read."""
STEP = 10.0  # seconds between two signs of life of one step
FAULTS = (Quarantine, BuildFailed, OSError)


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one connector: `state` is "built", "unchanged", "nothing to build" or "failed"."""

    name: str
    state: str
    problem: str | None = None
    notices: tuple[str, ...] = ()


class Installer:
    """Builds connectors, a few at a time."""

    def __init__(
        self,
        settings: Settings,
        pool: Pool,
        environ: Mapping[str, str],
        *,
        offline: bool,
        wheels_only: bool,
        upgrade: bool,
        index: tuple[str, ...],
    ) -> None:
        """`environ` is what the builds' programs get: they need the operator's proxies, certificates and caches."""
        self.offline = offline
        self.wheels_only = wheels_only
        self.upgrade = upgrade
        self.index = index
        self._settings = settings
        self._pool = pool
        self.environ = dict(environ)
        self._secrets = tuple(secrets_in([self.environ, *index]))
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._sharing: dict[str, asyncio.Lock] = {}
        self._batches: dict[str, _Batch] = {}

    async def install(
        self, sources: Sources, names: Iterable[str], progress: Callable[[str, str], None]
    ) -> list[Installed]:
        """Build the named connectors (all when none is named); `progress(name, what)` is told of each step."""
        wanted = set(names)
        entries = [entry for entry in sources.entries if not wanted or entry.name in wanted]
        missing = [
            Installed(name=name, state="failed", problem="there is no such connector")
            for name in sorted(wanted - {entry.name for entry in entries})
        ]
        recognised = []
        for entry in entries:
            try:
                one = recognise(entry, sources.defaults, self._settings)
            except Quarantine as problem:
                said = redactor(entry.node, self._settings)(str(problem))
                missing.append(Installed(name=entry.name, state="failed", problem=said))
                continue
            if one is not None:
                recognised.append(one)
        return [*missing, *await asyncio.gather(*(self._install(one, progress) for one in recognised))]

    async def _install(self, one: Recognised, progress: Callable[[str, str], None]) -> Installed:
        name = one.place.name
        try:
            build = await asyncio.to_thread(one.build)
            if build is None:
                return Installed(name=name, state="nothing to build")
            async with self._turns:
                return await self._build(one, build, progress)
        except FAULTS as problem:
            progress(name, "failed")
            said = redactor(one.place.node, self._settings)(_said(problem))
            return Installed(name=name, state="failed", problem=said)

    async def _build(self, one: Recognised, build: Build, progress: Callable[[str, str], None]) -> Installed:
        place = one.place
        with _alone(place.builds):
            current = (place.builds / "current").resolve()
            made = made_at(current)
            anew = self.upgrade and (place.builds / LOCK).exists()
            if made is not None and made.serves(build, current) and not anew:
                progress(place.name, "unchanged")
                return Installed(name=place.name, state="unchanged", notices=made.notices)
            _check_owner(place.builds)
            filled = (self.environ.get(name, "") for name in build.variables)
            redact = redactor(place.node, self._settings).plus((*build.secrets, *filled, *self._secrets))
            log = BuildLog(place.builds, f"gateway install {place.name}", redact)
            tools = _BuildTools(self, one, progress, log)
            folder = place.builds / uuid.uuid4().hex[:12]
            folder.mkdir()
            failed = place.builds / FAILED
            try:
                await build.make(folder, tools)
                failed.unlink(missing_ok=True)
                made = Made(inputs=build.inputs(), at=str(folder.resolve()), notices=tuple(tools.notices))
                (folder / MARKER).write_bytes(msgspec.json.encode(made))
                log.step(f"built: {folder.name}")
            except BaseException as problem:
                await asyncio.to_thread(remove, folder, TIMEOUT)
                if isinstance(problem, FAULTS):
                    told = Failed(inputs=build.inputs(), problem=redact(_said(problem)))
                    failed.write_bytes(msgspec.json.encode(told))
                    log.step(f"failed: {told.problem.partition(chr(10))[0]}")
                else:
                    log.step("broken off")
                raise
            finally:
                log.write()
            _point(place.builds / "current", folder)
            await asyncio.to_thread(_prune, place.builds, folder)
        progress(place.name, "done")
        return Installed(name=place.name, state="built", notices=(*made.notices, *tools.warnings))

    async def shared(self, name: str, make: Callable[[Path], Awaitable[None]]) -> Path:
        """Return a file that builds share. One of them makes it, and the others wait for that."""
        file = self._settings.state_dir / "runtimes" / SHARED / name
        async with self._sharing.setdefault(name, asyncio.Lock()):
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                draft = file.with_name(f".{uuid.uuid4().hex[:12]}{file.suffix}")
                try:
                    await make(draft)
                    draft.replace(file)
                finally:
                    draft.unlink(missing_ok=True)
        return file

    async def together(
        self, name: str, folder: Path, work: Callable[[list[Path]], Awaitable[object]], waits: Callable[[], None]
    ) -> None:
        """Do work in this folder, and in those that have come while other such work went on."""
        batch = self._batches.setdefault(name, _Batch())
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        batch.waiting[folder] = done
        self._turns.release()  # who waits leaves the processors to others, which may come along
        try:
            if batch.lock.locked():
                waits()
            async with batch.lock:
                if not done.done():
                    taken, batch.waiting = batch.waiting, {}
                    async with self._turns:
                        await _worked(taken, work)
        finally:
            await self._turns.acquire()
        done.result()

    async def run(
        self, argv: tuple[str, ...], env: Mapping[str, str], stdin: bytes, log: BuildLog, *, allowed: float = TIMEOUT
    ) -> Completed:
        """Run one program of a build, contained like a connector; what it says beside its result goes to the log.

        Raises:
            BuildFailed: it could not be started.
        """
        launch = Launch(
            argv=argv, env=dict(env), result_on_fd3=False, bounds=BOUNDS, redact=log.redact, sandbox=SANDBOX
        )
        try:
            child = self._pool.obtain(launch, lambda _stream, line: log.line(line))
            return await child.run(stdin, deadline=asyncio.get_running_loop().time() + allowed)
        except StartFailed as problem:
            raise BuildFailed(f"{os.path.basename(argv[0])} could not be started: {problem}") from problem


class _Batch:
    """Folders that wait for work which is done for several at once."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waiting: dict[Path, asyncio.Future[None]] = {}


async def _worked(taken: dict[Path, asyncio.Future[None]], work: Callable[[list[Path]], Awaitable[object]]) -> None:
    """Do work for several; where it fails for all of them, for one after the other: each has its own failure."""
    try:
        await work(list(taken))
    except FAULTS as problem:
        if len(taken) > 1:
            for folder, done in taken.items():
                await _worked({folder: done}, work)
            return
        for done in taken.values():
            done.set_exception(problem)
    except BaseException:
        for done in taken.values():
            done.cancel()
        raise
    else:
        for done in taken.values():
            done.set_result(None)


class _BuildTools:
    """What a build gets."""

    def __init__(
        self, installer: Installer, one: Recognised, progress: Callable[[str, str], None], log: BuildLog
    ) -> None:
        self.offline = installer.offline
        self.wheels_only = installer.wheels_only
        self.upgrade = installer.upgrade
        self.variables = frozenset(installer.environ)
        self.index = installer.index
        self.shared = installer.shared
        self.notices: list[str] = []
        self.warnings: list[str] = []
        """What is of this moment: where it serves it may be otherwise."""
        self._installer = installer
        self._one = one
        self._name = one.place.name
        self._progress = progress
        self._redact = log.redact
        self._log = log

    async def together(self, name: str, folder: Path, work: Callable[[list[Path]], Awaitable[object]]) -> None:
        program = os.path.basename(name)

        def waits() -> None:
            self._progress(self._name, f"waits for {program} of others")
            self._log.step(f"waits for {program} of others, whose log may have what it prints")

        await self._installer.together(name, folder, work, waits)

    def note(self, text: str) -> None:
        self.notices.append(self._redact(text))
        self._log.step(f"to know: {text}")

    async def run(self, *argv: str, env: dict[str, str] | None = None, stdin: bytes = b"") -> str:
        step = " ".join(_words(argv))
        async with self._told(step):
            done = await self._installer.run(argv, {**self._installer.environ, **(env or {})}, stdin, self._log)
        self._log.printed(done.result.decode(errors="replace"))
        if done.status != 0 or done.stop is not None:
            raise BuildFailed(f"{step} failed ({_how(done, TIMEOUT)}):\n{self._said(done)}")
        return done.result.decode(errors="replace")

    async def try_out(self, *argv: str, stdin: bytes | None = None) -> None:
        one = self._one
        allowed = float(one.limits.describe_timeout)
        config = msgspec.Raw(msgspec.json.encode(one.common.config))
        request = one_line(DescribeRequest(config=config)) if stdin is None else stdin
        env = {"PATH": one.place.path, **LOCALE, **one.env}
        async with self._told("is tried out"):
            done = await self._installer.run(argv, env, request, self._log, allowed=allowed)
        try:
            error = interpret(done.result, self._redact).error
        except ConnectorInvalidOutput:
            if done.stop is None:
                raise BuildFailed(f"it does not start ({_how(done, allowed)}):\n{self._said(done)}") from None
            self.warnings.append(f"it is {_how(done, allowed)} (describe_timeout) when it is asked what it can do")
            return
        if error is not None and error.unloadable:
            told, more = f"{error.error_code}: {error.message}", _without_frames(done.log_tail)[-2000:]
            raise BuildFailed(f"it cannot be loaded: {more if error.message in more else told}")
        if error is not None:
            self.warnings.append(f"it was built, and does not work here: {error.error_code}: {error.message}")
        self._judge(done)

    def _judge(self, done: Completed) -> None:
        """Look at what it has left out: without anything else it has nothing to serve with."""
        with contextlib.suppress(ConnectorInvalidOutput):
            told = read_description(done.result)
            problems = [self._redact(f"{one.module}: {one.message}") for one in told.problems]
            lacking = any(one.message.partition(":")[0] in UNLOADABLE for one in told.problems)
            if lacking and not told.commands and not told.auths:
                raise BuildFailed(f"it cannot be loaded: {'; '.join(problems)}")
            self.warnings += [f"it was built, and a part of it does not work here: {problem}" for problem in problems]

    def _said(self, done: Completed) -> str:
        told = self._redact(done.result.decode(errors="replace").strip())
        return "\n".join(text for text in (told, done.log_tail) if text)[-4000:]

    @contextlib.asynccontextmanager
    async def _told(self, step: str) -> AsyncIterator[None]:
        """Tell of a step, and that it goes on."""
        self._progress(self._name, step)
        self._log.step(step)
        signs = asyncio.create_task(self._signs_of_life(step))
        try:
            yield
        finally:
            signs.cancel()

    async def _signs_of_life(self, step: str) -> None:
        for count in itertools.count(1):
            await asyncio.sleep(STEP)
            self._progress(self._name, f"{step}, for {count * STEP:.0f} s")


def _how(done: Completed, allowed: float) -> str:
    """Say how a program ended that was allowed so many seconds."""
    if done.stop is not None:
        return f"still running after {allowed:g} s"
    return done.signal or f"exit status {done.status}"


def _without_frames(log: str) -> str:
    """Return a log without the lines of stacks: where a file does not parse stands before them."""
    return "\n".join(line for line in log.splitlines() if not line.lstrip().startswith("at ")).strip()


def _words(argv: tuple[str, ...]) -> list[str]:
    """Return what people call a command: its program, and the verbs after it."""
    return [os.path.basename(argv[0]), *(word for word in argv[1:3] if not word.startswith(("-", "/")))]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second `gateway install` out of one connector's builds."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not lock(handle, wait=False):
            raise BuildFailed("another gateway install is building it")
        yield
    finally:
        os.close(handle)


def _check_owner(folder: Path) -> None:
    """Builds that somebody else has left can be used, and not made anew.

    Raises:
        BuildFailed: so it is.
    """
    if os.access(folder, os.W_OK | os.X_OK):
        return
    user, cure = os.geteuid(), f"be that one, or chown -R {os.geteuid()} {folder}"
    raise BuildFailed(f"user {folder.stat().st_uid} has built it, and this is user {user}: {cure}")


def _said(problem: Exception) -> str:
    return unusable(problem) if isinstance(problem, OSError) else str(problem)


def _point(link: Path, folder: Path) -> None:
    draft = link.with_name(f".{link.name}-{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(folder.name)
    draft.replace(link)


def _prune(builds: Path, current: Path) -> None:
    """Remove what is left of broken builds, and complete ones but the newest few."""
    folders = [one for one in builds.iterdir() if one.is_dir() and not one.is_symlink()]
    complete = sorted((one for one in folders if made_at(one)), key=lambda one: one.stat().st_mtime, reverse=True)
    keep = {current, *complete[:KEPT]}
    for folder in folders:
        if folder not in keep:
            remove(folder, TIMEOUT)
