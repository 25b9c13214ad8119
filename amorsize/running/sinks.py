"""Where the run loop puts results: in a list, or before the consumer of a stream."""

from __future__ import annotations

import threading
from collections import deque

from amorsize.hooks.interruption import protected, protected_between_calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Protocol

    class Sink(Protocol):
        """The interface between the run loop and the place that results go to."""

        @property
        def cancelled(self) -> bool:
            """Whether nobody wants further results."""

        is_bounded: bool
        """Whether it holds a few chunks at a time, for a consumer."""

        def held(self) -> tuple[int, int]:
            """Return how many chunks wait for the consumer, and what they weigh."""

        def is_empty(self) -> bool:
            """Say whether the consumer, where there is one, has nothing to take."""

        def deliver(self, start: int, results: list[Any], weight: int = 0) -> None:
            """Take the results of the items from index ``start`` on; pieces come in any order.

            The list is the sink's from then on.
            """

        def cancel(self) -> None:
            """Note that nobody wants further results."""

        def end(self, error: BaseException | None) -> None:
            """Note that no more comes, or what went wrong."""


_WAIT_SECONDS = 0.5
"""A Ctrl-C that comes just before a wait is handled when the wait is over."""


@protected
class _InOrder:
    """Gives pieces back in the order of the input, holding those that came early."""

    def __init__(self) -> None:
        self._early: dict[int, tuple[list[Any], int]] = {}
        self._next = 0

    def push(self, start: int, results: list[Any], weight: int) -> Iterator[tuple[list[Any], int]]:
        self._early[start] = results, weight
        while (piece := self._early.pop(self._next, None)) is not None:
            self._next += len(piece[0])
            yield piece


@protected
class Results:
    """Collects all results in input order, in :attr:`results`."""

    is_bounded = False

    def __init__(self) -> None:
        self.cancelled = False
        self.results: list[Any] = []
        self._order = _InOrder()

    def held(self) -> tuple[int, int]:
        return 0, 0

    def is_empty(self) -> bool:
        return True

    def deliver(self, start: int, results: list[Any], weight: int = 0) -> None:
        for piece, _ in self._order.push(start, results, weight):
            if len(self.results) < len(piece):
                # The longer one stays where it is: of very short items one chunk is nearly all.
                piece[:0] = self.results
                self.results = piece
            else:
                self.results.extend(piece)

    def cancel(self) -> None:
        self.cancelled = True

    def end(self, error: BaseException | None) -> None:
        pass  # the caller waits for the run itself


@protected_between_calls
class StreamBuffer:
    """A bounded buffer between the driver of a stream and its consumer.

    Args:
        ordered: give results in input order; otherwise as they come.

    Attributes:
        on_room: called from the consumer's thread when there is room again.
        on_change: called from the driver's thread when there is a piece more, or the end.
    """

    is_bounded = True

    def __init__(self, *, ordered: bool) -> None:
        self._order = _InOrder() if ordered else None
        self._ready: deque[tuple[list[Any], int]] = deque()
        self._held_chunks = self._held_bytes = 0
        self._changed = threading.Condition()
        self._ended = False
        self._error: BaseException | None = None
        self.cancelled = False
        self.on_room: Callable[[], None] = lambda: None
        self.on_change: Callable[[], None] = lambda: None

    def held(self) -> tuple[int, int]:
        with self._changed:
            return self._held_chunks, self._held_bytes

    def is_empty(self) -> bool:
        return not self._ready

    def deliver(self, start: int, results: list[Any], weight: int = 0) -> None:
        piece, order = (results, weight), self._order
        pieces = [piece] if order is None else list(order.push(start, *piece))
        with self._changed:
            self._held_chunks += 1
            self._held_bytes += weight
            self._ready.extend(pieces)
            self._changed.notify()
        self.on_change()

    def end(self, error: BaseException | None) -> None:
        """Notify the consumer that no more comes, or of what went wrong."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify()
        self.on_change()

    def cancel(self) -> None:
        """Notify the driver that the consumer is gone."""
        self.cancelled = True
        self.on_room()

    def pieces(self) -> Iterator[list[Any]]:
        """Yield pieces until the end; raise what went wrong after those that came before it."""
        while True:
            with self._changed:
                while not self._ready and not self._ended:
                    self._changed.wait(_WAIT_SECONDS)
                if not self._ready:
                    break
                piece = self._take()
            self.on_room()
            yield piece
            del piece  # it is not to be held while the next one is waited for
        if self._error is not None:
            raise self._error

    def poll(self) -> list[Any] | None:
        """Return the next piece without waiting, an empty one for now; None at the end.

        Raises what went wrong after the pieces that came before it.
        """
        with self._changed:
            piece = self._take() if self._ready else []
            if not piece and self._ended:
                if self._error is not None:
                    raise self._error
                return None
        if piece:
            self.on_room()
        return piece

    def _take(self) -> list[Any]:
        piece, weight = self._ready.popleft()
        self._held_chunks -= 1
        self._held_bytes -= weight
        return piece
