import base64
import json
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from tests.runners.hosts import (
    CONNECTORS,
    RUNNERS,
    SECONDS,
    TEST_CONNECTORS,
    Conversation,
    Outcome,
    describe,
    execute,
    send,
)

pytestmark = pytest.mark.skipif(shutil.which("javac") is None, reason="there is no JDK here")

FLAGS = [
    "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-XX:-UsePerfData", "-Xlog:disable",
    "-Xlog:all=warning:stderr",
]  # fmt: skip
POM = """<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>gateway</groupId><artifactId>test</artifactId><version>0</version><dependencies>{}</dependencies></project>"""
DEPENDENCY = "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>"


def run(*argv: str | Path) -> None:
    subprocess.run([str(each) for each in argv], check=True, timeout=300)


def compile_jar(jar: Path, sources: Path, classpath: str = "") -> Path:
    classes = jar.with_suffix("")
    run(
        "javac",
        "--release",
        "11",
        "-encoding",
        "UTF-8",
        "-XDstringConcat=inline",
        "-cp",
        classpath,
        "-d",
        classes,
        *sorted(sources.rglob("*.java")),
    )
    run("jar", "--create", "--file", jar, "-C", classes, ".")
    return jar


def fetch(folder: Path, *coordinates: str) -> Path:
    if shutil.which("mvn") is None:
        pytest.skip("there is no Maven here")
    folder.mkdir()
    (folder / "pom.xml").write_text(POM.format("".join(DEPENDENCY.format(*each.split(":")) for each in coordinates)))
    plugin = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
    options = ["-DincludeScope=runtime", "-Dmdep.prependGroupId=true", f"-DoutputDirectory={folder / 'lib'}"]
    run("mvn", "-q", "-B", "-Dstyle.color=never", "-f", folder / "pom.xml", plugin, *options)
    return folder / "lib"


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    return compile_jar(tmp_path_factory.mktemp("java-host") / "connector-host.jar", RUNNERS / "java" / "src")


@pytest.fixture(scope="session")
def probe(host, tmp_path_factory):
    return compile_jar(tmp_path_factory.mktemp("probe") / "probe.jar", TEST_CONNECTORS / "java" / "probe", str(host))


@pytest.fixture(scope="session")
def command_line(host, probe):
    return java(f"{probe}:{host}", "probe.Probe")


