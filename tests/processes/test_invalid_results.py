"""A result that is none is a 502, whoever finds it, the gateway or a host, in every runtime and mode."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.installing import installed
from tests.one_gateway import nothing_is_left, nothing_is_left_of_the_file  # noqa: F401
from tests.support import Server, Site, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DEEP = 100_000
PYTHON = f"""
import os, sys

def Circle():
    circle = []
    circle.append(circle)
    return circle

def Deep():
    deep = []
    for _ in range({DEEP}):
        deep = [deep]
    return deep

def NotANumber(): return {{"a": [float("nan")]}}
def Infinite(): return float("-inf")
def Half(): return {{"a": "x\\ud800"}}
def HalfKey(): return {{"x\\ud800": 1}}
def HalfLegacy(): return {{"response": "\\ud800", "mimetype": "text/plain", "status": 200}}
def PairKey(): return {{(1, 2): 3}}
def Digits(): return 10 ** 5000
def Exits(): sys.exit(0)
def Leaves(): os._exit(0)
def Object(): return object()
"""
NODE = f"""
export function Circle() {{ const circle = []; circle.push(circle); return circle; }}
export function Deep() {{ let deep = []; for (let i = 0; i < {DEEP}; i++) deep = [deep]; return deep; }}
export function NotANumber() {{ return {{a: [NaN]}}; }}
export function Infinite() {{ return -Infinity; }}
export function Half() {{ return {{a: 'x\\ud800'}}; }}
export function HalfKey() {{ return {{'x\\udc00': 1}}; }}
export function HalfError() {{ return new Error('x\\ud800'); }}
export function Exits() {{ process.exit(0); }}
export function Getter() {{ return {{get a() {{ throw new Error('no'); }}}}; }}
"""
JAVA_RESULTS = {
    "NotANumber": '"{\\"a\\": NaN}"',
    "Half": '"{\\"a\\": \\"x" + (char) 0xd800 + "\\"}"',
    "Two": '"{}\\n{}"',
    "Empty": '""',
    "LineBreak": '"{\\"a\\": \\"x\\ny\\"}"',
    "Deep": f'"[".repeat({DEEP}) + "]".repeat({DEEP})',
    "Exits": "exit()",
}
SHELL = f"""
cmd_NotANumber() {{ echo '{{"a": NaN}}'; }}
cmd_Two() {{ echo '{{}}'; echo '{{}}'; }}
cmd_NotUtf8() {{ printf '{{"a": "\\xff"}}'; }}
cmd_NotUtf8Text() {{ printf 'caf\\xe9'; }}
cmd_Half() {{ echo '{{"a": "x\\ud800"}}'; }}
cmd_Deep() {{ printf '{{"a":'; head -c {DEEP} /dev/zero | tr '\\0' '['; head -c {DEEP} /dev/zero | tr '\\0' ']'; echo '}}'; }}
cmd_Digits() {{ printf '{{"a": 1'; head -c 5000 /dev/zero | tr '\\0' 0; echo '}}'; }}
cmd_Mark() {{ printf '\\xef\\xbb\\xbf{{"a": 1}}'; }}
"""
PRINTED = {
    "NotANumber": b'{"a": NaN}',
    "Infinite": b"-Infinity",
    "Half": b'{"a": "x\\ud800"}',
    "HalfKey": b'{"x\\udc00": 1}',
    "HalfRaw": b'{"a": "\xed\xa0\x80"}',
    "NotUtf8": b'{"a": "\xff"}',
    "Two": b"{} {}",
    "Empty": b"",
    "Key": b"{1: 2}",
    "Nul": b'{"a": 1}\0',
    "Python": b"{'a': 1}",
}
MODES = ("spawn", "standby", "persistent")


def java() -> str:
    commands = ", ".join(f'{{\\"name\\": \\"{name}\\", \\"parameters\\": []}}' for name in JAVA_RESULTS)
    cases = "\n".join(f'case "{name}": return {result};' for name, result in JAVA_RESULTS.items())
    return f"""
package invalid;

public class Invalid implements connector.Connector {{
    public String describe() {{ return "{{\\"commands\\": [{commands}]}}"; }}

    private static String exit() {{ System.exit(0); return ""; }}

