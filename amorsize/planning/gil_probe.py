"""Learns, from a thread beside, whether a function lets go of the GIL while it runs."""

from __future__ import annotations

import _thread
import sys
import threading

from amorsize.planning.clocks import ThreadClocks
from amorsize.planning.planner import LOOK_SECONDS
from amorsize.workers import in_forked_child
from amorsize.workers.thread_cache import run_beside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Look(Protocol):
        """Looks at a call in progress."""

        def begin(self) -> None:
            """Get ready; called from the thread that calls, before the first such call."""

        def __call__(self, probe: GilProbe, /) -> float | None:
            """Look, from the probe's thread; say in how many seconds to do so again, or None."""


AFTER_SECONDS = 1e-3
"""The probe begins once the calls have taken this long: very short calls never pay for it."""

WINDOW_SECONDS = 5e-3
"""Below this the probe's ticks say nothing: the interpreter's switch interval is 5 ms."""


class GilProbe:
    """Learns whether the GIL is free while the function runs.

    A second thread does nothing but wait :data:`TICK_SECONDS` at a time. Where the function
    releases the GIL, or waits, it gets 0.7 to 0.8 of the ticks that fit; where the function holds
    it, the interpreter lets the thread in every 5 ms, and it gets 0.05. Time for which the thread
    stood ready without a CPU says nothing, and is left out where the system counts it: so these
    figures are the same on a machine ten times overcommitted. Measured on two cores, Python 3.11.

    Args:
        wall: seconds on a monotonic clock.
        look: called about the call in progress until it has seen enough, as the probe then has.
            Needs the probe to be started before the first call; it then waits
            :data:`AFTER_SECONDS` by itself.
    """

    TICK_SECONDS = 3e-4
    ENOUGH_TICKS = 300

    __slots__ = (
        "_began_at",
        "_call_began",
        "_clocks",
        "_ended_at",
        "_intervals",
        "_look",
        "_looked",
        "_looking_since",
        "_queued",
        "_stop",
        "_ticks",
        "_wall",
    )

    def __init__(self, wall: Callable[[], float], look: Look | None = None) -> None:
        self._wall = wall
        self._look = look
        self._began_at = 0.0 if look is None else float("inf")
        self._ended_at: float | None = None
        self._call_began: float | None = None
        self._clocks: ThreadClocks | None = None
        self._queued = 0.0
        self._looked = 0.0
        self._looking_since: float | None = None
        self._intervals: list[tuple[float, float]] = []
        self._ticks = 0
        self._stop = _thread.allocate_lock()
        self._stop.acquire()

    def start(self) -> bool:
        """Start the thread; False where no thread can be started."""
        return run_beside(self._run)

    def _run(self) -> None:
        look = self._look
        wait = None if look is None else LOOK_SECONDS
        if look is not None and self._stop.acquire(timeout=AFTER_SECONDS):
            return
        self._clocks = ThreadClocks.of_this_thread()
        self._read_queued()
        self._began_at = self._wall()
        look_at = float("inf") if wait is None else self._began_at + wait
        while self._ticks < self.ENOUGH_TICKS:
            if self._stop.acquire(timeout=self.TICK_SECONDS):
                return
            now = self._wall()
            # Ticks between the calls, when the input is read, say nothing about the function.
            if self._call_began is not None:
                self._ticks += 1
            if look is not None and now >= look_at:
                self._queued += self._read_queued()
                self._looking_since = now
                wait = look(self)
                self._read_queued()
                looked_until = self._wall()
                self._looking_since = None
                self._looked += looked_until - now
                if wait is None:
                    break
                look_at = looked_until + wait
        self._ended_at = self._wall()
        while look is not None and wait is not None:
            if self._stop.acquire(timeout=wait):
                return
            wait = look(self)

    def _read_queued(self) -> float:
        """Seconds, since this was asked last, for which the probe's thread had no CPU."""
        if self._clocks is None:
            return 0.0
        with switching_often():
            return self._clocks.begin() or 0.0

    def enter(self, began: float) -> None:
        """The function is about to be called."""
        self._call_began = began

    def leave(self, began: float, ended: float) -> None:
        """The function was called from ``began`` to ``ended``."""
        self._call_began = None
        self._intervals.append((began, ended))

    def stop(self) -> None:
        """End the thread, at once and without waiting for it."""
        self._call_began = None
        if self._stop.locked():
            self._stop.release()

    def window(self) -> float:
        """Seconds of calls that the ticks so far are from, the call in progress included.

        There are none while the thread looks, which takes long on a busy machine.
        """
        end = self._wall() if self._ended_at is None else self._ended_at
        if (since := self._looking_since) is not None:
            end = min(end, since)
        intervals = self._intervals
        if (began := self._call_began) is not None:
            intervals = [*intervals, (began, end)]
        seen = sum(max(0.0, min(e, end) - max(b, self._began_at)) for b, e in intervals)
        return max(0.0, seen - self._looked)

    def share(self) -> float | None:
        """The share of the ticks that fit, 0 to 1; None when there was too little to see."""
        queued = self._queued
        if self._looking_since is None and self._clocks is not None:
            queued += self._clocks.queued() or 0.0
        window = self.window() - queued
        if window < WINDOW_SECONDS:
            return None
        return min(1.0, self._ticks * self.TICK_SECONDS / window)


SWITCH_SECONDS = 5e-5
_switching = threading.Lock()
_switchers: list[float] = []
"""One entry for each thread that wants it now: the interval that it found."""


@in_forked_child
def _switch_as_before() -> None:
    global _switching
    _switching = threading.Lock()
    if _switchers:  # of the threads that want it, the child has none
        sys.setswitchinterval(_switchers[0])
        _switchers.clear()


class switching_often:
    """Let a thread that computes give way a hundred times as often.

    Beside it, whatever reads a file or starts a process waits for the GIL each time: loading what
    chooses, and opening an engine, takes several tenths of a second instead of some 30 ms.
    """

    __slots__ = ("_beside",)

    def __enter__(self) -> None:
        # Not current_thread(): that would list the probe's thread among the program's for good.
        self._beside = threading.get_ident() != threading.main_thread().ident
        if not self._beside:
            return  # nobody computes beside
        with _switching:
            _switchers.append(sys.getswitchinterval())
            sys.setswitchinterval(min(_switchers[0], SWITCH_SECONDS))

    def __exit__(self, *exc: object) -> None:
        if not self._beside:
            return
        with _switching:
            if len(_switchers) == 1:  # the last to leave gives back what the first one found
                sys.setswitchinterval(_switchers[0])
            del _switchers[-1:]  # a child that was forked in here has none
