"""The route of calls: what a request asks for, and what it is answered."""

from __future__ import annotations

import asyncio
import codecs
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from gateway.calls.call import EMPTY, Call
from gateway.connectors.parameters import CONTEXT
from gateway.errors import InvalidRequest, RequestTimeout, RequestTooLarge
from gateway.http.audited import note
from gateway.http.budget import FREE, PROGRESS, Body
from gateway.http.responses import DURATION, of_job, status_of, unreadable
from gateway.http.routes import Access, Route
from gateway.http.statuses import TOLD
from gateway.http.traced import NO_TRACE, trace_of
from gateway.identity import DEFAULT
from gateway.jobs.contract import Accepted
from gateway.protocol.document import MEMBERS, Object, TooMuch, not_json, read_object
from gateway.protocol.request import LARGE, Caller
from gateway.units import Duration, Size

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.calls.reply import Reply
    from gateway.gateway import Gateway
    from gateway.http.budget import Budget
    from gateway.http.traced import Trace
    from gateway.protocol.document import Piece

PATH = "/v1/do/{connector}/{command}"
WORDS = 8190  # bytes of a member of the context: as long as a URL may be
SLICE = 1 << 18  # bytes of an answer that are sent at once


class CallHandlers:
    """The route below /v1/do."""

    def __init__(self, gateway: Gateway, budget: Budget) -> None:
        self._budget = budget
        self._largest = gateway.settings.max_request
        self._patience = gateway.settings.read_timeout
        self._invoker = gateway.invoker
        self._submitter = gateway.submitter
        self._quotas = gateway.quotas
        self._sending = gateway.admission.sending
        self._traced = gateway.tracing is not None

    def routes(self) -> list[Route]:
        """Return the table of routes."""
        return [
            Route("POST", PATH, self.do, Access.CALL, event="call"),
            Route("GET", PATH, self.do, Access.CALL, head=False, event="call"),
        ]

    async def do(self, request: web.Request) -> web.Response:
        """Run a command."""
        client = request["client"] or DEFAULT
        limits = self._quotas.limits_of(client)
        most = self._largest
        if limits is not None and limits.max_request is not None:
            most = min(most, limits.max_request)
        since = self._quotas.enter(client, limits)
        content = request.content
        share: Body | None = None
        try:
            try:
                if content.is_eof() and content.total_bytes <= min(FREE, most):
                    body: bytes | bytearray = content.read_nowait()
                else:
                    share = Body(self._budget)
                    body = await self._body(request, share, most)
            except (web.RequestPayloadError, HttpProcessingError) as problem:
                raise InvalidRequest(f"the body cannot be read: {unreadable(problem)}") from problem
            trace = trace_of(request) if self._traced or "traceparent" in request.headers else NO_TRACE
            call, respond_async = _call(request, body, trace, is_utf8=share is not None)
            del body  # it may be large, and all of it is in the call
            if call.caller.task_id is not None:
                note(request, task_id=call.caller.task_id)
            if not call.small:
                await asyncio.sleep(0)  # to read it and to check it are two turns of the loop
            if call.caller.callback_url is None and not respond_async:  # then nothing can become of it but its answer
                answer: Reply | Accepted = await self._invoker.invoke(call)
            else:
                answer = await self._submitter.submit(call, respond_async=respond_async)
        finally:
            self._quotas.leave(client, since)
            if share is not None:
                share.end()
        return self._told(answer, request)

    async def repeat(self, request: web.Request, call: Call) -> web.Response:
        """Run what was kept of a call, for its client, as if that came again."""
        client = call.caller.client or DEFAULT
        since = self._quotas.enter(client, self._quotas.limits_of(client))
        try:
            answer = await self._submitter.submit(call, respond_async=_wants_job(request))
        finally:
            self._quotas.leave(client, since)
        return self._told(answer, request)

    def _told(self, answer: Reply | Accepted, request: web.Request) -> web.Response:
        if isinstance(answer, Accepted):
            note(request, job=answer.id, outcome="joined" if answer.joined else "accepted")
            return of_job(answer)
        return self._answered(answer, request)

    async def _body(self, request: web.Request, share: Body, most: int) -> bytearray:
        """Read the body. aiohttp's own way copies it once more, which holds everybody up when it is large.

        Raises:
            RequestTooLarge: it is larger than `most` bytes, or is said to be.
            InvalidRequest: it is not UTF-8.
            GatewayBusy: there is no room for it.
            RequestTimeout: it goes without progress for too long.
        """
        whose = "gateway.max_request" if most == self._largest else "this client's limits.max_request"
        too_large = f"the body is larger than {Size(most)} ({whose})"
        said = request.content_length or 0
        if said > most:
            raise RequestTooLarge(too_large)
        share.expect(said)
        if request.headers.get("Expect", "").lower() == "100-continue" and not request.content.total_bytes:
            await _continue(request)
        body, mark, utf8 = bytearray(), PROGRESS, codecs.getincrementaldecoder("utf-8")()
        now = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(self._patience) as limit:
                while chunk := await request.content.readany():
                    body += chunk
                    utf8.decode(chunk)  # it is looked at as it comes: of all of it at once, that takes its time
                    if len(body) > most:
                        raise RequestTooLarge(too_large)
                    share.grow(len(body))
                    if len(body) >= mark:
                        mark = len(body) + PROGRESS
                        limit.reschedule(now() + self._patience)
            utf8.decode(b"", final=True)
        except UnicodeDecodeError as problem:
            raise InvalidRequest(f"the body is not a JSON object: not UTF-8 (near byte {len(body)})") from problem
        except TimeoutError as problem:
            wanted = f"the body came slower than {Size(PROGRESS)} in {Duration(self._patience)} (gateway.read_timeout)"
            raise RequestTimeout(wanted) from problem
        return body

    def _answered(self, reply: Reply, request: web.Request) -> web.Response:
        """Answer what a connector answered; a drain waits for what takes its time to be sent."""
        result = reply.result
        headers = {"Content-Type": result.mimetype, DURATION: f"{reply.run.wall:.4f}"}
        plain = result.error is None and result.status is None and not reply.accepted
        if not plain:
            note(request, outcome="accepted" if reply.accepted else reply.run.outcome)
        status = TOLD if plain else status_of(reply)
        size = sum(map(len, result.pieces))
        if size <= FREE:
            return web.Response(body=b"".join(result.pieces), status=status, headers=headers)
        headers["Content-Length"] = str(size)
        return web.Response(body=self._sliced(result.pieces, size, request.transport), status=status, headers=headers)

    async def _sliced(
        self, pieces: tuple[Piece, ...], size: int, transport: asyncio.Transport | None
    ) -> AsyncIterator[memoryview]:
        """Give out a large result in slices: it is never copied as a whole, and others have their turn in between."""
        with self._sending(), self._budget.answer(size, transport) as unsent:
            for piece in pieces:
                view = memoryview(piece)
                for start in range(0, len(view), SLICE):
                    yield view[start : start + SLICE]
                    unsent.move()


