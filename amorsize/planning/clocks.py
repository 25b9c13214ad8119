"""The system's clocks and counters: of the thread that asks and its process; of one thread, for
another."""

from __future__ import annotations

import os
import sys
import threading
import time

from amorsize.workers.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

try:
    import resource
except ImportError:  # on Windows
    HAS_RESOURCE = False
else:
    HAS_RESOURCE = True

# Linux only
_THREAD: int | None = getattr(resource, "RUSAGE_THREAD", None) if HAS_RESOURCE else None


def _read_usage() -> tuple[int | None, int, float]:
    if not HAS_RESOURCE:
        return None, 0, 0.0
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    children_seconds = children.ru_utime + children.ru_stime
    if _THREAD is None:
        return None, 0, children_seconds
    thread = resource.getrusage(_THREAD)
    return thread.ru_nvcsw, thread.ru_nivcsw, children_seconds


def read_peak_bytes() -> int:
    """Return the highest resident size of this process so far."""
    if not HAS_RESOURCE:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Reading(Record):
    """CPU seconds and context switches so far, as :class:`Clocks` have them."""

    cpu: float
    process_cpu: float
    voluntary: int | None
    involuntary: int
    children_cpu: float


class Clocks(Record):
    """Where the sample reads time from; tests bring their own.

    Attributes:
        wall: seconds on a monotonic clock.
        epoch: seconds since the epoch.
        thread_cpu: CPU seconds of the calling thread.
        process_cpu: CPU seconds of all threads of the process.
        usage: ``(voluntary, involuntary, children)``: context switches of the thread, the first
            None where they are not counted, and CPU seconds of child processes that ended.
        peak_bytes: the highest resident size of the process so far.
    """

    wall: Callable[[], float] = time.perf_counter
    epoch: Callable[[], float] = time.time
    thread_cpu: Callable[[], float] = time.thread_time
    process_cpu: Callable[[], float] = time.process_time
    usage: Callable[[], tuple[int | None, int, float]] = _read_usage
    peak_bytes: Callable[[], int] = read_peak_bytes

    def read(self) -> Reading:
        """Read all clocks but those on the wall."""
        return Reading(self.thread_cpu(), self.process_cpu(), *self.usage())


class ThreadClocks:
    """CPU time of a thread, and the time for which it stood ready without a CPU.

    Args:
        clock: as ``time.pthread_getcpuclockid()`` gives it.
        native_id: as ``threading.get_native_id()`` gives it.
    """

    __slots__ = ("_before", "_clock", "_file", "_native_id")

    def __init__(self, clock: int, native_id: int) -> None:
        self._clock = clock
        self._native_id = native_id
        self._file: int | None = None
        self._before: float | None = None

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)

    @classmethod
    def of_this_thread(cls) -> ThreadClocks | None:
        """Return those of the calling thread; None where the system has none."""
        try:
            clock = time.pthread_getcpuclockid(threading.get_ident())
        except (AttributeError, OSError):
            return None
        return cls(clock, threading.get_native_id())

    def begin(self) -> float | None:
        """Count from now on; return what was counted before, as :meth:`queued` does."""
        if self._file is None:  # it stays open: that takes ten times as long as reading it
            try:
                path = f"/proc/self/task/{self._native_id}/schedstat"
                self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return None
        before, now = self._before, self._read_queued()
        self._before = now
        return None if before is None or now is None else max(0.0, now - before)

    def cpu(self) -> float:
        """CPU seconds that the thread has had so far."""
        return time.clock_gettime(self._clock)

    def queued(self) -> float | None:
        """Seconds, since :meth:`begin`, for which the thread was ready but had no CPU.

        None where the system does not count that, or before :meth:`begin`.
        """
        if self._before is None or (now := self._read_queued()) is None:
            return None
        return max(0.0, now - self._before)

    def _read_queued(self) -> float | None:
        if self._file is None:
            return None
        try:
            return int(os.pread(self._file, 128, 0).split()[1]) * 1e-9  # proc(5), scheduler
        except (OSError, ValueError, IndexError):
            return None
