"""Worker processes, and the pool in which they stay warm between executions.

A worker is a fresh interpreter, started by ``subprocess``: no fork of a process with threads, no
import of ``__main__``. Three descriptors tie it to its parent: a connection, its item slots (a few
bytes of shared memory that show which item it is at, and survive its death), and a lifeline whose
end in the parent closes only when the parent is gone.

One pool serves all threads of the process. Every execution may always have one worker, so none
ever waits for another to end; beyond that they share ``limit`` workers evenly.
"""

from __future__ import annotations

import atexit
import mmap
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from subprocess import _args_from_interpreter_flags  # type: ignore[attr-defined]  # as multiprocessing does
from typing import Any

from amorsize.engines import warm_pool
from amorsize.engines.process.connection import Channel
from amorsize.planning import machine
from amorsize.workers.item_slots import CHUNK, ITEM, ITEM_STARTED, SLOT_COUNT

IDLE_SECONDS = 60.0
"""Workers that nobody used for so long are ended."""

_END_SECONDS = 0.5
_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); import amorsize; del sys.path[0]; "
    "from amorsize.engines.process.worker import main; main()"
)
_PACKAGE_PARENT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_THREAD_LIMITS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)

Surroundings = tuple[list[str], str, dict[str, str]]


def read_surroundings(inner_threads: int) -> Surroundings:
    """Read what a worker is to see of this process: import path, directory, environment.

    Libraries that bring thread pools of their own are held to ``inner_threads``, unless the
    environment says otherwise: n workers with a pool of n threads each only disturb each other.
    """
    environment = dict.fromkeys(_THREAD_LIMITS, str(inner_threads)) | _environment()
    return [str(entry) for entry in sys.path], _directory(), environment


def _environment() -> dict[str, str]:
    for _ in range(100):
        try:
            return dict(os.environ)
        except (KeyError, RuntimeError):
            continue  # another thread is changing it
    return {}


def _directory() -> str:
    """Return the working directory, or the root where it is gone: Python needs one to start."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return os.sep


class WorkerProcess:
    """One worker, seen from its parent.

    Attributes:
        pid: its process id.
        connection: the duplex connection to it.
        sentinel: a descriptor that becomes readable when it ends, or None where the system has
            none; the connection's end then tells.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        if not sys.executable:
            from amorsize.errors import ExecutionError

            raise ExecutionError(
                "worker processes need sys.executable, which is empty in this embedded "
                "interpreter. Set it to the path of a Python interpreter, or pass "
                "executor='thread'."
            )
        self._started_at = time.time()
        with ExitStack() as ours_on_failure, ExitStack() as theirs_always:
            ours, theirs = socket.socketpair()
            ours_on_failure.callback(ours.close)
            theirs_always.callback(theirs.close)
            lifeline_theirs, self._lifeline = os.pipe()
            ours_on_failure.callback(os.close, self._lifeline)
            theirs_always.callback(os.close, lifeline_theirs)
            slots_file = theirs_always.enter_context(_item_slots_file())
            self._mapping = mmap.mmap(slots_file.fileno(), SLOT_COUNT * 8)
            self.item_slots = memoryview(self._mapping).cast("q")
            self.clear_item_slots()
            inherited = (theirs.fileno(), slots_file.fileno(), lifeline_theirs)
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    *_args_from_interpreter_flags(),
                    "-P",  # nothing is imported from the working directory by chance
                    "-c",
                    _BOOT,
                    _PACKAGE_PARENT,
                    *map(str, inherited),
                    str(os.getpid()),
                ],
                pass_fds=inherited,
                stdin=subprocess.DEVNULL,
                env=environment,
                cwd=_directory(),
                start_new_session=True,  # Ctrl-C in a terminal is for the parent alone
            )
            ours_on_failure.pop_all()
        self.pid = self._process.pid
        self.connection = Channel(ours.detach())
        self.sentinel = _open_sentinel(self.pid)
        self.idle_since = 0.0
        self._ready = False
        self._told: Surroundings | None = None

    def clear_item_slots(self) -> None:
        self.item_slots[CHUNK] = self.item_slots[ITEM] = self.item_slots[ITEM_STARTED] = -1

    def changes_of(self, surroundings: Surroundings) -> Surroundings | None:
        """Return the surroundings when the worker has not been told them yet, else None."""
        if self._told == surroundings:
            return None
        self._told = surroundings
        return surroundings

    def is_up(self, at: float) -> None:
        """Take note that the worker was ready for work at ``at``, in seconds since the epoch."""
        self._ready = True
        machine.record_startup("process", 1, at - self._started_at)

    def is_ready(self) -> bool:
        """Say whether it has come up, also where nobody has read yet that it has."""
        return self._ready or self.connection.poll()

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        """Ask it to end: it does when it next looks at its connection."""
        self.connection.close()

    def kill(self) -> None:
        self._process.kill()

    def terminate(self) -> None:
        self._process.terminate()

    def reap(self, timeout: float) -> int | None:
        """Wait for its end and release everything; kills it when the time is up.

        Returns its exit code.
        """
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self.close()
        return code

    def close(self) -> None:
        """Release the descriptors; the process is on its own, and ends."""
        self.connection.close()
        self.item_slots.release()
        self._mapping.close()
        if self.sentinel is not None:
            os.close(self.sentinel)
            self.sentinel = None
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1


