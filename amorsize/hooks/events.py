"""The seven events of an execution, and the context that comes with each."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from enum import StrEnum
from reprlib import recursive_repr
from typing import Any


class HookEvent(StrEnum):
    """The moments of an execution at which hooks are called."""

    PRE_EXECUTE = "pre_execute"
    """The plan is made, nothing has been sent to a worker. Once per execution."""

    ON_WORKER_START = "on_worker_start"
    """A worker takes its first chunk of this execution. Once per worker."""

    ON_CHUNK_COMPLETE = "on_chunk_complete"
    """A chunk's results have arrived. Once per chunk with results."""

    ON_PROGRESS = "on_progress"
    """Right after an ``ON_CHUNK_COMPLETE``; the last one of a run is always emitted."""

    ON_ERROR = "on_error"
    """A chunk failed, a worker died, the run was cancelled or timed out. Once per failure."""

    ON_WORKER_END = "on_worker_end"
    """A worker is done with this execution. Once per ``ON_WORKER_START``."""

    POST_EXECUTE = "post_execute"
    """The run is over, however it ended. Once per ``PRE_EXECUTE``."""


STATUSES = ("ok", "error", "cancelled", "timeout")
"""``status`` in the metadata of ``POST_EXECUTE``: how a run ended."""

EXIT_REASONS = ("finished", "died", "cancelled", "abandoned")
"""``exit_reason`` in the metadata of ``ON_WORKER_END``."""

EXECUTOR_TYPES = ("serial", "thread", "process", "dask", "custom")
"""``executor_type`` in the metadata of every event: the engine."""


@dataclass(slots=True, init=False, eq=False, repr=False)
class HookContext:
    """The data of one event. Only ``event`` is required.

    Treat a context as read-only; the hooks of one event share it.

    Attributes:
        event: the step of the execution.
        timestamp: the time at which the context was built, in seconds since the epoch.
        n_jobs: the number of workers in the plan; after re-planning, in the new plan.
        chunksize: items per chunk, as planned; chunks may be smaller or larger while running.
        total_items: the length of the input, None while it is unknown.
        items_completed: items whose results (or, with ``return_exceptions=True``, whose
            exceptions) have arrived. Never goes back.
        items_remaining: ``total_items - items_completed``, 0 when the total is unknown.
        percent_complete: 0.0 to 100.0; exactly 100.0 after success. Never goes back.
        elapsed_time: seconds since ``execute()`` was called, by a monotonic clock.
        estimated_time_remaining: seconds, from the throughput so far; 0.0 when unknown.
        throughput_items_per_sec: items completed per second of elapsed time.
        avg_item_time: mean seconds per item inside the function.
        worker_id: counts from 0 in order of appearance in this execution; None where no worker
            took part.
        worker_count: the number of workers that take part now.
        chunk_id: counts from 0 in order of dispatch.
        chunk_size: the number of items in this chunk.
        chunk_time: seconds this chunk spent in the function, measured in the worker.
        error: the exception, in ``ON_ERROR`` and in the ``POST_EXECUTE`` of a run that failed.
        error_message: its text.
        error_traceback: its traceback as text, as the worker saw it.
        results_count: results in this chunk; in ``POST_EXECUTE``, of the whole run.
        results_size_bytes: pickled size of those results, in bytes; 0 where nothing is pickled.
        metadata: all other data, by name; ``docs/events.md`` lists the keys.

    Example:
        >>> HookContext(HookEvent.ON_PROGRESS, items_completed=3, total_items=4).items_completed
        3
    """

    event: HookEvent
    timestamp: float

    n_jobs: int
    chunksize: int
    total_items: int | None

    items_completed: int
    items_remaining: int
    percent_complete: float
    elapsed_time: float
    estimated_time_remaining: float

    throughput_items_per_sec: float
    avg_item_time: float

    worker_id: int | None
    worker_count: int

    chunk_id: int | None
    chunk_size: int | None
    chunk_time: float

    error: BaseException | None
    error_message: str | None
    error_traceback: str | None

    results_count: int
    results_size_bytes: int

    metadata: dict[str, Any]

    # Written out: @dataclass would take 0.8 ms to generate it, in the first run of a process.
    def __init__(
        self,
        event: HookEvent,
        timestamp: float | None = None,
        n_jobs: int = 0,
        chunksize: int = 0,
        total_items: int | None = None,
        items_completed: int = 0,
        items_remaining: int = 0,
        percent_complete: float = 0.0,
        elapsed_time: float = 0.0,
        estimated_time_remaining: float = 0.0,
        throughput_items_per_sec: float = 0.0,
        avg_item_time: float = 0.0,
        worker_id: int | None = None,
        worker_count: int = 0,
        chunk_id: int | None = None,
        chunk_size: int | None = None,
        chunk_time: float = 0.0,
        error: BaseException | None = None,
        error_message: str | None = None,
        error_traceback: str | None = None,
        results_count: int = 0,
        results_size_bytes: int = 0,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.event = event
        self.timestamp = time.time() if timestamp is None else timestamp
        self.n_jobs = n_jobs
        self.chunksize = chunksize
        self.total_items = total_items
        self.items_completed = items_completed
        self.items_remaining = items_remaining
        self.percent_complete = percent_complete
        self.elapsed_time = elapsed_time
        self.estimated_time_remaining = estimated_time_remaining
        self.throughput_items_per_sec = throughput_items_per_sec
        self.avg_item_time = avg_item_time
        self.worker_id = worker_id
        self.worker_count = worker_count
        self.chunk_id = chunk_id
        self.chunk_size = chunk_size
        self.chunk_time = chunk_time
        self.error = error
        self.error_message = error_message
        self.error_traceback = error_traceback
        self.results_count = results_count
        self.results_size_bytes = results_size_bytes
        self.metadata = {} if metadata is None else metadata

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if type(other) is type(self) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it may be changed

    @recursive_repr()  # a hook may have put it into its metadata
    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self._values().items())
        return f"{type(self).__qualname__}({values})"

    def _values(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}
