"""The command line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.cli.main import main
from tests import procfs
from tests.support import Site, cli, cmdline, eventually, gone

ANY = "commands: {Go: {additional_parameters: true}}"


def here(*arguments: str) -> Result:
    """Run a command line in this process, which saves its start."""
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def told(*arguments: str) -> str:
    """Run a command line that is wrong; return what it says about that."""
    done = here(*arguments)
    assert done.exit_code == 2, arguments
    assert done.stdout == ""
    return done.stderr


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site, in which the test stands."""
    monkeypatch.chdir(tmp_path)
    return Site(tmp_path)


@pytest.fixture
def good(site: Site) -> Site:
    """A site whose connectors are all right."""
    site.script("told.sh", """echo '{"error": {"error_code": "FaxBusy", "message": "the line [1] is engaged"}}'""")
    site.script("loud.sh", "echo 'a [red]line[/red] of :key: log' >&2; echo 7")
    site.script("asked.sh", """cat > /dev/null; echo '{"commands": [{"name": "Told", "parameters": [{"id": "a"}]}]}'""")
    site.configure(
        f"""
        asked: {{run: [./asked.sh]}}
        echo:
          run: [cat]
          timeout: 5s
          commands:
            Go: {{additional_parameters: true}}
            Send:
              description: Send it
              parameters: {{to: {{type: str}}, pages: {{type: int, default: 1}}}}
        failed: {{run: [sh, -c, "echo why >&2; exit 3"], {ANY}}}
        legacy: {{run: [sh, -c, 'echo ''{{"response": "no", "status": 404, "mimetype": "text/plain"}}'''], {ANY}}}
        loud: {{run: [./loud.sh], {ANY}}}
        slow: {{run: [sleep, "1000"], {ANY}}}
        told: {{run: [./told.sh], {ANY}}}
        """
    )
    return site


@pytest.mark.usefixtures("good")
def test_check_and_list_say_that_all_is_well() -> None:
    check, as_json, listed = here("check"), here("check", "--json"), here("list")
    listed_json = here("list", "--json", "-c", "connectors.yaml")
    assert check.exit_code == 0
    assert "7 of 7 connectors can be served" in check.stdout
    assert (
        "timeout 5s  concurrency 8  queue 32  queue_timeout 10s  max_output 8MiB  max_log 256KiB  max_memory 1GiB"
        in check.stdout
    )
    assert "Send(to: str, pages: int (optional))" in check.stdout
    assert "Told(a: any)" in check.stdout
    assert "mode spawn, keeps nothing" in check.stdout
    assert "BAD" not in check.stdout

    assert as_json.exit_code == 0
    findings = json.loads(as_json.stdout)
    assert findings["ok"] is True
    echo = next(one for one in findings["connectors"] if one["name"] == "echo")
    assert (echo["ok"], echo["state"], echo["problem"], echo["runtime"]) == (True, "ready", None, "exec")
    assert echo["limits"]["timeout"] == "5s"
    assert echo["commands"]["Send"]["parameters"][0] == {"id": "to", "type": "str", "required": True}

    assert listed.exit_code == 0
    assert "asked/Told" in listed.stdout
    [line] = [line for line in listed.stdout.splitlines() if line.startswith("echo/Send")]
    assert line.split() == ["echo/Send", "to:str", "[pages:int]", "5s", "Send", "it"]
    assert listed.stderr == ""
    assert "asked/Told" in [one["id"] for one in json.loads(listed_json.stdout)]


