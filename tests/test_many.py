"""What a call costs does not grow with the connectors that are registered beside it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from gateway.calls.call import Call
from gateway.gateway import Gateway
from gateway.observe.events import Bus
from gateway.protocol.request import Caller
from gateway.settings import read_settings

if TYPE_CHECKING:
    from types import FrameType

    from tests.support import Site


async def functions_called(site: Site, entry: str, connectors: int) -> int:
    """Return how many functions of Python one call takes, once there has been one."""
    site.configure("\n".join(f"c{number}: {{{entry}, commands: {{good: {{}}}}}}" for number in range(connectors)))
    settings, _ = read_settings(site.file)
    gateway = Gateway(settings, Bus())
    await gateway.open()
    call = Call(connector="c0", command="good", params={}, caller=Caller(request_id="r"))
    counted = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal counted
        counted += event == "call"

    try:
        await gateway.invoker.invoke(call)
        sys.setprofile(count)
        await gateway.invoker.invoke(call)
        return counted
    finally:
        sys.setprofile(None)
        await gateway.close()


@pytest.mark.parametrize("mode", ["spawn", "standby", "fork", "persistent"])
async def test_a_call_takes_no_more_with_many_connectors_than_with_one(site: Site, mode: str) -> None:
    (site.folder / "act.py").write_text("def good():\n    return 1\n")
    entry = f"runtime: python, module: ./act.py, mode: {mode}, warm: 0"
    one = await functions_called(site, entry, 1)
    assert await functions_called(site, entry, 500) < one + 250
