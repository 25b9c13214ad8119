"""The contract, over every engine: the same results and the same truthful events.

Equality where the counts do not depend on the number of workers, invariants
(:func:`amorsize.testing.assert_contract`) where they do.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from modes import EXTERNAL_MODES, MODES, Engines, Mode
from waiting import PATIENCE, wait_until

import amorsize
from amorsize import HookContext, HookEvent, HookManager
from amorsize.engines import thread
from amorsize.engines.external import futures
from amorsize.testing import RecordingHook, assert_contract

Execute = Callable[..., Any]


def square(x: int) -> int:
    return x * x


def fail_on_seven(x: int) -> int:
    if x == 7:
        raise ValueError("seven", x)
    return x


class Point:
    """A class that only this module knows."""

    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and other.x == self.x

    def __hash__(self) -> int:
        return hash(self.x)


def run_execute(func: Any, data: Any, **options: Any) -> list[Any]:
    return amorsize.execute(func, data, **options)


def run_stream(func: Any, data: Any, **options: Any) -> list[Any]:
    return list(amorsize.stream(func, data, **options))


@pytest.fixture(params=MODES + EXTERNAL_MODES)
def mode(request: pytest.FixtureRequest, engines: Engines) -> Mode:
    """Every engine, those of others included."""
    return engines.mode(request.param)


@pytest.fixture(params=[run_execute, run_stream], ids=["execute", "stream"])
def run(request: pytest.FixtureRequest) -> Execute:
    """Both ways to run, with their results as a list."""
    return request.param  # type: ignore[no-any-return]


# --- results ---------------------------------------------------------------------------------


def test_results_come_in_input_order(run: Execute, mode: Mode) -> None:
    """The result list is what a list comprehension gives."""
    assert run(square, range(100), executor=mode.executor, n_jobs=2) == [x * x for x in range(100)]


def test_a_lambda_and_a_closure_over_a_large_list_work(run: Execute, mode: Mode) -> None:
    """Functions that only this process knows run in every engine."""
    table = list(range(100_000))
    assert run(lambda x: x + 1, [1, 2, 3], executor=mode.executor, n_jobs=2) == [2, 3, 4]
    assert run(lambda x: table[x] + 1, [5, 50_000], executor=mode.executor, n_jobs=2) == [6, 50_001]


def test_a_generator_is_drawn_to_its_end(run: Execute, mode: Mode, recorder: RecordingHook) -> None:
    """An input of unknown length loses nothing, and its total is known at the end."""
    hooks = HookManager()
    recorder.attach(hooks)
    data = (x for x in range(37))
    assert run(square, data, executor=mode.executor, n_jobs=2, hooks=hooks) == [
        x * x for x in range(37)
    ]
    assert_contract(recorder.contexts)
    assert recorder.contexts[0].total_items is None
    assert recorder.contexts[-1].total_items == 37
    assert recorder.of(HookEvent.ON_PROGRESS)[-1].percent_complete == 100.0


def test_instances_of_local_classes_cross(run: Execute, mode: Mode) -> None:
    """Items and results may be of classes that live in the caller's module."""

    class Local:
        def __init__(self, x: int) -> None:
            self.x = x

    items = [Local(x) for x in range(5)]
    results = run(lambda item: Local(item.x + 1), items, executor=mode.executor, n_jobs=2)
    assert [type(result) for result in results] == [Local] * 5
    assert [result.x for result in results] == [1, 2, 3, 4, 5]


def test_unordered_streams_give_every_result_once(mode: Mode) -> None:
    """``ordered=False`` changes the order and nothing else."""
    results = list(
        amorsize.stream(square, range(50), executor=mode.executor, n_jobs=2, ordered=False)
    )
    assert sorted(results) == [x * x for x in range(50)]


def test_the_engine_is_chosen_when_none_is_named(
    run: Execute, hooks: HookManager, recorder: RecordingHook
) -> None:
    """Sampled items are used, reported as a chunk, and not run again."""
    calls: list[int] = []

    def record(x: int) -> int:
        calls.append(x)
        return -x

    assert run(record, range(10), hooks=hooks) == [-x for x in range(10)]
    assert sorted(calls) == list(range(10))
    assert_contract(recorder.contexts)
    sampled = recorder.of(HookEvent.ON_CHUNK_COMPLETE)[0]
    assert sampled.metadata["sampled"] is True
    assert sampled.worker_id is None
    assert sampled.metadata["chunk_start"] == 0


