"""Running one chunk: its results, its failures, and the item slots that outlive it."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any

import pytest

from amorsize.errors import FunctionExitError
from amorsize.workers.chunk import Chunk, run_chunk
from amorsize.workers.item_slots import CHUNK, ITEM, ITEM_STARTED, SLOT_COUNT
from amorsize.workers.slices import RESULTS_PER_LOOK, Slice


def chunk(*items: Any, start: int = 10, id: int = 4) -> Chunk:
    return Chunk(id, start, list(items))


def invert(number: int) -> float:
    return 1 / number


def new_item_slots() -> list[int]:
    return [-1] * SLOT_COUNT


# --- results ----


def test_a_chunk_gives_one_result_an_item_in_order() -> None:
    """And says which chunk it was."""
    outcome = run_chunk(str, chunk(3, 1, 2))
    assert outcome.results == ["3", "1", "2"]
    assert outcome.failures == []
    assert (outcome.chunk_id, outcome.start, outcome.size) == (4, 10, 3)
    assert (outcome.results_bytes, outcome.extras) == (0, {})


def test_an_outcome_says_who_ran_it_and_when() -> None:
    """Start in epoch seconds, duration around the calls of the function."""
    before = time.time()
    outcome = run_chunk(abs, chunk(1))
    assert before <= outcome.started_at <= time.time()
    assert 0 <= outcome.duration <= time.time() - before + 0.01
    assert (outcome.pid, outcome.hostname) == (os.getpid(), socket.gethostname())
    assert outcome.thread_name == threading.current_thread().name


@pytest.mark.parametrize(
    "item_slots", [None, new_item_slots()], ids=["no-item-slots", "item-slots"]
)
def test_an_empty_chunk_is_complete(item_slots: list[int] | None) -> None:
    """No items, no results, no failure."""
    outcome = run_chunk(invert, chunk(), item_slots=item_slots)
    assert (outcome.results, outcome.failures) == ([], [])


# --- failures ----


def test_the_first_failure_ends_a_chunk() -> None:
    """Items after it are not run; there are no results."""
    seen: list[int] = []

    def func(number: int) -> float:
        seen.append(number)
        return 1 / number

    outcome = run_chunk(func, chunk(1, 0, 2, 0))
    assert outcome.results is None
    assert [failure.index for failure in outcome.failures] == [11]
    assert isinstance(outcome.failures[0].error, ZeroDivisionError)
    assert seen == [1, 0]


def test_with_return_exceptions_failures_stand_in_place_of_results() -> None:
    """Every item is run; each failure is listed, too."""
    outcome = run_chunk(invert, chunk(1, 0, 2, 0), return_exceptions=True)
    assert outcome.results is not None
    assert [outcome.results[0], outcome.results[2]] == [1.0, 0.5]
    assert [failure.index for failure in outcome.failures] == [11, 13]
    assert [outcome.results[1], outcome.results[3]] == [each.error for each in outcome.failures]


def test_a_failure_carries_the_traceback_of_the_user_s_code_alone() -> None:
    """Frames of amorsize are of no interest to whoever wrote the function."""
    outcome = run_chunk(invert, chunk(0))
    text = outcome.failures[0].traceback
    assert "in invert" in text
    assert "ZeroDivisionError: division by zero" in text
    assert "run_chunk" not in text


def test_a_failure_of_a_builtin_has_a_traceback_too() -> None:
    """There is no frame below run_chunk's own."""
    outcome = run_chunk(int, chunk("x"))
    assert "ValueError: invalid literal" in outcome.failures[0].traceback


def test_a_failure_keeps_its_cause() -> None:
    """``raise ... from ...`` shows in the text and stays on the object."""
    cause = KeyError("key")

    def func(_: int) -> None:
        raise ValueError("bad") from cause

    failure = run_chunk(func, chunk(1)).failures[0]
    assert failure.error.__cause__ is cause
    assert "KeyError: 'key'" in failure.traceback


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration, RecursionError])
@pytest.mark.parametrize(
    "item_slots", [None, new_item_slots()], ids=["no-item-slots", "item-slots"]
)
def test_an_exception_that_python_uses_itself_is_a_failure_like_any(
    kind: type[Exception], item_slots: list[int] | None
) -> None:
    """StopIteration, above all, does not end the chunk silently."""

    def func(_: int) -> None:
        raise kind("mine")

    outcome = run_chunk(func, chunk(1, 2), item_slots=item_slots)
    assert outcome.results is None
    assert type(outcome.failures[0].error) is kind


