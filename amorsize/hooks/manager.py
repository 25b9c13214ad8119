"""Registration of hooks, and the calls that dispatch events to them."""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from amorsize.errors import InvalidTypeError, InvalidValueError
from amorsize.hooks.entries import (
    Condition,
    Dispatch,
    Entry,
    Hook,
    HookOptions,
    HookStats,
    Registration,
    check_options,
    full_name_of,
    name_of,
    require_event,
    require_hook,
    require_seconds,
    summarize,
)
from amorsize.hooks.events import HookContext, HookEvent
from amorsize.hooks.interruption import protected, protected_between_calls
from amorsize.workers import in_forked_child
from amorsize.workers.observers import observes_when
from amorsize.workers.role import is_worker, when_worker

if TYPE_CHECKING:  # asyncio is imported with the first hook that needs it
    import asyncio

    from amorsize.hooks.background import Background

logger = logging.getLogger(__name__)

HookT = TypeVar("HookT", bound=Callable[..., Any])

_LOG_EVERY = 1000
"""A failing hook is logged at its first failure, then once per this many."""

_MOST_NAMES = 1000
"""Statistics are kept for this many hooks of an event, unregistered ones included. Further hooks
are counted together, as ``other``."""


class HookManager:
    """Registers hooks and calls them. Safe to use from several threads.

    An ``Exception`` that a hook raises is caught, counted, and logged with its traceback (the
    first time, then once in a thousand); the other hooks still run. Other exceptions, such as
    ``KeyboardInterrupt``, are raised after the other hooks have run.

    Args:
        verbose: also print every failure of a hook to stderr.
        timed: measure how long each call of a hook takes, for :meth:`get_stats`. This costs a
            fraction of a microsecond per call, so it is off by default. Hooks with a condition and
            hooks in the background are always measured. It may be set later, too; exporters of
            metrics set it when they are attached.
        loop: the event loop that asynchronous hooks run on; None for one of the manager's own,
            on a thread that starts with the first call.
        queue_size: calls of background hooks that may wait; further ones are dropped and counted.
        drain_timeout: how many seconds the end of a run waits for its calls in the background.

    Example:
        >>> from amorsize import HookContext, HookEvent, HookManager
        >>> hooks = HookManager()
        >>> _ = hooks.register(HookEvent.POST_EXECUTE, lambda ctx: print("done"))
        >>> hooks.trigger(HookContext(HookEvent.POST_EXECUTE))
        done
    """

    def __init__(
        self,
        *,
        verbose: bool = False,
        timed: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
        queue_size: int = 1000,
        drain_timeout: float = 5.0,
    ) -> None:
        if isinstance(queue_size, bool) or not isinstance(queue_size, int):
            raise InvalidTypeError(f"queue_size must be a whole number; got {queue_size!r}")
        if queue_size < 1:
            raise InvalidValueError(f"queue_size must be 1 or more; got {queue_size!r}")
        require_seconds("drain_timeout", drain_timeout, zero=True)
        self.verbose = verbose
        self._timed = timed
        self._loop = loop
        self._queue_size = queue_size
        self._drain_timeout = drain_timeout
        self._background: Background | None = None
        self._lock = threading.RLock()  # a signal handler may emit events in its holder's thread
        # Dispatch reads a tuple that registration replaces: nothing is copied or locked there.
        self._hooks = {event: Dispatch(()) for event in HookEvent}
        self._sequence = 0
        self._stats: dict[HookEvent, dict[str, HookStats]] = {event: {} for event in HookEvent}
        self._failures: dict[tuple[int, int], int] = {}

    @protected
    def register(
        self,
        event: HookEvent,
        callback: Hook,
        *,
        when: Condition | None = None,
        priority: int = 0,
        background: bool = False,
        timeout: float | None = None,
    ) -> Registration:
        """Call ``callback(context)`` at every ``event`` from now on.

        Registering the same callback twice for one event has no further effect.

        Args:
            event: the event at which the hook is called.
            callback: any callable that takes one positional argument. It is called in
                ``execute()`` from the caller's thread, in ``stream()`` from its own thread, one
                call at a time for each execution. An ``async def`` function is awaited in the
                background.
            when: called with the context; the hook is called if it returns a true value.
            priority: hooks with a higher priority are called first, those with the same in the
                order of their registration.
            background: call a slow hook on a thread of its own, while the run goes on. The calls
                of one execution keep their order. The end of the run waits for them, for
                ``drain_timeout`` at most.
            timeout: seconds that a call in the background may take; None for 30. A call that takes
                longer counts as failed: an asynchronous one is cancelled, a thread is abandoned.

        Returns:
            A handle whose ``close()`` (or ``with`` block) unregisters the hook.

        Raises:
            InvalidTypeError: ``event`` is not a ``HookEvent``, or ``callback`` is not callable
                with one positional argument, or an option has the wrong type.
            InvalidValueError: an option is not allowed, or the callback is already registered for
                this event with other options.
        """
        # Imported here, because most first runs have no hook and need no conditions.
        from amorsize.hooks.conditions import fresh

        require_event(event)
        require_hook(callback)
        options = check_options(callback, HookOptions(when, priority, background, timeout))
        with self._lock:
            entries = self._hooks[event].entries
            for entry in entries:
                if entry.callback == callback:
                    if entry.options != options:
                        raise InvalidValueError(
                            f"{name_of(callback)} is already registered for {event.value}, with "
                            f"{entry.options}; unregister it first to register it with {options}"
                        )
                    return Registration(self.unregister, event, entry.callback)
            self._sequence += 1
            name = full_name_of(callback)
            known = self._stats[event]
            if name not in known and len(known) >= _MOST_NAMES:
                name = "other"
            stats = known.setdefault(name, HookStats())
            entry = Entry(
                event, callback, options, self._sequence, stats, fresh(when), call=callback
            )
            self._prepare(entry)
            self._replace(event, (*entries, entry))
        return Registration(self.unregister, event, callback)

    def on(
        self,
        *events: HookEvent,
        when: Condition | None = None,
        priority: int = 0,
        background: bool = False,
        timeout: float | None = None,
    ) -> Callable[[HookT], HookT]:
        """Decorate a function to be called at one or more events.

        The function itself is not changed. A method of a class is only marked, because there is no
        object to call it with yet: :meth:`attach` registers the methods of an object.

        Args:
            *events: the events at which it is called.

        The other arguments and the exceptions are those of :meth:`register`.

        Example:
            >>> from amorsize import HookContext, HookEvent, HookManager
            >>> hooks = HookManager()
            >>> @hooks.on(HookEvent.ON_ERROR, HookEvent.POST_EXECUTE)
            ... def report(context):
            ...     print(context.event)
            >>> hooks.trigger(HookContext(HookEvent.POST_EXECUTE))
            post_execute
        """
        from amorsize.hooks import decorators

        if not events or not all(isinstance(event, HookEvent) for event in events):
            raise InvalidTypeError(
                "on() takes the events, as in @hooks.on(HookEvent.POST_EXECUTE); got "
                f"{', '.join(map(repr, events)) or 'none'}"
            )

        def decorate(decorated: HookT) -> HookT:
            options = HookOptions(when, priority, background, timeout)
            if decorators.is_method(decorated):
                check_options(decorated, options)
                decorators.mark(decorated, decorators.Mark(self, events, options))
                return decorated
            function = decorated.__func__ if isinstance(decorated, staticmethod) else decorated
            for event in events:
                self.register(event, function, **options.as_keywords())
            return decorated

        return decorate

    def attach(self, owner: object) -> ExitStack:
        """Register the methods of an object that :meth:`on` has decorated.

        Returns:
            A handle whose ``close()`` (or ``with`` block) unregisters them.

        Raises:
            InvalidValueError: it has no such method.

        Example:
            >>> from amorsize import HookContext, HookEvent, HookManager
            >>> hooks = HookManager()
            >>> class Watch:
            ...     @hooks.on(HookEvent.POST_EXECUTE)
            ...     def done(self, context):
            ...         print(context.items_completed, "items")
            >>> with hooks.attach(Watch()):
            ...     hooks.trigger(HookContext(HookEvent.POST_EXECUTE, items_completed=3))
            3 items
        """
        from amorsize.hooks import decorators

        methods = list(decorators.marked_methods(owner, self))
        if not methods:
            raise InvalidValueError(
                "attach() takes an object with methods that were decorated with on() of this "
                f"manager; {type(owner).__qualname__} has none"
            )
        with ExitStack() as undo:
            for mark, method in methods:
                for event in mark.events:
                    registration = self.register(event, method, **mark.options.as_keywords())
                    undo.callback(registration.close)
            return undo.pop_all()

    @protected
    def unregister(self, event: HookEvent, callback: Hook) -> bool:
        """Stop calling ``callback`` at ``event``; return whether it was registered."""
        require_event(event)
        with self._lock:
            before = self._hooks[event].entries
            after = tuple(entry for entry in before if entry.callback != callback)
            if len(after) < len(before):
                self._replace(event, after)
            return len(after) < len(before)

    @protected
    def unregister_all(self, event: HookEvent | None = None) -> int:
        """Remove all hooks of ``event``, or (None) of every event; return how many there were."""
        if event is not None:
            require_event(event)
        with self._lock:
            events = list(HookEvent) if event is None else [event]
            removed = sum(map(self.get_hook_count, events))
            for each in events:
                self._replace(each, ())
            return removed

    @overload
    def trigger(self, context: HookContext, /) -> None: ...
    @overload
    def trigger(self, event: HookEvent, context: HookContext, /) -> None: ...
    @protected_between_calls
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
        dispatch = self._hooks[event]
        if not dispatch.calls:
            return
        interrupted: BaseException | None = None
        for call in dispatch.calls:
            try:
                call(context)
            except Exception as error:
                self._hook_failed(dispatch.entry_of(call), error)
            except BaseException as error:  # Ctrl-C: the other hooks are still called
                interrupted = interrupted or error
        with self._lock:
            if dispatch.live:
                dispatch.triggers += 1
            else:  # a registration has replaced it meanwhile
                dispatch.add_calls(1)
        if interrupted is not None:
            raise interrupted

    def has_hooks(self, event: HookEvent | None = None) -> bool:
        """Return whether any hook is registered, for ``event`` or (None) for any event."""
        if event is None:
            return any(dispatch.calls for dispatch in self._hooks.values())
        return bool(self._hooks[event].calls)

    def get_hook_count(self, event: HookEvent | None = None) -> int:
        """Count the hooks of ``event``, or (None) of all events."""
        if event is None:
            return sum(len(dispatch.calls) for dispatch in self._hooks.values())
        return len(self._hooks[event].calls)

    @protected
    def get_stats(self) -> dict[str, dict[str, Any]]:
        """Return the numbers of hooks, calls and errors, and the durations of calls.

        Returns:
            ``{"hook_counts": ..., "call_counts": ..., "error_counts": ..., "hooks": ...}``, each
            keyed by the event's value. ``call_counts`` counts the calls of hooks, including
            failed ones; ``error_counts`` has only events with failures.

            ``hooks`` has, for each event that has or had hooks, its hooks by name
            (``package.module.name``; hooks of one name are added up): ``calls``; ``errors``,
            including timeouts and failures of conditions; ``dropped``, calls in the background
            that were never made; and, of the ``timed_calls``, ``total_seconds`` and
            ``longest_seconds``. Plain hooks are timed if the manager is ``timed``.
        """
        with self._lock:
            for dispatch in self._hooks.values():
                dispatch.settle()
            return {
                "hook_counts": {event.value: self.get_hook_count(event) for event in HookEvent},
                **summarize(self._stats),
            }

    def stats_reader(self) -> Callable[[], dict[str, dict[str, Any]]]:
        """Return a function that reads the statistics, also once the manager is gone.

        It keeps neither the manager nor its hooks alive. It returns what :meth:`get_stats` does,
        without ``hook_counts``. For a ``timed`` manager it is exact; of others, it misses the
        latest calls of plain hooks.
        """
        return partial(summarize, self._stats)

    @property
    def timed(self) -> bool:
        """Whether calls of plain hooks are measured; may be set."""
        return self._timed

    @timed.setter
    @protected
    def timed(self, timed: bool) -> None:
        with self._lock:
            if timed == self._timed:
                return
            self._timed = timed
            for event, dispatch in self._hooks.items():
                # Other threads may be iterating over the calls: these stay as they are.
                entries = tuple(entry._replace() for entry in dispatch.entries)
                for entry in entries:
                    self._prepare(entry)
                self._replace(event, entries)

    @protected_between_calls
    def drain(self, execution_id: str | None = None, timeout: float | None = None) -> bool:
        """Wait for the calls in the background, of one execution or (None) of all.

        ``execute()`` does this at the end of the run. At the timeout, waiting calls are dropped, a
        running one counts as failed, and none starts later. On the event loop that the hooks run
        on, it does not wait at all.

        Args:
            execution_id: as in the events' metadata.
            timeout: in seconds; None for the manager's ``drain_timeout``.

        Returns:
            Whether every call was made.
        """
        if self._background is None:
            return True
        seconds = self._drain_timeout if timeout is None else timeout
        return self._background.drain(seconds, execution_id)

    def close(self) -> None:
        """Remove all hooks, wait for the calls in the background, and end their thread."""
        self.unregister_all()
        self.drain()
        if self._background is not None:
            self._background.stop()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the hooks to a TOML file that :meth:`load` reads; ``docs/hooks.md`` describes it.

        Exporters that are enabled and attached to this manager are written with their settings,
        which may include secrets: only the owner may read the file.

        Raises:
            InvalidValueError: a hook cannot be saved, such as a lambda; the message names all of
                them. Nothing is written.
        """
        from amorsize.hooks.config import write

        entries = [entry for each in self._hooks.values() for entry in each.entries]
        write(path, sorted(entries, key=lambda entry: entry.sequence), self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Make a manager with the hooks of a TOML file; ``docs/hooks.md`` describes it.

        The file names code, which is imported: load only files that you trust. Exporters that it
        names are enabled as by :func:`amorsize.enable`, for the whole process.

        Raises:
            InvalidValueError: the file cannot be read, or it names something that is unknown or
                cannot be imported; the message gives the line. Nothing is registered or enabled.
        """
        from amorsize.hooks.config import read

        manager = cls()
        read(path).apply(manager.register)
        return manager

    def _replace(self, event: HookEvent, entries: tuple[Entry, ...]) -> None:
        self._hooks[event].retire()
        ordered = sorted(entries, key=lambda entry: (-entry.options.priority, entry.sequence))
        self._hooks[event] = Dispatch(tuple(ordered))

    def _prepare(self, entry: Entry) -> None:
        from amorsize.hooks.calls import prepare

        if entry.options.background and self._background is None:
            from amorsize.hooks.background import Background

            self._background = Background(self._loop, self._queue_size)
            weakref.finalize(self, self._background.stop)
        prepare(
            entry,
            timed=self._timed,
            lock=self._lock,
            background=self._background,
            failed=self._hook_failed,
        )

    @protected
    def _hook_failed(self, entry: Entry, error: BaseException) -> None:
        hook, event = entry.callback, entry.event
        # Each lookup of a method makes a new object: identify it by its function and its self.
        key = (id(getattr(hook, "__func__", hook)), id(getattr(hook, "__self__", None)))
        with self._lock:
            entry.stats.errors += 1
            count = self._failures[key] = self._failures.get(key, 0) + 1
        if count % _LOG_EVERY == 1:
            logger.error(
                "Hook %s failed at %s (its failure %d; the run goes on)",
                name_of(hook),
                event.value,
                count,
                exc_info=error,
            )
        if self.verbose and sys.stderr is not None:
            text = "".join(traceback.format_exception(error))
            try:
                sys.stderr.write(f"amorsize: hook {name_of(hook)} failed at {event}:\n{text}")
            except (OSError, ValueError):
                pass  # a closed stderr must not end the run


