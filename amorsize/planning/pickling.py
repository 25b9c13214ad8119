"""The payload: what would cross to a worker process and back, its size, and whether it can."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from amorsize.planning.process_support import why_no_processes
from amorsize.workers import by_value
from amorsize.workers.record import Record

TRIAL_BYTES = 1 << 20
"""A result that is larger pickled is not loaded in another process to see whether that works."""

PICKLE_LIMIT_BYTES = 64 << 20
"""Pickling of one object stops here, and its size is extrapolated."""


class Payload(Record):
    """The objects sent to a worker process and back: their sizes, and whether they can be pickled.

    Attributes:
        function_bytes, function_seconds: size of the pickled function, time to pickle it.
        item_bytes, item_seconds: the same for one item.
        result_bytes, result_seconds: the same for one result.
        problem: why it cannot be sent to another process, or None.
        pickled_result: the first result, for a trial whether it can be loaded in another process;
            empty where there is none, or a large one.
    """

    function_bytes: int = 0
    function_seconds: float = 0.0
    item_bytes: int = 0
    item_seconds: float = 0.0
    result_bytes: int = 0
    result_seconds: float = 0.0
    problem: str | None = None
    pickled_result: bytes = b""


def measure_payload(
    func: Callable[[Any], Any],
    items: list[Any],
    results: list[Any],
    *,
    wall: Callable[[], float] = time.perf_counter,
    limit_bytes: int = PICKLE_LIMIT_BYTES,
) -> Payload:
    """Pickle a function, and representatives of its items and results.

    But for a small result, nothing is kept: the bytes are counted as they come. One object is
    pickled up to ``limit_bytes``; the other ones only where the first was small.

    >>> payload = measure_payload(len, [b"x" * 1000], [1000])
    >>> payload.problem is None, payload.item_bytes > 1000
    (True, True)
    """
    if (reason := why_no_processes()) is not None:
        return Payload(problem=reason)
    try:
        what, named = "the function", getattr(func, "__qualname__", type(func).__name__)
        function = _pickled(func, wall, limit_bytes)
        what, named = "an item", _type_name(items)
        item = _representative(items, wall, limit_bytes)
        what, named = "a result", _type_name(results)
        result = _representative(results, wall, limit_bytes)
        trial = by_value.dump(results[0]) if results and result[0] <= TRIAL_BYTES else b""
    except Exception as error:  # pickling runs the objects' own code, which may raise anything
        return Payload(
            problem=f"{what} ({named}) cannot be pickled: {type(error).__name__}: {error}"
        )
    return Payload(*function, *item, *result, pickled_result=trial)


def _type_name(objects: list[Any]) -> str:
    return type(objects[0]).__qualname__ if objects else "none"


def _representative(
    objects: list[Any], wall: Callable[[], float], limit_bytes: int
) -> tuple[int, float]:
    """Size and time of one object: of the first, or the mean of a few where the first is small."""
    if not objects:
        return 0, 0.0
    size, seconds = _pickled(objects[0], wall, limit_bytes)
    if len(objects) == 1 or size > 1 << 20 or seconds > 2e-3:
        return size, seconds
    count = min(len(objects), 8)
    size, seconds = _pickled(objects[:count], wall, limit_bytes)
    return size // count, seconds / count


class _TooMuch(Exception):
    """Enough was pickled to know."""


class _Meter:
    """A file that counts what is written to it, and keeps nothing."""

    __slots__ = ("_names", "limit", "names_unimportable", "size")

    def __init__(self, limit: int, names: Iterable[str] = ()) -> None:
        self.limit = limit
        self.size = 0
        self._names = [by_value.as_pickled(name) for name in names]
        self.names_unimportable = False

    def write(self, data: Any) -> int:
        length = memoryview(data).nbytes
        self.size += length
        if not self.names_unimportable and length < 1 << 20:
            pickled = bytes(data)
            self.names_unimportable = any(name in pickled for name in self._names)
        if self.size > self.limit:
            raise _TooMuch
        return length


def _pickled(obj: Any, wall: Callable[[], float], limit_bytes: int) -> tuple[int, float]:
    """Bytes and seconds of pickling an object; raises where it cannot be pickled."""
    meter = _Meter(limit_bytes, by_value.modules_by_value())
    # By name first: it is right for nearly everything, and importing cloudpickle costs some 10 ms.
    # An object that no worker can import is sent by value, though.
    began = wall()
    try:
        by_value.dump_by_name(meter, obj, maps=True)
        plain = not meter.names_unimportable
    except _TooMuch:
        plain = True
    except Exception:  # as in measure_payload
        plain = False
    if not plain:
        meter = _Meter(limit_bytes)
        began = wall()
        try:
            by_value.dump_by_value(meter, obj, maps=True)
        except _TooMuch:
            pass
    seconds = max(0.0, wall() - began)
    if meter.size <= limit_bytes:
        return meter.size, seconds
    size = max(meter.size, sys.getsizeof(obj))
    return size, seconds * size / meter.size
