"""Carries out what the planner asks to know: measures items, the machine, payloads, start-up.

``execute()`` and ``optimize()`` find their first plan here, and a run whose items turn out long its
next one.
"""

from __future__ import annotations

import contextvars

from amorsize.planning.clocks import Clocks, ThreadClocks
from amorsize.planning.observations import EarlyWork, Observations
from amorsize.planning.plan import (
    CORES,
    ITEMS,
    ITEMS_MEANWHILE,
    ITEMS_TOGETHER,
    MEMORY,
    PAYLOAD,
    STARTUP,
    LookFurther,
    RunChunks,
    StartTemplate,
    StartWorkers,
)
from amorsize.planning.planner import Planner
from amorsize.running.first_items import FirstItems
from amorsize.running.input import Input

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from amorsize.engines.base import Task
    from amorsize.options import Options
    from amorsize.planning.machine import StartupCosts
    from amorsize.planning.pickling import Payload
    from amorsize.running.call_monitor import CallMonitor
    from amorsize.running.early_workers import EarlyWorkers


def asked_for(options: Options) -> Observations:
    """Make the observations of a run of which only the caller's wishes are known."""
    return Observations(
        engine=options.engine,
        n_jobs=options.n_jobs,
        chunksize=options.chunksize,
        sample_size=options.sample_size,
        target_chunk_duration=options.target_chunk_duration,
        returns_exceptions=options.return_exceptions,
        time_limit=options.timeout is not None or options.item_timeout is not None,
        item_time_limit=options.item_timeout is not None,
    )


