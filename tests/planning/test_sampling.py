"""The sample: loses no item, runs none twice, and measures what the choice needs."""

from __future__ import annotations

import hashlib
import pickle
import threading
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amorsize.planning.clocks import Clocks
from amorsize.planning.gil_probe import GilProbe
from amorsize.planning.pickling import measure_payload
from amorsize.planning.sampling import (
    Sample,
    draw_sample,
    extend_sample,
    sample_together,
)


class FakeTime:
    """A clock that moves only when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def clocks(self) -> Clocks:
        zero = lambda: 0.0  # noqa: E731  # a clock that stands
        return Clocks(
            wall=self,
            epoch=lambda: 5.0,
            thread_cpu=zero,
            process_cpu=zero,
            usage=lambda: (0, 0, 0.0),
            peak_bytes=lambda: 0,
        )


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
    sample = draw_sample(
        func, iterator, size, return_exceptions=return_exceptions, budget_seconds=1e9
    )
    assert calls == sample.items
    assert sample.items + list(iterator) == items
    assert len(sample.items) <= size
    assert len(sample.item_seconds) == len(sample.items) == len(sample.input_seconds)
    failed = {index for index, _, _ in sample.failures}
    assert failed == {index for index in failing if index < len(sample.items)}
    if return_exceptions:
        assert len(sample.results) == len(sample.items)
        assert all(isinstance(sample.results[index], ValueError) for index in failed)
    else:
        assert len(failed) <= 1
        assert failed <= {len(sample.items) - 1}
        assert sample.results == [item * 2 for item in sample.items[: len(sample.results)]]
        assert len(sample.results) == len(sample.items) - len(failed)
    assert sample.exhausted == (len(items) < size and (return_exceptions or not failed))


def test_an_endless_input_is_consumed_by_the_sample_alone() -> None:
    """Length is never learned by consuming."""
    numbers = count()
    sample = draw_sample(abs, numbers, 3)
    assert (sample.items, next(numbers), sample.exhausted) == ([0, 1, 2], 3, False)


def test_stops_once_the_budget_is_spent() -> None:
    """A slow item ends the sample: it has told enough."""
    fake = FakeTime()

    def slow(item: float) -> None:
        fake.now += item

    iterator = iter([0.01, 0.01, 0.04, 0.01])
    sample = draw_sample(slow, iterator, 4, clocks=fake.clocks(), probe=False)
    assert sample.items == [0.01, 0.01, 0.04]
    assert sample.seconds == pytest.approx(0.06)
    assert sample.item_seconds == pytest.approx([0.01, 0.01, 0.04])
    assert sample.started_at == 5.0
    extend_sample(sample, slow, iterator, 4, clocks=fake.clocks(), probe=False)
    assert sample.items == [0.01, 0.01, 0.04, 0.01]
    assert sample.exhausted


def test_time_of_the_input_is_apart() -> None:
    """Producing an item is not calling the function."""
    fake = FakeTime()

    def produce() -> Iterator[int]:
        for item in range(3):
            fake.now += 2.0
            yield item

    sample = draw_sample(abs, produce(), 2, clocks=fake.clocks())
    assert sample.input_seconds == [2.0, 2.0]
    assert sample.seconds == 0.0


def test_a_clock_that_goes_back_gives_no_negative_time() -> None:
    """Durations are clamped."""
    fake = FakeTime()

    def back(item: int) -> None:
        fake.now -= 1.0

    sample = draw_sample(back, iter([1, 2]), 2, clocks=fake.clocks())
    assert sample.item_seconds == [0.0, 0.0]


def test_failure_has_the_users_own_traceback() -> None:
    """The text starts in the user's function, not in ours."""

    def broken(item: int) -> None:
        raise KeyError("missing")

    sample = draw_sample(broken, iter([7, 8]), 5)
    [(index, error, text)] = sample.failures
    assert (index, type(error), sample.items, sample.results) == (0, KeyError, [7], [])
    assert "in broken" in text
    assert "extend_sample" not in text


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_stops_the_program_is_kept(stop: type[BaseException]) -> None:
    """The caller tells its events first, and raises it then."""

    def func(item: int) -> int:
        if item == 1:
            raise stop
        return item

    sample = draw_sample(func, iter(range(5)), 5, return_exceptions=True)
    assert type(sample.interrupted) is stop
    assert (sample.items, sample.results, sample.failures) == ([0, 1], [0], [])


def test_input_that_raises_is_kept_apart() -> None:
    """What was taken before stays in the sample."""

    def broken() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    sample = draw_sample(abs, broken(), 5)
    assert (sample.items, sample.results) == ([1], [1])
    assert isinstance(sample.input_error, OSError)
    assert not sample.exhausted


def test_stop_iteration_of_the_function_is_a_failure() -> None:
    """It is not taken for the end of the input."""

    def func(item: int) -> int:
        raise StopIteration

    sample = draw_sample(func, iter([1, 2]), 2, return_exceptions=True)
    assert [type(error) for _, error, _ in sample.failures] == [StopIteration] * 2
    assert not sample.exhausted


