"""Runs that begin serially, and go over to workers once their items turn out long."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest
from waiting import PATIENCE

import amorsize
from amorsize.errors import ExecutionTimeoutError
from amorsize.hooks import HookContext, HookEvent, HookManager
from amorsize.planning.engine import Engine
from amorsize.planning.known_functions import KNOWN
from amorsize.planning.observations import Observations
from amorsize.planning.plan import ITEMS, Choice, LookFurther, Plan, RunChunks
from amorsize.planning.planner import SERIAL, Planner
from amorsize.running import loop
from amorsize.testing import RecordingHook, assert_contract

SHORT, LONG = 3000, 60
"""Items that take nothing, and behind them items that wait."""


@pytest.fixture(autouse=True)
def no_warm_workers() -> None:
    amorsize.shutdown()


class Work:
    """Returns what it is called with; from some item on, each call waits.

    It does not pickle: its first items are nothing for processes, however busy the machine.
    """

    def __init__(self, since: int = SHORT) -> None:
        self.since = since
        self.lock = threading.Lock()
        self.calls: list[int] = []
        self.threads: set[int] = set()

    def __call__(self, item: int) -> int:
        self.calls.append(item)
        if item >= self.since:
            self.threads.add(threading.get_ident())
            time.sleep(0.02)
        return item


class Scripted(Planner):
    """Plans for :class:`Work` whatever the machine does: its long items go to threads.

    What is decided from given observations is in tests/planning/test_planner.py. Here the change
    of engine is real.
    """

    def __init__(self, work: Work) -> None:
        self.work = work

    def next(self, seen: Observations) -> Plan:
        plan = seen.plan
        if plan is None:
            if seen.sample.asked_items == 0:
                return LookFurther(ITEMS, 5, monitored=False)
            size = seen.chunksize
            if not self.work.threads:
                size = size or 100_000
                return RunChunks(Choice(SERIAL, may_grow=True), size, size)
            choice = Choice(Engine("thread"), 8, "Threads, because they wait.")
            return RunChunks(choice, size or 1, size or 1)
        if plan.choice.is_serial and self.work.threads and seen.left != 0:
            return LookFurther(ITEMS, 5, afresh=True, monitored=False)
        return plan


Script: TypeAlias = Callable[[Work], Work]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Has the run of some work planned by script."""

    def plan_for(work: Work) -> Work:
        monkeypatch.setattr(loop, "Planner", lambda: Scripted(work))
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
def test_a_run_that_is_told_grows(
    hooks: HookManager,
    recorder: RecordingHook,
    kind: str,
    short: int,
    scripted: Script,
) -> None:
    """Whatever the input, wherever in it; each item is called once, the results are in order."""
    work = scripted(Work(since=short))
    results = amorsize.execute(work, KINDS[kind](short + LONG), hooks=hooks)
    assert results == list(range(short + LONG))
    assert sorted(work.calls) == results
    assert_grown(recorder)
    assert len(work.threads) > 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_not_told_grows(kind: str, scripted: Script) -> None:
    """As it does with hooks; what it went over to is in the result."""
    work = scripted(Work())
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
    scripted: Script,
) -> None:
    """Before the run is told to begin: short ones that were measured say nothing of them."""
    work = scripted(Work(since=short))
    results = amorsize.execute(work, KINDS[kind](short + 2 * LONG), hooks=hooks)
    assert results == list(range(short + 2 * LONG))
    assert sorted(work.calls) == results
    assert_contract(recorder.contexts)
    metadata = posted(recorder).metadata
    assert metadata.get("changed_to", metadata["executor_type"]) == "thread"
    assert len(work.threads) > 2


@pytest.mark.parametrize("kind", ["list", "generator"])
@pytest.mark.parametrize("short", [5, 60, SHORT])
def test_few_items_behind_trivial_ones_are_not_left_to_one_worker(
    kind: str, short: int, scripted: Script
) -> None:
    """Also where nobody is told, and the items are too few for another thread to watch them."""
    work = scripted(Work(since=short))
    assert amorsize.execute(work, KINDS[kind](short + LONG)) == list(range(short + LONG))
    assert len(work.threads) > 2


