"""What is told of a connector's processes."""

from __future__ import annotations

from gateway.observe.events import Bus, ConnectorLine, ConnectorWarning, Event
from gateway.observe.redact import Redactor
from gateway.processes.launch import Bounds, Launch
from gateway.processes.notices import Notices


def made() -> tuple[Notices, list[Event]]:
    told: list[Event] = []
    bus = Bus()
    bus.listen(told.append)
    bounds = Bounds(output=1, log=1, memory=0)
    launch = Launch(argv=(), env={}, result_on_fd3=False, bounds=bounds, name="act", redact=Redactor(["hunter-22"]))
    return Notices(launch, bus), told


def test_a_warning_is_told_without_secrets_and_kept_once() -> None:
    notices, told = made()
    for _ in range(2):
        notices.warn("no hunter-22")
    assert told == [ConnectorWarning(connector="act", command="", request_id="", message="no [redacted]")] * 2
    assert list(notices) == ["no [redacted]"]
    notices.warn_once("no hunter-22")
    assert len(told) == 2


def test_a_line_is_told_without_secrets() -> None:
    notices, told = made()
    notices.line("my hunter-22")
    (line,) = told
    assert isinstance(line, ConnectorLine)
    assert (line.connector, line.command, line.request_id, line.line) == ("act", "", "", "my [redacted]")
