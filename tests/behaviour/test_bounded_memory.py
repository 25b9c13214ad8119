"""What a run holds: a few chunks, whatever items and results weigh, however slow the consumer."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modes import EXTERNAL_MODES, MODES, Mode

import amorsize
from amorsize import HookContext, HookEvent, HookManager
from amorsize.planning.chunk_sizes import CHUNK_BYTES, HELD_BYTES, SENT_CHUNK_BYTES
from amorsize.running.input import STRIDE_ITEMS
from amorsize.testing import RecordingHook, assert_contract

MB = 1_000_000
MOST_BYTES = HELD_BYTES + 2 * CHUNK_BYTES
"""What may be ahead of a consumer: what is held, the chunk that made it too much, and the one that
it takes from."""
ENOUGH = MOST_BYTES // MB + 100
"""Items of a megabyte of which a run without bounds would hold too many."""

QUIET_SECONDS = 0.2

everywhere = pytest.mark.parametrize("external", EXTERNAL_MODES, indirect=True)


def same(item: Any) -> Any:
    return item


def make(size: int) -> bytes:
    return b"x" * size


class Noting:
    """Makes results of a size, and notes in a file how many bytes it has made."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, size: int) -> bytes:
        if size >= MB:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, b"." * (size // MB))
            os.close(descriptor)
        return b"x" * size

    def noted_bytes(self) -> int:
        return self.path.stat().st_size * MB if self.path.exists() else 0


class Source:
    """Makes items, and knows how many bytes of them are ahead of their consumer."""

    def __init__(self, sizes: list[int], make: Callable[[int], Any] = make) -> None:
        self.sizes, self.make = sizes, make
        self.drawn = self.eaten = 0
        self.most_ahead = 0

    def __iter__(self) -> Iterator[Any]:
        for size in self.sizes:
            item = self.make(size)
            self.drawn += 1
            self.most_ahead = max(self.most_ahead, self.bytes_ahead())
            yield item

    def bytes_ahead(self) -> int:
        return sum(self.sizes[self.eaten : self.drawn])


def wait_while_it_grows(amount: Callable[[], int]) -> None:
    """Give a run the time to do what it does beside a consumer that pauses.

    Nothing is concluded from its end: only what is too much fails a test.
    """
    before, since = amount(), time.monotonic()
    while time.monotonic() < since + QUIET_SECONDS:
        time.sleep(0.02)
        if (now := amount()) != before:
            before, since = now, time.monotonic()


def eat_slowly(results: Iterator[Any], source: Source, pauses: set[int]) -> None:
    """Take all results, with a pause after some of them."""
    for _ in results:
        source.eaten += 1
        if source.eaten in pauses:
            wait_while_it_grows(lambda: source.drawn)
    assert source.eaten == len(source.sizes)


# --- items ----

KINDS: dict[str, Callable[[int], Any]] = {
    "bytes": make,
    "text": lambda size: "x" * size,
    "array": lambda size: np.ones(size, dtype=np.uint8),
    "list of bytes": lambda size: [b"x" * (size // 100) for _ in range(100)],
    "record": lambda size: {"id": 1, "rows": [("name", b"x" * (size // 10)) for _ in range(10)]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_slow_consumer_has_a_bounded_number_of_bytes_ahead(kind: str, mode: str) -> None:
    """Whatever the items are made of, where they go there and back."""
    source = Source([MB] * ENOUGH, KINDS[kind])
    results = amorsize.stream(same, iter(source), executor=mode, n_jobs=2)
    eat_slowly(results, source, {1, 50})
    assert 0 < source.most_ahead <= MOST_BYTES


@pytest.mark.parametrize("n_jobs", [None, 1, 8])
def test_it_is_bounded_where_the_engine_is_chosen_and_however_many_workers(
    n_jobs: int | None,
) -> None:
    """Then each of them has less."""
    source = Source([MB] * ENOUGH)
    eat_slowly(amorsize.stream(same, iter(source), n_jobs=n_jobs), source, {1, 50})
    assert 0 < source.most_ahead <= MOST_BYTES


@pytest.mark.parametrize("ordered", [True, False])
def test_items_that_turn_heavy_are_bounded(mode: str, ordered: bool) -> None:
    """In the middle of a chunk that was planned for light ones; and that turn light again."""
    source = Source([10] * 5000 + [MB] * ENOUGH + [10] * 100)
    results = amorsize.stream(same, iter(source), executor=mode, n_jobs=2, ordered=ordered)
    eat_slowly(results, source, {1, 2000, 4990, 5050})
    assert 0 < source.most_ahead <= MOST_BYTES


@pytest.mark.parametrize("sizes", [[MB] * ENOUGH, [10] * 500 + [MB] * ENOUGH], ids=["all", "late"])
@pytest.mark.parametrize("executor", [None, *MODES])
def test_a_size_of_chunks_that_the_caller_gave_is_bounded(
    executor: str | None, sizes: list[int]
) -> None:
    """Chunks of heavy items have fewer of them, and light ones the given number."""
    source = Source(sizes)
    hooks = HookManager()
    light: set[int] = set()

    def note(context: HookContext) -> None:
        if not context.metadata.get("sampled") and context.metadata["chunk_start"] < 200:
            light.add(context.chunk_size)

    hooks.register(HookEvent.ON_CHUNK_COMPLETE, note)
    results = amorsize.stream(
        same, iter(source), executor=executor, n_jobs=2, chunksize=200, hooks=hooks
    )
    eat_slowly(results, source, {1, 50})
    assert 0 < source.most_ahead <= MOST_BYTES
    # Of the automatic choice, the items up to there may all have been sampled.
    assert sizes[0] == MB or light == {200} or (executor is None and not light)


@everywhere
@pytest.mark.filterwarnings("ignore:Sending large graph")  # Dask's own, of tasks of 10 MB
def test_executors_of_others_are_bounded(external: Mode) -> None:
    """Also those of which it is not known whether they copy."""
    source = Source([10] * 500 + [MB] * ENOUGH)
    results = amorsize.stream(same, iter(source), executor=external.executor)
    eat_slowly(results, source, {1, 400, 550})
    assert 0 < source.most_ahead <= MOST_BYTES


def test_an_asynchronous_consumer_has_a_bounded_number_of_bytes_ahead(mode: str) -> None:
    """As any other."""
    source = Source([10] * 500 + [MB] * ENOUGH)

    async def eat() -> None:
        async for _ in amorsize.astream(same, iter(source), executor=mode, n_jobs=2):
            source.eaten += 1
            if source.eaten in (1, 400, 550):
                wait_while_it_grows(lambda: source.drawn)

    asyncio.run(eat())
    assert source.eaten == len(source.sizes)
    assert 0 < source.most_ahead <= MOST_BYTES


class Giant:
    """An item that weighs more than a run may hold, and knows how many of it there are here."""

    alive = 0

    def __init__(self) -> None:
        self.data = bytes(HELD_BYTES + MB)
        Giant.alive += 1

    def __del__(self) -> None:
        Giant.alive -= 1

    def __reduce__(self) -> Any:
        return bytes, (1,)


@pytest.mark.parametrize("executor", [None, *MODES])
@pytest.mark.parametrize("n_jobs", [1, 2, 4])
@pytest.mark.parametrize("way", ["stream", "execute"])
def test_items_heavier_than_all_bounds_pass_one_by_one(
    way: str, executor: str | None, n_jobs: int
) -> None:
    """One for each worker."""
    alive = []

    def giants() -> Iterator[Giant]:
        for _ in range(12):
            alive.append(Giant.alive)
            yield Giant()

    run = getattr(amorsize, way)
    results = list(run(lambda giant: 7, giants(), executor=executor, n_jobs=n_jobs))
    assert results == [7] * 12
    assert max(alive) < (1 if executor == "serial" else n_jobs)
    assert Giant.alive == 0


# --- results ----


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("light", [0, 5000])
def test_results_of_light_items_are_bounded(
    tmp_path: Path,
    hooks: HookManager,
    recorder: RecordingHook,
    mode: str,
    light: int,
    ordered: bool,
) -> None:
    """From the first one on, or where they turn heavy in the middle of a chunk, which then ends."""
    noting = Noting(tmp_path / "made")
    sizes = [10] * light + [MB] * ENOUGH
    eaten = most_ahead = 0
    results = amorsize.stream(
        noting, iter(sizes), executor=mode, n_jobs=2, ordered=ordered, hooks=hooks
    )
    came = []
    for taken, result in enumerate(results, 1):
        came.append(len(result))
        eaten += len(result) if len(result) >= MB else 0
        if taken in (1, light - 3000, light - 10, light + 50):
            wait_while_it_grows(noting.noted_bytes)
        most_ahead = max(most_ahead, noting.noted_bytes() - eaten)
    assert came == sizes if ordered else sorted(came) == sizes
    assert 0 < most_ahead <= MOST_BYTES
    assert_contract(recorder.contexts)


@pytest.mark.parametrize("external", ["thread-pool", "fork-pool", "dask"], indirect=True)
@pytest.mark.filterwarnings("ignore:Sending large graph")  # Dask's own, of tasks of 10 MB
def test_results_of_executors_of_others_are_bounded(tmp_path: Path, external: Mode) -> None:
    """Their chunks end early as well."""
    noting = Noting(tmp_path / "made")
    sizes = [10] * 500 + [MB] * ENOUGH
    eaten = most_ahead = 0
    for taken, result in enumerate(
        amorsize.stream(noting, iter(sizes), executor=external.executor), 1
    ):
        eaten += len(result) if len(result) >= MB else 0
        if taken in (1, 400, 550):
            wait_while_it_grows(noting.noted_bytes)
        most_ahead = max(most_ahead, noting.noted_bytes() - eaten)
    assert eaten == ENOUGH * MB
    assert 0 < most_ahead <= MOST_BYTES


def fail_on_some(size: int) -> bytes:
    if size % 7 == 3:
        raise ValueError(size)
    return b"x" * size


def test_failures_stay_in_their_place_where_chunks_end_early(
    mode: str, hooks: HookManager, recorder: RecordingHook
) -> None:
    """An index is that of the item, whatever its chunk was when it was planned."""
    sizes = [10 + number % 2 for number in range(3000)] + [MB + number for number in range(100)]
    results = list(
        amorsize.stream(
            fail_on_some, iter(sizes), executor=mode, return_exceptions=True, hooks=hooks
        )
    )
    assert len(results) == len(sizes)
    for size, result in zip(sizes, results, strict=True):
        if size % 7 == 3:
            assert (type(result), result.args) == (ValueError, (size,))
        else:
            assert len(result) == size
    assert_contract(recorder.contexts)


class Killing(Noting):
    """Ends its process at the first of two hundred heavy results, the first time."""

    def __call__(self, size: int) -> bytes:
        fatal = self.path.with_suffix(".fatal")
        if size == MB + 1 and not fatal.exists():
            fatal.touch()
            os._exit(3)
        return super().__call__(size)


def test_chunks_that_end_early_and_chunks_of_a_dead_worker_cover_the_input(
    tmp_path: Path, hooks: HookManager, recorder: RecordingHook
) -> None:
    """Both are handed out again, in part."""
    sizes = [10] * 3000 + [MB] * 40 + [MB + 1] + [MB] * 100
    results = amorsize.stream(
        Killing(tmp_path / "made"),
        iter(sizes),
        executor="process",
        n_jobs=2,
        return_exceptions=True,
        hooks=hooks,
    )
    assert [len(result) for result in results] == sizes
    assert_contract(recorder.contexts)


# --- execute() ----


class Lazy:
    """A collection whose items are made as they are drawn."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source.sizes)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.source)


class Eating:
    """Takes an item, and notes in a file that it has."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def __call__(self, item: bytes) -> int:
        if len(item) >= MB:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            os.write(descriptor, b".")
            os.close(descriptor)
        return len(item)


@pytest.mark.parametrize("light", [0, 3000])
@pytest.mark.parametrize("sized", [True, False])
def test_items_that_are_made_as_they_are_drawn_are_bounded_in_execute(
    tmp_path: Path, mode: str, sized: bool, light: int
) -> None:
    """With a length or without one: few are drawn ahead of the calls."""
    eating = Eating(tmp_path / "eaten")
    source = Source([10] * light + [MB] * ENOUGH)
    ahead = []

    def made() -> Iterator[bytes]:
        for item in source:
            source.eaten = light + eating.path.stat().st_size
            ahead.append(source.bytes_ahead() if source.drawn > source.eaten else 0)
            yield item

    class Sized(Lazy):
        def __iter__(self) -> Iterator[bytes]:
            return made()

    data = Sized(source) if sized else made()
    results = amorsize.execute(eating, data, executor=mode, n_jobs=2)
    assert results == source.sizes
    assert 0 < max(ahead) <= MOST_BYTES


@pytest.mark.parametrize("light", [0, 3000])
@pytest.mark.parametrize("heavy", ["items and results", "results"])
def test_what_is_sent_to_processes_goes_in_small_chunks(
    hooks: HookManager, recorder: RecordingHook, heavy: str, light: int
) -> None:
    """Also where the input is in memory, and all results stay there."""
    sizes = [10] * light + [MB] * 200
    data: list[Any] = sizes if heavy == "results" else [make(size) for size in sizes]
    func: Callable[[Any], Any] = make if heavy == "results" else same
    results = amorsize.execute(func, data, executor="process", n_jobs=2, hooks=hooks)
    assert [len(result) for result in results] == sizes
    most = max(each.results_size_bytes or 0 for each in recorder.of(HookEvent.ON_CHUNK_COMPLETE))
    # Where light ones come first, one of so many is looked at.
    assert MB < most < SENT_CHUNK_BYTES + (STRIDE_ITEMS + 1) * MB if light else SENT_CHUNK_BYTES
    assert_contract(recorder.contexts)