async def wait_for_the_handler(_request: web.Request) -> None:
    """Leave it to the handler whether it wants a body that its sender holds back (Expect: 100-continue)."""


async def _continue(request: web.Request) -> None:
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # the answer has not begun


def _call(request: web.Request, body: bytes | bytearray, trace: Trace, *, is_utf8: bool) -> tuple[Call, bool]:
    """Return what is asked for, and whether its caller rather has a job of it."""
    headers, match = request.headers, request.match_info
    params = _fields(body, method=request.method, is_utf8=is_utf8)
    if len(params) > MEMBERS:
        raise InvalidRequest(f"the body cannot be taken: it has more than {MEMBERS:,} members")
    context: Object = {}
    for name in params:
        if name.startswith(CONTEXT):
            context[name] = params[name]
    for name in context:
        del params[name]
    name, client, timeout = request["request_id"], request["client"], headers.get("X-Timeout")
    key_id = request["identity"].key or None
    call = Call(
        connector=match["connector"],
        command=match["command"],
        params=params,
        caller=_caller(name, client, trace, key_id, context)
        if context
        else Caller(request_id=name, client=client, traceparent=trace[0], tracestate=trace[1], key_id=key_id),
        task_data=_task_data(context) if context else EMPTY,
        timeout=None if timeout is None else _timeout(timeout),
        small=len(body) <= LARGE,
    )
    return call, _wants_job(request)


def _wants_job(request: web.Request) -> bool:
    return "respond-async" in request.headers.get("Prefer", "")


def _fields(body: bytes | bytearray, *, method: str, is_utf8: bool) -> Object:
    if not body and method != "POST":
        return {}
    try:
        return read_object(body, is_utf8=is_utf8)
    except TooMuch as problem:
        raise InvalidRequest(f"the body cannot be taken: {problem}") from problem
    except (ValueError, msgspec.DecodeError) as problem:
        raise InvalidRequest(f"the body is not a JSON object: {problem}") from problem


def _caller(request_id: str, client: str | None, trace: Trace, key_id: str | None, fields: Object) -> Caller:
    return Caller(
        request_id=request_id,
        client=client,
        traceparent=trace[0],
        tracestate=trace[1],
        process_instance_id=_context(fields, "process_instance_id", int | str | None),
        process_model_identifier=_context(fields, "process_model_identifier", str | None),
        task_id=_context(fields, "task_id", str | None),
        callback_url=_callback_url(fields),
        key_id=key_id,
    )


def _task_data(fields: Object) -> msgspec.Raw:
    raw = fields.get(f"{CONTEXT}task_data", EMPTY)
    first = bytes(memoryview(raw)[:1])
    if first == b'"':  # older callers send it as JSON in a string
        text = msgspec.json.decode(raw, type=str).strip(" \t\r\n").encode() or b"{}"
        problem = not_json(text) if text.startswith(b"{") else "it is another value"
        if problem is not None:
            raise InvalidRequest(f"{CONTEXT}task_data is not a JSON object: {problem}")
        return msgspec.Raw(text)
    if first == b"n":
        return EMPTY
    if first != b"{":
        raise InvalidRequest(f"{CONTEXT}task_data is not a JSON object")
    return raw


def _context(fields: Object, name: str, kind: Any) -> Any:
    raw = fields.get(f"{CONTEXT}{name}")
    if raw is None:
        return None
    if len(memoryview(raw)) > WORDS:
        raise InvalidRequest(f"{CONTEXT}{name} is longer than {WORDS:,} bytes")
    try:
        value = msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError as problem:
        raise InvalidRequest(f"{CONTEXT}{name}: {problem}") from problem
    if isinstance(value, str) and "\0" in value:  # nothing that is called so can be looked for
        raise InvalidRequest(f"{CONTEXT}{name} holds the character U+0000")
    return value


def _callback_url(fields: Object) -> str | None:
    url: str | None = _context(fields, "callback_url", str | None)
    try:
        if url and URL(url).scheme not in {"http", "https"}:
            raise InvalidRequest(f"{CONTEXT}callback_url is not an http or https URL")
    except ValueError as problem:
        raise InvalidRequest(f"{CONTEXT}callback_url is not a URL: {problem}") from problem
    return url or None


def _timeout(header: str) -> float:
    try:
        timeout = float(header)
    except ValueError:
        timeout = -1.0
    if not 0 < timeout < float("inf"):
        raise InvalidRequest(f"X-Timeout: {header[:40]!r} is not a number of seconds, for example 2.5")
    return timeout
