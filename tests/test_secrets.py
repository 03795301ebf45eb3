"""Secrets that files name: where they come from, who gets them, and who never sees them."""

from __future__ import annotations

import json
import os
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gateway import secrets as module
from gateway.connectors.definition import Connector, define, recognise
from gateway.connectors.sources import read_sources
from gateway.errors import ConfigError, Quarantine
from gateway.secrets import LARGEST, NoSecret, Secrets, SecretsSection, literal
from gateway.settings import read_settings
from gateway.units import Duration
from gateway.yaml_document import YamlNode
from tests.support import Site, cli, eventually, served
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

VALUES = {
    "plain": "correct-horse",
    "quotes": 'it\'s "quoted" `${HOME}` \\back',
    "lines": "first line\nsecond line\n\nlast",
    "unicode": "пароль-ß-🗝",
    "percent": "50%20off%zz",
    "yaml": "{a: [b, #c]}: !x &y *z",
}


@pytest.fixture
def folder(site: Site) -> Path:
    """A folder of secrets beside connectors.yaml."""
    made = site.folder / "private"
    made.mkdir()
    return made


def configure(site: Site, connectors: str, *, more: str = "", **sections: str) -> None:
    """Write connectors.yaml with `secrets.dir`, and more keys of that section."""
    site.configure(connectors, **sections)
    site.file.write_text(f"secrets:\n  dir: private\n{more}" + site.file.read_text())


def defined(site: Site, name: str = "a", environ: dict[str, str] | None = None) -> Connector:
    settings, _ = read_settings(site.file, environ={"PATH": os.environ["PATH"], **(environ or {})})
    sources = read_sources(settings)
    found = define(next(one for one in sources.entries if one.name == name), sources.defaults, settings)
    assert found is not None
    return found


def refusal(site: Site, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(Quarantine) as caught:
        defined(site, environ=environ)
    return str(caught.value)


def show(site: Site) -> None:
    """Write a connector that answers with its environment and its config."""
    site.python(
        "show.py",
        """
        import json, os, sys
        request = json.load(sys.stdin)
        print("log:", dict(os.environ), request["config"], file=sys.stderr)
        if request["params"].get("fail"):
            raise SystemExit(f"failed with {request['config']}")
        print(json.dumps({"env": dict(os.environ), "config": request["config"], "pid": os.getpid()}))
        """,
    )


SHOW = "run: [./show.py], commands: {Go: {additional_parameters: true}}"


# --- sources


def lookup(folder: Path, environ: dict[str, str] | None = None, **section: Any) -> Secrets:
    made = Secrets({"PATH": os.environ["PATH"], **(environ or {})}, folder)
    made.use(SecretsSection(**{"dir": ".", **section}))
    return made


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_file_holds_a_value_and_perhaps_a_line_break(tmp_path: Path, value: str, end: str) -> None:
    (tmp_path / "x").write_bytes((value + end).encode())
    assert lookup(tmp_path).find("x").value == value


def test_one_line_break_is_left_out_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(" a \n\n")
    assert lookup(tmp_path).find("x").value == " a \n"


def test_folders_come_first_then_variables_then_commands(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    for one in (first, second):
        one.mkdir()
        (one / "x").write_text(one.name)
    command = {"echo": ["printf", "%s", "from-{name}"]}
    made = lookup(tmp_path, {"x": "variable"}, dir=["1", "2"], env=["x"], command=command)
    assert made.find("x")[:2] == ("1", str(first / "x"))
    (first / "x").unlink()
    assert made.find("x").value == "2"
    (second / "x").unlink()
    assert made.find("x")[:2] == ("variable", "variable x")
    assert made.find("y")[:2] == ("from-y", "command echo")
    assert made.find("kv/y").value == "from-kv/y"
    made.close()


def test_the_credentials_of_systemd_are_looked_at_too(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("of-systemd")
    made = Secrets({"CREDENTIALS_DIRECTORY": str(tmp_path)}, Path("/nowhere"))
    assert made.find("x").value == "of-systemd"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/../b", "/etc/passwd", "a//b", "a b", "a\n", "-x", "x" * 201]
)
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    made = lookup(tmp_path, command={"echo": ["echo", "{name}"]})
    with pytest.raises(NoSecret, match="this is no name of a secret"):
        made.find(name)


def test_what_cannot_be_used_is_told_by_its_path(tmp_path: Path) -> None:
    made = lookup(tmp_path, {"folder": "of the environment"}, env=["*"])
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "large").write_bytes(b"x" * (LARGEST + 1))
    os.mkfifo(tmp_path / "pipe")
    for name, problem in {
        "folder": "is a folder, not a file",
        "empty": "it is empty",
        "bytes": "is no text in UTF-8",
        "large": "is larger than 64 KiB",
        "pipe": "is a named pipe",
    }.items():
        with pytest.raises(NoSecret, match=f"{tmp_path / name}.*{problem}"):
            made.find(name)


def test_what_is_missing_is_told_with_all_places(tmp_path: Path) -> None:
    made = lookup(
        tmp_path, {"x": "there", "E_EMPTY": ""}, dir=["a", "b"], env=["E_*"], command={"no": ["false", "{name}"]}
    )
    with pytest.raises(NoSecret) as caught:
        made.find("x")
    assert str(caught.value) == (
        f"there is no secret x. Looked for: the file {tmp_path}/a/x; the file {tmp_path}/b/x; no variable, since"
        f" secrets.env does not name the one that is there; the command no (exit status 1). Write it into {tmp_path}/a/x,"
        " or say in `secrets:` where it is"
    )
    with pytest.raises(NoSecret, match="the variable E_EMPTY, which is empty"):
        made.find("E_EMPTY")
    made.close()


# --- commands


def test_a_command_gets_the_environment_and_no_shell(tmp_path: Path) -> None:
    made = lookup(
        tmp_path, {"TOKEN": "t0ken"}, command={"sh": ["sh", "-c", 'printf "%s" "$TOKEN-$1-$(cat)"', "sh", "{name}"]}
    )
    assert made.find("a/b").value == "t0ken-a/b-"
    made.close()


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("exit 3", "exit status 3"),
        ("kill -9 $$", "killed by a signal"),
        ("true", "it printed nothing"),
        ("echo", "it printed nothing"),
        ("printf '\\377'", "no text in UTF-8"),
        ("yes", "is larger than 64 KiB"),
        ("sleep 60", "no answer within 0.3 s"),
        ("sleep 60 & echo x", "no answer within 0.3 s"),
        ("exec >&- 2>&-; sleep 60", "no answer within 0.3 s"),
        ("yes | head -c 200000 >&2; echo 'denied: password=hunter2 t0ken-of-vault' >&2; exit 1", r"denied: password=\[redacted\] \[redacted\]\)"),
    ],
)  # fmt: skip
def test_a_command_that_fails_is_told_and_leaves_nothing(
    tmp_path: Path, script: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.3 if "0.3" in problem else 10)
    made = lookup(tmp_path, {"VAULT_TOKEN": "t0ken-of-vault"}, command={"sh": ["sh", "-c", script, "{name}"]})
    with pytest.raises(NoSecret, match=problem):
        made.find("x")
    made.close()


