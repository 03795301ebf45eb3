"""`runtime: container`: an image made on the spot, run by podman."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import Server, Site, cli, eventually, served

if TYPE_CHECKING:
    from collections.abc import Iterator

PODMAN = shutil.which("podman")
BUSYBOX = Path("/bin/busybox")
IMAGE = "localhost/gateway-test:1"
# Alone on the machine, and kept small: the storage of the tests is their own, and needs no privileges beyond root's.
BOUNDS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000")

SCRIPT = """#!/bin/busybox sh
request=$(/bin/busybox cat)
case $request in
*'"op":"describe"'*) echo '{"commands": [{"name": "Say", "parameters": []}, {"name": "Hang", "parameters": []},
                                         {"name": "Swell", "parameters": []}]}' ;;
*'"command":"Say"'*) echo "{\\"said\\": \\"$WORD\\", \\"hostname\\": \\"$(/bin/busybox hostname)\\", \\"canary\\": \\"$CANARY\\"}" ;;
*'"command":"Swell"'*) all=$(/bin/busybox head -c 200000000 /dev/zero | /bin/busybox tr '\\0' x) && echo '{}' ;;
*'"command":"Hang"'*)
  trap '' TERM
  echo ready >&2
  while :; do /bin/busybox sleep 1000; done ;;
esac
"""


class Podman:
    """An engine with a storage of its own."""

    def __init__(self, root: Path) -> None:
        self.options = [
            "--root",
            str(root / "storage"),
            "--runroot",
            str(root / "run"),
            "--storage-driver",
            "vfs",
            "--runtime",
            runtime(),
        ]

    def __call__(self, *arguments: str | Path, stdin: bytes | None = None) -> str:
        done = subprocess.run([str(PODMAN), *self.options, *arguments], capture_output=True, input=stdin, timeout=120)
        if done.returncode:
            raise RuntimeError(done.stderr.decode(errors="replace").strip())
        return done.stdout.decode()


def runtime() -> str:
    """Return runc where there is one: crun refuses the hybrid control groups that some machines have."""
    return "runc" if shutil.which("runc") else "crun"


@functools.cache
def why_not() -> str | None:
    """Say why podman cannot run a container here."""
    if PODMAN is None:
        return "no podman here: apt-get install podman runc"
    if os.geteuid() != 0:
        return "not root"
    if not BUSYBOX.exists():
        return "no static busybox here: apt-get install busybox-static"
    return None


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """Podman with an image of busybox and a script that is a connector."""
    problem = why_not()
    if problem is not None:
        pytest.skip(problem)
    folder = tmp_path_factory.mktemp("podman")
    programs = folder / "image" / "bin"
    programs.mkdir(parents=True)
    shutil.copy(BUSYBOX, programs / "busybox")
    (programs / "connector").write_text(SCRIPT)
    (programs / "connector").chmod(0o755)
    (folder / "image" / "tmp").mkdir()
    archive = subprocess.run(["tar", "-C", folder / "image", "-c", "."], check=True, capture_output=True).stdout
    engine = Podman(folder)
    try:
        engine("import", "--change", 'CMD ["/bin/connector"]', "-", IMAGE, stdin=archive)
        engine("run", "--rm", "--network", "none", *BOUNDS, IMAGE, "/bin/busybox", "true")
    except RuntimeError as reason:
        pytest.skip(f"podman does not work here: {str(reason)[-300:]}")
    yield engine
    engine("rm", "--all", "--force")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def boxed(site: Site, podman: Podman) -> Site:
    site.configure(
        f"""
        box:
          runtime: container
          image: {IMAGE}
          engine: podman
          engine_options: {json.dumps(podman.options)}
          options: {json.dumps(BOUNDS)}
          env: {{WORD: ☃}}
          max_memory: 64MiB
          timeout: 20s
        """
    )
    return site


def left(podman: Podman) -> list[str]:
    return podman("ps", "--all", "--format", "{{.Names}}").split()


async def test_a_call_runs_in_a_container_of_its_own(boxed: Site, podman: Podman) -> None:
    async with served(boxed, env={"CANARY": "tweet"}) as gateway:
        answers = await asyncio.gather(*(gateway.do("box/Say") for _ in range(3)))
        assert [(answer.status, answer.code) for answer in answers] == [(200, None)] * 3, answers
        assert {(answer.body["said"], answer.body["canary"]) for answer in answers} == {("☃", "")}
        assert len({answer.body["hostname"] for answer in answers}) == 3
        assert left(podman) == []


async def test_a_deadline_removes_the_container_that_ignores_sigterm(boxed: Site, podman: Podman) -> None:
    async with served(boxed) as gateway:
        call = asyncio.create_task(gateway.do("box/Hang", headers={"X-Timeout": "4"}))
        await eventually(lambda: gateway.events("log", line="ready"))
        (name,) = left(podman)
        assert name.startswith("gateway-")
        answer = await call
        assert (answer.status, answer.code) == (504, "connector_timeout")
        await nothing_is_left_of_it(gateway, podman)


async def test_a_caller_that_hangs_up_takes_the_container_along(boxed: Site, podman: Podman) -> None:
    async with served(boxed) as gateway:
        call = asyncio.create_task(gateway.do("box/Hang"))
        await eventually(lambda: gateway.events("log", line="ready"))
        call.cancel()
        await nothing_is_left_of_it(gateway, podman)


async def nothing_is_left_of_it(gateway: Server, podman: Podman) -> None:
    await eventually(lambda: not left(podman))
    await eventually(lambda: not gateway.connectors())
    assert (await gateway.do("box/Say")).body["said"] == "☃"


async def test_the_memory_limit_is_the_engines(boxed: Site, podman: Podman) -> None:
    async with served(boxed) as gateway:
        answer = await gateway.do("box/Swell")
        assert answer.status == 502
        assert answer.code in {"connector_failed", "connector_out_of_memory"}
        await nothing_is_left_of_it(gateway, podman)


async def test_an_engine_that_cannot_limit_memory_is_told_not_to(boxed: Site, podman: Podman) -> None:
    text = boxed.file.read_text()
    boxed.file.write_text(text.replace('"--ulimit", "nofile', '"--memory", "0", "--ulimit", "nofile'))
    async with served(boxed) as gateway:
        assert (await gateway.do("box/Say")).body["said"] == "☃"


async def test_an_image_that_is_not_there_is_named(boxed: Site) -> None:
    boxed.file.write_text(boxed.file.read_text().replace(IMAGE, "localhost/gateway-test:none"))
    (finding,) = json.loads(cli(boxed, "check", "--json").stdout)["connectors"]
    assert "gateway-test:none" in finding["problem"]


def test_without_an_engine_it_is_quarantined(site: Site) -> None:
    (site.folder / "bin").mkdir()
    site.configure(
        "box: {runtime: container, image: nothing}\nnamed: {runtime: container, image: nothing, engine: docker}"
    )
    findings = json.loads(cli(site, "check", "--json", env={"PATH": str(site.folder / "bin")}).stdout)["connectors"]
    assert [one["problem"] for one in findings] == [
        "no container engine found: install podman or docker",
        "docker not found: install it, or name it by its path",
    ]
