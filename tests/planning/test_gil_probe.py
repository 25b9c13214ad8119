"""The probe's thread: what it looks at, and that none of it is left behind."""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Iterator

import pytest
from waiting import PATIENCE, wait_until

from amorsize.planning.clocks import ThreadClocks
from amorsize.planning.gil_probe import WINDOW_SECONDS, GilProbe
from amorsize.workers import thread_cache
from amorsize.workers.thread_cache import _Thread


@pytest.fixture(autouse=True)
def _without_threads_of_another_test() -> Iterator[None]:
    """A thread that is still at work would be idle in the middle of the next test."""
    others = _thread._count()
    yield
    wait_until(lambda: _thread._count() <= others, "the end of the probe's thread")


class RecordingLook:
    """Has seen enough after a number of looks."""

    def __init__(self, enough: int) -> None:
        self._enough = enough
        self.seen: list[GilProbe] = []
        self.threads: set[int] = set()

    def begin(self) -> None:
        raise AssertionError("that is for whoever calls")

    def __call__(self, probe: GilProbe) -> float | None:
        self.seen.append(probe)
        self.threads.add(threading.get_ident())
        return None if len(self.seen) == self._enough else 0.002


def test_a_call_in_progress_is_looked_at_until_enough_is_seen() -> None:
    """From the probe's thread, and no more once the look has said so."""
    look = RecordingLook(enough=3)
    probe = GilProbe(time.perf_counter, look)
    assert probe.start()
    probe.enter(time.perf_counter())
    wait_until(lambda: len(look.seen) == 3, "three looks")
    probe.leave(0.0, time.perf_counter())
    probe.stop()
    assert look.seen == [probe] * 3
    assert look.threads.isdisjoint({threading.get_ident()})


def test_a_probe_that_is_stopped_before_it_begins_never_looks() -> None:
    """Very short calls are over before that."""
    look = RecordingLook(enough=1)
    probe = GilProbe(time.perf_counter, look)
    probe.stop()
    probe._run()
    assert probe.share() is None
    assert look.seen == []


@pytest.mark.parametrize(
    ("queued", "is_known"),
    [(0.0, True), (None, True), (PATIENCE, False)],
    ids=["none", "not counted", "all of it"],
)
def test_time_for_which_the_probe_has_no_cpu_says_nothing(
    monkeypatch: pytest.MonkeyPatch, queued: float | None, is_known: bool
) -> None:
    """On a busy machine it gets few ticks, whether the function holds the GIL or not."""

    class Clocks:
        def begin(self) -> float | None:
            return None

        def queued(self) -> float | None:
            return queued

    monkeypatch.setattr(ThreadClocks, "of_this_thread", Clocks)
    probe = GilProbe(time.perf_counter)
    assert probe.start()
    probe.enter(began := time.perf_counter())
    wait_until(lambda: probe.window() > 2 * WINDOW_SECONDS, "a window that is long enough")
    probe.leave(began, time.perf_counter())
    probe.stop()
    assert (probe.share() is not None) == is_known


def test_threads_are_used_again_and_end_when_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that calls in a loop starts one; what forks later finds none of ours."""
    monkeypatch.setattr(thread_cache, "_IDLE_SECONDS", PATIENCE)
    ran: list[int] = []
    for turn in range(3):
        _Thread.run(lambda: ran.append(threading.get_ident()))
        wait_until(
            lambda turn=turn: len(ran) > turn and thread_cache._idle,  # type: ignore[misc]
            "an idle thread",
        )
    assert len(set(ran)) == 1
    monkeypatch.setattr(thread_cache, "_IDLE_SECONDS", 0.01)
    _Thread.run(lambda: None)
    wait_until(lambda: not thread_cache._idle, "the end of all threads")
