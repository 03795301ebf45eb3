"""HTTP: what callers and operators see."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from click.testing import CliRunner

from gateway.cli.main import main
from gateway.http.app import ROUTES, build
from gateway.http.routes import CLIENTS, CONSOLE, Access, is_of_clients
from gateway.observe.events import Bus
from gateway.settings import read_settings
from tests.support import Answer, Server, Site, called_by, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEY = "sesame-open-1"
ANY = {"Go": {"additional_parameters": True}}

SHELL: dict[str, str] = {
    "ok": "echo '{\"a\": 1}'",
    "failed": "echo one >&2; echo two >&2; exit 3",
    "failed_with_result": "echo 1; exit 4",
    "crashed": "kill -SEGV $$",
    "told": """echo '{"error": {"error_code": "FaxBusy", "message": "engaged"}, "http_status": 503}'""",
    "told_and_failed": """echo '{"error": {"error_code": "FaxBusy", "message": "engaged"}}'; exit 9""",
    "raised": """echo '{"error": {"error_code": "KeyError", "message": "x", "raised": true}}'; exit 1""",
    "not_json": "echo hello",
    "not_utf8": r"printf '\"\377\"'",
    "empty": "true",
    "two": "echo '{}'; echo '{}'",
    "nan": "echo NaN",
    "deep": "head -c 5000 /dev/zero | tr '\\0' '['; head -c 5000 /dev/zero | tr '\\0' ']'",
    "no_envelope": """echo '{"command_response_version": 2}'""",
    "legacy": """printf '{"response": {"a":  [1]}, "status": 418, "mimetype": "application/json"}'""",
    "legacy_text": """echo '{"response": "caf\\u00e9", "status": "404", "mimetype": "text/plain; charset=utf-8"}'""",
    "legacy_plain": """echo '{"response": "[1]", "mimetype": "application/json"}'""",
    "envelope": """printf '{"command_response": {"body": {"x":  1.50}, "mimetype": "application/json", "http_status": 201},\
 "command_response_version": 2, "error": null, "spiff__logs": ["a"], "refreshed_token_set": {"t": 1}}'""",
    "envelope_error": """echo '{"command_response": {"body": {}, "mimetype": "application/json"},\
 "command_response_version": 2, "error": {"error_code": "Nope", "message": "no"}, "spiff__logs": []}'""",
    "informational": """echo '{"response": "", "status": 100, "mimetype": "text/plain"}'""",
    "noisy": "echo noise; echo 7",
}

ENTRIES: dict[str, Any] = {
    **{name: {"run": ["sh", "-c", script], "commands": ANY} for name, script in SHELL.items()},
    "echo": {"run": ["cat"], "commands": ANY},
    "slow": {"run": ["sleep", "1000"], "timeout": "100ms", "commands": ANY},
    "patient": {"run": ["sleep", "1000"], "commands": ANY},
    "large": {"run": ["sh", "-c", "head -c 5000 /dev/zero"], "max_output": "1KiB", "commands": ANY},
    "hungry": {"run": ["./hungry.py"], "max_memory": "64MiB", "commands": ANY},
    "missing": {"run": ["./does-not-exist"], "commands": ANY},
    "locked": {"run": ["./locked.sh"], "commands": ANY},
    "quarantined": {"run": ["./no-interpreter"], "commands": ANY},
    "busy": {"run": ["./busy.sh"], "concurrency": 1, "queue": 0, "commands": ANY},
    "leak": {
        "run": ["sh", "-c", "cat >&2; printf '%s\\n' \"$FAX_TOKEN\" 'one-of-key' 'two\"of-key' >&2; exit 1"],
        "config": {
            "region": "north",
            "db": {"password": "hunter-22", "private_key": 'one-of-key\ntwo"of-key'},
            "api_keys": ["key-in-list"],
        },
        "env": {"FAX_TOKEN": "token-in-env"},
        "commands": {"Go": {"parameters": {"pin": {"secret": True}, "text": {"type": "str"}}}},
    },
    "leak_told": {
        "run": ["./leak_told.py"],
        "config": {"password": "hunter-22"},
        "commands": {"Go": {"parameters": {"pin": {"secret": True}}}, "Envelope": {"parameters": {"pin": {"secret": True}}}},
    },
    "form": {
        "run": ["cat"],
        "commands": {
            "Send": {
                "description": "Send it",
                "parameters": {
                    "to": {"type": "str", "description": "a number"},
                    "pages": {"type": "int", "default": 1},
                    "size": {"type": "str", "enum": ["A4", "A5"], "required": False},
                    "urgent": {"type": "bool", "required": False},
                    "tags": {
                        "required": False,
                        "schema": {"type": "array", "items": {"type": "integer", "minimum": 1}, "maxItems": 3},
                    },
                    "pin": {"type": "str", "required": False, "secret": True, "schema": {"minLength": 4}},
                    "extra": {},
                },
            }
        },
    },
}  # fmt: skip


def configure(site: Site, entries: dict[str, Any], gateway: str = "") -> None:
    site.configure("\n".join(f"{name}: {json.dumps(entry)}" for name, entry in entries.items()), gateway=gateway)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One gateway with a key, origins and every kind of connector."""
    site = Site(tmp_path_factory.mktemp("api"))
    site.python(
        "hungry.py", "block = bytearray(200 << 20)\nfor n in range(0, len(block), 4096): block[n] = 1\nprint(1)"
    )
    site.script("no-interpreter", "", shell="/opt/nowhere/php")
    site.script("locked.sh", "cat").chmod(0o644)
    site.script("busy.sh", f"while [ ! -e {site.folder}/gate ]; do sleep 0.01; done; echo 1")
    site.python(
        "leak_told.py",
        """
        import json, sys
        request = json.load(sys.stdin)
        text = "pin " + request["params"]["pin"] + " password " + request["config"]["password"]
        told = {"error": {"error_code": "Denied", "message": text}}
        if request["command"] == "Envelope":
            told |= {"command_response": {"body": {"text": text}}, "command_response_version": 2, "spiff__logs": [text]}
        print(json.dumps(told))
        """,
    )
    configure(site, ENTRIES, f"api_key: {KEY}\nmax_request: 200KB")
    async with served(site, env={"CONNECTOR_PROXY_CORS_ORIGINS": "http://a.example, http://b.example"}) as gateway:
        yield gateway


