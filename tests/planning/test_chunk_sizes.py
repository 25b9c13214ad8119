"""Chunk sizes, in items."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amorsize.planning.chunk_sizes import (
    CHUNK_BYTES,
    HELD_BYTES,
    SENT_CHUNK_BYTES,
    SHORTEST_CHUNK_SECONDS,
    SHORTEST_OWN_CHUNK_SECONDS,
    chunk_bytes,
    chunk_seconds,
    corrected_size,
    fitting_size,
    has_room,
    most_held,
    next_size,
)
from amorsize.planning.observations import ChunkTimes, Weights
from amorsize.running.input import Input


class Sizer:
    """Sizes as a run corrects them, chunk by chunk."""

    def __init__(self, first: int, target: float, n_jobs: int, limit: int, shortest: float) -> None:
        self.size = min(first, limit)
        self.target, self.n_jobs, self.limit, self.shortest = target, n_jobs, limit, shortest
        self.times = ChunkTimes()

    def learn(self, items: int, seconds: float) -> None:
        self.times.add(items, seconds)
        if items:
            self.size = corrected_size(
                self.size, self.times, target_seconds=self.target, most=self.limit
            )

    def next_size(self, remaining: int | None) -> int:
        return next_size(
            self.size,
            self.times,
            n_jobs=self.n_jobs,
            left=remaining,
            shortest_seconds=self.shortest,
        )


def sizer(
    *,
    first: int = 1,
    target: float = 0.2,
    n_jobs: int = 2,
    limit: int = 100_000,
    shortest: float = SHORTEST_OWN_CHUNK_SECONDS,
) -> Sizer:
    return Sizer(first, target, n_jobs, limit, shortest)


chunks = st.lists(st.tuples(st.integers(0, 10_000), st.floats(1e-9, 1e4)), max_size=20)
remaining = st.none() | st.integers(1, 10**9)


@given(
    chunks=chunks,
    remaining=remaining,
    first=st.integers(1, 10**6),
    n_jobs=st.integers(1, 64),
    limit=st.integers(1, 100_000),
)
def test_an_adaptive_size_is_between_one_and_its_limit(
    chunks: list[tuple[int, float]], remaining: int | None, first: int, n_jobs: int, limit: int
) -> None:
    """Whatever is measured."""
    it = sizer(first=first, n_jobs=n_jobs, limit=limit)
    assert 1 <= it.next_size(remaining) <= limit
    for items, seconds in chunks:
        it.learn(items, seconds)
        assert 1 <= it.next_size(remaining) <= limit


@given(st.integers(1, 1000), st.floats(1e-9, 1e3), st.integers(1, 1000))
def test_a_size_grows_at_most_eightfold_at_a_time(items: int, seconds: float, first: int) -> None:
    """One untypically fast chunk does not make the next one last for minutes."""
    it = sizer(first=first)
    it.learn(items, seconds)
    assert it.next_size(None) <= 8 * first


@pytest.mark.parametrize("item_seconds", [1e-6, 1e-4, 1e-2, 0.5])
def test_sizes_settle_where_a_chunk_takes_the_target(item_seconds: float) -> None:
    """Long enough to be worth its way, short enough to show progress."""
    it = sizer(first=1, limit=10**9)
    for _ in range(20):
        size = it.next_size(10**12)
        it.learn(size, size * item_seconds)
    assert it.next_size(10**12) == pytest.approx(max(1, 0.2 / item_seconds), rel=0.01, abs=1)


def test_a_size_shrinks_at_once_when_items_turn_slow() -> None:
    """Growth is careful, shrinking is not: the newest chunk counts most."""
    it = sizer(first=1000)
    it.learn(1000, 0.2)
    assert it.next_size(10**12) == 1000
    it.learn(1000, 20.0)
    assert it.next_size(10**12) < 20


@pytest.mark.parametrize("n_jobs", [2, 8])
def test_where_the_end_is_not_known_a_chunk_is_a_small_share_of_the_past(n_jobs: int) -> None:
    """Any may be the last, which all other workers wait for."""
    it = sizer(first=1, limit=10**9, n_jobs=n_jobs)
    worked = 0.0
    for _ in range(500 * n_jobs):
        size = it.next_size(None)
        it.learn(size, size * 1e-3)
        worked += size * 1e-3
        assert it.next_size(None) * 1e-3 <= max(0.05 * worked / n_jobs, 0.002) + 0.001
    assert it.next_size(None) == pytest.approx(200, abs=1)


def test_chunks_that_take_no_measurable_time_grow_to_the_limit() -> None:
    """A clock may well say 0 for a trivial function."""
    it = sizer(first=10, limit=500)
    for _ in range(5):
        it.learn(it.next_size(None), 0.0)
    assert it.next_size(None) == 500


def test_chunks_that_left_together_let_a_size_grow_once() -> None:
    """However many of them come back at a time."""
    it = sizer(first=10)
    for _ in range(100):
        it.learn(10, 1e-5)
    assert it.next_size(None) == 80
    it.learn(1, 1e-6)  # and one item that ran again alone takes nothing back
    assert it.next_size(None) == 80


def test_an_empty_chunk_teaches_nothing() -> None:
    """Its time says nothing about items."""
    it = sizer(first=10)
    it.learn(0, 5.0)
    assert it.next_size(None) == 10


@given(st.integers(1, 10**6), st.integers(2, 64))
def test_towards_the_end_no_chunk_is_more_than_a_worker_s_share(left: int, n_jobs: int) -> None:
    """No worker is left alone with a long last chunk."""
    it = sizer(first=10**6, limit=10**6, n_jobs=n_jobs)
    assert it.next_size(left) <= math.ceil(left / n_jobs)


def test_the_tail_is_not_cut_below_what_a_chunk_s_way_costs() -> None:
    """Shorter chunks would cost more on their way than they save; slow items go one by one."""
    it = sizer(first=1000, n_jobs=4)
    it.learn(1000, 0.01)
    assert it.next_size(8) == 20
    it = sizer(first=1000, n_jobs=4)
    it.learn(1000, 0.4)
    assert it.next_size(8) == 1


def test_one_worker_alone_has_no_tail() -> None:
    """There is nobody to share the end with."""
    assert sizer(first=100, n_jobs=1).next_size(3) == 100


@given(length=st.integers(1, 5000), n_jobs=st.integers(1, 8), item_seconds=st.floats(1e-6, 1.0))
def test_sizes_and_input_together_cover_the_input(
    length: int, n_jobs: int, item_seconds: float
) -> None:
    """As the run loop uses them: every item in exactly one chunk, in a bounded number of draws."""
    it, data = sizer(first=1, n_jobs=n_jobs), Input(range(length))
    items: list[int] = []
    while not data.exhausted:
        piece = data.draw(it.next_size(max(1, length - data.drawn)))
        items += piece
        it.learn(len(piece), len(piece) * item_seconds)
    assert items == list(range(length))


def test_the_scheduler_of_a_large_cluster_gets_longer_chunks() -> None:
    """A task costs it 4 ms: a fifth of its time may go into ours."""
    assert chunk_seconds("dask", 4, 0.2) == 0.2
    assert chunk_seconds("dask", 200, 0.2) == 4.0
    assert chunk_seconds("dask", 200, 10.0) == 10.0
    assert chunk_seconds("custom", 200, 0.2) == 0.2


@pytest.mark.parametrize(("engine", "items"), [("dask", 80), ("custom", 5)])
def test_chunks_stay_worth_their_way_to_the_end(engine: str, items: int) -> None:
    """The last ones do not become so short that only their way counts."""
    it = sizer(first=200, limit=1000, shortest=SHORTEST_CHUNK_SECONDS[engine])
    it.learn(200, 0.2)  # 1 ms an item
    assert it.next_size(8) == items


# --- weights ----

MB = 1 << 20


@given(st.sampled_from(["serial", "thread", "process", "dask", "custom"]), st.integers(1, 1000))
def test_all_chunks_of_a_stream_fit_into_what_a_run_may_hold(engine: str, n_jobs: int) -> None:
    """However many workers: then each chunk is lighter."""
    most = chunk_bytes(engine, n_jobs)
    assert 0 < most <= (CHUNK_BYTES if engine in ("serial", "thread") else SENT_CHUNK_BYTES)
    assert most * most_held(n_jobs) <= HELD_BYTES


@given(st.integers(1, 10**6), st.floats(0, 1e12), st.integers(1, CHUNK_BYTES))
def test_a_chunk_holds_what_fits_and_one_item_at_least(
    size: int, item_bytes: float, most_bytes: int
) -> None:
    """An item that is heavier than all bounds has to pass."""
    fitting = fitting_size(size, item_bytes, most_bytes)
    assert 1 <= fitting <= size
    assert fitting == 1 or fitting * item_bytes <= most_bytes
    assert fitting == size or (fitting + 2) * item_bytes > most_bytes


@pytest.mark.parametrize(
    ("chunks", "held", "next_bytes", "n_jobs", "streams", "room"),
    [
        # Light ones: so many chunks, where somebody consumes them.
        (6, 0, 0, 2, True, True),
        (7, 0, 0, 2, True, False),
        (7, 0, 0, 2, False, True),
        # Heavy ones: what they weigh, wherever they are.
        (3, HELD_BYTES - MB, MB, 2, True, True),
        (3, HELD_BYTES - MB, MB + 1, 2, True, False),
        (3, HELD_BYTES - MB, MB + 1, 2, False, False),
        # One for each worker, whatever it weighs.
        (0, 0, 100 * HELD_BYTES, 1, True, True),
        (1, 100 * HELD_BYTES, 0, 1, True, False),
        (1, 100 * HELD_BYTES, 100 * HELD_BYTES, 2, True, True),
        (2, 200 * HELD_BYTES, 100 * HELD_BYTES, 2, False, False),
    ],
)
def test_there_is_room_for_a_few_chunks(
    chunks: int, held: float, next_bytes: float, n_jobs: int, streams: bool, room: bool
) -> None:
    """In flight and in the buffer together, bounded in number and in weight."""
    assert has_room(chunks, held, next_bytes, n_jobs=n_jobs, streams=streams) is room


def test_what_is_heavier_counts_at_once_and_what_is_lighter_by_half() -> None:
    """A chunk too many of light items costs nothing, one of heavy items does."""
    weights = Weights()
    seen = []
    for items, items_bytes in [(1000, 10_000), (2, 2 * MB), (4, 40), (0, 0), (4, 40)]:
        weights.add(items, items_bytes, items_bytes)
        seen.append(round(weights.item_bytes))
    assert seen == [10, MB, MB / 2 + 5, MB / 2 + 5, MB / 4 + 8]
    assert weights.both_bytes == 2 * weights.item_bytes
    assert weights.count == 4
