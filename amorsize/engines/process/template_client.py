"""The template of this process, seen from the program: asks it for workers, and ends it."""

from __future__ import annotations

import mmap
import os
import time
from _pickle import dumps

from amorsize.engines import warm_pool
from amorsize.engines.process import launcher
from amorsize.engines.process.connection import Connection
from amorsize.errors import ExecutionError
from amorsize.planning.process_support import why_no_template
from amorsize.workers.item_slots import SLOT_COUNT

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Sequence
else:
    import _signal as signal  # what signal wraps in enums, which takes 2 ms

MAX_WORKERS = 1365
"""Workers of one template: the item slots of so many fit into 32 KB."""

_END_SECONDS = 1.0
_ADVICE = "Pass executor='thread', which needs no other process."


def start_template() -> Template:
    """Return the template that was started early, or a new one.

    Raises:
        ExecutionError: this program can have none; the message says why.
        OSError: it cannot be started.
    """
    early, warm_pool.early = warm_pool.early, None
    if early is not None:
        if early.pids and early.identity == launcher.read_identity():
            return Template(early)
        early.end()
    problem = why_no_template()
    if problem is not None:
        raise ExecutionError(f"worker processes cannot be started: {problem}. {_ADVICE}")
    launched = launcher.Launched()
    launched.start()
    return Template(launched)


class Template:
    """The template process, seen from its program.

    Args:
        launched: it has been started; this object owns it from now on.

    Raises:
        OSError: it cannot have the memory of the item slots.

    Attributes:
        identity: what it passes on to its workers and cannot change.
        workers: how many of its workers have not been let go of.
        retired: whether it forks no more, and ends with the last of its workers.
    """

    def __init__(self, launched: launcher.Launched) -> None:
        self.identity = launched.identity
        self.workers = 0
        self.retired = False
        [self._pid] = launched.pids
        self._has_forked = False
        self._exit_code: int | None = None
        self._free_numbers = list(range(MAX_WORKERS - 1, -1, -1))
        assert launched.control is not None
        self._control = Connection(launched.control.detach(), blocking=False)
        try:
            self._send_slots()
        except BaseException:
            self.close()
            raise

    def _send_slots(self) -> None:
        """Make the memory of the item slots, and have the template map it, too."""
        slots_file = _make_slots_file(MAX_WORKERS * SLOT_COUNT * 8)
        try:
            self._mapping = mmap.mmap(slots_file, 0)
            self._all_slots = memoryview(self._mapping).cast("q")
            try:
                self._control.send(dumps(("slots",), 5), b"", (slots_file,))
            except (BrokenPipeError, ConnectionResetError):
                self.retired = True  # it has ended at once: its exit code says why
        finally:
            os.close(slots_file)

    def is_usable(self) -> bool:
        """Say whether it runs, and would fork children of the process as it is now."""
        if self.retired or self._control.is_ended():
            return False
        return self.identity == launcher.read_identity()

    def fork(
        self, connection: int, status: int, number: int, modules: Sequence[tuple[str, str]]
    ) -> None:
        """Ask for a worker, which has imported ``modules``, given with their directories.

        The template answers through the descriptor ``status``, which ends without an answer where
        the template has ended. Raises OSError when it is frozen.
        """
        self._has_forked = True
        try:
            self._control.send(dumps(("fork", number, modules), 5), b"", (connection, status))
        except (BrokenPipeError, ConnectionResetError):
            self.retired = True
            return
        if self._control.unsent:
            self.kill()
            raise OSError("the template of the worker processes does not answer")

    def take_item_slots(self) -> tuple[int, memoryview[int]]:
        """Return the item slots of a new worker, and its number."""
        if not self._free_numbers:
            raise ExecutionError(f"there are {MAX_WORKERS} worker processes already")
        number = self._free_numbers.pop()
        self.workers += 1
        start = number * SLOT_COUNT
        return number, self._all_slots[start : start + SLOT_COUNT]

    def give_back(self, number: int) -> None:
        """Let go of a worker."""
        self._free_numbers.append(number)
        self.workers -= 1
        if self.retired and not self.workers:
            self.close()

    def retire(self) -> None:
        """Fork no more; end with the last worker."""
        self.retired = True
        if not self.workers:
            self.close()

    def kill(self) -> None:
        """End it at once, and its workers with it."""
        self.retired = True
        if self._pid:
            try:
                os.kill(self._pid, signal.SIGKILL)
            except OSError:
                pass

    def find_exit_code(self) -> int | None:
        """Return the exit code of a template that has ended by itself; None when unknown."""
        deadline = time.monotonic() + _END_SECONDS
        while self._pid and time.monotonic() < deadline:
            try:
                pid, status = os.waitpid(self._pid, os.WNOHANG)
            except OSError:
                self._pid = 0  # the program reaps all of its children
            else:
                if pid:
                    self._pid = 0
                    self._exit_code = os.waitstatus_to_exitcode(status)
                else:
                    time.sleep(0.001)
        return self._exit_code

    def forget(self) -> None:
        """In a forked child: let go of it; it goes on serving the parent."""
        self._pid = 0
        self.close()

    def close(self) -> None:
        """End it: it kills the workers that it still has. Again does nothing."""
        self.retired = True
        self._control.close()
        try:
            self._all_slots.release()
            self._mapping.close()  # it has a descriptor of its own
        except (AttributeError, BufferError):
            pass  # it was never made, or a worker's item slots are still in use
        if not self._has_forked:
            self.kill()  # it may not even be up
        pid, self._pid = self._pid, 0
        deadline = time.monotonic() + _END_SECONDS
        while pid:
            try:
                if os.waitpid(pid, os.WNOHANG)[0]:
                    break
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    break
            except OSError:
                break  # the program reaps all of its children
            time.sleep(0.001)


def _make_slots_file(size: int) -> int:
    try:
        fd = os.memfd_create("amorsize-item-slots")
    except (AttributeError, OSError):
        import tempfile

        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd
