"""A stretch of the input that is gone over where it stands."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any


class Span(Sequence[Any]):
    """A stretch of a list, a tuple or a range that is not copied.

    What runs here goes over it once; copying a stretch of trivial items, and freeing the copy,
    takes a fifth of the time that calls on them take.

    >>> span = Span([10, 20, 30, 40], 1, 3)
    >>> len(span), list(span), span[1], list(span[1:])
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
        where = range(self._start, self._stop)[at]
        if isinstance(where, int):
            return self._sequence[where]
        if where.step == 1:
            return Span(self._sequence, where.start, where.stop)
        return [self._sequence[index] for index in where]

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
        move = partial(iterator.__setstate__, len(self._sequence))  # type: ignore[attr-defined]
        # It is at its end once it has found that there is nothing: a list may still grow.
        exhaust = partial(next, iterator, None)
        # All in one step of the interpreter, between two of which another thread may take one.
        steps: tuple[Callable[[], Any], ...] = (self._reader(iterator), move, exhaust)
        state, _, _ = map(operator.call, steps)
        return self._taken(state)

    def taken(self, iterator: Iterator[Any]) -> int:
        """Return how many items were taken from an :meth:`iterator`; all of them at its end."""
        return self._taken(self._reader(iterator)())

    def _reader(self, iterator: Iterator[Any]) -> Callable[[], Any]:
        if type(self._sequence) is list:
            return iterator.__reduce__  # it knows also of a list that has become shorter
        return partial(operator.length_hint, iterator)

    def _taken(self, state: Any) -> int:
        if type(self._sequence) is not list:
            return len(self._sequence) - int(state) - self._start
        return int(state[2]) - self._start if len(state) == 3 else len(self)


class Pass:
    """One pass over some items: a context, in which they come one after the other.

    Attributes:
        span: the items.
        iterator: what they come from.
        ended: whether it was ended early.
        taken: how many had come when it was over, by whatever.

    >>> with Pass([1, 2, 3]) as items:
    ...     first = next(items)
    """

    def __init__(self, items: Sequence[Any]) -> None:
        self.span = items if isinstance(items, Span) else Span(items, 0, len(items))
        self.iterator = self.span.iterator()
        self.ended = False
        self.taken = 0

    def __enter__(self) -> Iterator[Any]:
        return self.span.up_to_its_end(self.iterator)

    def __exit__(self, *exc: object) -> None:
        if not self.ended:
            self.taken = min(self.span.taken(self.iterator), len(self.span))

    def settle(self, results: list[Any]) -> None:
        """Keep to the items that there were, where the function has changed the list meanwhile.

        Raises:
            RuntimeError: there are fewer results than items.
        """
        expected = self.taken if self.ended else len(self.span)
        if len(results) < expected:
            from amorsize.errors import input_shrank

            raise input_shrank()
        del results[expected:]
