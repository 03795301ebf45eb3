"""Who hears of what happened."""

from __future__ import annotations

from gateway.observe.events import Bus, CircuitClosed, DrainFinished, Event


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
