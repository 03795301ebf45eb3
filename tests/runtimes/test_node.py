"""`runtime: node`: which node, with how much of `max_memory`, and with which packages."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import io
import json
import os
import shutil
import subprocess
import tarfile
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.installing import install, installed
from tests.support import Site, cli, served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(shutil.which("npm") is None, reason="no npm here")
MIB = 1 << 20

HEAP = """
import v8 from 'node:v8';
import { Worker } from 'node:worker_threads';
const churn = (live) => {
  const kept = [];
  for (let i = 0; i < 1500; i++) kept[i % live] = new Array(131072).fill(i + 0.5);
  return { live };
};
export const Tell = () => ({ limit: v8.getHeapStatistics().heap_size_limit, program: process.execPath });
export const Churn = () => churn(60);
export const Fill = () => churn(10000);
const text = "const kept = []; for (;;) kept.push(new Array(131072).fill(0.5));";
export const Work = () => new Promise((resolve, reject) => {
  new Worker(text, { eval: true, resourceLimits: { maxOldGenerationSizeMb: 20 } }).on("error", reject).on("exit", resolve);
});
"""


def packed(file: Path, manifest: dict[str, Any], **files: str) -> bytes:
    """Make a package as npm packs it. Dots in the names of files are written `_`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    texts = {"package.json": json.dumps(manifest), **{name.replace("_", "."): text for name, text in files.items()}}
    with tarfile.open(file, "w:gz") as archive:
        for name, text in texts.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return file.read_bytes()


def package(folder: Path, manifest: dict[str, Any], **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text(json.dumps(manifest))
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def called(site: Site, command: str) -> Any:
    done = cli(site, "call", "--quiet", command)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)["command_response"]["body"]


def findings(site: Site) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in json.loads(cli(site, "check", "--json").stdout)["connectors"]}


async def test_v8_knows_its_bound(site: Site) -> None:
    (site.folder / "heap.mjs").write_text(HEAP)
    node = shutil.which("node")
    assert node is not None
    home = site.folder / "home"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "node").symlink_to(os.path.realpath(node))
    entry = "runtime: node, module: ./heap.mjs, max_memory: 300MiB"
    site.configure(
        f"""
        heap: {{{entry}}}
        stays: {{{entry}, mode: persistent}}
        own: {{{entry}, node: [--max-old-space-size=50]}}
        told: {{{entry}, env: {{NODE_OPTIONS: --max_old_space_size=52}}}}
        chosen: {{{entry}, node: ./home}}
        both: {{{entry}, node: [./home/bin/node, --max-old-space-size=50]}}
        nowhere: {{{entry}, node: ./nowhere}}
        text: {{{entry}, node: ./heap.mjs}}
        """
    )
    async with served(site) as gateway:
        told = {
            one: (await gateway.do(f"{one}/Tell")).body for one in ("heap", "stays", "own", "told", "chosen", "both")
        }
        young = told["own"]["limit"] / MIB - 50  # what V8 adds for young objects
        assert 0 <= young < 100
        shares = {name: round(one["limit"] / MIB - young) for name, one in told.items()}
        assert shares == {"heap": 172, "stays": 172, "own": 50, "told": 52, "chosen": 172, "both": 50}
        for name in ("heap", "stays"):
            assert (await gateway.do(f"{name}/Churn")).body == {"live": 60}
            full = await gateway.do(f"{name}/Fill")
            assert (full.status, full.code) == (502, "connector_out_of_memory"), full.raw
        assert (await gateway.do("own/Fill")).code == "connector_out_of_memory"
        worker = await gateway.do("stays/Work")
        assert (worker.status, worker.code) == (502, "connector_out_of_memory"), worker.raw
        assert (await gateway.status("nowhere"))["reason"] == f"node: {site.folder}/nowhere does not exist"
        assert "heap.mjs is not executable" in (await gateway.status("text"))["reason"]


