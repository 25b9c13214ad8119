"""The same work on this machine and on a Dask cluster: the call and the events stay the same.

Run it with a cluster of two processes on this machine, or with yours, by its scheduler's address
(amorsize and this file must be importable on its workers):

    python examples/dask_cluster.py
    python examples/dask_cluster.py tcp://scheduler:8786
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from distributed import Client, LocalCluster

from amorsize import HookContext, HookEvent, HookManager, execute

LIMITS = range(1000, 1240)


def count_primes(limit: int) -> int:
    """Work that computes: how many primes are below ``limit``?"""
    return sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(2, limit))


@contextmanager
def connect(address: str | None) -> Iterator[Client]:
    """Connect to a cluster; without an address, make one that this machine alone can reach."""
    if address is not None:
        with Client(address) as client:
            yield client
        return
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def observe() -> tuple[HookManager, Counter[str]]:
    """Print each worker's start, and count its chunks."""
    hooks = HookManager()
    chunks: Counter[str] = Counter()
    names: dict[int | None, str] = {}

    def started(context: HookContext) -> None:
        details = context.metadata
        name = details.get("worker_name", details["pid"])
        names[context.worker_id] = f"worker {context.worker_id}"
        print(f"  worker {context.worker_id}: {name} on {details['hostname']}")

    def completed(context: HookContext) -> None:
        chunks[names[context.worker_id]] += 1

    def failed(context: HookContext) -> None:
        print(f"  {context.error_message}")  # a lost worker, too: Dask runs its chunks again

    hooks.register(HookEvent.ON_WORKER_START, started)
    hooks.register(HookEvent.ON_CHUNK_COMPLETE, completed)
    hooks.register(HookEvent.ON_ERROR, failed)
    return hooks, chunks


def main(address: str | None = None) -> None:
    """Run here, run there, compare."""
    print("On this machine:")
    hooks, chunks = observe()
    here = execute(count_primes, LIMITS, executor="process", n_jobs=2, chunksize=30, hooks=hooks)
    print(f"  {chunks.total()} chunks, {sum(here)} primes")

    print("On the cluster:")
    with connect(address):
        hooks, chunks = observe()
        there = execute(count_primes, LIMITS, executor="dask", chunksize=30, hooks=hooks)
    print(f"  {chunks.total()} chunks, {sum(there)} primes")
    print("The results are the same." if here == there else "The results differ!")


if __name__ == "__main__":  # Dask's workers import this file
    main(*sys.argv[1:])
