"""The ledger: each metric and each field of ``POST_EXECUTE`` against an account of its own.

The account is kept by the function itself (:mod:`truth.ledger`); bounds hold whatever else the
machine does. Every run is held against the whole of both tables.
"""

from __future__ import annotations

import math
import os
import platform
import re
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from exporters.events import Scrape
from modes import Engines, Mode
from waiting import poll, wait_until

import amorsize
from amorsize import HookContext, HookEvent
from amorsize.exporters import metrics
from amorsize.exporters.metrics import METRICS, Metric
from amorsize.exporters.totals import TotalsExporter
from amorsize.planning.cost import effective_cores
from amorsize.planning.machine import read_system
from amorsize.testing import assert_contract

from .evidence import N_JOBS, NAME, Evidence, Kind, Run, perform
from .ledger import NAMES, RESULT_BYTES, Call

PAGE = (Path(__file__).parents[2] / "docs" / "events.md").read_text(encoding="utf-8")

CHOSEN = Mode("chosen", None, "", False)
OWN = ("serial", "thread", "process")
NAMED = (*OWN, "thread-pool", "fork-pool", "dask")
MODES = ("chosen", *NAMED)

ERRORS = {
    "error": ("ValueError", "WorkerDiedError", "ExecutorBrokenError"),
    "cancelled": ("ExecutionCancelledError",),
    "timeout": ("ExecutionTimeoutError",),
}


# --- metrics ----

METRIC_CHECKS: dict[Metric, Callable[[Evidence], None]] = {}


def of(*rows: Metric) -> Callable[[Callable[[Evidence], None]], Callable[[Evidence], None]]:
    def enter(check: Callable[[Evidence], None]) -> Callable[[Evidence], None]:
        for row in rows:
            METRIC_CHECKS[row] = check
        return check

    return enter


@of(metrics.EXECUTIONS)
def _executions(seen: Evidence) -> None:
    for status in metrics.STATUSES:
        expected = len(seen.runs) if status == seen.kind.status else 0
        assert seen.value(metrics.EXECUTIONS, status=status) == expected


@of(metrics.EXECUTION_DURATION)
def _duration(seen: Evidence) -> None:
    status = seen.kind.status
    assert seen.value(metrics.EXECUTION_DURATION, "_count", status=status) == len(seen.runs)
    seconds = seen.value(metrics.EXECUTION_DURATION, "_sum", status=status)
    _between(seen.sums(Run.least_elapsed), seconds, seen.sums(Run.most_elapsed))


@of(metrics.PLANNING_DURATION)
def _planning(seen: Evidence) -> None:
    assert seen.value(metrics.PLANNING_DURATION, "_count") == len(seen.runs)
    seconds = seen.value(metrics.PLANNING_DURATION, "_sum")
    _between(seen.sums(_least_planning), seconds, seen.sums(_most_planning(seen)))


def _least_planning(run: Run) -> float:
    first = [chunk for chunk in run.chunks if chunk.metadata["chunk_start"] == 0]
    if not (first and first[0].metadata.get("sampled")):
        return 0.0
    size = first[0].chunk_size or 0
    return sum(call.ended - call.began for call in run.calls if call.item < size)


def _most_planning(seen: Evidence) -> Callable[[Run], float]:
    if seen.is_named:
        return lambda run: run.calls[0].began - run.began
    return Run.most_elapsed


def _sampled(run: Run) -> list[Call]:
    """The calls of the items that the run says that it measured."""
    items: set[int] = set()
    for chunk in run.chunks:
        if chunk.metadata.get("sampled"):
            start = chunk.metadata["chunk_start"]
            items |= set(range(start, start + (chunk.chunk_size or 0)))
    return [call for call in run.calls if call.item in items]


@of(metrics.ITEMS_PROCESSED, metrics.LAST_ITEMS)
def _processed(seen: Evidence) -> None:
    processed = seen.value(metrics.ITEMS_PROCESSED)
    ended = sum(len(_ended(run)) for run in seen.runs)
    if seen.kind.status == "ok":
        assert processed == ended == seen.kind.items * len(seen.runs)
    elif seen.mode.name == "serial" and seen.kind.status == "error":
        chunksize = seen.kind.chunksize or 1
        assert processed == ended // chunksize * chunksize
    else:
        assert sum(len(run.results) for run in seen.runs) <= (processed or 0) <= ended
    if len(seen.runs) == 1:
        assert seen.value(metrics.LAST_ITEMS) == processed
    else:
        assert seen.value(metrics.LAST_ITEMS) == seen.kind.items