def test_a_command_that_complains_of_anothers_secret_tells_nobody(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "of_beta").write_text("s3cret-of-beta\n")
    script = f"cat {tmp_path}/folder/of_beta >&2; exit 1"
    made = lookup(tmp_path, dir="folder", command={"vault": ["sh", "-c", script, "{name}"]})
    with pytest.raises(NoSecret, match=r"the command vault \(exit status 1: \[redacted\]\)"):
        made.find("of_acme")
    made.close()


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_a_command_that_cannot_be_killed_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_group: int, _signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(module.os, "killpg", refused)
    monkeypatch.setattr(module, "TIMEOUT", 0.1)
    monkeypatch.setattr(module, "REAPED", 0.1)
    stop = tmp_path / "stop"
    script = f"trap '' PIPE; until test -e {stop}; do sleep 0.02; done"
    made = lookup(tmp_path, command={"sudo": ["sh", "-c", script, "{name}"]})
    with pytest.raises(NoSecret, match=r"no answer within 0\.1 s"):
        made.find("x")
    made.close()
    stop.touch()


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    made = lookup(tmp_path, command={"vault": ["no-such-program", "{name}"]})
    with pytest.raises(NoSecret, match="no-such-program could not be started: No such file or directory"):
        made.find("x")
    made.close()


def test_a_nul_is_part_of_a_value(tmp_path: Path) -> None:
    made = lookup(tmp_path, command={"nul": ["printf", r"a\0b%.0s", "{name}"]})
    assert made.find("x").value == "a\0b"
    made.close()


def test_many_who_ask_at_once_ask_a_command_once(tmp_path: Path) -> None:
    made = lookup(tmp_path, command={"sh": ["sh", "-c", f"echo >>{tmp_path}/asked; sleep 0.1; echo value", "{name}"]})
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(made.find("x").value)) for _ in range(20)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert found == ["value"] * 20
    assert (tmp_path / "asked").read_text() == "\n"
    made.close()


