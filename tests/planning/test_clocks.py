"""One thread's clocks, read from another."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from amorsize.planning.clocks import ThreadClocks

pytestmark = pytest.mark.skipif(
    not hasattr(time, "pthread_getcpuclockid"), reason="no clocks of threads on this system"
)


def of_this_thread() -> ThreadClocks:
    clocks = ThreadClocks.of_this_thread()
    assert clocks is not None
    return clocks


def test_the_time_on_a_cpu_is_that_of_the_thread_it_was_made_in() -> None:
    """And not that of the one which reads it."""
    clocks = of_this_thread()
    seen: list[float] = []

    def read() -> None:
        before = clocks.cpu()
        sum(range(3_000_000))
        seen.append(clocks.cpu() - before)

    reader = threading.Thread(target=read)
    before = time.thread_time()
    reader.start()
    reader.join()
    idle = time.thread_time() - before
    sum(range(3_000_000))
    assert seen[0] <= idle
    assert clocks.cpu() == pytest.approx(time.thread_time(), abs=0.005)


@pytest.mark.skipif(
    not Path("/proc/self/schedstat").exists(), reason="the kernel counts no time in its queues"
)
def test_the_time_without_a_cpu_counts_where_others_have_it() -> None:
    """Two processes that compute on the same core get half of it each."""
    core = min(os.sched_getaffinity(0))
    child = os.fork()
    if child == 0:
        os.sched_setaffinity(0, {core})
        until = time.monotonic() + 60.0  # ended below, long before
        while time.monotonic() < until:
            sum(range(10_000))
        os._exit(0)
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {core})
        clocks = of_this_thread()
        clocks.begin()
        began = time.monotonic()
        while (queued := clocks.queued()) is not None and queued < 0.01:
            assert time.monotonic() - began < 60.0
            sum(range(10_000))
        assert queued is not None
        assert queued <= time.monotonic() - began
    finally:
        os.sched_setaffinity(0, before)
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_where_the_system_counts_nothing_nothing_is_said() -> None:
    """A thread that is not there has no file."""
    clocks = ThreadClocks(time.pthread_getcpuclockid(threading.get_ident()), 2**30)
    assert clocks.begin() is None
    assert clocks.queued() is None
    assert ThreadClocks(0, threading.get_native_id()).queued() is None  # begin() was not called
