"""Prometheus' recording rules and alerts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from amorsize.dashboards import GRAFANA_URL, RUNBOOK_URL
from amorsize.exporters import metrics
from amorsize.exporters.metrics import Metric

from . import promql
from .boards import Board
from .promql import Query

CRITICAL, WARNING = "critical", "warning"

RECENT = "10m"
"""How long something that happened once rings."""

RECENT_SECONDS = 600

COUNT = '{{ $value | printf "%.0f" }}'
"""A number of things, whole: where a counter was reset, Prometheus extrapolates."""

FAILED = f'=~"{promql.FAILED}"'

_NOW = Query(promql.EVERYTHING)
_FIVE_MINUTES = Query(promql.EVERYTHING, "5m")

FAILED_ITEMS = "job_function:amorsize_items_failed:ratio15m"

LAST_SUCCESS = "job_function:amorsize_last_success_timestamp_seconds:max"
"""Keeps the last success of programs that have ended, for a week."""

WEEK_SECONDS = 7 * 86_400


def _recent_run(value: str, window: str, seconds: int) -> str:
    """Keep gauges of the last execution where it ended recently, and had not run for longer.

    Counters show what a longer one does while it runs. A run that is over before its first scrape,
    or whose program left the same counts as the one before, only shows in these.
    """
    ended = f"{_NOW.past(metrics.LAST_COMPLETION, window)} > time() - {seconds}"
    short = f"{_NOW.past(metrics.LAST_DURATION, window)} < {seconds}"
    return f"max by (job, function) ({value} and ignoring (status) {ended} and {short})"


def _failed_share(window: str, seconds: int) -> str:
    """How many of the items fail; by the counters, or else in the last execution."""
    failed = _NOW.past(metrics.LAST_FAILED_ITEMS, window)
    of_the_last = f"clamp_max({failed} / {_NOW.past(metrics.LAST_ITEMS, window)}, 1)"
    counted = _NOW.failed_share("job", "function", window=window)
    return f"({counted} >= 0) or {_recent_run(of_the_last, window, seconds)}"


RECORDED = {
    "job_function_status:amorsize_executions:rate5m": _FIVE_MINUTES.rate(
        metrics.EXECUTIONS, "job", "function", "status"
    ),
    "job_function:amorsize_items_processed:rate5m": _FIVE_MINUTES.rate(
        metrics.ITEMS_PROCESSED, "job", "function"
    ),
    FAILED_ITEMS: _failed_share("15m", 900),
    "job_function:amorsize_worker_busy:ratio_rate5m": _FIVE_MINUTES.busy_share("job", "function"),
    "job_function:amorsize_chunk_duration_seconds:p95_rate5m": _FIVE_MINUTES.quantile(
        0.95, metrics.CHUNK_DURATION, "job", "function"
    ),
    "job_function:amorsize_items_completed:ratio": _FIVE_MINUTES.progress("job", "function"),
    # Itself over a day: what a Prometheus that was down for a night had known is not forgotten.
    LAST_SUCCESS: (
        f"max by (job, function) ({_NOW.past(metrics.LAST_SUCCESS, '5m')} "
        f"or last_over_time({LAST_SUCCESS}[1d])) > time() - {WEEK_SECONDS}"
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


def alerts(boards: Mapping[str, Board]) -> list[Alert]:
    """List the alerts.

    Args:
        boards: the dashboards that they point into, by uid.
    """
    function, workers, health = (
        boards[f"amorsize-{name}"] for name in ("function", "workers", "health")
    )
    here = {name: f"{{{{ $labels.{name} | urlquery }}}}" for name in ("job", "function")}
    q = _NOW
    silent = f"time() - {q.series(metrics.LAST_ACTIVITY)}"
    running = f"{q.series(metrics.EXECUTIONS_IN_PROGRESS)} > 0"
    failed_ago = q.age(metrics.LAST_COMPLETION, "job", "function", window="15m", status=FAILED)
    died = _recent_run(q.past(metrics.LAST_WORKER_DEATHS, RECENT), RECENT, RECENT_SECONDS)
    return [
        Alert(
            "AmorsizeExecutionFailed",
            f"{failed_ago} < 900",
            CRITICAL,
            "0s",
            "An execution of {{ $labels.function }} failed",
            "An execution of {{ $labels.function }} in job {{ $labels.job }} ended with an error "
            "or by its timeout {{ $value | humanizeDuration }} ago. The program got the exception; "
            "the panel has the types of the errors. Rings for 15 minutes.",
            function.link("Errors by type", **here),
        ),
        Alert(
            "AmorsizeNoRecentSuccess",
            f"time() - {LAST_SUCCESS} > 172800",
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
            f"{_grew(metrics.WORKER_DEATHS, 'job', 'function')} or {died} > 0",
            WARNING,
            "0s",
            "Workers of {{ $labels.function }} died",
            "Workers of {{ $labels.function }} in job {{ $labels.job }} that were killed or "
            f"crashed within {RECENT}: {COUNT}. The WorkerDiedError, which is raised or stands "
            "among the results, names exit code, chunk and item: -9 is mostly the kernel, out of "
            "memory; -11 a crash in native code.",
            workers.link("Worker deaths by function", **here),
        ),
        Alert(
            "AmorsizeItemsFailing",
            f"{FAILED_ITEMS} > 0.05",
            WARNING,
            "5m",
            "{{ $value | humanizePercentage }} of the items of {{ $labels.function }} fail",
            "Of the items that {{ $labels.function }} in job {{ $labels.job }} worked on within "
            "15 minutes, {{ $value | humanizePercentage }} failed; 5% are allowed. The panel "
            "shows the types of the errors.",
            function.link("Errors by type", **here),
        ),
        Alert(
            "AmorsizeExecutionStalled",
            f"({silent} > 1800 and {running}) "
            f"unless {silent} <= 3 * {q.series(metrics.LONGEST_CHUNK)}",
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
            f"{_speedup_share(window='1h')} < 0.5",
            WARNING,
            "15m",
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
            _grew(metrics.HOOK_ERRORS, "job", "event"),
            WARNING,
            "0s",
            "Hooks for {{ $labels.event }} raise",
            "Calls of hooks for {{ $labels.event }} in job {{ $labels.job }} that raised within "
            f"{RECENT}: {COUNT}. Executions go on, but whatever the hooks are for does not "
            "happen. The log has a traceback.",
            health.link("Hook errors by event", job=here["job"]),
        ),
        Alert(
            "AmorsizeExporterErrors",
            _grew(metrics.EXPORTER_ERRORS, "job", "exporter"),
            WARNING,
            "0s",
            "The exporter {{ $labels.exporter }} fails to deliver",
            "Attempts of the exporter {{ $labels.exporter }} in job {{ $labels.job }} that failed "
            f"within {RECENT}: {COUNT}. It tries again, and drops what it cannot keep. The log "
            "has the reason: address, credentials, network.",
            health.link("Exporter errors by exporter", job=here["job"]),
        ),
        Alert(
            "AmorsizeExporterDropping",
            _grew(metrics.EXPORTER_DROPPED, "job", "exporter"),
            WARNING,
            "0s",
            "The exporter {{ $labels.exporter }} drops messages",
            "Messages that the exporter {{ $labels.exporter }} in job {{ $labels.job }} dropped "
            f"within {RECENT}: {COUNT}. Its backend does not keep up, and its data there is "
            "incomplete.",
            health.link("Dropped messages by exporter", job=here["job"]),
        ),
    ]


def recording_yaml() -> str:
    """Write the file of recording rules."""
    rules = [{"record": name, "expr": expr} for name, expr in RECORDED.items()]
    return _yaml("amorsize-recording", rules)


def alerts_yaml(boards: Mapping[str, Board]) -> str:
    """Write the file of alerts."""
    rules = []
    for alert in alerts(boards):
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


def _grew(metric: Metric, *by: str) -> str:
    return f"{_NOW.growth(metric, *by, window=RECENT)} > 0"


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
