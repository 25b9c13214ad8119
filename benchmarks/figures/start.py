"""The cost of a start, each time in a fresh interpreter."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor

import psutil

from benchmarks.harness import Contender, Contenders, figure, self_timed


@figure(
    "start-import",
    "import amorsize",
    unit="ms",
    difference=True,
    at_most=20.0,
    against="a bare interpreter",
)
def importing() -> Contenders:
    yield {"amorsize": _whole("import amorsize"), "a bare interpreter": _whole("pass")}


@figure(
    "start-import-execute",
    "from amorsize import execute",
    unit="ms",
    difference=True,
    against="a bare interpreter",
)
def importing_execute() -> Contenders:
    statement = "from amorsize import execute"
    yield {"amorsize": _whole(statement), "a bare interpreter": _whole("pass")}


def _first_results(workers: int) -> Callable[[], Contenders]:
    """Make a figure: from the first import to a result of each of so many workers."""
    items = f"[-i for i in range(1, {workers} + 1)]"
    check = f"assert results == list(range(1, {workers} + 1))\n"

    def contenders() -> Contenders:
        yield {
            "amorsize": _part(
                "from amorsize import execute\n"
                f"results = execute(abs, {items}, executor='process', n_jobs={workers},"
                " chunksize=1)",
                check,
            ),
            "ProcessPoolExecutor (fork)": _executor("fork", workers, items, check),
            "ProcessPoolExecutor (spawn)": _executor("spawn", workers, items, check),
            "loky": _part(
                "from loky import ProcessPoolExecutor\n"
                f"pool = ProcessPoolExecutor({workers})\n"
                f"results = list(pool.map(abs, {items}))",
                check,
            ),
        }

    return contenders


AT_MOST = {2: 1.6, 8: 1.6, 16: 1.6}
"""Bounds beside a pool that forks its parent, which is faster, and unsafe beside threads."""

for _workers in (1, 2, 4, 8, 16):
    figure(
        f"start-processes-{_workers}",
        f"first results of {_workers} processes" if _workers > 1 else "first result of a process",
        unit="ms",
        at_most=AT_MOST.get(_workers),
        against="ProcessPoolExecutor (fork)",
    )(_first_results(_workers))


@figure("start-replacement", "a replacement after a death", unit="ms")
def replacement() -> Contenders:
    import amorsize

    def ours() -> float:
        # Each worker has a session of its own. A function of this file would have it imported.
        [pid] = amorsize.execute(os.getsid, [0], executor="process", n_jobs=1)
        _kill(pid)
        began = time.perf_counter()
        amorsize.execute(os.getsid, [0], executor="process", n_jobs=1)
        return time.perf_counter() - began

    def theirs(make: Callable[[], Executor]) -> Callable[[], float]:
        def take() -> float:
            with make() as pool:
                _kill(pool.submit(os.getpid).result())
            began = time.perf_counter()
            with make() as pool:  # a pool that has lost a worker is broken for good
                pool.submit(os.getpid).result()
                return time.perf_counter() - began

        return take

    fork, spawn = (multiprocessing.get_context(method) for method in ("fork", "spawn"))
    yield {
        "amorsize": self_timed(ours),
        "ProcessPoolExecutor (fork)": self_timed(
            theirs(lambda: ProcessPoolExecutor(1, mp_context=fork))
        ),
        "ProcessPoolExecutor (spawn)": self_timed(
            theirs(lambda: ProcessPoolExecutor(1, mp_context=spawn))
        ),
    }
    amorsize.shutdown()


def _kill(pid: int) -> None:
    process = psutil.Process(pid)
    process.kill()
    psutil.wait_procs([process])


def _executor(start_method: str, workers: int, items: str, check: str) -> Contender:
    return _part(
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from multiprocessing import get_context\n"
        f"pool = ProcessPoolExecutor({workers}, mp_context=get_context({start_method!r}))\n"
        f"results = list(pool.map(abs, {items}))",
        check,
    )


def _whole(code: str) -> Contender:
    """Time an interpreter from its start to its end."""

    def take() -> float:
        began = time.perf_counter()
        _python(code)
        return time.perf_counter() - began

    return self_timed(take)


def _part(code: str, check: str) -> Contender:
    """Time some code in a fresh interpreter, with its imports, without start and exit."""
    program = (
        "import time\n"
        "began = time.perf_counter()\n"
        f"{code}\n"
        "print(time.perf_counter() - began, flush=True)\n"
        f"{check}"
    )
    return self_timed(lambda: float(_python(program)))


def _python(code: str) -> str:
    command = [sys.executable, "-I", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
