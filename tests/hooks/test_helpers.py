"""The four ready-made hooks: what they pass on, and how often."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from amorsize import (
    HookContext,
    HookEvent,
    HookManager,
    create_error_hook,
    create_progress_hook,
    create_throughput_hook,
    create_timing_hook,
)
from amorsize.errors import InvalidTypeError, InvalidValueError

THROTTLED = [create_progress_hook, create_throughput_hook]
ALL = [*THROTTLED, create_timing_hook, create_error_hook]


class Calls:
    """A callback that keeps its arguments."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def __call__(self, *args: Any) -> None:
        self.seen.append(args)


def progress(at: float, percent: float = 10.0, **fields: Any) -> HookContext:
    return HookContext(HookEvent.ON_PROGRESS, timestamp=at, percent_complete=percent, **fields)


def test_a_progress_hook_reports_percent_completed_and_total() -> None:
    """In that order, with the types that the context has."""
    calls = Calls()
    create_progress_hook(calls)(progress(0.0, 25.0, items_completed=2, total_items=8))
    assert calls.seen == [(25.0, 2, 8)]


def test_a_progress_hook_gives_an_unknown_total_as_0() -> None:
    """A callback that formats a number need not know None."""
    calls = Calls()
    create_progress_hook(calls)(progress(0.0, 0.0, items_completed=2, total_items=None))
    assert calls.seen == [(0.0, 2, 0)]


def test_a_progress_hook_is_throttled_by_the_contexts_timestamps() -> None:
    """The clock that counts is the context's: the first passes, then one an interval."""
    calls = Calls()
    hook = create_progress_hook(calls)
    for at in (100.0, 100.5, 100.999, 101.0, 101.9, 102.5):
        hook(progress(at, items_completed=int(at * 10)))
    assert [completed for _, completed, _ in calls.seen] == [1000, 1010, 1025]


def test_a_progress_hook_always_reports_the_end() -> None:
    """At 100 percent the interval does not count."""
    calls = Calls()
    hook = create_progress_hook(calls, min_interval=60.0)
    hook(progress(100.0, 10.0))
    hook(progress(100.1, 90.0))
    hook(progress(100.2, 100.0))
    assert [percent for percent, *_ in calls.seen] == [10.0, 100.0]


def test_an_interval_of_zero_passes_everything_on() -> None:
    """Even contexts of the same moment."""
    calls = Calls()
    hook = create_progress_hook(calls, min_interval=0)
    for _ in range(3):
        hook(progress(100.0))
    assert len(calls.seen) == 3


def test_a_clock_that_was_set_back_does_not_silence_the_hook() -> None:
    """Timestamps are epoch seconds, which administrators change."""
    calls = Calls()
    hook = create_progress_hook(calls)
    for at in (5000.0, 100.0, 100.5, 101.0):
        hook(progress(at))
    assert len(calls.seen) == 3


def test_two_hooks_have_a_throttle_each() -> None:
    """State is the hook's, not the module's."""
    calls = Calls()
    first, second = create_progress_hook(calls), create_progress_hook(calls)
    first(progress(100.0))
    second(progress(100.0))
    assert len(calls.seen) == 2


def test_a_throughput_hook_reports_the_rate_once_in_five_seconds() -> None:
    """Its default interval is five seconds, by the contexts' timestamps."""
    calls = Calls()
    hook = create_throughput_hook(calls)
    for at in (100.0, 104.9, 105.0, 109.0, 110.0):
        hook(progress(at, throughput_items_per_sec=at))
    assert calls.seen == [(100.0,), (105.0,), (110.0,)]


def test_a_throughput_hook_waits_until_there_is_a_rate() -> None:
    """A context without a rate neither reports nor uses up the interval."""
    calls = Calls()
    hook = create_throughput_hook(calls)
    hook(progress(100.0))
    hook(progress(100.1, throughput_items_per_sec=7.0))
    assert calls.seen == [(7.0,)]


def test_a_timing_hook_reports_every_event_by_its_value() -> None:
    """The name is a plain string, the time is seconds since execute() was called."""
    calls = Calls()
    hook = create_timing_hook(calls)
    for event in HookEvent:
        hook(HookContext(event, elapsed_time=1.5))
    assert calls.seen == [(event.value, 1.5) for event in HookEvent]
    assert all(type(name) is str for name, _ in calls.seen)


def test_an_error_hook_reports_the_error_and_its_traceback() -> None:
    """The exception itself, and the text as the worker saw it."""
    calls = Calls()
    error = ValueError("bad")
    hook = create_error_hook(calls)
    hook(HookContext(HookEvent.ON_ERROR, error=error, error_traceback="Traceback: bad"))
    assert calls.seen == [(error, "Traceback: bad")]


def test_an_error_hook_gives_a_missing_traceback_as_an_empty_string() -> None:
    """The callback always gets a string."""
    calls = Calls()
    error = ValueError("bad")
    create_error_hook(calls)(HookContext(HookEvent.ON_ERROR, error=error))
    assert calls.seen == [(error, "")]


def test_an_error_hook_passes_over_contexts_without_an_error() -> None:
    """So it may be registered for POST_EXECUTE, too."""
    calls = Calls()
    create_error_hook(calls)(HookContext(HookEvent.POST_EXECUTE))
    assert calls.seen == []


@pytest.mark.parametrize("create", ALL, ids=lambda create: create.__name__)
def test_a_helper_makes_a_hook_that_can_be_registered(create: Callable[..., Any]) -> None:
    """What it returns passes the checks of registration."""
    hooks = HookManager()
    hooks.register(HookEvent.ON_PROGRESS, create(lambda *args: None))
    assert hooks.get_hook_count() == 1


@pytest.mark.parametrize("create", ALL, ids=lambda create: create.__name__)
def test_a_callback_that_is_not_callable_is_refused(create: Callable[..., Any]) -> None:
    """At once, not at the first event."""
    with pytest.raises(InvalidTypeError, match="callback must be callable; got None"):
        create(None)


@pytest.mark.parametrize("create", THROTTLED, ids=lambda create: create.__name__)
@pytest.mark.parametrize("interval", [-1, float("nan"), float("inf")])
def test_an_interval_out_of_range_is_refused(create: Callable[..., Any], interval: float) -> None:
    """It must be finite, and 0 or more."""
    with pytest.raises(InvalidValueError, match="min_interval must be 0 or more seconds"):
        create(Calls(), min_interval=interval)


@pytest.mark.parametrize("create", THROTTLED, ids=lambda create: create.__name__)
@pytest.mark.parametrize("interval", ["1", None, True])
def test_an_interval_that_is_no_number_is_refused(
    create: Callable[..., Any], interval: Any
) -> None:
    """A bool is no number of seconds either."""
    with pytest.raises(InvalidTypeError, match="min_interval must be a number of seconds"):
        create(Calls(), min_interval=interval)
