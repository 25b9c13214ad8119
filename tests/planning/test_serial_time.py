"""What a serial run would have taken: tables of chunks, and of what is known of their calls."""

from __future__ import annotations

from typing import Any

import pytest

from amorsize.planning.serial_time import ALIKE_CPU_TIMES, CLOSE, SerialTime
from amorsize.planning.workload import Workload
from amorsize.workers.cpu_time import CpuTime

COMPUTES = Workload(None, 5, 1000, 0.0, 0.1, 0.1, 0.1, is_sure=True)
RELEASES = COMPUTES._replace(gil_seconds=0.0)
WAITS = COMPUTES._replace(cpu_seconds=0.02, gil_seconds=0.02, wait_seconds=0.08)
PARALLEL = COMPUTES._replace(inner_parallelism=2.0)


def shown(*chunks: tuple[float, CpuTime | None], **others: Any) -> SerialTime:
    """A run that has shown these chunks, of one item each: on eight workers and two cores."""
    times = SerialTime()
    for seconds, cpu in chunks:
        times.add(1, seconds, cpu, **{"workers": 8, "cores": 2} | others)
    return times


def had(cpu: float, queued: float | None = 0.0, **others: Any) -> CpuTime:
    """Seconds on a CPU, and in the queue for one."""
    return CpuTime(cpu, queued_seconds=queued, **others)


@pytest.mark.parametrize(
    ("times", "elapsed", "speedup"),
    [
        # Eight processes that compute on two cores are in the queue for three quarters.
        (shown(*[(8.0, had(2.0, 6.0))] * 8), 8.0, 2.0),
        (shown(*[(8.0, had(0.0, 0.1))] * 8), 8.0, 7.95),
        (shown(*[(4.0, had(1.0, 2.0))] * 8), 8.0, 2.0),
        # Two of them, beside another program that has a tenth of each core.
        (shown(*[(2.5, had(1.6, 0.9))] * 2, workers=2), 2.5, 1.32),
        # Threads that wait, and hardly compute.
        (shown(*[(1.0, had(0.01, other_seconds=0.1))] * 8, threads=True), 1.0, 7.6),
        # One after the other there is nothing to compete with, whatever else the process does.
        (shown(*[(1.0, had(0.2, other_seconds=3.0))] * 8, workers=1), 8.4, 8 / 8.4),
        (shown(*[(1.0, None)] * 8, workers=1), 10.0, 0.8),
    ],
    ids=["computes", "waits", "both", "busy machine", "threads", "alone", "alone, not counted"],
)
def test_bounds_that_are_close_need_no_knowledge(
    times: SerialTime, elapsed: float, speedup: float
) -> None:
    """The time of the calls, less that in which they had to wait for each other."""
    assert times.speedup(elapsed) == pytest.approx(speedup)
    guess = COMPUTES._replace(is_sure=False)
    assert times.speedup(elapsed, known=guess) == pytest.approx(speedup)


@pytest.mark.parametrize(
    "times",
    [
        # Threads under the GIL, or without it: both look like this.
        shown(*[(8.0, had(1.0, other_seconds=7.0))] * 8, threads=True),
        # Threads or processes work for the call, and may be in the queue for it.
        shown(*[(8.0, had(0.0, other_seconds=2.0))] * 8),
        shown(*[(8.0, had(0.0, children_seconds=2.0))] * 8),
        # They do, and the thread that calls spins meanwhile: it seems to compute all the time.
        shown(*[(2.0, had(2.0, other_seconds=1.9))] * 8, workers=2),
        # Beside four other programs: each has a third of a core. By thread, one alone had two
        # fifths; by group, twice as much.
        shown(*[(6.0, had(2.0, 4.0))] * 2, workers=2),
        # Threads that have a fifth of one core for all of them.
        shown(*[(8.0, had(0.2, 7.8))] * 8, threads=True),
        # The system does not say how long they were in the queue.
        shown(*[(8.0, had(2.0, None))] * 8),
        shown(*[(8.0, None)] * 8),
        SerialTime(),
    ],
    ids=[
        "threads",
        "inner threads",
        "children",
        "spinning",
        "busy machine",
        "busy threads",
        "no scheduler",
        "not counted",
        "none",
    ],
)
def test_else_it_is_not_known(times: SerialTime) -> None:
    """Not 0, and no guess."""
    assert times.speedup(8.0) is None
    assert times.speedup(8.0, known=PARALLEL) is None
    assert times.speedup(8.0, known=WAITS._replace(is_sure=False)) is None


def test_of_calls_that_use_several_cores_it_is_known_only_where_each_ran_alone() -> None:
    """Beside others they have fewer, and their threads wait for each other."""
    beside = shown(*[(1.0, had(1.0))] * 8)
    assert beside.speedup(4.0) == pytest.approx(2.0)
    assert beside.speedup(4.0, known=PARALLEL) is None
    alone = shown(*[(1.0, had(1.0, other_seconds=1.0))] * 8, workers=1)
    assert alone.speedup(8.0, known=PARALLEL) == pytest.approx(1.0)