def test_a_command_is_asked_again_in_the_background(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("one")
    command = {"cat": ["sh", "-c", f"cat {source}", "{name}"]}
    made = lookup(tmp_path, command=command, ttl=Duration(0.05))
    with made.round():
        assert made.find("x").value == "one"
    known = made.known()
    assert made.now() == known
    source.write_text("two")
    until(lambda: made.now() != known, 10)
    assert made.find("x").value == "two"
    source.unlink()
    until(lambda: made.now() and made.stale(), 10)
    assert "exit status 1" in made.stale()["x"]
    assert made.find("x").value == "two"
    source.write_text("three")
    until(lambda: made.now() and not made.stale(), 10)
    assert made.find("x").value == "three"
    made.close()


def test_a_command_that_failed_once_is_not_waited_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    made = lookup(
        tmp_path, command={"sh": ["sh", "-c", f"echo >>{tmp_path}/asked; sleep 60", "{name}"]}, ttl=Duration(0.01)
    )
    with made.round(), pytest.raises(NoSecret, match=r"no answer within 0\.2 s"):
        made.find("x")
    monkeypatch.setattr(module, "TIMEOUT", 60)
    until(lambda: made.now() and len((tmp_path / "asked").read_text()) > 1, 10)
    begun = time.monotonic()
    with made.round(), pytest.raises(NoSecret, match=r"no answer within 0\.2 s"):
        made.find("x")
    assert time.monotonic() - begun < 9  # it hangs for a minute now
    made.close()


def test_a_round_waits_for_all_commands_no_longer_than_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    made = lookup(tmp_path, command={"hang": ["sleep", "60{name}"]})
    names = [str(number) for number in range(30)]
    begun = time.monotonic()
    with made.round():
        made.begin(names)
        for name in names:
            with pytest.raises(NoSecret, match="it has not answered yet"):
                made.find(name)
    assert time.monotonic() - begun < 9  # each of them alone would take 0.3 s and more
    made.close()


# --- references


def test_only_a_mapping_with_that_key_alone_and_a_text_is_a_reference(site: Site, folder: Path) -> None:
    for name, value in VALUES.items():
        (folder / name).write_text(value)
    (folder / "same").write_text(VALUES["plain"])
    config = {
        "deep": {"er": [{"secret": name} for name in VALUES]},
        "same": {"secret": "same"},
        "both": {"secret": "plain", "other": 1},
        "truth": {"secret": True},
        "none": {"secret": None},
        "list": {"secret": ["plain"]},
    }
    configure(site, f"a: {{run: [cat], commands: {{}}, config: {json.dumps(config)}}}")
    found = defined(site)
    got = json.loads(bytes(found.config))
    assert got == {**config, "deep": {"er": list(VALUES.values())}, "same": VALUES["plain"]}
    assert found.secrets == tuple(sorted([*VALUES, "same"]))
    for value in VALUES.values():
        assert value not in found.redact(f"it said {value}, and {json.dumps(value)}")


def test_what_is_told_to_callers_has_no_references(site: Site) -> None:
    configure(
        site,
        """
        a:
          run: [cat]
          commands:
            Go:
              parameters:
                pin: {type: str, secret: true}
                any: {default: {secret: "x"}, description: "${X_Y}"}
        """,
        more="  env: ['X_*']\n",
    )
    found = defined(site)
    assert found.secrets == ()
    assert found.commands is not None
    told = {one.id: one for one in found.commands["Go"].signature.parameters}
    assert set(told) == {"pin", "any"}


def test_variables_are_filled_in_where_they_are_allowed(site: Site) -> None:
    texts = {
        "whole": ("${APP_X}", "value"),
        "within": ("a ${APP_X} b ${APP_X}", "a value b value"),
        "escaped": ("$${APP_X} and $$${APP_X}", "${APP_X} and $${APP_X}"),
        "others": (
            "${OTHER} $APP_X ${app_x} ${APP-X} $${OTHER} ${APP_X",
            "${OTHER} $APP_X ${app_x} ${APP-X} $${OTHER} ${APP_X",
        ),
    }
    configure(
        site,
        f"a: {{run: [cat], commands: {{}}, env: {json.dumps({name: text for name, (text, _) in texts.items()})}}}",
        more="  env: ['APP_*']\n",
    )
    found = defined(site, environ={"APP_X": "value", "OTHER": "no"})
    assert {name: found.launch.env[name] for name in texts} == {name: value for name, (_, value) in texts.items()}
    assert found.notices == (
        "env.others: ${OTHER} stays as it is written, since secrets.env does not name it",
        "env.others: ${app_x} stays as it is written, since secrets.env does not name it",
    )
    assert refusal(site) == f"{site.file}:7: connectors.a.env.whole: the variable APP_X is not set"


def test_a_value_with_a_reference_in_it_is_a_value(site: Site, folder: Path) -> None:
    (folder / "x").write_text("${APP_X} {secret: y}")
    configure(site, "a: {run: [cat], commands: {}, env: {V: {secret: x}}}", more="  env: ['APP_*']\n")
    assert defined(site, environ={"APP_X": "value"}).launch.env["V"] == "${APP_X} {secret: y}"


def test_any_key_may_name_one_and_its_value_is_text(site: Site, folder: Path) -> None:
    (folder / "x").write_text("12345s")
    configure(site, "a: {run: [cat, {secret: x}], commands: {}, timeout: {secret: x}}")
    found = defined(site)
    assert found.launch.argv[1] == "12345s"
    assert found.limits.timeout == 12345
    configure(site, "a: {run: [cat], commands: {}, concurrency: {secret: x}}")
    assert "connectors.a.concurrency: expected `int | null`, got `str`" in refusal(site)


@pytest.mark.parametrize(
    "keys",
    [
        "timeout: {secret: x}",
        "env: {'A=B': 1, V: {secret: x}}, config: {v: {secret: x}}, read: [{secret: x}]",
        "mode: {secret: x}",
        "user: {secret: x}",
        "cache: {secret: x}",
        "auths: {a: {client_secret: {secret: x}, authorize_url: {secret: x}}}",
    ],
)
def test_no_refusal_shows_a_value(site: Site, folder: Path, keys: str) -> None:
    (folder / "x").write_text("hunter2 'quoted' \"twice\"")
    configure(site, f"a: {{run: [cat], commands: {{}}, {keys}}}")
    assert "hunter2" not in refusal(site)


def test_a_name_that_is_none_is_not_shown(site: Site) -> None:
    configure(site, "a: {run: [cat], commands: {}, config: {password: {secret: 'hunter 2!'}}}")
    assert refusal(site).endswith(
        "connectors.a.config.password: this is no name of a secret: it is made of letters, digits, _ - and ."
    )


def test_what_is_built_has_no_secrets(site: Site) -> None:
    configure(
        site,
        "a: {runtime: python, module: ./x.py, requirements: ['--index-url ${APP_X}', {secret: x}]}",
        more="  env: ['APP_*']\n",
    )
    assert "connectors.a.requirements: what is built of this is written down" in refusal(site)


def test_builds_need_no_secrets(site: Site) -> None:
    configure(site, "a: {run: [cat], env: {V: {secret: x}, W: 1}, config: {v: [{secret: x}, 1]}}")
    settings, _ = read_settings(site.file, environ={})
    [entry] = read_sources(settings).entries
    found = recognise(entry, read_sources(settings).defaults, settings)
    assert found is not None
    assert found.common.env == {"W": 1}
    assert found.common.config == {"v": [1]}


def test_who_is_switched_off_needs_none(site: Site) -> None:
    configure(site, "a: {enabled: false, run: [cat], env: {V: {secret: x}}}")
    settings, _ = read_settings(site.file, environ={})
    [entry] = read_sources(settings).entries
    assert define(entry, read_sources(settings).defaults, settings) is None


def test_a_short_value_is_told(site: Site, folder: Path) -> None:
    (folder / "pin").write_text("123")
    configure(site, "a: {run: [cat], commands: {}, config: {v: {secret: pin}}}")
    assert defined(site).notices == ("secret pin has less than 4 bytes: too short to be kept out of messages",)


def test_references_are_no_secrets_themselves() -> None:
    assert literal({"password": {"secret": "name"}, "list": [{"secret": "name"}, 1]}) == {"list": [1]}


def test_a_node_without_references_stays_as_it_is(tmp_path: Path) -> None:
    data = {"a": [1, "x", None, {"secret": 5}], "b": {}}
    node, uses = YamlNode(data).resolved(lookup(tmp_path))
    assert node.data == data
    assert uses == ()


def test_what_is_written_down_of_a_connector_does_not_depend_on_values(site: Site, folder: Path) -> None:
    file = folder / "x"
    facts = None
    found = []
    for value in ("one-value", "two-value"):
        file.write_text(value)
        facts = facts or file.stat()
        os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        configure(
            site,
            "a: {run: [cat, {secret: x}], commands: {}, env: {V: 'a ${X}'}, config: {v: {secret: x}}}",
            more="  env: [X]\n",
        )
        found.append(defined(site, environ={"X": value}))
    assert found[0].identity != found[1].identity
    assert found[0].remembered_by == found[1].remembered_by
    file.write_text("another")
    assert defined(site, environ={"X": "x"}).remembered_by != found[0].remembered_by


def test_where_only_a_mapping_can_be_there_is_no_reference(site: Site) -> None:
    (site.folder / "vault").write_text("")
    configure(
        site,
        "a: {run: [cat], commands: {}, env: {secret: e}, config: {secret: hunter2}, auths: {secret: {client_secret: c}}}",
        gateway="callbacks: {allow: [h], headers: {secret: x}, hosts: {h: {headers: {secret: y}}}}",
        more=f"  command: {{note: [sh, -c, 'echo $1 >>{site.folder}/asked', sh, '{{name}}']}}\n",
    )
    found = defined(site)
    assert found.launch.env["secret"] == "e"
    assert bytes(found.config) == b'{"secret":"hunter2"}'
    assert found.redact("hunter2 is one by its key") == "[redacted] is one by its key"
    assert not (site.folder / "asked").exists()
    assert {"x", "y"} <= set(read_settings(site.file, environ={})[0].secrets)


@pytest.mark.parametrize(
    ("under", "over", "merged"),
    [
        ("{secret: x}", "{secret: y}", "y-value"),
        ("{user: u}", "{secret: y}", "y-value"),
        ("{secret: x}", "{user: u}", {"user": "u"}),
        ("text", "{secret: y}", "y-value"),
    ],
)
def test_a_reference_is_overlaid_as_a_whole(site: Site, folder: Path, under: str, over: str, merged: object) -> None:
    (folder / "x").write_text("x-value")
    (folder / "y").write_text("y-value")
    drop_in = site.drop_ins / "a"
    drop_in.mkdir()
    (drop_in / "connector.yaml").write_text(f"{{run: [cat], commands: {{}}, config: {{login: {under}}}}}")
    configure(site, f"a: {{config: {{login: {over}}}}}")
    assert json.loads(bytes(defined(site).config)) == {"login": merged}


def test_what_of_a_value_may_be_shown_alone_is_redacted_too(site: Site, folder: Path) -> None:
    (folder / "header").write_text("Bearer abcdef-token")
    (folder / "url").write_text("postgres://u:p%40ss-word@h/d")
    configure(site, "a: {run: [cat], commands: {}, config: {x: {secret: header}, y: {secret: url}}}")
    redact = defined(site).redact
    assert redact("sent abcdef-token to p@ss-word") == "sent [redacted] to [redacted]"


def test_an_image_is_built_without_secrets(site: Site) -> None:
    configure(
        site,
        "a: {run: [cat], env: {V: {secret: x}}, config: {v: {secret: x}}}",
        gateway="""
        api_key: {secret: x}
        public_url: {secret: x}
        jobs: {database: {secret: x}, encrypt: [{secret: x}]}
        callbacks: {allow: [h], oauth2: {token_url: "http://h", client_id: c, client_secret: {secret: x}}}
        """,
    )
    answer = cli(site, "install", "a")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "nothing to build" in answer.stdout


# --- settings


def test_the_section_gateway_may_name_secrets(site: Site, folder: Path) -> None:
    (folder / "key").write_text("k3y-of-callers\n")
    (folder / "header").write_text("Bearer abc")
    configure(
        site,
        gateway="""
        api_key: {secret: key}
        oauth: {key: {secret: key}}
        callbacks: {allow: [a.example], headers: {X-Other: {secret: header}}}
        jobs: {database: "postgresql://u:${DB_PASSWORD}@h/d"}
        """,
        connectors="",
        more="  env: [DB_PASSWORD]\n",
    )
    settings, _ = read_settings(site.file, environ={"DB_PASSWORD": "hunter2"})
    assert settings.api_key == settings.oauth.key == "k3y-of-callers"
    assert settings.callbacks.data["headers"] == {"X-Other": "Bearer abc"}
    assert settings.jobs.data["database"] == "postgresql://u:hunter2@h/d"
    assert {"k3y-of-callers", "Bearer abc", "hunter2"} <= set(settings.secrets)
    (folder / "key").unlink()
    with pytest.raises(ConfigError, match=r"connectors\.yaml:5: gateway\.api_key: there is no secret key\. Looked for"):
        read_settings(site.file, environ={"DB_PASSWORD": "hunter2"})
    assert read_settings(site.file, environ={}, lenient=True)[0].api_key is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{dirs: x}", "secrets.dirs: unknown key (did you mean dir?)"),
        ("{dir: .}", "holds the folder of connectors.yaml"),
        ("{dir: [private, /]}", "holds the folder of connectors.yaml"),
        ("{command: {x: []}}", "command: x is empty"),
        ("{command: {x: [pass, show]}}", "command: no argument of x has {name}"),
        ("{command: {x: ['{name}']}}", "command: no argument of x has {name}"),
        ("{ttl: 0s}", "ttl is no time at all"),
        ("{ttl: 5}", "5 is not a duration"),
        ("{env: X}", "expected `array`, got `str`"),
    ],
)
def test_a_section_that_cannot_be_used_is_refused(site: Site, text: str, problem: str) -> None:
    site.file.write_text(f"secrets: {text}\n")
    with pytest.raises(ConfigError) as caught:
        read_settings(site.file, environ={})
    assert problem in str(caught.value)


