"""The warden's program: start, watch, reap, sweep. Standard library only; see the package's docstring.

Started with its end of a SOCK_SEQPACKET pair on descriptor 0. One JSON object a message:

    gateway -> warden   {"op": "spawn", "id", "argv", "env", "cwd", "memory", "host", "busy", "tell"} with the
                        child's stdin, stdout, stderr (and descriptor 3) attached
                        {"op": "adopt", "id", "pid", "host", "cwd", "memory", "busy"}: a process that a host has
                        forked becomes a run, whoever reaps it
                        {"op": "busy", "id", "busy"}        it has a request from now on, or has none
                        {"op": "signal", "id", "signal"}    to the run's whole process group
                        {"op": "rest", "id", "keep"}        it has no request any more: SIGKILL to all of it but the
                                                            leader and what may stay; with "keep", which it has
                                                            before its first one, what there is now may
                        {"op": "kill", "id"}                SIGKILL to everything the run ever started
    warden -> gateway   {"ev": "rested", "id", "pid"}                    nothing else of the run lives
                        {"ev": "started", "id", "pid"}                   it was, for those who asked, or is adopted
                        {"ev": "failed", "id", "errno", "message"}       it could not be started
                        {"ev": "leftover", "id", "pid"}                  the leader is dead, others of the run live
                        {"ev": "gone", "id", "pid", "status", ...}       all of it is dead and reaped

A "host" is a run that forks others. "reaped" is false in "gone" when a host has reaped the leader and knows its status.

`memory` is in bytes (0: unbounded), `status` a wait status, times are seconds, `peak_rss` bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import select
import shutil
import signal
import socket
import sys
import time
from typing import Any

if __package__ in {None, ""}:  # run as a file: the package's parent folder is not on the path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from gateway.warden import procfs
from gateway.warden.cgroup import Groups, Slot

WATCH = 0.1  # seconds between two looks at a run's memory
SCAN_EVERY = 3  # without control groups, the tree below a leader is looked up every so many rounds
SLICE = 8  # runs that are looked at in one go: whoever starts or ends meanwhile waits for no more
SWEEP = 0.005  # seconds between two looks while something is being killed
MESSAGE = 1 << 20  # bytes
DESCRIPTORS = 4  # at most, of a message
INT = 4  # bytes


class Run:
    """One process started for the gateway, and all that comes of it."""

    def __init__(self, key: int, memory: int, cwd: str) -> None:
        self.key = key
        self.memory = memory
        self.cwd = cwd
        self.pid = 0
        self.pidfd = -1
        self.busy = True
        self.since = 0
        """In the kernel's ticks: what was started before cannot be its."""
        self.slot: Slot | None = None
        self.tree: set[int] = set()
        self.kept: dict[int, int] = {}
        """What may live on beside the leader when it rests, and when each of these was started."""
        self.exited = False
        self.killing = False
        self.host = False
        self.adopted = False
        self.out_of_memory = False
        self.peak = 0
        self.floor = 0
        self.utime = 0.0
        self.stime = 0.0

    def charge(self, usage: resource.struct_rusage) -> None:
        """Add what one reaped process has used."""
        self.utime += usage.ru_utime
        self.stime += usage.ru_stime
        # The kernel counts the memory of whoever forked, us, up to the exec, into the child's maximum.
        if usage.ru_maxrss * 1024 > self.floor or not self.peak:
            self.peak = max(self.peak, usage.ru_maxrss * 1024)