@pytest.fixture(scope="session")
def pdf(host, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pdf")
    lib = fetch(folder / "maven", "org.apache.pdfbox:pdfbox:3.0.8", "org.json:json:20260814")
    jar = compile_jar(folder / "pdf.jar", CONNECTORS / "pdf" / "src", f"{host}:{lib}/*")
    return java(":".join(str(each) for each in [jar, host, *sorted(lib.iterdir())]), "pdf.PdfConnector")


def java(classpath: str, class_name: str, *options: str) -> list[str]:
    return ["java", *FLAGS, "-cp", classpath, "connector.Host", *options, class_name]


@pytest.fixture
def conversation(host, probe):
    with Conversation(java(f"{probe}:{host}", "probe.Probe", "--lines")) as one:
        yield one


def test_one_object_serves_a_request_a_line(conversation):
    assert [conversation.execute("Count") for _ in range(3)] == [{"count": 1}, {"count": 2}, {"count": 3}]
    text = "æ☃😀\u2028" * 100_000
    assert conversation.execute("Echo", {"text": text})["params"] == {"text": text}
    outcome = conversation.end()
    assert (outcome.status, outcome.fd3, outcome.log) == (0, b"", "")


def test_a_document_of_several_lines_is_put_on_one(conversation):
    conversation.send(b'{"op": "execute", "command": "Count"}')
    assert conversation.receive() == b'{    "count": 1 }\n'


def test_a_line_break_within_a_text_is_not_mended(command_line):
    """It is no JSON: the gateway says so."""
    outcome = send(command_line, b'{"op": "execute", "command": "Broken"}')
    assert outcome.stdout == b'{ "\\"a": "x\ny" }\n'


def test_what_fails_in_line_mode_is_told_and_the_next_request_is_served(conversation):
    assert conversation.execute("Raise")["error"]["error_code"] == "TaxOfficeClosed"
    assert conversation.execute("Tell")["error"] == {"error_code": "no_credit", "message": "pay first"}
    conversation.send(b"{")
    assert json.loads(conversation.receive())["error"]["error_code"] == "invalid_request"
    assert conversation.execute("Null") is None
    assert conversation.execute("Print") == {"stdin": -1}
    outcome = conversation.end()
    assert outcome.log.endswith("log: æ☃\n")


def test_a_virtual_machine_that_failed_serves_nobody_else(conversation):
    assert conversation.execute("Overflow")["error"]["error_code"] == "StackOverflowError"
    assert conversation.receive() == b""
    assert conversation.end().status == 1


def test_a_class_that_cannot_be_made_is_told_on_every_line(host, probe):
    with Conversation(java(f"{probe}:{host}", "probe.Unloadable", "--lines")) as broken:
        for _ in range(2):
            assert broken.execute("Echo")["error"]["error_code"] == "NumberFormatException"


def test_what_answering_takes_is_loaded_before_there_is_a_request(command_line):
    at = command_line.index("-cp")
    argv = [*command_line[:at], "-Xlog:class+load:stdout", *command_line[at:]]
    missing = {b"connector.Json", b"connector.Host$Answer", b"connector.Failure"}
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as waiting:
        patience = threading.Timer(SECONDS, waiting.kill)
        patience.start()
        while missing and (line := waiting.stdout.readline()):
            missing -= set(line.split())
        patience.cancel()
        waiting.kill()
    assert not missing


def test_describe_passes_through_what_the_class_says(command_line):
    assert describe(command_line).result == {"commands": [{"name": "Echo", "parameters": []}], "auths": []}


def test_the_request_reaches_the_class_as_it_was_sent(command_line):
    params = {"text": "æ☃😀\u0000", "op": "describe", "nested": {"op": ["}", '"']}}
    outcome = execute(command_line, "Echo", params)
    assert outcome.status == 0
    assert outcome.result["params"] == params


@pytest.mark.parametrize(
    "request_text",
    [
        '{"params": {"op": "describe"}, "op": "execute", "command": "Null"}',
        '{"params": [{"a": "\\"op\\": \\"describe\\""}, "\\\\"], "op": "execute", "command": "Null"}',
        '{"\\u006fp": "execut\\u0065", "command": "Null", "n": -1.5e3, "t": true, "z": null}',
        ' \n{ "op"\t:\r"execute" , "command": "Null" } ',
    ],
)
def test_only_the_top_level_op_counts(command_line, request_text):
    assert send(command_line, request_text.encode()).stdout == b"null\n"


@pytest.mark.parametrize(
    "request_text",
    ["", "[]", '{"op": "execute"', '{"op": "execute"} {}', '{"op": 1}', '{"op": "x"}', '{"params": "op"}'],
)
def test_a_request_without_a_known_op_is_an_invalid_request(command_line, request_text):
    outcome = send(command_line, request_text.encode())
    assert outcome.status == 1
    assert outcome.error["error_code"] == "invalid_request"


def test_an_unknown_command_is_not_found(command_line):
    outcome = execute(command_line, "Nothing")
    assert outcome.status == 1
    assert outcome.error == {"error_code": "command_not_found", "message": "there is no command Nothing"}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("Raise", 'closed "today" ☃'),
        ("RaiseReflected", "reflected"),
        ("RaiseLater", "later"),
        ("RaiseAnonymous", "anonymous"),
    ],
)
def test_what_is_thrown_is_told_by_its_simple_class_name(command_line, command, message):
    outcome = execute(command_line, command)
    assert outcome.status == 1
    assert outcome.error == {"error_code": "TaxOfficeClosed", "message": message, "raised": True}
    assert "at probe.Probe" in outcome.log


def test_a_stack_overflow_is_told(command_line):
    assert execute(command_line, "Overflow").error["error_code"] == "StackOverflowError"


def test_a_failure_has_a_code_of_its_own_and_no_stack_trace(command_line):
    outcome = execute(command_line, "Tell")
    assert outcome.error == {"error_code": "no_credit", "message": "pay first"}
    assert outcome.log == ""


@pytest.mark.parametrize(
    ("class_name", "code"),
    [
        ("probe.Unloadable", "NumberFormatException"),
        ("no.Such", "ClassNotFoundException"),
        ("java.lang.Object", "ClassCastException"),
    ],
)
def test_a_class_that_cannot_be_made_is_told(host, probe, class_name, code):
    outcome = describe(java(f"{probe}:{host}", class_name))
    assert outcome.status == 1
    assert outcome.error["error_code"] == code