# --- events ----------------------------------------------------------------------------------


def test_every_event_comes_as_the_contract_says(
    run: Execute, mode: Mode, hooks: HookManager, recorder: RecordingHook
) -> None:
    """With a fixed chunk size the chunks are the same in every engine."""
    run(square, range(10), executor=mode.executor, n_jobs=2, chunksize=3, hooks=hooks)
    assert_contract(recorder.contexts)
    pre, post = recorder.contexts[0], recorder.contexts[-1]
    assert (pre.total_items, pre.items_completed, pre.percent_complete) == (10, 0, 0.0)
    assert (pre.chunksize, pre.metadata["executor_type"]) == (3, mode.type)
    chunks = recorder.of(HookEvent.ON_CHUNK_COMPLETE)
    assert sorted((c.chunk_id, c.chunk_size, c.metadata["chunk_start"]) for c in chunks) == [
        (0, 3, 0),
        (1, 3, 3),
        (2, 3, 6),
        (3, 1, 9),
    ]
    assert all(chunk.chunk_time >= 0.0 for chunk in chunks)
    assert all(chunk.metadata["queue_time"] >= 0.0 for chunk in chunks)
    assert len(recorder.of(HookEvent.ON_PROGRESS)) == 4
    assert post.metadata["status"] == "ok"
    assert (post.items_completed, post.results_count, post.error) == (10, 10, None)
    assert post.elapsed_time >= post.metadata["planning_time"] >= 0.0
    ends = recorder.of(HookEvent.ON_WORKER_END)
    assert {end.metadata["exit_reason"] for end in ends} == {"finished"}
    assert sum(end.metadata["items"] for end in ends) == 10


def test_chunk_time_is_the_time_in_the_function(
    run: Execute, mode: Mode, hooks: HookManager, recorder: RecordingHook
) -> None:
    """Two calls of 20 ms are a chunk of at least 40 ms, and less than the run took."""
    run(
        lambda x: time.sleep(0.02),
        range(4),
        executor=mode.executor,
        n_jobs=2,
        chunksize=2,
        hooks=hooks,
    )
    for chunk in recorder.of(HookEvent.ON_CHUNK_COMPLETE):
        assert 0.04 <= chunk.chunk_time <= recorder.contexts[-1].elapsed_time


def test_worker_events_name_who_worked(mode: Mode, hooks: HookManager) -> None:
    """pid and thread are those that the function itself sees."""
    recorder = RecordingHook().attach(hooks)
    seen = amorsize.execute(
        lambda _: (os.getpid(), threading.current_thread().name),
        range(4),
        executor=mode.executor,
        n_jobs=2,
        chunksize=1,
        hooks=hooks,
    )
    reported = {
        (start.metadata["pid"], start.metadata["thread_name"])
        for start in recorder.of(HookEvent.ON_WORKER_START)
    }
    assert set(seen) <= reported
    assert (os.getpid() in {pid for pid, _ in reported}) == mode.in_process


def test_a_start_is_reported_while_the_first_chunk_still_runs(
    run: Execute, mode: Mode, hooks: HookManager, recorder: RecordingHook, tmp_path: Any
) -> None:
    """The first chunk waits until its worker was reported to the test."""
    # In a serial execute() the hook runs in the thread that works: it was called before, or never.
    gate = None if mode.name == "serial" and run is run_execute else tmp_path / "gate"

    def wait_for_gate(x: int) -> int:
        if gate is not None:
            wait_until(gate.exists, "the gate")
        return x

    def open_gate() -> None:
        recorder.wait_for(HookEvent.ON_WORKER_START, timeout=PATIENCE)
        if gate is not None:
            gate.touch()

    opener = threading.Thread(target=open_gate)
    opener.start()
    run(wait_for_gate, [1], executor=mode.executor, n_jobs=1, hooks=hooks)
    opener.join()
    events = recorder.events
    assert events.index(HookEvent.ON_WORKER_START) < events.index(HookEvent.ON_CHUNK_COMPLETE)
    assert recorder.of(HookEvent.ON_CHUNK_COMPLETE)[0].chunk_time < PATIENCE


