"""Dashboard: workers, what they do and what is wasted."""

from __future__ import annotations

from amorsize.exporters import metrics

from .boards import Board
from .panels import (
    ANY_IS_BAD,
    COUNT,
    GREEN,
    ORANGE,
    RED,
    SECONDS,
    SHARE,
    Line,
    bars,
    lines,
    single,
)
from .promql import Query, or_zero, share, top

TOP = 10


def workers() -> Board:
    """Build it."""
    board = Board(
        "amorsize-workers",
        "amorsize / Workers",
        "How many workers there are, how busy they are, which died, and what is wasted where.",
        one_function=False,
    )
    q = board.query
    board.row(
        "Now",
        [
            single(
                "Workers now",
                "Workers that take part in the executions in progress.",
                or_zero(q.total(metrics.WORKERS)),
                COUNT,
            ),
            single(
                "Busy now",
                "Share of the workers' time that is spent in the function, over the chunks that "
                "were completed just now.",
                q.busy_share(),
                SHARE,
                steps=[(None, RED), (0.5, ORANGE), (0.8, GREEN)],
                empty="nothing runs",
                decimals=0,
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
                "Busy time",
                "Time that workers spent in functions in the time shown.",
                or_zero(q.growth(metrics.WORKER_BUSY)),
                SECONDS,
                decimals=1,
            ),
            single(
                "Wasted time",
                "Time that workers took part but spent outside of the functions, in the time "
                "shown. A panel below shows it by function.",
                or_zero(q.wasted()),
                SECONDS,
                decimals=1,
            ),
            single(
                "Speedup reached",
                "Share of the estimated speedup that executions reach, on average over the last "
                "execution of each function whose plan expected any. 100% for more than that.",
                q.speedup_share(),
                SHARE,
                steps=[(None, RED), (0.5, ORANGE), (0.8, GREEN)],
                empty="not known",
                decimals=0,
            ),
            single(
                "Queue wait, p95",
                "One chunk in twenty waits longer between its dispatch and its start.",
                q.quantile(0.95, metrics.CHUNK_QUEUE),
                SECONDS,
                empty="nothing runs",
                decimals=1,
            ),
            single(
                "Running now",
                "Executions in progress.",
                or_zero(q.total(metrics.EXECUTIONS_IN_PROGRESS)),
                COUNT,
            ),
        ],
    )
    board.row(
        "Utilisation",
        [
            lines(
                "Workers by function",
                f"The {TOP} functions with the most workers.",
                COUNT,
                Line(top(TOP, q.total(metrics.WORKERS, "function")), "{{function}}"),
                width=8,
            ),
            lines(
                "Busy share",
                "Share of the workers' time that is spent in the function. A chunk's time counts, "
                "busy or not, when it is complete; while none completes, nothing is known.",
                SHARE,
                Line(top(TOP, q.busy_share("function")), "{{function}}"),
                width=8,
                most=1,
            ),
            lines(
                "Idle workers",
                "The number of workers whose time is not spent in the function: start-up, "
                "transport, waiting for input, and for the last chunk of a run.",
                COUNT,
                Line(top(TOP, q.idle_workers("function")), "{{function}}"),
                width=8,
            ),
        ],
    )
    board.row(
        "Saturation and errors",
        [
            lines(
                "Worker deaths by function",
                "Workers that were killed or crashed in each bar.",
                COUNT,
                Line(
                    top(TOP, q.in_each_bar(metrics.WORKER_DEATHS, "function", "executor")),
                    "{{function}} ({{executor}})",
                ),
                width=8,
                bars=True,
            ),
            lines(
                "Queue wait by function, p95",
                "One chunk in twenty waits longer between its dispatch and its start. If it is "
                "much more than a chunk's duration, something delays the run between chunks, "
                "often a hook.",
                SECONDS,
                Line(top(TOP, q.quantile(0.95, metrics.CHUNK_QUEUE, "function")), "{{function}}"),
                width=8,
            ),
            lines(
                "Imbalance",
                "The slowest chunks (p99) divided by the typical ones (p50). From about 10 on, "
                "most workers wait for the last chunk of a run: a smaller chunksize helps.",
                "none",
                Line(top(TOP, _imbalance(q)), "{{function}}"),
                width=8,
            ),
        ],
    )
    board.row(
        "What is wasted, and where",
        [
            bars(
                "Wasted worker time by function",
                "Time that workers took part but spent outside of the function, in the time shown.",
                SECONDS,
                Line(top(TOP, q.wasted("function")), "{{function}}"),
                empty="No worker took part in the time shown.",
                width=8,
                steps=[(None, ORANGE)],
            ),
            bars(
                "Speedup reached by function",
                "Share of the estimated speedup that the last execution reached, where both are "
                "known: the functions with the lowest.",
                SHARE,
                Line(f"bottomk({TOP}, {q.speedup_share('function')})", "{{function}}"),
                empty="No execution has both.",
                width=8,
                steps=[(None, RED), (0.5, ORANGE), (0.8, GREEN)],
            ),
            bars(
                "Share of planning",
                "Share of the executions' time that went into sampling and planning, in the time "
                "shown. If it is large, the runs are short: pass n_jobs, chunksize and executor.",
                SHARE,
                Line(
                    top(
                        TOP,
                        share(
                            q.growth(metrics.PLANNING_DURATION, "function", part="sum"),
                            q.growth(metrics.EXECUTION_DURATION, "function", part="sum"),
                        ),
                    ),
                    "{{function}}",
                ),
                empty="No execution ended in the time shown.",
                width=8,
                steps=[(None, GREEN), (0.1, ORANGE), (0.5, RED)],
            ),
        ],
    )
    return board


def _imbalance(q: Query) -> str:
    slowest = q.quantile(0.99, metrics.CHUNK_DURATION, "function")
    return f"{slowest} / {q.quantile(0.5, metrics.CHUNK_DURATION, 'function')}"
