"""Where the pool of worker processes, and their template, are found without loading them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from amorsize.engines.process.launcher import Launched
    from amorsize.engines.process.pool import WorkerPool

pool: WorkerPool | None = None
"""The pool of this process; it registers itself here. None where no run has used processes."""

early: Launched | None = None
"""The template that was started ahead of the pool, until somebody takes it."""


def warm_workers() -> int:
    """Count the worker processes that are idle and up."""
    return 0 if pool is None else int(pool.warm_workers())


def shutdown() -> None:
    """End all worker processes, and their template."""
    global early
    if pool is not None:
        pool.shutdown()
    if early is not None:
        early.end()
        early = None
