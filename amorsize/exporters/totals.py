"""Totals of every row of the metric table: the sums of the events."""

from __future__ import annotations

import platform
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Self

from amorsize import __version__
from amorsize.exporters import metrics
from amorsize.exporters.base import Exporter, exporter_stats
from amorsize.exporters.exemplars import exemplar_of
from amorsize.exporters.hook_totals import HookTotals
from amorsize.exporters.metrics import BoundedLabel, Metric, closed_label
from amorsize.exporters.series import Labels, Series, Share, Totals, number
from amorsize.exporters.user_totals import UserTotals
from amorsize.hooks import HookContext, HookManager
from amorsize.hooks.events import STATUSES
from amorsize.hooks.executions import managers_of
from amorsize.workers.names import bounded
from amorsize.workers.user_metrics import UserMetrics

LIVE_GAUGES = (
    metrics.EXECUTIONS_IN_PROGRESS,
    metrics.ITEMS_EXPECTED,
    metrics.ITEMS_COMPLETED,
    metrics.THROUGHPUT,
    metrics.WORKERS,
)
"""Gauges that are sums over the executions in progress."""

_WORKER_SECONDS = (metrics.WORKER_BUSY, metrics.WORKER_CPU, metrics.WORKER_AVAILABLE)

_SPEEDS = {
    metrics.ESTIMATED_SPEEDUP: "estimated_speedup",
    metrics.MEASURED_SPEEDUP: "measured_speedup",
    metrics.CONCURRENCY: "concurrency",
}


@dataclass(slots=True)
class LiveRun:
    """An execution in progress, for the gauges.

    Attributes:
        labels: function and executor.
        expected: the length of the input; None while it is unknown.
        since: by worker: when it began at the latest, in seconds from the start of the run.
        spent: by worker: how much of its time was counted: in the function, on a CPU, and in all.
        longest_chunk: in seconds; None before the first.
    """

    labels: Labels
    expected: int | None = None
    completed: int = 0
    failed: float = 0
    throughput: float = 0.0
    workers: int = 0
    deaths: int = 0
    since: dict[int, float] = field(default_factory=dict)
    spent: dict[int, tuple[float, float, float]] = field(default_factory=dict)
    longest_chunk: float | None = None

    def totals(self) -> tuple[float, ...]:
        """Return what it adds to each of ``LIVE_GAUGES``."""
        if self.expected is None:
            return 1, 0, 0, self.throughput, self.workers
        # An input may be longer than it had announced.
        expected = max(self.expected, self.completed)
        return 1, expected, self.completed, self.throughput, self.workers


