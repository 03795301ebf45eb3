"""What a cell keeps its runs from: each test says what must not work, and has the run try it.

They run over what a machine may give: root or an ordinary user, with namespaces or without any. The fourth is what is
left in most containers: seccomp, and Landlock for what is to be hidden.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from enum import IntFlag
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.cell.driver import (
    AHEAD,
    ENDED,
    ENDED_REST,
    FORKED,
    HOST,
    LOG,
    ROOT,
    STARTED,
    TOLD,
    WHY,
    Cell,
    Failed,
    alive,
    built,
    eventually,
)
from tests.cell.test_cell import GATEWAY_GONE, NOBODY

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
TMP = 16 * MIB
DISK = 8 * MIB
PIDS = 40
SYSTEM_PYTHON = Path("/usr/bin/python3")  # which everybody may read
PYTHON = str(SYSTEM_PYTHON if SYSTEM_PYTHON.exists() else Path(sys.executable).resolve())
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler on this machine")


class Got(IntFlag):
    """The steps of a sandbox, as cell.h numbers them."""

    NAMESPACES = 1
    USER_NAMESPACE = 2
    NO_NETWORK = 4
    PRIVATE_TMP = 8
    HIDDEN = 16
    HIDDEN_BY_LANDLOCK = 32
    RESTRICTED = 64
    FILTERED = 128
    OTHER_USER = 256
    PROCESSES_BOUNDED = 512
    NO_NETWORK_FILTERED = 1024
    SIGNALS_SCOPED = 2048


class Variant(NamedTuple):
    """Who runs the cell, and whether in namespaces of its own."""

    ordinary: bool
    apart: bool

    @property
    def wrapper(self) -> tuple[str, ...]:
        return NOBODY if self.ordinary and os.getuid() == 0 else ()

    @property
    def uid(self) -> int:
        return 65534 if self.wrapper else os.getuid()


VARIANTS = [
    pytest.param(Variant(ordinary, apart), id=f"{'user' if ordinary else 'root'}-{'apart' if apart else 'beside'}")
    for ordinary in ((False, True) if os.getuid() == 0 else (True,))
    for apart in (True, False)
]
apart = pytest.mark.parametrize("variant", [one for one in VARIANTS if one.values[0].apart], indirect=True)
as_root = pytest.mark.parametrize("variant", [one for one in VARIANTS if not one.values[0].ordinary], indirect=True)
only_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can")


@pytest.fixture(scope="module")
def programs() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="sandbox-", dir="/tmp"))
    folder.chmod(0o755)
    built(folder)
    subprocess.run(
        ["cc", "-O2", "-static", "-o", folder / "attack", ROOT / "tests/cell/attack.c"], check=True, capture_output=True
    )
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, programs: Path) -> Variant:
    one: Variant = request.param
    told = subprocess.run([*one.wrapper, programs / "cell", "--self-test"], capture_output=True, text=True).stdout
    if one.apart and "namespaces: yes" not in told:
        pytest.skip("this system gives no namespaces to ordinary users")
    if not one.apart and "landlock: yes" not in told:
        pytest.skip("this kernel has no Landlock")
    return one


class Place:
    """A gateway's folders: what is a connector's own, what is not, and the cell between them."""

    def __init__(self, programs: Path, variant: Variant) -> None:
        self.programs, self.variant = programs, variant
        self.top = programs / "place"
        self.state, self.code = self.top / "state", self.top / "code"
        self.folder = self.state / "runs" / "mine"
        self.other = self.state / "runs" / "other"
        for one in (self.folder, self.other, self.code):
            one.mkdir(parents=True)
        (self.state / "key").write_text("secret")
        (self.other / "notes").write_text("secret")
        (self.code / "main.sh").write_text("echo mine")
        (self.code / "connectors.yaml").write_text("secret")
        (self.top / "current").symlink_to("code")
        for path in (self.top, *self.top.rglob("*")):
            os.chown(path, variant.uid, -1, follow_symlinks=False)
        os.chmod(self.state, 0o711)
        self.cells: list[Cell] = []

    @property
    def levels(self) -> tuple[str, ...]:
        """The options of level standard."""
        return (
            *(["--namespaces"] if self.variant.apart else []), "--private-tmp", str(TMP), "--filter",
            "--hide", str(self.state), "--hide", str(self.code / "connectors.yaml"),
            "--hide", str(self.top / "nothing"),
            "--show", str(self.top / "current"), "--show", str(self.programs / "attack"),
            "--max-pids", str(PIDS), "--max-disk", str(DISK), "--oom", "400",
        )  # fmt: skip

    def cell(self, *options: str, standard: bool = True) -> Cell:
        alone = ["--namespaces"] if self.variant.apart and not standard else []
        all_options = (*(self.levels if standard else alone), *options)
        made = Cell(self.programs / "cell", self.folder, *all_options, wrapper=self.variant.wrapper)
        self.cells.append(made)
        return made

    def close(self) -> None:
        for one in self.cells:
            one.__exit__()
        shutil.rmtree(self.top)


@pytest.fixture
def place(programs: Path, variant: Variant) -> Iterator[Place]:
    made = Place(programs, variant)
    yield made
    made.close()


def shell(cell: Cell, script: str, **options: object) -> str:
    """What a script prints, errors among it."""
    return cell.run("/bin/sh", "-c", f"exec 2>&1; {script}", **options).result.decode()


def python(cell: Cell, script: str, **options: object) -> str:
    done = cell.run(PYTHON, "-c", script, **options)
    return (done.result + done.log[2]).decode()


# --- what it says of itself


def test_it_says_what_it_has_got(place: Place) -> None:
    got = Got(place.cell("--no-network").got)
    expected = Got.FILTERED
    if place.variant.apart:
        expected |= Got.NAMESPACES | Got.NO_NETWORK | Got.PRIVATE_TMP | Got.HIDDEN
        if place.variant.ordinary:
            expected |= Got.USER_NAMESPACE | Got.PROCESSES_BOUNDED
    else:
        expected |= Got.NO_NETWORK_FILTERED | Got.HIDDEN_BY_LANDLOCK | Got.SIGNALS_SCOPED
    assert got == expected


def test_nothing_is_got_that_was_not_wished_for(place: Place) -> None:
    got = Got(place.cell(standard=False).got)
    assert not got & ~(Got.NAMESPACES | Got.USER_NAMESPACE | Got.HIDDEN)


def test_it_can_be_tried_by_hand(place: Place) -> None:
    told = subprocess.run(
        [*place.variant.wrapper, place.programs / "cell", "--run", "--folder", place.folder, *place.levels,
         "--", "/bin/sh", "-c", f"cat; pwd; cat {place.state}/key; exit 3"],
        input="in\n", capture_output=True, text=True,
    )  # fmt: skip
    assert (told.returncode, told.stdout) == (3, f"in\n{place.folder}\n")
    assert "key: " in told.stderr
    assert place.folder.exists()


@only_root
def test_what_is_refused_is_left_out(programs: Path, tmp_path: Path) -> None:
    """A cell in a cell: the outer one's filter is the container that gives no namespaces."""
    words = ("--run", "--folder", str(tmp_path))
    told = subprocess.run(
        [programs / "cell", *words, "--filter", "--", programs / "cell", "--self-test"], capture_output=True, text=True
    ).stdout
    assert "namespaces: no, Operation not permitted" in told
    assert "hiding: yes, by landlock" in told
    assert "network: yes, by filter" in told


