"""Makes the engine that a plan names, and imports no other one."""

from __future__ import annotations

from amorsize.engines.base import Backend
from amorsize.planning.plan import Plan
from amorsize.workers.pass_monitor import TooLong


def make_backend(plan: Plan, too_long: TooLong | None = None) -> Backend:
    """Make the backend of one run.

    Args:
        plan: the plan.
        too_long: whether a serial run that may grow is to end a chunk early.
    """
    too_long = too_long if plan.may_grow and plan.engine.type == "serial" else None
    engine = plan.engine
    if engine.type == "process":
        from amorsize.engines.process.engine import ProcessBackend  # starts no process, costs 10 ms

        return ProcessBackend(plan.n_jobs)
    if engine.type == "dask":
        from amorsize.engines.external.dask import DaskBackend

        return DaskBackend(engine.lent, plan.n_jobs, engine.workers or 0, named=plan.n_jobs_named)
    if engine.type == "custom":
        from amorsize.engines.external.futures import FuturesBackend

        return FuturesBackend(engine.lent, plan.n_jobs, engine.workers)
    if engine.type == "thread" or plan.interruptible:
        from amorsize.engines.thread import ThreadBackend

        return ThreadBackend(plan.n_jobs, too_long)
    from amorsize.engines.serial import SerialBackend

    return SerialBackend(too_long)
