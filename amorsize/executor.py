"""``execute()``: arguments in, results out. The loop itself is in ``running``.

Importing this module is paid for by the shortest runs.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Literal, TypeVar, overload

    from amorsize.hooks.manager import HookManager
    from amorsize.planning.engine import AnyExecutor
    from amorsize.planning.explanation import OptimizationResult

    T = TypeVar("T")
    R = TypeVar("R")

if TYPE_CHECKING:

    @overload
    def execute(
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
    def execute(
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


def execute(
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
    """Call ``func`` on every item of ``data``, at the right parallelism; return the results.

    Args:
        func: called with one item. Lambdas, closures and functions of ``__main__`` work in
            every mode; no main guard is needed.
        data: any iterable; a generator is drawn from as work proceeds, and few of its items
            are held at a time.
        hooks: notified of every event, beside the default manager. Hooks are called from the
            calling thread, one at a time.
        n_jobs: workers; None to choose.
        chunksize: items per chunk, fewer only where a chunk would weigh more than 32 MB, or than a
            worker's share of 128 MB; None to choose, by what calls take and items and results
            weigh, and to correct while running.
        executor: ``"serial"``, ``"thread"``, ``"process"``; ``"dask"`` (the current client) or a
            Dask client; any ``concurrent.futures.Executor``, which is never shut down; None to
            choose. Only with None are the first items run in this process, to measure them;
            their results are used.
        sample_size: items to measure at most.
        target_chunk_duration: seconds that a chunk is to take.
        progress: show a progress bar on stderr (needs ``amorsize[progress]``).
        progress_interval: seconds between two ``ON_PROGRESS`` events; 0 for one per chunk.
        return_exceptions: put exceptions in place of results instead of raising the first. An
            item that was in a dead worker's chunk may then run once more.
        timeout: seconds for the whole run, from this call; None for no limit.
        item_timeout: seconds for each item; None for no limit. A worker process is ended and
            replaced; a thread cannot be stopped and is abandoned. Not with Dask or a
            caller-owned executor.
        name: what the events call the function; None for its qualified name.
        verbose: explain the choice on stderr.
        return_optimization_result: return ``(results, OptimizationResult)``.

    Returns:
        The results, in the order of the input.

    Raises:
        InvalidValueError, InvalidTypeError: an argument is not allowed; nothing has run.
        WorkerDiedError: a worker process was killed, or exited.
        ExecutorBrokenError: the executor that was passed no longer accepts work.
        TransportError: the function, an item or a result does not pickle.
        ExecutionTimeoutError, ItemTimeoutError: a time limit was passed.
        RuntimeError: the interpreter is shutting down, and its modules are gone.
        Exception: whatever ``func`` raised first, as it was raised.

    Example:
        >>> import amorsize
        >>> amorsize.execute(lambda x: x * x, range(5))
        [0, 1, 4, 9, 16]
    """
    if sys.is_finalizing():  # nothing can be imported, the classes of our own errors neither
        raise RuntimeError(
            "execute() cannot run any more: the interpreter is shutting down, and its modules are "
            "gone. Call it before that, for instance in a function registered with atexit."
        )
    if executor.__class__ is str and executor == "process":
        from amorsize.engines.process.launcher import start_early

        start_early()
    # Loaded only here: a template starts meanwhile.
    from amorsize.options import Options
    from amorsize.running import environment
    from amorsize.running.loop import Run
    from amorsize.running.sinks import Results

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
    with Run(func, data, options, results, explain=return_optimization_result) as run:
        run.drive()
    if return_optimization_result:
        assert run.result is not None
        return results.results, run.result
    return results.results


def shutdown() -> None:
    """End the worker processes that stay warm between executions; later ones start others.

    Runs in progress in other threads lose their workers. Called at exit, too.
    """
    from amorsize.engines import warm_pool

    warm_pool.shutdown()
