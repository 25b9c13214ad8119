"""Chunks that are handed out again."""

from __future__ import annotations

from itertools import count

import pytest

from amorsize.running.retries import Retries
from amorsize.workers.chunk import Chunk

CHUNK = Chunk(3, 10, ["a", "b", "c", "d"])


def queued(retries: Retries) -> list[tuple[int, int, list[str], int | None]]:
    chunks = [retries.take() for _ in range(len(retries))]
    return [(each.id, each.start, list(each.items), each.retry_of) for each in chunks]


@pytest.mark.parametrize("alone", [True, False])
def test_items_around_one_are_queued(alone: bool) -> None:
    """Those before it alone, where one of them may have ended the worker."""
    retries, ids = Retries(), count(7)
    single = retries.put_around(CHUNK, 2, ids.__next__, alone_before=alone)
    assert (single.start, single.items, single.retry_of) == (12, ["c"], 3)
    before = [(7, 10, ["a"], 3), (8, 11, ["b"], 3)] if alone else [(7, 10, ["a", "b"], None)]
    assert queued(retries) == [*before, (7 + len(before), 13, ["d"], None)]


def test_suspects_run_alone() -> None:
    """Up to the item that was in flight; all of them where that is not known."""
    retries, ids = Retries(), count(7)
    retries.put_suspects(CHUNK, 11, ids.__next__)
    assert queued(retries) == [
        (7, 10, ["a"], 3),
        (8, 11, ["b"], 3),
        (9, 12, ["c", "d"], None),
    ]
    retries.put_suspects(CHUNK, None, ids.__next__)
    assert [items for _, _, items, _ in queued(retries)] == [["a"], ["b"], ["c"], ["d"]]


def test_chunks_that_were_not_begun_come_first() -> None:
    """In their order, as they were."""
    retries, ids = Retries(), count(7)
    retries.put_suspects(CHUNK, 13, ids.__next__)
    untouched = [Chunk(4, 14, ["e"]), Chunk(5, 15, ["f"])]
    retries.put_first(untouched)
    assert [retries.take(), retries.take()] == untouched
    assert len(retries) == 4


def test_what_full_chunks_have_left_is_queued_by_its_place_in_the_input() -> None:
    """In chunks of a size that fits, after those that are retried: those need no room."""
    retries, ids = Retries(), count(7)
    later = Chunk(5, 20, ["k", "l"], items_bytes=10, most_bytes=99)
    retries.put_left(later, 1, 2, ids.__next__)
    retries.put_left(CHUNK, 1, 2, ids.__next__)
    assert (len(retries), retries.need_room) == (3, True)
    retries.put_first([Chunk(6, 30, ["u"])])
    assert (len(retries), retries.need_room) == (4, False)
    assert queued(retries) == [
        (6, 30, ["u"], None),
        (8, 11, ["b", "c"], None),
        (9, 13, ["d"], None),
        (7, 21, ["l"], None),
    ]


def test_a_part_of_a_chunk_weighs_its_share_and_is_bounded_as_that_was() -> None:
    """Whatever the part is of."""
    retries, ids = Retries(), count(7)
    chunk = Chunk(3, 10, ["a", "b", "c", "d"], items_bytes=400, most_bytes=99)
    retries.put_suspects(chunk, 10, ids.__next__)
    retries.put_left(chunk, 2, 2, ids.__next__)
    parts = [retries.take() for _ in range(3)]
    assert [(part.items_bytes, part.most_bytes) for part in parts] == [
        (100, 99),
        (300, 99),
        (200, 99),
    ]