def test_a_library_that_workers_limit_may_be_faster_alone() -> None:
    """Unless the calls were seen to use one core, or hardly compute."""
    limited = shown(*[(1.0, had(1.0, is_limited=True))] * 8)
    assert limited.speedup(4.0) is None
    assert limited.speedup(4.0, known=COMPUTES) == pytest.approx(2.0)
    assert limited.speedup(4.0, known=COMPUTES._replace(is_sure=False)) == pytest.approx(2.0)
    assert limited.speedup(4.0, known=COMPUTES._replace(inner_parallelism=1.4)) is None
    assert limited.speedup(4.0, known=PARALLEL) is None
    waits = shown(*[(1.0, had(0.1, is_limited=True))] * 8)
    assert waits.speedup(4.0) == pytest.approx(1.9)


def test_a_little_help_from_other_threads_of_a_worker_widens_the_bounds() -> None:
    """Of a library that logs, or of Dask: the error is within what the bounds are apart."""
    times = shown(*[(1.0, had(1.0, other_seconds=0.1))] * 8, workers=2)
    assert times.speedup(4.0) == pytest.approx(1.9)


THREADS = shown(*[(8.0, had(1.0, other_seconds=7.0))] * 8, threads=True)


def test_what_is_known_of_calls_says_nothing_of_a_busy_machine() -> None:
    """How much of it a serial run would have had is not known."""
    busy = shown(*[(8.0, had(0.2, 7.8, other_seconds=1.4))] * 8, threads=True)
    assert busy.speedup(8.0, known=COMPUTES) is None
    assert busy.speedup(8.0, known=WAITS) is None


@pytest.mark.parametrize("known", [COMPUTES, RELEASES])
def test_calls_that_compute_take_their_cpu_time(known: Workload) -> None:
    """Of threads under the GIL that is as long as the run, of others twice as long."""
    assert THREADS.speedup(8.0, known=known) == pytest.approx(1.0)
    assert THREADS.speedup(4.0, known=known) == pytest.approx(2.0)


def test_calls_that_wait_take_the_waits_that_were_measured_as_well() -> None:
    """Where they are the same calls, which their CPU time shows."""
    mixed = shown(*[(0.4, had(0.02, other_seconds=0.3))] * 100, threads=True)
    assert mixed.speedup(2.0, known=WAITS) == pytest.approx(5.0)
    others = WAITS._replace(cpu_seconds=0.02 * ALIKE_CPU_TIMES * 1.01)
    assert mixed.speedup(2.0, known=others) is None
    # Never more than they took, nor less than they cannot have taken.
    longer = WAITS._replace(wait_seconds=80.0)
    assert mixed.speedup(2.0, known=longer) == pytest.approx(20.0)
    shorter = WAITS._replace(wait_seconds=1e-6)
    assert mixed.speedup(2.0, known=shorter) == pytest.approx(5.0)
    # The first items count by themselves: their waits are in their time.
    mixed.add(5, 0.5, had(0.1), workers=1)
    assert mixed.speedup(2.1, known=WAITS) == pytest.approx(5.0)


def test_hyperthreads_that_share_a_core_compute_no_more_than_it_can() -> None:
    """CPU time is then longer than alone."""
    times = shown(*[(4.0, had(4.0))] * 2)
    assert times.speedup(4.0) == pytest.approx(2.0)
    assert times.speedup(4.0, capacity=1.3) == pytest.approx(1.3)
    assert times.speedup(4.0, capacity=2.0) == pytest.approx(2.0)
    waits = shown(*[(4.0, had(0.1))] * 20)
    assert waits.speedup(4.0, capacity=1.3) == pytest.approx(20.0)


def test_a_serial_run_draws_its_input_too() -> None:
    """One item after the other: that takes as long for it."""
    times = shown(*[(1.0, had(1.0))] * 4)
    assert times.speedup(4.0, input_seconds=2.0) == pytest.approx(1.5)


def test_calls_that_did_not_end_widen_the_bounds() -> None:
    """A few change little; where they are most of the time, nothing is known."""
    times = shown(*[(1.0, had(1.0))] * 4)
    times.add_unfinished(0.5)
    assert times.speedup(2.0) == pytest.approx(2.125)
    times.add_unfinished(4 / CLOSE - 4)
    assert times.speedup(2.0) is None
    assert times.speedup(2.0, known=COMPUTES) is None


def test_what_took_no_time_is_counted() -> None:
    """The item of a dead worker, which is reported on its own."""
    times = shown((1.0, had(0.2, other_seconds=0.8)), (0.0, None), threads=True)
    assert times.speedup(1.0, known=COMPUTES) == pytest.approx(0.2)
