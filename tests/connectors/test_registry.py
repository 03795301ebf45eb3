"""Who is served: what is registered, what is wrong with it, and what changes while the gateway runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gateway.cells.cells import Cells
from gateway.connectors import describe as describe_module
from gateway.connectors import registry as registry_module
from gateway.connectors.describe import Describer
from gateway.connectors.registry import Registry
from gateway.connectors.snapshot import ConnectorState
from gateway.locks import lock
from gateway.observe.events import Bus, ConnectorWarning, Event, Quarantined, ReloadFailed
from gateway.processes.spawn import SpawnPool
from gateway.settings import read_settings
from tests.support import Server, Site, cli, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SOON = 3.0  # seconds within which a change of the files is served
GO = "commands: {Go: {additional_parameters: true}}"


def describing(
    site: Site, name: str, *, answer: str = "one", commands: tuple[str, ...] = ("Go",), told: str | None = None
) -> Path:
    """Write an executable that describes itself, and notes in `asked` beside connectors.yaml that it was asked."""
    description = told or json.dumps({"commands": [{"name": one, "additional_parameters": True} for one in commands]})
    return site.script(
        name,
        f"""
        request=$(cat)
        case $request in
        *'"op":"describe"'*) echo {Path(name).name} >>"{site.folder}/asked"; echo '{description}' ;;
        *) echo '"{answer}"' ;;
        esac
        """,
    )


def asked(site: Site) -> int:
    """Return how many times an executable of this site was asked what it can do."""
    file = site.folder / "asked"
    return len(file.read_text().splitlines()) if file.exists() else 0


def replaced(file: Path, text: str) -> None:
    """Write a file as careful editors do: a new one, renamed over the old one."""
    draft = file.with_name(f".{file.name}.new")
    draft.write_text(text)
    draft.chmod(file.stat().st_mode)
    draft.rename(file)


async def becomes(gateway: Server, commands: list[str], patience: float = SOON) -> None:
    """Wait until exactly these commands are listed; until then the old ones are, and nothing less."""
    before = await gateway.commands()

    async def listed() -> bool:
        now = await gateway.commands()
        assert now in (before, commands)
        return now == commands

    await eventually(listed, patience)


async def quarantined(gateway: Server, name: str) -> str | None:
    """Return the reason, None while there is none."""
    status = await gateway.status(name)
    return status["reason"] if status["state"] == "quarantined" else None


# --- what is registered


EXAMPLE = """\
fax:
  description: Sends faxes
  run: [./bin/fax.py, --line, "2"]
  env: {FAX_HOST: fax.example, FAX_PORT: 8080, FAX_TLS: true}
  config: {FAX_LINE: "2", retries: 3}
  timeout: 5s
  result: fd3
  commands:
    Send:
      description: Send one fax
      parameters:
        to: {type: str, description: The number}
        pages: {type: int, default: 1}
        cover: {type: any, required: false, schema: {type: object, required: [title]}}
    Cancel: {timeout: 1s, async: true}