def _ended(run: Run) -> set[int]:
    """Items whose calls are over; of a death, those that the run gave up."""
    return {
        call.item
        for call in run.calls
        if call.how == "returned" or (call.how and run.error is None)
    }


@of(metrics.ITEMS_FAILED, metrics.LAST_FAILED_ITEMS)
def _failed(seen: Evidence) -> None:
    failed = seen.sums(lambda run: len(_failed_items(seen, run)))
    assert seen.value(metrics.ITEMS_FAILED) == failed
    assert seen.value(metrics.LAST_FAILED_ITEMS) == failed / len(seen.runs)


def _failed_items(seen: Evidence, run: Run) -> set[int]:
    """Items that raised, or killed every worker that called them; not those that were cut off."""
    last = {call.item: call for call in run.calls}  # in order: the last call of each item
    failed = {item for item, call in last.items() if call.how in ("raised", "died")}
    if seen.mode.name == "fork-pool" and seen.kind.has("die"):
        return set()  # which item it was is not known of a pool that breaks
    return failed


@of(metrics.CHUNK_DURATION)
def _chunks(seen: Evidence) -> None:
    count = seen.value(metrics.CHUNK_DURATION, "_count")
    seconds = seen.value(metrics.CHUNK_DURATION, "_sum")
    if _is_regular(seen):
        assert count == len(seen.runs) * math.ceil(seen.kind.items / (seen.kind.chunksize or 1))
        _between(seen.sums(Run.least_busy), seconds, seen.sums(Run.most_busy))
    else:
        _between(0, seconds, seen.sums(Run.most_busy))
    for run in seen.runs:
        _check_chunks(run)


def _is_regular(seen: Evidence) -> bool:
    """Whether it is known how the items are divided into chunks."""
    is_whole = seen.kind.status == "ok" and not seen.kind.has("die")
    return is_whole and seen.is_named and seen.kind.chunksize is not None


def _check_chunks(run: Run) -> None:
    """Each chunk's time, and its CPU time, lie between what its calls and its neighbours show."""
    for chunk in run.chunks:
        first = chunk.metadata["chunk_start"]
        items = range(first, first + (chunk.chunk_size or 0))
        calls = [call for call in run.calls if call.item in items and call.how != "died"]
        if len(calls) != len(items) or len({call.worker for call in calls}) != 1:
            continue  # some ran in another chunk before, or in a worker that died
        least = sum(call.ended - call.began for call in calls)
        _between(least, chunk.chunk_time, sum(map(run.most, calls)))
        if (cpu := chunk.metadata.get("cpu_seconds")) is not None:
            same = [call for call in run.calls if call.worker == calls[0].worker]
            before = [call.cpu_ended for call in same if call.ended <= calls[0].began]
            after = [call.cpu_began for call in same if call.began >= calls[-1].ended]
            least = sum(call.cpu_ended - call.cpu_began for call in calls)
            most = chunk.chunk_time
            if before and after:
                most = min(most, min(after) - max(before))
            _between(min(least, chunk.chunk_time), cpu, most)


@of(metrics.CHUNK_QUEUE)
def _queue(seen: Evidence) -> None:
    count = seen.value(metrics.CHUNK_QUEUE, "_count")
    seconds = seen.value(metrics.CHUNK_QUEUE, "_sum")
    if _is_regular(seen):
        size = seen.kind.chunksize or 1
        assert count == len(seen.runs) * math.ceil(seen.kind.items / size)
        waited = sum(
            call.began_at - run.drawn.at_epoch[call.item]
            for run in seen.runs
            for call in run.calls
            if call.item % size == 0
        )
        _between(0, seconds, waited)
    else:
        assert 0 <= (count or 0) <= len(seen.calls)


@of(metrics.WORKER_BUSY)
def _worker_busy(seen: Evidence) -> None:
    """Of the calls in workers: those of the sample are none."""
    busy = seen.value(metrics.WORKER_BUSY)
    least = sum(run.least(call) for run in seen.runs for call in _in_workers(seen, run))
    _between(least, busy, seen.sums(Run.most_busy))
    available = seen.value(metrics.WORKER_AVAILABLE)
    assert busy is not None
    assert available is not None
    assert busy <= available


def _in_workers(seen: Evidence, run: Run) -> list[Call]:
    if seen.is_named:
        return run.calls
    sampled = _sampled(run)
    return [call for call in run.calls if call not in sampled]


@of(metrics.WORKER_CPU)
def _worker_cpu(seen: Evidence) -> None:
    cpu, busy = seen.value(metrics.WORKER_CPU), seen.value(metrics.WORKER_BUSY)
    assert cpu is not None
    assert busy is not None
    assert cpu <= busy
    if _is_regular(seen):
        assert cpu >= seen.sums(Run.least_cpu) or cpu == pytest.approx(busy)


