"""Ready-made hooks: each takes a plain callback and returns a hook to register."""

from __future__ import annotations

import math
from collections.abc import Callable

from amorsize.errors import InvalidTypeError, InvalidValueError
from amorsize.hooks.entries import Hook
from amorsize.hooks.events import HookContext
from amorsize.hooks.interruption import protected, protected_between_calls


@protected_between_calls
def create_progress_hook(
    callback: Callable[[float, int, int], object], min_interval: float = 1.0
) -> Hook:
    """Make a hook that reports progress, at most once per ``min_interval`` seconds.

    The first report and the one at 100 percent are always made.

    Args:
        callback: called as ``callback(percent, completed, total)``; an unknown total is 0.
        min_interval: seconds between two reports, by ``context.timestamp``.

    Example:
        >>> from amorsize import HookContext, HookEvent, create_progress_hook
        >>> hook = create_progress_hook(lambda pct, done, total: print(f"{pct:.0f}% of {total}"))
        >>> hook(HookContext(HookEvent.ON_PROGRESS, percent_complete=50.0, total_items=8))
        50% of 8
    """
    _require_callable(callback)
    due = _Throttle(min_interval)

    def progress_hook(context: HookContext) -> None:
        finished = context.percent_complete >= 100.0
        if due(context, always=finished):
            callback(context.percent_complete, context.items_completed, context.total_items or 0)

    return progress_hook


@protected_between_calls
def create_timing_hook(callback: Callable[[str, float], object]) -> Hook:
    """Make a hook that reports the times of events: ``callback(event_name, elapsed)``.

    ``event_name`` is the event's value, such as ``"post_execute"``; ``elapsed`` is in seconds
    since ``execute()`` was called.
    """
    _require_callable(callback)

    def timing_hook(context: HookContext) -> None:
        callback(context.event.value, context.elapsed_time)

    return timing_hook


@protected_between_calls
def create_throughput_hook(callback: Callable[[float], object], min_interval: float = 5.0) -> Hook:
    """Make a hook that reports items per second: ``callback(rate)``.

    At most once per ``min_interval`` seconds, and never before there is a rate.
    """
    _require_callable(callback)
    due = _Throttle(min_interval)

    def throughput_hook(context: HookContext) -> None:
        if context.throughput_items_per_sec > 0 and due(context):
            callback(context.throughput_items_per_sec)

    return throughput_hook


@protected_between_calls
def create_error_hook(callback: Callable[[BaseException, str], object]) -> Hook:
    """Make a hook that reports failures: ``callback(error, traceback_text)``.

    Contexts without an error are ignored, so it may be registered for any event.
    """
    _require_callable(callback)

    def error_hook(context: HookContext) -> None:
        if context.error is not None:
            callback(context.error, context.error_traceback or "")

    return error_hook


@protected
class _Throttle:
    """True for one context per interval, by the contexts' own timestamps."""

    def __init__(self, min_interval: float) -> None:
        if isinstance(min_interval, bool) or not isinstance(min_interval, int | float):
            raise InvalidTypeError(
                f"min_interval must be a number of seconds; got {min_interval!r}"
            )
        if not (math.isfinite(min_interval) and min_interval >= 0):
            raise InvalidValueError(
                f"min_interval must be 0 or more seconds, and finite; got {min_interval!r}"
            )
        self._min_interval = min_interval
        self._last: float | None = None

    def __call__(self, context: HookContext, *, always: bool = False) -> bool:
        elapsed = math.inf if self._last is None else context.timestamp - self._last
        # A clock that was set back (elapsed < 0) must not silence the hook for hours.
        if always or elapsed >= self._min_interval or elapsed < 0:
            self._last = context.timestamp
            return True
        return False


def _require_callable(callback: object) -> None:
    if not callable(callback):
        raise InvalidTypeError(f"callback must be callable; got {callback!r}")
