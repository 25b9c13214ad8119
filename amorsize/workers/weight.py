"""The approximate weight of objects in memory: quick enough to be asked all the time.

Weights steer how many items and results are held at once, so they are to be right, within a factor
of two or so, for what is heavy: text, bytes, arrays, tables, and what holds those. Containers and
objects are looked into; of many parts, some stand for all. An object that two items share counts
for both. An object that does not show its size (an image of Pillow's) counts as small.

Rejected: pickling (takes as long as copying), ``tracemalloc`` (slows down every allocation), the
growth of the process (other threads allocate as well, and freed memory is used again).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice
from sys import getsizeof
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

MOST_PARTS = 48
"""So many parts of a value are looked at, or a few more: that takes 20 µs."""

FEWEST_PARTS = 3
MOST_LEVELS = 6

MOST_SAMPLES = 16
"""So many of a list of values are weighed."""

_TABLE_ROWS = 64

_PLAIN = frozenset({int, float, complex, bool, type(None), str, bytes, bytearray})
_SEQUENCES = frozenset({list, tuple})
_OTHERS = frozenset({set, frozenset, deque})
_SHARED = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)
"""Objects that others refer to, but do not hold."""


def weigh(value: object) -> int:
    """Return the bytes that a value holds, about.

    >>> weigh(b"x" * 1000) > 1000, weigh([b"x" * 1000] * 10) > 10_000, weigh(1) < 100
    (True, True, True)
    """
    return getsizeof(value) if type(value) in _PLAIN else _weigh(value, MOST_PARTS, 1)


def weigh_all(values: Sequence[Any]) -> int:
    """Return the bytes that some values hold together, about.

    >>> weigh_all([b"x" * 1000] * 100) > 100_000
    True
    """
    number = len(values)
    if not number:
        return 0
    step = _step(number, MOST_SAMPLES)
    some = range(0, number, step)
    return sum(weigh(values[at]) for at in some) * number // len(some)


def _step(number: int, most: int) -> int:
    """Return the step that takes about ``most`` of a number of values, or all where they are few.

    It is odd, so that what alternates is not always met in the same place.
    """
    return 1 if number <= most else (number // most) | 1


def _weigh(value: Any, room: int, level: int) -> int:
    """Weigh a value, and about ``room`` of its parts: plain ones, and a few that have parts."""
    try:
        weight, parts, number = _look_into(value, room)
    except Exception:  # code of the object's own may raise anything
        return 0
    if not parts or level > MOST_LEVELS:
        return weight
    inside: float = sum(getsizeof(part) for part in parts if type(part) in _PLAIN)
    if deeper := [part for part in parts if type(part) not in _PLAIN]:
        left = room - len(parts)
        some = deeper[:: _step(len(deeper), max(1, left // 8))]
        room = max(FEWEST_PARTS, left // len(some))
        inside += sum(_weigh(part, room, level + 1) for part in some) * len(deeper) / len(some)
    return weight + int(inside * number / len(parts))


def _look_into(value: Any, room: int) -> tuple[int, list[Any], int]:
    """Return what a value weighs itself, up to ``room`` of its parts, and how many it has."""
    kind = type(value)
    if kind in _SEQUENCES or isinstance(value, (list, tuple)):
        return getsizeof(value), [*_some(value, room)], len(value)
    if kind is dict or isinstance(value, dict):
        # Keys are short, where values are long: each of them for one of these.
        parts = [*islice(value.values(), room)] + [*islice(value, max(0, room - len(value)))]
        return getsizeof(value), parts, 2 * len(value)
    if kind in _OTHERS:
        return getsizeof(value), [*islice(value, room)], len(value)
    if isinstance(value, _SHARED):
        return 0, [], 0
    try:
        with memoryview(value) as view:
            parts = [*_some(value.flat, room)] if view.format == "O" else []
            return view.nbytes, parts, len(parts) and view.nbytes // view.itemsize
    except TypeError:
        pass
    if hasattr(value, "memory_usage"):
        return _weigh_table(value), [], 0
    if (held := getattr(value, "nbytes", None)) is not None:
        return int(held), [], 0
    parts = _attributes(value)
    return getsizeof(value), parts[:room], len(parts)


def _some(values: Any, room: int) -> Any:
    number = len(values)
    if number <= room:
        return values
    return values[:: _step(number, room)][:room] if room > 0 else ()


def _weigh_table(table: Any) -> int:
    """Weigh a DataFrame or the like by its first rows: its own count looks at every text."""
    rows = len(table)
    used = table.head(_TABLE_ROWS).memory_usage(deep=True)
    held = used if isinstance(used, int) else used.sum()
    return int(held * max(1.0, rows / _TABLE_ROWS))


def _attributes(value: Any) -> list[Any]:
    held = [*getattr(value, "__dict__", {}).values()]
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                held.append(getattr(value, name))
    return held
