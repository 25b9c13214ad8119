"""What the run loop asks of an engine, and what an engine tells it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from amorsize.errors import UnpicklableItemError
from amorsize.workers.chunk import Chunk, ChunkOutcome
from amorsize.workers.collectors import CollectSettings
from amorsize.workers.record import Record, made

SHORT_CHUNK_SECONDS = 0.02
"""Chunks shorter than this are queued one ahead of their worker, so that it does not idle while
the next one travels (0.1 ms); longer ones are not, so that none waits behind a slow one."""


class Task(Record):
    """What every chunk of an execution has in common."""

    func: Callable[[Any], Any]
    return_exceptions: bool = False
    stamp_items: bool = False
    collect: CollectSettings = made(factory=CollectSettings)


class WorkerStarted(Record):
    """A worker takes its first chunk of this execution; ``details`` join its events' metadata."""

    worker: int
    pid: int
    hostname: str
    thread_name: str
    details: Mapping[str, Any] = made(factory=dict)


class ChunkDone(Record):
    """A chunk came back, with results or with its failure."""

    worker: int
    outcome: ChunkOutcome


class ChunkRefused(Record):
    """A chunk did not leave, because an item of it cannot travel; as if ``submit()`` said so."""

    chunk: Chunk
    error: UnpicklableItemError


class WorkerLost(Record):
    """A worker died, or was ended because its item took too long.

    Attributes:
        worker: the backend's number of the worker.
        pid: its process id.
        exit_code: as ``subprocess`` has it: negative for a signal, None when unknown.
        started: whether it had told its start.
        chunk: what it was at, or None.
        item_index: the item in flight; the end of the chunk when all were computed and only
            the results were still to be sent; None without a chunk.
        untouched: further chunks that it had been given, none of whose items was begun.
        exit_reason: ``died``, or how it was ended: ``cancelled``, ``abandoned``.
        detail: what else is known, for the message.
        recovered: the engine itself runs again what the worker was at: the run goes on.
    """

    worker: int
    pid: int
    exit_code: int | None
    started: bool
    chunk: Chunk | None = None
    item_index: int | None = None
    untouched: Sequence[Chunk] = ()
    exit_reason: str = "died"
    detail: str = ""
    recovered: bool = False


class WorkerEnded(Record):
    """A worker is done with this execution.

    ``exit_reason`` is ``finished``, ``cancelled`` (the run ended before its input) or
    ``abandoned`` (work that cannot be stopped); a death is a :class:`WorkerLost`, and ``died``
    here is said of what went down with it.
    """

    worker: int
    exit_reason: str
    exit_code: int | None = None


class Overdue(Record):
    """An item that has been running for longer than allowed; ``stamp`` is from its slots."""

    worker: int
    chunk: Chunk
    item_index: int
    seconds: float
    stamp: int


Message: TypeAlias = WorkerStarted | ChunkDone | ChunkRefused | WorkerLost | WorkerEnded


class Backend(ABC):
    """An engine, for one execution. All methods but ``wake`` are called from one thread.

    Workers have numbers of the backend's own; a start comes before anything else of a worker.
    """

    @abstractmethod
    def open(self, task: Task) -> None:
        """Get ready to run chunks of ``task``; raise TransportError when it cannot travel."""

    def start_workers(self) -> None:
        """Start workers ahead of their first chunks, where starting them takes time."""
        return

    def is_ready(self) -> bool:
        """Say whether a worker could begin with a chunk at once."""
        return True

    def use_workers(self, n_jobs: int) -> None:
        """Change how many workers are used at most; called before the run begins."""
        return

    @abstractmethod
    def has_room(self) -> bool:
        """Say whether a chunk can be submitted now."""

    def can_hold(self) -> bool:
        """Say whether a chunk can be submitted that waits here, ready to leave, for a worker."""
        return False

    @abstractmethod
    def submit(self, chunk: Chunk) -> None:
        """Hand over a chunk, noting when; call only after ``has_room()`` or ``can_hold()`` said so.

        Raises TransportError, with nothing handed over, when the items cannot travel.
        """

    @abstractmethod
    def wait(self, timeout: float | None) -> Sequence[Message]:
        """Wait up to ``timeout`` seconds (None: without a limit) for news, or for ``wake()``."""

    @abstractmethod
    def wake(self) -> None:
        """Make ``wait()`` return. May be called from any thread."""

    @abstractmethod
    def close(self, *, cancel: bool) -> Sequence[Message]:
        """End this execution's use of the engine; tell how each worker ended.

        With ``cancel``, work in progress is stopped; the call returns within about a second.
        """

    def overdue(self, seconds: float) -> list[Overdue]:
        """List the items in progress for more than ``seconds``; needs ``Task.stamp_items``."""
        return []

    def end_worker(self, late: Overdue) -> WorkerLost | None:
        """Stop the worker of an overdue item; its place is free for another.

        None when the item came to its end meanwhile.
        """
        return None
