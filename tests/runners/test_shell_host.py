import hashlib
import os
import shutil
import signal
import sys

import pytest

from tests.runners.hosts import CONNECTORS, RUNNERS, TEST_CONNECTORS, describe, execute, send

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")

COMMAND = [sys.executable, "-I", "-S", str(RUNNERS / "shell" / "host.py")]
PROBE = [*COMMAND, str(TEST_CONNECTORS / "shell" / "probe.sh")]
WITHOUT_STDERR = ["bash", "-c", 'exec "$@" 2>/dev/null', "bash"]
HOST = [*COMMAND, str(CONNECTORS / "files" / "files.sh")]


@pytest.mark.parametrize(
    ("command", "result"),
    [
        ("Plain", {"output": "hei æ☃"}),
        ("Silent", {"output": ""}),
        ("Number", {"output": "42"}),
        ("Bracketed", {"output": "[INFO] copied [3 files]"}),
        ("Object", {"a": [1, "☃"]}),
        ("List", [1, 2]),
        ("Pipe", {"output": "y"}),
        ("Spelled-otherwise", {"output": "ok"}),
        ("NoisyNumber", {"output": "in all\n42"}),
        ("Block", {"output": "server {\n  listen 80;\n}\n[1] is a note"}),
    ],
)
def test_objects_and_lists_are_results_and_all_else_is_text(command, result):
    outcome = execute(PROBE, command)
    assert outcome.status == 0
    assert outcome.result == result
    assert outcome.log == ""


@pytest.mark.parametrize(
    ("command", "written"),
    [("Noisy", b'profile loaded\n{"x": 1}\n'), ("NoisyList", b"profile loaded\r\n [1]\r\n")],
)
def test_noise_before_a_result_is_left_to_the_gateway_which_warns(command, written):
    outcome = execute(PROBE, command)
    assert (outcome.status, outcome.stdout.rstrip(b"\n")) == (0, written.rstrip(b"\n"))


def test_noise_before_an_error_does_not_hide_it():
    outcome = execute(PROBE, "NoisyTell")
    assert outcome.status == 3
    assert outcome.stdout.startswith(b'dialling\n{"error": {"error_code": "busy"')


def test_json_within_a_text_is_text_which_the_log_tells():
    outcome = execute(PROBE, "Within")
    assert (outcome.status, outcome.result) == (0, {"output": 'before\n{"x": 1}\nafter'})
    assert outcome.log == "line 2 of the command's output is JSON, and other text is around it: all of it is text\n"


def test_a_list_that_holds_the_word_is_no_error():
    outcome = execute(PROBE, "ErrorList")
    assert (outcome.status, outcome.stdout, outcome.log) == (4, b"", '["error"]\n')


@pytest.mark.parametrize(
    "command", ["BrokenObject", "NotANumber", "NotUtf8", "NoisyBroken", "NoisyLines", "Torn", "Trailing"]
)
def test_output_that_is_not_what_it_looks_like_is_invalid(command):
    outcome = execute(PROBE, command)
    assert outcome.status == 1
    assert outcome.error["error_code"] == "connector_invalid_output"
    assert outcome.error["invalid_output"] is True


def test_the_request_is_the_stdin_of_the_function():
    assert execute(PROBE, "Request", {"a": "☃"}).result["params"] == {"a": "☃"}


def test_parameters_are_variables_and_defaults_are_filled_in():
    outcome = execute(PROBE, "Params", {"text": "a\n$(id) `id` \"'☃"})
    assert outcome.result == {"output": "a\n$(id) `id` \"'☃|3|unset|true|a b|true"}


@pytest.mark.parametrize(
    ("note", "text"), [(None, "unset"), (False, "false"), (1.5, "1.5"), ("", ""), ({"a": ["☃"]}, '{"a":["☃"]}')]
)
def test_a_parameter_of_any_type_is_a_variable_of_text(note, text):
    assert execute(PROBE, "Params", {"text": "", "note": note}).result["output"].split("|")[2] == text


@pytest.mark.parametrize(
    ("text", "seen"),
    [("abc", "abc 3 "), ("x" * 65536, "x" * 65536 + " 65536 "), ("x" * 65537, "unset 65537 "), ("a\0b", "unset 3 ")],
)
def test_a_parameter_too_large_for_a_variable_is_a_file(text, seen):
    assert execute(PROBE, "Size", {"text": text}).result == {"output": seen + "missing"}


def test_many_large_parameters_do_not_overflow_the_environment():
    params = {f"p{i}": "x" * 60_000 for i in range(60)} | {"text": "last"}
    assert execute(PROBE, "Size", params).result == {"output": "last 4 missing"}