def test_local_packages_may_lie_anywhere_and_package_json_above_the_module(site: Site) -> None:
    deeper = {"name": "deeper", "version": "1.0.0"}
    package(site.folder / "libs" / "deeper", deeper, index_js="module.exports = 4;\n")
    shared = {"name": "shared", "version": "1.0.0", "dependencies": {"deeper": "file:../deeper"}}
    package(site.folder / "libs" / "shared", shared, index_js="exports.x = 10 * require('deeper');\n")
    manifest = {"name": "x", "version": "1.0.0", "type": "module", "dependencies": {"shared": "file:../../libs/shared"}}
    for name in ("plain", "locked"):
        own = package(site.folder / "all" / name, manifest)
        (own / "src").mkdir()
        package(own / "src", {"type": "module"})
        (own / "src" / "tell.js").write_text("import s from 'shared';\nexport const Tell = () => s.x;\n")
        (own / "build.json").write_text("{}")
    lock = ["npm", "install", "--package-lock-only", "--offline", "--prefix", str(site.folder / "all" / "locked")]
    subprocess.run(lock, check=True, capture_output=True)
    site.configure(
        """
        plain: {runtime: node, module: ./all/plain/src/tell.js}
        locked: {runtime: node, module: ./all/locked/src/tell.js}
        """
    )
    installed(site, "--offline")
    assert [called(site, f"{name}/Tell") for name in ("plain", "locked")] == [40, 40]
    assert not [path for path in site.folder.rglob("node_modules") if site.state not in path.parents]
    assert (site.folder / "all" / "plain" / "build.json").read_text() == "{}"
    (site.folder / "libs" / "deeper" / "index.js").write_text("module.exports = 5;\n")
    assert install(site, "--offline", "plain").stdout.split() == ["built", "plain"]
    assert called(site, "plain/Tell") == 50
    shutil.rmtree(site.folder / "libs" / "deeper")
    done = install(site, "--offline", "plain")
    assert done.returncode == 1
    assert f"libs/shared/package.json: deeper: {site.folder}/libs/deeper does not exist" in done.stdout


class Registry:
    """A registry that has one package, for who knows the token."""

    def __init__(self, archive: bytes) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.headers.get("Authorization") != "Bearer quite-a-token":
                    self.send_error(401)
                    return
                url = f"http://127.0.0.1:{self.server.server_address[1]}/p.tgz"
                digest = base64.b64encode(hashlib.sha512(archive).digest()).decode()
                dist = {"tarball": url, "integrity": f"sha512-{digest}"}
                versions = {"1.0.0": {"name": "@mine/private", "version": "1.0.0", "dist": dist}}
                facts = {"name": "@mine/private", "dist-tags": {"latest": "1.0.0"}, "versions": versions}
                body = archive if self.path.endswith(".tgz") else json.dumps(facts).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    archive = packed(tmp_path / "p.tgz", {"name": "@mine/private", "version": "1.0.0"}, index_js="module.exports = 42;")
    with contextlib.closing(Registry(archive)) as found:
        yield found


def test_npmrc_beside_package_json_counts_and_is_not_left_in_the_build(site: Site, registry: Registry) -> None:
    manifest = {"name": "x", "version": "1.0.0", "dependencies": {"@mine/private": "1.0.0"}}
    own = package(site.folder / "own", manifest, tell_cjs="exports.Tell = () => require('@mine/private');\n")
    site.configure("own: {runtime: node, module: ./own/tell.cjs}")
    env = {"npm_config_cache": str(site.folder / "cache")}
    base = f"127.0.0.1:{registry.port}/"
    # Its error has what was said of the host, which holds a secret here.
    wrong = f"@mine:registry=http://wrong-token-here:x@{base}\n//{base}:_authToken=wrong-token-here\n"
    (own / ".npmrc").write_text(wrong)
    done = install(site, env=env)
    assert done.returncode == 1
    assert "401" in done.stdout + done.stderr
    assert "wrong-token" not in done.stdout + done.stderr
    (own / ".npmrc").write_text(f"@mine:registry=http://{base}\n//{base}:_authToken=quite-a-token\n")
    installed(site, env=env)
    assert called(site, "own/Tell") == 42
    assert not list(site.state.rglob(".npmrc"))
    assert not [one for one in site.state.rglob("*.json") if "quite-a-token" in one.read_text()]


