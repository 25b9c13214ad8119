"""The files in which the processes of a program keep their totals, so that each can show the sum.

::

    <directory>/amorsize-<uid>/                      0700: of all programs of a user
        <host>-<process>-<exporter>/                 0700: of one program
            process-<started>-<pid>-<serial>.json    0600: the share of one process
            ended.json                               0600: the sum of the processes that have ended
            folding                                  locked by whoever adds to ``ended.json``

- A process replaces its file as a whole: no reader sees half of it, and what a killed process has
  written last stays.
- Whoever shows a page writes its own file first, and shows what the files hold. So no page shows
  less than an earlier one of another process: a sum that falls is a restart to Prometheus.
- Files of processes that have ended are added to ``ended.json``, which names them until they are
  removed: whoever ends in between loses nothing, and counts nothing twice. A reader that sees a
  file vanish, or ``ended.json`` replaced, reads again.
- The first process of a program removes what ended programs have left.

prometheus_client has a multiprocess mode, with a memory-mapped file for each process. It was not
used, because there a histogram has no exemplars, there are no custom collectors and no information,
the files of the dead grow without end, and each gauge needs a rule of its own anyway.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from amorsize.exporters.prometheus.file_lock import FileLock
from amorsize.exporters.prometheus.merging import Merger
from amorsize.exporters.prometheus.process_file import decode, encode
from amorsize.exporters.prometheus.processes import (
    Process,
    host,
    is_running,
    program_of,
    this_process,
)
from amorsize.exporters.prometheus.textfile import write_atomically
from amorsize.exporters.series import Series, Share

logger = logging.getLogger(__name__)

_ATTEMPTS = 20
"""To read files that others replace meanwhile. Each attempt fails by a process that ended then."""

SECONDS_PER_SECOND_OF_WRITING = 20
"""Writes at the ends of runs take this part of the time, at most."""

ENDED_FILE = "ended.json"

_PROGRAM = re.compile(r"(?P<host>.+)-(?P<pid>\d+)-(?P<started>\d+)-(?P<exporter>\d+)")
_PROCESS = re.compile(r"process-(?P<started>\d+)-(?P<pid>\d+)-\d+\.json")

_serial = itertools.count()
_exporters: dict[int, object] = {}
"""The numbers in use. ``setdefault()`` is atomic: it needs no lock that a fork could copy."""


class _File(NamedTuple):
    """A file that was read: of a process, or of those that have ended."""

    content: bytes
    share: Share
    is_closed: bool = False
    included: frozenset[str] = frozenset()


_NOTHING = _File(b"", Share({}, {}))


class ProgramFiles:
    """The share of this process, and those of the others of its program.

    Nothing is made before the first write: a process that runs nothing leaves no trace.

    Args:
        base: the directory that the user has named; None for that of temporary files.
        read: reads the share of this process; None once there is none.
        exporter: which of the exporters of a process this is, counted from 0; None for the first
            number that is free. Exporters of the same number are added up.
    """

    def __init__(
        self, base: Path | None, read: Callable[[], Share | None], exporter: int | None = None
    ) -> None:
        self._base = base
        self._read_own = read
        self.exporter = _take_number(self) if exporter is None else exporter
        _exporters[self.exporter] = self
        self._writing = threading.RLock()  # a signal handler may end a stream over its holder
        self._merging = threading.RLock()
        self._writes = 0
        self._last: Share | None = None
        self._own: Path | None = None
        self._is_closed = False
        self._read_before: dict[str, _File] = {}
        self._written_at = 0.0
        self._seconds_to_write = 0.0

    @property
    def are_used(self) -> bool:
        """Whether this process has written its file."""
        return self._last is not None

    @property
    def directory(self) -> Path:
        """The directory of the program; it is made if there is none.

        Raises:
            OSError: it cannot be made, or somebody else may write to it.
        """
        return self._own_path().parent

    def write(self) -> None:
        """Write the share of this process.

        Raises:
            OSError: it cannot be written.
        """
        self._write()

    def may_write_at_once(self) -> bool:
        """Return whether the last write is long ago, beside the time that it took."""
        seconds = time.monotonic() - self._written_at
        return seconds >= SECONDS_PER_SECOND_OF_WRITING * self._seconds_to_write

    def merge(self) -> Series:
        """Write the share of this process, and add up those of all.

        Raises:
            OSError: the files cannot be written, or not be read.
        """
        with self._merging:
            own = self._write()
            if own is None:
                return {}
            for _ in range(_ATTEMPTS):
                try:
                    return self._add_up(own)
                except FileNotFoundError:
                    continue  # another process has folded it: it is in ended.json now
            raise OSError(f"the files of {self.directory} change too often to be read")

    def close(self) -> None:
        """Leave the totals that were written last to the other processes.

        If there is none, and will be none because this one began the program, remove everything.
        """
        with self._writing:
            if self._is_closed:
                return
            try:
                if self._own is not None and self._last is not None:
                    self._replace(self._last, is_closing=True)
                _, directory = self._directories()
                if directory.is_dir():
                    _remove_if_last(directory)
            except OSError as error:
                logger.debug("The files of the program are left as they are: %r", error)
            finally:
                self._is_closed = True
                self.forget()

    def forget(self) -> None:
        """Give up the exporter's number, and leave everything else as it is."""
        if _exporters.get(self.exporter) is self:
            del _exporters[self.exporter]

    # --- this process ----

    def _write(self) -> Share | None:
        with self._writing:
            while not self._is_closed:
                self._writes += 1
                this_write = self._writes
                share = self._read_own()
                if share is None:
                    break
                self._replace(share)
                if self._writes == this_write:
                    return share
                # A signal handler has written meanwhile, on this thread, and newer numbers.
            return None

    def _replace(self, share: Share, *, is_closing: bool = False) -> None:
        began = time.monotonic()
        content = encode(share, closed=is_closing)
        try:
            write_atomically(self._own_path(), content, mode=0o600)
        except FileNotFoundError:  # somebody has removed the directory: it is made again
            self._own = None
            write_atomically(self._own_path(), content, mode=0o600)
        self._last = share
        self._written_at = time.monotonic()
        self._seconds_to_write = self._written_at - began

    def _own_path(self) -> Path:
        if self._own is None:
            user, directory = self._directories()
            _private(user)
            _private(directory)
            _remove_ended_programs(user)
            process = this_process()
            self._own = directory / f"process-{process.started}-{process.pid}-{next(_serial)}.json"
        return self._own

    def _directories(self) -> tuple[Path, Path]:
        """Name the directory of the user's programs, and that of this one."""
        base = Path(tempfile.gettempdir()) if self._base is None else self._base
        user = base / f"amorsize-{os.geteuid()}"
        program = program_of(os.getpid())
        return user, user / f"{_host()}-{program.pid}-{program.started}-{self.exporter}"

    # --- the others ----

    def _add_up(self, own: Share) -> Series:
        """Add up all shares.

        Raises:
            FileNotFoundError: another process has changed the files meanwhile.
        """
        directory = self.directory
        paths = _files_of_processes(directory)
        ended = self._read(directory / ENDED_FILE)
        merger = Merger()
        merger.add(ended.share, is_running=False)
        to_fold = False
        for path in paths:
            if path == self._own:
                merger.add(own)
            elif path.name in ended.included:
                to_fold = True  # its process was being killed, and has written once more
            else:
                read = self._read(path)
                is_over = read.is_closed or not is_running(_process_of(path))
                merger.add(read.share, is_running=not is_over)
                to_fold = to_fold or is_over
        if self._read(directory / ENDED_FILE).content != ended.content:
            raise FileNotFoundError
        if to_fold:
            self._fold(directory)
        _remove_unfinished(directory)
        return merger.share().shown()

    def _read(self, path: Path) -> _File:
        """Read a file, or remember it.

        Raises:
            FileNotFoundError: no process has this file.
        """
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            if path.name == ENDED_FILE:  # none has ended
                return _NOTHING
            self._read_before.pop(path.name, None)
            raise
        before = self._read_before.get(path.name)
        if before is not None and before.content == content:
            return before
        try:
            share, further = decode(content)
            is_closed, included = further.get("closed", False), further.get("included", ())
            read = _File(content, share, bool(is_closed), frozenset(included))
        except ValueError as error:
            logger.warning("%s is left out of the totals of this program: %s", path, error)
            read = _File(content, Share({}, {}))
        self._read_before[path.name] = read
        return read

    def _fold(self, directory: Path) -> None:
        """Add the shares of processes that have ended to those that ended before."""
        with FileLock(directory / "folding") as is_locked:
            if not is_locked:
                return  # another process is about to
            ended = self._read(directory / ENDED_FILE)
            merger = Merger()
            merger.add(ended.share, is_running=False)
            folded = []
            for path in _files_of_processes(directory):
                if path.name not in ended.included:
                    read = self._read(path)
                    if not read.is_closed and is_running(_process_of(path)):
                        continue
                    merger.add(read.share, is_running=False)
                folded.append(path)
            content = encode(merger.share(), included=[path.name for path in folded])
            write_atomically(directory / ENDED_FILE, content, mode=0o600)
            for path in folded:
                self._read_before.pop(path.name, None)
                path.unlink(missing_ok=True)


