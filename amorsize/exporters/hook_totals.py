"""Totals of hooks: of every manager that observes an execution together with an exporter."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from amorsize.exporters import metrics
from amorsize.exporters.metrics import BoundedLabel
from amorsize.exporters.series import Labels, Series
from amorsize.hooks import HookManager
from amorsize.workers import in_forked_child

Stats: TypeAlias = dict[str, dict[str, Any]]
"""As :meth:`HookManager.get_stats` returns them."""


class HookTotals:
    """Adds up the statistics of managers, and has them measure their hooks.

    Managers are often made for one execution. The calls of their hooks stay counted when they are
    gone, and nothing here keeps them alive.

    Args:
        from_now: whether a manager's earlier calls do not count.
    """

    def __init__(self, *, from_now: bool = False) -> None:
        self._from_now = from_now
        self._lock = threading.RLock()  # a signal handler may emit an execution's first event
        self._hook_label = BoundedLabel(metrics.LABEL_LIMITS["hook"])
        self._finalizers: weakref.WeakKeyDictionary[HookManager, Any] = weakref.WeakKeyDictionary()
        # A manager may be collected wherever memory is allocated, under any lock: only noted then.
        self._gone: deque[Callable[[], Stats]] = deque()
        self._past = _Sums()

    def include(self, managers: Iterable[HookManager]) -> None:
        """Count the hooks of managers from now on; twice is once."""
        with self._lock:
            self._add_gone()
            for manager in managers:
                if manager not in self._finalizers:
                    if self._from_now:
                        self._past.add(manager.get_stats(), self._hook_label, sign=-1)
                    _begin_timing(manager)
                    finalizer = weakref.finalize(manager, self._gone.append, manager.stats_reader())
                    finalizer.atexit = False
                    self._finalizers[manager] = finalizer

    def close(self) -> None:
        """Count no further calls; those so far stay."""
        with self._lock:
            self._add_gone()
            for manager, finalizer in list(self._finalizers.items()):
                if finalizer.detach() is not None:
                    self._past.add(manager.get_stats(), self._hook_label)
                    _end_timing(manager)
            self._finalizers.clear()

    def series(self) -> Series:
        """Read the present numbers."""
        with self._lock:
            managers = list(self._finalizers)  # none is collected from here on
            self._add_gone()
            sums = self._past.copy()
            for manager in managers:
                sums.add(manager.get_stats(), self._hook_label)
        return {
            metrics.HOOK_ERRORS: {**sums.errors},
            metrics.HOOK_CALLS: {**sums.calls},
            metrics.HOOK_BUSY: {**sums.busy},
            metrics.HOOK_LONGEST: {**sums.longest},
        }

    def _add_gone(self) -> None:
        while self._gone:
            self._past.add(self._gone.popleft()(), self._hook_label)


class _Sums:
    """The calls of several managers' hooks, by labels."""

    def __init__(self) -> None:
        self.errors: dict[Labels, float] = {(e,): 0 for e in metrics.CLOSED_LABELS["event"]}
        self.calls: dict[Labels, float] = {}
        self.busy: dict[Labels, float] = {}
        self.longest: dict[Labels, float] = {}

    def copy(self) -> _Sums:
        copied = _Sums()
        for name, values in vars(self).items():
            setattr(copied, name, dict(values))
        return copied

    def add(self, stats: Stats, hook_label: BoundedLabel, *, sign: int = 1) -> None:
        for event, count in stats["error_counts"].items():
            self.errors[event,] += sign * count
        for event, hooks in stats["hooks"].items():
            for name, each in hooks.items():
                labels = (event, hook_label(name))
                self.calls[labels] = self.calls.get(labels, 0) + sign * each["calls"]
                self.busy[labels] = self.busy.get(labels, 0.0) + sign * each["total_seconds"]
                self.longest[labels] = max(self.longest.get(labels, 0.0), each["longest_seconds"])


_timing: weakref.WeakKeyDictionary[HookManager, int] = weakref.WeakKeyDictionary()
"""Managers that time their hooks because exporters show it, not because the user asked; and how
many exporters do."""

_timing_lock = threading.RLock()


def _begin_timing(manager: HookManager) -> None:
    with _timing_lock:
        if manager in _timing or not manager.timed:
            _timing[manager] = _timing.get(manager, 0) + 1
            manager.timed = True


def _end_timing(manager: HookManager) -> None:
    with _timing_lock:
        exporters = _timing.pop(manager, 0) - 1
        if exporters > 0:
            _timing[manager] = exporters
        elif exporters == 0:
            manager.timed = False


@in_forked_child
def _renew_lock_in_forked_child() -> None:
    global _timing_lock
    _timing_lock = threading.RLock()  # a thread of the parent's may hold the old one
