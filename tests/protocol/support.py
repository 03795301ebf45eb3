"""What tests of results share."""

from __future__ import annotations

import json
from typing import Any

from gateway.protocol.result import Result, interpret


def read(output: bytes | str | dict[str, Any], *, secret: str = "\0") -> Result:
    data = output if isinstance(output, bytes) else (output if isinstance(output, str) else json.dumps(output)).encode()
    return interpret(bytearray(data), lambda text: text.replace(secret, "***"))


def sent(result: Result) -> Any:
    return json.loads(bytes(result.content))