@pytest_asyncio.fixture
async def gateway(running: Server) -> AsyncIterator[Server]:
    """The gateway, called with the key."""
    async with called_by(running, headers={"Spiff-Connector-Proxy-Api-Key": KEY}):
        yield running


@pytest_asyncio.fixture
async def stranger(running: Server) -> AsyncIterator[Server]:
    """The same gateway, called without one."""
    async with called_by(running):
        yield running


def assert_envelope(answer: Answer) -> None:
    """An error's body is the whole version 2 envelope, whatever the status."""
    body = answer.json
    assert answer.headers["Content-Type"].startswith("application/json")
    assert set(body) == {"command_response", "command_response_version", "error", "spiff__logs"}
    assert body["command_response"] == {"body": {}, "mimetype": "application/json"}
    assert body["command_response_version"] == 2
    assert set(body["error"]) == {"error_code", "message"}
    assert all(isinstance(line, str) for line in body["spiff__logs"])


# --- errors: cause, code, status

ROWS = [
    ("ok/Nope", 404, "command_not_found", "ok/Nope: ok has no command 'Nope' (it has: Go)"),
    ("nobody/Go", 404, "command_not_found", "nobody/Go: there is no connector 'nobody'"),
    ("quarantined/Go", 503, "connector_unavailable", "/opt/nowhere/php not found"),
    ("missing/Go", 502, "connector_start_failed", "could not be started: "),
    ("locked/Go", 502, "connector_start_failed", "Permission denied"),
    ("slow/Go", 504, "connector_timeout", "still running at its deadline of 100ms"),
    ("crashed/Go", 502, "connector_crashed", "died of SIGSEGV"),
    ("hungry/Go", 502, "connector_out_of_memory", "more than 64MiB of memory (max_memory)"),
    ("failed/Go", 502, "connector_failed", "failed with exit status 3"),
    ("failed_with_result/Go", 502, "connector_failed", "failed with exit status 4"),
    ("not_json/Go", 502, "connector_invalid_output", "not one JSON document"),
    ("not_utf8/Go", 502, "connector_invalid_output", "not UTF-8"),
    ("empty/Go", 502, "connector_invalid_output", "empty"),
    ("two/Go", 502, "connector_invalid_output", "more than one JSON document"),
    ("nan/Go", 502, "connector_invalid_output", "not one JSON document"),
    ("deep/Go", 502, "connector_invalid_output", "nested too deeply"),
    ("no_envelope/Go", 502, "connector_invalid_output", "command_response"),
    ("informational/Go", 502, "connector_invalid_output", "'100' is not an HTTP status"),
    ("large/Go", 502, "connector_output_too_large", "more than 1KiB (max_output)"),
]


@pytest.mark.parametrize(("target", "status", "code", "part"), ROWS, ids=[row[0] for row in ROWS])
async def test_every_cause_has_its_code_and_status(
    gateway: Server, target: str, status: int, code: str, part: str
) -> None:
    answer = await gateway.do(target)
    assert (answer.status, answer.code) == (status, code)
    assert_envelope(answer)
    assert part in answer.message
    assert target in answer.message
    assert float(answer.headers["X-Run-Duration"]) >= 0


async def test_a_failure_shows_the_end_of_stderr_and_how_long_it_took(gateway: Server) -> None:
    answer = await gateway.do("failed/Go")
    assert answer.json["spiff__logs"] == ["one", "two"]
    assert re.fullmatch(r"failed/Go failed with exit status 3 \(after \d\.\d\d s\); stderr: one\ntwo", answer.message)


