"""A Spiff package with every oddity that the original proxy lets through, served as it is.

The expected values are what the original answers, or what its caller makes of that.
"""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio

from tests.installing import FIXTURES, installed
from tests.jobs.support import Backend, caller
from tests.one_gateway import nothing_is_left, nothing_is_left_of_the_file  # noqa: F401
from tests.support import Answer, Server, Site, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CONNECTORS = """
odd: {runtime: python, requirements: [./package, flask], config: {KEY: value}}
spawned: {runtime: python, package: connector_odd, requirements: [./package, flask], config: {KEY: value}, mode: spawn}
waits: {runtime: python, package: connector_odd, requirements: [./package, flask], config: {KEY: value}, mode: standby}
stays: {runtime: python, package: connector_odd, requirements: [./package, flask], config: {KEY: value}, mode: persistent}
plain: {runtime: python, package: connector_odd, requirements: [./package]}
strict: {runtime: python, package: connector_odd, requirements: [./package], validate: strict}
partly:
  runtime: python
  package: connector_odd
  requirements: [./package]
  overrides:
    Annotated: {validate: strict, timeout: 7s, async: true, idempotent: true}
    Absent: {timeout: 1s}
hasty: {runtime: python, package: connector_odd, requirements: [./package], timeout: 1s}
hurried: {runtime: python, package: connector_odd, requirements: [./package], linger: 50ms}
short: {runtime: python, package: connector_odd, requirements: [./package], job_timeout: 300ms}
"""
MODES = ["odd", "spawned", "waits", "stays"]
PROJECT = """
[project]
name = "connector-odd"
version = "1.0"

[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[tool.setuptools]
packages = ["connector_odd", "connector_odd.commands"]
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    site = Site(tmp_path_factory.mktemp("unmodified"))
    package = site.folder / "package"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(FIXTURES / "connector_odd", package / "connector_odd", ignore=ignored)
    (package / "pyproject.toml").write_text(PROJECT)
    site.configure(CONNECTORS, gateway="max_processes: 64\nmetrics: open")
    installed(site)
    async with served(site) as gateway:
        yield gateway


@pytest_asyncio.fixture
async def gateway(shared: Server) -> AsyncIterator[Server]:
    """The shared gateway over connections that end with the test."""
    async with aiohttp.ClientSession() as session:
        yield Server(shared.process, shared.site, shared._log, shared.port, session)


@pytest.fixture
def place(shared: Server, tmp_path: Path) -> Path:
    """A folder of the test's own that connectors see, which have a /tmp of theirs."""
    made = shared.site.folder / tmp_path.name
    made.mkdir()
    return made


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    async with caller() as made:
        yield made


def described(command: str, commands: list[dict[str, Any]]) -> dict[str, Any]:
    return next(one for one in commands if one["id"] == command)


# --- what is listed


async def test_what_annotations_say_is_listed_and_docstrings_of_others_are_no_descriptions(gateway: Server) -> None:
    commands = (await gateway.get("/v1/commands")).json
    annotated = described("odd/Annotated", commands)
    assert "description" not in annotated
    assert [(one["id"], one["type"], one["required"]) for one in annotated["parameters"]] == [
        ("text", "str", True), ("number", "int", False), ("flag", "bool", False), ("to", "str", False),
        ("headers", "any", False), ("names", "any", False), ("mode", "any", False),
    ]  # fmt: skip
    assert "description" not in described("odd/Inherits", commands)
    assert described("odd/Base", commands)["description"] == "What every command of the house is."


async def test_a_package_without_its_flask_says_what_to_name(gateway: Server) -> None:
    assert "plain/UseApp" not in await gateway.commands()
    (notice,) = (await gateway.status("plain"))["notices"][:1]
    assert notice.startswith("connector_odd.commands.flask_user is left out: ModuleNotFoundError")
    assert notice.endswith("(add flask, or the package that provides it, to requirements)")


async def test_a_library_that_is_missed_in_a_call_says_what_to_name(gateway: Server) -> None:
    answer = await gateway.do("plain/Imports")
    assert (answer.status, answer.code) == (500, "ModuleNotFoundError")
    assert answer.message.endswith("(add no_such_sdk, or the package that provides it, to requirements)")


# --- what it takes


