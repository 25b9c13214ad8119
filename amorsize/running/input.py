"""Splitting any iterable lazily, and deciding how large the next chunk is."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

from amorsize.workers.slices import Span

MAX_CHUNK_ITEMS = 100_000
"""A bound on items that are held at once; chunks of trivial items could be millions long."""

_DRAW_SECONDS = 0.05
_GROWTH = 8

SHORTEST_CHUNK_SECONDS = {"custom": 0.005, "dask": 0.08}
"""Below this, a chunk's way there and back begins to count: 0.05 ms with our own engines, for which
it is 0.2 ms; 0.2 ms with loky, the dearest of the executors on one machine; 2 to 4 ms with Dask."""

_SHARE_OF_PAST = 0.05
"""How long a chunk of an input of unknown length may be, of the time that has passed: any of them
may be the last, which all other workers wait for."""

TASK_SECONDS = 0.004
"""What a Dask task costs its scheduler and client, which take them one by one."""
SCHEDULER_SHARE = 0.2
"""The share of their time that may go into our tasks."""


def chunk_seconds(engine: str, n_jobs: int, asked: float) -> float:
    """Say how long a chunk should last: as asked, or longer so that a Dask scheduler keeps up.

    >>> chunk_seconds("process", 100, 0.2), chunk_seconds("dask", 4, 0.2)
    (0.2, 0.2)
    >>> chunk_seconds("dask", 100, 0.2)
    2.0
    """
    return max(asked, n_jobs * TASK_SECONDS / SCHEDULER_SHARE) if engine == "dask" else asked


class Input:
    """The input, drawn in pieces, each item once.

    Args:
        iterator: where the items come from.
        patient: wait for all items of a piece. Otherwise what has come within 0.05 s is
            returned, so that workers get something to do, and are heard, while a slow input
            goes on.
        drawn: items already taken from the iterator.
        sequence: what the iterator goes over, where slices of it say the same: nothing is then
            copied item by item.
        copies: whether a piece of the sequence is a copy of it, as it must be that goes elsewhere.

    Attributes:
        sequence, copies: as given.
        drawn: items taken so far.
        exhausted: whether the end has been seen.
        error: what the iterator raised, if it did; that is its end.

    Example:
        >>> letters = Input(iter("abc"), patient=True)
        >>> letters.draw(2), letters.draw(2), letters.exhausted
        (['a', 'b'], ['c'], True)
    """

    def __init__(
        self,
        iterator: Iterator[Any],
        *,
        patient: bool,
        drawn: int = 0,
        sequence: Sequence[Any] | None = None,
        copies: bool = True,
    ) -> None:
        self._iterator = iterator
        self._patient = patient
        self.sequence = sequence
        self.copies = copies
        self.drawn = drawn
        self.exhausted = False
        self.error: Exception | None = None

    @property
    def instant(self) -> bool:
        """Whether drawing runs none of the user's code, so that it never waits for anything."""
        return self.sequence is not None

    def __iter__(self) -> Iterator[Any]:
        """Draw the items that are left, one by one."""
        while items := self.draw(1):
            yield items[0]

    def give_back(self, pieces: Sequence[Sequence[Any]]) -> None:
        """Take the items back that were drawn last: they are the next to be drawn."""
        given = sum(map(len, pieces))
        if not given:
            return
        self.drawn -= given
        self.exhausted = False
        if self.sequence is None:
            self._iterator = chain(chain.from_iterable(pieces), self._iterator)

    def skip(self, count: int) -> None:
        """Leave out items of the sequence: somebody else has taken them, by their index."""
        self.drawn += count

    def draw(self, size: int) -> Sequence[Any]:
        """Take up to ``size`` items; none at all only at the end."""
        items: list[Any] = []
        if self.exhausted:
            return items
        if self.sequence is not None:
            # The function may have made a list shorter meanwhile: what was drawn stays so.
            stop = max(self.drawn, min(self.drawn + size, len(self.sequence)))
            if self.copies:
                piece = self.sequence[self.drawn : stop]
            else:
                piece = Span(self.sequence, self.drawn, stop)
            self.drawn = stop
            self.exhausted = self.drawn >= len(self.sequence)
            return piece
        pieces = islice(self._iterator, size)
        try:
            if self._patient:
                items.extend(pieces)
                self.exhausted = len(items) < size
            else:
                deadline = time.monotonic() + _DRAW_SECONDS
                for item in pieces:
                    items.append(item)
                    if time.monotonic() >= deadline:
                        break
                else:
                    self.exhausted = len(items) < size
        except Exception as error:
            # What came before it is kept (extend() has it) and runs; then the error is raised.
            self.exhausted, self.error = True, error
            self._iterator = iter(())
        self.drawn += len(items)
        return items


