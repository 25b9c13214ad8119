"""What the user's function counts inside of workers arrives, exactly once, with its chunk."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import os
import pickle
import re
import signal
import threading
from collections.abc import Callable, Iterable
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

import amorsize
from amorsize import HookContext, HookEvent, HookManager
from amorsize.engines.base import Task
from amorsize.engines.process import protocol
from amorsize.errors import InvalidTypeError, InvalidValueError, WorkerDiedError
from amorsize.testing import RecordingHook, assert_contract
from amorsize.workers import user_metrics
from amorsize.workers.chunk import Chunk, run_chunk
from amorsize.workers.collectors import CollectSettings
from amorsize.workers.user_metrics import (
    BUCKETS,
    MAX_HELP_CHARACTERS,
    MAX_NAMES,
    MetricsCollector,
    merge,
)

CARRIERS = (HookEvent.ON_CHUNK_COMPLETE, HookEvent.ON_ERROR)


def arrived(recorder: RecordingHook) -> dict[str, Any]:
    """Add up all that any event of a recording carries."""
    totals: dict[str, Any] = {}
    for context in recorder.contexts:
        if "user_metrics" in context.metadata:
            assert context.event in CARRIERS
        for name, share in context.metadata.get("user_metrics", {}).items():
            total = totals.setdefault(name, user_metrics.empty_metric(share["kind"]))
            merge(total, share)
            total["help"] = total["help"] or share["help"]
    return totals


def parse(x: int) -> int:
    """Reject every third item, as seven calls of three kinds."""
    if x % 3 == 0:
        amorsize.count("rows_rejected", 2, help="Rows that were no rows")
        amorsize.count("rows_rejected")
    amorsize.observe("row_bytes", x)
    amorsize.observe("row_bytes", x / 10)
    amorsize.set_gauge("last_row", x)
    return x


def check_parsed(totals: dict[str, Any], items: Iterable[int]) -> None:
    """Compare with an independent count."""
    items = list(items)
    rejected = sum(1 for x in items if x % 3 == 0)
    values = [*items, *(x / 10 for x in items)]
    assert set(totals) == {"rows_rejected", "row_bytes", "last_row"}
    assert totals["rows_rejected"]["value"] == 3 * rejected
    assert totals["rows_rejected"]["calls"] == 2 * rejected
    assert totals["rows_rejected"]["help"] == "Rows that were no rows"
    sizes = totals["row_bytes"]
    assert sizes["calls"] == sum(sizes["buckets"]) == len(values)
    assert sizes["sum"] == pytest.approx(sum(values))
    assert (sizes["min"], sizes["max"]) == (min(values), max(values))
    for position, count in enumerate(sizes["buckets"]):
        low = BUCKETS[position - 1] if position else float("-inf")
        high = BUCKETS[position] if position < len(BUCKETS) else float("inf")
        assert count == sum(1 for value in values if low < value <= high)
    assert totals["last_row"]["calls"] == len(items)


# --- every mode ----


def test_totals_equal_an_independent_count(
    mode: str, hooks: HookManager, recorder: RecordingHook
) -> None:
    """Counters, histograms and gauges, on every engine."""
    data = range(100)
    results = amorsize.execute(parse, data, executor=mode, n_jobs=2, chunksize=7, hooks=hooks)
    assert results == list(data)
    check_parsed(arrived(recorder), data)
    assert_contract(recorder.contexts)


def test_sampled_items_count_too(hooks: HookManager, recorder: RecordingHook) -> None:
    """With the executor left open, the first items run in the parent."""
    data = range(100)
    amorsize.execute(parse, data, hooks=hooks)
    sampled, *_ = recorder.of(HookEvent.ON_CHUNK_COMPLETE)
    assert sampled.metadata["sampled"] is True
    assert sampled.metadata["user_metrics"]["last_row"]["calls"] == sampled.chunk_size
    check_parsed(arrived(recorder), data)


def test_a_sample_that_fails_brings_its_numbers(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """They are on the event of the failure."""

    def fail(x: int) -> None:
        amorsize.count("attempts")
        if x == 2:
            raise ValueError("two")

    with pytest.raises(ValueError, match="two"):
        amorsize.execute(fail, range(10), hooks=hooks)
    (failed,) = recorder.of(HookEvent.ON_ERROR)
    assert failed.metadata["user_metrics"]["attempts"]["value"] == 3


def test_an_input_that_counts_is_not_part_of_the_sample(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """Else its first items would count, and the others, drawn between chunks, would not."""

    def numbers() -> Iterable[int]:
        for x in range(20):
            amorsize.count("drawn")
            yield x

    amorsize.execute(abs, numbers(), hooks=hooks)
    assert arrived(recorder) == {}


@pytest.mark.parametrize("ordered", [True, False])
def test_a_stream_counts_as_execute_does(
    mode: str, ordered: bool, hooks: HookManager, recorder: RecordingHook
) -> None:
    """Whatever the order of its results."""
    data = range(60)
    streamed = amorsize.stream(
        parse, iter(data), ordered=ordered, executor=mode, n_jobs=2, chunksize=7, hooks=hooks
    )
    assert sorted(streamed) == list(data)
    check_parsed(arrived(recorder), data)


def test_the_default_manager_listens_as_well(mode: str) -> None:
    """As an exporter does."""
    recorder = RecordingHook().attach(amorsize.get_default_manager(), CARRIERS)
    amorsize.execute(parse, range(30), executor=mode, n_jobs=2, chunksize=7)
    check_parsed(arrived(recorder), range(30))


def test_the_metadata_is_plain_data(mode: str, hooks: HookManager) -> None:
    """A hook may write it as JSON; a chunk without numbers has no key."""
    seen: list[Any] = []
    hooks.register(HookEvent.ON_CHUNK_COMPLETE, lambda context: seen.append(context.metadata))

    def count_first(x: int) -> None:
        if x == 0:
            amorsize.count("first")

    amorsize.execute(count_first, range(2), executor=mode, n_jobs=1, chunksize=1, hooks=hooks)
    first, second = seen
    assert json.loads(json.dumps(first))["user_metrics"] == {
        "first": {"kind": "counter", "help": None, "calls": 1, "value": 1}
    }
    assert not [key for key in second if key.startswith("user_metrics")]


# --- failures ----


def count_and_fail(x: int) -> int:
    amorsize.count("attempts")
    if x % 5 == 3:
        amorsize.count("failures")
        raise ValueError(f"item {x}")
    return x


def test_failing_items_in_place_count_once(
    mode: str, hooks: HookManager, recorder: RecordingHook
) -> None:
    """A chunk with failures has two events, and its numbers are on one of them."""
    amorsize.execute(
        count_and_fail,
        range(50),
        executor=mode,
        n_jobs=2,
        chunksize=5,
        hooks=hooks,
        return_exceptions=True,
    )
    totals = arrived(recorder)
    assert totals["attempts"]["value"] == 50
    assert totals["failures"]["value"] == 10
    assert all("user_metrics" not in e.metadata for e in recorder.of(HookEvent.ON_ERROR))


def test_a_failed_chunk_brings_its_numbers(
    mode: str, hooks: HookManager, recorder: RecordingHook
) -> None:
    """What was counted up to the failure is on the event of the failure."""
    with pytest.raises(ValueError, match="item 3"):
        amorsize.execute(
            count_and_fail, range(50), executor=mode, n_jobs=1, chunksize=10, hooks=hooks
        )
    (failed,) = recorder.of(HookEvent.ON_ERROR)
    assert failed.metadata["user_metrics"]["attempts"]["value"] == 4
    assert failed.metadata["user_metrics"]["failures"]["value"] == 1


class Unreadable:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return int, ("not a number",)


def return_what_does_not_unpickle(x: int) -> Any:
    amorsize.count("made")
    return Unreadable()


def test_a_chunk_that_cannot_be_carried_over_counts_once(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """Its user metrics are returned beside the results, and so is its time."""
    amorsize.execute(
        return_what_does_not_unpickle,
        range(4),
        executor="process",
        n_jobs=1,
        chunksize=2,
        hooks=hooks,
        return_exceptions=True,
    )
    assert arrived(recorder)["made"]["value"] == 4
    (end,) = recorder.of(HookEvent.ON_WORKER_END)
    chunks = recorder.of(HookEvent.ON_CHUNK_COMPLETE)
    assert end.metadata["busy_time"] == pytest.approx(sum(chunk.chunk_time for chunk in chunks))


def die_at_thirteen(x: int) -> int:
    amorsize.count("calls_made")
    if x == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def test_a_killed_worker_loses_at_most_its_chunk(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """All chunks that were returned are counted; the one in flight is not."""
    with pytest.raises(WorkerDiedError):
        amorsize.execute(
            die_at_thirteen, range(40), executor="process", n_jobs=1, chunksize=4, hooks=hooks
        )
    completed = recorder.of(HookEvent.ON_CHUNK_COMPLETE)
    assert arrived(recorder)["calls_made"]["value"] == sum(c.chunk_size or 0 for c in completed)
    assert arrived(recorder)["calls_made"]["value"] == 12


def test_items_that_ran_again_after_a_death_count_once(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """Every item but the killer counts once: its first, lost call is not reported."""
    amorsize.execute(
        die_at_thirteen,
        range(40),
        executor="process",
        n_jobs=2,
        chunksize=4,
        hooks=hooks,
        return_exceptions=True,
    )
    assert arrived(recorder)["calls_made"]["value"] == 39


# --- which hooks are notified ----


def inner_job(x: int) -> int:
    amorsize.count("inner_calls")
    return x


def nest(x: int, hooks: HookManager | None, mode: str) -> None:
    amorsize.count("outer_calls")
    amorsize.execute(inner_job, range(3), executor=mode, n_jobs=2, chunksize=2, hooks=hooks)
    amorsize.count("outer_calls")


@pytest.mark.parametrize("outer", ["serial", "thread"])
def test_nested_executions_do_not_mix(
    outer: str, mode: str, hooks: HookManager, recorder: RecordingHook
) -> None:
    """Each reports its own, also while the other one is at work."""
    inner_hooks = HookManager()
    inner = RecordingHook().attach(inner_hooks)
    amorsize.execute(
        lambda x: nest(x, inner_hooks, mode), range(4), executor=outer, n_jobs=2, hooks=hooks
    )
    assert {name: each["value"] for name, each in arrived(recorder).items()} == {"outer_calls": 8}
    assert {name: each["value"] for name, each in arrived(inner).items()} == {"inner_calls": 12}


@pytest.mark.parametrize("outer", ["serial", "thread", "process"])
def test_an_unobserved_execution_counts_for_the_chunk_around_it(
    outer: str, mode: str, hooks: HookManager, recorder: RecordingHook
) -> None:
    """In a worker nobody ever listens; nothing is lost there all the same."""
    amorsize.execute(lambda x: nest(x, None, mode), range(4), executor=outer, n_jobs=2, hooks=hooks)
    totals = {name: each["value"] for name, each in arrived(recorder).items()}
    assert totals == {"outer_calls": 8, "inner_calls": 12}


def test_what_an_inner_execution_dropped_is_not_forgotten(
    mode: str, hooks: HookManager, recorder: RecordingHook
) -> None:
    """The limit of the chunk around it holds for both together."""

    def explode(x: int) -> None:
        for number in range(MAX_NAMES + 3):
            amorsize.count(f"inner_{number}")

    def outer(x: int) -> None:
        amorsize.count("outer")
        amorsize.execute(explode, [1], executor=mode, n_jobs=1)

    amorsize.execute(outer, [1], executor="serial", hooks=hooks)
    (chunk,) = recorder.of(HookEvent.ON_CHUNK_COMPLETE)
    assert len(chunk.metadata["user_metrics"]) == MAX_NAMES
    assert chunk.metadata["user_metrics_dropped"] == 4


def test_two_executions_at_once_do_not_mix(mode: str) -> None:
    """Each thread of the caller observes its own run."""
    totals_by_width: dict[int, dict[str, Any]] = {}

    def run(width: int) -> None:
        own = HookManager()
        recorder = RecordingHook().attach(own)
        amorsize.execute(
            lambda x: amorsize.count(f"width_{width}", width),
            range(40),
            executor=mode,
            n_jobs=2,
            chunksize=3,
            hooks=own,
        )
        totals_by_width[width] = arrived(recorder)

    threads = [threading.Thread(target=run, args=(width,)) for width in (1, 10, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {
        width: {name: each["value"] for name, each in totals.items()}
        for width, totals in totals_by_width.items()
    } == {width: {f"width_{width}": 40 * width} for width in (1, 10, 100)}


def test_several_threads_of_one_chunk_lose_nothing(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """Threads that run in a copy of the caller's context reach its chunk."""

    def work() -> None:
        for value in range(2000):
            amorsize.count("ticks")
            amorsize.observe("tick_size", value)

    def spread(x: int) -> None:
        contexts = [contextvars.copy_context() for _ in range(4)]
        threads = [threading.Thread(target=each.run, args=(work,)) for each in contexts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    amorsize.execute(spread, range(2), executor="serial", hooks=hooks)
    totals = arrived(recorder)
    assert totals["ticks"]["value"] == 2 * 4 * 2000
    assert totals["tick_size"]["sum"] == 2 * 4 * sum(range(2000))


def test_asyncio_is_followed(mode: str, hooks: HookManager, recorder: RecordingHook) -> None:
    """Tasks, and threads that asyncio starts, carry their context with them."""

    async def fetch(x: int) -> None:
        amorsize.count("fetched")
        await asyncio.to_thread(amorsize.count, "fetched")

    async def fetch_all() -> None:
        await asyncio.gather(*(fetch(x) for x in range(5)))

    def job(x: int) -> None:
        asyncio.run(fetch_all())

    amorsize.execute(job, range(2), executor=mode, n_jobs=2, chunksize=1, hooks=hooks)
    assert arrived(recorder)["fetched"]["value"] == 20


def test_a_call_after_the_end_of_its_chunk_is_ignored() -> None:
    """Values that were taken do not change."""
    collector = MetricsCollector()
    late: list[contextvars.Context] = []

    def job(x: int) -> None:
        amorsize.count("early")
        late.append(contextvars.copy_context())

    collector.enter()
    job(1)
    collector.leave()
    taken = collector.take()
    late[0].run(amorsize.count, "early")
    late[0].run(amorsize.set_gauge, "late", 1)
    assert taken == ({"early": {"kind": "counter", "help": None, "calls": 1, "value": 1}}, 0)
    assert collector.take() is None


# --- a no-op ----


@pytest.mark.parametrize("collect", [True, False])
def test_extras_stay_empty_without_observers(collect: bool) -> None:
    """Neither is anything kept where nothing was counted."""
    counting = run_chunk(parse, Chunk(0, 0, [1, 2]), collect=CollectSettings(collect))
    silent = run_chunk(abs, Chunk(0, 0, [1, 2]), collect=CollectSettings(collect))
    assert ("user_metrics" in counting.extras) is collect
    assert silent.extras == {}


@pytest.mark.parametrize("event", list(HookEvent))
def test_workers_collect_only_for_events_that_carry_numbers(
    event: HookEvent, hooks: HookManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A progress bar alone is no reason to."""
    tasks: list[Task] = []
    from amorsize.engines.serial import SerialBackend

    monkeypatch.setattr(SerialBackend, "open", lambda self, task: tasks.append(task) or _open(self))

    def _open(backend: Any) -> None:
        backend._task = tasks[-1]

    hooks.register(event, lambda context: None)
    amorsize.execute(parse, [1, 2], executor="serial", hooks=hooks)
    collect = tasks[0].collect
    assert (collect is not None and collect.user_metrics) is (event in CARRIERS)


def test_outside_of_an_execution_calls_do_nothing() -> None:
    """A function that counts may be called by hand, and in its own unit tests."""
    assert parse(3) == 3
    assert user_metrics.current_collector() is None


def test_a_run_that_is_interrupted_leaves_no_collector(hooks: HookManager) -> None:
    """Ctrl-C passes through the chunk, and out of its collector."""
    RecordingHook().attach(hooks)

    def interrupt(x: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        amorsize.execute(interrupt, [1], executor="serial", hooks=hooks)
    assert user_metrics.current_collector() is None


def test_nothing_is_logged_an_item(
    hooks: HookManager, recorder: RecordingHook, caplog: pytest.LogCaptureFixture
) -> None:
    """Numbers are numbers, not log lines."""
    caplog.set_level(logging.DEBUG)
    amorsize.execute(parse, range(20), executor="serial", hooks=hooks)
    assert [each for each in caplog.records if each.name == user_metrics.__name__] == []


# --- how they add up ----


def test_a_million_observations_are_returned_in_a_few_bytes() -> None:
    """Their size depends on the number of names, never on that of calls."""

    def measure(calls: int) -> int:
        collector = MetricsCollector()
        for value in range(calls):
            collector.observe("seconds", value / 1000, None)
        return len(pickle.dumps(collector.take(), 5))

    assert measure(1_000_000) < 400
    assert measure(1_000_000) < measure(100) + 100


def test_names_and_help_texts_are_bounded_a_chunk() -> None:
    """The longest names and texts that are allowed, and as many as are kept."""
    collector = MetricsCollector()
    for number in range(3 * MAX_NAMES):
        collector.observe(f"{number:_>100}", 1.5, "h" * 5000)
    carried = collector.take()
    assert carried is not None
    metrics, dropped = carried
    assert (len(metrics), dropped) == (MAX_NAMES, 2 * MAX_NAMES)
    assert {len(each["help"] or "") for each in metrics.values()} == {MAX_HELP_CHARACTERS}
    assert len(pickle.dumps(carried, 5)) < 25_000


def test_the_newest_value_of_a_gauge_wins() -> None:
    """By the time at which it was set, not by that at which its chunk was returned."""
    total, old, new = (user_metrics.empty_metric("gauge") for _ in range(3))
    old |= {"calls": 1, "value": 1, "time": 100.0}  # type: ignore[typeddict-item]
    new |= {"calls": 2, "value": 2, "time": 200.0}  # type: ignore[typeddict-item]
    merge(total, new)
    merge(total, old)
    assert total == {"kind": "gauge", "help": None, "calls": 3, "value": 2, "time": 200.0}


def test_kinds_are_not_added_to_each_other() -> None:
    """What reaches merge() has been admitted by its kind."""
    with pytest.raises(AssertionError, match="a gauge cannot be added to a counter"):
        merge(user_metrics.empty_metric("counter"), user_metrics.empty_metric("gauge"))


def test_buckets_go_up_from_nought() -> None:
    """The bounds are part of what users see: they do not change."""
    assert BUCKETS[:4] == (0.0, 1e-06, 3e-06, 1e-05)
    assert BUCKETS[-3:] == (1e8, 3e8, 1e9)
    assert list(BUCKETS) == sorted(set(BUCKETS))
    assert len(BUCKETS) == 32


def test_observations_below_nought_are_counted() -> None:
    """All of them are in the first bucket, and in the minimum."""
    collector = MetricsCollector()
    for value in (-2.5, 0, 2e9):
        collector.observe("balance", value, None)
    (metrics, _) = collector.take() or ({}, 0)
    balance: Any = metrics["balance"]
    assert (balance["min"], balance["max"], balance["sum"]) == (-2.5, 2e9, 2e9 - 2.5)
    assert (balance["buckets"][0], balance["buckets"][-1]) == (2, 1)


# --- the limits of a process ----


def test_names_past_the_limit_are_dropped_counted_and_said_once(
    hooks: HookManager, recorder: RecordingHook, caplog: pytest.LogCaptureFixture
) -> None:
    """An id in a name must not take the application down, nor its monitoring."""

    def explode(x: int) -> None:
        amorsize.count(f"user_{x}")
        amorsize.count(f"user_{x}")

    data = range(MAX_NAMES + 20)
    amorsize.execute(explode, data, executor="serial", chunksize=5, hooks=hooks)
    amorsize.execute(explode, data, executor="serial", chunksize=5, hooks=hooks)
    assert set(arrived(recorder)) == {f"user_{x}" for x in range(MAX_NAMES)}
    dropped = [c.metadata.get("user_metrics_dropped", 0) for c in recorder.contexts]
    assert sum(dropped) == 2 * 2 * 20
    (said,) = [each for each in caplog.records if each.name == user_metrics.__name__]
    assert "50 names are kept per chunk and per process" in said.getMessage()


def test_names_past_the_limit_of_one_chunk_are_counted(
    mode: str, hooks: HookManager, recorder: RecordingHook
) -> None:
    """They are dropped in the worker already."""

    def explode(x: int) -> None:
        for number in range(MAX_NAMES + 7):
            amorsize.set_gauge(f"gauge_{number}", x)

    amorsize.execute(explode, [1], executor=mode, n_jobs=1, hooks=hooks)
    (chunk,) = recorder.of(HookEvent.ON_CHUNK_COMPLETE)
    assert len(chunk.metadata["user_metrics"]) == MAX_NAMES
    assert chunk.metadata["user_metrics_dropped"] == 7


def test_a_name_of_two_kinds_in_two_workers_keeps_the_first(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No worker can know of the other; the parent does."""

    def carried(kind: Any, calls: int) -> Any:
        metric = user_metrics.empty_metric(kind)
        metric["calls"] = calls
        return {"speed": metric}, 0

    assert set(user_metrics.admit(carried("gauge", 1))) == {"user_metrics"}
    assert user_metrics.admit(carried("counter", 3)) == {"user_metrics_dropped": 3}
    assert user_metrics.admit(carried("counter", 2)) == {"user_metrics_dropped": 2}
    assert caplog.text.count("'speed' is a gauge in one worker and a counter") == 1


def test_more_names_than_are_remembered_are_still_checked() -> None:
    """The memory of a process for names is bounded; a chunk still has one kind a name."""
    for number in range(user_metrics._KNOWN_LIMIT + 5):
        amorsize.count(f"name_{number}")
    assert len(user_metrics._kinds) == user_metrics._KNOWN_LIMIT
    collector = MetricsCollector()
    collector.enter()
    amorsize.count("one_more")
    amorsize.observe("one_more", 1)
    collector.leave()
    metrics, dropped = collector.take() or ({}, 0)
    assert (metrics["one_more"]["kind"], dropped) == ("counter", 1)


# --- what is refused ----

CALLS = [amorsize.count, amorsize.observe, amorsize.set_gauge]


@pytest.mark.parametrize("listening", [True, False])
@pytest.mark.parametrize("call", CALLS)
def test_wrong_names_are_refused_at_the_call(call: Any, listening: bool) -> None:
    """Whether anybody listens or not: to enable an exporter must not break a program."""
    collector = MetricsCollector()
    if listening:
        collector.enter()
    try:
        for name in ("", "rows rejected", "9th", "rows-rejected", "ünits", "a:b", "a\n", "x" * 101):
            with pytest.raises(InvalidValueError, match="give letters, digits and underscores"):
                call(name, 1)
        for name in ("rows_total", "rows_count", "rows_sum", "rows_bucket", "a_created", "a_info"):
            with pytest.raises(InvalidValueError, match="Prometheus appends such endings"):
                call(name, 1)
        for wrong in (None, 3, b"rows", ["rows"]):
            with pytest.raises(InvalidTypeError, match=r"the name given to \w+\(\) is of type"):
                call(wrong, 1)
        with pytest.raises(InvalidTypeError, match="the help of 'rows' is of type int"):
            call("rows", 1, help=3)
    finally:
        collector.leave()
    assert collector.take() is None


@pytest.mark.parametrize("call", CALLS)
def test_wrong_values_are_refused_at_the_call(call: Any) -> None:
    """Only finite numbers can be added up."""
    name = call.__name__
    for wrong in (None, True, "1", b"1", [1], 1j, object()):
        with pytest.raises(InvalidTypeError, match=r"got a value of type \w+ for"):
            call(name, wrong)
    for bad in (float("nan"), float("inf"), float("-inf"), 10**400, -(10**400)):
        with pytest.raises(InvalidValueError, match="give a finite number"):
            call(name, bad)


def test_a_value_that_does_not_become_a_number_is_refused() -> None:
    """As an array of several numbers does not."""

    class Several:
        def __float__(self) -> float:
            raise TypeError("only one number can be converted")

    with pytest.raises(InvalidTypeError, match=r"which is not a number \(only one number"):
        amorsize.observe("several", Several())  # type: ignore[arg-type]


def test_counters_never_go_back() -> None:
    """Nought makes a counter appear; less is refused."""
    amorsize.count("rows", 0)
    with pytest.raises(InvalidValueError, match=r"count\(\) got -1.0 for 'rows'; .* 0 or more"):
        amorsize.count("rows", -1)


def test_a_name_has_one_kind() -> None:
    """Said where the second one is used."""
    amorsize.count("rows")
    for call, used in ((amorsize.observe, "observe"), (amorsize.set_gauge, "set_gauge")):
        with pytest.raises(InvalidValueError, match=rf"{used}\(\) .* used with count\(\)"):
            call("rows", 1)


def test_an_error_at_a_call_is_the_items_failure(mode: str) -> None:
    """It is raised in the user's function, and arrives as any exception of it does."""
    results = amorsize.execute(
        lambda x: amorsize.count("not a name"),
        [1],
        executor=mode,
        n_jobs=1,
        return_exceptions=True,
    )
    assert isinstance(results[0], InvalidValueError)


def test_other_numbers_arrive_as_plain_ones(hooks: HookManager, recorder: RecordingHook) -> None:
    """What has a float is a number, and what is sent is only ever an int or a float."""

    class Metric(StrEnum):
        ROWS = "rows"

    class Whole(int):
        pass

    class Part(float):
        pass

    def job(x: int) -> None:
        amorsize.count(Metric.ROWS, Whole(2), help=Metric.ROWS)
        amorsize.count(Metric.ROWS, Decimal("0.5"))
        amorsize.count(Metric.ROWS, Part(0.25))
        amorsize.set_gauge("large", 2**60)

    amorsize.execute(job, [1], executor="serial", hooks=hooks)
    totals = arrived(recorder)
    (rows,) = [name for name in totals if name == "rows"]
    assert (type(rows), totals["rows"]["value"]) == (str, 2.75)
    assert type(totals["rows"]["help"]) is str
    assert (type(totals["large"]["value"]), totals["large"]["value"]) == (float, 2.0**60)


def test_numbers_survive_the_wire() -> None:
    """They are in the header of an outcome, beside results of any size."""
    outcome = run_chunk(parse, Chunk(0, 0, [3]), collect=CollectSettings(user_metrics=True))
    header, payload = protocol.pack_outcome(outcome)
    back = protocol.unpack_outcome(pickle.loads(pickle.dumps(header)), payload, pid=1, hostname="h")
    assert back.extras == outcome.extras


def test_hooks_of_others_that_raise_do_not_lose_numbers(
    mode: str, hooks: HookManager, recorder: RecordingHook, caplog: pytest.LogCaptureFixture
) -> None:
    """Each hook is notified on its own."""
    caplog.set_level(logging.CRITICAL)

    def broken(context: HookContext) -> None:
        raise RuntimeError("broken")

    noisy = HookManager()
    noisy.register(HookEvent.ON_CHUNK_COMPLETE, broken)
    RecordingHook().attach(noisy)
    recorder.attach(noisy)
    amorsize.execute(parse, range(10), executor=mode, n_jobs=2, chunksize=2, hooks=noisy)
    check_parsed(arrived(recorder), range(10))


def test_the_snippets_of_the_guide_run_and_do_as_it_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """docs/user-metrics.md, from top to bottom in one program."""
    recorder = RecordingHook().attach(amorsize.get_default_manager())
    guide = Path(__file__).parents[2] / "docs" / "user-metrics.md"
    names: dict[str, Any] = {}
    for snippet in re.findall(
        r"^```python\n(.*?)^```", guide.read_text(), re.DOTALL | re.MULTILINE
    ):
        exec(compile(snippet, guide.name, "exec"), names)
    assert names["rows"] == [["a", "b", "c"], None, ["1", "2", "3"], None]
    assert names["bounds"] == [*BUCKETS]
    totals = arrived(recorder)
    assert (totals["rows_rejected"]["value"], totals["row_bytes"]["calls"]) == (2 + 1, 2 + 1)
    assert "rows_rejected counter 1" in capsys.readouterr().out
