import json
import shutil
import subprocess

import pytest

from tests.runners.hosts import CONNECTORS, RUNNERS, TEST_CONNECTORS, Conversation, describe, execute, send

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node here")

HOST = RUNNERS / "node" / "host.mjs"


def node(module: str, *options: str) -> list[str]:
    return ["node", str(HOST), *options, str(TEST_CONNECTORS / "node" / module)]


PROBE = node("probe.mjs")
RESULTS = node("results.mjs")


@pytest.fixture
def conversation():
    with Conversation(node("probe.mjs", "--lines")) as one:
        yield one


def test_one_module_serves_a_request_a_line(conversation):
    results = [conversation.execute("Count") for _ in range(3)]
    assert results == [{"count": number, "text": "a\nb\u2028c"} for number in (1, 2, 3)]
    text = "æ☃😀\u2028" * 100_000
    conversation.send(
        json.dumps({"op": "execute", "command": "Echo", "params": {"text": text}}, ensure_ascii=False).encode()
    )
    assert json.loads(conversation.receive())["params"] == {"text": text}
    outcome = conversation.end()
    assert (outcome.status, outcome.fd3, outcome.log) == (0, b"", "")


def test_two_lines_in_one_piece_are_two_requests(conversation):
    conversation.send(b"\n".join([b'{"op": "execute", "command": "Count"}'] * 2))
    assert [json.loads(conversation.receive())["count"] for _ in range(2)] == [1, 2]


def test_what_fails_in_line_mode_is_told_and_the_next_request_is_served(conversation):
    assert conversation.execute("Raise")["error"]["error_code"] == "QuotaExceeded"
    assert conversation.execute("Circle")["error"]["error_code"] == "connector_invalid_output"
    conversation.send(b"{")
    assert json.loads(conversation.receive())["error"]["error_code"] == "invalid_request"
    assert conversation.execute("Print") == {}
    assert conversation.execute("ReadStdin") == 0
    assert conversation.end().log.splitlines()[-4:] == ["logged æ", "info", "written", "imported"]


def test_what_fails_outside_of_any_promise_is_told_and_ends_the_process(conversation):
    assert conversation.execute("RaiseInTimer")["error"]["error_code"] == "QuotaExceeded"
    assert conversation.receive() == b""
    assert conversation.end().status == 1


def test_a_module_that_cannot_be_loaded_is_told_on_every_line():
    with Conversation(node("broken.mjs", "--lines")) as broken:
        errors = [broken.execute("Any")["error"] for _ in range(2)]
    assert errors[0] == errors[1]
    assert errors[0]["raised"]


def test_a_command_gets_its_params_and_what_the_host_knows():
    more = {"config": {"LINE": "2"}, "task_data": {"a": 1}, "context": {"request_id": "r"}}
    outcome = execute(PROBE, "Echo", {"text": "æ☃😀"}, more=more)
    assert outcome.status == 0
    assert outcome.result == {"params": {"text": "æ☃😀"}, "host": more}


def test_values_that_json_does_not_know_are_encoded():
    assert execute(PROBE, "Values").result == {
        "big": 12,
        "bigger": "18446744073709551616",
        "list": [None, [1], [1]],
        "date": "1970-01-01T00:00:00.000Z",
        "bytes": "aGk=",
        "view": "aGk=",
        "floats": [0.5],
        "map": {"a": 1},
        "pairs": [[1, "a"]],
        "set": [1, 2],
        "error": {"name": "TypeError", "message": "no"},
        "url": "http://localhost/",
        "nested": {"x": 1},
        "__proto__": "own",
        "text": "æ☃😀",
    }


def test_a_command_that_returns_nothing_gives_null():
    assert execute(PROBE, "Nothing").stdout == b"null\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("Circle", "result.order.lines[0].order refers back to an object that contains it"),
        ("NotANumber", "result.sums[1] is NaN, which JSON cannot hold"),
    ],
)
def test_a_result_that_json_cannot_hold_is_invalid_output_with_the_path(command, message):
    outcome = execute(PROBE, command)
    assert outcome.status == 1
    assert outcome.error == {"error_code": "connector_invalid_output", "message": message, "invalid_output": True}


