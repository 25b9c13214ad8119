"""The function that dispatch calls for a hook: the callback, or a wrapper that applies options.

A plain hook has no wrapper and pays for none of this.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from amorsize.hooks.entries import Entry, is_async
from amorsize.hooks.events import HookContext
from amorsize.hooks.interruption import protected, protected_between_calls

if TYPE_CHECKING:  # asyncio is imported with the first hook that needs it
    from amorsize.hooks.background import Background


def prepare(
    entry: Entry,
    *,
    timed: bool,
    lock: AbstractContextManager[Any],
    background: Background | None,
    failed: Callable[[Entry, BaseException], None],
) -> None:
    """Set ``call`` and ``plain`` of an entry.

    Args:
        entry: the registration.
        timed: whether to measure a plain hook too.
        lock: held around changes of the statistics.
        background: makes the calls of hooks in the background.
        failed: called with failures of those; other failures are raised.
    """
    if entry.options.background:
        assert background is not None
        call = _in_background(entry, lock, background, failed)
    elif timed or entry.condition is not None:
        call = _measured(entry, lock)
    else:
        entry.call, entry.plain = entry.callback, True
        return
    entry.call, entry.plain = _conditional(entry, call), False


@protected_between_calls
def _conditional(
    entry: Entry, call: Callable[[HookContext], None]
) -> Callable[[HookContext], None]:
    condition = entry.condition
    if condition is None:
        return call

    def call_when_true(context: HookContext) -> None:
        if condition(context):
            call(context)

    return call_when_true


@protected_between_calls
def _measured(entry: Entry, lock: AbstractContextManager[Any]) -> Callable[[HookContext], None]:
    callback, stats = entry.callback, entry.stats

    def call_measured(context: HookContext) -> None:
        began = perf_counter()
        try:
            callback(context)
        finally:
            seconds = perf_counter() - began
            with lock:
                stats.took(seconds)

    return call_measured


@protected
def _in_background(
    entry: Entry,
    lock: AbstractContextManager[Any],
    background: Background,
    failed: Callable[[Entry, BaseException], None],
) -> Callable[[HookContext], None]:
    from amorsize.hooks.background import CALL_SECONDS, Job

    stats, callback, asynchronous = entry.stats, entry.callback, is_async(entry.callback)
    timeout = CALL_SECONDS if entry.options.timeout is None else entry.options.timeout

    def ended(error: BaseException | None, seconds: float) -> None:
        with lock:
            stats.took(seconds)
        if error is not None:
            failed(entry, error)

    def dropped() -> None:
        with lock:
            stats.dropped += 1
        failed(entry, RuntimeError("a call in the background was dropped: hooks did not keep up"))

    def call_later(context: HookContext) -> None:
        # Hooks of the run may add to the metadata while this one waits.
        kept = replace(context, metadata=context.metadata.copy())
        job = Job(callback, kept, asynchronous, timeout, ended, dropped)
        if not background.submit(context.metadata.get("execution_id"), job):
            dropped()

    return call_later
