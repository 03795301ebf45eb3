"""Memory that is hard to count, and who is blamed for it."""

from __future__ import annotations

import asyncio

import pytest

from tests.attacks.support import MEMORY, MODES, Enemy, differs, words
from tests.support import eventually

OVER = f"{MEMORY}MiB of memory (max_memory)"
# What an error of its own may be: the system has refused it the memory.
REFUSED = ("ENOSPC", "ENOMEM", "MemoryError", "Bus error", "SIGBUS", "arms ended with")
WAYS = ("memfd 300", "mapped 300", "shared 540", "sysv 200", "plain 200", "locked 200", "deep 150", "many 150")


@pytest.mark.attack(modes=MODES, only=differs)
async def test_memory_is_counted_whatever_it_is_called(enemy: Enemy, connector: str) -> None:
    everywhere = connector in {"standard-spawn", "off-spawn"}
    for way in WAYS if everywhere else ("memfd 300", "shared 540", "plain 200"):
        if way == "sysv 200" and not (enemy.place.apart and not connector.startswith("off")):
            continue  # the machine's own: who is killed leaves it
        what, size = way.split()
        answer = await enemy.run(connector, f"arms('hog', {what!r}, {size})", timeout=8)
        assert answer.code == "connector_out_of_memory" or any(word in words(answer) for word in REFUSED), (
            way,
            answer.raw,
        )
        assert OVER in words(answer) or answer.code != "connector_out_of_memory", (way, answer.raw)
        await eventually(lambda: not enemy.attacked.strays(), 1)


@pytest.mark.attack(levels=("standard", "strict"), modes=("spawn", "persistent", "fork"),
                    where=lambda place: place.apart, only=differs)  # fmt: skip
async def test_temporary_files_are_memory_and_go(enemy: Enemy, connector: str) -> None:
    for folder in ("/tmp", "/dev/shm", "/var/tmp"):
        answer = await enemy.run(
            connector,
            f"""
            import signal
            with open("{folder}/taken-over", "wb") as file:
                for _ in range(150):
                    file.write(b"x" * (1 << 20))
                    file.flush()
            signal.pause()
            """,
            timeout=8,
        )
        fsize = "SIGXFSZ" in words(answer) or "File too large" in words(answer)  # over max_disk as a file
        refused = "No space left" in words(answer)
        assert fsize or refused or answer.code == "connector_out_of_memory", answer.raw
        many = await enemy.run(
            connector,
            f"""
            import signal
            for n in range(150):
                open(f"{folder}/taken-over-{{n}}", "wb").write(b"x" * (1 << 20))
            signal.pause()
            """,
            timeout=8,
        )
        assert many.code == "connector_out_of_memory" or "No space left" in words(many), many.raw
        assert await enemy.told(connector, f"result = os.listdir({folder!r})") in ([], [enemy.folder.name])


@pytest.mark.attack(modes=("spawn", "fork"), only=differs)
async def test_nobody_else_is_blamed(enemy: Enemy, connector: str) -> None:
    """What has left its run takes memory while others run: they have their own results."""
    escape = f"""
        pid = os.fork()
        if pid == 0:
            os.setsid()
            if os.fork() == 0:
                os.chdir("/")
                for fd in range(3): os.dup2(os.open("/dev/null", os.O_RDWR), fd)
                os.execve(ARMS, [ARMS, "hog", "plain", "{MEMORY // 2}"], {{}})
            os._exit(0)
        os.waitpid(pid, 0)
    """
    own_error = {"error": {"error_code": "own", "message": "its own"}}

    async def other() -> None:
        answer = await enemy.server.do("neighbour/Echo", own_error)
        assert (answer.status, answer.code) != (502, "connector_out_of_memory"), answer.raw

    for _ in range(3):
        answers = await asyncio.gather(
            *(enemy.run(connector, escape) for _ in range(3)),
            *(enemy.run(connector, "result = 'mine'") for _ in range(4)),
        )
        await asyncio.gather(*(other() for _ in range(4)))
        assert [answer.status for answer in answers] == [200] * 7, [words(answer) for answer in answers]
    await eventually(lambda: not enemy.attacked.strays(), 2)