# --- the directory ----


def _take_number(owner: object) -> int:
    return next(n for n in itertools.count() if _exporters.setdefault(n, owner) is owner)


def _private(directory: Path) -> None:
    """Make a directory that no other user can enter, or check that this is one.

    Raises:
        PermissionError: somebody else has made it, or may write to it.
    """
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError(
                f"'{directory}' must be a directory of this user's, which no other user can enter; "
                "remove it, or name another one with multiprocess_dir="
            ) from None


def _host() -> str:
    return re.sub(r"[^\w.-]", "", host().replace(" pid:", "-"))


def _remove_if_last(directory: Path) -> None:
    """Remove the directory of this program, if this process is the last one."""
    program, this = _program_of(directory), this_process()
    if program == this or not is_running(program):
        others = {_process_of(path) for path in _files_of_processes(directory)} - {this}
        if not any(map(is_running, others)):
            shutil.rmtree(directory, ignore_errors=True)


def _remove_ended_programs(user: Path) -> None:
    """Remove the directories of programs of this host of which no process runs."""
    for directory in user.iterdir():
        match = _PROGRAM.fullmatch(directory.name)
        if match is None or match["host"] != _host() or is_running(_program_of(directory)):
            continue
        try:
            processes = [_process_of(path) for path in _files_of_processes(directory)]
        except OSError:
            continue  # somebody else removes it
        if not any(map(is_running, processes)):
            shutil.rmtree(directory, ignore_errors=True)


def _program_of(directory: Path) -> Process:
    match = _PROGRAM.fullmatch(directory.name)
    assert match is not None
    return Process(int(match["pid"]), int(match["started"]))


def _files_of_processes(directory: Path) -> list[Path]:
    """List the files of processes, the oldest process first."""
    found = [path for path in directory.iterdir() if _PROCESS.fullmatch(path.name)]
    return sorted(found, key=lambda path: (_process_of(path).started, path.name))


def _remove_unfinished(directory: Path) -> None:
    """Remove files that were being written by processes that have been killed.

    Not once per process: a thread of one that counts as ended may still be creating such a file.
    """
    for unfinished in directory.glob(".process-*~"):
        whole = directory / unfinished.name[1:].rpartition(".")[0]
        if not is_running(_process_of(whole)):
            unfinished.unlink(missing_ok=True)


def _process_of(path: Path) -> Process:
    match = _PROCESS.fullmatch(path.name)
    assert match is not None
    return Process(int(match["pid"]), int(match["started"]))
