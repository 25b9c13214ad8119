"""What the system counts of one thread, to be read from another."""

from __future__ import annotations

import threading
import time


class ThreadClocks:
    """CPU time of a thread, and the time for which it stood ready without a CPU.

    Args:
        clock: as ``time.pthread_getcpuclockid()`` gives it.
        native_id: as ``threading.get_native_id()`` gives it.
    """

    __slots__ = ("_before", "_clock", "_path")

    def __init__(self, clock: int, native_id: int) -> None:
        self._clock = clock
        self._path = f"/proc/self/task/{native_id}/schedstat"
        self._before: float | None = None

    @classmethod
    def of_this_thread(cls) -> ThreadClocks | None:
        """Return those of the calling thread; None where the system has none."""
        try:
            clock = time.pthread_getcpuclockid(threading.get_ident())
        except (AttributeError, OSError):
            return None
        return cls(clock, threading.get_native_id())

    def begin(self) -> None:
        """Count from now on."""
        self._before = self._read_queued()

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
        try:
            with open(self._path, "rb") as file:
                return int(file.read().split()[1]) * 1e-9  # proc(5), scheduler statistics
        except (OSError, ValueError, IndexError):
            return None