# --- what is no Exception ----


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("in_place", [False, True], ids=["raise", "return_exceptions"])
def test_in_a_worker_an_exit_becomes_a_failure_of_its_item(
    kind: type[BaseException], in_place: bool
) -> None:
    """A function that calls sys.exit() ends neither the worker nor the program."""

    def func(_: int) -> None:
        raise kind("bye")

    failure = run_chunk(func, chunk(1), return_exceptions=in_place).failures[0]
    assert type(failure.error) is FunctionExitError
    assert f"raised {kind.__name__}(bye) on item 10" in str(failure.error)
    assert "Raise an Exception instead" in str(failure.error)
    assert kind.__name__ in failure.traceback


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("in_place", [False, True], ids=["raise", "return_exceptions"])
def test_in_the_caller_s_thread_an_exit_passes(kind: type[BaseException], in_place: bool) -> None:
    """There Ctrl-C is the user's, and sys.exit() means the program."""

    def func(_: int) -> None:
        raise kind

    with pytest.raises(kind):
        run_chunk(func, chunk(1), return_exceptions=in_place, exits_pass=True)


def test_in_the_caller_s_thread_an_exception_is_a_failure_all_the_same() -> None:
    """Only exits pass."""
    assert run_chunk(invert, chunk(0), exits_pass=True).failures[0].index == 10


# --- the item slots ----


@pytest.mark.parametrize("stamp", [False, True], ids=["plain", "stamped"])
def test_item_slots_show_the_item_in_progress(stamp: bool) -> None:
    """Chunk and index are written before the function is called."""
    item_slots = new_item_slots()
    seen: list[tuple[int, int]] = []

    def func(_: int) -> None:
        seen.append((item_slots[CHUNK], item_slots[ITEM]))

    run_chunk(func, chunk("a", "b", "c"), item_slots=item_slots, stamp_items=stamp)
    assert seen == [(4, 10), (4, 11), (4, 12)]


def test_after_the_last_item_item_slots_show_the_end_of_the_chunk() -> None:
    """So a worker that dies while sending its results is held against no item."""
    item_slots = new_item_slots()
    run_chunk(abs, chunk(1, 2, 3), item_slots=item_slots)
    assert item_slots[ITEM] == 13


def test_after_a_failure_item_slots_show_the_item_that_failed() -> None:
    """The chunk did not come to its end."""
    item_slots = new_item_slots()
    run_chunk(invert, chunk(1, 0, 2), item_slots=item_slots)
    assert item_slots[ITEM] == 11


def test_item_slots_show_when_an_item_started_if_asked_to() -> None:
    """In nanoseconds of the monotonic clock, again for each item."""
    item_slots = new_item_slots()
    starts: list[int] = []
    before = time.monotonic_ns()
    run_chunk(
        lambda _: starts.append(item_slots[ITEM_STARTED]),
        chunk(1, 2),
        item_slots=item_slots,
        stamp_items=True,
    )
    assert before <= starts[0] <= starts[1] <= time.monotonic_ns()


def test_item_slots_show_no_start_unless_asked_to() -> None:
    """A stamp an item costs as much as a trivial function."""
    item_slots = new_item_slots()
    run_chunk(abs, chunk(1, 2), item_slots=item_slots)
    assert item_slots[ITEM_STARTED] == 0


# --- stopping ----


def test_a_stopped_chunk_is_left_before_its_next_item() -> None:
    """It has neither results nor failures: nobody waits for it."""
    done: list[int] = []
    outcome = run_chunk(
        done.append, chunk(1, 2, 3), item_slots=new_item_slots(), stopped=lambda: len(done) == 2
    )
    assert done == [1, 2]
    assert (outcome.results, outcome.failures) == (None, [])


def test_a_chunk_that_is_not_stopped_is_complete() -> None:
    """Being asked before each item changes nothing else."""
    outcome = run_chunk(abs, chunk(-1, -2), item_slots=new_item_slots(), stopped=lambda: False)
    assert outcome.results == [1, 2]


# --- results that weigh much ----