@pytest.mark.parametrize("connector", MODES)
@pytest.mark.parametrize(
    "values",
    [
        ["1", "9", "true", ["a@b", "c@d"], {"n": 1}, {"limit": 10}],
        [7, 1.5, None, 5, "text", None],
        [None, None, 0, {}, [], 1],
    ],
)
async def test_annotations_refuse_nothing(gateway: Server, connector: str, values: list[Any]) -> None:
    names = ("text", "number", "flag", "to", "headers", "names")
    answer = await gateway.do(f"{connector}/Annotated", dict(zip(names, values, strict=True)))
    assert (answer.status, answer.body["values"]) == (200, values)


async def test_what_is_left_out_has_the_classs_own_default(gateway: Server) -> None:
    answer = await gateway.do("odd/Annotated", {"text": "t"})
    assert answer.body == {"values": ["t", 1, False, None, None, []], "mode": "Mode.FINE"}
    assert (await gateway.do("odd/Annotated", {"text": "t", "mode": None})).body["mode"] == "None"


async def test_names_that_are_missing_or_unknown_are_refused(gateway: Server) -> None:
    answer = await gateway.do("odd/Annotated", {"txt": 1})
    assert (answer.status, answer.code) == (400, "invalid_parameters")
    assert "text is missing; txt is unknown" in answer.message


@pytest.mark.parametrize("connector", ["strict", "partly"])
async def test_an_operator_can_have_annotations_enforced(gateway: Server, connector: str) -> None:
    answer = await gateway.do(f"{connector}/Annotated", {"text": 1, "number": "9"})
    assert (answer.status, answer.code) == (400, "invalid_parameters")
    assert "text must be text" in answer.message
    assert "number must be an integer" in answer.message
    assert (await gateway.do(f"{connector}/Annotated", {"text": "1"})).body["mode"] == "Mode.FINE"


async def test_what_is_said_of_a_described_command_holds_and_unknown_names_are_told(gateway: Server) -> None:
    assert described("partly/Annotated", (await gateway.get("/v1/commands")).json)["async"] is True
    assert (await gateway.do("partly/Base", {"a": 1})).body == {"a": 1}
    assert any("it describes no command Absent" in one for one in (await gateway.status("partly"))["notices"])


# --- what it gives


@pytest.mark.parametrize("connector", ["odd", "stays"])
@pytest.mark.parametrize(
    ("which", "response", "error", "logs"),
    [
        ("status_none", {"body": 1, "http_status": None}, None, []),
        ("status_text", {"body": 1, "http_status": "404"}, None, []),
        ("error_empty", {"body": {"sent": 1}}, None, []),
        ("error_text", {"body": {"sent": 1}}, None, ["error: card declined ☃"]),
        ("error_null_message", {"body": {"sent": 1}}, ("Declined", ""), []),
        ("error_number", {"body": {"sent": 1}}, ("42", "no"), []),
        ("no_body", {"body": None, "http_status": 204}, None, []),
        ("response_null", {"body": None}, None, []),
        ("logs_text", {"body": {"sent": 1}}, None, ["one line"]),
        ("logs_null", {"body": {"sent": 1}}, None, []),
        ("version_3", {"body": {"sent": 1}}, None, []),
    ],
)
async def test_an_envelope_of_any_make_is_passed_on_well_formed(
    gateway: Server, connector: str, which: str, response: Any, error: Any, logs: list[str]
) -> None:
    answer = await gateway.do(f"{connector}/Result", {"which": which})
    told = {"error_code": error[0], "message": error[1]} if error else None
    assert answer.status == 200
    assert answer.json == {
        "command_response": {"mimetype": "application/json", **response}, "command_response_version": 2, "error": told,
        "spiff__logs": logs,
    }  # fmt: skip


@pytest.mark.parametrize("connector", ["odd", "stays"])
@pytest.mark.parametrize(
    ("which", "status", "mimetype", "raw"),
    [
        ("v1_text", 200, "text/plain; charset=utf-8", "snø ☃".encode()),
        ("v1_bytes", 200, "image/png", b"\x89PNG\xff\x00"),
        ("v1_none", 204, "application/json", b""),
        ("v1_dict", 201, "application/json", b'{"a":[1]}'),
    ],
)
async def test_a_result_of_version_1_is_the_http_answer(
    gateway: Server, connector: str, which: str, status: int, mimetype: str, raw: bytes
) -> None:
    answer = await gateway.do(f"{connector}/Result", {"which": which})
    assert (answer.status, answer.headers["Content-Type"], answer.raw) == (status, mimetype, raw)