aws: {enabled: false}
"""


async def test_the_example_works_as_written_wherever_the_gateway_was_started(site: Site) -> None:
    site.python(
        "bin/fax.py",
        """
        import json, os, sys
        print("dialling")
        request = json.load(sys.stdin)
        with os.fdopen(3, "w") as result:
            json.dump({"argv": sys.argv, "env": dict(os.environ), "request": request}, result)
        """,
    )
    site.configure(EXAMPLE)
    async with served(site, cwd=Path("/")) as gateway:
        listed = (await gateway.get("/v1/commands")).json
        sent = await gateway.do("fax/Send", {"to": "+47", "cover": {"title": "x"}})
        refused = await gateway.do("fax/Send", {"cover": {}})
        off = await gateway.do("aws/Go")
        assert gateway.events("log", stream="stdout", line="dialling")
    to, pages, cover = listed[0].pop("parameters")
    assert listed == [
        {"id": "fax/Send", "description": "Send one fax"},
        {"id": "fax/Cancel", "parameters": [], "async": True},
    ]
    assert to == {"id": "to", "type": "str", "required": True, "description": "The number"}
    assert pages == {"id": "pages", "type": "int", "required": False, "default": 1}
    assert cover == {
        "id": "cover",
        "type": "any",
        "required": False,
        "schema": {"type": "object", "required": ["title"]},
    }
    assert sent.status == 200
    assert sent.body["argv"] == [str(site.folder / "bin/fax.py"), "--line", "2"]
    assert sent.body["request"]["params"] == {"to": "+47", "pages": 1, "cover": {"title": "x"}}
    assert sent.body["request"]["config"] == {"FAX_LINE": "2", "retries": 3}
    env = sent.body["env"]
    assert (env["FAX_HOST"], env["FAX_PORT"], env["FAX_TLS"]) == ("fax.example", "8080", "true")
    assert set(env) - {"FAX_HOST", "FAX_PORT", "FAX_TLS"} == {"PATH", "LANG", "LC_ALL", "HOME", "TMPDIR"}
    assert (refused.status, refused.code) == (400, "invalid_parameters")
    assert "to is missing; cover does not satisfy required" in refused.message
    assert (off.status, off.code) == (404, "command_not_found")


async def test_what_lies_in_the_drop_in_folder_is_served_as_it_is(site: Site) -> None:
    describing(site, "connectors.d/hello.sh", answer="hello")
    describing(site, "connectors.d/bare", answer="bare")
    describing(site, "connectors.d/greeter/bin/greet", answer="greet")
    (site.drop_ins / "greeter/connector.yaml").write_text("run: [./bin/greet]\n")
    describing(site, "connectors.d/overlaid.sh", answer="overlaid")
    describing(site, "connectors.d/unwanted.sh")
    (site.drop_ins / "README").write_text("No connector.\n")
    (site.drop_ins / "README.md").write_text("# None either\n")
    (site.drop_ins / "notes").mkdir()
    (site.drop_ins / "notes/of.txt").write_text("A folder without connector.yaml.")
    describing(site, "connectors.d/.hidden")
    describing(site, "connectors.d/hello.sh~")
    os.mkfifo(site.drop_ins / "pipe")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        here = Path.cwd()
        os.chdir(site.drop_ins)  # the address of a socket is short
        listener.bind("socket")
        os.chdir(here)
        site.configure("overlaid: {timeout: 7s, config: {a: 1}}\nunwanted: {enabled: false}\n")
        async with served(site, cwd=Path("/")) as gateway:
            assert await gateway.commands() == ["bare/Go", "greeter/Go", "hello/Go", "overlaid/Go"]
            assert [(await gateway.do(f"{name}/Go")).body for name in ("hello", "bare", "greeter", "overlaid")] == [
                "hello", "bare", "greet", "overlaid",
            ]  # fmt: skip
            assert set((await gateway.status())["connectors"]) == {"bare", "greeter", "hello", "overlaid"}
        found = json.loads(cli(site, "check", "--json").stdout)
        limits = {one["name"]: one["limits"]["timeout"] for one in found["connectors"]}
        assert limits == {"bare": "40s", "greeter": "40s", "hello": "40s", "overlaid": "7s"}
    assert asked(site) == 4


async def test_only_what_is_listed_is_served_when_the_operator_says_so(site: Site) -> None:
    describing(site, "connectors.d/wanted.sh")
    describing(site, "connectors.d/other.sh")
    site.configure("wanted:\n", gateway="enable: listed")
    async with opened(site) as (registry, _):
        assert set(registry.snapshot.statuses) == {"wanted"}
        site.configure(f"cat: {{run: [cat], {GO}}}", gateway="enable: listed")
        await registry.reload()
        assert set(registry.snapshot.statuses) == {"cat"}


async def test_the_folder_of_drop_ins_can_be_switched_off(site: Site) -> None:
    describing(site, "connectors.d/other.sh")
    site.configure(f"cat: {{run: [cat], {GO}}}", gateway="connectors_dir: null")
    async with opened(site) as (registry, _):
        assert set(registry.snapshot.statuses) == {"cat"}


BACKENDS = [f"{verb}Request" for verb in ("Delete", "Get", "Head", "Patch", "Post", "Put")]


@pytest.mark.parametrize("declared", [True, False])
async def test_commands_that_the_backend_runs_itself_are_served_with_a_notice_each(
    site: Site,
    declared: bool,
) -> None:
    names = [*BACKENDS, "GetRequestV2", "OptionsRequest", "getRequest"]
    told = {"commands": [{"name": name, "parameters": []} for name in names]}
    site.script("http.sh", f"echo '{json.dumps(told)}'")
    commands = f", commands: {json.dumps({name: {} for name in names})}" if declared else ""
    site.configure("\n".join(f"{one}: {{run: [./http.sh]{commands}}}" for one in ("http", "https")))
    async with opened(site) as (registry, events):
        for _ in range(2):  # a change that has nothing to do with it warns of nothing again
            await registry.reload()
            assert [one.notices for one in registry.snapshot.ready() if one.name == "https"] == [()]
            (http,) = (one for one in registry.snapshot.ready() if one.name == "http")
            assert list(http.commands or ()) == names
            warned = [one for one in events if isinstance(one, ConnectorWarning)]
            assert [(one.connector, one.command) for one in warned] == [("http", name) for name in BACKENDS]
            assert tuple(one.message for one in warned) == http.notices
            site.script("http.sh", f"echo '{json.dumps(told)}' # changed")
    checked = cli(site, "check")
    assert checked.returncode == 0
    assert checked.stdout.count("never asks for this one") == len(BACKENDS)


async def test_the_status_view_shows_which_commands_the_backend_runs_itself(site: Site) -> None:
    site.configure("http: {run: [cat], commands: {GetRequest: {}, Go: {}}}")
    async with served(site) as gateway:
        (notice,) = (await gateway.status("http"))["notices"]
        assert "http/GetRequest" in notice
        assert len(gateway.events("connector_warning", connector="http", command="GetRequest")) == 1


# --- what is wrong


BAD = {
    "unknown_key": ("{run: [cat], tiemout: 5s}", "{file}:{line}: connectors.unknown_key.tiemout: unknown key"),
    "others_key": ("{venv: ./x}", "{file}:{line}: connectors.others_key.venv: a key of runtime python: add `runtime: python`"),
    "others_keys": ("{run: [cat], module: ./x}", "{file}:{line}: connectors.others_keys.module: a key of the runtimes python, node, shell: add `runtime:` with"),
    "others_key_said": ("{runtime: node, module: ./x.js, jvm: []}", "{file}:{line}: connectors.others_key_said.jvm: a key of runtime java, not of node"),
    "no_run": (f"{{{GO}}}", "{file}:{line}: connectors.no_run: object missing required field `run`"),
    "run_is_text": (f"{{run: cat, {GO}}}", "{file}:{line}: connectors.run_is_text.run: expected `array`, got `str`"),
    "run_is_empty": (f"{{run: [], {GO}}}", "{file}:{line}: connectors.run_is_empty.run: expected `array` of length >= 1"),
    "run_has_a_number": (f"{{run: [cat, 1], {GO}}}", "{file}:{line}: connectors.run_has_a_number.run.1: expected `str`"),
    "run_has_a_nul": (f'{{run: ["./a\\0b"], {GO}}}', "null"),
    "runtime": (f"{{runtime: cobol, run: [cat], {GO}}}", "{file}:{line}: connectors.runtime.runtime: unknown runtime (known: "),
    "timeout": (f"{{run: [cat], timeout: 5, {GO}}}", "{file}:{line}: connectors.timeout.timeout: 5 is not a duration"),
    "enabled": (f"{{run: [cat], enabled: maybe, {GO}}}", "{file}:{line}: connectors.enabled.enabled: expected `bool`"),
    "env": (f"{{run: [cat], env: {{A: [1]}}, {GO}}}", "{file}:{line}: connectors.env.env.A: expected text or a number"),
    "env_name": (f'{{run: [cat], env: {{"A=B": x}}, {GO}}}', "{file}:{line}: connectors.env_name.env.A=B: this cannot be the name"),
    "env_has_a_nul": (f'{{run: [cat], env: {{A: "x\\0y"}}, {GO}}}', "{file}:{line}: connectors.env_has_a_nul.env.A: "),
    "slash": ("{run: [cat], commands: {a/b: {}}}", "{file}:{line}: connectors.slash.commands.a/b: a command's name has no /"),
    "command_key": ("{run: [cat], commands: {Go: {asynch: true}}}", "connectors.command_key.commands.Go.asynch: unknown key (did you mean async?)"),
    "kind": ("{run: [cat], commands: {Go: {parameters: {a: {type: float}}}}}", "{file}:{line}: connectors.kind.commands.Go.parameters.a.type: invalid enum value 'float'"),
    "context": ("{run: [cat], commands: {Go: {parameters: {spiff__x: {}}}}}", "parameters.spiff__x: names that begin with spiff__ are the caller's"),
    "schema": ("{run: [cat], commands: {Go: {parameters: {a: {schema: {type: nope}}}}}}", "{file}:{line}: connectors.schema.commands.Go.parameters: a: schema is not a JSON Schema"),
    "a_list": ("[cat]", "{file}:{line}: connectors.a_list: expected a mapping with the connector's keys"),
    "nothing": ("", "{file}:{line}: connectors.nothing: object missing required field `run`"),
    ".name": (f"{{run: [cat], {GO}}}", "{file}:{line}: connectors..name: a connector's name is made of letters"),
    "program": (f"{{run: [nosuch-program], {GO}}}", "nosuch-program not found: install it, or name it by its path"),
    "interpreter": (f"{{run: [./interpreter.sh], {GO}}}", "nosuch-interpreter not found: the #! line of interpreter.sh needs it"),
    "tag": (f"{{run: [cat], config: {{a: !x 1}}, {GO}}}", "{file}:{line}: connectors.tag.config.a: a tag that is none of plain data: a text that begins with ! is written in quotes"),
    "key": (f"{{run: [cat], config: {{7: a}}, {GO}}}", "{file}:{line}: connectors.key.config.7: a key must be text"),
    "itself": ("&itself {run: [cat], config: {a: *itself}}", "{file}:{line}: connectors.itself.config.a: an alias that contains itself"),
    "absolute": (f"{{run: [./absolute.sh], {GO}}}", "/nosuch/interpreter not found: the #! line of absolute.sh needs it"),
}  # fmt: skip


async def test_a_bad_entry_is_quarantined_with_its_place_and_the_rest_is_served(site: Site) -> None:
    site.script("interpreter.sh", "", shell="/usr/bin/env nosuch-interpreter")
    site.script("absolute.sh", "", shell="/nosuch/interpreter -x")
    (site.drop_ins / "folder").mkdir()
    (site.drop_ins / "folder/connector.yaml").write_text("run: [cat]\nrun: [dog]\n")
    site.configure("\n".join([f"good: {{run: [cat], {GO}}}", *(f"{name}: {text}" for name, (text, _) in BAD.items())]))
    lines = {
        line.strip().partition(":")[0]: number for number, line in enumerate(site.file.read_text().splitlines(), 1)
    }
    async with served(site) as gateway:
        assert await gateway.commands() == ["good/Go"]
        assert (await gateway.do("good/Go", {"a": 1})).body["params"] == {"a": 1}
        statuses = (await gateway.status())["connectors"]
        for name, (_, problem) in BAD.items():
            assert statuses[name]["state"] == "quarantined", name
            assert problem.format(file=site.file, line=lines[name]) in statuses[name]["reason"]
            assert gateway.events("quarantined", connector=name, reason=statuses[name]["reason"])
        assert statuses["folder"]["reason"].endswith("folder/connector.yaml:2: run: said twice (first on line 1)")
        answer = await gateway.do("unknown_key/Go")
        assert (answer.status, answer.code) == (503, "connector_unavailable")
        assert f"{site.file}:{lines['unknown_key']}: connectors.unknown_key.tiemout: unknown key" in answer.message
        assert answer.headers["Retry-After"]
    checked = cli(site, "check")
    assert checked.returncode == 1
    assert f"1 of {len(BAD) + 2} connectors can be served" in checked.stdout
    assert f"{site.file}:{lines['env']}: connectors.env.env.A: expected text or a number" in checked.stdout


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("connectors: [\n", ":2:1: not valid YAML"),
        ("connectors: [a]\n", ":1: connectors: expected a mapping, got a list"),
        ("defaults: {timeout: 5}\n", ":1: defaults.timeout: 5 is not a duration"),
    ],
)
def test_a_file_that_cannot_be_used_as_a_whole_ends_the_start_with_one_clear_line(
    site: Site, text: str, problem: str
) -> None:
    site.file.write_text(text)
    ended = cli(site, "serve")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"error: {site.file}{problem}")
    assert ended.stderr.count("\n") == 1


async def test_a_missing_executable_is_listed_and_a_call_of_it_answers_502(site: Site) -> None:
    site.configure(f"gone: {{run: [./gone.sh], {GO}}}")
    async with served(site) as gateway:
        assert await gateway.commands() == ["gone/Go"]
        answer = await gateway.do("gone/Go")
        assert (answer.status, answer.code) == (502, "connector_start_failed")
        site.script("gone.sh", "echo 1")
        await eventually(lambda: arrived(gateway, "gone/Go", 1), SOON)
    (site.folder / "gone.sh").unlink()
    checked = cli(site, "check")
    assert checked.returncode == 1
    assert f"{site.folder}/gone.sh does not exist: calls answer connector_start_failed" in checked.stdout


async def arrived(gateway: Server, target: str, body: Any) -> bool:
    """Tell whether a call answers this."""
    answer = await gateway.do(target)
    return answer.status == 200 and answer.body == body


async def test_a_connector_heals_by_itself_when_what_it_lacks_arrives(site: Site) -> None:
    tools = site.folder / "tools"
    tools.mkdir()
    site.script("connectors.d/speaks.x", "", shell="/usr/bin/env nosuch-interpreter")
    site.configure(f"program: {{run: [nosuch-program], {GO}}}\nfile: {{run: [./late.sh]}}")
    async with served(site, env={"PATH": f"{tools}:{os.environ['PATH']}"}) as gateway:
        assert await gateway.commands() == []
        assert "describe could not be started" in (await quarantined(gateway, "file") or "")
        assert await quarantined(gateway, "speaks") == "nosuch-interpreter not found: the #! line of speaks.x needs it"
        describing(site, "late.sh")
        await becomes(gateway, ["file/Go"])
        describing(site, "tools/nosuch-interpreter", answer="spoken")
        site.script("tools/nosuch-program", "echo 1")
        await eventually(lambda: arrived(gateway, "speaks/Go", "spoken"))
        assert await gateway.commands() == ["file/Go", "program/Go", "speaks/Go"]
        assert (await gateway.do("program/Go")).body == 1


async def test_one_reading_tries_all_that_lack_something_and_the_pause_grows_with_what_it_takes(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "FIRST_RETRY", 60.0)
    site.configure("\n".join(f"gone{number}: {{run: [nosuch-program], {GO}}}" for number in range(5)))
    async with opened(site) as (registry, _):
        loads, load = 0, registry._load

        async def counted() -> None:
            nonlocal loads
            loads += 1
            await load()

        monkeypatch.setattr(registry, "_load", counted)
        await registry._retry()
        assert loads == 0  # it is nobody's time
        registry._retries["gone3"] = (0.0, 1)
        await registry._retry()
        await registry._retry()
        assert loads == 1
        [first, *others] = [moment for moment, _ in registry._retries.values()]
        assert others == [first] * 4
        registry._took = 4.0
        registry._retries["gone1"] = (0.0, 1)
        before = time.monotonic()
        await registry._retry()
        assert loads == 2
        assert min(moment for moment, _ in registry._retries.values()) >= before + 4.0 * registry_module.SPARING
        assert max(moment for moment, _ in registry._retries.values()) <= time.monotonic() + registry_module.LAST_RETRY


async def test_drop_ins_that_cannot_be_told_apart_or_started_are_quarantined_with_a_hint(site: Site) -> None:
    describing(site, "connectors.d/twin.py")
    describing(site, "connectors.d/twin.sh")
    locked = describing(site, "connectors.d/locked.sh")
    locked.chmod(0o644)
    (site.drop_ins / "dangling").symlink_to("nowhere")
    describing(site, "connectors.d/bad name.sh")
    describing(site, "connectors.d/good.sh")
    site.configure()
    async with served(site) as gateway:
        assert await gateway.commands() == ["good/Go"]
        assert "twin.py claims the name twin too: rename one of them" in (await quarantined(gateway, "twin") or "")
        assert await quarantined(gateway, "locked") == f"{locked} is not executable: chmod +x {locked}"
        assert await quarantined(gateway, "dangling") == f"{site.drop_ins}/dangling: the link leads nowhere"
        assert "this name cannot be a connector's" in (await quarantined(gateway, "bad name") or "")
        locked.chmod(0o755)
        (site.drop_ins / "twin.py").rename(site.drop_ins / "other.py")
        (site.drop_ins / "bad name.sh").unlink()
        await eventually(lambda: lists(gateway, ["good/Go", "locked/Go", "other/Go", "twin/Go"]), SOON)


async def lists(gateway: Server, commands: list[str]) -> bool:
    """Tell whether exactly these commands are listed."""
    return await gateway.commands() == commands


# --- describing


TOLD = {
    "crash": ("kill -SEGV $$", "describe died of SIGSEGV"),
    "status": ("echo '{\"commands\": []}'; echo no licence >&2; exit 3", "describe failed: exit status 3; stderr: no licence"),
    "silence": ("exit 0", "describe failed: its output is empty"),
    "garbage": ("echo hello; exit 1", "describe failed (exit status 1): its output is not one JSON document"),
    "list": ("echo '[]'", "describe failed: "),
    "keys": ("echo '{\"comands\": []}'", 'describe failed: it has no "commands"'),
    "error": ('echo \'{"error": {"error_code": "NoLicence", "message": "buy one"}}\'', "describe failed: it answered NoLicence: buy one"),
    "twice": ('echo \'{"commands": [{"name": "Go"}, {"name": "Go"}]}\'', "describe names a command twice"),
    "slash": ('echo \'{"commands": [{"name": "a/b"}]}\'', "describe names a command 'a/b': a name is not empty and has no /"),
    "kind": ('echo \'{"commands": [{"name": "Go", "parameters": [{"id": "a", "type": "float"}]}]}\'', "describe failed: "),
    "schema": ('echo \'{"commands": [{"name": "Go", "parameters": [{"id": "a", "schema": {"type": "x"}}]}]}\'', "describe, command Go: a: schema"),
    "context": ('echo \'{"commands": [{"name": "Go", "parameters": [{"id": "spiff__x"}]}]}\'', "Go is left out: parameters.spiff__x: names that begin with spiff__ are the caller's"),
    "again": ('echo \'{"commands": [{"name": "Go", "parameters": [{"id": "a"}, {"id": "a"}]}]}\'', "Go is left out: parameters.a: named twice"),
    "latin": ("printf '{\"commands\": [], \"x\": \"\\351\"}'", "describe failed: its output is not UTF-8"),
}  # fmt: skip


async def test_an_executable_that_does_not_describe_itself_is_quarantined_with_what_it_did_instead(site: Site) -> None:
    for name, (text, _) in TOLD.items():
        site.script(f"connectors.d/{name}", text)
    describing(site, "connectors.d/good.sh")
    site.configure()
    async with served(site) as gateway:
        assert await gateway.commands() == ["good/Go"]
        for name, (_, problem) in TOLD.items():
            assert (await quarantined(gateway, name) or "").startswith(problem), name
        answer = await gateway.do("error/Go")
        assert (answer.status, answer.code) == (503, "connector_unavailable")
        assert "buy one" in answer.message
        describing(site, "connectors.d/crash", answer="mended")
        await becomes(gateway, ["crash/Go", "good/Go"])


async def test_a_described_command_whose_parameters_cannot_be_called_so_is_left_out_and_others_are_served(
    site: Site,
) -> None:
    commands = [{"name": "Bad", "parameters": [{"id": "spiff__x"}]}, {"name": "Go"}]
    auths = [{"name": "Sign", "parameters": [{"id": "a"}, {"id": "a"}]}]
    site.script("connectors.d/some", f"echo '{json.dumps({'commands': commands, 'auths': auths})}'")
    site.configure()
    async with served(site) as gateway:
        assert await gateway.commands() == ["some/Go"]
        notices = (await gateway.status("some"))["notices"]
        context = "names that begin with spiff__ are the caller's context, never parameters"
        assert any(one.startswith(f"Bad is left out: parameters.spiff__x: {context}") for one in notices)
        assert any(one.startswith("auths/Sign is left out: parameters.a: named twice") for one in notices)


@contextlib.asynccontextmanager
async def opened(site: Site) -> AsyncIterator[tuple[Registry, list[Event]]]:
    """Load a registry in this process, without watching."""
    settings, _ = read_settings(site.file, environ=os.environ)
    run = site.state / "run" / "test"
    run.mkdir(parents=True, exist_ok=True)
    cells = Cells(run)
    events: list[Event] = []
    bus = Bus()
    bus.listen(events.append)
    registry = Registry(settings, Describer(SpawnPool(cells), site.state / "describe"), bus)
    try:
        await registry.open(watch=False)
        await registry.described()
        yield registry, events
    finally:
        await registry.close()
        await cells.close()


async def test_a_description_that_does_not_come_is_given_up_with_all_its_processes(site: Site) -> None:
    site.script("connectors.d/hangs.sh", "trap '' TERM; setsid sleep 1000 & echo thinking >&2; sleep 1000")
    describing(site, "connectors.d/good.sh")
    site.configure("hangs: {describe_timeout: 300ms}")
    async with opened(site) as (registry, events):
        statuses = registry.snapshot.statuses
        assert statuses["good"].state is ConnectorState.READY
        assert statuses["hangs"].reason == "did not describe itself within 0.3 s (describe_timeout); stderr: thinking"
        assert [event.connector for event in events if isinstance(event, Quarantined)] == ["hangs"]


async def test_a_gateway_that_asks_for_long_is_not_waited_for_by_another_one(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(describe_module, "PATIENCE", 0.1)
    describing(site, "connectors.d/good.sh")
    site.configure()
    (site.state / "describe").mkdir(parents=True)
    with (site.state / "describe/good.lock").open("wb") as other:
        assert lock(other.fileno(), wait=False)
        async with opened(site) as (registry, _):
            assert registry.snapshot.statuses["good"].state is ConnectorState.READY


async def test_a_description_that_another_gateway_is_told_meanwhile_is_taken(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    describing(site, "connectors.d/good.sh")
    site.configure()
    async with opened(site):
        pass
    remembered = site.state / "describe/good.json"
    said = remembered.read_bytes()
    remembered.unlink()
    tried: list[int] = []
    monkeypatch.setattr(describe_module, "lock", lambda fd, *, wait: tried.append(fd) or lock(fd, wait=wait))

    async def tell() -> None:
        await eventually(lambda: tried)
        remembered.write_bytes(said)

    with (site.state / "describe/good.lock").open("wb") as other:
        assert lock(other.fileno(), wait=False)
        telling = asyncio.create_task(tell())
        async with opened(site) as (registry, _):
            assert registry.snapshot.statuses["good"].state is ConnectorState.READY
        await telling
    assert asked(site) == 1


async def test_a_description_that_cannot_be_remembered_counts_all_the_same(site: Site) -> None:
    describing(site, "connectors.d/good.sh")
    site.configure()
    site.state.mkdir()
    (site.state / "describe").write_text("a file where the folder should be")
    async with opened(site) as (registry, _):
        assert registry.snapshot.statuses["good"].state is ConnectorState.READY


async def test_a_description_that_was_remembered_wrongly_is_asked_for_again(site: Site) -> None:
    describing(site, "connectors.d/good.sh")
    site.configure()
    for text in ("", "{", "[]", '{"identity": "x", "description": {}}'):
        (site.state / "describe").mkdir(parents=True, exist_ok=True)
        (site.state / "describe/good.json").write_text(text)
        async with opened(site) as (registry, _):
            assert registry.snapshot.statuses["good"].state is ConnectorState.READY
    assert asked(site) == 4


async def test_an_executable_is_asked_once_however_often_the_gateway_starts(site: Site) -> None:
    describing(site, "connectors.d/hello.sh")
    site.configure()
    for _ in range(2):
        assert json.loads(cli(site, "list", "--json").stdout)[0]["id"] == "hello/Go"
    async with served(site) as gateway:
        assert await gateway.commands() == ["hello/Go"]
        assert asked(site) == 1
        describing(site, "connectors.d/hello.sh", commands=("Come", "Go"))
        await eventually(lambda: lists(gateway, ["hello/Come", "hello/Go"]), SOON)
        assert asked(site) == 2
        remembered = site.state / "describe" / "hello.json"
        before = remembered.read_bytes()
        site.configure("hello: {config: {a: 1}}")  # which may change what it can do
        await eventually(lambda: remembered.read_bytes() != before, SOON)
        assert asked(site) == 3
        assert await gateway.commands() == ["hello/Come", "hello/Go"]
    cli(site, "list")
    assert asked(site) == 3


async def test_three_hundred_connectors_load_and_listing_them_starts_nothing(site: Site) -> None:
    for number in range(30):
        describing(site, f"connectors.d/told{number:03}.sh")
    declared = {f"declared{number:03}": f"{{run: [cat], {GO}}}" for number in range(270)}
    site.configure("\n".join(f"{name}: {text}" for name, text in declared.items()))
    expected = [f"{name}/Go" for name in sorted([*declared, *(f"told{number:03}" for number in range(30))])]
    async with served(site) as gateway:
        assert await gateway.commands() == expected
        assert asked(site) == 30
        processes = gateway.processes()
        begun = time.monotonic()
        for _ in range(100):
            assert (await gateway.get("/v1/commands")).status == 200
        assert time.monotonic() - begun < 20
        assert asked(site) == 30
        assert gateway.processes() == processes
        site.configure("\n".join(f"{name}: {text}" for name, text in declared.items() if name != "declared000"))
        await becomes(gateway, expected[1:])
        assert asked(site) == 30


# --- changes


def version(number: int) -> str:
    """Return a connectors.yaml whose one command tells its version."""
    return f"connectors:\n  x: {{run: [cat], commands: {{V{number}: {{}}}}}}\n"


async def test_a_file_written_in_place_or_renamed_over_is_seen(site: Site) -> None:
    site.file.write_text(version(1))
    async with served(site) as gateway:
        site.file.write_text(version(2))
        await becomes(gateway, ["x/V2"])
        replaced(site.file, version(3))
        await becomes(gateway, ["x/V3"])
        site.file.rename(site.file.with_suffix(".bak"))
        site.file.write_text(version(4))
        await becomes(gateway, ["x/V4"])


async def test_a_checkout_of_another_branch_is_seen(site: Site) -> None:
    def git(*arguments: str) -> None:
        config = (
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@example.org",
            "-c",
            "init.defaultBranch=one",
            "-c",
            "core.hooksPath=/dev/null",
        )
        subprocess.run(["git", *config, *arguments], cwd=site.folder, check=True, capture_output=True)

    git("init")
    (site.folder / ".gitignore").write_text("*.log\n.gateway\nasked\n")
    site.file.write_text(version(1))
    describing(site, "connectors.d/told.sh", commands=("One",))
    git("add", ".")
    git("commit", "-m", "one")
    git("checkout", "-b", "two")
    site.file.write_text(version(2))
    describing(site, "connectors.d/told.sh", commands=("Two",))
    describing(site, "connectors.d/more.sh")
    git("add", ".")
    git("commit", "-m", "two")
    git("checkout", "one")
    async with served(site) as gateway:
        assert await gateway.commands() == ["told/One", "x/V1"]
        git("checkout", "two")
        await eventually(lambda: lists(gateway, ["more/Go", "told/Two", "x/V2"]), SOON)
        git("checkout", "one")
        await eventually(lambda: lists(gateway, ["told/One", "x/V1"]), SOON)


class ConfigMap:
    """A folder that is filled as Kubernetes fills one: all names lead through one link that is swapped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._versions = 0
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, **files: str) -> None:
        """Swap in a new set of files; a double underscore in a name stands for its dot."""
        contents = {name.replace("__", "."): text for name, text in files.items()}
        self._versions += 1
        fresh = self.folder / f"..2026_{self._versions}"
        fresh.mkdir()
        for name, text in contents.items():
            (fresh / name).write_text(text)
            (fresh / name).chmod(0o755)
        old = os.readlink(self.folder / "..data") if self._versions > 1 else None
        (self.folder / "..data_tmp").symlink_to(fresh.name)
        (self.folder / "..data_tmp").rename(self.folder / "..data")
        for name in contents:
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")
        for link in self.folder.iterdir():
            if link.is_symlink() and not link.name.startswith("..") and link.name not in contents:
                link.unlink()
        if old is not None:
            shutil.rmtree(self.folder / old)


