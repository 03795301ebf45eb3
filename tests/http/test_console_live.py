"""What many may follow at once: lines are gathered, one connector's are nobody else's, and numbers are made once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from gateway.http.console.live import AT_ONCE, Follower, LiveLogs, SharedTexts
from gateway.observe.events import Bus, ConnectorLine, RunFinished
from tests.http.test_console import logged_in
from tests.support import served

if TYPE_CHECKING:
    from tests.support import Site


def line(connector: str, text: str = "", client: str | None = None) -> ConnectorLine:
    return ConnectorLine(connector=connector, command="Go", request_id="r", stream="stderr", line=text, client=client)


def test_of_more_lines_than_can_be_read_the_latest_are_kept_and_the_others_counted() -> None:
    follower = Follower("fax", 3)
    for number in range(5):
        follower.take(line("fax", str(number)))
    left_out, lines = follower.taken()
    assert (left_out, [one.line for one in lines if isinstance(one, ConnectorLine)]) == (2, ["2", "3", "4"])
    follower.take(line("fax", "5"))
    left_out, lines = follower.taken()
    assert (left_out, len(lines)) == (0, 1)
    assert follower.taken() == (0, [])


def test_a_line_is_handed_to_those_alone_who_follow_its_connector() -> None:
    bus = Bus()
    logs = LiveLogs(bus)
    fax, mail = Follower("fax", 9), Follower("mail", 9)
    bus.publish(line("fax"))
    for one in (fax, mail):
        logs.add(one)
    bus.publish(line("fax"))
    bus.publish(RunFinished(connector="mail", command="Go", request_id="r", outcome="ok"))
    bus.publish(line("other"))
    assert (len(fax.lines), len(mail.lines)) == (1, 1)
    logs.remove(fax)
    bus.publish(line("fax"))
    bus.publish(line("mail"))
    assert (len(fax.lines), len(mail.lines)) == (1, 2)
    logs.remove(mail)
    bus.publish(line("mail"))
    assert len(mail.lines) == 2


async def test_numbers_that_several_look_at_are_made_once() -> None:
    shared, made = SharedTexts(60), 0

    async def make() -> str:
        nonlocal made
        made += 1
        await asyncio.sleep(0)
        return f"numbers {made}"

    assert await asyncio.gather(*(shared.text(("all", ""), make) for _ in range(10))) == ["numbers 1"] * 10
    assert await shared.text(("acme", ""), make) == "numbers 2"
    assert await shared.text(("all", ""), make) == "numbers 1"


async def test_numbers_are_made_again_when_their_time_is_over_and_after_a_failure() -> None:
    shared, made = SharedTexts(0), 0

    async def make() -> str:
        nonlocal made
        made += 1
        if made == 1:
            raise RuntimeError
        return f"numbers {made}"

    with pytest.raises(RuntimeError):
        await shared.text("all", make)
    assert await shared.text("all", make) == "numbers 2"
    assert await shared.text("other", make) == "numbers 3"
    assert await shared.text("all", make) == "numbers 4"


CHATTY = """
for number in $(seq 1 LINES); do echo "line $number." >&2; done
echo '{}'
"""


async def test_a_log_that_floods_is_told_with_its_end_and_how_much_is_left_out(site: Site) -> None:
    lines = 20 * AT_ONCE
    site.script("chatty.sh", CHATTY.replace("LINES", str(lines)))
    site.configure("chatty: {run: [./chatty.sh], commands: {Go: {}}}", gateway="api_key: single")
    async with served(site) as server:
        browser = await logged_in(server)
        headers = {"Cookie": f"console={browser.cookie}"}
        async with server.session.get(f"{server.url}/console/connectors/chatty/log", headers=headers) as followed:
            assert (await followed.content.readline()) == b": open\n"
            assert (await server.do("chatty/Go", headers={"Authorization": "Bearer single"})).status == 200
            text = ""
            while "ended: ok" not in text:
                text += (await followed.content.readline()).decode()
    assert f"line {lines}." in text
    shown = text.count('data: <p class="stderr">')
    left_out = sum(int(part.split()[0]) for part in text.split("(")[1:] if "which came too fast" in part)
    assert shown + left_out == lines
    assert text.count("event: line") < shown + 1