# --- the kernel


def test_what_no_connector_needs_is_refused(place: Place) -> None:
    cell = place.cell()
    told = dict(line.split(": ") for line in shell(cell, str(place.programs / "attack")).splitlines())
    assert len(told) > 40
    absent = {name for name, answer in told.items() if answer == "ENOSYS"}
    assert absent <= {"io_uring_setup", "clone3", "not invented yet", "getpid of x32", "getpid of i386"}
    assert {name: answer for name, answer in told.items() if answer not in {"EPERM", "ENOSYS"}} in (
        {"chroot": "ENOENT"}, {},
    )  # fmt: skip


def test_no_privileges_are_left_that_act_outside(place: Place) -> None:
    status = dict(
        line.split(":\t") for line in shell(place.cell(), "cat /proc/self/status").splitlines() if ":\t" in line
    )
    kept = 0 if place.variant.ordinary else sum(1 << bit for bit in (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 29, 31))
    assert {int(status[name], 16) & ~kept for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {0}
    if place.variant.apart or not place.variant.ordinary:
        assert int(status["CapBnd"], 16) & ~kept == 0
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")


@as_root
def test_root_reaches_no_disk_and_no_setting_of_the_kernel(place: Place) -> None:
    disks = [f"/dev/{one.name}" for one in Path("/dev").iterdir() if one.is_block_device()]
    cell = place.cell()
    for disk in disks:
        assert shell(cell, f"head -c 1 {disk} 2>/dev/null | wc -c") == "0\n"
        assert "cannot create" in shell(cell, f": >>{disk}")
    assert "cannot create" in shell(cell, ": >/sys/kernel/uevent_helper")
    if place.variant.apart:
        assert "Read-only" in shell(cell, ": >>/proc/sys/kernel/core_pattern")
        assert "Read-only" in shell(cell, "mkdir /sys/fs/cgroup/cpu/mine")


# --- files


def test_what_is_hidden_can_be_neither_read_nor_written(place: Place) -> None:
    cell = place.cell()
    for path in (place.state / "key", place.other / "notes", place.code / "connectors.yaml"):
        assert "secret" not in shell(cell, f"cat {path}; cat {path} </dev/null; cp {path} here; cat here")
        shell(cell, f"echo planted >{path}; rm -f {path}; mv {path} here; chmod 777 {path}; echo planted >>{path}")
        assert path.read_text() == "secret"
    shell(cell, f"echo planted >{place.state}/more; mkdir {place.state}/more; echo x >{place.other}/more")
    shell(cell, f"rm -rf {place.state}/* {place.other}; mv {place.state} {place.top}/away")
    assert sorted(one.name for one in place.state.rglob("*")) == ["key", "mine", "notes", "other", "runs"]


def test_of_two_words_on_one_path_the_one_that_hides_holds(place: Place) -> None:
    script = f"cat {place.code}/main.sh; echo bad >{place.code}/main.sh"
    for word in ("--show", "--write"):
        for words in ((word, "--hide"), ("--hide", word)):
            options = [part for one in words for part in (one, str(place.code / "main.sh"))]
            assert "mine" not in shell(place.cell(*options), script)
    assert (place.code / "main.sh").read_text() == "echo mine"
    assert "secret" in shell(place.cell("--hide", str(place.other), "--read", str(place.other / "notes")),
                             f"cat {place.other}/notes")  # fmt: skip


def test_a_hidden_file_that_is_replaced_is_not_seen_by_the_next_run(place: Place) -> None:
    """An editor writes a new file and renames it, which takes what covers the old one away."""
    cell = place.cell()
    new = place.code / "new"
    new.write_text("secret")
    new.rename(place.code / "connectors.yaml")
    script = f"cat {place.code}/connectors.yaml"
    if place.variant.apart:
        with pytest.raises(Failed) as problem:
            shell(cell, script)
        assert problem.value.args == ("sandbox", errno.ESTALE)
        assert "secret" not in shell(place.cell(), script)
    else:
        assert "secret" not in shell(cell, script)


def test_its_own_code_can_be_read_and_not_written(place: Place) -> None:
    cell = place.cell()
    for code in (place.code, place.top / "current"):
        assert shell(cell, f"sh {code}/main.sh") == "mine\n"
        shell(
            cell, f"echo bad >{code}/main.sh; rm {code}/main.sh; mv {code} {code}2; chmod 777 {code}; echo >{code}/new"
        )
    assert (place.code / "main.sh").read_text() == "echo mine"
    assert sorted(one.name for one in place.code.iterdir()) == ["connectors.yaml", "main.sh"]
    if place.variant.apart:  # Landlock leaves modes and owners alone
        assert place.code.stat().st_mode & 0o777 == 0o755


def test_links_lead_nowhere(place: Place) -> None:
    cell = place.cell()
    script = f"ln -s {place.state}/key a; ln {place.state}/key b; ln {place.code}/main.sh c; cat a b; echo bad >c"
    assert "secret" not in shell(cell, script)
    assert (place.code / "main.sh").read_text() == "echo mine"
    assert "secret" not in shell(cell, "cat /proc/1/cwd/key /proc/1/root/proc/1/environ; ls /proc/1/fd/")


def test_what_is_shown_is_there_by_each_name_that_it_was_asked_for_by(place: Place) -> None:
    build = place.state / "builds" / "1"
    build.mkdir(parents=True)
    (build / "main.sh").write_text("echo built")
    (build.parent / "current").symlink_to("1")
    (place.state / "latest").symlink_to("builds/current")
    names = (build, build.parent / "current", place.state / "latest")
    for order in (names, names[::-1]):
        cell = place.cell(*(word for name in order for word in ("--show", str(name))))
        assert shell(cell, "; ".join(f"sh {name}/main.sh" for name in names)) == "built\n" * 3
        cell = place.cell("--show", str(order[0] / "main.sh"), "--show", str(order[1] / "main.sh"))
        assert shell(cell, f"sh {order[0]}/main.sh; sh {order[1]}/main.sh") == "built\n" * 2
        assert "secret" not in shell(cell, f"cat {place.state}/key")


def test_folders_above_that_cannot_be_listed_are_no_hindrance(place: Place) -> None:
    if place.variant.wrapper:
        os.chown(place.top, 0, 0)
    os.chmod(place.top, 0o711)
    cell = place.cell()
    assert cell.got & (Got.HIDDEN | Got.HIDDEN_BY_LANDLOCK)
    assert shell(cell, f"sh {place.code}/main.sh; echo x >here && cat here") == "mine\nx\n"
    assert "secret" not in shell(cell, f"cat {place.state}/key {place.code}/connectors.yaml")


def test_the_private_folder_cannot_be_swapped(place: Place) -> None:
    cell = place.cell()
    (place.other / "deep").mkdir()
    os.chmod(place.other / "deep", 0o755)
    done = cell.run(
        "/bin/sh", "-c", f"cd /; mv {place.folder} {place.folder}2; ln -s {place.other}/deep {place.folder}; echo $?"
    )
    assert not done.spoiled
    assert (place.other / "deep").stat().st_mode & 0o777 == 0o755
    assert (place.other / "notes").read_text() == "secret"
    assert shell(cell, "pwd; echo x >file && cat file") == f"{place.folder}/2\nx\n"
    assert not left(place.folder)


def test_files_and_the_folders_are_still_those_that_were_shown(place: Place) -> None:
    """All of it lies below /tmp, which is another one in there."""
    cell = place.cell()
    assert shell(cell, f"cd {place.folder} && pwd && cd / && ls {place.code}/main.sh {place.programs}/attack") == (
        f"{place.folder}\n{place.programs}/attack\n{place.code}/main.sh\n"
    )


def left(folder: Path) -> list[Path]:
    """What is in a cell's folder but for an empty one for the next run."""
    return [path for path in folder.rglob("*") if path.name != ".spare"]


# --- processes


@pytest.fixture
def victim(variant: Variant) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([*variant.wrapper, "/bin/sleep", "1000"], env={"KEY": "secret"}) as process:
        eventually(lambda: b"sleep" in Path(f"/proc/{process.pid}/cmdline").read_bytes())
        yield process
        process.kill()


def test_no_other_process_is_read_or_signalled(place: Place, victim: subprocess.Popen[bytes]) -> None:
    cell = place.cell()
    for number in ("TERM", "KILL", "STOP", "0"):
        assert cell.run("/bin/sh", "-c", f"kill -{number} {victim.pid}").code != 0
    assert "secret" not in shell(
        cell, f"cat /proc/{victim.pid}/environ; ls -l /proc/{victim.pid}/cwd /proc/{victim.pid}/fd/"
    )
    assert alive(victim.pid)
    assert "T" not in Path(f"/proc/{victim.pid}/stat").read_text().rpartition(") ")[2].split()[0]
    assert "no more" in python(
        cell, f"import os\ntry: os.open('/proc/{victim.pid}/mem', os.O_RDWR)\nexcept OSError: print('no more')"
    )


def test_the_cell_itself_is_not_harmed(place: Place) -> None:
    cell = place.cell()
    if not cell.got & (Got.NAMESPACES | Got.SIGNALS_SCOPED):
        pytest.skip("this kernel's Landlock does not know signals")
    for number in ("TERM", "KILL", "STOP", "INT", "HUP", "CHLD"):
        shell(cell, f"kill -{number} $PPID; kill -{number} -1; sleep 0.01", deadline=5)
    for what in ("environ", "mem", "maps", "fd/0", "fd/3", "cwd/.", "root/."):
        assert "read" not in shell(
            cell, f"exec 2>/dev/null; test -r /proc/$PPID/{what} && head -c 1 /proc/$PPID/{what} && echo read"
        )
    acts = (
        "resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (0, 0))",
        "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        "os.sched_setaffinity(os.getppid(), [0])",
    )
    for act in acts:
        assert "PermissionError" in python(cell, f"import os, resource; {act}"), act
    assert shell(cell, "echo still here") == "still here\n"


@apart
def test_what_is_outside_is_not_seen(place: Place) -> None:
    cell = place.cell()
    assert shell(cell, "cd /proc; echo [0-9]*").split()[0] == "1"
    assert len(shell(cell, "cd /proc; echo [0-9]*").split()) == 2


def test_processes_files_and_blame_are_bounded(place: Place) -> None:
    cell = place.cell()
    assert shell(cell, "cat /proc/self/oom_score_adj") == "400\n"
    assert shell(cell, "ulimit -c") == "0\n"
    script = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); open('big', 'wb').write(bytes(20 << 20))"
    assert "File too large" in python(cell, script)
    if Got.PROCESSES_BOUNDED & cell.got:
        assert int(shell(cell, f"{place.programs}/attack breed")) == PIDS - 1  # its shell is one
    assert cell.run("/bin/true").code == 0


