"""Large bodies: at most three times their size in memory, whatever form they come in."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import Server, Site, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SIZE = 30_000_000  # bytes
MORE = SIZE >> 20  # MiB of slack: the allocator's, and what the gateway needs anyway

ZEROS = f"head -c {SIZE} /dev/zero | tr '\\0' "
FORMS = {
    "value": f"printf '\"'; {ZEROS} x; printf '\"'",
    "envelope": f"""printf '{{"command_response_version":2,"command_response":{{"body":"'; {ZEROS} x; printf '"}}}}'""",
    "legacy": f"""printf '{{"mimetype":"text/plain","response":"'; {ZEROS} x; printf '"}}'""",
    "escaped": f"""printf '{{"mimetype":"text/plain","response":"☃\\\\n'; {ZEROS} x; printf '"}}'""",
    "lines": f"yes '{{}}' | head -c {SIZE}",
}


@pytest.fixture
async def gateway(site: Site) -> AsyncIterator[Server]:
    limits = "max_output: 40MiB, commands: {Go: {additional_parameters: true}}"
    for name, script in FORMS.items():
        site.script(f"{name}.sh", f"cat >/dev/null; {script}")
    entries = [f"{name}: {{run: [./{name}.sh], {limits}}}" for name in FORMS]
    entries += [
        f"cat: {{run: [cat], {limits}}}",
        f"stays: {{run: [sh, -c, 'exec cat >&3'], mode: persistent, {limits}}}",
    ]
    site.configure("\n".join(entries), gateway="max_request: 40MiB")
    async with served(site) as gateway:
        yield gateway


def memory(gateway: Server, which: str) -> int:
    """Return the gateway's resident memory, or its peak, in MiB."""
    lines = Path(f"/proc/{gateway.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) >> 10


def forget_the_peak(gateway: Server) -> int:
    Path(f"/proc/{gateway.pid}/clear_refs").write_text("5")
    return memory(gateway, "VmRSS")


@pytest.mark.parametrize("form", FORMS)
async def test_a_large_result_takes_at_most_three_times_its_size(gateway: Server, form: str) -> None:
    before = forget_the_peak(gateway)
    answer = await gateway.do(f"{form}/Go")
    if form == "lines":
        assert (answer.status, answer.code) == (502, "connector_invalid_output")
    else:
        assert (answer.status, len(answer.raw) >= SIZE) == (200, True)
    assert memory(gateway, "VmHWM") - before < 3 * MORE


@pytest.mark.parametrize("connector", ["cat", "stays"])
async def test_large_bodies_in_and_out_take_at_most_three_times_their_size_and_stay_nowhere(
    gateway: Server, connector: str
) -> None:
    body = json.dumps({"text": "x" * SIZE}).encode()
    await gateway.do(f"{connector}/Go", data=io.BytesIO(body))
    before = forget_the_peak(gateway)
    for _ in range(5):
        answer = await gateway.do(f"{connector}/Go", data=io.BytesIO(body))
        assert (answer.status, len(answer.raw) > SIZE) == (200, True)
    assert memory(gateway, "VmHWM") - before < 3 * MORE
    assert memory(gateway, "VmRSS") - before < MORE


async def test_more_parameters_than_anybody_has_are_refused(gateway: Server) -> None:
    answer = await gateway.do("cat/Go", {f"p{number}": 1 for number in range(10_001)})
    assert (answer.status, answer.code) == (400, "invalid_request")