class Warden:
    """The loop over the gateway's messages, the leaders' pidfds and the clock."""

    def __init__(self, control: socket.socket, folder: str, groups: Groups | None) -> None:
        self._control = control
        self._folder = folder
        self._groups = groups
        self._poll = select.epoll()
        self._runs: dict[int, Run] = {}
        self._by_fd: dict[int, Run] = {}
        self._leaders: dict[int, Run] = {}
        self._sweeping: dict[int, Run] = {}  # they are killed, and their leaders are dead
        self._resting: dict[int, Run] = {}  # what their latest request has left is killed
        self._owners: dict[int, Run | None] = {}  # strays: our children that are no leaders
        self._buffer = bytearray(MESSAGE)
        self._round: list[Run] = []  # who is still to be looked at before everybody is again
        self._next_watch = 0.0
        self._rounds = 0
        self._floor = procfs.high_water()  # our own ru_maxrss has the gateway's memory in it

    def serve(self) -> None:
        """Work until the gateway's end of the socket is closed, then kill everything."""
        self._poll.register(self._control.fileno(), select.EPOLLIN)
        while True:
            for fd, _ in self._poll.poll(self._pause()):
                if fd == self._control.fileno():
                    if not self._receive():
                        self._kill_all()
                        return
                elif fd in self._by_fd:
                    self._leader_exited(self._by_fd[fd])
            for run in list(self._sweeping.values()):
                self._sweep(run)
            for run in list(self._resting.values()):
                self._rest(run)
            if self._runs and time.monotonic() >= self._next_watch:
                self._watch()

    def _pause(self) -> float:
        if self._sweeping or self._resting:
            return SWEEP
        return max(0.0, self._next_watch - time.monotonic()) if self._runs else -1.0

    # --- the gateway's messages

    def _receive(self) -> bool:
        try:
            size, ancillary, _, _ = self._control.recvmsg_into(
                [self._buffer], socket.CMSG_SPACE(DESCRIPTORS * INT), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            return False
        if not size:
            return False
        fds = [fd for _, _, data in ancillary for fd in memoryview(data).cast("i")]
        message = json.loads(self._buffer[:size])
        operation = message["op"]
        if operation == "spawn":
            try:
                self._spawn(message, fds)
            finally:
                for fd in fds:
                    os.close(fd)
            return True
        run = self._runs.get(message["id"])
        if operation == "adopt":
            self._adopt(message)
        elif run is not None and operation == "busy":
            run.busy = message["busy"]
            run.since = procfs.now()
        elif run is not None and operation == "signal":
            self._signal_group(run, message["signal"])
        elif run is not None and operation == "rest":
            self._rest(run, keep=message["keep"])
        elif run is not None and operation == "kill":
            self._kill(run)
        return True

    def _tell(self, event: str, key: int, **facts: object) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the next receive ends the loop
            self._control.send(json.dumps({"ev": event, "id": key, **facts}).encode())

    def _spawn(self, message: dict[str, Any], fds: list[int]) -> None:
        key: int = message["id"]
        run = Run(key, message["memory"], message["cwd"])
        run.floor = self._floor
        run.since = procfs.now()
        try:
            with self._groups.birth() if self._groups is not None else contextlib.nullcontext() as run.slot:
                run.pid = _start(message, fds)
            run.pidfd = os.pidfd_open(run.pid)
        except (OSError, ValueError) as problem:
            if run.pid:  # started, but no descriptor left to watch it with
                os.killpg(run.pid, signal.SIGKILL)
                os.waitpid(run.pid, 0)
            self._give_back(run)
            self._tell("failed", key, errno=getattr(problem, "errno", None) or 0, message=str(problem))
            return
        run.host, run.busy = message["host"], message["busy"]
        if message["tell"]:
            self._tell("started", key, pid=run.pid)
        self._attend(run)

    def _adopt(self, message: dict[str, Any]) -> None:
        run = Run(message["id"], message["memory"], message["cwd"])
        run.adopted = True
        run.pid, run.busy = message["pid"], message["busy"]
        facts = procfs.stat(run.pid)
        if facts is not None and facts.ppid in {message["host"], os.getpid()}:
            run.since = facts.started
            with contextlib.suppress(ProcessLookupError):
                run.pidfd = os.pidfd_open(run.pid)
        if run.pidfd >= 0 and self._groups is not None:
            run.slot = self._groups.take()
            if run.slot is not None:
                run.slot.add(run.pid)
        self._attend(run)
        self._tell("started", run.key, pid=run.pid)
        if run.pidfd < 0:  # it was over before we looked
            self._leader_exited(run)

    def _attend(self, run: Run) -> None:
        if not self._runs:
            self._next_watch = time.monotonic() + WATCH
        self._runs[run.key] = run
        self._leaders[run.pid] = run
        if run.pidfd >= 0:
            self._by_fd[run.pidfd] = run
            self._poll.register(run.pidfd, select.EPOLLIN)

    def _signal_group(self, run: Run, number: int) -> None:
        # A leader of ours is not reaped yet, so its number, and its group's, cannot be anybody else's. An adopted one
        # may be: it is asked by its descriptor first, and once it is dead its group is swept one by one.
        if run.adopted and run.exited:
            return
        with contextlib.suppress(ProcessLookupError):
            facts = procfs.stat(run.pid) if run.adopted else None
            if facts is not None and facts.session != run.pid:  # it does not lead a group yet
                signal.pidfd_send_signal(run.pidfd, number)
                return
            if run.adopted:
                signal.pidfd_send_signal(run.pidfd, 0)
            os.killpg(run.pid, number)

    def _kill(self, run: Run) -> None:
        run.killing = True
        if run.slot is not None:
            run.slot.kill()
        self._signal_group(run, signal.SIGKILL)
        if run.exited:
            self._sweep(run)

    # --- between two requests of a run

    def _rest(self, run: Run, *, keep: bool = False) -> None:
        """Kill what lives beside the leader and may not, and tell when nothing does."""
        beside = {pid: one.started for pid, one in self._beside(run).items()}
        if keep:
            run.kept = beside
        left = {pid for pid, started in beside.items() if run.kept.get(pid) != started}
        if not left:
            if self._resting.pop(run.key, None) is not None:
                self._strays_of(run)  # reaped, before anybody can look for them
            if not keep:
                run.busy, run.since = False, procfs.now()
            self._tell("rested", run.key, pid=run.pid)
            return
        self._resting[run.key] = run
        table = procfs.scan()
        for pid in procfs.parents_first(left, table):
            if pid not in run.kept or pid in left:
                procfs.kill_exactly(pid, table.get(pid))

    def _beside(self, run: Run) -> dict[int, procfs.Stat]:
        """Return what lives of a run beside its leader."""
        pids = run.slot.pids() if run.slot is not None else procfs.below({run.pid, *self._strays_of(run)})
        seen = [procfs.stat(pid) for pid in pids if pid != run.pid]
        return {one.pid: one for one in seen if one is not None and one.state not in {"Z", "X"}}

    # --- the end of a run

    def _leader_exited(self, run: Run) -> None:
        self._resting.pop(run.key, None)
        if run.pidfd >= 0:
            self._poll.unregister(run.pidfd)
            del self._by_fd[run.pidfd]
            os.close(run.pidfd)
        run.exited = True
        if run.killing:
            self._sweep(run)
        elif self._strays_of(run):
            self._tell("leftover", run.key, pid=run.pid)
        else:
            self._finish(run)

    def _sweep(self, run: Run) -> None:
        self._sweeping[run.key] = run
        if run.slot is not None:
            run.slot.kill()
        self._signal_group(run, signal.SIGKILL)
        strays = self._strays_of(run)
        if strays:
            table = procfs.scan()
            for pid in procfs.parents_first(set(strays), table):
                if pid != run.pid:
                    procfs.kill_exactly(pid, table.get(pid))
        elif run.slot is None or not [pid for pid in run.slot.pids() if pid != run.pid]:
            self._finish(run)

    def _finish(self, run: Run) -> None:
        status, reaped = 0, False
        # An adopted leader is its host's to reap, unless the host is dead and it has become ours.
        with contextlib.suppress(ChildProcessError):
            done, status, usage = os.wait4(run.pid, os.WNOHANG if run.adopted else 0)
            reaped = done == run.pid
            if reaped:
                run.charge(usage)
        del self._runs[run.key]
        if self._leaders.get(run.pid) is run:  # the number of one that its host has reaped may be another's by now
            del self._leaders[run.pid]
        self._sweeping.pop(run.key, None)
        self._give_back(run)
        self._tell(
            "gone",
            run.key,
            pid=run.pid,
            status=status,
            reaped=reaped,
            out_of_memory=run.out_of_memory or (status != 0 and 0 < max(run.memory, run.floor) < run.peak),
            utime=run.utime,
            stime=run.stime,
            peak_rss=run.peak,
        )

    def _give_back(self, run: Run) -> None:
        if run.slot is not None and self._groups is not None:
            self._groups.give_back(run.slot)

    def _strays_of(self, run: Run | None) -> list[int]:
        """Return our living children that are no leaders and belong to a run whose leader is dead.

        Whatever a dead leader leaves behind, however it was detached, has become our child: the warden is its
        nearest subreaper. What died already is reaped here.
        """
        strays, reaped = self._look_for_strays(run)
        while reaped:  # what it left behind in turn has become ours, maybe after we looked
            strays, reaped = self._look_for_strays(run)
        return strays

    def _look_for_strays(self, run: Run | None) -> tuple[list[int], int]:
        strays = []
        reaped = 0
        known = set()
        for pid in procfs.children().difference(self._leaders):
            known.add(pid)
            owner = self._owners.get(pid) or self._owner(pid, run)
            self._owners[pid] = owner
            if _reap(pid, owner):
                known.discard(pid)
                reaped += 1
            elif owner is run:
                strays.append(pid)
        if self._owners:
            self._owners = {pid: owner for pid, owner in self._owners.items() if pid in known}
        return strays, reaped

    def _owner(self, pid: int, ending: Run | None) -> Run | None:
        facts = procfs.stat(pid)
        if facts is None:
            return None
        runs = self._runs.values()
        group = self._groups.owner(pid) if self._groups is not None else None
        for run in runs:
            kept = run.kept.get(pid) == facts.started
            if not run.host and (facts.session == run.pid or pid in run.tree or kept):
                return run
        for run in runs:
            if group is not None and run.slot is not None and run.slot.name == group:
                return run
        for run in runs:
            # What a host has forked still carries the host's environment: it says nothing.
            if not run.host and procfs.mentions(pid, run.cwd):
                return run
        # No trace of where it came from. It is nobody's but the ending run's when no other one was at work already.
        others = any(run is not ending and run.busy and run.since <= facts.started for run in runs)
        return None if others else ending

    # --- memory

    def _watch(self) -> None:
        """Look at the memory of a few runs; at everybody once in WATCH seconds, or as a twentieth of a core allows."""
        begun = time.monotonic()
        if not self._round:
            self._begin_round()
        for _ in range(min(SLICE, len(self._round))):
            run = self._round.pop()
            if self._runs.get(run.key) is run:
                self._weigh(run)
        took = time.monotonic() - begun
        share = SLICE / max(SLICE, len(self._runs))
        self._next_watch = begun + max(WATCH * share, 20 * took)

    def _begin_round(self) -> None:
        self._rounds += 1
        self._floor = procfs.high_water()
        self._strays_of(None)  # no zombie waits for the end of a run
        if self._groups is None and self._rounds % SCAN_EVERY == 1:
            table = procfs.scan()
            adopted = {run.pid for run in self._runs.values() if run.adopted}
            own = {pid: one for pid, one in table.items() if pid not in adopted}
            for run in self._runs.values():  # what a host has forked is no part of it
                roots = {run.pid, *(self._strays_of(run) if run.exited else ())}
                run.tree = procfs.descendants(roots, own if run.host else table)
        for run in [one for one in self._runs.values() if one.exited and not one.killing and not self._strays_of(one)]:
            self._finish(run)  # it was left to end by itself
        self._round = list(self._runs.values())

    def _weigh(self, run: Run) -> None:
        sizes = [procfs.memory(pid) for pid in {run.pid, *(run.slot.pids() if run.slot is not None else run.tree)}]
        resident = sum(one.resident - one.shared for one in sizes) + max(one.shared for one in sizes)
        run.peak = max(run.peak, resident)
        if 0 < run.memory < resident and not run.killing:
            run.out_of_memory = True
            self._kill(run)

    # --- the gateway is gone

    def _kill_all(self) -> None:
        deadline = time.monotonic() + 10
        for run in self._runs.values():
            self._kill_without_sweep(run)
        while time.monotonic() < deadline:
            table = procfs.scan()
            _, *mine = procfs.parents_first({os.getpid()}, table)
            if not mine:
                break
            for pid in mine:
                procfs.kill_exactly(pid, table.get(pid))
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            time.sleep(SWEEP)
        if self._groups is not None:
            self._groups.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _kill_without_sweep(self, run: Run) -> None:
        if run.slot is not None:
            run.slot.kill()
        self._signal_group(run, signal.SIGKILL)


def _start(message: dict[str, Any], fds: list[int]) -> int:
    """Start a process in its folder; return its pid.

    posix_spawn costs two thirds of what subprocess does, but knows no working directory: ours is lent for the moment.
    The descriptors are above 3, so none is overwritten before it is used; every other one is close-on-exec.
    """
    actions = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(fds)]
    os.chdir(message["cwd"])
    try:
        return os.posix_spawn(
            message["argv"][0],
            message["argv"],
            message["env"],
            file_actions=actions,
            setsid=True,
            # What is ignored stays so: the first two by Python, the third by a shell that starts us in the background.
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ, signal.SIGQUIT),
        )
    finally:
        os.chdir("/")


