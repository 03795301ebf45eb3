"""Who hears of what happened."""

from __future__ import annotations

from gateway.observe.events import Bus, CircuitClosed, DrainFinished, Event, ListenerFailed


def test_listeners_hear_the_kinds_that_they_listen_to_in_order() -> None:
    bus = Bus()
    heard: list[tuple[str, Event]] = []
    bus.listen(lambda event: heard.append(("all", event)))
    bus.listen(lambda event: heard.append(("one", event)), DrainFinished)
    drained, closed = DrainFinished(stopped=0), CircuitClosed(connector="fax")
    bus.publish(drained)
    bus.publish(closed)
    assert heard == [("all", drained), ("one", drained), ("all", closed)]


def test_a_listener_that_comes_later_hears_what_comes_later() -> None:
    bus = Bus()
    heard: list[Event] = []
    event = DrainFinished(stopped=0)
    bus.publish(event)
    bus.listen(heard.append, DrainFinished)
    bus.publish(event)
    assert heard == [event]


def test_what_a_listener_raises_reaches_nobody_but_is_told_once_for_each_kind_and_counted() -> None:
    bus = Bus()
    heard: list[Event] = []
    problems: list[Exception] = [ValueError("one"), ValueError("two"), OSError("three")]

    def failing(_event: Event) -> None:
        raise problems.pop(0)

    bus.listen(failing, DrainFinished)
    bus.listen(heard.append)
    events = [DrainFinished(stopped=number) for number in range(3)]
    for event in events:
        bus.publish(event)
    told = [event for event in heard if isinstance(event, ListenerFailed)]
    assert [event for event in heard if event not in told] == events
    assert [event.traceback.splitlines()[-1] for event in told] == ["ValueError: one", "OSError: three"]
    assert {event.about for event in told} == {"drain_finished"}
    (name,) = {event.listener for event in told}
    assert "failing" in name
    assert bus.faults == {name: 3}


def test_a_listener_that_fails_always_is_told_to_the_others() -> None:
    bus = Bus()
    heard: list[Event] = []

    def failing(_event: Event) -> None:
        raise OSError

    bus.listen(failing)
    bus.listen(heard.append)
    bus.publish(DrainFinished(stopped=0))
    assert [type(event) for event in heard] == [ListenerFailed, DrainFinished]
    assert list(bus.faults.values()) == [2]
