"""Chunk sizes, in items: arithmetic on the seconds that chunks took, and on what they weigh.

Weights are bytes in memory, of items and results. They bound what a run holds at once: a chunk, and
all chunks that are in flight or wait for the consumer of a stream.
"""

from __future__ import annotations

import math

TYPE_CHECKING = False
if TYPE_CHECKING:
    from amorsize.planning.observations import ChunkTimes

GROWTH = 8
"""A size grows at most so many times at once: the items of one chunk may be untypically fast."""

MOST_FIRST_ITEMS = 1 << 16
"""So that a stream of very short items keeps a bounded number of them in flight."""

SHORTEST_CHUNK_SECONDS = {"custom": 0.005, "dask": 0.08}
"""Below this, a chunk's way there and back begins to count: 0.05 ms with our own engines, for which
it is 0.2 ms; 0.2 ms with loky, the dearest of the executors on one machine; 2 to 4 ms with Dask."""
SHORTEST_OWN_CHUNK_SECONDS = 0.0002

SHARE_OF_PAST = 0.05
"""How long a chunk of an input of unknown length may be, of the time that has passed: any of them
may be the last, which all other workers wait for."""

CHUNK_BYTES = 32 << 20
"""The greatest weight of a chunk: its items and results together."""
SENT_CHUNK_BYTES = 8 << 20
"""The same where they are sent to other processes. 150 items of 1 MB, computing 4 ms, two workers:
650 to 670 ms in chunks of 1 to 8 MB, 760 ms in chunks of 16 and 870 ms in chunks of 32 MB, for
which the allocator maps new memory each time; results of 1 MB: 610 to 660 ms, 650 and 770 ms. Dask
warns of tasks of 10 MB."""
HELD_BYTES = 4 * CHUNK_BYTES
"""The greatest weight of all chunks that are in flight, or wait for their consumer."""
HELD_CHUNKS_PER_WORKER = 3
"""So many chunks per worker, and one more, are in flight or wait for the consumer of a stream."""

TASK_SECONDS = 0.004
"""The time that a Dask task costs its scheduler and client, which handle one at a time."""
SCHEDULER_SHARE = 0.2
"""The share of their time that may go into our tasks."""


def chunk_seconds(engine: str, n_jobs: int, asked: float) -> float:
    """Say how long a chunk should last: as asked, or longer so that a Dask scheduler keeps up.

    >>> chunk_seconds("process", 100, 0.2), chunk_seconds("dask", 4, 0.2)
    (0.2, 0.2)
    >>> chunk_seconds("dask", 100, 0.2)
    2.0
    """
    return max(asked, n_jobs * TASK_SECONDS / SCHEDULER_SHARE) if engine == "dask" else asked


def most_held(n_jobs: int) -> int:
    """Return how many chunks of a stream are in flight, or wait for its consumer, at most."""
    return HELD_CHUNKS_PER_WORKER * n_jobs + 1


def chunk_bytes(engine: str, n_jobs: int) -> int:
    """Return what a chunk may weigh, so that each worker can have its share of chunks.

    >>> chunk_bytes("serial", 1) >> 20, chunk_bytes("process", 2) >> 20, chunk_bytes("thread", 64)
    (32, 8, 695428)
    """
    most = CHUNK_BYTES if engine in ("serial", "thread") else SENT_CHUNK_BYTES
    return min(most, HELD_BYTES // most_held(n_jobs))


def fitting_size(size: int, item_bytes: float, most_bytes: int) -> int:
    """Return how many items fit into a chunk; at least one, whatever it weighs.

    Args:
        size: items at most.
        item_bytes: what an item and its result weigh together.
        most_bytes: what the chunk may weigh.

    >>> fitting_size(1000, 1 << 20, 8 << 20), fitting_size(1000, 1 << 30, 8 << 20)
    (8, 1)
    >>> fitting_size(1000, 0, 8 << 20)
    1000
    """
    return size if size * item_bytes <= most_bytes else max(1, int(most_bytes / item_bytes))


def has_room(
    held_chunks: int, held_bytes: float, next_bytes: float, *, n_jobs: int, streams: bool
) -> bool:
    """Say whether another chunk may be dispatched, beside those that are held.

    There is one for each worker, whatever they weigh: an item that is heavier than all bounds has
    to pass, and workers are not to be idle.

    Args:
        held_chunks, held_bytes: what is in flight, or waits for the consumer.
        next_bytes: what the next chunk is expected to weigh.
        n_jobs: workers.
        streams: whether there is a consumer.
    """
    if held_chunks < n_jobs:
        return True
    if streams and held_chunks >= most_held(n_jobs):
        return False
    return held_bytes + next_bytes <= HELD_BYTES


def first_size(target_seconds: float, item_seconds: float) -> int:
    """Return the items of a chunk that takes the target.

    >>> first_size(0.2, 0.05), first_size(0.2, 0.0)
    (4, 65536)
    """
    if item_seconds <= 0:
        return MOST_FIRST_ITEMS
    return max(1, int(min(target_seconds / item_seconds, MOST_FIRST_ITEMS)))


def corrected_size(size: int, times: ChunkTimes, *, target_seconds: float, most: int) -> int:
    """Correct a size so that a chunk takes the target; called once for each chunk that came back.

    >>> from amorsize.planning.observations import ChunkTimes
    >>> corrected_size(1, ChunkTimes(1, 0.1, 0.1, 1, 1), target_seconds=0.2, most=1000)
    2
    """
    if times.recent_items <= 0:
        return min(size, most)
    if times.recent_seconds <= 0:
        wanted = most
    else:
        wanted = int(target_seconds * times.recent_items / times.recent_seconds)
    # Of those that were handed out together, the last knows no more than the first.
    grown = max(size, min(size, times.last_items) * GROWTH)
    return max(1, min(wanted, grown, most))


def next_size(
    size: int, times: ChunkTimes, *, n_jobs: int, left: int | None, shortest_seconds: float
) -> int:
    """Return the size of the next chunk, at least 1.

    It shrinks towards the end of an input of known length, so that no worker is left alone with a
    long last chunk (guided self-scheduling, Polychronopoulos and Kuck 1987). Where the end is not
    known, it stays a small share of the time that has passed.

    Args:
        size: away from the end.
        times: what chunks took.
        n_jobs: workers that share the input.
        left: items that are not dispatched yet; None where that is unknown.
        shortest_seconds: how long chunks stay towards the end of the input.
    """
    if n_jobs == 1:
        return size
    if left is None:
        if times.worked_seconds <= 0:
            return size
        past = SHARE_OF_PAST * times.worked_seconds / n_jobs
        return max(1, min(size, _items_in(max(past, 10 * shortest_seconds), times)))
    share = math.ceil(max(1, left) / (2 * n_jobs))
    return max(1, min(size, max(share, _items_in(shortest_seconds, times))))


def _items_in(seconds: float, times: ChunkTimes) -> int:
    if times.recent_seconds <= 0:
        return 1
    return math.ceil(seconds * times.recent_items / times.recent_seconds)
