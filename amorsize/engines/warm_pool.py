"""Where the pool of worker processes is found, without loading it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from amorsize.engines.process.pool import WorkerPool

pool: WorkerPool | None = None
"""The pool of this process; it registers itself here. None where no run has used processes."""


def warm_workers() -> int:
    """Count the worker processes that are idle and up."""
    return 0 if pool is None else int(pool.warm_workers())


def shutdown() -> None:
    """End all worker processes."""
    if pool is not None:
        pool.shutdown()
