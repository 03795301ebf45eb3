"""The way to a token URL: an answer is looked at before it is read, and read no further than its bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2  # only who signs in imports this module

from gateway.oauth.answers import LARGEST, TokenRefused, check

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class BoundedTransport(httpx2.AsyncHTTPTransport):
    """Gives up what is no small, plain answer."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send, and look at the head of the answer."""
        response = await super().handle_async_request(request)
        try:
            check(response)
        except TokenRefused:
            await response.aclose()
            raise
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _BoundedStream(response.stream)
        return response


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = LARGEST
        async for piece in self._stream:
            left -= len(piece)
            if left < 0:
                raise TokenRefused(f"token_url answered more than {LARGEST >> 10} KiB")
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()
