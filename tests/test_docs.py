"""The documents say what the code says."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import click
import msgspec
import pytest

from gateway.cli.main import main
from gateway.connectors.definition import define
from gateway.connectors.snapshot import ConnectorState, Snapshot, Status
from gateway.connectors.sources import read_sources
from gateway.errors import GatewayError
from gateway.health import Concern
from gateway.http import openapi
from gateway.http.app import ROUTES, build
from gateway.http.routes import Access
from gateway.http.statuses import HTTP_CODES, RAISED, STATUSES, TOLD
from gateway.oauth.seal import FILE as OAUTH_KEY
from gateway.observe.events import Bus, Event
from gateway.runtimes import RUNTIMES
from gateway.secrets import SecretsSection
from gateway.sections import (
    AuthEntry,
    ClientLimits,
    CommandEntry,
    ConnectorEntry,
    DefaultsSection,
    GatewaySection,
    JournalSection,
    OAuthSection,
    OverrideEntry,
    ParameterEntry,
    TlsSection,
    TypeaheadEntry,
)
from gateway.settings import read_settings
from tests.observe.test_metrics import idle

if TYPE_CHECKING:
    from collections.abc import Iterator


ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def section(document: str, heading: str) -> str:
    """Return what stands below a heading, up to the next one of any level."""
    text = (DOCS / document).read_text()
    match = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert match, f"{document} has no heading {heading!r}"
    return match[1]


def rows(text: str) -> list[list[str]]:
    """Return the cells of every row of every table whose first cell is code."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def first_column(text: str) -> list[str]:
    return [row[0].strip("`") for row in rows(text)]


def subclasses(kind: type) -> Iterator[type]:
    for one in kind.__subclasses__():
        yield one
        yield from subclasses(one)


# --- errors


def test_every_error_has_a_status_and_a_code_of_its_own() -> None:
    # One of a module's own is told as what it is a kind of.
    kinds = {kind for kind in subclasses(GatewayError) if not kind.__name__.startswith("_")}
    assert set(STATUSES) == kinds
    assert len({kind.code for kind in kinds}) == len(kinds)
    assert all(kind.__doc__ for kind in kinds)


def test_the_table_of_errors_is_the_one_in_the_code() -> None:
    expected = {kind.code: status for kind, status in STATUSES.items()}
    expected |= {code: status for status, code in HTTP_CODES.items()}
    table = rows(section("errors.md", "Errors"))
    assert {row[0].strip("`"): int(row[1]) for row in table} == expected
    assert len(table) == len(expected)
    assert all(len(row) == 4 and row[2] and row[3] for row in table)


def test_the_codes_of_jobs_are_those_in_the_code() -> None:
    code = "\n".join(file.read_text() for file in (ROOT / "gateway/jobs").glob("*.py"))
    codes = re.findall(r'^[A-Z]+ = "(job_\w+)"$', code, flags=re.MULTILINE)
    assert sorted(first_column(section("errors.md", "Codes of jobs"))) == sorted(codes)
    assert codes


def test_the_statuses_of_what_connectors_tell_are_documented() -> None:
    lines = [line for line in (DOCS / "errors.md").read_text().splitlines() if line.startswith("| The connector")]
    assert [int(line.split("|")[-2]) for line in lines] == [TOLD, RAISED]


# --- metrics


def test_the_table_of_metrics_is_the_one_in_the_code() -> None:
    exposed = re.findall(r"^# TYPE (\w+) (\w+)$", idle().text().decode(), flags=re.MULTILINE)
    expected = {name: kind for name, kind in exposed if not name.endswith("_created")}
    table = [row for row in rows((DOCS / "metrics.md").read_text()) if row[0].startswith(("`gateway_", "`process_"))]
    assert {row[0].strip("`"): row[1] for row in table} == expected
    assert len(table) == len(expected)


# --- the log


class Logged(NamedTuple):
    """An event as the log has it: its name, the levels that it may have, its fields."""

    name: str
    levels: frozenset[str]
    fields: tuple[str, ...]


