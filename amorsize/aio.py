"""``await aexecute()`` and ``async for ... in astream()``: for programs that run on asyncio.

The run is driven by a thread of its own, which calls the hooks; the event loop stays free.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from amorsize.options import Options, check_switch
from amorsize.running import environment, signals
from amorsize.running.background_run import CLOSE_SECONDS, Driver
from amorsize.running.loop import Run
from amorsize.running.sinks import Results, StreamBuffer

if TYPE_CHECKING:
    from amorsize.hooks.manager import HookManager
    from amorsize.planning.engine import AnyExecutor
    from amorsize.planning.explanation import OptimizationResult
    from amorsize.running.sinks import Sink

T = TypeVar("T")
R = TypeVar("R")


@overload
async def aexecute(
    func: Callable[[T], R],
    data: Iterable[T],
    *,
    hooks: HookManager | None = ...,
    n_jobs: int | None = ...,
    chunksize: int | None = ...,
    executor: AnyExecutor = ...,
    sample_size: int = ...,
    target_chunk_duration: float = ...,
    progress: bool = ...,
    progress_interval: float = ...,
    return_exceptions: bool = ...,
    timeout: float | None = ...,
    item_timeout: float | None = ...,
    name: str | None = ...,
    verbose: bool = ...,
    return_optimization_result: Literal[False] = ...,
) -> list[R]: ...
@overload
async def aexecute(
    func: Callable[[T], R],
    data: Iterable[T],
    *,
    hooks: HookManager | None = ...,
    n_jobs: int | None = ...,
    chunksize: int | None = ...,
    executor: AnyExecutor = ...,
    sample_size: int = ...,
    target_chunk_duration: float = ...,
    progress: bool = ...,
    progress_interval: float = ...,
    return_exceptions: bool = ...,
    timeout: float | None = ...,
    item_timeout: float | None = ...,
    name: str | None = ...,
    verbose: bool = ...,
    return_optimization_result: Literal[True],
) -> tuple[list[R], OptimizationResult]: ...
async def aexecute(
    func: Callable[[T], R],
    data: Iterable[T],
    *,
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
    return_optimization_result: bool = False,
) -> list[R] | tuple[list[R], OptimizationResult]:
    """Do what :func:`amorsize.execute` does, without blocking the event loop.

    Hooks are called from the thread that drives the run, with the caller's context variables.
    Cancelling the task cancels the run: it ends with the status ``cancelled``, and every event is
    emitted, before the cancellation goes on; it waits a second for calls that cannot be stopped.

    The arguments, the result and what is raised are those of :func:`amorsize.execute`.

    Example:
        >>> import amorsize, asyncio
        >>> async def main():
        ...     return await amorsize.aexecute(abs, [-1, 2])
        >>> asyncio.run(main())
        [1, 2]
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
        hooks=hooks,
        progress=progress,
        progress_interval=progress_interval,
        return_exceptions=return_exceptions,
        timeout=timeout,
        item_timeout=item_timeout,
        name=name,
    )
    environment.apply()
    results = Results()
    run = Run(func, data, options, results, in_background=True, explain=return_optimization_result)
    driver = _AsyncDriver(run, results)
    with signals.DuringStream(driver.cancel):
        try:
            driver.start()
            await driver.ended.wait()
        finally:
            await driver.acancel()
    if driver.error is not None:
        raise driver.error
    if return_optimization_result:
        assert run.result is not None
        return results.results, run.result
    return results.results


def astream(
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
) -> AsyncGenerator[R, None]:
    """Do what :func:`amorsize.stream` does, as an asynchronous generator with bounded memory.

    Closing the generator, leaving its loop by an exception, or cancelling the task cancels the
    run. To leave the loop by ``break`` and have the run end there and then, close it:
    ``async with contextlib.aclosing(amorsize.astream(...)) as results``.

    The arguments, and what is raised, are those of :func:`amorsize.stream`; bad arguments are
    refused by this call, the run begins with the first result that is asked for.

    Example:
        >>> import amorsize, asyncio
        >>> async def main():
        ...     return [result async for result in amorsize.astream(abs, [-1, 2])]
        >>> asyncio.run(main())
        [1, 2]
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


async def _consume(
    func: Callable[[Any], Any], data: Iterable[Any], options: Options, ordered: bool
) -> AsyncGenerator[Any, None]:
    buffer = StreamBuffer(ordered=ordered)
    driver = _AsyncDriver(Run(func, data, options, buffer, in_background=True), buffer)
    buffer.on_change = driver.notify
    with signals.DuringStream(driver.cancel):
        try:
            driver.start()
            while True:
                driver.changed.clear()
                piece = buffer.poll()
                if piece is None:
                    break
                if not piece:
                    await driver.changed.wait()
                for result in piece:
                    yield result
                    del result
                del piece
        finally:
            await driver.acancel()


class _AsyncDriver(Driver):
    """Drives a run for a coroutine.

    Attributes:
        changed: set when there may be something new.
        ended: set when the run is over.
    """

    def __init__(self, run: Run, sink: Sink) -> None:
        super().__init__(run, sink, on_end=lambda: self._on_loop(self.ended.set))
        self._loop = asyncio.get_running_loop()
        self.changed = asyncio.Event()
        self.ended = asyncio.Event()

    def notify(self) -> None:
        """Wake the consumer; called from the driver's thread."""
        self._on_loop(self.changed.set)

    async def acancel(self) -> None:
        """Do what ``cancel()`` does, without blocking the event loop."""
        self.ask_to_cancel()
        try:
            if self.started:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self.ended.wait()
        except TimeoutError:
            pass
        finally:
            self.abandon()

    def _on_loop(self, callback: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more
