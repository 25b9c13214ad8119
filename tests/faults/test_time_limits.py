"""``timeout=`` for the run, ``item_timeout=`` for an item, in every mode."""

from __future__ import annotations

import math
import threading
import time
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
