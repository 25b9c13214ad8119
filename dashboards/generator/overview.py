"""Dashboard: is everything well?"""

from __future__ import annotations

from amorsize.exporters import metrics

from . import promql
from .boards import OPEN_FUNCTION, Board
from .panels import (
    ANY_IS_BAD,
    BLUE,
    COUNT,
    GREEN,
    ORANGE,
    PER_SECOND,
    RED,
    SECONDS,
    SHARE,
    STATUS_COLORS,
    YELLOW,
    Column,
    Line,
    lines,
    rows,
    single,
)
from .promql import or_zero, share, top

TOP = 10

FAILED = f'=~"{promql.FAILED}"'
SUCCEEDED = '="ok"'
ENDED = '!="cancelled"'


def overview() -> Board:
    """Build it."""
    board = Board(
        "amorsize-overview",
        "amorsize / Overview",
        "Is everything well? Executions, errors, items per second, what runs now, and which "
        "functions to look at.",
        one_function=False,
    )
    q = board.query
    board.row(
        "Is everything well?",
        [
            single(
                "Running now",
                "Executions in progress. The table below shows each of them.",
                or_zero(q.total(metrics.EXECUTIONS_IN_PROGRESS)),
                COUNT,
            ),
            single(
                "Executions",
                "Executions that ended in the time shown, however they ended.",
                or_zero(q.count(metrics.EXECUTIONS)),
                COUNT,
            ),
            single(
                "Failed executions",
                "Executions that ended with an error or by their timeout in the time shown. "
                "Cancelled ones do not count: a user or operator ended them.",
                or_zero(q.count(metrics.EXECUTIONS, status=FAILED)),
                COUNT,
                steps=ANY_IS_BAD,
            ),
            single(
                "Success",
                "Share of the executions that succeeded, of those that ended in the time shown "
                "and were not cancelled.",
                share(
                    q.count(metrics.EXECUTIONS, status=SUCCEEDED),
                    q.count(metrics.EXECUTIONS, status=ENDED),
                ),
                SHARE,
                steps=[(None, RED), (0.9, ORANGE), (0.99, GREEN)],
            ),
            single(
                "Failed items",
                "Items that failed in the time shown. With return_exceptions=True they fail "
                "without failing their execution.",
                or_zero(q.count(metrics.ITEMS_FAILED)),
                COUNT,
                steps=[(None, GREEN), (0.5, ORANGE)],
            ),
            single(
                "Worker deaths",
                "Workers that were killed or crashed in the time shown. The WorkerDiedError, "
                "raised or among the results, names exit code, chunk and item.",
                or_zero(q.count(metrics.WORKER_DEATHS)),
                COUNT,
                steps=ANY_IS_BAD,
            ),
            single(
                "Longest without success",
                "Of the functions whose last success is known in the time shown, the one whose "
                "last success is longest ago. The table of functions names it.",
                f"max({q.age(metrics.LAST_SUCCESS, 'function')})",
                SECONDS,
                steps=[(None, BLUE), (86_400, ORANGE), (172_800, RED)],
                decimals=1,
            ),
            single(
                "Longest time left",
                "Time until the last execution in progress ends, at the present rate.",
                f"max({q.time_left('function', 'executor')})",
                SECONDS,
                empty="nothing runs",
                decimals=1,
            ),
        ],
    )
    board.row(
        "Rate and errors",
        [
            lines(
                "Executions by how they ended",
                "Executions that ended in each bar, by status.",
                COUNT,
                Line(q.in_each_bar(metrics.EXECUTIONS, "status"), "{{status}}"),
                width=8,
                bars=True,
                colors=STATUS_COLORS,
            ),
            lines(
                "Items per second",
                f"Items of completed chunks, of the {TOP} busiest functions. Counted while "
                "executions run.",
                PER_SECOND,
                Line(top(TOP, q.rate(metrics.ITEMS_PROCESSED, "function")), "{{function}}"),
                width=8,
            ),
            lines(
                "Errors by type",
                "Failures of chunks, deaths of workers, cancellations and timeouts in each bar, "
                "by the type of the exception.",
                COUNT,
                Line(top(TOP, q.in_each_bar(metrics.ERRORS, "error_type")), "{{error_type}}"),
                width=8,
                bars=True,
            ),
        ],
    )
    board.row(
        "What runs now",
        [
            rows(
                "Executions in progress",
                "Every function that runs now. Time left assumes the present rate; inputs of "
                "unknown length have neither progress nor time left. Silent is the time since "
                "the last event: it grows during a long chunk, too.",
                {"function": "Function", "executor": "Executor"},
                Column(
                    "Progress",
                    q.progress("function", "executor"),
                    SHARE,
                    bar=True,
                    steps=[(None, GREEN)],
                ),
                Column("Time left", q.time_left("function", "executor"), SECONDS),
                Column(
                    "Items done",
                    _running(q.total(metrics.ITEMS_COMPLETED, "function", "executor"), q),
                    COUNT,
                ),
                Column(
                    "Rate",
                    _running(q.total(metrics.THROUGHPUT, "function", "executor"), q),
                    PER_SECOND,
                ),
                Column(
                    "Workers",
                    _running(q.total(metrics.WORKERS, "function", "executor"), q),
                    COUNT,
                ),
                Column(
                    "Running",
                    f"{q.total(metrics.EXECUTIONS_IN_PROGRESS, 'function', 'executor')} > 0",
                    COUNT,
                ),
                Column(
                    "Silent",
                    _running(q.age(metrics.LAST_ACTIVITY, "function", "executor"), q),
                    SECONDS,
                    steps=[(None, GREEN), (600, YELLOW), (1800, RED)],
                ),
                sort="Time left",
                empty="Nothing runs now.",
                links={"Function": OPEN_FUNCTION},
                width=16,
                height=8,
            ),
            lines(
                "Progress",
                "Share of the input that the executions in progress have done, by function. It is "
                "unknown for inputs of unknown length.",
                SHARE,
                Line(top(TOP, q.progress("function")), "{{function}}"),
                width=8,
                most=1,
            ),
        ],
    )
    board.row(
        "Duration",
        [
            lines(
                "Duration of executions",
                "Over all functions: half of the executions took less than p50, one in twenty "
                "longer than p95, within the limits of the buckets. Empty while no execution ends. "
                "Points are traces.",
                SECONDS,
                Line(q.quantile(0.5, metrics.EXECUTION_DURATION), "p50"),
                Line(q.quantile(0.95, metrics.EXECUTION_DURATION), "p95"),
            ),
            lines(
                "Duration of the last execution",
                f"The {TOP} functions whose last execution took longest. A step up is a run that "
                "took longer than the one before.",
                SECONDS,
                Line(top(TOP, q.last_at(metrics.LAST_DURATION, "function")), "{{function}}"),
            ),
        ],
    )
    board.row(
        "Functions, the worst first",
        [
            rows(
                "Functions",
                "Every function; those with the most failed executions in the time shown come "
                "first. A click opens the function.",
                {"function": "Function"},
                Column(
                    "Failed executions",
                    q.count(metrics.EXECUTIONS, "function", status=FAILED),
                    COUNT,
                    steps=ANY_IS_BAD,
                ),
                Column(
                    "Executions",
                    q.count(metrics.EXECUTIONS, "function"),
                    COUNT,
                ),
                Column(
                    "Failed items",
                    q.count(metrics.ITEMS_FAILED, "function"),
                    COUNT,
                    steps=[(None, GREEN), (0.5, ORANGE)],
                ),
                Column(
                    "Worker deaths",
                    q.count(metrics.WORKER_DEATHS, "function"),
                    COUNT,
                    steps=ANY_IS_BAD,
                ),
                Column(
                    "Since last success",
                    q.age(metrics.LAST_SUCCESS, "function"),
                    SECONDS,
                    steps=[(None, GREEN), (86_400, ORANGE), (172_800, RED)],
                ),
                Column(
                    "Last duration",
                    q.last(metrics.LAST_DURATION, "function"),
                    SECONDS,
                ),
                Column(
                    "Last items",
                    q.last(metrics.LAST_ITEMS, "function"),
                    COUNT,
                ),
                Column(
                    "Last failed items",
                    q.last(metrics.LAST_FAILED_ITEMS, "function"),
                    COUNT,
                    steps=[(None, GREEN), (0.5, ORANGE)],
                ),
                sort="Failed executions",
                empty="No function ran in the time shown.",
                links={"Function": OPEN_FUNCTION},
            ),
        ],
    )
    return board


def _running(query: str, q: promql.Query) -> str:
    """Keep running functions only; gauges of others stay at 0."""
    running = q.total(metrics.EXECUTIONS_IN_PROGRESS, "function", "executor")
    return f"{query} and {running} > 0"