async def test_a_config_map_with_the_registry_s_file_is_seen(site: Site) -> None:
    mounted = ConfigMap(site.folder)
    mounted.put(connectors__yaml=version(1))
    async with served(site) as gateway:
        for number in (2, 3):
            mounted.put(connectors__yaml=version(number))
            await becomes(gateway, [f"x/V{number}"])


async def test_a_config_map_with_drop_ins_is_seen(site: Site) -> None:
    def script(command: str) -> str:
        return f'#!/bin/sh\ncat >/dev/null\necho \'{{"commands": [{{"name": "{command}"}}]}}\'\n'

    mounted = ConfigMap(site.drop_ins)
    mounted.put(one__sh=script("A"), two__sh=script("A"))
    site.configure()
    async with served(site) as gateway:
        assert await gateway.commands() == ["one/A", "two/A"]
        mounted.put(one__sh=script("B"), two__sh=script("A"), three__sh=script("A"))
        await eventually(lambda: lists(gateway, ["one/B", "three/A", "two/A"]), SOON)
        mounted.put(one__sh=script("B"))
        await eventually(lambda: lists(gateway, ["one/B"]), SOON)


async def test_an_executable_that_is_replaced_is_asked_again_and_the_new_one_answers(site: Site) -> None:
    lone = describing(site, "connectors.d/lone.sh", answer="old")
    describing(site, "connectors.d/folder/bin/run", answer="old")
    (site.drop_ins / "folder/connector.yaml").write_text("run: [./bin/run]\n")
    named = describing(site, "named.sh", answer="old", commands=("Go",))
    site.configure("named: {run: [./named.sh]}")
    async with served(site) as gateway:
        assert await gateway.commands() == ["folder/Go", "lone/Go", "named/Go"]
        for file in (lone, named, site.drop_ins / "folder/bin/run"):
            replaced(file, file.read_text().replace("old", "new").replace('"Go"', '"Went"'))
        await eventually(lambda: lists(gateway, ["folder/Went", "lone/Went", "named/Went"]), SOON)
        for name in ("folder", "lone", "named"):
            assert (await gateway.do(f"{name}/Went")).body == "new"