_default = HookManager()
observes_when(_default.has_hooks)


def get_default_manager() -> HookManager:
    """Return the process-wide manager, to which ``enable_*()`` attach their exporters.

    Every ``execute()`` triggers it, in addition to the one passed as ``hooks=``. It is empty until
    something registers, and empty again in a forked child.
    """
    return _default


def on(
    *events: HookEvent,
    when: Condition | None = None,
    priority: int = 0,
    background: bool = False,
    timeout: float | None = None,
) -> Callable[[HookT], HookT]:
    """Decorate a function to be called at one or more events of every execution.

    This is :meth:`HookManager.on` of the default manager. In a worker, which often imports the
    module that decorates, it registers nothing: neither in a worker process of our own, nor of a
    caller-owned executor, nor of Dask.

    Example:
        >>> import amorsize
        >>> @amorsize.on(amorsize.HookEvent.POST_EXECUTE)
        ... def report(context):
        ...     print(context.metadata["status"])
        >>> amorsize.execute(abs, [-1])
        ok
        [1]
        >>> amorsize.get_default_manager().unregister_all()
        1
    """
    if is_worker():
        return lambda decorated: decorated
    decorate = _default.on(
        *events, when=when, priority=priority, background=background, timeout=timeout
    )

    def decorate_outside_workers(decorated: HookT) -> HookT:
        function = getattr(decorated, "__func__", decorated)
        # A process of an executor imports __main__ before it runs a chunk and becomes a worker.
        when_worker(lambda: [_default.unregister(event, function) for event in events])
        return decorate(decorated)

    return decorate_outside_workers


@in_forked_child
def _reset_in_forked_child() -> None:
    _default.__init__(verbose=_default.verbose)  # type: ignore[misc]  # same object, fresh state
