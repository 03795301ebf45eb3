"""What a connector is kept from, as its keys and the places of its files have it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from gateway.cells.machine import Machine
from gateway.connectors import confinement, ground
from gateway.connectors.confinement import CONTAINER_NOTICE, own_user
from gateway.connectors.definition import Connector, define
from gateway.connectors.registry import Registry
from gateway.connectors.sources import read_sources
from gateway.errors import ConfigError, Quarantine
from gateway.gateway import Gateway
from gateway.observe.events import Bus, SandboxIncomplete
from gateway.sandbox import Given, Sandbox, Step
from gateway.settings import read_settings
from gateway.units import Size
from tests.support import Site, cli, served

if TYPE_CHECKING:
    from gateway.connectors.snapshot import Status

GO = "commands: {Go: {}}"


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    """The site counts as one that is not below a folder for temporary files, and that everybody may read."""
    site.folder.chmod(0o755)
    monkeypatch.setattr(ground, "TEMPORARY", ("/var/tmp-of-this-test",))
    monkeypatch.setattr(confinement, "TEMPORARY", ("/var/tmp-of-this-test",))
    monkeypatch.setattr(confinement, "STARTERS", ())


def temporary(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Have a folder be the one for temporary files."""
    for module in (ground, confinement):
        monkeypatch.setattr(module, "TEMPORARY", (str(folder),))


def unprivileged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getegid", lambda: 1000)


def privileged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "getegid", lambda: 0)


def defined(site: Site, name: str, path: str | None = None) -> Connector:
    settings, _ = read_settings(site.file, environ={"PATH": path or os.environ["PATH"]})
    sources = read_sources(settings)
    (entry,) = (entry for entry in sources.entries if entry.name == name)
    found = define(entry, sources.defaults, settings)
    assert found is not None
    return found


def sandbox(site: Site, keys: str = "", *, defaults: str = "", gateway: str = "", run: str = "[cat]") -> Sandbox:
    site.configure(f"one: {{run: {run}, {keys}}}", defaults=defaults, gateway=gateway)
    return defined(site, "one").launch.sandbox


def refusal(site: Site, keys: str = "", *, defaults: str = "", run: str = "[cat]") -> str:
    with pytest.raises(Quarantine) as caught:
        sandbox(site, keys, defaults=defaults, run=run)
    return str(caught.value)


def within(site: Site, paths: tuple[str, ...]) -> list[str]:
    """Return those in the site's folder, relative to it."""
    return [os.path.relpath(path, site.folder) for path in paths if Path(path).is_relative_to(site.folder)]


# --- the keys


def test_standard_is_what_nobody_says(site: Site) -> None:
    found = sandbox(site)
    assert (found.level, found.network, found.user, found.private_tmp) == ("standard", "host", None, True)
    assert (found.max_pids, found.max_disk) == (512, 1 << 30)
    assert (found.read, found.write) == ((), ())


@pytest.mark.parametrize(
    ("keys", "level", "network"),
    [
        ("sandbox: off", "off", "host"),
        ("sandbox: 'off'", "off", "host"),
        ("sandbox: standard, network: none", "standard", "none"),
        ("sandbox: strict", "strict", "none"),
        ("sandbox: strict, network: host", "strict", "host"),
    ],
)
def test_a_level_brings_its_network_unless_one_is_named(site: Site, keys: str, level: str, network: str) -> None:
    found = sandbox(site, keys)
    assert (found.level, found.network) == (level, network)


