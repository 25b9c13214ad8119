"""The Datadog dashboard: the content of Grafana's, from the data of ``enable_datadog``."""

from __future__ import annotations

from typing import Any

from amorsize.exporters import metrics
from amorsize.exporters.metrics import Kind, Metric
from amorsize.hooks.events import STATUSES

VARIABLES = ("function", "executor")

CHECK = "amorsize.execution"
"""The service check that the exporter sends."""

NOT_WANTED = tuple(status for status in STATUSES if status not in ("ok", "cancelled"))


def dashboard() -> dict[str, Any]:
    """Build it, for Datadog's import or its API."""
    rows = metrics
    return {
        "title": "amorsize",
        "description": "Executions, errors, items per second, what runs now, workers, and the "
        "exporters themselves.",
        "layout_type": "ordered",
        "reflow_type": "auto",
        "template_variables": [
            {"name": name, "prefix": name, "available_values": [], "default": "*"}
            for name in VARIABLES
        ],
        "widgets": [
            _group(
                "Is everything well?",
                _number("Running now", query(rows.EXECUTIONS_IN_PROGRESS), "last"),
                _number("Executions", query(rows.EXECUTIONS), "sum"),
                _number("Failed executions", _failed(), "sum", bad=True),
                _number("Failed items", query(rows.ITEMS_FAILED), "sum", bad=True),
                _number("Worker deaths", query(rows.WORKER_DEATHS), "sum", bad=True),
                _check("Last execution of each function"),
            ),
            _group(
                "Rate and errors",
                _lines("Executions by how they ended", query(rows.EXECUTIONS, "status"), bars=True),
                _lines("Items per second", query(rows.ITEMS_PROCESSED, "function", rate=True)),
                _lines("Errors by type", query(rows.ERRORS, "error_type"), bars=True),
                _top("Functions with most failed executions", _failed("function")),
                _top("Functions with most failed items", query(rows.ITEMS_FAILED, "function")),
                _events("Failures and worker deaths"),
            ),
            _group(
                "What runs now",
                _lines(
                    "Progress",
                    query(rows.ITEMS_COMPLETED, "function"),
                    query(rows.ITEMS_EXPECTED, "function"),
                    formula="a / b",
                ),
                _lines(
                    "Time left",
                    query(rows.ITEMS_EXPECTED, "function"),
                    query(rows.ITEMS_COMPLETED, "function"),
                    query(rows.THROUGHPUT, "function"),
                    formula="(a - b) / c",
                ),
            ),
            _group(
                "Duration",
                _lines(
                    "Duration of executions, p50 and p95",
                    query(rows.EXECUTION_DURATION, how="p50"),
                    query(rows.EXECUTION_DURATION, how="p95"),
                ),
                _lines(
                    "Duration of chunks, p50 and p95",
                    query(rows.CHUNK_DURATION, how="p50"),
                    query(rows.CHUNK_DURATION, how="p95"),
                ),
                _heat_map("Chunks", rows.CHUNK_DURATION),
                _lines(
                    "Duration of the last execution",
                    query(rows.LAST_DURATION, "function", how="max"),
                ),
                _lines("Queue wait of chunks, p95", query(rows.CHUNK_QUEUE, "function", how="p95")),
                _lines("Planning, p95", query(rows.PLANNING_DURATION, "function", how="p95")),
            ),
            _group(
                "Workers",
                _lines("Workers by function", query(rows.WORKERS, "function")),
                _lines(
                    "Busy share",
                    query(rows.WORKER_BUSY, "function", rate=True),
                    query(rows.WORKER_AVAILABLE, "function", rate=True),
                    formula="a / b",
                ),
                _lines(
                    "On a CPU, share of the busy time",
                    query(rows.WORKER_CPU, "function", rate=True),
                    query(rows.WORKER_BUSY, "function", rate=True),
                    formula="a / b",
                ),
                _lines("Worker deaths", query(rows.WORKER_DEATHS, "function"), bars=True),
                _lines(
                    "Speedup, estimated and measured",
                    query(rows.ESTIMATED_SPEEDUP, "function", how="max"),
                    query(rows.MEASURED_SPEEDUP, "function", how="max"),
                ),
                _lines("Calls at once", query(rows.CONCURRENCY, "function", how="max")),
            ),
            _group(
                "Hooks and exporters",
                _lines("Hook errors by event", query(rows.HOOK_ERRORS, "event"), bars=True),
                _lines("Exporter errors", query(rows.EXPORTER_ERRORS, "exporter"), bars=True),
                _lines("Dropped messages", query(rows.EXPORTER_DROPPED, "exporter"), bars=True),
                _lines(
                    "Dropped user metrics", query(rows.USER_METRICS_DROPPED, "function"), bars=True
                ),
            ),
        ],
    }


