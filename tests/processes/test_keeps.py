"""What `gateway check` says of processes that are there without a request."""

from __future__ import annotations

import pytest

from gateway.processes.base import counts, keeps
from gateway.processes.run import Bounds, Keep, Launch, Mode


@pytest.mark.parametrize(
    ("mode", "keep", "said"),
    [
        ("spawn", Keep(warm=3), "nothing"),
        ("standby", Keep(warm=0), "nothing"),
        ("standby", Keep(warm=2, warm_min=2), "2 processes"),
        ("standby", Keep(warm=2), "2 processes, none after 600 s without a call"),
        ("fork", Keep(), "1 host, 1 forked ahead from the first call on, none after 600 s without a call"),
        ("fork", Keep(warm=0, warm_min=1), "1 host, from the first call on"),
        (
            "fork",
            Keep(warm=2, warm_min=1),
            "1 host, 2 forked ahead from the first call on, the host alone after 600 s without a call",
        ),
        ("persistent", Keep(warm=1, warm_min=1), "1 process, and those that calls have needed (at most 8)"),
        (
            "persistent",
            Keep(warm=2, warm_min=1),
            "2 processes, and those that calls have needed (at most 8), 1 after 600 s without a call",
        ),
    ],
)
def test_check_says_what_is_kept(mode: Mode, keep: Keep, said: str) -> None:
    assert keeps(launched(mode, keep)) == said


def launched(mode: Mode, keep: Keep) -> Launch:
    return Launch(
        argv=("/bin/cat",), env={}, result_on_fd3=False, bounds=Bounds(output=1, log=1, memory=0), mode=mode, keep=keep
    )


def test_check_says_that_each_worker_keeps_some() -> None:
    said = keeps(launched("standby", Keep(warm=1, warm_min=1)), 4)
    assert said == "1 process; each of 4 workers, once it is called"
    assert keeps(launched("spawn", Keep()), 4) == "nothing"


@pytest.mark.parametrize(
    ("mode", "keep", "counted"),
    [
        ("spawn", Keep(warm=3), (0, 0)),
        ("standby", Keep(warm=2), (2, 6)),
        ("fork", Keep(warm=5), (1, 3)),
        ("fork", Keep(warm=0), (0, 3)),
        ("persistent", Keep(warm=2, concurrency=4), (2, 4)),
        ("persistent", Keep(warm=2, concurrency=1), (1, 1)),
    ],
)
def test_what_is_kept_by_three_workers_is_counted(mode: Mode, keep: Keep, counted: tuple[int, int]) -> None:
    assert counts(launched(mode, keep), 3) == counted