def test_waiting_is_seen() -> None:
    """A function that sleeps gives up the CPU, at least once a call."""
    sample = draw_sample(time.sleep, iter([0.01] * 3), 3)
    assert sample.cpu_seconds < 0.5 * sample.seconds
    switches = sample.voluntary_switches
    assert switches is None or switches >= len(sample.items) >= 2


def burn(rounds: int) -> int:
    return sum(number * number for number in range(rounds))


def test_trivial_functions_start_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe is for slow functions alone."""
    monkeypatch.setattr(GilProbe, "start", lambda self: pytest.fail("started"))
    fake = FakeTime()
    assert draw_sample(abs, iter(range(5)), 5, clocks=fake.clocks()).gil_share is None


def test_probe_tells_who_holds_the_gil() -> None:
    """Hashing a large buffer lets the other thread tick, computing in Python does not."""
    buffer = bytes(8 << 20)

    def sha(_: int) -> bytes:
        return hashlib.sha256(buffer).digest()

    # A busy machine may take the probe's ticks away now and then: the best of a few counts.
    held = [draw_sample(burn, iter([60_000] * 6), 6, budget_seconds=1).gil_share for _ in range(3)]
    free = [draw_sample(sha, iter(range(4)), 4, budget_seconds=1).gil_share for _ in range(5)]
    assert min(share for share in held if share is not None) < 0.25
    assert max(share for share in free if share is not None) >= 0.25


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
    assert ended.wait(10)
    thread.join()
    assert probe.share() is None


def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can start, the sample goes on without the probe."""

    def refuse(*_: Any) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("amorsize.workers.thread_cache._thread.start_new_thread", refuse)
    monkeypatch.setattr("amorsize.workers.thread_cache._idle", [])
    sample = draw_sample(time.sleep, iter([0.003] * 3), 3)
    assert (sample.gil_share, len(sample.results)) == (None, 3)


