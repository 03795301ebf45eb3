"""No secret comes out of a gateway, wherever it stands and in whatever form it is printed. A result is its caller's."""

from __future__ import annotations

import base64
import html
import json
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

import aiohttp
import aiohttp.web
import pytest
import pytest_asyncio

from gateway.observe.redact import MASK
from tests.support import Server, Site, called_by, cli, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

CANARY = "cAn4ry/+\"é'Zq"
NUMBER = 91827364
KEY = "the-gateway's/key+1"

FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "capitals": str.upper,
    "json": lambda value: json.dumps(value, ensure_ascii=False),
    "ascii": json.dumps,
    "twice": lambda value: json.dumps(json.dumps(value)),
    "repr": repr,
    "url": lambda value: quote(value, safe=""),
    "form": quote_plus,
    "html": html.escape,
    "base64": lambda value: base64.b64encode(value.encode()).decode(),
    "basic": lambda value: base64.urlsafe_b64encode(f"me:{value}".encode()).decode().rstrip("="),
    "hex": lambda value: value.encode().hex(),
    "long": lambda value: "-" * 8186 + value + "-" * 20_000,
}
PLACES: dict[str, dict[str, Any]] = {
    "variable": {"env": {"SMTP_PASS": CANARY}},
    "below": {"config": {"credentials": {"value": CANARY}}},
    "list in a list": {"config": {"api-keys": [["x", {"y": [CANARY]}]]}},
    "header": {"config": {"headers": {"Authorization": f"Bearer {CANARY}"}}},
    "url": {"config": {"database": f"postgres://u:{quote(CANARY, safe='')}@h/db"}},
    "connection string": {"env": {"DB": f"Server=h;Uid=u;Password={CANARY};x=1"}},
    "option": {"run": ["./say.py", "--password", CANARY]},
    "option with a value": {"run": ["./say.py", f"--token={CANARY}"]},
    "application": {"auths": {"A": {"client_secret": CANARY, "client_id": "x"}}},
    "json": {"env": {"SETTINGS": json.dumps({"signing_key": CANARY})}},
}
PARAMETERS: dict[str, tuple[dict[str, Any], Any]] = {
    "declared": ({"code": {"secret": True}}, {"code": CANARY}),
    "named": ({"passphrase": {}}, {"passphrase": CANARY}),
    "schema": ({"code": {"schema": {"type": "string", "writeOnly": True}}}, {"code": CANARY}),
    "format": ({"o": {"schema": {"properties": {"code": {"format": "password"}}}}}, {"o": {"code": CANARY}}),
    "within": ({"o": {}}, {"o": [{"headers": {"X-Api-Key": CANARY}}]}),
    "within a text": ({"o": {"type": "str"}}, {"o": f"postgres://u:{quote(CANARY, safe='')}@h/db"}),
    "default": ({"o": {"default": CANARY, "secret": True}}, {}),
}
SAY = """
import json, os, sys
folder = os.path.dirname(os.path.abspath(__file__))
request = json.load(sys.stdin)
words = json.load(open(folder + "/words.json"))[request["task_data"]["form"]] if request["op"] == "execute" else ""
how = request["task_data"]["how"] if request["op"] == "execute" else "describe"
envelope = {"command_response": {"body": {}, "mimetype": "application/json"}, "command_response_version": 2}
if how == "fails":
    print("said:", words, file=sys.stderr)
    sys.exit(3)
if how == "tells":
    print(json.dumps({"error": {"error_code": "E", "message": words}}))
elif how == "envelope":
    print(json.dumps({**envelope, "error": {"error_code": "E", "message": words}, "spiff__logs": [words, "more"]}))
elif how == "code":
    print(json.dumps({"error": {"error_code": words[:200], "message": "m"}}))
elif how == "no json":
    print("{", words)
else:
    print(json.dumps({"body": words}))
"""
HOWS = ("fails", "tells", "envelope", "no json")


def named(place: str) -> str:
    return place.replace(" ", "-")


