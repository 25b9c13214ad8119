"""Which chunks keep their spans: properties that hold for any run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amorsize.exporters.opentelemetry import span_budget
from amorsize.exporters.opentelemetry.span_budget import ChunkRecord, SpanBudget
from amorsize.workers.trace_link import TraceLink

FAILURE = ("ValueError", "odd", "Traceback ...")


def chunk(
    chunk_id: int,
    duration: int,
    *,
    failed: bool = False,
    spans: int = 0,
    dropped: int = 0,
) -> ChunkRecord:
    returned = {"spans": [()] * spans, "dropped": dropped}
    return ChunkRecord(chunk_id, 100, 100 + duration, {}, FAILURE if failed else None, returned)


def link(live: int) -> TraceLink:
    return TraceLink({}, 1, 2, sampled=True, capture=True, max_spans=9, live=live)


def release(records: list[ChunkRecord], most: int) -> tuple[list[ChunkRecord], SpanBudget]:
    """Go through a run as the exporter does; return what was released, in this order."""
    budget = SpanBudget(most)
    places = link(budget.live)
    released = []
    for record in records:
        live = places.grant()
        duration = record.end - record.start
        if not live and record.failure is None and budget.turn_away(duration, record.returned):
            continue
        if budget.admit(record, live=live):
            released.append(record)
    return released + budget.rest(), budget


records = st.lists(
    st.tuples(st.integers(0, 50), st.booleans(), st.integers(0, 5), st.integers(0, 3)),
    max_size=60,
).map(
    lambda rows: [
        chunk(number, duration, failed=failed, spans=spans, dropped=dropped)
        for number, (duration, failed, spans, dropped) in enumerate(rows)
    ]
)


@given(records, st.integers(0, 20))
def test_the_figures_add_up(records: list[ChunkRecord], most: int) -> None:
    """No chunk is released twice, none is forgotten, and no more than allowed."""
    released, budget = release(records, most)
    kept = [record.chunk_id for record in released]
    assert len(kept) == len(set(kept)) == min(most, len(records))
    assert budget.total == len(records)
    assert budget.untraced == len(records) - len(kept)


@given(records, st.integers(0, 20))
def test_spans_share_the_fate_of_their_chunk(records: list[ChunkRecord], most: int) -> None:
    """Those of a chunk that is left out are counted, beside what its worker had dropped."""
    before = sum(len(record.spans()) + record.returned["dropped"] for record in records)
    released, budget = release(records, most)
    assert budget.dropped_spans == before - sum(len(record.spans()) for record in released)


@given(records, st.integers(0, 20))
def test_the_failed_are_kept_first(records: list[ChunkRecord], most: int) -> None:
    """After the live half, failures take the places of the slowest that went well."""
    released, budget = release(records, most)
    late = records[budget.live :]
    failed = [record.chunk_id for record in late if record.failure]
    kept = {record.chunk_id for record in released}
    assert {record.chunk_id for record in records[: budget.live]} <= kept
    assert set(failed[: most // 2]) <= kept


@given(records, st.integers(0, 20))
def test_the_slowest_are_kept(records: list[ChunkRecord], most: int) -> None:
    """Of those that went well, none that was left out took longer than one that was kept."""
    released, budget = release(records, most)
    kept = {record.chunk_id for record in released}
    well = [record for record in records[budget.live :] if not record.failure]
    slow = [record.end - record.start for record in well if record.chunk_id in kept]
    fast = [record.end - record.start for record in well if record.chunk_id not in kept]
    assert not (slow and fast) or min(slow) >= max(fast)


@given(records)
def test_turning_away_early_changes_nothing(records: list[ChunkRecord]) -> None:
    """It is a short cut for what has no chance."""
    released, short_cut = release(records, 6)
    budget = SpanBudget(6)
    places = link(budget.live)
    for record in records:
        budget.admit(record, live=places.grant())
    whole = [record.end - record.start for record in budget.rest()]
    late = [record for record in released if record.chunk_id >= budget.live and not record.failure]
    assert sorted(record.end - record.start for record in late) == whole
    assert budget.untraced == short_cut.untraced


@pytest.mark.parametrize(("most", "live"), [(0, 0), (1, 1), (2, 1), (3, 2), (1000, 500)])
def test_half_of_the_places_are_live(most: int, live: int) -> None:
    """A single place is given to the first chunk."""
    assert SpanBudget(most).live == live


def test_a_live_chunk_is_released_at_once() -> None:
    """And what failed, while places are left."""
    budget = SpanBudget(4)
    assert budget.admit(chunk(0, 5), live=True)
    assert not budget.admit(chunk(1, 5), live=False)
    assert not budget.admit(chunk(2, 6), live=False)
    assert budget.admit(chunk(3, 1, failed=True), live=False)
    assert budget.untraced == 1
    assert budget.admit(chunk(4, 1, failed=True), live=False)
    assert not budget.admit(chunk(5, 1, failed=True), live=False)
    assert (budget.rest(), budget.untraced, budget.total) == ([], 3, 6)


def test_spans_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fastest chunks lose those inside of them first, and keep their own."""
    monkeypatch.setattr(span_budget, "MAX_WAITING_SPANS", 10)
    budget = SpanBudget(100)
    for number in range(5):
        budget.admit(chunk(number, 10 * number, spans=4), live=False)
    waiting = budget.rest()
    assert [len(record.spans()) for record in waiting] == [0, 0, 0, 4, 4]
    assert budget.dropped_spans == 12
    assert budget.untraced == 0


def test_a_million_chunks_take_no_memory() -> None:
    """What is kept does not grow with the run."""
    budget = SpanBudget(10)
    for number in range(20_000):
        if not budget.turn_away(number % 7, {}):
            budget.admit(chunk(number, number % 7), live=False)
        assert len(budget._slowest) <= 5
    assert [record.end - record.start for record in budget.rest()] == [6] * 5
    assert (budget.total, budget.untraced) == (20_000, 19_995)


def test_all_chunks_are_live_where_the_budget_has_room_for_them() -> None:
    """Widened by as many as the plan expects beyond the live half, and never beyond the whole."""
    budget = SpanBudget(10)
    assert budget.live == 5
    assert [budget.widen(expected) for expected in (0, 5, 11)] == [0, 0, 0]
    assert budget.widen(8) == 3
    assert (budget.live, budget.widen(10), budget.live) == (8, 2, 10)