# --- what outlives processes


@apart
def test_nothing_is_left_for_the_next_run(place: Place) -> None:
    cell = place.cell()
    attack = str(place.programs / "attack")
    mess = """
        for one in /tmp /var/tmp /dev/shm; do
            mkdir -p $one/a/b; echo x >$one/a/b/c; chmod 0 $one/a/b $one/a
            echo x >$one/.d; ln -s /etc $one/e; mkfifo $one/f
            chmod 0 $one || true
        done
    """
    for _ in range(2):
        assert not cell.run("/bin/sh", "-c", mess).spoiled
        left = shell(cell, "ls -A /var/tmp /dev/shm; ls -Al /tmp; stat -c %a /tmp /var/tmp /dev/shm")
        assert left.split("total 0\n")[1].split()[-3:] == ["1777", "1777", "1777"]
        assert " ".join(left.split()).count(" e ") == 0
        assert shell(cell, "ls -A /tmp") == f"{place.programs.name}\n"
        assert shell(cell, "ls -A /var/tmp /dev/shm") == "/dev/shm:\n\n/var/tmp:\n"
        assert cell.run("/bin/sh", "-c", f"{attack} leave && {attack} find").code == 1
        assert cell.run(attack, "find").code == 0
    assert not (Path("/tmp") / "a").exists()


