"""What is known when a run begins: the plan, the sample, the time limits."""

from __future__ import annotations

from typing import Any, NamedTuple

from amorsize.engine import Engine
from amorsize.worker import ChunkOutcome


class Plan(NamedTuple):
    """What was decided before the run.

    Attributes:
        engine: what runs the chunks.
        n_jobs: workers at most.
        chunksize: items in the first chunks.
        estimated_speedup: over a serial run.
        n_jobs_named: whether the caller said how many workers.
        interruptible: a serial run must answer to time limits or to the consumer of a stream,
            so that it runs on a thread of its own.
    """

    engine: Engine
    n_jobs: int
    chunksize: int
    estimated_speedup: float
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


class TimeLimits(NamedTuple):
    """Bounds in seconds, None for none; ``deadline`` is on the monotonic clock."""

    timeout: float | None = None
    item_timeout: float | None = None
    deadline: float | None = None