def told_events() -> set[Logged]:
    """Return the events that are published on the bus."""
    found = set()
    for kind in subclasses(Event):
        levels = {"info", "warning"} if kind.severity is not Event.severity else {kind.level}
        found.add(Logged(kind.name, frozenset(levels), tuple(field.name for field in msgspec.structs.fields(kind))))
    return found


def written_events() -> set[Logged]:
    """Return the events that code logs without the bus, as calls (or what is called in a thread) spell them."""
    found = set()
    for file in [one for one in (ROOT / "gateway").rglob("*.py") if "import structlog" in one.read_text()]:
        for call in [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]:
            method, arguments = call.func, call.args
            if isinstance(method, ast.Attribute) and method.attr == "to_thread":
                method, *arguments = arguments
            if not isinstance(method, ast.Attribute) or method.attr not in LEVELS or not arguments:
                continue
            if isinstance(arguments[0], ast.Constant):
                fields = tuple(keyword.arg for keyword in call.keywords if keyword.arg not in {None, "exc_info"})
                found.add(Logged(str(arguments[0].value), frozenset({LEVELS[method.attr]}), fields))
    return found


LEVELS = {"info": "info", "warning": "warning", "error": "error", "exception": "error"}


def test_the_tables_of_log_events_are_those_in_the_code() -> None:
    table = [row for row in rows((DOCS / "log-events.md").read_text()) if len(row) == 4]
    documented = [
        Logged(row[0].strip("`"), frozenset(row[1].split(", ")), tuple(re.findall(r"`(\w+)`", row[2]))) for row in table
    ]
    assert set(documented) == told_events() | written_events()
    assert len(documented) == len(set(documented))
    assert all(row[3] for row in table)


def test_every_event_says_its_name_itself() -> None:
    kinds = set(subclasses(Event))
    assert all("name" in vars(kind) for kind in kinds)
    assert len({kind.name for kind in kinds}) == len(kinds)


# --- configuration

STRUCTS: list[tuple[str, type[msgspec.Struct]]] = [
    ("gateway:", GatewaySection),
    ("oauth:", OAuthSection),
    ("secrets:", SecretsSection),
    ("defaults:", DefaultsSection),
    ("tls:", TlsSection),
    ("journal:", JournalSection),
    ("connectors:", ConnectorEntry),
    ("commands:", CommandEntry),
    ("overrides:", OverrideEntry),
    ("typeahead:", TypeaheadEntry),
    ("auths:", AuthEntry),
    ("parameters:", ParameterEntry),
    ("Limits of a client", ClientLimits),
    *[(f"runtime: {name}", runtime.options) for name, runtime in RUNTIMES.items()],
]


@pytest.mark.parametrize(("heading", "kind"), STRUCTS, ids=[heading for heading, _ in STRUCTS])
def test_the_keys_of_a_section_are_exactly_those_in_the_code(heading: str, kind: type[msgspec.Struct]) -> None:
    keys = [field.encode_name for field in msgspec.structs.fields(kind)]
    assert sorted(first_column(section("configuration.md", heading))) == sorted(keys)


@pytest.mark.parametrize(("heading", "kind"), [STRUCTS[0], STRUCTS[3]], ids=["gateway:", "defaults:"])
def test_the_defaults_are_those_in_the_code(heading: str, kind: type[msgspec.Struct]) -> None:
    written = {row[0].strip("`"): row[1].strip("`") for row in rows(section("configuration.md", heading))}
    by_level = {"network", "user"}
    for field in msgspec.structs.fields(kind):
        default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
        shown = "none" if default is None or default == [] else str(default)
        if field.encode_name in by_level:
            assert default is None
            shown = "by level"
        assert written[field.encode_name] == (shown.lower() if isinstance(default, bool) else shown)


def test_the_modes_and_the_runtimes_that_prefer_them_are_those_in_the_code() -> None:
    table = {row[0].strip("`"): set(re.findall(r"\w+", row[2])) for row in rows(section("configuration.md", "Modes"))}
    modes = next(field.type for field in msgspec.structs.fields(ConnectorEntry) if field.name == "mode")
    assert set(table) == {mode for one in get_args(modes) for mode in get_args(one)}
    assert {name: mode for mode, names in table.items() for name in names} == {
        name: runtime.mode for name, runtime in RUNTIMES.items()
    }