def scripted(site: Site, name: str, **dependencies: dict[str, str]) -> Path:
    manifest = {"name": name, "version": "1.0.0", **dependencies}
    return package(site.folder / name, manifest, tell_cjs="exports.Tell = () => require('scripted/made.js');\n")


def test_install_scripts_are_run_by_name_and_what_cannot_work_without_is_not_built(site: Site) -> None:
    archives = site.folder / "archives"
    make = "require('fs').writeFileSync('made.js', 'module.exports = 7;')"
    facts = {"name": "scripted", "version": "1.0.0", "scripts": {"postinstall": f'node -e "{make}"'}}
    packed(archives / "scripted.tgz", facts)
    packed(archives / "native.tgz", {"name": "native", "version": "1.0.0"}, binding_gyp="{}")
    dependencies = {"scripted": "file:../archives/scripted.tgz"}
    native = {"native": "file:../archives/native.tgz"}
    for name in ("silent", "allowed", "none", "wrong"):
        scripted(site, name, dependencies=dependencies)
    scripted(site, "broken", dependencies=native)
    scripted(site, "spare", optionalDependencies=native)
    entries = {"allowed": "[scripted]", "none": "[]", "wrong": "[script]"}
    names = ("silent", "allowed", "none", "wrong", "broken", "spare")
    site.configure(
        "\n".join(
            f"{name}: {{runtime: node, module: ./{name}/tell.cjs"
            + (f", allow_scripts: {entries[name]}}}" if name in entries else "}")
            for name in names
        )
    )
    done = install(site, "--offline")
    assert done.returncode == 1
    assert called(site, "allowed/Tell") == 7
    found = findings(site)
    assert [name for name in names if found[name]["ok"]] == ["silent", "allowed", "none", "spare"]
    told = "the install scripts of scripted were not run: allow_scripts names those that may, [] none"
    assert found["silent"]["notices"] == [told]
    assert told in done.stdout
    assert "the install scripts of native were not run" in found["spare"]["notices"][0]
    assert found["allowed"]["notices"] == found["none"]["notices"] == []
    assert "allow_scripts: there is no package script" in found["wrong"]["problem"]
    assert "say allow_scripts: [native]" in found["broken"]["problem"]


YARN = """#!/bin/sh
[ "$2" = "$(dirname "$0")" ] && exit 1
mkdir -p "$2/node_modules/answer"
echo "module.exports = '$*';" > "$2/node_modules/answer/index.js"
"""


def test_the_lock_of_another_tool_is_that_tools_or_refused(site: Site) -> None:
    manifest = {"name": "x", "version": "1.0.0", "dependencies": {"answer": "1.0.0"}}
    tell = "exports.Tell = () => require('answer');\n"
    for name, lock in (("yarn", "yarn.lock"), ("pnpm", "pnpm-lock.yaml"), ("bun", "bun.lock")):
        own = package(site.folder / name, manifest, tell_cjs=tell)
        (own / lock).write_text("# yarn lockfile v1\n")
    site.configure(
        "\n".join(f"{name}: {{runtime: node, module: ./{name}/tell.cjs}}" for name in ("yarn", "pnpm", "bun"))
    )
    programs = site.folder / "bin"
    programs.mkdir()
    for program in ("node", "npm", "mkdir", "dirname", "sh"):
        found = shutil.which(program)
        assert found is not None
        (programs / program).symlink_to(os.path.realpath(found))
    done = install(site, env={"PATH": str(programs)})
    assert done.returncode == 1
    assert (
        "yarn not found: install it, or name it by its path, or make a lock of npm instead of yarn.lock" in done.stdout
    )
    assert "pnpm not found" in done.stdout
    assert "locks of bun are not used" in done.stdout
    (programs / "yarn").write_text(YARN)
    (programs / "yarn").chmod(0o755)
    assert install(site, "yarn", env={"PATH": str(programs)}).stdout.split() == ["built", "yarn"]
    answer = called(site, "yarn/Tell")
    assert "install --frozen-lockfile --production --ignore-scripts" in answer


