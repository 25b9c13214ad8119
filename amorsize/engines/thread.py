"""Daemon threads of this process as workers."""

from __future__ import annotations

import contextvars
import itertools
import logging
import os
import queue
import threading
import time

from amorsize.engines.base import (
    SHORT_CHUNK_SECONDS,
    Backend,
    ChunkDone,
    Message,
    Overdue,
    Task,
    WorkerEnded,
    WorkerLost,
    WorkerStarted,
)
from amorsize.engines.pauses import PAUSE_WATCH_SECONDS, PauseWatch
from amorsize.errors import ExecutionError
from amorsize.workers.chunk import HOSTNAME, Chunk, run_chunk
from amorsize.workers.item_slots import CHUNK, CHUNK_STARTED, ITEM, ITEM_STARTED, SLOT_COUNT
from amorsize.workers.pass_monitor import PassMonitor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from amorsize.workers.cpu_time import Unfinished
    from amorsize.workers.pass_monitor import TooLong

logger = logging.getLogger(__name__)

CHUNKS_AHEAD = 2
"""Chunks per thread, at work or in the queue. All threads share the queue, so that no chunk waits
for a slow one. A thread that is done finds its next chunk there, and need not wait until the
calling thread gets the GIL."""

_STOP_GRACE_SECONDS = 0.1
_names = itertools.count()


def cannot_start_thread(
    error: RuntimeError, way_out: str = "pass executor='serial' without a time limit"
) -> ExecutionError:
    """Make the error of a run that can have no thread, as at the exit of the interpreter."""
    problem = f"no thread can be started ({error})"
    failed = ExecutionError(
        f"{problem}. Raise the limit of threads and processes (ulimit -u), or {way_out}."
    )
    failed.problem = problem
    return failed


class _Worker:
    thread: threading.Thread

    def __init__(self, key: int) -> None:
        self.key = key
        self.item_slots = [-1] * SLOT_COUNT
        self.chunk: Chunk | None = None
        self.started = False
        self.dismissed = False

    def unfinished(self) -> Unfinished | None:
        """Read what it has spent on the chunk that it is at."""
        if self.item_slots[CHUNK_STARTED] <= 0:
            return None
        from amorsize.workers.cpu_time import unfinished

        return unfinished(self.item_slots, os.getpid(), self.thread.native_id or 0)


