"""CPU time of chunks, and of calls that did not end: against clocks of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from waiting import PATIENCE, wait_until

from amorsize import HookContext, HookEvent, HookManager, execute
from amorsize.workers import cpu_time, thread_limits
from amorsize.workers.chunk import Chunk, ChunkOutcome, run_chunk
from amorsize.workers.collectors import CollectSettings
from amorsize.workers.cpu_time import CpuTime, CpuTimeCollector, unfinished
from amorsize.workers.item_slots import CHUNK, CHUNK_STARTED, CPU_STARTED, SLOT_COUNT

linux = pytest.mark.skipif(sys.platform != "linux", reason="the scheduler's statistics are Linux's")


def burn(seconds: float) -> None:
    """Have so much of a CPU, whatever else runs."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def collected(func: Callable[[Any], Any], *items: Any) -> tuple[ChunkOutcome, CpuTime]:
    outcome = run_chunk(func, Chunk(0, 0, items), collect=CollectSettings(cpu_time=True))
    return outcome, CpuTime(*outcome.extras["cpu_time"])


def test_a_chunk_that_nobody_observes_reads_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither without settings, nor for user metrics alone."""
    monkeypatch.setattr(cpu_time, "CpuTimeCollector", None)
    assert run_chunk(abs, Chunk(0, 0, [1])).extras == {}
    settings = CollectSettings(user_metrics=True)
    assert run_chunk(abs, Chunk(0, 0, [1]), collect=settings).extras == {}


def test_computing_is_counted_and_waiting_is_not() -> None:
    """By the clock of the thread that calls."""
    before = time.thread_time()
    _, cpu = collected(burn, 0.02, 0.03)
    assert 0.05 <= cpu.seconds <= time.thread_time() - before
    outcome, cpu = collected(time.sleep, 0.05)
    assert outcome.duration >= 0.05
    assert cpu.seconds < 0.04


def test_other_threads_are_counted_separately() -> None:
    """They may have held the GIL, or have worked for the call."""

    def call(seconds: float) -> None:
        thread = threading.Thread(target=burn, args=[seconds])
        thread.start()
        thread.join()

    _, cpu = collected(call, 0.05)
    assert cpu.other_seconds >= 0.05
    assert cpu.seconds < 0.05


@pytest.fixture
def _in_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_time, "is_worker", lambda: True)
    vars(cpu_time._here).clear()


@pytest.mark.usefixtures("_in_a_worker")
def test_a_worker_counts_child_processes_that_ended() -> None:
    """A call that waits for one does not wait for nothing."""
    code = "import time\nwhile time.process_time() < 0.1: pass"
    _, cpu = collected(lambda _: subprocess.run([sys.executable, "-c", code], check=True), 0)
    assert cpu.children_seconds >= 0.085  # the system counts it in ticks of 10 ms
    assert cpu.other_seconds < 0.1


@linux
@pytest.mark.usefixtures("_in_a_worker")
def test_a_worker_counts_the_time_in_the_queue_for_a_cpu() -> None:
    """Two threads that compute without the GIL, pinned to one core, take turns at it."""
    import hashlib

    data = bytes(1 << 20)

    def digest(seconds: float) -> None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            hashlib.sha256(data).digest()  # which releases the GIL

    cores = os.sched_getaffinity(0)
    done = threading.Event()

    def compete() -> None:
        os.sched_setaffinity(0, {min(cores)})
        while not done.is_set():
            digest(0.001)

    competitor = threading.Thread(target=compete)
    competitor.start()
    try:
        os.sched_setaffinity(0, {min(cores)})
        _, cpu = collected(digest, 0.2)
    finally:
        os.sched_setaffinity(0, cores)
        done.set()
        competitor.join()
    assert cpu.queued_seconds is not None
    assert cpu.queued_seconds >= 0.05


@pytest.mark.usefixtures("_in_a_worker")
@pytest.mark.parametrize("broken", [b"", b"1", b"none of it"])
def test_a_queue_that_cannot_be_read_is_not_known(
    broken: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's code may have closed the file; and other systems have none."""
    monkeypatch.setattr(os, "pread", lambda *_: broken)
    assert collected(abs, 1)[1].queued_seconds is None
    vars(cpu_time._here).clear()

    def refuse(*_: Any) -> int:
        raise FileNotFoundError

    monkeypatch.setattr(os, "open", refuse)
    assert collected(abs, 1)[1].queued_seconds is None


