"""Items that are handed out again: their worker is gone, or an item between theirs, or their chunk
has ended before them because its results weighed enough.
"""

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
        self._left: list[Chunk] = []

    def __len__(self) -> int:
        return len(self._chunks) + len(self._left)

    @property
    def need_room(self) -> bool:
        """Whether the next chunk is as heavy as any other, and needs room as those do."""
        return not self._chunks

    def take(self) -> Chunk:
        """Take the next chunk out."""
        return self._chunks.popleft() if self._chunks else self._left.pop()

    def put_left(self, chunk: Chunk, done: int, size: int, new_id: Callable[[], int]) -> None:
        """Queue what a chunk has left, in chunks of that size.

        The first items of the input come first: they are what a consumer waits for.
        """
        self._left += [
            _part(chunk, at, at + size, new_id) for at in range(done, len(chunk.items), size)
        ]
        self._left.sort(key=lambda part: -part.start)

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
            part = _part(chunk, at, min(at + width, end), new_id)
            part.retry_of = chunk.id if alone else None
            self._chunks.append(part)


def _part(chunk: Chunk, begin: int, end: int, new_id: Callable[[], int]) -> Chunk:
    items = chunk.items[begin:end]
    return Chunk(
        new_id(),
        chunk.start + begin,
        items,
        items_bytes=chunk.items_bytes * len(items) // len(chunk.items),
        most_bytes=chunk.most_bytes,
    )