class Membership:
    """One execution's share of the pool. Used from that execution's thread."""

    def __init__(self, pool: WorkerPool, n_jobs: int, wake: Callable[[], None]) -> None:
        self._pool = pool
        self.n_jobs = n_jobs
        self.wake = wake
        self.held: set[WorkerProcess] = set()
        self.hungry = False

    def acquire(self, environment: dict[str, str]) -> WorkerProcess | None:
        """Take an idle worker or start one; None when the others' share would be touched."""
        return self._pool.acquire(self, environment)

    def release(self, worker: WorkerProcess) -> None:
        """Give a worker back that has nothing in progress."""
        self._pool.release(self, worker)

    def discard(self, worker: WorkerProcess, timeout: float) -> int | None:
        """Take a worker that is dead, or must die, out of the pool; returns its exit code."""
        return self._pool.discard(self, worker, timeout)

    def should_share(self) -> bool:
        """Say whether another execution waits for a worker that is above our share."""
        return self._pool.should_share(self)

    def leave(self) -> None:
        """End the membership; workers that were not given back are killed."""
        self._pool.leave(self)


class WorkerPool:
    """The warm workers of this process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may end a stream over its holder
        self._idle: list[WorkerProcess] = []
        self._members: list[Membership] = []
        self._reaper: threading.Timer | None = None

    def join(self, n_jobs: int, wake: Callable[[], None]) -> Membership:
        """Enter an execution that wants up to ``n_jobs`` workers.

        ``wake`` is called, from another thread, when a worker may be had.
        """
        member = Membership(self, n_jobs, wake)
        with self._lock:
            self._members.append(member)
        return member

    def prestart(self, workers: int) -> None:
        """Start workers that no execution has asked for yet, unless so many are idle already.

        Raises OSError where none can be started.
        """
        _, _, environment = read_surroundings(1)
        with self._lock:
            while len(self._idle) < workers:
                worker = WorkerProcess(environment)
                worker.idle_since = time.monotonic()
                self._idle.append(worker)
                self._schedule_reaper()

    def warm_workers(self) -> int:
        """Count the idle workers that are up."""
        with self._lock:
            return sum(worker.is_ready() for worker in self._idle)

    def pids(self) -> list[int]:
        """List the processes of all workers, idle and leased."""
        with self._lock:
            return [worker.pid for worker in self._all()]

    def acquire(self, member: Membership, environment: dict[str, str]) -> WorkerProcess | None:
        with self._lock:
            if len(member.held) >= self._share() and self._others_hungry(member):
                return None
            member.hungry = False
            while self._idle:
                worker = self._idle.pop()
                if worker.is_alive():
                    worker.clear_item_slots()
                    member.held.add(worker)
                    return worker
                worker.close()
            live = sum(len(each.held) for each in self._members)
            if member.held and live >= self._limit():
                member.hungry = True
                for each in self._members:
                    if each is not member and len(each.held) > self._share():
                        each.wake()
                return None
            try:
                worker = WorkerProcess(environment)
            except OSError:
                if not member.held:
                    raise
                return None  # no more descriptors or processes: go on with those there are
            member.held.add(worker)
            return worker

    def release(self, member: Membership, worker: WorkerProcess) -> None:
        with self._lock:
            member.held.discard(worker)
            worker.idle_since = time.monotonic()
            self._idle.append(worker)
            self._schedule_reaper()
        self._wake_hungry(besides=member)

    def discard(self, member: Membership, worker: WorkerProcess, timeout: float) -> int | None:
        with self._lock:
            member.held.discard(worker)
        code = worker.reap(timeout)
        self._wake_hungry(besides=member)
        return code

    def should_share(self, member: Membership) -> bool:
        with self._lock:
            return len(member.held) > self._share() and self._others_hungry(member)

    def leave(self, member: Membership) -> None:
        with self._lock:
            self._members.remove(member)
            left = list(member.held)
            member.held.clear()
        for worker in left:  # its execution was interrupted before it could let go of them
            worker.reap(0)
        self._wake_hungry(besides=member)

    def shutdown(self) -> None:
        """End every worker: idle ones are asked, those at work are killed."""
        with self._lock:
            idle, self._idle = self._idle, []
            busy = [worker for member in self._members for worker in member.held]
            if self._reaper is not None:
                self._reaper.cancel()
                self._reaper = None
        for worker in busy:
            worker.kill()  # its execution sees the death and tells of it
        _end_all(idle)

    def forget(self) -> None:
        """In a forked child: let go of everything without touching the parent's workers."""
        inherited = self._all()
        self.__init__()  # type: ignore[misc]  # same object, fresh state
        for worker in inherited:
            worker.close()
        _of_the_parent.extend(inherited)

    def _all(self) -> list[WorkerProcess]:
        return [*self._idle, *(worker for member in self._members for worker in member.held)]

    def _limit(self) -> int:
        wanted = max((member.n_jobs for member in self._members), default=1)
        return max(machine.read_system(memory=False).usable_cores, wanted)

    def _share(self) -> int:
        return max(1, self._limit() // max(1, len(self._members)))

    def _others_hungry(self, member: Membership) -> bool:
        return any(
            other is not member and other.hungry and len(other.held) < self._share()
            for other in self._members
        )

    def _wake_hungry(self, *, besides: Membership) -> None:
        with self._lock:
            hungry = [each for each in self._members if each.hungry and each is not besides]
        for member in hungry:
            member.wake()

    def _schedule_reaper(self) -> None:
        if self._reaper is None:
            self._reaper = threading.Timer(IDLE_SECONDS, self._reap_idle)
            self._reaper.daemon = True
            self._reaper.name = "amorsize-reaper"
            self._reaper.start()

    def _reap_idle(self) -> None:
        with self._lock:
            self._reaper = None
            due = time.monotonic() - IDLE_SECONDS * 0.9
            ended = [worker for worker in self._idle if worker.idle_since < due]
            self._idle = [worker for worker in self._idle if worker.idle_since >= due]
            if self._idle:
                self._schedule_reaper()
        _end_all(ended)


def _end_all(workers: list[WorkerProcess]) -> None:
    for worker in workers:
        worker.end()
    deadline = time.monotonic() + _END_SECONDS
    for worker in workers:
        worker.reap(max(0.0, deadline - time.monotonic()))


def _item_slots_file() -> Any:
    if hasattr(os, "memfd_create"):
        file: Any = os.fdopen(os.memfd_create("amorsize-item-slots"), "r+b")
    else:
        import tempfile

        file = tempfile.TemporaryFile()  # noqa: SIM115  # the caller closes it
    os.ftruncate(file.fileno(), SLOT_COUNT * 8)
    return file


def _open_sentinel(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


_of_the_parent: list[WorkerProcess] = []
"""Keeps the parent's Popen objects from being collected, and complained of, in a forked child."""

pool = WorkerPool()
warm_pool.pool = pool

atexit.register(pool.shutdown)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pool.forget)
