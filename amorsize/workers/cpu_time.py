"""The CPU time of a chunk, and the time in which it may have had to wait for a CPU.

A chunk that nobody observes reads no clock of these. Each reading is one system call, 0.4 to 1 µs.
"""

from __future__ import annotations

import os
import threading
import time

from amorsize.workers import in_forked_child, thread_limits
from amorsize.workers.item_slots import CHUNK, CHUNK_STARTED, CPU_STARTED
from amorsize.workers.record import Record
from amorsize.workers.role import is_worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    from amorsize.workers.item_slots import ItemSlots

    Reading: TypeAlias = tuple[float, float, float, float | None]
    """CPU seconds of the thread, of the process and of its children; seconds in the queue."""


class CpuTime(Record):
    """The CPU time of the calls of a chunk.

    Attributes:
        seconds: CPU time of the thread that called.
        other_seconds: CPU time of the other threads of its process meanwhile.
        children_seconds: CPU time of child processes that ended in the calls.
        queued_seconds: for how long the thread was ready to run, but had no CPU; None where the
            system does not count that.
        is_limited: whether libraries may have used fewer cores than elsewhere.
    """

    seconds: float
    other_seconds: float = 0.0
    children_seconds: float = 0.0
    queued_seconds: float | None = None
    is_limited: bool = False


class Unfinished(Record):
    """Time in the function of a chunk that was not returned: its worker died, or was stopped.

    Attributes:
        seconds: since the calls of its chunk began.
        cpu_seconds: CPU time of its thread since then; None where that cannot be known.
    """

    seconds: float
    cpu_seconds: float | None = None


class CpuTimeCollector:
    """Collects a :class:`CpuTime`, as the tuple of its values.

    Args:
        item_slots: where to write when the calls began, for those who stop the worker.
    """

    __slots__ = ("_before", "_in_worker", "_item_slots", "_queued", "_read", "_taken")

    def __init__(self, item_slots: ItemSlots | None = None) -> None:
        self._item_slots = item_slots
        self._in_worker = is_worker()
        self._read = _read_in_worker if self._in_worker else _read
        self._taken = [0.0, 0.0, 0.0]
        self._queued: float | None = 0.0
        self._before: Reading

    def enter(self) -> None:
        slots = self._item_slots
        if slots is not None:
            slots[CPU_STARTED] = time.thread_time_ns()
            slots[CHUNK_STARTED] = time.monotonic_ns()
        self._before = self._read()

    def leave(self) -> None:
        cpu, process, children, queued = self._read()
        cpu_before, process_before, children_before, queued_before = self._before
        seconds = max(0.0, cpu - cpu_before)
        taken = self._taken
        taken[0] += seconds
        taken[1] += max(0.0, process - process_before - seconds)
        taken[2] += max(0.0, children - children_before)
        if queued is None or queued_before is None:
            self._queued = None
        elif self._queued is not None:
            self._queued += max(0.0, queued - queued_before)
        slots = self._item_slots
        if slots is not None:
            slots[CHUNK_STARTED] -= time.monotonic_ns()  # negative: that long, and over

    def take(self) -> tuple[float | None, ...]:
        return *self._taken, self._queued, self._in_worker and thread_limits.apply()


def unfinished(item_slots: ItemSlots, pid: int, thread_id: int) -> Unfinished | None:
    """Read what a worker has spent on a chunk that it did not return.

    Args:
        item_slots: those of the worker.
        pid, thread_id: the thread that calls, by the numbers of the system.
    """
    began = item_slots[CHUNK_STARTED]
    if began == 0 or item_slots[CHUNK] < 0:
        return None
    if began < 0:  # all calls were over, and the results on their way
        return Unfinished(-began * 1e-9)
    cpu = _read_scheduler(f"/proc/{pid}/task/{thread_id}/schedstat")
    return Unfinished(
        max(0.0, (time.monotonic_ns() - began) * 1e-9),
        None if cpu is None else max(0.0, (cpu[0] - item_slots[CPU_STARTED]) * 1e-9),
    )


def _read() -> Reading:
    return time.thread_time(), time.process_time(), 0.0, _queue_clock().read(RARELY_SECONDS)


def _read_in_worker() -> Reading:
    return time.thread_time(), time.process_time(), _read_children(), _queue_clock().read()


def _read_children() -> float:
    times = os.times()
    return times.children_user + times.children_system


RARELY_SECONDS = 0.05
"""Reading a file lets go of the GIL: among threads that compute, it takes long to get it back."""


class _QueueClock:
    """Reads how long this thread has stood in the queue for a CPU.

    The file stays open: opening it takes ten times as long as reading it.
    """

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self._read_at = float("-inf")
        self._last: float | None = None
        try:
            self._descriptor = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            pass

    def read(self, every: float = 0.0) -> float | None:
        """Read it, or return what was read less than so many seconds ago."""
        if self._descriptor is None:
            return None
        if every:
            now = time.perf_counter()
            if now - self._read_at < every:
                return self._last
            self._read_at = now
        try:
            self._last = int(os.pread(self._descriptor, 128, 0).split()[1]) * 1e-9
        except (OSError, ValueError, IndexError):
            self._last = None
        return self._last

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


_here = threading.local()


@in_forked_child
def _forget_clock_of_parent() -> None:
    vars(_here).clear()


def _queue_clock() -> _QueueClock:
    clock: _QueueClock | None = getattr(_here, "clock", None)
    if clock is None:
        clock = _here.clock = _QueueClock()
    return clock


def _read_scheduler(path: str) -> tuple[int, int] | None:
    """Read ns on a CPU, and ns in the queue for one (proc(5), scheduler statistics)."""
    try:
        with open(path, "rb") as file:
            on_cpu, queued = file.read().split()[:2]
    except (OSError, ValueError):
        return None
    return int(on_cpu), int(queued)
