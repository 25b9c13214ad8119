"""A Dask cluster: what ``execute()`` adds to ``client.map`` over the same chunks, by hand.

The cluster has two worker processes of this machine. Chunks wait instead of computing, so that two
of them take as long on a busy machine as on an idle one, and all that is more is overhead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import amorsize
from benchmarks.harness import Contender, Contenders, figure, timed

WORKERS = 2
CHUNKS = 20
CHUNK_ITEMS = 5
ITEM_SECONDS = 0.01


@figure(
    "dask-chunks",
    "20 chunks of 0.05 s on two Dask workers",
    unit="ms",
    at_most=1.05,
    against="client.map",
)
def chunks() -> Contenders:
    items = list(range(CHUNKS * CHUNK_ITEMS))
    by_hand = [items[at : at + CHUNK_ITEMS] for at in range(0, len(items), CHUNK_ITEMS)]
    with _client() as client:
        yield {
            "amorsize": _checked(
                lambda: amorsize.execute(wait, items, executor=client, chunksize=CHUNK_ITEMS),
                items,
            ),
            "client.map": _checked(
                lambda: _joined(client.gather(client.map(wait_all, by_hand, pure=False))), items
            ),
        }


def wait(item: int) -> int:
    """The duration of an item."""
    time.sleep(ITEM_SECONDS)
    return item


def wait_all(chunk: list[int]) -> list[int]:
    """The same for a chunk."""
    return [wait(item) for item in chunk]


def _joined(results: list[list[int]]) -> list[int]:
    return [result for chunk in results for result in chunk]


@contextmanager
def _client() -> Iterator[Any]:
    import distributed

    with (
        distributed.LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _checked(run: Callable[[], list[int]], expected: list[int]) -> Contender:
    assert run() == expected
    return timed(run)
