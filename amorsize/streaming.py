"""``stream()``: arguments in, results out as they come. The loop itself is in ``run``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from amorsize.hooks.manager import HookManager
from amorsize.running import signals
from amorsize.running.background_run import Driver, require_order
from amorsize.running.call import Call
from amorsize.running.sinks import StreamBuffer

if TYPE_CHECKING:
    from amorsize.planning.engine import AnyExecutor

T = TypeVar("T")
R = TypeVar("R")


def stream(
    func: Callable[[T], R],
    data: Iterable[T],
    *,
    ordered: bool = True,
    hooks: HookManager | None = None,
    n_jobs: int | None = None,
    chunksize: int | None = None,
    executor: AnyExecutor = None,
    sample_size: int = 5,
    target_chunk_duration: float = 0.2,
    progress: bool = False,
    progress_interval: float = 0.0,
    return_exceptions: bool = False,
    timeout: float | None = None,
    item_timeout: float | None = None,
    name: str | None = None,
    verbose: bool = False,
) -> Iterator[R]:
    """Do what :func:`~amorsize.executor.execute` does, as a generator with bounded memory.

    The run is driven by a thread of its own, which also draws the input and calls the hooks (with
    the caller's context variables), so that events flow while the consumer does something else.
    A few chunks a worker are in flight or waiting to be consumed; a slow consumer slows the run
    down. Closing the generator, or dropping it, cancels the run.

    Args:
        ordered: yield in input order; False to yield results as chunks complete.

    The other arguments, and what is raised, are those of :func:`~amorsize.executor.execute`; bad
    arguments are refused by this call, the run begins with the first ``next()``.

    Example:
        >>> import amorsize
        >>> sum(amorsize.stream(abs, range(-3, 3)))
        9
    """
    call = Call(
        func,
        data,
        hooks=hooks,
        n_jobs=n_jobs,
        chunksize=chunksize,
        executor=executor,
        sample_size=sample_size,
        target_chunk_duration=target_chunk_duration,
        progress=progress,
        progress_interval=progress_interval,
        return_exceptions=return_exceptions,
        timeout=timeout,
        item_timeout=item_timeout,
        name=name,
        verbose=verbose,
    )
    require_order(ordered)
    return _consume(call, ordered)


def _consume(call: Call, ordered: bool) -> Iterator[Any]:
    call.begin()
    buffer = StreamBuffer(ordered=ordered)
    driver = Driver(call, buffer)
    with signals.DuringStream(driver.cancel):
        try:
            driver.start()
            for piece in buffer.pieces():
                yield from piece
        finally:
            driver.cancel()