def test_defaults_may_have_variables(site: Site, folder: Path) -> None:
    (folder / "proxy").write_text("http://u:p4ss@proxy")
    drop_in = site.drop_ins / "b"
    drop_in.mkdir()
    (drop_in / "connector.yaml").write_text("{run: [cat], commands: {}, env: {TZ: UTC}}")
    configure(
        site,
        "a: {run: [cat], commands: {}, env: {HTTP_PROXY: null, OWN: 1}}",
        defaults="env: {TZ: Europe/Berlin, HTTP_PROXY: {secret: proxy}, VERSION: 1.10}\ntimeout: 3s",
    )
    first, second = defined(site), defined(site, "b")
    assert {name: first.launch.env.get(name) for name in ("TZ", "HTTP_PROXY", "VERSION", "OWN")} == {
        "TZ": "Europe/Berlin",
        "HTTP_PROXY": None,
        "VERSION": "1.10",
        "OWN": "1",
    }
    assert second.launch.env["HTTP_PROXY"] == "http://u:p4ss@proxy"
    assert second.launch.env["TZ"] == "UTC"
    assert first.limits.timeout == second.limits.timeout == 3
    (folder / "proxy").unlink()
    with pytest.raises(
        Quarantine, match=r"connectors\.yaml:\d+: connectors\.b\.env\.HTTP_PROXY: there is no secret proxy"
    ):
        defined(site, "b")
    defined(site)


