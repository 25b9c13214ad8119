"""Where chunks run, behind one interface: :class:`amorsize.engines.base.Backend`."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from amorsize.engines.base import Backend
    from amorsize.planning.engine import Engine
    from amorsize.workers.pass_monitor import TooLong


def make_backend(
    engine: Engine,
    n_jobs: int,
    *,
    interruptible: bool = False,
    n_jobs_named: bool = False,
    too_long: TooLong | None = None,
) -> Backend:
    """Make the backend of one run; imports no other one.

    Args:
        engine: the engine.
        n_jobs: workers at most.
        interruptible: whether a serial run answers to time limits, or to the consumer of a stream,
            so that it runs on a thread of its own.
        n_jobs_named: whether the caller gave the number of workers.
        too_long: says whether a serial run is to end a chunk early; None for never.
    """
    if engine.type == "process":
        from amorsize.engines.process.engine import ProcessBackend  # starts no process, costs 10 ms

        return ProcessBackend(n_jobs)
    if engine.type == "dask":
        from amorsize.engines.external.dask import DaskBackend

        return DaskBackend(engine.external, n_jobs, engine.workers or 0, named=n_jobs_named)
    if engine.type == "custom":
        from amorsize.engines.external.futures import FuturesBackend

        return FuturesBackend(engine.external, n_jobs, engine.workers)
    if engine.type == "thread" or interruptible:
        from amorsize.engines.thread import ThreadBackend

        return ThreadBackend(n_jobs, too_long if engine.type == "serial" else None)
    from amorsize.engines.serial import SerialBackend

    return SerialBackend(too_long)