async def test_what_had_to_be_mended_is_a_warning(gateway: Server) -> None:
    await gateway.do("odd/Result", {"which": "response_null"})
    message = "its envelope was mended: command_response is null, not an object with a body: it was taken for the body"
    await eventually(lambda: gateway.events("connector_warning", connector="odd", message=message))


@pytest.mark.parametrize("connector", MODES)
async def test_the_application_of_the_original_is_there_where_flask_is(gateway: Server, connector: str) -> None:
    answer = await gateway.do(f"{connector}/UseApp")
    assert answer.body == {"config": "value", "same": "value", "debug": False}
    await eventually(
        lambda: any("through the app's log" in one["line"] for one in gateway.events("log", connector=connector))
    )


# --- what it leaves to threads


@pytest.mark.parametrize("connector", ["odd", "spawned", "waits"])
@pytest.mark.parametrize("executor", [False, True])
async def test_threads_that_are_no_daemons_end_with_their_call_in_every_mode(
    gateway: Server, place: Path, connector: str, executor: bool
) -> None:
    gate, done = place / "gate", place / "done"
    gate.touch()
    params = {"gate": str(gate), "done": str(done), "executor": executor}
    assert (await gateway.do(f"{connector}/LeavesThread", params)).body == {"answered": True}
    assert done.exists()


async def test_a_result_counts_although_a_thread_does_not_end(gateway: Server, place: Path) -> None:
    """Told as a failure, it would be done again."""
    params = {"gate": str(place / "never"), "done": str(place / "done")}
    answer = await gateway.do("hasty/LeavesThread", params)
    assert (answer.status, answer.body) == (200, {"answered": True})
    message = "gave its result, and did not end until its deadline of 1s: it was stopped"
    assert gateway.events("connector_warning", connector="hasty", message=message)


async def test_a_thread_that_does_not_end_keeps_nobody_waiting(gateway: Server, place: Path) -> None:
    params = {"gate": str(place / "never"), "done": str(place / "done")}
    answer = await gateway.do("hurried/LeavesThread", params)
    assert (answer.status, answer.body) == (200, {"answered": True})
    message = "gave its result, and did not end within 50ms (linger): it was stopped"
    assert gateway.events("connector_warning", connector="hurried", message=message)


# --- commands that call back by themselves


async def start(gateway: Server, target: str, url: str, **params: Any) -> Answer:
    context = {"spiff__task_id": "t-1", "spiff__process_instance_id": 7}
    return await gateway.do(target, {**params, **context, "spiff__callback_url": url})


async def going_on(gateway: Server, connector: str) -> list[dict[str, Any]]:
    found = (await gateway.get(f"/v1/jobs?connector={connector}&state=running&process_instance=7&task=t-1")).json[
        "jobs"
    ]
    return [one for one in found if one["background"]]


@pytest.mark.parametrize("connector", MODES)
@pytest.mark.parametrize(
    "how",
    [
        "thread",
        "daemon",
        "raw_thread",
        "executor",
        "forked",
        "daemon_process",
        "processes",
        "pool",
        "process",
        "detached",
    ],
)
async def test_what_calls_back_later_lives_until_it_has(
    gateway: Server, backend: Backend, place: Path, connector: str, how: str
) -> None:
    gate = place / "gate"
    answer = await start(gateway, f"{connector}/Later", backend.url, how=how, gate=str(gate))
    assert (answer.status, answer.body) == (202, {"started": how})
    (shown,) = await going_on(gateway, connector)
    assert (shown["command"], shown["task_id"], shown["process_instance_id"]) == ("Later", "t-1", 7)
    assert (await gateway.get(f"/v1/jobs/{shown['id']}")).json == shown
    status = await gateway.status()
    assert status["background_runs"] == 1
    assert status["connectors"][connector]["in_flight"] == 1
    metrics = (await gateway.get("/metrics")).raw.decode()
    assert f'gateway_background_runs{{connector="{connector}"}} 1.0' in metrics
    gate.touch()
    await eventually(lambda: backend.seen)
    assert backend.seen[0][1]["command_response"]["body"] == how
    await eventually(lambda: gateway.events("background_finished", id=shown["id"], outcome="ok"))
    assert await going_on(gateway, connector) == []
    assert (await gateway.get(f"/v1/jobs/{shown['id']}")).status == 404


