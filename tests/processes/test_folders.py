"""A call's private folder: where it is, what is in it, and what becomes of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import Server, Site, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

RUNS = 20
ACT = """
import json, os, stat, sys
def facts():
    return [os.getcwd(), stat.S_IMODE(os.stat(".").st_mode), os.listdir("."), os.environ["HOME"], os.environ["TMPDIR"]]
found = facts()
exec(json.load(sys.stdin)["params"].get("code", ""))
print(json.dumps(found))
"""
LEAVE = """
os.makedirs("a/b")
open("a/b/c", "w").close()
os.symlink("/", "link")
os.chmod("a", 0)
"""
PRECIOUS = "precious"


@pytest.fixture(params=["off", "standard"])
async def gateway(site: Site, request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    site.level = request.param
    site.python("act.py", ACT)
    site.configure("act: {run: [./act.py], commands: {Go: {additional_parameters: true}}}")
    async with served(site) as server:
        yield server


async def facts(gateway: Server, code: str = "") -> Path:
    """Have a call tell of its folder, and then do something; return the folder's path."""
    answer = await gateway.do("act/Go", {"code": code})
    assert answer.status == 200, answer
    folder, mode, names, *own = answer.body
    assert (mode, names, own) == (0o700, [], [folder, folder])
    return Path(folder)


async def test_every_folder_is_fresh_private_and_has_a_name_of_its_own(gateway: Server) -> None:
    one_by_one = [await facts(gateway) for _ in range(RUNS)]
    at_once = await asyncio.gather(*(facts(gateway) for _ in range(4)))
    assert len({*one_by_one, *at_once}) == RUNS + 4
    assert {path.is_relative_to(gateway.site.state / "run") for path in one_by_one} == {True}


async def test_a_folder_is_gone_with_its_answer(gateway: Server) -> None:
    assert not (await facts(gateway, "os.mkdir('a')")).exists()


async def test_what_was_left_in_a_folder_is_removed_and_never_seen_again(gateway: Server) -> None:
    for _ in range(5):
        await facts(gateway, LEAVE)
    cells = [one for one in (gateway.site.state / "run").glob("*/*") if one.is_dir()]
    assert cells
    assert not [one for cell in cells for one in cell.rglob("*") if one.name in {"a", "b", "c", "link"}]


async def test_a_folder_whose_mode_was_changed_is_nobody_elses(gateway: Server) -> None:
    for mode in (0o755, 0o777, 0o2770, 0):
        await facts(gateway, f"os.chmod('.', {mode})")
    await facts(gateway)


async def test_a_folder_that_its_call_removes_is_no_error(gateway: Server) -> None:
    for _ in range(3):
        await facts(gateway, "os.rmdir(os.getcwd())")


@pytest.mark.parametrize("what", ["os.rmdir", "lambda path: os.rename(path, path + '-moved')"])
async def test_what_stands_in_the_place_of_a_folder_is_removed_as_what_it_is(gateway: Server, what: str) -> None:
    victim = gateway.site.folder / "victim"
    victim.mkdir(mode=0o755)
    (victim / PRECIOUS).touch()
    for target in (victim, "/", "nowhere"):
        code = f"here = os.getcwd(); ({what})(here); os.symlink('{target}', here)"
        folder = await facts(gateway, code)
        assert not folder.is_symlink()
    await facts(gateway)
    assert [one.name for one in victim.iterdir()] == [PRECIOUS]
    assert victim.stat().st_mode & 0o777 == 0o755
    await eventually(lambda: not list((gateway.site.state / "run").rglob("*-moved")))
