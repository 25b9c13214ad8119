"""What earlier programs have left, from text and from the gateway's JSON, and how it goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from amorsize.exporters import metrics
from amorsize.exporters.metrics import Metric
from amorsize.exporters.prometheus.earlier import (
    MOST_FUNCTIONS,
    Earlier,
    by_function,
    families_of_json,
    families_of_text,
)
from amorsize.exporters.prometheus.exposition import TextEncoder
from amorsize.exporters.series import Histogram, Series
from amorsize.exporters.totals import LIVE_GAUGES, TotalsExporter
from amorsize.hooks import HookManager

from ..events import Run

PROCESS = ("parse", "process")


def night(*, status: str = "ok", function: str = "parse", executor: str = "process") -> Series:
    """The series of a program that runs once."""
    manager = HookManager()
    with TotalsExporter().attach(manager) as totals:
        run = Run(manager, function=function, executor=executor)
        run.begin()
        run.start_worker()
        shares = {"rows": {"kind": "counter", "help": None, "calls": 1, "value": 3}}
        run.complete_chunk(4, chunk_time=0.25, elapsed=0.5, user_metrics=shares)
        run.fail(ValueError("bad"), failed_items=2)
        run.end_worker(exit_reason="died", elapsed=1.0, busy_time=0.5)
        run.end(status, timestamp=1000.0)
        return totals.snapshot()


def as_text(series: Series, **labels: str) -> str:
    return TextEncoder(labels).encode(series)


def as_json(series: Series) -> dict[str, Any]:
    """As the Pushgateway shows a group; tests/truth has a real one."""
    group: dict[str, Any] = {"labels": {"job": "nightly"}, "last_push_successful": True}
    for family in families_of_text(as_text(series)):
        shown = []
        for labels, value in family.samples:
            if isinstance(value, tuple):
                buckets = {f"{le:g}".replace("inf", "+Inf"): f"{n:g}" for le, n in value[0].items()}
                shown.append({"labels": dict(labels), "buckets": buckets, "sum": str(value[1])})
            else:
                shown.append({"labels": dict(labels), "value": str(value)})
        group[family.name] = {"type": family.type.upper(), "metrics": shown}
    parsed: dict[str, Any] = json.loads(json.dumps(group))
    return parsed


@pytest.fixture(params=["text", "labelled text", "json"])
def read(request: pytest.FixtureRequest) -> Any:
    def read(series: Series) -> Earlier:
        if request.param == "json":
            return Earlier(families_of_json(as_json(series)))
        labels = {"job": "nightly", "site": 'a"b\\'} if request.param == "labelled text" else {}
        return Earlier(families_of_text(as_text(series, **labels)))

    return read


def value(series: Series, metric: Metric, *labels: str) -> Any:
    return series[metric].get(labels)


def test_counters_and_histograms_go_on(read):
    """Each night adds to those before, for each label, those of the user's own metrics too."""
    whole = night()
    for nights in (2, 3):
        whole = read(whole).continued(by_function(night()))
        assert value(whole, metrics.EXECUTIONS, *PROCESS, "ok") == nights
        assert value(whole, metrics.EXECUTIONS, *PROCESS, "error") == 0
        assert value(whole, metrics.ITEMS_PROCESSED, *PROCESS) == 4 * nights
        assert value(whole, metrics.ITEMS_FAILED, *PROCESS) == 2 * nights
        assert value(whole, metrics.WORKER_DEATHS, *PROCESS) == nights
        assert value(whole, metrics.WORKER_BUSY, *PROCESS) == 0.5 * nights
        assert value(whole, metrics.ERRORS, *PROCESS, "ValueError") == nights
        chunks = value(whole, metrics.CHUNK_DURATION, *PROCESS)
        once = value(night(), metrics.CHUNK_DURATION, *PROCESS)
        assert isinstance(chunks, Histogram)
        assert chunks.counts == [nights * count for count in once.counts]
        assert chunks.total == 0.25 * nights
        rows = {row.prometheus: values for row, values in whole.items()}
        assert rows["amorsize_user_rows_total"] == {PROCESS: 3 * nights}


def test_what_the_last_execution_has_set_is_the_new_ones(read):
    """A night that fails keeps the time of the last success, and nothing else of the one before."""
    before = night()
    after = night(status="error")
    after[metrics.LAST_COMPLETION] = {("parse", "error"): 2000.0}
    del after[metrics.MEASURED_SPEEDUP]["parse",]
    whole = read(before).continued(by_function(after))
    assert value(whole, metrics.LAST_SUCCESS, "parse") == 1000.0
    assert whole[metrics.LAST_COMPLETION] == {("parse", "ok"): 1000.0, ("parse", "error"): 2000.0}
    assert metrics.MEASURED_SPEEDUP not in whole
    assert value(whole, metrics.LAST_FAILED_ITEMS, "parse") == 2


