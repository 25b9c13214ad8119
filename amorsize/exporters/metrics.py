"""The one table of metrics: names, kinds, units, labels, buckets, help.

Exporters, ``docs/metrics.md`` and dashboards are generated from it or checked against it. The
name in each system is a column of it. ``python -m amorsize.exporters.metrics`` prints the
documentation page.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from enum import StrEnum

from amorsize.hooks.events import EXECUTOR_TYPES, STATUSES, HookEvent
from amorsize.workers.names import MAX_CHARACTERS, bounded


class Kind(StrEnum):
    """How a metric's value may change."""

    COUNTER = "counter"
    """Only grows, until the process ends."""

    GAUGE = "gauge"
    """Goes up and down."""

    HISTOGRAM = "histogram"
    """Counts observations in buckets, and their sum."""

    INFO = "info"
    """Always 1; its information is in its labels."""


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)  # eq=False: hashed by identity, fast
class Metric:
    """A row of the table.

    Attributes:
        prometheus: the name in Prometheus.
        dotted: the name in OpenTelemetry and in Datadog. Prometheus' translation of the first,
            with its unit, is ``prometheus`` again.
        kind: how its value may change.
        help: one sentence, without its full stop.
        labels: names of its labels.
        unit: as OpenTelemetry spells it, in UCUM; empty where there is none.
        buckets: upper bounds of a histogram's buckets, in its unit, without infinity.
    """

    prometheus: str
    dotted: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    unit: str = ""
    buckets: tuple[float, ...] = ()

    @property
    def prometheus_unit(self) -> str:
        """The unit as Prometheus spells it at the end of a name; empty for a plain count."""
        return {"s": "seconds", "1": "ratio"}.get(self.unit, "")

    @property
    def cloudwatch(self) -> str:
        """The name in CloudWatch: ``ChunkDuration``."""
        words = self.dotted.removeprefix("amorsize.").replace(".", "_").split("_")
        return "".join(word.capitalize() for word in words)

    @property
    def cloudwatch_unit(self) -> str:
        """One of CloudWatch's units."""
        if self.unit == "s":
            return "Seconds"
        if self.unit.endswith("/s"):
            return "Count/Second"
        return "Count" if self.unit.startswith("{") else "None"


OTHER = "other"
"""The label of a missing name, and of names beyond the limit."""

ATTRIBUTES = {
    "function": "code.function.name",
    "executor": "amorsize.executor",
    "status": "amorsize.status",
    "error_type": "error.type",
    "event": "amorsize.event",
    "hook": "amorsize.hook",
    "exporter": "amorsize.exporter",
    "version": "amorsize.version",
    "python": "process.runtime.version",
}
"""The labels as OpenTelemetry attributes, on metrics and on spans. In Datadog they are tags of the
same name, in CloudWatch dimensions in CamelCase."""

CLOSED_LABELS: dict[str, tuple[str, ...]] = {
    "executor": EXECUTOR_TYPES,
    "status": STATUSES,
    "event": tuple(event.value for event in HookEvent),
}
"""Labels whose values are all known in advance."""

LABEL_LIMITS = {"function": 100, "error_type": 50, "hook": 50}
"""Labels whose values come from the user's program, and how many of them are kept distinct."""

# Fine where runs and chunks live, at most twice as far apart from a quarter of a second to two
# minutes: a quantile is nowhere exact within its bucket. Few elsewhere, because every bucket is a
# time series for each function, executor and status.
DURATION_BUCKETS = (
    *(0.005, 0.025, 0.1, 0.25, 0.5),
    *(1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0),
    *(180.0, 300.0, 600.0, 1800.0, 7200.0, 86400.0),
)
PLANNING_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
QUEUE_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
    *(30.0, 60.0, 300.0, 1800.0),
)

_FUNCTION = ("function",)
_RUN = ("function", "executor")
_ENDED_RUN = ("function", "executor", "status")

