"""The CloudWatch dashboard: the content of the others, from the data of ``enable_cloudwatch``.

All of it is searched for, so that functions which are new tomorrow are shown tomorrow.
"""

from __future__ import annotations

from typing import Any

from amorsize.exporters import metrics
from amorsize.exporters.cloudwatch.data import dimension_name
from amorsize.exporters.metrics import Kind, Metric
from amorsize.hooks.events import STATUSES

NAMESPACE = "Amorsize"

PERIOD_SECONDS = 60

WIDTH, HEIGHT = 8, 6

STATUS_COLORS = {"ok": "#2ca02c", "error": "#d62728", "timeout": "#ff7f0e", "cancelled": "#7f7f7f"}


def dashboard() -> dict[str, Any]:
    """Build the body of a dashboard, for ``aws cloudwatch put-dashboard``."""
    rows = metrics
    by_status = [
        (f"SUM({search(rows.EXECUTIONS, 'Sum', status=status)})", status, STATUS_COLORS[status])
        for status in STATUSES
    ]
    sections: dict[str, list[dict[str, Any]]] = {
        "Is everything well?": [
            _widget("Executions by how they ended", by_status, stacked=True),
            _each("Running now", rows.EXECUTIONS_IN_PROGRESS, "Maximum"),
            _each("Worker deaths", rows.WORKER_DEATHS, "Sum"),
        ],
        "Rate and errors": [
            _each("Items per minute", rows.ITEMS_PROCESSED, "Sum"),
            _each("Failed items per minute", rows.ITEMS_FAILED, "Sum"),
            _each("Errors by type", rows.ERRORS, "Sum", show="error_type"),
        ],
        "What runs now": [
            _widget(
                "Items done and expected",
                [
                    (f"SUM({search(rows.ITEMS_COMPLETED, 'Maximum')})", "done", None),
                    (f"SUM({search(rows.ITEMS_EXPECTED, 'Maximum')})", "expected", None),
                ],
            ),
            _each("Items per second", rows.THROUGHPUT, "Average"),
            _each("Last success, seconds since the epoch", rows.LAST_SUCCESS, "Maximum"),
        ],
        "Duration": [
            _each("Duration of executions, p95", rows.EXECUTION_DURATION, "p95"),
            _each("Duration of chunks, p50", rows.CHUNK_DURATION, "p50"),
            _each("Duration of chunks, p95", rows.CHUNK_DURATION, "p95"),
            _each("Queue wait of chunks, p95", rows.CHUNK_QUEUE, "p95"),
            _each("Duration of the last execution", rows.LAST_DURATION, "Maximum"),
            _each("Planning, p95", rows.PLANNING_DURATION, "p95"),
        ],
        "Workers": [
            _each("Workers", rows.WORKERS, "Maximum"),
            _each("Busy seconds per minute", rows.WORKER_BUSY, "Sum"),
            _each("CPU seconds per minute", rows.WORKER_CPU, "Sum"),
            _widget(
                "Speedup, estimated and measured",
                [
                    (search(rows.ESTIMATED_SPEEDUP, "Maximum"), f"{_shown('function')} est.", None),
                    (search(rows.MEASURED_SPEEDUP, "Maximum"), _shown("function"), None),
                ],
            ),
        ],
        "Hooks and exporters": [
            _each("Hook errors", rows.HOOK_ERRORS, "Sum", show="event"),
            _each("Exporter errors", rows.EXPORTER_ERRORS, "Sum", show="exporter"),
            _each("Dropped messages", rows.EXPORTER_DROPPED, "Sum", show="exporter"),
        ],
    }
    widgets: list[dict[str, Any]] = []
    y = 0
    for title, group in sections.items():
        heading = {"markdown": f"## {title}"}
        widgets.append(
            {"type": "text", "x": 0, "y": y, "width": 24, "height": 1, "properties": heading}
        )
        y += 1
        for position, properties in enumerate(group):
            x = position % 3 * WIDTH
            place = {"x": x, "y": y + position // 3 * HEIGHT, "width": WIDTH, "height": HEIGHT}
            widgets.append({"type": "metric", **place, "properties": properties})
        y += -(-len(group) // 3) * HEIGHT
    return {"start": "-PT3H", "periodOverride": "inherit", "widgets": widgets}


def search(metric: Metric, statistic: str, **values: str) -> str:
    """Write a search for all series of a metric.

    Args:
        metric: a row of the table.
        statistic: ``Sum``, ``Maximum``, ``Average``, or a percentile.
        values: of labels.

    Raises:
        ValueError: the metric has no such label, or is of another kind.

    Example:
        >>> search(metrics.HOOK_ERRORS, "Sum")
        'SEARCH(\\'{Amorsize,Event} MetricName="HookErrors"\\', \\'Sum\\', 60)'
    """
    if not values.keys() <= set(metric.labels):
        raise ValueError(f"{metric.cloudwatch} has the labels {metric.labels}, not {[*values]}")
    if (statistic[0] == "p") != (metric.kind is Kind.HISTOGRAM):
        raise ValueError(f"{statistic} is nothing to ask of {metric.cloudwatch}, a {metric.kind}")
    schema = ",".join([NAMESPACE, *(dimension_name(label) for label in metric.labels)])
    terms = [f'MetricName="{metric.cloudwatch}"']
    terms += [f'{dimension_name(label)}="{value}"' for label, value in values.items()]
    return f"SEARCH('{{{schema}}} {' '.join(terms)}', '{statistic}', {PERIOD_SECONDS})"


def _shown(label: str) -> str:
    return f"${{PROP('Dim.{dimension_name(label)}')}}"


def _each(title: str, metric: Metric, statistic: str, show: str = "function") -> dict[str, Any]:
    if show not in metric.labels:
        raise ValueError(f"{metric.cloudwatch} has the labels {metric.labels}, not {show!r}")
    return _widget(title, [(search(metric, statistic), _shown(show), None)])


def _widget(
    title: str,
    expressions: list[tuple[str, str, str | None]],
    *,
    stacked: bool = False,
) -> dict[str, Any]:
    shown = []
    for position, (expression, label, color) in enumerate(expressions):
        entry = {"expression": expression, "id": f"e{position + 1}", "label": label}
        shown.append([entry | ({"color": color} if color else {})])
    return {
        "title": title,
        "view": "timeSeries",
        "stacked": stacked,
        "period": PERIOD_SECONDS,
        "yAxis": {"left": {"min": 0}},
        "metrics": shown,
    }
