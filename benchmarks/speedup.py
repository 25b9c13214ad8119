"""``python -m benchmarks.speedup``: compares the speedup that is reported with the real one.

For each workload and each mode, a serial run (a list comprehension) and a run of amorsize take
turns. The real speedup is the ratio of their times; the reported one is ``measured_speedup`` in
``POST_EXECUTE``. An idle machine is needed: what else runs disturbs the two by turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import amorsize
from benchmarks.choice.workloads import WORKLOADS, Workload
from benchmarks.memory import dask_client

AT_MOST = 0.2
"""How far a speedup that is reported may be from the real one."""

KINDS = (
    "cpu-5ms",
    "waiting",
    "waiting-computing",
    "gil-free",
    "parallel-inside",
    "generator",
    "skewed",
)
"""The workloads: functions that compute, wait, do both, release the GIL, are parallel inside; slow
inputs; items that differ."""


@contextmanager
def _given(**options: Any) -> Iterator[dict[str, Any]]:
    yield options


@contextmanager
def _thread_pool() -> Iterator[dict[str, Any]]:
    with ThreadPoolExecutor(4) as executor:
        yield {"executor": executor}


@contextmanager
def _process_pool() -> Iterator[dict[str, Any]]:
    with ProcessPoolExecutor(4) as executor:
        yield {"executor": executor}


@contextmanager
def _dask() -> Iterator[dict[str, Any]]:
    with dask_client() as client:
        yield {"executor": client}


MODES: dict[str, Callable[[], Any]] = {
    "chosen": lambda: _given(),
    "serial": lambda: _given(executor="serial"),
    "thread": lambda: _given(executor="thread"),
    "process": lambda: _given(executor="process"),
    "process, 8": lambda: _given(executor="process", n_jobs=8),
    "thread pool": _thread_pool,
    "process pool": _process_pool,
    "dask": _dask,
}
"""Chosen, named, and caller-owned; more workers than cores, where there are fewer than eight."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 1 if a reported speedup is too far from the real one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speedup", description=__doc__)
    parser.add_argument("--only", choices=KINDS, action="append", help="only this workload")
    parser.add_argument("--mode", choices=MODES, action="append", help="only this mode")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    print(f"{'workload':18} {'mode':13} {'real':>6} {'reported':>9} {'calls at once':>14}")
    failed = False
    for mode in options.mode or MODES:
        with MODES[mode]() as given:
            for kind in options.only or KINDS:
                real, reported, concurrency = compare(WORKLOADS[kind], given, options.rounds)
                said, verdict = "absent", ""
                if reported is not None:
                    far = abs(reported / real - 1)
                    said, verdict = f"{reported:.2f}", f"{far:4.0%}"
                    if far > AT_MOST:
                        failed, verdict = True, f"{verdict} NOT within {AT_MOST:.0%}"
                print(
                    f"{kind:18} {mode:13} {real:6.2f} {said:>9} {concurrency:14.1f}  {verdict}",
                    flush=True,
                )
    return int(failed)


def compare(
    workload: Workload, given: dict[str, Any], rounds: int
) -> tuple[float, float | None, float]:
    """Return the real speedup, the reported one, and the calls at once; medians of the rounds.

    The run before the first round warms up: it starts workers, and imports what calls need.
    """
    real, reported, concurrency = [], [], []
    ends: list[amorsize.HookContext] = []
    hooks = amorsize.HookManager()
    hooks.register(amorsize.HookEvent.POST_EXECUTE, ends.append)
    for number in range(rounds + 1):
        func, data = workload.func, workload.make()
        began = time.perf_counter()
        expected = [func(item) for item in data]
        serial = time.perf_counter() - began
        data = workload.make()
        began = time.perf_counter()
        results = amorsize.execute(func, data, hooks=hooks, **given)
        seconds = time.perf_counter() - began
        assert results == expected
        if number:
            real.append(serial / seconds)
            concurrency.append(ends[-1].metadata["concurrency"])
            speedup = ends[-1].metadata.get("measured_speedup")
            reported += [] if speedup is None else [speedup]
    said = statistics.median(reported) if 2 * len(reported) > rounds else None
    return statistics.median(real), said, statistics.median(concurrency)


if __name__ == "__main__":
    raise SystemExit(main())
