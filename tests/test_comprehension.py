"""The loop that another thread can end."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amorsize.comprehension import UNWATCHED_ITEMS, Comprehension
from amorsize.span import Span

DEADLINE_SECONDS = 60.0


def never(each: float, left: int) -> bool:
    return False


@given(
    size=st.integers(0, 30), start=st.integers(0, 30), kind=st.sampled_from([list, tuple, range])
)
def test_it_is_a_comprehension_over_the_span(size: int, start: int, kind: Any) -> None:
    """Of each kind of sequence, from anywhere in it."""
    sequence: Sequence[int] = range(size) if kind is range else kind(range(size))
    start = min(start, size)
    loop = Comprehension(lambda item: item * 2, Span(sequence, start, size), never)
    assert loop.run() == [item * 2 for item in range(start, size)]
    assert loop.taken == size - start


@pytest.mark.parametrize("kind", [list, tuple, range])
def test_another_thread_ends_it_where_items_are_too_long(kind: Any) -> None:
    """What was taken has its result, and what was not is not called."""
    sequence = range(100_000) if kind is range else kind(range(100_000))
    calls: list[int] = []
    asked: list[tuple[float, int, int]] = []

    def work(item: int) -> int:
        calls.append(item)
        if item > 1000:
            time.sleep(0.001)
        return item

    def too_long(each: float, left: int) -> bool:
        asked.append((each, left, threading.get_ident()))
        return each > 0.0005

    loop = Comprehension(work, Span(sequence, 0, len(sequence)), too_long)
    results = loop.run()
    assert results == calls == list(range(loop.taken))
    assert 1000 < loop.taken < len(sequence)
    each, left, thread = asked[-1]
    assert each > 0.0005
    assert left == len(sequence) - loop.taken
    assert thread != threading.get_ident()


def test_the_item_that_fails_is_known_also_once_it_was_ended() -> None:
    """The iterator was moved by then, and does not tell."""
    ended = threading.Event()

    def work(item: int) -> int:
        if item == 700:
            assert ended.wait(DEADLINE_SECONDS)
            time.sleep(0.05)  # until the iterator is moved
            raise ValueError(item)
        return item

    def too_long(each: float, left: int) -> bool:
        ended.set()
        return True

    loop = Comprehension(work, Span(range(10_000), 0, 10_000), too_long)
    with pytest.raises(ValueError, match="700"):
        loop.run()
    assert loop.taken == 701


def test_what_was_taken_is_known_whenever_it_is_ended() -> None:
    """The loop may go on at any moment at which the other thread is asked."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            calls: list[int] = []

            def work(item: int, calls: list[int] = calls) -> int:
                calls.append(item)
                return sum(range(200))

            loop = Comprehension(work, Span(range(50_000), 0, 50_000), lambda each, left: True)
            results = loop.run()
            assert len(results) == loop.taken == len(calls)
            assert calls == list(range(loop.taken))
    finally:
        sys.setswitchinterval(before)


def test_few_items_are_not_watched() -> None:
    """A thread costs more than they do."""

    def work(item: int) -> int:
        if item == 0:
            time.sleep(0.2)
        return item

    def too_long(each: float, left: int) -> bool:
        raise AssertionError("watched")

    loop = Comprehension(work, Span(range(UNWATCHED_ITEMS), 0, UNWATCHED_ITEMS), too_long)
    assert len(loop.run()) == UNWATCHED_ITEMS


def test_a_list_that_changes_meanwhile() -> None:
    """What it gains has no result; what it loses cannot be had."""
    growing = list(range(20))

    def grow(item: int) -> int:
        if len(growing) < 30:
            growing.append(item)
        return item

    loop = Comprehension(grow, Span(growing, 0, 20), never)
    assert (loop.run(), loop.taken) == (list(range(20)), 20)
    shrinking = list(range(20))

    def shrink(item: int) -> int:
        del shrinking[-1]
        return item

    with pytest.raises(RuntimeError, match="lost items"):
        Comprehension(shrink, Span(shrinking, 0, 20), never).run()