def query(
    metric: Metric, *by: str, how: str = "sum", rate: bool = False, only: str | None = None
) -> str:
    """Write a query.

    Args:
        metric: a row of the table.
        by: tags to group by.
        how: ``sum``, ``max``, or a percentile of a distribution.
        rate: growth per second, of a counter; otherwise the number.
        only: a filter more.

    Raises:
        ValueError: the metric has no such tag, or is of another kind.
    """
    if not set(by) <= set(metric.labels):
        raise ValueError(f"{metric.dotted} has the tags {metric.labels}, not all of {by}")
    if (how[0] == "p") != (metric.kind is Kind.HISTOGRAM):
        raise ValueError(f"{how} is nothing to ask of {metric.dotted}, a {metric.kind}")
    filters = [f"${name}" for name in VARIABLES if name in metric.labels]
    if only is not None:
        filters = [" AND ".join([*filters, only])]
    where = ",".join(filters) or "*"
    grouped = f" by {{{','.join(by)}}}" if by else ""
    kind = ""
    if metric.kind is Kind.COUNTER:
        kind = ".as_rate()" if rate else ".as_count()"
    return f"{how}:{metric.dotted}{{{where}}}{grouped}{kind}"


def _failed(*by: str) -> str:
    values = ",".join(NOT_WANTED)
    return query(metrics.EXECUTIONS, *by, only=f"status IN ({values})")


def _queries(expressions: tuple[str, ...], **more: str) -> list[dict[str, Any]]:
    return [
        {"data_source": "metrics", "name": name, "query": expression, **more}
        for name, expression in zip("abc", expressions, strict=False)
    ]


def _formulas(expressions: tuple[str, ...], formula: str | None) -> list[dict[str, str]]:
    if formula is not None:
        return [{"formula": formula}]
    return [{"formula": name} for name, _ in zip("abc", expressions, strict=False)]


def _group(title: str, *widgets: dict[str, Any]) -> dict[str, Any]:
    inner = [{"definition": widget} for widget in widgets]
    group = {"type": "group", "layout_type": "ordered", "title": title, "widgets": inner}
    return {"definition": group}


def _lines(
    title: str, *expressions: str, formula: str | None = None, bars: bool = False
) -> dict[str, Any]:
    request = {
        "response_format": "timeseries",
        "queries": _queries(expressions),
        "formulas": _formulas(expressions, formula),
        "display_type": "bars" if bars else "line",
    }
    return {"type": "timeseries", "title": title, "show_legend": True, "requests": [request]}


def _number(title: str, expression: str, aggregator: str, *, bad: bool = False) -> dict[str, Any]:
    request: dict[str, Any] = {
        "response_format": "scalar",
        "queries": _queries((expression,), aggregator=aggregator),
        "formulas": _formulas((expression,), None),
    }
    if bad:
        request["conditional_formats"] = [
            {"comparator": ">", "value": 0.0, "palette": "white_on_red"},
            {"comparator": "<=", "value": 0.0, "palette": "white_on_green"},
        ]
    return {
        "type": "query_value",
        "title": title,
        "autoscale": True,
        "precision": 0,
        "requests": [request],
    }


def _top(title: str, expression: str) -> dict[str, Any]:
    request = {
        "response_format": "scalar",
        "queries": _queries((expression,), aggregator="sum"),
        "formulas": [{"formula": "a", "limit": {"count": 10, "order": "desc"}}],
    }
    return {"type": "toplist", "title": title, "requests": [request]}


def _heat_map(title: str, metric: Metric) -> dict[str, Any]:
    where = ",".join(f"${name}" for name in VARIABLES if name in metric.labels)
    request = {
        "request_type": "histogram",
        "query": {
            "data_source": "metrics",
            "name": "a",
            "query": f"histogram:{metric.dotted}{{{where}}}",
        },
    }
    return {"type": "heatmap", "title": title, "requests": [request]}


def _check(title: str) -> dict[str, Any]:
    return {
        "type": "check_status",
        "title": title,
        "check": CHECK,
        "grouping": "cluster",
        "group_by": ["function"],
        "tags": [f"${name}" for name in VARIABLES],
    }


def _events(title: str) -> dict[str, Any]:
    return {
        "type": "event_stream",
        "title": title,
        "query": " ".join(f"${name}" for name in VARIABLES),
        "event_size": "s",
    }