class TotalsExporter(Exporter):
    """An exporter that keeps the present value of every row. A base class.

    The values are not metric objects of a client library: a chunk costs a few additions under one
    lock. Gauges are summed over the executions in progress with each :meth:`snapshot`, so an
    execution that ended badly leaves none behind.

    Attributes:
        counting_since: since when its counters count, in seconds since the epoch.
    """

    def __init__(self, *, in_children: bool = False) -> None:
        self._begin_at_zero()
        super().__init__(in_children=in_children)

    def restart(self) -> None:
        super().restart()
        self._begin_at_zero()
        self._hook_totals = HookTotals(from_now=True)  # managers remember calls of the parent

    def _begin_at_zero(self) -> None:
        self._lock = threading.RLock()  # a signal handler may end a stream over its holder
        self.counting_since = time.time()
        self._totals = Totals()
        self._user_totals = UserTotals()
        self._runs: dict[Any, LiveRun] = {}
        self._function_label = BoundedLabel(metrics.LABEL_LIMITS["function"])
        self._error_label = BoundedLabel(metrics.LABEL_LIMITS["error_type"])
        self._hook_totals = HookTotals()

    def attach(self, manager: HookManager | None = None) -> Self:
        super().attach(manager)
        self._hook_totals.include(self.managers)
        return self

    def close(self) -> None:
        self._hook_totals.close()
        super().close()

    def pre_execute(self, context: HookContext) -> None:
        with self._lock:
            self._run_of(context)

    def on_worker_start(self, context: HookContext) -> None:
        with self._lock:
            run = self._run_of(context)
            run.workers = context.worker_count
            if context.worker_id is not None:
                run.since[context.worker_id] = context.elapsed_time

    def on_chunk_complete(self, context: HookContext) -> None:
        # ON_PROGRESS would add nothing: it repeats the numbers of this event.
        totals = self._totals
        chunk_seconds = number(context.chunk_time) or 0.0
        queue_seconds = number(context.metadata.get("queue_time"))
        exemplar = exemplar_of(chunk_seconds, context)
        with self._lock:
            run = self._run_of(context)
            labels = run.labels
            self._add_user_totals(labels, context)
            totals.add(metrics.ITEMS_PROCESSED, labels, context.chunk_size or 0)
            totals.observe(metrics.CHUNK_DURATION, labels, chunk_seconds, exemplar)
            if queue_seconds is not None:
                totals.observe(metrics.CHUNK_QUEUE, labels, queue_seconds)
            run.longest_chunk = max(run.longest_chunk or 0.0, chunk_seconds)
            self._count_time(run, context, chunk_seconds)
        self._observed(metrics.CHUNK_DURATION, labels, chunk_seconds, context)
        if queue_seconds is not None:
            self._observed(metrics.CHUNK_QUEUE, labels, queue_seconds, context)
        if "user_metrics" in context.metadata:
            self._user_observed(context.metadata["user_metrics"], labels)

    def on_error(self, context: HookContext) -> None:
        name = None if context.error is None else type(context.error).__name__
        failed_items = number(context.metadata.get("failed_items")) or 0
        with self._lock:
            run = self._run_of(context)
            labels = run.labels
            run.failed += failed_items
            self._totals.add(metrics.ERRORS, (*labels, self._error_label(name)), 1)
            self._totals.add(metrics.ITEMS_FAILED, labels, failed_items)
            self._add_user_totals(labels, context)
            if not context.metadata.get("chunk_completes"):
                self._count_time(run, context, number(context.chunk_time) or 0.0)
        if "user_metrics" in context.metadata:
            self._user_observed(context.metadata["user_metrics"], labels)

    def on_worker_end(self, context: HookContext) -> None:
        with self._lock:
            run = self._run_of(context)
            run.workers = context.worker_count
            if context.metadata.get("exit_reason") == "died":
                run.deaths += 1
                self._totals.add(metrics.WORKER_DEATHS, run.labels, 1)
            if context.worker_id is not None:
                busy_seconds = number(context.metadata.get("busy_time")) or 0.0
                self._count_time(run, context, busy_seconds, of_all=True)

    def post_execute(self, context: HookContext) -> None:
        metadata, totals = context.metadata, self._totals
        status = status_label(context)
        duration_seconds = number(context.elapsed_time) or 0.0
        planning_seconds = number(metadata.get("planning_time"))
        exemplar = exemplar_of(duration_seconds, context)
        with self._lock:
            run = self._run_of(context)
            self._runs.pop(metadata.get("execution_id"), None)
            function = run.labels[:1]
            labels = (*run.labels, status)
            totals.add(metrics.EXECUTIONS, labels, 1)
            totals.observe(metrics.EXECUTION_DURATION, labels, duration_seconds, exemplar)
            if planning_seconds is not None:
                totals.observe(metrics.PLANNING_DURATION, function, planning_seconds)
            for metric, key in _SPEEDS.items():
                totals.set(metric, function, number(metadata.get(key)))
            totals.set(metrics.LAST_COMPLETION, (*function, status), context.timestamp)
            if status == "ok":
                totals.set(metrics.LAST_SUCCESS, function, context.timestamp)
            totals.set(metrics.LAST_DURATION, function, duration_seconds)
            totals.set(metrics.LAST_ITEMS, function, run.completed)
            totals.set(metrics.LAST_FAILED_ITEMS, function, run.failed)
            totals.set(metrics.LAST_WORKER_DEATHS, function, run.deaths)
            if run.longest_chunk is not None:
                totals.set(metrics.LONGEST_CHUNK, run.labels, run.longest_chunk)
        self._observed(metrics.EXECUTION_DURATION, labels, duration_seconds, context)
        if planning_seconds is not None:
            self._observed(metrics.PLANNING_DURATION, function, planning_seconds, context)

    def _observed(self, metric: Metric, labels: Labels, value: float, context: HookContext) -> None:
        """Called after a duration was added to its histogram. Override it to send observations."""

    def _user_observed(self, shares: UserMetrics, labels: Labels) -> None:
        """Called after the user metrics of a chunk were added. Override it to send them."""

    def snapshot(self) -> Series:
        """Read every series at this moment; empty once the exporter is closed."""
        return self.share().shown() if self.active else {}

    def share(self) -> Share:
        """Read what this process adds to the totals of its program."""
        longest: dict[Labels, float] = {}
        with self._lock:
            series = self._totals.copy() | self._user_totals.copy()
            set_at = self._totals.set_times() | self._user_totals.set_times()
            running = [(run.labels, run.totals()) for run in self._runs.values()]
            for run in self._runs.values():
                if run.longest_chunk is not None:
                    longest[run.labels] = max(longest.get(run.labels, 0.0), run.longest_chunk)
        for position, gauge in enumerate(LIVE_GAUGES):
            sums = dict.fromkeys(series.get(metrics.ITEMS_PROCESSED, ()), 0.0)
            for labels, totals in running:
                sums[labels] += totals[position]
            series[gauge] = dict(sums)
        stats = {**exporter_stats(beside=self), self.name: self.counts()}
        series |= self._hook_totals.series()
        names = {name: (bounded(name),) for name in stats}
        series[metrics.EXPORTER_DROPPED] = {names[name]: each[0] for name, each in stats.items()}
        series[metrics.EXPORTER_ERRORS] = {names[name]: each[1] for name, each in stats.items()}
        series[metrics.BUILD_INFO] = {(__version__, platform.python_version()): 1}
        return Share(series, set_at, longest)

    def _count_time(
        self,
        run: LiveRun,
        context: HookContext,
        busy_seconds: float,
        *,
        of_all: bool = False,
    ) -> None:
        """Count a worker's time since it was last counted, and how much of it was in the function.

        Both at once, so that what is busy is never more than what is available. The context's times
        in the function and on a CPU are those of a chunk, or ``of_all`` that the worker did.
        """
        worker_id = context.worker_id
        if worker_id is None:
            return
        counted = run.spent.get(worker_id, (0.0, 0.0, 0.0))
        cpu_seconds = number(context.metadata.get("cpu_seconds")) or 0.0
        if of_all:
            busy, cpu = max(counted[0], busy_seconds), max(counted[1], cpu_seconds)
        else:
            busy, cpu = counted[0] + busy_seconds, counted[1] + cpu_seconds
        # The start of a worker, and its chunks, may be reported when it has worked for a while.
        elapsed = context.elapsed_time
        since = run.since[worker_id] = min(run.since.get(worker_id, elapsed), elapsed - busy)
        available = max(counted[2], elapsed - since)
        run.spent[worker_id] = busy, cpu, available
        for metric, now, before in zip(_WORKER_SECONDS, run.spent[worker_id], counted, strict=True):
            self._totals.add(metric, run.labels, now - before)

    def _add_user_totals(self, labels: Labels, context: HookContext) -> None:
        self._user_totals.add(labels, context.metadata)
        dropped = context.metadata.get("user_metrics_dropped")
        if dropped is not None:
            self._totals.add(metrics.USER_METRICS_DROPPED, labels, dropped)

    def _user_rows(self) -> list[Metric]:
        """List the rows of the user metrics so far."""
        with self._lock:
            return self._user_totals.rows()

    def _run_of(self, context: HookContext) -> LiveRun:
        """Find the execution of a context, and note the numbers that every context has.

        An unknown execution is new, or was in progress when the exporter was attached.
        """
        execution_id = context.metadata.get("execution_id")
        run = self._runs.get(execution_id)
        if run is None:
            function = self._function_label(context.metadata.get("function"))
            executor = closed_label("executor", context.metadata.get("executor_type"))
            run = self._runs[execution_id] = LiveRun((function, executor))
            self._totals.start_at_zero(function=function, executor=executor)
            self._hook_totals.include(managers_of(execution_id))
        if context.total_items is not None:
            run.expected = context.total_items
        if context.items_completed >= run.completed:
            run.completed = context.items_completed
            run.throughput = context.throughput_items_per_sec
        self._totals.set(metrics.LAST_ACTIVITY, run.labels, context.timestamp)
        return run


def status_label(context: HookContext) -> str:
    """Return the value of the label ``status`` for the end of an execution."""
    status = context.metadata.get("status")
    if isinstance(status, str) and status in STATUSES:
        return status
    return "ok" if context.error is None else "error"
