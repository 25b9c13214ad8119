"""``timeout=`` for the run, ``item_timeout=`` for an item, in every mode."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from waiting import PATIENCE, slowness

import amorsize
from amorsize import HookEvent, HookManager
from amorsize.errors import ExecutionTimeoutError, ItemTimeoutError
from amorsize.testing import RecordingHook, assert_contract

FOREVER = 200.0
"""Seconds of an item that never ends within a test's patience."""


def hang_on_five(x: int) -> int:
    if x == 5:
        time.sleep(FOREVER)
    return x


def test_a_run_that_takes_too_long_is_ended(
    mode: str, hooks: HookManager, recorder: RecordingHook
) -> None:
    """Status timeout; processes are ended, threads are abandoned and say so."""
    amorsize.execute(abs, [1], executor=mode)  # workers are up: five fast items need no second
    seconds = math.ceil(slowness())
    began = time.monotonic()
    with pytest.raises(ExecutionTimeoutError, match=rf"timeout={seconds} .* of 10 items"):
        amorsize.execute(
            hang_on_five,
            range(10),
            executor=mode,
            n_jobs=1,
            chunksize=1,
            timeout=seconds,
            hooks=hooks,
        )
    assert time.monotonic() - began < FOREVER / 2
    assert_contract(recorder.contexts)
    post = recorder.contexts[-1]
    assert (post.metadata["status"], post.items_completed) == ("timeout", 5)
    (error,) = recorder.of(HookEvent.ON_ERROR)
    assert error.error is post.error
    (end,) = recorder.of(HookEvent.ON_WORKER_END)
    assert end.metadata["exit_reason"] == ("cancelled" if mode == "process" else "abandoned")


def test_an_item_that_takes_too_long_ends_the_run_and_is_named(
    mode: str, hooks: HookManager, recorder: RecordingHook
) -> None:
    """The error says which item, and for how long it ran."""
    with pytest.raises(ItemTimeoutError, match=r"item 5 \(chunk 2\) ran for .* seconds"):
        amorsize.execute(
            hang_on_five,
            range(10),
            executor=mode,
            n_jobs=2,
            chunksize=2,
            item_timeout=0.3 * slowness(),
            hooks=hooks,
        )
    assert_contract(recorder.contexts)
    assert recorder.contexts[-1].metadata["status"] == "timeout"
    (error,) = recorder.of(HookEvent.ON_ERROR)
    assert (error.chunk_id, error.metadata["item_index"]) == (2, 5)


def test_with_return_exceptions_only_that_item_fails(
    mode: str, hooks: HookManager, recorder: RecordingHook
) -> None:
    """Its worker is replaced, and the rest of the run goes on."""
    results = amorsize.execute(
        hang_on_five,
        range(10),
        executor=mode,
        n_jobs=2,
        chunksize=3,
        item_timeout=0.3 * slowness(),
        return_exceptions=True,
        hooks=hooks,
    )
    assert [x for x in results if isinstance(x, int)] == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert isinstance(results[5], ItemTimeoutError)
    assert_contract(recorder.contexts)
    assert recorder.contexts[-1].metadata["status"] == "ok"


def test_fast_items_are_not_touched_by_the_limits(
    mode: str, hooks: HookManager, recorder: RecordingHook
) -> None:
    """Limits that are not reached change nothing."""
    options: dict[str, Any] = {"timeout": 300, "item_timeout": 300}
    assert amorsize.execute(abs, range(50), executor=mode, n_jobs=2, hooks=hooks, **options) == [
        *range(50)
    ]
    assert_contract(recorder.contexts)


def test_a_stream_has_the_same_limits(
    mode: str, hooks: HookManager, recorder: RecordingHook
) -> None:
    """Results before the limit are given, then the error is raised."""
    amorsize.execute(abs, [1], executor=mode)
    stream = amorsize.stream(
        hang_on_five,
        range(10),
        executor=mode,
        n_jobs=1,
        chunksize=1,
        timeout=slowness(),
        hooks=hooks,
    )
    assert [next(stream) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ExecutionTimeoutError):
        next(stream)
    assert_contract(recorder.contexts)
    assert recorder.contexts[-1].metadata["status"] == "timeout"


def test_a_stream_that_is_closed_does_not_wait_for_a_hanging_item(
    mode: str, hooks: HookManager, recorder: RecordingHook
) -> None:
    """The consumer gets away at once, whatever the engine."""
    reached = threading.Event()
    hooks.register(HookEvent.ON_PROGRESS, lambda c: c.items_completed >= 5 and reached.set())
    stream = amorsize.stream(
        hang_on_five, range(10), executor=mode, n_jobs=1, chunksize=1, hooks=hooks
    )
    assert next(stream) == 0
    assert reached.wait(PATIENCE)
    began = time.monotonic()
    stream.close()  # type: ignore[attr-defined]  # it is a generator
    assert time.monotonic() - began < FOREVER / 2
    assert recorder.contexts[-1].metadata["status"] == "cancelled"
    assert_contract(recorder.contexts)


# --- the automatic choice, which measures the first items in this process ----


def hang_on(place: int, *, computing: bool = False) -> Callable[[int], int]:
    def hang(x: int) -> int:
        if x == place and computing:
            end = time.monotonic() + FOREVER
            while not freed.is_set() and time.monotonic() < end:
                pass
        elif x == place:
            freed.wait(FOREVER)
        return x

    freed = threading.Event()
    hang.free = freed.set  # type: ignore[attr-defined]  # for the test
    return hang


