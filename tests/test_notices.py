"""What is told of a connector's processes."""

from __future__ import annotations

from gateway.events import Bus, ConnectorWarning, Event
from gateway.pool.notices import Notices
from gateway.process import Bounds, Launch
from gateway.redact import Redactor


def test_a_warning_is_told_without_secrets_and_kept_once() -> None:
    told: list[Event] = []
    bus = Bus()
    bus.listen(told.append)
    bounds = Bounds(output=1, log=1, memory=0)
    launch = Launch(argv=(), env={}, result_on_fd3=False, bounds=bounds, name="act", redact=Redactor(["hunter-22"]))
    notices = Notices(launch, bus)
    for _ in range(2):
        notices.warn("no hunter-22")
    assert told == [ConnectorWarning(connector="act", command="", request_id="", message="no [redacted]")] * 2
    assert list(notices) == ["no [redacted]"]