@pytest.mark.parametrize(
    ("command", "result"),
    [
        ("Callback", {"called": "t"}),
        ("CallbackAtOnce", "t"),
        ("CallbackLast", {"line": 2}),
        ("CallbackOrPromise", "function"),
        ("Documented", "t"),
        ("Generator", [1, {"a": "1970-01-01T00:00:00.000Z"}]),
        ("AsyncGenerator", [1, "aGk="]),
        ("Thenable", "then"),
        ("ByteStream", "aGk="),
        ("WebStream", "aGk="),
        ("TextStream", "hi"),
        ("Rows", [{"a": 1}, {"a": 2}]),
        (
            "LegacyBytes",
            {"response": "/wA=", "mimetype": "application/octet-stream", "status": 200, "encoding": "base64"},
        ),
        (
            "Inside",
            {
                "generator": [1, {"a": "1970-01-01T00:00:00.000Z"}],
                "search": [["a", "1"]],
                "keys": ["k"],
                "empty": {},
                "bare": {},
                "boxed": 1,
                "json": 5,
            },
        ),
    ],
)
def test_a_result_comes_in_whatever_way_node_has(command, result):
    outcome = execute(RESULTS, command, {"text": "t"}, more={"config": {"line": 2}})
    assert (outcome.status, outcome.result, outcome.log) == (0, result, "")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("Endless", "result yields more than 1000000 values"),
        ("APromise", "result.a[0] is a Promise, which has no JSON form"),
        ("AResponse", "result.a is a Response, which has no JSON form"),
        ("ARegExp", "result[0] is a RegExp, which has no JSON form"),
        ("ASymbol", "result.a is a symbol, which has no JSON form"),
        ("AFunction", "result is a function, which has no JSON form"),
        ("AFunctionInAList", "result[0] is a function, which has no JSON form"),
        ("AnAsyncGenerator", "result.a is an AsyncGenerator that nobody has read"),
    ],
)
def test_what_has_no_json_form_is_invalid_output_with_path_and_type(command, message):
    outcome = execute(RESULTS, command)
    assert outcome.status == 1
    assert outcome.error == {"error_code": "connector_invalid_output", "message": message, "invalid_output": True}


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("CallbackFails", "NoCredit", "no credit"),
        ("CallbackThrows", "RangeError", "at once"),
        ("CallbackNever", "UnsettledPromise", "the connector waits for something that never comes"),
        ("AsyncGeneratorFails", "RangeError", "half way"),
    ],
)
def test_what_a_callback_or_a_generator_says_is_wrong_is_raised(command, code, message):
    assert execute(RESULTS, command).error == {"error_code": code, "message": message, "raised": True}


def test_a_callback_is_no_parameter():
    [documented] = [one for one in describe(RESULTS).result["commands"] if one["name"] == "Documented"]
    assert [one["id"] for one in documented["parameters"]] == ["text"]


def test_a_large_result_is_written_in_full():
    assert len(execute(PROBE, "Large").result) == 3_000_000


def test_a_large_request_is_read_in_full():
    text = "☃" * 500_000
    assert execute(PROBE, "Echo", {"text": text}).result["params"] == {"text": text}


def test_what_is_printed_goes_to_the_log():
    outcome = execute(PROBE, "Print")
    assert outcome.stdout == b"{}\n"
    assert outcome.log.splitlines() == ["logged æ", "info", "written", "imported"]


def test_fd3_keeps_what_a_child_writes_apart_from_the_result():
    outcome = execute(node("probe.mjs", "--fd3"), "Child", fd3=True)
    assert outcome.fd3 == b"{}\n"
    # The child's own listing is 3: the result channel itself is not inherited.
    assert outcome.stdout == b"from a child\n0\n1\n2\n3\n"


def test_a_timer_left_behind_does_not_keep_the_process():
    assert execute(PROBE, "LeaveTimer").stdout == b"{}\n"


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("Raise", "QuotaExceeded", "no more ☃"),
        ("RaiseNamed", "Renamed", "named"),
        ("RaiseText", "Error", "just text"),
        ("RaiseNull", "Error", "null"),
        ("RaiseCause", "Error", "outer: refused"),
        ("RaiseInTimer", "QuotaExceeded", "in a timer"),
        ("RaiseUnawaited", "QuotaExceeded", "unawaited"),
        ("RaiseInEmitter", "QuotaExceeded", "emitted"),
        ("Hang", "UnsettledPromise", "the connector waits for something that never comes"),
    ],
)
def test_what_is_thrown_is_told_by_its_name_wherever_it_was_thrown(command, code, message):
    outcome = execute(PROBE, command)
    assert outcome.status == 1
    assert outcome.error == {"error_code": code, "message": message, "raised": True}
    assert message.split(": ")[-1] in outcome.log


def test_an_error_of_node_itself_is_told_by_its_public_name():
    assert execute(PROBE, "RaiseNode").error["error_code"] == "TypeError"


def test_the_status_of_process_exit_is_kept():
    outcome = execute(PROBE, "Exit")
    assert (outcome.status, outcome.stdout) == (42, b"")