async def test_what_a_retry_can_mend_says_when(gateway: Server) -> None:
    assert int((await gateway.do("quarantined/Go")).headers["Retry-After"]) >= 1
    call = asyncio.create_task(gateway.do("busy/Go"))

    async def runs() -> bool:
        return (await gateway.status("busy"))["in_flight"] == 1

    await eventually(runs)
    answer = await gateway.do("busy/Go")
    assert (answer.status, answer.code) == (429, "connector_busy")
    assert_envelope(answer)
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.headers["X-Run-Duration"] == "0.0000"
    (gateway.site.folder / "gate").touch()
    assert (await call).status == 200


async def test_what_a_retry_cannot_mend_says_nothing_about_when(gateway: Server) -> None:
    for target in ("nobody/Go", "failed/Go", "crashed/Go", "slow/Go"):
        assert "Retry-After" not in (await gateway.do(target)).headers


@pytest.mark.parametrize("target", ["told/Go", "told_and_failed/Go", "envelope_error/Go"])
async def test_an_error_that_the_connector_told_is_no_error_of_http(gateway: Server, target: str) -> None:
    answer = await gateway.do(target)
    assert answer.status == 200
    assert answer.code == ("Nope" if "envelope" in target else "FaxBusy")


async def test_the_status_that_a_told_error_asks_for_is_what_the_client_judges_by(gateway: Server) -> None:
    answer = await gateway.do("told/Go")
    assert answer.json["command_response"]["http_status"] == 503
    assert answer.message == "engaged"


async def test_an_exception_of_the_connectors_own_code_is_a_500(gateway: Server) -> None:
    answer = await gateway.do("raised/Go")
    assert (answer.status, answer.code) == (500, "KeyError")
    assert_envelope(answer)