@apart
def test_what_is_the_machines_own_is_not_emptied(place: Place) -> None:
    """What `write: [/tmp]` asks for. In this test it is /var/tmp, and a file of a connector's own in it."""
    own = Path("/var/tmp") / place.programs.name
    cell = place.cell("--write", "/var/tmp")
    try:
        done = cell.run("/bin/sh", "-c", f"mkdir /tmp/gone {own}")
        assert (done.code, done.spoiled, own.exists()) == (0, False, True)
    finally:
        own.rmdir()


@apart
def test_what_is_in_memory_file_systems_is_bounded_and_counted(place: Place) -> None:
    cell = place.cell()
    for folder in ("/tmp", "/dev/shm", "/var/tmp"):
        script = f"cd {folder}; for one in a b c; do head -c {DISK} /dev/zero >$one; done"
        assert "No space left" in shell(cell, script)
    done = cell.run(
        "/bin/sh",
        "-c",
        f"head -c {DISK} /dev/zero >/dev/shm/a; head -c {DISK} /dev/zero >/dev/shm/b; sleep 2",
        memory=12 * MIB,
    )
    assert done.why == "memory"
    assert "No space" in shell(cell, "i=0; while [ $i -lt 6000 ] && mkdir /tmp/$i; do i=$((i + 1)); done")
    assert shell(cell, "ls -A /tmp") == f"{place.programs.name}\n"