def test_payload_sizes() -> None:
    """Sizes of item and result, and of a function that closes over data."""
    data = bytes(100_000)

    def func(item: bytes) -> bytes:
        return data[: len(item) // 2]

    payload = measure_payload(draw_sample(func, iter([bytes(5000)] * 3), 3), func)
    assert payload.problem is None
    assert payload.function_bytes > 100_000
    assert 1_600 <= payload.item_bytes < 5_200  # one object three times: pickled once
    assert payload.result_bytes > 0


def test_payload_is_bounded() -> None:
    """A huge object is pickled in part, and its size is still about right."""
    huge = bytearray(8 << 20)
    payload = measure_payload(Sample(items=[huge], results=[[huge]]), len, limit_bytes=1 << 20)
    assert payload.item_bytes >= 8 << 20
    assert payload.result_bytes > 1 << 20


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("not me")


@pytest.mark.parametrize(
    ("sample", "what"),
    [
        (Sample(items=[Unpicklable()], results=[1]), r"an item \(Unpicklable\)"),
        (Sample(items=[1], results=[threading.Lock()]), r"a result \(lock\)"),
    ],
)
def test_payload_says_what_cannot_be_pickled(sample: Sample, what: str) -> None:
    """The kind of object and the pickler's own words."""
    payload = measure_payload(sample, len)
    assert payload.problem is not None
    with pytest.raises(TypeError, match=what + " cannot be pickled: TypeError: "):
        raise TypeError(payload.problem)


def test_payload_of_a_function_that_closes_over_a_lock() -> None:
    """Even cloudpickle cannot carry it."""
    lock = threading.Lock()
    payload = measure_payload(Sample(items=[1]), lambda item: lock)
    assert payload.problem is not None
    assert payload.problem.startswith("the function (")


def test_lambdas_and_local_classes_can_be_pickled() -> None:
    """What plain pickle refuses is tried with cloudpickle."""

    class Local:
        pass

    with pytest.raises(Exception, match="local"):
        pickle.dumps(Local())
    payload = measure_payload(Sample(items=[Local()], results=[lambda: 1]), lambda item: item)
    assert payload.problem is None
    assert min(payload.function_bytes, payload.item_bytes, payload.result_bytes) > 50


def test_failed_items_are_no_results() -> None:
    """Exceptions in place do not count as what crosses."""

    def func(item: int) -> int:
        raise ValueError(item)

    sample = draw_sample(func, iter([1, 2]), 2, return_exceptions=True)
    assert measure_payload(sample, abs).result_bytes == 0


def test_switches_of_both_kinds_are_counted() -> None:
    """What was given up and what was taken away, call by call."""
    readings = iter([(1, 10, 0.0), (4, 12, 0.5), (9, 20, 1.0), (10, 20, 1.0)])
    fake = FakeTime()
    clocks = fake.clocks()._replace(usage=lambda: next(readings))

    def pause(item: int) -> int:
        fake.now += 1e-3
        return item

    # The input takes its time, too, and what is counted meanwhile is not the calls'.
    sample = draw_sample(pause, map(pause, [1, 2]), 2, clocks=clocks)
    assert (sample.voluntary_switches, sample.involuntary_switches) == (4, 2)
    assert sample.cpu_seconds == 0.5  # of a child process


def test_ticks_in_quick_succession_are_a_free_gil() -> None:
    """On a busy machine there are few, but where the GIL is held there are none."""
    probe = GilProbe(time.perf_counter)
    probe.leave(0.0, 0.05)
    probe._ticks, probe._quick = 24, 21
    assert probe.share() == pytest.approx(0.4375)
    probe._ticks, probe._quick = 24, 3
    assert probe.share() == pytest.approx(0.144)
    probe._ticks, probe._quick = 2, 2
    assert probe.share() == pytest.approx(0.012)


def test_very_short_calls_are_timed_together() -> None:
    """The clock takes longer than they do; nothing is lost, and nothing runs twice."""
    calls: list[int] = []
    numbers = count()
    sample = draw_sample(calls.append, numbers, 5)
    sample_together(sample, calls.append, numbers)
    assert sample.together >= 4  # on a busy machine a pause looks like a long call
    assert calls == sample.items == list(range(5 + sample.together))
    assert next(numbers) == len(sample.items) == len(sample.results)
    assert 0 < sample.together_seconds < sample.all_seconds
    assert len(sample.item_seconds) == 5


def test_slow_calls_are_not_timed_together() -> None:
    """They tell enough, one by one."""
    fake = FakeTime()

    def slow(item: int) -> None:
        fake.now += 1e-4

    numbers = count()
    sample = draw_sample(slow, numbers, 5, clocks=fake.clocks())
    sample_together(sample, slow, numbers, clocks=fake.clocks())
    assert (sample.together, next(numbers)) == (0, 5)


def test_calls_that_turn_out_long_are_not_timed_together_to_the_end() -> None:
    """As few of them as were short before, at most; none is taken that is not called."""
    fake = FakeTime()

    def work(item: int) -> int:
        fake.now += 1e-7 if item < 20 else 0.02
        return item

    numbers = count()
    sample = draw_sample(work, numbers, 5, clocks=fake.clocks())
    sample_together(sample, work, numbers, clocks=fake.clocks())
    assert sample.results == sample.items == list(range(len(sample.items)))
    assert 20 < len(sample.items) <= 40
    assert next(numbers) == len(sample.items)
    assert not sample.exhausted


@pytest.mark.parametrize("at", [5, 6, 40, 200])
def test_an_input_that_fails_among_calls_that_are_timed_together(at: int) -> None:
    """What came before it is called, and its error kept."""

    def failing() -> Iterator[int]:
        yield from range(at)
        raise OSError(at)

    numbers = failing()
    sample = draw_sample(abs, numbers, 5)
    sample_together(sample, abs, numbers)
    assert isinstance(sample.input_error, OSError)
    assert sample.results == sample.items == list(range(at))
    assert not sample.failures
    assert not sample.exhausted


def test_a_failure_among_calls_that_are_timed_together_is_kept() -> None:
    """With its index; the results before it stay."""

    def func(item: int) -> int:
        if item == 50:
            raise KeyError(item)
        return item

    numbers = count()
    sample = draw_sample(func, numbers, 5)
    sample_together(sample, func, numbers)
    [(index, error, text)] = sample.failures
    assert (index, type(error), sample.results) == (50, KeyError, list(range(50)))
    assert "in func" in text
    assert "sample_together" not in text


def test_a_call_in_progress_is_taken_as_one_that_ends_now() -> None:
    """What another thread sees of it; and it can have no further item taken."""
    sample = Sample()
    seen: list[Sample | None] = []

    def func(item: int) -> int:
        assert sample.running is not None
        began, before = sample.running
        seen.append(sample.so_far(began + 2.0, before.cpu + 1.5, before.process_cpu))
        assert sample.close() == 1
        return item

    assert sample.so_far(1.0, 1.0, 1.0) is None
    numbers = count()
    draw_sample(func, numbers, 5, sample=sample)
    [snapshot] = seen
    assert snapshot is not None
    assert (snapshot.items, snapshot.item_seconds) == ([0], [2.0])
    assert (snapshot.seconds, snapshot.cpu_seconds) == pytest.approx((2.0, 1.5))
    assert (sample.items, next(numbers)) == ([0], 1)


def test_the_sample_ends_where_the_answer_is_clear() -> None:
    """Two slow calls that agree are enough: all other cores idle meanwhile."""
    sample = draw_sample(time.sleep, iter([0.02] * 5), 5)
    assert len(sample.items) <= 3
    fake = FakeTime()

    def differing(item: float) -> None:
        fake.now += item

    sample = draw_sample(
        differing, iter([0.004, 0.016, 0.004, 0.016, 0.004]), 5, clocks=fake.clocks()
    )
    assert len(sample.items) == 5
