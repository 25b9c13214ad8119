"""What a run goes by, and whether that still holds: items may turn out shorter, or longer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from amorsize.planning.engine import Engine
from amorsize.planning.plan import Rest, Stage
from amorsize.planning.workload import TRIVIAL_SECONDS, assumed_items
from amorsize.running.first_items import SURPRISE, is_surprise
from amorsize.running.input import Input

CHEAP_SECONDS = 5e-7
"""An item that takes less is done sooner than it is handed to a worker and back."""

MOST_GROWTHS = 8
"""How often a serial run goes over to workers: items may change for ever."""


class Course:
    """The plan of a run, and what it turns to.

    Args:
        stage: what it begins with.
        data: the input.
        total: its length, None when unknown.
        choose_anew: measures the next items like first ones, and says how to go on.

    Attributes:
        plan, sizer, sampled, take_over: those of the stage that the run is at.
        total: as given, until the run knows better.
        leaving: whether workers are to be left: items are cheaper than their way there.
        growing: whether the choice is to be made anew: items are too long for one worker.
    """

    def __init__(
        self,
        stage: Stage,
        data: Input,
        total: int | None,
        choose_anew: Callable[[Rest], Stage],
    ) -> None:
        self.plan, self.sizer = stage.plan, stage.sizer
        self.sampled, self.take_over = stage.sampled, stage.take_over
        self._input = data
        self.total = total
        self._choose_anew: Callable[[Rest], Stage] | None = choose_anew
        self._grown = 0
        self._too_long_seconds = 0.0
        self.leaving = self.growing = False

    @property
    def is_open(self) -> bool:
        """Whether the run goes on as it is: further chunks may be handed out."""
        return not (self.leaving or self.growing)

    @property
    def is_alone(self) -> bool:
        """Whether this is a serial run."""
        return self.plan.engine.type == "serial"

    def look_for_cheap_items(self) -> None:
        """Find out whether workers are to be left."""
        each_seconds = self.sizer.item_seconds
        if not self.plan.may_change or each_seconds is None:
            return
        if self.plan.engine.type == "thread":
            # They take turns at the GIL: in what an item takes there are items of all others.
            each_seconds /= self.plan.n_jobs
        if each_seconds < CHEAP_SECONDS:
            self.leaving = True

    def leave_workers(self) -> None:
        """Go on in this thread."""
        self.leaving = False
        self.plan = self.plan._replace(
            engine=Engine("serial"),
            n_jobs=1,
            may_change=False,
            item_seconds=CHEAP_SECONDS,
            reason="Serial, because items cost less than their way to a worker and back.",
        )
        self.sizer.go_on_alone()

    def is_too_long(self, each_seconds: float, at: int) -> bool:
        """Say whether a serial run is to end in front of the item of index ``at``.

        The chunk that is at work asks as well, which may be from another thread.
        """
        left = assumed_items(each_seconds) if self.total is None else self.total - at
        surprise = is_surprise(each_seconds, left, self.plan.item_seconds)
        if not (self.plan.may_grow and surprise):
            return False
        self._too_long_seconds = each_seconds
        return True

    def ask(self, items: Iterator[Any], chunk_id: int) -> Stage:
        """Measure the next items like first ones, and say how to go on.

        Args:
            items: where they come from.
            chunk_id: of the chunk that they will be.
        """
        assert self._choose_anew is not None
        data = self._input
        left = None if self.total is None else self.total - data.drawn
        return self._choose_anew(Rest(items, data.sequence, left, data.drawn, chunk_id))

    def turn_to(self, stage: Stage) -> None:
        """Go on with another stage."""
        before = max(TRIVIAL_SECONDS, self.plan.item_seconds)
        self.plan, self.sizer = stage.plan, stage.sizer
        self.sampled, self.take_over = stage.sampled, stage.take_over
        if not self.is_alone:
            self._grown += 1
            self._input.copies = True
        # What was short again when it was measured is less of a surprise the next time: a single
        # one may have stood in the queue for a CPU, but some inputs go on like that.
        self.plan = self.plan._replace(
            may_grow=self._grown < MOST_GROWTHS,
            item_seconds=max(
                self.plan.item_seconds, min(self._too_long_seconds, SURPRISE * before)
            ),
        )

    def end(self) -> None:
        """Forget who chooses: it knows the run, and both would stay until they are collected."""
        self._choose_anew = None
