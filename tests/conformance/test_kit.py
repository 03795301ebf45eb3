"""Each check of `gateway test` finds what it is for, and nothing else."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import msgspec
import pytest

from gateway.cli.common import opened
from gateway.cli.test import findings
from gateway.connectors.examples import find_examples, is_subset, made_up, read_examples
from gateway.connectors.parameters import Parameter, Signature
from gateway.errors import ConfigError
from tests.support import Site, cli

# A connector without a fault. Each test below changes one line.
GOOD = """\
import json, os, signal, subprocess, sys, time

COMMANDS = [{"name": "Echo", "parameters": [
    {"id": "text", "type": "str", "default": "hello"}, {"id": "seconds", "type": "any", "default": 0}]}]


def read():
    return sys.stdin.buffer.read().decode()


def answer(request):
    if request["op"] == "describe":
        return {"commands": COMMANDS}
    if request["command"] != "Echo":
        return {"error": {"error_code": "command_not_found", "message": "it has Echo"}}
    params = request["params"]
    time.sleep(params["seconds"])
    return {"text": params["text"], "size": len(params["text"])}


text = read()
if not text:
    sys.exit(1)
result = answer(json.loads(text))
sys.stdout.buffer.write(json.dumps(result, ensure_ascii=False).encode())
"""

HELLO = """
- command: Echo
  params: {text: hello}
  expect: {body: {text: hello}}
