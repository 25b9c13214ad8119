"""The cost of a start, each time in a fresh interpreter."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time

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


@figure("start-processes", "first results of two processes", unit="ms")
def first_process_execute() -> Contenders:
    default = multiprocessing.get_start_method()
    yield {
        "amorsize": _part(
            "from amorsize import execute\n"
            "results = execute(abs, [-1, 2], executor='process', n_jobs=2, chunksize=1)"
        ),
        f"ProcessPoolExecutor ({default})": _executor(default),
        "ProcessPoolExecutor (spawn)": _executor("spawn"),
    }


def _executor(start_method: str) -> Contender:
    return _part(
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from multiprocessing import get_context\n"
        f"pool = ProcessPoolExecutor(2, mp_context=get_context({start_method!r}))\n"
        "results = list(pool.map(abs, [-1, 2]))"
    )


def _whole(code: str) -> Contender:
    """Time an interpreter from its start to its end."""

    def take() -> float:
        began = time.perf_counter()
        _python(code)
        return time.perf_counter() - began

    return self_timed(take)


def _part(code: str) -> Contender:
    """Time some code in a fresh interpreter, with its imports, without start and exit."""
    program = (
        "import time\n"
        "began = time.perf_counter()\n"
        f"{code}\n"
        "print(time.perf_counter() - began, flush=True)\n"
        "assert results == [1, 2]\n"
    )
    return self_timed(lambda: float(_python(program)))


def _python(code: str) -> str:
    command = [sys.executable, "-I", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
