"""Who goes next."""

from __future__ import annotations

from gateway.jobs.queue import Queue


class Line:
    """Jobs that wait for their turn, in the order in which they had it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.through: list[str] = []
        self.queue: Queue[str] = Queue(lambda _name: self.limit, self.through.append)

    def arrive(self, name: str, connector: str = "c", priority: int = 0) -> None:
        self.queue.put(connector, priority, name)


def test_a_limit_holds_and_the_highest_priority_goes_first() -> None:
    line = Line(1)
    line.arrive("a")
    for name, priority in (("b", 0), ("c", 7), ("d", 0)):
        line.arrive(name, priority=priority)
    for expected in ("a", "ac", "acb", "acbd"):
        assert line.through == list(expected)
        line.queue.leave("c")


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
    line.queue.leave("c")
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
    line.queue.leave("c")
    assert line.through == ["a", "d"]


def test_nothing_is_kept_of_a_connector_that_has_no_jobs() -> None:
    line = Line(1)
    line.arrive("a")
    line.arrive("b")
    line.queue.remove("b")
    line.queue.leave("c")
    assert (line.queue._lanes, line.queue._removed) == ({}, set())
    assert line.queue.waiting("c") == 0


def test_a_closed_queue_lets_nobody_go_on() -> None:
    line = Line(1)
    line.arrive("a")
    line.arrive("b")
    line.queue.close()
    line.queue.leave("c")
    line.arrive("c", "other")
    assert line.through == ["a"]
