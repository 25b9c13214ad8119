"""The budget of chunk spans: which are kept where an execution has too many."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import Any

MAX_WAITING_SPANS = 10_000
"""Spans of the user's code that wait with their chunks, per execution."""


@dataclass(slots=True)
class ChunkRecord:
    """A finished chunk, for its span.

    Attributes:
        chunk_id: as in the events.
        start, end: ns since the epoch.
        attributes: of the span.
        failure: ``(type, message, traceback)``; None for a chunk that went well.
        returned: the outcome of its :class:`amorsize.workers.otel_context.ChunkTrace`.
    """

    chunk_id: int
    start: int
    end: int
    attributes: dict[str, Any]
    failure: tuple[str, str, str] | None
    returned: dict[str, Any]

    def spans(self) -> list[tuple[Any, ...]]:
        """Return the spans that the user's code opened in it."""
        spans: list[tuple[Any, ...]] = self.returned.get("spans", [])
        return spans


class SpanBudget:
    """Keeps a number of chunk spans: the first half live, then the failed and the slowest.

    A failed chunk is released at once. Slow chunks wait until the end of the execution: only then
    it is known that no others were slower.

    Args:
        max_chunk_spans: the number of spans in all.

    Attributes:
        live: the chunks that may be released live; the caller that grants these places counts them.
        total: chunks seen.
        untraced: chunks left out.
        dropped_spans: spans of the user's code left out.

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
        """Make all expected chunks live, where the budget has room for all of them.

        Returns:
            The number of additional live chunks.
        """
        more = expected_chunks - self.live
        if not 0 < more <= self._late_left:
            return 0
        self.live += more
        self._late_left -= more
        return more

    def admit(self, record: ChunkRecord, *, live: bool) -> bool:
        """Accept a chunk; return whether to release it now.

        Args:
            record: the chunk.
            live: whether it was granted a place among the first half.
        """
        self.total += 1
        self.dropped_spans += record.returned.get("dropped", 0)
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

    def turn_away(self, duration: int, returned: dict[str, Any]) -> bool:
        """Refuse, and count, a successful chunk without a live place that is too fast to be kept.

        Of many thousand chunks most are neither early nor slow: they need no record.

        Args:
            duration: in ns.
            returned: the outcome of its ``ChunkTrace``.

        Returns:
            Whether it was refused.
        """
        if len(self._slowest) < self._late_left:
            return False
        if self._late_left > 0 and duration > self._slowest[0][0]:
            return False
        self.total += 1
        self.untraced += 1
        self.dropped_spans += returned.get("dropped", 0) + len(returned.get("spans", ()))
        return True

    def rest(self) -> list[ChunkRecord]:
        """Return the waiting chunks, and forget them."""
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
        """Drop the spans inside the fastest chunks, so that memory stays flat."""
        for _, _, record in sorted(self._slowest):
            if self._waiting_spans <= MAX_WAITING_SPANS:
                break
            self._drop_spans(record)
            record.returned.pop("spans", None)

    def _drop_spans(self, record: ChunkRecord) -> None:
        dropped = len(record.spans())
        self._waiting_spans -= dropped
        self.dropped_spans += dropped