HOGS = [
    ("memfd", 300, 128, "memory"),  # in nobody's pages
    ("each", 45, 256, "memory"),  # twelve times
    ("together", 45, 256, "by itself"),  # once for twelve
    ("sysv", 200, 128, "memory"),
]


@pytest.mark.parametrize(("how", "size", "bound", "why"), HOGS)
def test_shared_memory_is_counted_once_and_whole(place: Place, how: str, size: int, bound: int, why: str) -> None:
    if how == "sysv" and not place.variant.apart:
        bound = 190  # mapped it is counted with the process
    done = place.cell(standard=False).run(str(place.programs / "attack"), how, str(size), memory=bound * MIB)
    assert done.why == why
    assert done.peak_rss > min(bound, size - 8) * MIB
    if how == "together":
        assert done.peak_rss < 128 * MIB


# --- the network


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


CONNECT = """
import socket, sys
for family, where in ((socket.AF_INET, ("127.0.0.1", {port})), (socket.AF_UNIX, "\\0{name}")):
    try:
        with socket.socket(family) as one:
            one.settimeout(5)
            one.connect(where)
            print("through")
    except OSError as problem:
        print(type(problem).__name__)
"""


def test_without_network_nothing_is_reached(place: Place, listener: int) -> None:
    name = f"sandbox-{listener}"
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0{name}")
        abstract.listen()
        cell = place.cell("--no-network")
        assert "through" not in python(cell, CONNECT.format(port=listener, name=name))
        with_network = place.cell()
        assert python(with_network, CONNECT.format(port=listener, name=name)).split() == ["through", "through"]
    if place.variant.apart:
        inside = "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())"
        assert python(cell, f"{inside}; print('lo')") == "lo\n"
    else:
        assert "PermissionError" in python(cell, "import socket; socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)")
    for family in ("AF_VSOCK", "AF_ALG"):
        assert "Error: [Errno" in python(cell, f"import socket; socket.socket(socket.{family})")
    assert python(cell, "import socket; a, b = socket.socketpair(); a.send(b'x'); print(b.recv(1))") == "b'x'\n"