# --- a gateway that runs


def below(folder: Path) -> Iterator[bytes]:
    """Yield the contents of all files below a folder."""
    for path, _, names in os.walk(folder):
        for name in names:
            file = Path(path) / name
            if file.is_file():
                yield file.read_bytes()


async def test_a_connector_has_its_own_secrets_and_nobody_shows_them(site: Site, folder: Path) -> None:
    show(site)
    (folder / "key").write_text("k3y-of-callers\n")
    (folder / "first").write_text('s3cret "of" a')
    (folder / "second").write_text("s3cret-of-b")
    describing = site.python(
        "tells.py",
        """
        import json, sys
        request = json.load(sys.stdin)
        v = request["config"]["v"]
        parameters = [{"id": "p", "default": [v], "description": v}, {"id": "q", "default": "plain"}]
        print(json.dumps({"commands": [{"name": "Go", "description": "as " + v, "parameters": parameters}]}))
        """,
    )
    configure(
        site,
        f"""
        a: {{{SHOW}, env: {{A: {{secret: first}}}}, config: {{plain: {{secret: first}}}}}}
        b: {{{SHOW}, env: {{B: {{secret: second}}, C: "${{CLIENT_C}}"}}}}
        c: {{run: [{describing}], config: {{v: {{secret: second}}}}}}
        """,
        gateway="api_key: {secret: key}",
        more="  env: ['CLIENT_*']\n",
    )
    headers = {"Spiff-Connector-Proxy-Api-Key": "k3y-of-callers"}
    environment = {"CLIENT_C": "s3cret-of-c", "CREDENTIALS_DIRECTORY": str(folder)}
    values = ['s3cret "of" a', 's3cret \\"of\\" a', "s3cret-of-b", "s3cret-of-c", "k3y-of-callers"]
    async with served(site, env=environment) as server:
        assert (await server.get("/v1/commands")).status == 401
        first = (await server.do("a/Go", headers=headers)).body
        second = (await server.do("b/Go", headers=headers)).body
        assert first["env"]["A"] == first["config"]["plain"] == 's3cret "of" a'
        assert (second["env"]["B"], second["env"]["C"]) == ("s3cret-of-b", "s3cret-of-c")
        assert not {"B", "C", "CLIENT_C", "CREDENTIALS_DIRECTORY"} & first["env"].keys()
        assert "A" not in second["env"]
        failed = await server.do("a/Go", {"fail": 1}, headers=headers)
        told = [failed.raw, server.log().encode(), *below(site.state)]
        told += [
            (await server.get(path, headers=headers)).raw
            for path in ("/v1/status", "/metrics", "/openapi.json", "/v1/commands")
        ]
        told += [cli(site, *words, env=environment).stdout.encode() for words in (("check",), ("check", "--json"))]
        assert failed.code == "connector_failed"
        assert b"[redacted]" in failed.raw
        for text in told:
            assert not [value for value in values if value.encode() in text]


