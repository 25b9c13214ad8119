"""The pass that ends early where its items turn out to be long."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import PATIENCE, wait_until

from amorsize.workers import pass_monitor as monitor_module
from amorsize.workers.pass_monitor import (
    SLICE_ITEMS,
    SLICED_ITEMS,
    MonitoredPass,
    PassMonitor,
)
from amorsize.workers.slices import Slice


def never(each: float, at: int) -> bool:
    return False


def pass_over(
    items: Sequence[Any], start: int, too_long: Callable[[float, int], bool]
) -> MonitoredPass:
    return PassMonitor(too_long).pass_over(items, start)


def go_over(monitored: MonitoredPass, func: Callable[[Any], Any]) -> list[Any]:
    try:
        with monitored as items:
            results = [func(item) for item in items]
    finally:
        monitored.monitor.close()
    monitored.settle(results)
    return results


@given(
    size=st.integers(0, 30), start=st.integers(0, 30), kind=st.sampled_from([list, tuple, range])
)
def test_it_is_a_comprehension_over_the_slice(size: int, start: int, kind: Any) -> None:
    """Of each kind of sequence, from anywhere in it."""
    sequence: Sequence[int] = range(size) if kind is range else kind(range(size))
    start = min(start, size)
    monitored = pass_over(Slice(sequence, start, size), start, never)
    assert go_over(monitored, lambda item: item * 2) == [item * 2 for item in range(start, size)]
    assert (monitored.taken, monitored.ended) == (size - start, False)


@pytest.mark.parametrize("kind", [list, tuple, range])
def test_another_thread_ends_it_where_items_are_too_long(kind: Any) -> None:
    """What was taken has its result, and what was not is not called."""
    sequence = range(100_000) if kind is range else kind(range(100_000))
    calls: list[int] = []
    asked: list[tuple[float, int, int]] = []  # seconds, index, thread

    def work(item: int) -> int:
        calls.append(item)
        if item > 1000:
            time.sleep(0.001)
        return item

    def too_long(each: float, at: int) -> bool:
        asked.append((each, at, threading.get_ident()))
        return [index > 1051 for _, index, _ in asked].count(True) == 2

    monitored = pass_over(sequence, 50, too_long)
    results = go_over(monitored, work)
    assert results == calls == list(range(monitored.taken))
    assert monitored.ended
    assert 1000 < monitored.taken < len(sequence)
    each, at, thread = asked[-1]
    assert each > 0.0005, "between the last two questions all items were long"
    assert 1050 < at <= 50 + monitored.taken
    assert thread != threading.get_ident()


def test_the_item_that_fails_is_known_also_once_it_was_ended() -> None:
    """The iterator was moved by then, and does not show it."""

    def work(item: int) -> int:
        if item == 700:
            wait_until(lambda: monitored.ended, "the end of the pass")
            raise ValueError(item)
        return item

    monitored = pass_over(range(10_000), 0, lambda each, at: True)
    with pytest.raises(ValueError, match="700"):
        go_over(monitored, work)
    assert monitored.taken == 701


def test_what_was_taken_is_known_whenever_it_is_ended() -> None:
    """The loop may go on at any moment at which the other thread is asked."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            calls: list[int] = []

            def work(item: int, calls: list[int] = calls) -> int:
                calls.append(item)
                return sum(range(200))

            monitored = pass_over(range(50_000), 0, lambda each, at: True)
            results = go_over(monitored, work)
            assert len(results) == monitored.taken == len(calls)
            assert calls == list(range(monitored.taken))
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("kind", [list, tuple, range])
@pytest.mark.parametrize("start", [0, 3])
def test_few_items_are_looked_at_between_slices(kind: Any, start: int) -> None:
    """Another thread costs more than they do."""
    sequence = range(SLICED_ITEMS) if kind is range else kind(range(SLICED_ITEMS))
    threads: set[int] = set()
    asked: list[tuple[float, int]] = []

    def work(item: int) -> int:
        if item > 100:
            time.sleep(0.001)
        return item

    def too_long(each: float, at: int) -> bool:
        threads.add(threading.get_ident())
        asked.append((each, at))
        return at > 100

    monitored = pass_over(Slice(sequence, start, 300), start, too_long)
    assert go_over(monitored, work) == list(range(start, start + monitored.taken))
    assert monitored.ended
    each, at = asked[-1]
    assert each > 0.0005 * (at - 101) / SLICE_ITEMS
    assert 100 < at == start + monitored.taken <= 100 + 2 * SLICE_ITEMS
    assert threads == {threading.get_ident()}


