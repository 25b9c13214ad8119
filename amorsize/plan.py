"""What is known when a run begins: the plan, the sample, the time limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from amorsize.engine import Engine
from amorsize.worker import Chunk, ChunkOutcome

if TYPE_CHECKING:
    from amorsize.backends.base import Backend, Message


class Plan(NamedTuple):
    """What was decided before the run.

    Attributes:
        engine: what runs the chunks.
        n_jobs: workers at most.
        chunksize: items in the first chunks.
        estimated_speedup: over a serial run.
        reason: why, in a sentence.
        n_jobs_named: whether the caller said how many workers.
        interruptible: a serial run must answer to time limits or to the consumer of a stream,
            so that it runs on a thread of its own.
    """

    engine: Engine
    n_jobs: int
    chunksize: int
    estimated_speedup: float
    reason: str = ""
    n_jobs_named: bool = False
    interruptible: bool = False


class Sampled(NamedTuple):
    """What was run in this process before the plan was made.

    Attributes:
        items: those items, the first of the input.
        outcome: what came of them, None when there were none.
        interrupted: what ended the sampling (Ctrl-C, SystemExit), if anything did.
    """

    items: list[Any]
    outcome: ChunkOutcome | None = None
    interrupted: BaseException | None = None


class Begun(NamedTuple):
    """What was begun ahead of the run; see :mod:`amorsize.head_start`.

    Attributes:
        backend: open, with its workers started.
        chunks: those that were handed to it; their ids count from 1, behind that of the sample.
        news: what it has told.
        error: what it failed with, if it did.
    """

    backend: Backend
    chunks: list[Chunk]
    news: list[Message]
    error: Exception | None


class TimeLimits(NamedTuple):
    """Bounds in seconds, None for none; ``deadline`` is on the monotonic clock."""

    timeout: float | None = None
    item_timeout: float | None = None
    deadline: float | None = None
