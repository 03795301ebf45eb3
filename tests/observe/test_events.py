"""Who hears of what happened."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import ModuleType

from gateway.observe import events
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

    bus.listen(failing, DrainFinished, called="the one that fails")
    bus.listen(heard.append)
    drained = [DrainFinished(stopped=number) for number in range(3)]
    for event in drained:
        bus.publish(event)
    told = [event for event in heard if isinstance(event, ListenerFailed)]
    assert [event for event in heard if event not in told] == drained
    assert [event.traceback.splitlines()[-1] for event in told] == ["ValueError: one", "OSError: three"]
    assert {event.about for event in told} == {"drain_finished"}
    assert {event.listener for event in told} == {"the one that fails"}
    assert bus.faults == {"the one that fails": 3}


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


def test_an_event_is_called_as_before_when_its_class_is_renamed() -> None:
    source = Path(events.__file__).read_text()
    kinds = [one for one in vars(events).values() if isinstance(one, type) and issubclass(one, Event)]
    named = [one for one in kinds if one is not Event and "name" in vars(one)]
    assert len(named) > 30
    for kind in named:
        source = re.sub(rf"\b{kind.__name__}\b", f"Renamed{kind.__name__}", source)
    renamed = ModuleType("renamed")
    exec(compile(source, "renamed.py", "exec"), vars(renamed))
    again = {one.__name__.removeprefix("Renamed"): one.name for one in vars(renamed).values()
             if isinstance(one, type) and one.__name__.startswith("Renamed")}  # fmt: skip
    assert again == {kind.__name__: kind.name for kind in named}


def test_a_part_that_listens_is_called_as_before_when_its_class_is_renamed() -> None:
    """It stands in a label of a metric, and in the log."""
    called = set()
    for file in (Path(events.__file__).parent.parent).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "listen":
                if "bus" not in ast.unparse(node.func.value):
                    continue  # of a socket
                said = {one.arg: one.value for one in node.keywords}
                assert isinstance(said.get("called"), ast.Constant), f"{file}:{node.lineno}"
                called.add(ast.literal_eval(said["called"]))
    text = (Path(__file__).parent.parent.parent / "docs/log-events.md").read_text()
    [row] = [line for line in text.splitlines() if line.startswith("| `listener_failed` |")]
    assert called - {"command line"} == set(re.findall(r"`(\w+)`", row.partition("(")[2].partition(")")[0]))