def test_what_is_required_is_marked_so() -> None:
    for name, runtime in RUNTIMES.items():
        table = {row[0].strip("`"): row[1] for row in rows(section("configuration.md", f"runtime: {name}"))}
        required = {field.encode_name for field in msgspec.structs.fields(runtime.options) if field.required}
        assert {key for key, default in table.items() if default == "required"} == required


def test_the_variables_of_the_environment_are_those_that_are_read() -> None:
    read = set(re.findall(r"\bCONNECTOR_PROXY_\w+", (ROOT / "gateway/settings.py").read_text())) | {"PATH"}
    assert set(first_column(section("configuration.md", "Environment"))) == read


def test_the_worked_example_can_be_served(tmp_path: Path) -> None:
    examples = re.findall(r"```yaml\n(.*?)```", (DOCS / "configuration.md").read_text(), flags=re.DOTALL)
    file = tmp_path / "connectors.yaml"
    file.write_text(examples[0])
    settings, _ = read_settings(file, environ={"PATH": "/usr/bin:/bin"})
    sources = read_sources(settings)
    connectors = {entry.name: define(entry, sources.defaults, settings) for entry in sources.entries}
    assert set(connectors) == {"convert", "fax", "legacy-crm"}
    assert connectors["legacy-crm"] is None
    fax = connectors["fax"]
    assert fax is not None
    assert fax.launch.argv == (str(tmp_path / "fax/send-fax"), "--line", "2")


