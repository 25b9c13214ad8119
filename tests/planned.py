"""Planners that decide what a test says: what a run does is real, whatever the machine does.

What is decided from given observations is in tests/planning/test_planner.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from amorsize.planning.engine import Engine
from amorsize.planning.observations import Observations
from amorsize.planning.plan import ITEMS, Choice, LookFurther, Plan, RunChunks, StartWorkers
from amorsize.planning.planner import SERIAL, Planner

ALONE = Choice(SERIAL, 1, "Serial, because the test says so.", may_grow=True)
THREADS = Choice(Engine("thread"), 8, "Threads, because the test says so.")
PROCESSES = Choice(Engine("process"), 2, "Processes, because the test says so.")

PlanWith: TypeAlias = Callable[[Planner], None]
"""The fixture ``plan_with``: has all runs of a test planned by this planner."""


class InTurn(Planner):
    """Goes from one choice to the next, after five items that are measured.

    A serial choice is left for workers after five further items.

    Args:
        choices: where chunks run.
        at: which of them it is to be by now; asked whenever the planner is.
        starts: what is started while a long call is in progress that is measured again.

    Attributes:
        chosen: the one that the run goes by; None before the first.
    """

    def __init__(
        self,
        *choices: Choice,
        at: Callable[[Observations], int] = lambda _: 0,
        starts: Sequence[StartWorkers] = (),
    ) -> None:
        self._choices = choices
        self._at = at
        self._starts = iter(starts)
        self._is_monitored = bool(starts)
        self.chosen: Choice | None = None

    def next(self, seen: Observations) -> Plan | None:
        if seen.in_progress:
            return next(self._starts, None)
        plan, choice = seen.plan, self._choices[self._at(seen)]
        if plan is None and seen.sample.asked_items == 0:
            return LookFurther(ITEMS, 5, monitored=False)
        if plan is not None and (plan.choice is choice or seen.left == 0):
            return plan
        if plan is not None and plan.choice.is_serial:
            return LookFurther(ITEMS, 5, afresh=True, monitored=self._is_monitored)
        self.chosen = choice
        size = seen.chunksize or (100_000 if choice.is_serial else 1)
        return RunChunks(choice, size, size)


class Early(Planner):
    """Starts workers while the first call is in progress, whatever that looks like.

    All else is planned as ever.

    Args:
        starts: what is started, one at each look.
    """

    def __init__(self, *starts: StartWorkers) -> None:
        self._starts = iter(starts)

    def next(self, seen: Observations) -> Plan | None:
        return next(self._starts, None) if seen.in_progress else super().next(seen)


class Computing(Planner):
    """Takes the first items for calls of 10 ms that compute under the GIL, however busy it is.

    All else is planned as ever.
    """

    def next(self, seen: Observations) -> Plan | None:
        sample = seen.sample
        if sample.item_seconds and not seen.in_progress:
            calls = [0.01] * len(sample.item_seconds)
            sample = sample._replace(
                item_seconds=calls,
                seconds=sum(calls),
                cpu_seconds=sum(calls),
                process_cpu_seconds=sum(calls),
                input_seconds=[0.0] * len(calls),
                voluntary_switches=0,
                queued_seconds=0.0,
                looks_seconds=0.0,
                gil_share=0.0,
            )
            seen = seen._replace(sample=sample)
        return super().next(seen)
