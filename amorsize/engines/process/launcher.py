"""Starts the template of this process, and asks it for workers."""

from __future__ import annotations

import fcntl
import mmap
import os
import pickle
import signal
import sys
import time
from collections.abc import Sequence

from amorsize.engines import warm_pool
from amorsize.engines.process.connection import connection_pair
from amorsize.engines.process.program_state import needs_site
from amorsize.errors import ExecutionError
from amorsize.planning.process_support import why_no_template
from amorsize.workers import in_forked_child
from amorsize.workers.item_slots import SLOT_COUNT
from amorsize.workers.role import is_worker

MAX_WORKERS = 1365
"""Workers of one template: the item slots of so many fit into 32 KB."""

_BOOT = (
    "import gc, sys; gc.disable(); sys.path.insert(0, sys.argv[1]); import amorsize; "
    "del sys.path[0]; "
    "from amorsize.engines.process.template import main; main()"
)
_PACKAGE_PARENT = os.path.abspath(__file__).rsplit(os.sep, 4)[0]
_CONTROL_FD, _SLOTS_FD = 3, 4
_FREE_FD = 10
"""Our descriptors are moved up to here, out of the way of those two."""

_END_SECONDS = 1.0
_ADVICE = "Pass executor='thread', which needs no other process."


class Template:
    """The template process, seen from its program.

    Raises:
        ExecutionError: it cannot be started; the message says why.

    Attributes:
        workers: how many of its workers have not been let go of.
        retired: whether it forks no more, and ends with the last of its workers.
    """

    def __init__(self) -> None:
        problem = why_no_template()
        if problem is not None:
            raise ExecutionError(f"worker processes cannot be started: {problem}. {_ADVICE}")
        self.identity = _identity()
        self.workers = 0
        self.retired = False
        self._pid = 0
        self._exit_code: int | None = None
        self._free_numbers = list(range(MAX_WORKERS - 1, -1, -1))
        self._control, theirs = connection_pair()
        slots_file = -1
        try:
            slots_file = _slots_file(MAX_WORKERS * SLOT_COUNT * 8)
            self._mapping = mmap.mmap(slots_file, 0)
            self._all_slots = memoryview(self._mapping).cast("q")
            self._pid = _spawn(theirs, slots_file)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(theirs)
            if slots_file >= 0:
                os.close(slots_file)

    def is_usable(self) -> bool:
        """Say whether it runs, and would fork children of the process as it is now."""
        return not self.retired and self.identity == _identity() and not self._control.is_ended()

    def fork(
        self, connection: int, status: int, number: int, modules: Sequence[tuple[str, str]]
    ) -> None:
        """Ask for a worker, which has imported ``modules``, given with their directories.

        The template answers through the descriptor ``status``, which ends without an answer where
        the template has ended. Raises OSError when it is frozen.
        """
        try:
            self._control.send(pickle.dumps((number, modules), 5), b"", (connection, status))
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


_early: Template | None = None


def start_early() -> None:
    """Start the template before the pool is loaded, where a run is sure to need it.

    Its start takes as long as loading what runs a run. Errors are left to the run.
    """
    global _early
    if _early is None and not is_worker() and warm_pool.pool is None:
        try:
            _early = Template()
        except (ExecutionError, OSError):
            pass


@in_forked_child
def _forget_early() -> None:
    global _early
    template, _early = _early, None
    if template is not None:
        template.forget()


def take_template() -> Template:
    """Return the template that was started early, or a new one."""
    global _early
    template, _early = _early, None
    return Template() if template is None or not template.is_usable() else template


def _identity() -> tuple[object, ...]:
    """Return what a template passes on to its workers and cannot change."""
    return (
        os.getpid(),
        sys.executable,
        os.getresuid() if hasattr(os, "getresuid") else (os.getuid(), os.geteuid()),
        os.getresgid() if hasattr(os, "getresgid") else (os.getgid(), os.getegid()),
        os.getgroups(),
        needs_site(),
    )


_hash_seed = ""


def _environment() -> dict[str, str]:
    """Return the environment that a template starts in; workers get that of their run."""
    global _hash_seed
    environment = dict(os.environ)
    # Paths are part of the state of each run, and what lies there is the user's.
    for name in ("PYTHONPATH", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONPROFILEIMPORTTIME"):
        environment.pop(name, None)
    if "PYTHONHASHSEED" not in environment:
        # The program's own seed cannot be read; all of its workers have one.
        _hash_seed = _hash_seed or str(int.from_bytes(os.urandom(4), "big"))
        environment["PYTHONHASHSEED"] = _hash_seed
    return environment


def _interpreter_flags() -> list[str]:
    """Return the flags that this interpreter runs with; ``subprocess`` takes long to import."""
    names = {"debug": "d", "dont_write_bytecode": "B", "verbose": "v", "bytes_warning": "b"}
    names |= {"optimize": "O", "no_site": "S", "isolated": "I"}
    if not sys.flags.isolated:
        names |= {"ignore_environment": "E", "no_user_site": "s"}
    flags = [
        "-" + letter * number
        for name, letter in names.items()
        if (number := int(getattr(sys.flags, name))) > 0
    ]
    flags += [f"-W{option}" for option in sys.warnoptions]
    for name, value in sys._xoptions.items():
        flags += ["-X", name if value is True else f"{name}={value}"]
    return flags


def _spawn(control: int, slots_file: int) -> int:
    command = [sys.executable, *_interpreter_flags()]
    command += ["-S"] * needs_site() + ["-P", "-c", _BOOT, _PACKAGE_PARENT]
    moved = []
    try:
        for fd in (control, slots_file):
            moved.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FREE_FD))
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, moved[0], _CONTROL_FD),
            (os.POSIX_SPAWN_DUP2, moved[1], _SLOTS_FD),
        ]
        return os.posix_spawn(
            sys.executable,
            command,
            _environment(),
            file_actions=actions,
            setsigmask=[],  # signals that the program blocks, or ignores
            setsigdef=[signal.SIGCHLD, signal.SIGTERM, signal.SIGIO],
        )
    finally:
        for fd in moved:
            os.close(fd)


def _slots_file(size: int) -> int:
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
