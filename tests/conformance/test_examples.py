"""Every example in the documents works: no block of code is left out.

Blocks of docs/authors.md that say what they are (`run`, `output`, `file=PATH`) are run by test_authors.py. YAML is read as the
gateway reads it, JSON is parsed, commands must exist, and each other block is run by the test that is named in `RUN`.
`<!-- not run: REASON -->` above a block exempts it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, NamedTuple

import click
import pytest
import uv
import yaml

from gateway.cli.main import main
from gateway.connectors.definition import define, recognise
from gateway.connectors.sources import Entry, Sources, read_sources
from gateway.errors import Quarantine
from gateway.jobs.contract import JobStatus
from gateway.jobs.settings import read_sections
from gateway.protocol.description import read_description
from gateway.protocol.document import read_object
from gateway.protocol.request import DescribeRequest
from gateway.settings import SECTIONS, Settings, read_settings
from tests.support import Site, cli, served
from tests.test_authors import missing, run
from tests.test_authors import program as on_path

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(str(file.relative_to(ROOT)) for folder in ("docs", "runners", "deploy") for file in (ROOT / folder).rglob("*.md")),
]  # fmt: skip
FENCE = re.compile(r"^(?:<!-- not run: (.+) -->\n+)?```(\w*) ?(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
RUN = {
    ("README.md", "sh", "make demo"): "test_the_targets_of_make_exist",
    ("README.md", "sh", ".venv/bin/gateway serve"): "test_the_commands_of_the_readme_work",
    ("README.md", "sh", ".venv/bin/gateway install"): "test_the_commands_of_the_readme_work",
    ("README.md", "sh", "#!/bin/sh"): "test_the_connector_of_the_readme_answers",
    ("docs/cli.md", "sh", "gateway call"): "test_the_calls_of_the_command_line_work",
    ("docs/operating.md", "sh", "gateway check"): "test_the_steps_of_a_start_work",
    ("docs/upgrading.md", "sh", "python3 -c"): "test_a_backup_of_a_store_is_a_store",
    ("docs/jobs.md", "console", "$ curl"): "test_the_list_of_jobs_looks_so",
    ("docs/modes.md", "python", "import json"): "test_the_loop_of_a_persistent_process_serves",
    (
        "docs/spiff-arena.md",
        "sh",
        "export SPIFFWORKFLOW",
    ): "test_the_variables_of_the_backend_are_those_of_the_compose_file",
    ("docs/migrating.md", "python", "AWS_ACCESS_KEY_ID"): "test_what_stood_in_config_py_stands_in_config",
    ("docs/migrating.md", "sh", "docker build"): "test_the_image_is_used_as_it_was_built",
    ("docs/migrating.md", "sh", "gateway install"): "test_the_steps_of_a_migration_work",
    ("docs/migrating.md", "sh", "gateway serve"): "test_the_steps_of_a_migration_work",
    ("docs/migrating.md", "sh", "offered() {"): "test_what_two_gateways_offer_can_be_compared",
}
ELSEWHERE = {
    *(("README.md", "console"), ("docs/http.md", "console")),  # tests/test_curl.py
    *(("docs/clients.md", language) for language in ("python", "console", "sh")),  # tests/cli/test_clients.py
    ("docs/audit.md", "console"),  # tests/observe/test_audit.py: what a line holds
    ("docs/security.md", "sh"),  # tests/http/test_tls.py
    ("docs/runs.md", "console"),  # tests/cli/test_runs.py: each of the verbs
    ("docs/tracing.md", "sh"),  # tests/observe/test_tracing.py, with the same variables
}
PICTURE = ""  # a block without a language
# What lacks here what `gateway install` or the machine would bring is understood all the same.
NOT_HERE = re.compile(
    r"not installed: run gateway install|\w+ not found: install it"
    r"|\S+: connectors\.\w+\.(read|write): /srv/\w+ does not exist"  # the reader's own
    r"|\S+: connectors\.\S+: (there is no secret \w+\. Looked for|the variable \w+ is not set)"
)


class Block(NamedTuple):
    """What stands between two fences."""

    file: str
    line: int
    exempt: str
    language: str
    role: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.file}:{self.line}"


def blocks() -> Iterator[Block]:
    for file in DOCUMENTS:
        text = (ROOT / file).read_text()
        for found in FENCE.finditer(text):
            yield Block(file, text.count("\n", 0, found.start()) + 1, *(part or "" for part in found.groups()))


BLOCKS = list(blocks())
LOOSE = [block for block in BLOCKS if not block.role and not block.exempt]
ARENA = ROOT / "deploy/spiff-arena"
PERL = pytest.mark.skipif(shutil.which("perl") is None, reason="there is no perl here")
CURL = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")


def is_of_the_backend(block: Block) -> bool:
    """Tell whether it is a part of the file in which the workflow backend has its permissions."""
    return block.language == "yaml" and block.text.startswith("users:\n")


def is_of_a_client(block: Block) -> bool:
    """Tell whether it is the file of a client, or a part of one."""
    return block.language == "yaml" and not {"keys", "limits", "allow"}.isdisjoint(yaml.safe_load(block.text))


def of(language: str) -> pytest.MarkDecorator:
    others = (is_of_the_backend, is_of_a_client)
    chosen = [block for block in LOOSE if block.language == language and not any(one(block) for one in others)]
    return pytest.mark.parametrize("block", chosen, ids=[block.name for block in chosen])


def the(file: str, language: str, start: str) -> str:
    """Return the text of one block."""
    (found,) = [
        one.text for one in LOOSE if (one.file, one.language) == (file, language) and one.text.startswith(start)
    ]
    return found


# --- all of them


def test_no_block_is_left_out() -> None:
    for file in DOCUMENTS:
        fences = len(re.findall(r"^```", (ROOT / file).read_text(), flags=re.MULTILINE))
        assert fences == 2 * len([block for block in BLOCKS if block.file == file]), file
    for block in BLOCKS:
        assert not block.role or block.file == "docs/authors.md", (
            f"{block.name}: test_authors.py does not run this file"
        )
    others = {(one.file, one.language, one.text) for one in LOOSE if one.language not in {"yaml", "json", PICTURE}}
    for key in [key for key in others if key[:2] not in ELSEWHERE]:
        assert [start for start in RUN if start[:2] == key[:2] and key[2].startswith(start[2])], key
    assert all(callable(globals().get(test)) for test in RUN.values())


def test_an_exemption_has_a_reason() -> None:
    assert all(len(block.exempt.split()) > 3 for block in BLOCKS if block.exempt)


# --- YAML


@of("yaml")
def test_yaml_is_what_the_gateway_reads(block: Block, tmp_path: Path) -> None:
    site = Site(tmp_path)
    if yaml.safe_load(block.text).keys() <= set(SECTIONS):
        site.file.write_text(block.text)
    else:
        site.file.write_text(f"connectors:\n  it:\n{indented(extended(block))}")
    settings, _ = read_settings(site.file, environ={"PATH": "/usr/bin:/bin"}, lenient=True)
    read_sections(settings)
    sources = read_sources(settings)
    for entry in sources.entries:
        for word in words_of(entry.node.data):
            if word.endswith("]") or word.startswith("--find-links"):  # folders of packages
                (site.folder / word.split()[-1].partition("[")[0]).mkdir()
            elif word.startswith("./"):  # a file that the example takes for granted
                site.script(word, "cat")
            elif word.endswith(".txt"):  # requirements
                (site.folder / word.split()[-1]).touch()
        if entry.node.data.get("enabled") is False or "Overlays" in heading(block):
            continue
        assert recognise(entry, sources.defaults, settings) is not None
        reason = lacks(entry, sources, settings)
        assert reason is None or NOT_HERE.match(reason), f"{block.name}: {reason}"


@pytest.mark.parametrize(
    "block", [one for one in LOOSE if is_of_a_client(one)], ids=[one.name for one in LOOSE if is_of_a_client(one)]
)
def test_the_file_of_a_client_is_understood(block: Block, tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.file.write_text("connectors: {aws: {run: [cat]}, echo: {run: [cat]}}")
    (tmp_path / "clients.d").mkdir()
    whole = re.sub(r"\b[0-9a-f]{4}\.\.\.", lambda found: found[0][:4] * 16, block.text)
    (tmp_path / "clients.d" / "acme.yaml").write_text(whole)
    settings, _ = read_settings(site.file, environ={})
    clients = read_sources(settings).clients or {}
    assert clients["acme"].client.problem is None


def lacks(entry: Entry, sources: Sources, settings: Settings) -> str | None:
    """Return why a connector cannot be served."""
    try:
        define(entry, sources.defaults, settings)
    except Quarantine as problem:
        return str(problem)
    return None


def extended(block: Block) -> str:
    """Return the part of a connector.yaml with the file that it is added to: the last one above it."""
    above = [one for one in BLOCKS if one.file == block.file and one.line < block.line and one.role.endswith(".yaml")]
    return above[-1].text + block.text


def indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


def heading(block: Block) -> str:
    above = (ROOT / block.file).read_text().splitlines()[: block.line]
    return [line for line in above if line.startswith("#")][-1]


def words_of(data: object) -> Iterator[str]:
    if isinstance(data, dict | list):
        for one in data.values() if isinstance(data, dict) else data:
            yield from words_of(one)
    elif isinstance(data, str):
        yield data


def requirements() -> dict[tuple[str, str], str]:
    """Return the Python packages that examples name, each with the version of Python that they ask for."""
    found = {}
    for block in BLOCKS:
        if block.language == "yaml" and not block.exempt:
            entries = yaml.safe_load(block.text)
            for entry in [entries, *entries.get("connectors", {}).values()] if isinstance(entries, dict) else []:
                listed = entry.get("requirements", []) if isinstance(entry, dict) else []
                for one in listed if isinstance(listed, list) else []:  # or a file
                    if not one.startswith((".", "-")) and "://" not in one:
                        found[one, entry.get("python", "3.11")] = block.name
    return found


@pytest.mark.parametrize(("requirement", "python"), requirements())
def test_the_packages_that_examples_name_exist_for_that_python(requirement: str, python: str) -> None:
    why = missing("pypi")
    if why is not None:
        pytest.skip(why)
    done = subprocess.run(
        [uv.find_uv_bin(), "pip", "compile", "--quiet", "--python-version", python, "-"],
        input=requirement, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# --- JSON


@of("json")
def test_json_is_one_object(block: Block) -> None:
    assert isinstance(json.loads(block.text), dict)


def test_the_requests_and_descriptions_of_the_protocol_are_those() -> None:
    request = json.loads(the("docs/protocol.md", "json", '{"protocol": 1, "op": "execute"'))
    assert read_object(json.dumps(request).encode()).keys() >= {"op", "command", "params", "task_data", "context"}
    description = read_description(the("docs/protocol.md", "json", '{"commands"').encode())
    assert [command.name for command in description.commands] == ["Send"]
    assert DescribeRequest().op == "describe"


# --- the workflow backend


@pytest.mark.parametrize("block", [*filter(is_of_the_backend, LOOSE)], ids=lambda block: block.name)
def test_permissions_are_a_part_of_those_in_the_compose_file(block: Block) -> None:
    whole = yaml.safe_load((ARENA / "permissions.yml").read_text())
    for section, entries in yaml.safe_load(block.text).items():
        assert entries.items() <= whole[section].items()


def test_the_variables_of_the_backend_are_those_of_the_compose_file() -> None:
    services = yaml.safe_load((ARENA / "compose.yaml").read_text())["services"].values()
    known = {name for service in services for name in service.get("environment", {})}
    shown = [one for one in LOOSE if one.file == "docs/spiff-arena.md" and one.language == "sh"]
    lines = [line for block in shown for line in block.text.splitlines()]
    assert {line.removeprefix("export ").partition("=")[0] for line in lines} <= known


# --- moving from the proxy that there was


def test_what_stood_in_config_py_stands_in_config() -> None:
    before: dict[str, str] = {}
    exec(the("docs/migrating.md", "python", "AWS_ACCESS_KEY_ID"), {}, before)  # as Flask reads it
    entries = yaml.safe_load(
        the("docs/migrating.md", "yaml", "connectors:\n  aws:\n    runtime: python\n    requirements: [.")
    )["connectors"].values()
    after = {name: value for entry in entries for name, value in entry["config"].items()}
    assert before.pop("SECRET_KEY")
    assert after == before


def test_the_image_is_used_as_it_was_built() -> None:
    built = (ROOT / "Dockerfile").read_text()
    shown = the("docs/migrating.md", "sh", "docker build").replace("\\\n", " ")
    assert {"WORKDIR /etc/gateway", "VOLUME /var/lib/gateway"} <= set(built.splitlines())
    _, install, serve = (shlex.split(line) for line in shown.splitlines())
    for words in (install, serve):
        volumes = [words[number + 1].split(":")[1] for number, word in enumerate(words) if word == "-v"]
        assert volumes == ["/etc/gateway", "/var/lib/gateway"]
    assert install[-3:] == ["gateway", "gateway", "install"]
    assert serve[-1] == "gateway"


def test_the_steps_of_a_migration_work(site: Site) -> None:
    site.configure("fax: {run: [cat], commands: {Send: {}}}")
    lines = [
        line
        for start in ("gateway install", "gateway serve")
        for line in the("docs/migrating.md", "sh", start).splitlines()
    ]
    verbs = {words[1]: words[1:] for line in lines for words in simple_commands(line)}
    assert verbs.keys() == {"install", "check", "list", "serve"}
    for verb in ("install", "check", "list"):
        done = cli(site, *verbs[verb])
        assert done.returncode == 0, done.stderr


@CURL
async def test_what_two_gateways_offer_can_be_compared(tmp_path: Path) -> None:
    sites = [Site(tmp_path / name) for name in ("first", "second")]
    script = the("docs/migrating.md", "sh", "offered() {")
    for site in sites:
        site.configure("fax: {run: [cat], commands: {Send: {parameters: {to: {type: str}}}}}", gateway="api_key: KEY")
    async with served(sites[0]) as first, served(sites[1]) as second:
        for there, gateway in (("localhost:7004", first), ("localhost:7005", second)):
            script = script.replace(there, f"127.0.0.1:{gateway.port}")
        environ = {"PATH": os.environ["PATH"], "CONNECTOR_PROXY_API_KEY": "KEY"}
        done = subprocess.run(
            ["sh", "-euc", script], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=30
        )
    assert done.stdout == "both offer the same\n", done.stderr
    assert (tmp_path / "original.txt").read_text() == "fax/Send to\n"


# --- commands


def commands() -> dict[str, list[str]]:
    """Return the arguments of every `gateway` that documents show, in blocks and in running text."""
    found = {}
    for file in DOCUMENTS:
        text = (ROOT / file).read_text()
        for inline in re.findall(r"`gateway ([^`\n]+)`", FENCE.sub("", text)):
            found[f"{file}: gateway {inline}"] = re.sub(r"[\[\]]|\.\.\.", " ", inline).split()
    for block in BLOCKS:
        if block.language in {"sh", "console"} and not block.role.startswith("file="):
            for line in block.text.splitlines():
                for words in simple_commands(line):
                    found[f"{block.name}: {' '.join(words)}"] = words[1:]
    return found


def simple_commands(line: str) -> Iterator[list[str]]:
    """Return the commands of a line of shell that start the gateway."""
    lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"] if "gateway" in line else []:
        if not set(word) <= set("();|&"):
            words.append(word)
            continue
        if words and PurePath(words[0]).name == "gateway":
            yield words
        words = []


@pytest.mark.parametrize("shown", commands())
def test_verbs_and_options_exist(shown: str) -> None:
    command: click.Command = main
    words = list(commands()[shown])
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        word = words.pop(0)
        assert word in command.commands, shown
        command = command.commands[word]
    context = click.Context(command)
    options = {option for one in command.get_params(context) for option in one.opts}
    assert {word.partition("=")[0] for word in words if re.match("-[-a-z]", word)} <= options, shown


def test_the_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for file in DOCUMENTS:
        assert set(re.findall(r"(?:`|^)make ([\w-]+)", (ROOT / file).read_text(), flags=re.MULTILINE)) <= targets, file


@pytest.fixture
def ours(tmp_path: Path) -> Site:
    """The connectors of this repository, somewhere else: nothing is to be written into the checkout."""
    site = Site(tmp_path)
    shutil.copytree(ROOT / "connectors.d", site.drop_ins, dirs_exist_ok=True)
    shutil.copy(ROOT / "connectors.yaml", site.file)
    return site


@PERL
def test_the_commands_of_the_readme_work(ours: Site) -> None:
    starts = (".venv/bin/gateway serve", ".venv/bin/gateway install")
    lines = [line for start in starts for line in the("README.md", "sh", start).splitlines()]
    verbs = {words[1]: words[1:] for line in lines for words in simple_commands(line)}
    assert verbs.keys() == {"install", "check", "list", "call", "serve"}  # all others are run by tests of their own
    for verb in ("list", "call"):
        done = cli(ours, *verbs[verb])
        assert done.returncode == 0, done.stderr
        assert {"list": "text/Find", "call": '"match":"17"'}[verb] in done.stdout


def test_the_steps_of_a_start_work(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.configure("fax: {run: [cat], commands: {Send: {additional_parameters: true}}}")
    lines = the("docs/operating.md", "sh", "gateway check").splitlines()
    verbs = [words[1:] for line in lines for words in simple_commands(line) if words[1] != "serve"]
    assert [words[0] for words in verbs] == ["check", "install", "check"]
    for words in verbs:
        done = cli(site, *words)
        assert done.returncode == 0, done.stderr


def test_a_backup_of_a_store_is_a_store(tmp_path: Path) -> None:
    command = the("docs/upgrading.md", "sh", "python3 -c")
    store, copy = (part for part in command.split() if part.endswith(".sqlite"))
    live, backup = tmp_path / "jobs.sqlite", tmp_path / "backup.sqlite"
    with contextlib.closing(sqlite3.connect(live)) as connection:
        connection.execute("CREATE TABLE jobs (id text)")
        connection.execute("INSERT INTO jobs VALUES ('one')")
        connection.commit()
        done = subprocess.run(
            ["sh", "-ec", command.replace(store, str(live)).replace(copy, str(backup))],
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    with contextlib.closing(sqlite3.connect(backup)) as connection:
        assert connection.execute("SELECT id FROM jobs").fetchall() == [("one",)]


def called(block: str, port: int) -> tuple[str, str]:
    """Run the command behind the $ against a gateway; return what it prints, and what the block says that it does."""
    command, _, output = block.removeprefix("$ ").partition("\n")
    done = subprocess.run(
        ["sh", "-euc", command.replace("localhost:7004", f"127.0.0.1:{port}")],
        capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, output


@CURL
async def test_the_list_of_jobs_looks_so(site: Site) -> None:
    site.configure("fax: {run: [cat], commands: {Send: {}}}", gateway="api_key: KEY")
    async with served(site) as gateway:
        printed, shown = called(the("docs/jobs.md", "console", "$ curl"), gateway.port)
    told = json.loads(shown.replace(",...}", "}"))
    assert json.loads(printed) == {**told, "jobs": []}
    assert set(told["jobs"][0]) <= set(JobStatus.__struct_fields__)


def test_the_calls_of_the_command_line_work(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.configure("fax: {run: [cat], commands: {Send: {additional_parameters: true}}}")
    (site.folder / "request.json").write_text('{"to": "+4756"}')
    on_path(tmp_path)
    printed = run(the("docs/cli.md", "sh", "gateway call"), tmp_path)
    for expected in ('"pages":2', '"recipients":["a","b"]', '"to":"+4756"', '"urgent":true', '"to":"+4755"'):
        assert expected in printed.replace(", ", ",").replace(": ", ":")


# --- connectors


def test_the_connector_of_the_readme_answers(site: Site) -> None:
    site.configure()
    file = site.drop_ins / "greet.sh"
    file.write_text(the("README.md", "sh", "#!/bin/sh"))
    file.chmod(0o755)
    done = cli(site, "call", "greet/Hello")
    assert '"greeting":"hello"' in done.stdout.replace(" ", ""), done.stderr


async def test_the_loop_of_a_persistent_process_serves(site: Site) -> None:
    site.python("lines.py", the("docs/modes.md", "python", "import json"))
    site.configure("lines: {run: [./lines.py], mode: persistent, commands: {Go: {additional_parameters: true}}}")
    async with served(site) as gateway:
        for number in range(2):
            assert (await gateway.do("lines/Go", {"n": number})).body == {"got": {"n": number}}
        assert len(gateway.connectors()) == 1