def test_threads_of_the_program_read_it_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a file lets go of the GIL."""
    vars(cpu_time._here).clear()
    reads: list[int] = []

    def pread(descriptor: int, *_: int) -> bytes:
        reads.append(descriptor)
        return b"0 %d 0" % (len(reads) * 10**9)

    now = [0.0]
    monkeypatch.setattr(os, "pread", pread)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    collector = CpuTimeCollector()
    for at in (0.0, 0.01, cpu_time.RARELY_SECONDS):
        collector.enter()
        now[0] = at
        collector.leave()
    assert len(reads) == (2 if sys.platform == "linux" else 0)
    expected = 1.0 if sys.platform == "linux" else None
    assert CpuTime(*collector.take()).queued_seconds == expected


def test_calls_between_which_a_collector_pauses_are_added_up() -> None:
    """As for first items, which are measured one by one."""
    collector = CpuTimeCollector()
    for _ in range(2):
        collector.enter()
        burn(0.01)
        collector.leave()
        burn(0.01)
    assert 0.02 <= CpuTime(*collector.take()).seconds < 0.04


# --- calls that did not end ----


@linux
def test_a_call_in_progress_has_spent_what_its_thread_has() -> None:
    """As another thread reads it, by the system's number of the first."""
    slots = [-1] * SLOT_COUNT
    slots[CHUNK_STARTED] = 0
    began, go_on = threading.Event(), threading.Event()
    spent: list[float] = []

    def call(_: Any) -> None:
        before = time.thread_time()
        burn(0.05)
        spent.append(time.thread_time() - before)
        began.set()
        assert go_on.wait(PATIENCE)

    def work() -> None:
        settings = CollectSettings(cpu_time=True)
        run_chunk(call, Chunk(7, 0, [0]), item_slots=slots, collect=settings)

    assert unfinished(slots, os.getpid(), 0) is None
    worker = threading.Thread(target=work)
    before = time.monotonic()
    worker.start()
    try:
        assert began.wait(PATIENCE)
        assert worker.native_id is not None
        found = unfinished(slots, os.getpid(), worker.native_id)
        assert found is not None
        assert 0.05 <= found.seconds <= time.monotonic() - before
        assert found.cpu_seconds is not None
        assert spent[0] <= found.cpu_seconds <= found.seconds
        gone = unfinished(slots, os.getpid(), 0)
        assert gone is not None
        assert gone.cpu_seconds is None
    finally:
        go_on.set()
        worker.join()
    # The calls are over, and the results on their way: it takes no longer.
    found = unfinished(slots, os.getpid(), 0)
    assert found is not None
    wait_until(lambda: time.monotonic() > before + found.seconds, "time passes")
    assert unfinished(slots, os.getpid(), 0) == found
    slots[CHUNK] = -1
    assert unfinished(slots, os.getpid(), 0) is None
    assert slots[CPU_STARTED] >= 0


def square(size: int) -> float:
    import numpy as np

    matrix = np.ones((size, size))
    return float((matrix @ matrix)[0, 0])


@pytest.mark.parametrize("variable", ["", "OMP_NUM_THREADS"])
def test_a_library_that_workers_limit_is_named(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its calls may take less CPU time in the program, unless that is limited as well."""
    for name in thread_limits.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "1")
    ends: list[HookContext] = []
    hooks = HookManager()
    hooks.register(HookEvent.POST_EXECUTE, ends.append)
    execute(square, [300] * 4, executor="process", n_jobs=2, chunksize=1, hooks=hooks)
    assert ("measured_speedup" in ends[0].metadata) <= bool(variable)


def test_without_such_a_library_nothing_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor without such a variable."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setitem(sys.modules, "numpy", sys)
    assert thread_limits.apply()
    for name in thread_limits.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert not thread_limits.apply()
