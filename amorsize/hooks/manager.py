"""Who is told, and how: registration of hooks, and their dispatch."""

from __future__ import annotations

import inspect
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeAlias, overload

from amorsize.errors import InvalidTypeError
from amorsize.hooks.events import HookContext, HookEvent

logger = logging.getLogger(__name__)

Hook: TypeAlias = Callable[[HookContext], object]
"""A hook is any callable that takes one :class:`HookContext`; what it returns is ignored."""

_LOG_EVERY = 1000
"""A failing hook is logged on its first failure, then once in this many."""


class Registration:
    """A hook's registration: closes it, by hand or at the end of a ``with`` block.

    Example:
        >>> from amorsize import HookEvent, HookManager
        >>> hooks = HookManager()
        >>> with hooks.register(HookEvent.ON_PROGRESS, print):
        ...     hooks.has_hooks(HookEvent.ON_PROGRESS)
        True
        >>> hooks.has_hooks(HookEvent.ON_PROGRESS)
        False
    """

    __slots__ = ("_manager", "callback", "event")

    def __init__(self, manager: HookManager, event: HookEvent, callback: Hook) -> None:
        self._manager = manager
        self.event = event
        self.callback = callback

    def close(self) -> None:
        """Unregister the hook. Closing twice does nothing."""
        self._manager.unregister(self.event, self.callback)

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
        return f"<Registration of {_name_of(self.callback)} for {self.event.value}>"


class HookManager:
    """Registers hooks and calls them. Safe to use from several threads.

    A hook that raises an ``Exception`` is caught, counted, and logged with its traceback (the
    first time, then once in a thousand); the other hooks still run. What is not an
    ``Exception``, such as ``KeyboardInterrupt``, is raised when the other hooks have run.

    Args:
        verbose: also print every failure of a hook to stderr.

    Example:
        >>> from amorsize import HookContext, HookEvent, HookManager
        >>> hooks = HookManager()
        >>> _ = hooks.register(HookEvent.POST_EXECUTE, lambda ctx: print("done"))
        >>> hooks.trigger(HookContext(HookEvent.POST_EXECUTE))
        done
    """

    def __init__(self, *, verbose: bool = False) -> None:
        self.verbose = verbose
        self._lock = threading.RLock()  # a signal handler may end a stream over its holder
        # Dispatch reads a tuple that registration replaces: nothing is copied or locked there.
        self._hooks: dict[HookEvent, tuple[Hook, ...]] = dict.fromkeys(HookEvent, ())
        self._calls: dict[HookEvent, int] = dict.fromkeys(HookEvent, 0)
        self._errors: dict[HookEvent, int] = dict.fromkeys(HookEvent, 0)
        self._failures: dict[tuple[int, int], int] = {}

    def register(self, event: HookEvent, callback: Hook) -> Registration:
        """Call ``callback(context)`` at every ``event`` from now on.

        Registering the same callback twice for one event has no further effect.

        Args:
            event: the moment to be told of.
            callback: any callable that takes one positional argument. It is called in
                ``execute()`` from the caller's thread, in ``stream()`` from its driver thread,
                one call at a time for each execution.

        Returns:
            A handle whose ``close()`` (or ``with`` block) unregisters the hook.

        Raises:
            InvalidTypeError: ``event`` is not a ``HookEvent``, or ``callback`` is not callable
                with one positional argument.
        """
        _require_event(event)
        _require_hook(callback)
        with self._lock:
            if callback not in self._hooks[event]:
                self._hooks[event] += (callback,)
        return Registration(self, event, callback)

    def unregister(self, event: HookEvent, callback: Hook) -> bool:
        """Stop calling ``callback`` at ``event``; say whether it was registered."""
        _require_event(event)
        with self._lock:
            before = self._hooks[event]
            self._hooks[event] = tuple(hook for hook in before if hook != callback)
            return len(self._hooks[event]) < len(before)

    def unregister_all(self, event: HookEvent | None = None) -> int:
        """Remove all hooks of ``event``, or of every event for None; say how many there were."""
        if event is not None:
            _require_event(event)
        with self._lock:
            events = list(HookEvent) if event is None else [event]
            removed = sum(len(self._hooks[each]) for each in events)
            for each in events:
                self._hooks[each] = ()
            return removed

    @overload
    def trigger(self, context: HookContext, /) -> None: ...
    @overload
    def trigger(self, event: HookEvent, context: HookContext, /) -> None: ...
    def trigger(self, first: HookEvent | HookContext, second: HookContext | None = None, /) -> None:
        """Call the hooks of an event, in the order of their registration.

        ``trigger(context)`` calls those of ``context.event``, ``trigger(event, context)``
        those of ``event``. Hooks run in the calling thread.

        Raises:
            InvalidTypeError: the arguments are neither of the two.
        """
        if isinstance(first, HookContext):
            context, event = first, first.event
        elif isinstance(second, HookContext) and isinstance(first, HookEvent):
            context, event = second, first
        else:
            raise InvalidTypeError(
                "trigger() takes a HookContext, or a HookEvent and a HookContext; "
                f"got {first!r}, {second!r}"
            )
        hooks = self._hooks[event]
        if not hooks:
            return
        interrupted: BaseException | None = None
        for hook in hooks:
            try:
                hook(context)
            except Exception as error:
                self._hook_failed(event, hook, error)
            except BaseException as error:  # Ctrl-C: the others still hear of this event
                interrupted = interrupted or error
        with self._lock:
            self._calls[event] += len(hooks)
        if interrupted is not None:
            raise interrupted

    def has_hooks(self, event: HookEvent | None = None) -> bool:
        """Say whether any hook is registered, for ``event`` or (None) at all."""
        if event is None:
            return any(self._hooks.values())
        return bool(self._hooks[event])

    def get_hook_count(self, event: HookEvent | None = None) -> int:
        """Count the hooks of ``event``, or (None) of all events."""
        if event is None:
            return sum(map(len, self._hooks.values()))
        return len(self._hooks[event])

    def get_stats(self) -> dict[str, dict[str, int]]:
        """Count hooks, calls and errors.

        Returns:
            ``{"hook_counts": ..., "call_counts": ..., "error_counts": ...}``, each keyed by the
            event's value. ``call_counts`` counts calls of hooks, failed ones too;
            ``error_counts`` holds only events with failures.
        """
        with self._lock:
            return {
                "hook_counts": {event.value: len(hooks) for event, hooks in self._hooks.items()},
                "call_counts": {event.value: count for event, count in self._calls.items()},
                "error_counts": {
                    event.value: count for event, count in self._errors.items() if count
                },
            }

    def _hook_failed(self, event: HookEvent, hook: Hook, error: Exception) -> None:
        # A method is a new object each time it is looked up: known by its function and its self.
        key = (id(getattr(hook, "__func__", hook)), id(getattr(hook, "__self__", None)))
        with self._lock:
            self._errors[event] += 1
            count = self._failures[key] = self._failures.get(key, 0) + 1
        if count % _LOG_EVERY == 1:
            logger.error(
                "Hook %s failed at %s (its failure %d; the run goes on)",
                _name_of(hook),
                event.value,
                count,
                exc_info=error,
            )
        if self.verbose and sys.stderr is not None:
            text = "".join(traceback.format_exception(error))
            try:
                sys.stderr.write(f"amorsize: hook {_name_of(hook)} failed at {event}:\n{text}")
            except (OSError, ValueError):
                pass  # a closed stderr must not end the run


