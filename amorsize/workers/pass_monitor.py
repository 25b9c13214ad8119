"""Ends a pass over items early, where they turn out to take longer than expected.

Another thread looks every 20 ms how far the pass is, at no cost to its items; :mod:`.slices` says
how it ends one. Rejected: a look at the clock, or at a flag, after each item (as long as a very
short call takes); a signal timer (main thread only, and the program's own timers); chunks so short
that none needs to end (a chunk costs as much as a hundred very short items).
"""

from __future__ import annotations

import _thread
import time
from itertools import chain, islice
from threading import Lock

from amorsize.workers.slices import Pass
from amorsize.workers.thread_cache import run_beside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any, TypeAlias

    TooLong: TypeAlias = Callable[[float, int], bool]
    """Given the seconds that an item took lately, and the index of the next: whether to end there.
    """

SLICED_ITEMS = 512
"""So few are not worth another thread: the loop looks at the clock between slices of them."""

SLICE_ITEMS = 16

SLICE_SECONDS = 1e-3
"""Slices that take less are not asked about."""

PASS_LOOK_SECONDS = 0.02

IDLE_LOOKS = 10
"""Where no pass has run for so many looks, the thread ends; the next pass begins another."""


class PassMonitor:
    """Monitors passes, one at a time: long ones from another thread, short ones between slices.

    Args:
        too_long: asked whether to end a pass; from another thread, or from that of the loop.

    Example:
        >>> monitor = PassMonitor(lambda each, at: False)
        >>> with monitor.pass_over([-1, -2, -3], 0) as items:
        ...     [abs(item) for item in items]
        [1, 2, 3]
        >>> monitor.close()
    """

    def __init__(self, too_long: TooLong) -> None:
        self.too_long = too_long
        self._over = _thread.allocate_lock()
        self._over.acquire()
        self._changing = Lock()
        self._runs = False
        self._pass: MonitoredPass | None = None

    def pass_over(self, items: Sequence[Any], start: int) -> MonitoredPass:
        """Make a pass over items, the first of which has the index ``start`` in the input."""
        return MonitoredPass(items, start, self)

    def close(self) -> None:
        """End the thread."""
        if self._over.locked():
            self._over.release()

    def begin(self, monitored: MonitoredPass) -> bool:
        """Have the thread monitor a pass; False where no thread can be started."""
        with self._changing:
            self._pass = monitored
            # One for all of them: waking one takes as long as many a pass.
            self._runs = self._runs or run_beside(self._look_around)
            return self._runs

    def end(self) -> None:
        """The pass is over."""
        self._pass = None

    def _look_around(self) -> None:
        idle = 0
        while not self._over.acquire(timeout=PASS_LOOK_SECONDS):
            if (monitored := self._pass) is not None:
                idle = 0
                monitored.look()
                continue
            idle += 1
            if idle > IDLE_LOOKS:  # a stream that nobody consumes for now
                with self._changing:
                    self._runs = self._pass is not None
                    if not self._runs:
                        return


class MonitoredPass(Pass):
    """A pass that may be ended early; see :class:`PassMonitor`."""

    def __init__(self, items: Sequence[Any], start: int, monitor: PassMonitor) -> None:
        super().__init__(items)
        self._start = start
        self.monitor = monitor
        self._looking = Lock()
        self._finished = False
        self._seen_at, self._seen_taken = 0.0, 0

    def __enter__(self) -> Iterator[Any]:
        items = super().__enter__()
        self._seen_at = time.perf_counter()
        if len(self.items) > SLICED_ITEMS and self.monitor.begin(self):
            return items
        return chain.from_iterable(self._slices(items))

    def __exit__(self, *exc: object) -> None:
        self._finished = True
        self.monitor.end()
        with self._looking:
            super().__exit__(*exc)

    def look(self) -> None:
        """Look how far it is, from another thread, and end it where that takes too long."""
        with self._looking:
            now = time.perf_counter()
            if self._finished or self.ended or now - self._seen_at < PASS_LOOK_SECONDS / 2:
                return
            taken = self.items.taken(self.iterator)
            each = (now - self._seen_at) / max(1, taken - self._seen_taken)
            # It ends after an item: a pass that takes none at all gets nowhere.
            if taken and self.monitor.too_long(each, self._start + taken):
                self.ended, self.taken = True, self.items.end(self.iterator)
            self._seen_at, self._seen_taken = now, taken

    def _slices(self, items: Iterator[Any]) -> Iterator[Iterator[Any]]:
        before = self._seen_at
        for taken in range(SLICE_ITEMS, len(self.items), SLICE_ITEMS):
            yield islice(items, SLICE_ITEMS)
            now = time.perf_counter()
            if now - before > SLICE_SECONDS:
                each = (now - before) / SLICE_ITEMS
                if self.monitor.too_long(each, self._start + taken):
                    self.ended, self.taken = True, taken
                    return
            before = now
        yield items
