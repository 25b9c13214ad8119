"""One call of ``execute()`` or ``stream()``: its arguments, checked, and the run they describe."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import cache, partial
from typing import Any

from amorsize.engines.base import Task
from amorsize.errors import InvalidTypeError, InvalidValueError
from amorsize.hooks.manager import HookManager, get_default_manager
from amorsize.options import check_options, validate
from amorsize.planning.engine import Engine
from amorsize.planning.explanation import OptimizationResult, log_choice
from amorsize.planning.machine import engines_here
from amorsize.planning.named import choose_named
from amorsize.planning.plan import Plan, Rest, Sampled, Stage, TimeLimits
from amorsize.planning.sampling import Sample
from amorsize.running import environment
from amorsize.running.early_workers import HeadStart, make_chooser
from amorsize.running.first_items import Opening
from amorsize.running.input import (
    MAX_CHUNK_ITEMS,
    SHORTEST_CHUNK_SECONDS,
    ChunkSizer,
    Input,
    chunk_seconds,
)
from amorsize.running.loop import Run
from amorsize.running.replanning import Course
from amorsize.running.reporter import Reporter
from amorsize.running.sinks import Sink, StreamBuffer
from amorsize.workers.chunk import HOSTNAME, ChunkOutcome, Failure
from amorsize.workers.collectors import CollectSettings

logger = logging.getLogger(__name__)

_STREAM_CHUNK_ITEMS = 10_000

_SERIAL_CHUNK_ITEMS = 10_000_000
"""Nothing is copied for a serial chunk of an input that is held in memory anyway: the duration of
chunks alone bounds them."""


class Call:
    """The arguments of one call, checked, and the run that they describe.

    Attributes:
        result: the choice, once the run is prepared.
        run: the run, once it is prepared.
        on_change: called, while running, with the choice that was made anew.
    """

    def __init__(
        self,
        func: Callable[[Any], Any],
        data: Iterable[Any],
        *,
        hooks: HookManager | None,
        n_jobs: int | None,
        chunksize: int | None,
        executor: Any,
        sample_size: int,
        target_chunk_duration: float,
        progress: bool,
        progress_interval: float,
        return_exceptions: bool,
        timeout: float | None,
        item_timeout: float | None,
        name: str | None,
        verbose: bool,
        opening: Opening | None = None,
    ) -> None:
        self.begin()
        if opening is not None:
            self._began = opening.began
        checked = validate(
            func,
            data,
            sample_size=sample_size,
            target_chunk_duration=target_chunk_duration,
            n_jobs=n_jobs,
            chunksize=chunksize,
            executor=executor,
        )
        if hooks is not None and not isinstance(hooks, HookManager):
            raise InvalidTypeError(f"hooks must be a HookManager or None; got {hooks!r}")
        check_options(
            name=name,
            progress=progress,
            progress_interval=progress_interval,
            return_exceptions=return_exceptions,
            timeout=timeout,
            item_timeout=item_timeout,
            verbose=verbose,
        )
        if item_timeout is not None and checked.engine is not None and checked.engine.lent:
            raise InvalidValueError(
                "item_timeout needs workers that can be ended, which those of an executor that "
                "was passed, and of Dask, cannot; give timeout= for the whole run, or "
                "executor='process' (or 'thread')."
            )
        environment.apply()
        self._func = func
        self._data = data
        self._hooks = hooks
        self._n_jobs = checked.n_jobs
        self._chunksize = checked.chunksize
        self._engine = checked.engine
        self._sample_size = checked.sample_size
        self._target_chunk_duration = checked.target_chunk_duration
        self._progress_interval = progress_interval
        self._return_exceptions = return_exceptions
        self._timeout = timeout
        self._item_timeout = item_timeout
        self._name = name
        self._verbose = verbose
        self._opening = opening
        self._cleanup = ExitStack()
        if opening is not None:
            self._cleanup.callback(opening.abandon)
        self._progress = _progress_manager(self._cleanup) if progress else None
        self.result: OptimizationResult
        self.run: Run | None = None
        self.on_change: Callable[[OptimizationResult], None] = lambda result: None
        self._told: tuple[Reporter, list[HookManager]]

    def begin(self) -> None:
        """Start the clocks."""
        self._began = time.perf_counter()
        self._began_monotonic = time.monotonic()

    def __enter__(self) -> None:
        self._cleanup.__enter__()

    def __exit__(self, *exc: Any) -> None:
        self._cleanup.close()

    def prepare(self, sink: Sink, *, interruptible: bool) -> Run:
        """Make the plan, which may run the first items, and the run."""
        engine = self._engine
        allowed = engines_here()
        if engine is not None and engine.type in ("process", "dask") and "process" not in allowed:
            # And a task that waits for tasks, in a cluster of such tasks, may wait for ever.
            _say_nested(engine.type)
            engine = Engine("serial")
        managers = self._managers()
        reporter = Reporter(
            managers,
            began=self._began,
            function=self._name or _name_of(self._func),
            progress_interval=self._progress_interval,
        )
        self._told = reporter, managers
        self._cleanup.callback(reporter.forget_trace)
        collect = CollectSettings(reporter.takes_user_metrics(), reporter.begin_trace())
        task = Task(
            self._func,
            return_exceptions=self._return_exceptions,
            stamp_items=self._item_timeout is not None,
            collect=collect,
        )
        opening = self._opening
        if opening is None:
            opening = self._open(task)
        chosen = engine is None and self._n_jobs != 1
        if chosen:
            if self._opening is None:
                opening.draw(collect.in_chunk(0))
            self.result = opening.choose()
            log_choice(self.result, self._verbose)
            engine = Engine(self.result.executor_type)
        else:
            self.result = choose_named(
                engine, opening.total, self._n_jobs, self._chunksize, self._verbose
            )
            engine = engine or Engine("serial")
        self.result.data = self._data
        sample = opening.sample
        source = Input(
            opening.iterator,
            patient=opening.total is not None,
            drawn=len(sample.items),
            sequence=opening.sequence,
            copies=engine.type != "serial" or interruptible,
        )
        source.exhausted = sample.exhausted
        if isinstance(sample.input_error, Exception):
            source.exhausted, source.error = True, sample.input_error
        stage = partial(self._stage, streams=isinstance(sink, StreamBuffer), alone=interruptible)
        course = Course(
            stage(opening, self.result, engine, chosen=chosen),
            source,
            opening.total,
            partial(self._choose_anew, task, stage),
        )
        self._cleanup.callback(course.end)
        self.run = Run(
            task=task,
            course=course,
            data=source,
            sink=sink,
            reporter=reporter,
            limits=TimeLimits(
                timeout=self._timeout,
                item_timeout=self._item_timeout,
                deadline=(None if self._timeout is None else self._began_monotonic + self._timeout),
            ),
        )
        return self.run

    def _open(self, task: Task, rest: Rest | None = None) -> Opening:
        limited = self._timeout is not None or self._item_timeout is not None
        opening = Opening(
            self._func,
            self._data,
            partial(
                make_chooser,
                task=task,
                sample_size=self._sample_size,
                target_chunk_duration=self._target_chunk_duration,
                n_jobs=self._n_jobs,
                chunksize=self._chunksize,
                may_work=not limited,
            ),
            sample_size=self._sample_size,
            return_exceptions=self._return_exceptions,
            rest=rest,
        )
        self._cleanup.callback(opening.abandon)
        return opening

    def _choose_anew(self, task: Task, stage: Callable[..., Stage], rest: Rest) -> Stage:
        """Measure the next items of a run like first ones, and choose what to do with the rest."""
        opening = self._open(task, rest)
        opening.draw(task.collect.in_chunk(rest.chunk_id))
        result = opening.choose()
        log_choice(result, self._verbose)
        self.on_change(result)
        made: Stage = stage(opening, result, Engine(result.executor_type), chosen=True)
        return made

    def _stage(
        self,
        opening: Opening,
        result: OptimizationResult,
        engine: Engine,
        *,
        chosen: bool,
        streams: bool,
        alone: bool,
    ) -> Stage:
        """Say how a run goes on behind its first items; ``chosen`` where the engine is our choice.

        Args:
            opening: those items.
            result: what was chosen.
            engine: the same.
            chosen: whether we have chosen it.
            streams: whether the results go to a stream.
            alone: whether a serial run is on a thread of its own.
        """
        ahead, details = opening.chooser.ahead, result.details
        assert isinstance(ahead, HeadStart)
        plan = Plan(
            engine=engine,
            n_jobs=result.n_jobs,
            chunksize=result.chunksize,
            estimated_speedup=result.estimated_speedup,
            reason=result.reason,
            may_change=(
                chosen
                and engine.type in ("thread", "process")
                and not alone
                and self._n_jobs is None
                and self._chunksize is None
            ),
            n_jobs_named=self._n_jobs is not None,
            interruptible=alone,
            # An item that hangs must hang where it can be ended: not in a sample.
            may_grow=chosen and self._n_jobs is None and self._item_timeout is None,
            item_seconds=0.0 if details is None else details.workload.item_seconds,
        )
        limit = MAX_CHUNK_ITEMS
        if streams:
            limit = _STREAM_CHUNK_ITEMS
        elif opening.sequence is not None and engine.type == "serial":
            limit = _SERIAL_CHUNK_ITEMS
        sizer = ChunkSizer(
            fixed=self._chunksize,
            first=plan.chunksize,
            target_seconds=chunk_seconds(engine.type, plan.n_jobs, self._target_chunk_duration),
            n_jobs=plan.n_jobs,
            limit=limit,
            shortest_seconds=SHORTEST_CHUNK_SECONDS.get(engine.type, 0.0002),
        )
        sampled = _sampled(opening.sample, opening.start, opening.chunk_id)
        return Stage(plan, sizer, sampled, partial(ahead.hand_over, engine.type, plan.n_jobs))

    def conclude(self) -> None:
        """Note what the run corrected; wait for the hooks in the background.

        That takes each manager's ``drain_timeout`` at most.
        """
        reporter, managers = self._told
        self.result.corrections = reporter.corrections
        self.result.final_chunksize = reporter.final_chunksize
        self.result.changes = reporter.changes
        execution_id = reporter.execution_id
        with ExitStack() as drains:  # a Ctrl-C in one of them does not spare the others
            for manager in reversed(managers):
                drains.callback(manager.drain, execution_id)

    def wake(self) -> None:
        """Make the run look around; may be called from any thread, and from a signal handler."""
        if self.run is not None:
            self.run.wake()

    def _managers(self) -> list[HookManager]:
        default = get_default_manager()
        hooks = None if self._hooks is default else self._hooks  # who passes it is told once
        return [each for each in (default, hooks, self._progress) if each is not None]


def _sampled(sample: Sample, start: int, chunk_id: int) -> Sampled:
    failures = [Failure(start + index, error, text) for index, error, text in sample.failures]
    items = sample.items
    if sample.interrupted is not None:
        items = items[: len(sample.results)]  # the last call did not come to its end
    if not items:
        return Sampled([], interrupted=sample.interrupted)
    complete = len(sample.results) == len(items)
    assert complete or failures or sample.interrupted is not None, "results of the sample are lost"
    outcome = ChunkOutcome(
        chunk_id=chunk_id,
        start=start,
        size=len(items),
        results=sample.results if complete else None,
        failures=failures,
        started_at=sample.started_at,
        duration=sample.all_seconds,
        pid=os.getpid(),
        hostname=HOSTNAME,
        thread_name=threading.current_thread().name,
        extras={} if sample.collector is None else sample.collector.take(),
    )
    return Sampled(items, outcome, sample.interrupted)


def _name_of(func: Callable[..., Any]) -> str:
    func = getattr(func, "func", func)  # functools.partial
    qualified = getattr(func, "__qualname__", None) or type(func).__qualname__
    module = getattr(func, "__module__", None) or type(func).__module__
    return f"{module}.{qualified}"


@cache
def _say_nested(engine: str) -> None:  # once a process, not once an item
    logger.warning(
        "execute() was called inside a worker process: executor='%s' runs serially there. "
        "Name 'serial' or 'thread', or leave the choice open.",
        engine,
    )


def _progress_manager(cleanup: ExitStack) -> HookManager:
    from amorsize.exporters.progress import ProgressBar

    manager = HookManager()
    cleanup.enter_context(ProgressBar().attach(manager))
    return manager
