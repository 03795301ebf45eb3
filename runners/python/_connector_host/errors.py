"""What the host itself tells as an error, in place of a connector's result."""

from __future__ import annotations

import sys


class ConnectorError(Exception):
    """The request failed."""

    code = "connector_failed"

    def to_json(self) -> dict[str, object]:
        """Give the ``error`` object of the answer."""
        return {"error_code": printable(self.code), "message": printable(str(self) or (type(self).__doc__ or ""))}


class InvalidRequestError(ConnectorError):
    """The request is not one this host understands."""

    code = "invalid_request"


class InvalidParametersError(ConnectorError):
    """The parameters do not fit the command; none of its code has run."""

    code = "invalid_parameters"


class CommandNotFoundError(ConnectorError):
    """The connector has no such command."""

    code = "command_not_found"


class InvalidOutputError(ConnectorError):
    """The command's result has no JSON form."""

    code = "connector_invalid_output"

    def to_json(self) -> dict[str, object]:
        """Give the ``error`` object, marked so that it is not taken for one of the connector's own."""
        return {**super().to_json(), "invalid_output": True}


class RaisedError(ConnectorError):
    """The connector's own code raised."""

    def __init__(self, raised: BaseException) -> None:
        """Take the name and the message of what was raised."""
        super().__init__(f"{message_of(raised)}{_advice(raised)}")
        self.code = type(raised).__name__

    def to_json(self) -> dict[str, object]:
        """Give the ``error`` object, marked as raised (which is another status than a told error)."""
        return {**super().to_json(), "raised": True}


def message_of(raised: BaseException) -> str:
    """Give an exception's message, or its class name when it has none or fails to tell it."""
    name = type(raised).__name__
    try:
        text = str(raised) or name
    except Exception:  # noqa: BLE001  (a broken __str__ must not hide the error it belongs to)
        return name
    return printable(text)


def printable(text: str) -> str:
    """Replace lone surrogates (from an undecodable file name, say): they have no UTF-8 form."""
    return text.encode("utf-8", "replace").decode("utf-8")


def one_line(raised: BaseException) -> str:
    """Give ``ModuleNotFoundError: No module named 'x'``, and what to do about it."""
    return f"{type(raised).__name__}: {message_of(raised)}{_advice(raised)}"


def _advice(raised: BaseException) -> str:
    missing = raised.name if isinstance(raised, ModuleNotFoundError) else None
    top = missing.partition(".")[0] if missing else ""
    if not top or top in sys.modules:
        return ""
    return f" (add {top}, or the package that provides it, to requirements)"
