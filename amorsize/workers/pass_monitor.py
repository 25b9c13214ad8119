"""A pass over a span that ends early where its items turn out to be longer than foreseen."""

from __future__ import annotations

import _thread
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from threading import Lock
from typing import Any, TypeAlias

from amorsize.workers.slices import Pass
from amorsize.workers.thread_cache import run_beside

TooLong: TypeAlias = Callable[[float, int], bool]
"""Told the seconds that an item took lately, and the index of the next: whether to end there."""

SLICED_ITEMS = 512
"""So few are not worth another thread: they are gone over in slices."""

SLICE_ITEMS = 16

SLICE_SECONDS = 1e-3
"""Slices that take less are not asked about."""

LOOK_SECONDS = 0.02

IDLE_LOOKS = 10
"""Where there is nothing to look at for so long, the thread ends; the next pass begins another."""


class Watcher:
    """Looks after passes, one at a time, without costing their items anything.

    Of a long span, a thread looks now and then how far the pass is. To end it, it moves the
    iterator, of which the loop itself asks nothing else: a look at the clock, or at a flag, between
    trivial calls would take as long as they do. Of a short one, the loop's own thread looks at the
    clock between slices.

    Args:
        too_long: asked whether to end; from another thread, or from that of the loop.

    Example:
        >>> watcher = Watcher(lambda each, at: False)
        >>> with watcher.look_after([-1, -2, -3], 0) as items:
        ...     [abs(item) for item in items]
        [1, 2, 3]
        >>> watcher.close()
    """

    def __init__(self, too_long: TooLong) -> None:
        self.too_long = too_long
        self._over = _thread.allocate_lock()
        self._over.acquire()
        self._changing = Lock()
        self._runs = False
        self._watch: Watch | None = None

    def look_after(self, items: Sequence[Any], start: int) -> Watch:
        """Make a pass over items, the first of which has the index ``start`` in the input."""
        return Watch(items, start, self)

    def close(self) -> None:
        """End the thread."""
        if self._over.locked():
            self._over.release()

    def begin(self, watch: Watch) -> bool:
        """Have the thread look after a pass; False where none can be started."""
        with self._changing:
            self._watch = watch
            # One for all of them: waking one takes as long as many a pass.
            self._runs = self._runs or run_beside(self._look_around)
            return self._runs

    def end(self) -> None:
        """The pass is over."""
        self._watch = None

    def _look_around(self) -> None:
        idle = 0
        while not self._over.acquire(timeout=LOOK_SECONDS):
            if (watch := self._watch) is not None:
                idle = 0
                watch.look()
                continue
            idle += 1
            if idle > IDLE_LOOKS:  # a stream that nobody consumes for now
                with self._changing:
                    self._runs = self._watch is not None
                    if not self._runs:
                        return


class Watch(Pass):
    """A pass that is looked after; see :class:`Watcher`."""

    def __init__(self, items: Sequence[Any], start: int, watcher: Watcher) -> None:
        super().__init__(items)
        self._start = start
        self.watcher = watcher
        self._looking = Lock()
        self._finished = False
        self._seen_at, self._seen_taken = 0.0, 0

    def __enter__(self) -> Iterator[Any]:
        items = super().__enter__()
        self._seen_at = time.perf_counter()
        if len(self.span) > SLICED_ITEMS and self.watcher.begin(self):
            return items
        return chain.from_iterable(self._slices(items))

    def __exit__(self, *exc: object) -> None:
        self._finished = True
        self.watcher.end()
        with self._looking:
            super().__exit__(*exc)

    def look(self) -> None:
        """Look how far it is, from another thread, and end it where that takes too long."""
        with self._looking:
            now = time.perf_counter()
            if self._finished or self.ended or now - self._seen_at < LOOK_SECONDS / 2:
                return
            taken = self.span.taken(self.iterator)
            each = (now - self._seen_at) / max(1, taken - self._seen_taken)
            # It ends behind an item: whoever takes none at all gets nowhere.
            if taken and self.watcher.too_long(each, self._start + taken):
                self.ended, self.taken = True, self.span.end(self.iterator)
            self._seen_at, self._seen_taken = now, taken

    def _slices(self, items: Iterator[Any]) -> Iterator[Iterator[Any]]:
        before = self._seen_at
        for taken in range(SLICE_ITEMS, len(self.span), SLICE_ITEMS):
            yield islice(items, SLICE_ITEMS)
            now = time.perf_counter()
            if now - before > SLICE_SECONDS:
                each = (now - before) / SLICE_ITEMS
                if self.watcher.too_long(each, self._start + taken):
                    self.ended, self.taken = True, taken
                    return
            before = now
        yield items
