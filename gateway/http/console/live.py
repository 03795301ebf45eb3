"""What is live: the lines of a connector's log, handed to whoever follows it; and server-sent events."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from aiohttp import web

from gateway.calls.admission import AdmissionState
from gateway.errors import RateLimited
from gateway.http.console.answers import HEADERS
from gateway.http.keys import Unauthorized
from gateway.identity import owner_of
from gateway.observe.events import ConnectorLine, Event, RunFinished

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from gateway.calls.admission import Admission
    from gateway.observe.events import Bus

HELD = 500  # lines that a follower has not taken yet; older ones are left out
MOST = 100  # streams at once
TICK = 1.0  # seconds between two looks whether a stream has to end


class Follower:
    """Takes the lines of one connector, or of one request, for somebody."""

    def __init__(self, connector: str, *, request_id: str = "", client: str | None = None) -> None:
        """`connector` is its registered name; with a `client`, of a common one those of his calls alone."""
        self.connector = connector
        self.request_id = request_id
        self.lines: deque[ConnectorLine | RunFinished] = deque(maxlen=HELD)
        self.came = asyncio.Event()
        self._client = client

    def take(self, event: ConnectorLine | RunFinished) -> None:
        """Take a line, if it is one of these."""
        if event.connector != self.connector or not self._sees(event):
            return
        if self.request_id and event.request_id != self.request_id:
            return
        self.lines.append(event)
        self.came.set()

    def _sees(self, event: ConnectorLine | RunFinished) -> bool:
        return self._client is None or event.client == self._client or owner_of(event.connector) == self._client


class LiveLogs:
    """Listens to lines and ends of runs, from the first on who follows: until then nothing costs anything."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._listens = False
        self._followers: set[Follower] = set()

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if self._followers:
            assert isinstance(event, ConnectorLine | RunFinished)
            for follower in self._followers:
                follower.take(event)

    def add(self, follower: Follower) -> None:
        """Have somebody follow."""
        if not self._listens:
            self._bus.listen(self, ConnectorLine, RunFinished)
            self._listens = True
        self._followers.add(follower)

    def remove(self, follower: Follower) -> None:
        """Let him go."""
        self._followers.discard(follower)


class Streams:
    """Streams of server-sent events that are open: how many there may be, and when they end."""

    def __init__(self, admission: Admission, identify: Callable[[web.Request], object]) -> None:
        """`identify` raises once whoever asked may see nothing any more."""
        self._admission = admission
        self._identify = identify
        self._open = 0

    async def send(
        self, request: web.Request, news: Callable[[], AsyncIterator[tuple[str, str]]], came: asyncio.Event
    ) -> web.StreamResponse:
        """Send what is new, as (event, text), whenever something `came` or a second is over, until nobody looks.

        Raises:
            RateLimited: there are too many.
        """
        if self._open >= MOST:
            raise RateLimited(f"more than {MOST} pages are followed: close some", retry_after=10)
        response = web.StreamResponse(headers={**HEADERS, "X-Accel-Buffering": "no"})
        response.content_type = "text/event-stream"
        response.charset = "utf-8"
        self._open += 1
        try:
            await response.prepare(request)
            await response.write(b": open\n\n")
            while self._admission.state is AdmissionState.SERVING and self._may_see(request):
                async for event, text in news():
                    await response.write(_event(event, text))
                came.clear()
                try:
                    await asyncio.wait_for(came.wait(), TICK)
                except TimeoutError:
                    await response.write(b": still here\n\n")
        except ConnectionResetError:
            pass  # nobody looks any more
        finally:
            self._open -= 1
        return response

    def _may_see(self, request: web.Request) -> bool:
        try:
            self._identify(request)
        except Unauthorized:
            return False
        return True


def _event(name: str, text: str) -> bytes:
    data = "".join(f"data: {line}\n" for line in text.splitlines())
    return f"event: {name}\n{data}\n".encode()