def entries() -> dict[str, Any]:
    common: dict[str, Any] = {"run": ["./say.py"], "commands": {"Say": {"async": True}}, "max_log": "64KiB"}
    told = {named(place): {**common, **entry} for place, entry in PLACES.items()}
    for place, (parameters, _) in PARAMETERS.items():
        told[f"parameter-{named(place)}"] = {**common, "commands": {"Say": {"parameters": parameters, "async": True}}}
    told["number"] = {**common, "config": {"pin": NUMBER}}
    told["warned"] = {**common, "run": ["./warned.py"], "config": {"password": CANARY}}
    del told["warned"]["commands"]
    told["quarantined"] = {"run": ["./broken.sh"], "env": {"API_KEY": CANARY}}
    told["refused"] = {"run": ["./say.py"], "config": {"password": CANARY}, "mode": CANARY, "commands": {}}
    return told


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    site = Site(tmp_path_factory.mktemp("everywhere"))
    site.python("say.py", SAY)
    site.python(
        "warned.py",
        """
        import json, os, sys
        request = json.load(sys.stdin)
        words = json.load(open(os.path.dirname(os.path.abspath(__file__)) + "/words.json")).values()
        words = [word for word in words if "it is" not in word]
        problems = [{"module": f"m{n}", "message": word} for n, word in enumerate(words)]
        print(json.dumps({"commands": [{"name": "Go"}], "problems": problems}))
        """,
    )
    site.script("broken.sh", 'cat "$(dirname "$0")/words" >&2; exit 4')
    words = {form: made(CANARY) for form, made in FORMS.items()}
    (site.folder / "words").write_text("\n".join(word for form, word in words.items() if form != "long"))
    (site.folder / "words.json").write_text(json.dumps({**words, "number": f"it is {NUMBER}", "key": f"it is {KEY}"}))
    site.configure(
        "\n".join(f"{name}: {json.dumps(entry)}" for name, entry in entries().items()),
        gateway=f"api_key: {json.dumps(KEY)}",
    )
    async with served(site) as gateway:
        yield gateway


@pytest_asyncio.fixture
async def gateway(running: Server) -> AsyncIterator[Server]:
    async with called_by(running, headers={"Authorization": f"Bearer {KEY}"}):
        yield running


def leaks(text: str, form: str = "plain") -> list[str]:
    """Return the pieces of what a form of the canary is that stand in a text."""
    said = FORMS[form](CANARY).strip("-\"'")
    inner = said[4:-4] if form in {"base64", "basic"} else said  # of base64, a few bits stay
    size = 10 if form == "hex" else 5  # ids of requests are hexadecimal, too
    pieces = {piece for at in range(len(inner) - size + 1) if any(map(str.isalnum, piece := inner[at : at + size]))}
    return sorted(piece for piece in pieces if piece in text or json.dumps(piece)[1:-1] in text)


async def say(gateway: Server, target: str, params: dict[str, Any], form: str, how: str, **options: Any) -> Any:
    return await gateway.do(f"{target}/Say", {**params, "spiff__task_data": {"form": form, "how": how}}, **options)


@pytest.mark.parametrize("form", FORMS)
async def test_no_secret_of_a_connector_is_shown(gateway: Server, form: str) -> None:
    for place in PLACES:
        for how in HOWS:
            answer = await say(gateway, named(place), {}, form, how)
            assert answer.code, (place, how)
            assert MASK in answer.message or how == "no json" or form == "long", (place, how, answer.raw)
            assert not leaks(answer.raw.decode(), form), (place, how, answer.raw)
        lines = "".join(event["line"] for event in gateway.events("log", connector=named(place)))
        assert MASK in lines
    assert not leaks(gateway.log(), form)


@pytest.mark.parametrize("form", FORMS)
async def test_no_secret_of_a_call_is_shown(gateway: Server, form: str) -> None:
    for place, (_, params) in PARAMETERS.items():
        for how in HOWS:
            answer = await say(gateway, f"parameter-{named(place)}", params, form, how)
            assert answer.code not in {None, "invalid_parameters"}, (place, how, answer.raw)
            assert MASK in answer.message or how == "no json" or form == "long", (place, how, answer.raw)
            assert not leaks(answer.raw.decode(), form), (place, how, answer.raw)
    assert not leaks(gateway.log(), form)


async def test_a_secret_that_is_a_number_is_not_shown(gateway: Server) -> None:
    answer = await say(gateway, "number", {}, "number", "fails")
    assert str(NUMBER) not in answer.raw.decode()
    assert "said: it is [redacted]" in answer.message
    assert str(NUMBER) not in gateway.log()


async def test_the_gateways_own_key_is_not_shown(gateway: Server) -> None:
    for how in ("fails", "tells", "envelope"):
        answer = await say(gateway, "number", {}, "key", how)
        assert f"it is {MASK}" in answer.message
        assert "gateway's" not in answer.raw.decode()
    assert KEY not in gateway.log()


async def test_no_secret_is_in_an_error_code(gateway: Server) -> None:
    answer = await say(gateway, "variable", {}, "plain", "code")
    assert answer.code == MASK
    assert not leaks(answer.raw.decode())
    assert not leaks(gateway.log())


async def test_a_result_is_its_callers(gateway: Server) -> None:
    answer = await say(gateway, "variable", {}, "plain", "works")
    assert answer.body == {"body": CANARY}
    assert not leaks(gateway.log())