async def test_work_in_flight_ends_on_the_definition_that_it_began_with(site: Site) -> None:
    gate = site.folder / "gate"
    waiting = f'request=$(cat); echo "$request" >&2; while [ ! -e "{gate}" ]; do sleep 0.02; done; echo \'"old"\''
    script = site.script("work.sh", waiting)
    site.configure(f"work: {{run: [./work.sh], config: {{v: 1}}, {GO}}}\nleaves: {{run: [./work.sh], {GO}}}")
    async with served(site) as gateway:
        calls = [asyncio.create_task(gateway.do(f"{name}/Go")) for name in ("work", "leaves")]
        await eventually(lambda: len(gateway.events("log")) == 2)
        replaced(script, "#!/bin/sh\necho '\"new\"'\n")
        site.configure(f"work: {{run: [./work.sh], config: {{v: 2}}, {GO}}}")
        await becomes(gateway, ["work/Go"])
        assert (await gateway.do("work/Go")).body == "new"
        assert (await gateway.do("leaves/Go")).code == "command_not_found"
        assert not any(call.done() for call in calls)
        gate.touch()
        assert [(await call).body for call in calls] == ["old", "old"]


# --- the last good state


BREAKS = {
    "no_yaml": "connectors: [\n",
    "truncated": "",
    "half": version(2)[:30],
    "list": "- x\n",
    "misspelt": version(2).replace("connectors", "conectors"),
    "defaults": "defaults: {timeout: 5}\n" + version(2),
    "connectors": "connectors: 5\n",
    "twice": version(2) + "connectors: {}\n",
    "binary": "\0\1\2",
}


