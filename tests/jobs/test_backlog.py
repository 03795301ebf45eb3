"""Whether there is room for another job, and for whose."""

from __future__ import annotations

import pytest

from gateway.errors import ConnectorBusy
from gateway.jobs.backlog import Backlog
from gateway.jobs.contract import Job
from gateway.jobs.settings import JobsSection
from gateway.protocol.request import Caller
from gateway.units import Size


def job(client: str | None = None, size: int = 0) -> Job:
    context = Caller(request_id="r", client=client)
    return Job(connector="c", command="Go", context=context, params="x" * size, task_data="")


def backlog(count: int, size: int = 1 << 20) -> Backlog:
    return Backlog(JobsSection(backlog=count, backlog_size=Size(size)))


def fill(one: Backlog, client: str | None, most: int = 1000, *, size: int = 0, left: int = 0) -> int:
    """Return how many jobs of a client are taken, one after the other."""
    for count in range(most):
        try:
            one.check(job(client, size), left)
        except ConnectorBusy:
            return count
        one.add(job(client, size))
    return most


def test_a_client_that_is_alone_has_all_of_it() -> None:
    one = backlog(10)
    assert fill(one, None) == 10
    with pytest.raises(ConnectorBusy, match=r"10 jobs of 0B are open \(jobs.backlog\)") as raised:
        one.check(job(), 0)
    assert raised.value.retry_after == 30


def test_a_full_backlog_takes_as_much_of_another_client_as_its_share_is() -> None:
    one = backlog(10)
    assert fill(one, "flood") == 10
    assert fill(one, "other") == 5
    assert fill(one, "flood") == 0
    for _ in range(9):
        one.remove(job("flood"))
    assert fill(one, "other", 3) == 3


def test_there_are_never_more_than_twice_as_many() -> None:
    one = backlog(10)
    fill(one, "flood")
    taken = sum(fill(one, f"client{number}") for number in range(50))
    assert taken == 10
    assert one.count == 20


def test_large_jobs_have_shares_likewise() -> None:
    one = backlog(1000, size=100)
    assert fill(one, "flood", size=20) == 6
    assert fill(one, "other", size=20) == 3
    assert fill(one, "flood", size=1) == 0


def test_who_is_refused_hears_of_his_own_jobs_alone() -> None:
    one = backlog(10)
    fill(one, "flood")
    fill(one, "other")
    with pytest.raises(ConnectorBusy) as raised:
        one.check(job("other"), 0)
    assert raised.value.message == "the backlog is full, and 5 jobs of this client are open (jobs.backlog)"


def test_jobs_that_are_not_taken_up_yet_fill_it_too() -> None:
    one = backlog(10)
    assert fill(one, None, left=8) == 2


def test_nothing_is_kept_of_clients_without_jobs() -> None:
    one = backlog(10)
    fill(one, "a", 3, size=5)
    for _ in range(3):
        one.remove(job("a", 5))
    assert (one.count, one.size, one._parts) == (0, 0, {})