BODIES = {
    "not_json": b"{",
    "no_body": b"",
    "array": b"[]",
    "text": b'"{}"',
    "null": b"null",
    "invalid_utf8": b'{"a": "\xff"}',
    "nan": b'{"a": NaN}',
    "two_documents": b"{} {}",
    "lone_surrogate": b'{"a": "\\ud800"}',
    "nested_too_deeply": b'{"a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "task_data_is_a_list": b'{"spiff__task_data": []}',
    "task_data_is_a_text_that_is_no_object": b'{"spiff__task_data": "[1]"}',
    "task_data_is_a_text_that_is_no_json": b'{"spiff__task_data": "{"}',
    "context_of_the_wrong_type": b'{"spiff__task_id": 5}',
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_body_that_is_no_object_is_an_invalid_request(gateway: Server, name: str) -> None:
    answer = await gateway.do("echo/Go", data=BODIES[name])
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert_envelope(answer)


async def test_a_body_over_the_limit_is_refused_and_the_limit_named(gateway: Server) -> None:
    answer = await gateway.do("echo/Go", {"a": "x" * 200_000})
    assert (answer.status, answer.code) == (413, "request_too_large")
    assert_envelope(answer)
    assert "gateway.max_request" in answer.message
    assert (await gateway.do("echo/Go", {"a": "x" * 190_000})).status == 200


@pytest.mark.parametrize("header", ["0", "-1", "nan", "inf", "soon", ""])
async def test_a_timeout_that_is_no_number_of_seconds_is_an_invalid_request(gateway: Server, header: str) -> None:
    answer = await gateway.do("echo/Go", headers={"X-Timeout": header})
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert "X-Timeout" in answer.message


async def test_a_caller_can_shorten_the_timeout_but_not_lengthen_it(gateway: Server) -> None:
    shortened = await gateway.do("patient/Go", headers={"X-Timeout": "0.05"})
    assert (shortened.status, shortened.code) == (504, "connector_timeout")
    unchanged = await gateway.do("slow/Go", headers={"X-Timeout": "1000"})
    assert "deadline of 100ms" in unchanged.message


async def test_unknown_paths_and_wrong_methods_answer_envelopes(gateway: Server) -> None:
    for method, path, status, code in (
        ("GET", "/nope", 404, "not_found"),
        ("POST", "/v1/do/echo", 404, "not_found"),
        ("POST", "/v1/commands", 405, "method_not_allowed"),
        ("DELETE", "/v1/do/echo/Go", 405, "method_not_allowed"),
    ):
        answer = await gateway.request(method, path)
        assert (answer.status, answer.code) == (status, code)
        assert_envelope(answer)
        assert f"{method} {path}" in answer.message
        assert ("Allow" in answer.headers) == (status == 405)


# --- parameters


def form(**parameters: Any) -> dict[str, Any]:
    return {"to": "+47", "extra": None, **parameters}


async def sent(gateway: Server, **parameters: Any) -> Any:
    answer = await gateway.do("form/Send", form(**parameters))
    assert answer.status == 200, answer.raw
    return answer.body["params"]


async def refused(gateway: Server, parameters: dict[str, Any]) -> str:
    answer = await gateway.do("form/Send", parameters)
    assert (answer.status, answer.code) == (400, "invalid_parameters")
    assert_envelope(answer)
    return answer.message


async def test_every_wrong_parameter_is_named_in_one_message(gateway: Server) -> None:
    message = await refused(gateway, {"pages": "two", "urgent": 1, "size": "A6", "colour": "red", "tags": [1, 0]})
    for part in ("to is missing", "extra is missing", "pages must be an integer, not text", "colour is unknown"):
        assert part in message
    for part in (
        "urgent must be true or false",
        'size must be one of ["A4","A5"]',
        "tags[1] does not satisfy minimum: 1",
    ):
        assert part in message
    assert message.startswith("form/Send: ")
    assert "parameters: to, pages, size, urgent, tags, pin, extra" in message


async def test_defaults_are_filled_in_and_what_is_optional_may_be_absent_or_null(gateway: Server) -> None:
    assert await sent(gateway) == {"to": "+47", "extra": None, "pages": 1}
    nulls = {"size": None, "urgent": None, "tags": None}
    assert await sent(gateway, **nulls) == {"to": "+47", "extra": None, "pages": 1, **nulls}


async def test_an_integer_has_neither_fraction_nor_exponent(gateway: Server) -> None:
    assert (await sent(gateway, pages=-3))["pages"] == -3
    assert "pages must be an integer" in await refused(gateway, form(pages=1.5))
    answer = await gateway.do("form/Send", data=b'{"to": "+47", "extra": 1, "pages": 1e2}')
    assert answer.code == "invalid_parameters"


async def test_null_is_no_value_for_what_is_required(gateway: Server) -> None:
    assert "to must be text, not null" in await refused(gateway, form(to=None))


async def test_a_json_schema_is_checked_before_anything_is_started(gateway: Server) -> None:
    assert (await sent(gateway, tags=[1, 2]))["tags"] == [1, 2]
    assert "tags does not satisfy maxItems: 3" in await refused(gateway, form(tags=[1, 2, 3, 4]))
    assert gateway.events("run", connector="form", outcome="invalid_parameters", pid=0)


async def test_the_value_of_a_secret_parameter_is_not_quoted(gateway: Server) -> None:
    message = await refused(gateway, form(pin="123"))
    assert "pin does not satisfy minLength: 4" in message
    assert "123" not in message


async def test_the_catalogue_describes_the_parameters(gateway: Server) -> None:
    [item] = [one for one in (await gateway.get("/v1/commands")).json if one["id"] == "form/Send"]
    assert item["description"] == "Send it"
    parameters = {one["id"]: one for one in item["parameters"]}
    assert parameters["to"] == {"id": "to", "type": "str", "required": True, "description": "a number"}
    assert parameters["pages"] == {"id": "pages", "type": "int", "required": False, "default": 1}
    assert parameters["size"]["enum"] == ["A4", "A5"]
    assert parameters["pin"]["secret"] is True
    assert parameters["tags"]["schema"]["maxItems"] == 3
    assert parameters["extra"] == {"id": "extra", "type": "any", "required": True}


async def test_one_broken_connector_does_not_hide_the_others(gateway: Server) -> None:
    commands = await gateway.commands()
    assert "ok/Go" in commands
    assert not [one for one in commands if one.startswith("quarantined/")]
    assert (await gateway.get("/v1/auths")).json == []


# --- context


CONTEXT = {
    "spiff__process_instance_id": 42,
    "spiff__process_model_identifier": "group/model",
    "spiff__task_id": "b9",
    "spiff__callback_url": "http://backend/callback",
}


async def test_the_callers_context_travels_beside_the_parameters(gateway: Server) -> None:
    body = (await gateway.do("echo/Go", {**CONTEXT, "spiff__unknown": 1, "a": 2})).body
    assert body["params"] == {"a": 2}
    context = body["context"]
    assert {
        f"spiff__{name}": context[name] for name in ("process_instance_id", "task_id", "callback_url")
    }.items() <= CONTEXT.items()
    assert context["process_model_identifier"] == "group/model"
    assert "unknown" not in context
    assert "spiff__" not in json.dumps(body)
    assert 0 < context["deadline_ms"] <= 40_000


async def test_no_context_key_is_ever_an_unknown_parameter(gateway: Server) -> None:
    assert await sent(gateway, **CONTEXT, spiff__anything=[1]) == {"to": "+47", "extra": None, "pages": 1}


@pytest.mark.parametrize(("given", "expected"), [({"a": 1}, {"a": 1}), ('{"a": 1}', {"a": 1}), ("", {}), (None, {})])
async def test_task_data_is_an_object_or_a_text_that_holds_one(gateway: Server, given: Any, expected: Any) -> None:
    assert (await gateway.do("echo/Go", {"spiff__task_data": given})).body["task_data"] == expected


async def test_old_callers_get_with_a_body_or_without_one(gateway: Server) -> None:
    assert (await gateway.get("/v1/do/echo/Go", json={"a": 1})).body["params"] == {"a": 1}
    assert (await gateway.get("/v1/do/echo/Go")).body["params"] == {}


async def test_a_traceparent_is_handed_on_when_it_is_one(gateway: Server) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert (await gateway.do("echo/Go", headers={"traceparent": parent})).body["context"]["traceparent"] == parent
    assert "traceparent" not in (await gateway.do("echo/Go", headers={"traceparent": "x"})).body["context"]


# --- results


async def test_any_json_value_becomes_the_body(gateway: Server) -> None:
    answer = await gateway.do("ok/Go")
    assert answer.json == {
        "command_response": {"body": {"a": 1}, "mimetype": "application/json"},
        "command_response_version": 2,
        "error": None,
        "spiff__logs": [],
    }
    assert (await gateway.do("noisy/Go")).body == 7
    assert gateway.events("connector_warning", connector="noisy")


async def test_an_envelope_passes_through_byte_by_byte(gateway: Server) -> None:
    answer = await gateway.do("envelope/Go")
    assert answer.status == 200
    assert b'"body": {"x":  1.50}' in answer.raw
    assert answer.json["command_response"]["http_status"] == 201
    assert answer.json["refreshed_token_set"] == {"t": 1}


async def test_a_legacy_result_passes_through_with_its_status_and_body(gateway: Server) -> None:
    answer = await gateway.do("legacy/Go")
    assert (answer.status, answer.raw) == (418, b'{"a":  [1]}')
    assert answer.headers["Content-Type"] == "application/json"
    text = await gateway.do("legacy_text/Go")
    assert (text.status, text.raw.decode()) == (404, "café")
    assert text.headers["Content-Type"] == "text/plain; charset=utf-8"
    plain = await gateway.do("legacy_plain/Go")
    assert (plain.status, plain.raw) == (200, b"[1]")


async def test_every_run_tells_how_long_its_process_ran(gateway: Server) -> None:
    assert 0 < float((await gateway.do("ok/Go")).headers["X-Run-Duration"]) < 10
    assert float((await gateway.do("slow/Go")).headers["X-Run-Duration"]) >= 0.1
    assert "X-Run-Duration" not in (await gateway.get("/v1/commands")).headers


# --- secrets and payloads


async def test_secrets_stay_out_of_messages_and_logs(gateway: Server) -> None:
    answer = await gateway.do("leak/Go", {"pin": "pin-1234", "text": "plain"})
    assert answer.code == "connector_failed"
    shown = answer.raw.decode()
    assert "[redacted]" in answer.message
    assert "[redacted]" in "".join(answer.json["spiff__logs"])
    assert "plain" in shown
    assert "north" in shown
    request, *others = [line["line"] for line in gateway.events("log", connector="leak")]
    assert "[redacted]" in request
    assert others == ["[redacted]"] * 3
    for secret in ("pin-1234", "hunter-22", "key-in-list", "token-in-env", "one-of-key", "of-key"):
        assert secret not in shown
        assert secret not in gateway.log()


async def test_secrets_stay_out_of_what_a_connector_tells(gateway: Server) -> None:
    told = await gateway.do("leak_told/Go", {"pin": "pin-5678"})
    assert (told.code, told.message) == ("Denied", "pin [redacted] password [redacted]")
    envelope = await gateway.do("leak_told/Envelope", {"pin": "pin-5678"})
    assert (envelope.code, envelope.message) == ("Denied", "pin [redacted] password [redacted]")
    assert envelope.json["spiff__logs"] == ["pin [redacted] password [redacted]"]
    assert envelope.body == {"text": "pin pin-5678 password hunter-22"}  # a result is its caller's
    assert "pin-5678" not in gateway.log()


async def test_payloads_are_never_logged(gateway: Server) -> None:
    marked = {"a": "payload-mark", "spiff__task_data": {"b": "payload-mark"}}
    for target in ("echo/Go", "nobody/Go", "slow/Go", "not_json/Go", "crashed/Go"):
        await gateway.do(target, marked)
    await refused(gateway, form(to=["payload-mark"], size="payload-mark", tags=["payload-mark"]))
    await gateway.do("echo/Go", data=b'{"a": "payload-mark",')
    await gateway.do("echo/Go", data=b'["payload-mark"]')
    await gateway.do("echo/Go", {"spiff__task_data": "payload-mark"})
    await gateway.get("/v1/do/echo/Go?redirect_url=payload-mark", json=marked)
    assert "payload-mark" not in gateway.log()


async def test_the_gateways_key_is_not_handed_to_connectors_or_logged(gateway: Server) -> None:
    assert KEY not in json.dumps((await gateway.do("echo/Go")).json)
    assert KEY not in gateway.log()


# --- the request id


@pytest.mark.parametrize("given", ["abc", "A-b_c.d:9", "x" * 128])
async def test_a_request_id_is_accepted_echoed_and_handed_on(gateway: Server, given: str) -> None:
    answer = await gateway.do("echo/Go", headers={"X-Request-Id": given})
    assert answer.headers["X-Request-Id"] == given
    assert answer.body["context"]["request_id"] == given
    assert gateway.events("run", request_id=given, outcome="ok")


@pytest.mark.parametrize("given", ["", "with blank", "x" * 129, "é", '"'])
async def test_a_request_id_that_could_do_harm_is_replaced(gateway: Server, given: str) -> None:
    answer = await gateway.do("echo/Go", headers={"X-Request-Id": given})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-Id"])


async def test_a_request_without_an_id_gets_one_of_its_own(gateway: Server) -> None:
    ids = {(await gateway.get(path)).headers["X-Request-Id"] for path in ("/", "/nope", "/v1/commands", "/v1/do/x/y")}
    assert len(ids) == 4


# --- access


async def test_a_wrong_or_absent_key_is_unauthorized_and_nothing_else(stranger: Server) -> None:
    for headers in (
        {},
        {"Spiff-Connector-Proxy-Api-Key": "wrong"},
        {"Spiff-Connector-Proxy-Api-Key": ""},
        {"Spiff-Connector-Proxy-Api-Key": KEY.upper()},
        {"Spiff-Connector-Proxy-Api-Key": "wrong", "Authorization": f"Bearer {KEY}"},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": KEY},
        {"Authorization": "Bearer"},
    ):
        answer = await stranger.get("/v1/commands", headers=headers)
        assert (answer.status, answer.json) == (401, {"error": "Unauthorized"})
        assert answer.headers["X-Request-Id"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Spiff-Connector-Proxy-Api-Key": KEY},
        {"spiff-connector-proxy-api-key": KEY},
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer  {KEY}"},
    ],
)
async def test_the_key_comes_in_either_header(stranger: Server, headers: dict[str, str]) -> None:
    assert (await stranger.get("/v1/commands", headers=headers)).status == 200