async def test_what_a_connector_said_is_remembered_without_the_values_that_it_has(site: Site, folder: Path) -> None:
    asked = site.folder / "asked"
    describing = site.script(
        "tells", f'cat >/dev/null; echo asked >>{asked}; echo \'{{"commands": [{{"name": "Go"}}]}}\''
    )
    (folder / "x").write_text("value")
    configure(site, f"a: {{run: [{describing}], config: {{v: {{secret: x}}}}}}")
    for _ in range(2):
        async with served(site) as server:
            assert await server.commands() == ["a/Go"]
    assert asked.read_text().count("asked") == 1
    async with served(site) as server:
        (folder / "x").write_text("another")
        await eventually(lambda: asked.read_text().count("asked") == 2)
        await eventually(lambda: _ready(server, "a"))


async def test_the_folder_is_out_of_sight(site: Site, folder: Path) -> None:
    (folder / "x").write_text("s3cret")
    site.python(
        "look.py",
        """
        import json, os, sys
        try:
            found = os.listdir(sys.argv[1])
        except OSError as problem:
            found = str(problem)
        print(json.dumps({"found": found}))
        """,
    )
    commands = "commands: {Go: {additional_parameters: true}}"
    configure(
        site,
        f"a: {{run: [./look.py, {folder}], {commands}}}\nb: {{run: [./look.py, {folder}], sandbox: off, {commands}}}",
    )
    async with served(site) as server:
        assert "x" not in (await server.do("a/Go")).body["found"]
        assert (await server.do("b/Go")).body["found"] == ["x"]


