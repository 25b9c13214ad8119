"""Data that the program and its workers share: shared memory, managers, and mapped files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from scripts import run_program
from waiting import wait_until

import amorsize
from amorsize.engines.process import protocol


@pytest.fixture(autouse=True)
def _cold() -> Iterator[None]:
    amorsize.shutdown()
    yield
    amorsize.shutdown()


def test_shared_memory_outlives_the_workers_that_used_it(tmp_path: Path) -> None:
    """It is the program's: workers have its resource tracker."""
    program = """
        import json, os, amorsize
        from multiprocessing import shared_memory

        memory = shared_memory.SharedMemory(create=True, size=100)
        memory.buf[:3] = b"abc"

        def read(name):
            mine = shared_memory.SharedMemory(name=name)
            try:
                return bytes(mine.buf[:3]).decode()
            finally:
                mine.close()

        def make(_):
            mine = shared_memory.SharedMemory(create=True, size=50)
            mine.buf[:3] = b"new"
            mine.close()
            return mine.name

        def run(func, item):
            [result] = amorsize.execute(func, [item], executor="process", n_jobs=1)
            amorsize.shutdown()
            return result

        read_twice = [run(read, memory.name), run(read, memory.name)]
        made = shared_memory.SharedMemory(name=run(make, None))
        came = bytes(made.buf[:3]).decode()
        for each in (memory, made):
            each.close()
            each.unlink()
        print(json.dumps([*read_twice, came]))
    """
    assert run_program(program, tmp_path) == ["abc", "abc", "new"]


def test_proxies_of_a_manager_work_in_a_function_and_as_items(tmp_path: Path) -> None:
    """Workers have the program's authentication key, warm ones too."""
    program = """
        import json, amorsize, multiprocessing

        def run(func, items):
            return amorsize.execute(func, items, executor="process", n_jobs=2, chunksize=1)

        run(abs, [1, 2])
        with multiprocessing.Manager() as manager:
            lock, seen, lists = manager.Lock(), manager.dict(), [manager.list() for _ in range(4)]
            def note(x):
                with lock:
                    seen[x] = x * x
            run(note, range(8))
            run(lambda proxy: proxy.append(7), lists)
            print(json.dumps([sorted(seen.values()), [list(each) for each in lists]]))
    """
    squares = [x * x for x in range(8)]
    assert run_program(program, tmp_path) == [squares, [[7]] * 4]


# --- mapped files ----


@pytest.fixture
def mapped(tmp_path: Path) -> numpy.memmap[Any, Any]:
    array = numpy.memmap(tmp_path / "array.dat", dtype="f8", shape=(20, 10), mode="w+")
    array[:] = numpy.arange(200).reshape(20, 10)
    return array


def fill(array: Any) -> None:
    array[...] = -1


VIEWS: dict[str, Callable[[Any], Any]] = {
    "whole": lambda array: array,
    "rows": lambda array: array[3:7],
    "one row": lambda array: array[4],
    "a column": lambda array: array[:, 2],
    "every second": lambda array: array[1::2, ::3],
    "backwards": lambda array: array[::-1, ::-2],
    "transposed": lambda array: array.T,
    "another type": lambda array: array.view("i8"),
    "a plain array": lambda array: numpy.asarray(array)[2:5],
    "a field of one item": lambda array: array[2:3, 3:4],
}


@pytest.mark.parametrize("way", ["closure", "item"])
@pytest.mark.parametrize("name", VIEWS)
def test_what_is_written_to_a_mapped_array_arrives(
    mapped: numpy.memmap[Any, Any], name: str, way: str
) -> None:
    """Whatever part of it is handed to the function; and the rest of the file is left alone."""
    view = VIEWS[name](mapped)
    expected = numpy.array(mapped)
    fill(VIEWS[name](expected))
    if way == "closure":
        amorsize.execute(lambda _: fill(view), [0], executor="process", n_jobs=1)
    else:
        amorsize.execute(fill, [view], executor="process", n_jobs=1)
    assert numpy.array_equal(numpy.array(mapped), expected, equal_nan=True)


