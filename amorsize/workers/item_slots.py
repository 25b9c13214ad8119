"""Item slots: a worker writes there which item it is at, and others read it at any time."""

from __future__ import annotations

from typing import Protocol

CHUNK, ITEM, ITEM_STARTED = 0, 1, 2
"""The slots: id of the chunk in progress (-1 for none), index of the item (the end of the chunk
once all are computed), start of the call in progress in monotonic ns (0 for none).

They outlive their worker, so that the parent knows which item a killed worker was at: shared
memory for a process, a list for a thread.
"""
SLOT_COUNT = 3


class ItemSlots(Protocol):
    """A few integers that others may read at any time."""

    def __getitem__(self, slot: int, /) -> int: ...
    def __setitem__(self, slot: int, value: int, /) -> None: ...


def mark_chunk(item_slots: ItemSlots, chunk_id: int, start: int) -> None:
    """Show that a chunk is in progress, and no call yet; in an order that is true at each step."""
    item_slots[ITEM_STARTED] = 0
    item_slots[ITEM] = start
    item_slots[CHUNK] = chunk_id
