"""The server that is fetched from: it answers anything with the same few bytes. target.py PORT."""

from __future__ import annotations

import asyncio
import sys

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"


class Answering(asyncio.Protocol):
    """Counts the ends of requests, which have no bodies."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._tail = b""

    def data_received(self, data: bytes) -> None:
        whole = self._tail + data
        requests = whole.count(b"\r\n\r\n")
        self._tail = whole.rpartition(b"\r\n\r\n")[2]
        assert isinstance(self._transport, asyncio.WriteTransport)
        self._transport.write(ANSWER * requests)


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
