"""What a hook is told: the seven events, and the context that comes with each."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class HookEvent(StrEnum):
    """The moments of an execution at which hooks are called."""

    PRE_EXECUTE = "pre_execute"
    """The plan is made, nothing has been sent to a worker. Once an execution."""

    ON_WORKER_START = "on_worker_start"
    """A worker takes its first chunk of this execution. Once a worker."""

    ON_CHUNK_COMPLETE = "on_chunk_complete"
    """A chunk's results are in. Once a chunk that has results."""

    ON_PROGRESS = "on_progress"
    """Right after an ``ON_CHUNK_COMPLETE``; the last one of a run is always sent."""

    ON_ERROR = "on_error"
    """A chunk failed, a worker died, the run was cancelled or timed out. Once a failure."""

    ON_WORKER_END = "on_worker_end"
    """A worker is done with this execution. Once for every ``ON_WORKER_START``."""

    POST_EXECUTE = "post_execute"
    """The run is over, however it ended. Once for every ``PRE_EXECUTE``."""


@dataclass(slots=True)
class HookContext:
    """What is known when an event fires. Only ``event`` is required.

    Treat a context as read-only; the hooks of one event share it.

    Attributes:
        event: which moment this is.
        timestamp: when the context was built, seconds since the epoch.
        n_jobs: the number of workers of the plan; of the new one, once a run has changed it.
        chunksize: items a chunk, as planned; chunks may be smaller or larger while running.
        total_items: the length of the input, None while it is unknown.
        items_completed: items whose results (or, with ``return_exceptions=True``, whose
            exceptions) are in. Never goes back.
        items_remaining: ``total_items - items_completed``, 0 when the total is unknown.
        percent_complete: 0.0 to 100.0; exactly 100.0 after success. Never goes back.
        elapsed_time: seconds since ``execute()`` was called, by a monotonic clock.
        estimated_time_remaining: seconds, from the throughput so far; 0.0 when unknown.
        throughput_items_per_sec: items completed a second of elapsed time.
        avg_item_time: mean seconds an item took inside the function.
        worker_id: counts from 0 in order of appearance in this execution; None where no worker
            took part.
        worker_count: workers that take part at this moment.
        chunk_id: counts from 0 in order of dispatch.
        chunk_size: items in this chunk.
        chunk_time: seconds this chunk spent in the function, measured in the worker.
        error: the exception, in ``ON_ERROR`` and in the ``POST_EXECUTE`` of a run that failed.
        error_message: its text.
        error_traceback: its traceback as text, as the worker saw it.
        results_count: results in this chunk; in ``POST_EXECUTE``, of the whole run.
        results_size_bytes: pickled size of those results, in bytes; 0 where nothing is pickled.
        metadata: everything else, by name: ``docs/events.md`` lists the keys.

    Example:
        >>> HookContext(HookEvent.ON_PROGRESS, items_completed=3, total_items=4).items_completed
        3
    """

    event: HookEvent
    timestamp: float = field(default_factory=time.time)

    n_jobs: int = 0
    chunksize: int = 0
    total_items: int | None = None

    items_completed: int = 0
    items_remaining: int = 0
    percent_complete: float = 0.0
    elapsed_time: float = 0.0
    estimated_time_remaining: float = 0.0

    throughput_items_per_sec: float = 0.0
    avg_item_time: float = 0.0

    worker_id: int | None = None
    worker_count: int = 0

    chunk_id: int | None = None
    chunk_size: int | None = None
    chunk_time: float = 0.0

    error: BaseException | None = None
    error_message: str | None = None
    error_traceback: str | None = None

    results_count: int = 0
    results_size_bytes: int = 0

    metadata: dict[str, Any] = field(default_factory=dict)
