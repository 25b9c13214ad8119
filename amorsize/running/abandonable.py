"""Code of the user's on a thread that can be left behind, while the run keeps to its limits."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

from amorsize.engines.thread import cannot_start_thread

T = TypeVar("T")

Draw: TypeAlias = Callable[[int], Sequence[Any]]
"""Gives up to so many further items, none at the end."""

_CHECK_SECONDS = 0.05


def run_abandonable(work: Callable[[Draw], T], *, draw: Draw, check: Callable[[], None]) -> T:
    """Run something that cannot be interrupted, and be free to leave it behind.

    Args:
        work: what is run, on a daemon thread, with the context variables of the caller. It draws
            items by the function that it is given.
        draw: gives those items; called from the caller's thread, on which all of the input is
            drawn.
        check: called now and then from the caller's thread. Where it raises, ``work`` is left
            behind, and given no further item.

    Returns:
        The return value of ``work``; raises the exception that it raised.

    >>> items = iter([1, 2, 3])
    >>> run_abandonable(
    ...     lambda draw: [*draw(2), *draw(2)],
    ...     draw=lambda size: [item for _, item in zip(range(size), items)],
    ...     check=lambda: None,
    ... )
    [1, 2, 3]
    """
    asked: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    given: queue.SimpleQueue[Sequence[Any]] = queue.SimpleQueue()
    results: list[T] = []
    errors: list[BaseException] = []
    abandoned = threading.Event()

    def relay(size: int) -> Sequence[Any]:
        if abandoned.is_set():
            return ()
        asked.put(size)
        return given.get()

    def run() -> None:
        try:
            results.append(work(relay))
        except BaseException as error:
            errors.append(error)
        asked.put(None)

    check()
    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(run,), name="amorsize-sample", daemon=True
    )
    try:
        thread.start()
    except RuntimeError as error:
        raise cannot_start_thread(error) from error
    try:
        while (size := _wait_for(asked, check)) is not None:
            given.put(draw(size))
    finally:
        abandoned.set()
        given.put(())
    if errors:
        raise errors[0]
    return results[0]


def _wait_for(asked: queue.SimpleQueue[int | None], check: Callable[[], None]) -> int | None:
    while True:
        check()
        try:
            return asked.get(timeout=_CHECK_SECONDS)
        except queue.Empty:
            pass
