"""Chunks that are handed out again: their worker is gone, or an item between theirs."""

from __future__ import annotations

from collections import deque

from amorsize.workers.chunk import Chunk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Retries:
    """A queue of such chunks; ``new_id`` gives the id of a further one."""

    def __init__(self) -> None:
        self._chunks: deque[Chunk] = deque()

    def __len__(self) -> int:
        return len(self._chunks)

    def take(self) -> Chunk:
        """Take the next chunk out."""
        return self._chunks.popleft()

    def put_first(self, untouched: Sequence[Chunk]) -> None:
        """Queue chunks none of whose items was begun, before all others."""
        self._chunks.extendleft(reversed(untouched))

    def put_around(
        self, chunk: Chunk, position: int, new_id: Callable[[], int], *, alone_before: bool
    ) -> Chunk:
        """Queue the items of a chunk but one; return that one, as a chunk of its own."""
        self._put(chunk, 0, position, new_id, alone=alone_before)
        self._put(chunk, position + 1, len(chunk.items), new_id)
        item = [chunk.items[position]]
        return Chunk(new_id(), chunk.start + position, item, retry_of=chunk.id)

    def put_suspects(self, chunk: Chunk, item_index: int | None, new_id: Callable[[], int]) -> None:
        """Queue the items of a chunk, each alone up to the one that was in flight, if known."""
        suspects = len(chunk.items)
        if item_index is not None:
            suspects = item_index - chunk.start + 1
        self._put(chunk, 0, suspects, new_id, alone=True)
        self._put(chunk, suspects, len(chunk.items), new_id)

    def _put(
        self,
        chunk: Chunk,
        begin: int,
        end: int,
        new_id: Callable[[], int],
        *,
        alone: bool = False,
    ) -> None:
        """Queue items of a lost chunk; ``alone``, because one of them may be the killer."""
        width = 1 if alone else max(1, end - begin)
        for at in range(begin, end, width):
            items = chunk.items[at : min(at + width, end)]
            retry_of = chunk.id if alone else None
            self._chunks.append(Chunk(new_id(), chunk.start + at, items, retry_of))