def test_a_connector_s_own_keys_win_over_the_defaults(site: Site) -> None:
    (site.folder / "a").mkdir()
    defaults = "sandbox: strict\nmax_pids: 9\nmax_disk: 1MiB\nread: [a]\n"
    found = sandbox(site, defaults=defaults)
    assert (found.level, found.max_pids, found.max_disk) == ("strict", 9, 1 << 20)
    assert found.read == (str(site.folder / "a"),)
    found = sandbox(site, "sandbox: off, max_pids: 10, max_disk: 2MiB, read: []", defaults=defaults)
    assert (found.level, found.max_pids, found.max_disk, found.read) == ("off", 10, 2 << 20, ())


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ("sandbox: loose", "one.sandbox: 'loose' is not a level: write off, standard or strict"),
        ("sandbox: on", "one.sandbox: 'on' is not a level"),
        ("network: bridge", "one.network: invalid enum value 'bridge'"),
        ("read: /etc", "one.read: expected `array | null`, got `str`"),
        ("read: ['']", "one.read.0: expected `str` of length >= 1"),
        ("write: [/not/there]", "one.write: /not/there does not exist"),
        ("max_pids: 0", "one.max_pids: expected `int` >= 1"),
        ("max_disk: 5", "one.max_disk: 5 is not a size"),
        ("user: true", "one.user: expected `int | str | null`, got `bool`"),
        ("user: nobody-of-that-name", "one.user: this machine has no user 'nobody-of-that-name'"),
        ("user: 'root:no-group-of-that-name'", "one.user: this machine has no group 'no-group-of-that-name'"),
        ("user: 4294967295", "one.user: '4294967295': the last user there can be is 4294967294"),
        ("sandbox: off, network: none", "one.network: none takes a sandbox"),
        ("sandbx: off", "one.sandbx: unknown key (did you mean sandbox?)"),
    ],
)
def test_a_value_that_makes_no_sense_is_named_with_file_line_and_key(site: Site, keys: str, problem: str) -> None:
    assert f"{site.file}:4: connectors.{problem}" in refusal(site, keys)


def test_what_the_defaults_say_is_named_as_theirs(site: Site) -> None:
    message = refusal(site, "sandbox: off", defaults="network: none")
    assert "connectors.one: defaults.network: none takes a sandbox" in message
    assert "defaults.read: /not/there does not exist" in refusal(site, defaults="read: [/not/there]")


def test_a_user_and_a_group_are_no_number_in_base_60(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert sandbox(site, "user: 1000:50").user == (1000, 50)


def test_paths_begin_at_the_file_that_says_them(site: Site) -> None:
    for name in ("shared", "connectors.d/one/own"):
        (site.folder / name).mkdir(parents=True)
    (site.drop_ins / "one/connector.yaml").write_text("run: [cat]\nsandbox: strict\nwrite: [own]\n")
    site.configure("one: {read: [shared]}")
    found = defined(site, "one").launch.sandbox
    assert within(site, found.read) == ["shared"]
    assert within(site, found.write) == ["connectors.d/one/own"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("sandbox_uids: [0, 5]", "gateway.sandbox_uids.0: expected `int` >= 1"),
        ("sandbox_uids: [5]", "gateway.sandbox_uids: expected `array` of length >= 2"),
        ("sandbox_uids: [4294967290, 6]", "gateway.sandbox_uids: goes beyond the last user there can be, 4294967294"),
    ],
)
def test_a_range_of_users_that_cannot_be_is_refused(site: Site, line: str, problem: str) -> None:
    site.configure(gateway=line)
    with pytest.raises(ConfigError) as caught:
        read_settings(site.file, environ={})
    assert problem in str(caught.value)


def test_another_sandbox_makes_another_connector(site: Site) -> None:
    keys = ["", "sandbox: off", "max_pids: 9", "network: none", "max_disk: 1MiB", f"write: [{site.folder}]"]
    found = set()
    for one in keys:
        sandbox(site, one)
        found.add(defined(site, "one").identity)
    assert len(found) == len(keys)
    site.configure("one: {run: [cat]}", defaults="sandbox: strict")
    assert defined(site, "one").identity not in found


# --- users


