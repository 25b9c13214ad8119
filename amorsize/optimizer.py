"""Chooses ``n_jobs``, ``chunksize`` and the executor for a function and its data.

::

    arguments -> sampling -> chooser -> OptimizationResult
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from amorsize.options import known_length, validate
from amorsize.planning.clocks import Clocks, ThreadClocks
from amorsize.planning.engine import resolve
from amorsize.planning.explanation import OptimizationResult, log_choice
from amorsize.planning.machine import (
    ENGINES,
    STARTUP,
    StartupCosts,
    SystemFacts,
    engines_here,
)
from amorsize.planning.named import choose_named
from amorsize.planning.planner import Chooser
from amorsize.planning.sampling import Sample, draw_sample, sample_together


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

    Returns:
        The result, and the sample: None where none was taken, because the executor was named or
        one worker was asked for. Nothing that ``func`` or the iterator raised leaves here.
    """
    engine = resolve(executor)
    if engine is not None or n_jobs == 1:
        return choose_named(engine, total, n_jobs, chunksize, verbose, system=system), None
    sample = Sample()
    chooser = Chooser(
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
    thread = None if clocks is not None else ThreadClocks.of_this_thread()
    if thread is not None:
        thread.begin()
    draw_sample(
        func,
        iterator,
        sample_size,
        return_exceptions=return_exceptions,
        clocks=clocks,
        sample=sample,
    )
    if thread is not None:
        sample.queued_seconds = thread.queued()
    if not again and not return_exceptions:
        sample_together(sample, func, iterator, total, clocks=clocks)
    result = chooser.choose()
    log_choice(result, verbose)
    return result, sample