async def test_what_is_missing_quarantines_and_its_arrival_heals(site: Site, folder: Path) -> None:
    show(site)
    configure(site, f"a: {{{SHOW}, env: {{A: {{secret: late}}}}}}\nb: {{{SHOW}}}")
    async with served(site) as server:
        status = await server.status("a")
        assert status["state"] == "quarantined"
        assert (
            f"connectors.a.env.A: there is no secret late. Looked for: the file {folder / 'late'}" in status["reason"]
        )
        assert (await server.do("a/Go")).code == "connector_unavailable"
        assert (await server.do("b/Go")).status == 200
        (folder / "late").write_text("it came")
        await eventually(lambda: _ready(server, "a"))
        assert (await server.do("a/Go")).body["env"]["A"] == "it came"
        (folder / "late").unlink()
        await eventually(lambda: _quarantined(server, "a"))


async def test_where_secrets_are_can_be_changed_while_a_gateway_runs(site: Site, folder: Path) -> None:
    show(site)
    (folder / "x").write_text("of-private")
    (site.folder / "other").mkdir()
    (site.folder / "other" / "x").write_text("of-other")
    entry = f"a: {{{SHOW}, config: {{v: {{secret: x}}}}}}"
    configure(site, entry)
    async with served(site) as server:

        async def value() -> str:
            answer = await server.do("a/Go")
            return str(answer.body["config"]["v"]) if answer.status == 200 else ""

        assert await value() == "of-private"
        configure(site, entry)
        site.file.write_text(site.file.read_text().replace("dir: private", "dir: other"))
        await eventually(lambda: _is(value, "of-other"))
        site.file.write_text(site.file.read_text().replace("dir: other", "dir: other\n  command: {x: []}"))
        await eventually(lambda: _told(server, "command: x is empty"))
        assert await value() == "of-other"


async def _is(value: Callable[[], Awaitable[str]], wanted: str) -> bool:
    return await value() == wanted


async def _told(server: Any, problem: str) -> bool:
    return problem in ((await server.status())["registry_problem"] or "")


async def _ready(server: Any, name: str) -> bool:
    return (await server.status(name))["state"] == "ready"


async def _quarantined(server: Any, name: str) -> bool:
    return (await server.status(name))["state"] == "quarantined"


async def test_a_volume_of_kubernetes_that_is_swapped_changes_those_that_use_it(site: Site, folder: Path) -> None:
    site.python(
        "stays.py",
        """
        import json, os, sys
        for line in sys.stdin:
            with open(3, "w", closefd=False) as results:
                print(json.dumps({"pid": os.getpid(), "v": os.environ["V"]}), file=results)
        """,
    )

    def version(name: str, value: str) -> None:
        (folder / name).mkdir()
        (folder / name / "x").write_text(value)
        (folder / "..tmp").symlink_to(name)
        (folder / "..tmp").rename(folder / "..data")

    version("..2024_1", "one-value")
    (folder / "x").symlink_to("..data/x")
    stays = "run: [./stays.py], mode: persistent, commands: {Go: {}}"
    configure(site, f"a: {{{stays}, env: {{V: {{secret: x}}}}}}\nb: {{{stays}, env: {{V: same}}}}")
    async with served(site) as server:

        async def answer(name: str) -> dict[str, Any]:
            return (await server.do(f"{name}/Go")).body

        before = {name: await answer(name) for name in "ab"}
        assert before["a"]["v"] == "one-value"
        version("..2024_2", "two-value")

        async def changed() -> bool:
            return (await answer("a")).get("v") == "two-value"

        await eventually(changed)
        assert (await answer("b")) == before["b"]
        [event] = server.events("registry_loaded")[1:]
        assert event["changed"] == ["a"]


async def test_a_command_that_answers_later_heals_and_one_that_fails_keeps_its_value(site: Site) -> None:
    show(site)
    source, asked = site.folder / "source", site.folder / "asked"
    site.script("vault", f'echo "$1" >>{asked}; cat {source}')
    connectors = "\n".join(f"c{number}: {{{SHOW}, env: {{V: {{secret: kv/one}}}}}}" for number in range(200))
    configure(site, connectors, more="  command: {vault: [./vault, '{name}']}\n  ttl: 1s\n")
    async with served(site) as server:
        assert (await server.status("c199"))["state"] == "quarantined"
        assert "the command vault (exit status 1: cat: " in (await server.status("c0"))["reason"]
        assert len(asked.read_text().split()) < 20
        source.write_text("vaulted")
        await eventually(lambda: _ready(server, "c199"))
        assert (await server.do("c7/Go")).body["env"]["V"] == "vaulted"
        source.unlink()
        await eventually(lambda: server.events("secret_stale", secret="kv/one"))
        assert (await server.do("c7/Go")).body["env"]["V"] == "vaulted"
        [notice] = (await server.status("c7"))["notices"]
        assert notice.startswith("secret kv/one is what it was, since command vault: exit status 1")
        source.write_text("vaulted-again")

        async def changed() -> bool:
            return bool((await server.do("c7/Go")).body["env"]["V"] == "vaulted-again")

        await eventually(changed)


