"""Chooses ``n_jobs``, ``chunksize`` and the executor for a function and its data.

::

    arguments -> sampling -> cost -> OptimizationResult -> explanation
                 system  ------^

Looking costs time as well, so it goes as far as it can change the answer: the sample first; the
machine only where enough work is left; pickling and memory only where processes would win if they
were free.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from amorsize import cost
from amorsize.arguments import known_length, validate
from amorsize.collecting import ChunkCollector
from amorsize.engine import Engine, resolve
from amorsize.explanation import Details, details_of, render, say_reason, say_warnings
from amorsize.sampling import Clocks, Sample, draw_sample, extend_sample, measure_payload
from amorsize.system import (
    ENGINES,
    STARTUP,
    StartupCosts,
    SystemFacts,
    engines_here,
    measure_startup,
    read_system,
)

logger = logging.getLogger(__name__)

SECOND_LOOK_ITEMS = 32
"""A single slow call tells neither whether it holds the GIL nor whether it was a warm-up. Where so
many items remain, another one alone costs at most 3 % of a serial run."""

MEASURE_STARTUP_SECONDS = 2.0
"""``optimize()`` measures the start of an interpreter (0.1 s) for serial work of this length."""

DEFAULT_THREADS_PER_CORE = 4
"""Threads a core where the caller asks for threads and nothing was sampled: who names threads
expects waiting, and too many that wait cost little. At least 8, at most 64."""


@dataclass(slots=True)
class OptimizationResult:
    """How to run a function over its data, and why.

    Attributes:
        n_jobs: workers.
        chunksize: items of a chunk.
        executor_type: ``serial``, ``thread``, ``process``, ``dask`` or ``custom`` (any other
            executor).
        estimated_speedup: predicted, over a serial run; 1.0 for a serial run.
        reason: why, in a sentence.
        warnings: what you may want to change.
        data: an iterable of every item, the sampled ones too; None in a result of ``execute()``.

    >>> result = OptimizationResult(4, 10, "process", 3.6, "Processes, because they are faster.")
    >>> print(result)
    process, n_jobs=4, chunksize=10, estimated speedup 3.6: Processes, because they are faster.
    """

    n_jobs: int
    chunksize: int
    executor_type: str
    estimated_speedup: float
    reason: str
    warnings: list[str] = field(default_factory=list)
    data: Any = field(default=None, repr=False, compare=False)
    details: Details | None = field(default=None, repr=False, compare=False)

    def explain(self) -> str:
        """The arithmetic: facts, sample, what each engine would take, which was taken and why.

        >>> print(optimize(abs, [], executor="thread", n_jobs=2).explain())
        thread: 2 workers, chunks of 1 item, estimated speedup 1.0
        Threads, as asked for.
        No sample was taken: the first chunks show how long a call takes.
        """
        if self.details is not None:
            return render(self.details, self.reason, self.warnings)
        workers = "1 worker" if self.n_jobs == 1 else f"{self.n_jobs} workers"
        items = "1 item" if self.chunksize == 1 else f"{self.chunksize} items"
        lines = [
            f"{self.executor_type}: {workers}, chunks of {items}, "
            f"estimated speedup {self.estimated_speedup:.1f}",
            self.reason,
            "No sample was taken: the first chunks show how long a call takes.",
            *(f"warning: {warning}" for warning in self.warnings),
        ]
        return "\n".join(lines)

    def __str__(self) -> str:
        return (
            f"{self.executor_type}, n_jobs={self.n_jobs}, chunksize={self.chunksize}, "
            f"estimated speedup {self.estimated_speedup:.1f}: {self.reason}"
        )


def optimize(
    func: Callable[[Any], Any],
    data: Iterable[Any],
    *,
    sample_size: int = 5,
    target_chunk_duration: float = 0.2,
    n_jobs: int | None = None,
    chunksize: int | None = None,
    executor: Any = None,
    verbose: bool = False,
) -> OptimizationResult:
    """Choose how to run ``func`` over ``data``, without running it beyond a small sample.

    The sampled items are passed to ``func`` here, in the calling thread, and again when you run
    the result's ``data``. ``execute()`` uses their results instead.

    Args:
        func: takes one item.
        data: any iterable. An iterator is consumed by the sample only, and its items come first
            in the result's ``data``.
        sample_size: items to try at most; fewer once they have taken 50 ms.
        target_chunk_duration: seconds that a chunk should last.
        n_jobs: workers; None to choose.
        chunksize: items of a chunk; None to choose.
        executor: ``"serial"``, ``"thread"``, ``"process"``, ``"dask"``, a Dask client or any
            ``concurrent.futures.Executor``; None to choose. With one named, nothing is sampled.
        verbose: write the explanation to stderr.

    Returns:
        The choice, which explains itself.

    Raises:
        InvalidTypeError: an argument has the wrong type.
        InvalidValueError: an argument is out of its range.
        Exception: whatever ``func`` or the iteration raises in the sample, unchanged.

    >>> result = optimize(abs, [-1, -2, -3])
    >>> result.executor_type, result.n_jobs, list(result.data)
    ('serial', 1, [-1, -2, -3])
    """
    arguments = validate(
        func,
        data,
        sample_size=sample_size,
        target_chunk_duration=target_chunk_duration,
        n_jobs=n_jobs,
        chunksize=chunksize,
        executor=executor,
    )
    iterator = iter(data)
    result, sample = choose(
        func,
        iterator,
        known_length(data),
        n_jobs=arguments.n_jobs,
        chunksize=arguments.chunksize,
        executor=executor,
        sample_size=arguments.sample_size,
        target_chunk_duration=arguments.target_chunk_duration,
        allowed=engines_here(),
        verbose=verbose,
        again=True,
    )
    if sample is not None:
        stop = sample.interrupted or sample.input_error
        if stop is None and sample.failures:
            stop = sample.failures[0][1]
        if stop is not None:
            raise stop
    taken = sample.items if sample is not None else []
    result.data = chain(taken, iterator) if iterator is data else data
    return result


def choose(
    func: Callable[[Any], Any],
    iterator: Iterator[Any],
    total: int | None,
    *,
    n_jobs: int | None,
    chunksize: int | None,
    executor: Any,
    sample_size: int,
    target_chunk_duration: float,
    return_exceptions: bool = False,
    allowed: Iterable[str] = ENGINES,
    warm_workers: int = 0,
    verbose: bool = False,
    again: bool = False,
    system: SystemFacts | None = None,
    startup: StartupCosts | None = None,
    clocks: Clocks | None = None,
    collector: ChunkCollector | None = None,
) -> tuple[OptimizationResult, Sample | None]:
    """Choose for an iterator; the sample comes back with its results.

    Arguments are taken as checked. Those that :func:`optimize` does not have:

    Args:
        total: items of the input, or None when unknown.
        return_exceptions: go on behind items that raise.
        allowed: engines that may be chosen; a serial run always may.
        warm_workers: worker processes that are up already.
        again: whether the sampled items will run again with the others.
        system: what may be used; None to read it.
        startup: start-up costs; None for those of this process.
        clocks: where the sample reads time from.
        collector: keeps what the sample brings beside results; None for none.

    Returns:
        The result, and the sample: None where none was taken, because the executor was named or
        one worker was asked for. Nothing that ``func`` or the iterator raised leaves here.
    """
    engine = resolve(executor)
    if engine is not None or n_jobs == 1:
        named = Engine("serial") if engine is None else engine
        result = _named(named, total, n_jobs, chunksize, system)
        if engine is None:
            result.reason = "Serial, because one worker was asked for."
        _tell(result, verbose)
        return result, None
    sample = draw_sample(
        func,
        iterator,
        sample_size,
        return_exceptions=return_exceptions,
        clocks=clocks,
        collector=collector,
    )
    chooser = _Chooser(
        func,
        iterator,
        total,
        sample,
        sample_size=sample_size,
        return_exceptions=return_exceptions,
        n_jobs=n_jobs,
        chunksize=chunksize,
        target_chunk_duration=target_chunk_duration,
        allowed=tuple(allowed),
        warm_workers=warm_workers,
        again=again,
        system=system,
        startup=STARTUP if startup is None else startup,
        clocks=clocks,
    )
    result = chooser.choose()
    _tell(result, verbose)
    return result, sample


def _tell(result: OptimizationResult, verbose: bool) -> None:
    logger.debug("%s", result)
    if verbose:
        sys.stderr.write(result.explain() + "\n")


@dataclass(slots=True, eq=False, repr=False)
class _Chooser:
    """One choice in the making: looks further as long as that can change it."""

    func: Callable[[Any], Any]
    iterator: Iterator[Any]
    total: int | None
    sample: Sample
    sample_size: int
    return_exceptions: bool
    n_jobs: int | None
    chunksize: int | None
    target_chunk_duration: float
    allowed: tuple[str, ...]
    warm_workers: int
    again: bool
    system: SystemFacts | None
    startup: StartupCosts
    clocks: Clocks | None
    notes: list[str] = field(default_factory=list)

    def choose(self) -> OptimizationResult:
        if (stopped := self._stopped()) is not None:
            return stopped
        workload = cost.describe(self.sample, self.total, again=self.again)
        if self._hopeless(workload):
            serial = cost.serial_candidate(workload, self.target_chunk_duration, self.chunksize)
            return self._result(cost.Plan(serial, (serial,)), workload, None)

        cores = self.system or read_system(memory=False)
        plan = self._plan(workload, cores)
        many = self.total is None or workload.remaining >= SECOND_LOOK_ITEMS
        if many and plan.chosen.engine != "serial" and self._look_again(workload):
            if (stopped := self._stopped()) is not None:
                return stopped
            workload = cost.describe(self.sample, self.total, again=self.again)
            plan = self._plan(workload, cores)
        system = cores
        if plan.chosen.engine == "process" or workload.working_bytes > 1 << 20:
            system = self.system or read_system()
        if plan.chosen.engine == "process":
            workload = workload._replace(payload=measure_payload(self.sample, self.func))
            if self._worth_measuring_startup(workload):
                measure_startup("process")
        if system is not cores or workload.payload is not None:
            plan = self._plan(workload, system)
        # Payloads that are dear to move: whether the GIL is free now decides.
        heavy = workload.payload is not None and plan.chosen.engine == "serial"
        if heavy and workload.remaining >= 4 and self._look_again(workload):
            if (stopped := self._stopped()) is not None:
                return stopped
            workload = cost.describe(
                self.sample, self.total, payload=workload.payload, again=self.again
            )
            plan = self._plan(workload, system)
        return self._result(plan, workload, system)

    def _hopeless(self, workload: cost.Workload) -> bool:
        """Whether so little is left that not even looking at the machine pays."""
        known = self.total is not None or self.sample.exhausted
        little = workload.serial_seconds < cost.MINIMUM_SAVING_SECONDS
        return self.n_jobs is None and known and little

    def _look_again(self, workload: cost.Workload) -> bool:
        """Sample further where one slow call left open whether it holds the GIL."""
        slow = len(self.sample.items) == 1 and not self.sample.exhausted
        if not slow or workload.waits or workload.gil_known or self.sample_size < 2:
            return False
        extend_sample(
            self.sample,
            self.func,
            self.iterator,
            self.sample_size - 1,
            return_exceptions=self.return_exceptions,
            clocks=self.clocks,
        )
        self.notes.append("one slow call leaves too much open: sampled further")
        return True

    def _worth_measuring_startup(self, workload: cost.Workload) -> bool:
        return (
            self.again
            and self.startup is STARTUP
            and workload.serial_seconds >= MEASURE_STARTUP_SECONDS
            and not STARTUP.model("process").measured
        )

    def _plan(self, workload: cost.Workload, system: SystemFacts) -> cost.Plan:
        return cost.make_plan(
            workload,
            system,
            {engine: self.startup.model(engine) for engine in ENGINES},
            target_chunk_duration=self.target_chunk_duration,
            n_jobs=self.n_jobs,
            chunksize=self.chunksize,
            allowed=self.allowed,
            warm_workers=self.warm_workers,
        )

    def _result(
        self, plan: cost.Plan, workload: cost.Workload, system: SystemFacts | None
    ) -> OptimizationResult:
        chosen = plan.chosen
        return OptimizationResult(
            n_jobs=chosen.n_jobs,
            chunksize=chosen.chunksize,
            executor_type=chosen.engine,
            estimated_speedup=chosen.speedup,
            reason=say_reason(plan, workload, n_jobs=self.n_jobs),
            warnings=say_warnings(plan, workload, system) if system is not None else [],
            details=details_of(
                plan,
                workload,
                self.sample,
                system,
                {engine: self.startup.model(engine) for engine in ENGINES},
                n_jobs=self.n_jobs,
                chunksize=self.chunksize,
                notes=self.notes,
            ),
        )

    def _stopped(self) -> OptimizationResult | None:
        """A result that only says why nothing more runs, where the sample came to a bad end."""
        sample = self.sample
        if sample.interrupted is not None:
            what = f"{type(sample.interrupted).__name__} stopped the run while it was sampling"
        elif sample.input_error is not None:
            error = type(sample.input_error).__name__
            what = f"the input raised {error} behind {len(sample.items)} items"
        elif sample.failures and not self.return_exceptions:
            index, failure, _ = sample.failures[0]
            what = f"the function raised {type(failure).__name__} on item {index}"
        else:
            return None
        return OptimizationResult(1, self.chunksize or 1, "serial", 1.0, f"Serial, because {what}.")


def _named(
    engine: Engine,
    total: int | None,
    n_jobs: int | None,
    chunksize: int | None,
    system: SystemFacts | None,
) -> OptimizationResult:
    """The executor is the caller's: only what he left open is filled in, and nothing is sampled."""
    warnings = []
    named = engine.type
    ours = named in ENGINES or (engine.workers is None and n_jobs is None)
    cores = (system or read_system(memory=False)).usable_cores if ours else 1
    if named == "serial":
        if n_jobs is not None and n_jobs > 1:
            warnings.append(f"A serial run has one worker: n_jobs={n_jobs} has no effect.")
        jobs = 1
    elif named == "custom" and engine.workers is not None:
        if n_jobs is not None and n_jobs > engine.workers:
            warnings.append(
                f"The executor has {engine.workers} workers: n_jobs={n_jobs} has no effect."
            )
        jobs = min(n_jobs or engine.workers, engine.workers)
    elif n_jobs is not None:
        jobs = n_jobs  # of Dask, also threads that are still to come
    elif named == "thread":
        jobs = min(cost.MAX_THREADS, max(8, DEFAULT_THREADS_PER_CORE * cores))
    elif engine.workers is not None:
        jobs = max(1, engine.workers)
    else:
        jobs = cores
    # Not sampled: nothing better is known than that so many can run at once.
    at_once = jobs if total is None else min(jobs, max(1, total))
    if named == "process":
        at_once = min(at_once, cores)
    return OptimizationResult(
        n_jobs=jobs,
        chunksize=chunksize or 1,
        executor_type=named,
        estimated_speedup=float(at_once),
        reason=f"{_NAMES[named]}, as asked for.",
        warnings=warnings,
    )


_NAMES = {
    "serial": "Serial",
    "thread": "Threads",
    "process": "Processes",
    "dask": "Dask",
    "custom": "The executor that was passed",
}
