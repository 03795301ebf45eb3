"""The stdio contract of the Python host, on every interpreter it supports.

The host runs as the gateway runs it: a process of that interpreter, JSON in and out.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import pytest

from tests.installing import interpreters

ROOT = Path(__file__).resolve().parents[2]
HOST = ROOT / "runners" / "python" / "host.py"
FIXTURES = Path(__file__).parents[1] / "fixtures"
VERSIONS = ["3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14"]
PATIENCE = 30  # seconds; no test comes near it


@dataclasses.dataclass(frozen=True)
class Reply:
    """What one process left behind."""

    status: int
    stdout: str
    log: str

    @property
    def value(self) -> Any:
        return json.loads(self.stdout)

    @property
    def error(self) -> Dict[str, Any]:
        assert self.status == 1, self
        error: Dict[str, Any] = self.value["error"]
        return error


@dataclasses.dataclass(frozen=True)
class Host:
    """A connector under one interpreter."""

    python: str
    arguments: List[str]
    path: str = ""

    def run(self, document: bytes) -> Reply:
        # What the gateway gives: an allow-list, never its own environment.
        environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "PYTHONPATH": self.path}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        done = subprocess.run(
            [self.python, "-W", "error", str(HOST), *self.arguments],
            input=document,
            capture_output=True,
            env=environment,
            timeout=PATIENCE,
            check=False,
        )
        return Reply(done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8"))

    def request(self, **request: Any) -> Reply:
        return self.run(json.dumps({"protocol": 1, **request}).encode())

    def describe(self) -> Dict[str, Any]:
        reply = self.request(op="describe")
        assert reply.status == 0, reply
        described: Dict[str, Any] = reply.value
        return described

    def execute(self, command: str, params: Optional[Dict[str, Any]] = None, **rest: Any) -> Reply:
        return self.request(op="execute", command=command, params=params or {}, **rest)


INTERPRETERS = {f"{major}.{minor}": str(path) for (major, minor), path in interpreters().items()}


@pytest.fixture(scope="session", params=VERSIONS)
def python(request: pytest.FixtureRequest) -> str:
    """Give each supported interpreter in turn; one that is not installed is a skip that can be seen."""
    version: str = request.param
    if version not in INTERPRETERS:
        pytest.skip(f"no CPython {version} under pyenv or on PATH")
    # Once, as an installation does, and not again for each of hundreds of processes.
    compile_all = [INTERPRETERS[version], "-W", "error", "-m", "compileall", "-q", "-f", str(HOST.parent)]
    subprocess.run(compile_all, timeout=PATIENCE, check=True)
    return INTERPRETERS[version]


@pytest.fixture
def synthetic(python: str) -> Host:
    return Host(python, ["--package", "connector_synthetic"], str(FIXTURES))


@pytest.fixture
def functions(python: str) -> Host:
    return Host(python, ["--module", str(FIXTURES / "functions.py")])


@pytest.fixture(scope="session")
def synthetic_description(python: str) -> Dict[str, Any]:
    return Host(python, ["--package", "connector_synthetic"], str(FIXTURES)).describe()


@pytest.fixture(scope="session")
def functions_description(python: str) -> Dict[str, Any]:
    return Host(python, ["--module", str(FIXTURES / "functions.py")]).describe()


@pytest.fixture
def connector(python: str, tmp_path: Path) -> Callable[..., Host]:
    """Write files into a fresh folder and host one of them: ``connector({"fax.py": "..."}, module="fax.py")``."""

    def build(files: Dict[str, str], *, module: str = "", package: str = "") -> Host:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        if package:
            return Host(python, ["--package", package], str(tmp_path))
        return Host(python, ["--module", str(tmp_path / module)])

    return build


Build = Callable[..., Host]
Described = Dict[str, Any]


def named(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (entry,) = [entry for entry in entries if entry["name"] == name]
    return entry


def parameters(described: Described, command: str) -> dict[str, dict[str, Any]]:
    return {each["id"]: each for each in named(described["commands"], command)["parameters"]}


# ---- describe: packages of classes


def test_every_class_that_a_module_defines_is_a_command(synthetic_description: Described) -> None:
    assert sorted(entry["name"] for entry in synthetic_description["commands"]) == [
        "Base",
        "Colour",
        "Coroutine",
        "Deep",
        "Everything",
        "FaxError",
        "JoinWords",
        "Mode",
        "Noisy",
        "Quoted",
        "Refuse",
        "SendFax",
        "StartJob",
        "Strings",
        "_Line",
    ]


def test_every_class_of_auths_is_an_auth(synthetic_description: Described) -> None:
    assert [entry["name"] for entry in synthetic_description["auths"]] == ["SimpleAuth", "OAuth"]
    assert synthetic_description["auths"][1:] == [
        {
            "name": "OAuth",
            "description": "Sign in at the fax company.",
            "module": "connector_synthetic.auths.oauth",
            "parameters": [{"id": "scope", "type": "str", "required": False, "default": "fax.send"}],
            "problem": "KeyError: 'FAX_ID' (set it under config:)",
        },
    ]


def test_an_auth_tells_its_application_when_its_config_is_there(synthetic: Host) -> None:
    config = {"FAX_ID": "gate", "FAX_SECRET": "hush", "FAX_URL": "https://fax.example"}
    simple, oauth = synthetic.request(op="describe", config=config).value["auths"]
    assert simple["problem"] == "it has no app_description"
    assert {
        name: value for name, value in oauth.items() if name not in ("name", "description", "module", "parameters")
    } == {
        "authorize_url": "https://fax.example/authorize",
        "token_url": "https://fax.example/token",
        "client_id": "gate",
        "client_secret": "hush",
        "scope": "fax.send offline_access",
    }


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("print('noise')", "app_description gave no dict"),
        ("return [1]", "app_description gave no dict"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("return {'version': '1', 'consumer_key': 'k'}", "it speaks OAuth 1, which no gateway does"),
        ("return {'client_id': 5, 'scope': 6}", "client_id, scope: not text"),
    ],
)
def test_an_application_that_cannot_be_told_hides_only_itself(connector: Build, body: str, problem: str) -> None:
    auth = f"class A:\n    def app_description(self, config):\n        {body}\n"
    files = {"connector_x/__init__.py": "", "connector_x/auths/__init__.py": auth}
    described = connector(files, package="connector_x").describe()
    assert described["auths"][0]["problem"] == problem
    assert described["problems"] == []


def test_a_command_is_described_in_full(synthetic_description: Described) -> None:
    assert named(synthetic_description["commands"], "SendFax") == {
        "name": "SendFax",
        "description": "Send a fax to one number.",
        "module": "connector_synthetic.commands.send_fax",
        "parameters": [
            {"id": "to", "type": "str", "required": True, "description": "The number, with its country code."},
            {"id": "pages", "type": "int", "required": True, "description": "How many pages."},
            {"id": "urgent", "type": "bool", "required": False, "default": False},
            {"id": "note", "type": "str", "required": False, "default": None, "schema": {"type": ["string", "null"]}},
            {"id": "cover", "type": "str", "required": False, "default": None, "schema": {"type": ["string", "null"]}},
            {
                "id": "headers",
                "type": "any",
                "required": False,
                "default": None,
                "schema": {"type": ["object", "null"]},
            },
            {"id": "anything", "type": "any", "required": False, "default": None},
        ],
        "async": False,
        "validate": "names",
    }


def test_a_module_that_cannot_be_imported_hides_only_itself(synthetic_description: Described) -> None:
    assert synthetic_description["problems"] == [
        {
            "module": "connector_synthetic.commands.broken",
            "message": "ModuleNotFoundError: No module named 'no_such_sdk'"
            " (add no_such_sdk, or the package that provides it, to requirements)",
        },
        {"module": "connector_synthetic.commands.exits", "message": "SystemExit: this module refuses to be imported"},
    ]


def test_string_annotations_mean_the_same_on_every_version(synthetic_description: Described) -> None:
    found = parameters(synthetic_description, "Strings")
    told = ("type", "required", "schema")
    assert {name: {key: entry[key] for key in told if key in entry} for name, entry in found.items()} == {
        "text": {"type": "str", "required": True},
        "maybe": {"type": "str", "required": False, "schema": {"type": ["string", "null"]}},
        "number": {"type": "int", "required": False, "schema": {"type": ["integer", "null"]}},
        "names": {"type": "any", "required": False, "schema": {"type": "array", "items": {"type": "string"}}},
        "table": {
            "type": "any",
            "required": False,
            "schema": {"type": "object", "additionalProperties": {"type": "integer"}},
        },
        "either": {"type": "any", "required": False, "schema": {"type": ["string", "integer"]}},
        "unknown": {"type": "any", "required": False},
        "missing": {"type": "any", "required": False},
        "mode": {"type": "any", "required": False, "schema": {"enum": ["fine", "coarse"]}},
        "level": {"type": "any", "required": False, "schema": {"enum": ["low", "high"]}},
        "ratio": {"type": "any", "required": False, "schema": {"type": "number"}},
        "sequence": {"type": "any", "required": False, "schema": {"type": "array", "items": {"type": "number"}}},
        "quoted": {"type": "bool", "required": False, "schema": {"type": ["boolean", "null"]}},
        "default": {"type": "any", "required": False},
        "pair": {"type": "any", "required": False, "schema": {"type": "array"}},
        "many": {"type": "any", "required": False, "schema": {"type": "array", "items": {"type": "integer"}}},
        "deep": {
            "type": "any",
            "required": False,
            "schema": {
                "anyOf": [
                    {
                        "type": "object",
                        "additionalProperties": {"type": "array", "items": {"type": ["integer", "null"]}},
                    },
                    {"type": "null"},
                ],
            },
        },
        "modes": {"type": "any", "required": False, "schema": {"type": "array", "items": {"enum": ["fine", "coarse"]}}},
        "level_or_none": {"type": "any", "required": False, "schema": {"enum": ["low", None]}},
    }


def test_quoted_parts_of_annotations_are_read(synthetic_description: Described) -> None:
    found = parameters(synthetic_description, "Quoted")
    assert {name: (entry["type"], entry["required"]) for name, entry in found.items()} == {
        "a": ("str", True),
        "b": ("str", False),
        "c": ("int", False),
        "d": ("str", False),
        "e": ("any", True),
        "f": ("any", True),
    }
    assert found["e"]["schema"]["items"] == {"type": "object", "additionalProperties": {"type": "boolean"}}
    assert found["f"]["schema"] == {"type": "array", "items": {"type": "string"}}


def test_google_docstrings_describe_parameters(synthetic_description: Described) -> None:
    found = parameters(synthetic_description, "Strings")
    assert named(synthetic_description["commands"], "Strings")["description"] == "Annotations that are strings."
    assert found["text"]["description"] == "Plain text."
    assert found["maybe"]["description"] == "Text or nothing."
    assert found["number"]["description"] == "A count: of pages."
    assert not any("nothing: much" in entry.get("description", "") for entry in found.values())


def test_defaults_are_told_when_json_can_hold_them(synthetic_description: Described) -> None:
    found = parameters(synthetic_description, "Strings")
    assert found["mode"]["default"] == "fine"
    assert found["names"]["default"] == []
    assert found["default"].keys() == {"id", "type", "required"}


def test_a_dataclass_has_no_generated_description(synthetic_description: Described) -> None:
    deep = named(synthetic_description["commands"], "Deep")
    assert "description" not in deep
    assert deep["module"] == "connector_synthetic.commands.nested.deep"
    assert [each["id"] for each in deep["parameters"]] == ["name", "colour"]


def test_kwargs_allow_additional_parameters(synthetic_description: Described) -> None:
    assert named(synthetic_description["commands"], "Everything") == {
        "name": "Everything",
        "description": "Takes whatever comes.",
        "module": "connector_synthetic.commands.legacy",
        "parameters": [{"id": "first", "type": "str", "required": True}],
        "async": False,
        "validate": "names",
        "additional_parameters": True,
    }


def test_execute_async_is_told(synthetic_description: Described) -> None:
    assert named(synthetic_description["commands"], "StartJob")["execute_async"] is True
    assert [entry["name"] for entry in synthetic_description["commands"] if "execute_async" in entry] == ["StartJob"]


def test_native_unions_and_generics_are_read(connector: Build, python: str) -> None:
    if python in (INTERPRETERS.get("3.8"), INTERPRETERS.get("3.9")):
        pytest.skip("str | None cannot be evaluated before 3.10")
    source = "def send(a: str | None, b: list[str | None], c: dict[str, int] | None): pass"
    found = parameters(connector({"fax.py": source}, module="fax.py").describe(), "send")
    assert (found["a"]["type"], found["a"]["required"]) == ("str", False)
    assert found["b"]["schema"] == {"type": "array", "items": {"type": ["string", "null"]}}
    assert found["c"]["required"] is False


def test_typing_aliases_are_seen_through(connector: Build) -> None:
    source = (
        "import typing\n"
        "from typing import *\n"
        "Number = NewType('Number', int)\n"
        "Text = Optional['str']\n"
        "class Row(TypedDict):\n    x: int\n"
        "class Odd:\n    pass\n"
        "def send(a: Number, b: Text, c: List[Row], d: Mapping[str, Odd], e: List, f: Callable[[str], int], g: Odd, "
        "h: 'Callable[[Nope], int]', i: 'not valid', j: Any, k: None, l: bytes): pass\n"
    )
    found = parameters(connector({"fax.py": source}, module="fax.py").describe(), "send")
    shapes = {name: (entry["type"], entry["required"], entry.get("schema")) for name, entry in found.items()}
    assert shapes == {
        "a": ("int", True, None),
        "b": ("str", False, {"type": ["string", "null"]}),
        "c": ("any", True, {"type": "array", "items": {"type": "object"}}),
        "d": ("any", True, {"type": "object"}),
        "e": ("any", True, {"type": "array"}),
        "f": ("any", True, None),
        "g": ("any", True, None),
        "h": ("any", True, None),
        "i": ("any", True, None),
        "j": ("any", True, None),
        "k": ("any", False, {"type": "null"}),
        "l": ("any", True, None),
    }


def test_a_package_may_lack_auths_or_commands(connector: Build) -> None:
    auth = "class A:\n    app_description = print\n"
    files = {"connector_x/__init__.py": "", "connector_x/auths/__init__.py": auth}
    described = connector(files, package="connector_x").describe()
    assert described["commands"] == []
    assert [entry["name"] for entry in described["auths"]] == ["A"]
    assert described["problems"] == []


def test_a_package_that_cannot_be_imported_is_one_problem(connector: Build) -> None:
    host = connector({"connector_x/__init__.py": "1/0"}, package="connector_x")
    problem = {"module": "connector_x", "message": "ZeroDivisionError: division by zero"}
    assert host.describe() == {"commands": [], "auths": [], "problems": [problem]}


def test_a_package_that_is_not_installed_is_one_problem(connector: Build) -> None:
    described = connector({}, package="connector_absent").describe()
    missing = "ModuleNotFoundError: No module named 'connector_absent'"
    hint = "(add connector_absent, or the package that provides it, to requirements)"
    problem = {"module": "connector_absent", "message": f"{missing} {hint}"}
    assert described["problems"] == [problem]


def test_of_two_commands_of_one_name_the_last_wins_and_it_is_told(connector: Build) -> None:
    command = "class Send:\n    def execute(self, config, task_data):\n        return __name__\n"
    files = {"connector_x/__init__.py": "", "connector_x/commands/__init__.py": ""}
    files.update({"connector_x/commands/a.py": command, "connector_x/commands/b.py": command})
    host = connector(files, package="connector_x")
    described = host.describe()
    assert [entry["module"] for entry in described["commands"]] == ["connector_x.commands.b"]
    hidden = {"module": "connector_x.commands.a", "message": "Send is hidden by the one in connector_x.commands.b"}
    assert described["problems"] == [hidden]
    assert host.execute("Send").value == "connector_x.commands.b"


# ---- execute: packages of classes


@pytest.mark.parametrize("flask", ["1/0", "class Flask:\n    def __init__(self, *a, **k):\n        1/0\n"])
def test_a_broken_flask_is_told_and_stops_nobody_who_does_not_use_it(connector: Build, flask: str) -> None:
    command = "class Send:\n    def execute(self, config, task_data):\n        return config['line']\n"
    files = {"flask.py": flask, "connector_x/__init__.py": "", "connector_x/commands/__init__.py": ""}
    files["connector_x/commands/send.py"] = command
    reply = connector(files, package="connector_x").execute("Send", config={"line": "2"})
    assert (reply.status, reply.value) == (0, "2")
    assert reply.log == "flask.current_app cannot be provided: ZeroDivisionError: division by zero\n"


def test_a_version_2_result_passes_unchanged(synthetic: Host) -> None:
    params = {"to": "+47 ☃", "pages": 2}
    reply = synthetic.execute("SendFax", params, config={"FAX_LINE": "2"}, task_data={"case": "é"})
    assert reply.status == 0
    assert reply.value == {
        "command_response_version": 2,
        "command_response": {
            "body": {"sent": "+47 ☃ 2", "line": 2, "case": "é"},
            "mimetype": "application/json",
            "http_status": 200,
        },
        "error": None,
        "spiff__logs": ["sent ☃"],
    }
    assert "☃" in reply.stdout, "the text is UTF-8, not escapes"


def test_a_legacy_result_passes_unchanged(synthetic: Host) -> None:
    reply = synthetic.execute("JoinWords", {"left": "a", "right": "b"})
    assert reply.status == 0
    assert reply.value == {"response": '{"left": "a", "right": "b"}', "status": "200", "mimetype": "application/json"}


def test_an_error_that_the_connector_tells_is_a_result(synthetic: Host) -> None:
    reply = synthetic.execute("Refuse")
    assert (reply.status, reply.value["http_status"]) == (0, 503)


def test_only_the_named_module_is_imported(synthetic: Host) -> None:
    reply = synthetic.execute("JoinWords", {"left": "", "right": ""}, module="connector_synthetic.commands.legacy")
    assert (reply.status, reply.log) == (0, "")


def test_a_search_imports_first_what_mentions_the_command(synthetic: Host) -> None:
    reply = synthetic.execute("JoinWords", {"left": "", "right": ""})
    assert (reply.status, reply.log) == (0, ""), "noisy.py was imported"


def test_a_named_module_that_fails_is_the_connectors_own_failure(synthetic: Host) -> None:
    reply = synthetic.execute("Broken", module="connector_synthetic.commands.broken")
    assert reply.error["error_code"] == "ModuleNotFoundError"
    assert reply.error["raised"] is True


@pytest.mark.parametrize(
    "module",
    ["connector_synthetic.commands.nested.deep", "connector_synthetic.commands.gone.away", "os", "", None, 3],
)
def test_a_command_that_is_not_in_the_named_module_is_searched(synthetic: Host, module: object) -> None:
    assert synthetic.execute("StartJob", module=module).value["mode"] == "sync"


def test_an_unknown_command_is_told_with_the_modules_that_failed(synthetic: Host) -> None:
    error = synthetic.execute("Broken").error
    assert error["error_code"] == "command_not_found"
    assert "connector_synthetic has no command Broken" in error["message"]
    assert "connector_synthetic.commands.broken could not be imported: ModuleNotFoundError" in error["message"]


@pytest.mark.parametrize("name", ["Formatter", "OAuth", "SimpleAuth", "warmup"])
def test_what_is_not_listed_cannot_be_run(synthetic: Host, name: str) -> None:
    assert synthetic.execute(name).error["error_code"] == "command_not_found"


def test_parameters_that_do_not_fit_are_all_named(synthetic: Host) -> None:
    error = synthetic.execute("SendFax", {"fax": 1, "to": "x", "self": 2}).error
    message = "missing parameter 'pages'; unknown parameter 'fax'; unknown parameter 'self'"
    assert error == {"error_code": "invalid_parameters", "message": message}


def test_additional_parameters_reach_kwargs(synthetic: Host) -> None:
    params = {"first": "a", "args": 1, "b": [2]}
    assert synthetic.execute("Everything", params).value == params


def test_classes_receive_raw_values_and_none_for_what_is_not_required(synthetic: Host) -> None:
    reply = synthetic.execute("Strings", {"text": "t", "mode": "coarse"})
    assert reply.value == {"mode": "coarse", "maybe": None, "raw": "str"}


def test_a_dataclass_is_a_command_and_a_result(synthetic: Host) -> None:
    assert synthetic.execute("Deep", {"name": "n"}).value == {"name": "n", "colour": "red"}


def test_execute_async_runs_when_there_is_a_callback(synthetic: Host) -> None:
    context = {"callback_url": "http://gateway/callback"}
    reply = synthetic.execute("StartJob", context=context, config={"FAX_LINE": "1"})
    assert reply.value == {"mode": "async", "callback_url": "http://gateway/callback", "line": "1"}


@pytest.mark.parametrize("context", [{}, {"callback_url": None}, {"callback_url": ""}, None])
def test_execute_runs_when_there_is_no_callback(synthetic: Host, context: object) -> None:
    assert synthetic.execute("StartJob", context=context).value == {"mode": "sync", "line": 7}


def test_a_command_without_execute_async_ignores_the_callback(synthetic: Host) -> None:
    assert synthetic.execute("Refuse", context={"callback_url": "http://x"}).status == 0


def test_a_coroutine_is_awaited(synthetic: Host) -> None:
    assert synthetic.execute("Coroutine").value == {"awaited": True}


def test_noise_on_stdout_goes_to_the_log(synthetic: Host) -> None:
    reply = synthetic.execute("Noisy")
    assert reply.stdout == '{"stdin":"","raw":"","said":true}\n'
    assert reply.log.splitlines() == [
        "import noise",
        '{"result": "not this one"}',
        "raw noise",
        "child noise",
        "grandchild noise",
    ]


# ---- functions


def test_public_functions_and_classes_with_execute_are_commands(functions_description: Described) -> None:
    assert [entry["name"] for entry in functions_description["commands"]] == [
        *("AsClass", "shout", "send", "parts", "open_ended", "default_reserved", "later"),
        *("echo", "size", "nothing", "give", "loop", "fail"),
    ]
    assert (functions_description["auths"], functions_description["problems"]) == ([], [])


def test_a_function_is_described_in_full(functions_description: Described) -> None:
    choices = {"enum": ["fine", "coarse"]}
    modes = {"anyOf": [{"type": "array", "items": choices}, {"type": "null"}]}
    assert named(functions_description["commands"], "send") == {
        "name": "send",
        "description": "Send a fax.",
        "module": "functions",
        "parameters": [
            {"id": "to", "type": "str", "required": True, "description": "The number."},
            {"id": "pages", "type": "int", "required": False, "default": 1},
            {"id": "mode", "type": "any", "required": False, "default": "fine", "schema": choices},
            {"id": "modes", "type": "any", "required": False, "default": None, "schema": modes},
            {"id": "dry_run", "type": "bool", "required": False, "default": False},
        ],
        "async": False,
    }


def test_reserved_names_are_not_parameters_of_functions(functions_description: Described) -> None:
    assert list(parameters(functions_description, "parts")) == ["text"]
    assert list(parameters(functions_description, "default_reserved")) == []
    assert list(parameters(functions_description, "AsClass")) == ["config"], "a class has no reserved names"


def test_a_function_receives_members_of_its_enums(functions: Host) -> None:
    reply = functions.execute("send", {"to": "x", "mode": "coarse", "modes": ["fine"]})
    assert reply.value["mode"] == "<Mode.COARSE: 'coarse'>"
    assert reply.value["modes"] == "[<Mode.FINE: 'fine'>]"


def test_a_value_that_the_enum_lacks_is_an_invalid_parameter(functions: Host) -> None:
    error = functions.execute("send", {"mode": "nope"}).error
    message = "missing parameter 'to'; parameter 'mode' must be one of 'fine', 'coarse'"
    assert error == {"error_code": "invalid_parameters", "message": message}


def test_reserved_names_receive_parts_of_the_request(functions: Host) -> None:
    parts = {"config": {"A": 1}, "task_data": {"b": 2}, "context": {"client": "c"}}
    assert functions.execute("parts", {"text": "t"}, **parts).value == {"text": "t", **parts}
    assert functions.execute("default_reserved", {}, **parts).value == [{"A": 1}, {"client": "c"}]


def test_reserved_names_cannot_be_sent_as_parameters(functions: Host) -> None:
    error = functions.execute("parts", {"text": "t", "config": {}}).error
    assert error["message"] == "unknown parameter 'config'"


def test_classes_among_functions_follow_their_own_convention(functions: Host) -> None:
    assert functions.execute("AsClass", {"config": "a"}, config={"b": 1}).value == ["a", {"b": 1}]


def test_a_function_may_take_additional_parameters(functions: Host) -> None:
    assert functions.execute("open_ended", {"first": 1, "x": 2}).value == {"first": 1, "more": {"x": 2}}


def test_a_coroutine_function_is_awaited(functions: Host) -> None:
    assert functions.execute("later", {"text": "☃"}).value == "☃"


@pytest.mark.parametrize("name", ["_hidden", "warmup", "dataclass", "Mode", "LINES"])
def test_private_imported_and_reserved_names_are_no_commands(functions: Host, name: str) -> None:
    assert functions.execute(name).error["error_code"] == "command_not_found"


def test_dunder_all_decides_what_is_exported(connector: Build) -> None:
    files = {
        "connector_f/__init__.py": "from .sending import send\n__all__ = ['send', '_own', 'gone', 'warmup']\n"
        "def _own(): return 1\ndef other(): pass\ndef warmup(): pass\n",
        "connector_f/sending.py": "def send(to: str): return to\n",
    }
    host = connector(files, package="connector_f")
    described = host.describe()
    assert [entry["name"] for entry in described["commands"]] == ["send", "_own"]
    assert described["problems"] == [{"module": "connector_f", "message": "__all__ names gone, which is not there"}]
    assert host.execute("send", {"to": "x"}, module="connector_f").value == "x"
    assert host.execute("other").error["error_code"] == "command_not_found"


def test_a_file_may_import_its_neighbours(connector: Build) -> None:
    files = {"fax.py": "import lines\ndef send(): return lines.LINE\n", "lines.py": "LINE = 2\n"}
    assert connector(files, module="fax.py").execute("send").value == 2


def test_a_file_named_like_the_standard_library_shadows_nothing(connector: Build) -> None:
    source = "import email.message, json\ndef send(): return email.message.__name__\n"
    files = {"email.py": source, "json.py": "1/0", "host.py": "LINE = 3"}
    host = connector(files, module="email.py")
    assert host.execute("send").value == "email.message"
    assert [entry["module"] for entry in host.describe()["commands"]] == ["email"]


def test_the_hosts_own_modules_cannot_be_imported_by_accident(connector: Build) -> None:
    source = "import host, errors\ndef send(): return [host.X, errors.X]\n"
    files = {"fax.py": source, "host.py": "X=1", "errors.py": "X=2"}
    assert connector(files, module="fax.py").execute("send").value == [1, 2]


def test_a_file_with_an_odd_name_is_loaded(connector: Build) -> None:
    host = connector({"fax-line.v2.py": "def send(): return __name__\n"}, module="fax-line.v2.py")
    assert host.execute("send").value == "_connector_fax-line_v2"


def test_a_file_that_is_missing_is_a_problem(connector: Build) -> None:
    (problem,) = connector({}, module="gone.py").describe()["problems"]
    assert problem["module"] == "gone"
    assert problem["message"].startswith("FileNotFoundError")


def test_positional_only_parameters_are_passed_by_position(connector: Build) -> None:
    source = "def send(a, b=2, /, c=3, *rest, d=4): return [a, b, c, d]\n"
    host = connector({"fax.py": source}, module="fax.py")
    assert host.execute("send", {"a": 1, "d": 5}).value == [1, 2, 3, 5]
    assert host.execute("send", {"b": 1}).error["message"] == "missing parameter 'a'"


# ---- errors


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("value", "ValueError", "no ☃ here"),
        ("silent", "KeyError", "KeyError"),
        ("base", "Interrupted", "stop"),
        ("unprintable", "Unprintable", "Unprintable"),
        ("surrogate", "OSError", "bad name ?"),
        ("type", "TypeError", "from inside"),
        ("cancelled", "CancelledError", "CancelledError"),
        ("exit3", "SystemExit", "3"),
        ("exit_text", "SystemExit", "the line is dead"),
    ],
)
def test_what_the_connector_raises_is_told_and_logged(functions: Host, kind: str, code: str, message: str) -> None:
    reply = functions.execute("fail", {"kind": kind})
    assert reply.error == {"error_code": code, "message": message, "raised": True}
    assert "Traceback" in reply.log
    assert "functions.py" in reply.log
    assert "_connector_host" not in reply.log, "the host's frames help nobody"


def test_text_without_a_utf_8_form_in_a_request_is_no_crash(functions: Host) -> None:
    error = functions.execute("\ud800").error
    assert error == {"error_code": "command_not_found", "message": "functions has no command ?"}
    assert "unknown parameter '?'" in functions.execute("nothing", {"\ud800": 1}).error["message"]


def test_an_entry_without_a_utf_8_form_hides_only_itself(connector: Build) -> None:
    source = "def good(): pass\ndef bad(): pass\nbad.__doc__ = '\\ud800'\n"
    described = connector({"fax.py": source}, module="fax.py").describe()
    assert [entry["name"] for entry in described["commands"]] == ["good"]
    assert described["problems"][0]["message"].startswith("InvalidOutputError: $.description is text that holds")


def test_an_exit_with_status_0_is_no_result(functions: Host) -> None:
    error = functions.execute("fail", {"kind": "exit0"}).error
    assert error["error_code"] == "connector_invalid_output"
    assert error["invalid_output"] is True


@pytest.mark.parametrize(
    "document",
    [
        *(b"", b"{", b"[]", b"\xff", b"{} {}", b"[" * 200_000, b'{"op": "explode"}', b'{"op": "execute"}'),
        b'{"op": "execute", "command": "echo", "params": []}',
        b'{"op": "execute", "command": "echo", "config": 1}',
    ],
    ids=range(10),
)
def test_a_request_that_makes_no_sense_is_told(functions: Host, document: bytes) -> None:
    reply = functions.run(document)
    assert reply.error["error_code"] == "invalid_request"
    assert "Traceback" not in reply.log


def test_null_and_absent_parts_of_a_request_are_empty(functions: Host) -> None:
    assert functions.request(op="execute", command="default_reserved", params=None, config=None).value == [{}, {}]


def test_a_byte_order_mark_is_no_obstacle(functions: Host) -> None:
    assert functions.run(b"\xef\xbb\xbf" + b'{"op":"execute","command":"nothing"}').stdout == "null\n"


@pytest.mark.parametrize("arguments", [[], ["--package"], ["--wrong", "x"], ["--package", "a", "b"]])
def test_a_wrong_command_line_is_told_on_stderr(python: str, arguments: list[str]) -> None:
    reply = Host(python, arguments).run(b"{}")
    assert (reply.status, reply.stdout) == (2, "")
    assert reply.log.startswith("usage:")


# ---- results as JSON


ENCODED = [
    ("decimal.Decimal('0.10')", "0.10"),
    ("decimal.Decimal(3)", "3"),
    ("datetime.datetime(2024, 1, 2, 3, 4, tzinfo=datetime.timezone.utc)", "2024-01-02T03:04:00+00:00"),
    ("datetime.date(2024, 1, 2)", "2024-01-02"),
    ("datetime.time(3, 4)", "03:04:00"),
    ("datetime.timedelta(minutes=1, milliseconds=500)", 60.5),
    ("uuid.UUID(int=1)", "00000000-0000-0000-0000-000000000001"),
    ("b'\\x00\\xff'", "AP8="),
    ("bytearray(b'a')", "YQ=="),
    ("memoryview(b'a')", "YQ=="),
    ("{3, 1, 2}", [1, 2, 3]),
    ("frozenset(['b', 'a'])", ["a", "b"]),
    ("{'a', 1}", [1, "a"]),
    ("(1, (2,))", [1, [2]]),
    ("Point(1, 2)", [1, 2]),
    ("Page(1, datetime.date(2024, 1, 2))", {"number": 1, "made": "2024-01-02", "next": None}),
    ("Mode.FINE", "fine"),
    ("Level.LOW", 1),
    ("pathlib.Path('/tmp/☃')", "/tmp/☃"),
    ("{1: 'a', 2.5: 'b', True and None: 'c', False: 'd'}", {"1": "a", "2.5": "b", "null": "c", "false": "d"}),
    ("{uuid.UUID(int=1): 1}", {"00000000-0000-0000-0000-000000000001": 1}),
    ("{Mode.FINE: {datetime.date(2024, 1, 2): decimal.Decimal(1)}}", {"fine": {"2024-01-02": "1"}}),
    ("types.MappingProxyType({'a': 1})", {"a": 1}),
    ("collections.ChainMap({'a': 1})", {"a": 1}),
    ("collections.OrderedDict(b=1, a=2)", {"b": 1, "a": 2}),
    ("collections.deque([1])", [1]),
    ("range(3)", [0, 1, 2]),
    ("{'a': 1}.keys()", ["a"]),
    ("{'a': 1}.values()", [1]),
    ("'☃'", "☃"),
    ("10 ** 40", 10**40),
    ("[[1]] * 2", [[1], [1]]),  # the same object twice is no circle
    ("(n for n in [1])", [1]),
    ("zip('ab', map(str, [1, 2]))", [["a", "1"], ["b", "2"]]),
    ("array.array('i', [1, 2])", [1, 2]),
    ("fractions.Fraction(1, 3)", "1/3"),
    ("[ipaddress.ip_address('::1'), ipaddress.ip_network('10.0.0.0/8')]", ["::1", "10.0.0.0/8"]),
    ("collections.UserString('ab')", "ab"),
    ("None", None),
    ("True", True),
]


def test_values_beyond_json_have_one_documented_form(functions: Host) -> None:
    expressions = ", ".join(f"'{at}': {expression}" for at, (expression, _) in enumerate(ENCODED))
    reply = functions.execute("give", {"expression": "{" + expressions + "}"})
    assert list(reply.value.values()) == [expected for _, expected in ENCODED]


def test_the_forms_are_the_same_when_the_fast_way_fails(functions: Host) -> None:
    """A UUID as a key makes `json` give up, and each value is then converted piece by piece."""
    quick = [(expression, expected) for expression, expected in ENCODED if "{uuid" not in expression]
    expressions = ", ".join(f"'{at}': {expression}" for at, (expression, _) in enumerate(quick))
    reply = functions.execute("give", {"expression": "{" + expressions + ", uuid.UUID(int=1): 0}"})
    assert list(reply.value.values()) == [*(expected for _, expected in quick), 0]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("{'body': {'items': [1, {}, 2, {'x': Socket()}]}}", "$.body.items[3].x is a Socket, which has no JSON form"),
        ("{'a b': [object()]}", '$["a b"][0] is an object, which has no JSON form'),
        ("Socket()", "$ is a Socket, which has no JSON form"),
        ("[1, float('nan')]", "$[1] is nan, which has no JSON form"),
        ("{'x': float('-inf')}", "$.x is -inf, which has no JSON form"),
        ("[decimal.Decimal('NaN')]", "$[0] is Decimal('NaN'), which has no JSON form"),
        ("{'x': ['ok \\ud800']}", "$.x[0] is text that holds a lone surrogate (character 3), which has no UTF-8 form"),
        ("{'x': {'\\ud800': 1}}", "$.x has a key that holds a lone surrogate (character 0), which has no UTF-8 form"),
        ("{'x': {(1, 2): 1}}", "$.x has a key of type tuple, which has no JSON form"),
        ("{'x': {float('nan'): 1}}", "$.x has the key nan, which has no JSON form"),
        ("{'a': [itertools.count()]}", "$.a[0] yields more than 1000000 values"),
        ("itertools.count()", "$ yields more than 1000000 values"),
        ("_counts()", "$ yields more than 1000000 values"),
        ("{'a': _counts()}", "$.a is an async_generator, which has no JSON form"),
        ("[map(int, 'x')]", "$[0] could not be read: ValueError: invalid literal for int() with base 10: 'x'"),
        ("{'a': io.StringIO('x')}", "$.a is a StringIO, which has no JSON form"),
        ("[10 ** 5000]", "$[0] is an integer of more digits than Python writes"),
        ("[1j]", "$[0] is a complex, which has no JSON form"),
        ("{'f': len}", "$.f is a builtin_function_or_method, which has no JSON form"),
        ("Page(1, Socket())", "$.made is a Socket, which has no JSON form"),
        ("[ValueError('x')]", "$[0] is a ValueError, which has no JSON form"),
        ("[threading.Lock()]", "$[0] is a lock, which has no JSON form"),
    ],
)
def test_what_has_no_json_form_is_named_by_its_path(functions: Host, expression: str, message: str) -> None:
    error = functions.execute("give", {"expression": expression}).error
    assert error == {"error_code": "connector_invalid_output", "message": message, "invalid_output": True}


@pytest.mark.parametrize(("kind", "path"), [("list", "$.body[0].again"), ("dataclass", "$.body.next")])
def test_circular_references_are_named_by_their_path(functions: Host, kind: str, path: str) -> None:
    error = functions.execute("loop", {"kind": kind}).error
    assert error["message"] == f"{path} refers back to something that contains it, which has no JSON form"


def test_nesting_without_end_is_no_crash(functions: Host) -> None:
    error = functions.execute("loop", {"kind": "deep"}).error
    assert error["invalid_output"] is True
    assert "nested too deeply" in error["message"]
    assert len(error["message"]) < 300


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("(n for n in [1, decimal.Decimal(2)])", [1, "2"]),
        ("_counts(2)", [0, 1]),
        ("_awaits(_counts(2))", [0, 1]),
        ("_awaits(n for n in [1])", [1]),
        (
            "{'response': b'\\xff\\x00', 'mimetype': 'image/png', 'status': 200}",
            {"response": "/wA=", "mimetype": "image/png", "status": 200, "encoding": "base64"},
        ),
        ("b'\\xff\\x00'", "/wA="),
        ("'plain text'", "plain text"),
    ],
)
def test_a_result_comes_in_whatever_way_python_has(functions: Host, expression: str, result: object) -> None:
    reply = functions.execute("give", {"expression": expression})
    assert (reply.status, reply.value, reply.log) == (0, result, "")


@pytest.mark.parametrize("expression", ["map(int, 'x')", "_counts(2, ValueError(\"invalid literal: 'x'\"))"])
def test_what_a_generator_raises_is_the_connectors_own_failure(functions: Host, expression: str) -> None:
    error = functions.execute("give", {"expression": expression}).error
    assert (error["error_code"], error["raised"]) == ("ValueError", True)
    assert error["message"].startswith("invalid literal")


LIBRARIES = """
import attrs, datetime, decimal, msgspec, pydantic

