"""Registrations: how each hook is called, and the statistics of its calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeAlias

from amorsize.errors import InvalidTypeError, InvalidValueError
from amorsize.hooks.events import HookContext, HookEvent
from amorsize.hooks.interruption import protected
from amorsize.workers.record import Record, values_of

Hook: TypeAlias = Callable[[HookContext], object]
"""Any callable that takes one :class:`HookContext`, also an ``async def`` function. Its return
value is ignored, except in a chain."""

Condition: TypeAlias = Callable[[HookContext], object]
"""A function of the context; the hook is called if it returns a true value."""


@protected
class HookStats(Record):
    """The calls of one hook at one event. The manager's lock is held around each use."""

    calls: int = 0
    errors: int = 0
    dropped: int = 0
    timed_calls: int = 0
    total_seconds: float = 0.0
    longest_seconds: float = 0.0

    def took(self, seconds: float) -> None:
        """Add a measured call."""
        self.calls += 1
        self.timed_calls += 1
        self.total_seconds += seconds
        self.longest_seconds = max(self.longest_seconds, seconds)


class HookOptions(Record):
    """How a hook is to be called.

    Attributes:
        when: the condition; None for always.
        priority: higher ones are called first.
        background: on the manager's own thread, while the run goes on.
        timeout: seconds that a call in the background may take; None for the default.
    """

    when: Condition | None = None
    priority: int = 0
    background: bool = False
    timeout: float | None = None

    def as_keywords(self) -> dict[str, Any]:
        """Return them as arguments of ``register()``."""
        return values_of(self)


class Entry(Record):
    """One registration.

    Attributes:
        sequence: the number of the registration; hooks of one priority are called in this order.
        condition: that of the options, with a count of its own.
        call: the function that dispatch calls: the callback, or a wrapper of it.
        plain: whether dispatch calls the callback itself, and so counts its calls.
    """

    event: HookEvent
    callback: Hook
    options: HookOptions
    sequence: int
    stats: HookStats
    condition: Condition | None
    call: Callable[[HookContext], object]
    plain: bool = True


@protected
class Dispatch:
    """The calls that one event makes, in order. A registration replaces it with another.

    Attributes:
        calls: the functions to call; never changes, so iterating over it needs no lock.
        entries: the registrations that the calls come from, in the same order.
        triggers: how often all of them were called since the last ``settle()``.
        live: whether it is still in use.
    """

    __slots__ = ("calls", "entries", "live", "triggers")

    def __init__(self, entries: tuple[Entry, ...]) -> None:
        self.calls = tuple(entry.call for entry in entries)
        self.entries = entries
        self.triggers = 0
        self.live = True

    def entry_of(self, call: Callable[[HookContext], object]) -> Entry:
        """Find the registration that a call comes from."""
        return next(entry for entry in self.entries if entry.call is call)

    def add_calls(self, count: int) -> None:
        """Add to the calls of the hooks that do not count their own."""
        for entry in self.entries:
            if entry.plain:
                entry.stats.calls += count

    def settle(self) -> None:
        """Add the triggers to the statistics of the hooks."""
        self.add_calls(self.triggers)
        self.triggers = 0

    def retire(self) -> None:
        """Note that another one is used from now on."""
        self.settle()
        self.live = False


def summarize(stats: dict[HookEvent, dict[str, HookStats]]) -> dict[str, dict[str, Any]]:
    """Add up statistics, by the values of the events."""
    kept = {event.value: list(hooks.values()) for event, hooks in stats.items()}
    errors = {event: sum(each.errors for each in hooks) for event, hooks in kept.items()}
    return {
        "call_counts": {event: sum(each.calls for each in hooks) for event, hooks in kept.items()},
        "error_counts": {event: count for event, count in errors.items() if count},
        "hooks": {
            event.value: {name: values_of(each) for name, each in hooks.items()}
            for event, hooks in stats.items()
            if hooks
        },
    }


