"""One contender on one workload, in the process that runs this module: a first call, a later one.

``python -m benchmarks.choice.cell WORKLOAD CONTENDER`` prints ``{"first": s, "later": s, ...}``.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time

from benchmarks.choice.contenders import CONTENDERS
from benchmarks.choice.workloads import WORKLOADS, Workload

_LATER_SECONDS = 0.3
_LATER_CALLS = 5


def measure(workload: Workload, contender: str) -> dict[str, float]:
    """Time a first call and the median of some later ones; check every result's length."""

    def call() -> float:
        data = workload.make()
        gc.collect()
        began = time.perf_counter()
        results = CONTENDERS[contender](workload.func, data, workload.items)
        seconds = time.perf_counter() - began
        assert len(results) == workload.items, (contender, len(results))
        return seconds

    first = call()
    later = [call()]
    while sum(later) < _LATER_SECONDS and len(later) < _LATER_CALLS:
        later.append(call())
    return {"first": first, "later": statistics.median(later)}


if __name__ == "__main__":
    print(json.dumps(measure(WORKLOADS[sys.argv[1]], sys.argv[2])), flush=True)
    # Without waiting for pools that are still open: some peers hang at exit, or warn.
    os._exit(0)
