"""What a build printed: kept beside the builds, of the latest one, bounded, and without secrets."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from gateway.connectors.build_log import HEAD, TAIL, BuildLog, read_log
from gateway.observe.redact import Redactor
from tests.http.test_clients import client
from tests.http.test_console import logged_in
from tests.installing import index, install, installed, wheel
from tests.support import Site, served

if TYPE_CHECKING:
    from pathlib import Path

OFFLINE = ("--offline", "--find-links", "wheels")
ENTRY = "tell: {runtime: python, module: ./tell.py, config: {password: word-7Yq1}, requirements: "


@pytest.fixture
def tell(site: Site) -> Site:
    (site.folder / "tell.py").write_text(
        "import sys\ndef Tell() -> int:\n    return 1\nprint('hallo', file=sys.stderr)\n"
    )
    wheel(site.folder / "wheels", "tool", "1.0", {"tool.py": ""})
    site.configure(f"{ENTRY}[tool]}}")
    return site


def log_of(site: Site) -> str:
    return read_log(site.state / "runtimes" / "tell") or ""


def test_the_latest_build_is_kept_made_or_not(tell: Site) -> None:
    assert log_of(tell) == ""
    installed(tell, *OFFLINE)
    told = log_of(tell)
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC  gateway install tell\n", told)
    for line in ("uv pip install", "+ tool==1.0", "is tried out", "hallo"):
        assert line in told
    assert re.search(r"^ +\d+\.\d s  built: [0-9a-f]{12}$", told, flags=re.MULTILINE)
    installed(tell, *OFFLINE)  # nothing to do
    assert log_of(tell) == told
    tell.configure(f"{ENTRY}[tool==7]}}")
    assert install(tell, *OFFLINE).returncode == 1
    failed = log_of(tell)
    assert "+ tool==1.0" not in failed
    assert "tool==7" in failed.partition("uv pip compile")[2]
    assert re.search(r"^ +\d+\.\d s  failed: uv pip compile failed \(exit status 1\):$", failed, flags=re.MULTILINE)
    tell.configure(f"{ENTRY}[tool]}}")
    (tell.folder / "tell.py").write_text("import nowhere, sys\nprint('word-7Yq1', file=sys.stderr)\n")
    tell.configure(f"{ENTRY}[tool, 'tool>0']}}")
    assert install(tell, *OFFLINE).returncode == 1
    assert "failed: it cannot be loaded" in log_of(tell)


def test_passwords_are_not_in_it(tell: Site) -> None:
    (tell.folder / "tell.py").write_text(
        "import sys\ndef Tell() -> int:\n    return 1\nprint('word-7Yq1', 'word-%37Yq1', file=sys.stderr)\n"
    )
    with index(tell.folder / "wheels") as (url, _):
        with_password = url.replace("//", "//u:pass-7Yq1@")
        ways: list[tuple[str, tuple[str, ...], dict[str, str]]] = [
            ("[tool]", ("--index-url", with_password), {}),
            ("[tool<2]", (), {"UV_INDEX_URL": with_password}),
            (f"['--index-url {with_password}', 'tool<3']", (), {}),
            (
                f"['--index-url {url.replace('//', '//u:${PASS}@')}', 'tool<4']",
                ("--env", "PASS"),
                {"PASS": "pass-7Yq1"},
            ),
            (f"['tool @ {with_password}/none-7.whl']", (), {}),
        ]
        for requirements, options, environment in ways:
            tell.configure(f"{ENTRY}{requirements}}}")
            done = install(tell, *options, env={"UV_NO_CACHE": "1", **environment})
            told = log_of(tell)
            assert "uv pip compile" in told
            assert done.returncode == (1 if "none-7" in requirements else 0), (requirements, done.stdout)
            assert "7Yq1" not in told, requirements
            assert "none-7" in requirements or "[redacted]" in told


def test_the_beginning_and_the_end_of_a_long_one_are_kept(tmp_path: Path) -> None:
    log = BuildLog(tmp_path, "gateway install x", Redactor(["s3cret-word"]))
    for number in range(100_000):
        log.line(f"line {number}")
    log.printed("one s3cret-word\n" + "x" * 100_000)
    log.step("failed: s3cret-word")
    log.write()
    told = read_log(tmp_path) or ""
    assert HEAD + TAIL - 20_000 < len(told) < HEAD + TAIL + 200
    assert "line 0\nline 1\n" in told
    assert "line 99999\none [redacted]\nxxx" in told
    assert told.endswith(" s  failed: [redacted]\n")
    [left_out] = re.findall(r"\n\.\.\. (\d+) lines are left out \.\.\.\n", told)
    assert int(left_out) + told.count("\n") - 1 == 100_004
    assert [one.name for one in tmp_path.iterdir()] == ["build.log"]


def test_that_it_cannot_be_kept_is_no_fault(tmp_path: Path) -> None:
    log = BuildLog(tmp_path / "gone", "gateway install x", Redactor())
    log.write()
    assert read_log(tmp_path / "gone") is None
    (tmp_path / "build.log").mkdir()
    assert read_log(tmp_path) is None


async def test_the_console_shows_it_to_whoever_sees_everything(tell: Site) -> None:
    installed(tell, *OFFLINE)
    client(tell, "acme", "keys: [KEY(acme-key)]\nallow: [tell]\n")
    tell.configure(f"{ENTRY}[tool]}}", gateway="api_key: single")
    async with served(tell) as server:
        page = await (await logged_in(server)).page("/console/connectors/tell")
        assert "+ tool==1.0" in page
        assert "<details>" in page
        hidden = await (await logged_in(server, "acme-key")).page("/console/connectors/tell")
        assert "tool==1.0" not in hidden
        assert "build-heading" not in hidden
    tell.configure(f"{ENTRY}[tool==7]}}", gateway="api_key: single")
    assert install(tell, *OFFLINE).returncode == 1
    async with served(tell) as server:
        page = await (await logged_in(server)).page("/console/connectors/tell")
        assert "<details open>" in page
        assert "failed: uv pip compile failed" in page
