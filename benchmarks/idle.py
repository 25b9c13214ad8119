"""``python -m benchmarks.idle``: the memory of idle workers, and the CPU time of their start.

Each pool is made in a fresh program and runs a function once in each of its workers. Memory is the
proportional set size of all processes but the program: pages that several share count once.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PROGRAM = """
import os, resource, sys, time
import psutil
workers, code = int(sys.argv[1]), sys.argv[2]

def wait(item):
    time.sleep(0.2)
    return os.getpid()

if __name__ == "__main__":
    names = {"workers": workers, "wait": wait}
    exec(code, names)
    children = psutil.Process().children(recursive=True)
    memory = cpu = 0.0
    for child in list(children):
        try:
            memory += child.memory_full_info().pss
            cpu += sum(child.cpu_times()[:2])
        except psutil.NoSuchProcess:
            children.remove(child)
    print(memory / 1e6, len(children), cpu * 1e3, flush=True)
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            pass
    os._exit(0)
"""

EXECUTOR = (
    "from concurrent.futures import ProcessPoolExecutor\n"
    "from multiprocessing import get_context\n"
    "pool = ProcessPoolExecutor(workers, mp_context=get_context({method!r}))\n"
    "results = list(pool.map(wait, range(workers)))"
)

POOLS = {
    "amorsize": (
        "import amorsize\n"
        "results = amorsize.execute(wait, range(workers), executor='process', n_jobs=workers,"
        " chunksize=1)"
    ),
    "ProcessPoolExecutor (fork)": EXECUTOR.format(method="fork"),
    "ProcessPoolExecutor (spawn)": EXECUTOR.format(method="spawn"),
    "loky": (
        "from loky import ProcessPoolExecutor\n"
        "pool = ProcessPoolExecutor(workers)\n"
        "results = list(pool.map(wait, range(workers)))"
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.idle", description=__doc__)
    parser.add_argument("--workers", type=int, default=16, help="how many (default: %(default)s)")
    workers = parser.parse_args(arguments).workers
    print(f"{workers} idle workers")
    for name, code in POOLS.items():
        memory, processes, cpu = measure(workers, code)
        print(
            f"  {name:28} {memory:6.1f} MB in {processes:.0f} processes, {cpu:5.0f} ms of CPU time",
            flush=True,
        )
    return 0


def measure(workers: int, code: str) -> tuple[float, ...]:
    """Return MB, the number of processes and ms of CPU time."""

    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory, "program.py")
        script.write_text(PROGRAM)
        done = subprocess.run(
            [sys.executable, str(script), str(workers), code],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
    return tuple(map(float, done.stdout.split()))


if __name__ == "__main__":
    sys.exit(main())
