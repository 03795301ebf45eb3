"""What is written of parameters and results: without what is secret, or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gateway.observe.redact import MASK, NOTHING_SHOWN

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.journal.records import Payload
    from gateway.observe.redact import Redactor

_ALL_MASKED = msgspec.json.encode(MASK)


class Masked(NamedTuple):
    """What may be written of a payload, as JSON; None is nothing."""

    kept: str
    """What there is of the parameters."""
    sent: bytes | None
    result: bytes | None


NOTHING = Masked("no", None, None)


def masked(payload: Payload, most: int) -> Masked:
    """Return what may be written: at most so many bytes of what was sent, and of the result."""
    values = payload.secret_values(payload.params)
    redact = NOTHING_SHOWN if values is None else payload.redact.plus(values)
    result = None
    content = b"".join(payload.result)
    if 0 < len(content) <= most:
        result, _ = without_secrets(_as_json(content), redact, payload.hides)
    if payload.too_large:
        return Masked("too_large", None, result)
    whole = msgspec.json.encode({"params": payload.params, "task_data": payload.task_data})
    sent, found = without_secrets(whole, redact, payload.hides)
    return Masked("masked" if found else "whole", sent, result)


def without_secrets(text: bytes, redact: Redactor, hides: Callable[[str], bool]) -> tuple[bytes, bool]:
    """Return a JSON document without secrets, and whether there were some: those below a name that hides its value too.

    One without any is returned as it was written.
    """
    try:
        value = msgspec.json.decode(text)
        found = _shown(value, redact, hides, secret=False)
        if found == value:
            return (text, False) if redact.masked(text) is text else (_ALL_MASKED, True)
        written = msgspec.json.encode(found)
    except (ValueError, OverflowError, RecursionError):  # what cannot be looked through
        return _ALL_MASKED, True
    return (written if redact.masked(written) is written else _ALL_MASKED), True


def _shown(value: Any, redact: Redactor, hides: Callable[[str], bool], *, secret: bool) -> Any:
    if isinstance(value, dict):
        return {redact(name): _shown(one, redact, hides, secret=secret or hides(name)) for name, one in value.items()}
    if isinstance(value, list):
        return [_shown(one, redact, hides, secret=secret) for one in value]
    if isinstance(value, bool) or value is None:
        return value
    text = str(value)
    if secret:
        return MASK if text else value
    without = redact(text)
    return value if without == text else without


def _as_json(content: bytes) -> bytes:
    """Return a result as JSON: what is none becomes a text."""
    try:
        msgspec.json.decode(content, type=msgspec.Raw)
    except (ValueError, RecursionError):
        return msgspec.json.encode(content.decode(errors="replace"))
    return content
