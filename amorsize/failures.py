"""What a run says of its failures: their words, and what they make of the run."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from amorsize.backends.base import ChunkDone, Message, Overdue, WorkerLost
from amorsize.errors import (
    ExecutionCancelledError,
    ExecutionTimeoutError,
    ItemTimeoutError,
    WorkerDiedError,
)
from amorsize.termination import Terminated
from amorsize.worker import Chunk, Failure, add_note

_HINT = "Pass return_exceptions=True to go on with the other items."

_ON_ITEM = "Raised on item "

_NAMED_CHUNKS = 3
"""How many a message names."""


def note_item(failure: Failure) -> None:
    """Say on which item an exception was raised; once, where the function raises one object."""
    notes = getattr(failure.error, "__notes__", ())
    if not any(str(note).startswith(_ON_ITEM) for note in notes):
        add_note(failure.error, f"{_ON_ITEM}{failure.index}.")


def is_failure(message: Message) -> bool:
    """Say whether a message may end the run."""
    return isinstance(message, WorkerLost) or (
        isinstance(message, ChunkDone) and bool(message.outcome.failures)
    )


def status_of(error: BaseException) -> str:
    """Return the status of a run that ends with ``error``."""
    if isinstance(error, ExecutionTimeoutError | ItemTimeoutError):
        return "timeout"
    if isinstance(error, ExecutionCancelledError | KeyboardInterrupt | Terminated):
        return "cancelled"
    return "error"


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


def overdue(late: Overdue, loss: WorkerLost, item_timeout: float | None) -> ItemTimeoutError:
    """Describe an item that took too long, and what became of its worker."""
    after = f"; {loss.detail}" if loss.detail else f"; worker process {loss.pid} was ended"
    return ItemTimeoutError(
        f"item {late.item_index} (chunk {late.chunk.id}) ran for {late.seconds:.3g} seconds, "
        f"longer than item_timeout={item_timeout}{after}"
    )


def say_in_flight(in_flight: Iterable[Chunk], count: int) -> str:
    """Name the chunks in flight, the oldest first, for a message."""
    chunks = [
        f"items {chunk.start} to {chunk.start + len(chunk.items) - 1} (chunk {chunk.id})"
        for chunk in islice(in_flight, _NAMED_CHUNKS)
    ]
    if not chunks:
        return ""
    others = count - len(chunks)
    more = f" and {others} further chunks" if others else ""
    return f"; in flight were {', '.join(chunks)}{more}"