class Measurement:
    """The observations of a run, and the means to make more.

    Args:
        task: the function, and how it is called.
        source: the input.
        seen: what is known; it is written here.
        starts_early: whether workers may start ahead of the plan.
        chunk_id: of the chunk that the items are.
        clocks, startup: where time is read from, and start-up costs; None for the real ones.

    Attributes:
        first: the items that were called to measure them.
        has_changed: whether calls turned out to be others than those before them.
    """

    def __init__(
        self,
        task: Task,
        source: Input,
        seen: Observations,
        planner: Planner,
        *,
        starts_early: bool,
        chunk_id: int = 0,
        clocks: Clocks | None = None,
        startup: StartupCosts | None = None,
    ) -> None:
        self.task = task
        self.source = source
        self.seen = seen
        self.planner = planner
        self._clocks = clocks
        self._startup = startup
        self._context = contextvars.copy_context()
        self._early: EarlyWorkers | None = None
        self._abandoned = False
        self.has_changed = False
        self.first = FirstItems(
            task.func,
            source,
            return_exceptions=task.return_exceptions,
            collector=task.collect.in_chunk(chunk_id) if task.collect else None,
            chunk_id=chunk_id,
            clocks=clocks,
            weighs_results=seen.streams,
        )
        seen.early = EarlyWork() if starts_early else None
        seen.sample = self.first.sample
        seen.left = source.left
        seen.indexable = source.sequence is not None

    def find_plan(self, perform: Callable[[LookFurther], None] | None = None) -> RunChunks:
        """Ask the planner, and look as far as it wants to, until it says what to run.

        Args:
            perform: carries out a look; None for :meth:`look`.
        """
        perform = perform or self.look
        while True:
            plan = self.planner.next(self.seen)
            if isinstance(plan, RunChunks):
                return plan
            if isinstance(plan, LookFurther):
                perform(plan)
            elif isinstance(plan, StartTemplate):
                self.start_template()
            elif isinstance(plan, StartWorkers):
                self.early.start(plan)
            if self._early is not None and self._early.refusals:
                self.seen.refusals = {**self.seen.refusals, **self._early.refusals}
                if self.seen.payload is not None:
                    self.seen.payload = self.measure_payload()

    @property
    def early(self) -> EarlyWorkers:
        """The workers that are started ahead of the plan."""
        if self._early is None:
            from amorsize.running.early_workers import EarlyWorkers

            assert self.seen.early is not None
            early = EarlyWorkers(
                self.task, self.source.sequence, self.first, self._context, self.seen.early
            )
            self._early = early
            if self._abandoned:  # by a run that did not wait for a call that is looked at only now
                early.abandon()
        return self._early

    @property
    def has_started(self) -> bool:
        """Whether workers were started, or might have been."""
        return self._early is not None

    def start_template(self) -> None:
        """Start the template of worker processes; whether that fails, the run meets later."""
        from amorsize.engines.process.launcher import start_early

        assert self.seen.early is not None
        self.seen.early.template = True
        start_early()

    def abandon(self) -> None:
        """End what was begun and not handed over; begin nothing more."""
        self._abandoned = True
        if self._early is not None:
            self._early.abandon()

    def look(self, plan: LookFurther) -> None:
        """Carry out a look, in this thread."""
        seen = self.seen
        if plan.note:
            seen.notes = (*seen.notes, plan.note)
        if plan.at in (CORES, MEMORY):
            self.look_at_machine(plan)
        elif plan.at == PAYLOAD:
            seen.payload = self.measure_payload()
        elif plan.at == STARTUP:
            from amorsize.planning.machine import measure_startup

            measure_startup("process")
            self._read_startup()
        else:
            self._look_at_items(plan)

    def look_at_machine(self, plan: LookFurther) -> None:
        """Read what the machine may use; once per run: beside busy threads each file takes long."""
        from amorsize.engines import warm_pool
        from amorsize.planning.machine import engines_here, read_system

        seen = self.seen
        if plan.at == MEMORY:
            seen.memory_read = True
        if seen.machine is None or (plan.at == MEMORY and seen.machine.total_bytes is None):
            seen.machine = read_system(memory=plan.at == MEMORY)
        here = engines_here()
        seen.allowed = tuple(name for name in seen.allowed if name in here)
        seen.warm_workers = warm_pool.warm_workers()
        self._read_startup()

    def _read_startup(self) -> None:
        from amorsize.planning.machine import ENGINES, STARTUP_COSTS

        costs = self._startup or STARTUP_COSTS
        self.seen.startup = {engine: costs.model(engine) for engine in ENGINES}

    def measure_payload(self) -> Payload:
        """Pickle the function, and representatives of the items and results so far."""
        from amorsize.planning.pickling import Payload, measure_payload

        if (problem := self.seen.refusals.get("process")) is not None:
            return Payload(problem=problem)
        results = self.first.returned()
        payload = measure_payload(self.task.func, self.first.items[:], results)
        self.task.pickled_result = payload.pickled_result
        return payload

    def _look_at_items(self, plan: LookFurther) -> None:
        seen, first = self.seen, self.first
        if plan.afresh and first.items:
            self.has_changed = True
            first.forget_times()
        if plan.at == ITEMS_TOGETHER:
            first.measure_together(plan.items)
        elif plan.at == ITEMS_MEANWHILE:
            ran = first.work_until(plan.items, self.early.is_up)
            self.early.state.is_up = True
            if ran:
                more = "1 item" if ran == 1 else f"{ran:,} items"
                seen.notes = (*seen.notes, f"while the workers started, {more} more ran here")
        else:
            assert plan.at == ITEMS
            self._measure(plan)
        if self.first is first:
            self._take_note()

    def cut(self, stop: BaseException) -> None:
        """Leave the look in progress to its thread, which is held up in it, and go on without it.

        Args:
            stop: why; see :meth:`FirstItems.cut`.
        """
        self.first = self.first.cut(stop)
        self._take_note()

    def _take_note(self) -> None:
        seen, first = self.seen, self.first
        seen.sample, seen.left, seen.stopped = first.sample, self.source.left, first.stopped

    def _measure(self, plan: LookFurther) -> None:
        first = self.first
        if not plan.monitored:
            first.thread = ThreadClocks.of_this_thread() if self._clocks is None else None
            first.measure(plan.items)
            first.thread = None
            return
        monitors: list[CallMonitor] = []

        def make_monitor() -> CallMonitor | None:
            from amorsize.running.call_monitor import CallMonitor

            if (clocks := ThreadClocks.of_this_thread()) is not None:
                monitors.append(CallMonitor(self, clocks))
                first.thread = clocks
            return monitors[0] if monitors else None

        try:
            first.measure(plan.items, make_look=make_monitor, from_start=plan.from_start)
        finally:
            first.thread = None
            for monitor in monitors:
                monitor.settle(first.sample)