def test_while_the_first_execution_runs_the_last_one_is_that_of_the_program_before(read):
    """It is the last that ended; the longest chunk is the longer one."""
    before = night()
    manager = HookManager()
    with TotalsExporter().attach(manager) as totals:
        run = Run(manager)
        run.begin(timestamp=1500.0)
        run.complete_chunk(1, chunk_time=0.125, timestamp=1501.0)
        whole = read(before).continued(by_function(totals.snapshot()))
    assert value(whole, metrics.LAST_DURATION, "parse") == 1.0
    assert value(whole, metrics.MEASURED_SPEEDUP, "parse") == 2.5
    assert value(whole, metrics.LONGEST_CHUNK, *PROCESS) == 0.25
    assert value(whole, metrics.EXECUTIONS_IN_PROGRESS, *PROCESS) == 1


def test_nothing_that_an_ended_program_left_in_progress_goes_on(read):
    """It was killed; only this program can say what runs now."""
    killed = night()
    for gauge in LIVE_GAUGES:
        killed[gauge] = {PROCESS: 5}
    whole = read(killed).continued(by_function(night(function="store")))
    for gauge in LIVE_GAUGES:
        assert PROCESS not in whole.get(gauge, {})
    assert value(whole, metrics.LAST_SUCCESS, "parse") == 1000.0
    assert value(whole, metrics.ITEMS_PROCESSED, *PROCESS) == 4


def test_other_executors_of_a_function_stay(read):
    """Tonight on threads: what processes did still counts."""
    whole = read(night()).continued(by_function(night(executor="thread")))
    assert whole[metrics.ITEMS_PROCESSED] == {PROCESS: 4, ("parse", "thread"): 4}


def test_the_program_is_not_that_of_before(read):
    """Its version is its own; its hooks' and exporters' counters go on."""
    before = night()
    before[metrics.BUILD_INFO] = {("0.0.1", "3.11"): 1}
    before[metrics.HOOK_ERRORS] = {("on_error",): 5, ("pre_execute",): 1}
    before[metrics.HOOK_LONGEST] = {("on_error", "old"): 100.0}
    after = night()
    after[metrics.HOOK_ERRORS] = {("on_error",): 2}
    whole = read(before).continued(by_function(after))
    assert whole[metrics.HOOK_ERRORS] == {("on_error",): 7, ("pre_execute",): 1}
    assert whole[metrics.BUILD_INFO] == after[metrics.BUILD_INFO]
    assert ("on_error", "old") not in whole[metrics.HOOK_LONGEST]


def test_a_user_metric_that_changed_its_kind_begins_again():
    """One name has one type."""
    text = '# TYPE amorsize_user_rows_total gauge\namorsize_user_rows_total{function="parse"} 9\n'
    whole = Earlier(families_of_text(text)).continued(by_function(night()))
    rows = {row.prometheus: values for row, values in whole.items()}
    assert rows["amorsize_user_rows_total"] == {PROCESS: 3}


def test_other_buckets_and_other_peoples_metrics_are_left_alone():
    """An update may have changed the bounds: then the histogram begins again."""
    text = (
        "# TYPE amorsize_chunk_duration_seconds histogram\n"
        'amorsize_chunk_duration_seconds_bucket{function="parse",executor="process",le="7"} 1\n'
        'amorsize_chunk_duration_seconds_bucket{function="parse",executor="process",le="+Inf"} 1\n'
        'amorsize_chunk_duration_seconds_sum{function="parse",executor="process"} 1\n'
        "# TYPE orders_total counter\n"
        "orders_total 5\n"
        "# TYPE amorsize_last_items gauge\n"
        'amorsize_last_items{function="parse"} NaN\n'
    )
    assert Earlier(families_of_text(text)).continued({}) == {}


def test_functions_of_long_ago_are_forgotten():
    """A file does not grow without end where names hold a date."""
    before: Series = {
        metrics.LAST_ACTIVITY: {(f"job {day}", "serial"): float(day) for day in range(150)},
        metrics.LAST_SUCCESS: {(f"job {day}",): float(day) for day in range(150)},
    }
    whole = Earlier(families_of_text(as_text(before))).continued(by_function(night()))
    kept = {labels[0] for labels in whole[metrics.LAST_SUCCESS]}
    assert kept == {"parse", *(f"job {day}" for day in range(150 - MOST_FUNCTIONS, 150))}


def test_counters_that_go_on_count_since_the_first_program() -> None:
    """So a new program is not taken for the cause of what was counted before it."""
    row = metrics.COUNTING_SINCE
    for first, second in ((100.0, 200.0), (200.0, 100.0)):
        earlier = Earlier(families_of_text(as_text({row: {(): first}})))
        assert earlier.continued_of(None, {row: {(): second}})[row] == {(): 100.0}


def test_what_is_in_progress_is_for_the_present_program_to_say() -> None:
    """Until when another one's executions were to be believed is not kept."""
    earlier = Earlier(families_of_text(as_text({metrics.IN_PROGRESS_UNTIL: {PROCESS: 9.0}})))
    assert earlier.continued_of("parse", {}) == {}