@of(metrics.WORKER_AVAILABLE)
def _available(seen: Evidence) -> None:
    available = seen.value(metrics.WORKER_AVAILABLE)
    workers = len({call.worker for call in seen.calls})
    _between(0, available, workers * seen.sums(Run.most_elapsed))


@of(metrics.WORKER_DEATHS, metrics.LAST_WORKER_DEATHS)
def _deaths(seen: Evidence) -> None:
    died = _died(seen)
    assert seen.value(metrics.WORKER_DEATHS) == died
    assert seen.value(metrics.LAST_WORKER_DEATHS) == died


def _died(seen: Evidence) -> int:
    died = {call.pid for call in seen.calls if call.how == "died"}
    if seen.mode.name == "fork-pool" and died:
        died = {call.pid for call in seen.calls}  # the pool ends them all
    return len(died)


@of(metrics.ERRORS)
def _errors(seen: Evidence) -> None:
    raised = [call for call in seen.calls if call.how == "raised"]
    size = seen.kind.chunksize or 1
    if seen.kind.status in ("cancelled", "timeout"):
        (name,) = ERRORS[seen.kind.status]
        assert seen.value(metrics.ERRORS, error_type=name) == len(seen.runs)
    elif raised and seen.kind.status == "ok" and seen.is_named:
        chunks = {call.item // size for call in raised}
        assert seen.value(metrics.ERRORS, error_type="ValueError") == len(chunks)
        assert seen.value(metrics.ERRORS) == len(chunks)
    elif raised:
        assert 1 <= (seen.value(metrics.ERRORS, error_type="ValueError") or 0) <= len(raised)
    elif seen.kind.status == "error" and seen.mode.name == "fork-pool":
        assert seen.value(metrics.ERRORS, error_type="ExecutorBrokenError") == 1
    else:
        deaths = seen.value(metrics.WORKER_DEATHS)
        assert (seen.value(metrics.ERRORS) or 0) == deaths
        assert (seen.value(metrics.ERRORS, error_type="WorkerDiedError") or 0) == deaths


@of(metrics.ESTIMATED_SPEEDUP)
def _estimated(seen: Evidence) -> None:
    value = seen.value(metrics.ESTIMATED_SPEEDUP)
    if seen.is_named:
        assert value == (1.0 if seen.mode.name == "serial" else None)
    else:
        assert value in [run.post.metadata["estimated_speedup"] for run in seen.runs]
        assert value is not None
        assert value > 0


@of(metrics.MEASURED_SPEEDUP)
def _measured(seen: Evidence) -> None:
    value = seen.value(metrics.MEASURED_SPEEDUP)
    if seen.kind.status != "ok":
        assert value is None
    elif value is not None:
        _between(min(map(_least_speedup, seen.runs)), value, max(map(_most_speedup, seen.runs)))


def _least_speedup(run: Run) -> float:
    """A serial run takes at least its CPU time, as far as the machine can give so much."""
    system = read_system(memory=False)
    cores = effective_cores(system, system.affinity_cores)
    return min(run.least_cpu() / run.most_elapsed(), cores)


def _most_speedup(run: Run) -> float:
    """It takes no longer than all calls did, beside each other, and its input."""
    drawing = run.drawn.at[-1] - run.began
    return (run.most_busy() + max(0.0, drawing)) / run.least_elapsed()


@of(metrics.CONCURRENCY)
def _concurrency(seen: Evidence) -> None:
    value = seen.value(metrics.CONCURRENCY)
    least = min(run.least_busy() / run.most_elapsed() for run in seen.runs)
    most = max(
        run.most_busy() / run.least_elapsed() if run.least_elapsed() else math.inf
        for run in seen.runs
    )
    _between(least, value, most)


@of(metrics.LAST_ACTIVITY)
def _last_activity(seen: Evidence) -> None:
    value = seen.value(metrics.LAST_ACTIVITY)
    _between(max(run.cut_at for run in seen.runs), value, max(run.ended_at for run in seen.runs))


@of(metrics.LAST_COMPLETION)
def _last_completion(seen: Evidence) -> None:
    for status in metrics.STATUSES:
        value = seen.value(metrics.LAST_COMPLETION, status=status)
        if status != seen.kind.status:
            assert value is None
        else:
            cut, ended = (
                max(getattr(run, at) for run in seen.runs) for at in ("cut_at", "ended_at")
            )
            _between(cut, value, ended)


@of(metrics.LAST_SUCCESS)
def _last_success(seen: Evidence) -> None:
    completed = seen.value(metrics.LAST_COMPLETION, status="ok")
    assert seen.value(metrics.LAST_SUCCESS) == completed


@of(metrics.LAST_DURATION)
def _last_duration(seen: Evidence) -> None:
    value = seen.value(metrics.LAST_DURATION)
    _between(
        min(run.least_elapsed() for run in seen.runs),
        value,
        max(run.most_elapsed() for run in seen.runs),
    )


@of(metrics.LONGEST_CHUNK)
def _longest(seen: Evidence) -> None:
    value = seen.value(metrics.LONGEST_CHUNK)
    if not any(run.chunks for run in seen.runs):
        assert value is None
        return
    most = max(run.most_busy() for run in seen.runs)
    least = 0.0
    if seen.kind.status == "ok" and len(seen.runs) == 1:
        least = max(call.ended - call.began for call in seen.calls if call.how == "returned")
    _between(least, value, most)


@of(metrics.HOOK_CALLS, metrics.HOOK_ERRORS)
def _hook_calls(seen: Evidence) -> None:
    labels = {"event": "on_chunk_complete"}
    calls = seen.hook.seconds
    mine = {**labels, "hook": type(seen.hook).__module__ + ".HookAccount"}
    assert (seen.value(metrics.HOOK_CALLS, **mine) or 0) == len(calls)
    assert seen.value(metrics.HOOK_ERRORS, **labels) == (len(calls) + 1) // 2
    assert seen.value(metrics.HOOK_ERRORS) == (len(calls) + 1) // 2


@of(metrics.HOOK_BUSY, metrics.HOOK_LONGEST)
def _hook_times(seen: Evidence) -> None:
    mine = {"event": "on_chunk_complete", "hook": type(seen.hook).__module__ + ".HookAccount"}
    calls = seen.hook.seconds
    if calls:
        most = seen.sums(Run.most_elapsed)
        _between(sum(calls), seen.value(metrics.HOOK_BUSY, **mine), most)
        _between(max(calls), seen.value(metrics.HOOK_LONGEST, **mine), most)


@of(metrics.EXPORTER_DROPPED, metrics.EXPORTER_ERRORS)
def _exporters(seen: Evidence) -> None:
    webhook = seen.webhook
    assert webhook.refused == len(seen.runs)
    assert seen.value(metrics.EXPORTER_DROPPED, exporter="webhook") == webhook.refused
    assert seen.value(metrics.EXPORTER_ERRORS, exporter="webhook") == webhook.attempts
    assert seen.value(metrics.EXPORTER_DROPPED, exporter="prometheus") == 0
    assert seen.value(metrics.EXPORTER_ERRORS, exporter="prometheus") == 0


@of(metrics.USER_METRICS_DROPPED)
def _dropped(seen: Evidence) -> None:
    kept = 50
    expected = NAMES - kept if seen.kind.has("names") else 0
    assert seen.value(metrics.USER_METRICS_DROPPED) == expected


@of(metrics.BUILD_INFO)
def _build(seen: Evidence) -> None:
    version, python = amorsize.__version__, platform.python_version()
    assert seen.after("amorsize_build_info", version=version, python=python) == 1


@of(
    metrics.EXECUTIONS_IN_PROGRESS,
    metrics.ITEMS_EXPECTED,
    metrics.ITEMS_COMPLETED,
    metrics.THROUGHPUT,
    metrics.WORKERS,
)
def _in_progress(seen: Evidence) -> None:
    """There is none any more; :func:`look_at_gauges` looks at them in the middle of a run."""
    for metric in (
        metrics.EXECUTIONS_IN_PROGRESS,
        metrics.ITEMS_EXPECTED,
        metrics.ITEMS_COMPLETED,
        metrics.THROUGHPUT,
        metrics.WORKERS,
    ):
        assert seen.value(metric) == 0


# --- fields of POST_EXECUTE ----

Field = Callable[[Evidence, Run, Any], None]

FIELD_CHECKS: dict[str, Field] = {}
"""Attributes of the context, and keys of its metadata; None stands for a key that is absent."""


def named(*names: str) -> Callable[[Field], Field]:
    def enter(check: Field) -> Field:
        for name in names:
            FIELD_CHECKS[name] = check
        return check

    return enter


def is_always(expected: Any, *names: str) -> None:
    def check(seen: Evidence, run: Run, value: Any) -> None:
        assert value == expected

    named(*names)(check)


is_always(HookEvent.POST_EXECUTE, "event")
is_always(None, "worker_id", "chunk_id", "chunk_size")
is_always(0, "worker_count", "chunk_time")
is_always(NAME, "function")
is_always(None, "trace_id", "span_id", "chain")
"""Nobody traces these runs, and no chain was called."""


@named("timestamp")
def _timestamp(seen: Evidence, run: Run, value: float) -> None:
    _between(run.cut_at, value, run.ended_at)


@named("n_jobs")
def _n_jobs(seen: Evidence, run: Run, value: int) -> None:
    if seen.is_named:
        # A cluster may have fewer, where a worker of it has just died.
        least = 1 if seen.mode.is_dask else N_JOBS
        assert value == 1 if seen.mode.name == "serial" else least <= value <= N_JOBS
    else:
        assert value >= 1


@named("chunksize", "final_chunksize")
def _chunksize(seen: Evidence, run: Run, value: int) -> None:
    assert value == seen.kind.chunksize if seen.kind.chunksize else value >= 1


@named("corrections")
def _corrections(seen: Evidence, run: Run, value: int) -> None:
    assert value == 0 if seen.kind.chunksize else value >= 0


@named("total_items")
def _total(seen: Evidence, run: Run, value: int | None) -> None:
    is_known = hasattr(run.drawn, "__len__") or seen.kind.form == "list"
    drawn_all = len(run.drawn.at) == seen.kind.items
    if is_known or seen.kind.status == "ok":
        assert value == seen.kind.items
    else:
        assert value in (None, seen.kind.items if drawn_all else None)


@named("items_completed", "results_count")
def _completed(seen: Evidence, run: Run, value: int) -> None:
    if seen.kind.status == "ok":
        assert value == len(run.results) == seen.kind.items
    else:
        assert len(run.results) <= value <= len(_ended(run))


@named("items_remaining")
def _remaining(seen: Evidence, run: Run, value: int) -> None:
    post = run.post
    assert value == (0 if post.total_items is None else seen.kind.items - post.items_completed)


@named("percent_complete")
def _percent(seen: Evidence, run: Run, value: float) -> None:
    post = run.post
    if seen.kind.status == "ok":
        assert value == 100.0
    elif post.total_items is None:
        assert value == 0.0
    else:
        assert value == pytest.approx(100 * post.items_completed / seen.kind.items)


@named("elapsed_time")
def _elapsed(seen: Evidence, run: Run, value: float) -> None:
    _between(run.least_elapsed(), value, run.most_elapsed())


@named("throughput_items_per_sec")
def _throughput(seen: Evidence, run: Run, value: float) -> None:
    done = run.post.items_completed
    least = run.least_elapsed()
    _between(done / run.most_elapsed(), value, done / least if least else math.inf)


@named("estimated_time_remaining")
def _time_left(seen: Evidence, run: Run, value: float) -> None:
    rate = run.post.throughput_items_per_sec
    assert value == (pytest.approx(run.post.items_remaining / rate) if rate else 0.0)


@named("avg_item_time")
def _item_time(seen: Evidence, run: Run, value: float) -> None:
    done = run.post.items_completed
    assert done or value == 0.0
    if seen.kind.status == "ok" and not seen.kind.has("die"):
        least = sum(call.ended - call.began for call in run.calls if call.how != "died")
        _between(least / max(done, 1), value, run.most_busy() / max(done, 1))
    else:
        _between(0, value, run.most_busy() / max(done, 1))


@named("error")
def _error(seen: Evidence, run: Run, value: BaseException | None) -> None:
    if seen.kind.status == "ok":
        assert value is None
        assert run.error is None
    elif seen.kind.status == "cancelled":  # its consumer left it, and receives nothing
        assert type(value).__name__ == "ExecutionCancelledError"
    else:
        assert value is run.error
        assert type(value).__name__ in ERRORS[seen.kind.status]


@named("error_message")
def _message(seen: Evidence, run: Run, value: str | None) -> None:
    assert value == (None if run.post.error is None else str(run.post.error))


@named("error_traceback")
def _traceback(seen: Evidence, run: Run, value: str | None) -> None:
    error = run.post.error
    assert value is None if error is None else type(error).__name__ in (value or "")


@named("results_size_bytes")
def _size(seen: Evidence, run: Run, value: int) -> None:
    crossed = {call.pid for call in run.calls} - {os.getpid()}
    if not crossed:
        assert value == 0
    elif seen.kind.status == "ok" and seen.is_named:
        returned = sum(isinstance(result, bytes) for result in run.results)
        _between(returned * RESULT_BYTES, value, len(run.results) * 4 * RESULT_BYTES)


@named("execution_id")
def _execution_id(seen: Evidence, run: Run, value: str) -> None:
    assert re.fullmatch("[0-9a-f]{32}", value)
    ids = [context.metadata["execution_id"] for context in run.recorder.contexts]
    assert set(ids) == {value}
    assert len({each.post.metadata["execution_id"] for each in seen.runs}) == len(seen.runs)


@named("executor_type")
def _executor_type(seen: Evidence, run: Run, value: str) -> None:
    if seen.is_named:
        assert value == seen.mode.type
    pids = {call.pid for call in run.calls}
    threads = {call.thread for call in run.calls}
    match run.post.metadata.get("changed_to", value):
        case "serial":
            assert pids == {os.getpid()}
            assert len(threads) <= 2
        case "thread":
            assert pids == {os.getpid()}


@named("changed_to")
def _changed(seen: Evidence, run: Run, value: str | None) -> None:
    assert value is None or not seen.is_named


@named("estimated_speedup")
def _estimate(seen: Evidence, run: Run, value: float | None) -> None:
    if seen.is_named:
        assert value == (1.0 if seen.mode.name == "serial" else None)
    else:
        assert value is not None
        assert value > 0


@named("cpu_seconds")
def _cpu(seen: Evidence, run: Run, value: float | None) -> None:
    busy = run.post.metadata["busy_seconds"]
    if any(call.how == "died" for call in run.calls) and not run.loses_starts:
        assert value is None  # what the worker had done on a CPU went with it
    elif seen.kind.status == "ok" and not run.loses_starts:
        assert value is not None
        assert min(run.least_cpu(), busy * 0.999) <= value <= busy
    else:
        assert value is None or 0 <= value <= busy


@named("status")
def _status(seen: Evidence, run: Run, value: str) -> None:
    assert value == seen.kind.status


@named("planning_time")
def _planning_time(seen: Evidence, run: Run, value: float) -> None:
    _between(_least_planning(run), value, _most_planning(seen)(run))


@named("reason")
def _reason(seen: Evidence, run: Run, value: str) -> None:
    assert ("asked for" in value) == seen.is_named
    assert value.endswith(".")


@named("sampled_items")
def _sampled_items(seen: Evidence, run: Run, value: int) -> None:
    if seen.is_named:
        assert value == 0
    else:
        assert value == len(_sampled(run)) or seen.kind.status != "ok"
        assert {call.pid for call in _sampled(run)} <= {os.getpid()}
        if seen.kind.form in ("execute", "list") and "timeout" not in seen.kind.options:
            assert {call.thread for call in _sampled(run)} <= {run.caller}


@named("head_start_items")
def _head_start(seen: Evidence, run: Run, value: int) -> None:
    assert value == 0 if seen.is_named else 0 <= value <= seen.kind.items


@named("busy_seconds")
def _busy(seen: Evidence, run: Run, value: float) -> None:
    _between(run.least_busy(), value, run.most_busy())


@named("concurrency")
def _calls_at_once(seen: Evidence, run: Run, value: float) -> None:
    busy = run.post.metadata["busy_seconds"]
    least = run.least_elapsed()
    _between(busy / run.most_elapsed(), value, busy / least if least else math.inf)


@named("measured_speedup")
def _speedup(seen: Evidence, run: Run, value: float | None) -> None:
    assert value is None or seen.kind.status == "ok"
    if value is not None:
        _between(_least_speedup(run), value, _most_speedup(run))


@named("metadata")
def _metadata(seen: Evidence, run: Run, value: dict[str, Any]) -> None:
    assert value.keys() <= FIELD_CHECKS.keys()


def _between(least: float, value: float | None, most: float) -> None:
    """Bounds that are sums of the same numbers in another order may differ in the last digit."""
    assert value is not None
    assert least * (1 - 1e-9) - 1e-9 <= value <= most * (1 + 1e-9) + 1e-9, (least, value, most)


# --- the log ----


def _check_log(seen: Evidence, run: Run) -> None:
    """One line at the end, with the figures of the ledger; warnings of what failed."""
    id = run.post.metadata["execution_id"]
    records = [vars(each) for each in seen.log if vars(each)["amorsize_execution_id"] == id]
    ends = [each for each in records if each["amorsize_event"] == "run_ended"]
    assert [each["levelname"] for each in ends] == ["INFO"]
    (end,) = ends
    assert records[-1] is end
    assert end["amorsize_status"] == seen.kind.status
    assert end["amorsize_items"] == run.post.items_completed
    assert end["amorsize_total_items"] == run.post.total_items
    assert end["amorsize_failed_items"] == len(_failed_items(seen, run))
    assert end["amorsize_deaths"] == _died(seen)
    assert end["amorsize_executor"] == run.post.metadata.get(
        "changed_to", run.post.metadata["executor_type"]
    )
    assert end["amorsize_n_jobs"] == run.post.n_jobs
    _between(run.least_elapsed(), end["amorsize_duration_seconds"], run.most_elapsed())
    if run.post.items_completed:
        done = run.post.items_completed
        _between(0, end["amorsize_item_seconds"], run.most_busy() / done)
        _between(0, end["amorsize_slowest_chunk_seconds"], run.most_busy())
    warnings = [each for each in records if each is not end]
    assert {each["levelname"] for each in warnings} <= {"WARNING"}
    events = [each["amorsize_event"] for each in warnings]
    failed = sum(each.get("amorsize_failed_items") or 0 for each in warnings)
    assert failed == end["amorsize_failed_items"]
    assert events.count("worker_died") == _died(seen)
    broke = seen.mode.name == "fork-pool" and bool(_died(seen))
    for event, expected in (
        ("run_cancelled", seen.kind.status == "cancelled"),
        ("run_timeout", seen.kind.status == "timeout"),
        ("run_failed", broke),
    ):
        assert events.count(event) == expected, event


# --- the runs ----


def look_at_gauges(seen: Evidence) -> None:
    """In the middle of a run: what its gauges have to show, soon, while a call waits."""
    (run,) = seen.runs
    size = seen.kind.chunksize or 1

    def look() -> str:
        scrape, at = Scrape(seen.exporter.url), time.monotonic()
        calls = run.work.calls()
        ended = {call.item: call for call in calls if call.how}
        starts = range(0, seen.kind.items, size)
        chunks = [range(start, start + size) for start in starts]
        whole = [ended[item] for chunk in chunks if ended.keys() >= set(chunk) for item in chunk]
        expected = {
            metrics.EXECUTIONS_IN_PROGRESS: 1,
            metrics.ITEMS_EXPECTED: seen.kind.items,
            metrics.ITEMS_COMPLETED: len(whole),
            metrics.ITEMS_PROCESSED: len(whole),
            metrics.WORKERS: len({call.worker for call in calls}),
        }
        shown = {metric: seen.value_in(scrape, metric) for metric in expected}
        wrong = {metric.prometheus: shown[metric] for metric in expected}
        if shown != expected:
            return f"{wrong}, and not {list(expected.values())}"
        if whole:
            since = max(call.ended for call in whole) - calls[0].began
            throughput = seen.value_in(scrape, metrics.THROUGHPUT)
            _between(len(whole) / (at - run.began), throughput, len(whole) / since)
            longest = seen.value_in(scrape, metrics.LONGEST_CHUNK)
            _between(max(call.ended - call.began for call in whole), longest, at - run.began)
        return ""

    poll(look, lambda answer: not answer, "the gauges of the run")


def wait_for_starts(seen: Evidence) -> None:
    """Wait until the start of each worker that has begun is known: Dask reports it by the way."""
    (run,) = seen.runs

    def are_known() -> bool:
        workers = len({call.worker for call in run.work.calls()})
        return seen.value_in(Scrape(seen.exporter.url), metrics.WORKERS) == workers

    wait_until(are_known, "the starts of the workers")


KINDS = (
    Kind("short", items=3, chunksize=None),
    Kind("list", form="list", chunksize=None, items=40),
    Kind("seen", {5: "gate"}, chunksize=1, looks=look_at_gauges, only=NAMED),
    Kind("stream", form="stream"),
    Kind("async", form="aexecute"),
    Kind("fails", {7: "raise"}, status="error"),
    Kind("returned", {1: "raise", 6: "raise", 7: "raise"}, options={"return_exceptions": True}),
    # Where it is chosen, the item at the gate may be one of those whose results come together.
    Kind("left", {5: "gate"}, status="cancelled", form="close", only=NAMED),
    Kind("late", {5: "gate"}, status="timeout", options={"timeout": 0.4}),
    Kind("dies", {5: "die"}, status="error", only=("process", "fork-pool")),
    Kind("died", {5: "die"}, options={"return_exceptions": True}, only=("process",)),
    Kind("died once", {5: "gate, then die once"}, looks=wait_for_starts, only=("dask",)),
    Kind("at once", runs=2),
    Kind("names", {3: "names"}, chunksize=1),
    Kind(
        "turns long",
        dict.fromkeys(range(40, 50), "long"),
        {"wait_seconds": 0.0, "cpu_seconds": 0.0},
        items=50,
        chunksize=None,
        form="list",
        only=("chosen",),
    ),
)


@pytest.fixture
def run_in(engines: Engines, tmp_path: Path) -> Iterator[Callable[[str, Kind], Evidence]]:
    """Makes runs; a pool that breaks is one of its own."""
    pools = []

    def run(name: str, kind: Kind) -> Evidence:
        mode = CHOSEN if name == "chosen" else engines.mode(name)
        if name == "fork-pool":
            # A pool that breaks is not for the other tests.
            pools.append(ProcessPoolExecutor(N_JOBS, mp_context=get_context("fork")))
            mode = Mode(name, pools[-1], "custom", False)
        return perform(mode, kind, tmp_path)

    yield run
    for pool in pools:
        pool.shutdown()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, id=f"{kind.name}-{name}")
        for kind in KINDS
        for name in kind.only or MODES
    ],
)
def test_what_is_reported_agrees_with_the_ledger(
    name: str, kind: Kind, run_in: Callable[[str, Kind], Evidence]
) -> None:
    """Every metric, and every field of the last event."""
    wrong = check_against_ledger(run_in(name, kind))
    assert not wrong, "\n".join(wrong)