def test_empty_input_has_a_beginning_and_an_end(
    run: Execute, mode: Mode, hooks: HookManager, recorder: RecordingHook
) -> None:
    """No chunk, no worker, and 100 percent of nothing."""
    assert run(square, [], executor=mode.executor, hooks=hooks) == []
    assert run(square, iter([]), hooks=hooks) == []
    assert_contract(recorder.contexts)
    assert recorder.events == [HookEvent.PRE_EXECUTE, HookEvent.POST_EXECUTE] * 2
    assert recorder.contexts[1].percent_complete == 100.0


def test_progress_can_be_thinned_and_the_last_always_comes(
    run: Execute, mode: Mode, hooks: HookManager, recorder: RecordingHook
) -> None:
    """An interval longer than the run leaves the first and the last."""
    run(
        square,
        range(20),
        executor=mode.executor,
        n_jobs=2,
        chunksize=2,
        progress_interval=3600,
        hooks=hooks,
    )
    progress = recorder.of(HookEvent.ON_PROGRESS)
    assert [context.percent_complete for context in progress] == [10.0, 100.0]


def test_hooks_of_execute_run_in_the_callers_thread(mode: Mode, hooks: HookManager) -> None:
    """One at a time, in the thread that called."""
    threads = set()
    for event in HookEvent:
        hooks.register(event, lambda _: threads.add(threading.get_ident()))
    amorsize.execute(square, range(10), executor=mode.executor, n_jobs=2, hooks=hooks)
    assert threads == {threading.get_ident()}


def test_the_default_manager_is_notified_beside_the_one_passed(
    mode: Mode, hooks: HookManager, recorder: RecordingHook
) -> None:
    """Both see the same contexts."""
    everywhere = RecordingHook().attach(amorsize.get_default_manager())
    amorsize.execute(square, range(5), executor=mode.executor, n_jobs=2, hooks=hooks)
    assert everywhere.contexts == recorder.contexts
    assert_contract(everywhere.contexts)


# --- cost ------------------------------------------------------------------------------------


