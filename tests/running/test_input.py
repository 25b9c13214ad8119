"""Drawing the input in pieces."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amorsize.running import input as input_module
from amorsize.running.input import STRIDE_ITEMS, WEIGHING_ITEMS, Input

sizes = st.lists(st.integers(1, 50), min_size=1)


class Clock:
    """A monotonic clock that a test moves by hand."""

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


class Announced:
    """An iterator whose length is announced, too large as the case may be."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self.iterator = iterator

    def __iter__(self) -> Iterator[Any]:
        return self.iterator

    def __len__(self) -> int:
        return 10**9


def make_input(data: Iterator[Any], *, announced: bool) -> Input:
    return Input(Announced(data) if announced else data)


# --- Input ----


@given(length=st.integers(0, 300), sizes=sizes, announced=st.booleans())
def test_every_item_is_drawn_once_and_in_order(
    length: int, sizes: list[int], announced: bool
) -> None:
    """Whatever the sizes asked for, nothing is lost, doubled or reordered."""
    data = make_input(iter(range(length)), announced=announced)
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


@given(length=st.integers(0, 100), sizes=sizes, announced=st.booleans())
def test_what_came_before_an_error_is_kept_and_the_error_ends_the_input(
    length: int, sizes: list[int], announced: bool
) -> None:
    """The items before it are drawn like any others; the error waits for whoever asks."""
    error = LookupError("the file ended in the middle")
    data = make_input(failing(length, error), announced=announced)
    items: list[int] = []
    for size in itertools.cycle(sizes):
        items += data.draw(size)
        if data.exhausted:
            break
        assert data.error is None
    assert items == list(range(length))
    assert data.drawn == length
    assert data.error is error


@pytest.mark.parametrize("announced", [True, False], ids=["of known length", "of unknown length"])
def test_an_exhausted_input_is_not_asked_again(announced: bool) -> None:
    """Some iterators raise, or block, when asked after their end."""
    calls: list[int] = []

    def source() -> Iterator[int]:
        yield 1
        calls.append(1)

    data = make_input(source(), announced=announced)
    assert data.draw(5) == [1]
    assert data.exhausted
    assert data.draw(5) == []
    assert (calls, data.drawn) == ([1], 1)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_is_no_exception_passes_through_at_once(kind: type[BaseException]) -> None:
    """Ctrl-C while the input is drawn is not an error of the input."""
    with pytest.raises(kind):
        make_input(failing(3, kind()), announced=True).draw(10)


def test_items_that_were_taken_before_count_as_drawn() -> None:
    """Sampled items come from the same iterator; indices continue after them."""
    data = Input(iter("abcde"))
    data.draw(2)
    assert data.draw(2) == ["c", "d"]
    assert data.drawn == 4


@pytest.mark.parametrize("kind", [iter, list, tuple])
@pytest.mark.parametrize("copies", [True, False])
def test_what_is_given_back_is_drawn_next(kind: Callable[[Any], Any], copies: bool) -> None:
    """In its order, also where the end had been seen."""
    data = kind("abcdefg")
    source = make_input(data, announced=True) if kind is iter else Input(data)
    source.copies = copies
    for size in (1, 4, 9):
        first = source.draw(2)
        rest = source.draw(size)
        source.give_back([first[1:], rest])
        assert (source.drawn, source.exhausted) == (1, False)
        assert [*source.draw(3)] == ["b", "c", "d"]
        source.give_back([["a", "b"], ["c", "d"]] if kind is iter else ["ab", "cd"])
    assert [*source.draw(8)] == [*"abcdefg"]
    assert (source.drawn, source.exhausted) == (7, True)
    source.give_back([[]])
    assert (source.drawn, source.exhausted) == (7, True)


def test_an_error_of_the_input_comes_after_the_items_that_are_given_back() -> None:
    """However often."""

    def failing() -> Iterator[int]:
        yield from range(5)
        raise OSError("the end of the tape")

    source = make_input(failing(), announced=True)
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
    source = Input(list("abcd"))
    source.skip(3)
    assert (source.draw(2), source.draw(1), source.drawn) == (["d"], [], 4)


def test_a_draw_takes_no_more_than_it_was_asked_for() -> None:
    """What is not drawn stays in the iterator, for whoever owns it."""
    iterator = iter(range(10))
    Input(iterator).draw(3)
    assert next(iterator) == 3


def test_a_slow_input_gives_what_has_come(clock: Clock) -> None:
    """Workers get something to do while a slow generator goes on."""
    data = Input(slow(clock, 0.02))
    piece = data.draw(1000)
    assert 0 < len(piece) < 10
    assert not data.exhausted
    assert data.draw(1000)[0] == len(piece)


def test_a_very_slow_input_is_drawn_item_by_item(clock: Clock) -> None:
    """An item that took longer than the patience lasts is drawn alone."""
    data = Input(slow(clock, 10.0))
    assert [data.draw(1000) for _ in range(3)] == [[0], [1], [2]]


def test_a_patient_input_waits_for_the_whole_piece(clock: Clock) -> None:
    """What has a length is a collection; its items are there."""
    assert len(make_input(slow(clock, 0.02), announced=True).draw(100)) == 100


def test_a_fast_input_gives_whole_pieces(clock: Clock) -> None:
    """Without a known length, too, as long as items come quickly."""
    assert len(Input(slow(clock, 0.0)).draw(5000)) == 5000