# --- strict


def test_strict_reads_the_system_and_what_is_given(place: Place) -> None:
    data, out = place.top / "data", place.top / "out"
    for one in (data, out):
        one.mkdir()
        (one / "file").write_text("given")
        os.chown(one, place.variant.uid, -1)
    os.chmod(out / "file", 0o666)
    (place.top / "neighbour").write_text("secret")
    cell = place.cell("--restrict", "--read", str(data), "--write", str(out))
    assert Got.RESTRICTED & cell.got
    assert "secret" not in shell(cell, f"cat {place.top}/neighbour {place.state}/key")
    for folder in ("/home", "/root", "/var/lib", "/srv", "/work"):
        assert "denied" in shell(cell, f"ls {folder}") or not Path(folder).exists()
    assert shell(cell, f"cat {data}/file; echo x >>{out}/file && echo y >{out}/new && cat {out}/new") == "giveny\n"
    shell(cell, f"echo bad >>{data}/file; echo bad >{data}/new; echo bad >/etc/new; echo bad >{place.code}/new")
    assert (data / "file").read_text() == "given"
    assert (out / "file").read_text() == "givenx\n"
    assert shell(cell, "echo x >here && cat here && echo y >/dev/null && head -c 1 /etc/hostname | wc -c") == "x\n1\n"
    if place.variant.apart:
        assert shell(cell, "echo x >/tmp/here && cat /tmp/here && mkdir /dev/shm/there") == "x\n"


@only_root
@pytest.mark.parametrize("variant", VARIANTS[:2], indirect=True)
def test_a_user_of_its_own(place: Place) -> None:
    os.chmod(place.programs, 0o755)
    os.chmod(place.top, 0o755)
    for above in (place.state, place.state / "runs"):
        os.chmod(above, 0o711)
    cell = place.cell("--user", "61234:61235", "--restrict")
    assert Got.OTHER_USER | Got.PROCESSES_BOUNDED | Got.RESTRICTED | Got.FILTERED in Got(cell.got)
    assert shell(cell, "id -u; id -g; id -G; grep -c . /etc/shadow") == (
        "61234\n61235\n61235\ngrep: /etc/shadow: Permission denied\n"
    )
    assert shell(cell, "echo x >here && stat -c %u . here") == "61234\n61234\n"
    assert not cell.run(
        "/bin/sh", "-c", "mkdir -p a/b; chmod 0 a/b a; setsid sleep 1000 & sleep 1000", deadline=0.2
    ).spoiled
    assert not left(place.folder)
    assert cell.run("/bin/sh", "-c", "kill -9 $PPID").code != 0
    assert int(shell(cell, f"{place.programs}/attack breed")) <= PIDS


# --- what an ordinary connector does