def collect_stream(func: Callable[[int], int], data: Iterable[int], **options: Any) -> list[Any]:
    return list(amorsize.stream(func, data, **options))


def await_results(func: Callable[[int], int], data: Iterable[int], **options: Any) -> list[Any]:
    return asyncio.run(amorsize.aexecute(func, data, **options))


def collect_astream(func: Callable[[int], int], data: Iterable[int], **options: Any) -> list[Any]:
    async def collect() -> list[Any]:
        return [result async for result in amorsize.astream(func, data, **options)]

    return asyncio.run(collect())


@pytest.mark.parametrize("run", [amorsize.execute, collect_stream, await_results, collect_astream])
@pytest.mark.parametrize("place", [0, 3])
@pytest.mark.parametrize("length", ["known", "unknown"])
def test_first_items_that_hang_do_not_outlast_the_timeout(
    run: Callable[..., list[Any]],
    place: int,
    length: str,
    hooks: HookManager,
    recorder: RecordingHook,
) -> None:
    """They are left behind on their thread, and the items before them count."""
    func = hang_on(place)
    data: Iterable[int] = range(20) if length == "known" else iter(range(20))
    began = time.monotonic()
    with pytest.raises(ExecutionTimeoutError, match=r"timeout=0\.3 seconds: \d+ .*items are done"):
        run(func, data, timeout=0.3, hooks=hooks)
    assert time.monotonic() - began < FOREVER / 2
    func.free()  # type: ignore[attr-defined]  # see there
    assert_contract(recorder.contexts)
    post = recorder.contexts[-1]
    assert post.metadata["status"] == "timeout"
    assert recorder.events.count(HookEvent.ON_ERROR) == 1


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_a_first_call_that_computes_does_not_outlast_the_timeout(
    n_jobs: int | None, hooks: HookManager, recorder: RecordingHook
) -> None:
    """Also where workers have begun with other items meanwhile: those are ended."""
    func = hang_on(0, computing=True)
    began = time.monotonic()
    with pytest.raises(ExecutionTimeoutError):
        amorsize.execute(func, range(20), timeout=0.5, n_jobs=n_jobs, hooks=hooks)
    assert time.monotonic() - began < FOREVER / 2
    func.free()  # type: ignore[attr-defined]  # see there
    assert_contract(recorder.contexts)


def test_a_timeout_that_is_over_before_the_first_item_ends_the_run() -> None:
    """Nothing is asked again and again."""
    called: list[int] = []
    with pytest.raises(ExecutionTimeoutError, match="0 of 20 items"):
        amorsize.execute(called.append, range(20), timeout=1e-9)
    assert called == []


@pytest.mark.parametrize("run", [amorsize.execute, collect_stream])
@pytest.mark.parametrize("place", [0, 3])
@pytest.mark.parametrize("computing", [False, True], ids=["waits", "computes"])
def test_a_first_item_that_takes_too_long_is_named(
    run: Callable[..., list[Any]],
    place: int,
    computing: bool,
    hooks: HookManager,
    recorder: RecordingHook,
) -> None:
    """By ``item_timeout=``, as any other item."""
    func = hang_on(place, computing=computing)
    with pytest.raises(ItemTimeoutError, match=rf"item {place} \(chunk \d\) ran for .* abandoned"):
        run(func, range(20), item_timeout=0.3 * slowness(), hooks=hooks)
    func.free()  # type: ignore[attr-defined]  # see there
    assert_contract(recorder.contexts)
    assert recorder.contexts[-1].metadata["status"] == "timeout"
    (error,) = recorder.of(HookEvent.ON_ERROR)
    assert error.metadata["item_index"] == place


@pytest.mark.parametrize("run", [amorsize.execute, collect_stream])
@pytest.mark.parametrize("place", [0, 3])
@pytest.mark.parametrize("computing", [False, True], ids=["waits", "computes"])
def test_with_return_exceptions_only_that_first_item_fails(
    run: Callable[..., list[Any]],
    place: int,
    computing: bool,
    hooks: HookManager,
    recorder: RecordingHook,
) -> None:
    """The run goes on with what the items before it have shown; what it gives later is dropped."""
    func = hang_on(place, computing=computing)
    results = run(
        func, range(20), item_timeout=0.3 * slowness(), return_exceptions=True, hooks=hooks
    )
    func.free()  # type: ignore[attr-defined]  # see there
    assert isinstance(results[place], ItemTimeoutError)
    assert [x for x in results if isinstance(x, int)] == [x for x in range(20) if x != place]
    assert_contract(recorder.contexts)
    assert recorder.contexts[-1].metadata["status"] == "ok"


@pytest.mark.parametrize("limit", ["timeout", "item_timeout"])
def test_an_automatic_choice_within_its_limits_gives_what_it_gave(
    limit: str, hooks: HookManager, recorder: RecordingHook
) -> None:
    """Of inputs that are drawn by their iterator, too."""
    options: dict[str, Any] = {limit: 300}
    for data in (range(5000), iter(range(5000)), {1: 2}, [], iter([])):
        again = list(data) if not isinstance(data, range | dict) else data
        assert amorsize.execute(abs, iter(again), hooks=hooks, **options) == list(again)
        assert amorsize.execute(abs, again, hooks=hooks, **options) == list(again)
    assert_contract(recorder.contexts)