def test_items_that_compute_go_to_processes(hooks: HookManager, recorder: RecordingHook) -> None:
    """Threads would gain nothing."""

    def work(item: int) -> tuple[int, int]:
        if item >= SHORT:
            sum(range(1_000_000))
        return item, os.getpid()

    results = amorsize.execute(work, range(SHORT + 100), hooks=hooks)
    assert [item for item, _ in results] == list(range(SHORT + 100))
    assert {pid for _, pid in results[:SHORT]} == {os.getpid()}
    assert len({pid for _, pid in results}) > 1
    assert_grown(recorder, executor="process")


@pytest.mark.parametrize("kind", ["list", "generator"])
@pytest.mark.parametrize("failing", [{7}, {SHORT - 1}, {SHORT + 1, SHORT + 3}, {SHORT + 50}])
def test_exceptions_are_in_place_before_in_and_behind_the_change(
    hooks: HookManager, recorder: RecordingHook, kind: str, failing: set[int], scripted: Script
) -> None:
    """Each is told once, with its index."""
    work = scripted(Work())

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


@pytest.mark.parametrize("behind", [1, 3, 40])
def test_the_item_that_fails_is_named(
    hooks: HookManager, recorder: RecordingHook, behind: int
) -> None:
    """In the second sample, and behind it."""
    work = Work()

    def fail(item: int) -> int:
        if work(item) == SHORT + behind:
            raise KeyError(item)
        return item

    with pytest.raises(KeyError) as caught:
        amorsize.execute(fail, range(SHORT + LONG), hooks=hooks)
    assert caught.value.args == (SHORT + behind,)
    assert f"item {SHORT + behind}" in " ".join(caught.value.__notes__)
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
    scripted: Script,
) -> None:
    """With room for the chunks of all its workers."""
    work = scripted(Work())
    stream = amorsize.stream(work, KINDS[kind](SHORT + LONG), hooks=hooks, ordered=ordered)
    results = list(stream)
    if ordered:
        assert results == list(range(SHORT + LONG))
    assert sorted(results) == sorted(work.calls) == list(range(SHORT + LONG))
    assert_grown(recorder)
    assert len(work.threads) > 2


@pytest.mark.parametrize("kind", ["list", "generator"])
def test_a_coroutine_s_run_grows(
    hooks: HookManager, recorder: RecordingHook, kind: str, scripted: Script
) -> None:
    """Its driver is a thread of its own."""
    work = scripted(Work())
    data = KINDS[kind](SHORT + LONG)
    assert asyncio.run(amorsize.aexecute(work, data, hooks=hooks)) == list(range(SHORT + LONG))
    assert_grown(recorder)
    assert len(work.threads) > 2


def test_a_size_of_chunks_that_was_asked_for_is_kept_by_workers(
    hooks: HookManager, recorder: RecordingHook, scripted: Script
) -> None:
    """Only the chunk in which the run changes, and what is measured, are of other sizes."""
    work = scripted(Work())
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
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """It was a false alarm, as a busy machine gives them; those that come later are none."""
    work = Work()

    def hiccup(item: int) -> int:
        if item == 1000:
            time.sleep(0.2)
        return work(item)

    data = list(range(SHORT + 6 * LONG))
    assert amorsize.execute(hiccup, data, hooks=hooks, chunksize=4) == data
    assert_grown(recorder)