ORDINARY = """
import json, multiprocessing, os, pathlib, platform, socket, sqlite3, ssl, subprocess, tempfile, threading, time

def double(number):
    return number * 2

if __name__ == "__main__":
    assert subprocess.run(["sh", "-c", "echo a | cat"], capture_output=True, text=True, check=True).stdout == "a\\n"
    assert os.popen("id -u").read().strip() == str(os.getuid())
    seen = []
    threads = [threading.Thread(target=seen.append, args=(number,)) for number in range(8)]
    [one.start() for one in threads], [one.join() for one in threads]
    assert len(seen) == 8
    for method in METHODS:
        context = multiprocessing.get_context(method)
        with context.Pool(2) as pool:
            assert pool.map(double, range(4)) == [0, 2, 4, 6]
        lock, queue = context.Lock(), context.Queue()
        child = context.Process(target=queue.put, args=(1,))
        child.start(), queue.get(timeout=20), child.join()
    assert socket.getaddrinfo("localhost", 80)
    with tempfile.TemporaryDirectory() as folder, open(folder + "/a", "w") as file:
        print("x", file=file)
        os.rename(folder + "/a", folder + "/b")
        os.rename(folder + "/b", os.environ["HOME"] + "/c")
    base = sqlite3.connect(os.environ["HOME"] + "/base")
    base.execute("create table a (b)"), base.commit()
    ssl.create_default_context()
    os.memfd_create("mine"), os.urandom(8), os.sched_getaffinity(0), platform.uname(), os.getcwd(), os.pipe()
    os.symlink("a", "d"), os.mkfifo("e"), os.chmod("c", 0o600), os.utime("c"), os.link("c", "f")
    pathlib.Path("/dev/null").write_text("x")
    assert pathlib.Path("/proc/self/cmdline").read_bytes() and pathlib.Path("/etc/hosts").exists()
    print("fine")
"""


LEVELS = {"standard": (), "strict": ("--restrict", "--read", str(Path(PYTHON).parents[1]))}
at_both_levels = pytest.mark.parametrize("level", LEVELS)


@at_both_levels
def test_python_works(place: Place, level: str) -> None:
    script = place.code / "all.py"
    methods = '["fork", "spawn", "forkserver"]' if place.variant.apart else "[]"  # its locks are in /dev/shm
    script.write_text(ORDINARY.replace("METHODS", methods))
    env = ("PATH=/usr/bin:/bin",)
    done = place.cell(*LEVELS[level]).run(PYTHON, str(script), env=env, deadline=60)
    assert (done.result, done.log[2]) == (b"fine\n", b"")


JAVA = """
import java.io.*; import java.net.*; import java.nio.file.*; import java.util.concurrent.*;
public class Main {
  public static void main(String[] words) throws Exception {
    ExecutorService pool = Executors.newFixedThreadPool(4);
    int sum = 0;
    for (Future<Integer> one : pool.invokeAll(java.util.List.<Callable<Integer>>of(() -> 1, () -> 2))) sum += one.get();
    pool.shutdown();
    Process child = new ProcessBuilder("sh", "-c", "echo child").start();
    String line = new BufferedReader(new InputStreamReader(child.getInputStream())).readLine();
    Path file = Files.createTempFile("a", "b");
    Files.writeString(file, "x");
    System.out.println(sum + line + InetAddress.getByName("localhost").isLoopbackAddress());
  }
}
"""


@at_both_levels
@pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java on this machine")
def test_java_works(place: Place, level: str) -> None:
    (place.code / "Main.java").write_text(JAVA)
    words = ("/usr/bin/java", f"-Djava.io.tmpdir={place.folder}", str(place.code / "Main.java"))
    done = place.cell(*LEVELS[level]).run(*words, deadline=60)
    assert done.result == b"3childtrue\n", done.log[2]


NODE = """
const { execFileSync } = require("child_process"), fs = require("fs"), os = require("os");
const dns = require("dns").promises;
const { Worker } = require("worker_threads");
fs.writeFileSync("a", "x");
(async () => {
  await fs.promises.readFile("a");
  const answer = await new Promise((done) => new Worker(
    "require('worker_threads').parentPort.postMessage(1)", { eval: true }).on("message", done));
  const { address } = await dns.lookup("localhost");
  const child = execFileSync("sh", ["-c", "printf child"]).toString();
  console.log(answer + child + address.includes("1"), os.cpus().length > 0);
})();
"""