class ChunkSizer:
    """Says how large the next chunk is: as asked, or so that it takes the target duration.

    An adaptive size follows what the items are measured to take, grows at most to eight times that
    of the chunk that was measured (a first item may be untypically fast), and shrinks towards the
    end of an input of known length, so that no worker is left alone with a long last chunk (guided
    self-scheduling, Polychronopoulos and Kuck 1987). Where the end is not known, it stays a small
    share of the time that has passed.

    Args:
        fixed: items a chunk, as the user asked; None for an adaptive size.
        first: where an adaptive size begins.
        target_seconds: how long a chunk is to take.
        n_jobs: workers that share the input.
        limit: items a chunk at most.
        shortest_seconds: how long chunks stay towards the end of the input: below this, their way
            there and back begins to count.

    Example:
        >>> sizer = ChunkSizer(fixed=None, first=1, target_seconds=0.2, n_jobs=2, limit=1000)
        >>> sizer.learn(1, 0.1)
        >>> sizer.next_size(remaining=100)
        2
    """

    def __init__(
        self,
        *,
        fixed: int | None,
        first: int,
        target_seconds: float,
        n_jobs: int,
        limit: int,
        shortest_seconds: float = 0.0002,
    ) -> None:
        self._fixed = fixed
        self._size = fixed if fixed is not None else min(first, limit)
        self._target = target_seconds
        self._n_jobs = n_jobs
        self._limit = limit
        self._shortest_seconds = shortest_seconds
        self._told = self._size
        self._items = 0.0
        self._seconds = 0.0
        self._worked = 0.0

    def learn(self, items: int, seconds: float) -> None:
        """Take in how long a chunk took; older chunks count half as much each time."""
        if self._fixed is not None or items == 0:
            return
        self._items = self._items / 2 + items
        self._seconds = self._seconds / 2 + seconds
        self._worked += seconds
        if self._seconds <= 0:
            wanted = self._limit
        else:
            wanted = int(self._target * self._items / self._seconds)
        # Of those that were handed out together, the last knows no more than the first.
        most = max(self._size, min(self._size, items) * _GROWTH)
        self._size = max(1, min(wanted, most, self._limit))

    def take_correction(self) -> int | None:
        """Return the size where it has changed by half or more since it was last returned."""
        if 2 / 3 < self._size / self._told < 1.5:
            return None
        self._told = self._size
        return self._size

    def next_size(self, remaining: int | None) -> int:
        """Return the size of the next chunk, at least 1; ``remaining`` items are undispatched."""
        if self._fixed is not None or self._n_jobs == 1:
            return self._size
        if remaining is None:
            past = _SHARE_OF_PAST * self._worked / self._n_jobs
            share = self._items_in(max(past, 10 * self._shortest_seconds))
            return max(1, min(self._size, share)) if self._worked > 0 else self._size
        share = math.ceil(remaining / (2 * self._n_jobs))
        return max(1, min(self._size, max(share, self._items_in(self._shortest_seconds))))

    def go_on_alone(self) -> None:
        """Say how large chunks are for one worker, from now on."""
        self._n_jobs = 1

    @property
    def item_seconds(self) -> float | None:
        """What an item has taken lately; None where nothing was measured."""
        return self._seconds / self._items if self._items > 0 else None

    def _items_in(self, seconds: float) -> int:
        if self._seconds <= 0:
            return 1
        return math.ceil(seconds * self._items / self._seconds)