def check_against_ledger(seen: Evidence) -> list[str]:
    """Hold all runs against both tables; return what is wrong."""
    wrong = []
    for run in seen.runs:
        assert_contract(run.recorder.contexts)
        assert (run.error is None) == (seen.kind.status in ("ok", "cancelled")), run.error
        wrong += _failure("the log", lambda run=run: _check_log(seen, run))
        for field, check in FIELD_CHECKS.items():
            value = _field(run.post, field)
            wrong += _failure(
                field, lambda check=check, run=run, value=value: check(seen, run, value)
            )
    for metric, of_metric in METRIC_CHECKS.items():
        wrong += _failure(metric.prometheus, lambda check=of_metric: check(seen))
    return wrong


def _field(post: HookContext, name: str) -> Any:
    return getattr(post, name) if name in CONTEXT_FIELDS else post.metadata.get(name)


def _failure(name: str, check: Callable[[], None]) -> list[str]:
    try:
        check()
    except AssertionError as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return [f"{name}: {str(error) or frame.line} (line {frame.lineno})"]
    return []


def run_inside(item: int) -> None:
    amorsize.execute(abs, range(3), executor="serial", name="inside")


@pytest.mark.parametrize("name", OWN)
def test_a_run_inside_of_a_run(name: str, run_in: Callable[[str, Kind], Evidence]) -> None:
    """It counts for itself where it is seen: in the calling process."""
    with TotalsExporter().attach() as exporter:
        seen = run_in(name, Kind("nested", inner=run_inside))
        series = exporter.snapshot()
    wrong = check_against_ledger(seen)
    assert not wrong, "\n".join(wrong)
    here = sum(call.pid == os.getpid() for call in seen.calls)
    assert here == (0 if name == "process" else seen.kind.items)
    assert series[metrics.EXECUTIONS].get(("inside", "serial", "ok"), 0) == here
    assert series[metrics.ITEMS_PROCESSED].get(("inside", "serial"), 0) == 3 * here
    assert series[metrics.EXECUTIONS][NAME, name, "ok"] == 1


