"""``stream()``: arguments in, results out as they come. The loop itself is in ``running``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from amorsize.options import Options, check_switch
from amorsize.running import environment, signals
from amorsize.running.background_run import Driver
from amorsize.running.loop import Run
from amorsize.running.sinks import StreamBuffer

if TYPE_CHECKING:
    from amorsize.hooks.manager import HookManager
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
    A few chunks per worker are in flight or waiting to be consumed, 128 MB of items and results in
    all, or one item per worker where those are heavier; a slow consumer slows the run down. Closing
    the generator, or dropping it, cancels the run.

    Args:
        ordered: yield in input order; False to yield results as chunks complete.

    The other arguments, and what is raised, are those of :func:`~amorsize.executor.execute`; bad
    arguments are refused by this call, the run begins with the first ``next()``.

    Example:
        >>> import amorsize
        >>> sum(amorsize.stream(abs, range(-3, 3)))
        9
    """
    check_switch("ordered", ordered)
    options = Options.checked(
        func,
        data,
        executor=executor,
        n_jobs=n_jobs,
        chunksize=chunksize,
        sample_size=sample_size,
        target_chunk_duration=target_chunk_duration,
        verbose=verbose,
        hooks=hooks,
        progress=progress,
        progress_interval=progress_interval,
        return_exceptions=return_exceptions,
        timeout=timeout,
        item_timeout=item_timeout,
        name=name,
    )
    environment.apply()
    return _consume(func, data, options, ordered)


def _consume(
    func: Callable[[Any], Any], data: Iterable[Any], options: Options, ordered: bool
) -> Iterator[Any]:
    buffer = StreamBuffer(ordered=ordered)
    driver = Driver(Run(func, data, options, buffer, in_background=True), buffer)
    with signals.DuringStream(driver.cancel):
        try:
            driver.start()
            for piece in buffer.pieces():
                yield from piece
                del piece  # as in pieces()
        finally:
            driver.cancel()
