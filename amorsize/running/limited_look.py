"""Looks at first items within the limits of a run: an item that hangs is left behind.

The first items run on a thread of their own, and the run's thread sees to it that neither
``timeout=`` nor ``item_timeout=`` is passed. A thread cannot be stopped: where a limit is passed,
it is left to its call, and the run goes on with what the items before it have shown, or ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from amorsize.engines.base import Overdue, WorkerLost
from amorsize.engines.pauses import PauseWatch
from amorsize.planning.plan import ITEMS, ITEMS_TOGETHER, PAYLOAD, LookFurther
from amorsize.running.abandonable import Draw, run_abandonable
from amorsize.running.input import Input
from amorsize.running.measurement import Measurement
from amorsize.workers.chunk import Chunk


class LimitedLook:
    """Carries out looks that may be left behind.

    Args:
        measurement: carries them out.
        source: the input.
        draw: draws further items, in the run's thread.
        check: raises where a limit of the run is passed.
        item_timeout: seconds that an item may take; None for any.
    """

    def __init__(
        self,
        measurement: Measurement,
        source: Input,
        draw: Callable[[int], Sequence[Any]],
        check: Callable[[], None],
        item_timeout: float | None,
    ) -> None:
        self._measurement = measurement
        self._source = source
        self._draw = draw
        self._check_run = check
        self._item_timeout = item_timeout
        self._watch = PauseWatch()
        self._item: int | None = None
        self._since = 0

    def perform(self, step: LookFurther) -> None:
        """Carry out a look; what stops it is noted as the end of the measuring."""
        measurement = self._measurement
        first = measurement.first
        if step.at not in (ITEMS, ITEMS_TOGETHER, PAYLOAD):  # no code of the user's
            measurement.look(step)
            return

        def work(draw: Draw) -> None:
            if not self._source.instant:  # else drawing runs no code that could hang
                first.draw = draw
            measurement.look(step)

        try:
            run_abandonable(work, draw=self._draw, check=self._check)
        except BaseException as stop:
            measurement.cut(stop)

    def _check(self) -> None:
        self._check_run()
        if self._item_timeout is None:
            return
        first, watch = self._measurement.first, self._watch
        watch.look()
        item = first.in_progress()
        if item is None or item != self._item:
            self._item, self._since = item, watch.looked_at
            return
        seconds = watch.seconds_since(self._since)
        if seconds > self._item_timeout:
            from amorsize.running.failures import overdue

            chunk = Chunk(first.chunk_id, first.start, ())
            late = Overdue(0, chunk, item, seconds, self._since)
            detail = "its thread cannot be stopped and is abandoned"
            raise overdue(late, WorkerLost(0, 0, None, False, detail=detail), self._item_timeout)
