"""Worker processes, and the pool in which they stay warm between executions.

Workers are forked by one template process, which is started with the first of them. Two
descriptors tie a worker to its program: a connection, and a status pipe over which the template
reports process id and exit code. Its item slots, in memory that all share, survive its death.

One pool serves all threads of the process. Every execution may always have one worker, so none
ever waits for another to end; beyond that they share ``limit`` workers evenly.
"""

from __future__ import annotations

import atexit
import os
import select
import sys
import threading
import time
from contextlib import ExitStack, contextmanager

from amorsize.engines import warm_pool
from amorsize.engines.process import protocol
from amorsize.engines.process.connection import STATUS, Connection, connection_pair
from amorsize.engines.process.module_files import HeldModules
from amorsize.engines.process.protocol import IDLE_SECONDS
from amorsize.engines.process.template_client import Template, start_template
from amorsize.engines.process_states import STOPPED, is_in_state
from amorsize.errors import ExecutionError
from amorsize.hooks.interruption import protected, protected_between_calls
from amorsize.planning import machine, process_support
from amorsize.workers import in_forked_child
from amorsize.workers.item_slots import CHUNK, CHUNK_STARTED, ITEM, ITEM_STARTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeAlias

    from amorsize.engines.process.module_files import Files, Stamp
    from amorsize.engines.process.program_state import State

    Modules: TypeAlias = Sequence[tuple[str, str]]
    """Modules that a worker is to begin with, with the directories where they are found."""
else:
    import _signal as signal  # what signal wraps in enums, which takes 2 ms

_SPARE_PIPES = 4
_MARGIN_SECONDS = 5.0
_END_SECONDS = 0.5
_REPORT_SECONDS = 0.25
"""A worker that does not report for so long that its last run is over is replaced."""

_PID_SECONDS = 10.0
_KILL_SECONDS = 2.0

protected(Connection)  # marked here: a worker loads that module, too


