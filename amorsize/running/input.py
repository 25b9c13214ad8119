"""Drawing any iterable lazily, in pieces, each item once."""

from __future__ import annotations

import time
from itertools import chain, islice

from amorsize.options import known_length
from amorsize.workers.slices import Slice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

DRAW_SECONDS = 0.05


class Input:
    """The input, drawn in pieces, each item once.

    Args:
        data: the iterable.

    Attributes:
        iterator: over what is left.
        sequence: the input, where slices of it say the same as its iterator: nothing is then
            copied item by item; else None.
        copies: whether a piece of the sequence is a copy of it, as it must be that goes elsewhere.
        total: the length, as the input announces it; None where it does not.
        drawn: items taken so far.
        exhausted: whether the end has been seen.
        error: what the iterator raised, if it did; that is its end.
        seconds: how long the iterator took.

    An input that announces its length is a collection, and all items of a piece are waited for.
    From another one the items that have come within 0.05 s are returned, so that workers get
    something to do while a slow input goes on.

    Example:
        >>> letters = Input("abc")
        >>> letters.draw(2), letters.draw(2), letters.exhausted
        (['a', 'b'], ['c'], True)
    """

    def __init__(self, data: Iterable[Any]) -> None:
        self.iterator: Iterator[Any] = iter(data)
        self.total = known_length(data)
        # A range may be endless; and of a subclass one never knows.
        sliceable = type(data) in (list, tuple, range) and self.total is not None
        self.sequence: Sequence[Any] | None = data if sliceable else None  # type: ignore[assignment]
        self.copies = True
        self.drawn = 0
        self.exhausted = False
        self.error: Exception | None = None
        self.seconds = 0.0

    @property
    def left(self) -> int | None:
        """How many items are left; None where the length is unknown."""
        if self.exhausted:
            return 0
        return None if self.total is None else max(0, self.total - self.drawn)

    @property
    def instant(self) -> bool:
        """Whether drawing runs none of the user's code, so that it never waits for anything."""
        return self.sequence is not None

    def give_back(self, pieces: Sequence[Sequence[Any]]) -> None:
        """Take the items back that were drawn last: they are the next to be drawn."""
        given = sum(map(len, pieces))
        if not given:
            return
        self.drawn -= given
        self.exhausted = False
        if self.sequence is None:
            self.iterator = chain(chain.from_iterable(pieces), self.iterator)

    def skip(self, count: int) -> None:
        """Leave out items of the sequence: workers have taken them, by their index."""
        self.drawn += count

    def draw(self, size: int) -> Sequence[Any]:
        """Take up to ``size`` items; none at all only at the end."""
        if self.exhausted:
            return []
        sequence, start = self.sequence, self.drawn
        if sequence is not None:
            length, stop = len(sequence), start + size
            if stop >= length:
                # The function may have made a list shorter meanwhile: what was drawn stays so.
                self.exhausted, stop = True, max(start, length)
            self.drawn = stop
            return sequence[start:stop] if self.copies else Slice(sequence, start, stop)
        items: list[Any] = []
        pieces = islice(self.iterator, size)
        began = time.monotonic()
        try:
            if self.total is not None:
                items.extend(pieces)
                self.exhausted = len(items) < size
            else:
                deadline = began + DRAW_SECONDS
                for item in pieces:
                    items.append(item)
                    if time.monotonic() >= deadline:
                        break
                else:
                    self.exhausted = len(items) < size
        except Exception as error:
            # What came before it is kept (extend() has it) and runs; then the error is raised.
            self.exhausted, self.error = True, error
            self.iterator = iter(())
        self.seconds += time.monotonic() - began
        self.drawn += len(items)
        return items
