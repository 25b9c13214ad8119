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
_NEVER = float("inf")

WEIGHING_SECONDS = 5e-5
WEIGHING_ITEMS = 127
"""Drawn items are weighed after so many seconds, or so many items: the first and the last of them
stand for all. The clock is read after each item anyway: the weighing cannot be measured where items
are light (119 and 120 ns per item; 340 where each is weighed), and heavy ones, which take long to
make, are weighed one by one. Odd, so that what alternates is met in turn."""
STRIDE_ITEMS = 61
"""Of a sequence, whose items take no time to come, one of so many is weighed."""


class Input:
    """The input, drawn in pieces, each item once.

    Args:
        data: the iterable.

    Attributes:
        iterator: over what is left.
        sequence: the input, where slices of it say the same as its iterator: nothing is then
            copied item by item; else None.
        copies: whether a piece of the sequence is a copy of it, as it must be that goes elsewhere.
        in_memory: whether its items are there already: those of a collection, or of an array.
        weighs: whether what is drawn is weighed: where it is made by that, or will be sent away.
        drawn_bytes: what the items of the last draw weigh, about; 0 where they are not weighed.
        total: the length, as the input announces it; None where it does not.
        drawn: items taken so far.
        exhausted: whether the end has been seen.
        error: what the iterator raised, if it did; that is its end.
        seconds: how long the iterator took.

    An input that announces its length is a collection, and all items of a piece are waited for.
    From another one the items that have come within 0.05 s are returned, so that workers get
    something to do while a slow input goes on. No more items come once a piece is heavy enough.

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
        self.in_memory = sliceable or (self.total is not None and _is_in_memory(data))
        self.weighs = not self.in_memory
        self.drawn_bytes = 0
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

    def draw(self, size: int, most_bytes: int = 0) -> Sequence[Any]:
        """Take up to ``size`` items; none at all only at the end.

        Args:
            size: items at most.
            most_bytes: no further one is taken once they weigh so much; 0 for any weight.
        """
        self.drawn_bytes = 0
        if self.exhausted:
            return []
        sequence, start = self.sequence, self.drawn
        if sequence is not None:
            length, stop = len(sequence), start + size
            if self.weighs and type(sequence) is not range:
                stop = self._weigh_ahead(sequence, range(start, min(stop, length)), most_bytes)
            if stop >= length:
                # The function may have made a list shorter meanwhile: what was drawn stays so.
                self.exhausted, stop = True, max(start, length)
            self.drawn = stop
            return sequence[start:stop] if self.copies else Slice(sequence, start, stop)
        items: list[Any] = []
        began = time.monotonic()
        try:
            if self.weighs:
                self._take_and_weigh(items, size, most_bytes or _NEVER)
            else:
                items.extend(islice(self.iterator, size))
                self.exhausted = len(items) < size
        except Exception as error:
            # Items drawn before it are kept (extend() has them) and run; then the error is raised.
            self.exhausted, self.error = True, error
            self.iterator = iter(())
        self.seconds += time.monotonic() - began
        self.drawn += len(items)
        return items

    def _take_and_weigh(self, items: list[Any], size: int, most_bytes: float) -> None:
        from amorsize.workers.weight import weigh

        clock = time.monotonic
        now = clock()
        deadline = now + DRAW_SECONDS if self.total is None else _NEVER
        while len(items) < size and self.drawn_bytes < most_bytes and now < deadline:
            before, look, due = (
                len(items),
                min(WEIGHING_ITEMS, size - len(items)),
                now + WEIGHING_SECONDS,
            )
            like_last = 1  # it alone took long
            for item in islice(self.iterator, look):
                items.append(item)
                if (now := clock()) >= due:
                    break
            else:
                like_last = (len(items) - before + 1) // 2
                self.exhausted = len(items) < before + look
            if len(items) > before:
                like_first = len(items) - before - like_last
                first = weigh(items[before]) if like_first else 0
                self.drawn_bytes += like_last * weigh(items[-1]) + like_first * first
            if self.exhausted:
                break

    def _weigh_ahead(self, sequence: Sequence[Any], places: range, most_bytes: int) -> int:
        """Return where a piece has to end that is not to weigh more."""
        from amorsize.workers.weight import weigh

        for at in places[::STRIDE_ITEMS]:
            few = min(STRIDE_ITEMS, places.stop - at)
            try:
                each = max(1, weigh(sequence[at]))
            except IndexError:  # the function makes the list shorter, just now
                break
            fitting = int((most_bytes - self.drawn_bytes) / each)
            if most_bytes and fitting < few:
                fitting = max(fitting, at == places.start)  # one passes, whatever it weighs
                self.drawn_bytes += fitting * each
                return at + fitting
            self.drawn_bytes += few * each
        return places.stop


_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))


def _is_in_memory(data: Any) -> bool:
    from collections import deque

    if type(data) in (set, frozenset, dict, deque, *_VIEWS):
        return True
    try:
        memoryview(data).release()
    except Exception:  # code of the object's own may raise anything
        return False
    return True