@pytest.mark.parametrize("burst", [1, 10, 100, 1000])
def test_an_input_that_turns_slow_after_a_burst_gives_the_burst(clock: Clock, burst: int) -> None:
    """The lines that a log already has must not wait for those that it will have tomorrow."""
    began = clock.now
    data = Input(slow(clock, 10.0, first=burst))
    piece = data.draw(10_000)
    assert burst <= len(piece) <= burst + 1
    assert clock.now - began <= 10.0


# --- sequences ----


@pytest.mark.parametrize("kind", [list, tuple, range])
@pytest.mark.parametrize("drawn", [0, 3])
def test_a_sequence_is_drawn_in_slices_of_its_own_kind(kind: type, drawn: int) -> None:
    """Without a copy of each item; its end is known with the last one."""
    sequence = range(10) if kind is range else kind(range(10))
    data = Input(sequence)
    data.draw(drawn)
    pieces = [data.draw(4), data.draw(10 - drawn - 4)]
    assert [type(piece) for piece in pieces] == [kind, kind]
    assert [item for piece in pieces for item in piece] == list(range(drawn, 10))
    assert (data.exhausted, data.drawn, list(data.draw(4))) == (True, 10, [])


@pytest.mark.parametrize("copies", [True, False])
def test_a_list_that_became_shorter_ends_where_it_was_drawn_to(copies: bool) -> None:
    """No item is counted back."""
    numbers = list(range(10))
    data = Input(numbers)
    data.copies = copies
    assert list(data.draw(6)) == list(range(6))
    del numbers[3:]
    assert list(data.draw(6)) == []
    assert (data.drawn, data.exhausted) == (6, True)


# --- weights ----

MB = 1_000_000


def texts(clock: Clock, *weights: int, seconds: float = 1e-4) -> Iterator[bytes]:
    """Items of these bytes, each of which takes so long to make."""
    for weight in weights:
        clock.now += seconds
        yield bytes(weight)


@pytest.mark.parametrize("announced", [True, False])
def test_a_piece_ends_where_it_weighs_enough(clock: Clock, announced: bool) -> None:
    """Heavy items take long to make, and are weighed one by one."""
    data = make_input(texts(clock, *[MB] * 50), announced=announced)
    assert len(data.draw(10, 5 * MB)) == 5
    assert 5 * MB < data.drawn_bytes < 5.1 * MB
    assert len(data.draw(10)) == 10
    assert data.drawn_bytes > 10 * MB
    assert not data.exhausted


def test_an_item_that_is_heavier_than_all_bounds_is_drawn_alone(clock: Clock) -> None:
    """It has to pass."""
    for data in (Input(texts(clock, 9 * MB, 9 * MB, 9 * MB)), Input([bytes(9 * MB)] * 3)):
        data.weighs = True
        assert [len(data.draw(10, MB)) for _ in range(3)] == [1, 1, 1]
        data.draw(10, MB)
        assert data.exhausted


@pytest.mark.parametrize("light", [0, 1, 1000, 3000])
@pytest.mark.parametrize("seconds", [0.0, 1e-4], ids=["there already", "made"])
def test_a_piece_ends_where_items_turn_heavy(clock: Clock, light: int, seconds: float) -> None:
    """In the middle of it: at once where they are made, else after so many as are looked at."""
    data = Input(
        item
        for weight in [10] * light + [MB] * 300
        for item in texts(clock, weight, seconds=seconds * weight / MB)
    )
    drawn = len(data.draw(10_000, 5 * MB))
    assert light + 5 <= drawn <= light + 5 + (0 if seconds else WEIGHING_ITEMS)


def test_items_of_a_collection_in_memory_are_weighed_only_where_they_are_sent() -> None:
    """Nothing is held that is not there anyway."""
    items = [bytes(MB)] * 500
    array = np.broadcast_to(np.zeros(MB, dtype=np.uint8), (500, MB))
    for data in (items, tuple(items), dict(enumerate(items)).values(), array):
        source = Input(data)
        assert source.in_memory
        assert (len(source.draw(499, MB)), source.drawn_bytes) == (499, 0)
        source = Input(data)
        source.weighs = True
        drawn = len(source.draw(499, 5 * MB))
        assert 4 <= drawn <= WEIGHING_ITEMS
        assert drawn * MB <= source.drawn_bytes < 1.1 * drawn * MB
    lazy = make_input(iter(items), announced=True)
    assert not lazy.in_memory
    assert not Input(iter(items)).in_memory


@pytest.mark.parametrize("light", [0, 10, 1000])
def test_a_piece_of_a_list_that_is_sent_ends_where_items_turn_heavy(light: int) -> None:
    """One of so many is weighed."""
    data = Input([b""] * light + [bytes(MB)] * 200)
    data.weighs = True
    drawn = len(data.draw(10_000, 5 * MB))
    assert light <= drawn <= light + STRIDE_ITEMS + 5


def test_a_list_that_becomes_shorter_while_it_is_weighed_gives_what_it_has() -> None:
    """The function may change it from another thread."""

    class Shortening:
        def __sizeof__(self) -> int:
            del items[2:]
            return 100

    items: list[Any] = [Shortening() for _ in range(200)]
    data = Input(items)
    data.weighs = True
    assert len(data.draw(150, MB)) == 2
    assert data.draw(10) == []
