"""A client that is generated from the OpenAPI document calls every sample with its example."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

import httpx
import jsonschema_rs
import pytest
import pytest_asyncio
import yaml

from gateway.http.subschemas import folded
from tests.installing import ROOT, SECONDS, installed
from tests.samples.conftest import configured
from tests.support import Server, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path
    from types import ModuleType

KEY = "a key"
PACKAGE = "generated_client"
MODELS = "generated_models"
BUILT = {"markdown": ("node", "npm"), "pdf": ("java", "javac", "mvn"), "postgres": (), "s3": ()}
"""What has to be installed, and the programs which that takes."""
MISSING = {name: wants for name, wants in BUILT.items() if not all(map(shutil.which, wants))}
SAMPLES = sorted({one.name.partition(".")[0] for one in (ROOT / "connectors.d").iterdir()} | {"echo"})
UNSET = {"postgres", "s3", "smtp"}
"""Those that answer nothing but that they are not set up."""


class Generated(NamedTuple):
    """The package, and the document that it comes of."""

    package: ModuleType
    document: dict[str, Any]

    def commands(self, connector: str) -> Iterator[tuple[ModuleType, list[Any]]]:
        """Yield the module of each of a connector's commands, and its examples."""
        api = importlib.import_module(f"{PACKAGE}.api.{connector}")
        modules = [importlib.import_module(f"{api.__name__}.{one.name}") for one in pkgutil.iter_modules(api.__path__)]
        for path, operations in self.document["paths"].items():
            if path.startswith(f"/v1/do/{connector}/"):
                (module,) = (one for one in modules if f'"{path}"' in inspect.getsource(one))
                content = operations["post"]["requestBody"]["content"]["application/json"]
                yield module, [one["value"] for one in content["examples"].values()]

    def is_told(self, status: int, answer: Any) -> bool:
        """Tell whether a call's answer is as the document says."""
        told = self.document["components"]["responses"][str(status)]["content"]["application/json"]["schema"]
        return bool(jsonschema_rs.Draft202012Validator({**self.document, **told}).is_valid(answer))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(samples: Path) -> AsyncIterator[Server]:
    echo = yaml.safe_load((ROOT / "connectors.yaml").read_text())["connectors"]["echo"]
    listed = [*(f"{name}:" for name in SAMPLES if name not in {"echo", *MISSING}), f"echo: {echo}"]
    site = configured(samples, "generated", "\n".join(listed))
    installed(site, *(name for name in BUILT if name not in MISSING))
    async with served(site, env={"CONNECTOR_PROXY_API_KEY": KEY}) as gateway:
        yield gateway


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def generated(shared: Server, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Generated]:
    folder = tmp_path_factory.mktemp("client")
    answer = await shared.get("/openapi.json", headers={"Authorization": f"Bearer {KEY}"})
    (folder / "openapi.json").write_bytes(answer.raw)
    words = ("--path", folder / "openapi.json", "--output-path", folder / PACKAGE, "--meta", "none")
    done = subprocess.run(
        [sys.executable, "-m", "openapi_python_client", "generate", *words],
        capture_output=True, text=True, timeout=SECONDS, cwd=folder,
    )  # fmt: skip
    assert "WARNING" not in done.stdout + done.stderr, done.stdout + done.stderr
    assert (folder / PACKAGE / "client.py").exists(), done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    try:
        yield Generated(importlib.import_module(PACKAGE), answer.json)
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]


@pytest.mark.parametrize("sample", SAMPLES)
async def test_it_calls_each_command_of_a_sample_with_its_example(
    gateway: Server, generated: Generated, sample: str
) -> None:
    if sample in MISSING:
        pytest.skip(f"not on this machine: {', '.join(MISSING[sample])}")
    commands = list(generated.commands(sample))
    assert commands
    async with generated.package.AuthenticatedClient(base_url=gateway.url, token=KEY) as client:
        for operation, examples in commands:
            body = get_type_hints(operation.asyncio_detailed, vars(operation))["body"]
            assert examples
            for example in examples:
                answer = await operation.asyncio_detailed(
                    client=client, body=body.from_dict(example), x_request_id="generated"
                )
                assert answer.status_code == 200, answer
                told = answer.parsed.to_dict()
                assert generated.is_told(200, told), answer
                assert told == json.loads(answer.content)
                assert answer.headers["x-request-id"] == "generated"
                code = told["error"] and told["error"]["error_code"]
                assert code == (f"{sample}_not_configured" if sample in UNSET else None), answer