def test_what_is_loaded_ahead_is_found_in_the_build_and_beside_the_entry(site: Site) -> None:
    register = {"name": "register", "version": "1.0.0", "exports": {"import": "./index.mjs", "require": "./index.cjs"}}
    package(
        site.folder / "register", register, index_mjs="globalThis.seen = ['import'];\n", index_cjs="global.early = 1;\n"
    )
    manifest = {"name": "x", "version": "1.0.0", "dependencies": {"register": "file:../register"}}
    tell = "export const Tell = () => [...globalThis.seen, globalThis.early];\n"
    package(site.folder / "own", manifest, tell_mjs=tell, more_mjs="globalThis.seen.push('own');\n")
    words = "[--import, register, --import=./own/more.mjs, -r, register]"
    site.configure(f"own: {{runtime: node, module: ./own/tell.mjs, node: {words}}}")
    installed(site, "--offline")
    assert called(site, "own/Tell") == ["import", "own", 1]


TELL = "\nexport const Tell = () => 1;\n"
UNLOADABLE = {
    "package": ("import 'missing';", "Cannot find package 'missing'"),
    "file": ("import './missing.mjs';", "missing.mjs"),
    "text": ("export const =;", "SyntaxError"),
    "kind": ("require('fs');", "require is not defined in ES module scope"),
    "name": ("import { nothing } from 'fs';", "does not provide an export named 'nothing'"),
    "native": ("import { createRequire } from 'module'; createRequire(import.meta.url)('./made.node');", "made.node"),
    "loader": ("throw new Error('Could not locate the bindings file. Tried:');", "bindings file"),
    "crash": ("process.kill(process.pid, 'SIGSEGV'); await new Promise((r) => setTimeout(r, 60000));", "SIGSEGV"),
}
OTHERWISE = {
    "variable": ("if (!process.env.KEY) throw new Error('no KEY');", "does not work here: Error: no KEY"),
    "config": ("JSON.parse(process.env.KEY);", "does not work here: SyntaxError"),
    "leaves": ("process.exit(3);", "ended its process with status 3 when it was loaded"),
    "never": ("await new Promise(() => {});", "waits for something that never comes"),
    "slow": ("await new Promise((r) => setTimeout(r, 60000));", "still running after 1 s (describe_timeout)"),
}


def test_what_cannot_be_loaded_is_not_built_and_what_misses_something_here_is_told(site: Site) -> None:
    for name, (code, _) in {**UNLOADABLE, **OTHERWISE, "given": OTHERWISE["variable"]}.items():
        package(site.folder / name, {"name": name}, tell_mjs=code + TELL, made_node="no library")
    entries = [f"{name}: {{runtime: node, module: ./{name}/tell.mjs}}" for name in {**UNLOADABLE, **OTHERWISE}]
    entries = [one.replace("}", ", describe_timeout: 1s}") if one.startswith("slow") else one for one in entries]
    site.configure("\n".join([*entries, "given: {runtime: node, module: ./given/tell.mjs, env: {KEY: x}}"]))
    done = install(site, "--offline")
    assert done.returncode == 1
    states = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith(("built", "failed"))}
    assert states["given"].split() == ["built", "given"]
    for name, (_, words) in OTHERWISE.items():
        assert states[name].startswith("built"), name
        assert words in states[name]
    found = findings(site)
    for name, (_, words) in UNLOADABLE.items():
        assert states[name].startswith("failed"), name
        assert f"gateway install {name} failed: it " in found[name]["problem"]
        assert words in found[name]["problem"], name


TIMES = "exports.Tell = () => require('lib').x * require('../../shared.cjs').times;\n"


def workspace(folder: Path, member: str, *, said: str = "1.0.0", **root: Any) -> Path:
    """Lay a workspace out whose member `app` needs the member `lib`."""
    package(folder, {"name": "root", "private": True, **root}, shared_cjs="exports.times = 1;\n")
    package(folder / member / "lib", {"name": "lib", "version": "1.0.0"}, index_js="exports.x = 7;\n")
    app = {"name": "app", "version": "1.0.0", "dependencies": {"lib": said}}
    return package(folder / member / "app", app, tell_cjs=TIMES)


