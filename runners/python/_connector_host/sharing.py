"""What a host holds once it has imported a connector, and whether each of two children could have it for itself.

Only what is known to be safe may be there: files that are read, which each child opens anew with an offset of its own;
files that are appended to, as logs are; folders; and a few devices. Whatever else is open, shared or running would be
shared by callers, or be missing: pipes, sockets, locks, memory, semaphores, timers, threads, processes.
"""

from __future__ import annotations

import contextlib
import stat
import sys
from importlib import machinery
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from .own import io, os, signal, socket, time

DESCRIPTORS, TASKS, MAPPINGS, TIMERS = (f"/proc/self/{name}" for name in ("fd", "task", "smaps", "timers"))
SYSTEM_V = {"msg": "a message queue", "sem": "semaphores", "shm": "shared memory"}
INTERVALS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
STREAMS = 3  # a child has its own
DATABASE = b"SQLite format 3\0"  # how a file of SQLite's begins
HARMLESS = {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)}  # the devices null, zero, full, random and urandom
ANONYMOUS = "anon_inode:"
SETTLED = 0.5  # seconds that what was started has to end
LOOK = 0.02
TOLD = 6  # things, of more the number
LONGEST = 120  # characters of a command line
SEMAPHORE = "/dev/shm/sem."  # noqa: S108  (glibc's)
SEGMENT = "/SYSV"  # memory of System V, which is told by its number
LEFT_OUT = "dc"  # "do not copy on fork", as the kernel writes it
MADE_BY = ("mmap", "multiprocessing", "_multiprocessing")
LIBRARY = os.path.dirname(str(os.__file__)) + os.sep

IDLE = {"polars-ooc-clea"}
"""Threads that a child can do without, as the kernel calls them: that of polars removes files that it has swapped out,
which lie in the private folder."""

Thing = Tuple[str, int]
"""A descriptor, a thread, a process, or one of `SYSTEM_V`, by its number."""


class Again(NamedTuple):
    """A file that each child opens anew, where the host has it."""

    descriptor: int
    flags: int
    offset: int
    inheritable: bool

    def open(self, *, once: bool = False) -> None:
        """Put a file of its own there, at the same offset; `once` only to see whether that can be done."""
        own = os.open(f"{DESCRIPTORS}/{self.descriptor}", self.flags)
        try:
            os.lseek(own, self.offset, os.SEEK_SET)
            if not once:
                os.dup2(own, self.descriptor, self.inheritable)
        finally:
            os.close(own)


