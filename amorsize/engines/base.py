"""The interface between the run loop and an engine: requests down, messages up.

The loop calls the methods of :class:`Backend`. An engine answers with five messages:
:class:`WorkerStarted`, :class:`ChunkDone`, :class:`ChunkRefused`, :class:`WorkerLost` and
:class:`WorkerEnded`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from amorsize.workers.chunk import Chunk, ChunkOutcome
from amorsize.workers.record import Record, made

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, TypeAlias

    from amorsize.errors import ExecutionError
    from amorsize.workers.collectors import CollectSettings
    from amorsize.workers.cpu_time import Unfinished

SHORT_CHUNK_SECONDS = 0.02
"""After a chunk that is shorter than this, a worker gets the next one ahead, so that it is not idle
while that is sent (0.1 ms). After a longer one it does not: a chunk would wait for a slow one."""


class Task(Record):
    """The part that all chunks of an execution share.

    Attributes:
        func: the function.
        return_exceptions: whether items may fail without ending their chunk.
        stamp_items: whether the start of each call is noted.
        collect: what is collected beside results.
        pickled_result: a result, which a worker process loads before it runs anything: one that
            cannot be loaded there could not be loaded here when it comes back. Empty for no such
            trial; may be set until the first chunk is submitted.
    """

    func: Callable[[Any], Any]
    return_exceptions: bool = False
    stamp_items: bool = False
    collect: CollectSettings | None = None
    pickled_result: bytes = b""


class WorkerStarted(Record):
    """A worker starts its first chunk of this execution; ``details`` join its events' metadata."""

    worker: int
    pid: int
    hostname: str
    thread_name: str
    details: Mapping[str, Any] = made(factory=dict)


class ChunkDone(Record):
    """A chunk is done, with results or with its failure."""

    worker: int
    outcome: ChunkOutcome


class ChunkRefused(Record):
    """A chunk was not begun, and ``submit()`` could not know it.

    An item does not pickle (:class:`UnpicklableItemError`), or no worker can do anything at all:
    none can be started, or none can load the function.
    """

    chunk: Chunk
    error: ExecutionError


class WorkerLost(Record):
    """A worker died, or was ended because its item took too long.

    Attributes:
        worker: the backend's number of the worker.
        pid: its process id.
        exit_code: as ``subprocess`` has it: negative for a signal, None when unknown.
        started: whether its start was reported.
        chunk: its chunk, or None.
        item_index: the item in flight; the end of the chunk when all were computed and only
            the results were still to be sent; None without a chunk.
        untouched: further chunks that were sent to it, none of whose items was started.
        exit_reason: ``died``, or, where amorsize ended it: ``cancelled``, ``abandoned``.
        detail: more about its end, for the message.
        recovered: the engine itself runs the chunk again, and the run goes on.
        unfinished: what it had spent on that chunk; None for nothing, or where nobody observes.
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
    unfinished: Unfinished | None = None


class WorkerEnded(Record):
    """A worker is done with this execution.

    ``exit_reason`` is ``finished``, ``cancelled`` (the run ended before its input) or
    ``abandoned`` (its work cannot be stopped). A death is a :class:`WorkerLost`; here, ``died`` is
    for the other threads of a process that died. ``unfinished`` is what it had spent on a chunk
    that it did not finish; None for nothing, or where nobody observes.
    """

    worker: int
    exit_reason: str
    exit_code: int | None = None
    unfinished: Unfinished | None = None


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

    A backend numbers its workers; a worker's start is its first message.
    """

    @abstractmethod
    def open(self, task: Task) -> None:
        """Get ready to run chunks of ``task``; raises TransportError when it does not pickle."""

    def start_workers(self) -> None:
        """Start workers ahead of their first chunks, where starting them takes time."""
        return

    def is_ready(self) -> bool:
        """Return whether a worker could start a chunk at once."""
        return True

    def use_workers(self, n_jobs: int) -> None:
        """Change how many workers are used at most; called before the run begins."""
        return

    @abstractmethod
    def has_room(self) -> bool:
        """Return whether a chunk can be submitted now."""

    def can_hold(self) -> bool:
        """Return whether a chunk can be submitted that then waits here for a worker."""
        return False

    @abstractmethod
    def submit(self, chunk: Chunk) -> None:
        """Accept a chunk and stamp its dispatch; ``has_room()`` or ``can_hold()`` must be true.

        Raises TransportError, and accepts nothing, when the items do not pickle.
        """

    @abstractmethod
    def wait(self, timeout: float | None) -> Sequence[Message]:
        """Wait up to ``timeout`` seconds (None: for ever) for messages, or for ``wake()``."""

    @abstractmethod
    def wake(self) -> None:
        """Make ``wait()`` return. May be called from any thread."""

    @abstractmethod
    def close(self, *, cancel: bool) -> Sequence[Message]:
        """End this execution's use of the engine; returns how each worker ended.

        With ``cancel``, work in progress is stopped; the call returns within about a second. Chunks
        that come too late are among the messages: their time was spent.
        """

    def overdue(self, seconds: float) -> list[Overdue]:
        """List the items in progress for more than ``seconds``; needs ``Task.stamp_items``."""
        return []

    def end_worker(self, late: Overdue) -> WorkerLost | None:
        """Stop the worker of an overdue item, so that another one can start.

        Returns None when the item has ended meanwhile.
        """
        return None
