"""The first items: none is lost, none runs twice, and they are measured as the choice needs."""

from __future__ import annotations

import operator
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any

import pytest
from fake_time import FakeTime
from hypothesis import given
from hypothesis import strategies as st
from waiting import PATIENCE, wait_until

from amorsize.planning.clocks import Clocks, Reading
from amorsize.planning.gil_probe import GilProbe
from amorsize.planning.observations import Sample
from amorsize.running.first_items import TOGETHER_SLICE_ITEMS, FirstItems
from amorsize.running.input import Input

KEPT = ("return_exceptions", "clocks", "weighs_results")
MB = 1_000_000


def measured(func: Any, data: Any, size: int, **options: Any) -> FirstItems:
    """Measure the first items of an input."""
    kept = {name: options.pop(name) for name in KEPT if name in options}
    first = FirstItems(func, Input(data), **kept)
    first.measure(size, **options)
    return first


@given(
    items=st.lists(st.integers(), max_size=12),
    size=st.integers(1, 8),
    failing=st.sets(st.integers(0, 11)),
    return_exceptions=st.booleans(),
)
def test_loses_none_and_runs_none_twice(
    items: list[int], size: int, failing: set[int], return_exceptions: bool
) -> None:
    """What was taken, followed by what is left in the iterator, is the input."""
    calls: list[int] = []

    def func(item: int) -> int:
        calls.append(item)
        if len(calls) - 1 in failing:
            raise ValueError(item)
        return item * 2

    iterator = (item for item in items)
    first = measured(func, iterator, size, return_exceptions=return_exceptions, budget_seconds=1e9)
    assert calls == first.items
    assert first.items + list(iterator) == items
    assert len(first.items) <= size
    assert len(first.sample.item_seconds) == len(first.items) == len(first.sample.input_seconds)
    failed = {failure.index for failure in first.failures}
    assert failed == {index for index in failing if index < len(first.items)}
    if return_exceptions:
        assert len(first.results) == len(first.items)
        assert all(isinstance(first.results[index], ValueError) for index in failed)
    else:
        assert len(failed) <= 1
        assert failed <= {len(first.items) - 1}
        assert first.results == [item * 2 for item in first.items[: len(first.results)]]
        assert len(first.results) == len(first.items) - len(failed)
    assert first.sample.exhausted == (len(items) < size and (return_exceptions or not failed))


def test_an_endless_input_is_consumed_by_the_sample_alone() -> None:
    """Length is never learned by consuming."""
    numbers = count()
    first = measured(abs, numbers, 3)
    assert (first.items, next(numbers), first.sample.exhausted) == ([0, 1, 2], 3, False)


def test_stops_once_the_budget_is_spent() -> None:
    """A slow item ends the sample: it has shown enough."""
    fake = FakeTime()

    def slow(item: float) -> None:
        fake.now += item

    iterator = iter([0.01, 0.01, 0.04, 0.01])
    first = measured(slow, iterator, 4, clocks=fake.clocks(), probe=False)
    assert first.items == [0.01, 0.01, 0.04]
    assert first.sample.seconds == pytest.approx(0.06)
    assert first.sample.item_seconds == pytest.approx([0.01, 0.01, 0.04])
    outcome = first.outcome()
    assert outcome is not None
    assert outcome.started_at == 5.0
    first.measure(4, probe=False)
    assert first.items == [0.01, 0.01, 0.04, 0.01]
    assert first.sample.exhausted


def test_the_time_of_the_input_is_measured_separately() -> None:
    """Producing an item is not calling the function."""
    fake = FakeTime()

    def produce() -> Iterator[int]:
        for item in range(3):
            fake.now += 2.0
            yield item

    first = measured(abs, produce(), 2, clocks=fake.clocks())
    assert first.sample.input_seconds == [2.0, 2.0]
    assert first.sample.seconds == 0.0


def test_a_clock_that_goes_back_gives_no_negative_time() -> None:
    """Durations are clamped."""
    fake = FakeTime()

    def back(item: int) -> None:
        fake.now -= 1.0

    first = measured(back, iter([1, 2]), 2, clocks=fake.clocks())
    assert first.sample.item_seconds == [0.0, 0.0]


def test_failure_has_the_users_own_traceback() -> None:
    """The text starts in the user's function, not in ours."""

    def broken(item: int) -> None:
        raise KeyError("missing")

    first = measured(broken, iter([7, 8]), 5)
    [failure] = first.failures
    assert (failure.index, type(failure.error)) == (0, KeyError)
    assert (first.items, first.results) == ([7], [])
    assert "in broken" in failure.traceback
    assert "call_each" not in failure.traceback


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_stops_the_program_is_kept(stop: type[BaseException]) -> None:
    """The caller emits its events first, and raises it then."""

    def func(item: int) -> int:
        if item == 1:
            raise stop
        return item

    first = measured(func, iter(range(5)), 5, return_exceptions=True)
    assert type(first.interrupted) is stop
    assert (first.items, first.results, first.failures) == ([0, 1], [0], [])


