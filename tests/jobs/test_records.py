"""How a job stands in its row."""

from __future__ import annotations

from gateway.jobs.contract import Job
from gateway.jobs.records import Row, size_of, task_of, values_of
from gateway.protocol.request import Caller
from tests.jobs.support import job


def test_a_task_is_told_by_client_command_and_connector() -> None:
    known = {
        task_of(one) for one in (job(task="t"), job(task="u"), job("Other", task="t"), job(task="t", connector="d"))
    }
    assert len(known) == 4
    assert task_of(job()) is None


def test_what_is_large_stands_beside_the_rest() -> None:
    made = job(params='{"a": 1}', task_data='{"b": 2}')
    values = values_of(made)
    assert (values["params"], values["task_data"], values["size"]) == (made.params, made.task_data, size_of(made))
    assert '"a"' not in values["job"]


def test_a_zero_byte_is_kept_where_it_can_be_and_replaced_where_it_cannot() -> None:
    made = Job(connector="c", command="Do", context=Caller(request_id="r", task_id="a\0b", process_instance_id="c\0"))
    values = values_of(made)
    assert (values["task_id"], values["process_instance"], values["client"]) == ("a\ufffdb", "c\ufffd", None)
    row = Row("j", "waiting", "one", 1.0, None, 0, "", values["job"])
    assert row.read_job().context.task_id == row.status().task_id == "a\0b"
