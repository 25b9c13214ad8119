"""Prometheus' recording rules and alerts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import yaml

from amorsize.dashboards import GRAFANA_URL, RUNBOOK_URL
from amorsize.exporters import metrics
from amorsize.exporters.metrics import Metric

from . import promql
from .boards import Board
from .promql import Query, duration

CRITICAL, WARNING = "critical", "warning"


@dataclass(frozen=True)
class Times:
    """Durations in the rules, in seconds.

    Attributes:
        recent: how long something that happened once rings.
        failed: how long a failed execution rings.
        items: the time over which failed items are counted.
        items_wait: how long too many of them have to fail.
        silent: how long an execution in progress may give no sign of life.
        overdue: how long one rings whose program reports no more.
        success: how long ago the last success may be.
        remembered: how long it is remembered.
        speedup: how long the last execution of a program that has ended counts.
        speedup_wait: how long it has to be slow.
    """

    recent: float = 600
    failed: float = 900
    items: float = 900
    items_wait: float = 300
    silent: float = 1800
    overdue: float = 86_400
    success: float = 172_800
    remembered: float = 604_800
    speedup: float = 3600
    speedup_wait: float = 900

    def divided_by(self, factor: float) -> Times:
        """Make rules that are faster, for tests."""
        return Times(*(getattr(self, each.name) / factor for each in fields(self)))


COUNT = '{{ $value | printf "%.0f" }}'
"""A number of things, whole: where a counter was reset, Prometheus extrapolates."""

FAILED = f'=~"{promql.FAILED}"'

_NOW = Query(promql.EVERYTHING)
_FIVE_MINUTES = Query(promql.EVERYTHING, "5m")

FAILED_ITEMS = "job_function:amorsize_items_failed:ratio15m"

LAST_SUCCESS = "job_function:amorsize_last_success_timestamp_seconds:max"
"""Keeps the last success of programs that have ended, for a week."""


def _recent_run(value: str, seconds: float) -> str:
    """Keep gauges of the last execution where it ended recently, and had not run for longer.

    Counters show what a longer one does while it runs. A run that is over before its first scrape,
    or whose program left the same counts as the one before, only shows in these.
    """
    window = duration(seconds)
    ended = f"{_NOW.past(metrics.LAST_COMPLETION, window)} > time() - {seconds:g}"
    short = f"{_NOW.past(metrics.LAST_DURATION, window)} < {seconds:g}"
    return f"max by (job, function) ({value} and ignoring (status) {ended} and {short})"


def _failed_share(seconds: float) -> str:
    """How many of the items fail; by the counters, or else in the last execution."""
    window = duration(seconds)
    failed = _NOW.past(metrics.LAST_FAILED_ITEMS, window)
    of_the_last = f"clamp_max({failed} / {_NOW.past(metrics.LAST_ITEMS, window)}, 1)"
    failed_items = _growth(metrics.ITEMS_FAILED, seconds, "job", "function")
    processed = _growth(metrics.ITEMS_PROCESSED, seconds, "job", "function")
    counted = f"clamp_max({failed_items} / {processed}, 1)"
    return f"({counted} >= 0) or {_recent_run(of_the_last, seconds)}"


def recorded(times: Times = Times()) -> dict[str, str]:
    """List the recording rules: names and expressions."""
    return {
        "job_function_status:amorsize_executions:rate5m": _FIVE_MINUTES.rate(
            metrics.EXECUTIONS, "job", "function", "status"
        ),
        "job_function:amorsize_items_processed:rate5m": _FIVE_MINUTES.rate(
            metrics.ITEMS_PROCESSED, "job", "function"
        ),
        FAILED_ITEMS: _failed_share(times.items),
        "job_function:amorsize_worker_busy:ratio_rate5m": _FIVE_MINUTES.busy_share(
            "job", "function"
        ),
        "job_function:amorsize_chunk_duration_seconds:p95_rate5m": _FIVE_MINUTES.quantile(
            0.95, metrics.CHUNK_DURATION, "job", "function"
        ),
        "job_function:amorsize_items_completed:ratio": _FIVE_MINUTES.progress("job", "function"),
        # Itself over a day: what a Prometheus that was down for a night had known is not forgotten.
        LAST_SUCCESS: (
            f"max by (job, function) ({_NOW.past(metrics.LAST_SUCCESS, '5m')} "
            f"or last_over_time({LAST_SUCCESS}[1d])) > time() - {times.remembered:g}"
        ),
    }


@dataclass(frozen=True)
class Alert:
    """An alert: it wakes somebody, or waits for the morning.

    Attributes:
        name: CamelCase.
        expr: true while it rings.
        severity: ``critical`` for an alert that should wake somebody.
        wait: how long it has to be true first.
        summary: one line.
        description: what it means, and what to do first.
        panel: the address of the panel to look at, below Grafana's.
    """

    name: str
    expr: str
    severity: str
    wait: str
    summary: str
    description: str
    panel: str


def alerts(boards: Mapping[str, Board], times: Times = Times()) -> list[Alert]:
    """List the alerts.

    Args:
        boards: the dashboards that they point into, by uid.
        times: how long they wait, and ring.
    """
    function, workers, health = (
        boards[f"amorsize-{name}"] for name in ("function", "workers", "health")
    )
    here = {name: f"{{{{ $labels.{name} | urlquery }}}}" for name in ("job", "function")}
    q = _NOW
    silent = f"time() - {q.series(metrics.LAST_ACTIVITY)}"
    running = f"{q.series(metrics.EXECUTIONS_IN_PROGRESS)} > 0"
    waits = f"{silent} <= 3 * {q.series(metrics.LONGEST_CHUNK)} unless {q.overdue()}"
    failed_ago = q.age(
        metrics.LAST_COMPLETION, "job", "function", window=duration(times.failed), status=FAILED
    )
    recent = duration(times.recent)
    died = _recent_run(q.past(metrics.LAST_WORKER_DEATHS, recent), times.recent)
    deaths = _growth(metrics.WORKER_DEATHS, times.recent, "job", "function")
    return [
        Alert(
            "AmorsizeExecutionFailed",
            f"{failed_ago} < {times.failed:g}",
            CRITICAL,
            "0s",
            "An execution of {{ $labels.function }} failed",
            "An execution of {{ $labels.function }} in job {{ $labels.job }} ended with an error "
            # Rounded: of less than a minute, humanizeDuration would give milliseconds.
            'or by its timeout {{ printf "%.0f" $value | humanizeDuration }} ago. The program got '
            "the exception; "
            "the panel has the types of the errors. Rings for 15 minutes.",
            function.link("Errors by type", **here),
        ),
        Alert(
            "AmorsizeNoRecentSuccess",
            f"time() - {LAST_SUCCESS} > {times.success:g}",
            CRITICAL,
            "0s",
            "{{ $labels.function }} has not succeeded for {{ $value | humanizeDuration }}",
            "{{ $labels.function }} in job {{ $labels.job }} last succeeded "
            "{{ $value | humanizeDuration }} ago; two days are allowed. Does the job still start? "
            "Does it fail, or hang? Forgotten after a week, for functions that are no more.",
            function.link("Since last success", **here),
        ),
        Alert(
            "AmorsizeWorkersDied",
            f"{deaths} > 0 or {died} > 0",
            WARNING,
            "0s",
            "Workers of {{ $labels.function }} died",
            "Workers of {{ $labels.function }} in job {{ $labels.job }} that were killed or "
            f"crashed within {recent}: {COUNT}. The WorkerDiedError, which is raised or stands "
            "among the results, names exit code, chunk and item: -9 is mostly the kernel, out of "
            "memory; -11 a crash in native code.",
            workers.link("Worker deaths by function", **here),
        ),
        Alert(
            "AmorsizeItemsFailing",
            f"{FAILED_ITEMS} > 0.05",
            WARNING,
            duration(times.items_wait),
            "{{ $value | humanizePercentage }} of the items of {{ $labels.function }} fail",
            "Of the items that {{ $labels.function }} in job {{ $labels.job }} worked on within "
            "15 minutes, {{ $value | humanizePercentage }} failed; 5% are allowed. The panel "
            "shows the types of the errors.",
            function.link("Errors by type", **here),
        ),
        Alert(
            "AmorsizeExecutionStalled",
            f"({silent} > {times.silent:g} and {running}) "
            f"unless ({waits}) unless {q.overdue(times.overdue)}",
            CRITICAL,
            "0s",
            "{{ $labels.function }} shows no sign of life",
            "An execution of {{ $labels.function }} in job {{ $labels.job }} is in progress, and "
            "its last sign of life was {{ $value | humanizeDuration }} ago: more than half an "
            "hour, and more than three times its longest chunk so far. An item hangs, or the input "
            "does; or a program that pushes was killed. py-spy shows where; item_timeout= ends it "
            "the next time.",
            function.link("Progress", **here),
        ),
        Alert(
            "AmorsizeSpeedupLow",
            f"{_speedup_share(duration(times.speedup))} < 0.5",
            WARNING,
            duration(times.speedup_wait),
            "{{ $labels.function }} reaches {{ $value | humanizePercentage }} of the speedup",
            "The last execution of {{ $labels.function }} in job {{ $labels.job }} reached "
            "{{ $value | humanizePercentage }} of the speedup that its plan expected. Either the "
            "machine is busy with something else, or the input or the hooks hold the workers up, "
            "or few items take most of the time. Rings until an execution does better, or until an "
            "hour after its program has ended.",
            workers.link("Idle workers", **here),
        ),
        Alert(
            "AmorsizeHookErrors",
            _failures(metrics.HOOK_ERRORS, times.recent, "event"),
            WARNING,
            "0s",
            "Hooks for {{ $labels.event }} raise",
            "Calls of hooks for {{ $labels.event }} in job {{ $labels.job }} that raised within "
            f"{recent}: {COUNT}. Executions go on, but whatever the hooks are for does not "
            "happen. The log has a traceback.",
            health.link("Hook errors by event", job=here["job"]),
        ),
        Alert(
            "AmorsizeExporterErrors",
            _failures(metrics.EXPORTER_ERRORS, times.recent, "exporter"),
            WARNING,
            "0s",
            "The exporter {{ $labels.exporter }} fails to deliver",
            "Attempts of the exporter {{ $labels.exporter }} in job {{ $labels.job }} that failed "
            f"within {recent}: {COUNT}. It tries again, and drops what it cannot keep. The log "
            "has the reason: address, credentials, network.",
            health.link("Exporter errors by exporter", job=here["job"]),
        ),
        Alert(
            "AmorsizeExporterDropping",
            _failures(metrics.EXPORTER_DROPPED, times.recent, "exporter"),
            WARNING,
            "0s",
            "The exporter {{ $labels.exporter }} drops messages",
            "Messages that the exporter {{ $labels.exporter }} in job {{ $labels.job }} dropped "
            f"within {recent}: {COUNT}. Its backend does not keep up, and its data there is "
            "incomplete.",
            health.link("Dropped messages by exporter", job=here["job"]),
        ),
    ]


def recording_yaml(times: Times = Times()) -> str:
    """Write the file of recording rules."""
    rules = [{"record": name, "expr": expr} for name, expr in recorded(times).items()]
    return _yaml("amorsize-recording", rules)


def alerts_yaml(boards: Mapping[str, Board], times: Times = Times()) -> str:
    """Write the file of alerts."""
    rules = []
    for alert in alerts(boards, times):
        rule: dict[str, Any] = {"alert": alert.name, "expr": alert.expr}
        if alert.wait != "0s":
            rule["for"] = alert.wait
        rule["labels"] = {"severity": alert.severity}
        rule["annotations"] = {
            "summary": alert.summary,
            "description": alert.description,
            "dashboard": GRAFANA_URL + alert.panel,
            "runbook_url": f"{RUNBOOK_URL}#{alert.name.lower()}",
        }
        rules.append(rule)
    return _yaml("amorsize-alerts", rules)


def _growth(metric: Metric, seconds: float, *by: str) -> str:
    """Growth of a counter of functions.

    A series that appears is new only where its function was active: after a long outage of
    Prometheus, those of gateways and files are found again.
    """
    window = duration(seconds)
    active = f"{_NOW.past(metrics.LAST_ACTIVITY, window)} > time() - {seconds:g}"
    grown = promql.grown(_NOW.series(metric), window, f"and {active}")
    return f"sum by ({', '.join(by)}) ({grown})"


def _failures(metric: Metric, seconds: float, label: str) -> str:
    """Find growth of a counter of programs.

    A series that appears counts where its program was known before, or has begun since. So does
    one of a program that has begun since, whatever the one before it had shown.
    """
    window = duration(seconds)
    since = _NOW.series(metrics.COUNTING_SINCE)
    begun = f"ignoring ({label}) last_over_time({since}[{window}]) > time() - {seconds:g}"
    known = f"last_over_time({since}[{promql.BEFORE}] offset {window})"
    series = _NOW.series(metric)
    begins = f"and ignoring ({label}) ({known} or {begun.removeprefix(f'ignoring ({label}) ')})"
    grown = promql.grown(series, window, begins)
    restarted = f"last_over_time({series}[{window}]) and {begun}"
    return f"sum by (job, {label}) ({grown}) > 0 or sum by (job, {label}) ({restarted}) > 0"


def _speedup_share(window: str) -> str:
    """What the newest execution has reached of its estimate, where it took long enough to tell."""
    measured = _NOW.present_or_past(metrics.MEASURED_SPEEDUP, window)
    estimated = _NOW.present_or_past(metrics.ESTIMATED_SPEEDUP, window)
    long_enough = f"{_NOW.past(metrics.LAST_DURATION, window)} > 10"
    share = f"({measured} / ({estimated} > 1.5) and {long_enough})"
    return _NOW.latest(share, "job", "function", window=window)


def _yaml(group: str, rules: list[dict[str, Any]]) -> str:
    document = {"groups": [{"name": group, "rules": rules}]}
    text: str = yaml.safe_dump(document, sort_keys=False, width=1_000_000, allow_unicode=True)
    return f"# Written by `make dashboards`; do not edit by hand.\n{text}"
