"""An error, as a connector tells it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

CODE = 255  # characters of an error's code: what is longer is cut
Redact = Callable[[str], str]
"""Takes secrets out of a text."""
AHEAD = 1 << 14  # bytes beyond what is shown that are looked at, since a secret may stand across the cut
LOG_CHARACTERS = 4096  # of each of them, and of an error's message


class ToldError(msgspec.Struct, kw_only=True):
    """An error that a connector told. `raised`: its own code failed, rather than the world."""

    error_code: str
    message: str = ""
    raised: bool = False
    invalid_output: bool = False
    """The result had no JSON form, which a host of ours has found."""
    out_of_memory: bool = False
    """Its heap was full, which a host of ours has found."""
    unloadable: bool = False
    """It could not be loaded, for want of code that is there and can be read, which a host of ours has found."""

    @property
    def no_answer(self) -> bool:
        """Whether a host says with it what kept the command from answering."""
        return self.invalid_output or self.out_of_memory


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    """How connectors write an error; a code may be a number."""

    error_code: str | int
    message: str | int | float | None = None
    raised: bool = False
    invalid_output: bool = False
    out_of_memory: bool = False
    unloadable: bool = False


def told(raw: msgspec.Raw | None) -> ToldError | None:
    """Return the error in a member named `error`, None where it is none."""
    if raw is None or bytes(memoryview(raw)[:1]) != b"{":
        return None
    try:
        told = msgspec.json.decode(raw, type=_Told)
    except msgspec.ValidationError:
        return None
    error = ToldError(
        error_code=str(told.error_code)[:CODE],
        message=str(told.message or ""),
        raised=told.raised,
        invalid_output=told.invalid_output,
        out_of_memory=told.out_of_memory,
        unloadable=told.unloadable,
    )
    return error if error.error_code else None


def beginning(raw: bytes | memoryview | msgspec.Raw, characters: int, redact: Redact) -> str:
    """Return the beginning of a text or of a value as it was written, without secrets: none is cut."""
    text = redact(bytes(memoryview(raw)[: 4 * characters + AHEAD]).decode(errors="replace"))
    return text if len(text) <= characters else text[:characters] + "..."


def short(text: str) -> str:
    """Return a text as it may leave the gateway: not too long."""
    return text if len(text) <= LOG_CHARACTERS else text[: LOG_CHARACTERS - 3] + "..."