def test_an_error_of_the_input_is_kept_separately() -> None:
    """What was taken before stays in the sample."""

    def broken() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    first = measured(abs, broken(), 5)
    assert (first.items, first.results) == ([1], [1])
    assert "the input raised OSError" in first.stopped
    assert not first.sample.exhausted


def test_stop_iteration_of_the_function_is_a_failure() -> None:
    """It is not taken for the end of the input."""

    def func(item: int) -> int:
        raise StopIteration

    first = measured(func, iter([1, 2]), 2, return_exceptions=True)
    assert [type(failure.error) for failure in first.failures] == [StopIteration] * 2
    assert not first.sample.exhausted


def test_waiting_is_seen() -> None:
    """A function that sleeps gives up the CPU, at least once a call."""
    first = measured(time.sleep, iter([0.01] * 3), 3)
    assert first.sample.cpu_seconds < 0.5 * first.sample.seconds
    switches = first.sample.voluntary_switches
    assert switches is None or switches >= len(first.items) >= 2


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Iterator[GilProbe]:
    """A probe that runs as long as the test."""
    probe = GilProbe(time.perf_counter)
    assert probe.start()
    probe.enter(time.perf_counter())
    yield probe
    probe.stop()


def test_trivial_functions_start_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe is for slow functions alone."""
    monkeypatch.setattr(GilProbe, "start", lambda self: pytest.fail("started"))
    fake = FakeTime()
    assert measured(abs, iter(range(5)), 5, clocks=fake.clocks()).sample.gil_share is None


def test_the_probe_ticks_while_a_call_lets_go_of_the_gil(probe: GilProbe) -> None:
    """As one that waits, until it has."""
    first = measured(lambda _: wait_until(lambda: probe._ticks >= 30, "ticks"), [0], 1)
    assert first.results == [None]


def test_the_probe_does_not_tick_while_a_call_holds_the_gil(probe: GilProbe) -> None:
    """As one that computes in C, and lets no other thread in."""
    ticks = partial(getattr, probe, "_ticks")
    # In one step of the interpreter: between two of them another thread is let in.
    steps: list[Callable[[], int]] = [ticks, partial(sum, range(2_000_000)), ticks]

    def hold(_: int) -> int:
        before, _, after = map(operator.call, steps)
        return after - before

    wait_until(lambda: ticks() > 0, "the probe")
    assert measured(hold, range(2), 2, budget_seconds=1e9).results == [0, 0]
    before = ticks()
    wait_until(lambda: ticks() > before, "the probe is still there")


def test_probe_ends_with_the_sample() -> None:
    """No thread of ours runs on."""
    probe = GilProbe(time.perf_counter)
    ended = threading.Event()

    def watched() -> None:
        probe._run()
        ended.set()

    thread = threading.Thread(target=watched)
    thread.start()
    probe.stop()
    probe.stop()
    assert ended.wait(PATIENCE)
    thread.join()
    assert probe.share() is None


def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can start, the sample goes on without the probe."""

    def refuse(*_: Any) -> int:
        raise RuntimeError("can't start new thread")

    # Not its start alone: another test's thread may become idle at any moment.
    monkeypatch.setattr("amorsize.workers.thread_cache._Thread.run", refuse)
    first = measured(time.sleep, iter([0.003] * 3), 3)
    assert (first.sample.gil_share, len(first.results)) == (None, 3)


def test_switches_of_both_kinds_are_counted() -> None:
    """What was given up and what was taken away, call by call."""
    readings = iter([(1, 10, 0.0), (4, 12, 0.5), (9, 20, 1.0), (10, 20, 1.0)])
    fake = FakeTime()
    clocks = fake.clocks()._replace(usage=lambda: next(readings))

    def pause(item: int) -> int:
        fake.now += 1e-3
        return item

    # The input takes its time, too, and what is counted meanwhile is not the calls'.
    first = measured(pause, map(pause, [1, 2]), 2, clocks=clocks)
    assert (first.sample.voluntary_switches, first.sample.involuntary_switches) == (4, 2)
    assert first.sample.cpu_seconds == 0.5  # of a child process


