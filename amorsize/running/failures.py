"""The failures of a run: their messages, and the status and error that the run ends with."""

from __future__ import annotations

import time
from functools import cache
from itertools import islice

from amorsize.engines.base import ChunkDone, Message, Overdue, WorkerLost
from amorsize.errors import (
    ExecutionCancelledError,
    ExecutionError,
    ExecutionTimeoutError,
    ItemTimeoutError,
    WorkerDiedError,
)
from amorsize.hooks.interruption import protected
from amorsize.running.signals import Terminated
from amorsize.workers.chunk import Chunk, ChunkOutcome, Failure, add_note

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

_HINT = "Pass return_exceptions=True to go on with the other items."

_ON_ITEM = "Raised on item "

_NAMED_CHUNKS = 3
"""How many a message names."""


@protected
def note_item(failure: Failure) -> None:
    """Say on which item an exception was raised; once, where the function raises one object."""
    notes = getattr(failure.error, "__notes__", ())
    if not any(str(note).startswith(_ON_ITEM) for note in notes):
        add_note(failure.error, f"{_ON_ITEM}{failure.index}.")


@protected
def is_failure(message: Message) -> bool:
    """Say whether a message may end the run."""
    return isinstance(message, WorkerLost) or (
        isinstance(message, ChunkDone) and bool(message.outcome.failures)
    )


def warn_of_failed_start(loss: WorkerLost) -> None:
    """Log that a worker ended before it took any work."""
    _warn(
        "Worker process %s ended with exit code %s before it took any work; another replaces it",
        loss.pid,
        loss.exit_code,
    )


@cache
def warn_of_nested_run(engine: str) -> None:
    """Log, once per process and not once per item, that a named engine is not used in a worker."""
    _warn(
        "execute() was called inside a worker process: executor='%s' runs serially there. "
        "Name 'serial' or 'thread', or leave the choice open.",
        engine,
    )


def _warn(text: str, *values: object) -> None:
    import logging  # 5 ms, where nothing is to be said

    logging.getLogger(__name__).warning(text, *values)


@protected
def status_of(error: BaseException) -> str:
    """Return the status of a run that ends with ``error``."""
    if isinstance(error, ExecutionTimeoutError | ItemTimeoutError):
        return "timeout"
    if isinstance(error, ExecutionCancelledError | KeyboardInterrupt | Terminated):
        return "cancelled"
    return "error"


@protected
def problem_of(error: Exception) -> str:
    """Say why a run goes on without its workers, without advice; empty where it cannot."""
    if not isinstance(error, ExecutionError):
        return ""
    return error.problem or str(error).rstrip(".")


@protected
def died(loss: WorkerLost, *, goes_on: bool) -> WorkerDiedError:
    """Describe a death; ``goes_on`` where it does not end the run."""
    return WorkerDiedError(
        pid=loss.pid,
        exit_code=loss.exit_code,
        chunk_id=None if loss.chunk is None else loss.chunk.id,
        item_index=loss.item_index,
        detail=loss.detail,
        hint="" if goes_on or loss.recovered else _HINT,
    )


@protected
def overdue(late: Overdue, loss: WorkerLost, item_timeout: float | None) -> ItemTimeoutError:
    """Describe an item that took too long, and what became of its worker."""
    after = f"; {loss.detail}" if loss.detail else f"; worker process {loss.pid} was ended"
    return ItemTimeoutError(
        f"item {late.item_index} (chunk {late.chunk.id}) ran for {late.seconds:.3g} seconds, "
        f"longer than item_timeout={item_timeout}{after}"
    )


@protected
def timed_out(
    timeout: float | None, done: int, total: int | None, in_flight: Collection[Chunk]
) -> ExecutionTimeoutError:
    """Describe a run that took too long; the chunks in flight are named, the oldest first."""
    of_total = "" if total is None else f" of {total}"
    return ExecutionTimeoutError(
        f"the run took longer than timeout={timeout} seconds: {done}{of_total} items are done"
        f"{_say_in_flight(in_flight)}"
    )


@protected
def in_place(chunk: Chunk, error: Exception) -> ChunkOutcome:
    """Make the outcome of an item that did not come back: its error."""
    return ChunkOutcome(
        chunk_id=chunk.id,
        start=chunk.start,
        size=1,
        results=[error],
        failures=[],
        started_at=time.time(),
        duration=0.0,
        pid=0,
        hostname="",
        thread_name="",
    )


@protected
def _say_in_flight(in_flight: Collection[Chunk]) -> str:
    chunks = [
        f"items {chunk.start} to {chunk.start + len(chunk.items) - 1} (chunk {chunk.id})"
        for chunk in islice(in_flight, _NAMED_CHUNKS)
    ]
    if not chunks:
        return ""
    others = len(in_flight) - len(chunks)
    more = f" and {others} further chunks" if others else ""
    return f"; in flight were {', '.join(chunks)}{more}"
