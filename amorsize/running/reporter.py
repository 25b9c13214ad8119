"""Turns what the run loop sees into hook events; the only place that builds their contexts."""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from amorsize.engines.base import WorkerStarted
from amorsize.hooks import executions
from amorsize.hooks.events import HookContext, HookEvent
from amorsize.hooks.interruption import protected
from amorsize.hooks.manager import HookManager
from amorsize.planning.serial_time import SerialTime
from amorsize.workers import thread_limits, trace_link
from amorsize.workers.chunk import HOSTNAME, Chunk, ChunkOutcome, text_of
from amorsize.workers.collectors import CollectSettings
from amorsize.workers.cpu_time import CpuTime
from amorsize.workers.record import Record
from amorsize.workers.trace_link import TraceLink
from amorsize.workers.user_metrics import admit, current_collector

if TYPE_CHECKING:
    from amorsize.planning.plan import RunChunks
    from amorsize.planning.workload import Workload
    from amorsize.workers.cpu_time import Unfinished

logger = logging.getLogger(__name__)

_WITH_CPU_TIME = (
    HookEvent.ON_CHUNK_COMPLETE,
    HookEvent.ON_ERROR,
    HookEvent.ON_WORKER_END,
    HookEvent.POST_EXECUTE,
)


class Spent(Record):
    """Time in the function: on the clock, and of the CPU, which is None where it is not known."""

    seconds: float = 0.0
    cpu_seconds: float | None = 0.0

    def add(self, seconds: float, cpu_seconds: float | None) -> None:
        """Add the time of a chunk."""
        self.seconds += seconds
        if cpu_seconds is None or self.cpu_seconds is None:
            self.cpu_seconds = None
        else:
            self.cpu_seconds += cpu_seconds


class _WorkerRecord:
    """The data of a worker for ``ON_WORKER_END``."""

    def __init__(self, id: int, metadata: dict[str, Any]) -> None:
        self.id = id
        self.metadata = metadata
        self.items = 0
        self.spent = Spent()