def test_slices_that_take_no_time_are_not_asked_about() -> None:
    """A call for each would take longer than they do."""
    asked: list[int] = []
    frozen = pass_over(range(SLICED_ITEMS), 0, lambda each, at: bool(asked.append(at)))
    assert go_over(frozen, lambda item: item) == list(range(SLICED_ITEMS))
    assert len(asked) < SLICED_ITEMS / SLICE_ITEMS


@pytest.mark.parametrize("size", [20, SLICED_ITEMS + 100])
def test_a_list_that_changes_meanwhile(size: int) -> None:
    """What it gains has no result; what it loses cannot be had."""
    growing = list(range(size))

    def grow(item: int) -> int:
        if len(growing) < size + 10:
            growing.append(item)
        return item

    monitored = pass_over(growing, 0, never)
    assert (go_over(monitored, grow), monitored.taken) == (list(range(size)), size)
    shrinking = list(range(size))

    def shrink(item: int) -> int:
        del shrinking[-1]
        return item

    with pytest.raises(RuntimeError, match="lost items"):
        go_over(pass_over(shrinking, 0, never), shrink)


def test_what_a_list_gains_once_it_was_ended_has_no_result() -> None:
    """Nor is it called: whoever goes over the rest of the list comes to it."""
    data = list(range(10_000))
    calls: list[int] = []

    def work(item: int) -> int:
        calls.append(item)
        if item == 700:
            wait_until(lambda: monitored.ended, "the end of the pass")
            data.append(-1)
        return item

    monitored = pass_over(data, 0, lambda each, at: True)
    assert go_over(monitored, work) == calls == list(range(701))
    assert monitored.taken == 701


def test_a_thread_that_has_nothing_to_look_at_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream may stay open for hours; its next chunk has another one."""
    monkeypatch.setattr(monitor_module, "PASS_LOOK_SECONDS", 0.001)
    monitor = PassMonitor(never)
    begun: list[threading.Event] = []

    def run_beside(job: Callable[[], None]) -> bool:
        over = threading.Event()
        begun.append(over)
        threading.Thread(target=lambda: (job(), over.set())).start()
        return True

    monkeypatch.setattr(monitor_module, "run_beside", run_beside)
    items = range(SLICED_ITEMS + 1)
    for _ in range(2):
        with monitor.pass_over(items, 0) as passed:
            assert sum(passed) == sum(items)
        assert begun[-1].wait(PATIENCE)
    assert len(begun) == 2


@pytest.mark.parametrize("can_start", [True, False])
def test_one_thread_looks_after_all_passes(
    monkeypatch: pytest.MonkeyPatch, can_start: bool
) -> None:
    """Waking one takes as long as many a pass; where none can be started, the loop looks itself."""
    jobs: list[Callable[[], None]] = []

    def run_beside(job: Callable[[], None]) -> bool:
        jobs.append(job)
        return can_start

    monkeypatch.setattr(monitor_module, "run_beside", run_beside)
    monitor = PassMonitor(lambda each, at: True)

    def work(item: int) -> int:
        if item == 40:
            time.sleep(0.01)
        return item

    for _ in range(3):
        monitored = monitor.pass_over(range(SLICED_ITEMS + 1), 0)
        with monitored as items:
            results = [work(item) for item in items]
        monitored.settle(results)
        assert monitored.ended is not can_start
        assert len(results) == (SLICED_ITEMS + 1 if can_start else monitored.taken)
    assert len(jobs) == (1 if can_start else 3)
    monitor.close()
    jobs[0]()  # is over at once