@pytest.mark.parametrize("text", ["", 'a"b\\c', "".join(map(chr, range(1, 128))), "&æ☃😀", "\\n\n\\\n"])
def test_json_string_quotes_any_text(text):
    assert execute(PROBE, "Quote", {"text": text}).result == {"text": text}


def test_a_failure_is_told_by_its_status_and_what_it_printed_is_log():
    outcome = execute(PROBE, "Fail")
    assert (outcome.status, outcome.stdout) == (7, b"")
    assert outcome.log == "on stderr\non stdout\n"


def test_an_error_on_stdout_is_the_result_whatever_the_status():
    outcome = execute(PROBE, "Tell")
    assert outcome.status == 3
    assert outcome.error == {"error_code": "no_credit", "message": "pay first"}


def test_errexit_works_in_a_command():
    outcome = execute(PROBE, "Strict")
    assert (outcome.status, outcome.stdout) == (1, b"")


def test_the_host_dies_of_the_signal_that_bash_died_of():
    assert execute(PROBE, "Die").status == -signal.SIGKILL


def test_a_background_process_does_not_hold_the_result_back():
    # It holds stderr open too, which is for the gateway's drain to end, so stderr is not read here.
    outcome = execute([*WITHOUT_STDERR, *PROBE], "Background")
    assert outcome.status == 0
    os.kill(int(outcome.result["output"]), signal.SIGKILL)


def test_endless_output_is_cut_off():
    outcome = execute([*COMMAND, "--max-output", "100000", PROBE[-1]], "Endless")
    assert outcome.status == 1
    assert outcome.error["error_code"] == "connector_output_too_large"


def test_fd3_is_the_result_channel_and_the_function_does_not_inherit_it():
    outcome = execute([*COMMAND, "--fd3", PROBE[-1]], "Plain", fd3=True)
    assert outcome.stdout == b""
    assert outcome.fd3 == b'{"output": "hei \\u00e6\\u2603"}\n'


@pytest.mark.parametrize("command", ["Nope", "helper", "", "Plain; id", "../Plain"])
def test_what_is_not_a_command_function_is_not_found(command):
    outcome = execute(PROBE, command)
    assert outcome.status == 1
    assert outcome.error == {"error_code": "command_not_found", "message": f"there is no command {command}"}


@pytest.mark.parametrize("request_text", ["", "[]", "{", '{"op": "x"}', '{"op": "execute"} {}'])
def test_a_request_without_a_known_op_is_an_invalid_request(request_text):
    assert send(PROBE, request_text.encode()).error["error_code"] == "invalid_request"


def test_comments_describe_commands():
    commands = {command.pop("name"): command for command in describe(PROBE).result["commands"]}
    assert commands["Plain"] == {"parameters": [], "async": False, "additional_parameters": True}
    assert commands["Params"] == {
        "description": "Shows its parameters. It has two lines of text.",
        "async": False,
        "parameters": [
            {"id": "text", "type": "str", "required": True, "description": "The text"},
            {"id": "dashed-id", "type": "int", "required": False, "default": 3, "description": "A number"},
            {"id": "note", "type": "any", "required": False},
            {"id": "flag", "type": "bool", "required": False, "default": True},
            {"id": "quoted", "type": "str", "required": False, "default": "a b", "description": "Words"},
        ],
    }
    assert commands["Problems"]["async"] is True
    assert "helper" not in commands


def test_comments_that_cannot_be_read_are_problems():
    problems = describe(PROBE).result["problems"]
    assert {problem["module"] for problem in problems} == {"probe.sh"}
    assert [problem["message"] for problem in problems] == [
        "Problems: cannot read '@param oops': expected @param NAME str|int|bool|any[=DEFAULT] TEXT",
        "Problems: cannot read '@param number int=many': expected @param NAME str|int|bool|any[=DEFAULT] TEXT",
        "Problems: two parameters are both $PARAM_a_b",
    ]


def test_files_tells_the_digest_of_a_text_of_any_size():
    for text in ["abc", "æ☃" * 100_000]:
        assert execute(HOST, "Checksum", {"text": text}).result == {
            "algorithm": "sha256",
            "digest": hashlib.sha256(text.encode()).hexdigest(),
        }


def test_files_refuses_an_unknown_algorithm():
    outcome = execute(HOST, "Checksum", {"text": "", "algorithm": 'rm "x"; '})
    assert outcome.error == {"error_code": "unknown_algorithm", "message": 'no such algorithm: rm "x"; '}


def test_files_tells_disk_usage(tmp_path):
    usage = execute(HOST, "DiskUsage", {"path": str(tmp_path)}).result
    assert usage["size"] >= usage["used"] > 0


def test_files_fails_on_a_path_that_is_not_there(tmp_path):
    outcome = execute(HOST, "DiskUsage", {"path": str(tmp_path / "none")})
    assert (outcome.status, outcome.stdout) == (1, b"")
    assert "No such file" in outcome.log