    public String execute(String request) {{
        switch (request.replaceAll("(?s).*\\"command\\": *\\"(\\\\w+)\\".*", "$1")) {{
            {cases}
            default: return "null";
        }}
    }}
}}
"""


def lay_out(site: Site) -> None:
    (site.folder / "java/invalid").mkdir(parents=True)
    for name, text in (("act.py", PYTHON), ("act.mjs", NODE), ("act.sh", SHELL), ("java/invalid/Invalid.java", java())):
        (site.folder / name).write_text(text)
    printing = f"import json, os, sys\nPRINTED = {PRINTED!r}\n"
    site.python("prints.py", f'{printing}os.write(1, PRINTED[json.load(sys.stdin)["command"]])\n')
    answering = 'for line in sys.stdin:\n    os.write(3, PRINTED[json.loads(line)["command"]] + b"\\n")\n'
    site.python("answers.py", printing + answering)
    lines = [f"python-{mode}: {{runtime: python, module: ./act.py, mode: {mode}}}" for mode in (*MODES, "fork")]
    commands = "{" + ", ".join(f"{name}: {{}}" for name in PRINTED) + "}"
    for mode in MODES:
        program = "./answers.py" if mode == "persistent" else "./prints.py"
        lines.append(f"exec-{mode}: {{run: [{program}], mode: {mode}, commands: {commands}}}")
        lines.append(f"node-{mode}: {{runtime: node, module: ./act.mjs, mode: {mode}}}")
        lines.append(f"java-{mode}: {{runtime: java, class: invalid.Invalid, sources: [./java], mode: {mode}}}")
    lines += [f"shell-{mode}: {{runtime: shell, module: ./act.sh, mode: {mode}}}" for mode in MODES[:2]]
    site.configure("\n".join(lines))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    site = Site(tmp_path_factory.mktemp("invalid"))
    lay_out(site)
    if shutil.which("javac"):
        installed(site, *(f"java-{mode}" for mode in MODES))
    async with served(site) as server:
        yield server


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def refused(gateway: Server, connector: str, words: dict[str, str]) -> None:
    """Have each command of a connector refused, with these words in the message."""
    answers = await asyncio.gather(*(gateway.do(f"{connector}/{command}") for command in words))
    for (command, said), answer in zip(words.items(), answers, strict=True):
        assert (command, answer.status, answer.code) == (command, 502, "connector_invalid_output"), answer.message
        assert f"{connector}/{command} gave no valid result: " in answer.message
        assert said in answer.message


@pytest.mark.parametrize("mode", [*MODES, "fork"])
async def test_of_a_python_connector(gateway: Server, mode: str) -> None:
    words = {
        "Circle": "$[0] refers back", "Deep": "nested too deeply", "NotANumber": "$.a[0] is nan", "Infinite": "-inf",
        "Half": "$.a is text that holds a lone surrogate", "HalfKey": "a key that holds a lone surrogate",
        "HalfLegacy": "$.response", "PairKey": "a key of type tuple", "Digits": "more digits", "Exits": "sys.exit",
        "Object": "is an object",
    }  # fmt: skip
    await refused(gateway, f"python-{mode}", words)
    await refused(gateway, f"python-{mode}", {"Leaves": "its output is empty"})


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")
@pytest.mark.parametrize("mode", MODES)
async def test_of_a_node_connector(gateway: Server, mode: str) -> None:
    words = {
        "Circle": "result[0] refers back", "Deep": "nested too deeply", "NotANumber": "result.a[0] is NaN",
        "Infinite": "-Infinity", "Half": "result.a holds a lone surrogate", "HalfKey": "result: a key holds a lone",
        "HalfError": "result.message holds a lone", "Getter": "result cannot be read: Error: no",
    }  # fmt: skip
    await refused(gateway, f"node-{mode}", words)
    await refused(gateway, f"node-{mode}", {"Exits": "its output is empty"})


@pytest.mark.skipif(shutil.which("javac") is None, reason="there is no Java")
@pytest.mark.parametrize("mode", MODES)
async def test_of_a_java_connector(gateway: Server, mode: str) -> None:
    words = {
        "NotANumber": "not one JSON document", "Half": "a lone surrogate (character 8)", "Two": "not one JSON document",
        "Empty": "empty", "LineBreak": "not one JSON document", "Deep": "nested too deeply",
    }  # fmt: skip
    await refused(gateway, f"java-{mode}", words)
    await refused(gateway, f"java-{mode}", {"Exits": "its output is empty"})


@pytest.mark.parametrize("mode", MODES[:2])
async def test_of_a_bash_connector(gateway: Server, mode: str) -> None:
    words = {
        "NotANumber": "NaN", "Two": "more than one JSON document", "NotUtf8": "can't decode", "NotUtf8Text": "can't decode",
        "Half": "it holds \\ud800, half of", "Deep": "recursion",
    }  # fmt: skip
    await refused(gateway, f"shell-{mode}", words)


@pytest.mark.parametrize("mode", MODES)
async def test_of_a_program(gateway: Server, mode: str) -> None:
    words = dict.fromkeys(PRINTED, "not one JSON document")
    words |= {"Empty": "empty", "HalfRaw": "not UTF-8", "NotUtf8": "not UTF-8"}
    await refused(
        gateway, f"exec-{mode}", {**words, "Half": "it holds \\ud800, half of", "HalfKey": "it holds \\udc00"}
    )


@pytest.mark.parametrize("mode", MODES[:2])
async def test_what_bash_prints_may_begin_with_a_mark_and_have_any_number(gateway: Server, mode: str) -> None:
    marked: Any = await gateway.do(f"shell-{mode}/Mark")
    assert (marked.status, marked.body) == (200, {"a": 1})
    many = await gateway.do(f"shell-{mode}/Digits")
    assert many.status == 200
    assert b"1" + b"0" * 5000 in many.raw
