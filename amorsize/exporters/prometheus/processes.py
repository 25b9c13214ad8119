"""Processes by identity, and the program that a process is part of.

A **program** is a process that was executed, with all processes that it has forked, or that
``multiprocessing`` has started for it, and theirs::

    gunicorn app:app ──fork──> worker            one program, with or without --preload
    uvicorn --workers 2 ──spawn──> worker        one program
    celery worker ──fork──> pool process         one program
    python job.py ──forkserver──> child          one program
    bash ──fork, exec──> python a.py, python b.py    two programs

So the processes of a program find each other without a common ancestor that has imported anything,
and two programs of one shell stay apart. Rejected: a variable that the first process sets (under
gunicorn and uvicorn, only the workers import the application) and the process group (a shell
script's programs share one).
"""

from __future__ import annotations

import os
import socket
from functools import cache
from typing import NamedTuple

_FORKED_WITHOUT_EXEC = 0x40
"""``PF_FORKNOEXEC`` in the flags of ``/proc/<pid>/stat`` (Linux, ``include/linux/sched.h``)."""

_MARKS_OF_MULTIPROCESSING = (b"--multiprocessing-fork", b"multiprocessing.forkserver")
"""In the command line of a process that it has spawned, and of its fork server."""


class Process(NamedTuple):
    """A process: ids are used again, an id with a start time is not.

    Attributes:
        pid: its id.
        started: when it started, by a clock that nobody sets: ticks since the boot on Linux,
            elsewhere milliseconds since the epoch as the system has noted them.
    """

    pid: int
    started: int


class _Status(NamedTuple):
    process: Process
    has_ended: bool
    parent: int
    session: int
    is_forked: bool
    """Runs what its parent ran: it was forked, and has executed nothing since."""


def this_process() -> Process:
    """Identify this process."""
    status = _status_of(os.getpid())
    return Process(os.getpid(), 0) if status is None else status.process


def program_of(pid: int) -> Process:
    """Find the program that a running process is part of: the process that was executed."""
    status = _status_of(pid)
    if status is None:
        return Process(pid, 0)
    while (parent := _parent_in_program(status)) is not None:
        status = parent
    return status.process


def is_running(process: Process) -> bool:
    """Return whether a process of this host has not ended. A zombie has."""
    status = _status_of(process.pid)
    return status is not None and not status.has_ended and status.process == process


def host() -> str:
    """Name the space in which a process id is unique: a host, or a container on it."""
    try:
        return f"{host_name()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return host_name()


def host_name() -> str:
    """Name the host, in characters that the name of a file may have."""
    return "".join(c if c.isalnum() or c in ".-_" else "_" for c in socket.gethostname())


def _parent_in_program(child: _Status) -> _Status | None:
    parent = _status_of(child.parent)
    # A process that has lost its parent is a child of the system's first process, in another
    # session.
    if parent is None or parent.session != child.session:
        return None
    if child.is_forked and _executable_of(child.parent) in (
        None,
        _executable_of(child.process.pid),
    ):
        return parent
    command = _command_of(child.process.pid)
    if any(mark in word for word in command for mark in _MARKS_OF_MULTIPROCESSING):
        return parent
    return None


def _status_of(pid: int) -> _Status | None:
    """Read the status of a process; None where there is none."""
    if not _has_proc():
        return _status_by_psutil(pid)
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in parentheses, may hold anything.
            fields = file.read().rpartition(b")")[2].split()
        state, parent, session, flags, started = (fields[each] for each in (0, 1, 3, 6, 19))
    except (OSError, IndexError, ValueError):
        return None
    return _Status(
        Process(pid, int(started)),
        has_ended=state in (b"Z", b"X"),
        parent=int(parent),
        session=int(session),
        is_forked=bool(int(flags) & _FORKED_WITHOUT_EXEC),
    )


def _status_by_psutil(pid: int) -> _Status | None:
    """Read the status of a process where there is no ``/proc``, as on macOS.

    There, a process that has its parent's command line counts as forked.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        return _Status(
            Process(pid, int(1000 * process.create_time())),
            has_ended=process.status() == psutil.STATUS_ZOMBIE,
            parent=process.ppid(),
            session=os.getsid(pid),
            is_forked=_command_of(pid) == _command_of(process.ppid()) != [],
        )
    except (psutil.Error, OSError):
        return None


def _command_of(pid: int) -> list[bytes]:
    if _has_proc():
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                return file.read().split(b"\0")
        except OSError:
            return []
    import psutil

    try:
        return [os.fsencode(word) for word in psutil.Process(pid).cmdline()]
    except (psutil.Error, OSError):
        return []


def _executable_of(pid: int) -> str | None:
    """Return the path of what a process executes; None where the system hides it."""
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return None


@cache
def _has_proc() -> bool:
    return os.path.exists("/proc/self/stat")
