"""The plan for an engine that the caller named; nothing is measured for it."""

from __future__ import annotations

from amorsize.planning.cost import MAX_THREADS
from amorsize.planning.engine import TITLES, Engine
from amorsize.planning.observations import Observations
from amorsize.planning.plan import Choice, RunChunks

DEFAULT_THREADS_PER_CORE = 4
"""Threads per core where the caller asks for threads and nothing was measured: a caller who names
threads expects waiting, and too many that wait cost little. At least 8, at most 64."""


def needs_cores(engine: Engine, n_jobs: int | None) -> bool:
    """Say whether the cores of this machine matter for a named engine."""
    if engine.type == "process":
        return True
    return n_jobs is None and engine.type != "serial" and engine.workers is None


def plan_named(seen: Observations, engine: Engine) -> RunChunks:
    """Fill in what a named engine leaves open."""
    named, n_jobs = engine.type, seen.n_jobs
    warnings: tuple[str, ...] = ()
    cores = 1 if seen.machine is None else seen.machine.usable_cores
    if named == "serial":
        if n_jobs is not None and n_jobs > 1:
            warnings = (f"A serial run has one worker: n_jobs={n_jobs} has no effect.",)
        jobs = 1
    elif named == "custom" and engine.workers is not None:
        if n_jobs is not None and n_jobs > engine.workers:
            warnings = (
                f"The executor has {engine.workers} workers: n_jobs={n_jobs} has no effect.",
            )
        jobs = min(n_jobs or engine.workers, engine.workers)
    elif n_jobs is not None:
        jobs = n_jobs  # of Dask, also threads that are still to come
    elif named == "thread":
        jobs = min(MAX_THREADS, max(8, DEFAULT_THREADS_PER_CORE * cores))
    elif engine.workers is not None:
        jobs = max(1, engine.workers)
    else:
        jobs = cores
    reason = f"{TITLES[named]}, as asked for."
    if engine.instead_of:
        reason = (
            f"Serial, because this process is a worker itself: {engine.instead_of!r} cannot be "
            "used here."
        )
    elif seen.engine is None:
        reason = "Serial, because one worker was asked for."
    speedup = 1.0 if named == "serial" else None
    choice = Choice(engine, jobs, reason, speedup, warnings=warnings)
    return RunChunks(choice, seen.chunksize or 1, seen.chunksize or 1)