def test_check_estimates_what_is_kept_in_memory(site: Site) -> None:
    (site.folder / "big.py").write_text(
        "ballast = bytearray(80 << 20)\nfor at in range(0, 80 << 20, 4096): ballast[at] = 1\ndef Do(): return 1\n"
    )
    site.script("asked.sh", """cat > /dev/null; echo '{"commands": [{"name": "Go", "parameters": []}]}'""")
    site.configure(
        f"""
        forked: {{runtime: python, module: ./big.py}}
        stays: {{runtime: python, module: ./big.py, mode: persistent, concurrency: 3}}
        asked: {{run: [./asked.sh]}}
        declared: {{run: [cat], mode: standby, {ANY}}}
        """
    )
    told, check = (
        json.loads(here("check", "--json").stdout),
        here("check").stdout,
    )  # the second time from what is remembered
    memory = {one["name"]: one["memory"] for one in told["connectors"]}
    size = memory["forked"]["process_mib"]
    assert 80 < size < 160
    assert memory["forked"] == {"process_mib": size, "start_mib": size, "most_mib": size}
    other = memory["stays"]["process_mib"]
    assert memory["stays"] == {"process_mib": other, "start_mib": other, "most_mib": 3 * other}
    assert memory["asked"]["process_mib"] < 20
    assert memory["asked"]["most_mib"] == 0
    assert memory["declared"] == {"process_mib": None, "start_mib": None, "most_mib": None}
    assert told["memory"] == {"start_mib": size + other, "most_mib": size + 3 * other, "not_measured": 1}
    assert f"up to {3 * other} MiB once there are calls" in check
    assert "not measured" in check
    assert f"memory that is kept, estimated: {size + other} MiB, up to {size + 3 * other} MiB" in check


def test_check_finds_every_bad_connector_and_ends_with_status_1(site: Site) -> None:
    site.script("dies.sh", "echo 'cannot [x] go on' >&2; exit 9")
    site.script("locked.sh", "cat").chmod(0o644)
    site.configure(
        f"""
        fine: {{run: [cat], {ANY}}}
        gone: {{run: [no-such-program], {ANY}}}
        absent: {{run: [./absent.sh], {ANY}}}
        locked: {{run: [./locked.sh], {ANY}}}
        dies: {{run: [./dies.sh]}}
        typo: {{run: [cat], tiemout: 5s}}
        """
    )
    check, as_json, listed = here("check"), here("check", "--json"), here("list")
    assert (check.exit_code, as_json.exit_code, listed.exit_code) == (1, 1, 0)
    assert "1 of 6 connectors can be served" in check.stdout
    findings = json.loads(as_json.stdout)
    assert findings["ok"] is False
    problems = {one["name"]: one["problem"] for one in findings["connectors"]}
    assert problems["fine"] is None
    for name, part in {
        "gone": "no-such-program not found: install it",
        "absent": "absent.sh does not exist",
        "locked": "chmod +x",
        "dies": "stderr: cannot [x] go on",
        "typo": "connectors.yaml:9: connectors.typo.tiemout: unknown key (did you mean timeout?)",
    }.items():
        assert part in problems[name]
        assert part in check.stdout
    assert "3 more cannot be served (dies, gone, typo): gateway check says why" in listed.stderr


def test_a_configuration_that_cannot_be_used_is_one_line_and_status_2(site: Site) -> None:
    (site.folder / "broken.yaml").write_text("gateway:\n  drain: [\n")
    (site.folder / "unknown.yaml").write_text("gateway:\n  drian: 3s\n")
    for verb in (["check"], ["list"], ["serve"], ["call", "a/b"]):
        assert told(*verb) == "error: connectors.yaml: there is no such file here: name one with --config FILE\n"
    assert told("check", "--config", "nowhere.yaml") == "error: nowhere.yaml: there is no such file\n"
    assert f"error: {site.folder}/broken.yaml:3:1: not valid YAML" in told("check", "-c", "broken.yaml")
    unknown = f"error: {site.folder}/unknown.yaml:2: gateway.drian: unknown key (did you mean drain?)\n"
    for verb in (["check"], ["list", "--json"], ["serve"], ["call", "a/b"]):
        assert told(*verb, "-c", "unknown.yaml") == unknown
    site.configure()
    assert told("serve", "--listen", "nonsense").startswith("error: --listen: 'nonsense' is not an address")


def test_call_takes_parameters_as_text_as_json_and_from_files(good: Site) -> None:
    (good.folder / "params.json").write_text('{"from_file": {"a": [1, 2.50]}, "text": "overridden later"}')
    done = cli(good, "call", "echo/Go", "@params.json", "text=a=b", "empty=", "number:=7", 'list:=["☃"]', 'quoted:="7"')
    assert done.returncode == 0
    assert json.loads(done.stdout)["command_response"]["body"]["params"] == {
        "from_file": {"a": [1, 2.5]},
        "text": "a=b",
        "empty": "",
        "number": 7,
        "list": ["☃"],
        "quoted": "7",
    }
    assert "ok, exit 0, pid " in done.stderr
    assert "peak " in done.stderr