EXECUTIONS = Metric(
    prometheus="amorsize_executions_total",
    dotted="amorsize.executions",
    kind=Kind.COUNTER,
    help="Executions that ended, by status",
    unit="{execution}",
    labels=_ENDED_RUN,
)
EXECUTIONS_IN_PROGRESS = Metric(
    prometheus="amorsize_executions_in_progress",
    dotted="amorsize.executions.in_progress",
    kind=Kind.GAUGE,
    help="Executions that run now",
    unit="{execution}",
    labels=_RUN,
)
EXECUTION_DURATION = Metric(
    prometheus="amorsize_execution_duration_seconds",
    dotted="amorsize.execution.duration",
    kind=Kind.HISTOGRAM,
    help="Time from the call of execute() to the end of the execution",
    unit="s",
    labels=_ENDED_RUN,
    buckets=DURATION_BUCKETS,
)
PLANNING_DURATION = Metric(
    prometheus="amorsize_planning_duration_seconds",
    dotted="amorsize.planning.duration",
    kind=Kind.HISTOGRAM,
    help="Time spent on sampling and on choosing the plan of an execution",
    unit="s",
    labels=_FUNCTION,
    buckets=PLANNING_BUCKETS,
)
ITEMS_PROCESSED = Metric(
    prometheus="amorsize_items_processed_total",
    dotted="amorsize.items.processed",
    kind=Kind.COUNTER,
    help="Items of completed chunks, counted while executions run",
    unit="{item}",
    labels=_RUN,
)
ITEMS_FAILED = Metric(
    prometheus="amorsize_items_failed_total",
    dotted="amorsize.items.failed",
    kind=Kind.COUNTER,
    help="Items that failed, counted while executions run",
    unit="{item}",
    labels=_RUN,
)
ITEMS_EXPECTED = Metric(
    prometheus="amorsize_items_expected",
    dotted="amorsize.items.expected",
    kind=Kind.GAUGE,
    help="Items in the inputs of the executions in progress; inputs of unknown length count 0",
    unit="{item}",
    labels=_RUN,
)
ITEMS_COMPLETED = Metric(
    prometheus="amorsize_items_completed",
    dotted="amorsize.items.completed",
    kind=Kind.GAUGE,
    help="Items completed by the executions in progress; those of inputs of unknown length count 0",
    unit="{item}",
    labels=_RUN,
)
THROUGHPUT = Metric(
    prometheus="amorsize_throughput_items_per_second",
    dotted="amorsize.throughput.items",
    kind=Kind.GAUGE,
    help="Items per second, summed over the executions in progress, as of their last chunks",
    unit="{item}/s",
    labels=_RUN,
)
CHUNK_DURATION = Metric(
    prometheus="amorsize_chunk_duration_seconds",
    dotted="amorsize.chunk.duration",
    kind=Kind.HISTOGRAM,
    help="Time a chunk spent in the function, measured in the worker",
    unit="s",
    labels=_RUN,
    buckets=DURATION_BUCKETS,
)
CHUNK_QUEUE = Metric(
    prometheus="amorsize_chunk_queue_seconds",
    dotted="amorsize.chunk.queue",
    kind=Kind.HISTOGRAM,
    help="Time a chunk waited between its dispatch and its start",
    unit="s",
    labels=_RUN,
    buckets=QUEUE_BUCKETS,
)
WORKERS = Metric(
    prometheus="amorsize_workers",
    dotted="amorsize.workers",
    kind=Kind.GAUGE,
    help="Workers that take part in the executions in progress",
    unit="{worker}",
    labels=_RUN,
)
WORKER_BUSY = Metric(
    prometheus="amorsize_worker_busy_seconds_total",
    dotted="amorsize.worker.busy",
    kind=Kind.COUNTER,
    help="Time that workers spent in the function, also in calls that did not end",
    unit="s",
    labels=_RUN,
)
WORKER_CPU = Metric(
    prometheus="amorsize_worker_cpu_seconds_total",
    dotted="amorsize.worker.cpu",
    kind=Kind.COUNTER,
    help="CPU time of workers' threads in the function; that of calls that a death ended is not "
    "known, and left out",
    unit="s",
    labels=_RUN,
)
WORKER_AVAILABLE = Metric(
    prometheus="amorsize_worker_available_seconds_total",
    dotted="amorsize.worker.available",
    kind=Kind.COUNTER,
    help="Time that workers took part, in the function or not, counted when it is known how much",
    unit="s",
    labels=_RUN,
)
WORKER_DEATHS = Metric(
    prometheus="amorsize_worker_deaths_total",
    dotted="amorsize.worker.deaths",
    kind=Kind.COUNTER,
    help="Workers that died",
    unit="{worker}",
    labels=_RUN,
)
ERRORS = Metric(
    prometheus="amorsize_errors_total",
    dotted="amorsize.errors",
    kind=Kind.COUNTER,
    help="Failures of chunks, deaths of workers, cancellations and timeouts, by exception type",
    unit="{error}",
    labels=("function", "executor", "error_type"),
)
ESTIMATED_SPEEDUP = Metric(
    prometheus="amorsize_estimated_speedup_ratio",
    dotted="amorsize.estimated_speedup",
    kind=Kind.GAUGE,
    help="Speedup over a serial run that the plan of the last execution that ended had expected; "
    "absent where it was not measured",
    unit="1",
    labels=_FUNCTION,
)
MEASURED_SPEEDUP = Metric(
    prometheus="amorsize_measured_speedup_ratio",
    dotted="amorsize.measured_speedup",
    kind=Kind.GAUGE,
    help="How many times as long as the last execution that ended a serial run would have taken; "
    "absent where that is not known",
    unit="1",
    labels=_FUNCTION,
)
CONCURRENCY = Metric(
    prometheus="amorsize_concurrency",
    dotted="amorsize.concurrency",
    kind=Kind.GAUGE,
    help="Calls in progress at once, on average, in the last execution that ended",
    unit="{call}",
    labels=_FUNCTION,
)
LAST_ACTIVITY = Metric(
    prometheus="amorsize_last_activity_timestamp_seconds",
    dotted="amorsize.last_activity.timestamp",
    kind=Kind.GAUGE,
    help="Time of the last event of an execution, in seconds since the epoch",
    unit="s",
    labels=_RUN,
)
LAST_COMPLETION = Metric(
    prometheus="amorsize_last_completion_timestamp_seconds",
    dotted="amorsize.last_completion.timestamp",
    kind=Kind.GAUGE,
    help="When an execution last ended, in seconds since the epoch; absent before the first",
    unit="s",
    labels=("function", "status"),
)
LAST_SUCCESS = Metric(
    prometheus="amorsize_last_success_timestamp_seconds",
    dotted="amorsize.last_success.timestamp",
    kind=Kind.GAUGE,
    help="When an execution last succeeded, in seconds since the epoch; absent before the first",
    unit="s",
    labels=_FUNCTION,
)
LAST_DURATION = Metric(
    prometheus="amorsize_last_duration_seconds",
    dotted="amorsize.last_duration",
    kind=Kind.GAUGE,
    help="Duration of the last execution that ended",
    unit="s",
    labels=_FUNCTION,
)
LAST_ITEMS = Metric(
    prometheus="amorsize_last_items",
    dotted="amorsize.last_items",
    kind=Kind.GAUGE,
    help="Items that the last execution that ended had completed",
    unit="{item}",
    labels=_FUNCTION,
)
LAST_FAILED_ITEMS = Metric(
    prometheus="amorsize_last_failed_items",
    dotted="amorsize.last_failed_items",
    kind=Kind.GAUGE,
    help="Items that had failed in the last execution that ended",
    unit="{item}",
    labels=_FUNCTION,
)
LAST_WORKER_DEATHS = Metric(
    prometheus="amorsize_last_worker_deaths",
    dotted="amorsize.last_worker_deaths",
    kind=Kind.GAUGE,
    help="Workers that had died in the last execution that ended",
    unit="{worker}",
    labels=_FUNCTION,
)
LONGEST_CHUNK = Metric(
    prometheus="amorsize_longest_chunk_seconds",
    dotted="amorsize.longest_chunk",
    kind=Kind.GAUGE,
    help="Longest completed chunk of the executions in progress and of the last one that ended",
    unit="s",
    labels=_RUN,
)
HOOK_ERRORS = Metric(
    prometheus="amorsize_hook_errors_total",
    dotted="amorsize.hook.errors",
    kind=Kind.COUNTER,
    help="Hooks that raised; the executions went on",
    unit="{error}",
    labels=("event",),
)
HOOK_CALLS = Metric(
    prometheus="amorsize_hook_calls_total",
    dotted="amorsize.hook.calls",
    kind=Kind.COUNTER,
    help="Calls of hooks, failed ones too",
    unit="{call}",
    labels=("event", "hook"),
)
HOOK_BUSY = Metric(
    prometheus="amorsize_hook_busy_seconds_total",
    dotted="amorsize.hook.busy",
    kind=Kind.COUNTER,
    help="Time spent in hooks",
    unit="s",
    labels=("event", "hook"),
)
HOOK_LONGEST = Metric(
    prometheus="amorsize_hook_longest_seconds",
    dotted="amorsize.hook.longest",
    kind=Kind.GAUGE,
    help="Duration of the longest call of a hook",
    unit="s",
    labels=("event", "hook"),
)
EXPORTER_DROPPED = Metric(
    prometheus="amorsize_exporter_dropped_total",
    dotted="amorsize.exporter.dropped",
    kind=Kind.COUNTER,
    help="Messages that an exporter dropped because its backend did not keep up",
    unit="{message}",
    labels=("exporter",),
)
EXPORTER_ERRORS = Metric(
    prometheus="amorsize_exporter_errors_total",
    dotted="amorsize.exporter.errors",
    kind=Kind.COUNTER,
    help="Failures of an exporter to deliver",
    unit="{error}",
    labels=("exporter",),
)
USER_METRICS_DROPPED = Metric(
    prometheus="amorsize_dropped_user_metrics_total",
    dotted="amorsize.dropped_user_metrics",
    kind=Kind.COUNTER,
    help="Calls of count(), observe() and set_gauge() that were dropped: too many names",
    unit="{call}",
    labels=("function", "executor"),
)
BUILD_INFO = Metric(
    prometheus="amorsize_build_info",
    dotted="amorsize.build_info",
    kind=Kind.INFO,
    help="Version of amorsize, and of the Python that runs it",
    labels=("version", "python"),
)

