"""The base of engines that are not ours: chunks go out, replies and notes come in.

On every such engine, workers are known by their own reports: by the note that
a chunk has begun, where notes reach us, or else by its outcome.
"""

from __future__ import annotations

import itertools
import os
import pickle
import queue
import threading
import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from amorsize.engines.base import (
    SHORT_CHUNK_SECONDS,
    Backend,
    ChunkDone,
    ChunkRefused,
    Message,
    Task,
    WorkerEnded,
    WorkerLost,
    WorkerStarted,
)
from amorsize.engines.external.worker import (
    PackedChunk,
    Place,
    Reply,
    TaskSettings,
    origin,
)
from amorsize.engines.process import protocol
from amorsize.errors import ExecutionError, TransportError, UnpicklableItemError
from amorsize.workers import trace_link
from amorsize.workers.chunk import HOSTNAME, Chunk, ChunkOutcome
from amorsize.workers.log_records import read_levels
from amorsize.workers.record import Record, made

if TYPE_CHECKING:
    from amorsize.workers.cpu_time import Unfinished

_INLINE_BYTES = 16384
"""A function smaller than this is sent with every chunk; a larger one with the first chunks, and
then with those whose worker replies that it lacks it."""


class SubmittedChunk(Record):
    """A chunk in flight.

    Attributes:
        chunk: the chunk.
        future: the executor's future for it.
        place: where it last started, or None.
        with_task: send the function along, whatever its size.
        refused: why it could not be packed.
        sent: when it was handed to the executor, by the monotonic clock.
    """

    chunk: Chunk
    future: Any = None
    place: Place | None = None
    with_task: bool = False
    refused: TransportError | None = None
    sent: float = made(factory=time.monotonic)


class Worker(Record):
    """A worker that has started a chunk of this execution.

    Attributes:
        key: its number.
        place: where it is.
        since: when it began the chunk that it is at, or ended the one before; 0 where neither is
            known.
    """

    key: int
    place: Place
    since: float


class FutureDone(Record):
    """A future is done: with a reply, or with an error."""

    submitted: SubmittedChunk
    reply: Reply | ChunkOutcome | None = None
    error: BaseException | None = None
    at: float = made(factory=time.time)


class ChunkStarted(Record):
    """A chunk has started at a place; ``at`` is the monotonic clock of that place."""

    place: Place
    chunk_id: int
    at: float


Change: TypeAlias = FutureDone | ChunkStarted | None


