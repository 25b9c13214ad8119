"""Drawing the input in pieces, and deciding how large the next chunk is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amorsize.running import input as input_module
from amorsize.running.input import ChunkSizer, Input

sizes = st.lists(st.integers(1, 50), min_size=1)


class Clock:
    """A monotonic clock that only moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(input_module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def slow(clock: Clock, seconds: float, first: int = 0) -> Iterator[int]:
    """Count upwards for ever; from item ``first`` on, each takes ``seconds`` to come."""
    for number in itertools.count():
        if number >= first:
            clock.now += seconds
        yield number


def failing(items: int, error: BaseException) -> Iterator[int]:
    yield from range(items)
    raise error


# --- Input ----


@given(length=st.integers(0, 300), sizes=sizes, patient=st.booleans())
def test_every_item_is_drawn_once_and_in_order(
    length: int, sizes: list[int], patient: bool
) -> None:
    """Whatever the sizes asked for, nothing is lost, doubled or reordered."""
    data = Input(iter(range(length)), patient=patient)
    pieces = []
    for size in itertools.cycle(sizes):
        piece = data.draw(size)
        pieces.append(piece)
        assert len(piece) <= size
        assert data.drawn == sum(map(len, pieces))
        if data.exhausted:
            break
        assert piece, "an empty piece before the end"
    assert list(itertools.chain(*pieces)) == list(range(length))
    assert data.error is None


@given(length=st.integers(0, 100), sizes=sizes, patient=st.booleans())
def test_what_came_before_an_error_is_kept_and_the_error_ends_the_input(
    length: int, sizes: list[int], patient: bool
) -> None:
    """The items before it are drawn like any others; the error waits for whoever asks."""
    error = LookupError("the file ended in the middle")
    data = Input(failing(length, error), patient=patient)
    items: list[int] = []
    for size in itertools.cycle(sizes):
        items += data.draw(size)
        if data.exhausted:
            break
        assert data.error is None
    assert items == list(range(length))
    assert data.drawn == length
    assert data.error is error


@pytest.mark.parametrize("patient", [True, False], ids=["patient", "impatient"])
def test_an_exhausted_input_is_not_asked_again(patient: bool) -> None:
    """Some iterators raise, or block, when asked after their end."""
    calls: list[int] = []

    def source() -> Iterator[int]:
        yield 1
        calls.append(1)

    data = Input(source(), patient=patient)
    assert data.draw(5) == [1]
    assert data.exhausted
    assert data.draw(5) == []
    assert (calls, data.drawn) == ([1], 1)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_is_no_exception_passes_through_at_once(kind: type[BaseException]) -> None:
    """Ctrl-C while the input is drawn is not an error of the input."""
    with pytest.raises(kind):
        Input(failing(3, kind()), patient=True).draw(10)


def test_items_that_were_taken_before_count_as_drawn() -> None:
    """Sampled items come from the same iterator; indices go on behind them."""
    data = Input(iter("cde"), patient=True, drawn=2)
    assert data.draw(2) == ["c", "d"]
    assert data.drawn == 4


@pytest.mark.parametrize("kind", [iter, list, tuple])
@pytest.mark.parametrize("copies", [True, False])
def test_what_is_given_back_is_drawn_next(kind: Callable[[Any], Any], copies: bool) -> None:
    """In its order, also where the end had been seen."""
    data = kind("abcdefg")
    sequence = None if kind is iter else data
    source = Input(iter(data), patient=True, sequence=sequence, copies=copies)
    for size in (1, 4, 9):
        first = source.draw(2)
        rest = source.draw(size)
        source.give_back([first[1:], rest])
        assert (source.drawn, source.exhausted) == (1, False)
        assert [*source.draw(3)] == ["b", "c", "d"]
        source.give_back([["a", "b"], ["c", "d"]] if kind is iter else ["ab", "cd"])
    assert [*source] == [*"abcdefg"]
    assert (source.drawn, source.exhausted) == (7, True)
    source.give_back([[]])
    assert (source.drawn, source.exhausted) == (7, True)


def test_an_error_of_the_input_stays_behind_what_is_given_back() -> None:
    """However often."""

    def failing() -> Iterator[int]:
        yield from range(5)
        raise OSError("the end of the tape")

    source = Input(failing(), patient=True)
    piece = source.draw(9)
    for left in (5, 3, 1):
        source.give_back([piece[-left:]])
        piece = source.draw(1)
        source.give_back([piece])
        piece = source.draw(9)
        assert piece == [*range(5 - left, 5)]
        assert source.exhausted
    assert isinstance(source.error, OSError)
    assert source.drawn == 5


def test_what_somebody_else_has_taken_is_left_out() -> None:
    """By its index: whether that was the end is seen by the next draw."""
    source = Input(iter("abcd"), patient=True, sequence="abcd")
    source.skip(3)
    assert (source.draw(2), source.draw(1), source.drawn) == ("d", [], 4)


def test_a_draw_takes_no_more_than_it_was_asked_for() -> None:
    """What is not drawn stays in the iterator, for whoever owns it."""
    iterator = iter(range(10))
    Input(iterator, patient=False).draw(3)
    assert next(iterator) == 3


def test_a_slow_input_gives_what_has_come(clock: Clock) -> None:
    """Workers get something to do while a slow generator goes on."""
    data = Input(slow(clock, 0.02), patient=False)
    piece = data.draw(1000)
    assert 0 < len(piece) < 10
    assert not data.exhausted
    assert data.draw(1000)[0] == len(piece)


def test_a_very_slow_input_is_drawn_item_by_item(clock: Clock) -> None:
    """An item that took longer than the patience lasts travels alone."""
    data = Input(slow(clock, 10.0), patient=False)
    assert [data.draw(1000) for _ in range(3)] == [[0], [1], [2]]


def test_a_patient_input_waits_for_the_whole_piece(clock: Clock) -> None:
    """What has a length is a collection; its items are there."""
    assert len(Input(slow(clock, 0.02), patient=True).draw(100)) == 100


def test_a_fast_input_gives_whole_pieces(clock: Clock) -> None:
    """Without a known length, too, as long as items come quickly."""
    assert len(Input(slow(clock, 0.0), patient=False).draw(5000)) == 5000


@pytest.mark.parametrize("burst", [1, 10, 100, 1000])
def test_an_input_that_turns_slow_after_a_burst_gives_the_burst(clock: Clock, burst: int) -> None:
    """The lines that a log already has must not wait for those that it will have tomorrow."""
    began = clock.now
    data = Input(slow(clock, 10.0, first=burst), patient=False)
    piece = data.draw(10_000)
    assert burst <= len(piece) <= burst + 1
    assert clock.now - began <= 10.0


# --- ChunkSizer ----


def sizer(
    *,
    fixed: int | None = None,
    first: int = 1,
    target: float = 0.2,
    n_jobs: int = 2,
    limit: int = 100_000,
) -> ChunkSizer:
    return ChunkSizer(fixed=fixed, first=first, target_seconds=target, n_jobs=n_jobs, limit=limit)


chunks = st.lists(st.tuples(st.integers(0, 10_000), st.floats(1e-9, 1e4)), max_size=20)
remaining = st.none() | st.integers(1, 10**9)


@given(chunks=chunks, remaining=remaining, fixed=st.integers(1, 10**6))
def test_a_size_that_the_user_asked_for_stays(
    chunks: list[tuple[int, float]], remaining: int | None, fixed: int
) -> None:
    """Neither measurements nor the end of the input change it."""
    it = sizer(fixed=fixed)
    for items, seconds in chunks:
        it.learn(items, seconds)
    assert it.next_size(remaining) == fixed


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
    it, data = sizer(first=1, n_jobs=n_jobs), Input(iter(range(length)), patient=True)
    items: list[int] = []
    while not data.exhausted:
        piece = data.draw(it.next_size(max(1, length - data.drawn)))
        items += piece
        it.learn(len(piece), len(piece) * item_seconds)
    assert items == list(range(length))


# --- sequences ----


@pytest.mark.parametrize("kind", [list, tuple, range])
@pytest.mark.parametrize("drawn", [0, 3])
def test_a_sequence_is_drawn_in_slices_of_its_own_kind(kind: type, drawn: int) -> None:
    """Without a copy of each item; its end is known with the last one."""
    sequence = range(10) if kind is range else kind(range(10))
    data = Input(iter(sequence), patient=True, drawn=drawn, sequence=sequence)
    pieces = [data.draw(4), data.draw(10 - drawn - 4)]
    assert [type(piece) for piece in pieces] == [kind, kind]
    assert [item for piece in pieces for item in piece] == list(range(drawn, 10))
    assert (data.exhausted, data.drawn, list(data.draw(4))) == (True, 10, [])


@pytest.mark.parametrize("copies", [True, False])
def test_a_list_that_became_shorter_ends_where_it_was_drawn_to(copies: bool) -> None:
    """No item is counted back."""
    numbers = list(range(10))
    data = Input(iter(numbers), patient=True, sequence=numbers, copies=copies)
    assert list(data.draw(6)) == list(range(6))
    del numbers[3:]
    assert list(data.draw(6)) == []
    assert (data.drawn, data.exhausted) == (6, True)