@pytest.mark.parametrize("command", ["Nope", "NotACommand", "default", "toString", "__proto__"])
def test_what_is_not_an_exported_function_is_not_found(command):
    outcome = execute(PROBE, command)
    assert outcome.status == 1
    assert outcome.error == {"error_code": "command_not_found", "message": f"there is no command {command}"}


@pytest.mark.parametrize("request_text", ["", "[]", "{", '{"op": "x"}', '{"op": "execute"} {}'])
def test_a_request_without_a_known_op_is_an_invalid_request(request_text):
    assert send(PROBE, request_text.encode()).error["error_code"] == "invalid_request"


@pytest.mark.parametrize(
    ("module", "code"), [("broken.mjs", "SyntaxError"), ("no_such.mjs", "Error"), ("never.mjs", "UnsettledPromise")]
)
def test_a_module_that_cannot_be_loaded_is_told(module, code):
    outcome = describe(node(module))
    assert outcome.status == 1
    assert outcome.error["error_code"] == code
    assert outcome.error["raised"] is True


def test_comments_describe_commands():
    commands = {command.pop("name"): command for command in describe(node("commented.mjs")).result["commands"]}
    assert commands == {
        "Send": {
            "description": "Sends a fax to a number.",
            "async": False,
            "parameters": [
                {"id": "to", "type": "str", "required": True, "description": "The number"},
                {
                    "id": "pages",
                    "type": "int",
                    "required": False,
                    "default": 1,
                    "description": "How many, and what else",
                },
                {"id": "urgent", "type": "bool", "required": False, "default": False},
                {"id": "scale", "type": "any", "schema": {"type": "number"}, "required": True},
                {"id": "copies", "type": "any", "required": True},
                {"id": "sender", "type": "any", "required": False},
                {"id": "subject", "type": "str", "required": False, "default": "no subject", "description": "Subject"},
            ],
        },
        "Members": {"async": False, "parameters": [{"id": "to", "type": "str", "required": True}]},
        "Ping": {"description": "Takes nothing.", "async": False, "parameters": []},
        "Bare": {"async": False, "parameters": [], "additional_parameters": True},
    }


def test_an_exported_mapping_is_the_whole_list_and_what_it_misnames_is_a_problem():
    described = describe(node("described.mjs")).result
    assert described == {
        "commands": [
            {
                "name": "Send",
                "description": "Sends",
                "async": True,
                "parameters": [
                    {"id": "to", "type": "str", "required": True, "schema": {"minLength": 3}},
                    {"id": "pages", "type": "int", "required": False, "default": 1},
                ],
            },
            {"name": "Ping", "async": False, "parameters": []},
        ],
        "auths": [],
        "problems": [
            {"module": "described.mjs", "message": "describe names Missing, but no such function is exported"}
        ],
    }
    assert execute(node("described.mjs"), "helper").error["error_code"] == "command_not_found"


@pytest.mark.parametrize(
    ("module", "command", "params", "result"),
    [("common.cjs", "Send", {"to": "a"}, {"to": "a"}), ("assigned.cjs", "Twice", {"n": 2}, 4)],
)
def test_a_commonjs_module_is_a_connector_too(module, command, params, result):
    (described,) = describe(node(module)).result["commands"]
    assert described["name"] == command
    assert [each["id"] for each in described["parameters"]] == list(params)
    assert execute(node(module), command, params).result == result


@pytest.fixture(scope="session")
def markdown(tmp_path_factory):
    if shutil.which("npm") is None:
        pytest.skip("there is no npm here")
    folder = tmp_path_factory.mktemp("npm") / "markdown"
    shutil.copytree(CONNECTORS / "markdown", folder, ignore=shutil.ignore_patterns("node_modules"))
    install = ["npm", "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
    subprocess.run(install, cwd=folder, check=True, timeout=300)
    return ["node", str(HOST), str(folder / "markdown.mjs")]


def test_markdown_describes_its_commands(markdown):
    assert [command["name"] for command in describe(markdown).result["commands"]] == [
        "MarkdownToHtml",
        "MarkdownToText",
    ]


def test_markdown_becomes_html_without_scripts(markdown):
    text = "# Blå & <script>alert(1)</script>\n\n[link](javascript:x) <b onclick='x'>bold</b>"
    assert execute(markdown, "MarkdownToHtml", {"markdown": text}).result == {
        "html": "<h1>Blå &amp; </h1>\n<p><a>link</a> <b>bold</b></p>\n"
    }


def test_markdown_becomes_text(markdown):
    assert execute(markdown, "MarkdownToText", {"markdown": "*1* < **2** & ☃"}).result == {"text": "1 < 2 & ☃"}
