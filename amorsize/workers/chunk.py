"""Runs one chunk, anywhere: in the caller, in a thread, in a worker process, on a cluster.

The user's function is called in two places: :func:`call_all` is a comprehension, which nothing
slows down; :func:`call_each` goes item by item, where calls are measured, the item in progress is
marked, or exceptions are kept in place.

Every worker imports this module: it imports the standard library, and little of that.
"""

from __future__ import annotations

import os
import threading
import time
from types import CodeType

from amorsize.workers.record import Record, made
from amorsize.workers.slices import Pass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any

    from amorsize.workers.collectors import CollectSettings
    from amorsize.workers.item_slots import ItemSlots

HOSTNAME = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")


class Chunk(Record):
    """A run of consecutive items of the input.

    Attributes:
        id: counts from 0 in order of dispatch.
        start: the index in the input of the first item.
        items: the items.
        retry_of: the id of the chunk of a dead worker whose items run again here, or None.
        dispatched_at: when it was handed to a backend, seconds since the epoch.
        items_bytes: what the items weigh, about, where that is known.
        most_bytes: it ends once its results weigh so much; 0 for never.
    """

    id: int
    start: int
    items: Sequence[Any]
    retry_of: int | None = None
    dispatched_at: float = 0.0
    items_bytes: int = 0
    most_bytes: int = 0


class Failure(Record):
    """An item whose call raised.

    Attributes:
        index: the item's index in the input.
        error: the exception.
        traceback: as text, as the worker saw it.
    """

    index: int
    error: BaseException
    traceback: str


class ChunkOutcome(Record):
    """The outcome of a chunk: an envelope that can grow.

    Attributes:
        chunk_id, start, size: as in the :class:`Chunk`.
        results: one for each item, with the exceptions in place under ``return_exceptions``;
            None when the chunk failed.
        failures: the items that raised; without ``return_exceptions`` at most one.
        started_at: when the worker began, seconds since the epoch.
        duration: seconds around the calls of the function.
        pid, hostname, thread_name: where it ran.
        results_bytes: size of the pickled results, 0 where nothing was pickled.
        extras: what else is returned, by name (log records, the user's numbers, spans).
        is_full: whether it ended because its results weigh enough; the other items were not begun.
        is_unread: whether its items could not be loaded where it was to run: none was begun.
    """

    chunk_id: int
    start: int
    size: int
    results: list[Any] | None
    failures: list[Failure]
    started_at: float
    duration: float
    pid: int
    hostname: str
    thread_name: str
    results_bytes: int = 0
    extras: dict[str, Any] = made(factory=dict)
    is_full: bool = False
    is_unread: bool = False