def test_an_observer_that_comes_later_learns_how_long_the_plan_took() -> None:
    """And not how long ago it was."""
    posts: list[HookContext] = []
    begun: list[float] = []
    with ExitStack() as stack:

        def register(item: int) -> int:
            begun.append(time.monotonic())
            if item == 5:
                hooks = amorsize.get_default_manager()
                stack.enter_context(hooks.register(HookEvent.POST_EXECUTE, posts.append))
            return item

        began = time.monotonic()
        amorsize.execute(register, range(10), executor="serial", chunksize=1)
    (post,) = posts
    _between(0, post.metadata["planning_time"], begun[0] - began)
    assert post.items_completed == 10


# --- the tables are whole ----

CONTEXT_FIELDS = [field.name for field in fields(HookContext)]


def test_every_metric_is_in_the_ledger() -> None:
    """A new one is held against the account, or does not come in."""
    assert METRIC_CHECKS.keys() == set(METRICS)


def test_every_field_of_the_last_event_is_in_the_ledger() -> None:
    """Those of the context, and those of its metadata that the page of events has for it."""
    documented = set()
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", PAGE, re.MULTILINE)
    for keys, where in rows:
        if re.match("all|any|.*`POST_EXECUTE`", where):
            documented |= set(re.findall(r"`(\w+)`", keys))
    documented -= {event.name for event in HookEvent}
    assert {"status", "execution_id", "cpu_seconds", "chain"} <= documented
    assert FIELD_CHECKS.keys() == {*CONTEXT_FIELDS, *documented}
