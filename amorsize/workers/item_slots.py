"""Item slots: a worker writes there which item it is at, and others read it at any time."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, Protocol

    class ItemSlots(Protocol):
        """A few integers that others may read at any time."""

        def __getitem__(self, slot: int, /) -> int: ...
        def __setitem__(self, slot: int, value: int, /) -> None: ...


CHUNK, ITEM, ITEM_STARTED, CHUNK_STARTED, CPU_STARTED = range(5)
"""The slots: id of the chunk in progress (-1 for none), index of the item (the end of the chunk
once all are computed), start of the call in progress in monotonic ns (0 for none). Where the run is
observed: start of the chunk's calls in monotonic ns (0 for none; once they are over, how long they
took, negative), CPU time of the thread until then in ns.

They outlive their worker, so that the parent knows which item a killed worker was at: shared
memory for a process, a list for a thread.
"""
SLOT_COUNT = 5


def mark_chunk(item_slots: ItemSlots, chunk_id: int, start: int) -> None:
    """Show that a chunk is in progress, and no call yet; in an order that is true at each step."""
    item_slots[ITEM_STARTED] = 0
    item_slots[ITEM] = start
    item_slots[CHUNK] = chunk_id


def mark_items(
    slices: Iterable[Iterable[Any]],
    start: int,
    item_slots: ItemSlots,
    stamp_items: bool,
    stopped: Callable[[], bool] | None,
) -> Iterator[Any]:
    """Yield the items of slices, and show which is in progress; with ``stamp_items`` since when."""
    for items in slices:
        if not stamp_items and stopped is None:
            for item_slots[ITEM], item in enumerate(items, start):
                yield item
        else:
            for item_slots[ITEM], item in enumerate(items, start):
                if stopped is not None and stopped():
                    return
                if stamp_items:
                    item_slots[ITEM_STARTED] = time.monotonic_ns()
                yield item
                item_slots[ITEM_STARTED] = 0
        start = item_slots[ITEM] + 1


def mark_end(item_slots: ItemSlots, end: int | None) -> None:
    """Show that no call is in progress; ``end`` is that of a chunk all of whose items are done."""
    item_slots[ITEM_STARTED] = 0
    if end is not None:
        item_slots[ITEM] = end
