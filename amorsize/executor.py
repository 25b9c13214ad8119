"""``execute()``: arguments in, results out. The loop itself is in ``run``.

What is imported here is paid by the shortest of runs: the rest is imported by whoever needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from amorsize.options import check_options, validate
from amorsize.running import environment
from amorsize.running.first_items import Opening, nobody_listens

if TYPE_CHECKING:
    from amorsize.hooks.manager import HookManager
    from amorsize.planning.engine import AnyExecutor
    from amorsize.planning.explanation import OptimizationResult
    from amorsize.planning.planner import Chooser
    from amorsize.planning.workload import Workload

T = TypeVar("T")
R = TypeVar("R")


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
        data: any iterable; a generator is drawn from as work proceeds.
        hooks: told of every event, beside the default manager. Hooks are called from the
            calling thread, one at a time.
        n_jobs: workers; None to choose.
        chunksize: items a chunk; None to choose, and to correct while running.
        executor: ``"serial"``, ``"thread"``, ``"process"``; ``"dask"`` (the current client) or a
            Dask client; any ``concurrent.futures.Executor``, which is never shut down; None to
            choose. Only with None are the first items run in this process, to measure them;
            their results are used.
        sample_size: items to measure at most.
        target_chunk_duration: seconds that a chunk is to take.
        progress: show a progress bar on stderr (needs ``amorsize[progress]``).
        progress_interval: seconds between two ``ON_PROGRESS`` events; 0 for one a chunk.
        return_exceptions: put exceptions in place of results instead of raising the first. An
            item that was in a dead worker's chunk may then run once more.
        timeout: seconds for the whole run, from this call; None for no limit.
        item_timeout: seconds for each item; None for no limit. A worker process is ended and
            replaced; a thread cannot be stopped and is left behind. Not with Dask or an executor
            of yours.
        name: what the events call the function; None for its qualified name.
        verbose: explain the choice on stderr.
        return_optimization_result: return ``(results, OptimizationResult)``.

    Returns:
        The results, in the order of the input.

    Raises:
        InvalidValueError, InvalidTypeError: an argument is not allowed; nothing has run.
        WorkerDiedError: a worker process was killed, or exited.
        ExecutorBrokenError: the executor that was passed takes no more work.
        TransportError: the function, an item or a result does not pickle.
        ExecutionTimeoutError, ItemTimeoutError: a time limit was passed.
        Exception: whatever ``func`` raised first, as it was raised.

    Example:
        >>> import amorsize
        >>> amorsize.execute(lambda x: x * x, range(5))
        [0, 1, 4, 9, 16]
    """
    if executor.__class__ is str and executor == "process":
        from amorsize.engines.process.launcher import start_early

        start_early()
    opening: Opening | None = None
    given = (hooks, n_jobs, chunksize, executor, timeout, item_timeout)
    switches = (progress, return_exceptions, verbose, return_optimization_result)
    try:
        if all(each is None for each in given) and all(each is False for each in switches):
            opening = _open_unwatched(
                func,
                data,
                sample_size=sample_size,
                target_chunk_duration=target_chunk_duration,
                progress_interval=progress_interval,
                name=name,
            )
        if opening is not None:
            opening.draw()
            results = opening.finish()
            if results is not None and nobody_listens():  # the function may register a hook
                return results
            if results is None:
                opening.choose()
        from amorsize.running import signals
        from amorsize.running.call import Call
        from amorsize.running.sinks import Collector

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
            opening=opening,
        )
    except BaseException:
        if opening is not None:
            opening.abandon()
        raise
    collector = Collector()
    with call, signals.DuringExecute(call.wake):
        run = call.prepare(collector, interruptible=timeout is not None or item_timeout is not None)
        try:
            run.drive()
        finally:
            call.conclude()
    if return_optimization_result:
        return collector.results, call.result
    return collector.results


def shutdown() -> None:
    """End the worker processes that stay warm between executions; later ones start anew.

    Runs in progress in other threads lose their workers. Called at exit, too.
    """
    pool_module = sys.modules.get("amorsize.engines.process.pool")
    pool = getattr(pool_module, "pool", None)  # another thread may be importing it just now
    if pool is not None:
        pool.shutdown()


def _open_unwatched(
    func: Callable[[Any], Any],
    data: Iterable[Any],
    *,
    sample_size: int,
    target_chunk_duration: float,
    progress_interval: float,
    name: str | None,
) -> Opening | None:
    """Begin a run of which nobody is told; None where somebody is.

    What else it needs is imported by whoever needs it first.
    """
    checked = validate(
        func,
        data,
        sample_size=sample_size,
        target_chunk_duration=target_chunk_duration,
        n_jobs=None,
        chunksize=None,
        executor=None,
    )
    check_options(
        name=name,
        progress=False,
        progress_interval=progress_interval,
        return_exceptions=False,
        timeout=None,
        item_timeout=None,
        verbose=False,
    )
    environment.apply()
    if not nobody_listens():
        return None

    def choose_for(opening: Opening) -> Chooser:
        from amorsize.engines.base import Task
        from amorsize.running.early_workers import make_chooser

        return make_chooser(
            opening,
            Task(func),
            sample_size=checked.sample_size,
            target_chunk_duration=checked.target_chunk_duration,
            load=lambda: import_module("amorsize.running.call"),
        )

    def start_workers(workload: Workload) -> None:
        if "amorsize.planning.planner" not in sys.modules:
            from amorsize.running.prestart import prestart

            prestart(workload)

    return Opening(func, data, choose_for, sample_size=checked.sample_size, prestart=start_workers)