def call_all(func: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Call ``func`` on every item, in a comprehension: nothing is faster for very short calls."""
    return [func(item) for item in items]


def call_each(
    func: Callable[[Any], Any],
    items: Iterable[Any],
    results: list[Any],
    failures: list[Failure],
    *,
    start: int,
    go_on: bool = False,
    caught: type[BaseException] = Exception,
    on_error: Callable[[], object] | None = None,
) -> None:
    """Call ``func`` item by item; an iterator that measures or marks runs between the calls.

    Args:
        func: the user's function.
        items: the items.
        results: where each call's result is added.
        failures: where each call that raised is added.
        start: the index of the item that the first of the results belongs to.
        go_on: put an exception in place of the result, and call on; otherwise stop there.
        caught: the exceptions that are failures of their item; others pass.
        on_error: called as soon as a call has raised, before its traceback is formatted.
    """
    for item in items:
        try:
            results.append(func(item))
        except caught as error:
            if on_error is not None:
                on_error()
            failures.append(failure_of(start + len(results), error))
            if not go_on:
                return
            results.append(failures[-1].error)


def _codes_of(*codes: CodeType) -> Iterator[CodeType]:
    for code in codes:
        yield code
        yield from (each for each in code.co_consts if isinstance(each, CodeType))


_CALLING = frozenset(_codes_of(call_all.__code__, call_each.__code__))
"""The code that calls the user's function: a traceback is shown from there on."""


def run_chunk(
    func: Callable[[Any], Any],
    chunk: Chunk,
    *,
    return_exceptions: bool = False,
    item_slots: ItemSlots | None = None,
    stamp_items: bool = False,
    stopped: Callable[[], bool] | None = None,
    exits_pass: bool = False,
    collect: CollectSettings | None = None,
    over: Pass | None = None,
) -> ChunkOutcome:
    """Call ``func`` on each item of a chunk.

    Args:
        func: the user's function.
        chunk: its items.
        return_exceptions: put exceptions in place of results, instead of stopping at the first.
        item_slots: where to write which item is in progress; None where nobody reads them.
        stamp_items: also write when each item started (for ``item_timeout``).
        stopped: asked before each item; when true, the rest of the chunk is left.
        exits_pass: let SystemExit, KeyboardInterrupt and the like through (the caller's own
            thread, where Ctrl-C raises) instead of reporting them as a failure of the item.
        collect: what else to return, in the outcome's extras; None for nothing.
        over: the pass over its items, which may end early; None for one that does not.

    Returns:
        The outcome; its ``results`` are None when an item failed or the chunk was stopped. It is
        that of the items that were taken, where the pass over them was ended early: by ``over``,
        or because their results weigh enough (which is looked at where items are marked).
    """
    over = over or Pass(chunk.items)
    if item_slots is not None:
        from amorsize.workers.item_slots import mark_chunk, mark_end, mark_items

        mark_chunk(item_slots, chunk.id, chunk.start)
    results: list[Any] = []
    failures: list[Failure] = []
    caught = Exception if exits_pass else BaseException
    collector = None if collect is None else collect.in_chunk(chunk.id, item_slots)
    if collector is not None:
        collector.enter()
    started_at = time.time()
    before = time.perf_counter()
    try:
        try:
            with over as items:
                if item_slots is None and not return_exceptions:
                    results = call_all(func, items)
                else:
                    if item_slots is not None:
                        slices: Iterable[Iterable[Any]] = (items,)
                        if chunk.most_bytes:
                            slices = over.until_full(items, results, chunk.most_bytes)
                        items = mark_items(slices, chunk.start, item_slots, stamp_items, stopped)
                    call_each(
                        func,
                        items,
                        results,
                        failures,
                        start=chunk.start,
                        go_on=return_exceptions,
                        caught=caught,
                    )
            if item_slots is None:  # where there are some, nobody changes the items
                over.settle(results)
                end = chunk.start + len(results)
                failures = [failure for failure in failures if failure.index < end]
        except caught as error:
            failures = [failure_of(chunk.start + over.taken - 1, error)]
        duration = time.perf_counter() - before
    finally:
        if collector is not None:
            collector.leave()
    extras = {} if collector is None else collector.take()
    size = over.taken if over.ended else len(chunk.items)
    complete = len(results) == size
    if item_slots is not None:
        mark_end(item_slots, chunk.start + size if complete else None)
    return ChunkOutcome(
        chunk_id=chunk.id,
        start=chunk.start,
        size=size,
        results=results if complete else None,
        failures=failures,
        started_at=started_at,
        duration=duration,
        pid=os.getpid(),
        hostname=HOSTNAME,
        thread_name=threading.current_thread().name,
        extras=extras,
        is_full=over.full and size < len(chunk.items),
    )


def unreadable(chunk_id: int, start: int, size: int, error: Exception) -> ChunkOutcome:
    """Make the outcome of a chunk whose items do not unpickle where it is to run."""
    from amorsize.errors import TransportError

    failed = TransportError(
        f"items {start} to {start + size - 1} (chunk {chunk_id}) cannot be unpickled in the "
        f"worker: {type(error).__name__}: {text_of(error)}"
    )
    return ChunkOutcome(
        chunk_id=chunk_id,
        start=start,
        size=size,
        results=None,
        failures=[Failure(start, failed, str(failed))],
        started_at=time.time(),
        duration=0.0,
        pid=os.getpid(),
        hostname=HOSTNAME,
        thread_name=threading.current_thread().name,
        is_unread=True,
    )


def text_of(error: BaseException) -> str:
    """Return the text of an exception, also of one whose ``__str__`` fails."""
    try:
        return str(error)
    except Exception as failed:
        return f"<its text cannot be shown: {type(failed).__name__}>"


def encodable(text: str) -> str:
    """Escape lone surrogates, as in names of files: neither a backend nor a log can encode them."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception, where its class lets us (a frozen dataclass does not)."""
    try:
        error.add_note(note)
    except Exception:
        pass


def failure_of(index: int, error: BaseException) -> Failure:
    """Describe an exception that a call raised; our own frames are left out of its traceback."""
    import traceback  # 5 ms, where no call raises

    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code not in _CALLING:
        frames = frames.tb_next
    while frames is not None and frames.tb_frame.f_code in _CALLING:
        frames = frames.tb_next
    text = "".join(traceback.format_exception(type(error), error, frames))
    if not isinstance(error, Exception):
        from amorsize.errors import FunctionExitError

        error = FunctionExitError(
            f"the function raised {type(error).__name__}({text_of(error)}) on item {index}; in a "
            "worker this ends neither the worker nor the program. Raise an Exception instead."
        )
    return Failure(index, error, text)
