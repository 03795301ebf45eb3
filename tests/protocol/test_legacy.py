"""A result of version 1."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import ConnectorInvalidOutput
from tests.protocol.support import read


@pytest.mark.parametrize(
    ("response", "body"),
    [("text ☃", "text ☃".encode()), ({"a": 1}, b'{"a": 1}'), ([1], b"[1]"), (None, b""), ("", b"")],
)
def test_a_legacy_result_is_sent_as_it_is(response: Any, body: bytes) -> None:
    result = read({"response": response, "mimetype": "text/html; charset=utf-8", "status": 201})
    assert (bytes(result.content), result.mimetype, result.status) == (body, "text/html; charset=utf-8", 201)


@pytest.mark.parametrize(("given", "status"), [(404, 404), ("503", 503), (None, 200)])
def test_a_legacy_status_may_be_a_number_as_text(given: Any, status: int) -> None:
    assert read({"response": "x", "mimetype": "text/plain", "status": given}).status == status
    assert read({"response": "x", "mimetype": "text/plain"}).status == 200


@pytest.mark.parametrize(
    "changes",
    [{"status": 99}, {"status": 1000}, {"status": "ok"}, {"status": True}, {"status": []}, {"status": "²⁰⁰"}],
)
def test_a_legacy_result_that_cannot_be_sent_is_invalid(changes: dict[str, Any]) -> None:
    with pytest.raises(ConnectorInvalidOutput):
        read({"response": "x", "mimetype": "text/plain", **changes})


@pytest.mark.parametrize(
    ("mimetype", "sent_as"),
    [("text/plain", "text/plain; charset=utf-8"), ("text/html", "text/html; charset=utf-8"),
     ("application/xml", "application/xml; charset=utf-8"), ("image/svg+xml", "image/svg+xml; charset=utf-8"),
     ("text/plain; Charset=latin-1", "text/plain; Charset=latin-1"), ("application/json", "application/json"),
     ("image/png", "image/png")],
)  # fmt: skip
def test_the_text_of_a_legacy_result_is_told_to_be_utf_8(mimetype: str, sent_as: str) -> None:
    assert read({"response": "☃", "mimetype": mimetype}).mimetype == sent_as


@pytest.mark.parametrize("mimetype", [None, 1, "", "text", "text/plain\r\nX-Evil: 1"])
def test_a_mimetype_that_cannot_be_sent_does_not_hide_the_response(mimetype: Any) -> None:
    result = read({"response": "x", "mimetype": mimetype})
    assert (bytes(result.content), result.mimetype, result.status) == (b"x", "text/html; charset=utf-8", 200)
    assert "mimetype" in result.warnings[0]


@pytest.mark.parametrize(("given", "status"), [(600, 600), (200.7, 200), ("201.0", 201), (999, 999)])
def test_a_legacy_status_is_read_as_the_original_reads_it(given: Any, status: int) -> None:
    assert read({"response": "x", "mimetype": "text/plain", "status": given}).status == status


def test_the_bytes_of_a_legacy_result_go_out_as_they_are() -> None:
    result = read({"response": "iVBORw==", "encoding": "base64", "mimetype": "text/plain", "status": 200})
    assert (result.content, result.mimetype) == (b"\x89PNG", "text/plain; charset=utf-8")


@pytest.mark.parametrize("changes", [{"encoding": "hex"}, {"encoding": "base64", "response": "%%"}])
def test_bytes_that_cannot_be_read_are_invalid(changes: dict[str, Any]) -> None:
    with pytest.raises(ConnectorInvalidOutput):
        read({"response": "aa==", "mimetype": "image/png", **changes})


def test_a_status_that_cannot_be_sent_does_not_hide_what_the_connector_said() -> None:
    with pytest.raises(ConnectorInvalidOutput, match=r"its status '\"ok\"' .* \(its response: said so\)"):
        read({"response": "said so", "mimetype": "text/plain", "status": "ok"})
