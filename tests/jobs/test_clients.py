"""Jobs of several clients in one gateway: whose is next, and what they count for."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import msgspec
import pytest

from gateway.calls.call import Call
from gateway.calls.quotas import Quotas
from gateway.errors import ConnectorBusy
from gateway.jobs.background import Background
from gateway.jobs.contract import Job, JobState, Outcome
from gateway.protocol.request import Caller
from gateway.sections import ClientLimits
from tests.jobs.support import Bench, bench, envelope, job
from tests.support import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.calls.invoke import Invoker
    from gateway.calls.reply import Reply
    from gateway.calls.underway import Found


def of(client: str, command: str) -> Job:
    made = job(command)
    return msgspec.structs.replace(made, context=msgspec.structs.replace(made.context, client=client))


async def ended(one: Bench, names: list[str]) -> None:
    one.runner.release.set()
    for name in names:
        assert (await one.ended(name)).state is JobState.KEPT


async def test_a_job_beside_another_clients_flood_has_the_next_turn(tmp_path: Path) -> None:
    async with bench(tmp_path, None) as one:
        one.limit = 1
        one.runner.hold()
        names = [await one.accept(of("flood", f"Flood{number}")) for number in range(5)]
        names += [await one.accept(of("other", f"Other{number}")) for number in range(2)]
        await ended(one, names)
    assert one.runner.commands == ["Flood0", "Flood1", "Other0", "Flood2", "Other1", "Flood3", "Flood4"]


async def test_one_clients_flood_does_not_fill_the_backlog_for_another(tmp_path: Path) -> None:
    async with bench(tmp_path, None, backlog=4) as one:
        one.runner.hold()
        names = [await one.accept(of("flood", "Flood")) for _ in range(4)]
        with pytest.raises(ConnectorBusy):
            await one.accept(of("flood", "Flood"))
        names += [await one.accept(of("other", "Other")) for _ in range(2)]
        with pytest.raises(ConnectorBusy, match="2 jobs of this client are open"):
            await one.accept(of("other", "Other"))
        await ended(one, names)


async def test_jobs_of_a_client_at_its_concurrency_wait_and_are_not_refused(tmp_path: Path) -> None:
    limits = {"a": ClientLimits(concurrency=2)}
    quotas = Quotas(limits.get)
    async with bench(tmp_path, None, quotas=quotas) as one:
        one.runner.hold()
        names = [await one.accept(of("a", f"A{number}")) for number in range(3)]
        names.append(await one.accept(of("b", "B")))
        await eventually(lambda: len(one.runner.started) == 2)
        assert one.runner.commands == ["A0", "B"]
        since = quotas.enter("a", limits["a"])  # which is left to calls
        await ended(one, names[:1])
        assert [(await one.jobs.status(name)).state for name in names[1:3]] == [JobState.WAITING] * 2
        quotas.leave("a", since)
        await ended(one, names)
    assert quotas._uses == {}


async def test_a_run_that_was_in_progress_when_it_became_a_job_counts_on(tmp_path: Path) -> None:
    limits = {"a": ClientLimits(concurrency=1)}
    quotas = Quotas(limits.get)
    async with bench(tmp_path, None, quotas=quotas) as one:
        running: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        name = await one.accept(of("a", "Promoted"), running)
        await eventually(lambda: quotas._uses)
        assert not quotas.take("a")
        running.set_result(Outcome(status=200, body=envelope({})))
        await one.ended(name)
    assert quotas._uses == {}


async def test_a_run_that_goes_on_after_its_answer_counts_until_it_ends() -> None:
    over = asyncio.Event()

    class Invoked:
        async def invoke(self, call: Call, _found: object) -> Reply:
            assert call.acknowledgement is not None
            call.acknowledgement.reply.set_result(cast("Reply", "answered"))
            await over.wait()
            return cast("Reply", "over")

    quotas = Quotas({"a": ClientLimits(concurrency=1)}.get)
    background = Background(cast("Invoker", Invoked()), quotas)
    call = Call(connector="c", command="Go", params={}, caller=Caller(request_id="r", client="a"))
    found = cast("Found", (SimpleNamespace(name="c"), None))
    await background.run(call, found)
    assert not quotas.take("a")
    over.set()
    await eventually(lambda: quotas._uses == {})