class WorkerProcess:
    """One worker, seen from its program.

    Attributes:
        connection: the duplex connection to it, which does not block here.
        status: a descriptor that becomes readable when the process starts or ends.
        item_slots: the item that it is at, see :mod:`amorsize.workers.item_slots`.
        exit_code: once it has ended; None when unknown.
        start_error: the errno of a fork that failed, or 0.
    """

    def __init__(self, template: Template, modules: Modules = ()) -> None:
        self._started_at = time.time()
        self._template = template
        self._number, self.item_slots = template.take_item_slots()
        self.status = -1
        try:
            self.connection, theirs = connection_pair()
            try:
                self.status, their_status = os.pipe()
                os.set_blocking(self.status, False)
                try:
                    template.fork(theirs, their_status, self._number, modules)
                finally:
                    os.close(their_status)
            finally:
                os.close(theirs)
        except BaseException:
            self.item_slots.release()
            if self.status >= 0:
                os.close(self.status)
            if hasattr(self, "connection"):
                self.connection.close()
            template.give_back(self._number)
            raise
        self.clear_item_slots()
        self.exit_code: int | None = None
        self.start_error = 0
        self.idle_since = 0.0
        self.last_key: int | None = None
        self._pid = 0
        self._ended = False
        self._ready = False
        self._closed = False
        self._state: State | None = None
        self._modules = HeldModules()

    def clear_item_slots(self) -> None:
        self.item_slots[CHUNK] = self.item_slots[ITEM] = self.item_slots[ITEM_STARTED] = -1
        self.item_slots[CHUNK_STARTED] = 0

    def state_to_send(self, state: State) -> State | None:
        """Return the state of the program when the worker does not have it yet, else None."""
        if self._state == state:
            return None
        self._state = state
        return state

    def holds(self, files: Files) -> None:
        """Take note of modules that the worker has loaded."""
        self._modules.add(files)

    def is_up(self, at: float) -> None:
        """Take note that the worker was ready for work at ``at``, in seconds since the epoch."""
        self._ready = True
        machine.record_startup("process", 1, at - self._started_at)

    def is_ready(self) -> bool:
        """Say whether it has come up, also where nobody has read yet that it has."""
        return self._ready or (not self._ended and self.connection.poll())

    @property
    def pid(self) -> int:
        """Its process id; waits until the template has forked it. 0 where that has failed."""
        if not self._pid:
            self._read_status(_PID_SECONDS, until_pid=True)
        return self._pid

    def has_ended(self) -> bool:
        """Say whether it has ended, as far as the template has reported."""
        self._read_status(0.0)
        return self._ended

    def belongs_to(self, template: Template | None) -> bool:
        """Say whether this template has forked it."""
        return self._template is template

    def is_stopped(self) -> bool:
        """Say whether it is stopped, by a signal or a debugger, where the system reports that."""
        return is_in_state(self.pid, STOPPED)

    def is_usable(self, stamps: dict[str, Stamp | None]) -> bool:
        """Say whether an idle worker can serve a run; waits until it says that its last is over.

        Args:
            stamps: those of files that were looked at before, see :class:`HeldModules`.
        """
        if self.has_ended() or time.monotonic() - self.idle_since > IDLE_SECONDS - _MARGIN_SECONDS:
            return False
        deadline = time.monotonic() + _REPORT_SECONDS
        try:
            while self.last_key is not None:
                left = deadline - time.monotonic()
                if left <= 0 or not self.connection.poll(left):
                    return False
                message = protocol.receive(self.connection)
                match message:
                    case (("ready", float() as at), _):
                        self.is_up(at)
                    case (("loaded", _, files), _):
                        self.holds(files)
                    case (("idle", key, files), _):
                        self.holds(files)
                        if key == self.last_key:
                            self.last_key = None
            return not (self._modules.are_stale(stamps) or self.is_stopped())
        except (EOFError, OSError):
            return False

    def end(self) -> None:
        """Ask it to end: it does when it next looks at its connection."""
        self.connection.close()

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        if self.has_ended():
            return
        if not self.pid:
            self._template.kill()  # it does not answer
            return
        try:
            os.kill(self.pid, number)
        except OSError:
            pass  # it has ended, or it belongs to another user by now

    def wait(self, timeout: float) -> bool:
        """Wait for its end; say whether it has ended."""
        self._read_status(timeout)
        return self._ended

    def reap(self, timeout: float) -> int | None:
        """Wait for its end and release everything; kills it when the time is up.

        Returns its exit code, or None when unknown.
        """
        try:
            if not self.wait(timeout):
                self.kill()
                self.wait(_KILL_SECONDS)
        finally:  # also where a second Ctrl-C ends the wait
            self.close()
        return self.exit_code

    def close(self) -> None:
        """Release the descriptors; the process is on its own, and ends."""
        if self._closed:
            return
        self._closed = True
        self.connection.close()
        self.item_slots.release()
        os.close(self.status)
        self._template.give_back(self._number)

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):  # a Ctrl-C has kept it from its owner
            self.close()

    @protected_between_calls
    def _read_status(self, timeout: float, *, until_pid: bool = False) -> None:
        """Read what the template has reported; wait for an end, or for the process id."""
        deadline = time.monotonic() + timeout
        while not (self._ended or self._closed or (until_pid and self._pid)):
            try:
                data = os.read(self.status, STATUS.size)
            except BlockingIOError:
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                self._wait_for_status(left)
                continue
            self._take_status(data)

    def _wait_for_status(self, seconds: float) -> None:
        poller = select.poll()
        poller.register(self.status, select.POLLIN)
        poller.poll(seconds * 1000)

    @protected
    def _take_status(self, data: bytes) -> None:
        kind, number = STATUS.unpack(data) if data else (b"", 0)
        match kind:
            case b"P":
                self._pid = number
            case b"X":
                self._ended, self.exit_code = True, number
            case b"E":
                self._ended, self.start_error = True, number
            case _:
                # The template was killed. Workers die with it, unless they are frozen.
                self._ended = True
                if not self._pid:
                    self.exit_code = self._template.find_exit_code()
                elif not self.connection.is_ended():
                    try:
                        os.kill(self._pid, signal.SIGKILL)
                    except OSError:
                        pass


