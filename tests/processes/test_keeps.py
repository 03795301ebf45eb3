"""What `gateway check` says of processes that are there without a request."""

from __future__ import annotations

from typing import get_args

import pytest

from gateway.processes.launch import Keep
from gateway.processes.pools import MODES
from gateway.sections import Mode


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
    assert MODES[mode].keeps(keep) == said


@pytest.mark.parametrize(
    ("mode", "keep", "counted"),
    [
        ("spawn", Keep(warm=3), (0, 0)),
        ("standby", Keep(warm=2), (2, 2)),
        ("fork", Keep(warm=5), (1, 1)),
        ("fork", Keep(warm=0), (0, 1)),
        ("persistent", Keep(warm=2, concurrency=4), (2, 4)),
        ("persistent", Keep(warm=2, concurrency=1), (1, 1)),
    ],
)
def test_what_is_kept_is_counted(mode: Mode, keep: Keep, counted: tuple[int, int]) -> None:
    assert MODES[mode].counts(keep) == counted


def test_every_mode_is_in_the_table() -> None:
    assert set(MODES) == set(get_args(Mode))
