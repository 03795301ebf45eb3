"""What belongs to others: their memory, files, descriptors and calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.attacks.support import KEY, PASSWORD, Attacked, Enemy, Place
from tests.support import cmdline, is_cell

if TYPE_CHECKING:
    from pathlib import Path

KEPT_IN = ("standard", "strict")
SPAWN_AND_FORK = ("spawn", "fork")


def known_apart(place: Place, level: str, mode: str) -> bool:
    """Tell whether it is another case: each level everywhere, and the processes of a host where there is least."""
    return mode == "spawn" or place.name in {"user-beside", "root-beside"}


def denied(told: dict[str, Any]) -> dict[str, Any]:
    """Return what was not. A file that is empty where another was is one that cannot be read."""
    return {name: what for name, what in told.items() if str(what).startswith("done") and what not in EMPTY}


EMPTY = {"done: b''", "done: []"}
INTO = """
    def into(pid):
        found = {f"{what} {pid}": read(f"/proc/{pid}/{what}") for what in ("environ", "maps", "auxv")}
        found[f"mem {pid}"] = tried(os.open, f"/proc/{pid}/mem", os.O_RDWR)
        for what in ("cwd", "root", "root/etc"):
            found[f"{what} {pid}"] = tried(os.listdir, f"/proc/{pid}/{what}")
        for fd in (0, 1, 3, 4, 5):
            found[f"name of fd {fd} of {pid}"] = tried(os.readlink, f"/proc/{pid}/fd/{fd}")
            found[f"fd {fd} of {pid}"] = tried(os.open, f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_NONBLOCK)
        for line in arms("into", pid, 3).splitlines():
            name, what = line.split()
            if name != "open": found[f"{name} {pid}"] = what
        return found