def test_many_threads_are_left_early_where_items_turn_out_trivial(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """What takes turns at the GIL takes long on each of them: that is not what an item takes."""
    items = 500_000

    def work(item: int) -> int:
        if item < 5:
            time.sleep(0.02)
        return item

    for _ in range(3):  # a function that is known to wait is begun with at once
        recorder.contexts.clear()
        assert amorsize.execute(work, range(items), hooks=hooks) == list(range(items))
        assert_contract(recorder.contexts)
        metadata = posted(recorder).metadata
        assert (metadata["executor_type"], metadata["changed_to"]) == ("thread", "serial")
        ends = [each.metadata for each in recorder.of(HookEvent.ON_WORKER_END)]
        in_threads = [each for each in ends if each["thread_name"].startswith("amorsize-")]
        assert sum(each["items"] for each in in_threads) < items / 2


def test_an_earlier_run_shows_nothing_of_items_that_turn_out_long(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """They are measured: they are not what they were."""
    work = Work(since=0)
    amorsize.execute(work, range(40))
    assert KNOWN.recall(work).workload is not None
    work.since = SHORT
    assert amorsize.execute(work, range(SHORT + LONG), hooks=hooks) == list(range(SHORT + LONG))
    assert_contract(recorder.contexts)
    assert KNOWN.recall(work).workload is None


def test_both_choices_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, as they are made."""
    amorsize.execute(Work(), range(SHORT + LONG), verbose=True)
    said = capsys.readouterr().err
    assert said.index("Serial, because") < said.index("Threads, because")


def test_a_slow_consumer_bounds_a_stream_that_has_grown() -> None:
    """What is computed ahead of it is a few chunks a worker."""
    work = Work(since=10)
    stream = amorsize.stream(work, items(2000))
    for index, result in enumerate(stream):
        assert result == index
        if index > 12:
            time.sleep(0.005)
        if index == 200:
            break
    stream.close()  # type: ignore[attr-defined]
    assert len(work.calls) < 2000


def test_closing_a_stream_that_measures_anew_ends_it(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """Though the call that is measured does not return."""
    release = threading.Event()
    inside = threading.Event()

    def work(item: int) -> int:
        if item >= SHORT:
            time.sleep(0.05)
        if item >= SHORT + 2:
            inside.set()
            release.wait(PATIENCE)
        return item

    stream = amorsize.stream(work, range(SHORT + 1000), hooks=hooks)
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
    hooks: HookManager, recorder: RecordingHook, kind: str, scripted: Script
) -> None:
    """All of the input is drawn by one thread."""
    work = scripted(Work())
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
def test_a_deadline_is_noticed_while_items_are_measured_anew(
    hooks: HookManager, recorder: RecordingHook, kind: str
) -> None:
    """The call that hangs is left behind."""
    release = threading.Event()
    work = Work()

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
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """Behind the first sample none is measured in this thread: the run stays as it is."""
    work = Work()
    results = amorsize.execute(work, range(SHORT + 20), hooks=hooks, item_timeout=30)
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
    hooks: HookManager, recorder: RecordingHook, kind: str
) -> None:
    """As in the first."""
    work = Work()

    def interrupt(item: int) -> int:
        # Behind the item at which the run was seen to have changed.
        if work(item) >= SHORT and recorder.of(HookEvent.ON_WORKER_END):
            raise KeyboardInterrupt
        return item

    with pytest.raises(KeyboardInterrupt):
        amorsize.execute(interrupt, KINDS[kind](SHORT + LONG), hooks=hooks)
    assert_contract(recorder.contexts)
    assert posted(recorder).metadata["status"] == "cancelled"
    assert work.calls == list(range(len(work.calls)))


def test_an_input_that_fails_in_the_second_sample(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """What came before it is done; its error has the number of items."""
    work = Work()

    def failing() -> Iterator[int]:
        yield from range(SHORT + 3)
        raise OSError("the end of the tape")

    with pytest.raises(OSError, match="the end of the tape") as caught:
        amorsize.execute(work, failing(), hooks=hooks)
    assert f"after {SHORT + 3} items" in " ".join(caught.value.__notes__)
    assert_contract(recorder.contexts)
    assert posted(recorder).items_completed == SHORT + 3
    assert work.calls == list(range(SHORT + 3))


def test_an_input_that_fails_while_short_calls_are_measured_together(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """What came before it is done."""

    def failing() -> Iterator[int]:
        yield from range(50)
        raise OSError("the end of the tape")

    for told in (None, hooks):
        with pytest.raises(OSError, match="the end of the tape") as caught:
            amorsize.execute(abs, failing(), hooks=told)
        assert "after 50 items" in " ".join(caught.value.__notes__)
    assert_contract(recorder.contexts)


@pytest.mark.parametrize("options", [{}, {"return_exceptions": True}])
def test_a_list_that_the_function_makes_longer(
    hooks: HookManager, recorder: RecordingHook, options: dict[str, Any]
) -> None:
    """What was there when the run began has its result; nothing is called twice."""
    work = Work()
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
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """What it lost is not called, and nothing is called twice."""
    work = Work()
    data = list(range(SHORT + LONG))

    def shrink(item: int) -> int:
        if item == SHORT:
            del data[SHORT + 40 :]
        return work(item)

    assert amorsize.execute(shrink, data, hooks=hooks) == list(range(SHORT + 40))
    assert sorted(work.calls) == sorted(set(work.calls))
    assert max(work.calls) < SHORT + 40
    assert_contract(recorder.contexts)


def test_it_grows_again_once_workers_were_left(hooks: HookManager, recorder: RecordingHook) -> None:
    """Long, trivial and long again: each stretch where it is done soonest."""
    stretch = [1] * 30

    def work(item: int) -> int:
        if item:
            time.sleep(0.02)
        return item

    data = [0] * 10 + stretch + [0] * 300_000 + stretch
    results, plan = amorsize.execute(work, data, hooks=hooks, return_optimization_result=True)
    assert results == data
    assert_contract(recorder.contexts)
    kinds = [change.partition(": ")[2].partition(",")[0] for change in plan.changes]
    assert kinds[-2:] == ["Serial", "Threads"]
    assert posted(recorder).metadata["changed_to"] == "thread"


def test_progress_is_told_before_the_workers_of_an_unknown_length_end(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """Whether the chunk before was the last is found out first."""

    def work(item: int) -> int:
        if item:
            time.sleep(0.02)
        return item

    data = [1] * 20 + [0] * 400_000
    assert amorsize.execute(work, iter(data), hooks=hooks) == data
    assert_contract(recorder.contexts)
    assert posted(recorder).metadata["changed_to"] == "serial"


def test_what_is_not_worth_workers_goes_on_as_it_was(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """Longer than foreseen, but the function uses the lock that all of them need."""
    lock = threading.Lock()  # does not pickle, so that processes are out of the question

    def work(item: int) -> int:
        with lock:
            return item + 0 * (sum(range(30_000)) if item >= SHORT else 0)

    results = amorsize.execute(work, range(SHORT + 800), hooks=hooks)
    assert results == list(range(SHORT + 800))
    assert_contract(recorder.contexts)
    assert "changed_to" not in posted(recorder).metadata


def test_a_long_call_of_the_second_sample_gives_others_a_head_start(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """Workers begin with the items behind it, and their chunks have ids of their own."""
    begun = threading.Event()
    first: list[int] = []

    def work(item: int) -> int:
        if item >= SHORT:
            if recorder.of(HookEvent.ON_WORKER_END) and not first:
                first.append(item)
                assert begun.wait(PATIENCE)
            elif first:
                begun.set()
            else:
                time.sleep(0.05)
        return item

    results = amorsize.execute(work, range(SHORT + LONG), hooks=hooks)
    assert results == list(range(SHORT + LONG))
    assert_contract(recorder.contexts)
    chunks = {
        each.metadata["chunk_start"]: each for each in recorder.of(HookEvent.ON_CHUNK_COMPLETE)
    }
    measured, behind = chunks[first[0]], chunks[first[0] + 1]
    assert measured.metadata["sampled"]
    assert behind.worker_id is not None
    assert behind.chunk_id == (measured.chunk_id or 0) + 1
    # Whichever of them let the first one end.
    earliest = min(at.metadata["started_at"] for start, at in chunks.items() if start > first[0])
    assert earliest < measured.metadata["started_at"] + measured.chunk_time


def test_the_numbers_of_the_function_are_complete(hooks: HookManager, scripted: Script) -> None:
    """Those counted in the second sample, too."""
    rows: list[int] = []
    hooks.register(
        HookEvent.ON_CHUNK_COMPLETE,
        lambda context: rows.append(context.metadata["user_metrics"]["rows"]["value"]),
    )
    work = scripted(Work())

    def count(item: int) -> int:
        amorsize.count("rows")
        return work(item)

    amorsize.execute(count, items(SHORT + LONG), hooks=hooks)
    assert sum(rows) == SHORT + LONG
    assert len(work.threads) > 2


def test_the_next_run_of_such_a_function_is_measured(hooks: HookManager) -> None:
    """Its first items are not like those that workers have run."""
    work = Work()
    for _ in range(2):
        recorder = RecordingHook().attach(hooks)
        amorsize.execute(work, range(SHORT + LONG), hooks=hooks)
        assert_grown(recorder)


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
