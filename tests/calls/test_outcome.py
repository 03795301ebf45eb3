"""What the end of a run means for its caller."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.calls.outcome import LARGE, TAIL_IN_MESSAGE, TAIL_LINES, meaning, problem_of
from gateway.cells.wire import Said
from gateway.observe.redact import Redactor
from gateway.processes.completed import Completed, Stop
from gateway.processes.launch import Bounds

BOUNDS = Bounds(output=1 << 20, log=1 << 20, memory=64 << 20)


def ended(**facts: Any) -> Completed:
    whole: dict[str, Any] = {
        "pid": 7, "bounds": BOUNDS, "status": 0, "signal": None, "stop": None, "out_of_memory": False, "over": None,
        "cell_died": False, "cpu_user": 0.0, "cpu_system": 0.0, "peak_rss": 0, "result": bytearray(b"1"),
        "log_tail": "", "log_bytes": 0,
    }  # fmt: skip
    return Completed(**{**whole, **facts})


@pytest.mark.parametrize(
    ("facts", "code", "words"),
    [
        ({"stop": Stop.DEADLINE}, "connector_timeout", "deadline of 2s"),
        ({"stop": Stop.DRAINED}, "gateway_draining", "shutting down"),
        ({"stop": Stop.OUTPUT}, "connector_output_too_large", "max_output"),
        ({"out_of_memory": True}, "connector_out_of_memory", "max_memory"),
        ({"over": "max_pids"}, "connector_crashed", "max_pids"),
        ({"cell_died": True, "signal": "SIGKILL"}, "connector_crashed", "watches over it"),
        ({"signal": "SIGSEGV", "status": None}, "connector_crashed", "died of SIGSEGV"),
    ],
)
def test_each_end_that_is_none_of_its_own_has_a_code(facts: dict[str, Any], code: str, words: str) -> None:
    problem = problem_of(ended(**facts), "fax/Send", 2.0)
    assert problem is not None
    assert problem.code == code
    assert words in problem.message
    assert "fax/Send" in problem.message


@pytest.mark.parametrize("facts", [{}, {"status": 3}])
def test_an_end_by_itself_is_no_problem_whatever_the_status(facts: dict[str, Any]) -> None:
    assert problem_of(ended(**facts), "fax/Send", 2.0) is None


async def test_a_bad_status_without_an_error_is_a_failure_with_the_end_of_the_log() -> None:
    tail = "\n".join(f"line {number} secret" for number in range(TAIL_LINES + 5))
    meant = await meaning(ended(status=3, log_tail=tail), "fax/Send", Redactor(["secret"]), 2.0, acknowledges=False)
    assert meant.result is None
    told = meant.told(1.25)
    assert told.message.startswith("fax/Send failed with exit status 3 (after 1.25 s); stderr: ")
    assert len(told.message) < TAIL_IN_MESSAGE + 100
    assert len(told.logs) == TAIL_LINES
    assert told.logs[-1] == "line 24 [redacted]"
    assert "secret" not in told.message


async def test_a_result_that_came_before_the_deadline_counts_with_a_warning() -> None:
    late = ended(stop=Stop.DEADLINE, status=None, signal="SIGKILL", said=Said.ALL)
    meant = await meaning(late, "fax/Send", Redactor(), 2.0, acknowledges=False)
    assert meant.problem is None
    assert meant.result is not None
    assert "deadline of 2s" in meant.result.warnings[0]


@pytest.mark.parametrize("stop", list(Stop))
@pytest.mark.parametrize("said", list(Said))
@pytest.mark.parametrize("result", [b"{}", b"1", b"1\n", b"{", b"", b"noise\n{}", b"{}\n{}"])
async def test_an_answer_counts_whatever_it_was_stopped_for_unless_there_may_be_more(
    stop: Stop, said: Said, result: bytes
) -> None:
    facts = ended(stop=stop, status=None, signal="SIGTERM", said=said, result=bytearray(result))
    meant = await meaning(facts, "fax/Send", Redactor(), 2.0, acknowledges=False)
    counts = {Said.ALL: (b"{}", b"1", b"1\n", b"noise\n{}"), Said.NOTHING_SINCE: (b"{}", b"1\n")}.get(said, ())
    answers = stop in (Stop.DEADLINE, Stop.DRAINED, Stop.LINGERED)
    assert (meant.problem is None) == (answers and result in counts)
    if answers and said is Said.ALL and meant.problem is not None:
        assert meant.problem.code == "connector_invalid_output"


async def test_a_deadline_tells_of_a_part_of_a_result() -> None:
    late = ended(stop=Stop.DEADLINE, status=None, signal="SIGKILL", result=bytearray(b'{"a"'))
    meant = await meaning(late, "fax/Send", Redactor(), 2.0, acknowledges=False)
    assert meant.problem is not None
    assert (meant.problem.code, "with 4 bytes of a result" in meant.problem.message) == ("connector_timeout", True)


async def test_what_is_no_result_is_told_with_why() -> None:
    meant = await meaning(ended(result=bytearray(b"oops")), "fax/Send", Redactor(), 2.0, acknowledges=False)
    assert meant.problem is not None
    assert (meant.problem.code, meant.result) == ("connector_invalid_output", None)
    assert "gave no valid result" in meant.problem.message


async def test_a_large_result_means_what_a_small_one_means() -> None:
    text = b'"' + b"x" * LARGE + b'"'
    meant = await meaning(ended(result=bytearray(text)), "fax/Send", Redactor(), 2.0, acknowledges=False)
    assert meant.result is not None
    assert text in meant.result.content