"""


Found = dict[tuple[str, str | None], dict[str, Any]]


def put(site: Site, code: str = GOOD, examples: str = "", entry: str = "") -> None:
    site.configure()
    site.python("connectors.d/it/it.py", code)
    (site.drop_ins / "it/connector.yaml").write_text("run: [./it.py]\n" + textwrap.dedent(entry))
    if examples:
        (site.drop_ins / "it/tests.yaml").write_text(examples)


async def kit_on(
    site: Site, code: str = GOOD, examples: str = "", entry: str = "", command: str | None = None
) -> tuple[int, Found]:
    """Run the kit on a connector; return how many checks failed, and the findings that are not ok by check and command."""
    put(site, code, examples, entry)
    return await kit(site, command)


async def kit(site: Site, command: str | None = None) -> tuple[int, Found]:
    async with opened(site.file, registry=False) as gateway:
        found = [msgspec.to_builtins(one) async for one in findings(gateway, "it", command)]
    bad = {(one["check"], one["command"]): one for one in found if one["outcome"] != "ok"}
    return sum(one["outcome"] == "FAIL" for one in found), bad


def outcomes(found: Found) -> dict[tuple[str, str | None], str]:
    """Return the outcomes, without the deadline that a quick command cannot be tested for."""
    return {key: one["outcome"] for key, one in found.items() if (key[0], one["outcome"]) != ("deadline", "skipped")}


@pytest.mark.parametrize("examples", ["", HELLO], ids=["made up", "examples"])
async def test_a_good_connector_passes(site: Site, examples: str) -> None:
    failed, found = await kit_on(site, examples=examples)
    assert (failed, list(found)) == (0, [("deadline", "Echo")])
    assert "quick" in found["deadline", "Echo"]["message"]


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


RETURN = 'return {"text": params["text"], "size": len(params["text"])}'
FAILURES = {
    "describe that is not valid": ("describe", '"commands": COMMANDS', '"comands": COMMANDS', 'no "commands"'),
    "a type that does not exist": ("describe", '"type": "str"', '"type": "text"', "Invalid enum value 'text'"),
    "a default of another type": ("describe", '"default": "hello"', '"default": 5', "its default does not fit"),
    "a default that is no choice": ("describe", '"default": "hello"', '"default": "a", "enum": ["b"]', "must be one of"),
    "a choice of another type": ("describe", '"default": "hello"', '"enum": ["a", 7]', "its enum has 7"),
    "a schema that is none": ("describe", '"type": "any"', '"schema": {"type": "sum"}', "not a JSON Schema"),
    "a parameter named twice": ("describe", '"id": "seconds"', '"id": "text"', "named twice"),
    "a reserved name": ("describe", '"id": "seconds"', '"id": "spiff__seconds"', "never reaches"),
    "a crash": ("answers", "time.sleep", "os.kill(os.getpid(), signal.SIGSEGV)", "died of SIGSEGV"),
    "a bare exit status": ("answers", "time.sleep", "sys.exit", "text"),
    "output that is not JSON": ("answers", RETURN, "print('done', flush=True); os._exit(0)", "not one JSON document"),
    "no output": ("answers", RETURN, "os._exit(0)", "output is empty"),
    "text read as Latin-1": ("unicode", "buffer.read().decode()", "buffer.read().decode('latin-1')", "came back as"),
    "text written as ASCII": ("unicode", 'params["text"], "size"', "params['text'].encode('ascii', 'replace').decode(), \"size\"", "came back as '??'"),
    "text that must be ASCII": ("unicode", "time.sleep", "params['text'].encode('ascii'); time.sleep", "UnicodeEncodeError"),
    "a request read in part": ("large", "buffer.read()", "buffer.read1(65536)", "failed with exit status 1"),
    "an answer to any command": ("unknown-command", 'if request["command"] != "Echo"', "if False", "KeyError"),
    "success of any command": ("unknown-command", '{"error": {"error_code": "command_not_found", "message": "it has Echo"}}', "None", "as if it had worked"),
    "a crash in an unknown command": ("unknown-command", 'return {"error": {"error_code": "command_not_found", "message": "it has Echo"}}', "os.abort()", "SIGABRT"),
    "a crash without a request": ("stdin", "    sys.exit(1)", "    os.abort()", "SIGABRT"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
async def test_a_fault_makes_its_own_check_fail(site: Site, name: str) -> None:
    check, old, new, message = FAILURES[name]
    code = changed(old, new)
    if name == "a bare exit status":
        code, message = changed('time.sleep(params["seconds"])', "sys.exit(3)"), "failed with exit status 3"
    failed, found = await kit_on(site, code)
    assert {key[0]: outcome for key, outcome in outcomes(found).items()} == {check: "FAIL"}
    (finding,) = [one for one in found.values() if one["outcome"] == "FAIL"]
    assert message in finding["message"]
    assert finding["fix"]
    assert failed == 1


WARNINGS = {
    "noise on stdout": ("stdout", "result = answer", "print('starting', flush=True)\nresult = answer", "noise"),
    "a log over its bound": ("stderr", "time.sleep", "print('x' * 3000, file=sys.stderr); time.sleep", "max_log"),
    "a process left behind": ("processes", "time.sleep", "subprocess.Popen(['sleep', '1000']); time.sleep", "still running"),
    "an unknown key": ("describe", '"name": "Echo"', '"name": "Echo", "desciption": "it"', "Echo: unknown keys are ignored: desciption"),
    "an unknown key of a parameter": ("describe", '"id": "text"', '"id": "text", "defualt": ""', "Echo, text: unknown keys"),
    "a default that is required": ("describe", '"id": "text"', '"id": "text", "required": True', "not required"),
    "an error that was raised": ("answers", RETURN, "return {'error': {'error_code': 'KeyError', 'message': 'x', 'raised': True}}", "raised KeyError"),
}  # fmt: skip


@pytest.mark.parametrize("name", WARNINGS)
async def test_what_works_but_should_be_mended_is_a_warning(site: Site, name: str) -> None:
    check, old, new, message = WARNINGS[name]
    failed, found = await kit_on(site, changed(old, new), entry="max_log: 2KiB")
    assert failed == 0
    assert {key[0]: outcome for key, outcome in outcomes(found).items()} == {check: "warning"}
    (finding,) = [one for one in found.values() if one["check"] == check]
    assert message in finding["message"]
    assert finding["fix"]


async def test_a_process_that_does_not_end_after_its_result_is_a_warning(site: Site) -> None:
    code = f"{GOOD}sys.stdout.flush()\nos.close(1)\ntime.sleep(1000)\n"
    failed, found = await kit_on(site, code, entry="linger: 50ms")
    assert (failed, outcomes(found)) == (0, {("end", None): "warning"})
    assert "did not end, and was stopped" in found["end", None]["message"]


@pytest.mark.parametrize("mode", ["spawn", "standby", "fork"])
async def test_what_is_left_behind_is_found_in_every_mode(site: Site, mode: str) -> None:
    put(site, "import subprocess\ndef Go():\n    subprocess.Popen(['sleep', '1000'])\n")
    (site.drop_ins / "it/connector.yaml").write_text(f"{{runtime: python, module: ./it.py, mode: {mode}}}")
    failed, found = await kit(site)
    assert (failed, found["processes", None]["outcome"]) == (0, "warning")


async def test_one_that_takes_long_to_begin_is_given_that_time_for_whatever_it_is_to_do(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.conformance.kit.EARLY", 1.0)
    slow = GOOD.replace("COMMANDS =", "time.sleep(1.5)  # an import\nCOMMANDS =", 1)
    failed, found = await kit_on(site, slow, "[{command: Echo, skip: it only has to begin}]")
    assert failed == 0, found


async def test_a_connector_that_waits_on_an_ended_stdin_is_found(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.conformance.kit.EARLY", 2.0)
    failed, found = await kit_on(site, changed("    sys.exit(1)", "    time.sleep(1000)"))
    assert (failed, outcomes(found)) == (1, {("stdin", None): "FAIL"})
    assert "a stdin with no request had ended" in found["stdin", None]["message"]


async def test_a_slow_command_is_stopped_at_a_deadline(site: Site) -> None:
    failed, found = await kit_on(site, examples="- {command: Echo, params: {seconds: 0.6}}")
    assert (failed, found) == (0, {})


async def test_a_command_that_ignores_sigterm_is_found(site: Site) -> None:
    ignoring = "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(params['text'] == 'hello' and "
    code = changed("time.sleep(", ignoring)
    failed, found = await kit_on(site, code, examples="- {command: Echo, params: {seconds: 3.5}}")
    assert (failed, outcomes(found)) == (1, {("deadline", "Echo"): "FAIL"})
    assert "had to be killed" in found["deadline", "Echo"]["message"]


async def test_a_command_that_does_not_end_is_found(site: Site) -> None:
    code = changed("time.sleep(params", "time.sleep(1000 + params")
    failed, found = await kit_on(site, code, entry="timeout: 300ms")
    assert (failed, outcomes(found)) == (1, {("answers", "Echo"): "FAIL"})
    assert "still running at its deadline" in found["answers", "Echo"]["message"]


async def test_a_told_error_is_within_the_contract(site: Site) -> None:
    failed, found = await kit_on(site, changed(RETURN, "return {'error': {'error_code': 'no_fax', 'message': 'x'}}"))
    assert (failed, outcomes(found)) == (0, {})


@pytest.mark.parametrize(
    ("expect", "message"),
    [
        ("{body: {text: bye}}", "expected"),
        ("{body: {size: true}}", "expected"),
        ("{error_code: no_fax}", "expected no_fax, got a result"),
    ],
)
async def test_an_example_whose_answer_is_another_fails(site: Site, expect: str, message: str) -> None:
    failed, found = await kit_on(site, examples=f"- {{command: Echo, params: {{text: a}}, expect: {expect}}}")
    assert (failed, outcomes(found)) == (1, {("expected", "Echo"): "FAIL"})
    assert message in found["expected", "Echo"]["message"]


async def test_an_example_may_expect_an_error_of_the_connector_or_of_the_gateway(site: Site) -> None:
    examples = """
