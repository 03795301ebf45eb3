"""The cell alone: what goes in, what comes out, and what is left of it, which is nothing.

Each test runs over what a cell may be given: namespaces of its own or none, as root or as an ordinary user.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cell.driver import (
    AHEAD,
    BODY_IN_FD,
    ERR,
    HEAD,
    LEAVE,
    LOG,
    OUT,
    PATIENCE,
    RESULT,
    RESULT_IN_LINE,
    RESULT_ON_3,
    ROOT,
    RUN,
    SANITIZED,
    STARTED,
    STEPS,
    Cell,
    Failed,
    alive,
    built,
    eventually,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

OWN = ("--namespaces", "--no-network")
GATEWAY_GONE = 3
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
VARIANTS = [
    pytest.param((options, wrapper), id=f"{'own' if options else 'shared'}-{'user' if wrapper else 'caller'}")
    for options in (OWN, ())
    for wrapper in ((), *([NOBODY] if os.getuid() == 0 else []))
]
in_namespaces = pytest.mark.parametrize("variant", [one for one in VARIANTS if one.values[0][0]], indirect=True)
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler on this machine")


@pytest.fixture(scope="module")
def programs() -> Path:
    """A folder that everybody may read, with the cell and what it is tested with."""
    folder = Path(tempfile.mkdtemp(prefix="cell-", dir="/tmp"))
    folder.chmod(0o755)
    built(folder)
    subprocess.run(["cc", "-O2", "-static", "-o", folder / "storm", ROOT / "tests/cell/storm.c"], check=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, programs: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    options, wrapper = request.param
    told = subprocess.run(
        [*wrapper, programs / "cell", "--self-test"], capture_output=True, text=True, check=True
    ).stdout
    if options and "namespaces: yes" not in told:
        pytest.skip("this system gives no namespaces to ordinary users")
    return request.param


@pytest.fixture
def cell(programs: Path, variant: tuple[tuple[str, ...], tuple[str, ...]]) -> Iterator[Cell]:
    options, wrapper = variant
    folder = programs / "private"
    folder.mkdir(mode=0o700)
    if wrapper:
        os.chown(folder, 65534, 65534)
    try:
        with Cell(programs / "cell", folder, *options, wrapper=wrapper) as made:
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def children(pid: int) -> set[int]:
    try:
        texts = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it has ended
        return set()
    return {int(word) for text in texts for word in text.split()}


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    todo = [pid]
    while todo:
        new = children(todo.pop()) - found
        todo += new
        found |= new
    return found


def inner(cell: Cell) -> int:
    """The process that is the cell: the one that waits for it has but this child."""
    return min(children(cell.process.pid), default=cell.process.pid)


# --- in and out


def test_what_goes_in_comes_out(cell: Cell) -> None:
    done = cell.run("/bin/cat", payload=b"hello \x00\xff")
    assert (done.code, done.why, done.result, done.left_behind, done.spoiled) == (
        0, "by itself", b"hello \x00\xff", False, False,
    )  # fmt: skip
    assert done.cpu >= 0
    assert done.peak_rss > 100_000


@pytest.mark.parametrize("size", [0, 1, 65_000, 65_536, 65_537, 200_000, 5_000_000])
def test_bodies_of_any_size_travel(cell: Cell, size: int) -> None:
    payload = os.urandom(size)
    assert cell.run("/bin/cat", payload=payload).result == payload


def test_a_large_result_cannot_be_changed_afterwards(cell: Cell) -> None:
    cell.start("/bin/cat", payload=bytes(200_000))
    cell.started()
    *_, flags, _, _, fd = cell.message()
    assert flags & BODY_IN_FD
    with pytest.raises(OSError, match="not permitted"), open(fd, "r+b") as file:
        os.pwrite(file.fileno(), b"x", 0)


def test_arguments_environment_and_folder_are_those_that_were_asked_for(cell: Cell) -> None:
    show = 'printf "%s|" "$@"; env | sort | tr "\\n" "|"; pwd'
    done = cell.run("/bin/sh", "-c", show, "sh", "", "a b", "☃", env=("B=2", "A=1 ☃"))
    assert (
        done.result.decode()
        == f"|a b|☃|A=1 ☃|B=2|HOME={cell.folder}/1|PWD={cell.folder}/1|TMPDIR={cell.folder}/1|{cell.folder}/1\n"
    )


def test_a_process_begins_with_nothing_but_its_own_descriptors_and_signals(cell: Cell) -> None:
    done = cell.run("/bin/sh", "-c", "ls /proc/self/fd; grep -E '^Sig(Blk|Ign)' /proc/self/status", flags=RESULT_ON_3)
    assert done.log[OUT].decode().split() == [
        "0",
        "1",
        "2",
        "3",
        "4",
        "SigBlk:",
        "0000000000000000",
        "SigIgn:",
        "0000000000000000",
    ]  # fmt: skip - 4 is what ls itself reads


def test_with_a_channel_of_its_own_the_result_is_apart_from_what_is_printed(cell: Cell) -> None:
    done = cell.run("/bin/sh", "-c", "echo out; echo err >&2; echo result >&3; exit 3", flags=RESULT_ON_3)
    assert (done.code, done.result, done.log) == (3, b"result\n", {OUT: b"out\n", ERR: b"err\n"})


def test_a_process_that_was_started_ahead_gets_its_input_later(cell: Cell) -> None:
    run = cell.start("/bin/cat", flags=AHEAD, deadline=0.05)
    cell.started()
    cell.feed(run + 1, b"of somebody else")
    cell.feed(run, b"late")
    assert cell.ended().result == b"late"


def test_not_reading_the_input_is_no_error(cell: Cell) -> None:
    done = cell.run("/bin/sh", "-c", "exec <&-; echo done", payload=bytes(3_000_000))
    assert (done.code, done.result) == (0, b"done\n")


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -SEGV $$", -signal.SIGSEGV), ("kill -9 $$", -9)])
def test_how_it_ended_is_told(cell: Cell, script: str, code: int) -> None:
    assert cell.run("/bin/sh", "-c", script).code == code


@pytest.mark.parametrize(
    ("program", "code"), [("/no/such", errno.ENOENT), ("/etc/passwd", errno.EACCES), ("/", errno.EACCES)]
)
def test_what_cannot_be_started_is_told_with_its_step(cell: Cell, program: str, code: int) -> None:
    with pytest.raises(Failed) as problem:
        cell.run(program)
    assert problem.value.args == ("exec", code)
    assert cell.run("/bin/true").code == 0


# --- bounds


def test_a_result_over_its_bound_ends_the_run(cell: Cell) -> None:
    done = cell.run("/bin/sh", "-c", "yes", output=100_000)
    assert done.why == "output"
    assert len(done.result) <= 100_000
    assert cell.run("/bin/cat", payload=bytes(100_000), output=100_000).why == "by itself"


def test_a_log_over_its_bound_is_counted_and_dropped_but_for_its_end(cell: Cell) -> None:
    done = cell.run("/bin/sh", "-c", "head -c 3000000 /dev/zero >&2; echo the end >&2", log=10_000)
    assert (done.code, done.log_bytes) == (0, 3_000_008)
    assert len(done.log[ERR]) == 10_001 + 8192  # the one byte more tells that it goes on
    assert done.log[ERR].endswith(b"the end\n")


def test_a_log_that_is_a_little_over_its_bound_is_told_as_a_whole(cell: Cell) -> None:
    done = cell.run("/bin/sh", "-c", "seq 1000 >&2; sleep 0.1; seq 1000 >&2", log=1000)
    assert done.log[ERR] == 2 * "".join(f"{n}\n" for n in range(1, 1001)).encode()


def test_each_stream_of_a_log_has_the_bound(cell: Cell) -> None:
    script = "head -c 3000 /dev/zero; head -c 900 /dev/zero >&2"
    done = cell.run("/bin/sh", "-c", script, log=1000, flags=RESULT_ON_3)
    assert (len(done.log[OUT]), len(done.log[ERR]), done.log_bytes) == (1001, 900, 3900)


def test_memory_over_its_bound_ends_the_run(cell: Cell) -> None:
    hog = "import signal; held = bytearray(b'x') * (200 << 20); signal.pause()"
    done = cell.run("/usr/bin/env", "python3", "-c", hog, env=(f"PATH={os.environ['PATH']}",), memory=64 << 20)
    assert (done.code, done.why) == (-9, "memory")
    assert done.peak_rss > 64 << 20


def test_the_deadline_is_sigterm_to_the_group_and_then_sigkill_to_all(cell: Cell) -> None:
    polite = cell.run("/bin/sh", "-c", "trap 'echo bye; exit 0' TERM; sleep 60 & wait", deadline=0.1, grace=10)
    assert (polite.code, polite.why, polite.result) == (0, "deadline", b"bye\n")
    deaf = cell.run("/bin/sh", "-c", "trap '' TERM; sleep 60; sleep 60", deadline=0.1, grace=0.1)
    assert (deaf.code, deaf.why) == (-9, "deadline")


CLOSES = "echo result; exec >&-; setsid sleep 1000"


@pytest.mark.parametrize("ahead", [False, True])
def test_who_has_said_all_has_a_moment_to_end(cell: Cell, ahead: bool) -> None:
    run = cell.start("/bin/sh", "-c", f"read one; {CLOSES}", payload=b"1\n", flags=AHEAD * ahead, linger=0.1)
    cell.started()
    if ahead:
        cell.feed(run, b"1\n")
    done = cell.ended()
    assert (done.why, done.said, done.code, done.result) == ("lingered", "all", -signal.SIGTERM, b"result\n")
    assert not descendants(inner(cell))
    deaf = cell.run("/bin/sh", "-c", f"trap '' TERM; {CLOSES}; sleep 1000", linger=0, grace=0.1)
    assert (deaf.why, deaf.code, deaf.result) == ("lingered", -signal.SIGKILL, b"result\n")


def test_the_moment_begins_when_there_is_a_request(cell: Cell) -> None:
    run = cell.start("/bin/sh", "-c", f"{CLOSES}; sleep 1000", flags=AHEAD, linger=0)
    cell.started()
    kind, _, _, size, _, _ = cell.message()
    assert (kind, size) == (RESULT, 0)
    cell.feed(run, b"")
    assert cell.ended().why == "lingered"


def test_who_ends_in_that_moment_has_ended_by_itself(cell: Cell) -> None:
    done = cell.run("/bin/sh", "-c", "echo result; exec >&-; exit 3")
    assert (done.why, done.said, done.code) == ("by itself", "all", 3)


def test_the_deadline_holds_in_that_moment_too(cell: Cell) -> None:
    done = cell.run("/bin/sh", "-c", CLOSES, deadline=0.2)
    assert (done.why, done.said) == ("deadline", "all")


def test_a_line_is_a_result_whoever_has_its_channel_open(cell: Cell) -> None:
    done = cell.run("/bin/sh", "-c", "echo result; sleep 1000", flags=RESULT_IN_LINE, linger=0)
    assert (done.why, done.said, done.result) == ("lingered", "all", b"result\n")
    large = "head -c 300000 /dev/zero | tr '\\0' x; echo; sleep 1000"
    done = cell.run("/bin/sh", "-c", large, flags=RESULT_IN_LINE, linger=0)
    assert (done.why, done.said, len(done.result)) == ("lingered", "all", 300_001)


def test_what_was_there_when_a_run_was_stopped_is_told_from_what_came_since(cell: Cell) -> None:
    for trap, said, result in (
        ("", "nothing since", b""),
        ("trap 'echo more; exit' TERM; ", "perhaps a part", b"more\n"),
    ):
        run = cell.start("/bin/sh", "-c", f"{trap}echo result; echo said >&2; sleep 60 & wait", grace=10)
        cell.started()
        assert cell.message()[0] == LOG
        cell.stop(run)
        done = cell.ended()
        assert (done.why, done.said, done.result) == ("stopped", said, b"result\n" + result)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_the_gateway_can_end_a_run_at_any_time(cell: Cell, how: str) -> None:
    run = cell.start("/bin/sh", "-c", "echo begun; setsid sleep 1000 & sleep 1000")
    cell.started()
    getattr(cell, how)(run + 1)
    getattr(cell, how)(run)
    done = cell.ended()
    assert done.why == {"stop": "stopped", "kill": "killed"}[how]
    assert not descendants(inner(cell))


# --- nothing is left


def test_whatever_was_detached_is_killed_after_its_last_words(cell: Cell) -> None:
    script = "(setsid sh -c 'sleep 0.05; echo late; exec sleep 1000' &); sleep 1000 & echo early"
    done = cell.run("/bin/sh", "-c", script)
    assert (done.code, done.left_behind, done.result) == (0, True, b"early\nlate\n")
    assert not descendants(inner(cell))


def test_what_ends_by_itself_behind_its_leader_is_waited_for(cell: Cell) -> None:
    done = cell.run("/bin/sh", "-c", "(echo late) & echo early")
    assert (done.code, sorted(done.result.split())) == (0, [b"early", b"late"])


def test_no_storm_of_forks_outlives_its_deadline(cell: Cell, programs: Path) -> None:
    done = cell.run(str(programs / "storm"), deadline=0.5, grace=0.2)
    assert (done.why, done.spoiled) == ("deadline", False)
    assert not descendants(inner(cell))
    assert cell.run("/bin/cat", payload=b"still here").result == b"still here"


def test_a_storm_of_forks_comes_to_a_standstill(cell: Cell, programs: Path) -> None:
    """It would take the processors from everybody until its deadline."""
    run = cell.start(str(programs / "storm"))
    cell.started()

    def stands_still() -> bool:
        states = [state(pid) for pid in descendants(cell.process.pid)]
        return states.count("T") >= 8 and "R" not in states

    eventually(stands_still)
    cell.kill(run)
    assert cell.ended().why == "killed"
    assert cell.run("/bin/cat", payload=b"still here").result == b"still here"


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return ""


def test_nothing_outlives_the_gateways_end_of_the_socket(cell: Cell, programs: Path) -> None:
    cell.start("/bin/sh", "-c", f"setsid sleep 1000 & {programs}/storm & sleep 1000")
    cell.started()
    eventually(lambda: len(descendants(cell.process.pid)) > 3)
    cell.socket.close()
    cell.process.wait(PATIENCE)
    assert not descendants(cell.process.pid)


def test_a_gateway_that_leaves_unread_what_it_was_told_has_left_all_the_same(cell: Cell) -> None:
    cell.start("/bin/true")
    cell.started()
    eventually(lambda: select.select([cell.socket], [], [], 0)[0])
    cell.send(HEAD.pack(LEAVE, 0, 0, 0))
    cell.socket.close()
    assert cell.process.wait(PATIENCE) == 0


@in_namespaces  # a subreaper that is killed leaves what it has to the next one above it
def test_what_a_cell_has_dies_with_it(cell: Cell) -> None:
    cell.start("/bin/sh", "-c", "setsid sleep 1000 & sleep 1000")
    cell.started()
    pids = eventually(lambda: found if len(found := descendants(inner(cell))) >= 3 else None)
    os.kill(inner(cell), signal.SIGKILL)
    assert cell.process.wait(PATIENCE) != 0
    eventually(lambda: not [pid for pid in pids if alive(pid)])


def test_the_folder_is_empty_again(cell: Cell, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    os.chmod(tmp_path, 0o777)
    script = f"""
        mkdir -p a/b/c; echo x > a/b/c/file; ln -s {tmp_path} a/link; ln -s {tmp_path} link; mkfifo pipe
        chmod 0 a/b; chmod 0500 a; chmod 0 .
    """
    assert not cell.run("/bin/sh", "-c", script).spoiled
    assert cell.run("/bin/ls", "-A").result == b""
    assert (tmp_path / "precious").read_text() == "kept"


def test_nothing_stays_beside_the_folder_either(cell: Cell) -> None:
    cell.run("/bin/sh", "-c", "mkdir ../.spare && echo one > ../.spare/left")
    assert cell.run("/bin/sh", "-c", "cat ../.spare/left").result == b""


def test_a_folder_of_any_depth_is_emptied(cell: Cell) -> None:
    dig = "import os\nfor _ in range(3000):\n os.mkdir('d'); os.chdir('d')\n"
    done = cell.run("/usr/bin/env", "python3", "-c", dig, env=(f"PATH={os.environ['PATH']}",))
    assert (done.code, done.spoiled) == (0, False)
    assert cell.run("/bin/ls", "-A").result == b""


# --- apart from the others


@in_namespaces
def test_what_is_outside_is_neither_seen_nor_signalled(cell: Cell) -> None:
    pids = cell.run("/bin/sh", "-c", "cd /proc; echo [0-9]*").result.split()
    assert len(pids) == 2
    assert b"1" in pids
    assert cell.run("/bin/sh", "-c", f"kill -0 {os.getpid()}").code != 0
    assert cell.run("/bin/cat", "/proc/net/dev").result.count(b":") <= 3


@in_namespaces
def test_pid_1_cannot_be_killed_from_inside(cell: Cell) -> None:
    for number in ("TERM", "KILL", "STOP", "HUP"):
        cell.run("/bin/sh", "-c", f"kill -{number} 1; kill -{number} -1; sleep 0.01; true")
    assert cell.run("/bin/cat", payload=b"still here").result == b"still here"


# --- for a long time


def test_a_cell_is_used_again_and_again_and_does_not_grow(cell: Cell) -> None:
    def facts() -> tuple[int, int]:
        pid = inner(cell)
        status = Path(f"/proc/{pid}/status").read_text()
        resident = int(status.split("VmRSS:")[1].split()[0])
        return (len(os.listdir(f"/proc/{pid}/fd")) if os.getuid() == 0 else 0), resident

    cell.run("/bin/sh", "-c", "cat; sleep 1000 &", payload=bytes(200_000))
    before = facts()
    for number in range(300):
        left = "sleep 1000 &" if number % 50 == 0 else ""
        assert cell.run("/bin/sh", "-c", f"cat; {left} echo x >&2", payload=b"%d" % number).code == 0
    after = facts()
    assert after[0] <= before[0]
    if not SANITIZED:  # they keep what was freed
        assert after[1] <= before[1] + 64
        assert after[1] < 1500, "KiB"


# --- the wire


GARBAGE = [
    b"", b"x", bytes(15), bytes(16), HEAD.pack(99, 1, 0, 0), HEAD.pack(RUN, 1, 0, 0), HEAD.pack(RUN, 1, BODY_IN_FD, 9),
    HEAD.pack(RUN, 1, 0, 2**32 - 1) + bytes(100),
    HEAD.pack(RUN, 1, 0, 4) + struct.pack("=IIIIIIQQQ", 2**31, 2**31, 4, 0, 0, 0, 0, 0, 0) + b"a\0b\0",
    HEAD.pack(RUN, 1, 0, 4) + struct.pack("=IIIIIIQQQ", 9, 0, 4, 0, 0, 0, 0, 0, 0) + b"a\0b\0",
    HEAD.pack(RUN, 1, 0, 4) + struct.pack("=IIIIIIQQQ", 1, 0, 4, 0, 0, 0, 0, 0, 0) + b"abcd",
    HEAD.pack(RUN, 1, 0, 2) + struct.pack("=IIIIIIQQQ", 0, 1, 2, 0, 0, 0, 0, 0, 0) + b"a\0",
    HEAD.pack(RUN, 1, 0, 2) + struct.pack("=IIIIIIQQQ", 1, 0, 9, 0, 0, 0, 0, 0, 0) + b"a\0",
    HEAD.pack(2, 1, 0, 0) + bytes(8), HEAD.pack(2, 1, 0, 5) + bytes(8), HEAD.pack(2, 1, 0, 0),
]  # fmt: skip


def test_whatever_is_no_message_harms_nobody(cell: Cell) -> None:
    for one in GARBAGE:
        if one:
            cell.send(one)
    null = os.open(os.devnull, os.O_RDONLY)
    cell.send(HEAD.pack(RUN, 1, BODY_IN_FD, 9) + struct.pack("=IIIIIIQQQ", 1, 0, 9, 0, 0, 0, 0, 0, 0), null)
    os.close(null)
    cell.start("/bin/cat", payload=b"hello")
    for _ in GARBAGE:
        kind, *_ = told = cell.message()
        if kind == STARTED:
            break
        assert struct.unpack_from("=II", told[4]) == (STEPS.index("wire"), errno.EBADMSG)
    assert cell.ended().result == b"hello"


def test_a_second_run_beside_the_first_is_refused(cell: Cell) -> None:
    run = cell.start("/bin/sleep", "1000")
    cell.started()
    cell.start("/bin/cat", payload=bytes(200_000))
    with pytest.raises(Failed) as problem:
        cell.started()
    assert problem.value.args == ("wire", errno.EBUSY)
    cell.kill(run)
    assert cell.ended().why == "killed"


def test_a_gateway_that_does_not_read_holds_nothing_up_for_ever(cell: Cell) -> None:
    """Its log waits for it, and so does the end; nothing is lost."""
    cell.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    cell.start("/bin/sh", "-c", "head -c 2000000 /dev/zero >&2; echo done")
    done = (cell.started(), cell.ended())[1]
    assert (done.result, len(done.log[ERR])) == (b"done\n", 2_000_000)


def test_the_wrong_words_on_the_command_line_are_told(programs: Path) -> None:
    for words in ((), ("--control",), ("--control", "3"), ("--nope",), ("--user", "1")):
        told = subprocess.run([programs / "cell", *words], capture_output=True, text=True)
        assert (told.returncode, told.stderr.split()[0]) == (2, "usage:"), words
    told = subprocess.run([programs / "cell", "--control", "0", "--folder", "/no/such"], capture_output=True, text=True)
    assert (told.returncode, told.stderr) == (71, "cell: /no/such: No such file or directory\n")


def test_it_says_what_the_machine_gives(programs: Path) -> None:
    told = subprocess.run([programs / "cell", "--self-test"], capture_output=True, text=True, check=True).stdout
    assert [line.partition(":")[0] for line in told.splitlines()] == [
        "namespaces", "user namespace", "network", "private tmp", "hiding", "restricting", "filter", "user", "landlock",
    ]  # fmt: skip


# --- with sanitizers


def test_sanitizers_find_nothing(sanitized: Path, tmp_path: Path) -> None:
    folder = tmp_path / "private"
    folder.mkdir()
    with Cell(sanitized, folder) as cell:
        for one in GARBAGE:
            if one:
                cell.send(one)
        for size in (0, 10, 200_000):
            cell.start("/bin/sh", "-c", "cat; echo x >&2; sleep 1000 &", payload=bytes(size))
            while True:
                try:
                    cell.started()
                    break
                except Failed:
                    pass
            assert len(cell.ended().result) == size
        cell.run("/bin/sh", "-c", "sleep 1000", deadline=0.05, grace=0.05)
    assert cell.process.returncode == GATEWAY_GONE


def test_the_descriptor_of_the_socket_is_not_passed_on(cell: Cell) -> None:
    assert fcntl.fcntl(cell.socket, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert b"socket" not in cell.run("/bin/sh", "-c", "ls -l /proc/self/fd").result