async def test_what_calls_back_later_may_linger_as_long_as_it_takes(
    gateway: Server, backend: Backend, place: Path
) -> None:
    gate = place / "gate"
    assert (await start(gateway, "hurried/Later", backend.url, how="thread", gate=str(gate))).status == 202
    (shown,) = await going_on(gateway, "hurried")
    params = {"gate": str(place / "never"), "done": str(place / "done")}
    assert (await gateway.do("hurried/LeavesThread", params)).status == 200  # after its linger
    assert await going_on(gateway, "hurried") == [shown]
    gate.touch()
    await eventually(lambda: gateway.events("background_finished", id=shown["id"], outcome="ok"))
    assert backend.seen[0][1]["command_response"]["body"] == "thread"


@pytest.mark.parametrize("connector", MODES)
async def test_what_goes_on_can_be_cancelled_with_all_of_it(
    gateway: Server, backend: Backend, place: Path, connector: str
) -> None:
    gate = place / "never"
    for how in ("thread", "detached"):
        assert (await start(gateway, f"{connector}/Later", backend.url, how=how, gate=str(gate))).status == 202
        (shown,) = await going_on(gateway, connector)
        assert (await gateway.request("POST", f"/v1/jobs/{shown['id']}/retry")).status == 409
        cancelled = await gateway.request("POST", f"/v1/jobs/{shown['id']}/cancel")
        assert (cancelled.status, cancelled.json["state"]) == (200, "cancelled")
        assert gateway.events("background_finished", id=shown["id"], outcome="cancelled")
        assert await going_on(gateway, connector) == []
    assert backend.seen == []


async def test_what_goes_on_ends_with_the_timeout_of_jobs(gateway: Server, backend: Backend, place: Path) -> None:
    for how in ("thread", "detached"):
        await start(gateway, "short/Later", backend.url, how=how, gate=str(place / "never"))
    ended = await eventually(lambda: gateway.events("background_finished", connector="short")[1:])
    assert ended[0]["outcome"] == "connector_timeout"
    assert "its deadline of 300ms" in ended[0]["message"]


async def test_many_that_go_on_hold_their_slots(gateway: Server, backend: Backend, place: Path) -> None:
    gate = place / "gate"
    starting = (start(gateway, "spawned/Later", backend.url, how="thread", gate=str(gate)) for _ in range(8))
    assert [one.status for one in await asyncio.gather(*starting)] == [202] * 8
    full = await gateway.do("spawned/Base", {}, headers={"X-Timeout": "0.2"})
    assert (full.status, full.code) == (429, "connector_busy")
    gate.touch()
    await eventually(lambda: len(backend.seen) == 8)
    assert (await gateway.do("spawned/Base")).status == 200


@pytest.mark.parametrize("connector", MODES)
@pytest.mark.parametrize("response", ["started", '{"error": {"error_code": "x", "message": "m"}}'])
async def test_an_acknowledgement_is_json_whatever_its_version(
    gateway: Server, backend: Backend, connector: str, response: str
) -> None:
    """The backend reads a text as a failure, and an error in it as the task's, before it looks at the 202."""
    answer = await start(gateway, f"{connector}/Legacy", backend.url, response=response, status=404)
    assert (answer.status, answer.headers["Content-Type"], answer.json["error"]) == (202, "application/json", None)
    assert answer.body == {"response": response, "status": 404, "mimetype": "text/plain"}


@pytest.mark.parametrize("connector", MODES)
async def test_one_that_fails_at_once_is_an_ordinary_call(gateway: Server, backend: Backend, connector: str) -> None:
    answer = await start(gateway, f"{connector}/Fails", backend.url)
    assert (answer.status, answer.code, answer.message) == (500, "RuntimeError", "not today")
    assert await going_on(gateway, connector) == []


@pytest.mark.parametrize("connector", MODES)
async def test_without_a_callback_url_it_is_executed_as_any_other(gateway: Server, connector: str) -> None:
    assert (await gateway.do(f"{connector}/Later", {"how": "x", "gate": "x"})).body == {"sync": True}


async def test_a_caller_that_hangs_up_before_the_answer_ends_it(gateway: Server, backend: Backend) -> None:
    async def works() -> bool:
        return (await gateway.status("spawned"))["in_flight"] == 1

    calling = asyncio.create_task(start(gateway, "spawned/Later", backend.url, how="busy", gate="/nowhere/gate"))
    await eventually(works)
    calling.cancel()
    await eventually(lambda: gateway.events("run", connector="spawned", outcome="cancelled"))
    assert await going_on(gateway, "spawned") == []
