"""What a worker writes, and others read at any time: which item it is at."""

from __future__ import annotations

from typing import Protocol

CHUNK, ITEM, ITEM_STARTED = 0, 1, 2
"""Slots of a board: chunk in progress (-1 for none), index of the item (the end of the chunk once
all are computed), start of the call in progress in monotonic ns (0 for none).

A board outlives its worker, so that the parent knows which item a killed worker was at. It is
shared memory for a process, a list for a thread.
"""
BOARD_SLOTS = 3


class Board(Protocol):
    """A few integers that somebody else may read at any time."""

    def __getitem__(self, slot: int, /) -> int: ...
    def __setitem__(self, slot: int, value: int, /) -> None: ...


def point_board(board: Board, chunk_id: int, start: int) -> None:
    """Say that a chunk is in progress, and no call yet; in an order that is true at each step."""
    board[ITEM_STARTED] = 0
    board[ITEM] = start
    board[CHUNK] = chunk_id