@pytest.mark.parametrize("light", [0, 100, 999])
@pytest.mark.parametrize("go_on", [True, False])
def test_a_chunk_ends_where_its_results_weigh_enough(light: int, go_on: bool) -> None:
    """One of so many is weighed; the items after that are not begun."""
    done: list[int] = []

    def make(item: int) -> bytes:
        done.append(item)
        return bytes(1_000_000 if item >= light else 10)

    items = Chunk(7, 0, range(1000), most_bytes=10_000_000)
    outcome = run_chunk(make, items, item_slots=new_item_slots(), return_exceptions=go_on)
    assert outcome.results is not None
    assert outcome.size == len(outcome.results) == len(done)
    assert outcome.is_full == (outcome.size < 1000)
    assert min(1000, light + 10) <= outcome.size <= light + 10 + RESULTS_PER_LOOK


def test_a_chunk_whose_last_result_makes_it_full_is_done() -> None:
    """Nothing of it is left."""
    items = Chunk(7, 0, range(RESULTS_PER_LOOK), most_bytes=1000)
    outcome = run_chunk(lambda item: bytes(1000), items, item_slots=new_item_slots())
    assert (outcome.size, outcome.is_full) == (RESULTS_PER_LOOK, False)


def test_a_full_chunk_knows_which_item_failed_and_which_are_marked() -> None:
    """Slices of its items, between which results are weighed, change neither."""
    slots = new_item_slots()
    marks: list[int] = []

    def check(item: int) -> bytes:
        marks.append(slots[ITEM])
        if item == 105:
            raise ValueError(item)
        return bytes(10)

    items = Chunk(7, 40, range(200), most_bytes=10**6)
    outcome = run_chunk(check, items, item_slots=slots)
    assert (outcome.results, outcome.is_full) == (None, False)
    assert [failure.index for failure in outcome.failures] == [145]
    assert marks == list(range(40, 146))


@pytest.mark.parametrize("kind", [list, tuple, range])
@pytest.mark.parametrize("failing", [0, 3, 9])
def test_the_fast_path_names_the_item_that_failed(kind: type, failing: int) -> None:
    """Its index in the input, whatever kind of sequence the items come in."""

    def check(item: int) -> int:
        if item == failing:
            raise StopIteration(item)
        return item

    items = range(10) if kind is range else kind(range(10))
    outcome = run_chunk(check, Chunk(0, 100, items))
    [failure] = outcome.failures
    assert (outcome.results, failure.index, failure.error.args) == (None, 100 + failing, (failing,))
    assert "in check" in failure.traceback
    assert "run_chunk" not in failure.traceback


# --- stretches that are not copied ----


@pytest.mark.parametrize("kind", [list, tuple, range])
@pytest.mark.parametrize("bounds", [(0, 10), (0, 4), (3, 7), (6, 10), (5, 5)])
def test_a_span_is_what_its_slice_is(kind: type, bounds: tuple[int, int]) -> None:
    """Of each kind of input that is not copied."""
    sequence = range(100, 110) if kind is range else kind(range(100, 110))
    start, stop = bounds
    span, piece = Slice(sequence, start, stop), list(sequence[start:stop])
    assert (len(span), list(span)) == (len(piece), piece)
    assert list(span[1:3]) == piece[1:3]
    outcome = run_chunk(str, Chunk(0, start, span))
    assert outcome.results == list(map(str, piece))


@pytest.mark.parametrize("failing", [0, 2, 3])
@pytest.mark.parametrize("stop", [7, 10])
def test_the_item_that_fails_in_a_span_is_named(failing: int, stop: int) -> None:
    """By its index in the input."""

    def func(item: int) -> int:
        if item == 103 + failing:
            raise KeyError(item)
        return item

    outcome = run_chunk(func, Chunk(0, 3, Slice(list(range(100, 110)), 3, stop)))
    assert outcome.results is None
    assert [failure.index for failure in outcome.failures] == [3 + failing]


def test_a_list_that_the_function_changes_gives_what_it_held_or_an_error() -> None:
    """Nothing is left out in silence."""
    grows = [1, 2, 3]
    outcome = run_chunk(
        lambda x: grows.append(x) if len(grows) < 5 else x, Chunk(0, 0, Slice(grows, 0, 3))
    )
    assert outcome.results == [None, None, 3]
    shrinks = [1, 2, 3, 4]
    outcome = run_chunk(lambda x: shrinks.pop(), Chunk(0, 0, Slice(shrinks, 0, 4)))
    assert outcome.results is None
    assert "lost items while the function went over it" in str(outcome.failures[0].error)