@protected
class Reporter:
    """Emits one execution's events, with figures that never go back.

    A context is built only where its event has a hook.

    Args:
        managers: whose hooks are notified, in this order.
        began: ``time.perf_counter()`` when ``execute()`` was called.
        function: what the events call the function.
        progress_interval: seconds between two ``ON_PROGRESS``, by the monotonic clock.
    """

    def __init__(
        self,
        managers: Sequence[HookManager],
        *,
        began: float,
        function: str,
        progress_interval: float,
    ) -> None:
        self._managers = tuple(managers)
        self._began = began
        self._progress_interval = progress_interval
        self._last_progress = float("-inf")
        self._metadata: dict[str, Any] = {
            "execution_id": os.urandom(16).hex(),
            "function": function,
        }
        self._trace: TraceLink | None = None
        self._workers: dict[int, _WorkerRecord] = {}
        self._next_worker_id = 0
        self._planning_seconds = 0.0
        self._spent = Spent()
        self._returned_seconds = 0.0
        self._serial_time = SerialTime()
        self._cores = 1
        self._all_local = True
        self._results_bytes = 0
        self._decided: dict[str, Any] = {}
        self._percent = 0.0
        self._finished = False
        self._emitting = threading.Lock()
        self._open = False  # from PRE_EXECUTE to POST_EXECUTE
        self.n_jobs = 0
        self.chunksize = 0
        self.total_items: int | None = None
        self.items_completed = 0

    @property
    def execution_id(self) -> str:
        """The execution's id, as in every event's metadata."""
        return str(self._metadata["execution_id"])

    def span_ids(self) -> trace_link.SpanIds | None:
        """Return the ids of the execution's span; None where nobody traces."""
        trace = self._trace
        return None if trace is None else (trace.trace_id, trace.span_id, trace.sampled)

    def has_hooks(self, event: HookEvent) -> bool:
        """Say whether ``event`` has a hook."""
        for manager in self._managers:  # noqa: SIM110  # asked at every event; any() costs twice
            if manager.has_hooks(event):
                return True
        return False

    def begin_collecting(self) -> CollectSettings | None:
        """Say what each chunk is to collect, if anything; the trace of its events begins."""
        user_metrics, trace = self.takes_user_metrics(), self.begin_trace()
        cpu_time = any(self.has_hooks(event) for event in _WITH_CPU_TIME)
        if not (user_metrics or trace or cpu_time):
            return None
        return CollectSettings(user_metrics, trace, cpu_time)

    def begin_trace(self) -> TraceLink | None:
        """Begin the trace that the events belong to; None where nobody traces."""
        metadata = self._metadata
        self._trace = trace_link.begin(
            self._managers, metadata["execution_id"], metadata["function"]
        )
        if self._trace is not None and self._trace.sampled:
            metadata["trace_id"] = f"{self._trace.trace_id:032x}"
            metadata["span_id"] = f"{self._trace.span_id:016x}"
        return self._trace

    def forget_trace(self) -> None:
        """Drop the trace of a run that emitted no events."""
        if self._trace is not None:
            trace_link.forget(self._metadata["execution_id"])

    def takes_user_metrics(self) -> bool:
        """Say whether the user's numbers reach anybody: a hook, or the chunk that this runs in."""
        return self._reports_user_metrics() or current_collector() is not None

    def pre_execute(
        self,
        *,
        n_jobs: int,
        chunksize: int,
        total_items: int | None,
        executor_type: str,
        estimated_speedup: float | None,
        planning_seconds: float | None = None,
        decided: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Report that the plan is made; ``decided`` goes into the metadata of ``POST_EXECUTE``.

        ``planning_seconds`` is how long that took; None for all the time so far.
        """
        self._decided = dict(decided)
        self.n_jobs = n_jobs
        self.chunksize = chunksize
        self.total_items = total_items
        self._metadata["executor_type"] = executor_type
        if estimated_speedup is not None:
            self._metadata["estimated_speedup"] = estimated_speedup
        self._planning_seconds = planning_seconds or self._elapsed()
        self._note_workers()
        self._open = True
        executions.begin(self.execution_id, self._managers)
        self._emit(HookEvent.PRE_EXECUTE)

    def measured_again(self, items: int) -> None:
        """Note that further items were sampled, because they had become others."""
        self._decided["sampled_items"] = self._decided.get("sampled_items", 0) + items

    def changed_engine(self, plan: RunChunks, change: str) -> None:
        """Note that the run goes on with another engine, and why."""
        self._decided["changed_to"] = plan.choice.engine.type
        self.n_jobs, self.chunksize = plan.choice.n_jobs, plan.usual_size
        self._note_workers()
        logger.debug("The run goes on with another engine. %s", change)

    def worker_started(self, message: WorkerStarted) -> None:
        """Report that a worker takes its first chunk."""
        record = _WorkerRecord(
            self._next_worker_id,
            {
                "pid": message.pid,
                "hostname": message.hostname,
                "thread_name": message.thread_name,
                **message.details,
            },
        )
        self._next_worker_id += 1
        self._workers[message.worker] = record
        self._emit(HookEvent.ON_WORKER_START, metadata=record.metadata, worker_id=record.id)

    def worker_ended(
        self,
        worker: int,
        exit_reason: str,
        exit_code: int | None = None,
        unfinished: Unfinished | None = None,
    ) -> None:
        """Report that a worker is done; nothing of one whose start was not reported."""
        record = self._workers.pop(worker, None)
        if record is None:
            return
        if unfinished is not None:
            record.spent.add(unfinished.seconds, unfinished.cpu_seconds)
            self.add_unfinished(unfinished)
        metadata = record.metadata | {
            "exit_reason": exit_reason,
            "exit_code": exit_code,
            "items": record.items,
            "busy_time": record.spent.seconds,
        }
        if record.spent.cpu_seconds is not None:
            metadata["cpu_seconds"] = record.spent.cpu_seconds
        self._emit(HookEvent.ON_WORKER_END, metadata=metadata, worker_id=record.id)

    def add_unfinished(self, unfinished: Unfinished) -> None:
        """Take time into account that calls took whose chunk was not returned."""
        self._spent.add(unfinished.seconds, unfinished.cpu_seconds)
        self._serial_time.add_unfinished(unfinished.seconds)

    def came_too_late(self, worker: int, outcome: ChunkOutcome) -> None:
        """Take a chunk's time into account, of which the run does not use the results."""
        self._add_returned(worker, outcome, _take_cpu_time(outcome))

    def workers(self) -> list[int]:
        """List the workers whose end was not reported, by the backend's numbers."""
        return list(self._workers)

    def worker_id(self, worker: int | None) -> int | None:
        """Translate a backend's number of a worker to that of the events."""
        record = None if worker is None else self._workers.get(worker)
        return None if record is None else record.id

    def chunk_completed(
        self,
        chunk: Chunk,
        outcome: ChunkOutcome,
        worker: int | None,
        *,
        sampled: bool = False,
        alone: bool = False,
        corrected_chunksize: int | None = None,
    ) -> None:
        """Take a chunk's results into account, and report them.

        ``alone`` says that no other worker was at work meanwhile.
        """
        extras = self._take_extras(outcome)
        cpu = _take_cpu_time(outcome)
        # From here to the hooks no signal comes between: see hooks/interruption.py.
        self.items_completed += outcome.size
        self._results_bytes += outcome.results_bytes
        record = self._add_returned(worker, outcome, cpu)
        self._add_serial_time(outcome, cpu, alone)
        if record is not None:
            record.items += outcome.size
        if not self.has_hooks(HookEvent.ON_CHUNK_COMPLETE):
            return
        metadata = self._chunk_metadata(chunk, outcome) | extras
        if cpu is not None:
            metadata["cpu_seconds"] = cpu.seconds
        if sampled:
            metadata["sampled"] = True
        if corrected_chunksize is not None:
            metadata["corrected_chunksize"] = corrected_chunksize
        self._emit(
            HookEvent.ON_CHUNK_COMPLETE,
            metadata=metadata,
            worker_id=None if record is None else record.id,
            chunk_id=chunk.id,
            chunk_size=outcome.size,
            chunk_time=outcome.duration,
            results_count=outcome.size,
            results_size_bytes=outcome.results_bytes,
        )

    def progress(self, *, last: bool) -> None:
        """Report progress, unless it is too soon; the last is always reported."""
        now = time.perf_counter()
        if not last and now - self._last_progress < self._progress_interval:
            return
        self._last_progress = now
        self._finished = self._finished or last
        self._emit(HookEvent.ON_PROGRESS)

    def error(
        self,
        error: BaseException,
        *,
        traceback_text: str | None = None,
        failed_items: int = 0,
        worker: int | None = None,
        chunk: Chunk | None = None,
        outcome: ChunkOutcome | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Report a failure."""
        extras: dict[str, Any] = {}
        if outcome is not None and outcome.results is None:
            # No ON_CHUNK_COMPLETE will come to account for these.
            cpu = _take_cpu_time(outcome)
            self._add_returned(worker, outcome, cpu)
            extras = self._take_extras(outcome)
            if cpu is not None:
                extras["cpu_seconds"] = cpu.seconds
        if not self.has_hooks(HookEvent.ON_ERROR):
            return
        details = {"failed_items": failed_items}
        fields: dict[str, Any] = {"worker_id": self.worker_id(worker)}
        if chunk is not None:
            details |= self._chunk_metadata(chunk, outcome)
            if outcome is not None and outcome.results is not None:
                details["chunk_completes"] = True
            size = len(chunk.items) if outcome is None else outcome.size
            fields |= {"chunk_id": chunk.id, "chunk_size": size}
        if outcome is not None:
            fields["chunk_time"] = outcome.duration
        self._emit(
            HookEvent.ON_ERROR,
            metadata=details | (metadata or {}) | extras,
            **_error_fields(error, traceback_text),
            **fields,
        )

    def post_execute(
        self,
        status: str,
        error: BaseException | None,
        *,
        corrections: int = 0,
        final_chunksize: int | None = None,
        known: Workload | None = None,
        input_seconds: float = 0.0,
        held_up: bool = False,
    ) -> None:
        """Report that the run is over.

        Args:
            status, error: how it ended.
            corrections, final_chunksize: of the chunk size.
            known: what a call is like alone; None where that was never measured.
            input_seconds: how long the input took to give its items.
            held_up: whether workers idled because the consumer of the results did not take them.
        """
        self._finished = status == "ok"
        elapsed = self._elapsed()
        metadata = {
            "status": status,
            "planning_time": self._planning_seconds,
            "busy_seconds": self._spent.seconds,
            "concurrency": self._spent.seconds / elapsed if elapsed > 0 else 0.0,
            "corrections": corrections,
            "final_chunksize": final_chunksize or self.chunksize,
            **self._decided,
        }
        if self._spent.cpu_seconds is not None:
            metadata["cpu_seconds"] = self._spent.cpu_seconds
        # A serial run would not have made the same calls where this one did not make all of them.
        if status == "ok" and not held_up:
            speedup = self._serial_time.speedup(
                elapsed,
                input_seconds=input_seconds,
                known=known,
                capacity=self._capacity(elapsed),
            )
            if speedup is not None:
                metadata["measured_speedup"] = speedup
        self._emit(
            HookEvent.POST_EXECUTE,
            metadata=metadata,
            results_count=self.items_completed,
            results_size_bytes=self._results_bytes,
            **({} if error is None else _error_fields(error, None)),
        )
        self._open = False
        executions.end(self.execution_id)

    def is_emitting(self) -> bool:
        """Say whether a hook is running now."""
        return self._emitting.locked()

    def _chunk_metadata(self, chunk: Chunk, outcome: ChunkOutcome | None) -> dict[str, Any]:
        metadata: dict[str, Any] = {"chunk_start": chunk.start}
        if chunk.retry_of is not None:
            metadata["retry_of"] = chunk.retry_of
        if chunk.dispatched_at:
            metadata["dispatched_at"] = chunk.dispatched_at
        if outcome is not None:
            metadata["failed_items"] = len(outcome.failures)
            metadata["started_at"] = outcome.started_at
            if chunk.dispatched_at:
                # Two clocks may disagree by a little: a wait is never negative.
                metadata["queue_time"] = max(0.0, outcome.started_at - chunk.dispatched_at)
        if self._trace is not None and self._trace.sampled and self._trace.exact:
            metadata["span_id"] = f"{trace_link.chunk_span_id(self._trace.span_id, chunk.id):016x}"
        return metadata

    def _add_returned(
        self, worker: int | None, outcome: ChunkOutcome, cpu: CpuTime | None
    ) -> _WorkerRecord | None:
        seconds = outcome.duration
        cpu_seconds = cpu.seconds if cpu is not None else None if seconds else 0.0
        self._returned_seconds += seconds
        self._spent.add(seconds, cpu_seconds)
        record = None if worker is None else self._workers.get(worker)
        if record is not None:
            record.spent.add(seconds, cpu_seconds)
        return record

    def _add_serial_time(self, outcome: ChunkOutcome, cpu: CpuTime | None, alone: bool) -> None:
        local = outcome.hostname in (HOSTNAME, "")
        self._all_local = self._all_local and local
        workers = 1 if alone else max(2, self.n_jobs)
        self._serial_time.add(
            outcome.size,
            outcome.duration,
            cpu,
            workers=workers,
            cores=self._cores if local else workers,  # the cores of others are not known here
            threads=outcome.pid == os.getpid() and local,
        )

    def _note_workers(self) -> None:
        if self.n_jobs > 1:
            from amorsize.planning.machine import read_system

            self._cores = read_system(memory=False).usable_cores

    def _capacity(self, elapsed: float) -> float | None:
        """Return how much computing this machine can do at once, in cores, where it matters."""
        if not self._all_local or self._serial_time.all_cpu_seconds <= elapsed:
            return None
        from amorsize.planning.cost import effective_cores
        from amorsize.planning.machine import read_system

        machine = read_system(memory=False)
        return effective_cores(machine, machine.affinity_cores)

    def _reports_user_metrics(self) -> bool:
        return self.has_hooks(HookEvent.ON_CHUNK_COMPLETE) or self.has_hooks(HookEvent.ON_ERROR)

    def _take_extras(self, outcome: ChunkOutcome) -> dict[str, Any]:
        """Return the metadata that was returned with the results; once per chunk."""
        extras = self._take_user_metrics(outcome)
        if (trace := outcome.extras.pop("trace", None)) is not None:
            extras["trace"] = trace
        return extras

    def _take_user_metrics(self, outcome: ChunkOutcome) -> dict[str, Any]:
        extras = outcome.extras.pop("user_metrics", None)
        if extras is None:
            return {}
        if self._reports_user_metrics():
            return admit(extras)
        enclosing = current_collector()
        if enclosing is not None:
            enclosing.absorb(extras)
        return {}

    def _elapsed(self) -> float:
        return time.perf_counter() - self._began

    def _emit(
        self, event: HookEvent, *, metadata: dict[str, Any] | None = None, **fields: Any
    ) -> None:
        if not self._open or not self.has_hooks(event):
            return
        elapsed = self._elapsed()
        done, total = self.items_completed, self.total_items
        rate = done / elapsed if elapsed > 0 else 0.0
        remaining = 0 if total is None else max(0, total - done)
        context = HookContext(
            event,
            n_jobs=self.n_jobs,
            chunksize=self.chunksize,
            total_items=total,
            items_completed=done,
            items_remaining=remaining,
            percent_complete=self._percent_complete(),
            elapsed_time=elapsed,
            estimated_time_remaining=remaining / rate if rate > 0 else 0.0,
            throughput_items_per_sec=rate,
            avg_item_time=self._returned_seconds / done if done else 0.0,
            worker_count=len(self._workers),
            metadata=self._metadata | metadata if metadata else self._metadata.copy(),
            **fields,
        )
        interrupted: BaseException | None = None
        with self._emitting:
            for manager in self._managers:
                try:
                    manager.trigger(context)
                except BaseException as error:  # Ctrl-C in a hook: the others are still notified
                    interrupted = interrupted or error
        if interrupted is not None:
            raise interrupted

    def _percent_complete(self) -> float:
        if self._finished:
            self._percent = 100.0
        elif self.total_items:
            # A length that the input announced too small must not take this past 100, nor back.
            reached = min(100.0, 100.0 * self.items_completed / self.total_items)
            self._percent = max(self._percent, reached)
        return self._percent


def _take_cpu_time(outcome: ChunkOutcome) -> CpuTime | None:
    values = outcome.extras.pop("cpu_time", None)
    if values is None:
        return None
    cpu = CpuTime(*values)
    cpu.is_limited = cpu.is_limited and not thread_limits.are_set()  # else a serial run is, too
    cpu.seconds = min(cpu.seconds, outcome.duration)  # the clocks are read one after the other
    return cpu


@protected
def _error_fields(error: BaseException, traceback_text: str | None) -> dict[str, Any]:
    if traceback_text is None:
        traceback_text = "".join(traceback.format_exception(error))
    return {
        "error": error,
        "error_message": text_of(error),
        "error_traceback": traceback_text,
    }
