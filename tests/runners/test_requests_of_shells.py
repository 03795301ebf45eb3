"""What a shell sees of a request, and what is made of what it prints, in each mode."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.one_gateway import nothing_is_left, nothing_is_left_of_the_file  # noqa: F401
from tests.support import Server, Site, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

READS = """
while IFS= read -r request; do
    printf '%s\\n' "$request" >&"$1"
done
"""
NOISY = """
echo "profile loaded"
cmd_Run() { echo '{"x": 1}'; }
cmd_Text() { echo done; }
cmd_Lines() { printf '{\\n  "x": 1\\n}\\n'; }
cmd_Reads() { IFS= read -r request && printf '{"length": %s}\\n' "${#request}"; }
"""
MODES = ("spawn", "standby")
PRETTY = b'{"text": [\n  1,\n  2\n], "spiff__task_data": {\n"a": 1}}'

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    site = Site(tmp_path_factory.mktemp("shells"))
    site.script("reads.sh", READS)
    (site.folder / "noisy.sh").write_text(NOISY)
    commands = "commands: {Go: {additional_parameters: true}}"
    lines = [
        f"reads-{mode}: {{run: [./reads.sh, '{3 if mode == 'persistent' else 1}'], mode: {mode}, {commands}}}"
        for mode in (*MODES, "persistent")
    ]
    lines += [f"noisy-{mode}: {{runtime: shell, module: ./noisy.sh, mode: {mode}}}" for mode in MODES]
    site.configure("\n".join(lines))
    async with served(site) as server:
        yield server


@pytest.mark.parametrize("mode", [*MODES, "persistent"])
async def test_read_gets_all_of_a_request(gateway: Server, mode: str) -> None:
    answer = await gateway.do(f"reads-{mode}/Go", data=PRETTY)
    assert answer.status == 200, answer.raw
    assert (answer.body["params"], answer.body["task_data"]) == ({"text": [1, 2]}, {"a": 1})
    large = "x" * 200_000
    assert (await gateway.do(f"reads-{mode}/Go", {"text": large})).body["params"] == {"text": large}


@pytest.mark.parametrize("mode", MODES)
async def test_a_bash_command_reads_its_request(gateway: Server, mode: str) -> None:
    assert (await gateway.do(f"noisy-{mode}/Reads")).body["length"] > len(json.dumps({"op": "execute"}))


@pytest.mark.parametrize("mode", MODES)
async def test_noise_before_a_result_is_warned_of(gateway: Server, mode: str) -> None:
    answer = await gateway.do(f"noisy-{mode}/Run")
    assert (answer.status, answer.body) == (200, {"x": 1})
    [warning] = gateway.events("connector_warning", connector=f"noisy-{mode}", command="Run")
    assert "wrote 14 bytes of noise to stdout before its result" in warning["message"]


@pytest.mark.parametrize("mode", MODES)
async def test_what_is_neither_text_nor_a_result_is_refused(gateway: Server, mode: str) -> None:
    answer = await gateway.do(f"noisy-{mode}/Lines")
    assert (answer.status, answer.code) == (502, "connector_invalid_output")
    assert "JSON on several lines begins in line 2, after other text" in answer.message


@pytest.mark.parametrize("mode", MODES)
async def test_text_is_text_whatever_stands_before_it(gateway: Server, mode: str) -> None:
    answer = await gateway.do(f"noisy-{mode}/Text")
    assert (answer.status, answer.body) == (200, {"output": "profile loaded\ndone"})
