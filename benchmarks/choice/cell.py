"""Makes one measurement in the process that runs this module, and prints it as JSON.

``python -m benchmarks.choice.cell call WORKLOAD CONTENDER`` times a first call, its import
included, and the median of some later ones; ``plan WORKLOAD`` says what ``optimize()`` chooses;
``setting WORKLOAD ENGINE N_JOBS CHUNKSIZE`` times a first ``execute()`` with these settings;
``misleading INPUT`` is :func:`benchmarks.choice.misleading.measure`.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time
from typing import Any

from benchmarks.choice import misleading
from benchmarks.choice.contenders import CONTENDERS
from benchmarks.choice.workloads import WORKLOADS

_LATER_SECONDS = 0.3
_LATER_CALLS = 5


def measure_calls(workload: str, contender: str) -> dict[str, Any]:
    """Time a first call and the median of some later ones; check every result's length."""
    work = WORKLOADS[workload]

    def call() -> float:
        data = work.make()
        gc.collect()
        began = time.perf_counter()
        results = CONTENDERS[contender](work.func, data, work.items)
        seconds = time.perf_counter() - began
        assert len(results) == work.items, (contender, len(results))
        return seconds

    first = call()
    later = [call()]
    while sum(later) < _LATER_SECONDS and len(later) < _LATER_CALLS:
        later.append(call())
    return {"first": first, "later": statistics.median(later)}


def ask_for_plan(workload: str) -> dict[str, Any]:
    """Return the choice of ``optimize()``."""
    from amorsize import optimize

    work = WORKLOADS[workload]
    plan = optimize(work.func, work.make())
    return {"engine": plan.executor_type, "n_jobs": plan.n_jobs, "chunksize": plan.chunksize}


def measure_setting(workload: str, engine: str, n_jobs: str, chunksize: str) -> dict[str, Any]:
    """Time a first call with given settings, without the import."""
    from amorsize import execute

    work = WORKLOADS[workload]
    data = work.make()
    gc.collect()
    began = time.perf_counter()
    results = execute(
        work.func, data, executor=engine, n_jobs=int(n_jobs), chunksize=int(chunksize)
    )
    seconds = time.perf_counter() - began
    assert len(results) == work.items, (engine, len(results))
    return {"seconds": seconds}


WHAT = {
    "call": measure_calls,
    "misleading": misleading.measure,
    "plan": ask_for_plan,
    "setting": measure_setting,
}


if __name__ == "__main__":
    print(json.dumps(WHAT[sys.argv[1]](*sys.argv[2:])), flush=True)
    # Do not wait for open pools: some peers hang or warn at exit.
    os._exit(0)
