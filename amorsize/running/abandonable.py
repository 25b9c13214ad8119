"""A piece of a run on a thread of its own, while the run's thread keeps to its limits."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_CHECK_SECONDS = 0.05


def run_apart(
    work: Callable[[Iterator[Any]], T],
    *,
    draw: Callable[[], Sequence[Any]],
    check: Callable[[], None],
) -> T:
    """Run something that cannot be interrupted, and be free to leave it behind.

    Args:
        work: what is run, on a daemon thread, with the context variables of the caller. It takes
            items from the iterator that it is given.
        draw: gives the next item, in a sequence of one, or an empty one at the end; called from
            the caller's thread, on which all of the input is drawn.
        check: called now and then from the caller's thread. Where it raises, ``work`` is left
            behind, and given no further item.

    Returns:
        What ``work`` returned; raises what it raised.

    >>> run_apart(list, draw=iter([[1], [2], []]).__next__, check=lambda: None)
    [1, 2]
    """
    asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
    given: queue.SimpleQueue[Sequence[Any]] = queue.SimpleQueue()
    results: list[T] = []
    errors: list[BaseException] = []

    def items() -> Iterator[Any]:
        asked.put(True)
        while item := given.get():
            yield item[0]
            asked.put(True)

    def run() -> None:
        try:
            results.append(work(items()))
        except BaseException as error:
            errors.append(error)
        asked.put(False)

    check()
    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(run,), name="amorsize-sample", daemon=True
    )
    thread.start()
    try:
        while _wants_item(asked, check):
            given.put(draw())
    finally:
        given.put(())
    if errors:
        raise errors[0]
    return results[0]


def _wants_item(asked: queue.SimpleQueue[bool], check: Callable[[], None]) -> bool:
    while True:
        check()
        try:
            return asked.get(timeout=_CHECK_SECONDS)
        except queue.Empty:
            pass