class Registration:
    """The handle of a registered hook: ``close()`` or a ``with`` block unregisters it.

    Example:
        >>> from amorsize import HookEvent, HookManager
        >>> hooks = HookManager()
        >>> with hooks.register(HookEvent.ON_PROGRESS, print):
        ...     hooks.has_hooks(HookEvent.ON_PROGRESS)
        True
        >>> hooks.has_hooks(HookEvent.ON_PROGRESS)
        False
    """

    __slots__ = ("_unregister", "callback", "event")

    def __init__(
        self, unregister: Callable[[HookEvent, Hook], bool], event: HookEvent, callback: Hook
    ) -> None:
        self._unregister = unregister
        self.event = event
        self.callback = callback

    def close(self) -> None:
        """Unregister the hook. Closing twice does nothing."""
        self._unregister(self.event, self.callback)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Registration of {name_of(self.callback)} for {self.event.value}>"


def check_options(callback: Hook, options: HookOptions) -> HookOptions:
    """Return the options, with ``background`` set for an asynchronous callback.

    Raises:
        InvalidTypeError, InvalidValueError: one of them is not allowed.
    """
    when, priority, timeout = options.when, options.priority, options.timeout
    if when is not None:
        if not callable(when) or isinstance(when, type) or is_async(when):
            raise InvalidTypeError(
                "when must be a plain function of the HookContext that returns True or False, "
                f"such as every(seconds=5); got {when!r}"
            )
        _require_one_argument(when, "a condition")
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise InvalidTypeError(f"priority must be a whole number, higher first; got {priority!r}")
    if not isinstance(options.background, bool):
        raise InvalidTypeError(f"background must be True or False; got {options.background!r}")
    background = options.background or is_async(callback)
    if timeout is not None:
        require_seconds("timeout", timeout)
        if not background:
            raise InvalidValueError(
                "timeout is for hooks in the background, because a call in the thread of the run "
                f"cannot be stopped: pass background=True with timeout={timeout!r}"
            )
    return HookOptions(when, priority, background, timeout)


def require_seconds(name: str, seconds: object, *, zero: bool = False) -> None:
    """Raise InvalidTypeError or InvalidValueError for a value that is not a number of seconds."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise InvalidTypeError(f"{name} must be a number of seconds; got {seconds!r}")
    if not (math.isfinite(seconds) and (seconds >= 0 if zero else seconds > 0)):
        least = "0 seconds or more" if zero else "above 0 seconds"
        raise InvalidValueError(f"{name} must be {least}, and finite; got {seconds!r}")


def require_event(event: object) -> None:
    """Raise InvalidTypeError for a value that is not an event."""
    if not isinstance(event, HookEvent):
        raise InvalidTypeError(
            f"event must be a HookEvent, one of {', '.join(e.name for e in HookEvent)}; "
            f"got {event!r}"
        )


def require_hook(callback: object) -> None:
    """Raise InvalidTypeError for a value that cannot be called with one context."""
    if not callable(callback):
        raise InvalidTypeError(
            f"a hook must be a callable that takes one HookContext; got {callback!r}"
        )
    _require_one_argument(callback, "a hook")


def _require_one_argument(callback: Callable[..., Any], kind: str) -> None:
    import inspect  # 8 ms, unless another module has loaded it

    try:
        signature = inspect.signature(callback)
    except (ValueError, TypeError):
        return  # some C callables have no signature
    try:
        signature.bind(None)
    except TypeError as mismatch:
        raise InvalidTypeError(
            f"{kind} is called with one positional argument, the HookContext; "
            f"{name_of(callback)}{signature} does not take it ({mismatch})"
        ) from None


def is_async(callback: object) -> bool:
    """Return whether calling it makes a coroutine."""
    import inspect

    return inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(
        getattr(callback, "__call__", None)  # noqa: B004  # the method, not whether there is one
    )


def name_of(callback: Any) -> str:
    """Return the name of a hook in messages."""
    return str(getattr(callback, "__qualname__", None) or repr(callback))


def full_name_of(callback: Any) -> str:
    """Return the name of a hook in statistics: ``package.module.name``."""
    inner = getattr(callback, "func", callback)  # functools.partial
    name = getattr(inner, "__qualname__", None)
    if name is None:
        inner = type(inner)  # an object's repr may hold its address, or a secret
        name = inner.__qualname__
    module = getattr(inner, "__module__", None)
    return f"{module}.{name}" if module else str(name)
