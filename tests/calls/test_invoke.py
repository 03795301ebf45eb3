"""What a call's `on_slot` can rely on, and what is left of a call."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
from typing import TYPE_CHECKING

import msgspec
import pytest

from gateway.calls.call import Call
from gateway.connectors.snapshot import Snapshot
from gateway.errors import CommandNotFound, ConnectorBusy, ConnectorTimeout, GatewayDraining, GatewayError
from gateway.observe.events import Event, RunFinished
from gateway.processes.completed import Completed
from gateway.protocol.request import Caller
from tests.support import eventually, opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from gateway.gateway import Gateway
    from tests.support import Site


@pytest.fixture
async def gateway(site: Site) -> AsyncIterator[Gateway]:
    site.script("note.sh", f"cat >/dev/null; echo run >> {site.folder}/runs; echo '{{}}'")
    site.script("hang.sh", "sleep 100")
    limits = "concurrency: 1, queue: 5, commands: {Go: {}}"
    site.configure(f"note: {{run: [./note.sh], {limits}}}\nhang: {{run: [./hang.sh], timeout: 300ms, {limits}}}")
    async with opened(site.file) as made:
        yield made


def call(on_slot: Callable[[], Awaitable[None]] | None, connector: str = "note") -> Call:
    return Call(connector=connector, command="Go", params={}, caller=Caller(request_id="r"), on_slot=on_slot)


def runs(site: Site) -> int:
    return len((site.folder / "runs").read_text().split()) if (site.folder / "runs").exists() else 0


async def test_it_is_awaited_with_a_slot_and_before_a_process(gateway: Gateway, site: Site) -> None:
    seen = []

    async def look() -> None:
        seen.append((gateway.places.lane("note").running, runs(site)))

    await gateway.invoker.invoke(call(look))
    assert seen == [(1, 0)]
    assert runs(site) == 1


async def test_when_it_raises_nothing_is_started_and_the_slot_is_given_back(gateway: Gateway, site: Site) -> None:
    async def refuse() -> None:
        raise ConnectorBusy("not now")

    with pytest.raises(ConnectorBusy, match="not now"):
        await gateway.invoker.invoke(call(refuse))
    assert gateway.places.lane("note").running == 0
    await gateway.invoker.invoke(call(None))
    assert runs(site) == 1


async def test_when_it_is_cancelled_the_slot_goes_to_the_next(gateway: Gateway, site: Site) -> None:
    holds = asyncio.Event()

    async def hold() -> None:
        holds.set()
        await asyncio.Event().wait()

    holding = asyncio.create_task(gateway.invoker.invoke(call(hold)))
    await holds.wait()
    next_one = asyncio.create_task(gateway.invoker.invoke(call(None)))
    holding.cancel()
    await next_one
    with contextlib.suppress(asyncio.CancelledError):
        await holding
    assert runs(site) == 1


async def test_what_it_takes_is_not_the_runs_time(gateway: Gateway) -> None:
    clock = asyncio.get_running_loop().time
    begun: list[float] = []

    async def take_long() -> None:
        until = clock() + 0.4  # longer than the command may run
        while clock() < until:
            await asyncio.sleep(0)
        begun.append(clock())

    with pytest.raises(ConnectorTimeout):
        await gateway.invoker.invoke(call(take_long, "hang"))
    assert clock() - begun[0] > 0.25


ACT = """
import signal
def good(text: str):
    return len(text)
def bad(text: str):
    raise ValueError
def slow(text: str):
    signal.pause()
"""
HANG = """
hang:
  run: [sleep, "100"]
  commands: {bad: {additional_parameters: true, timeout: 300ms}, slow: {additional_parameters: true}}
"""


@pytest.fixture
async def modes(site: Site) -> AsyncIterator[Gateway]:
    (site.folder / "act.py").write_text(ACT)
    entries = [f"{mode}: {{runtime: python, module: ./act.py, mode: {mode}}}" for mode in MODES]
    site.configure("\n".join([*entries, HANG]))
    async with opened(site.file) as made:
        yield made


MODES = ("spawn", "standby", "fork", "persistent")


@pytest.mark.parametrize("connector", [*MODES, "hang"])
async def test_a_call_that_is_over_holds_no_memory_until_the_collector_comes(modes: Gateway, connector: str) -> None:
    text = msgspec.Raw(msgspec.json.encode("x" * 100_000))

    async def one(command: str) -> None:
        with contextlib.suppress(GatewayError):
            caller = Caller(request_id="r")
            await modes.invoker.invoke(Call(connector=connector, command=command, params={"text": text}, caller=caller))

    async def hung_up() -> None:
        calling = asyncio.create_task(one("slow"))
        await eventually(lambda: modes.places.lane(connector).running)
        calling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await calling

    await one("bad")  # there is a host now
    gc.collect()
    others = {id(one) for one in gc.get_objects() if type(one) in (Call, Completed)}  # of other tests
    gc.disable()
    try:
        for act in (*(functools.partial(one, "good"),) * 3, *(functools.partial(one, "bad"),) * 3, hung_up):
            await act()
        await asyncio.create_task(asyncio.sleep(0))  # what is called soon has been called
        assert [one for one in gc.get_objects() if type(one) in (Call, Completed) and id(one) not in others] == []
    finally:
        gc.enable()


# --- asked once


async def test_what_was_found_already_is_not_asked_for_again(gateway: Gateway, site: Site) -> None:
    found = gateway.registry.snapshot.find("note", "Go")
    gateway.registry.snapshot = Snapshot({})
    reply = await gateway.invoker.invoke(call(None), found)
    assert (reply.run.outcome, runs(site)) == ("ok", 1)
    with pytest.raises(CommandNotFound):
        await gateway.invoker.invoke(call(None))


async def test_a_state_of_the_registry_remembers_what_it_was_asked_and_another_one_does_not(gateway: Gateway) -> None:
    snapshot = gateway.registry.snapshot
    await gateway.invoker.invoke(call(None))
    assert snapshot.found == {("note", "Go"): snapshot.find("note", "Go")}
    assert Snapshot(snapshot.statuses).found == {}


async def test_a_call_that_was_refused_before_it_was_run_is_told_as_any_other(gateway: Gateway) -> None:
    told: list[Event] = []
    gateway.bus.listen(told.append, RunFinished)
    problem = gateway.invoker.refused(call(None), CommandNotFound("there is no such thing"))
    assert problem.message == "note/Go: there is no such thing"
    [event] = told
    assert isinstance(event, RunFinished)
    assert (event.outcome, event.error_code, event.pid) == ("command_not_found", "command_not_found", 0)
    assert problem.run is event


async def test_a_drain_refuses_whatever_else_is_wrong_with_a_call(gateway: Gateway) -> None:
    gateway.admission.drain(1)
    assert isinstance(gateway.invoker.refused(call(None), CommandNotFound("")), GatewayDraining)
