import os
import shutil
import subprocess

import pytest

from tests.runners.hosts import ROOT, describe, execute, send

pytestmark = pytest.mark.skipif(shutil.which("go") is None, reason="there is no Go here")


@pytest.fixture(scope="session")
def connector(tmp_path_factory):
    program = tmp_path_factory.mktemp("go") / "csv"
    # Built from a module without dependencies: nothing is to be fetched.
    environment = os.environ | {"GOFLAGS": "-mod=readonly", "GOPROXY": "off", "GOTOOLCHAIN": "local"}
    subprocess.run(
        ["go", "build", "-o", program, "."],
        cwd=ROOT / "docs" / "examples" / "go",
        env=environment,
        check=True,
        timeout=300,
    )
    return [str(program)]


def test_describe_lists_the_command_with_its_parameters(connector):
    (command,) = describe(connector).result["commands"]
    assert command["name"] == "CsvToRows"
    assert [(each["id"], each["type"], each["required"]) for each in command["parameters"]] == [
        ("csv", "str", True),
        ("separator", "str", False),
    ]


@pytest.mark.parametrize(
    ("params", "rows"),
    [
        ({"csv": "name,age\næ☃,1\n"}, [{"name": "æ☃", "age": "1"}]),
        ({"csv": 'a;b\n"x;y";2', "separator": ";"}, [{"a": "x;y", "b": "2"}]),
        ({"csv": ""}, []),
    ],
)
def test_csv_becomes_rows(connector, params, rows):
    assert execute(connector, "CsvToRows", params).result == {"rows": rows}


@pytest.mark.parametrize(
    ("command", "params", "code"),
    [
        ("CsvToRows", {"csv": "a,b\n1"}, "invalid_csv"),
        ("CsvToRows", {"csv": "a", "separator": ""}, "invalid_parameters"),
        ("CsvToRows", {"csv": 1}, "invalid_parameters"),
        ("Nope", {}, "command_not_found"),
    ],
)
def test_a_failure_is_told_with_a_code(connector, command, params, code):
    assert execute(connector, command, params).error["error_code"] == code


def test_a_request_that_is_not_json_is_an_invalid_request(connector):
    assert send(connector, b"{").error["error_code"] == "invalid_request"
