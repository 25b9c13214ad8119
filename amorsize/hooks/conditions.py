"""Ready-made conditions for ``when=``: predicates of the context."""

from __future__ import annotations

import threading
from collections import OrderedDict
from fnmatch import fnmatchcase
from typing import Any

from amorsize.errors import InvalidTypeError, InvalidValueError
from amorsize.hooks.entries import Condition, require_seconds
from amorsize.hooks.events import HookContext
from amorsize.hooks.interruption import protected

_EXECUTIONS = 1000
"""The number of executions whose progress :class:`every` remembers."""


@protected
class every:
    """True once per so many seconds, or once per so many items.

    Each registration has a count of its own, so one object may be given to several hooks.

    Args:
        seconds: the least time between two calls, by ``context.timestamp``. The first call is
            made at once.
        items: the number of further completed items of an execution per call.

    Raises:
        InvalidTypeError, InvalidValueError: not exactly one of the two is given, or it is not
            above 0.

    Example:
        >>> from amorsize import HookContext, HookEvent
        >>> thousand = every(items=1000)
        >>> [thousand(HookContext(HookEvent.ON_PROGRESS, items_completed=n)) for n in (400, 1100)]
        [False, True]
    """

    def __init__(self, *, seconds: float | None = None, items: int | None = None) -> None:
        if (seconds is None) == (items is None):
            raise InvalidTypeError("every() takes either seconds= or items=")
        if seconds is not None:
            require_seconds("every(seconds=)", seconds)
        if items is not None:
            if isinstance(items, bool) or not isinstance(items, int):
                raise InvalidTypeError(f"every(items=) must be a whole number; got {items!r}")
            if items < 1:
                raise InvalidValueError(f"every(items=) must be 1 or more; got {items!r}")
        self.seconds = seconds
        self.items = items
        self._lock = threading.RLock()  # executions of several threads may share a manager
        self._last: float | None = None
        self._reached: OrderedDict[Any, int] = OrderedDict()

    def fresh(self) -> every:
        """Return a new one with the same arguments, which has counted nothing yet."""
        return every(seconds=self.seconds, items=self.items)

    def __call__(self, context: HookContext) -> bool:
        with self._lock:
            return self._is_due(context)

    def _is_due(self, context: HookContext) -> bool:
        if self.seconds is not None:
            elapsed = None if self._last is None else context.timestamp - self._last
            # A clock that was set back must not silence the hook for hours.
            due = elapsed is None or elapsed >= self.seconds or elapsed < 0
            if due:
                self._last = context.timestamp
            return due
        assert self.items is not None
        execution_id = context.metadata.get("execution_id")
        reached = context.items_completed // self.items
        before = self._reached.pop(execution_id, 0)
        self._reached[execution_id] = max(before, reached)
        if len(self._reached) > _EXECUTIONS:
            self._reached.popitem(last=False)
        return reached > before

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, every):
            return NotImplemented
        return (self.seconds, self.items) == (other.seconds, other.items)

    def __hash__(self) -> int:
        return hash((every, self.seconds, self.items))

    def __repr__(self) -> str:
        by_items = f"items={self.items!r}"
        return f"every({by_items if self.seconds is None else f'seconds={self.seconds!r}'})"


class slower_than:
    """True if a chunk spent more than so many seconds in the function, or the run took longer.

    For the events of a chunk ``chunk_time`` counts, for all others ``elapsed_time``, which at
    ``POST_EXECUTE`` is the duration of the whole run.

    Example:
        >>> from amorsize import HookContext, HookEvent
        >>> slower_than(60)(HookContext(HookEvent.POST_EXECUTE, elapsed_time=61.5))
        True
    """

    def __init__(self, seconds: float) -> None:
        require_seconds("slower_than()", seconds)
        self.seconds = seconds

    def __call__(self, context: HookContext) -> bool:
        took = context.elapsed_time if context.chunk_id is None else context.chunk_time
        return took > self.seconds

    def __eq__(self, other: object) -> bool:
        return self.seconds == other.seconds if isinstance(other, slower_than) else NotImplemented

    def __hash__(self) -> int:
        return hash((slower_than, self.seconds))

    def __repr__(self) -> str:
        return f"slower_than({self.seconds!r})"


class function:
    """True for executions of functions whose name matches a pattern.

    The name is the one in the events: the qualified name, or ``name=``. In the pattern ``*`` stands
    for any text, ``?`` for one character, ``[ab]`` for one of these; case matters.

    Example:
        >>> from amorsize import HookContext, HookEvent
        >>> context = HookContext(HookEvent.PRE_EXECUTE, metadata={"function": "etl.load.rows"})
        >>> function("etl.*")(context), function("web.*")(context)
        (True, False)
    """

    def __init__(self, pattern: str) -> None:
        if not isinstance(pattern, str):
            raise InvalidTypeError(f"function() takes a pattern, a string; got {pattern!r}")
        if not pattern:
            raise InvalidValueError("function() takes a pattern such as 'pkg.mod.*'; got ''")
        self.pattern = pattern

    def __call__(self, context: HookContext) -> bool:
        return fnmatchcase(str(context.metadata.get("function", "")), self.pattern)

    def __eq__(self, other: object) -> bool:
        return self.pattern == other.pattern if isinstance(other, function) else NotImplemented

    def __hash__(self) -> int:
        return hash((function, self.pattern))

    def __repr__(self) -> str:
        return f"function({self.pattern!r})"


def on_failure(context: HookContext) -> bool:
    """Return whether something failed: an error, failed items, a dead worker, a run not ``ok``.

    Example:
        >>> from amorsize import HookContext, HookEvent
        >>> on_failure(HookContext(HookEvent.POST_EXECUTE, metadata={"status": "timeout"}))
        True
    """
    metadata = context.metadata
    return (
        context.error is not None
        or metadata.get("status", "ok") != "ok"
        or metadata.get("exit_reason") == "died"
        or bool(metadata.get("failed_items"))
    )


def fresh(condition: Condition | None) -> Condition | None:
    """Return the condition for one more registration, with a new count if it counts."""
    return condition.fresh() if isinstance(condition, every) else condition