class ExternalBackend(Backend):
    """A caller-owned executor, which is never shut down here.

    Args:
        n_jobs: chunks that may run at once.
    """

    def __init__(self, n_jobs: int) -> None:
        self.n_jobs = n_jobs
        self.key = os.urandom(16).hex()
        self.changes: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.in_flight: dict[int, SubmittedChunk] = {}
        self.workers: dict[Place, Worker] = {}
        self.failed: ExecutionError | None = None
        self._keys = itertools.count()
        self._short = False
        self._with_function = 0
        self._packing = threading.Lock()
        self._packed: bytes | None = None
        self.closing = False

    def open(self, task: Task) -> None:
        self.task = task

    def has_room(self) -> bool:
        return len(self.in_flight) < self.window(self._short)

    @abstractmethod
    def window(self, short: bool) -> int:
        """Return how many chunks may be in flight; ``short`` when they take a few milliseconds."""

    def reports_starts(self) -> bool:
        """Whether a chunk whose start was not reported has not begun."""
        return False

    @abstractmethod
    def send(self, submitted: SubmittedChunk) -> None:
        """Submit a chunk to the executor; keep its future in ``submitted.future``."""

    def submit(self, chunk: Chunk) -> None:
        if self.failed is not None:
            raise self.failed
        chunk.dispatched_at = time.time()
        submitted = self.in_flight[chunk.id] = SubmittedChunk(chunk)
        try:
            self.send(submitted)
        except BaseException:
            del self.in_flight[chunk.id]
            raise

    def wait(self, timeout: float | None) -> Sequence[Message]:
        messages: list[Message] = []
        try:
            self.handle(self.changes.get(timeout=timeout), messages)
            while not self.changes.empty():
                self.handle(self.changes.get_nowait(), messages)
        except queue.Empty:
            pass
        if self.failed is not None and not messages:
            raise self.failed
        return messages

    def wake(self) -> None:
        self.changes.put(None)

    def handle(self, change: Any, messages: list[Message]) -> None:
        """Turn one change into messages."""
        match change:
            case ChunkStarted(place, chunk_id, at):
                submitted = self.in_flight.get(chunk_id)
                if submitted is not None:
                    self.chunk_started(submitted, place, messages)
                    now = time.monotonic()
                    if place.hostname != HOSTNAME:
                        at = now
                    self.worker_at(place, messages).since = max(submitted.sent, min(at, now))
            case FutureDone(submitted):
                if self.in_flight.get(submitted.chunk.id) is submitted:
                    self._take_done(change, messages)

    def chunk_started(
        self, submitted: SubmittedChunk, place: Place, messages: list[Message]
    ) -> None:
        """Note where a chunk runs; a worker that was not known has started."""
        submitted.place = place
        self.worker_at(place, messages)

    def worker_at(self, place: Place, messages: list[Message]) -> Worker:
        """Return the worker at a place; reports its start when it is new."""
        worker = self.workers.get(place)
        if worker is None:
            worker = self.workers[place] = Worker(next(self._keys), place, 0.0)
            messages.append(
                WorkerStarted(
                    worker.key, place.pid, place.hostname, place.thread_name, place.details
                )
            )
        return worker

    def pack(self, submitted: SubmittedChunk, start_pipe: str = "") -> PackedChunk:
        """Pack a chunk; raises TransportError, also kept in ``submitted.refused``."""
        chunk = submitted.chunk
        try:
            task = self.pack_task()
            items = protocol.dump_items(chunk)
        except TransportError as error:
            submitted.refused = error
            raise
        with self._packing:
            with_task = (
                submitted.with_task
                or len(task) <= _INLINE_BYTES
                or self._with_function < max(1, self.n_jobs)
            )
            self._with_function += with_task
        chunk.items_bytes = max(chunk.items_bytes, len(items))
        return PackedChunk(
            key=self.key,
            origin=origin(),
            task=task if with_task else None,
            chunk_id=chunk.id,
            start=chunk.start,
            size=len(chunk.items),
            items=items,
            start_pipe=start_pipe,
            most_bytes=chunk.most_bytes,
        )

    def fail(self, text: str, cause: BaseException | None = None) -> None:
        """Fail the run, once all earlier messages are delivered."""
        if self.failed is None:
            self.failed = ExecutionError(text)
            self.failed.__cause__ = cause

    def executor_failed(
        self, submitted: SubmittedChunk, error: BaseException, messages: list[Message]
    ) -> None:
        """Handle an exception that the executor itself gave for a chunk."""
        chunk = submitted.chunk
        self.fail(
            f"the executor failed on chunk {chunk.id} (items {chunk.start} to "
            f"{chunk.start + len(chunk.items) - 1}), outside of the function: "
            f"{type(error).__name__}: {error}",
            error,
        )

    def _take_done(self, done: FutureDone, messages: list[Message]) -> None:
        submitted, reply = done.submitted, done.reply
        submitted.future = None  # it leads back here: the garbage collector is not to be needed
        if submitted.refused is not None:
            self._refuse(submitted, submitted.refused, messages)
        elif done.error is not None:
            self.executor_failed(submitted, done.error, messages)
        elif isinstance(reply, ChunkOutcome):  # it never left this process
            self._take_outcome(done, reply, messages)
        elif isinstance(reply, tuple):
            self._take_reply(done, reply, messages)
        else:
            self.fail(
                f"the executor returned {type(reply).__name__} for chunk {submitted.chunk.id}, "
                "not the result of the submitted call: its submit() must call its argument."
            )

    def _refuse(
        self, submitted: SubmittedChunk, error: TransportError, messages: list[Message]
    ) -> None:
        del self.in_flight[submitted.chunk.id]
        if isinstance(error, UnpicklableItemError):
            messages.append(ChunkRefused(submitted.chunk, error))
        elif self.failed is None:
            self.failed = error

    def _take_reply(self, done: FutureDone, reply: Reply, messages: list[Message]) -> None:
        submitted = done.submitted
        match reply:
            case ("outcome", Place() as place, header, payload):
                outcome = protocol.unpack_outcome(
                    header, payload, pid=place.pid, hostname=place.hostname
                )
                self.chunk_started(submitted, place, messages)
                self._take_outcome(done, outcome, messages)
            case ("missing", Place()):
                submitted.with_task, submitted.place = True, None
                try:
                    self.send(submitted)
                except ExecutionError as error:
                    self.failed = self.failed or error
            case ("unusable", Place() as place, text):
                self.failed = self.failed or TransportError(
                    f"the function cannot be loaded in worker process {place.pid} on "
                    f"{place.hostname}: {text}. Its module must be importable there: check "
                    "sys.path and what is installed."
                )

    def _take_outcome(
        self, done: FutureDone, outcome: ChunkOutcome, messages: list[Message]
    ) -> None:
        submitted = done.submitted
        del self.in_flight[submitted.chunk.id]
        if outcome.results is None and not outcome.failures and not self.closing:
            return self.fail(
                f"chunk {outcome.chunk_id} stopped half way, as if the run were over: was its "
                "directory in the folder for temporary files removed?"
            )
        assert submitted.place is not None
        worker = self.worker_at(submitted.place, messages)
        self._short = outcome.duration < SHORT_CHUNK_SECONDS
        _clamp(outcome, submitted.chunk.dispatched_at, done.at)
        ago = max(0.0, time.time() - (outcome.started_at + outcome.duration))
        # It may be at the next one, whose start was reported first.
        worker.since = max(worker.since, time.monotonic() - ago)
        messages.append(ChunkDone(worker.key, outcome))
        return None

    def at_work(self) -> set[Place]:
        """Return the places of the chunks in flight that have started."""
        return {each.place for each in self.in_flight.values() if each.place is not None}

    def last_reports(self, messages: list[Message]) -> list[Message]:
        """Handle the changes that are still unread; returns what to report of workers.

        A worker whose start was unread is reported, too, and chunks that come too late.
        """
        self.closing = True
        while not self.changes.empty():
            self.handle(self.changes.get_nowait(), messages)
        return [m for m in messages if not isinstance(m, ChunkRefused)]

    def end_workers(
        self, messages: list[Message], *, reason: str, at_work: str | None = None
    ) -> list[Message]:
        """Report the end of all workers; ``at_work`` is another reason for those at work."""
        busy = self.at_work() if at_work else set()
        unfinished = self.unfinished()
        for place, worker in self.workers.items():
            why = at_work if at_work and place in busy else reason
            messages.append(WorkerEnded(worker.key, why, unfinished=unfinished.get(worker.key)))
        self.workers.clear()
        return messages

    def spent_by(self, worker: Worker, since: float = 0.0) -> Unfinished | None:
        """Say what a worker has spent on its chunk, at most since then; None if nobody observes."""
        if self.task.collect is None:
            return None
        from amorsize.workers.cpu_time import Unfinished

        return Unfinished(max(0.0, time.monotonic() - max(since, worker.since)))

    def unfinished(self) -> dict[int, Unfinished | None]:
        """Say, by their keys, what workers have spent on chunks in flight."""
        placed = self.at_work()
        spent = {w.key: self.spent_by(w) for place, w in self.workers.items() if place in placed}
        # Of chunks that do not report their start, one is with each of those idle for longest.
        unplaced = [each for each in self.in_flight.values() if each.place is None]
        if self.reports_starts():
            unplaced = []
        others = [worker for place, worker in self.workers.items() if place not in placed]
        others.sort(key=lambda worker: worker.since)
        for worker, submitted in zip(others, unplaced, strict=False):
            spent[worker.key] = self.spent_by(worker, submitted.sent)
        return spent

    def lose_workers(self, messages: list[Message]) -> list[Message]:
        """Report that all workers died."""
        unfinished = self.unfinished()
        for worker in self.workers.values():
            spent = unfinished.get(worker.key)
            messages.append(WorkerLost(worker.key, worker.place.pid, None, True, unfinished=spent))
        self.workers.clear()
        return messages

    def pack_task(self) -> bytes:
        """Pack the function and the settings, once; raises TransportError."""
        with self._packing:
            if self._packed is None:
                settings = TaskSettings(
                    self.task.return_exceptions, self.task.collect, self.log_levels()
                )
                self._packed = pickle.dumps((settings, protocol.dump_function(self.task.func)), 5)
            return self._packed

    def log_levels(self) -> dict[str, int]:
        """Return the levels that loggers are to have where the chunks run."""
        return read_levels()


def _clamp(outcome: ChunkOutcome, dispatched_at: float, arrived_at: float) -> None:
    """Move a chunk and its spans to between dispatch and arrival: clocks differ."""
    started = outcome.started_at
    outcome.started_at = max(dispatched_at, min(started, arrived_at - outcome.duration))
    trace = outcome.extras.get("trace")
    if trace is not None and outcome.hostname != HOSTNAME:
        trace_link.shift(trace, round((outcome.started_at - started) * 1e9))
