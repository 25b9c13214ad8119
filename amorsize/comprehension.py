"""A list comprehension that ends early where its items turn out to be longer than foreseen."""

from __future__ import annotations

import _thread
import time
from collections.abc import Callable
from threading import Lock
from typing import Any

from amorsize.gil_probe import run_beside
from amorsize.span import Span

UNWATCHED_ITEMS = 512
"""So few are not worth another thread."""

LOOK_SECONDS = 0.02


class Comprehension:
    """Calls a function on a span, at the speed of a list comprehension.

    Another thread looks now and then how far it is, and has it end where what is left would take
    too long. For that it moves the iterator, of which the loop itself asks nothing else: a look at
    the clock, or at a flag, between trivial calls would take as long as they do.

    Args:
        func: the function.
        span: its items.
        too_long: told the seconds that an item took lately, and how many are left; says whether to
            end.

    Attributes:
        taken: items of the span that were taken when it ended, by whatever.

    Example:
        >>> loop = Comprehension(abs, Span([-1, -2, -3], 1, 3), lambda each, left: False)
        >>> loop.run(), loop.taken
        ([2, 3], 2)
    """

    def __init__(
        self, func: Callable[[Any], Any], span: Span, too_long: Callable[[float, int], bool]
    ) -> None:
        self._func = func
        self._span = span
        self._too_long = too_long
        self._iterator = span.iterator()
        self._over = _thread.allocate_lock()
        self._over.acquire()
        self._looking = Lock()
        self._ended = self._finished = False
        self.taken = 0

    def run(self) -> list[Any]:
        """Call; the results of what was taken. Raises what the function raises."""
        func, span = self._func, self._span
        if len(span) > UNWATCHED_ITEMS:
            run_beside(self._watch)  # where no thread can be started, it is not watched
        try:
            results = [func(item) for item in span.up_to_its_end(self._iterator)]
        finally:
            self._finished = True
            try:
                with self._looking:
                    if not self._ended:
                        self.taken = min(span.taken(self._iterator), len(span))
            finally:
                self._over.release()
        del results[len(span) :]  # the function may have made the list longer
        self.taken = len(results)
        if self.taken < len(span) and not self._ended:
            from amorsize.errors import input_shrank

            raise input_shrank()
        return results

    def _watch(self) -> None:
        seconds, before = time.perf_counter(), 0
        while not self._over.acquire(timeout=LOOK_SECONDS):
            with self._looking:
                if self._finished:
                    return
                now, taken = time.perf_counter(), self._span.taken(self._iterator)
                each = (now - seconds) / max(1, taken - before)
                if self._too_long(each, len(self._span) - taken):
                    self._ended = True
                    self.taken = self._span.end(self._iterator)
                    return
            seconds, before = now, taken
