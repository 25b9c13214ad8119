"""A chunk's round trip to a worker, in every mode: ``execute(chunksize=1)``, per item.

All engines and peers have two workers, warm ones, and the function returns its item. Peers that
make processes spawn them: the way of a chunk is the same as with fork, and safe among threads.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor

import amorsize
from benchmarks.harness import Contender, Contenders, figure, timed

WORKERS = 2
CHUNKS = 200


@figure("chunk-serial", "a chunk's round trip, serial", unit="µs")
def serial() -> Contenders:
    yield {"amorsize": _amorsize("serial")}


@figure("chunk-thread", "a chunk's round trip, threads", unit="µs")
def threads() -> Contenders:
    with ThreadPoolExecutor(WORKERS) as executor:
        yield {"amorsize": _amorsize("thread"), "ThreadPoolExecutor.submit": _submit(executor)}


@figure("chunk-process", "a chunk's round trip, processes", unit="µs")
def processes() -> Contenders:
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(WORKERS, mp_context=spawn) as executor,
        spawn.Pool(WORKERS) as pool,
    ):
        yield {
            "amorsize": _amorsize("process"),
            "ProcessPoolExecutor.submit": _submit(executor),
            "multiprocessing.Pool.imap": _chunks(lambda: list(pool.imap(same, range(CHUNKS)))),
        }


def same(item: int) -> int:
    """A chunk's work: none."""
    return item


def _amorsize(engine: str) -> Contender:
    return _chunks(
        lambda: amorsize.execute(same, range(CHUNKS), executor=engine, n_jobs=WORKERS, chunksize=1)
    )


def _submit(executor: Executor) -> Contender:
    def run() -> list[int]:
        futures = [executor.submit(same, item) for item in range(CHUNKS)]
        return [future.result() for future in futures]

    return _chunks(run)


def _chunks(run: Callable[[], list[int]]) -> Contender:
    assert run() == list(range(CHUNKS))
    return timed(run, per=CHUNKS)