def test_printing_goes_to_the_log_in_utf8_whatever_the_locale(command_line):
    outcome = execute(command_line, "Print", locale="C")
    assert outcome.result == {"stdin": -1}
    assert outcome.log == "log: æ☃\n"


def test_fd3_keeps_what_a_child_writes_apart_from_the_result(command_line):
    outcome = execute([*command_line[:-1], "--fd3", command_line[-1]], "Child", fd3=True)
    assert outcome.fd3 == b"{}\n"
    assert outcome.stdout == b"from a child\n"


def test_the_status_of_system_exit_is_kept(command_line):
    outcome = execute(command_line, "Exit")
    assert (outcome.status, outcome.stdout) == (42, b"")


def test_a_thread_left_behind_does_not_keep_the_process_and_hooks_run(command_line):
    outcome = execute(command_line, "LeaveThread")
    assert (outcome.status, outcome.stdout) == (0, b"{}\n")
    assert outcome.log == "hook ran\n"


def test_a_class_data_archive_works_and_one_that_no_longer_fits_only_warns(command_line, host, probe, tmp_path):
    archive = tmp_path / "probe.jsa"
    made = execute(["java", f"-XX:ArchiveClassesAtExit={archive}", *command_line[1:]], "Echo")
    assert made.status == 0
    assert archive.stat().st_size > 0
    used = ["java", f"-XX:SharedArchiveFile={archive}", *command_line[1:]]
    assert execute(used, "Null").log == ""
    shutil.copy(probe, tmp_path)
    moved = java(f"{tmp_path / probe.name}:{host}", "probe.Probe")
    outcome = execute(["java", f"-XX:SharedArchiveFile={archive}", *moved[1:]], "Null")
    assert outcome.stdout == b"null\n"


def test_two_versions_of_one_library_work_side_by_side(host, tmp_path):
    outcomes = {}
    for version, name in [("3.4", "lang_3_4"), ("3.17.0", "lang_3_17")]:
        lib = fetch(tmp_path / name, f"org.apache.commons:commons-lang3:{version}")
        jar = compile_jar(tmp_path / f"{name}.jar", TEST_CONNECTORS / "java" / name, f"{host}:{lib}/*")
        libraries = ":".join(str(each) for each in sorted(lib.iterdir()))
        outcomes[version] = execute(java(f"{jar}:{host}:{libraries}", f"{name}.Shorten"), "Shorten").result
    assert outcomes == {
        "3.4": {"version": "3.4", "text": "Tyran..."},
        "3.17.0": {"version": "3.17.0", "text": "Tyranno…"},
    }


def to_pdf(pdf: list[str], text: str, **params: str) -> Outcome:
    return execute(pdf, "TextToPdf", {"text": text, **params}, locale="C")


def test_pdf_describes_its_commands(pdf):
    commands = {
        command["name"]: [each["id"] for each in command["parameters"]] for command in describe(pdf).result["commands"]
    }
    assert commands == {"TextToPdf": ["text", "title"], "PdfToText": ["pdf"]}


def test_pdf_text_comes_back_from_the_pdf_with_all_its_letters(pdf):
    text = "Blåbærsyltetøy, Ωmega, Жук, 5 €\n" + "long line " * 100 + "\fnext page"
    made = to_pdf(pdf, text, title="Årsrapport").result
    assert base64.b64decode(made["pdf"]).startswith(b"%PDF")
    assert made["pages"] == 2
    read = execute(pdf, "PdfToText", {"pdf": made["pdf"]}, locale="C").result
    assert read["pages"] == 2
    assert read["text"].split() == ["Årsrapport", *text.split()]


def test_pdf_names_a_character_that_the_font_does_not_have(pdf):
    outcome = to_pdf(pdf, "snow: ☃")
    assert outcome.status == 1
    assert outcome.error == {
        "error_code": "unsupported_character",
        "message": "the font has no character U+2603 (SNOWMAN)",
    }


@pytest.mark.parametrize(("data", "code"), [("JVBERi0=", "pdf_unreadable"), ("=", "invalid_base64")])
def test_pdf_says_why_it_cannot_read(pdf, data, code):
    outcome = execute(pdf, "PdfToText", {"pdf": data})
    assert outcome.error["error_code"] == code
    assert json.loads(outcome.stdout)["error"].get("raised") is None