@pytest.mark.parametrize("text", BREAKS.values(), ids=BREAKS)
async def test_a_file_that_cannot_be_used_changes_nothing(site: Site, text: str) -> None:
    site.file.write_text(version(1))
    async with opened(site) as (registry, events):
        before = registry.snapshot
        site.file.write_text(text)
        for _ in range(2):
            await registry.reload()
            assert (registry.problem or "").startswith(str(site.file))
            assert registry.snapshot is before
        assert [event.reason for event in events if isinstance(event, ReloadFailed)] == [registry.problem]
        site.file.write_text(version(2))
        await registry.reload()
        assert registry.problem is None
        assert b"x/V2" in registry.snapshot.commands


async def test_a_file_that_breaks_while_the_gateway_runs_is_told_and_served_again_when_mended(site: Site) -> None:
    site.file.write_text(version(1))
    async with served(site) as gateway:
        site.file.write_text("connectors: [\n")
        problem = await eventually(lambda: told(gateway), SOON)
        assert problem.startswith(f"{site.file}:2:1: not valid YAML")
        assert gateway.events("reload_failed", reason=problem)
        assert await gateway.commands() == ["x/V1"]
        site.file.write_text("")
        assert await eventually(lambda: told_other(gateway, problem), SOON) == f"{site.file}: the file is empty"
        assert (await gateway.do("x/V1")).status == 200
        site.file.write_text(version(2))
        await becomes(gateway, ["x/V2"])
        assert await told(gateway) is None


