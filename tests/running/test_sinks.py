"""Where results go: a list in input order, or a bounded buffer before a consumer."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import PATIENCE

from amorsize.running.sinks import Results, StreamBuffer


@st.composite
def shuffled_pieces(draw: st.DrawFn) -> list[tuple[int, list[int]]]:
    """Consecutive pieces of an input, with their start, in any order."""
    lengths = draw(st.lists(st.integers(1, 5), max_size=12))
    starts = [sum(lengths[:at]) for at in range(len(lengths))]
    pieces = [
        (start, list(range(start, start + length)))
        for start, length in zip(starts, lengths, strict=True)
    ]
    return draw(st.permutations(pieces))


def in_order(pieces: list[tuple[int, list[int]]]) -> list[int]:
    return sorted(item for _, piece in pieces for item in piece)


def consume(buffer: StreamBuffer) -> list[Any]:
    return [item for piece in buffer.pieces() for item in piece]


# --- Results ----


@given(shuffled_pieces())
def test_a_collector_gives_results_in_input_order(pieces: list[tuple[int, list[int]]]) -> None:
    """Whatever the order in which chunks complete."""
    collector = Results()
    expected = in_order(pieces)
    for start, results in pieces:
        collector.deliver(start, results)  # which keeps the list, and may change it
    assert collector.results == expected


def test_a_collector_holds_back_what_came_too_early() -> None:
    """Until the pieces before it are there."""
    collector = Results()
    collector.deliver(2, ["c"])
    assert collector.results == []
    collector.deliver(0, ["a", "b"])
    assert collector.results == ["a", "b", "c"]


def test_a_collector_holds_nothing_back_and_is_never_cancelled() -> None:
    """The list is what the caller asked for, however long."""
    collector = Results()
    collector.deliver(1, ["b"], 1000)
    assert (collector.held(), collector.is_empty()) == ((0, 0), True)
    assert not collector.cancelled


# --- StreamBuffer ----


@given(shuffled_pieces())
def test_an_ordered_buffer_gives_results_in_input_order(
    pieces: list[tuple[int, list[int]]],
) -> None:
    """Whatever the order in which chunks complete."""
    buffer = StreamBuffer(ordered=True)
    for start, results in pieces:
        buffer.deliver(start, results)
    buffer.end(None)
    assert consume(buffer) == in_order(pieces)


@given(shuffled_pieces())
def test_an_unordered_buffer_gives_results_as_they_come(
    pieces: list[tuple[int, list[int]]],
) -> None:
    """Nothing waits for a slow chunk."""
    buffer = StreamBuffer(ordered=False)
    for start, results in pieces:
        buffer.deliver(start, results)
    buffer.end(None)
    assert consume(buffer) == [item for _, piece in pieces for item in piece]


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
def test_what_waits_for_the_consumer_is_counted_and_weighed(ordered: bool) -> None:
    """Also what waits for a piece before it, so that no slow chunk lets the others pile up."""
    buffer = StreamBuffer(ordered=ordered)
    assert (buffer.held(), buffer.is_empty()) == ((0, 0), True)
    buffer.deliver(5, ["f"], 1000)
    buffer.deliver(6, ["g"], 100)
    assert buffer.held() == (2, 1100)
    assert buffer.is_empty() is ordered
    buffer.deliver(0, [*"abcde"], 10)
    assert buffer.held() == (3, 1110)
    assert not buffer.is_empty()


def test_consuming_makes_room_and_reports_it() -> None:
    """The driver sleeps until then; it is woken from the consumer's thread."""
    buffer = StreamBuffer(ordered=True)
    held: list[tuple[int, int]] = []
    buffer.on_room = lambda: held.append(buffer.held())
    buffer.deliver(0, ["a"], 1000)
    buffer.deliver(1, ["b"], 100)
    pieces = buffer.pieces()
    assert [next(pieces), next(pieces)] == [["a"], ["b"]]
    assert held == [(1, 100), (0, 0)]
    buffer.deliver(2, ["c"], 10)
    assert buffer.poll() == ["c"]
    assert held == [(1, 100), (0, 0), (0, 0)]
    assert buffer.is_empty()


def test_an_error_is_raised_after_the_pieces_before_it() -> None:
    """What was computed is not taken away by what failed later."""
    buffer = StreamBuffer(ordered=True)
    error = ValueError("bad item")
    buffer.deliver(0, ["a"])
    buffer.deliver(1, ["b"])
    buffer.end(error)
    pieces = buffer.pieces()
    assert [next(pieces), next(pieces)] == [["a"], ["b"]]
    with pytest.raises(ValueError, match="bad item") as caught:
        next(pieces)
    assert caught.value is error


def test_pieces_after_a_gap_are_not_given_when_the_run_failed() -> None:
    """In order means in order: after a missing piece there is only the error."""
    buffer = StreamBuffer(ordered=True)
    buffer.deliver(3, ["d"])
    buffer.end(ValueError("item 0"))
    with pytest.raises(ValueError, match="item 0"):
        next(buffer.pieces())


def test_a_cancelled_buffer_says_so_and_wakes_the_driver() -> None:
    """The consumer went away; the driver may be asleep."""
    buffer = StreamBuffer(ordered=True)
    woken: list[bool] = []
    buffer.on_room = lambda: woken.append(buffer.cancelled)
    assert not buffer.cancelled
    buffer.cancel()
    assert buffer.cancelled
    assert woken == [True]


@pytest.mark.parametrize("error", [None, ValueError("bad")], ids=["end", "error"])
def test_a_waiting_consumer_is_woken_by_pieces_and_by_the_end(error: Exception | None) -> None:
    """It sleeps while there is nothing, on a condition, not on a clock."""
    buffer = StreamBuffer(ordered=True)
    seen: list[Any] = []
    first = threading.Event()

    def run() -> None:
        try:
            for piece in buffer.pieces():
                seen.append(piece)
                first.set()
        except ValueError as raised:
            seen.append(raised)

    consumer = threading.Thread(target=run)
    consumer.start()
    buffer.deliver(0, ["a"])
    assert first.wait(PATIENCE)
    buffer.end(error)
    consumer.join(PATIENCE)
    assert not consumer.is_alive()
    assert seen == ([["a"]] if error is None else [["a"], error])


def test_a_slow_driver_and_a_fast_consumer_lose_nothing() -> None:
    """Pieces go through one by one, with a window of one."""
    buffer = StreamBuffer(ordered=True)
    room = threading.Semaphore(1)
    buffer.on_room = room.release

    def drive() -> None:
        for number in range(500):
            room.acquire()
            buffer.deliver(number, [number])
        buffer.end(None)

    driver = threading.Thread(target=drive)
    driver.start()
    assert consume(buffer) == list(range(500))
    driver.join(PATIENCE)