def test_the_example_of_an_overlay_is_true(tmp_path: Path) -> None:
    text = section("configuration.md", "Overlays")
    under, over = re.search(r"with `(\{.*\})`", text), re.search(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    assert under
    assert over
    drop_in = tmp_path / "connectors.d" / "fax"
    drop_in.mkdir(parents=True)
    (drop_in / "connector.yaml").write_text(under[1])
    file = tmp_path / "connectors.yaml"
    file.write_text(over[1])
    settings, _ = read_settings(file, environ={"PATH": "/usr/bin:/bin"})
    [entry] = read_sources(settings).entries
    assert entry.node.data == {"run": ["./send"], "timeout": "10s", "config": {"line": 2}}
    connector = define(entry, read_sources(settings).defaults, settings)
    assert connector is not None
    assert connector.launch.argv == (str(drop_in / "send"),)


# --- the command line


def verbs_of(group: click.Group) -> Iterator[tuple[str, click.Command]]:
    """Return each verb with its command; those of a group are called `group verb`."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", one) for inner, one in verbs_of(command))
        else:
            yield name, command


def test_every_verb_and_every_option_is_documented_and_no_other() -> None:
    text = (DOCS / "cli.md").read_text()
    verbs = dict(verbs_of(main))
    assert set(re.findall(r"^## gateway (.+)$", text, flags=re.MULTILINE)) == set(verbs)
    for verb, command in verbs.items():
        options = [
            [*param.opts, *param.secondary_opts]
            for param in command.params
            if isinstance(param, click.Option) and not param.hidden
        ]
        documented = [re.findall(r"`(-[\w-]+)`", row[0]) for row in rows(section("cli.md", f"gateway {verb}"))]
        assert sorted(documented) == sorted(options), verb


def test_the_exit_statuses_are_those_of_the_help() -> None:
    documented = re.findall(r"^\| (\d+) \|", (DOCS / "cli.md").read_text(), flags=re.MULTILINE)
    code = "\n".join(file.read_text() for file in (ROOT / "gateway").rglob("*.py"))
    [fenced] = re.findall(r"^FENCED = (\d+)", code, flags=re.MULTILINE)
    assert documented == ["0", "1", "2", fenced, "130"]
    assert main.help is not None
    assert re.findall(r"(?:: |; )(\d) ", main.help) == ["0", "1", "2"]


# --- HTTP

HTTP = "\n".join(file.read_text() for file in sorted((ROOT / "gateway/http").glob("*.py")))
WHO = {
    Access.OPEN: "all",
    Access.KEY: "key",
    Access.CALL: "call",
    Access.OPERATOR: "operator",
    Access.METRICS: "`gateway.metrics`",
    Access.TYPEAHEAD: "`gateway.typeahead`",
    Access.CONSOLE: "console",
    Access.CONSOLE_CALL: "console, call",
    Access.CONSOLE_OPERATOR: "console, operator",
}


def test_the_routes_are_those_in_the_code(tmp_path: Path) -> None:
    file = tmp_path / "connectors.yaml"
    file.write_text("connectors: {}")
    settings, _ = read_settings(file, environ={})
    routes = {(one.method, one.path): one.access for one in build(settings, Bus())[ROUTES]}
    text = section("http.md", "Routes") + section("http.md", "Pages")
    table = {tuple(row[0].strip("`").split(" ")): row[1] for row in rows(text)}
    assert table == {
        (method, path): WHO[access] for (method, path), access in routes.items() if method not in {"HEAD", "OPTIONS"}
    }
    paths = {method: {path for one, path in routes if one == method} for method in ("GET", "HEAD", "OPTIONS")}
    others = {"/v1/do/{connector}/{command}", "/console/live", "/console/connectors/{connector}/log"}
    assert paths["HEAD"] == paths["GET"] - others  # as the page says below the table
    assert paths["OPTIONS"] == {path for _, path in routes}


TRANSPORT = {
    "Accept-Encoding", "Expect", "Forwarded", "Host", "Origin", "Sec-Fetch-Site",
    "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto",
}  # fmt: skip
"""Headers that clients, browsers and proxies put there themselves."""


@pytest.fixture
def described(tmp_path: Path) -> dict[str, Any]:
    """Return the OpenAPI document of a gateway with one command."""
    file = tmp_path / "connectors.yaml"
    file.write_text("connectors: {fax: {run: [cat], commands: {Send: {}}}}")
    settings, _ = read_settings(file, environ={})
    sources = read_sources(settings)
    connector = define(sources.entries[0], sources.defaults, settings)
    world = Snapshot({"fax": Status(name="fax", state=ConnectorState.READY, connector=connector)})
    routes = build(settings, Bus())[ROUTES]
    written = openapi.document(world, routes, "1", openapi.Admittance(keyed=True), server="/")
    document: dict[str, Any] = msgspec.json.decode(written)
    return document


def test_the_openapi_document_has_the_routes_of_the_page_and_who_may_use_them(described: dict[str, Any]) -> None:
    table = {tuple(row[0].strip("`").split(" ")): row[1] for row in rows(section("http.md", "Routes"))}
    calls = [one for one in table if one[1] == "/v1/do/{connector}/{command}"]
    told = {
        (method.upper(), path): "all" if operation.get("security") == [] else "key"
        for path, operations in described["paths"].items()
        for method, operation in operations.items()
    }
    assert told.pop(("POST", "/v1/do/fax/Send")) == "key"
    assert told == {one: "all" if who == "all" else "key" for one, who in table.items() if one not in calls}


def test_the_openapi_document_has_the_headers_of_the_page(described: dict[str, Any]) -> None:
    components = described["components"]
    schemes = {one.get("name", "Authorization") for one in components["securitySchemes"].values()}
    parameters = set(components["parameters"])
    assert parameters | schemes | TRANSPORT == set(first_column(section("http.md", "Headers of a request")))
    operation = described["paths"]["/v1/do/fax/Send"]["post"]
    assert {one["$ref"].rpartition("/")[2] for one in operation["parameters"]} == parameters
    assert components["parameters"]["Prefer"]["schema"]["enum"] == ["respond-async"]
    assert "202" in operation["responses"]
    answers = set(first_column(section("http.md", "Headers of an answer")))
    assert set(components["headers"]) == answers - {"Allow"}  # of OPTIONS and 405, which are of no operation


def test_the_openapi_document_has_the_members_of_the_page(described: dict[str, Any]) -> None:
    operation = described["paths"]["/v1/do/fax/Send"]["post"]
    members = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
    table = {row[0].strip("`"): row[1] for row in rows(section("http.md", "The body"))}
    types = {"number": "integer", "text": "string", "object": "object"}
    kinds = {
        name: {one["type"] for one in member["anyOf"]} if "anyOf" in member else set(member["type"])
        for name, member in members.items()
    }
    assert {name: some - {"null"} for name, some in kinds.items()} == {
        name: {types[word] for word in kind.split(", ")} for name, kind in table.items()
    }
    envelope = described["components"]["schemas"]["Envelope"]["properties"]
    told = {*envelope, *(f"command_response.{name}" for name in envelope["command_response"]["properties"])}
    assert set(first_column(section("http.md", "The answer"))) == told - {"command_response"}


def test_the_openapi_document_has_the_queries_of_the_page(described: dict[str, Any]) -> None:
    told: dict[str, set[str]] = {}
    for path, operations in described["paths"].items():
        for operation in operations.values():
            for one in operation["parameters"]:
                if one.get("in") == "query" and path.startswith("/v1/jobs"):
                    told.setdefault(one["name"], set()).add(path.rpartition("/")[2].replace("jobs", "list"))
    table = {row[0].strip("`"): set(row[1].split(", ")) for row in rows(section("http.md", "Jobs"))}
    assert told == table
    runs = described["paths"]["/v1/runs"]["get"]["parameters"]
    assert sorted(one["name"] for one in runs) == sorted(first_column(section("http.md", "Runs")))
    others = {
        one["name"]
        for path, operations in described["paths"].items()
        for operation in operations.values()
        for one in operation["parameters"]
        if one.get("in") == "query" and path not in {"/v1/runs", "/v1/jobs"}
    }
    page = (DOCS / "http.md").read_text()
    assert all(re.search(rf"[`?&]{name}[`=]", page) for name in others)


def test_the_openapi_document_has_the_codes_of_the_page(described: dict[str, Any]) -> None:
    told = {
        (int(status), code)
        for status, one in described["components"]["responses"].items()
        if status.isdigit()
        for code in one["content"]["application/json"].get("examples", {})
    }
    table = re.findall(r"^\| (\d+) \| (.*?) \|", section("http.md", "Statuses"), flags=re.MULTILINE)
    assert told == {(int(status), code) for status, codes in table for code in re.findall(r"`(\w+)`", codes)}


def test_the_codes_of_each_status_are_those_in_the_code() -> None:
    expected = {(status, kind.code) for kind, status in STATUSES.items()} | set(HTTP_CODES.items())
    table = re.findall(r"^\| (\d+) \| (.*?) \|", section("http.md", "Statuses"), flags=re.MULTILINE)
    assert {(int(status), code) for status, codes in table for code in re.findall(r"`(\w+)`", codes)} == expected


def test_the_headers_that_are_looked_at_are_those_in_the_code() -> None:
    constants = dict(re.findall(r'^(\w+) = "([\w-]+)"', HTTP, flags=re.MULTILINE))
    read = {text or constants[name] for text, name in re.findall(r'headers\.get(?:all)?\((?:"([\w-]+)"|(\w+))', HTTP)}
    assert sorted(first_column(section("http.md", "Headers of a request"))) == sorted(read)


def test_the_headers_of_answers_are_those_in_the_code() -> None:
    constants = dict(re.findall(r'^(\w+) = "([\w-]+)"', HTTP, flags=re.MULTILINE))
    told = {text or constants[name] for text, name in re.findall(r'headers\[(?:"([\w-]+)"|(\w+))\]', HTTP)}
    assert sorted(first_column(section("http.md", "Headers of an answer"))) == sorted(told - {"Content-Length"})


def test_the_members_of_a_body_are_those_in_the_code() -> None:
    read = re.findall(r'_context\(fields, "(\w+)"', HTTP) + re.findall(r"\{_?CONTEXT\}(\w+)", HTTP)
    assert sorted(first_column(section("http.md", "The body"))) == sorted({f"spiff__{name}" for name in read})


def test_the_parameters_of_queries_are_those_in_the_code() -> None:
    for heading, file in (("Jobs", "jobs.py"), ("Runs", "runs.py")):
        code = (ROOT / "gateway/http" / file).read_text()
        assert sorted(first_column(section("http.md", heading))) == sorted(
            set(re.findall(r'query\.get\("(\w+)"', code))
        )


def test_the_kinds_of_what_is_wrong_are_those_in_the_code() -> None:
    kinds = set(re.findall(r'kind="(\w+)"', (ROOT / "gateway/health.py").read_text()))
    table = [row for row in rows(section("http.md", "What is wrong")) if len(row) == 2 and row[1].endswith(".")]
    named = [kind for row in table for kind in re.findall(r"`(\w+)`", row[0])]
    members = [field.name for field in msgspec.structs.fields(Concern)]
    assert named[: len(members)] == members
    assert sorted(named[len(members) :]) == sorted(kinds)


# --- architecture


def files_of(tree: str) -> Iterator[str]:
    """Return the paths that a tree names; what ends with a slash is a folder, of what is indented below it."""
    folders: list[tuple[int, str]] = []
    for indent, name in re.findall(r"^( *)(\S+)", tree, flags=re.MULTILINE):
        while folders and folders[-1][0] >= len(indent):
            folders.pop()
        if name.endswith("/"):
            folders.append((len(indent), name))
        else:
            yield "".join(folder for _, folder in folders) + name


def test_the_tree_has_every_file_and_no_other() -> None:
    tree = section("architecture.md", "The files").split("```")[1].strip()
    files = [str(file.relative_to(ROOT)) for file in (ROOT / "gateway").rglob("*.py") if file.name != "__init__.py"]
    assert sorted(files_of(tree)) == sorted(files)


def test_the_files_that_are_named_are_there() -> None:
    text = (DOCS / "architecture.md").read_text()
    for path in re.findall(r"`((?:gateway|runners|tests|deploy)/[\w./]*)`", text):
        assert (ROOT / path).exists(), path
    inside = {path for path in re.findall(r"`([a-z_]+(?:/\w+)*\.py)`", text) if not path.startswith("tests/")}
    assert not {path for path in inside if not any((ROOT / up / path).exists() for up in ("", "gateway"))}
    for module in re.findall(r"^(\w+\.\w+) {3,}", section("architecture.md", "The way of a call"), flags=re.MULTILINE):
        assert (ROOT / "gateway" / f"{module.replace('.', '/')}.py").exists(), module


def test_the_files_of_recipes_are_there() -> None:
    for document in ("CONTRIBUTING.md", "docs/operating.md", "docs/http.md"):
        for path in re.findall(r"`((?:gateway|runners|tests|deploy|docs)/[\w./-]*)`", (ROOT / document).read_text()):
            assert (ROOT / path).exists() or "NAME" in path, f"{document}: {path}"


def test_tests_mirror_the_house() -> None:
    packages = {file.parent.name for file in (ROOT / "gateway").glob("*/__init__.py")}
    folders = {file.name for file in (ROOT / "tests").iterdir() if file.is_dir() and file.name != "__pycache__"}
    table = first_column(section("../CONTRIBUTING.md", "How tests mirror the house"))
    assert folders == packages | {name.strip("/") for name in table if name.endswith("/")}


def test_what_is_written_below_state_dir_is_listed() -> None:
    code = "\n".join(file.read_text() for file in (ROOT / "gateway").rglob("*.py"))
    written = {*re.findall(r'\bstate_dir / "([\w.]+)"', code), OAUTH_KEY}
    assert {
        re.split(r"[/<]", path)[0] for path in first_column(section("architecture.md", "Where it writes"))
    } == written


# --- the index


def test_every_page_is_linked_from_the_readme_with_its_title() -> None:
    linked = re.findall(r"\[([^\]]+)\]\(((?:docs/)?[\w-]+\.md)\)", section("../README.md", "All pages"))
    pages = {f"docs/{page.name}" for page in DOCS.glob("*.md")} | {"CONTRIBUTING.md", "CHANGELOG.md"}
    assert {path for _, path in linked} == pages
    assert len(linked) == len(pages)
    for title, path in linked:
        assert (ROOT / path).read_text().splitlines()[0] == f"# {title}", path


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "runners").rglob("*.md")]:
        text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), f"{page.name}: {link}"
            assert not anchor or anchor in anchors(target), f"{page.name}: {link}"
