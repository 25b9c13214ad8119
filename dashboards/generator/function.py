"""Dashboard: one function in depth."""

from __future__ import annotations

from amorsize.exporters import metrics

from . import promql
from .boards import FUNCTION_UID, Board
from .panels import (
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
    Line,
    heat_map,
    lines,
    single,
)
from .promql import or_zero, top

FAILED = f'=~"{promql.FAILED}"'


def function() -> Board:
    """Build it."""
    board = Board(
        FUNCTION_UID,
        "amorsize / Function",
        "One function in depth: how often it runs, how it fails, how long it takes and why, and "
        "whether running it in parallel pays.",
        one_function=True,
    )
    q = board.query
    board.row(
        "Now",
        [
            single(
                "Running now",
                "Executions of the function in progress.",
                or_zero(q.total(metrics.EXECUTIONS_IN_PROGRESS)),
                COUNT,
            ),
            single(
                "Progress now",
                "Share of the input that the executions in progress have done.",
                q.progress(),
                SHARE,
                empty="nothing runs",
                decimals=1,
            ),
            single(
                "Time left",
                "Time until all items are done, at the present rate.",
                q.time_left(),
                SECONDS,
                empty="nothing runs",
                decimals=1,
            ),
            single(
                "Since last success",
                "How long ago an execution last succeeded.",
                q.age(metrics.LAST_SUCCESS),
                SECONDS,
                steps=[(None, GREEN), (86_400, ORANGE), (172_800, RED)],
                empty="none in the time shown",
                decimals=1,
            ),
            single(
                "Last duration",
                "Duration of the last execution that ended, from the call of execute().",
                q.last(metrics.LAST_DURATION),
                SECONDS,
                decimals=1,
            ),
            single(
                "Last items",
                "Items completed by the last execution that ended.",
                q.last(metrics.LAST_ITEMS),
                COUNT,
            ),
            single(
                "Failed",
                "Executions that ended with an error or by their timeout in the time shown.",
                or_zero(q.count(metrics.EXECUTIONS, status=FAILED)),
                COUNT,
                steps=[(None, GREEN), (0.5, RED)],
            ),
            single(
                "Measured speedup",
                "How many times as long a serial run would have taken as the last execution that "
                "ended.",
                q.last_speedup(metrics.MEASURED_SPEEDUP),
                "none",
                empty="not known",
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
                "Items of completed chunks, and items that failed, counted while executions run.",
                PER_SECOND,
                Line(q.rate(metrics.ITEMS_PROCESSED), "processed"),
                Line(q.rate(metrics.ITEMS_FAILED), "failed"),
                width=8,
                colors={"processed": GREEN, "failed": RED},
            ),
            lines(
                "Errors by type",
                "Failures of chunks, deaths of workers, cancellations and timeouts in each bar, "
                "by the type of the exception.",
                COUNT,
                Line(top(10, q.in_each_bar(metrics.ERRORS, "error_type")), "{{error_type}}"),
                width=8,
                bars=True,
            ),
        ],
    )
    board.row(
        "Duration",
        [
            lines(
                "Duration of executions",
                "Half of the executions took less than p50, one in twenty longer than p95, within "
                "the limits of the buckets. Empty while no execution ends. Points are traces: a "
                "click opens one.",
                SECONDS,
                Line(q.quantile(0.5, metrics.EXECUTION_DURATION, whole=True), "p50"),
                Line(q.quantile(0.95, metrics.EXECUTION_DURATION, whole=True), "p95"),
                Line(q.last_at(metrics.LAST_DURATION), "last"),
                width=8,
            ),
            lines(
                "Duration of chunks",
                "Time in the function, measured in the worker. It should be about the target chunk "
                "duration. Points are traces: a click opens one.",
                SECONDS,
                Line(q.quantile(0.5, metrics.CHUNK_DURATION, whole=True), "p50"),
                Line(q.quantile(0.95, metrics.CHUNK_DURATION, whole=True), "p95"),
                Line(q.mean(metrics.CHUNK_DURATION), "mean"),
                width=8,
            ),
            heat_map(
                "Chunks",
                "Number of chunks by duration, in each bar. Two bands mean two kinds of items; a "
                "rising band means that the function slows down.",
                q.in_each_bar(metrics.CHUNK_DURATION, "le", part="bucket"),
                SECONDS,
                width=8,
            ),
        ],
    )
    board.row(
        "Does it pay to run in parallel?",
        [
            lines(
                "Speedup, estimated and measured",
                "Over a serial run, of the last execution that ended: the estimate of its plan, "
                "and the speedup that was measured, each where it is known. Beside them, the calls "
                "in progress at once. If the measured speedup is far below the estimate, see the "
                "dashboard of workers.",
                "none",
                Line(q.last_at(metrics.ESTIMATED_SPEEDUP), "estimated"),
                Line(q.last_at(metrics.MEASURED_SPEEDUP), "measured"),
                Line(q.last_at(metrics.CONCURRENCY), "calls at once"),
                width=8,
                colors={"estimated": YELLOW, "measured": GREEN, "calls at once": BLUE},
            ),
            lines(
                "Workers",
                "Workers that take part, workers whose time is spent in the function, and "
                "workers that use a CPU there. Between the first two, workers are idle: they "
                "wait for input, for dispatch, for the last chunk. Between the last two, the "
                "function waits: by itself, for a CPU, for the GIL. Known when chunks are "
                "complete.",
                COUNT,
                Line(q.average(metrics.WORKERS), "taking part"),
                Line(q.busy_workers(), "busy"),
                Line(q.busy_workers(spent=metrics.WORKER_CPU), "on a CPU"),
                width=8,
                colors={"taking part": YELLOW, "busy": GREEN, "on a CPU": BLUE},
            ),
            lines(
                "Progress",
                "Share of the input that the executions in progress have done.",
                SHARE,
                Line(q.progress("executor"), "{{executor}}"),
                width=8,
                most=1,
            ),
            lines(
                "Queue wait of chunks",
                "Time between dispatch and start. A few chunks per worker are dispatched ahead, so "
                "about one chunk's duration is normal.",
                SECONDS,
                Line(q.quantile(0.5, metrics.CHUNK_QUEUE, whole=True), "p50"),
                Line(q.quantile(0.95, metrics.CHUNK_QUEUE, whole=True), "p95"),
                width=8,
            ),
            heat_map(
                "Queue waits",
                "Number of chunks by their wait between dispatch and start, in each bar.",
                q.in_each_bar(metrics.CHUNK_QUEUE, "le", part="bucket"),
                SECONDS,
                width=8,
            ),
            lines(
                "Planning",
                "Time spent on sampling and on choosing the plan, before an execution begins. The "
                "results of the sampled items are used.",
                SECONDS,
                Line(q.mean(metrics.PLANNING_DURATION), "mean"),
                Line(q.quantile(0.95, metrics.PLANNING_DURATION, whole=True), "p95"),
                width=8,
            ),
        ],
    )
    return board
