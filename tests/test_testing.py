"""The public test doubles: the recorder, and the contract as a check that really checks."""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Callable

import pytest

import amorsize
from amorsize import HookContext, HookEvent, HookManager
from amorsize.errors import ContractError
from amorsize.testing import EXECUTOR_TYPES, EXIT_REASONS, STATUSES, RecordingHook, assert_contract

PRE, POST = HookEvent.PRE_EXECUTE, HookEvent.POST_EXECUTE
START, END = HookEvent.ON_WORKER_START, HookEvent.ON_WORKER_END
CHUNK, PROGRESS, ERROR = HookEvent.ON_CHUNK_COMPLETE, HookEvent.ON_PROGRESS, HookEvent.ON_ERROR

Recording = list[HookContext]


def record(data: list[int], **settings: object) -> Recording:
    """Record a real execution of ``1 / item``, on one thread, in chunks of two."""
    hooks = HookManager()
    recorder = RecordingHook().attach(hooks)
    settings = {"executor": "thread", "n_jobs": 1, "chunksize": 2} | settings
    try:
        amorsize.execute(lambda number: 1 / number, data, hooks=hooks, **settings)  # type: ignore[call-overload]
    except ZeroDivisionError:
        pass
    return recorder.contexts


@pytest.fixture(scope="module")
def _recordings() -> dict[str, Recording]:
    return {"good": record([1, 2, 3, 4, 5]), "failed": record([1, 2, 0, 4])}


@pytest.fixture
def good(_recordings: dict[str, Recording]) -> Recording:
    """A recording of a successful run, to be broken."""
    return copy.deepcopy(_recordings["good"])


@pytest.fixture
def failed(_recordings: dict[str, Recording]) -> Recording:
    """A recording of a run that failed, to be broken further."""
    return copy.deepcopy(_recordings["failed"])


def first(contexts: Recording, event: HookEvent) -> HookContext:
    return next(context for context in contexts if context.event is event)


def last(contexts: Recording, event: HookEvent) -> HookContext:
    return first(contexts[::-1], event)


# --- RecordingHook ----


def test_a_recorder_keeps_every_context_in_order() -> None:
    """As they came, the same objects."""
    recorder = RecordingHook()
    contexts = [HookContext(PRE), HookContext(PROGRESS), HookContext(PROGRESS), HookContext(POST)]
    for context in contexts:
        recorder(context)
    assert all(kept is given for kept, given in zip(recorder.contexts, contexts, strict=True))
    assert recorder.events == [PRE, PROGRESS, PROGRESS, POST]
    assert recorder.of(PROGRESS) == contexts[1:3]
    assert recorder.of(ERROR) == []


def test_a_recorder_attaches_to_all_events_or_to_those_named() -> None:
    """And returns itself, to be kept in one line."""
    hooks = HookManager()
    recorder = RecordingHook()
    assert recorder.attach(hooks) is recorder
    assert hooks.get_hook_count() == len(HookEvent)
    other = HookManager()
    RecordingHook().attach(other, [PRE, POST])
    assert [event for event in HookEvent if other.has_hooks(event)] == [PRE, POST]


def test_wait_for_returns_what_was_recorded_before() -> None:
    """Without waiting; ``count`` says which one."""
    recorder = RecordingHook()
    contexts = [HookContext(PROGRESS, items_completed=number) for number in range(3)]
    for context in contexts:
        recorder(context)
    assert recorder.wait_for(PROGRESS, 0) is contexts[0]
    assert recorder.wait_for(PROGRESS, 0, count=3) is contexts[2]


def test_wait_for_waits_for_another_thread() -> None:
    """Other events do not end the wait."""
    recorder = RecordingHook()
    contexts = [HookContext(event) for event in (PRE, PROGRESS, ERROR, PROGRESS)]
    thread = threading.Thread(target=lambda: [recorder(context) for context in contexts])
    thread.start()
    assert recorder.wait_for(PROGRESS, 30, count=2) is contexts[3]
    thread.join()


def test_wait_for_says_what_was_recorded_instead() -> None:
    """A failing test then shows the events."""
    recorder = RecordingHook()
    with pytest.raises(TimeoutError, match="recorded: nothing"):
        recorder.wait_for(POST, 0)
    recorder(HookContext(PRE))
    recorder(HookContext(ERROR))
    with pytest.raises(
        TimeoutError,
        match=r"post_execute was not seen 2 times within 0.01 sec.*: pre_execute, on_error$",
    ):
        recorder.wait_for(POST, 0.01, count=2)


# --- assert_contract: what passes ----


def test_a_real_execution_passes(good: Recording) -> None:
    """As it was recorded: two chunks of two, one of one."""
    assert_contract(good)
    assert [context.chunk_size for context in good if context.event is CHUNK] == [2, 2, 1]


def test_a_real_failure_passes(failed: Recording) -> None:
    """One chunk with results, one error, and an end."""
    assert_contract(failed)
    assert failed[-1].metadata["status"] == "error"