async def test_no_secret_is_in_the_status_and_in_reasons(gateway: Server) -> None:
    await eventually(lambda: gateway.events("quarantined", connector="quarantined"))
    status = (await gateway.get("/v1/status")).raw.decode()
    connectors = json.loads(status)["connectors"]
    assert MASK in connectors["quarantined"]["reason"]
    assert MASK in connectors["refused"]["reason"]
    assert len(connectors["warned"]["notices"]) == len(FORMS)
    unavailable = await gateway.do("quarantined/Say")
    assert unavailable.code == "connector_unavailable"
    assert len((await gateway.get("/v1/commands")).json) > len(PLACES)
    texts = [
        (await gateway.get("/v1/commands")).raw.decode(),
        status,
        unavailable.raw.decode(),
        gateway.log(),
        (await gateway.get("/metrics")).raw.decode(),
    ]
    texts += [cli(gateway.site, *verb).stdout for verb in (("check",), ("check", "--json"), ("list",))]
    for text in texts:
        for form in FORMS:
            assert not leaks(text, form), form


async def test_no_secret_is_in_a_job(gateway: Server) -> None:
    for target, params in (("below", {}), ("parameter-named", {"passphrase": CANARY})):
        for form in ("plain", "ascii", "basic"):
            accepted = await say(gateway, target, params, form, "fails", headers={"Prefer": "respond-async"})
            assert accepted.status == 202
            path = accepted.headers["Location"]

            async def ended(path: str = path) -> Any:
                return (await gateway.get(path)).json["finished"]

            await eventually(ended)
            shown = (await gateway.get(path)).raw.decode()
            assert MASK in shown
            told = cli(gateway.site, "jobs", "show", "--url", gateway.url, path.rpartition("/")[2])
            assert "connector_failed" in told.stdout, told.stderr
            for text in (shown, told.stdout, gateway.log()):
                assert not leaks(text, form)


async def test_no_secret_is_on_a_terminal(gateway: Server) -> None:
    data = json.dumps({"passphrase": CANARY})
    (gateway.site.folder / "parameters.json").write_text(data)
    told = cli(gateway.site, "call", "parameter-named/Say", "@parameters.json")
    assert told.returncode == 1
    assert not leaks(told.stdout + told.stderr)
    told = cli(gateway.site, "test", "quarantined")
    assert not leaks(told.stdout + told.stderr)


@pytest.mark.parametrize(
    "request_",
    [
        "GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\x7f\x01\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nSpiff-Connector-Proxy-Api-Key {key}\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nSpiff Connector: {key}\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\n Authorization: {key}\r\n\r\n",
        "GET /?token={key} HTTP/9.9\r\nHost: x\r\n\r\n",
        "{key} / HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET http://{key}:{key}@[/ HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST /v1/do/variable/Say HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: {key}\r\n\r\n",
        "POST /v1/do/variable/Say HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nTransfer-Encoding: chunked\r\n\r\n{key}\r\n",
        "POST /v1/do/variable/Say HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 20\r\n\r\n{key}{key}",
        "POST /v1/do/variable/Say HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: 20\r\n\r\n{key}{key}",
        "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: {key}, chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: {key}\r\nConnection: {key}\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nCookie: {key}=\0\r\nCookie: {key}\r\n\r\n",
    ],
)
@pytest.mark.parametrize("key", [KEY, "another-caller's-key"])
async def test_nothing_of_a_request_that_is_none_is_logged(gateway: Server, request_: str, key: str) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        connection.sendall(request_.replace("{key}", key).encode())
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(20)
        answer = b""
        while more := connection.recv(65536):
            answer += more
    await gateway.get("/liveness")
    assert key not in answer.decode()
    assert key not in gateway.log()
    assert json.dumps(key)[1:-1] not in gateway.log()


CALLBACKS = """
callbacks:
  allow: [127.0.0.1]
  headers: {X-Mine: CANARY}
"""


