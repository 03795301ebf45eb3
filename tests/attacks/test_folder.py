"""The private folder: nothing is done where a link leads, and nothing of one call is there in the next one."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.attacks.support import Enemy, differs, words

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DEEP = {"root-groups"}
ROUNDS = 4


@pytest.fixture
def bait(enemy: Enemy) -> Iterator[Path]:
    """A folder outside, which the attacker's user may write if the gateway's may."""
    folder = enemy.folder / "bait"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_text("bait")
    for path in (folder, folder / "inner", folder / "inner" / "file"):
        os.chown(path, (enemy.folder.stat()).st_uid, -1)
        path.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def untouched(bait: Path) -> bool:
    return (bait / "inner" / "file").read_text() == "bait" and all(
        path.stat().st_mode & 0o777 == 0o755 for path in (bait, bait / "inner", bait / "inner" / "file")
    )


PREPARED = """
    cell, mine = os.path.split(os.environ["HOME"])
    os.chdir("/")
"""


@pytest.mark.attack(modes=("spawn", "persistent"), only=differs)
async def test_a_folder_that_is_a_link_now_is_not_followed(enemy: Enemy, connector: str, bait: Path) -> None:
    for target in (bait, bait / "inner"):
        await enemy.told(
            connector,
            f"""{PREPARED}
    os.rename(f"{{cell}}/{{mine}}", f"{{cell}}/gone")
    os.symlink({str(target)!r}, f"{{cell}}/{{mine}}")
    """,
        )
        assert untouched(bait)
        assert await enemy.told(connector, "result = os.listdir(os.environ['HOME'])") == []
    assert untouched(bait)


@pytest.mark.attack(modes=("spawn", "persistent", "fork"), only=differs)
async def test_a_folder_may_be_removed_closed_or_full_of_anything(enemy: Enemy, connector: str) -> None:
    deep = """
        os.chdir(os.environ["HOME"])
        for level in range(3000):
            os.mkdir("d")
            os.chdir("d")
        os.chdir("/")
    """
    odd = """
        import socket
        os.chdir(os.environ["HOME"])
        os.mkfifo("fifo")
        socket.socket(socket.AF_UNIX).bind("socket")
        os.symlink("/etc", "link")
        os.symlink("loop", "loop")
        os.makedirs("closed/inner/more")
        for name in ("closed/inner/more", "closed/inner", "closed"):
            open(f"{name}/file", "w").close()
            os.chmod(name, 0)
        open("\\n\\xff " + "x" * 200, "w").close()
        os.chmod(".", 0)
    """
    removed = "os.rmdir(os.environ['HOME'])"
    replaced = "os.rmdir(os.environ['HOME']); open(os.environ['HOME'], 'w').close()"
    # How long it takes to remove three thousand folders is the disk's business: so a few times are enough.
    often = connector not in {"standard-spawn", "standard-persistent"} or enemy.place.name not in DEEP
    for code in (odd, removed, replaced) if often else (odd, deep, removed, replaced):
        answer = await enemy.run(connector, code)
        assert answer.status == 200 or "max_disk" in words(answer), answer.raw
        if connector.endswith("persistent"):
            look = "result = os.listdir(os.environ['HOME']) if os.path.isdir(os.environ['HOME']) else []"
        else:
            look = "result = os.listdir('.')"
        assert await enemy.told(connector, look) == []


@pytest.mark.attack(modes=("spawn", "persistent", "fork"), only=differs)
async def test_nothing_is_left_beside_the_folder_or_on_it(enemy: Enemy, connector: str) -> None:
    """`..` is the cell's; so is the folder itself, which the next run has."""
    private = enemy.place.apart and not connector.startswith("off")
    folders = ["..", *(["/tmp", "/dev/shm"] if private else []), *([] if connector.endswith("persistent") else ["."])]
    await enemy.told(
        connector,
        f"""
        os.chdir(os.environ["HOME"])
        for name in (".spare", "beside", "12345"):
            os.makedirs(f"../{{name}}/inner", exist_ok=True)
            open(f"../{{name}}/left", "w").write("left")
        for path in {folders}:
            tried(os.setxattr, path, "user.left", b"left")
            tried(os.chmod, path, 0o777)
        """,
    )
    found = await enemy.told(
        connector,
        f"""
        os.chdir(os.environ["HOME"])
        result = [os.path.join(path, name) for path, _, names in os.walk("..") for name in names]
        for path in {folders}:
            result += [f"{{path}}: {{name}}" for name in os.listxattr(path) if name.startswith("user.")]
        """,
    )
    assert found == []


