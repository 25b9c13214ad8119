"""A pass over a span that ends early where its items turn out to be longer than foreseen."""

from __future__ import annotations

import _thread
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from threading import Lock
from typing import Any, TypeAlias

from amorsize.gil_probe import run_beside
from amorsize.span import Pass

TooLong: TypeAlias = Callable[[float, int], bool]
"""Told the seconds that an item took lately, and the index of the next: whether to end there."""

SLICED_ITEMS = 512
"""So few are not worth another thread: they are gone over in slices."""

SLICE_ITEMS = 16

SLICE_SECONDS = 1e-3
"""Slices that take less are not asked about."""

LOOK_SECONDS = 0.02


class Watch(Pass):
    """A pass that is looked after, without costing its items anything.

    Of a long span, another thread looks now and then how far it is. To end it, it moves the
    iterator, of which the loop itself asks nothing else: a look at the clock, or at a flag, between
    trivial calls would take as long as they do. Of a short one, the loop's own thread looks at the
    clock between slices.

    Args:
        items: what is gone over.
        start: the index of the first of them in the input.
        too_long: asked whether to end; from another thread, or from that of the loop.

    Example:
        >>> watch = Watch([-1, -2, -3], 0, lambda each, at: False)
        >>> with watch as items:
        ...     results = [abs(item) for item in items]
        >>> watch.settle(results)
        >>> results, watch.taken
        ([1, 2, 3], 3)
    """

    def __init__(self, items: Sequence[Any], start: int, too_long: TooLong) -> None:
        super().__init__(items)
        self._start = start
        self._too_long = too_long
        self._over = _thread.allocate_lock()
        self._over.acquire()
        self._looking = Lock()
        self._finished = False

    def __enter__(self) -> Iterator[Any]:
        items = super().__enter__()
        if len(self.span) > SLICED_ITEMS and run_beside(self._watch):
            return items
        return chain.from_iterable(self._slices(items))

    def __exit__(self, *exc: object) -> None:
        self._finished = True
        try:
            with self._looking:
                super().__exit__(*exc)
        finally:
            self._over.release()

    def _slices(self, items: Iterator[Any]) -> Iterator[Iterator[Any]]:
        size = len(self.span)
        before = time.perf_counter()
        for taken in range(SLICE_ITEMS, size, SLICE_ITEMS):
            yield islice(items, SLICE_ITEMS)
            now = time.perf_counter()
            if now - before > SLICE_SECONDS:
                each = (now - before) / SLICE_ITEMS
                if self._too_long(each, self._start + taken):
                    self.ended, self.taken = True, taken
                    return
            before = now
        yield items

    def _watch(self) -> None:
        before, taken_before = time.perf_counter(), 0
        while not self._over.acquire(timeout=LOOK_SECONDS):
            with self._looking:
                if self._finished:
                    return
                now, taken = time.perf_counter(), self.span.taken(self.iterator)
                each = (now - before) / max(1, taken - taken_before)
                # It ends behind an item: whoever takes none at all gets nowhere.
                if taken and self._too_long(each, self._start + taken):
                    self.ended, self.taken = True, self.span.end(self.iterator)
                    return
            before, taken_before = now, taken
