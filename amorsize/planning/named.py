"""Fills in what an engine that the caller named leaves open; nothing is sampled."""

from __future__ import annotations

from amorsize.planning import cost
from amorsize.planning.engine import Engine
from amorsize.planning.explanation import NAMES, OptimizationResult, log_choice
from amorsize.planning.machine import ENGINES, SystemFacts, read_system

DEFAULT_THREADS_PER_CORE = 4
"""Threads a core where the caller asks for threads and nothing was sampled: who names threads
expects waiting, and too many that wait cost little. At least 8, at most 64."""


def choose_named(
    engine: Engine | None,
    total: int | None,
    n_jobs: int | None,
    chunksize: int | None,
    verbose: bool,
    *,
    system: SystemFacts | None = None,
) -> OptimizationResult:
    """Fill in what a named executor (or None, with one worker) leaves open; nothing is sampled."""
    named = Engine("serial") if engine is None else engine
    result = _named(named, total, n_jobs, chunksize, system)
    if engine is None:
        result.reason = "Serial, because one worker was asked for."
    log_choice(result, verbose)
    return result


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
        reason=f"{NAMES[named]}, as asked for.",
        warnings=warnings,
    )