@pytest.mark.parametrize("executor", ["serial", "thread", "process"])
@pytest.mark.parametrize("data", [[], [1], [1, 0, 2]], ids=["empty", "one", "failures"])
def test_real_executions_of_every_kind_pass(executor: str, data: list[int]) -> None:
    """With exceptions in place of results."""
    assert_contract(record(data, executor=executor, return_exceptions=True))


def test_executions_that_ran_at_the_same_time_are_distinguished(
    good: Recording, failed: Recording
) -> None:
    """Their events may be mixed; each keeps the contract for itself."""
    mixed = [context for pair in zip(good, failed, strict=False) for context in pair]
    mixed += good[len(failed) :] + failed[len(good) :]
    assert_contract(mixed)


def test_two_broken_executions_are_both_named(good: Recording, failed: Recording) -> None:
    """Every rule that is broken is listed, with its execution."""
    with pytest.raises(ContractError) as caught:
        assert_contract(good[:-1] + failed[:-1])
    for recording in (good, failed):
        assert f"execution {recording[0].metadata['execution_id']}: " in str(caught.value)


def test_a_broken_contract_is_an_assertion_error(good: Recording) -> None:
    """So that test runners report it as a failure, not as an error."""
    with pytest.raises(AssertionError, match="the event contract is broken:\nexecution "):
        assert_contract(good[:-1])


def test_nothing_recorded_is_not_a_kept_contract() -> None:
    """A hook that was never registered proves nothing."""
    with pytest.raises(ContractError, match="no context was recorded"):
        assert_contract([])


# --- assert_contract: each rule, broken ----

Break = Callable[[Recording], object]


def change(event: HookEvent, **fields: object) -> Break:
    """Set fields of the last context of an event."""

    def broken(contexts: Recording) -> None:
        context = last(contexts, event)
        for name, value in fields.items():
            setattr(context, name, value)

    return broken


def say(event: HookEvent, **metadata: object) -> Break:
    """Set metadata of the last context of an event."""
    return lambda contexts: last(contexts, event).metadata.update(metadata)


def forget(event: HookEvent, key: str) -> Break:
    """Take a key out of the metadata of the last context of an event."""
    return lambda contexts: last(contexts, event).metadata.pop(key)


def drop(event: HookEvent) -> Break:
    """Take out the last context of an event."""
    return lambda contexts: contexts.remove(last(contexts, event))


def double(event: HookEvent) -> Break:
    """Let the last context of an event come twice."""

    def broken(contexts: Recording) -> None:
        context = last(contexts, event)
        contexts.insert(contexts.index(context), dataclasses.replace(context))

    return broken


def move(event: HookEvent, to: int) -> Break:
    """Let the last context of an event come at another place."""

    def broken(contexts: Recording) -> None:
        context = last(contexts, event)
        contexts.remove(context)
        contexts.insert(to, context)

    return broken


def drop_last_chunk_and_progress(contexts: Recording) -> None:
    drop(CHUNK)(contexts)
    drop(PROGRESS)(contexts)