def test_very_short_calls_are_timed_together() -> None:
    """The clock takes longer than they do; nothing is lost, and nothing runs twice."""
    calls: list[int] = []
    numbers = count()
    first = measured(calls.append, numbers, 5)
    first.measure_together(256)
    assert first.sample.together >= 4  # on a busy machine a pause looks like a long call
    assert calls == first.items == list(range(5 + first.sample.together))
    assert next(numbers) == len(first.items) == len(first.results)
    assert 0 < first.sample.together_seconds < first.sample.all_seconds
    assert len(first.sample.item_seconds) == 5


def test_calls_that_turn_out_long_are_not_timed_together_to_the_end() -> None:
    """As few of them as were short before, at most; none is taken that is not called."""
    fake = FakeTime()

    def work(item: int) -> int:
        fake.now += 1e-7 if item < 20 else 0.02
        return item

    numbers = count()
    first = measured(work, numbers, 5, clocks=fake.clocks())
    first.measure_together(256)
    assert first.results == first.items == list(range(len(first.items)))
    assert 20 < len(first.items) <= 40
    assert next(numbers) == len(first.items)
    assert not first.sample.exhausted


@pytest.mark.parametrize("at", [5, 6, 40, 200])
def test_an_input_that_fails_among_calls_that_are_timed_together(at: int) -> None:
    """What came before it is called, and its error kept."""

    def failing() -> Iterator[int]:
        yield from range(at)
        raise OSError(at)

    numbers = failing()
    first = measured(abs, numbers, 5)
    first.measure_together(256)
    assert "the input raised OSError" in first.stopped
    assert first.results == first.items == list(range(at))
    assert not first.failures
    assert not first.sample.exhausted


def test_a_failure_among_calls_that_are_timed_together_is_kept() -> None:
    """With its index; the results before it stay."""

    def func(item: int) -> int:
        if item == 50:
            raise KeyError(item)
        return item

    numbers = count()
    first = measured(func, numbers, 5)
    first.measure_together(256)
    [failure] = first.failures
    assert (failure.index, type(failure.error)) == (50, KeyError)
    assert "in func" in failure.traceback
    assert "call_all" not in failure.traceback


def test_a_call_in_progress_is_taken_as_one_that_ends_now() -> None:
    """What another thread sees of it; and it can have no further item taken."""
    seen: list[Sample | None] = []

    def func(item: int) -> int:
        cpu, process_cpu = time.thread_time(), time.process_time()
        seen.append(first.so_far(time.perf_counter() + 2.0, cpu + 1.5, process_cpu))
        assert first.close() == 1
        return item

    numbers = count()
    first = FirstItems(func, Input(numbers))
    assert first.so_far(1.0, 1.0, 1.0) is None
    first.measure(5)
    [snapshot] = seen
    assert snapshot is not None
    assert (snapshot.taken, len(snapshot.item_seconds)) == (1, 1)
    assert snapshot.seconds == snapshot.item_seconds[0] >= 2.0
    assert snapshot.cpu_seconds >= 1.5
    assert (first.items, next(numbers)) == ([0], 1)


def test_the_sample_ends_where_the_answer_is_clear() -> None:
    """Two slow calls that agree are enough: all other cores idle meanwhile."""
    first = measured(time.sleep, iter([0.02] * 5), 5)
    assert len(first.items) <= 3
    fake = FakeTime()

    def differing(item: float) -> None:
        fake.now += item

    first = measured(differing, iter([0.004, 0.016, 0.004, 0.016, 0.004]), 5, clocks=fake.clocks())
    assert len(first.items) == 5


def test_items_run_here_until_something_is_true() -> None:
    """Their times say nothing of those to come: other cores are busy starting workers."""
    fake = FakeTime()

    def work(item: int) -> int:
        fake.now += 0.0006
        return item

    numbers = count()
    first = FirstItems(work, Input(numbers), clocks=fake.clocks())
    first.measure(2)
    asked: list[float] = []
    assert first.work_until(100, lambda: bool(asked.append(fake.now)) or len(asked) == 3) == 6
    assert first.results == first.items == list(range(8))
    assert next(numbers) == 8
    assert len(first.sample.item_seconds) == 2
    assert first.sample.other_seconds == pytest.approx(0.0036)
    assert first.sample.taken == 8


def test_times_that_hold_no_more_are_forgotten() -> None:
    """The items, and how long they took in all, are not."""
    first = measured(abs, iter([-1, -2, -3]), 2)
    seconds = first.sample.all_seconds
    first.forget_times()
    assert first.sample.item_seconds == []
    assert (first.sample.taken, first.sample.all_seconds) == (2, seconds)
    first.measure(5)
    assert first.results == [1, 2, 3]
    assert len(first.sample.item_seconds) == 1