METRICS: tuple[Metric, ...] = tuple(row for row in globals().values() if isinstance(row, Metric))
"""Every row, in the order above."""

COUNTING_SINCE = Metric(
    prometheus="amorsize_counting_since_timestamp_seconds",
    dotted="amorsize.counting_since.timestamp",
    kind=Kind.GAUGE,
    help="Since when the program's counters count, in seconds since the epoch",
    unit="s",
    labels=(),
)
IN_PROGRESS_UNTIL = Metric(
    prometheus="amorsize_in_progress_until_timestamp_seconds",
    dotted="amorsize.in_progress_until.timestamp",
    kind=Kind.GAUGE,
    help="When executions in progress that were pushed, or written to a file, count as ended "
    "unless the program reports again, in seconds since the epoch",
    unit="s",
    labels=_RUN,
)

PROMETHEUS_ONLY = (COUNTING_SINCE, IN_PROGRESS_UNTIL)
"""Beside the table: other systems know when a program begins and when it reports no more. Alerts of
Prometheus need the first of a job that sends OTLP, too."""


class BoundedLabel:
    """Turns names from the user's program into at most ``limit`` label values, then ``other``.

    The first names are kept, cut where they are long. Safe to call from several threads.

    Example:
        >>> function = BoundedLabel(1)
        >>> function("parse"), function("store"), function("parse")
        ('parse', 'other', 'parse')
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.RLock()  # a signal handler may end a stream over its holder
        self._known: dict[str, str] = {}

    def __call__(self, name: object) -> str:
        if not isinstance(name, str) or not name:
            return OTHER
        label = self._known.get(name)
        if label is not None:
            return label
        if len(name) > MAX_CHARACTERS:  # nor is it kept as a key
            name = bounded(name)
        with self._lock:
            if name not in self._known and len(self._known) >= self._limit:
                return OTHER
            # A lone surrogate in one name would make the whole exposition unencodable.
            return self._known.setdefault(name, bounded(name))


def closed_label(label: str, value: object) -> str:
    """Return ``value`` where it is one of the label's known values, else ``other``."""
    return value if isinstance(value, str) and value in CLOSED_LABELS[label] else OTHER