class Line(pydantic.BaseModel):
    sku: str
    price: decimal.Decimal
    link: pydantic.AnyUrl
    key: pydantic.SecretStr = pydantic.SecretStr("hush")

@attrs.define
class Order:
    lines: list
    made: datetime.date

class Reply(msgspec.Struct):
    orders: list

def Give():
    return Reply([Order([Line(sku="a", price="0.10", link="http://a.example")], datetime.date(2024, 1, 2))])
"""


def test_objects_of_well_known_libraries_are_objects(tmp_path: Path) -> None:
    (tmp_path / "libraries.py").write_text(LIBRARIES)
    line = {"sku": "a", "price": "0.10", "link": "http://a.example/", "key": "**********"}
    reply = Host(sys.executable, ["--module", str(tmp_path / "libraries.py")]).execute("Give")
    assert reply.value == {"orders": [{"lines": [line], "made": "2024-01-02"}]}


def test_nothing_returned_is_null(functions: Host) -> None:
    reply = functions.execute("nothing")
    assert (reply.status, reply.stdout, reply.log) == (0, "null\n", "said nothing\n")


def test_large_payloads_pass_both_ways(functions: Host) -> None:
    value = ["☃" * 1_000_000, {"rows": [[n, "x" * 90] for n in range(20_000)]}]
    reply = functions.execute("echo", {"value": value})
    assert len(reply.stdout.encode()) > 5_000_000 - 400_000
    assert reply.value == value


def test_a_child_process_inherits_no_result_channel(connector: Build) -> None:
    source = (
        "import subprocess\n"
        "def send(): return subprocess.check_output(['sh', '-c', 'ls /proc/$$/fd'], close_fds=False).decode().split()\n"
    )
    assert connector({"fax.py": source}, module="fax.py").execute("send").value == ["0", "1", "2"]


def test_large_logs_do_not_block_the_result(connector: Build) -> None:
    host = connector({"fax.py": "def send():\n    print('x' * 5_000_000)\n    return 'done'\n"}, module="fax.py")
    reply = host.execute("send")
    assert (reply.value, len(reply.log)) == ("done", 5_000_001)


def test_the_result_is_written_at_exit_even_when_the_connector_closes_stdout(connector: Build) -> None:
    source = "import os, sys\ndef send():\n    sys.stdout.close()\n    return 'done'\n"
    assert connector({"fax.py": source}, module="fax.py").execute("send").value == "done"


def test_an_error_is_told_even_when_the_connector_closes_stderr(connector: Build) -> None:
    source = "import sys\ndef send():\n    sys.stderr.close()\n    raise ValueError('x')\n"
    assert connector({"fax.py": source}, module="fax.py").execute("send").error["error_code"] == "ValueError"


def test_every_class_of_a_package_is_a_command_an_alias_and_an_abstract_base_too(connector: Build) -> None:
    source = (
        "import abc\n"
        "class Base(abc.ABC):\n    @abc.abstractmethod\n    def execute(self, config, task_data): ...\n"
        "class Send(Base):\n    def execute(self, config, task_data): return 1\n"
        "SendFax = Send\n"
    )
    files = {"connector_x/__init__.py": "", "connector_x/commands/__init__.py": source}
    host = connector(files, package="connector_x")
    assert [entry["name"] for entry in host.describe()["commands"]] == ["Base", "Send", "SendFax"]
    assert host.execute("SendFax").value == 1


def test_multiprocessing_runs_functions_of_a_file(connector: Build) -> None:
    source = (
        "import multiprocessing\n"
        "def _double(n): return 2 * n\n"
        "def send():\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        return pool.map(_double, [1])\n"
    )
    assert connector({"fax.py": source}, module="fax.py").execute("send").value == [2]


# ---- signals and the core


def test_sigterm_ends_the_process_as_it_always_does(connector: Build) -> None:
    source = "import signal, sys\ndef send():\n    print('ready', flush=True)\n    signal.pause()\n"
    host = connector({"fax.py": source}, module="fax.py")
    process = subprocess.Popen(
        [host.python, str(HOST), *host.arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin
    assert process.stderr
    assert process.stdout
    with process:
        process.stdin.write(b'{"op":"execute","command":"send"}')
        process.stdin.close()
        assert process.stderr.readline() == b"ready\n"
        process.terminate()
        assert process.wait(PATIENCE) == -15
        assert process.stdout.read() == b""


CORE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from _connector_host import handler, targets
target = targets.from_arguments(["--package", "connector_synthetic"])
problems = handler.warm_up(target)
request = {"op": "execute", "command": "JoinWords", "params": {"left": "a", "right": "b"}}
outcomes = [handler.handle(request, target) for _ in range(3)]
handler.handle({"op": "describe"}, target)
print(json.dumps([len(problems), [o["exit_status"] for o in outcomes], json.loads(outcomes[2]["body"])["status"]]))
"""


