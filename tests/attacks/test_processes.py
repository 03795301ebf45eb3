"""What would live on, or be more than it may."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.attacks.support import GRACE, MODES, PIDS, Enemy, differs, twice, words
from tests.support import eventually

STUCK = 5.0  # seconds until a cell gives its host up
DETACHED = """
    for way in range(4):
        pid = os.fork()
        if pid == 0:
            os.setsid()
            if os.fork() == 0:
                for fd in range(3): os.dup2(os.open("/dev/null", os.O_RDWR), fd)
                os.closerange(3, 64)
                os.chdir("/")
                other = {"TMPDIR": OTHER, "HOME": OTHER} if way % 2 else {}
                os.execve(ARMS, [ARMS, "hydra" if way > 1 else "held"], other)
            os._exit(0)
        os.waitpid(pid, 0)
"""


BUSY = "import subprocess; [subprocess.run(['/bin/true']) for _ in range(100)]"


@pytest.mark.attack(modes=MODES, only=differs)
async def test_nothing_outlives_its_call(enemy: Enemy, connector: str) -> None:
    """Twice forked, in a session of its own, without an environment or in another's folder, while others are busy."""
    async with enemy.waiting_victim():
        folder = str(next(enemy.state.glob("run/**/notes")).parent)
        code = f"    OTHER = {folder!r}\n" + DETACHED
        busy = [asyncio.create_task(enemy.run(connector, f"{BUSY}; result = 'mine'")) for _ in range(2)]
        answers = await asyncio.gather(*(enemy.run(connector, code) for _ in range(2)), *busy)
        assert [answer.status for answer in answers] == [200] * 4, [words(answer) for answer in answers]
        if connector.endswith("fork"):
            said = await enemy.told(connector, "result = arms('sibling')")
            assert connector.startswith("off") or "EPERM" in said
            await enemy.told(
                connector,
                """
                import ctypes
                if ctypes.CDLL(None).syscall(56, 0x8000 | 17, 0, 0, 0, 0) == 0:  # a sibling
                    os.setsid()
                    for fd in range(3): os.dup2(os.open("/dev/null", os.O_RDWR), fd)
                    os.execve(ARMS, [ARMS, "hydra"], {})
                """,
            )
        await eventually(lambda: not enemy.attacked.strays(), 2)


@pytest.mark.attack(modes=("spawn", "fork"), only=twice)
async def test_whoever_does_not_want_to_end_does(enemy: Enemy, connector: str) -> None:
    ways = (
        "arms('hydra')",
        "os.kill(os.getpid(), 19)",  # SIGSTOP
        "import signal; [signal.signal(n, signal.SIG_IGN) for n in range(1, 32) if n not in (9, 19)]; arms('held'); signal.pause()",
        "os.close(3) if os.path.exists('/proc/self/fd/3') else None; os.close(1); let_loose('hydra'); arms('breed', 20)",
        "[os.kill(pid, 19) for pid in (1, os.getppid()) if pid > 1 or os.getppid() <= 1]; arms('held'); arms('hydra')"
        if connector.startswith("standard") and enemy.place.apart
        else "arms('hydra')",
    )
    for way in ways:
        begun = time.monotonic()
        answer = await enemy.run(connector, way, timeout=0.3)
        assert answer.status in (502, 504), (way, answer.raw)
        # A host that is stopped cannot tell of its children: it is killed after a while.
        stuck = STUCK if "getppid" in way and connector.endswith("fork") else 0
        assert time.monotonic() - begun < 0.3 + GRACE + 1 + stuck
    await eventually(lambda: not enemy.attacked.strays(), 2)


@pytest.mark.attack(modes=("spawn", "fork"), only=differs)
async def test_processes_and_threads_are_bounded(enemy: Enemy, connector: str) -> None:
    for what in ("breed", "threads"):
        answer = await enemy.run(connector, f"subprocess.run([ARMS, {what!r}, '{PIDS * 3}'], stdout=2)", timeout=2)
        if "max_pids" in words(answer):
            continue
        # The kernel has let it have no more.
        assert answer.code == "connector_timeout", answer.raw
        counts = [int(one["line"]) for one in enemy.server.events("log") if str(one.get("line", "")).isdigit()]
        assert counts
        assert counts[-1] <= PIDS + 4
    await eventually(lambda: not enemy.attacked.strays(), 2)


@pytest.mark.attack(modes=("spawn",), levels=("standard", "strict"))
async def test_the_kernels_inner_doors_are_closed(enemy: Enemy, connector: str) -> None:
    told = await enemy.told(
        connector,
        """
        import ctypes, resource, socket
        libc = ctypes.CDLL(None, use_errno=True)
        def call(*words):
            if libc.syscall(*words) < 0: raise OSError(ctypes.get_errno(), "no")
        result = {
            "user namespace": tried(call, 272, 0x10000000), "mount namespace": tried(call, 272, 0x20000),
            "io_uring": tried(call, 425, 8, 0), "keyring": tried(call, 250, 0, -3, 1), "bpf": tried(call, 321, 0, 0, 0),
            "open by handle": tried(call, 304, -100, 0, 0), "pivot": tried(call, 155, b"/", b"/"),
            "more open files": tried(resource.setrlimit, resource.RLIMIT_FSIZE, (1 << 40, 1 << 40)),
            "device": tried(os.mknod, "device", 0o60600, 0x700),
            "raw alg": tried(socket.socket, 38, 5),
            "core pattern": rewrite("/proc/sys/kernel/core_pattern"), "trigger": write("/proc/sysrq-trigger", "h"),
            "oom": write("/proc/self/oom_score_adj", "-1000"), "cgroup": tried(os.mkdir, "/sys/fs/cgroup/taken-over"),
            "host": rewrite("/proc/sys/kernel/hostname"),
        }
        os.path.isdir("/sys/fs/cgroup/unified") and result.update(
            unified=tried(os.mkdir, "/sys/fs/cgroup/unified/taken-over"))
        """,
    )
    beside = not enemy.place.apart and not enemy.place.ordinary  # root, and no mounts to keep it from settings
    allowed = {"core pattern", "trigger", "host", "cgroup", "unified"} if beside else set()
    done = {name for name, what in told.items() if what.startswith("done")}
    assert done - allowed == set()


@pytest.mark.attack(modes=("spawn", "persistent"), only=twice)
async def test_floods_and_silence_hold_up_nobody(enemy: Enemy, connector: str) -> None:
    ways = (
        "import time; os.write(2, b'\\n' * (256 << 10)); time.sleep(0)",
        "os.write(2, b'x' * (1 << 20))",
        "result = 'x' * ((8 << 20) - 200)",
        "result = 'x' * (9 << 20)",
        "[os.dup(0) for _ in range(900)]; os.closerange(0, 3)",
        "os.close(3) if os.path.exists('/proc/self/fd/3') else os.close(1); os._exit(0)",
        "while True: os.write(2, b'\\n' * 60000)",
    )
    for way in ways:
        call = asyncio.create_task(enemy.run(connector, way, timeout=2))
        begun = time.monotonic()
        answer = await enemy.server.do("neighbour/Echo", {"n": 1})
        assert (answer.status, time.monotonic() - begun < 2) == (200, True)
        assert (await call).status in (200, 502, 504)
    assert await enemy.told(connector, "result = 'still here'") == "still here"
