"""amorsize and its peers, each as a function that maps and keeps its pool for the next call.

Each imports what it needs on its first call, as a program would. Pools stay open between calls,
which is the best that a peer's user can do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from benchmarks import cores

Map = Callable[[Callable[[Any], Any], Iterable[Any], int], list[Any]]
"""Takes the function, the input and its length; only tuned contenders may use the length."""


def amorsize(func: Callable[[Any], Any], data: Iterable[Any], items: int) -> list[Any]:
    from amorsize import execute

    return execute(func, data)


def comprehension(func: Callable[[Any], Any], data: Iterable[Any], items: int) -> list[Any]:
    return [func(item) for item in data]


def pool(func: Callable[[Any], Any], data: Iterable[Any], items: int) -> list[Any]:
    return list(_pool().map(func, data))


def processes(func: Callable[[Any], Any], data: Iterable[Any], items: int) -> list[Any]:
    return list(_processes().map(func, data))


def tuned_processes(func: Callable[[Any], Any], data: Iterable[Any], items: int) -> list[Any]:
    """Four chunks per worker, as the manuals advise."""
    return list(_processes().map(func, data, chunksize=max(1, items // (4 * cores()))))


def threads(func: Callable[[Any], Any], data: Iterable[Any], items: int) -> list[Any]:
    return list(_threads().map(func, data))


def joblib(func: Callable[[Any], Any], data: Iterable[Any], items: int) -> list[Any]:
    from joblib import Parallel, delayed

    task = delayed(func)
    return list(Parallel(n_jobs=cores())(task(item) for item in data))


def mpire(func: Callable[[Any], Any], data: Iterable[Any], items: int) -> list[Any]:
    return list(_mpire().map(func, data, iterable_len=items))


@cache
def _pool() -> Any:
    from multiprocessing import Pool

    return Pool(cores())


@cache
def _processes() -> Any:
    from concurrent.futures import ProcessPoolExecutor

    return ProcessPoolExecutor(cores())


@cache
def _threads() -> Any:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor()


@cache
def _mpire() -> Any:
    from mpire import WorkerPool

    return WorkerPool(n_jobs=cores(), keep_alive=True)


CONTENDERS: dict[str, Map] = {
    "amorsize": amorsize,
    "comprehension": comprehension,
    "Pool.map": pool,
    "ProcessPoolExecutor": processes,
    "ProcessPoolExecutor, tuned": tuned_processes,
    "ThreadPoolExecutor": threads,
    "joblib": joblib,
    "mpire": mpire,
}
"""amorsize first, then its peers."""
