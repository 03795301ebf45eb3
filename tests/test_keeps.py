"""What `gateway check` says of processes that are there without a request."""

from __future__ import annotations

import pytest

from gateway.pool.base import keeps
from gateway.process import Bounds, Keep, Launch, Mode


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
        ("persistent", Keep(warm=1, warm_min=1), "1 process, and those that calls have needed"),
        (
            "persistent",
            Keep(warm=2, warm_min=1),
            "2 processes, and those that calls have needed, 1 after 600 s without a call",
        ),
    ],
)
def test_check_says_what_is_kept(mode: Mode, keep: Keep, said: str) -> None:
    launch = Launch(
        argv=("/bin/cat",), env={}, result_on_fd3=False, bounds=Bounds(output=1, log=1, memory=0), mode=mode, keep=keep
    )
    assert keeps(launch) == said