def to_markdown() -> str:
    """Write the documentation page of the table."""
    lines = [
        "# Metrics",
        "",
        "<!-- Written by `python -m amorsize.exporters.metrics`; do not edit by hand. -->",
        "",
        "| Prometheus name | kind | labels | meaning |",
        "|---|---|---|---|",
    ]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.prometheus}` | {metric.kind} | {labels} | {metric.help}. |")
    lines += [
        "",
        "Prometheus alone has two more, by which alerts and dashboards know a program that begins",
        "at zero, and one that was killed:",
        "",
        "| Prometheus name | kind | labels | meaning |",
        "|---|---|---|---|",
    ]
    for metric in PROMETHEUS_ONLY:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.prometheus}` | {metric.kind} | {labels} | {metric.help}. |")
    lines += ["", "## Labels", "", "| label | values |", "|---|---|"]
    for label, limit in LABEL_LIMITS.items():
        lines.append(f"| `{label}` | the first {limit} names, then `{OTHER}` |")
    for label, values in CLOSED_LABELS.items():
        lines.append(f"| `{label}` | {', '.join(f'`{value}`' for value in values)} |")
    lines += [
        "",
        "`function` is the qualified name of the function, or the `name=` of the call; `hook` is",
        "the qualified name of the hook. No process id, host name or execution id is ever a label.",
        f"A name of more than {MAX_CHARACTERS} characters is cut, and ends in a checksum of the",
        "whole name: names that differ only after the cut stay different.",
        "",
        "Counters and histograms whose labels have known values exist at zero from the start of a",
        "function's first execution, except histograms of other statuses than `ok`. Gauges with",
        "`last_` or `longest` in their name, the speedups and the concurrency appear with their",
        "first value; the speedups are absent again when they are not known. The other gauges are",
        "sums over the executions in progress, and 0 when there is none.",
        "",
        "## Names elsewhere",
        "",
        "| Prometheus | OpenTelemetry, Datadog | unit (UCUM) | CloudWatch | its unit |",
        "|---|---|---|---|---|",
    ]
    for metric in METRICS:
        lines.append(
            f"| `{metric.prometheus}` | `{metric.dotted}` | {metric.unit and f'`{metric.unit}`'} "
            f"| `{metric.cloudwatch}` | {metric.cloudwatch_unit} |"
        )
    lines += ["", "| label, and Datadog's tag | OpenTelemetry attribute |", "|---|---|"]
    lines += [f"| `{label}` | `{attribute}` |" for label, attribute in ATTRIBUTES.items()]
    lines += [
        "",
        "## Buckets",
        "",
        "| histogram | upper bounds, in seconds |",
        "|---|---|",
    ]
    for metric in METRICS:
        if metric.buckets:
            bounds = ", ".join(f"{bound:g}" for bound in metric.buckets)
            lines.append(f"| `{metric.prometheus}` | {bounds} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(to_markdown())
