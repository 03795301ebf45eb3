"""Traces of OpenTelemetry, where its variables ask for them. Until then nothing of it is imported.

Nothing else here knows the library: what is traced is given the W3C trace context of its span as text, and hands it on.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import threading
import time
from importlib import metadata
from typing import TYPE_CHECKING, Any

from gateway.observe.events import TracesFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as LibrarySpan

    from gateway.observe.events import Event

    Attributes = Mapping[str, str | int | float | None]

SERVICE = "connector-gateway"
"""What the gateway is called where OTEL_SERVICE_NAME says nothing."""
LAST_WORDS = 3.0  # seconds that a stop waits for what has not been sent yet
QUIET = 60.0  # seconds between two lines about traces that cannot be sent
SHOWN = 300  # characters of what the library says
LIBRARY = "opentelemetry"


class TracesUnavailable(Exception):
    """They are asked for, and what they need is not installed."""


class SpanKind(enum.Enum):
    """What a span is to others, by the names of OpenTelemetry."""

    SERVER = "SERVER"
    INTERNAL = "INTERNAL"
    CLIENT = "CLIENT"
    CONSUMER = "CONSUMER"


class Span:
    """Something that takes its time. `traceparent` and `tracestate` are for whatever is done within it."""

    def __init__(self, span: LibrarySpan, carrier: Mapping[str, str]) -> None:
        self.traceparent = carrier.get("traceparent")
        self.tracestate = carrier.get("tracestate")
        self._span = span

    def end(
        self, attributes: Attributes, *, error: str | None = None, name: str | None = None, at: int | None = None
    ) -> None:
        """End it.

        Args:
            attributes: what is known now; None has no value.
            error: why it failed, a code of which there are few.
            name: what it is called after all.
            at: when it ended, in nanoseconds since 1970; None: now.
        """
        span = self._span
        if span.is_recording():
            from opentelemetry.trace import StatusCode  # noqa: PLC0415 - see the module

            span.set_attributes(_known(attributes))
            if name is not None:
                span.update_name(name)
            if error is not None:
                span.set_attribute("error.type", error)
                span.set_status(StatusCode.ERROR)
        span.end(at)


class Tracing:
    """Begins spans, and has them sent by a thread of the library's."""

    def __init__(self, provider: TracerProvider, version: str) -> None:
        from opentelemetry import trace  # noqa: PLC0415 - see the module
        from opentelemetry.context import Context  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        self._provider = provider
        self._tracer = provider.get_tracer("gateway", version)
        self._trace = trace
        self._nothing: Context = Context()
        self._w3c = TraceContextTextMapPropagator()

    def begin(
        self,
        name: str,
        kind: SpanKind,
        parent: tuple[str | None, str | None],
        attributes: Attributes,
        *,
        linked: bool = False,
        at: int | None = None,
    ) -> Span:
        """Begin a span.

        Args:
            name: what it is called; there are few such names.
            kind: what it is to others.
            parent: `traceparent` and `tracestate` of what it is a part of.
            attributes: what is known of it; None has no value.
            linked: its parent has ended long since: it is linked to it, too.
            at: when it began, in nanoseconds since 1970; None: now.
        """
        trace = self._trace
        given = {name: text for name, text in zip(("traceparent", "tracestate"), parent, strict=True) if text}
        context = self._w3c.extract(given, self._nothing)
        known = trace.get_current_span(context).get_span_context()
        span = self._tracer.start_span(
            _sendable(name),
            context,
            trace.SpanKind[kind.value],
            _known(attributes),
            [trace.Link(known)] if linked and known.is_valid else None,
            at,
        )
        carrier: dict[str, str] = {}
        self._w3c.inject(carrier, trace.set_span_in_context(span, self._nothing))
        return Span(span, carrier)

    def close(self) -> None:
        """Send what is left, for seconds: a collector that hangs holds nobody up."""
        last = threading.Thread(target=self._provider.shutdown, name="last traces", daemon=True)
        last.start()
        last.join(LAST_WORDS)


def start(exporters: Sequence[str], version: str, publish: Callable[[Event], None]) -> Tracing:
    """Begin to trace, in a running loop. The library reads its own variables.

    Args:
        exporters: their names in the entry points of OpenTelemetry.
        version: of the gateway.
        publish: is told, in the loop's thread, when they cannot be sent.

    Raises:
        TracesUnavailable: something is not installed, or cannot be made of the library's variables.
    """
    logger = logging.getLogger(LIBRARY)
    logger.handlers = [_Complaints(asyncio.get_running_loop(), publish)]
    logger.propagate = False
    try:
        return Tracing(_provider(exporters, version), version)
    except TracesUnavailable:
        raise
    except Exception as problem:  # whatever the library says of a variable, and in whatever way
        raise TracesUnavailable(f"OpenTelemetry cannot be started: {problem}") from problem


def _provider(exporters: Sequence[str], version: str) -> TracerProvider:
    try:
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - see the module
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as problem:
        raise TracesUnavailable("OpenTelemetry is not installed: pip install 'gateway[otel]'") from problem
    resource = Resource.create()
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": SERVICE}))
    if "service.version" not in resource.attributes:
        resource = resource.merge(Resource({"service.version": version}))
    senders = [_exporter(name) for name in exporters]
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for sender in senders:
        provider.add_span_processor(BatchSpanProcessor(sender))
    return provider


def _exporter(name: str) -> Any:
    """Make an exporter.

    Raises:
        TracesUnavailable: there is none of this name, or it cannot be made of its variables.
    """
    package = "'gateway[otel]'"
    if name == "otlp_proto_grpc":
        package = "opentelemetry-exporter-otlp-proto-grpc"
    for found in metadata.entry_points(group="opentelemetry_traces_exporter", name=name):
        try:
            return found.load()()
        except ImportError:
            break
        except Exception as problem:
            raise TracesUnavailable(f"the exporter {name} cannot be used: {problem}") from problem
    raise TracesUnavailable(f"there is no exporter {name}: pip install {package}, or name another one")


class _Complaints(logging.Handler):
    """What the library says, from whatever thread: the first of it at once, then one in a while."""

    def __init__(self, loop: asyncio.AbstractEventLoop, publish: Callable[[Event], None]) -> None:
        super().__init__(logging.WARNING)
        self._loop = loop
        self._publish = publish
        self._told = -QUIET
        self._more = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Take one."""
        self._more += 1
        now = time.monotonic()
        if now - self._told < QUIET:
            return
        event = TracesFailed(reason=record.getMessage()[:SHOWN], count=self._more)
        self._told, self._more = now, 0
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._publish, event)


def _known(attributes: Attributes) -> dict[str, str | int | float]:
    return {
        name: _sendable(value) if isinstance(value, str) else value
        for name, value in attributes.items()
        if value is not None
    }


def _sendable(text: str) -> str:
    """Return a text that can be sent: what has bytes in it that were no text would hold up all that goes with it."""
    return text if text.isascii() else text.encode(errors="replace").decode()
