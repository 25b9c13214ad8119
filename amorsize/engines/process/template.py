"""The template: one process that forks the workers of a program, reaps them, and dies with it.

The template is a fresh interpreter with one thread. It has imported what every worker needs, and
nothing of the user's, so that a fork is safe and takes 1.5 ms. Over its control connection come
requests, each with two descriptors: the worker's connection, and the pipe for its status. When
the connection ends, so has the program: the template kills its workers, frozen ones too, and ends.

Each worker is tied to the template by a pipe in which nothing is ever written: where the template
is killed, its workers end as well.

Status records are a letter and a number: ``P`` process id, ``X`` exit code (negative for a
signal), ``E`` the errno of a fork that failed. A status that ends without ``X`` or ``E`` is one
of a template that was killed: the exit code is unknown.
"""

from __future__ import annotations

import gc
import mmap
import os
import select
import sys
import time
from _pickle import loads

from amorsize.engines.process import worker
from amorsize.engines.process.connection import STATUS, Connection
from amorsize.workers.item_slots import SLOT_COUNT

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any
else:
    import _signal as signal  # what signal wraps in enums, which takes 2 ms

CONTROL_FD = 3

_GRACE_SECONDS = 0.2
"""Workers that are idle end by themselves when the program does; the others are killed then."""
_REAP_SECONDS = 0.5
"""For killed workers to end, and to be reaped: in a container, nobody else may ever do that."""


class _Child:
    """A worker, seen from the template."""

    def __init__(self, status: int, lifeline: int) -> None:
        self.status = status
        self.lifeline = lifeline

    def close(self) -> None:
        os.close(self.status)
        os.close(self.lifeline)


class _Template:
    """Forks workers until the control connection ends."""

    def __init__(self, control: Connection) -> None:
        self._control = control
        self._children: dict[int, _Child] = {}
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._wake, False)

    def serve(self) -> worker.Birth | None:
        """Fork on request. Returns in each worker with what it begins with; None at the end."""
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        poller = select.poll()
        poller.register(self._control.fileno(), select.POLLIN)
        poller.register(self._woken, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll()}
            if self._woken in ready:
                self._drain()
            self._reap()
            if self._control.fileno() not in ready:
                continue
            try:
                while (message := self._control.receive()) is not None:
                    birth = self._answer(*loads(message[0]))
                    if birth is not None:
                        return birth
            except (EOFError, OSError):
                self._end()
                return None

    def _answer(self, request: str, *arguments: Any) -> worker.Birth | None:
        received = self._control.received
        if request == "slots":
            self._map_slots(received.pop(0))
            return None
        assert request == "fork", f"unknown request {request!r}"
        number, modules = arguments
        return self._fork(number, modules, received.pop(0), received.pop(0))

    def _map_slots(self, slots_file: int) -> None:
        """Map the memory in which workers show the items that they are at."""
        self._item_slots = memoryview(mmap.mmap(slots_file, 0)).cast("q")
        os.close(slots_file)

    def _fork(
        self, number: int, modules: list[tuple[str, str]], connection: int, status: int
    ) -> worker.Birth | None:
        _import(modules)
        lifeline = -1
        try:
            lifeline, ours = os.pipe()
            pid = os.fork()
        except OSError as error:
            if lifeline >= 0:
                os.close(lifeline)
                os.close(ours)
            os.close(connection)
            _report(status, b"E", error.errno or 0)
            os.close(status)
            return None
        if pid:
            os.close(connection)
            os.close(lifeline)
            self._children[pid] = _Child(status, ours)
            _report(status, b"P", pid)
            return None
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for child in (*self._children.values(), _Child(status, ours)):
            child.close()
        for fd in (self._woken, self._wake):
            os.close(fd)
        self._control.close()
        item_slots = self._item_slots[number * SLOT_COUNT :][:SLOT_COUNT]
        return worker.Birth(connection, item_slots, lifeline)

    def _reap(self) -> None:
        """Report the exit codes of workers that have ended.

        A code is reported before the process is reaped: as long as the program does not know of
        an end, the process id belongs to the worker, and may be killed.
        """
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while self._children:
            ended = os.waitid(os.P_ALL, 0, flags)
            if ended is None:
                return
            killed = ended.si_code != os.CLD_EXITED
            child = self._children.pop(ended.si_pid, None)
            if child is not None:
                _report(child.status, b"X", -ended.si_status if killed else ended.si_status)
                child.close()
            os.waitpid(ended.si_pid, 0)

    def _drain(self) -> None:
        try:
            while os.read(self._woken, 4096):
                pass
        except BlockingIOError:
            pass

    def _end(self) -> None:
        self._reap_for(_GRACE_SECONDS)
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        self._reap_for(_REAP_SECONDS)

    def _reap_for(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self._reap()
        while self._children and time.monotonic() < deadline:
            time.sleep(0.005)
            self._reap()


def _import(modules: list[tuple[str, str]]) -> None:
    """Import modules that all workers will need; each with the directory where it is found."""
    for name, directory in modules:
        if name not in sys.modules:
            sys.path.insert(0, directory)
            try:
                __import__(name)
            except Exception:  # the worker meets that again, and says so
                pass
            finally:
                sys.path.remove(directory)


def _report(status: int, kind: bytes, number: int) -> None:
    try:
        os.write(status, STATUS.pack(kind, number))
    except OSError:
        pass  # the program has given the worker up


def main() -> None:
    """Serve the program whose descriptors are there; in a worker, serve its runs."""
    for fd in (1, 2):  # a descriptor of ours in their place would be printed to
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_WRONLY)
    control = int(sys.argv[2])
    if control != CONTROL_FD:
        os.dup2(control, CONTROL_FD)
    os.closerange(CONTROL_FD + 1, os.sysconf("SC_OPEN_MAX"))  # inheritable ones of the program
    os.set_inheritable(CONTROL_FD, False)
    try:
        os.setsid()  # Ctrl-C in a terminal is for the program alone
    except PermissionError:
        pass  # it was started so
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # a collection in a worker leaves the pages shared that it need not look at
    birth = _Template(Connection(CONTROL_FD, blocking=False)).serve()
    if birth is None:
        os._exit(0)
    gc.enable()
    worker.main(birth)
