"""Answers what a person may be about to type: one run of a source for all who ask the same within a few seconds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from gateway.calls.call import Call
from gateway.errors import ConnectorInvalidOutput

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.calls.reply import Reply
    from gateway.connectors.definition import Command, Connector
    from gateway.connectors.registry import Registry
    from gateway.protocol.request import Caller
    from gateway.protocol.told import ToldError

MOST = 1000  # answers that are kept
LARGEST = 64 << 10  # bytes of one of them

_Key = tuple[str, str, int, str, str, str]


class Suggested(NamedTuple):
    """A JSON list, or, where the connector told an error, the envelope with it; and whose it is."""

    connector: str
    command: str
    body: bytes
    error: ToldError | None = None


class _Shared:
    """A run, and how many wait for it."""

    def __init__(self, running: asyncio.Task[Suggested]) -> None:
        self.running = running
        self.waiting = 0


class Suggestions:
    """Runs commands that are sources."""

    def __init__(
        self, registry: Registry, invoke: Callable[[Call], Awaitable[Reply]], keep: float, *, most: int = MOST
    ) -> None:
        """Keep an answer for `keep` seconds, and at most `most` of them."""
        self._registry = registry
        self._invoke = invoke
        self._keep = keep
        self._most = most
        self._kept: dict[_Key, tuple[float, Suggested]] = {}
        self._shared: dict[_Key, _Shared] = {}

    async def ask(self, category: str, prefix: str, limit: int, caller: Caller) -> Suggested:
        """Return at most `limit` suggestions.

        Raises:
            GatewayError: there is no such category, the command could not be run, or it gave no list.
        """
        await self._registry.listed(caller.client)
        connector, command = self._registry.world(caller.client).source(category)
        key = (category, prefix, limit, command.name, caller.client or "", connector.identity)
        until, kept = self._kept.get(key, (0.0, None))
        if kept is not None and asyncio.get_running_loop().time() < until:
            return kept
        shared = self._shared.get(key)
        if shared is None:
            running = asyncio.create_task(self._run(key, connector, command, caller), name=f"typeahead {category}")
            running.add_done_callback(lambda done: done.cancelled() or done.exception())
            shared = self._shared[key] = _Shared(running)
        return await self._wait(key, shared)

    async def _wait(self, key: _Key, shared: _Shared) -> Suggested:
        """Wait with others; the last who gives up ends the run."""
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.running)
        finally:
            shared.waiting -= 1
            if shared.waiting == 0:
                if self._shared.get(key) is shared:
                    del self._shared[key]
                shared.running.cancel()
                await asyncio.wait((shared.running,))

    async def _run(self, key: _Key, connector: Connector, command: Command, caller: Caller) -> Suggested:
        _, prefix, limit, *_ = key
        typeahead = command.typeahead
        assert typeahead is not None
        params = {typeahead.prefix: msgspec.Raw(msgspec.json.encode(prefix))}
        if typeahead.limit is not None:
            params[typeahead.limit] = msgspec.Raw(msgspec.json.encode(limit))
        call = Call(connector=connector.called, command=command.name, params=params, caller=caller)
        reply = await self._invoke(call)
        if reply.result.error is not None:
            return Suggested(connector.name, command.name, reply.result.content, reply.result.error)
        try:
            listed = _listed(reply, f"{connector.called}/{command.name}", limit)
        except ConnectorInvalidOutput as problem:
            problem.run = reply.run
            raise
        suggested = Suggested(connector.name, command.name, listed)
        self._remember(key, suggested)
        return suggested

    def _remember(self, key: _Key, suggested: Suggested) -> None:
        if self._keep <= 0 or len(suggested.body) > LARGEST:
            return
        self._kept.pop(key, None)
        while len(self._kept) >= self._most:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = (asyncio.get_running_loop().time() + self._keep, suggested)


class _Response(msgspec.Struct, frozen=True):
    body: msgspec.Raw


class _Listed(msgspec.Struct, frozen=True):
    command_response: _Response


def _listed(reply: Reply, title: str, limit: int) -> bytes:
    """Return the list in a result, cut."""
    content, status = reply.result.content, reply.result.status
    if status is not None and status >= 300:
        raise ConnectorInvalidOutput(f"{title} answered status {status} instead of suggestions")
    try:
        body = msgspec.json.decode(content, type=_Listed).command_response.body if status is None else content
        listed = msgspec.json.decode(body, type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise ConnectorInvalidOutput(f"{title} gave no JSON list, which a typeahead source has to") from problem
    return msgspec.json.encode(listed[:limit])