class Holdings:
    """All that is there, with the module that made it where it came with an import."""

    def __init__(self, own: int) -> None:
        """Look at what is there already; `own` is the host's descriptor."""
        self.again: List[Again] = []
        """The files that a child opens anew, once `unfit` has looked."""
        self._own = own
        self._seen = _things()
        self._there_before = _system_v()
        self._makers: Dict[Thing, str] = {}
        self._importing: List[str] = []

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Note who makes what meanwhile: the module whose code runs, the innermost of those that import one another."""
        restore = [
            self._wrap(machinery.SourceFileLoader, "exec_module"),
            self._wrap(machinery.SourcelessFileLoader, "exec_module"),
            self._wrap(machinery.ExtensionFileLoader, "create_module"),
            self._wrap(machinery.ExtensionFileLoader, "exec_module"),
        ]
        try:
            yield
        finally:
            for each in restore:
                each()

    def note(self, maker: str) -> None:
        """What has come since the last look was made by this one."""
        with contextlib.suppress(OSError):
            now = _things()
            for thing in self._seen - now:
                self._makers.pop(thing, None)
            for thing in now - self._seen:
                self._makers[thing] = maker
            self._seen = now

    def unfit(self) -> Optional[str]:
        """Say what two forked children would share or miss, and who made it; None: nothing."""
        end = time.monotonic() + SETTLED
        while True:
            running = [*_threads(), *_processes()]
            if not running or time.monotonic() > end:
                break
            time.sleep(LOOK)  # it may be about to end
        found = [self._told(words, thing) for thing, words in running]
        self.again = []
        for number in sorted(_descriptors()):
            if number >= STREAMS and number != self._own:
                words = self._opened(number)
                found += [self._told(words, ("descriptor", number))] if words else []
        found += [self._told(f"{SYSTEM_V[kind]} of System V", (kind, number)) for kind, number in self._of_system_v()]
        found += [*map(_memory, _shared_mappings()), *_timers()]
        found = list(dict.fromkeys(found))
        more = len(found) - TOLD
        return ", ".join(found[:TOLD] + ([f"{more} more"] if more > 0 else [])) or None

    # --- private

    def _wrap(self, kind: Any, name: str) -> Callable[[], None]:
        inherited, original = name not in vars(kind), getattr(kind, name)

        def watched(loader: Any, what: Any) -> Any:
            if str(loader.path).startswith(LIBRARY) and "-packages" not in loader.path:
                return original(loader, what)  # what it makes is for whoever has imported it
            if self._importing:
                self.note(self._importing[-1])
            self._importing.append(loader.name)
            try:
                return original(loader, what)
            finally:
                self.note(self._importing.pop())

        def restore() -> None:
            if inherited:
                delattr(kind, name)
            else:
                setattr(kind, name, original)

        setattr(kind, name, watched)
        return restore

    def _of_system_v(self) -> List[Thing]:
        return sorted(_system_v() - self._there_before)

    def _told(self, words: str, thing: Thing) -> str:
        maker = self._makers.get(thing)
        return f"{words} (made by {maker})" if maker else words

    def _opened(self, number: int) -> Optional[str]:
        """Describe what is open there, when children cannot share it and cannot each have their own."""
        try:
            facts = os.fstat(number)
            link = os.readlink(f"{DESCRIPTORS}/{number}")
            flags, locked = _flags(number)
        except OSError:  # it was closed just now
            return None
        known = flags & os.O_PATH or (stat.S_ISCHR(facts.st_mode) and _device(facts) in HARMLESS)
        if known:
            return None
        words = _not_a_file(number, facts, link) or _not_only_read(number, flags, link)
        if not words and locked:
            words = f"a lock on {link}"
        return words or self._open_again(number, flags, link)

    def _open_again(self, number: int, flags: int, link: str) -> Optional[str]:
        offset = os.lseek(number, 0, os.SEEK_CUR)
        again = Again(number, (flags | os.O_CLOEXEC) & ~os.O_NOFOLLOW, offset, os.get_inheritable(number))
        try:
            again.open(once=True)
        except OSError as problem:
            return f"the file {link}, which cannot be opened again ({problem.strerror})"
        self.again.append(again)
        return None


def _things() -> Set[Thing]:
    found = {("descriptor", number) for number in _descriptors()}
    tasks = os.listdir(TASKS)
    found.update(("thread", int(task)) for task in tasks)
    found.update(("process", int(child)) for task in tasks for child in _children(task))
    return found | _system_v()


def _system_v() -> Set[Thing]:
    """List what is there of System V's, whoever made it, which the kernel does not tell; a sandbox has its own."""
    lines = {kind: _line(f"/proc/sysvipc/{kind}").splitlines()[1:] for kind in SYSTEM_V}
    return {(kind, int(line.split()[1])) for kind in lines for line in lines[kind]}


def _descriptors() -> Set[int]:
    numbers = set(map(int, os.listdir(DESCRIPTORS)))
    return {number for number in numbers if _is_open(number)}  # one was the listing's own


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _device(facts: os.stat_result) -> Tuple[int, int]:
    return os.major(facts.st_rdev), os.minor(facts.st_rdev)


def _flags(number: int) -> Tuple[int, bool]:
    """Return how it was opened, and whether there is a lock, or a lease, of ours on it."""
    with io.open(f"/proc/self/fdinfo/{number}", encoding="utf-8", errors="replace") as facts:
        words = dict(line.split(":", 1) for line in facts if ":" in line)
        return int(words["flags"], 8), "lock" in words


def _threads() -> List[Tuple[Thing, str]]:
    """List all threads but the first one: Python's by their names."""
    others = sorted(int(task) for task in os.listdir(TASKS) if int(task) != os.getpid())
    names: Dict[int, str] = {}
    threading = sys.modules.get("threading") if others else None
    with contextlib.suppress(Exception):  # somebody else's, perhaps
        names = {each.native_id: each.name for each in threading.enumerate()} if threading else {}
    found = []
    for task in others:
        if _line(f"{TASKS}/{task}/comm") in IDLE:
            continue
        name = f"thread {names[task]}" if task in names else f"a thread of a C library{_task_name(task)}"
        found.append((("thread", task), name))
    return found


def _task_name(task: int) -> str:
    ours, its = (_line(f"{TASKS}/{each}/comm") for each in (os.getpid(), task))
    return f", {its}" if its and its != ours else ""


