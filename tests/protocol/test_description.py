"""What a connector answers to `describe`."""

from __future__ import annotations

import pytest

from gateway.errors import ConnectorInvalidOutput
from gateway.protocol.description import read_description


def test_a_description_may_have_more_than_is_known() -> None:
    description = read_description(
        bytearray(b"""warming up
        {"commands": [{"name": "Send", "parameters": [{"id": "to", "type": "str", "required": true, "label": "To"}], "async": true}], "auths": [], "vendor": 1}""")
    )
    (command,) = description.commands
    assert (command.name, command.is_async, command.parameters[0].id) == ("Send", True, "to")


def test_a_description_may_be_large() -> None:
    listed = ",".join(f'{{"name": "C{number}", "parameters": [{{"id": "a"}}]}}' for number in range(20_000))
    assert len(read_description(bytearray(f'{{"commands": [{listed}]}}'.encode())).commands) == 20_000
    assert read_description(bytearray(b'{"auths": [], "x": "%s"}' % (b"x" * 100_000))).commands == []
    with pytest.raises(ConnectorInvalidOutput, match='no "commands"'):
        read_description(bytearray(b'{"x": "%s"}' % (b"x" * 100_000)))


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (b"", "empty"),
        (b"usage: fax [-h]", "not one JSON document"),
        (b"[]", "Expected `object`"),
        (b"{}", 'no "commands"'),
        (b'{"commands": [{"parameters": []}]}', "name"),
        (b'{"commands": [{"name": "a", "parameters": [{"id": "b", "type": "date"}]}]}', "type"),
        (b'{"error": {"error_code": "no_line", "message": "no dial tone"}}', "no_line: no dial tone"),
    ],
)
def test_a_description_that_is_none_says_why(output: bytes, why: str) -> None:
    with pytest.raises(ConnectorInvalidOutput, match=why):
        read_description(bytearray(output))
