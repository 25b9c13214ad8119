"""Dashboard: hooks and exporters themselves."""

from __future__ import annotations

from amorsize.exporters import metrics
from amorsize.exporters.metrics import LABEL_LIMITS, OTHER

from . import promql
from .boards import Board
from .panels import (
    ANY_IS_BAD,
    COUNT,
    GREEN,
    ORANGE,
    RED,
    SECONDS,
    SHARE,
    Column,
    Line,
    lines,
    rows,
    single,
)
from .promql import or_zero, top

TOP = 10


def health() -> Board:
    """Build it."""
    board = Board(
        "amorsize-health",
        "amorsize / Exporter health",
        "The hooks and exporters themselves: can the other dashboards be believed?",
        one_function=False,
    )
    q = board.query
    board.row(
        "Can the other dashboards be believed?",
        [
            single(
                "Programs",
                "Programs that export metrics: one for each that is scraped.",
                or_zero(f"count({q.series(metrics.BUILD_INFO)})"),
                COUNT,
            ),
            single(
                "Hook errors",
                "Hooks that raised in the time shown. The executions went on; the log has the "
                "traceback.",
                or_zero(q.count(metrics.HOOK_ERRORS)),
                COUNT,
                steps=ANY_IS_BAD,
            ),
            single(
                "Exporter errors",
                "Failed attempts to deliver in the time shown. The log has the reason.",
                or_zero(q.count(metrics.EXPORTER_ERRORS)),
                COUNT,
                steps=ANY_IS_BAD,
            ),
            single(
                "Dropped messages",
                "Messages that exporters dropped in the time shown, because their backends did "
                "not keep up: their data is incomplete.",
                or_zero(q.count(metrics.EXPORTER_DROPPED)),
                COUNT,
                steps=ANY_IS_BAD,
            ),
            single(
                "Dropped user metrics",
                "Calls of count(), observe() and set_gauge() that were dropped in the time "
                "shown: more than 50 names. A name that holds an id is the usual cause.",
                or_zero(q.count(metrics.USER_METRICS_DROPPED)),
                COUNT,
                steps=ANY_IS_BAD,
            ),
            single(
                "Function names",
                f"Names of functions in the program that has the most. From "
                f"{LABEL_LIMITS['function']} on, further functions are all called 'other'.",
                or_zero(f"max({_names(q, 'function')})"),
                COUNT,
                steps=_limit("function"),
            ),
            single(
                "Error types",
                f"Names of exceptions in the program that has the most. From "
                f"{LABEL_LIMITS['error_type']} on, further types are all called 'other'.",
                or_zero(f"max({_names(q, 'error_type')})"),
                COUNT,
                steps=_limit("error_type"),
            ),
            single(
                "Versions",
                "Different versions of amorsize among the programs of the time shown.",
                f"count(count by (version) ({q.past(metrics.BUILD_INFO)}))",
                COUNT,
                steps=[(None, GREEN), (1.5, ORANGE)],
            ),
        ],
    )
    board.row(
        "Hooks and exporters",
        [
            lines(
                "Hook errors by event",
                "Hooks that raised in each bar.",
                COUNT,
                Line(q.in_each_bar(metrics.HOOK_ERRORS, "event"), "{{event}}"),
                width=8,
                bars=True,
            ),
            lines(
                "Exporter errors by exporter",
                "Failed attempts to deliver in each bar.",
                COUNT,
                Line(q.in_each_bar(metrics.EXPORTER_ERRORS, "exporter"), "{{exporter}}"),
                width=8,
                bars=True,
            ),
            lines(
                "Dropped messages by exporter",
                "Messages that exporters dropped in each bar, because their backends did not keep "
                "up.",
                COUNT,
                Line(q.in_each_bar(metrics.EXPORTER_DROPPED, "exporter"), "{{exporter}}"),
                width=8,
                bars=True,
            ),
        ],
    )
    board.row(
        "What hooks cost",
        [
            lines(
                "Time in hooks",
                f"Seconds per second that hooks take, including those of exporters: the {TOP} that "
                "take most. It can be more than one if several executions run at once.",
                SECONDS,
                Line(top(TOP, q.rate(metrics.HOOK_BUSY, "hook")), "{{hook}}"),
                width=8,
            ),
            lines(
                "Calls of hooks",
                "Calls in each bar, including failed ones.",
                COUNT,
                Line(top(TOP, q.in_each_bar(metrics.HOOK_CALLS, "hook")), "{{hook}}"),
                width=8,
                bars=True,
            ),
            lines(
                "Longest call of a hook",
                "The longest so far. The run waits for it, unless the hook is in the background.",
                SECONDS,
                Line(
                    top(TOP, f"max by (hook) ({q.series(metrics.HOOK_LONGEST)})"),
                    "{{hook}}",
                ),
                width=8,
            ),
        ],
    )
    board.row(
        "Limits and versions",
        [
            lines(
                "Dropped user metrics by function",
                "Calls of count(), observe() and set_gauge() that were dropped in each bar.",
                COUNT,
                Line(
                    top(10, q.in_each_bar(metrics.USER_METRICS_DROPPED, "function", "executor")),
                    "{{function}} ({{executor}})",
                ),
                width=8,
                bars=True,
            ),
            lines(
                "Label values",
                "Share of the names that a label can have, in the program that has the most. At "
                "100% further names are all called 'other'.",
                SHARE,
                *(
                    Line(f"clamp_max(max({_names(q, label, None)}) / {limit}, 1)", label)
                    for label, limit in LABEL_LIMITS.items()
                ),
                width=8,
                most=1,
            ),
            rows(
                "Versions of programs",
                "Versions of amorsize and of Python, and the number of programs that run them.",
                {"job": "Job", "version": "amorsize", "python": "Python"},
                Column(
                    "Programs",
                    f"count by (job, version, python) ({q.past(metrics.BUILD_INFO)})",
                    COUNT,
                ),
                sort="Programs",
                empty="No program was scraped in the time shown.",
                width=8,
                height=8,
            ),
        ],
    )
    return board


def _names(q: promql.Query, label: str, window: str | None = promql.VIEW) -> str:
    """Count the names that a label has in each program, those that have ended too."""
    metric = {
        "function": metrics.LAST_ACTIVITY,
        "error_type": metrics.ERRORS,
        "hook": metrics.HOOK_CALLS,
    }[label]
    named = {label: f'!="{OTHER}"'}
    series = q.series(metric, **named) if window is None else q.past(metric, window, **named)
    values = f"count by (job, instance, {label}) ({series})"
    return f"count by (job, instance) ({values})"


def _limit(label: str) -> list[tuple[float | None, str]]:
    limit = LABEL_LIMITS[label]
    return [(None, GREEN), (0.8 * limit, ORANGE), (limit, RED)]
