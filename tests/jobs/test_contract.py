"""The table of states, and what a list asks for."""

from __future__ import annotations

from gateway.jobs.contract import ENDS, MOVES, OPEN, JobState, JobStatus, Query


def test_every_state_can_be_reached_and_left_or_is_an_end() -> None:
    reached = {one for moves in MOVES.values() for one in moves}
    assert reached == set(JobState)
    assert all(MOVES[one] for one in OPEN)
    assert all(MOVES[one] <= {JobState.DELIVERING} for one in ENDS)


def test_a_query_fits_what_it_asks_for() -> None:
    one = JobStatus(
        id="j", connector="c", command="Do", state=JobState.RUNNING, accepted=1.0, client="me", task_id="t",
        process_instance_id=7,
    )  # fmt: skip
    assert Query().fits(one)
    assert Query(state=JobState.RUNNING, connector="c", process_instance="7", task="t", client="me").fits(one)
    for other in (Query(state=JobState.DEAD), Query(connector="d"), Query(process_instance="8"), Query(client="you")):
        assert not other.fits(one)