- {command: Echo, params: {text: 5}, expect: {error_code: invalid_parameters}}
- {command: Echo, params: {text: hello}, expect: {body: {text: hello, size: 5}}}
- {command: Echo, params: {seconds: -1}, expect: {error_code: connector_failed}}
"""
    failed, found = await kit_on(site, examples=examples)
    assert (failed, outcomes(found)) == (0, {})


async def test_a_command_that_must_not_be_run_is_skipped_with_its_reason(site: Site) -> None:
    code = changed("time.sleep", "open('/dev/full', 'w').write('x' * 100000); time.sleep")
    failed, found = await kit_on(site, code, examples="- {command: Echo, skip: it sends a real fax}")
    assert (failed, outcomes(found)) == (0, {("answers", "Echo"): "skipped"})
    assert found["answers", "Echo"]["message"] == "it sends a real fax"


async def test_an_example_of_a_command_that_is_not_there_fails(site: Site) -> None:
    failed, found = await kit_on(site, examples=f"{HELLO}\n- {{command: Ecko}}")
    assert (failed, outcomes(found)) == (1, {("answers", "Ecko"): "FAIL"})


async def test_parameters_that_cannot_be_made_up_skip_the_command(site: Site) -> None:
    schema = '"id": "text", "type": "str", "schema": {"pattern": "^[0-9]{13}$"}, "x": "hello"'
    failed, found = await kit_on(site, changed('"id": "text", "type": "str", "default": "hello"', schema))
    assert (failed, outcomes(found)[("answers", "Echo")]) == (0, "skipped")
    assert "give an example in tests.yaml" in found["answers", "Echo"]["message"]


async def test_one_command_can_be_run_alone(site: Site) -> None:
    code = (
        changed("COMMANDS = [", 'COMMANDS = [{"name": "Broken", "parameters": []}, ')
        .replace("    params = request", "    assert request['command'] != 'Broken'\n    params = request")
        .replace('!= "Echo"', 'not in ("Echo", "Broken")')
    )
    failed, found = await kit_on(site, code)
    assert (failed, outcomes(found)) == (1, {("answers", "Broken"): "FAIL"})
    failed, found = await kit_on(site, code, command="Echo")
    assert (failed, outcomes(found)) == (0, {})
    failed, found = await kit_on(site, code, command="Ekko")
    assert (failed, outcomes(found)) == (1, {("answers", "Ekko"): "FAIL"})


async def test_a_connector_declared_in_yaml_is_never_asked(site: Site) -> None:
    code = changed('if request["op"] == "describe"', 'if request["op"] == "describe" and sys.exit(1)')
    entry = "commands: {Echo: {parameters: {text: {type: str}, seconds: {default: 0}}}}"
    failed, found = await kit_on(site, code, entry=entry)
    assert failed == 0
    assert outcomes(found) == {("describe", None): "skipped", ("unknown-command", None): "skipped"}


async def test_a_declared_default_that_does_not_fit_fails(site: Site) -> None:
    failed, found = await kit_on(site, entry="commands: {Echo: {parameters: {text: {type: str, default: 5}}}}")
    assert (failed, outcomes(found)) == (1, {("describe", None): "FAIL"})


async def test_a_connector_that_cannot_be_started_fails_at_its_definition(site: Site) -> None:
    failed, found = await kit_on(site, entry="timeot: 5s")
    assert (failed, outcomes(found)) == (1, {("definition", None): "FAIL"})
    assert "did you mean timeout?" in found["definition", None]["message"]


async def test_a_file_of_examples_that_is_none_fails(site: Site) -> None:
    failed, found = await kit_on(site, examples="- {command: Echo, parms: {}}")
    assert (failed, outcomes(found)) == (1, {("definition", None): "FAIL"})
    assert "tests.yaml" in found["definition", None]["message"]
    assert "0.parms: unknown key (did you mean params?)" in found["definition", None]["message"]


def test_people_get_a_line_a_check_and_what_to_mend(site: Site) -> None:
    put(site, changed('{"error": {"error_code": "command_not_found", "message": "it has Echo"}}', "None"))
    done = cli(site, "test", "it")
    assert "ok       answers Echo" in done.stdout
    assert "skipped  deadline Echo" in done.stdout
    assert "FAIL     unknown-command" in done.stdout
    assert "command_not_found" in done.stdout
    assert done.stdout.endswith("1 of 11 checks failed\n")
    assert done.returncode == 1


def test_machines_get_the_findings_as_json(site: Site) -> None:
    put(site)
    done = cli(site, "test", "it", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["connector"], report["ok"]) == (0, "it", True)
    assert report["checks"][0] == {
        "check": "describe", "outcome": "ok", "command": None, "message": "commands: Echo", "fix": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("nobody",), "there is no connector 'nobody' (there are: idle, it)"), (("idle",), "idle is switched off")],
)
def test_a_connector_that_is_not_there_is_a_wrong_command_line(
    site: Site, arguments: tuple[str, ...], message: str
) -> None:
    put(site)
    site.configure("idle: {enabled: false}")
    done = cli(site, "test", *arguments)
    assert (done.returncode, message in done.stderr) == (2, True)


# --- examples


def test_examples_are_found_beside_the_connector(site: Site) -> None:
    (site.drop_ins / "it").mkdir()
    assert find_examples("it", site.drop_ins / "it") is None
    (site.drop_ins / "it/tests.yaml").write_text("[]")
    assert find_examples("it", site.drop_ins / "it") is None, "not its own folder: there is no connector.yaml"
    (site.drop_ins / "it/connector.yaml").write_text("{}")
    assert find_examples("it", site.drop_ins / "it") == site.drop_ins / "it/tests.yaml"
    (site.drop_ins / "single.tests.yaml").write_text("[]")
    assert find_examples("single", site.drop_ins) == site.drop_ins / "single.tests.yaml"


@pytest.mark.parametrize("text", ["", "a: b", "- a", "- {params: {}}", "- {", "- {command: A, expect: {status: 5}}"])
def test_examples_that_are_none_are_told_with_their_file(site: Site, text: str) -> None:
    file = site.folder / "tests.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=str(file)):
        read_examples(file)


def test_a_date_in_an_example_is_text(site: Site) -> None:
    file = site.folder / "tests.yaml"
    file.write_text("- {command: A, params: {day: 2026-11-24}}")
    assert read_examples(file)[0].params == {"day": "2026-11-24"}


@pytest.mark.parametrize(
    ("expected", "actual", "is_one"),
    [
        ({}, {"a": 1}, True),
        ({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}, "d": 3}, True),
        ({"a": 1}, {"b": 1}, False),
        ([1, {}], [1, {"a": 2}], True),
        ([1], [1, 2], False),
        (1, True, False),
        (False, 0, False),
        (1, 1.0, True),
        (None, None, True),
        ({}, [], False),
    ],
)
def test_a_subset_may_lack_members_but_not_items(expected: Any, actual: Any, is_one: bool) -> None:
    assert is_subset(expected, actual) is is_one


@pytest.mark.parametrize(
    ("facts", "value"),
    [
        ({"type": "str"}, "example"),
        ({"type": "int"}, 1),
        ({"type": "bool"}, True),
        ({"type": "str", "enum": ["a", "b"]}, "a"),
        ({"type": "any", "schema": {"type": "array", "minItems": 2, "items": {"type": "integer", "minimum": 5}}}, [5, 5]),
        ({"type": "any", "schema": {"type": "object", "required": ["a"], "properties": {"a": {"type": "boolean"}}}}, {"a": True}),
        ({"type": "any", "schema": {"type": ["number", "null"]}}, 1),
        ({"type": "str", "schema": {"examples": ["+47"]}}, "+47"),
    ],
)  # fmt: skip
def test_parameters_are_made_up_of_types_choices_and_schemas(facts: dict[str, Any], value: Any) -> None:
    assert made_up(Signature((Parameter(id="a", required=True, **facts),))) == {"a": value}


def test_parameters_that_would_not_be_accepted_are_not_made_up() -> None:
    pattern = Parameter(id="a", type="str", required=True, schema={"pattern": "^[0-9]+$"})
    assert made_up(Signature((pattern,))) is None
    optional = Parameter(id="b", type="str", required=False, schema={"pattern": "^[0-9]+$"})
    assert made_up(Signature((optional,))) == {}
