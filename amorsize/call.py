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

from amorsize import environment, optimizer
from amorsize.arguments import check_options, validate
from amorsize.backends.base import Task
from amorsize.chunking import (
    MAX_CHUNK_ITEMS,
    SHORTEST_CHUNK_SECONDS,
    ChunkSizer,
    Input,
    chunk_seconds,
)
from amorsize.collecting import Collect
from amorsize.engine import Engine
from amorsize.errors import InvalidTypeError, InvalidValueError
from amorsize.explanation import OptimizationResult
from amorsize.head_start import HeadStart, make_chooser
from amorsize.hooks.manager import HookManager, get_default_manager
from amorsize.opening import Opening
from amorsize.plan import Plan, Sampled, TimeLimits
from amorsize.reporting import Reporter
from amorsize.run import Run
from amorsize.sampling import Sample
from amorsize.sinks import Sink, StreamBuffer
from amorsize.system import engines_here
from amorsize.worker import HOSTNAME, ChunkOutcome, Failure

logger = logging.getLogger(__name__)

_STREAM_CHUNK_ITEMS = 10_000

_SERIAL_CHUNK_ITEMS = 10_000_000
"""Nothing is copied for a serial chunk of an input that is held in memory anyway: the duration of
chunks alone bounds them."""


class Call:
    """The arguments of one call, checked, and the run that they describe."""

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
        collect = Collect(reporter.takes_user_metrics(), reporter.begin_trace())
        task = Task(
            self._func,
            return_exceptions=self._return_exceptions,
            stamp_items=self._item_timeout is not None,
            collect=collect,
        )
        opening = self._opening
        if opening is None:
            opening = self._open(task)
            self._cleanup.callback(opening.abandon)
        sample: Sample | None = None
        if engine is None and self._n_jobs != 1:
            sample = opening.sample
            if self._opening is None:
                opening.draw(collect.in_chunk(0))
            self.result = opening.choose()
            optimizer.tell(self.result, self._verbose)
            engine = Engine(self.result.executor_type)
        else:
            self.result = optimizer.choose_named(
                engine, opening.total, self._n_jobs, self._chunksize, self._verbose
            )
            engine = engine or Engine("serial")
        self.result.data = self._data
        ahead = opening.chooser.ahead
        assert isinstance(ahead, HeadStart)
        source = Input(
            opening.iterator,
            patient=opening.total is not None,
            drawn=0 if sample is None else len(sample.items) + ahead.dispatched,
            sequence=opening.sequence,
            copies=engine.type != "serial" or interruptible,
        )
        if sample is not None:
            source.exhausted = sample.exhausted
            if isinstance(sample.input_error, Exception):
                source.exhausted, source.error = True, sample.input_error
        plan = Plan(
            engine=engine,
            n_jobs=self.result.n_jobs,
            chunksize=self.result.chunksize,
            estimated_speedup=self.result.estimated_speedup,
            reason=self.result.reason,
            may_change=(
                sample is not None
                and engine.type in ("thread", "process")
                and not interruptible
                and self._n_jobs is None
                and self._chunksize is None
            ),
            n_jobs_named=self._n_jobs is not None,
            interruptible=interruptible,
        )
        limit = MAX_CHUNK_ITEMS
        if isinstance(sink, StreamBuffer):
            limit = _STREAM_CHUNK_ITEMS
        elif opening.sequence is not None and engine.type == "serial":
            limit = _SERIAL_CHUNK_ITEMS
        self.run = Run(
            task=task,
            plan=plan,
            data=source,
            total=opening.total,
            sampled=_sampled(sample),
            sizer=ChunkSizer(
                fixed=self._chunksize,
                first=plan.chunksize,
                target_seconds=chunk_seconds(engine.type, plan.n_jobs, self._target_chunk_duration),
                n_jobs=plan.n_jobs,
                limit=limit,
                shortest_seconds=SHORTEST_CHUNK_SECONDS.get(engine.type, 0.0002),
            ),
            sink=sink,
            reporter=reporter,
            limits=TimeLimits(
                timeout=self._timeout,
                item_timeout=self._item_timeout,
                deadline=(None if self._timeout is None else self._began_monotonic + self._timeout),
            ),
            begun=ahead.hand_over(engine.type, plan.n_jobs),
        )
        return self.run

    def _open(self, task: Task) -> Opening:
        limited = self._timeout is not None or self._item_timeout is not None
        return Opening(
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
        )

    def conclude(self) -> None:
        """Note what the run corrected; wait for the hooks in the background.

        That takes each manager's ``drain_timeout`` at most.
        """
        reporter, managers = self._told
        self.result.corrections = reporter.corrections
        self.result.final_chunksize = reporter.final_chunksize
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


def _sampled(sample: Sample | None) -> Sampled:
    if sample is None:
        return Sampled([])
    failures = [Failure(*failure) for failure in sample.failures]
    items = sample.items
    if sample.interrupted is not None:
        items = items[: len(sample.results)]  # the last call did not come to its end
    if not items:
        return Sampled([], interrupted=sample.interrupted)
    complete = len(sample.results) == len(items)
    assert complete or failures or sample.interrupted is not None, "results of the sample are lost"
    outcome = ChunkOutcome(
        chunk_id=0,
        start=0,
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
    from amorsize.progress import ProgressBar

    manager = HookManager()
    cleanup.enter_context(ProgressBar().attach(manager))
    return manager
