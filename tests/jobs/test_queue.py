"""Who goes next."""

from __future__ import annotations

from gateway.calls.quotas import Quotas
from gateway.identity import DEFAULT
from gateway.jobs.queue import Queue
from gateway.sections import ClientLimits


class Line:
    """Jobs that wait for their turn, in the order in which they had it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.limits: dict[str, ClientLimits] = {}
        self.quotas = Quotas(self.limits.get)
        self.through: list[str] = []
        self.queue: Queue[str] = Queue(lambda _name: self.limit, self.through.append, self.quotas)

    def arrive(self, name: str, connector: str = "c", priority: int = 0, client: str = DEFAULT) -> None:
        self.queue.put(connector, client, priority, name)

    def leave(self, connector: str = "c", client: str = DEFAULT) -> None:
        self.queue.leave(connector, client)


def test_a_limit_holds_and_the_highest_priority_goes_first() -> None:
    line = Line(1)
    line.arrive("a")
    for name, priority in (("b", 0), ("c", 7), ("d", 0)):
        line.arrive(name, priority=priority)
    for expected in ("a", "ac", "acb", "acbd"):
        assert line.through == list(expected)
        line.leave()


def test_a_connector_that_is_full_does_not_hold_up_another() -> None:
    line = Line(1)
    for name, connector in (("a", "c"), ("b", "c"), ("o", "other")):
        line.arrive(name, connector)
    assert line.through == ["a", "o"]


def test_a_limit_that_grows_counts_from_the_next_leave_on() -> None:
    line = Line(1)
    for name in "abcd":
        line.arrive(name)
    assert line.through == ["a"]
    line.limit = 3
    line.leave()
    assert line.through == ["a", "b", "c", "d"]


def test_a_limit_of_nothing_lets_one_through() -> None:
    line = Line(0)
    line.arrive("a")
    assert line.through == ["a"]


def test_whoever_is_removed_has_no_turn_and_takes_no_place() -> None:
    line = Line(1)
    for name in "abcd":
        line.arrive(name)
    line.queue.remove("b")
    line.queue.remove("c")
    assert line.queue.waiting("c") == 1
    line.leave()
    assert line.through == ["a", "d"]


def test_nothing_is_kept_of_a_connector_that_has_no_jobs() -> None:
    line = Line(1)
    line.arrive("a")
    line.arrive("b")
    line.queue.remove("b")
    line.leave()
    assert (line.queue._lanes, line.queue._removed) == ({}, set())
    assert line.queue.waiting("c") == 0
    assert line.quotas._uses == {}


def test_a_closed_queue_lets_nobody_go_on() -> None:
    line = Line(1)
    line.arrive("a")
    line.arrive("b")
    line.queue.close()
    line.leave()
    line.arrive("c", "other")
    assert line.through == ["a"]


# --- of several clients


def test_the_client_with_the_fewest_runs_is_next_and_then_they_take_turns() -> None:
    line = Line(2)
    for number in range(5):
        line.arrive(f"flood{number}", client="flood", priority=9)
    line.arrive("a0", client="a")
    line.arrive("b0", client="b")
    line.arrive("a1", client="a")
    assert line.through == ["flood0", "flood1"]
    for client, next_one in (("flood", "a0"), ("a", "b0"), ("b", "a1"), ("a", "flood2"), ("flood", "flood3")):
        line.leave(client=client)
        assert line.through[-1] == next_one
    assert len(line.through) == 7


def test_priorities_count_among_a_clients_own() -> None:
    line = Line(1)
    line.arrive("first", client="a")
    line.arrive("low", client="a", priority=-1)
    line.arrive("high", client="a", priority=1)
    line.arrive("other", client="b", priority=-9)
    for client in ("a", "a", "b"):
        line.leave(client=client)
    assert line.through == ["first", "high", "other", "low"]


def test_jobs_of_a_client_at_its_concurrency_wait_and_anothers_go_on() -> None:
    line = Line(4)
    line.limits["a"] = ClientLimits(concurrency=3)
    for number in range(4):
        line.arrive(f"a{number}", client="a")
    line.arrive("b0", client="b")
    assert line.through == ["a0", "a1", "b0"]  # one is left to calls
    line.leave(client="b")
    assert line.through == ["a0", "a1", "b0"]
    line.leave(client="a")
    assert line.through == ["a0", "a1", "b0", "a2"]


def test_a_call_that_is_over_makes_room_for_a_job_of_its_client() -> None:
    line = Line(4)
    line.limits["a"] = ClientLimits(concurrency=1)
    since = line.quotas.enter("a", line.limits["a"])
    line.arrive("a0", client="a")
    assert line.through == []
    line.quotas.leave("a", since)
    assert line.through == ["a0"]


def test_room_of_a_client_goes_to_its_connectors_in_turn() -> None:
    line = Line(4)
    line.limits["a"] = ClientLimits(concurrency=1)
    for number in range(3):
        for connector in "xyz":
            line.arrive(f"{connector}{number}", connector, client="a")
    while len(line.through) < 9:
        line.leave(line.through[-1][0], client="a")
    assert line.through == ["x0", "x1", "y0", "z0", "x2", "y1", "z1", "y2", "z2"]
    line.leave("z", client="a")
    assert (line.queue._lanes, line.quotas._uses) == ({}, {})


def test_a_higher_concurrency_counts_from_the_next_that_is_over_on() -> None:
    line = Line(9)
    line.limits["a"] = ClientLimits(concurrency=2)
    for number in range(5):
        line.arrive(f"a{number}", client="a")
    assert line.through == ["a0"]
    line.limits["a"] = ClientLimits(concurrency=4)
    line.leave(client="a")
    assert line.through == ["a0", "a1", "a2", "a3"]


def test_a_removed_job_takes_nothing_of_its_clients_concurrency() -> None:
    line = Line(9)
    line.limits["a"] = ClientLimits(concurrency=1)
    for name in ("a0", "a1", "a2"):
        line.arrive(name, client="a")
    line.queue.remove("a1")
    line.leave(client="a")
    line.leave(client="a")
    assert line.through == ["a0", "a2"]
    assert (line.queue._lanes, line.queue._removed, line.quotas._uses) == ({}, set(), {})