@pytest.mark.parametrize("heavy", ["items", "results"])
def test_few_heavy_items_are_measured(heavy: str) -> None:
    """They, and their results, are held until it is planned what becomes of the others."""
    numbers = [12 * MB] * 9
    if heavy == "items":
        first = measured(len, map(bytes, numbers), 5)
    else:
        first = measured(bytes, iter(numbers), 5, weighs_results=True)
    assert len(first.items) == 3
    weights = first.sample.items_bytes, first.sample.results_bytes
    assert 36 * MB < sum(weights) < 37 * MB
    assert (weights[0] > weights[1]) == (heavy == "items")
    first.measure(5)  # one at least, so that whoever asked for more gets on
    assert len(first.items) == 4
    assert first.work_until(5, lambda: False) == 1
    first.forget_times()
    assert first.sample.items_bytes + first.sample.results_bytes > 60 * MB


@pytest.mark.parametrize("heavy", ["items", "results"])
def test_few_heavy_items_are_measured_together(heavy: str) -> None:
    """As many as fit."""
    clocks = Clocks(wall=lambda: 0.0)  # weights alone end the measuring
    numbers = [1] * 20 + [2 * MB] * 200
    if heavy == "items":
        first = FirstItems(len, Input(map(bytes, numbers)), clocks=clocks)
    else:
        first = FirstItems(bytes, Input(iter(numbers)), weighs_results=True, clocks=clocks)
    first.measure_together(220)
    assert 36 <= len(first.items) <= 36 + 2 * TOGETHER_SLICE_ITEMS
    assert len(first.results) == len(first.items) == first.sample.together


def test_items_in_memory_and_results_that_stay_are_not_weighed() -> None:
    """Nothing is held that would not be there without the run."""
    first = measured(bytes, [12 * MB] * 5, 5)
    assert (len(first.items), first.sample.items_bytes, first.sample.results_bytes) == (5, 0, 0)


def test_items_and_results_are_let_go_of_once_they_are_delivered() -> None:
    """The run may go on for days."""
    first = measured(str, iter([1, 2]), 2)
    outcome = first.outcome()
    first.release()
    assert outcome is not None
    assert outcome.results == ["1", "2"]
    assert (first.items, first.results, first.item_type, first.sample.taken) == ([], [], int, 2)


class Queue:
    """A thread's time in the queue for a CPU, moved by hand."""

    def __init__(self, waited: list[float]) -> None:
        self.waited = waited
        self.mark: float | None = None

    def begin(self) -> float | None:
        before, self.mark = self.mark, self.waited[0]
        return None if before is None else self.waited[0] - before


def test_only_the_queue_in_calls_counts() -> None:
    """The input may have waited for a CPU as well; and very short calls are not asked about."""
    now, waited = FakeTime(cores=0.0), [0.0]

    def produce() -> Iterator[float]:
        for seconds in (0.5, 0.25, 1e-6):
            now.now += 1.0
            waited[0] += 1.0  # while the item was made
            yield seconds

    def call(seconds: float) -> None:
        now.now += seconds
        waited[0] += seconds / 2

    first = FirstItems(call, Input(produce()), clocks=now.clocks())
    first.thread = Queue(waited)  # type: ignore[assignment]  # what is asked of it
    first.measure(5, budget_seconds=1e9, probe=False)
    assert first.sample.seconds == pytest.approx(0.75, abs=1e-5)
    assert first.sample.queued_seconds == pytest.approx(0.375, abs=1e-5)
    in_progress = FirstItems(abs, Input([1]))
    in_progress.sample.queued_seconds = 0.25
    in_progress._in_progress = 1.0, Reading(0.0, 0.0, 0, 0, 0.0)
    sample = in_progress.so_far(2.0, 0.1, 0.1, 0.5)
    assert sample is not None
    assert sample.queued_seconds == 0.75


@pytest.mark.parametrize("from_start", [True, False])
def test_the_queue_is_known_of_all_calls_or_of_none(from_start: bool) -> None:
    """Where it was read for the later ones alone, the first ones would seem to have waited."""
    now, waited = FakeTime(cores=0.0), [0.0]
    queue = Queue(waited)

    def call(seconds: float) -> None:
        now.now += seconds
        waited[0] += seconds / 2
        first.thread = queue  # type: ignore[assignment]  # what is asked of it

    first = FirstItems(call, Input([0.5, 0.25]), clocks=now.clocks())
    if from_start:
        first.thread = queue  # type: ignore[assignment]  # what is asked of it
    first.measure(5, budget_seconds=1e9, probe=False)
    assert first.sample.queued_seconds == (pytest.approx(0.375) if from_start else None)