def _reap(pid: int, owner: Run | None) -> bool:
    try:
        done, _, usage = os.wait4(pid, os.WNOHANG)
    except ChildProcessError:
        return True
    if done and owner is not None:
        owner.charge(usage)
    return bool(done)


def _reserve_descriptor_3() -> None:
    """Keep descriptor 3 taken, so that a result channel can be put there and nothing else ever is."""
    null = os.open(os.devnull, os.O_RDWR)
    if null == 3:
        return
    os.dup2(null, 3, inheritable=False)
    os.close(null)


def main() -> None:
    """Run the warden: descriptor 0 is the control socket, the arguments are folder, name, "cgroup" or "sweep"."""
    folder, name, containment = sys.argv[1:]
    control = socket.socket(fileno=fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 4))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    _reserve_descriptor_3()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Handled, not ignored: an ignored signal would stay ignored in every connector.
        signal.signal(number, lambda *_: None)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    procfs.become_subreaper()
    groups = Groups.open(name) if containment == "cgroup" else None
    with contextlib.suppress(BrokenPipeError):  # a gateway that is gone already; serve sees it too
        control.send(json.dumps({"ev": "ready", "id": 0, "groups": groups.root if groups else None}).encode())
    Warden(control, folder, groups).serve()


if __name__ == "__main__":
    main()