def test_members_of_a_workspace_find_each_other_under_one_lock(site: Site) -> None:
    workspace(site.folder / "npm", "packages", workspaces=["./packages/*", "!packages/other"])
    workspace(site.folder / "locked", "packages", workspaces={"packages": ["packages/**"]})
    lock = ["npm", "install", "--package-lock-only", "--offline", "--prefix", str(site.folder / "locked")]
    subprocess.run(lock, check=True, capture_output=True)
    root = site.folder / "root"
    workspace(root, "packages", workspaces=["packages/*"], dependencies={"lib": "1.0.0"})
    package(root, json.loads((root / "package.json").read_text()), tell_cjs="exports.Tell = () => require('lib').x;\n")
    workspace(site.folder / "none", "packages", said="workspace:*")
    workspace(site.folder / "unlocked", "packages", said="workspace:*", workspaces=["packages/*"])
    names = ("npm", "locked", "none", "unlocked")
    entries = [f"{name}: {{runtime: node, module: ./{name}/packages/app/tell.cjs}}" for name in names]
    site.configure("\n".join([*entries, "root: {runtime: node, module: ./root/tell.cjs}"]))
    done = install(site, "--offline")
    assert done.returncode == 1
    works = ("npm", "locked", "root")
    assert [called(site, f"{name}/Tell") for name in works] == [7, 7, 7], done.stdout
    found = findings(site)
    assert "lib: workspace:* takes a workspace with a lock of pnpm or yarn, and above it" in found["none"]["problem"]
    assert f"and in {site.folder}/unlocked there is none" in found["unlocked"]["problem"]
    assert not [path for path in site.folder.rglob("node_modules") if site.state not in path.parents]
    (site.folder / "locked" / "packages" / "lib" / "index.js").write_text("exports.x = 8;\n")
    assert "its entry has changed: run gateway install locked" in findings(site)["locked"]["notices"]
    assert install(site, "--offline", "locked").stdout.split() == ["built", "locked"]
    assert called(site, "locked/Tell") == 8


PNPM = """#!/bin/sh
case $1 in --version) echo 1.22.22; exit ;; esac
mkdir -p "$2/packages/app/node_modules"
[ -e "$2/pnpm-workspace.yaml" ] && ln -s ../../lib "$2/packages/app/node_modules/lib"
"""


def test_a_lock_lies_at_the_root_of_its_workspace_and_needs_its_own_tool(site: Site) -> None:
    workspace(site.folder / "pnpm", "packages", said="workspace:*")
    (site.folder / "pnpm" / "pnpm-workspace.yaml").write_text("packages: ['packages/*']\n")
    (site.folder / "pnpm" / "pnpm-lock.yaml").write_text("lockfileVersion: '9.0'\n")
    for name in ("later", "within"):
        workspace(site.folder / name, "packages", said="workspace:*", workspaces=["packages/*"])
        (site.folder / name / "yarn.lock").write_text("__metadata:\n  version: 8\n")
    (site.folder / "within" / ".yarnrc.yml").write_text("yarnPath: .yarn/releases/yarn.cjs\n")
    (site.folder / "within" / ".yarn" / "releases").mkdir(parents=True)
    (site.folder / "within" / ".yarn" / "releases" / "yarn.cjs").write_text(
        "const { mkdirSync, symlinkSync } = require('fs');\n"
        "mkdirSync(`${process.argv[3]}/node_modules`);\n"
        "symlinkSync('../packages/lib', `${process.argv[3]}/node_modules/lib`);\n"
    )
    names = ("pnpm", "later", "within")
    site.configure("\n".join(f"{name}: {{runtime: node, module: ./{name}/packages/app/tell.cjs}}" for name in names))
    programs = site.folder / "bin"
    programs.mkdir()
    for program in ("pnpm", "yarn"):
        (programs / program).write_text(PNPM)
        (programs / program).chmod(0o755)
    done = install(site, env={"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"})
    assert "yarn.lock was made by yarn 2 or later, and yarn is 1.22.22 here" in done.stdout
    assert [called(site, f"{name}/Tell") for name in ("pnpm", "within")] == [7, 7], done.stdout
