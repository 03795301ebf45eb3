"""The examples with curl in the documents are true: they are sent to a gateway, and their answers compared.

`...` stands for anything. A line that goes on is indented by one blank, which is not in the answer.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import pytest

from tests.support import Server, Site, served

ROOT = Path(__file__).parent.parent
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")


def examples(document: str) -> list[tuple[str, str]]:
    """Return each curl command of a document with what it prints."""
    blocks = CONSOLE.findall((ROOT / document).read_text())
    return [(command, answer) for block in blocks for command, answer in COMMAND.findall(block) if "curl " in command]


async def printed(command: str, server: Server) -> str:
    process = await asyncio.create_subprocess_exec(
        "sh", "-ec", command.replace("localhost:7004", f"127.0.0.1:{server.port}"), stdout=asyncio.subprocess.PIPE
    )
    told, _ = await process.communicate()
    assert process.returncode == 0, command
    return told.decode().replace("\r\n", "\n")


def pattern(answer: str) -> str:
    """Return what an answer has to match."""
    text = answer.replace("\n ", "").strip()
    return r"\s*".join(re.escape(line.strip()).replace(r"\.\.\.", r"(?s:.*?)") for line in text.splitlines())


async def compare(document: str, server: Server, *, least: int) -> None:
    found = examples(document)
    assert len(found) >= least
    for command, answer in found:
        told = await printed(command, server)
        assert re.fullmatch(pattern(answer), told.strip()), f"{command}\n{told}"


async def test_the_page_for_callers(site: Site) -> None:
    text = (ROOT / "docs/http.md").read_text()
    connectors = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    site.file.write_text(connectors[0])
    async with served(site, env={"CONNECTOR_PROXY_API_KEY": "KEY"}) as server:
        await compare("docs/http.md", server, least=8)


async def test_the_readme(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.configure(gateway=f"connectors_dir: {ROOT / 'connectors.d'}\nenable: listed", connectors="text: {}")
    async with served(site) as server:
        await compare("README.md", server, least=1)