def _require_event(event: object) -> None:
    if not isinstance(event, HookEvent):
        raise InvalidTypeError(
            f"event must be a HookEvent, one of {', '.join(e.name for e in HookEvent)}; "
            f"got {event!r}"
        )


def _require_hook(callback: object) -> None:
    if not callable(callback):
        raise InvalidTypeError(
            f"a hook must be a callable that takes one HookContext; got {callback!r}"
        )
    if inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(
        getattr(callback, "__call__", None)  # noqa: B004  # the method, not whether there is one
    ):
        raise InvalidTypeError(
            f"a hook must be a plain function; {_name_of(callback)} is an async function, "
            "which would never run"
        )
    try:
        signature = inspect.signature(callback)
    except (ValueError, TypeError):
        return  # some C callables do not tell their signature
    try:
        signature.bind(None)
    except TypeError as mismatch:
        raise InvalidTypeError(
            f"a hook is called with one positional argument, the HookContext; "
            f"{_name_of(callback)}{signature} does not take it ({mismatch})"
        ) from None


def _name_of(callback: Any) -> str:
    return str(getattr(callback, "__qualname__", None) or repr(callback))


_default = HookManager()


def get_default_manager() -> HookManager:
    """Return the process-wide manager, to which ``enable_*()`` attach their exporters.

    Every ``execute()`` triggers it, beside the one passed as ``hooks=``. It is empty until
    something registers, and empty again in a forked child.
    """
    return _default


def _reset_in_forked_child() -> None:
    # The lock may be held by a thread that does not exist here: take a new one.
    _default.__init__(verbose=_default.verbose)  # type: ignore[misc]  # same object, fresh state


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_in_forked_child)