def test_a_user_takes_a_gateway_that_is_root(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    unprivileged(monkeypatch)
    assert "one.user: only a gateway that runs as root can start it as another user" in refusal(site, "user: 12345")
    assert sandbox(site, "user: '1000:1000'").user is None  # what it is anyway
    assert sandbox(site, "sandbox: strict").user is None


def test_strict_has_a_user_of_its_own_where_the_gateway_is_root(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    privileged(monkeypatch)
    number = own_user("one", 1 << 30, 1 << 28)
    assert 1 << 30 <= number < (1 << 30) + (1 << 28)
    assert sandbox(site, "sandbox: strict").user == (number, number)
    assert sandbox(site, "sandbox: strict", gateway="sandbox_uids: [5000, 1]").user == (5000, 5000)
    assert sandbox(site, "sandbox: strict, user: root").user is None
    assert sandbox(site, "sandbox: strict, user: 7").user is not None
    assert sandbox(site, "user: '7:8'").user == (7, 8)
    assert sandbox(site).user is None


def test_the_user_of_a_name_stays_the_same() -> None:
    assert own_user("fax", 1000, 100_000) == own_user("fax", 1000, 100_000) != own_user("mail", 1000, 100_000)


async def test_two_connectors_do_not_share_a_user_by_chance(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    privileged(monkeypatch)
    site.configure(
        f"a: {{run: [cat], {GO}}}\nb: {{run: [cat], {GO}}}\nc: {{run: [cat], user: 5001, {GO}}}",
        defaults="sandbox: strict",
        gateway="sandbox_uids: [5000, 1]",
    )
    settings, _ = read_settings(site.file, environ={"PATH": os.environ["PATH"]})
    statuses = Registry(settings, None, Bus())._understand(read_sources(settings))  # type: ignore[arg-type]
    assert [status.reason is None for status in statuses.values()] == [True, False, True]
    assert "its own user would be 5000, and so is that of a" in (statuses["b"].reason or "")


def test_what_its_user_may_not_read_is_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    privileged(monkeypatch)
    script = site.script("one/run", "")
    script.chmod(0o700)
    message = refusal(site, "user: 12345", run="[./one/run]")
    assert f"one.user: user 12345 may not read {script}: chmod -R o+rX {script}, or say user: root" in message


def test_of_a_folder_that_its_user_may_not_read_the_program_is_shown(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    privileged(monkeypatch)
    site.script("one/run", "").parent.chmod(0o700)
    site.script("connectors.d/two/run", "").parent.chmod(0o700)
    (site.drop_ins / "two/connector.yaml").write_text("run: [./run]\nsandbox: strict\n")
    assert within(site, sandbox(site, "sandbox: strict", run="[./one/run]").show) == ["one/run"]
    assert within(site, defined(site, "two").launch.sandbox.show) == ["connectors.d/two/run"]


def test_a_folder_that_its_user_cannot_enter_is_hidden_but_for_what_it_needs(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    privileged(monkeypatch)
    script = site.script("closed/inner/one/run", "")
    (site.folder / "closed").chmod(0o700)
    site.folder.chmod(0o755)
    found = sandbox(site, "sandbox: strict, user: 12345", run="[./closed/inner/one/run]")
    assert any(script.is_relative_to(path) for path in found.hide)
    assert str(script.parent) in found.show


# --- what is hidden and shown


def test_settings_state_and_other_drop_ins_are_hidden(site: Site) -> None:
    assert within(site, sandbox(site).hide) == [".gateway", "connectors.d", "connectors.yaml"]
    found = sandbox(site, gateway="state_dir: ../state\nconnectors_dir: null")
    assert set(found.hide) == {str(site.folder.parent / "state"), str(site.file)}


def test_the_audit_is_hidden_with_its_folder_where_that_is_its_own(site: Site) -> None:
    site.script("fax.sh", "")
    (site.folder / "logs").mkdir()
    for name in ("audit.log", "logs/audit.log"):
        (site.folder / name).touch()
    everywhere = [".gateway", "connectors.d", "connectors.yaml"]
    for audit, hidden in {
        "{}": ["audit.log"],
        "{file: logs/audit.log}": ["logs"],
        "{file: nothing/audit.log}": [],
        "{file: stdout}": [],
        "{file: /dev/full}": [],
    }.items():
        assert within(site, sandbox(site, gateway=f"audit: {audit}").hide) == sorted([*everywhere, *hidden])


def test_links_are_followed(site: Site, tmp_path: Path) -> None:
    shutil.move(site.drop_ins, tmp_path / "real")
    site.drop_ins.symlink_to(tmp_path / "real")
    site.script("real.sh", "")
    (tmp_path / "real/fax.sh").symlink_to(site.folder / "real.sh")
    site.configure()
    shutil.move(site.file, tmp_path / "real.yaml")
    site.file.symlink_to(tmp_path / "real.yaml")
    found = defined(site, "fax").launch.sandbox
    assert set(found.hide) == {str(tmp_path / "real.yaml"), str(tmp_path / "real"), str(site.folder / ".gateway")}
    assert {str(tmp_path / "real/fax.sh"), str(site.folder / "real.sh")} <= set(found.show)


def test_a_link_on_the_way_to_what_is_hidden_is_followed(site: Site) -> None:
    made = site.state / "runtimes/fax/1"
    (made / "venv/bin").mkdir(parents=True)
    (made / "venv/pyvenv.cfg").write_text("home = /usr/bin\n")
    (made / "venv/bin/python").symlink_to("/usr/bin/python3")
    (made.parent / "current").symlink_to("1")
    (site.folder / "act.py").write_text("")
    current = ".gateway/runtimes/fax/current/venv"
    site.configure(f"act: {{runtime: python, module: ./act.py, venv: {current}}}")
    found = defined(site, "act").launch.sandbox
    assert {current, ".gateway/runtimes/fax/1/venv"} <= set(within(site, found.show))


def test_the_volume_of_a_config_map_is_hidden_with_its_versions_to_come(site: Site) -> None:
    site.script("one.sh", "")
    version = site.folder / "..2026"
    version.mkdir()
    site.configure("one: {run: [./one.sh]}")
    shutil.move(site.file, version)
    shutil.move(site.folder / "one.sh", version)
    (site.folder / "..data").symlink_to("..2026")
    site.file.symlink_to("..data/connectors.yaml")
    (site.folder / "one.sh").symlink_to("..data/one.sh")
    found = defined(site, "one").launch.sandbox
    assert found.hide == (str(site.folder), str(version / "connectors.yaml"))
    assert within(site, found.show) == ["..2026", "..data", "one.sh"]


def test_the_key_of_tls_is_hidden_and_so_are_the_versions_to_come_of_a_secret_s_volume(site: Site) -> None:
    site.script("one.sh", "")
    site.configure("one: {run: [./one.sh]}", gateway="tls: {cert: tls.crt, key: tls.key}")
    (site.folder / "tls.key").touch()
    assert str(site.folder / "tls.key") in defined(site, "one").launch.sandbox.hide
    volume = site.folder / "tls"
    (volume / "..2026").mkdir(parents=True)
    shutil.move(site.folder / "tls.key", volume / "..2026")
    (volume / "..data").symlink_to("..2026")
    (volume / "tls.key").symlink_to("..data/tls.key")
    site.configure("one: {run: [./one.sh]}", gateway="tls: {cert: tls.crt, key: tls/tls.key}")
    assert str(volume) in defined(site, "one").launch.sandbox.hide


def test_a_drop_in_has_its_own_folder_and_what_is_no_drop_in(site: Site) -> None:
    site.script("connectors.d/fax/bin/send", "")
    (site.drop_ins / "fax/connector.yaml").write_text("run: [./bin/send]\n")
    site.script("connectors.d/mail.sh", "")
    (site.drop_ins / "common.inc").write_text("")
    (site.drop_ins / "lib").mkdir()
    site.configure()
    fax, mail = (defined(site, name).launch.sandbox for name in ("fax", "mail"))
    assert within(site, fax.show) == ["connectors.d/common.inc", "connectors.d/fax", "connectors.d/lib"]
    assert within(site, mail.show) == ["connectors.d/common.inc", "connectors.d/lib", "connectors.d/mail.sh"]


def test_what_lies_beside_connectors_yaml_is_left_as_it_is_but_for_code(site: Site) -> None:
    site.script("one.sh", "")
    site.script("two/run.sh", "")
    site.configure("one: {run: [./one.sh, ./data.db]}\ntwo: {run: [./two/run.sh]}\nthree: {run: [cat]}")
    one, two, three = (defined(site, name).launch.sandbox for name in ("one", "two", "three"))
    assert within(site, one.show) == ["one.sh"]
    assert within(site, two.show) == ["two"]
    assert (within(site, three.show), within(site, three.guard)) == ([], ["one.sh", "two"])
    assert within(site, one.guard) == ["two"]
    assert one.write == two.write == ()


def test_the_gateway_s_own_code_is_guarded(site: Site) -> None:
    guard = sandbox(site).guard
    package = Path(confinement.__file__).parents[1]
    assert any(package.is_relative_to(path) for path in guard)


def test_others_code_is_no_part_of_what_a_connector_is(site: Site) -> None:
    site.script("one.sh", "")
    site.script("two.sh", "")
    site.configure("one: {run: [./one.sh]}")
    alone = defined(site, "one")
    site.file.write_text(site.file.read_text() + "  two: {run: [./two.sh]}\n")
    beside = defined(site, "one")
    assert alone.identity == beside.identity
    assert alone.launch.sandbox != beside.launch.sandbox


def test_another_file_under_a_hidden_name_is_told(site: Site) -> None:
    before = sandbox(site)
    shutil.copy(site.file, site.folder / "new")
    assert defined(site, "one").launch.sandbox == before
    (site.folder / "new").rename(site.file)
    after = defined(site, "one").launch.sandbox
    assert before.covered != after.covered


def test_strict_sees_beside_connectors_yaml_only_what_is_its_own(site: Site) -> None:
    site.script("one.sh", "")
    site.script("two/bin/run.sh", "")
    site.configure("one: {run: [./one.sh]}\ntwo: {run: [./two/bin/run.sh]}", defaults="sandbox: strict")
    one, two = (defined(site, name).launch.sandbox for name in ("one", "two"))
    assert within(site, one.show) == ["."]
    assert within(site, one.hide)[-3:] == [".gateway", "connectors.d", "connectors.yaml"]
    assert within(site, two.show) == ["two"]
    assert two.guard == ()


def test_standard_does_not_see_who_starts_processes_for_its_user(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    session = str(tmp_path_factory.mktemp("session"))
    monkeypatch.setattr(confinement, "STARTERS", (session, "/not/there"))
    assert session in sandbox(site).hide
    found = sandbox(site, f"read: [{session}]")
    assert (session in found.hide, session in found.show) == (False, True)


def test_strict_does_not_see_where_the_machine_s_sockets_are(site: Site) -> None:
    assert "/run" in sandbox(site, "sandbox: strict").hide
    assert "/run" not in sandbox(site).hide
    found = sandbox(site, "sandbox: strict, read: [/run]")
    assert "/run" not in found.hide
    assert "/run" in found.show


def test_drop_ins_may_lie_beside_connectors_yaml(site: Site) -> None:
    site.script("one.sh", "")
    site.script("two.sh", "")
    site.configure(gateway="connectors_dir: .")
    found = defined(site, "one").launch.sandbox
    assert found.hide == (str(site.folder),)
    assert "one.sh" in within(site, found.show)
    assert not {"two.sh", "connectors.yaml", ".gateway"} & set(within(site, found.show))


def test_what_is_named_is_given_back(site: Site) -> None:
    site.script("one/run", "")
    (site.folder / "data").mkdir()
    assert within(site, sandbox(site, run="[./one/run]").show) == ["one"]
    assert within(site, sandbox(site, "write: [one]", run="[./one/run]").show) == []
    found = sandbox(site, "read: [connectors.yaml, connectors.d]", run="[./one/run]")
    assert within(site, found.hide) == [".gateway"]
    assert within(site, found.show) == ["connectors.d", "connectors.yaml", "one"]
    found = sandbox(site, "write: [connectors.d]", run="[./one/run]")
    assert within(site, found.hide) == [".gateway", "connectors.yaml"]
    assert within(site, found.write) == ["connectors.d"]
    assert within(site, sandbox(site, "write: [data]", run="[./one/run]").write) == []  # it is writable anyway


def test_what_is_hidden_in_what_is_given_back_stays_hidden(site: Site) -> None:
    found = sandbox(site, "write: [.]")
    assert within(site, found.hide) == [".gateway", "connectors.d", "connectors.yaml"]


# --- private folders for temporary files


def test_a_site_below_tmp_is_there_as_it_is(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary(monkeypatch, site.folder.parent)
    site.script("one.sh", "")
    found = sandbox(site, run="[./one.sh]")
    assert found.private_tmp
    assert within(site, found.write) == ["."]
    assert within(site, found.show) == ["one.sh"]
    assert within(site, found.hide) == [".gateway", "connectors.d", "connectors.yaml"]
    strict = sandbox(site, "sandbox: strict", run="[./one.sh]")
    assert strict.write == ()
    assert within(site, strict.show) == ["."]


def test_code_that_lies_in_tmp_is_shown_wherever_the_site_is(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("elsewhere")
    temporary(monkeypatch, folder)
    shutil.copy("/bin/cat", folder / "program")
    found = sandbox(site, run=f"[{folder}/program]")
    assert str(folder / "program") in found.show
    assert found.write == ()


@pytest.mark.parametrize("name", [".", ".."])
def test_whoever_is_given_tmp_has_no_private_one(site: Site, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    temporary(monkeypatch, site.folder)
    found = sandbox(site, f"write: [{name}]")
    assert not found.private_tmp


def test_what_is_given_in_tmp_is_there(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    (site.folder.parent / "spool").mkdir()
    temporary(monkeypatch, site.folder.parent)
    found = sandbox(site, f"write: [../spool], read: [{site.folder.parent}]")
    assert found.private_tmp
    assert str(site.folder.parent / "spool") in found.write
    assert str(site.folder.parent) in found.show


# --- runtimes


def test_each_runtime_has_what_it_cannot_do_without(site: Site) -> None:
    for name in ("m/mod.py", "n/mod.mjs", "s/mod.sh"):
        (site.folder / name).parent.mkdir()
        (site.folder / name).write_text("")
    (site.folder / "n/node_modules").mkdir()
    (site.folder / "node_modules").mkdir()
    (site.folder / "venv/bin").mkdir(parents=True)
    (site.folder / "venv/bin/python").symlink_to(sys.executable)
    (site.folder / "venv/pyvenv.cfg").write_text("home = /opt/somewhere/python/bin\n")
    (site.folder / "app.jar").write_text("")
    site.configure(
        """
        m: {runtime: python, module: m/mod.py}
        v: {runtime: python, module: m/mod.py, venv: venv}
        n: {runtime: node, module: n/mod.mjs}
        s: {runtime: shell, module: s/mod.sh}
        j: {runtime: java, jar: app.jar}
        """,
        defaults="sandbox: strict",
    )
    found = {name: defined(site, name).launch.sandbox for name in "mvnsj"}
    assert within(site, found["m"].show) == ["m"]
    assert within(site, found["v"].show) == ["m", "venv"]
    assert "/opt/somewhere/python" in found["v"].show
    assert within(site, found["n"].show) == ["n", "node_modules"]
    assert within(site, found["s"].show) == ["s"]
    assert within(site, found["j"].show) == ["."]
    for name, host in (("m", "python"), ("n", "node"), ("s", "shell")):
        assert any(path.endswith(f"unners/{host}") for path in found[name].show), name
    for name in "ms":
        assert any(Path(os.path.realpath(sys.executable)).is_relative_to(path) for path in (*found[name].show, "/usr"))


def test_the_interpreter_of_a_script_comes_with_its_installation(site: Site, tmp_path: Path) -> None:
    home = tmp_path / "installed"
    for name in ("bin", "lib"):
        (home / name).mkdir(parents=True)
    shutil.copy("/bin/cat", home / "bin/tool")
    (tmp_path / "link").symlink_to(home / "bin/tool")
    site.script("one/run", "", shell=str(tmp_path / "link"))
    site.script("two/run", "", shell="/usr/bin/env tool")
    found = sandbox(site, "sandbox: strict", run="[./one/run]").show
    assert {str(home), str(tmp_path / "link"), str(site.folder / "one")} <= set(found)
    site.configure("two: {run: [./two/run], sandbox: strict}")
    assert str(home) in defined(site, "two", f"{home}/bin:/usr/bin:/bin").launch.sandbox.show


def test_an_engine_of_containers_is_a_sandbox_itself(site: Site) -> None:
    path = str(site.script("bin/podman", "").parent)

    def one(keys: str) -> Connector:
        site.configure(f"one: {{runtime: container, image: x, network: bridge, {keys}}}")
        return defined(site, "one", path)

    assert "bridge" in one("").launch.argv  # its network is the engine's
    for keys, notices in (("", (CONTAINER_NOTICE,)), ("sandbox: off", ())):
        assert one(keys).launch.sandbox == Sandbox()
        assert one(keys).notices == notices
    for keys, problem in (("sandbox: strict", "no engine of containers works in strict"), ("user: 7", "--user")):
        with pytest.raises(Quarantine, match=problem):
            one(keys)


def test_sizes_are_numbers_of_bytes(site: Site) -> None:
    assert type(sandbox(site, "max_disk: 1MiB").max_disk) is int
    assert Size(1 << 20) == 1 << 20


# --- what the machine gives


def machine_of(site: Site, monkeypatch: pytest.MonkeyPatch, steps: Step, connectors: str) -> dict[str, Status]:
    """Return the statuses of connectors on a machine that gives those steps."""
    site.configure(connectors)
    settings, _ = read_settings(site.file, environ={"PATH": os.environ["PATH"]})
    registry = Registry(settings, None, Bus(), lambda: Machine(steps=steps))  # type: ignore[arg-type]
    return registry._understand(read_sources(settings))


def test_what_cannot_be_kept_is_quarantined_and_nothing_weaker_served(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    unprivileged(monkeypatch)
    connectors = f"""
        plain: {{run: [cat], {GO}}}
        open: {{run: [cat], sandbox: off, {GO}}}
        closed: {{run: [cat], sandbox: strict, {GO}}}
        lone: {{run: [cat], network: none, {GO}}}
    """
    here = machine_of(site, monkeypatch, ~Step(0), connectors)
    assert all(status.reason is None for status in here.values())
    elsewhere = machine_of(site, monkeypatch, Step.FILTER | Step.LANDLOCK, connectors)
    reasons = {name: status.reason for name, status in elsewhere.items()}
    assert reasons["plain"] is reasons["open"] is None
    assert "sandbox: strict cannot be had on this machine" in (reasons["closed"] or "")
    assert "network: none cannot be kept" in (reasons["lone"] or "")


async def test_status_and_log_say_what_a_sandbox_has_come_to(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    unprivileged(monkeypatch)
    monkeypatch.setattr("gateway.cells.machine.look", lambda: Machine(steps=Step.FILTER))
    site.configure(f"one: {{run: [cat], {GO}}}\ntwo: {{run: [cat], sandbox: off, {GO}}}")
    settings, _ = read_settings(site.file, environ={"PATH": os.environ["PATH"]})
    bus, told = Bus(), []
    bus.listen(told.append)
    gateway = Gateway(settings, bus)
    await gateway.open()
    try:
        one, two = gateway.given("one"), gateway.given("two")
        assert one is not None
        assert two is not None
        assert (one.level, one.network, len(one.missing)) == ("standard", "host", 4)
        assert two == Given(level="off", network="host")
        (event,) = [one for one in told if isinstance(one, SandboxIncomplete)]
        assert len(event.missing) == 3  # that max_pids is held by looking is no news
        assert any("no namespaces of its own" in text for text in event.missing)
    finally:
        await gateway.close()


async def test_status_has_a_place_for_it(site: Site) -> None:
    site.configure(f"one: {{run: [cat], sandbox: off, {GO}}}")
    async with served(site) as server:
        status = await server.status()
    assert status["connectors"]["one"]["sandbox"] == {"level": "off", "network": "host", "missing": []}
    assert set(status["sandbox"]["steps"]) == {str(step.name).lower() for step in Step}
    assert status["sandbox"]["problem"] is None


def test_check_says_what_each_level_gives_here(site: Site) -> None:
    ended = cli(site, "check", "--sandbox")  # without a configuration
    assert ended.returncode == 0, ended.stderr
    assert "off is complete here" in ended.stdout
    found = msgspec.json.decode(cli(site, "check", "--sandbox", "--json").stdout)
    assert found["levels"].keys() == {"off", "standard", "strict"}
    assert found["levels"]["off"] == {"refused": None, "missing": []}
    for one in found["steps"]:
        assert one["here"] is (one["switch"] is None)
        assert {one["off"], one["standard"], one["strict"]} <= {"yes", "by key", "-"}


def test_check_tells_a_connector_s_level_where_it_is_not_the_default(site: Site) -> None:
    site.configure(f"one: {{run: [cat], {GO}}}\ntwo: {{run: [cat], sandbox: off, {GO}}}")
    said = cli(site, "check").stdout
    assert said.count("    sandbox off") == 1
    assert "sandbox       standard " in said
    found = msgspec.json.decode(cli(site, "check", "--json").stdout)
    one, two = found["connectors"]
    assert (one["sandbox"]["level"], two["sandbox"]["level"]) == ("standard", "off")
    assert str(site.file) in one["sandbox"]["hide"]
    assert "sandbox" not in one["limits"]
    assert one["limits"]["max_pids"] == "512"
