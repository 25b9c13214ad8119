"""A stretch of the input that is gone over where it stands."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any


class Span(Sequence[Any]):
    """A stretch of a list, a tuple or a range that is not copied.

    What runs here goes over it once; copying a stretch of trivial items, and freeing the copy,
    takes a fifth of the time that calls on them take.

    >>> span = Span([10, 20, 30, 40], 1, 3)
    >>> len(span), list(span), span[1], span[1:]
    (2, [20, 30], 30, [30])
    """

    __slots__ = ("_sequence", "_start", "_stop")

    def __init__(self, sequence: Sequence[Any], start: int, stop: int) -> None:
        self._sequence = sequence
        self._start = start
        self._stop = stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, at: Any) -> Any:
        return self._sequence[self._start : self._stop][at]

    def __iter__(self) -> Iterator[Any]:
        return self.up_to_its_end(self.iterator())

    def up_to_its_end(self, iterator: Iterator[Any]) -> Iterator[Any]:
        """Bound an :meth:`iterator`, where the sequence goes on behind this stretch."""
        # islice() costs as much an item as a trivial call.
        return iterator if self._stop == len(self._sequence) else islice(iterator, len(self))

    def iterator(self) -> Iterator[Any]:
        """Return an iterator over the sequence that stands at the first item, and goes on."""
        iterator = iter(self._sequence)
        iterator.__setstate__(self._start)  # type: ignore[attr-defined]  # of these three it has
        return iterator

    def end(self, iterator: Iterator[Any]) -> int:
        """Have an :meth:`iterator` give no further item; return how many were taken until then."""
        length = len(self._sequence)
        move = partial(iterator.__setstate__, length)  # type: ignore[attr-defined]
        # Both in one step of the interpreter, between two of which another thread may take one.
        left, _ = map(operator.call, (partial(operator.length_hint, iterator), move))
        return length - int(left) - self._start

    def taken(self, iterator: Iterator[Any]) -> int:
        """Return how many items were taken from an :meth:`iterator`."""
        if type(self._sequence) is list and len(state := iterator.__reduce__()) == 3:
            return int(state[2]) - self._start  # also of a list that has become shorter
        return max(0, len(self._sequence) - operator.length_hint(iterator) - self._start)