BROKEN: list[tuple[str, Break, str]] = [
    ("no-pre", drop(PRE), "pre_execute came 0 times, not once"),
    ("two-pre", double(PRE), "pre_execute came 2 times, not once"),
    ("pre-late", move(PRE, 1), "the first event is on_worker_start, not pre_execute"),
    ("no-post", drop(POST), "post_execute came 0 times, not once"),
    ("two-post", double(POST), "post_execute came 2 times, not once"),
    ("post-early", move(POST, -1), "the last event is on_worker_end, not post_execute"),
    ("renamed", say(CHUNK, function="other"), "the function changes its name"),
    ("no-function", forget(PRE, "function"), "pre_execute lacks metadata ['function']"),
    ("no-engine", forget(START, "executor_type"), "lacks metadata ['executor_type']"),
    ("no-pid", forget(START, "pid"), "on_worker_start lacks metadata ['pid']"),
    ("no-host", forget(START, "hostname"), "on_worker_start lacks metadata ['hostname']"),
    ("no-thread", forget(START, "thread_name"), "on_worker_start lacks metadata ['thread_name']"),
    ("no-reason", forget(END, "exit_reason"), "on_worker_end lacks metadata ['exit_reason']"),
    ("no-code", forget(END, "exit_code"), "on_worker_end lacks metadata ['exit_code']"),
    ("no-items", forget(END, "items"), "on_worker_end lacks metadata ['items']"),
    ("no-busy", forget(END, "busy_time"), "on_worker_end lacks metadata ['busy_time']"),
    ("no-end-pid", forget(END, "pid"), "on_worker_end lacks metadata ['pid']"),
    ("no-start", forget(CHUNK, "chunk_start"), "on_chunk_complete lacks metadata ['chunk_start']"),
    ("no-failed", forget(CHUNK, "failed_items"), "lacks metadata ['failed_items']"),
    ("no-status", forget(POST, "status"), "post_execute lacks metadata ['status']"),
    ("no-planning", forget(POST, "planning_time"), "lacks metadata ['planning_time']"),
    ("no-concurrency", forget(POST, "concurrency"), "lacks metadata ['concurrency']"),
    ("no-busy-total", forget(POST, "busy_seconds"), "lacks metadata ['busy_seconds']"),
    ("engine", say(CHUNK, executor_type="gpu"), "unknown executor_type 'gpu'"),
    ("queue", say(CHUNK, queue_time=-0.1), "a negative queue_time: -0.1"),
    ("items-back", change(POST, items_completed=4), "items_completed goes back"),
    ("percent-back", change(POST, percent_complete=99.0), "percent_complete goes back"),
    ("time-back", change(POST, elapsed_time=0.0), "elapsed_time goes back"),
    ("percent-high", change(POST, percent_complete=101.0), "percent_complete leaves 0 to 100"),
    ("percent-low", change(PRE, percent_complete=-1.0), "percent_complete leaves 0 to 100"),
    ("worker-id", change(START, worker_id=3), "worker 3 starts where 0 is next"),
    ("two-starts", double(START), "worker 0 starts where 1 is next"),
    ("two-ends", double(END), "worker 0 ends without a start, or twice"),
    ("end-only", drop(START), "worker 0 ends without a start, or twice"),
    ("reason", say(END, exit_reason="tired"), "unknown exit_reason 'tired'"),
    ("stranger", change(CHUNK, worker_id=9), "comes from worker 9, which is not at work"),
    ("after-end", move(END, 2), "comes from worker 0, which is not at work"),
    ("no-end", drop(END), "workers ['0'] have a start and no end"),
    ("chunk-twice", change(CHUNK, chunk_id=0), "a chunk completes twice: [0, 1, 0]"),
    ("chunk-lost", drop(CHUNK), "the chunks add up to 4 items, items_completed says 5"),
    ("chunk-size", change(CHUNK, chunk_size=2), "the chunks add up to 6 items"),
    ("overlap", say(CHUNK, chunk_start=3), "chunks overlap at item 3"),
    ("progress-twice", double(PROGRESS), "on_progress follows on_progress, not on_chunk_complete"),
    ("progress-early", move(PROGRESS, 1), "on_progress follows pre_execute, not on_chunk_complete"),
    ("no-last", drop(PROGRESS), "the last on_progress was not emitted"),
    ("status", say(POST, status="fine"), "unknown status 'fine'"),
    ("percent", change(POST, percent_complete=float("nan")), "not 100.0"),
    ("items", change(POST, total_items=6), "5 of 6 items after success"),
    ("no-total", change(POST, total_items=None), "5 of None items after success"),
    ("short", drop_last_chunk_and_progress, "the chunks add up to 4 items"),
    ("quiet-error", say(POST, status="error"), "the run ended as error without an on_error"),
    ("quiet-timeout", say(POST, status="timeout"), "ended as timeout without an on_error"),
]

BROKEN_FAILURES: list[tuple[str, Break, str]] = [
    ("error-without-error", change(ERROR, error=None), "on_error without an error"),
    ("error-metadata", forget(ERROR, "failed_items"), "on_error lacks metadata ['failed_items']"),
    ("no-on-error", drop(ERROR), "the run ended as error without an on_error"),
    ("post-error", change(POST, error=None), "ended as error and post_execute has no error"),
    ("not-ok", say(POST, status="ok"), "2 of 4 items after success"),
    ("percent", say(POST, status="ok"), "percent_complete is 50.0 after success, not 100.0"),
    ("error-queue", say(ERROR, queue_time=-1.0), "a negative queue_time: -1.0"),
]


@pytest.mark.parametrize(
    ("damage", "rule"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN]
)
def test_a_broken_rule_of_a_successful_run_is_reported(
    good: Recording, damage: Break, rule: str
) -> None:
    """A recording that was good until it was changed in one place."""
    damage(good)
    with pytest.raises(ContractError) as caught:
        assert_contract(good)
    assert rule in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "rule"),
    [row[1:] for row in BROKEN_FAILURES],
    ids=[row[0] for row in BROKEN_FAILURES],
)
def test_a_broken_rule_of_a_failed_run_is_reported(
    failed: Recording, damage: Break, rule: str
) -> None:
    """A recording that was good until it was changed in one place."""
    damage(failed)
    with pytest.raises(ContractError) as caught:
        assert_contract(failed)
    assert rule in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        forget(CHUNK, "execution_id"),
        change(CHUNK, chunk_id=None),
        change(CHUNK, chunk_time=-1.0),
        say(CHUNK, chunk_start=7),
        change(POST, items_remaining=3),
        change(PROGRESS, worker_count=5),
    ],
    ids=["execution-id", "chunk-id", "chunk-time", "gap", "remaining", "worker-count"],
)
def test_a_field_that_contradicts_the_others_is_reported(good: Recording, damage: Break) -> None:
    """Numbers that exporters add up or show as they are."""
    damage(good)
    with pytest.raises(ContractError):
        assert_contract(good)


def test_the_vocabularies_are_those_of_the_contract() -> None:
    """Dashboards and exporters count on these words."""
    assert STATUSES == ("ok", "error", "cancelled", "timeout")
    assert EXIT_REASONS == ("finished", "died", "cancelled", "abandoned")
    assert EXECUTOR_TYPES == ("serial", "thread", "process", "dask", "custom")