def test_a_mapped_array_that_an_offset_and_an_order_describe(tmp_path: Path) -> None:
    """Behind a header, in columns."""
    file = tmp_path / "array.dat"
    file.write_bytes(b"header..." + bytes(8 * 12))
    array = numpy.memmap(file, dtype="i8", offset=9, shape=(3, 4), order="F", mode="r+")

    def number(index: int) -> None:
        array[index] = range(4 * index, 4 * index + 4)

    amorsize.execute(number, range(3), executor="process", n_jobs=2)
    assert array.tolist() == numpy.arange(12).reshape(3, 4).tolist()
    assert file.read_bytes().startswith(b"header...")


@pytest.mark.parametrize("mode", ["r", "c"])
def test_what_must_not_reach_the_file_does_not(
    mapped: numpy.memmap[Any, Any], tmp_path: Path, mode: Any
) -> None:
    """One for reading refuses to be written; a copy on write is sent as it is, with its changes."""
    mapped.flush()
    array = numpy.memmap(tmp_path / "array.dat", dtype="f8", shape=(20, 10), mode=mode)
    if mode == "c":
        array[0, 0] = 1000

    def write(_: None) -> Any:
        try:
            array[0, 1] = -1
        except ValueError:
            return "refused"
        return float(array[0, 0])

    [came] = amorsize.execute(write, [None], executor="process", n_jobs=1)
    assert came == ("refused" if mode == "r" else 1000)
    assert mapped[0, :2].tolist() == [0, 1]


def test_a_mapping_whose_file_is_gone_is_sent_as_it_is(
    mapped: numpy.memmap[Any, Any], tmp_path: Path
) -> None:
    """There is nothing that a worker could open."""
    (tmp_path / "array.dat").unlink()
    [total] = amorsize.execute(lambda _: float(mapped.sum()), [None], executor="process", n_jobs=1)
    assert total == sum(range(200))


def test_the_automatic_choice_fills_a_mapped_array(tmp_path: Path) -> None:
    """Whatever engines it uses on the way."""
    program = """
        import json, time, amorsize, numpy

        out = numpy.memmap("out.dat", dtype="f8", shape=(100,), mode="w+")

        def work(i):
            began = time.thread_time()
            while time.thread_time() - began < 0.01:
                pass
            out[i] = 1.0

        amorsize.execute(work, range(100))
        print(json.dumps(int(out.sum())))
    """
    assert run_program(program, tmp_path) == 100


def test_a_large_array_is_not_copied_for_each_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers map one file in memory; what one writes there is its own."""
    array = numpy.ones(4_000_000)
    sent: list[int] = []
    send = protocol.send

    def counting(connection: Any, header: Any, payload: bytes = b"", *more: Any) -> None:
        sent.append(len(payload))
        send(connection, header, payload, *more)

    monkeypatch.setattr(protocol, "send", counting)

    def use(x: int) -> tuple[float, bool]:
        array[0] += 1
        maps = Path("/proc/self/maps").read_text()
        return float(array.sum()), "amorsize-buffers" in maps

    before = set(os.listdir("/proc/self/fd"))
    results = amorsize.execute(use, range(2), executor="process", n_jobs=2, chunksize=1)
    assert {mapped for _, mapped in results} == {True}
    assert results[0][0] > 4_000_000
    assert array[0] == 1
    assert max(sent) < 100_000
    wait_until(
        lambda: (
            not any(
                "amorsize-buffers" in os.readlink(f"/proc/self/fd/{fd}")
                for fd in set(os.listdir("/proc/self/fd")) - before
                if os.path.exists(f"/proc/self/fd/{fd}")
            )
        ),
        "the file is closed here",
    )


def test_a_large_array_is_sent_where_no_file_in_memory_can_be_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is copied then."""

    def refuse(name: str) -> int:
        raise PermissionError("memfd_create is not allowed")

    monkeypatch.setattr(os, "memfd_create", refuse)
    array = numpy.ones(1_000_000)
    [total] = amorsize.execute(lambda _: float(array.sum()), [0], executor="process", n_jobs=1)
    assert total == 1_000_000