async def test_a_command_that_hangs_holds_up_neither_calls_nor_the_end(site: Site) -> None:
    show(site)
    hang = site.folder / "hang"
    site.script("vault", f"test -e {hang} && sleep 60; echo value")
    configure(
        site,
        f"a: {{{SHOW}, env: {{V: {{secret: x}}}}}}",
        more="  command: {vault: [./vault, '{name}']}\n  ttl: 100ms\n",
    )
    async with served(site) as server:
        hang.touch()
        for _ in range(20):
            assert (await server.do("a/Go")).body["env"]["V"] == "value"


# --- gateway secrets


def test_secrets_are_listed_without_their_values(site: Site, folder: Path) -> None:
    (folder / "key").write_text("k3y-of-callers")
    (folder / "both").write_text("s3cret-of-two")
    configure(
        site,
        """
        a: {run: [cat], env: {V: {secret: both}, W: "${APP_X}"}, config: {v: {secret: both}}}
        b: {run: [cat], env: {V: {secret: both}, W: {secret: APP_Y}, X: {secret: kv/z}}}
        off: {enabled: false, run: [cat], env: {V: {secret: nowhere}}}
        """,
        gateway="api_key: {secret: key}\njobs: {database: {secret: gone}}",
        more="  env: ['APP_*']\n  command: {echo: [printf, 's3cret-%s', '{name}']}\n",
    )
    environment = {"APP_X": "s3cret-of-x", "APP_Y": "s3cret-of-y"}
    listed = cli(site, "secrets", "--json", env=environment)
    assert listed.returncode == 0
    rows = {one["name"]: one for one in json.loads(listed.stdout)}
    assert {name: (one["source"], one["users"]) for name, one in rows.items()} == {
        "APP_X": ("variable APP_X", ["a"]),
        "APP_Y": ("variable APP_Y", ["b"]),
        "both": (str(folder / "both"), ["a", "b"]),
        "gone": ("command echo", ["gateway.jobs.database"]),
        "key": (str(folder / "key"), ["gateway.api_key"]),
        "kv/z": ("command echo", ["b"]),
    }
    assert rows["APP_X"]["age"] is None
    assert 0 <= rows["key"]["age"] < 600
    (folder / "key").unlink()
    configure(
        site, "a: {run: [cat], env: {W: '${APP_X}'}}", gateway="api_key: {secret: key}", more="  env: ['APP_*']\n"
    )
    missing = cli(site, "secrets")
    assert missing.returncode == 1
    assert (
        f"missing key: there is no secret key. Looked for: the file {folder / 'key'}. Write it into" in missing.stdout
    )
    assert "missing APP_X: the variable APP_X is not set" in missing.stdout
    for text in (listed.stdout, listed.stderr, missing.stdout):
        assert "s3cret" not in text
        assert "k3y" not in text
    configure(site, "a: {run: [cat]}")
    assert cli(site, "secrets").stdout == "no file names a secret\n"


def test_a_verb_says_which_secret_of_the_gateway_is_missing(site: Site) -> None:
    configure(site, "", gateway="api_key: {secret: key}")
    answer = cli(site, "check")
    assert answer.returncode == 2
    assert "gateway.api_key: there is no secret key" in answer.stderr


def test_secrets_of_clients_are_listed_though_their_file_cannot_be_used(site: Site, folder: Path) -> None:
    for name in ("one", "two", "three", "four"):
        (folder / name).write_text(f"s3cret-{name}")
    configure(site, "a: {run: [cat], commands: {}}")
    (site.folder / "clients.d").mkdir()
    file = site.folder / "clients.d" / "acme.yaml"
    text = """
        keys: [{secret: one}, {secret: two, role: viewer}]
        connectors: {a: {env: {V: {secret: three}, secret: plain}, commands: {Go: {description: {secret: no}}}}}
        callbacks: {allow: [h], headers: {X-A: {secret: four}, X-B: {secret: late}}}
    """
    file.write_text(textwrap.dedent(text))
    listed = cli(site, "secrets", "--json")
    rows = {one["name"]: (one["ok"], one["users"]) for one in json.loads(listed.stdout)}
    assert rows.pop("late") == (False, ["acme.yaml: callbacks.headers.X-B"])
    assert rows == {
        "one": (True, ["acme.yaml: keys.0"]),
        "two": (True, ["acme.yaml: keys.1"]),
        "four": (True, ["acme.yaml: callbacks.headers.X-A"]),
    }
    assert listed.returncode == 1
    (folder / "late").write_text("s3cret-late")
    listed = cli(site, "secrets", "--json")
    rows = {one["name"]: (one["ok"], one["users"]) for one in json.loads(listed.stdout)}
    assert rows["three"] == (True, ["a@acme"])
    assert listed.returncode == 0
    assert "s3cret" not in listed.stdout
