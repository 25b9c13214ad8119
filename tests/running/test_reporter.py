"""From what the run loop sees to events: figures that never go back, contexts only on demand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from amorsize import HookContext, HookEvent, HookManager
from amorsize.engines.base import WorkerStarted
from amorsize.running import reporter
from amorsize.running.reporter import Reporter
from amorsize.testing import RecordingHook, assert_contract
from amorsize.workers.chunk import Chunk, ChunkOutcome, Failure
from amorsize.workers.cpu_time import Unfinished


class Clock:
    """``time`` as the reporter uses it, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(reporter, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


def reporter_for(*managers: HookManager, progress_interval: float = 0.0) -> Reporter:
    return Reporter(
        managers, began=100.0, function="module.func", progress_interval=progress_interval
    )


def begin(reporter: Reporter, total: int | None = 10) -> None:
    reporter.pre_execute(
        n_jobs=2, chunksize=5, total_items=total, executor_type="process", estimated_speedup=1.8
    )


def begun_reporter(manager: HookManager, recorder: RecordingHook) -> Reporter:
    """One whose run has begun, which the recorder has forgotten."""
    reporter = reporter_for(manager)
    begin(reporter)
    recorder.contexts.clear()
    return reporter


def started(worker: int) -> WorkerStarted:
    return WorkerStarted(worker, 1000 + worker, "host", "MainThread")


def outcome(start: int = 0, size: int = 5, **fields: Any) -> ChunkOutcome:
    values: dict[str, Any] = {
        "chunk_id": start // size,
        "start": start,
        "size": size,
        "results": [None] * size,
        "failures": [],
        "started_at": 50.0,
        "duration": 2.0,
        "pid": 1000,
        "hostname": "host",
        "thread_name": "MainThread",
        "results_bytes": 70,
    }
    return ChunkOutcome(**values | fields)


def complete(
    reporter: Reporter, done: ChunkOutcome, worker: int | None = None, **more: Any
) -> None:
    chunk = Chunk(done.chunk_id, done.start, [None] * done.size, dispatched_at=49.5)
    reporter.chunk_completed(chunk, done, worker, **more)


# --- contexts only on demand ----


def emit_everything(reporter: Reporter) -> None:
    begin(reporter)
    reporter.worker_started(started(0))
    reporter.error(ValueError("bad"), worker=0)
    complete(reporter, outcome(0, 10), worker=0)
    reporter.progress(last=True)
    reporter.worker_ended(0, "finished")
    reporter.post_execute("ok", None)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[HookEvent]:
    """The events for which a context was built."""
    events: list[HookEvent] = []

    def build(event: HookEvent, **fields: Any) -> HookContext:
        events.append(event)
        return HookContext(event, **fields)

    monkeypatch.setattr(reporter, "HookContext", build)
    return events


@pytest.mark.parametrize("managers", [0, 2], ids=["no-manager", "empty-managers"])
def test_without_hooks_no_context_is_built(built: list[HookEvent], managers: int) -> None:
    """Telling nobody costs nothing."""
    emit_everything(reporter_for(*(HookManager() for _ in range(managers))))
    assert built == []


@pytest.mark.parametrize("event", HookEvent, ids=str)
def test_a_hook_for_one_event_costs_nothing_for_the_others(
    built: list[HookEvent], hooks: HookManager, event: HookEvent
) -> None:
    """Contexts are built for the event that it is registered for."""
    RecordingHook().attach(hooks, [event])
    emit_everything(reporter_for(hooks))
    assert built == [event]


def test_several_managers_receive_one_context() -> None:
    """The default manager first, then the one that was passed."""
    managers = [HookManager(), HookManager()]
    recorders = [RecordingHook().attach(manager) for manager in managers]
    emit_everything(reporter_for(*managers))
    for one, other in zip(*(recorder.contexts for recorder in recorders), strict=True):
        assert one is other


def test_the_events_of_a_reporter_keep_the_contract(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """From the first event to the last."""
    emit_everything(reporter_for(hooks))
    assert_contract(recorder.contexts)


# --- figures ----


def test_a_context_has_the_plan_and_the_state_of_the_run(
    clock: Clock, hooks: HookManager, recorder: RecordingHook
) -> None:
    """Rates are over the time since the call; the mean is over the time in the function."""
    reporter = reporter_for(hooks)
    begin(reporter, total=20)
    clock.now += 4.0
    complete(reporter, outcome())
    context = recorder.contexts[-1]
    assert (context.n_jobs, context.chunksize, context.total_items) == (2, 5, 20)
    assert (context.items_completed, context.items_remaining) == (5, 15)
    assert context.percent_complete == 25.0
    assert context.elapsed_time == 4.0
    assert context.throughput_items_per_sec == 1.25
    assert context.estimated_time_remaining == 12.0
    assert context.avg_item_time == 0.4
    assert (context.chunk_id, context.chunk_size, context.chunk_time) == (0, 5, 2.0)
    assert (context.results_count, context.results_size_bytes) == (5, 70)


def test_an_unknown_total_leaves_percent_and_remaining_at_zero(
    clock: Clock, hooks: HookManager, recorder: RecordingHook
) -> None:
    """Until the end of the input is seen."""
    reporter = reporter_for(hooks)
    begin(reporter, total=None)
    clock.now += 1.0
    complete(reporter, outcome())
    context = recorder.contexts[-1]
    assert context.total_items is None
    assert (context.items_remaining, context.percent_complete) == (0, 0.0)
    assert context.estimated_time_remaining == 0.0
    reporter.total_items = 5
    reporter.post_execute("ok", None)
    assert recorder.contexts[-1].percent_complete == 100.0


def test_percent_stays_between_0_and_100_when_the_announced_length_was_too_small(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """``len()`` may be an estimate; the true length, once known, takes nothing back."""
    reporter = reporter_for(hooks)
    begin(reporter, total=6)
    for start in (0, 5, 10):
        complete(reporter, outcome(start))
    reporter.total_items = 40
    complete(reporter, outcome(15))
    percents = [context.percent_complete for context in recorder.of(HookEvent.ON_CHUNK_COMPLETE)]
    assert percents == [pytest.approx(83.3, abs=0.1), 100.0, 100.0, 100.0]
    assert all(context.items_remaining >= 0 for context in recorder.contexts)


@pytest.mark.parametrize("total", [0, 10], ids=["empty", "items"])
def test_after_success_percent_is_exactly_100(
    hooks: HookManager, recorder: RecordingHook, total: int
) -> None:
    """For an empty input as well."""
    reporter = reporter_for(hooks)
    begin(reporter, total)
    for start in range(0, total, 5):
        complete(reporter, outcome(start))
    reporter.post_execute("ok", None)
    assert recorder.contexts[-1].percent_complete == 100.0


@pytest.mark.parametrize("status", ["error", "cancelled", "timeout"])
def test_a_run_that_failed_does_not_claim_100_percent(
    hooks: HookManager, recorder: RecordingHook, status: str
) -> None:
    """Percent says how far it came."""
    reporter = reporter_for(hooks)
    begin(reporter)
    complete(reporter, outcome())
    reporter.post_execute(status, ValueError("bad"))
    assert recorder.contexts[-1].percent_complete == 50.0


# --- workers ----


def test_worker_ids_count_from_0_in_order_of_appearance(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """Whatever numbers the backend uses."""
    reporter = begun_reporter(hooks, recorder)
    for worker in (17, 4, 9):
        reporter.worker_started(started(worker))
    assert [context.worker_id for context in recorder.contexts] == [0, 1, 2]
    assert [context.worker_count for context in recorder.contexts] == [1, 2, 3]
    assert [context.metadata["pid"] for context in recorder.contexts] == [1017, 1004, 1009]
    assert (reporter.worker_id(4), reporter.worker_id(5), reporter.worker_id(None)) == (
        1,
        None,
        None,
    )
    reporter.worker_ended(17, "finished")
    reporter.worker_started(started(17))
    assert recorder.contexts[-1].worker_id == 3


def test_an_end_reports_the_work_of_its_worker(hooks: HookManager, recorder: RecordingHook) -> None:
    """Its items and the time that it spent in the function, beside how it ended."""
    reporter = reporter_for(hooks)
    begin(reporter)
    reporter.worker_started(started(0))
    complete(reporter, outcome(0), worker=0)
    complete(reporter, outcome(5), worker=0)
    reporter.worker_ended(0, "died", -9)
    context = recorder.contexts[-1]
    assert context.worker_count == 0
    expected = {"exit_reason": "died", "exit_code": -9, "items": 10, "busy_time": 4.0, "pid": 1000}
    assert expected.items() <= context.metadata.items()


def test_an_end_is_emitted_once_and_only_after_a_start(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """A second end, or that of a worker who never started, is nothing."""
    reporter = begun_reporter(hooks, recorder)
    reporter.worker_ended(3, "died")
    assert recorder.contexts == []
    reporter.worker_started(started(3))
    assert reporter.workers() == [3]
    reporter.worker_ended(3, "finished")
    reporter.worker_ended(3, "finished")
    assert recorder.events == [HookEvent.ON_WORKER_START, HookEvent.ON_WORKER_END]
    assert reporter.workers() == []


# --- chunks and progress ----


def test_a_chunk_reports_its_place_its_wait_and_its_failures(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """In its metadata."""
    reporter = begun_reporter(hooks, recorder)
    done = outcome(5, failures=[Failure(6, ValueError("bad"), "Traceback")])
    complete(reporter, done)
    metadata = recorder.contexts[-1].metadata
    expected = {"chunk_start": 5, "queue_time": 0.5, "failed_items": 1}
    assert expected.items() <= metadata.items()
    assert "sampled" not in metadata
    assert "retry_of" not in metadata


def test_a_wait_is_never_negative(hooks: HookManager, recorder: RecordingHook) -> None:
    """Two clocks may disagree by a little."""
    complete(begun_reporter(hooks, recorder), outcome(started_at=49.0))
    assert recorder.contexts[-1].metadata["queue_time"] == 0.0


def test_a_sampled_chunk_says_so_and_has_no_worker(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """It ran before there were any."""
    complete(begun_reporter(hooks, recorder), outcome(), sampled=True)
    assert recorder.contexts[-1].metadata["sampled"] is True
    assert recorder.contexts[-1].worker_id is None


def test_progress_is_thinned_and_its_last_is_always_emitted(
    clock: Clock, hooks: HookManager, recorder: RecordingHook
) -> None:
    """By the monotonic clock."""
    reporter = reporter_for(hooks, progress_interval=1.0)
    begin(reporter)
    for step in (0.0, 0.5, 0.4, 0.1, 0.9):
        clock.now += step
        reporter.progress(last=False)
    clock.now += 0.05
    reporter.progress(last=True)
    reported = [context.elapsed_time for context in recorder.of(HookEvent.ON_PROGRESS)]
    assert reported == [pytest.approx(seconds) for seconds in (0.0, 1.0, 1.95)]


# --- errors and the end ----


def test_an_error_carries_the_traceback_that_the_worker_saw(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """Or, where none came, the one that it has here."""
    reporter = begun_reporter(hooks, recorder)
    error = ValueError("bad")
    reporter.error(error, traceback_text="as the worker saw it", failed_items=2)
    context = recorder.contexts[-1]
    assert (context.error, context.error_message) == (error, "bad")
    assert context.error_traceback == "as the worker saw it"
    assert context.metadata["failed_items"] == 2
    reporter.error(error)
    assert recorder.contexts[-1].error_traceback == "ValueError: bad\n"


def test_an_error_names_its_worker_and_its_chunk_as_far_as_known(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """With what else is known, by name."""
    reporter = begun_reporter(hooks, recorder)
    reporter.worker_started(started(7))
    chunk = Chunk(3, 15, [None] * 5, retry_of=1, dispatched_at=49.5)
    done = outcome(15, chunk_id=3, results=None)
    reporter.error(
        ValueError("bad"), worker=7, chunk=chunk, outcome=done, metadata={"exit_code": -9}
    )
    context = recorder.contexts[-1]
    assert (context.worker_id, context.chunk_id, context.chunk_size) == (0, 3, 5)
    assert context.chunk_time == 2.0
    expected = {"chunk_start": 15, "retry_of": 1, "exit_code": -9}
    assert expected.items() <= context.metadata.items()
    reporter.error(ValueError("bad"))
    assert (recorder.contexts[-1].worker_id, recorder.contexts[-1].chunk_id) == (None, None)


def test_the_end_sums_up(clock: Clock, hooks: HookManager, recorder: RecordingHook) -> None:
    """Status, planning time, calls in progress, and the results of the whole run."""
    reporter = reporter_for(hooks)
    clock.now += 0.5
    begin(reporter)
    complete(reporter, outcome(0))
    complete(reporter, outcome(5))
    clock.now += 1.5
    reporter.post_execute("ok", None)
    context = recorder.contexts[-1]
    expected = {"status": "ok", "planning_time": 0.5, "busy_seconds": 4.0, "concurrency": 2.0}
    assert expected.items() <= context.metadata.items()
    assert not {"cpu_seconds", "measured_speedup"} & context.metadata.keys()  # nobody counted
    assert (context.results_count, context.results_size_bytes) == (10, 140)
    assert context.error is None


def test_the_end_of_a_failed_run_carries_its_error(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """So that who listens to the end alone knows why."""
    error = ValueError("bad")
    begun_reporter(hooks, recorder).post_execute("error", error)
    context = recorder.contexts[-1]
    assert (context.error, context.error_message) == (error, "bad")
    assert context.metadata["status"] == "error"


# --- metadata ----


def test_every_event_names_the_execution_the_function_and_the_plan(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """Two executions at the same time have different ids."""
    for _ in range(2):
        emit_everything(reporter_for(hooks))
    ids = {context.metadata["execution_id"] for context in recorder.contexts}
    assert len(ids) == 2
    for context in recorder.contexts:
        assert context.metadata["function"] == "module.func"
        assert context.metadata["executor_type"] == "process"
        assert context.metadata["estimated_speedup"] == 1.8


def test_what_a_hook_writes_into_metadata_stays_there(hooks: HookManager) -> None:
    """Contexts do not share their metadata with each other, nor with the reporter."""
    recorder = RecordingHook().attach(hooks)
    hooks.register(HookEvent.PRE_EXECUTE, lambda context: context.metadata.update(mine=1))
    hooks.register(HookEvent.ON_WORKER_START, lambda context: context.metadata.update(mine=1))
    emit_everything(reporter_for(hooks))
    marked = {context.event for context in recorder.contexts if "mine" in context.metadata}
    assert marked == {HookEvent.PRE_EXECUTE, HookEvent.ON_WORKER_START}


# --- time in the function ----


def timed(start: int, **cpu: Any) -> ChunkOutcome:
    """A chunk of 2 seconds that says what it took of the CPU."""
    facts = {"seconds": 2.0, "other_seconds": 0.0, "children_seconds": 0.0, "queued_seconds": 0.0}
    return outcome(start, extras={"cpu_time": tuple((facts | cpu).values())})


def test_a_chunk_says_its_cpu_time_and_never_more_than_its_time(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """Clocks are read one after the other."""
    reporter = begun_reporter(hooks, recorder)
    complete(reporter, timed(0, seconds=0.5))
    complete(reporter, timed(5, seconds=2.000001))
    complete(reporter, outcome(10))
    said = [each.metadata.get("cpu_seconds") for each in recorder.of(HookEvent.ON_CHUNK_COMPLETE)]
    assert said == [0.5, 2.0, None]


def test_a_failed_chunk_says_it_too(hooks: HookManager, recorder: RecordingHook) -> None:
    """It has no other event."""
    reporter = begun_reporter(hooks, recorder)
    failed = timed(0, seconds=0.5)._replace(results=None)
    reporter.error(ValueError(), chunk=Chunk(0, 0, [1]), outcome=failed)
    reporter.post_execute("error", ValueError())
    assert recorder.of(HookEvent.ON_ERROR)[0].metadata["cpu_seconds"] == 0.5
    assert recorder.contexts[-1].metadata["cpu_seconds"] == 0.5


def test_calls_that_did_not_end_are_busy_time(
    clock: Clock, hooks: HookManager, recorder: RecordingHook
) -> None:
    """Of the worker, and of the run; the mean of the items is that of those which ended."""
    reporter = reporter_for(hooks)
    begin(reporter)
    for worker in (0, 1, 2):
        reporter.worker_started(started(worker))
    complete(reporter, timed(0, seconds=0.5), worker=0)
    reporter.came_too_late(1, timed(5, seconds=1.0))
    clock.now += 4.0
    reporter.worker_ended(0, "cancelled", None, Unfinished(3.0, 1.5))
    reporter.worker_ended(1, "finished")
    reporter.worker_ended(2, "died", -9, Unfinished(4.0))
    reporter.post_execute("cancelled", KeyboardInterrupt())
    ends = [each.metadata for each in recorder.of(HookEvent.ON_WORKER_END)]
    assert [each["busy_time"] for each in ends] == [5.0, 2.0, 4.0]
    assert [each.get("cpu_seconds") for each in ends] == [2.0, 1.0, None]
    post = recorder.contexts[-1]
    assert (post.metadata["busy_seconds"], post.metadata["concurrency"]) == (11.0, 2.75)
    assert not {"cpu_seconds", "measured_speedup"} & post.metadata.keys()
    assert post.avg_item_time == pytest.approx(4.0 / 5)


@pytest.mark.parametrize(
    ("status", "facts", "known"),
    [
        ("ok", {}, True),
        ("ok", {"held_up": True}, False),
        ("error", {}, False),
        ("cancelled", {}, False),
        ("timeout", {}, False),
    ],
)
def test_a_speedup_is_reported_only_of_a_run_that_made_all_its_calls(
    status: str,
    facts: dict[str, Any],
    known: bool,
    clock: Clock,
    hooks: HookManager,
    recorder: RecordingHook,
) -> None:
    """And did not wait for its consumer."""
    reporter = reporter_for(hooks)
    begin(reporter)
    for start in (0, 5):
        complete(reporter, timed(start, seconds=0.1), worker=0)
    clock.now += 3.0
    reporter.post_execute(status, None, input_seconds=0.5, **facts)
    reported = recorder.contexts[-1].metadata.get("measured_speedup")
    assert reported == (pytest.approx(1.5) if known else None)


def test_an_unknown_speedup_is_absent_from_the_events(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """Nor an estimate that the plan does not have."""
    reporter = reporter_for(hooks)
    reporter.pre_execute(
        n_jobs=8, chunksize=1, total_items=5, executor_type="thread", estimated_speedup=None
    )
    complete(reporter, timed(0, seconds=0.1, other_seconds=1.9), worker=0)
    reporter.post_execute("ok", None)
    assert not any(
        {"estimated_speedup", "measured_speedup"} & each.metadata.keys()
        for each in recorder.contexts
    )


def test_cpu_time_is_collected_for_who_hears_of_it(hooks: HookManager) -> None:
    """A bar that shows progress alone does not."""
    hooks.register(HookEvent.ON_PROGRESS, print)
    assert reporter_for(hooks).begin_collecting() is None
    hooks.register(HookEvent.POST_EXECUTE, print)
    collect = reporter_for(hooks).begin_collecting()
    assert collect is not None
    assert (collect.cpu_time, collect.user_metrics) == (True, False)