def test_one_process_can_warm_up_and_handle_many_requests(synthetic: Host) -> None:
    done = subprocess.run(
        [synthetic.python, "-c", CORE, str(ROOT / "runners" / "python")],
        env={"PYTHONPATH": synthetic.path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stdout.splitlines() == [b"import noise", b"warm", b'[2, [0, 0, 0], "200"]'], done.stderr


def test_a_start_does_not_import_what_it_does_not_need(python: str) -> None:
    code = "import sys, traceback; python_needs = set(sys.modules)\n"  # from 3.14 on, dataclasses
    code += f"sys.argv = ['host.py']; sys.path.insert(0, {str(HOST.parent)!r}); import host\n"
    code += "unneeded = {'asyncio', 'decimal', 'argparse', 'pathlib', 'pkgutil', 'dataclasses'} - python_needs\n"
    code += "print(unneeded & set(sys.modules))"
    done = subprocess.run([python, "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "set()\n", done.stderr


def test_an_interpreter_was_found() -> None:
    assert INTERPRETERS.keys() & set(VERSIONS), f"none of {VERSIONS} is installed"


@pytest.mark.parametrize("file", sorted(HOST.parent.rglob("*.py")), ids=lambda file: file.name)
def test_the_host_is_written_in_the_oldest_python(file: Path) -> None:
    ast.parse(file.read_text(), feature_version=(3, 8))
