"""Totals of made-up events: what the last execution sets, and what is counted of workers' time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from amorsize.exporters import Exporter, metrics
from amorsize.exporters.metrics import Metric
from amorsize.exporters.totals import TotalsExporter
from amorsize.hooks import HookEvent, HookManager

from .events import Run

FUNCTION = ("parse",)
PROCESS = ("parse", "process")


@pytest.fixture
def totals(manager: HookManager) -> Iterator[TotalsExporter]:
    with TotalsExporter().attach(manager) as exporter:
        yield exporter


def value(totals: TotalsExporter, metric: Metric, *labels: str) -> Any:
    return totals.snapshot()[metric].get(labels)


def test_the_latest_execution_alone_is_the_last(manager, totals):
    """Whatever its executor: a poor one on threads is past once processes did better."""
    for number, (executor, speedup) in enumerate([("thread", 0.9), ("process", 3.2)]):
        run = Run(manager, execution_id=str(number), executor=executor)
        run.begin()
        assert value(totals, metrics.MEASURED_SPEEDUP, "parse") == (None, 0.9)[number]
        run.end(measured_speedup=speedup)
    assert totals.snapshot()[metrics.MEASURED_SPEEDUP] == {FUNCTION: 3.2}
    assert totals.snapshot()[metrics.ESTIMATED_SPEEDUP] == {FUNCTION: 3.5}


def test_a_speedup_that_is_not_known_is_absent(manager, totals):
    """The one before it is not the last one's."""
    Run(manager, execution_id="1").end()
    run = Run(manager, execution_id="2")
    del run.metadata["estimated_speedup"]
    run.end(measured_speedup=None)
    assert totals.snapshot()[metrics.MEASURED_SPEEDUP] == {}
    assert totals.snapshot()[metrics.ESTIMATED_SPEEDUP] == {}


def test_failed_items_and_deaths_of_the_last_execution(manager, totals):
    """Set when it ends; the next one begins from none."""
    last = [(metrics.LAST_FAILED_ITEMS, "parse"), (metrics.LAST_WORKER_DEATHS, "parse")]
    run = Run(manager, execution_id="1")
    run.begin()
    run.start_worker()
    run.fail(ValueError(), failed_items=2)
    run.fail(KeyError(), failed_items=3)
    run.end_worker(exit_reason="died")
    assert [value(totals, *each) for each in last] == [None, None]
    run.end("error")
    assert [value(totals, *each) for each in last] == [5, 1]
    run = Run(manager, execution_id="2")
    run.begin()
    assert [value(totals, *each) for each in last] == [5, 1]
    run.end()
    assert [value(totals, *each) for each in last] == [0, 0]


def test_the_longest_chunk_is_that_of_the_last_execution_and_of_those_in_progress(manager, totals):
    """So that one chunk of last month does not count for ever."""

    def longest() -> Any:
        return value(totals, metrics.LONGEST_CHUNK, *PROCESS)

    first, second = Run(manager, execution_id="1"), Run(manager, execution_id="2")
    first.begin()
    assert longest() is None
    for seconds in (3.0, 40.0, 2.0):
        first.complete_chunk(1, chunk_time=seconds)
    assert longest() == 40.0
    first.end()
    second.begin()
    second.complete_chunk(1, chunk_time=5.0)
    assert longest() == 40.0
    second.end()
    assert longest() == 5.0


class Unreliable(Exporter):
    """Counts what its methods are called with."""

    name = "unreliable"
    lost = 0

    def counts(self) -> tuple[int, int]:
        return self.lost, 2 * self.lost


def test_exporters_that_close_first_stay_counted(totals):
    """At the exit all close at the same time; the last numbers hold the failures of each."""
    first, second = Unreliable(), Unreliable()
    first.lost, second.lost = 1, 2
    for close in (first.close, second.close, second.close):
        assert value(totals, metrics.EXPORTER_DROPPED, "unreliable") == 3
        close()
        assert value(totals, metrics.EXPORTER_ERRORS, "unreliable") == 6
    third = Unreliable()
    third.lost = 4
    assert value(totals, metrics.EXPORTER_DROPPED, "unreliable") == 7
    third.close()
    with TotalsExporter() as later:
        assert ("unreliable",) not in later.snapshot()[metrics.EXPORTER_DROPPED]


