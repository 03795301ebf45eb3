"""What is suggested while a person types."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from yarl import URL

from gateway.calls.suggestions import LARGEST, MOST, Suggestions
from gateway.connectors.definition import define
from gateway.connectors.sources import read_sources
from gateway.errors import Quarantine
from gateway.gateway import Gateway
from gateway.observe.events import Bus
from gateway.protocol.request import Caller
from gateway.settings import read_settings
from tests.support import Answer, Server, Site, cli, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# Suggests what it was asked, and notes that it ran.
FIND = """
import json, os, sys
request = json.load(sys.stdin)
with open(os.environ["RAN"], "a") as ran:
    ran.write("x")
asked = request["params"]
while asked.get("q") == "wait" and not os.path.exists(os.environ["GATE"]):
    pass
many = asked.get("max", 20)
print(json.dumps([{"q": asked["q"], "n": n, "url": request["context"].get("callback_url")} for n in range(many)]))
"""
# Answers what was typed.
SAY = "import json, sys\nprint(json.load(sys.stdin)['params']['q'])\n"
PARAMETERS = "parameters: {q: {type: str}, max: {type: int, default: 20}}"


@pytest.fixture
async def gateway(site: Site) -> AsyncIterator[Server]:
    site.python("find.py", FIND)
    site.python("say.py", SAY)
    files = f"env: {{RAN: {site.folder}/ran, GATE: {site.folder}/gate}}"
    site.configure(
        f"""
        people:
          run: [./find.py]
          {files}
          commands:
            Find: {{typeahead: {{category: people, prefix: q, limit: max}}, {PARAMETERS}}}
            All: {{typeahead: {{category: all, prefix: q}}, {PARAMETERS}}}
        say: {{run: [./say.py], commands: {{Say: {{typeahead: {{category: said, prefix: q}}, parameters: {{q: {{}}}}}}}}}}
        """,
        gateway="typeahead: open",
    )
    async with served(site) as server:
        yield server


def escaped(text: str) -> str:
    return quote(text, safe="")


async def ask(gateway: Server, query: str, category: str = "people", **options: Any) -> Answer:
    url = URL(f"{gateway.url}/v1/typeahead/{category}{query}", encoded=True)
    async with gateway.session.get(url, **options) as response:
        return Answer(response.status, response.headers.copy(), await response.read())


def runs(site: Site) -> int:
    file = site.folder / "ran"
    return len(file.read_text()) if file.exists() else 0


async def test_a_command_suggests_a_list(gateway: Server) -> None:
    answer = await ask(gateway, "?prefix=ada&limit=2")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.json == [{"q": "ada", "n": n, "url": None} for n in range(2)]
    assert [event["command"] for event in gateway.events("run", connector="people", outcome="ok")] == ["Find"]


QUERIES: list[Any] = [
    ("?prefix=&limit=3", "", 3),
    ("", "", 10),
    ("?limit=3", "", 3),
    ("?prefix=a", "a", 10),
    ("?prefix=a&limit=", "a", 10),
    ("?prefix=a+b&limit=3", "a+b", 3),
    ("?prefix=a%20b%2B%26&limit=3", "a b+&", 3),
    ("?prefix=a&b=c&limit=3", "a&b=c", 3),
    ("?prefix=a&limit=5&limit=3", "a&limit=5", 3),
    ("?prefix=a&prefix=b&limit=3", "a&prefix=b", 3),
    ("?limit=3&prefix=a", "a", 3),
    ("?prefix=100%&limit=3", "100%", 3),
    ("?prefix=%e2%98%83%ff&limit=3", "\u2603\ufffd", 3),
    ("?prefix=a?b=c/d&limit=1000", "a?b=c/d", 1000),
]


async def test_a_query_that_nobody_escaped_is_understood(gateway: Server) -> None:
    for query, prefix, many in QUERIES:
        listed = (await ask(gateway, query)).json
        assert (len(listed), {one["q"] for one in listed}) == (many, {prefix})


async def test_a_limit_that_is_none_is_refused(gateway: Server, site: Site) -> None:
    for limit in ("0", "1001", "-1", "x", "1.5", "1e3", "%31", "9999999999", escaped("\u0661")):
        answer = await ask(gateway, f"?prefix=a&limit={limit}")
        assert (answer.status, answer.code) == (400, "invalid_request")
    assert runs(site) == 0


async def test_a_source_without_a_limit_is_cut(gateway: Server) -> None:
    assert len((await ask(gateway, "?prefix=a&limit=4", "all")).json) == 4
    assert len((await ask(gateway, "?prefix=a&limit=40", "all")).json) == 20


LISTS: list[Any] = [
    ([1, {"a": "\u2603"}, None], [1, {"a": "\u2603"}, None]),
    ([], []),
    ({"command_response": {"body": [1, 2]}, "command_response_version": 2}, [1, 2]),
    ({"response": [1], "mimetype": "application/json", "status": 200}, [1]),
    ({"response": '["a"]', "mimetype": "text/plain"}, ["a"]),
]


async def test_a_list_is_found_in_every_kind_of_result(gateway: Server) -> None:
    for said, listed in LISTS:
        answer = await ask(gateway, f"?prefix={escaped(json.dumps(said))}", "said")
        assert (answer.status, answer.json) == (200, listed)


NO_LISTS: list[Any] = [
    ('{"a": 1}', 502, "connector_invalid_output", "say/Say gave no JSON list"),
    ('"text"', 502, "connector_invalid_output", "say/Say gave no JSON list"),
    (
        '{"command_response": {"body": {}}, "command_response_version": 2}',
        502,
        "connector_invalid_output",
        "no JSON list",
    ),
    ('{"response": "x", "mimetype": "text/plain"}', 502, "connector_invalid_output", "no JSON list"),
    ('{"response": [], "mimetype": "a/b", "status": 500}', 502, "connector_invalid_output", "answered status 500"),
    ("nothing", 502, "connector_invalid_output", "say/Say gave no valid result"),
    ('{"error": {"error_code": "away", "message": "the index is away"}}', 502, "away", "the index is away"),
    ('{"error": {"error_code": "Oops", "message": "o", "raised": true}}', 500, "Oops", "o"),
]


async def test_what_is_no_list_is_never_a_200(gateway: Server) -> None:
    for said, status, code, message in NO_LISTS:
        answer = await ask(gateway, f"?prefix={escaped(said)}", "said")
        assert (answer.status, answer.code) == (status, code)
        assert message in answer.message


async def test_an_unknown_category_is_not_found(gateway: Server) -> None:
    answer = await ask(gateway, "?prefix=a", "animals")
    assert (answer.status, answer.code) == (404, "command_not_found")
    assert "there is no typeahead 'animals' (there is: all, people, said)" in answer.message


async def test_what_was_asked_a_moment_ago_is_not_run_again(gateway: Server, site: Site) -> None:
    first = await ask(gateway, "?prefix=a&limit=2")
    assert (await ask(gateway, "?limit=2&prefix=a")).raw == first.raw
    assert runs(site) == 1
    await ask(gateway, "?prefix=a&limit=3")
    await ask(gateway, "?prefix=A&limit=2")
    assert runs(site) == 3


async def test_a_change_of_the_connector_forgets_what_it_suggested(gateway: Server, site: Site) -> None:
    assert len((await ask(gateway, "?prefix=a&limit=2")).json) == 2
    site.python("find.py", "print('[\"new\"]')")

    async def changed() -> bool:
        return (await ask(gateway, "?prefix=a&limit=2")).json == ["new"]

    await eventually(changed)


async def test_without_a_cache_each_question_is_a_run(site: Site) -> None:
    site.python("find.py", FIND)
    command = f"Find: {{typeahead: {{category: people, prefix: q}}, {PARAMETERS}}}"
    site.configure(
        f"people: {{run: [./find.py], env: {{RAN: {site.folder}/ran, GATE: x}}, commands: {{{command}}}}}",
        gateway="{typeahead: open, typeahead_cache: 0s}",
    )
    async with served(site) as gateway:
        await ask(gateway, "?prefix=a")
        await ask(gateway, "?prefix=a")
    assert runs(site) == 2


async def test_whoever_asks_the_same_at_once_shares_a_run(gateway: Server, site: Site) -> None:
    asking = [asyncio.create_task(ask(gateway, "?prefix=wait&limit=2")) for _ in range(5)]
    await eventually(lambda: runs(site) == 1)
    others = asyncio.create_task(ask(gateway, "?prefix=wait&limit=3"))
    await eventually(lambda: runs(site) == 2)
    asking[0].cancel()  # the others still wait
    (site.folder / "gate").touch()
    answers = await asyncio.gather(*asking[1:], others)
    assert [len(one.json) for one in answers] == [2, 2, 2, 2, 3]
    assert runs(site) == 2


async def test_a_run_that_nobody_waits_for_any_more_is_ended(gateway: Server, site: Site) -> None:
    asking = [asyncio.create_task(ask(gateway, "?prefix=wait&limit=2")) for _ in range(2)]
    await eventually(lambda: runs(site) == 1)
    for one in asking:
        one.cancel()
    await eventually(lambda: gateway.events("run", connector="people", outcome="cancelled"))
    await eventually(lambda: not gateway.connectors())
    (site.folder / "gate").touch()
    assert len((await ask(gateway, "?prefix=wait&limit=2")).json) == 2


async def test_the_key_is_needed_unless_typeahead_is_open(site: Site) -> None:
    site.python("say.py", SAY)
    connectors = (
        "say: {run: [./say.py], commands: {Say: {typeahead: {category: said, prefix: q}, parameters: {q: {}}}}}"
    )
    site.configure(connectors, gateway="api_key: k3y")
    async with served(site) as gateway:
        assert (await ask(gateway, "?prefix=[]", "said")).status == 401
        assert (await ask(gateway, "?prefix=[]", "said", headers={"Spiff-Connector-Proxy-Api-Key": "k3y"})).json == []
    site.configure(connectors, gateway="{api_key: k3y, typeahead: open}")
    async with served(site) as gateway:
        assert (await ask(gateway, "?prefix=[]", "said")).json == []
        assert (await gateway.get("/v1/commands")).status == 401


async def test_of_two_sources_the_first_by_name_is_asked(site: Site) -> None:
    told = {"name": "Look", "parameters": [{"id": "q"}], "typeahead": {"category": "people", "prefix": "q"}}
    describe = f"case $(cat) in *describe*) echo '{json.dumps({'commands': [told]})}';;"
    site.script("one.sh", f"""{describe} *) echo '["one"]';; esac""")
    site.script("two.sh", f"""{describe} *) echo '["two"]';; esac""")
    site.configure("b: {run: [./two.sh]}\na: {run: [./one.sh]}", gateway="typeahead: open")
    async with served(site) as gateway:
        assert (await ask(gateway, "?prefix=x")).json == ["one"]
        assert (await gateway.status("a"))["notices"] == []
        notice = "typeahead people: a/Look has it already, so Look is not asked"
        assert (await gateway.status("b"))["notices"] == [notice]
    assert notice in cli(site, "check").stdout


async def test_answers_are_kept_within_bounds(gateway: Server, site: Site) -> None:
    large = json.dumps(["x" * LARGEST])
    # Too long for a URL: the source itself makes it.
    site.script("large.sh", f"echo x >> {site.folder}/ran; cat {site.folder}/large")
    (site.folder / "large").write_text(large)
    site.configure(
        "large: {run: [./large.sh], commands: {Go: {typeahead: {category: large, prefix: q}, parameters: {q: {}}}}}",
        gateway="typeahead: open",
    )

    async def there() -> bool:
        return (await ask(gateway, "?prefix=a", "large")).status == 200

    await eventually(there)
    before = runs(site)
    await ask(gateway, "?prefix=a", "large")
    assert runs(site) > before
    assert MOST * LARGEST <= 64 << 20


async def test_the_oldest_answer_makes_room(site: Site) -> None:
    site.python("find.py", FIND)
    command = f"Find: {{typeahead: {{category: people, prefix: q}}, {PARAMETERS}}}"
    site.configure(f"people: {{run: [./find.py], env: {{RAN: {site.folder}/ran, GATE: x}}, commands: {{{command}}}}}")
    settings, _ = read_settings(site.file)
    core = Gateway(settings, Bus())
    await core.open(watch=False)
    try:
        suggestions = Suggestions(core.registry, core.invoker.invoke, 60, most=2)
        for prefix in ("a", "b", "a", "b", "c", "b", "c", "a"):
            await suggestions.ask("people", prefix, 1, Caller(request_id="r"))
    finally:
        await core.close()
    assert runs(site) == 4


@pytest.mark.parametrize(
    ("typeahead", "problem"),
    [
        ("{category: c, prefix: x}", "typeahead.prefix: the command has no parameter x (it has: q, n)"),
        ("{category: c, prefix: q, limit: x}", "typeahead.limit: the command has no parameter x"),
        ("{category: c, prefix: n}", "typeahead.prefix: the parameter n is of type int, not str"),
        ("{category: c, prefix: q, limit: q}", "typeahead.limit: the parameter q is of type str, not int"),
        ("{category: a/b, prefix: q, limit: n}", "typeahead.category: a category is not empty and has no /"),
        ("{category: c, prefix: q}", "typeahead.prefix: the command requires n too"),
        ("{category: c, prefixx: q}", "typeahead.prefixx: unknown key (did you mean prefix?)"),
        ("{prefix: q}", "typeahead: object missing required field `category`"),
    ],
)
def test_a_source_that_does_not_fit_its_command_is_refused(site: Site, typeahead: str, problem: str) -> None:
    parameters = "parameters: {q: {type: str}, n: {type: int}}"
    site.configure(f"a:\n  run: [cat]\n  commands:\n    Find:\n      {parameters}\n      typeahead: {typeahead}")
    settings, _ = read_settings(site.file, environ={})
    sources = read_sources(settings)
    where = re.escape(f"{site.file}:9: connectors.a.commands.Find.{problem}")
    with pytest.raises(Quarantine, match=where):
        define(sources.entries[0], sources.defaults, settings)


async def test_a_source_that_is_described_has_to_fit_too(site: Site) -> None:
    told = {"name": "Look", "parameters": [{"id": "q"}], "typeahead": {"category": "people", "prefix": "x"}}
    site.script("a.sh", f"echo '{json.dumps({'commands': [told]})}'")
    site.configure("a: {run: [./a.sh]}")
    async with served(site) as gateway:
        reason = (await gateway.status("a"))["reason"]
    assert reason == "describe, command Look: typeahead.prefix: the command has no parameter x (it has: q)"