async def test_a_key_of_bytes_that_are_no_text_is_just_wrong(stranger: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", stranger.port)
    writer.write(
        b"GET /v1/commands HTTP/1.1\r\nHost: x\r\nSpiff-Connector-Proxy-Api-Key: \xff\xfe\r\nConnection: close\r\n\r\n"
    )
    assert (await reader.read()).startswith(b"HTTP/1.1 401 ")
    writer.close()
    await writer.wait_closed()


async def test_nothing_runs_without_the_key(stranger: Server) -> None:
    answer = await stranger.do("echo/Go", headers={"X-Request-Id": "uninvited"})
    assert answer.status == 401
    assert not stranger.events("run", request_id="uninvited")


async def test_probes_are_open(stranger: Server) -> None:
    assert (await stranger.get("/liveness")).json == {"ok": True}
    assert (await stranger.get("/v1/liveness")).json == {"ok": True}
    assert (await stranger.get("/v1/readiness")).json == {"ok": True}
    root = await stranger.get("/")
    assert root.status == 200
    assert root.json["ok"] is True


@pytest.fixture
def table(tmp_path: Path) -> tuple[Any, Any]:
    """The table of routes and an application's router, without a server."""
    site = Site(tmp_path)
    site.configure()
    settings, _ = read_settings(site.file, environ={})
    app = build(settings, Bus())
    return app[ROUTES], app.router


async def test_every_route_of_the_application_has_an_access_rule(table: tuple[Any, Any]) -> None:
    routes, router = table
    ruled = {(route.method, route.path) for route in routes if isinstance(route.access, Access)}
    of_clients = {(route.method, CLIENTS + route.path) for route in routes if is_of_clients(route)}
    served_routes = {(route.method, route.resource.canonical) for route in router.routes()}
    assert len(ruled) == len(routes)
    assert served_routes == ruled | of_clients
    alone = {path for _, path in ruled} - {path.removeprefix(CLIENTS) for _, path in of_clients}
    assert {path for path in alone if not path.startswith(CONSOLE)} == {
        "/",
        "/liveness",
        "/v1/liveness",
        "/v1/readiness",
    }


async def test_only_probes_and_browsers_need_no_key(stranger: Server, table: tuple[Any, Any]) -> None:
    routes = [route for route in table[0] if not route.path.startswith(CONSOLE)]  # tests/http/test_console.py has those
    opened = {(route.method, route.path) for route in routes if route.access is Access.OPEN}
    signing_in = {
        (method, path)
        for method in ("GET", "HEAD", "OPTIONS")
        for path in ("/v1/auth/{connector}/{auth}", "/v1/auth/{connector}/{auth}/callback")
    }
    assert opened == signing_in | {
        (method, path)
        for method in ("GET", "HEAD", "OPTIONS")
        for path in ("/", "/liveness", "/v1/liveness", "/v1/readiness", "/docs", "/docs/{file}")
    }
    for method, path, _, access, *_ in [
        *routes,
        ("GET", "/nope", None, Access.KEY),
        ("OPTIONS", "/nope", None, Access.KEY),
        ("HEAD", "/v1/do/x/x", None, Access.KEY),
        ("POST", "/liveness", None, Access.KEY),
    ]:
        answer = await stranger.request(method, re.sub(r"\{\w+\}", "x", path))
        # Whoever signs in there finds no such connector, and the page has no file x.
        none = ((method, path) in signing_in and method == "GET") or (path == "/docs/{file}" and method != "OPTIONS")
        here = 404 if none else 200
        expected = here if access is Access.OPEN else 401
        assert answer.status == expected, (method, path)


async def test_the_key_of_the_environment_wins_and_metrics_can_be_opened(site: Site) -> None:
    configure(site, {"echo": ENTRIES["echo"]}, "api_key: from-the-file\nmetrics: open")
    async with served(site, env={"CONNECTOR_PROXY_API_KEY": "from-the-environment"}) as gateway:
        for key, status in (("from-the-file", 401), ("from-the-environment", 200)):
            headers = {"Spiff-Connector-Proxy-Api-Key": key}
            assert (await gateway.get("/v1/commands", headers=headers)).status == status
        assert (await gateway.get("/v1/commands")).status == 401
        metrics = await gateway.get("/metrics")
        assert metrics.status == 200
        assert metrics.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"


async def test_without_a_key_the_gateway_is_open_and_warns(site: Site) -> None:
    configure(site, {"echo": ENTRIES["echo"]})
    async with served(site) as gateway:
        assert await gateway.commands() == ["echo/Go"]
        assert (await gateway.get("/metrics")).status == 200
        assert gateway.events("no_api_key", level="warning")


def test_an_empty_key_refuses_to_start_and_is_named(site: Site) -> None:
    command = ["serve", "--config", str(site.file)]
    site.configure(gateway="api_key: sound")
    of_environment = CliRunner().invoke(main, command, env={"CONNECTOR_PROXY_API_KEY": ""})
    assert of_environment.exit_code == 2
    assert "CONNECTOR_PROXY_API_KEY is empty" in of_environment.stderr
    site.configure(gateway="api_key: '  '")
    of_file = CliRunner().invoke(main, command)
    assert of_file.exit_code == 2
    assert "gateway.api_key is empty" in of_file.stderr


# --- HEAD and OPTIONS

READS = [
    "/",
    "/liveness",
    "/v1/liveness",
    "/v1/readiness",
    "/v1/status",
    "/metrics",
    "/v1/commands",
    "/v1/auths",
    "/v1/jobs",
]
VARYING = {"date", "x-request-id", "content-length", "x-run-duration"}


def steady(answer: Answer) -> set[tuple[str, str]]:
    return {(name, value) for name, value in answer.headers.items() if name.lower() not in VARYING}


@pytest.mark.parametrize("path", READS)
async def test_head_answers_as_get_does_without_the_body(gateway: Server, path: str) -> None:
    got, head = await gateway.get(path), await gateway.request("HEAD", path)
    assert (got.status, head.status, head.raw) == (200, 200, b"")
    assert steady(head) == steady(got)
    assert int(head.headers["Content-Length"]) > 0


@pytest.mark.parametrize("path", [*READS, "/v1/jobs/some-job"])
async def test_options_names_the_methods(gateway: Server, path: str) -> None:
    for headers in ({}, {"Origin": "http://a.example"}, {"Access-Control-Request-Method": "GET"}):
        answer = await gateway.request("OPTIONS", path, headers=headers)
        assert (answer.status, answer.raw) == (200, b"")
        assert answer.headers["Allow"] == "GET, HEAD, OPTIONS"


async def test_options_names_the_methods_of_what_is_done_too_and_nothing_is_run(gateway: Server) -> None:
    expected = {
        "do/echo/Go": "GET, OPTIONS, POST",
        "jobs/x/cancel": "OPTIONS, POST",
        "jobs/purge": "OPTIONS, POST",
    }
    for path, methods in expected.items():
        answer = await gateway.request("OPTIONS", f"/v1/{path}", headers={"X-Request-Id": "only-asking"})
        assert (answer.status, answer.headers["Allow"], answer.raw) == (200, methods, b"")
    assert not gateway.events("run", request_id="only-asking")
    for method in ("HEAD", "OPTIONS"):
        assert (await gateway.request(method, "/nope")).status == 404
    assert (await gateway.request("HEAD", "/v1/jobs/no-such")).status == 404


async def test_head_runs_no_command(gateway: Server, stranger: Server) -> None:
    for headers, status in (({"Spiff-Connector-Proxy-Api-Key": KEY}, 405), ({}, 401)):
        answer = await stranger.request("HEAD", "/v1/do/echo/Go", headers={**headers, "X-Request-Id": "only-looking"})
        assert (answer.status, answer.raw) == (status, b"")
        assert ("Allow" in answer.headers) == (status == 405)
    assert not gateway.events("run", request_id="only-looking")


async def test_head_of_suggestions_is_as_get(site: Site) -> None:
    command = {"typeahead": {"category": "x", "prefix": "q"}, "parameters": {"q": {"required": False}}}
    configure(site, {"one": {"run": ["echo", "[1]"], "commands": {"Go": command}}}, "{api_key: k3y, typeahead: open}")
    async with served(site) as gateway:
        for category in ("x", "none"):
            got = await gateway.get(f"/v1/typeahead/{category}")
            head = await gateway.request("HEAD", f"/v1/typeahead/{category}")
            assert (head.status, head.raw, steady(head)) == (got.status, b"", steady(got))


async def test_options_is_answered_where_no_browser_may_call(site: Site) -> None:
    configure(site, {"echo": ENTRIES["echo"]})
    async with served(site) as gateway:
        preflight = {"Origin": "http://a.example", "Access-Control-Request-Method": "POST"}
        for headers in ({}, preflight):
            answer = await gateway.request("OPTIONS", "/v1/do/echo/Go", headers=headers)
            assert (answer.status, answer.headers["Allow"], answer.raw) == (200, "GET, OPTIONS, POST", b"")
            assert not [name for name in answer.headers if name.startswith("Access-Control")]
        assert (await gateway.request("OPTIONS", "/nope")).status == 404


# --- browsers


async def test_a_preflight_needs_no_key_and_names_what_is_allowed(stranger: Server) -> None:
    headers = {
        "Origin": "http://a.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type, spiff-connector-proxy-api-key",
    }
    answer = await stranger.request("OPTIONS", "/v1/do/echo/Go", headers=headers)
    assert answer.status == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "http://a.example"
    assert answer.headers["Access-Control-Allow-Methods"] == "POST"
    assert "SPIFF-CONNECTOR-PROXY-API-KEY" in answer.headers["Access-Control-Allow-Headers"].upper()


async def test_a_preflight_of_another_origin_or_without_a_method_gets_nothing(stranger: Server) -> None:
    other = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    refused_one = await stranger.request("OPTIONS", "/v1/do/echo/Go", headers=other)
    assert refused_one.status == 403
    assert "Access-Control-Allow-Origin" not in refused_one.headers
    assert (await stranger.request("OPTIONS", "/v1/do/echo/Go", headers={"Origin": "http://a.example"})).status == 401


async def test_answers_and_errors_carry_the_origin_that_is_allowed(gateway: Server) -> None:
    for origin, allowed in (("http://b.example", "http://b.example"), ("http://evil.example", None)):
        for answer in (
            await gateway.get("/v1/commands", headers={"Origin": origin}),
            await gateway.do("nobody/Go", headers={"Origin": origin}),
            await gateway.do("echo/Go", headers={"Origin": origin, "Spiff-Connector-Proxy-Api-Key": "wrong"}),
        ):
            assert answer.headers.get("Access-Control-Allow-Origin") == allowed


# --- the status view and the port


async def test_the_status_view_shows_every_connector_and_its_last_outcomes(gateway: Server) -> None:
    await gateway.do("failed/Go", headers={"X-Request-Id": "for-the-status"})
    status = await gateway.status()
    assert status["state"] == "serving"
    assert set(status["connectors"]) == set(ENTRIES)
    failed = status["connectors"]["failed"]
    assert (failed["state"], failed["circuit"], failed["commands"]) == ("ready", "closed", ["Go"])
    assert failed["last_outcomes"][0]["request_id"] == "for-the-status"
    assert failed["last_outcomes"][0]["outcome"] == "connector_failed"
    assert len(failed["last_outcomes"]) <= 10
    quarantined = status["connectors"]["quarantined"]
    assert quarantined["state"] == "quarantined"
    assert "/opt/nowhere/php" in quarantined["reason"]
    assert "hunter-22" not in json.dumps(status)


async def test_the_environment_names_the_port(site: Site) -> None:
    site.configure(gateway="listen: 127.0.0.1:1")
    log = site.folder / "log"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent), "CONNECTOR_PROXY_PORT": "0"}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", "--log-format", "json"],
            stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, cwd=site.folder, env=environment,
        )  # fmt: skip
    try:
        await eventually(lambda: process.poll() is not None or "listening" in log.read_text())
        [line] = [json.loads(line) for line in log.read_text().splitlines() if "listening" in line]
        assert line["host"] == "127.0.0.1"
        assert line["port"] > 1
    finally:
        process.terminate()
        assert process.wait(20) == 0


@pytest.mark.parametrize("port", ["", "abc", "70000", "-1", "\uff17"])
def test_a_port_that_is_none_is_refused_and_named(site: Site, port: str) -> None:
    site.configure()
    with pytest.raises(Exception, match="CONNECTOR_PROXY_PORT: "):
        read_settings(site.file, environ={"CONNECTOR_PROXY_PORT": port})


def test_an_address_of_the_command_line_wins_over_the_environment(site: Site) -> None:
    site.configure(gateway="listen: ':7100'")
    environ = {"CONNECTOR_PROXY_PORT": "7200"}
    assert read_settings(site.file, environ={})[0].listen[0].port == 7100
    assert read_settings(site.file, environ=environ)[0].listen[0].port == 7200
    assert read_settings(site.file, listen=("127.0.0.1:7300",), environ=environ)[0].listen[0].port == 7300