async def test_what_a_caller_says_of_a_callback_is_told_without_its_credentials(site: Site) -> None:
    site.script("work.sh", "cat >/dev/null; echo 1")
    site.configure(
        "work: {run: [./work.sh], commands: {Go: {async: true}}}",
        gateway=CALLBACKS.replace("CANARY", json.dumps(CANARY)),
    )

    async def refuse(request: aiohttp.web.BaseRequest) -> aiohttp.web.Response:
        message = f"{'-' * 490}{request.headers['X-Mine']} is not who you are"
        told = {"error_code": "unexpected_workflow_exception", "message": message}
        return aiohttp.web.json_response(told, status=400)

    caller = aiohttp.web.Server(refuse)
    runner = aiohttp.web.ServerRunner(caller)
    await runner.setup()
    listening = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
    await listening.start()
    port = runner.addresses[0][1]
    try:
        async with served(site) as gateway:
            headers = {"Spiff-Callback-Url": f"http://127.0.0.1:{port}/"}
            accepted = await gateway.do(
                "work/Go", {"spiff__callback_url": headers["Spiff-Callback-Url"]}, headers=headers
            )
            path = accepted.headers["Location"]

            async def tried() -> Any:
                return (await gateway.get(path)).json["finished"]

            await eventually(tried)
            job = (await gateway.get(path)).raw.decode()
            assert "its process failed" in job
            assert not leaks(job)
            assert not leaks(gateway.log())
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    "text",
    [
        "gateway: {api_key: !CANARY x}\n",
        "gateway: {api_key: *CANARY}\n",
        "gateway: {api_key: CANARY, listen: nowhere}\n",
        "gateway: {api_key: [CANARY]}\n",
        "gateway: {oauth: {key: {x: CANARY}}}\n",
        "gateway: {callbacks: {rewrite: {'http://u:CANARY@h': x}}}\n",
        'gateway: {callbacks: {allow: [x], headers: {X: "CANARY\\n"}}}\n',
        "gateway: {callbacks: {allow: [x], oauth2: {token_url: 'ftp://u:CANARY@h', client_id: x, client_secret: CANARY}}}\n",
        "gateway: {jobs: {database: 'mysql://u:CANARY@h/x'}}\n",
        "gateway: {jobs: {database: 'postgres://u:CANARY#1@h/x'}}\n",
    ],
)
def test_a_setting_that_cannot_be_used_is_told_without_its_secret(site: Site, text: str) -> None:
    site.file.write_text(text.replace("CANARY", "Zq4y9canary"))
    for verb in ("check", "list", "serve"):
        told = cli(site, verb)
        assert told.returncode == 2, told.stdout + told.stderr
        assert "error:" in told.stderr
        assert "canary" not in told.stdout + told.stderr
        assert "Traceback" not in told.stderr


ACT = """
import sys

def Say(*, passphrase: str) -> str:
    print("said:", passphrase, "-" * 8180 + passphrase + "-" * 100, file=sys.stderr)
    sys.stderr.flush()
    raise RuntimeError("no " + passphrase)
"""
LINES = """
import json, os, sys
answers = os.fdopen(3, "w") if "--lines" in sys.argv else sys.stdout
for line in sys.stdin:
    passphrase = json.loads(line)["params"]["passphrase"]
    print("said:", passphrase, "-" * 8180 + passphrase + "-" * 100, file=sys.stderr, flush=True)
    print(json.dumps({"error": {"error_code": "E", "message": "no " + passphrase}}), file=answers, flush=True)
    if answers is sys.stdout:
        break
"""


async def test_a_secret_of_a_call_is_not_shown_whatever_the_mode(site: Site) -> None:
    (site.folder / "act.py").write_text(ACT)
    site.python("lines.py", LINES)
    modes = {
        **{
            f"python-{mode}": f"runtime: python, module: ./act.py, mode: {mode}"
            for mode in ("fork", "standby", "persistent")
        },
        **{f"exec-{mode}": "run: [./lines.py], mode: " + mode for mode in ("spawn", "standby")},
        "exec-persistent": "run: [./lines.py, --lines], mode: persistent",
    }
    declared = "commands: {Say: {parameters: {passphrase: {}}}}"
    site.configure(
        "\n".join(f"{name}: {{{keys}{'' if 'python' in name else ', ' + declared}}}" for name, keys in modes.items())
    )
    async with served(site) as gateway:
        for name in modes:
            for number in range(4):  # of processes that wait, that are forked ahead, that stay
                passphrase = f"{number}-cAn4ry-{number}"
                answer = await gateway.do(f"{name}/Say", {"passphrase": passphrase})
                assert answer.code, (name, answer.raw)
                assert f"no {MASK}" in answer.message, (name, answer.raw)
                assert "cAn4" not in answer.raw.decode()

            def said(name: str = name) -> bool:
                return (
                    len([one for one in gateway.events("log", connector=name) if f"said: {MASK}" in one["line"]]) == 4
                )

            await eventually(said)
        assert "cAn4" not in gateway.log()
        assert "n4ry-" not in gateway.log()


def test_no_secret_of_a_requirement_is_shown_by_a_build_that_fails(site: Site) -> None:
    url = "http://me:cAn4ry-zq@127.0.0.1:9/odd-1.0-py3-none-any.whl"
    site.configure(f'odd: {{runtime: python, requirements: ["odd @ {url}"]}}')
    told = cli(site, "install")
    assert told.returncode == 1, told.stdout
    assert "failed" in told.stdout + told.stderr
    assert "cAn4ry" not in told.stdout + told.stderr