@at_both_levels
@pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node on this machine")
def test_node_works(place: Place, level: str) -> None:
    (place.code / "main.js").write_text(NODE)
    node = os.path.realpath(shutil.which("node") or "")
    done = place.cell(*LEVELS[level]).run(node, str(place.code / "main.js"), deadline=60)
    assert done.result == b"1childtrue true\n", done.log[2]


# --- for long, and with sanitizers


def test_a_sandbox_is_used_again_and_again(place: Place) -> None:
    cell = place.cell("--no-network", "--restrict")
    script = "echo x >here; { echo x >/tmp/there; echo x >/dev/shm/there; } 2>/dev/null; cat"
    for number in range(200):
        left = "setsid sleep 1000 &" if number % 50 == 0 else ""
        done = cell.run("/bin/sh", "-c", f"{left} {script}", payload=b"%d" % number)
        assert (done.result, done.spoiled) == (b"%d" % number, False)


def test_sanitizers_find_nothing(sanitized: Path, place: Place) -> None:
    shutil.copy(sanitized, place.top / "cell")
    wrapper = (*place.variant.wrapper, "env", "ASAN_OPTIONS=detect_leaks=0")  # which would have to trace itself
    cell = Cell(place.top / "cell", place.folder, *place.levels, "--no-network", "--restrict", wrapper=wrapper)
    for _ in range(3):
        done = cell.run("/bin/sh", "-c", "echo x >/dev/null; sleep 0.3; mkdir -p /tmp/a/b", memory=1 << 30, pids=20)
        assert (done.spoiled, done.why) == (False, "by itself")
    cell.socket.close()
    assert cell.process.wait(20) == GATEWAY_GONE


# --- forked in one sandbox

ACT = """
import sys, time
def Do(code: str):
    names = {"sys": sys, "time": time, "result": None}
    exec(code, names)
    return names["result"]
"""


def asked(code: str) -> bytes:
    return json.dumps({"protocol": 1, "op": "execute", "command": "Do", "params": {"code": code}}).encode()


@apart
def test_what_others_have_put_in_tmp_is_not_of_a_process_that_was_forked_ahead(place: Place) -> None:
    shutil.copytree(ROOT / "runners/python", place.code / "python")
    (place.code / "act.py").write_text(ACT)
    cell = place.cell()
    told: dict[tuple[int, int], bytes] = {}  # kind and run: the rest of the latest message

    def comes(kind: int, run: int) -> bytes:
        while (kind, run) not in told:
            got, whose, _, _, rest, _ = cell.message()
            told[got, whose] = rest
        return told[kind, run]

    host = cell.start(
        PYTHON, "-IBS", str(place.code / "python/host.py"), "--fork", "--module", str(place.code / "act.py"), flags=HOST
    )
    comes(TOLD, host)

    def forked(memory: int) -> int:
        run = cell.start("forked", flags=FORKED | AHEAD, memory=memory)
        comes(STARTED, run)
        return run

    filler, other = forked(1 << 30), forked(1 << 30)
    fill = (
        "for n in range(4): open(f'/tmp/{n}', 'wb').write(bytes(7 << 19))\nprint('full', file=sys.stderr, flush=True)"
    )
    cell.feed(filler, asked(f"{fill}\ntime.sleep(1000)"))
    comes(LOG, filler)
    ahead = forked(13 * MIB)
    cell.feed(other, asked("time.sleep(0.3)"))  # what waits is looked at meanwhile
    comes(ENDED, other)
    cell.kill(filler)
    comes(ENDED, filler)
    assert (ENDED, ahead) not in told
    cell.feed(ahead, asked("result = 'mine'"))
    rest = comes(ENDED, ahead)
    assert WHY[ENDED_REST.unpack_from(rest)[2]] == "by itself"
    assert b'"mine"' in rest


def test_a_run_that_is_killed_leaves_a_clean_cell(place: Place) -> None:
    cell = place.cell()
    run = cell.start("/bin/sh", "-c", "echo x >/tmp/there; echo x >here; setsid sleep 1000 & sleep 1000")
    cell.started()
    cell.kill(run)
    done = cell.ended()
    assert (done.why, done.spoiled, done.code) == ("killed", False, -signal.SIGKILL)
    assert shell(cell, "ls -A") == ""
