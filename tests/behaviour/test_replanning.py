"""Runs that begin serially, and go over to workers once their items turn out long.

When they do is decided by script (:mod:`planned`); that they do is real.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from fake_time import FakeTime
from planned import ALONE, PROCESSES, THREADS, InTurn, PlanWith
from waiting import PATIENCE, wait_until

import amorsize
from amorsize.errors import ExecutionTimeoutError
from amorsize.hooks import HookContext, HookEvent, HookManager
from amorsize.planning.known_functions import KNOWN
from amorsize.planning.observations import Observations
from amorsize.planning.plan import Choice, StartWorkers
from amorsize.planning.workload import Workload
from amorsize.testing import RecordingHook, assert_contract
from amorsize.workers.pass_monitor import SLICED_ITEMS

SHORT, LONG = 3000, 60
"""Items that take nothing, and after them items that wait."""


@pytest.fixture(autouse=True)
def no_warm_workers() -> None:
    amorsize.shutdown()


class Work:
    """Returns what it is called with; from some item on, calls are long."""

    def __init__(self, since: int = SHORT) -> None:
        self.since = since
        self.calls: list[int] = []
        self.threads: set[int] = set()
        self.last = lambda: time.sleep(0.002)

    def __call__(self, item: int) -> int:
        self.calls.append(item)
        if item >= self.since:
            self.threads.add(threading.get_ident())
            self.last()
        return item


class Grows(InTurn):
    """Has a run begin alone, and go over to threads once its work is long.

    A long call lasts until what is to be seen has happened: in a serial pass, until the planner was
    asked about it; on threads, until three of them are at work.

    Args:
        work: what the run calls.
        in_slices: whether a serial pass is so short that it is looked at between its items only,
            and not while one is in progress.
    """

    def __init__(self, work: Work, *choices: Choice, in_slices: bool) -> None:
        super().__init__(*(choices or (ALONE, THREADS)), at=self._is_long)
        self._work = work
        self._in_slices = in_slices
        self._asked = threading.Event()
        self._three_are_at_work = threading.Event()
        work.last = self._last

    def _is_long(self, seen: Observations) -> bool:
        is_long = bool(self._work.threads)
        if is_long and seen.deviating_seconds:
            self._asked.set()
        return is_long

    def _last(self) -> None:
        if self.chosen is None or self.chosen.is_serial:
            time.sleep(0.002)
            assert self._in_slices or self._asked.wait(PATIENCE)
            return
        if len(self._work.threads) > 2:
            self._three_are_at_work.set()
        assert self._three_are_at_work.wait(PATIENCE)


class Grow(Protocol):
    """The fixture :func:`grow`."""

    def __call__(self, work: Work, *choices: Choice, in_slices: bool = False) -> Work: ...


@pytest.fixture
def grow(plan_with: PlanWith) -> Grow:
    """Has the run of some work grow."""

    def plan_for(work: Work, *choices: Choice, in_slices: bool = False) -> Work:
        short = work.since + LONG <= SLICED_ITEMS
        plan_with(Grows(work, *choices, in_slices=in_slices or short))
        return work

    return plan_for


def posted(recorder: RecordingHook) -> HookContext:
    (post,) = recorder.of(HookEvent.POST_EXECUTE)
    return post


def assert_grown(recorder: RecordingHook, *, executor: str = "thread") -> None:
    """The contract holds, and the run went over to workers, of which several worked."""
    assert_contract(recorder.contexts)
    metadata = posted(recorder).metadata
    assert (metadata["executor_type"], metadata["changed_to"]) == ("serial", executor)
    starts = recorder.of(HookEvent.ON_WORKER_START)
    ends = recorder.of(HookEvent.ON_WORKER_END)
    assert len(starts) > 2
    assert {each.metadata["exit_reason"] for each in ends} == {"finished"}
    sampled = [
        each.metadata["chunk_start"]
        for each in recorder.of(HookEvent.ON_CHUNK_COMPLETE)
        if each.metadata.get("sampled")
    ]
    assert sampled[0] == 0
    assert len(sampled) > 1
    assert posted(recorder).n_jobs > 1


def items(count: int) -> Iterator[int]:
    yield from range(count)


KINDS: dict[str, Callable[[int], Any]] = {
    "list": lambda count: list(range(count)),
    "range": range,
    "set": lambda count: set(range(count)),
    "generator": items,
}


@pytest.mark.parametrize("short", [400, SHORT, 200_000])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_with_observers_grows(
    hooks: HookManager,
    recorder: RecordingHook,
    kind: str,
    short: int,
    grow: Grow,
) -> None:
    """Whatever the input, wherever in it; each item is called once, the results are in order."""
    work = grow(Work(since=short))
    results = amorsize.execute(work, KINDS[kind](short + LONG), hooks=hooks)
    assert results == list(range(short + LONG))
    assert sorted(work.calls) == results
    assert_grown(recorder)
    assert len(work.threads) > 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_without_observers_grows(kind: str, grow: Grow) -> None:
    """As it does with hooks; what it went over to is in the result."""
    work = grow(Work())
    results, plan = amorsize.execute(
        work, KINDS[kind](SHORT + LONG), return_optimization_result=True
    )
    assert results == list(range(SHORT + LONG))
    assert sorted(work.calls) == results
    assert len(work.threads) > 2
    assert plan.executor_type == "serial"
    assert "Threads, because" in plan.changes[0]
    assert "While running it changed. After 3," in plan.explain()


@pytest.mark.parametrize("short", [5, 6, 30, 100, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_items_that_are_long_soon_are_planned_for(
    hooks: HookManager,
    recorder: RecordingHook,
    kind: str,
    short: int,
    grow: Grow,
) -> None:
    """Short ones that were measured before show nothing of them."""
    work = grow(Work(since=short))
    results = amorsize.execute(work, KINDS[kind](short + 2 * LONG), hooks=hooks)
    assert results == list(range(short + 2 * LONG))
    assert sorted(work.calls) == results
    assert_contract(recorder.contexts)
    metadata = posted(recorder).metadata
    assert metadata.get("changed_to", metadata["executor_type"]) == "thread"
    assert len(work.threads) > 2


@pytest.mark.parametrize("kind", ["list", "generator"])
@pytest.mark.parametrize("short", [5, 60, SHORT])
def test_few_long_items_after_short_ones_are_not_left_to_one_worker(
    kind: str, short: int, grow: Grow
) -> None:
    """Also where nobody observes, and they are too few to be looked at while one is in progress."""
    work = grow(Work(since=short))
    assert amorsize.execute(work, KINDS[kind](short + LONG)) == list(range(short + LONG))
    assert len(work.threads) > 2


def test_items_that_compute_go_to_processes(
    hooks: HookManager, recorder: RecordingHook, tmp_path: Path, plan_with: PlanWith
) -> None:
    """The long ones run there, and on both."""
    here, long, asked = os.getpid(), tmp_path / "long", tmp_path / "asked"

    def is_long(seen: Observations) -> bool:
        # On a busy machine a short item deviates, too, long before.
        if long.exists() and seen.deviating_seconds:
            asked.touch()
        return long.exists()

    plan_with(InTurn(ALONE, PROCESSES, at=is_long))

    def work(item: int) -> tuple[int, int]:
        if item >= SHORT and os.getpid() == here:
            long.touch()
            wait_until(asked.exists, "a question to the planner")
        elif item >= SHORT:
            (tmp_path / f"worker {os.getpid()}").touch()
            wait_until(lambda: len([*tmp_path.glob("worker *")]) > 1, "the other worker")
        return item, os.getpid()

    results = amorsize.execute(work, range(SHORT + LONG), hooks=hooks)
    assert [item for item, _ in results] == list(range(SHORT + LONG))
    assert {pid for _, pid in results[:SHORT]} == {os.getpid()}
    assert len({pid for _, pid in results}) == 3
    assert_grown(recorder, executor="process")


@pytest.mark.parametrize("kind", ["list", "generator"])
@pytest.mark.parametrize("failing", [{7}, {SHORT - 1}, {SHORT + 1, SHORT + 3}, {SHORT + 50}])
def test_exceptions_are_in_place_before_in_and_after_the_change(
    hooks: HookManager, recorder: RecordingHook, kind: str, failing: set[int], grow: Grow
) -> None:
    """Each is reported once, with its index."""
    work = grow(Work())

    def fail(item: int) -> int:
        if work(item) in failing:
            raise KeyError(item)
        return item

    results = amorsize.execute(fail, KINDS[kind](SHORT + LONG), hooks=hooks, return_exceptions=True)
    assert [index for index, result in enumerate(results) if result != index] == sorted(failing)
    assert [repr(results[index]) for index in sorted(failing)] == [
        f"KeyError({index})" for index in sorted(failing)
    ]
    assert sorted(work.calls) == list(range(SHORT + LONG))
    assert_grown(recorder)
    errors = recorder.of(HookEvent.ON_ERROR)
    assert sum(each.metadata["failed_items"] for each in errors) == len(failing)
    assert {each.metadata["item_index"] for each in errors} <= failing
    done = {each.chunk_id: each.chunk_size for each in recorder.of(HookEvent.ON_CHUNK_COMPLETE)}
    assert all(done[each.chunk_id] == each.chunk_size for each in errors)


@pytest.mark.parametrize("after", [1, 3, 40])
def test_the_item_that_fails_is_named(
    hooks: HookManager, recorder: RecordingHook, after: int, grow: Grow
) -> None:
    """In the second sample, and after it."""
    work = grow(Work())

    def fail(item: int) -> int:
        if work(item) == SHORT + after:
            raise KeyError(item)
        return item

    with pytest.raises(KeyError) as caught:
        amorsize.execute(fail, range(SHORT + LONG), hooks=hooks)
    assert caught.value.args == (SHORT + after,)
    assert f"item {SHORT + after}" in " ".join(caught.value.__notes__)
    assert_contract(recorder.contexts)
    assert posted(recorder).metadata["status"] == "error"
    assert len(recorder.of(HookEvent.ON_ERROR)) == 1


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_grows(
    hooks: HookManager,
    recorder: RecordingHook,
    kind: str,
    ordered: bool,
    grow: Grow,
) -> None:
    """With room for the chunks of all its workers."""
    work = grow(Work())
    stream = amorsize.stream(work, KINDS[kind](SHORT + LONG), hooks=hooks, ordered=ordered)
    results = list(stream)
    if ordered:
        assert results == list(range(SHORT + LONG))
    assert sorted(results) == sorted(work.calls) == list(range(SHORT + LONG))
    assert_grown(recorder)
    assert len(work.threads) > 2


@pytest.mark.parametrize("kind", ["list", "generator"])
def test_a_coroutine_s_run_grows(
    hooks: HookManager, recorder: RecordingHook, kind: str, grow: Grow
) -> None:
    """A thread of its own drives it."""
    work = grow(Work())
    data = KINDS[kind](SHORT + LONG)
    assert asyncio.run(amorsize.aexecute(work, data, hooks=hooks)) == list(range(SHORT + LONG))
    assert_grown(recorder)
    assert len(work.threads) > 2


def test_a_size_of_chunks_that_was_asked_for_is_kept_by_workers(
    hooks: HookManager, recorder: RecordingHook, grow: Grow
) -> None:
    """Only the chunk in which the run changes, and what is measured, are of other sizes."""
    work = grow(Work(), in_slices=True)
    data = list(range(SHORT + 6 * LONG))
    assert amorsize.execute(work, data, hooks=hooks, chunksize=4) == data
    assert_grown(recorder)
    sizes = [
        each.chunk_size
        for each in recorder.of(HookEvent.ON_CHUNK_COMPLETE)
        if (each.metadata["chunk_start"] > SHORT + LONG and each.worker_id is not None)
    ]
    assert sizes.count(4) >= len(sizes) - 1


def test_one_item_that_takes_long_does_not_hide_the_others(
    hooks: HookManager, recorder: RecordingHook, plan_with: PlanWith
) -> None:
    """After a false alarm, as a busy machine gives them, the run goes on alone, and still grows."""
    latest = 0

    def hiccup(item: int) -> int:
        nonlocal latest
        latest = max(latest, item)
        if item >= SHORT or item == 1000:
            time.sleep(0.002)
        return item

    def at(seen: Observations) -> int:
        return 2 if latest >= SHORT else int(latest >= 1000)

    plan_with(InTurn(ALONE, ALONE._replace(item_seconds=1e-6), THREADS, at=at))
    data = list(range(SHORT + LONG))
    assert amorsize.execute(hiccup, data, hooks=hooks, chunksize=4) == data
    assert_contract(recorder.contexts)
    assert posted(recorder).metadata["changed_to"] == "thread"
    chunks = recorder.of(HookEvent.ON_CHUNK_COMPLETE)
    measured = [c.metadata["chunk_start"] for c in chunks if c.metadata.get("sampled")]
    assert len(measured) == 3
    assert measured[0] == 0
    assert 1000 < measured[1] < 1010
    assert SHORT < measured[2] < SHORT + 10


def test_an_earlier_run_shows_nothing_of_items_that_turn_out_long(
    hooks: HookManager, recorder: RecordingHook, grow: Grow
) -> None:
    """They are measured: they are not what they were. The next run measures them, too."""
    workload = Workload(None, 5, 100, 0.0, 1e-6, 1e-6, 1e-6)
    work = grow(Work(), *(choice._replace(workload=workload) for choice in (ALONE, THREADS)))
    KNOWN.remember(work, workload=workload, short=True)
    assert amorsize.execute(work, range(SHORT + LONG), hooks=hooks) == list(range(SHORT + LONG))
    assert_grown(recorder)
    assert (KNOWN.recall(work).workload, KNOWN.recall(work).short) == (None, False)


def test_both_choices_are_explained(capsys: pytest.CaptureFixture[str], grow: Grow) -> None:
    """On stderr, as they are made."""
    amorsize.execute(grow(Work()), range(SHORT + LONG), verbose=True)
    written = capsys.readouterr().err
    assert written.index("Serial, because") < written.index("Threads, because")


def test_a_slow_consumer_bounds_a_stream_that_has_grown(grow: Grow) -> None:
    """What is computed ahead of it is a few chunks per worker."""
    work = grow(Work(since=10), in_slices=False)
    stream = amorsize.stream(work, items(2000))
    for index, result in enumerate(stream):
        assert result == index
        if index == 200:
            break
    stream.close()  # type: ignore[attr-defined]
    assert len(work.calls) < 300


def test_closing_a_stream_that_measures_again_ends_it(
    hooks: HookManager, recorder: RecordingHook, grow: Grow
) -> None:
    """Though the call that is measured does not return."""
    work = grow(Work())
    release = threading.Event()
    inside = threading.Event()

    def hang(item: int) -> int:
        if work(item) >= SHORT + 2:
            inside.set()
            release.wait(PATIENCE)
        return item

    stream = amorsize.stream(hang, range(SHORT + 1000), hooks=hooks)
    try:
        assert next(stream) == 0
        assert inside.wait(PATIENCE)
        began = time.monotonic()
        stream.close()  # type: ignore[attr-defined]
        assert time.monotonic() - began < PATIENCE / 4
    finally:
        release.set()
    recorder.wait_for(HookEvent.POST_EXECUTE, PATIENCE)
    assert_contract(recorder.contexts)
    assert posted(recorder).metadata["status"] == "cancelled"


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_with_a_deadline_grows(
    hooks: HookManager, recorder: RecordingHook, kind: str, grow: Grow
) -> None:
    """All of the input is drawn by one thread."""
    work = grow(Work())
    drawn_by: set[int] = set()

    def drawn() -> Iterator[int]:
        for item in range(SHORT + LONG):
            drawn_by.add(threading.get_ident())
            yield item

    data = drawn() if kind == "generator" else KINDS[kind](SHORT + LONG)
    results = amorsize.execute(work, data, hooks=hooks, timeout=PATIENCE)
    assert results == list(range(SHORT + LONG))
    assert sorted(work.calls) == results
    assert_grown(recorder)
    assert drawn_by <= {threading.get_ident()}


@pytest.mark.parametrize("kind", ["list", "generator"])
def test_a_deadline_is_noticed_while_items_are_measured_again(
    hooks: HookManager, recorder: RecordingHook, kind: str, grow: Grow
) -> None:
    """The call that hangs is abandoned."""
    release = threading.Event()
    work = grow(Work())

    def hang(item: int) -> int:
        if work(item) >= SHORT + 3:
            release.wait(PATIENCE)
        return item

    began = time.monotonic()
    try:
        with pytest.raises(ExecutionTimeoutError, match="timeout=2"):
            amorsize.execute(hang, KINDS[kind](SHORT + 1000), hooks=hooks, timeout=2)
        assert time.monotonic() - began < PATIENCE / 2
    finally:
        release.set()
    assert_contract(recorder.contexts)
    assert posted(recorder).metadata["status"] == "timeout"


def test_an_item_with_a_time_limit_runs_where_it_can_be_ended(
    hooks: HookManager, recorder: RecordingHook, fake_time: FakeTime
) -> None:
    """After the first sample none is measured in this thread: the run stays as it is."""

    def work(item: int) -> int:
        if item >= SHORT:
            time.sleep(0.002)
        fake_time.now += 1e-6
        return item

    results = amorsize.execute(work, range(SHORT + 20), hooks=hooks, item_timeout=PATIENCE)
    assert results == list(range(SHORT + 20))
    assert_contract(recorder.contexts)
    assert "changed_to" not in posted(recorder).metadata


@pytest.mark.parametrize("way", [{"executor": "serial"}, {"n_jobs": 1}])
@pytest.mark.parametrize("kind", ["list", "generator"])
def test_who_asked_for_a_serial_run_keeps_it(
    hooks: HookManager, recorder: RecordingHook, way: dict[str, Any], kind: str
) -> None:
    """Nothing is measured."""
    work = Work()
    results = amorsize.execute(work, KINDS[kind](SHORT + 20), hooks=hooks, **way)
    assert results == list(range(SHORT + 20))
    assert work.threads == {threading.get_ident()}
    assert_contract(recorder.contexts)
    assert "changed_to" not in posted(recorder).metadata


def test_inside_of_a_worker_process_no_processes_take_over() -> None:
    """The workers of the outer run have the cores already."""

    def outer(item: int) -> tuple[int, set[int]]:
        def inner(number: int) -> int:
            if number >= SHORT:
                sum(range(1_000_000))
            return os.getpid()

        return os.getpid(), set(amorsize.execute(inner, iter(range(SHORT + 40))))

    for pid, inside in amorsize.execute(outer, range(2), executor="process", n_jobs=2):
        assert inside == {pid}
        assert pid != os.getpid()


@pytest.mark.parametrize("kind", ["list", "generator"])
def test_ctrl_c_in_the_second_sample_ends_the_run(
    hooks: HookManager, recorder: RecordingHook, kind: str, grow: Grow
) -> None:
    """As in the first."""
    work = grow(Work())

    def interrupt(item: int) -> int:
        # After the item at which the run was seen to have changed.
        if work(item) >= SHORT and recorder.of(HookEvent.ON_WORKER_END):
            raise KeyboardInterrupt
        return item

    with pytest.raises(KeyboardInterrupt):
        amorsize.execute(interrupt, KINDS[kind](SHORT + LONG), hooks=hooks)
    assert_contract(recorder.contexts)
    assert posted(recorder).metadata["status"] == "cancelled"
    assert work.calls == list(range(len(work.calls)))


def test_an_input_that_fails_in_the_second_sample(
    hooks: HookManager, recorder: RecordingHook, grow: Grow
) -> None:
    """What came before it is done; its error has the number of items."""
    work = grow(Work(), in_slices=True)

    def failing() -> Iterator[int]:
        yield from range(SHORT + 3)
        raise OSError("the end of the tape")

    with pytest.raises(OSError, match="the end of the tape") as caught:
        amorsize.execute(work, failing(), hooks=hooks, chunksize=4)
    assert f"after {SHORT + 3} items" in " ".join(caught.value.__notes__)
    assert_contract(recorder.contexts)
    assert posted(recorder).items_completed == SHORT + 3
    assert work.calls == list(range(SHORT + 3))
    assert recorder.of(HookEvent.ON_CHUNK_COMPLETE)[-1].metadata["sampled"]


def test_an_input_that_fails_while_short_calls_are_measured_together(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """What came before it is done."""

    def failing() -> Iterator[int]:
        yield from range(50)
        raise OSError("the end of the tape")

    for observed_by in (None, hooks):
        with pytest.raises(OSError, match="the end of the tape") as caught:
            amorsize.execute(abs, failing(), hooks=observed_by)
        assert "after 50 items" in " ".join(caught.value.__notes__)
    assert_contract(recorder.contexts)


@pytest.mark.parametrize("options", [{}, {"return_exceptions": True}])
def test_a_list_that_the_function_makes_longer(
    hooks: HookManager, recorder: RecordingHook, options: dict[str, Any], grow: Grow
) -> None:
    """What was there when the run began has its result; nothing is called twice."""
    work = grow(Work())
    data = list(range(SHORT + LONG))

    def grow(item: int) -> int:
        if len(data) < SHORT + LONG + 10:
            data.append(len(data))
        return work(item)

    results = amorsize.execute(grow, data, hooks=hooks, **options)
    assert results[: SHORT + LONG] == list(range(SHORT + LONG))
    assert sorted(work.calls) == sorted(set(work.calls))
    assert_contract(recorder.contexts)


def test_a_list_that_the_function_makes_shorter(
    hooks: HookManager, recorder: RecordingHook, grow: Grow
) -> None:
    """What it lost is not called, and nothing is called twice."""
    work = grow(Work())
    data = list(range(SHORT + LONG))

    def shrink(item: int) -> int:
        if item == SHORT:
            del data[SHORT + 40 :]
        return work(item)

    assert amorsize.execute(shrink, data, hooks=hooks) == list(range(SHORT + 40))
    assert sorted(work.calls) == sorted(set(work.calls))
    assert max(work.calls) < SHORT + 40
    assert_contract(recorder.contexts)


class Stretches:
    """Items that are 1 are long, items that are 0 are not; each stretch has its own choice.

    A long call of a serial pass lasts until the planner was asked about it.
    """

    def __init__(self, plan_with: PlanWith, *choices: Choice) -> None:
        self._at = 0
        self._before = 0
        self._asked = threading.Event()
        self._planner = InTurn(*choices, at=self._stretch)
        plan_with(self._planner)

    def _stretch(self, seen: Observations) -> int:
        if seen.deviating_seconds:
            self._asked.set()
        return self._at

    def __call__(self, item: int) -> int:
        if item != self._before:
            self._before = item
            self._asked.clear()
            self._at += 1
        chosen = self._planner.chosen
        if item and chosen is not None and chosen.is_serial:
            assert self._asked.wait(PATIENCE)
        elif item:
            time.sleep(0.002)
        return item


def test_it_grows_again_once_workers_were_left(
    hooks: HookManager, recorder: RecordingHook, plan_with: PlanWith
) -> None:
    """Short, long, short and long again: each stretch where it is done soonest."""
    again = (ALONE._replace(item_seconds=1e-6), THREADS._replace(n_jobs=4))
    work = Stretches(plan_with, ALONE, THREADS, *again)
    data = [0] * 10 + [1] * 60 + [0] * 50_000 + [1] * 60
    results, plan = amorsize.execute(work, data, hooks=hooks, return_optimization_result=True)
    assert results == data
    assert_contract(recorder.contexts)
    kinds = [change.partition(": ")[2].partition(",")[0] for change in plan.changes]
    assert kinds == ["Threads", "Serial", "Threads"]
    assert posted(recorder).metadata["changed_to"] == "thread"


def test_progress_is_reported_before_the_workers_of_an_unknown_length_end(
    hooks: HookManager, recorder: RecordingHook, plan_with: PlanWith
) -> None:
    """Whether the chunk before was the last is found out first."""

    calls: list[int] = []

    def work(item: int) -> int:
        calls.append(item)
        return item

    plan_with(InTurn(THREADS, ALONE, at=lambda _: len(calls) > 100))
    assert amorsize.execute(work, items(20_000), hooks=hooks) == list(range(20_000))
    assert_contract(recorder.contexts)
    assert posted(recorder).metadata["changed_to"] == "serial"


def test_what_is_not_worth_workers_goes_on_as_it_was(
    hooks: HookManager, recorder: RecordingHook, grow: Grow
) -> None:
    """Longer than foreseen, but workers would gain nothing."""
    work = grow(Work(), ALONE, ALONE._replace(item_seconds=0.002))
    results = amorsize.execute(work, range(SHORT + LONG), hooks=hooks)
    assert results == list(range(SHORT + LONG))
    assert_contract(recorder.contexts)
    assert "changed_to" not in posted(recorder).metadata
    chunks = recorder.of(HookEvent.ON_CHUNK_COMPLETE)
    assert sum(bool(chunk.metadata.get("sampled")) for chunk in chunks) == 2


def test_a_long_call_of_the_second_sample_gives_others_a_head_start(
    hooks: HookManager, recorder: RecordingHook, plan_with: PlanWith
) -> None:
    """Workers begin with the items after it, and their chunks have ids of their own."""
    asked, begun = threading.Event(), threading.Event()
    first: list[int] = []

    def is_long(seen: Observations) -> bool:
        if is_long := seen.left is not None and seen.left < LONG:
            asked.set()
        return is_long

    plan_with(InTurn(ALONE, THREADS, at=is_long, starts=[StartWorkers("thread", 8, 15)]))

    def work(item: int) -> int:
        if item >= SHORT:
            if recorder.of(HookEvent.ON_WORKER_END) and not first:
                first.append(item)
                assert begun.wait(PATIENCE)
            elif first:
                begun.set()
            else:
                assert asked.wait(PATIENCE)
        return item

    results = amorsize.execute(work, range(SHORT + LONG), hooks=hooks)
    assert results == list(range(SHORT + LONG))
    assert_contract(recorder.contexts)
    chunks = {
        each.metadata["chunk_start"]: each for each in recorder.of(HookEvent.ON_CHUNK_COMPLETE)
    }
    measured, following = chunks[first[0]], chunks[first[0] + 1]
    assert measured.metadata["sampled"]
    assert following.worker_id is not None
    assert following.chunk_id == (measured.chunk_id or 0) + 1
    # Whichever of them let the first one end. What the clock adds up of its calls is a little less
    # than the time until then.
    earliest = min(at.metadata["started_at"] for start, at in chunks.items() if start > first[0])
    assert begun.is_set()
    assert measured.metadata["started_at"] < earliest < measured.timestamp


def test_the_numbers_of_the_function_are_complete(hooks: HookManager, grow: Grow) -> None:
    """Those counted in the second sample, too."""
    rows: list[int] = []
    hooks.register(
        HookEvent.ON_CHUNK_COMPLETE,
        lambda context: rows.append(context.metadata["user_metrics"]["rows"]["value"]),
    )
    work = grow(Work())

    def count(item: int) -> int:
        amorsize.count("rows")
        return work(item)

    amorsize.execute(count, items(SHORT + LONG), hooks=hooks)
    assert sum(rows) == SHORT + LONG
    assert len(work.threads) > 2


def test_a_stream_that_is_over_keeps_nothing() -> None:
    """Its items go with whoever holds them: no cycle is left for the collector."""

    class Item:
        pass

    data = [Item() for _ in range(10)]
    item = weakref.ref(data[0])
    gc.collect()
    gc.disable()
    try:
        for result in amorsize.stream(lambda _: None, data):
            assert result is None
        data.clear()
        deadline = time.monotonic() + PATIENCE
        while item() is not None and time.monotonic() < deadline:
            time.sleep(0.01)  # its thread is about to end
        assert item() is None
    finally:
        gc.enable()
