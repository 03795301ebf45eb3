"""What callers may send in the place of text: never the fault of the store, over HTTP, on each of the stores."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from tests.support import Answer, Server, Site, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ECHO = """
import json, sys
print(json.dumps({"echo": json.load(sys.stdin)["params"], "nul": "a\\0b"}))
"""
NO_TEXT = ["%00", "%ff", "%ED%A0%80", "\xff", "\xed\xa0\x80", "%F4%90%80%80"]
FIELDS = ["task", "client", "connector", "process_instance"]
NAMES = {
    "spiff__task_id": "t\0", "spiff__process_instance_id": "7\0", "spiff__process_model_identifier": "m\0",
    "spiff__callback_url": "http://localhost/\0",
}  # fmt: skip
NUL = {"spiff__task_data": {"d\0": "\0"}, "p\0": "v\0"}


@pytest.fixture
async def gateway(site: Site, database: str | None) -> AsyncIterator[Server]:
    site.python("echo.py", ECHO)
    site.configure(
        "echo: {run: [./echo.py], commands: {Do: {additional_parameters: true}}}",
        gateway="{}" if database is None else f"jobs: {{database: '{database}'}}",
    )
    async with served(site) as made:
        assert (await posted(made, {})).status == 202  # the engine is awake
        yield made
        assert (await made.status())["jobs"]["ok"]
        assert not made.events("store_changed") + made.events("internal_error")


async def posted(gateway: Server, params: object) -> Answer:
    return await gateway.do("echo/Do", params, headers={"Prefer": "respond-async"})


async def raw(gateway: Server, method: str, path: str) -> Answer:
    """Send bytes, as latin-1, that no client would."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode(
            "latin-1"
        )
    )
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return Answer(int(head.split()[1]), {}, body)  # type: ignore[arg-type]


async def test_what_is_no_text_names_no_job(gateway: Server) -> None:
    for method, verb in (("GET", ""), ("POST", "/cancel"), ("POST", "/retry"), ("POST", "/retry?run=true")):
        for name in NO_TEXT:
            answer = await raw(gateway, method, f"/v1/jobs/x{name}{verb}")
            found = (answer.status, answer.code)
            assert found in {(400, "invalid_request"), (404, "job_not_found")}, (method, name, verb)
            assert found[0] == 400 or name not in {"%00", "\xff", "\xed\xa0\x80"}


async def test_what_is_no_text_is_nothing_that_jobs_can_be_looked_for_by(gateway: Server) -> None:
    for field in FIELDS:
        for text in NO_TEXT:
            answer = await raw(gateway, "GET", f"/v1/jobs?{field}=x{text}")
            if answer.status == 200:  # it is read as what stands for no text
                assert answer.json["jobs"] == []
            else:
                assert (answer.status, answer.code) == (400, "invalid_request"), (field, text)
    for query in ("state=%00", "state=%ff", "limit=%00", "offset=%ff", "limit=" + "9" * 5000, "offset=" + "9" * 5000):
        answer = await raw(gateway, "GET", f"/v1/jobs?{query}")
        assert (answer.status, answer.code) == (400, "invalid_request"), query


async def test_no_age_is_beyond_the_calendar(gateway: Server) -> None:
    for query in ("older_than=" + "9" * 5000 + "d", "older_than=" + "9" * 15 + "d", "older_than=%00", "older_than=%ff"):
        answer = await raw(gateway, "POST", f"/v1/jobs/purge?{query}")
        assert (answer.status, answer.code) == (400, "invalid_request"), query
    answer = await raw(gateway, "POST", "/v1/jobs/purge?older_than=1d&state=%00")
    assert (answer.status, answer.code) == (400, "invalid_request")


async def test_a_job_whose_values_hold_a_nul_keeps_its_result(gateway: Server) -> None:
    accepted = await posted(gateway, NUL)
    assert accepted.status == 202

    async def ended() -> Answer | None:
        told = await gateway.get(accepted.headers["Location"])
        return told if told.json["state"] == "kept" else None

    told = (await eventually(ended)).json
    body = told["outcome"]["body"]["command_response"]["body"]
    assert body == {"echo": {"p\0": "v\0"}, "nul": "a\0b"}


@pytest.mark.parametrize("field", NAMES)
async def test_no_name_holds_a_nul(gateway: Server, field: str) -> None:
    for answer in (await posted(gateway, {field: NAMES[field]}), await gateway.do("echo/Do", {field: NAMES[field]})):
        assert (answer.status, answer.code) == (400, "invalid_request")
        assert f"{field} holds the character U+0000" in answer.message


async def test_half_a_character_is_refused_wherever_it_stands(gateway: Server) -> None:
    for field in (*NAMES, *NUL):
        for value in ('"\\ud800"', '{"a": "\\udfff"}', '["\\ud800"]'):
            answer = await gateway.do(
                "echo/Do", data=f"{{{json.dumps(field)}: {value}}}", headers={"Prefer": "respond-async"}
            )
            assert (answer.status, answer.code) == (400, "invalid_request"), (field, value)
