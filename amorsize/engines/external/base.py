"""What engines that are not ours have in common: chunks go out, replies and notes come in.

Whoever runs the chunks, their workers are known by what they say of themselves: by the note that
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
from typing import Any, TypeAlias

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

_INLINE_BYTES = 16384
"""A function smaller than this travels with every chunk; a larger one with the first chunks, and
then with those whose worker says that it lacks it."""


class Flight(Record):
    """A chunk that is out.

    Attributes:
        chunk: the chunk.
        future: what the engine gave for it.
        place: where it was last said to have begun, or None.
        with_task: send the function along, whatever its size.
        refused: why it could not be packed.
    """

    chunk: Chunk
    future: Any = None
    place: Place | None = None
    with_task: bool = False
    refused: TransportError | None = None


class Worker(Record):
    """A place that has begun a chunk of this execution."""

    key: int
    place: Place


class Landed(Record):
    """A future is done: with a reply, or with what went wrong instead."""

    flight: Flight
    reply: Reply | ChunkOutcome | None = None
    error: BaseException | None = None
    at: float = made(factory=time.time)


class Begun(Record):
    """A note: a chunk has begun there."""

    place: Place
    chunk_id: int


News: TypeAlias = Landed | Begun | None


class ForeignBackend(Backend):
    """An engine of somebody else's, which is never shut down here.

    Args:
        n_jobs: chunks that may run at once.
    """

    def __init__(self, n_jobs: int) -> None:
        self.n_jobs = n_jobs
        self.key = os.urandom(16).hex()
        self.news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.flights: dict[int, Flight] = {}
        self.workers: dict[Place, Worker] = {}
        self.failed: ExecutionError | None = None
        self._keys = itertools.count()
        self._short = False
        self._with_function = 0
        self._packing = threading.Lock()
        self._packed: bytes | None = None

    def open(self, task: Task) -> None:
        self.task = task

    def has_room(self) -> bool:
        return len(self.flights) < self.window(self._short)

    @abstractmethod
    def window(self, short: bool) -> int:
        """Return how many chunks may be out; ``short`` when they last a few milliseconds."""

    @abstractmethod
    def send(self, flight: Flight) -> None:
        """Hand a chunk to the engine; keep in ``flight.future`` what it gives for it."""

    def submit(self, chunk: Chunk) -> None:
        if self.failed is not None:
            raise self.failed
        chunk.dispatched_at = time.time()
        flight = self.flights[chunk.id] = Flight(chunk)
        try:
            self.send(flight)
        except BaseException:
            del self.flights[chunk.id]
            raise

    def wait(self, timeout: float | None) -> Sequence[Message]:
        news: list[Message] = []
        try:
            self.take(self.news.get(timeout=timeout), news)
            while not self.news.empty():
                self.take(self.news.get_nowait(), news)
        except queue.Empty:
            pass
        if self.failed is not None and not news:
            raise self.failed
        return news

    def wake(self) -> None:
        self.news.put(None)

    def take(self, each: Any, news: list[Message]) -> None:
        """Turn one piece of news into messages."""
        match each:
            case Begun(place, chunk_id):
                flight = self.flights.get(chunk_id)
                if flight is not None:
                    self.begun(flight, place, news)
            case Landed(flight):
                if self.flights.get(flight.chunk.id) is flight:
                    self._land(each, news)

    def begun(self, flight: Flight, place: Place, news: list[Message]) -> None:
        """Note where a chunk runs; tells of a worker that was not known."""
        flight.place = place
        self.worker_at(place, news)

    def worker_at(self, place: Place, news: list[Message]) -> Worker:
        """Find who works at a place, and tell of its start at its first appearance."""
        worker = self.workers.get(place)
        if worker is None:
            worker = self.workers[place] = Worker(next(self._keys), place)
            news.append(
                WorkerStarted(
                    worker.key, place.pid, place.hostname, place.thread_name, place.details
                )
            )
        return worker

    def pack(self, flight: Flight, notes: str = "") -> PackedChunk:
        """Pack a chunk; raises TransportError, also kept in the flight."""
        chunk = flight.chunk
        try:
            task = self.pack_task()
            items = protocol.dump_items(chunk)
        except TransportError as error:
            flight.refused = error
            raise
        with self._packing:
            carries = (
                flight.with_task
                or len(task) <= _INLINE_BYTES
                or self._with_function < max(1, self.n_jobs)
            )
            self._with_function += carries
        return PackedChunk(
            key=self.key,
            origin=origin(),
            task=task if carries else None,
            chunk_id=chunk.id,
            start=chunk.start,
            size=len(chunk.items),
            items=items,
            notes=notes,
        )

    def fail(self, text: str, cause: BaseException | None = None) -> None:
        """End the run, once what came before is told."""
        if self.failed is None:
            self.failed = ExecutionError(text)
            self.failed.__cause__ = cause

    def lost(self, flight: Flight, error: BaseException, news: list[Message]) -> None:
        """Tell what it means that the engine gives an exception of its own for a chunk."""
        chunk = flight.chunk
        self.fail(
            f"the executor failed on chunk {chunk.id} (items {chunk.start} to "
            f"{chunk.start + len(chunk.items) - 1}), outside of the function: "
            f"{type(error).__name__}: {error}",
            error,
        )

    def _land(self, landed: Landed, news: list[Message]) -> None:
        flight, reply = landed.flight, landed.reply
        flight.future = None  # which leads back here: nothing is to wait for the cycle collector
        if flight.refused is not None:
            self._refuse(flight, flight.refused, news)
        elif landed.error is not None:
            self.lost(flight, landed.error, news)
        elif isinstance(reply, ChunkOutcome):  # it never left this process
            self._take_outcome(landed, reply, news)
        elif isinstance(reply, tuple):
            self._take_reply(landed, reply, news)
        else:
            self.fail(
                f"the executor gave {type(reply).__name__} for chunk {flight.chunk.id}, which is "
                "not what the submitted call returns: its submit() must call what it is given."
            )

    def _refuse(self, flight: Flight, error: TransportError, news: list[Message]) -> None:
        del self.flights[flight.chunk.id]
        if isinstance(error, UnpicklableItemError):
            news.append(ChunkRefused(flight.chunk, error))
        elif self.failed is None:
            self.failed = error

    def _take_reply(self, landed: Landed, reply: Reply, news: list[Message]) -> None:
        flight = landed.flight
        match reply:
            case ("outcome", Place() as place, header, payload):
                outcome = protocol.unpack_outcome(
                    header, payload, pid=place.pid, hostname=place.hostname
                )
                flight.place = place
                self._take_outcome(landed, outcome, news)
            case ("missing", Place()):
                flight.with_task, flight.place = True, None
                try:
                    self.send(flight)
                except ExecutionError as error:
                    self.failed = self.failed or error
            case ("unusable", Place() as place, text):
                self.failed = self.failed or TransportError(
                    f"the function cannot be loaded in worker process {place.pid} on "
                    f"{place.hostname}: {text}. Its module must be importable there: check "
                    "sys.path and what is installed."
                )

    def _take_outcome(self, landed: Landed, outcome: ChunkOutcome, news: list[Message]) -> None:
        flight = landed.flight
        del self.flights[flight.chunk.id]
        if outcome.results is None and not outcome.failures:
            return self.fail(
                f"chunk {outcome.chunk_id} was left half way, as if the run were over: was its "
                "directory in the folder for temporary files removed?"
            )
        assert flight.place is not None
        worker = self.worker_at(flight.place, news)
        self._short = outcome.duration < SHORT_CHUNK_SECONDS
        _clamp(outcome, flight.chunk.dispatched_at, landed.at)
        news.append(ChunkDone(worker.key, outcome))
        return None

    def at_work(self) -> set[Place]:
        """Name the places of the chunks that are out and have begun."""
        return {each.place for each in self.flights.values() if each.place is not None}

    def tell_ends(
        self, news: list[Message], *, reason: str, at_work: str | None = None
    ) -> list[Message]:
        """Tell the ends of all workers; ``at_work`` is another reason for those at work."""
        busy = self.at_work() if at_work else set()
        for place, worker in self.workers.items():
            why = at_work if at_work and place in busy else reason
            news.append(WorkerEnded(worker.key, why))
        self.workers.clear()
        return news

    def tell_deaths(self, news: list[Message]) -> list[Message]:
        """Tell that all workers died."""
        for worker in self.workers.values():
            news.append(WorkerLost(worker.key, worker.place.pid, None, True))
        self.workers.clear()
        return news

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
        """Say which levels loggers are to have where the chunks run."""
        return read_levels()


def _clamp(outcome: ChunkOutcome, dispatched_at: float, landed_at: float) -> None:
    """Move a chunk, and the spans in it, to between dispatch and arrival: clocks differ."""
    began = outcome.started_at
    outcome.started_at = max(dispatched_at, min(began, landed_at - outcome.duration))
    trace = outcome.extras.get("trace")
    if trace is not None and outcome.hostname != HOSTNAME:
        trace_link.shift(trace, round((outcome.started_at - began) * 1e9))
