"""The calling thread as the only worker."""

from __future__ import annotations

import os
import threading
import time

from amorsize.engines.base import Backend, ChunkDone, Message, Task, WorkerEnded, WorkerStarted
from amorsize.workers.chunk import HOSTNAME, Chunk, run_chunk
from amorsize.workers.pass_monitor import PassMonitor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from amorsize.workers.pass_monitor import TooLong


class SerialBackend(Backend):
    """Runs each chunk inside ``wait()``, at the speed of a loop.

    Args:
        too_long: whether to end a chunk early; None for never.
    """

    def __init__(self, too_long: TooLong | None = None) -> None:
        self._monitor = None if too_long is None else PassMonitor(too_long)
        self._task: Task | None = None
        self._chunk: Chunk | None = None
        self._started = False
        self._began: tuple[float, float] | None = None

    def open(self, task: Task) -> None:
        self._task = task

    def has_room(self) -> bool:
        return self._chunk is None

    def submit(self, chunk: Chunk) -> None:
        chunk.dispatched_at = time.time()
        self._chunk = chunk

    def wait(self, timeout: float | None) -> Sequence[Message]:
        if self._chunk is None or self._task is None:
            return ()
        if not self._started:
            self._started = True
            name = threading.current_thread().name
            return (WorkerStarted(0, os.getpid(), HOSTNAME, name),)
        chunk, monitor = self._chunk, self._monitor
        if self._task.collect is not None:
            self._began = time.perf_counter(), time.thread_time()
        outcome = run_chunk(
            self._task.func,
            chunk,
            return_exceptions=self._task.return_exceptions,
            exits_pass=True,
            collect=self._task.collect,
            over=None if monitor is None else monitor.pass_over(chunk.items, chunk.start),
        )
        self._chunk = self._began = None
        return (ChunkDone(0, outcome),)

    def wake(self) -> None:
        pass  # wait() never sleeps

    def close(self, *, cancel: bool) -> Sequence[Message]:
        if self._monitor is not None:
            self._monitor.close()
        if not self._started:
            return ()
        unfinished = None
        if self._began is not None:  # Ctrl-C in the middle of a call
            from amorsize.workers.cpu_time import Unfinished

            began, cpu_began = self._began
            unfinished = Unfinished(time.perf_counter() - began, time.thread_time() - cpu_began)
        return (WorkerEnded(0, "cancelled" if cancel else "finished", unfinished=unfinished),)