async def told(gateway: Server) -> str | None:
    """Return what the status view says is wrong with the registry."""
    problem: str | None = (await gateway.status())["registry_problem"]
    return problem


async def untold(gateway: Server) -> bool:
    """Tell whether nothing is."""
    return await told(gateway) is None


async def test_files_that_are_removed_take_nothing_with_them(site: Site) -> None:
    describing(site, "connectors.d/told.sh")
    site.file.write_text(version(1))
    async with served(site) as gateway:
        before = await gateway.commands()
        site.file.rename(site.folder / "elsewhere.yaml")
        assert "No such file" in await eventually(lambda: told(gateway), SOON)
        assert await gateway.commands() == before
        (site.folder / "elsewhere.yaml").rename(site.file)
        await eventually(lambda: untold(gateway), SOON)
        site.drop_ins.rename(site.folder / "elsewhere")
        assert await eventually(lambda: told(gateway), SOON) == f"{site.drop_ins}: the folder is gone"
        assert await gateway.commands() == before
        site.drop_ins.write_text("a file where the folder should be")
        assert "Not a directory" in await eventually(lambda: told_other(gateway, "the folder is gone"), SOON)
        assert await gateway.commands() == before
        site.drop_ins.unlink()
        (site.folder / "elsewhere").rename(site.drop_ins)
        await eventually(lambda: untold(gateway), SOON)
        assert await gateway.commands() == before
        assert len(gateway.events("reload_failed")) <= 4  # each state once, with one between two of them
        (site.drop_ins / "told.sh").unlink()  # this one is meant
        await becomes(gateway, ["x/V1"])