class Membership:
    """One execution's share of the pool. Used from that execution's thread."""

    def __init__(self, pool: WorkerPool, n_jobs: int, wake: Callable[[], None]) -> None:
        self._pool = pool
        self.n_jobs = n_jobs
        self.wake = wake
        self.held: set[WorkerProcess] = set()
        self.hungry = False

    def acquire(self, modules: Modules = ()) -> WorkerProcess | None:
        """Take an idle worker or start one; None when the others' share would be touched.

        Raises ExecutionError where there is none and none can be started.
        """
        return self._pool.acquire(self, modules)

    def release(self, worker: WorkerProcess, key: int) -> None:
        """Give a worker back that has nothing in progress; it will say that run ``key`` is over."""
        self._pool.release(self, worker, key)

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
        self._template: Template | None = None

    @protected
    def join(self, n_jobs: int, wake: Callable[[], None]) -> Membership:
        """Enter an execution that wants up to ``n_jobs`` workers.

        ``wake`` is called, from another thread, when a worker may be had.
        """
        member = Membership(self, n_jobs, wake)
        with self._lock:
            self._members.append(member)
        return member

    def warm_workers(self) -> int:
        """Count the idle workers that are up."""
        with self._lock:
            return sum(worker.is_ready() for worker in self._idle)

    def pids(self) -> list[int]:
        """List the processes of all workers, idle and leased."""
        with self._lock:
            return [worker.pid for worker in self._all()]

    @protected
    def acquire(self, member: Membership, modules: Modules) -> WorkerProcess | None:
        with self._lock:
            if len(member.held) >= self._share() and self._others_hungry(member):
                return None
            member.hungry = False
            worker = self._take_idle()
            if worker is not None:
                member.held.add(worker)
                return worker
            live = sum(len(each.held) for each in self._members)
            if member.held and live >= self._limit():
                member.hungry = True
                for each in self._members:
                    if each is not member and len(each.held) > self._share():
                        each.wake()
                return None
            try:
                worker = self._start(modules)
            except ExecutionError:
                if not member.held:
                    raise
                return None  # no more descriptors or processes: go on with those there are
            member.held.add(worker)
            return worker

    def _take_idle(self) -> WorkerProcess | None:
        """Take an idle worker that holds no old code; the others are replaced."""
        stamps: dict[str, Stamp | None] = {}
        template = self._live_template() if self._idle else None
        while self._idle:
            worker = self._idle.pop()
            if worker.belongs_to(template) and worker.is_usable(stamps):
                worker.clear_item_slots()
                return worker
            worker.kill()
            worker.close()
        return None

    def _start(self, modules: Modules) -> WorkerProcess:
        try:
            with spare_descriptors():
                template = self._live_template()
                if template is None:
                    template = self._template = start_template()
                return WorkerProcess(template, modules)
        except OSError as error:
            raise cannot_start(error) from error

    def _live_template(self) -> Template | None:
        """Return the template, unless it was killed or this process is not what it was then."""
        if self._template is not None and not self._template.is_usable():
            self._template.retire()
            self._template = None
        return self._template

    @protected
    def release(self, member: Membership, worker: WorkerProcess, key: int) -> None:
        with self._lock:
            member.held.discard(worker)
            worker.idle_since = time.monotonic()
            worker.last_key = key
            self._idle.append(worker)
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
        with ExitStack() as reaping:
            reaping.callback(self._wake_hungry, besides=member)
            for worker in left:  # its execution was interrupted before it could let go of them
                reaping.callback(worker.reap, 0)

    def shutdown(self) -> None:
        """End every worker: idle ones are asked, those at work are killed."""
        with self._lock:
            idle, self._idle = self._idle, []
            busy = [worker for member in self._members for worker in member.held]
            template, self._template = self._template, None
        for worker in busy:
            worker.kill()  # its execution sees the death and reports it
        _end_all(idle)
        if template is not None:
            template.retire()

    def forget(self) -> None:
        """In a forked child: let go of everything without touching the parent's workers."""
        inherited, template = self._all(), self._template
        self.__init__()  # type: ignore[misc]  # same object, fresh state
        if template is not None:
            template.forget()
        for worker in inherited:
            worker.close()

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


def _end_all(workers: list[WorkerProcess]) -> None:
    for worker in workers:
        worker.end()
    deadline = time.monotonic() + _END_SECONDS
    for worker in workers:
        worker.reap(max(0.0, deadline - time.monotonic()))


@contextmanager
def spare_descriptors() -> Iterator[None]:
    """See to it that a few descriptors are free after what is done here; else raise OSError.

    With none at all, neither could the rest of this package be loaded where it is needed, nor could
    the user's function, in this process, open a file.
    """
    spare: list[int] = []
    try:
        for _ in range(_SPARE_PIPES):
            spare.extend(os.pipe())
        yield
    finally:
        for fd in spare:
            os.close(fd)


def cannot_start(error: OSError) -> ExecutionError:
    """Make the error of a run that can have no worker; the automatic choice remembers it."""
    problem = f"no worker process can be started: {error}"
    process_support.note_failure(problem)
    failed = ExecutionError(
        f"{problem}. The limits of this process or of the system may be reached (ulimit -n, -u, "
        "-f). Pass executor='thread', or free what they limit."
    )
    failed.problem = problem
    return failed


def find_modules(names: Sequence[str]) -> Modules:
    """Return modules that are loaded here, with the directories where they are found."""
    found = []
    for name in names:
        file = getattr(sys.modules.get(name), "__file__", None)
        if isinstance(file, str):
            depth = name.count(".") + (os.path.basename(file) == "__init__.py")
            for _ in range(depth + 1):
                file = os.path.dirname(file)
            found.append((name, file))
    return found


pool = WorkerPool()
warm_pool.pool = pool

atexit.register(pool.shutdown)
in_forked_child(pool.forget)