"""


@pytest.mark.attack(modes=SPAWN_AND_FORK)
async def test_nobody_gets_into_the_gateway_or_a_cell(enemy: Enemy, connector: str) -> None:
    if connector.startswith("off") and not enemy.place.ordinary:
        pytest.skip("off says nothing of root")
    pids = [enemy.attacked.pid, *[pid for pid in enemy.attacked.mine() if is_cell(pid)][:4]]
    told = await enemy.told(connector, INTO + f"    result = [into(pid) for pid in {pids}]\n")
    for found in told:
        one = found
        if connector.startswith("off"):  # the processes of its user are seen, and can be signalled
            one = {name: what for name, what in one.items() if not name.startswith("signal")}
        assert denied(one) == {}
    inside = await enemy.told(connector, INTO + "    result = into(1)\n")
    inside = {name: what for name, what in inside.items() if not name.startswith("signal")}
    assert (enemy.place.name == "root-beside" and connector.startswith("off")) or denied(inside) == {}


@pytest.mark.attack(levels=KEPT_IN, modes=SPAWN_AND_FORK, only=known_apart)
async def test_nobody_gets_into_the_process_of_another_connector(enemy: Enemy, connector: str) -> None:
    async with enemy.waiting_victim() as pid:
        waiting = [one for one in enemy.attacked.mine() if f"{enemy.folder}/victim/victim.py" in commands(one)]
        assert pid in waiting
        assert len(waiting) >= 3  # the one of mode standby, and the one that stays
        told = await enemy.told(connector, INTO + f"    result = [into(pid) for pid in {waiting}]\n")
        assert [denied(one) for one in told] == [{}] * len(waiting)


def commands(pid: int) -> str:
    return cmdline(pid).replace(b"\0", b" ").decode(errors="replace")


def mentioned(told: Any) -> bool:
    return KEY in str(told) or PASSWORD in str(told)


@pytest.mark.attack(levels=KEPT_IN, modes=SPAWN_AND_FORK, only=known_apart)
async def test_nobody_reads_what_others_have(enemy: Enemy, connector: str) -> None:
    async with enemy.waiting_victim() as pid:
        mine = await enemy.told(connector, "result = os.path.dirname(os.environ['HOME'])")
        files = [path for path in enemy.state.rglob("*") if path.is_file() and not str(path).startswith(mine)]
        assert any(path.name == "notes" for path in files)
        files += [enemy.folder / "connectors.yaml", enemy.site_drop_in / "connector.yaml"]
        told = await enemy.told(connector, f"result = {{path: read(path) for path in {list(map(str, files))}}}")
        assert denied(told) == {}
        found = await enemy.told(
            connector,
            f"""
            result = []
            for top in ({str(enemy.folder)!r}, "/proc/self/root{enemy.folder}", "/proc/self/cwd/../../../.."):
                for path, folders, names in os.walk(top):
                    result += [read(os.path.join(path, name)) for name in names]
            """,
        )
        assert not mentioned(found)
        assert pid


@pytest.mark.attack(levels=KEPT_IN, modes=SPAWN_AND_FORK, only=known_apart)
async def test_nobody_acts_for_others(enemy: Enemy, connector: str) -> None:
    """Rewrites no code, no description, plants no drop-in, moves nothing away, signals nobody."""
    site = enemy.folder
    before = {path: path.read_bytes() for path in site.rglob("*") if matters(site, path)}
    remembered = [str(path) for path in enemy.state.glob("*") if path.name != "run"]
    others = [pid for pid in enemy.attacked.mine() if is_cell(pid) or "victim.py" in commands(pid)]
    told = await enemy.told(
        connector,
        f"""
        site = {str(site)!r}
        names = ("hostile/hostile.py", "hostile/arms", "hostile/new", "victim/victim.py", "victim/new", "victim/json.py",
                 "connectors.yaml", "connectors.d/new", "connectors.d/neighbour/neighbour.sh",
                 "connectors.d/neighbour/connector.yaml", ".gateway/new", ".gateway/run/new",
                 ".gateway/journal/new", ".gateway/journal/runs.sqlite")
        result = {{f"write {{name}}": write(f"{{site}}/{{name}}") for name in names}}
        result |= {{f"remembered {{path}}": write(path + "/new") for path in {remembered}}}
        result["drop-in"] = tried(os.mkdir, site + "/connectors.d/planted")
        for name in ("hostile", "victim", "victim/victim.py", "connectors.yaml", "connectors.d", ".gateway",
                     "connectors.d/neighbour", "hostile/hostile.py"):
            result[f"move {{name}}"] = tried(os.rename, f"{{site}}/{{name}}", f"{{site}}/moved")
            result[f"move over {{name}}"] = tried(lambda: (open(f"{{site}}/moved", "w").close(),
                os.rename(f"{{site}}/moved", f"{{site}}/{{name}}")) and None)
            tried(os.unlink, f"{{site}}/moved")
            result[f"remove {{name}}"] = tried(os.unlink, f"{{site}}/{{name}}")
            result[f"close {{name}}"] = tried(os.chmod, f"{{site}}/{{name}}", 0)
            result[f"link {{name}}"] = tried(os.link, f"{{site}}/{{name}}", f"{{site}}/linked")
        result |= {{f"kill {{pid}}": tried(os.kill, pid, 0) for pid in {[enemy.attacked.pid, *others]}}}
        result |= {{f"kill group {{pid}}": tried(os.killpg, pid, 0) for pid in {[enemy.attacked.pid, *others]}}}
        """,
    )
    for name in ("moved", "linked"):
        (site / name).unlink(missing_ok=True)
    # Landlock says nothing of modes; and a folder that holds something hidden is as its name says: not to be written.
    told = {name: what for name, what in told.items() if enemy.place.apart or not name.startswith("close")}
    assert enemy.place.apart or restore_modes(site)
    assert denied(told) == {}
    assert {path: path.read_bytes() for path in site.rglob("*") if matters(site, path)} == before
    assert connector in (await enemy.server.status())["connectors"]


def matters(site: Path, path: Path) -> bool:
    """Tell whether a file is not one that the gateway itself writes while it serves."""
    own = (".gateway/run", ".gateway/journal")
    return path.is_file() and not any(one in str(path) for one in own) and path.name not in {"serve.log", "log"}


def restore_modes(site: Path) -> bool:
    for name in ("hostile", "victim", "victim/victim.py", "connectors.d", ".gateway", "connectors.d/neighbour",
                 "hostile/hostile.py", "connectors.yaml"):  # fmt: skip
        (site / name).chmod(0o755)
    return True


@pytest.mark.attack(where=lambda place: place.name != "root-groups")
async def test_a_gateway_that_is_kept_and_its_keeper_are_nobody_elses(attacked: Place, arms: Path) -> None:
    one = Attacked(attacked, arms, kept=True)
    try:
        async with one.connected() as enemy:
            kept = (await enemy.server.status())["workers"][0]["pid"]
            assert kept != one.pid
            for level in attacked.levels:
                told = await enemy.told(
                    f"{level}-spawn",
                    INTO
                    + f"""
    import socket
    def listen():
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind(("127.0.0.1", {one.port}))
            one.listen()
    result = [*(into(pid) for pid in {[one.pid, kept]}), {{"listen": tried(listen)}}]
    """,
                )
                if level == "off":  # root is root
                    if attacked.ordinary:
                        for found in told[:-1]:
                            assert denied({name: what for name, what in found.items() if "signal" not in name}) == {}
                    continue
                if level == "strict":
                    del told[-1]["listen"]  # in a network of its own, where nobody calls
                assert [denied(found) for found in told] == [{}] * len(told)
            await enemy.serves_others()
            assert (await enemy.server.status())["workers"][0]["pid"] == kept
    finally:
        one.close()