async def told_other(gateway: Server, than: str) -> str | None:
    """Return what the status view says is wrong, when it is something else."""
    problem = await told(gateway)
    return problem if problem and than not in problem else None


async def test_sighup_tries_again_at_once_what_no_file_tells_of(site: Site) -> None:
    licence = site.folder / "licence"
    site.script(
        "connectors.d/licensed.sh",
        f"""
        cat >/dev/null
        [ -e "{licence}" ] || exit 1
        echo '{{"commands": [{{"name": "Go"}}]}}'
        """,
    )
    site.configure()
    async with served(site) as gateway:
        assert "exit status 1" in (await quarantined(gateway, "licensed") or "")
        licence.touch()
        gateway.signal(signal.SIGHUP)
        await becomes(gateway, ["licensed/Go"], patience=2)


async def test_after_sighup_the_files_are_not_read_all_the_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.configure("bad: {run: [nosuch-program]}")
    looks, reads = [], []
    look, read = registry_module.fingerprint, registry_module.read_sources
    monkeypatch.setattr(registry_module, "POLL", 0.01)
    monkeypatch.setattr(registry_module, "fingerprint", lambda settings: looks.append(1) or look(settings))
    monkeypatch.setattr(registry_module, "read_sources", lambda *given: reads.append(1) or read(*given))
    settings, _ = read_settings(site.file)
    cells = Cells(site.state)
    registry = Registry(settings, Describer(SpawnPool(cells), site.state), Bus())
    await registry.open()
    await registry.reload(retry=True)
    looks.clear()
    await eventually(lambda: len(looks) > 30)
    await registry.close()
    assert len(reads) <= 3  # at the start, at once, and when the watcher found that its time had come