def _children(task: str) -> List[str]:
    return _line(f"{TASKS}/{task}/children").split()


def _processes() -> List[Tuple[Thing, str]]:
    """List what was started and has not ended; the host inherits what those have detached."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return []
    if not os.path.exists(f"{TASKS}/{os.getpid()}/children"):  # a kernel without it
        return [(("process", 0), "a process that it has started")]
    children = sorted(int(child) for task in os.listdir(TASKS) for child in _children(task))
    return [(("process", child), f"the process {name}") for child in children for name in _process_name(child)]


def _process_name(child: int) -> List[str]:
    """Give its command line, or what it is called where it has none yet; nothing when it has ended."""
    name, _, rest = _line(f"/proc/{child}/stat").partition("(")[2].rpartition(") ")
    words = _line(f"/proc/{child}/cmdline").replace("\0", " ").strip()
    return [] if rest[:1] in {"", "Z", "X"} else [words[:LONGEST] or name]


def _line(path: str) -> str:
    try:
        with io.open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _shared_mappings() -> Iterator[Tuple[str, str]]:
    """Yield the flags of memory that others may write to as well, or that no child has, and what it is of."""
    with io.open(MAPPINGS, encoding="utf-8", errors="replace") as maps:
        shared, of = False, ""
        for line in maps:
            name, _, facts = line.partition(" ")
            if not name.endswith(":"):
                rights, _, _, _, *path = facts.split(None, 4)
                of = "".join(path).strip()
                shared = rights[1] == "w" and rights[3] == "s" and not of.startswith(SEGMENT)
            elif name == "VmFlags:" and (shared or (LEFT_OUT in facts.split() and not of.startswith("["))):
                yield facts, of


def _memory(mapping: Tuple[str, str]) -> str:
    flags, path = mapping
    holders = ", ".join(_holders()[:3])
    made_by = f" (in {holders})" if holders else ""
    if path.startswith(SEMAPHORE):
        return f"a semaphore{made_by}"
    of = "" if path.startswith(("/dev/zero", "/anon")) or not path else f" of {path}"
    return f"{'memory that a fork leaves out' if LEFT_OUT in flags.split() else 'shared memory'}{of}{made_by}"


def _timers() -> List[str]:
    """List what is to send the host a signal: no child would get it."""
    running = any(signal.getitimer(kind) != (0.0, 0.0) for kind in INTERVALS)
    found = ["a timer of setitimer or alarm"] if running else []
    return found + (["a timer of timer_create"] if _line(TIMERS) else [])


def _holders() -> List[str]:
    """Name the modules that hold something of `mmap` or `multiprocessing`."""
    found = []
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in MADE_BY:
            continue
        with contextlib.suppress(Exception):
            kinds = [type(value).__module__.partition(".")[0] for value in list(vars(module).values())]
            if any(kind in MADE_BY for kind in kinds):
                found.append(name)
    return found


def _not_a_file(number: int, facts: os.stat_result, link: str) -> Optional[str]:
    if stat.S_ISSOCK(facts.st_mode):
        return _socket_name(number)
    if stat.S_ISFIFO(facts.st_mode):
        return f"a pipe (descriptor {number})"
    if stat.S_ISDIR(facts.st_mode) or (stat.S_ISREG(facts.st_mode) and not link.startswith("/memfd:")):
        return None
    what = link[len(ANONYMOUS) :].strip("[]") if link.startswith(ANONYMOUS) else link
    return f"an open {what} (descriptor {number})"


def _not_only_read(number: int, flags: int, link: str) -> Optional[str]:
    with contextlib.suppress(OSError):  # not readable, or a folder
        if os.pread(number, len(DATABASE), 0) == DATABASE:
            return f"the open database {link}"
    if link.startswith(f"/proc/{os.getpid()}/"):
        return f"the file {link}, which tells of the host"
    if flags & os.O_ACCMODE != os.O_RDONLY and not flags & os.O_APPEND:
        return f"the file {link}, open for writing (and not for appending)"
    return None


def _socket_name(number: int) -> str:
    with socket.socket(fileno=os.dup(number)) as one, contextlib.suppress(OSError):
        if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return f"a socket that listens at {one.getsockname()}"
        peer = one.getpeername()
        if peer:
            return f"an open socket to {peer}"
    return f"an open socket (descriptor {number})"
