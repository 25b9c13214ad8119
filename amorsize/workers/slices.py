"""A slice of a list, a tuple or a range that is iterated in place, and can be ended early.

To end a pass that runs in another thread's comprehension, its iterator is moved to the end of the
sequence (``__setstate__``), of which the loop itself asks nothing. Rejected: a generator around
the items, which looks at a flag or at the clock, takes as long per item as a very short call does;
``islice()`` around the iterator costs the same, so that it is used only where the sequence goes on
after the slice. Copying a slice, and freeing the copy, takes a fifth of the time of very short
calls. CPython guarantees none of this: tests/workers/test_pass_monitor.py and
tests/test_internals.py hold it for each version that is supported.
"""

from __future__ import annotations

import operator
from functools import partial
from itertools import islice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    _Sequence = Sequence[Any]
else:
    _Sequence = object

RESULTS_PER_LOOK = 31
"""One of so many results is weighed, to bound what those of a chunk weigh together: 20 ns per item.
Odd, so that what alternates is met in turn."""


class Slice(_Sequence):
    """A slice of a list, a tuple or a range that is not copied.

    >>> part = Slice([10, 20, 30, 40], 1, 3)
    >>> len(part), list(part), part[1], list(part[1:])
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
            return Slice(self._sequence, where.start, where.stop)
        return [self._sequence[index] for index in where]

    def __iter__(self) -> Iterator[Any]:
        return self.up_to_its_end(self.iterator())

    def up_to_its_end(self, iterator: Iterator[Any]) -> Iterator[Any]:
        """Bound an :meth:`iterator`, where the sequence goes on after this slice."""
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
    """One pass over some items: a context manager that gives their iterator.

    Attributes:
        items: the items.
        iterator: the iterator that they come from.
        ended: whether it was ended early.
        full: whether that was because its results weigh enough.
        taken: how many had been taken when it was over, however it ended.

    >>> with Pass([1, 2, 3]) as items:
    ...     first = next(items)
    """

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items if isinstance(items, Slice) else Slice(items, 0, len(items))
        self.iterator = self.items.iterator()
        self.ended = False
        self.full = False
        self.taken = 0

    def __enter__(self) -> Iterator[Any]:
        return self.items.up_to_its_end(self.iterator)

    def __exit__(self, *exc: object) -> None:
        if not self.ended:
            self.taken = min(self.items.taken(self.iterator), len(self.items))

    def until_full(
        self, items: Iterator[Any], results: list[Any], most_bytes: int
    ) -> Iterator[Iterator[Any]]:
        """Give the items in slices, until their results, which the caller appends, weigh so much.

        >>> over, results = Pass(["x" * 1000] * 100), []
        >>> with over as items:
        ...     for some in over.until_full(items, results, 50_000):
        ...         results += some
        >>> over.full, over.taken, len(results)
        (True, 62, 62)
        """
        from amorsize.workers.weight import weigh

        taken, weight = 0, 0
        while weight < most_bytes:
            yield islice(items, RESULTS_PER_LOOK)
            if (more := len(results) - taken) == 0:
                return
            weight += more * weigh(results[-1])
            taken += more
        self.ended = self.full = True
        self.taken = taken

    def settle(self, results: list[Any]) -> None:
        """Drop the results of items that the function has added to the list meanwhile.

        Raises:
            RuntimeError: there are fewer results than items.
        """
        expected = self.taken if self.ended else len(self.items)
        if len(results) < expected:
            from amorsize.errors import input_shrank

            raise input_shrank()
        del results[expected:]
