"""Who is told, and how: registration of hooks, and their dispatch."""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from amorsize.errors import InvalidTypeError, InvalidValueError
from amorsize.hooks.entries import (
    Condition,
    Dispatch,
    Entry,
    Hook,
    HookStats,
    Options,
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
from amorsize.workers.observers import observes_when
from amorsize.workers.role import is_worker, when_worker

if TYPE_CHECKING:  # asyncio is imported with the first hook that needs it
    import asyncio

    from amorsize.hooks.background import Background

logger = logging.getLogger(__name__)

HookT = TypeVar("HookT", bound=Callable[..., Any])

_LOG_EVERY = 1000
"""A failing hook is logged on its first failure, then once in this many."""

_MOST_NAMES = 1000
"""Statistics are kept for so many hooks at an event, unregistered ones too; then for ``other``."""


class HookManager:
    """Registers hooks and calls them. Safe to use from several threads.

    A hook that raises an ``Exception`` is caught, counted, and logged with its traceback (the
    first time, then once in a thousand); the other hooks still run. What is not an
    ``Exception``, such as ``KeyboardInterrupt``, is raised when the other hooks have run.

    Args:
        verbose: also print every failure of a hook to stderr.
        timed: measure how long each call of a hook takes, for :meth:`get_stats`. It costs a
            fraction of a microsecond a call, so it is off until asked for; hooks with a condition
            and hooks in the background are measured always. May be set later, too; exporters of
            metrics set it where they are attached.
        loop: the event loop that asynchronous hooks run on; None for one of the manager's own,
            on a thread that begins with the first call.
        queue_size: calls of background hooks that may wait; further ones are dropped, and counted.
        drain_timeout: seconds that the end of a run waits for its calls in the background.

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
        self._lock = threading.RLock()  # a signal handler may tell events over its holder
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
            event: the moment to be told of.
            callback: any callable that takes one positional argument. It is called in
                ``execute()`` from the caller's thread, in ``stream()`` from its driver thread,
                one call at a time for each execution. An ``async def`` function is awaited in
                the background.
            when: called with the context; the hook is called where it returns something true.
            priority: hooks of a higher one are called first, those of the same in the order of
                their registration.
            background: call it on a thread of its own, while the run goes on: for what is slow.
                The calls of one execution keep their order; the end of the run waits for them,
                no longer than ``drain_timeout``.
            timeout: seconds that a call in the background may take, 30 unless given. It counts as
                failed then; an asynchronous one is cancelled, a thread left behind.

        Returns:
            A handle whose ``close()`` (or ``with`` block) unregisters the hook.

        Raises:
            InvalidTypeError: ``event`` is not a ``HookEvent``, or ``callback`` is not callable
                with one positional argument, or an option has the wrong type.
            InvalidValueError: an option is not allowed, or the callback is registered for this
                event with other options.
        """
        # Here, because most first runs have no hook: they do not pay for what surrounds one.
        from amorsize.hooks.conditions import fresh

        require_event(event)
        require_hook(callback)
        options = check_options(callback, Options(when, priority, background, timeout))
        with self._lock:
            entries = self._hooks[event].entries
            for entry in entries:
                if entry.callback == callback:
                    if entry.options != options:
                        raise InvalidValueError(
                            f"{name_of(callback)} is registered for {event.value} already, with "
                            f"{entry.options}; unregister it first to register it with {options}"
                        )
                    return Registration(self.unregister, event, entry.callback)
            self._sequence += 1
            name = full_name_of(callback)
            known = self._stats[event]
            if name not in known and len(known) >= _MOST_NAMES:
                name = "other"
            stats = known.setdefault(name, HookStats())
            entry = Entry(event, callback, options, self._sequence, stats, fresh(when))
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
        """Decorate a function to be called at one event or several.

        The function itself stays as it is. A method of a class is only marked, for there is no
        object to call it with yet: :meth:`attach` registers the methods of an object.

        Args:
            *events: the moments to be told of.

        The other arguments, and what is raised, are those of :meth:`register`.

        Example:
            >>> from amorsize import HookContext, HookEvent, HookManager
            >>> hooks = HookManager()
            >>> @hooks.on(HookEvent.ON_ERROR, HookEvent.POST_EXECUTE)
            ... def tell(context):
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
            options = Options(when, priority, background, timeout)
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
        """Stop calling ``callback`` at ``event``; say whether it was registered."""
        require_event(event)
        with self._lock:
            before = self._hooks[event].entries
            after = tuple(entry for entry in before if entry.callback != callback)
            if len(after) < len(before):
                self._replace(event, after)
            return len(after) < len(before)

    @protected
    def unregister_all(self, event: HookEvent | None = None) -> int:
        """Remove all hooks of ``event``, or of every event for None; say how many there were."""
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
            except BaseException as error:  # Ctrl-C: the others still hear of this event
                interrupted = interrupted or error
        with self._lock:
            if dispatch.live:
                dispatch.triggers += 1
            else:  # a registration came between
                dispatch.add_calls(1)
        if interrupted is not None:
            raise interrupted

    def has_hooks(self, event: HookEvent | None = None) -> bool:
        """Say whether any hook is registered, for ``event`` or (None) at all."""
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
        """Count hooks, calls and errors, and say how long they took.

        Returns:
            ``{"hook_counts": ..., "call_counts": ..., "error_counts": ..., "hooks": ...}``, each
            keyed by the event's value. ``call_counts`` counts calls of hooks, failed ones too;
            ``error_counts`` holds only events with failures.

            ``hooks`` holds, for each event that has or had any, its hooks by name
            (``package.module.name``; those of one name are added up): ``calls``; ``errors``,
            timeouts and failures of conditions among them; ``dropped``, calls in the background
            that were never made; and, of the ``timed_calls``, ``total_seconds`` and
            ``longest_seconds``. Plain hooks are timed where the manager is ``timed``.
        """
        with self._lock:
            for dispatch in self._hooks.values():
                dispatch.settle()
            return {
                "hook_counts": {event.value: self.get_hook_count(event) for event in HookEvent},
                **summarize(self._stats),
            }

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
                # Others may be going through these now: they keep what they call.
                entries = tuple(entry.renewed() for entry in dispatch.entries)
                for entry in entries:
                    self._prepare(entry)
                self._replace(event, entries)

    @protected_between_calls
    def drain(self, execution_id: str | None = None, timeout: float | None = None) -> bool:
        """Wait for the calls in the background, of one execution or (None) of all.

        ``execute()`` does this at the end of the run. What is not done in time is given up: calls
        that wait are dropped, one that runs counts as failed, and none begins later. On the event
        loop that the hooks run on it does not wait at all.

        Args:
            execution_id: as in the events' metadata.
            timeout: seconds; None for the manager's ``drain_timeout``.

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
        """Write the hooks to a TOML file that :meth:`load` reads: ``docs/hooks.md`` describes it.

        Exporters that are enabled and attached to this manager are written with their settings,
        secrets among them: only the owner may read the file.

        Raises:
            InvalidValueError: something cannot be saved, such as a lambda; the message names all
                that cannot. Nothing is written.
        """
        from amorsize.hooks.config import write

        entries = [entry for each in self._hooks.values() for entry in each.entries]
        write(path, sorted(entries, key=lambda entry: entry.sequence), self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Make a manager with the hooks of a TOML file: ``docs/hooks.md`` describes it.

        The file names code, which is imported: load only files that you trust. Exporters that it
        names are enabled as by :func:`amorsize.enable`: for the whole process.

        Raises:
            InvalidValueError: the file cannot be read, or something in it is not known or cannot
                be imported; the message gives the line. Nothing is registered, nothing enabled.
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
        # A method is a new object each time it is looked up: known by its function and its self.
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

    Every ``execute()`` triggers it, beside the one passed as ``hooks=``. It is empty until
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
    """Decorate a function to be called at one event of every execution, or at several.

    This is :meth:`HookManager.on` of the default manager. It registers nothing in workers, which
    often import the module that decorates; neither in processes of our own nor in those of an
    executor that was passed, nor in Dask's.

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
        # A process of an executor's imports __main__ before it knows that it will be a worker.
        when_worker(lambda: [_default.unregister(event, function) for event in events])
        return decorate(decorated)

    return decorate_outside_workers


def _reset_in_forked_child() -> None:
    # The lock may be held by a thread that does not exist here: take a new one.
    _default.__init__(verbose=_default.verbose)  # type: ignore[misc]  # same object, fresh state


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_in_forked_child)