class ThreadBackend(Backend):
    """Up to ``n_jobs`` daemon threads that share one queue of chunks.

    Threads cannot be stopped from outside: a cancelled one leaves its chunk after the current
    item, and one that does not return within 0.1 s is abandoned. As a daemon, it does not delay
    the interpreter's exit.

    Args:
        n_jobs: threads at most; each starts when there is a chunk for it. A single one runs the
            chunks of a serial run that must stay interruptible.
        too_long: whether to end a chunk early, after which none is started; None for never.
    """

    def __init__(self, n_jobs: int, too_long: TooLong | None = None) -> None:
        self._n_jobs = n_jobs
        self._monitor = None if too_long is None else PassMonitor(too_long)
        self._workers: dict[int, _Worker] = {}
        self._chunks: queue.SimpleQueue[Chunk | None] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[WorkerStarted | ChunkDone | None] = queue.SimpleQueue()
        self._in_flight = 0
        self._short = False
        self._stop = threading.Event()
        self._keys = itertools.count()
        # Held while a thread finishes a chunk, so that an overdue worker is dismissed with exactly
        # the chunk that it runs.
        self._finishing = threading.Lock()
        self._task: Task | None = None
        self._watch: PauseWatch | None = None

    def open(self, task: Task) -> None:
        self._task = task
        if task.stamp_items:
            self._watch = PauseWatch()
        self._context = contextvars.copy_context()

    def use_workers(self, n_jobs: int) -> None:
        self._n_jobs = n_jobs

    def has_room(self) -> bool:
        return self._in_flight < self._n_jobs * (CHUNKS_AHEAD if self._short else 1)

    def can_hold(self) -> bool:
        return self._in_flight < self._n_jobs * CHUNKS_AHEAD

    def submit(self, chunk: Chunk) -> None:
        if len(self._workers) < min(self._n_jobs, self._in_flight + 1):
            self._start_worker()
        self._in_flight += 1
        chunk.dispatched_at = time.time()
        self._chunks.put(chunk)

    def wait(self, timeout: float | None) -> Sequence[Message]:
        if self._watch is not None:
            self._watch.look()
            timeout = PAUSE_WATCH_SECONDS if timeout is None else min(timeout, PAUSE_WATCH_SECONDS)
        try:
            first = self._messages.get(timeout=timeout)
        except queue.Empty:
            return ()
        messages = [first]
        while not self._messages.empty():
            messages.append(self._messages.get_nowait())
        return [message for message in messages if self._note(message)]  # type: ignore[misc]

    def _note(self, message: WorkerStarted | ChunkDone | None) -> bool:
        if message is None:  # a wake-up
            return False
        worker = self._workers.get(message.worker)
        if worker is None:  # it was dismissed, and its chunk reported as lost
            return False
        if isinstance(message, WorkerStarted):
            worker.started = True
        elif isinstance(message, ChunkDone):
            self._in_flight -= 1
            self._short = message.outcome.duration < SHORT_CHUNK_SECONDS
        return True

    def wake(self) -> None:
        self._messages.put(None)

    def close(self, *, cancel: bool) -> Sequence[Message]:
        if self._monitor is not None:
            self._monitor.close()
        if cancel:
            self._stop.set()
        for _ in self._workers:
            self._chunks.put(None)
        deadline = time.monotonic() + _STOP_GRACE_SECONDS
        ended: list[Message] = []
        for worker in self._workers.values():
            # Idle threads end at once; work in progress is ended only by a cancelled run.
            if worker.thread.ident is not None:
                worker.thread.join(max(0.0, deadline - time.monotonic()))
        # The last reports of the threads are still unread: a start, a chunk that comes too late.
        ended.extend(self.wait(0))
        for worker in self._workers.values():
            if worker.started:
                stopped = "cancelled" if cancel else "finished"
                at_work = worker.chunk is not None and worker.thread.is_alive()
                reason = "abandoned" if at_work else stopped
                unfinished = worker.unfinished() if at_work else None
                ended.append(WorkerEnded(worker.key, reason, unfinished=unfinished))
        return ended

    def overdue(self, seconds: float) -> list[Overdue]:
        if self._watch is None:
            return []
        self._watch.look()
        late = []
        for worker in self._workers.values():
            chunk = worker.chunk
            if chunk is None or worker.item_slots[CHUNK] != chunk.id:
                continue
            stamp = worker.item_slots[ITEM_STARTED]
            if stamp > 0 and (running := self._watch.seconds_since(stamp)) > seconds:
                late.append(Overdue(worker.key, chunk, worker.item_slots[ITEM], running, stamp))
        return late

    def end_worker(self, late: Overdue) -> WorkerLost | None:
        with self._finishing:
            worker = self._workers[late.worker]
            if worker.chunk is not late.chunk or worker.item_slots[ITEM_STARTED] != late.stamp:
                return None
            worker.dismissed = True
            del self._workers[late.worker]
        self._in_flight -= 1
        if self._in_flight > len(self._workers):  # chunks in the queue need a thread
            self._start_worker()
        return WorkerLost(
            worker.key,
            os.getpid(),
            None,
            worker.started,
            late.chunk,
            late.item_index,
            exit_reason="abandoned",
            detail="its thread cannot be stopped and is abandoned",
            unfinished=worker.unfinished(),
        )

    def _start_worker(self) -> None:
        worker = _Worker(next(self._keys))
        worker.thread = threading.Thread(
            target=self._context.copy().run,
            args=(self._work, worker),
            name=f"amorsize-{next(_names)}",
            daemon=True,
        )
        self._workers[worker.key] = worker  # from here on close() ends it, also after a Ctrl-C now
        try:
            worker.thread.start()
        except RuntimeError as error:
            del self._workers[worker.key]
            if not self._workers:
                raise cannot_start_thread(error) from error
            logger.warning("Going on with %d threads: %s", len(self._workers), error)
            self._n_jobs = len(self._workers)

    def _work(self, worker: _Worker) -> None:
        task = self._task
        assert task is not None
        key, monitor = worker.key, self._monitor
        reported = False

        def stopped() -> bool:
            return worker.dismissed or self._stop.is_set()

        while (chunk := self._chunks.get()) is not None:
            if stopped():
                return
            worker.chunk = chunk
            if not reported:
                reported = True
                name = threading.current_thread().name
                self._messages.put(WorkerStarted(key, os.getpid(), HOSTNAME, name))
            outcome = run_chunk(
                task.func,
                chunk,
                return_exceptions=task.return_exceptions,
                item_slots=worker.item_slots,
                stamp_items=task.stamp_items,
                stopped=stopped,
                collect=task.collect,
                over=None if monitor is None else monitor.pass_over(chunk.items, chunk.start),
            )
            if outcome.results is None and not outcome.failures:
                self._messages.put(ChunkDone(key, outcome))  # stopped half way: too late to count
                return
            with self._finishing:
                if worker.dismissed:
                    return
                worker.item_slots[CHUNK], worker.item_slots[CHUNK_STARTED] = -1, 0
                worker.chunk = None
            is_left = outcome.size < len(chunk.items) and not outcome.is_full
            if outcome.is_full:
                monitor = None  # its other items are out of turn: no chunk can be taken back
            done = ChunkDone(key, outcome)
            del chunk, outcome  # not to be held while the next one is waited for
            self._messages.put(done)
            del done
            if is_left:
                return
