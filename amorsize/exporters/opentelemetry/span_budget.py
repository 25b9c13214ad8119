"""Which chunk spans of an execution are kept, when there are more than anybody can look at."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import Any

MAX_WAITING_SPANS = 10_000
"""Spans of the user's code that wait with their chunks, an execution."""


@dataclass(slots=True)
class ChunkRecord:
    """A chunk that is over, as its span will tell it.

    Attributes:
        chunk_id: as in the events.
        start, end: ns since the epoch.
        attributes: of the span.
        failure: ``(type, message, traceback)``; None for a chunk that went well.
        carried: what its :class:`amorsize.workers.otel_context.ChunkTrace` brought home.
    """

    chunk_id: int
    start: int
    end: int
    attributes: dict[str, Any]
    failure: tuple[str, str, str] | None
    carried: dict[str, Any]

    def spans(self) -> list[tuple[Any, ...]]:
        """Spans that the user's code opened in it."""
        spans: list[tuple[Any, ...]] = self.carried.get("spans", [])
        return spans


class SpanBudget:
    """Keeps at most so many chunk spans: the first half live, then the failed and the slowest.

    A failed chunk is released at once. Slow ones wait until the end of the execution, when it is
    known that no others were slower.

    Args:
        max_chunk_spans: how many in all.

    Attributes:
        live: how many may be released live; who grants those places keeps count of them.
        total: chunks seen.
        untraced: chunks left out so far.
        dropped_spans: spans of the user's code left out so far.

    Example:
        >>> def chunk(number):
        ...     return ChunkRecord(number, 0, 10 * number, {}, None, {})
        >>> budget = SpanBudget(2)
        >>> [budget.admit(chunk(number), live=number == 1) for number in (1, 2, 3)]
        [True, False, False]
        >>> [record.chunk_id for record in budget.rest()], budget.untraced
        ([3], 1)
        >>> SpanBudget(10).widen(8)
        3
    """

    def __init__(self, max_chunk_spans: int) -> None:
        self.live = (max_chunk_spans + 1) // 2
        self._late_left = max_chunk_spans // 2
        self._slowest: list[tuple[int, int, ChunkRecord]] = []
        self._order = itertools.count()
        self._waiting_spans = 0
        self.total = 0
        self.untraced = 0
        self.dropped_spans = 0

    def widen(self, expected_chunks: int) -> int:
        """Let all of so many chunks be live, where the budget has room for all of them.

        Returns:
            How many more than before.
        """
        more = expected_chunks - self.live
        if not 0 < more <= self._late_left:
            return 0
        self.live += more
        self._late_left -= more
        return more

    def admit(self, record: ChunkRecord, *, live: bool) -> bool:
        """Take in a chunk; say whether it is to be released now.

        Args:
            record: the chunk.
            live: whether it was granted a place among the first half.
        """
        self.total += 1
        self.dropped_spans += record.carried.get("dropped", 0)
        if live:
            return True
        if record.failure is not None and self._late_left > 0:
            self._late_left -= 1
            self._shrink()
            return True
        heapq.heappush(self._slowest, (record.end - record.start, next(self._order), record))
        self._waiting_spans += len(record.spans())
        self._shrink()
        if self._waiting_spans > MAX_WAITING_SPANS:
            self._strip()
        return False

    def turn_away(self, duration: int, carried: dict[str, Any]) -> bool:
        """Say whether a chunk that went well, and is not live, has no chance; count it if so.

        Of many thousand chunks most are neither early nor slow: no record is made of them.

        Args:
            duration: in ns.
            carried: what it brought home.
        """
        if len(self._slowest) < self._late_left:
            return False
        if self._late_left > 0 and duration > self._slowest[0][0]:
            return False
        self.total += 1
        self.untraced += 1
        self.dropped_spans += carried.get("dropped", 0) + len(carried.get("spans", ()))
        return True

    def rest(self) -> list[ChunkRecord]:
        """Return the slowest chunks that still wait, and forget them."""
        records = [record for _, _, record in sorted(self._slowest)]
        self._slowest.clear()
        self._waiting_spans = 0
        return records

    def _shrink(self) -> None:
        while len(self._slowest) > self._late_left:
            _, _, fastest = heapq.heappop(self._slowest)
            self.untraced += 1
            self._drop_spans(fastest)

    def _strip(self) -> None:
        """Drop the spans inside of the fastest chunks, so that memory stays flat."""
        for _, _, record in sorted(self._slowest):
            if self._waiting_spans <= MAX_WAITING_SPANS:
                break
            self._drop_spans(record)
            record.carried.pop("spans", None)

    def _drop_spans(self, record: ChunkRecord) -> None:
        dropped = len(record.spans())
        self._waiting_spans -= dropped
        self.dropped_spans += dropped
