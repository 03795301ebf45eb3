"""Asks executables what they can do, and remembers the answer as long as the executable stays the same."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gateway.connectors.turns import Turn, Turns
from gateway.errors import ConnectorInvalidOutput, Quarantine
from gateway.files import read_file
from gateway.locks import lock
from gateway.processes.completed import Completed, StartFailed, Stop, had_answered
from gateway.processes.run import uncancelled
from gateway.protocol.description import Description, read_description
from gateway.protocol.request import DescribeRequest, one_line
from gateway.runners import RUNNERS
from gateway.runtimes.base import BUILT, digest, start_problem, tree_facts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.connectors.definition import Connector
    from gateway.processes.completed import Completed
    from gateway.processes.spawn import SpawnPool

PATIENCE = 5.0  # seconds that another gateway is waited for which asks the same
FORM = 2  # of what is remembered: what was asked in another way is asked again
LOOK = 0.05  # seconds between two looks whether it is done


class _Cached(msgspec.Struct, frozen=True, kw_only=True):
    identity: str
    description: Description | None
    """None: there is a secret in it, so it has to be asked for again."""
    peak_rss: int


class Describer:
    """Runs op "describe", for as many at once as the processors can work for; those that only wait do not count."""

    def __init__(self, pool: SpawnPool, folder: Path) -> None:
        """`folder` holds one file a connector; it is made when there is something to keep."""
        self._pool = pool
        self._folder = folder
        self._turns = Turns()

    @property
    def busy(self) -> bool:
        """Whether some connector that is asked works for its answer, or has yet to be started."""
        return self._turns.busy

    def remembered(self, connector: Connector) -> Description | None:
        """Return what the same executable answered before."""
        cached = self._cached(connector)
        return cached.description if cached is not None else None

    def peak_rss(self, connector: Connector) -> int | None:
        """Return the most resident bytes that it had meanwhile; None when it has not been asked."""
        cached = self._cached(connector)
        return cached.peak_rss if cached is not None else None

    async def ask(self, connector: Connector) -> Description:
        """Run the executable, and remember what it answers; or read what another gateway has been told meanwhile.

        Raises:
            Quarantine: it did not answer properly; the message says what it did instead.
        """
        clock = asyncio.get_running_loop().time
        missed = float("inf")  # when another gateway was first seen to ask
        while True:
            async with self._turns.turn() as turn:
                known = self.remembered(connector)
                if known is not None:
                    return known
                with self._locked(connector) as ours:
                    if ours or clock() - missed > PATIENCE:
                        return await self._ask(connector, turn)
            missed = min(missed, clock())
            await asyncio.sleep(LOOK)

    async def _ask(self, connector: Connector, turn: Turn) -> Description:
        completed = await self._run(connector, turn)
        tail = f"; stderr: {connector.redact(completed.log_tail)[-1000:]}" if completed.log_tail else ""
        answered = completed.stop is not None and had_answered(completed)
        if completed.stop is Stop.OUTPUT:
            raise Quarantine(f"describe wrote more than max_output ({connector.limits.max_output}){tail}")
        if completed.stop is not None and not answered:
            allowed = connector.limits.describe_timeout
            raise Quarantine(f"did not describe itself within {allowed:g} s (describe_timeout){tail}")
        if completed.out_of_memory:
            raise Quarantine(f"describe went over max_memory ({connector.limits.max_memory}){tail}")
        if completed.signal is not None and not answered:
            raise Quarantine(f"describe died of {completed.signal}{tail}")
        try:
            description = read_description(completed.result)
        except ConnectorInvalidOutput as problem:
            status = f" (exit status {completed.status})" if completed.status else ""
            raise Quarantine(f"describe failed{status}: {problem.message}{tail}") from problem
        if completed.status and not answered:
            raise Quarantine(f"describe failed: exit status {completed.status}{tail}")
        with contextlib.suppress(OSError):  # a full disk: it will be asked again
            await asyncio.to_thread(self._remember, connector, description, completed.peak_rss)
        return description

    async def _run(self, connector: Connector, turn: Turn) -> Completed:
        loop = asyncio.get_running_loop()
        request = one_line(DescribeRequest(config=connector.config))
        try:
            child = self._pool.obtain(connector.launch, lambda _stream, _line: None)
            deadline = loop.time() + connector.limits.describe_timeout
            running = loop.create_task(child.run(request, deadline=deadline))
            try:
                await turn.watch(child.effort, running)
            except asyncio.CancelledError:  # nobody waits for it any more, and it has nothing to save
                child.stop(Stop.CANCELLED, grace=0)
                await uncancelled(running)
                raise
            return running.result()
        except StartFailed as problem:
            launch = connector.launch
            told = start_problem(Path(launch.argv[0]), launch.env["PATH"])
            raise Quarantine(f"describe could not be started: {problem}{f': {told}' if told else ''}") from problem

    def _file(self, connector: Connector) -> Path:
        return self._folder / f"{connector.name}.json"

    @contextlib.contextmanager
    def _locked(self, connector: Connector) -> Iterator[bool]:
        """Keep other gateways from asking the same executable at the same time; False where one of them asks it now."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            fd = os.open(self._folder / f"{connector.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:  # nothing can be remembered there either
            yield True
            return
        try:
            yield lock(fd, wait=False)
        finally:
            os.close(fd)

    def _cached(self, connector: Connector) -> _Cached | None:
        try:
            cached = msgspec.json.decode(read_file(self._file(connector)), type=_Cached)
        except (OSError, msgspec.MsgspecError):
            return None
        return cached if cached.identity == _told_by(connector) else None

    def _remember(self, connector: Connector, description: Description, peak_rss: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._file(connector)
        draft = file.with_suffix(f".{os.getpid()}.tmp")
        told = msgspec.json.encode(description)
        secret = any(auth.client_secret for auth in description.auths) or (
            bool(connector.secrets) and connector.redact.masked(told) is not told
        )
        cached = _Cached(identity=_told_by(connector), description=None if secret else description, peak_rss=peak_rss)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(draft, flags, 0o600), "wb") as stream:
            stream.write(msgspec.json.encode(cached))
        draft.replace(file)


def _told_by(connector: Connector) -> str:
    """Return what an answer depends on: the executable, and the hosts that we put before it."""
    return f"{connector.remembered_by}-{FORM}-{_hosts()}"


@functools.cache
def _hosts() -> str:
    # The cell says nothing of its own, and may be built at this moment.
    return digest(tree_facts(RUNNERS, left_out=lambda name: name in BUILT or name == "cell"))