async def test_a_problem_of_the_watcher_itself_does_not_end_the_watch(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.file.write_text(version(1))
    monkeypatch.setattr(registry_module, "POLL", 0.01)
    settings, _ = read_settings(site.file)
    events: list[Event] = []
    bus = Bus()
    bus.listen(events.append)
    registry = Registry(settings, Describer(SpawnPool(Cells(site.state)), site.state), bus)
    await registry.open()
    with monkeypatch.context() as broken:
        broken.setattr(registry_module, "fingerprint", lambda _settings: 1 / 0)
        await eventually(lambda: [event for event in events if isinstance(event, ReloadFailed)])
    site.file.write_text(version(2))
    await eventually(lambda: "V2" in (next(registry.snapshot.ready()).commands or {}))
    await registry.close()
    assert not [event for event in events if isinstance(event, ConnectorWarning)]


async def test_what_a_connector_tells_of_itself_holds_none_of_its_secrets(site: Site) -> None:
    told = {"commands": [{"name": "Go"}], "problems": [{"module": "m", "message": "it raised with s3cret-7 in it"}]}
    describing(site, "teller.sh", told=json.dumps(told))
    site.configure("teller: {run: [./teller.sh], config: {api_key: s3cret-7}}")
    async with served(site) as gateway:
        (notice,) = (await gateway.status("teller"))["notices"]
        assert notice == "m is left out: it raised with [redacted] in it"
        assert "s3cret-7" not in gateway.log()
    assert "s3cret-7" not in cli(site, "check", "--json").stdout
