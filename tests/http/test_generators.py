"""Generators of clients make something of every registry, however its names and schemas look."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any, get_type_hints
from urllib.parse import unquote

import yaml
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.support import Site, served

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    import pytest

KEY = "a key"
PACKAGE = "odd_client"
QUOTED: dict[str, Any] = {"type": "str", "description": 'a "quoted" */ thing """ \\'}
OPTIONAL: dict[str, Any] = {"type": "str", "required": False}


def optional(**schema: Any) -> dict[str, Any]:
    return {"required": False, "schema": schema}


NAMES = (
    "with-dash", "withDash", "$id", "self", "def", "None", "naïve", "__class__", "_private", "1st", "a.b", "a[b]", "A",
    "body", "client", "additional_properties", "from_dict", "to_dict", "model_config", "schema", "json", "copy", "import",
    "__proto__", "constructor", "properties", "x" * 200, "emoji😀",
)  # fmt: skip
ODD: dict[str, Any] = {
    "Names": {
        "description": 'Line one with "quotes" and */ end\n\nSecond <b>bold</b> """ triple \\N \\\n# heading\n- ${x} {{x}}',
        "parameters": {
            **dict.fromkeys(("with space", "class", "type"), QUOTED),
            "$ref": {"schema": {"type": "string"}},
            **dict.fromkeys(NAMES, OPTIONAL),
        },
    },
    "Enums": {
        "parameters": {
            "integers": {"type": "int", "enum": [1, 2, -3], "default": -3},
            "mixed": {"enum": [1, "1", None, True, 2.5, {"a": 1}, [1, [2]], []]},
            "nothing": {"enum": [None]},
            "alike": {"enum": ["a b", "a-b", "a_b", "A B", ""], "required": False, "default": "a-b"},
            "words": {"type": "str", "enum": ["class", "None", "self", "1", "é"], "required": False},
            "yes": {"type": "bool", "enum": [True], "required": False},
        }
    },
    "Defaults": {
        "parameters": {
            "text": {"type": "str", "default": 'a "quoted" \\ \n text'},
            "large": {"type": "int", "default": 2**62},
            "nothing": {"type": "str", "default": None},
            "any": {"default": {"a": [1, {"b": None}]}},
            "reference": {"default": {"$ref": "elsewhere.json"}},
            "list": {"schema": {"type": "array", "items": {"type": "integer"}}, "default": [1, 2]},
            "object": {"schema": {"type": "object", "properties": {"x": {"default": 3}}}, "default": {"x": 4}},
            "date": {"type": "str", "schema": {"format": "date"}, "default": "2020-01-01"},
        }
    },
    "Nested": {
        "parameters": {
            "object": {
                "schema": {
                    "type": "object",
                    "required": ["a"],
                    "properties": {"a": {"type": "object", "properties": {"class": {"type": "string"}}}, "$ref": True},
                    "additionalProperties": False,
                }
            },
            "tree": optional(
                **{"$ref": "#/$defs/a%20b"},
                **{"$defs": {"a b": {"type": "object", "properties": {"below": {"$ref": "#/$defs/a%20b"}}}}},
            ),
            "anchor": optional(**{"$anchor": "it"}, type="object", properties={"x": {"$ref": "#it"}}),
            "itself": optional(type="object", properties={"below": {"$ref": "#"}}),
            "one": optional(oneOf=[{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]),
            "map": optional(type="object", additionalProperties={"type": "integer"}),
            "patterns": optional(type="object", patternProperties={"^x-": {"type": "string"}}),
            "pair": optional(type="array", prefixItems=[{"type": "string"}, {"type": "integer"}], items=False),
            "flags": optional(type="object", properties={"any": True, "never": False}),
            "all": optional(allOf=[{"type": "object", "properties": {"p": {"type": "string"}}}, {"type": "object"}]),
            "several": optional(type=["array", "object", "null"]),
            "nothing": optional(type="null"),
            "constant": optional(const={"a": [1]}),
            "titled": optional(title="Envelope", type="object", properties={"a": {"type": "string"}}),
            "chosen": optional(**{"if": {"type": "string"}, "then": {"minLength": 1}, "else": {"type": "integer"}}),
            "number": optional(type="number", exclusiveMinimum=0, multipleOf=0.5),
        }
    },
    "Secret": {
        "parameters": {
            "password": {"type": "str", "secret": True},
            "token": {"secret": True, "required": False, "default": "the-secret-default"},
        }
    },
    "More": {"additional_parameters": True, "parameters": {"a": {"type": "str"}}},
    "a b?": {"parameters": {"a": OPTIONAL}},
    "{x}": {},
    "later": {"async": True, "parameters": {"a": {"type": "str"}}},
    "LATER": {},
}
SEND = {"Send": {"parameters": {"to": {"type": "str"}, "how": {"enum": ["x", "y"], "required": False}}}}
REGISTRY: dict[str, Any] = {
    "odd": {"run": ["cat"], "description": "Has **markdown**, <script>alert(1)</script>\x7f */", "commands": ODD},
    "empty": {"run": ["cat"], "commands": {}},
    "lost": {"run": ["./nothing"], "description": "not there"},
    **{name: {"run": ["cat"], "commands": SEND} for name in ("twin-a", "twin_a", "twin.a", "TwinA")},
    "gateway": {"run": ["cat"], "commands": {"Do": {}}},
    "class": {"run": ["cat"], "commands": {"def": {}, "class": {}}},
    "get": {"run": ["cat"], "commands": {"v1_jobs": {}, "openapi_json": {}}},
    "Envelope": {"run": ["cat"], "commands": {"Fault": {}}},
}


def generated(folder: Path, document: bytes) -> ModuleType:
    """Return the package that is made of a document, without a complaint."""
    (folder / "openapi.json").write_bytes(document)
    words = ("--path", folder / "openapi.json", "--output-path", folder / PACKAGE, "--meta", "none")
    done = subprocess.run(
        [sys.executable, "-m", "openapi_python_client", "generate", *words],
        capture_output=True, text=True, timeout=120, cwd=folder,
    )  # fmt: skip
    assert "WARNING" not in done.stdout + done.stderr, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    return importlib.import_module(PACKAGE)


def operations(package: ModuleType) -> dict[tuple[str, str], ModuleType]:
    """Return the modules of a generated package's operations, by method and path."""
    found: dict[tuple[str, str], ModuleType] = {}
    for one in pkgutil.walk_packages([f"{package.__path__[0]}/api"], f"{PACKAGE}.api."):
        module = importlib.import_module(one.name)
        text = "" if one.ispkg else (module.__spec__.loader.get_source(one.name) or "")  # type: ignore[union-attr]
        if told := re.search(r'"method": "(\w+)",\s+"url": "(.*?)"', text):
            found[told[1], told[2]] = module
    return found


async def test_a_client_of_an_odd_registry_has_all_of_it_and_calls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    site = Site(tmp_path)
    site.configure(yaml.safe_dump(REGISTRY, allow_unicode=True))
    async with served(site, env={"CONNECTOR_PROXY_API_KEY": KEY}) as gateway:
        answer = await gateway.get("/openapi.json", headers={"Authorization": f"Bearer {KEY}"})
        document = answer.json
        assert [str(error) for error in OpenAPIV31SpecValidator(document).iter_errors()] == []
        assert "lost" not in answer.raw.decode()
        assert "the-secret-default" not in answer.raw.decode()
        package = generated(tmp_path, answer.raw)
        modules = operations(package)
        wanted = {(method, path) for path, one in document["paths"].items() for method in one}
        assert len(modules) == len(wanted)
        calls = {path: one["post"] for path, one in document["paths"].items() if path.startswith("/v1/do/")}
        assert {unquote(path) for path in calls} >= {
            "/v1/do/odd/a b?",
            "/v1/do/odd/{x}",
            "/v1/do/twin.a/Send",
            "/v1/do/get/v1_jobs",
        }
        async with package.AuthenticatedClient(base_url=gateway.url, token=KEY) as client:
            for path, operation in calls.items():
                module = modules["post", path]
                body = get_type_hints(module.asyncio_detailed, vars(module))["body"]
                content = operation["requestBody"]["content"]["application/json"]
                for example in [one["value"] for one in content.get("examples", {}).values()] or [None]:
                    if example is None:
                        assert "$ref" in content["schema"]["properties"], "what tools would take for a reference"
                        continue
                    done = await module.asyncio_detailed(client=client, body=body.from_dict(example))
                    assert done.status_code == 200, (path, done)
                    assert done.parsed.command_response.body["params"].items() >= example.items()
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]