def test_without_hooks_no_context_is_built(
    run: Execute, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither an empty default manager nor an empty manager costs a context."""
    built = _count_contexts(monkeypatch)
    run(square, range(10), executor=mode.executor, n_jobs=2, chunksize=2)
    run(square, range(10), executor=mode.executor, n_jobs=2, chunksize=2, hooks=HookManager())
    assert built == []


def test_a_hook_for_one_event_costs_nothing_for_the_others(
    run: Execute, mode: Mode, hooks: HookManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contexts are built for the event that somebody listens to, and only for that."""
    built = _count_contexts(monkeypatch)
    hooks.register(HookEvent.POST_EXECUTE, lambda _: None)
    run(square, range(10), executor=mode.executor, n_jobs=2, chunksize=2, hooks=hooks)
    assert built == [HookEvent.POST_EXECUTE]


def _count_contexts(monkeypatch: pytest.MonkeyPatch) -> list[HookEvent]:
    built: list[HookEvent] = []

    def build(event: HookEvent, **fields: Any) -> HookContext:
        built.append(event)
        return HookContext(event, **fields)

    monkeypatch.setattr("amorsize.running.reporter.HookContext", build)
    return built


# --- failures --------------------------------------------------------------------------------


def test_an_exception_passes_unchanged_and_the_events_report_it(
    run: Execute, mode: Mode, hooks: HookManager, recorder: RecordingHook
) -> None:
    """Same type, same arguments, one ON_ERROR, POST_EXECUTE with status error."""
    with pytest.raises(ValueError, match="seven") as caught:
        run(fail_on_seven, range(20), executor=mode.executor, n_jobs=2, chunksize=2, hooks=hooks)
    assert type(caught.value) is ValueError
    assert caught.value.args == ("seven", 7)
    assert caught.value.__cause__ is None
    assert_contract(recorder.contexts)
    (error,) = recorder.of(HookEvent.ON_ERROR)
    assert error.error is caught.value
    assert error.error_message == "('seven', 7)"
    assert "fail_on_seven" in (error.error_traceback or "")
    assert (error.chunk_id, error.metadata["chunk_start"]) == (3, 6)
    assert recorder.contexts[-1].metadata["status"] == "error"
    assert recorder.contexts[-1].error is caught.value


def test_a_workers_traceback_is_a_note(hooks: HookManager) -> None:
    """The worker's traceback comes with the exception, which has none of its own there."""
    with pytest.raises(ValueError, match="seven") as caught:
        amorsize.execute(fail_on_seven, range(20), executor="process", n_jobs=2)
    (note,) = caught.value.__notes__
    assert "item 7" in note
    assert "in fail_on_seven" in note


def test_a_failure_in_the_very_first_item_is_as_visible(
    run: Execute, mode: Mode, hooks: HookManager, recorder: RecordingHook
) -> None:
    """Named engine or sampled: PRE_EXECUTE, ON_ERROR, POST_EXECUTE."""
    for executor in (mode.executor, None):
        recorder.contexts.clear()
        with pytest.raises(ValueError, match="seven"):
            run(fail_on_seven, [7, 8], executor=executor, chunksize=2, hooks=hooks)
        assert_contract(recorder.contexts)
        steps = [event for event in recorder.events if "worker" not in event.value]
        assert steps == [HookEvent.PRE_EXECUTE, HookEvent.ON_ERROR, HookEvent.POST_EXECUTE]
        assert recorder.contexts[-1].items_completed == 0


def test_return_exceptions_puts_them_in_place(
    run: Execute, mode: Mode, hooks: HookManager, recorder: RecordingHook
) -> None:
    """A chunk with failures emits one ON_ERROR, then its ON_CHUNK_COMPLETE."""
    results = run(
        fail_on_seven,
        [6, 7, 7, 8],
        executor=mode.executor,
        n_jobs=2,
        chunksize=4,
        return_exceptions=True,
        hooks=hooks,
    )
    assert [type(result) for result in results] == [int, ValueError, ValueError, int]
    assert_contract(recorder.contexts)
    emitted = [event for event in recorder.events if "worker" not in event.value]
    assert emitted == [
        HookEvent.PRE_EXECUTE,
        HookEvent.ON_ERROR,
        HookEvent.ON_CHUNK_COMPLETE,
        HookEvent.ON_PROGRESS,
        HookEvent.POST_EXECUTE,
    ]
    assert recorder.of(HookEvent.ON_ERROR)[0].metadata["failed_items"] == 2
    assert recorder.contexts[-1].metadata["status"] == "ok"


def test_failures_of_the_sample_are_returned_in_place_too(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """The items that were measured follow the same rule."""
    results = amorsize.execute(fail_on_seven, [7, 1], return_exceptions=True, hooks=hooks)
    assert [type(result) for result in results] == [ValueError, int]
    assert_contract(recorder.contexts)


def test_a_hook_that_always_raises_changes_nothing(
    run: Execute, mode: Mode, hooks: HookManager, caplog: pytest.LogCaptureFixture
) -> None:
    """Results are the same; failures are counted for each event, and the hook is logged once."""

    def broken(context: HookContext) -> None:
        raise RuntimeError("broken hook")

    for event in HookEvent:
        hooks.register(event, broken)
    data = range(10)
    results = run(square, data, executor=mode.executor, n_jobs=2, chunksize=1, hooks=hooks)
    assert results == [x * x for x in data]
    stats = hooks.get_stats()
    assert stats["error_counts"] == {
        event: count for event, count in stats["call_counts"].items() if count
    }
    assert stats["error_counts"]["on_chunk_complete"] == 10
    (logged,) = [record for record in caplog.records if "broken" in record.getMessage()]
    assert logged.exc_info is not None


def test_a_generator_that_raises_ends_the_run_after_what_it_gave(
    run: Execute, mode: Mode, hooks: HookManager, recorder: RecordingHook
) -> None:
    """The input's own exception passes, with a note that says where it came from."""

    def broken_input() -> Iterator[int]:
        yield from range(5)
        raise OSError("the file ended")

    with pytest.raises(OSError, match="the file ended") as caught:
        run(square, broken_input(), executor=mode.executor, n_jobs=2, chunksize=2, hooks=hooks)
    assert "after 5 items" in caught.value.__notes__[0]
    assert_contract(recorder.contexts)
    assert recorder.contexts[-1].items_completed == 5
    assert recorder.contexts[-1].metadata["status"] == "error"


# --- streams ---------------------------------------------------------------------------------


def test_a_stream_holds_a_bounded_part_of_its_input(mode: Mode) -> None:
    """A consumer that takes one result has made the run draw a few chunks per worker."""
    drawn: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            drawn.append(len(drawn))
            yield drawn[-1]

    stream = amorsize.stream(square, endless(), executor=mode.executor, n_jobs=2, chunksize=5)
    assert [next(stream) for _ in range(3)] == [0, 1, 4]
    stream.close()  # type: ignore[attr-defined]  # it is a generator
    assert len(drawn) <= 5 * (3 * 2 + 2)


def test_events_of_a_stream_flow_while_the_consumer_sleeps(
    mode: Mode, hooks: HookManager, recorder: RecordingHook
) -> None:
    """After the first result nothing is consumed, and the run is reported to its window's end."""
    stream = amorsize.stream(
        square, range(4), executor=mode.executor, n_jobs=1, chunksize=1, hooks=hooks
    )
    assert next(stream) == 0
    recorder.wait_for(HookEvent.ON_CHUNK_COMPLETE, timeout=PATIENCE, count=4)
    recorder.wait_for(HookEvent.POST_EXECUTE, timeout=PATIENCE)
    assert list(stream) == [1, 4, 9]
    assert_contract(recorder.contexts)


@pytest.mark.parametrize("how", ["close", "break", "garbage"])
def test_leaving_a_stream_half_way_cancels_its_run(
    how: str,
    mode: Mode,
    hooks: HookManager,
    recorder: RecordingHook,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every worker has its end, and POST_EXECUTE says cancelled."""
    for engine in (thread, futures):  # a busy machine may take longer to end an item
        monkeypatch.setattr(engine, "_STOP_GRACE_SECONDS", PATIENCE)
    stream = amorsize.stream(
        square, range(1000), executor=mode.executor, n_jobs=2, chunksize=1, hooks=hooks
    )
    assert next(stream) == 0
    if how == "close":
        stream.close()  # type: ignore[attr-defined]  # it is a generator
    elif how == "break":
        for _ in stream:
            break
        del stream
    else:
        del stream
        gc.collect()
    post = recorder.wait_for(HookEvent.POST_EXECUTE, timeout=PATIENCE)
    assert post.metadata["status"] == "cancelled"
    assert post.items_completed < 1000
    assert_contract(recorder.contexts)
    reasons = {end.metadata["exit_reason"] for end in recorder.of(HookEvent.ON_WORKER_END)}
    assert reasons == {"cancelled"}


def test_a_stream_that_was_never_begun_runs_nothing(
    mode: Mode, hooks: HookManager, recorder: RecordingHook
) -> None:
    """The run begins with the first next()."""
    amorsize.stream(square, range(3), executor=mode.executor, hooks=hooks)
    assert recorder.contexts == []


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"func": 3}, "func is 3"),
        ({"data": 3}, "data"),
        ({"n_jobs": 0}, "n_jobs"),
        ({"n_jobs": -3}, "n_jobs"),
        ({"n_jobs": True}, "n_jobs"),
        ({"n_jobs": 2.5}, "n_jobs"),
        ({"chunksize": 0}, "chunksize"),
        ({"sample_size": 0}, "sample_size"),
        ({"executor": "proces"}, "'process'"),
        ({"executor": 7}, "executor"),
        ({"target_chunk_duration": 0}, "target_chunk_duration"),
        ({"target_chunk_duration": float("nan")}, "target_chunk_duration"),
        ({"timeout": -1}, "timeout"),
        ({"item_timeout": True}, "item_timeout"),
        ({"progress_interval": -0.1}, "progress_interval"),
        ({"hooks": []}, "HookManager"),
        ({"name": 3}, "name"),
    ],
)
@pytest.mark.parametrize("function", [amorsize.execute, amorsize.stream])
def test_bad_arguments_are_refused_before_anything_runs(
    function: Any, arguments: dict[str, Any], message: str, recorder: RecordingHook
) -> None:
    """By the call itself, under AmorsizeError and ValueError or TypeError."""
    recorder.attach(amorsize.get_default_manager())
    calls: list[Any] = []
    options = {"func": calls.append, "data": [1]} | arguments
    with pytest.raises(amorsize.AmorsizeError, match=message) as caught:
        function(options.pop("func"), options.pop("data"), **options)
    assert isinstance(caught.value, ValueError | TypeError)
    assert calls == []
    assert recorder.contexts == []


def test_the_default_manager_passed_by_name_is_notified_once(mode: Mode) -> None:
    """``hooks=get_default_manager()`` says what is so anyway."""
    received: list[HookContext] = []
    manager = amorsize.get_default_manager()
    manager.register(HookEvent.POST_EXECUTE, received.append)
    amorsize.execute(abs, [-1], executor=mode.executor, hooks=manager)
    assert len(received) == 1
