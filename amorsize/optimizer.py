"""``optimize()``: chooses the engine, ``n_jobs`` and ``chunksize`` for a function and its data.

It asks the planner that ``execute()`` asks, and measures by the same means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

from amorsize.engines.base import Task
from amorsize.options import Options
from amorsize.planning.explanation import OptimizationResult, log_choice, make_result
from amorsize.planning.planner import Planner
from amorsize.running.input import Input
from amorsize.running.measurement import Measurement, asked_for


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
        chunksize: items per chunk; None to choose.
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
    options = Options.checked(
        func,
        data,
        executor=executor,
        n_jobs=n_jobs,
        chunksize=chunksize,
        sample_size=sample_size,
        target_chunk_duration=target_chunk_duration,
        verbose=verbose,
    )
    seen = asked_for(options)
    seen.runs_again = True
    source = Input(data)
    measurement = Measurement(Task(func), source, seen, Planner(), starts_early=False)
    plan = measurement.find_plan()
    result = make_result(plan, seen)
    log_choice(result, options.verbose)
    first = measurement.first
    stop = first.interrupted or source.error
    if stop is None and first.failures:
        stop = first.failures[0].error
    if stop is not None:
        raise stop
    result.data = chain(first.items, source.iterator) if source.iterator is data else data
    return result