def test_call_reads_parameters_from_stdin(good: Site) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "call", "-q", "echo/Go", "@-"],
        input='{"a": 1}', capture_output=True, text=True, cwd=good.folder, timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)},
    )  # fmt: skip
    assert json.loads(done.stdout)["command_response"]["body"]["params"] == {"a": 1}
    assert done.stderr == ""


@pytest.mark.usefixtures("good")
def test_call_ends_with_status_1_when_the_command_failed() -> None:
    failed, error, legacy = here("call", "failed/Go"), here("call", "told/Go"), here("call", "legacy/Go")
    slow = here("call", "slow/Go", "--timeout", "0.1")
    missing, unknown = here("call", "echo/Send"), here("call", "nobody/Go")
    assert [one.exit_code for one in (failed, error, legacy, slow, missing, unknown)] == [1] * 6
    assert "connector_failed: failed/Go failed with exit status 3" in failed.stderr
    assert "stderr | why" in failed.stderr
    assert failed.stdout == ""
    assert "FaxBusy: the line [1] is engaged" in error.stderr
    assert json.loads(error.stdout)["error"]["error_code"] == "FaxBusy"
    assert legacy.stdout == "no\n"
    assert "the connector answered with status 404" in legacy.stderr
    assert "connector_timeout: slow/Go was still running at its deadline of 100ms" in slow.stderr
    assert "invalid_parameters: echo/Send: to is missing" in missing.stderr
    assert "command_not_found: nobody/Go: there is no connector 'nobody'" in unknown.stderr


@pytest.mark.usefixtures("good")
def test_call_shows_a_log_as_it_was_written() -> None:
    loud = here("call", "loud/Go")
    assert loud.exit_code == 0
    assert "stderr | a [red]line[/red] of :key: log" in loud.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["call", "echo"], "'echo' is not CONNECTOR/COMMAND"),
        (["call", "echo/Go", "nonsense"], "'nonsense' is none of key=text, key:=json, @file"),
        (["call", "echo/Go", "a:={"], "'a:=': "),
        (["call", "echo/Go", "@nowhere.json"], "@nowhere.json: No such file or directory"),
        (["call", "echo/Go", "@list.json"], "@list.json: not a JSON object"),
        (["call", "echo/Go", "--timeout", "-1"], "--timeout: -1 is not a number of seconds"),
        (["call", "echo/Go", "--timeout", "nan"], "--timeout: nan is not a number of seconds"),
        (["serve", "--log-format", "xml"], "'xml' is not one of 'json', 'human'"),
        (["frobnicate"], "No such command 'frobnicate'"),
    ],
)
def test_a_command_line_that_makes_no_sense_ends_with_status_2(good: Site, arguments: list[str], part: str) -> None:
    (good.folder / "list.json").write_text("[1]")
    assert part in told(*arguments)


def test_every_verb_explains_itself(site: Site) -> None:
    main_help, serve, version = cli(site, "--help"), here("serve", "--help"), here("--version")
    assert (main_help.returncode, serve.exit_code, version.exit_code) == (0, 0, 0)
    for verb in ("serve", "check", "list", "call"):
        assert f"\n  {verb} " in main_help.stdout
    assert "Exit statuses: 0" in main_help.stdout
    for option in ("--config", "--listen", "--log-format", "--help"):
        assert option in serve.stdout


def below(pid: int) -> set[int]:
    return procfs.descendants({pid}, procfs.scan()) - {pid}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("level", ["off", "standard"])
async def test_a_call_that_is_interrupted_leaves_nothing(site: Site, level: str, number: int) -> None:
    site.level = level
    site.script("wait.sh", "trap '' INT\nsetsid sleep 1000 &\nsleep 1000")
    site.configure(f"wait: {{run: [./wait.sh], {ANY}}}")
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "call", "wait/Go"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, cwd=site.folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)},
    )  # fmt: skip
    try:
        await eventually(lambda: sum(b"sleep" in cmdline(pid) for pid in below(process.pid)) == 2)
        pids = below(process.pid)
        process.send_signal(number)
        assert await asyncio.to_thread(process.wait, 20) == 130
        await gone(pids)
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()
    assert os.listdir(site.state / "run") == []
