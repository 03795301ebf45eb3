"""What is live: the lines of a connector's log, handed to whoever follows it; and server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from gateway.calls.admission import AdmissionState
from gateway.errors import RateLimited
from gateway.http.console.answers import HEADERS
from gateway.http.keys import Unauthorized, identity_of
from gateway.identity import owner_of
from gateway.observe.events import ConnectorLine, Event, RunFinished

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Hashable

    from gateway.calls.admission import Admission
    from gateway.observe.events import Bus

HELD = 500  # lines of a call that somebody tries; older ones are left out
AT_ONCE = 50  # lines of a log that are sent together: more of them within PACE can be read by nobody
MOST = 100  # streams at once
OF_ONE = MOST // 2  # of them, those of one client
TICK = 1.0  # seconds between two looks whether a stream has to end
PACE = 0.25  # seconds between two writes to a stream: what comes meanwhile is sent together


class Follower:
    """Takes the lines of one connector, or of one request, for somebody."""

    def __init__(self, connector: str, most: int, *, request_id: str = "", client: str | None = None) -> None:
        """`connector` is its registered name; with a `client`, of a common one those of his calls alone.

        Of more lines than `most` that nobody has taken yet, the latest are kept.
        """
        self.connector = connector
        self.request_id = request_id
        self.lines: deque[ConnectorLine | RunFinished] = deque(maxlen=most)
        self.left_out = 0
        """Lines that were not, since `taken` was asked."""
        self.came = asyncio.Event()
        self._client = client

    def take(self, event: ConnectorLine | RunFinished) -> None:
        """Take a line of its connector, if it is one of these."""
        if not self._sees(event):
            return
        if self.request_id and event.request_id != self.request_id:
            return
        self.left_out += len(self.lines) == self.lines.maxlen
        self.lines.append(event)
        self.came.set()

    def taken(self) -> tuple[int, list[ConnectorLine | RunFinished]]:
        """Return how many lines were left out, and those that are there, and have none of them any more."""
        found = self.left_out, list(self.lines)
        self.left_out = 0
        self.lines.clear()
        return found

    def _sees(self, event: ConnectorLine | RunFinished) -> bool:
        return self._client is None or event.client == self._client or owner_of(event.connector) == self._client


class LiveLogs:
    """Listens to lines and ends of runs, from the first on who follows: until then nothing costs anything."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._listens = False
        self._followers: dict[str, set[Follower]] = {}
        """By connector."""

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if self._followers:
            assert isinstance(event, ConnectorLine | RunFinished)
            for follower in self._followers.get(event.connector, ()):
                follower.take(event)

    def add(self, follower: Follower) -> None:
        """Have somebody follow."""
        if not self._listens:
            self._bus.listen(self, ConnectorLine, RunFinished, called="console")
            self._listens = True
        self._followers.setdefault(follower.connector, set()).add(follower)

    def remove(self, follower: Follower) -> None:
        """Let him go."""
        followers = self._followers[follower.connector]
        followers.discard(follower)
        if not followers:
            del self._followers[follower.connector]


class Streams:
    """Streams of server-sent events that are open: how many there may be, and when they end."""

    def __init__(self, admission: Admission, identify: Callable[[web.Request], object]) -> None:
        """`identify` raises once whoever asked may see nothing any more."""
        self._admission = admission
        self._identify = identify
        self._open: Counter[str] = Counter()
        """By client."""

    async def send(
        self, request: web.Request, news: Callable[[], AsyncIterator[tuple[str, str]]], came: asyncio.Event
    ) -> web.StreamResponse:
        """Send what is new, as (event, text), when something `came` or a second is over, until nobody looks.

        What comes quickly is gathered: a line costs a stream little, and a thousand a second not more than a few.

        Raises:
            RateLimited: there are too many.
        """
        client = identity_of(request).client
        if self._open[client] >= OF_ONE or self._open.total() >= MOST:
            raise RateLimited(
                f"{MOST} pages can be followed at once, {OF_ONE} of one client: close some", retry_after=10
            )
        response = web.StreamResponse(headers={**HEADERS, "X-Accel-Buffering": "no"})
        response.content_type = "text/event-stream"
        response.charset = "utf-8"
        self._open[client] += 1
        try:
            await response.prepare(request)
            with contextlib.suppress(ConnectionResetError):  # how it ends when nobody looks any more
                await self._follow(request, response, news, came)
        except Exception:
            if not response.prepared:
                raise
            # It has begun, and cannot become another answer: it ends, with a line in the log; a browser asks again.
            log = structlog.get_logger()
            log.exception("internal_error", path=request.path, request_id=request["request_id"])
        finally:
            self._open[client] -= 1
        return response

    async def _follow(
        self,
        request: web.Request,
        response: web.StreamResponse,
        news: Callable[[], AsyncIterator[tuple[str, str]]],
        came: asyncio.Event,
    ) -> None:
        await response.write(b": open\n\n")
        while self._admission.state is AdmissionState.SERVING and self._may_see(request):
            came.clear()
            if await self._told(response, news):
                await asyncio.sleep(PACE)
            try:
                await asyncio.wait_for(came.wait(), TICK)
            except TimeoutError:
                await response.write(b": still here\n\n")

    @staticmethod
    async def _told(response: web.StreamResponse, news: Callable[[], AsyncIterator[tuple[str, str]]]) -> bool:
        """Send what is new, for a second at most; tell whether there was anything."""
        clock, told = asyncio.get_running_loop().time, False
        until = clock() + TICK
        async for event, text in news():
            await response.write(_event(event, text))
            told = True
            if clock() > until:
                break
        return told

    def _may_see(self, request: web.Request) -> bool:
        try:
            self._identify(request)
        except Unauthorized:
            return False
        return True


class SharedTexts:
    """Texts that several look at: each is made once for all who ask within a moment."""

    def __init__(self, life: float) -> None:
        """`life` is how many seconds a text counts."""
        self._life = life
        self._kept: dict[Hashable, tuple[float, str]] = {}
        self._making = asyncio.Lock()

    async def text(self, key: Hashable, make: Callable[[], Awaitable[str]]) -> str:
        """Return the text of a key, made now or a moment ago."""
        async with self._making:
            now = time.monotonic()
            self._kept = {one: kept for one, kept in self._kept.items() if kept[0] > now}
            if key not in self._kept:
                self._kept[key] = (now + self._life, await make())
            return self._kept[key][1]


def _event(name: str, text: str) -> bytes:
    data = "".join(f"data: {line}\n" for line in text.splitlines())
    return f"event: {name}\n{data}\n".encode()