@pytest.fixture(scope="module")
def models(generated: Generated, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The pydantic models that datamodel-codegen makes of the document, for who calls with a client of his own."""
    pytest.importorskip("datamodel_code_generator", reason="it is among the packages for development: make setup")
    folder = tmp_path_factory.mktemp("models")
    (folder / "openapi.json").write_text(json.dumps(generated.document))
    words = (
        "--input", folder / "openapi.json", "--input-file-type", "openapi", "--openapi-scopes", "schemas", "paths",
        "--use-operation-id-as-name", "--output", folder / f"{MODELS}.py",
        "--output-model-type", "pydantic_v2.BaseModel",
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "datamodel_code_generator", *words],
        capture_output=True, text=True, timeout=SECONDS, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module(MODELS)
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(MODELS, None)


async def test_models_that_are_generated_carry_each_sample_there_and_back(
    gateway: Server, generated: Generated, models: ModuleType
) -> None:
    made = {folded(name): one for name, one in vars(models).items() if isinstance(one, type)}
    calls = 0
    async with httpx.AsyncClient(base_url=gateway.url, headers={"Authorization": f"Bearer {KEY}"}) as client:
        for path, operations in generated.document["paths"].items():
            for name, example in examples_of(path, operations):
                body = made[folded(f"{name}Request")].model_validate(example)
                sent = body.model_dump_json(exclude_unset=True, by_alias=True)
                assert json.loads(sent) == example
                answer = await client.post(path, content=sent, timeout=SECONDS)
                assert answer.status_code == 200, answer.text
                told = models.Envelope.model_validate(answer.json())
                assert told.model_dump(mode="json", exclude_unset=True) == answer.json()
                calls += 1
    assert calls >= len(SAMPLES) - len(MISSING)


def examples_of(path: str, operations: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the name of a command's operation with each of its examples."""
    if path.startswith("/v1/do/"):
        content = operations["post"]["requestBody"]["content"]["application/json"]
        yield from ((operations["post"]["operationId"], one["value"]) for one in content["examples"].values())


async def test_it_makes_a_job_and_looks_what_became_of_it(gateway: Server, generated: Generated) -> None:
    models = importlib.import_module(f"{PACKAGE}.models")
    request = importlib.import_module(f"{PACKAGE}.api.echo.echo_request")
    async with generated.package.AuthenticatedClient(base_url=gateway.url, token=KEY) as client:
        prefer = get_type_hints(request.asyncio_detailed, vars(request))["prefer"].__args__[0]
        accepted = await request.asyncio_detailed(
            client=client, body=request.EchoRequestBody(), prefer=prefer("respond-async")
        )
        assert accepted.status_code == 202
        assert isinstance(accepted.parsed, models.AcceptedJob)
        show = importlib.import_module(f"{PACKAGE}.api.gateway.get_v1_jobs_id")
        found = await show.asyncio_detailed(accepted.parsed.command_response.body.job_id, client=client)
        assert isinstance(found.parsed, models.JobStatus)


async def test_a_refusal_is_told_with_its_code(gateway: Server, generated: Generated) -> None:
    parse = importlib.import_module(f"{PACKAGE}.api.table.table_parse")
    models = importlib.import_module(f"{PACKAGE}.models")
    async with generated.package.AuthenticatedClient(base_url=gateway.url, token=KEY) as client:
        refused = await parse.asyncio_detailed(client=client, body=models.TableParseBody.from_dict({"text": 5}))
        assert isinstance(refused.parsed, models.Problem400)
        assert refused.parsed.error.error_code == "invalid_parameters"
    async with generated.package.AuthenticatedClient(base_url=gateway.url, token="wrong") as client:
        refused = await parse.asyncio_detailed(client=client, body=models.TableParseBody(text="a"))
        assert isinstance(refused.parsed, models.Unauthorized)
