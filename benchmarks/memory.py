"""``python -m benchmarks.memory``: checks that memory stays flat over very many chunks.

The resident size of this process is read while a stream of one-item chunks passes through an
engine. A scheduler of Dask, which keeps a history of its own, runs in another process.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

import amorsize

CHUNKS = 100_000
WARM_UP_SHARE = 0.1
"""The first chunks' memory is the engine's own: imports, pools, histories."""
AT_MOST_MB = 8.0
_UP_SECONDS = 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 1 if memory grew beyond its bound."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument(
        "--chunks", type=int, default=CHUNKS, help="how many (default: %(default)s)"
    )
    parser.add_argument("--only", choices=ENGINES, action="append", help="only this engine")
    options = parser.parse_args(arguments)
    grown = False
    print(f"{options.chunks} chunks, growth of this process after the first {WARM_UP_SHARE:.0%}")
    for name in options.only or ENGINES:
        with ENGINES[name]() as executor:
            seconds, growth_mb = measure(executor, options.chunks)
        verdict = "flat" if growth_mb <= AT_MOST_MB else f"NOT flat: over {AT_MOST_MB:g} MB"
        each = f"{seconds / options.chunks * 1e3:.2f} ms a chunk"
        print(f"  {name:16} {growth_mb:+6.1f} MB  {each}  {verdict}", flush=True)
        grown = grown or growth_mb > AT_MOST_MB
    return int(grown)


def measure(executor: Any, chunks: int) -> tuple[float, float]:
    """Return the seconds, and the growth of the warm process in MB."""
    process = psutil.Process()
    warm = max(1, int(chunks * WARM_UP_SHARE))
    before = after = 0
    began = time.perf_counter()
    stream = amorsize.stream(_same, range(chunks), executor=executor, n_jobs=2, chunksize=1)
    for count, _ in enumerate(stream, 1):
        if count in (warm, chunks):
            gc.collect()
            before, after = after, process.memory_info().rss
    return time.perf_counter() - began, (after - before) / 1e6


def _same(item: int) -> int:
    return item


@contextmanager
def _named(engine: str) -> Iterator[Any]:
    yield engine


@contextmanager
def _thread_pool() -> Iterator[Any]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


@contextmanager
def dask_client() -> Iterator[Any]:
    """Start a cluster of two workers, in processes of their own."""
    import distributed

    with tempfile.TemporaryDirectory() as folder, ExitStack() as processes:
        file = Path(folder) / "scheduler.json"

        def start(*command: str) -> None:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *command, "--scheduler-file", str(file)],
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            processes.callback(process.wait, 10)
            processes.callback(process.kill)

        start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
              "--dashboard-address", "127.0.0.1:0")  # fmt: skip
        for _ in range(2):
            start("worker", "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny",
                  "--no-dashboard", "--local-directory", folder)  # fmt: skip
        deadline = time.monotonic() + _UP_SECONDS
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        with distributed.Client(scheduler_file=str(file), set_as_default=False) as client:
            client.wait_for_workers(2, timeout=_UP_SECONDS)
            yield client


ENGINES: dict[str, Callable[[], Any]] = {
    "process": lambda: _named("process"),
    "thread pool": _thread_pool,
    "dask": dask_client,
}


if __name__ == "__main__":
    raise SystemExit(main())
