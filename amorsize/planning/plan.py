"""What is known when a run begins: the plan, the sample, the time limits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from amorsize.planning.engine import Engine
from amorsize.workers.chunk import Chunk, ChunkOutcome
from amorsize.workers.record import Record

if TYPE_CHECKING:
    from amorsize.engines.base import Backend, Message
    from amorsize.running.input import ChunkSizer

LONGEST_WAIT_SECONDS = 0.5
"""A signal that comes just before the loop begins to wait does not interrupt the wait: Python runs
its handler when the wait is over."""


class Plan(Record):
    """What was decided before the run.

    Attributes:
        engine: what runs the chunks.
        n_jobs: workers at most.
        chunksize: items in the first chunks.
        estimated_speedup: over a serial run.
        reason: why, in a sentence.
        may_change: whether the run may go on without workers where they turn out to gain nothing:
            nobody named them, and nothing needs them.
        n_jobs_named: whether the caller said how many workers.
        interruptible: a serial run must answer to time limits or to the consumer of a stream,
            so that it runs on a thread of its own.
        may_grow: whether a serial run may go over to workers where its items turn out long: the
            choice was ours.
        item_seconds: what an item is foreseen to take.
    """

    def __init__(
        self,
        engine: Engine,
        n_jobs: int,
        chunksize: int,
        estimated_speedup: float,
        reason: str = "",
        may_change: bool = False,
        n_jobs_named: bool = False,
        interruptible: bool = False,
        may_grow: bool = False,
        item_seconds: float = 0.0,
    ) -> None:
        self.engine = engine
        self.n_jobs = n_jobs
        self.chunksize = chunksize
        self.estimated_speedup = estimated_speedup
        self.reason = reason
        self.may_change = may_change
        self.n_jobs_named = n_jobs_named
        self.interruptible = interruptible
        self.may_grow = may_grow
        self.item_seconds = item_seconds


class Sampled(Record):
    """What was run in this process before the plan was made.

    Attributes:
        items: those items.
        outcome: what came of them, None when there were none.
        interrupted: what ended the sampling (Ctrl-C, SystemExit), if anything did.
    """

    def __init__(
        self,
        items: list[Any],
        outcome: ChunkOutcome | None = None,
        interrupted: BaseException | None = None,
    ) -> None:
        self.items = items
        self.outcome = outcome
        self.interrupted = interrupted


class Begun(Record):
    """What was begun ahead of the run; see :mod:`amorsize.running.early_workers`.

    Attributes:
        backend: open, with its workers started.
        chunks: those that were handed to it; their ids are those behind that of the sample.
        news: what it has told.
        error: what it failed with, if it did.
    """

    def __init__(
        self, backend: Backend, chunks: list[Chunk], news: list[Message], error: Exception | None
    ) -> None:
        self.backend = backend
        self.chunks = chunks
        self.news = news
        self.error = error


class Rest(Record):
    """What is left of an input when the choice is made anew.

    Attributes:
        iterator: where its items come from.
        sequence: the whole input, where any of its items can be had by its index.
        left: how many items are left, None when unknown.
        start: the index of the first of them.
        chunk_id: the id of the chunk that they begin with.
    """

    def __init__(
        self,
        iterator: Iterator[Any],
        sequence: Sequence[Any] | None,
        left: int | None,
        start: int,
        chunk_id: int,
    ) -> None:
        self.iterator = iterator
        self.sequence = sequence
        self.left = left
        self.start = start
        self.chunk_id = chunk_id


class Stage(Record):
    """What a run begins with, and what it goes on with when the choice was made anew.

    Attributes:
        plan: how.
        sizer: in what chunks.
        sampled: what was run before.
        take_over: gives what was begun ahead, once; from then on the run closes it.
    """

    def __init__(
        self,
        plan: Plan,
        sizer: ChunkSizer,
        sampled: Sampled,
        take_over: Callable[[], Begun | None],
    ) -> None:
        self.plan = plan
        self.sizer = sizer
        self.sampled = sampled
        self.take_over = take_over


class TimeLimits(Record):
    """Bounds in seconds, None for none; ``deadline`` is on the monotonic clock."""

    def __init__(
        self,
        timeout: float | None = None,
        item_timeout: float | None = None,
        deadline: float | None = None,
    ) -> None:
        self.timeout = timeout
        self.item_timeout = item_timeout
        self.deadline = deadline

    def patience(self) -> float:
        """Return how long the run loop may sleep before it must look at a limit again."""
        waits = [LONGEST_WAIT_SECONDS]
        if self.deadline is not None:
            waits.append(max(0.0, self.deadline - time.monotonic()))
        if self.item_timeout is not None:
            waits.append(min(self.item_timeout / 4, 0.25))
        return min(waits)
