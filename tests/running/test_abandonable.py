"""A piece of a run that may be left behind."""

from __future__ import annotations

import contextvars
import threading
from typing import Any

import pytest
from waiting import PATIENCE

from amorsize.running.abandonable import Draw, run_abandonable


def nothing() -> None:
    """No limit is passed."""


def test_it_runs_on_another_thread_and_draws_on_this_one() -> None:
    """Each item when it is asked for; with the context variables of the caller."""
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("set")
    drawn: list[tuple[int, int]] = []

    def draw(size: int) -> list[int]:
        drawn.append((len(drawn), threading.get_ident()))
        return [drawn[-1][0]] * size

    def work(draw: Draw) -> Any:
        return [*draw(1), *draw(2)], variable.get(), threading.get_ident()

    first, value, thread = run_abandonable(work, draw=draw, check=nothing)
    assert (first, value) == ([0, 1, 1], "set")
    assert thread != threading.get_ident()
    assert drawn == [(0, threading.get_ident()), (1, threading.get_ident())]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_it_raises_what_was_raised(kind: type[BaseException]) -> None:
    """In the caller's thread."""

    def work(draw: Draw) -> None:
        raise kind("there")

    with pytest.raises(kind, match="there"):
        run_abandonable(work, draw=lambda size: [], check=nothing)


def test_it_is_left_behind_where_a_check_raises() -> None:
    """And gets no further item."""
    release, over = threading.Event(), threading.Event()
    got: list[int] = []

    def work(draw: Draw) -> None:
        got.extend(draw(1))
        release.wait(PATIENCE)
        got.extend(draw(1))
        over.set()

    def check() -> None:
        if got:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        run_abandonable(work, draw=lambda size: [1], check=check)
    release.set()
    assert over.wait(PATIENCE)
    assert got == [1]


def test_nothing_runs_where_the_limit_was_passed_before() -> None:
    """The check comes first."""

    def check() -> None:
        raise TimeoutError

    ran: list[int] = []
    with pytest.raises(TimeoutError):
        run_abandonable(lambda draw: ran.append(1), draw=lambda size: [], check=check)
    assert ran == []