def busy_and_available(totals: TotalsExporter) -> tuple[float, float]:
    found = [
        value(totals, each, *PROCESS) for each in (metrics.WORKER_BUSY, metrics.WORKER_AVAILABLE)
    ]
    return found[0], found[1]


def test_the_time_of_workers_counts_with_what_of_it_was_busy(manager, totals):
    """At completed chunks, at failed ones, and at the end; busy is never more than available."""
    run = Run(manager)
    run.begin()
    run.start_worker(0, elapsed_time=1.0)
    run.start_worker(1, elapsed_time=1.0)
    assert busy_and_available(totals) == (0, 0)
    run.complete_chunk(1, worker_id=0, chunk_time=2.0, elapsed=4.0)
    assert busy_and_available(totals) == (2.0, 3.0)
    run.fail(ValueError(), worker_id=1, chunk_time=4.0, elapsed_time=6.0)
    assert busy_and_available(totals) == (6.0, 8.0)
    run.complete_chunk(1, worker_id=None, chunk_time=9.0, elapsed=6.0, sampled=True)
    run.complete_chunk(1, worker_id=0, chunk_time=1.0, elapsed=7.0)
    run.end_worker(0, busy_time=3.0, elapsed=8.0)
    run.end_worker(1, "died", busy_time=5.5, elapsed=8.0)
    assert busy_and_available(totals) == (8.5, 14.0)


def test_a_chunk_whose_failures_are_results_counts_once(manager, totals):
    """Its ON_CHUNK_COMPLETE follows the ON_ERROR."""
    run = Run(manager)
    run.begin()
    run.start_worker(0)
    metadata = {"failed_items": 1, "chunk_completes": True}
    run.emit(HookEvent.ON_ERROR, metadata, worker_id=0, chunk_time=2.0, elapsed_time=2.5)
    run.complete_chunk(1, chunk_time=2.0, elapsed=2.5)
    run.end_worker(0, busy_time=2.0, elapsed=3.0)
    assert busy_and_available(totals) == (2.0, 3.0)


def test_a_worker_whose_start_is_reported_late_was_available_while_it_was_busy(manager, totals):
    """Workers take items while the first call is in progress; it is reported after that call."""
    run = Run(manager)
    run.begin()
    run.start_worker(0, elapsed_time=10.0)
    for _ in range(2):
        run.complete_chunk(1, chunk_time=3.0, elapsed=10.0)
    assert busy_and_available(totals) == (6.0, 6.0)


def test_chunks_that_are_reported_late_do_not_make_a_worker_available_twice(manager, totals):
    """A hook takes long, and the next chunk is done meanwhile."""
    run = Run(manager)
    run.begin()
    run.start_worker(0, elapsed_time=0.0)
    run.complete_chunk(1, chunk_time=0.5, elapsed=1.0)
    run.complete_chunk(1, chunk_time=0.5, elapsed=1.125)
    assert busy_and_available(totals) == (1.0, 1.125)


def test_progress_is_of_inputs_whose_length_is_known(manager, totals):
    """And never more than all of it, also where the input was longer than it said."""

    def progress() -> tuple[Any, Any]:
        return (
            value(totals, metrics.ITEMS_COMPLETED, *PROCESS),
            value(totals, metrics.ITEMS_EXPECTED, *PROCESS),
        )

    known, unknown = Run(manager, execution_id="1"), Run(manager, execution_id="2")
    known.begin(total_items=8)
    unknown.begin(total_items=None)
    unknown.complete_chunk(100)
    known.complete_chunk(2)
    assert progress() == (2, 8)
    known.complete_chunk(8)
    assert progress() == (10, 10)
    known.end()
    assert progress() == (0, 0)
    assert value(totals, metrics.ITEMS_PROCESSED, *PROCESS) == 110