@pytest.mark.attack(levels=("standard", "strict"), modes=("spawn", "persistent", "fork"), only=differs)
async def test_the_disk_is_bounded(enemy: Enemy, connector: str) -> None:
    ways = {
        "one file": "write_all('big', 64)",
        "many files": "[write_all(f'file-{n}', 1) for n in range(64)]",
        "beside the folder": "[write_all(f'../file-{n}', 1) for n in range(64)]",
        "without names": "kept = [write_all('gone', 1, lambda _: os.unlink(os.environ['HOME'] + '/gone')) for n in range(64)]",
    }
    for name, way in ways.items():
        answer = await enemy.run(
            connector,
            f"""
            import signal
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            global write_all
            def write_all(name, size, after=lambda _: None):
                file = open(os.path.join(os.environ["HOME"], name), "wb")
                for n in range(size):
                    file.write(b"x" * (1 << 20))
                    file.flush()
                after(name)
                return file
            {way}
            signal.pause()
            """,
            timeout=6,
        )
        if name == "one file":
            assert answer.code in {"connector_crashed", "EFBIG"} or "max_disk" in words(answer), (name, answer.raw)
        else:
            assert "max_disk" in words(answer), (name, answer.raw)
        assert "max_disk" in words(answer) or "SIGXFSZ" in words(answer), (name, answer.raw)


# Whoever gets out here empties the machine: so not as root, nor as who runs the tests.
@pytest.mark.attack(where=lambda place: place.ordinary and os.getuid() == 0, modes=("persistent",))
async def test_nothing_outside_is_emptied_by_a_folder_that_moves(enemy: Enemy, connector: str, bait: Path) -> None:
    """A process that stays moves what is being emptied to where its `..` is another, and swaps folders for links."""
    private = enemy.place.apart and not connector.startswith("off")
    forgotten = 'import subprocess; subprocess.run(\'rm -rf "$HOME"/* "$HOME"/../b /tmp/taken-over*\', shell=True)'
    for _ in range(ROUNDS):
        await enemy.told(
            connector,
            f"""
            import threading, time
            hasattr(os, "mover") and os.mover.join()
            {forgotten}
            cell, home = os.path.dirname(os.environ["HOME"]), os.environ["HOME"]
            os.chdir("/")
            pairs = [(f"{{home}}/a/b", f"{{cell}}/b")]
            pairs += [("/tmp/taken-over/a/b", "/tmp/taken-over-b")] if {private} else []
            swapped = [f"{{home}}/swapped"] + (["/tmp/taken-over-swapped"] if {private} else [])
            for inside, _ in pairs:
                tried(os.makedirs, inside)
                for n in range(100):
                    write(f"{{inside}}/{{n}}")
            for path in swapped:
                tried(os.makedirs, f"{{path}}/in")
            def move():
                until = time.monotonic() + 0.25
                while time.monotonic() < until:
                    for one, other in pairs:
                        tried(os.rename, one, other)
                        tried(os.rename, other, one)
                    for path in swapped:
                        tried(os.rename, path, path + "-")
                        tried(os.symlink, {str(bait)!r}, path)
                        tried(os.unlink, path)
                        tried(os.rename, path + "-", path)
            os.mover = threading.Thread(target=move, daemon=True)
            os.mover.start()
            """,
        )
        assert untouched(bait)
    await enemy.told(
        connector, f"hasattr(os, 'mover') and os.mover.join(); {forgotten}"
    )  # with the end of that call all goes
    assert untouched(bait)
    assert (enemy.folder / "connectors.yaml").exists()
