"""Worker processes that start before what chooses is loaded.

An interpreter takes some 50 ms to start, and so does, beside a call that holds the GIL, loading
what chooses. Where the first calls leave hardly a doubt, both happen at the same time. The workers
know of no execution yet: they wait in the pool, as those do that one has left, and whoever asks
first gets them.
"""

from __future__ import annotations

from amorsize.planning.workload import Workload

WORTH_SECONDS = 0.13
"""Serial work that remains, for each worker but the first: twice what starting two takes, about."""

MOST_WORKERS = 8
"""The others start when it is chosen how many there are to be."""


def prestart(workload: Workload) -> None:
    """Start the workers that will surely be chosen for a workload; none where there is a doubt."""
    computes = not (workload.waits or workload.releases_gil or workload.parallel_inside)
    wanted = 1 + int(workload.serial_seconds / WORTH_SECONDS)
    if not computes or wanted < 2:
        return
    try:
        from amorsize.planning.machine import engines_here, read_system

        cores = read_system(memory=False).usable_cores
        workers = min(wanted, cores, workload.remaining, MOST_WORKERS)
        if workers < 2 or "process" not in engines_here():
            return
        from amorsize.engines.process.pool import pool

        pool.prestart(workers)
    except Exception:
        import logging  # loading it takes as long as all that is loaded here

        logging.getLogger(__name__).debug(
            "No workers are started ahead of the choice", exc_info=True
        )
