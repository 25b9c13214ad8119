"""Runs that are over before anything is planned, and what is begun with at once."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_time import FakeTime
from hypothesis import given
from hypothesis import strategies as st
from planned import ALONE, PROCESSES, THREADS, Early, InTurn, PlanWith
from waiting import PATIENCE, wait_until

import amorsize
from amorsize.hooks import HookEvent, HookManager
from amorsize.planning.known_functions import KNOWN
from amorsize.planning.observations import Observations
from amorsize.planning.plan import Choice, StartWorkers
from amorsize.planning.workload import Workload
from amorsize.testing import RecordingHook, assert_contract


class Letters(list[int]):
    """A list of which one never knows."""


@pytest.fixture(autouse=True)
def no_warm_workers() -> None:
    amorsize.shutdown()


@given(
    size=st.integers(0, 700),
    kind=st.sampled_from([list, tuple, range, Letters, iter, set]),
)
def test_the_results_are_those_of_a_comprehension(size: int, kind: Any) -> None:
    """For every input; each item once."""
    calls: list[int] = []

    def work(item: int) -> int:
        calls.append(item)
        return item * 3

    data = range(size) if kind is range else kind(range(size))
    assert amorsize.execute(work, data) == [item * 3 for item in range(size)]
    assert calls == list(range(size))


def test_very_short_items_stay_in_the_calling_thread(fake_time: FakeTime) -> None:
    """However many; also when the function is known by then."""
    threads: set[int] = set()

    def work(item: int) -> int:
        fake_time.now += 1e-7
        threads.add(threading.get_ident())
        return -item

    for _ in range(3):
        assert amorsize.execute(work, range(-100_000, 0)) == list(range(100_000, 0, -1))
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize("at", [0, 3, 100, 290, 5000])
def test_what_the_function_raises_is_raised_as_with_hooks(at: int, hooks: HookManager) -> None:
    """The same exception, with the same note, and a traceback that begins with the caller."""

    def work(item: int) -> int:
        if item == at:
            raise KeyError(item)
        return item

    seen = []
    for observed_by in (None, hooks):
        with pytest.raises(KeyError) as caught:
            amorsize.execute(work, range(10_000), hooks=observed_by)
        frames = traceback.extract_tb(caught.value.__traceback__)
        seen.append((caught.value.args, caught.value.__notes__, frames[-1].name))
    assert seen[0] == seen[1]
    assert seen[0][0] == (at,)
    assert f"item {at}" in " ".join(seen[0][1])


@pytest.mark.parametrize("since", [0, 100, 1000])
def test_a_list_that_the_function_makes_longer(since: int, hooks: HookManager) -> None:
    """The results are those of a run that is observed."""

    def run(hooks: HookManager | None) -> list[int]:
        data = list(range(2000))

        def grow(item: int) -> int:
            if item >= since and len(data) < 2100:
                data.append(item)
            return item

        return amorsize.execute(grow, data, hooks=hooks)

    results = run(None)
    assert results[:2000] == list(range(2000))
    assert len(results) == len(run(hooks))


@pytest.mark.parametrize(("size", "at"), [(20, 10), (1000, 100), (1000, 500), (1000, 999)])
def test_a_list_that_the_function_empties(size: int, at: int) -> None:
    """What it raises is raised, with its item; where it raises nothing, that is an error, too."""
    data = list(range(size))

    def empty(item: int, fails: bool) -> int:
        if item == at:
            data.clear()
            if fails:
                raise KeyError(item)
        return item

    with pytest.raises(KeyError) as caught:
        amorsize.execute(lambda item: empty(item, True), data)
    assert caught.value.args == (at,)
    assert f"item {at}" in " ".join(caught.value.__notes__)
    data = list(range(size))
    if at == 500:  # in the sample, and after the last, it ends as a loop does
        with pytest.raises(RuntimeError, match="lost items while the function went over it"):
            amorsize.execute(lambda item: empty(item, False), data)


def test_a_list_that_is_emptied_in_the_sample_ends_there() -> None:
    """As a loop over it does."""
    data = list(range(20))

    def empty(item: int) -> int:
        if item == 2:
            data.clear()
        return item

    assert amorsize.execute(empty, data) == [0, 1, 2]


class Unhashable:
    """A callable that may not be compared."""

    def __call__(self, item: int) -> int:
        return item + 1

    def __hash__(self) -> int:
        raise ValueError("no hash")

    def __eq__(self, other: object) -> bool:
        raise ValueError("ambiguous")


def test_nothing_of_a_function_runs_but_its_calls() -> None:
    """It is remembered by its identity."""
    for func in (Unhashable(), Unhashable()):
        assert amorsize.execute(func, [1, 2, 3]) == [2, 3, 4]


@pytest.mark.parametrize(("seconds", "short"), [(1e-6, True), (0.002, False)])
def test_a_function_is_short_only_where_its_calls_were(
    seconds: float, short: bool, fake_time: FakeTime
) -> None:
    """An input that the sample exhausts shows nothing of that."""

    def work(item: int) -> int:
        fake_time.now += seconds
        return item

    for data in ([], [1], [1, 2, 3]):
        assert amorsize.execute(work, data) == data
        assert KNOWN.recall(work).short == (short and bool(data))
    assert amorsize.execute(work, range(6)) == list(range(6))
    assert KNOWN.recall(work).short == short


@pytest.mark.parametrize("choice", [THREADS, PROCESSES])
def test_items_that_turn_out_long_are_shared_after_all(
    plan_with: PlanWith, choice: Choice, tmp_path: Path
) -> None:
    """A run that began alone goes over to workers; each item runs once."""
    here, asked = (os.getpid(), threading.get_ident()), tmp_path / "asked"

    def is_long(seen: Observations) -> bool:
        is_near_end = seen.left is not None and seen.left < 100
        if is_near_end and seen.deviating_seconds:
            asked.touch()
        return is_near_end

    plan_with(InTurn(ALONE, choice, at=is_long))

    def work(item: int) -> tuple[int, int, int]:
        who = os.getpid(), threading.get_ident()
        if item >= 3000 and who == here:
            wait_until(asked.exists, "a question to the planner")
        return item, *who

    results = amorsize.execute(work, range(3100))
    assert [item for item, _, _ in results] == list(range(3100))
    assert {(pid, thread) for _, pid, thread in results[:3000]} == {here}
    assert here not in {(pid, thread) for _, pid, thread in results[-50:]}


def test_who_registers_meanwhile_is_notified(recorder: RecordingHook, hooks: HookManager) -> None:
    """The function itself may register a hook: the run's events come, all of them."""
    default = amorsize.get_default_manager()

    def work(item: int) -> int:
        if item == 700:
            for event in HookEvent:
                default.register(event, recorder)
        return item

    assert amorsize.execute(work, range(1000), executor="serial") == list(range(1000))
    assert_contract(recorder.contexts)
    (post,) = recorder.of(HookEvent.POST_EXECUTE)
    assert (post.items_completed, post.metadata["executor_type"]) == (1000, "serial")


def test_numbers_of_an_execution_inside_of_a_chunk_arrive(hooks: HookManager) -> None:
    """The inner one has no hooks, and is part of the outer one's chunk."""
    rows: list[int] = []
    hooks.register(
        HookEvent.ON_CHUNK_COMPLETE,
        lambda context: rows.append(context.metadata["user_metrics"]["rows"]["value"]),
    )

    def inner(item: int) -> int:
        amorsize.count("rows", item)
        return item

    amorsize.execute(lambda item: sum(amorsize.execute(inner, [item, 1])), [1, 2, 3], hooks=hooks)
    assert sum(rows) == 9


def test_ctrl_c_ends_it() -> None:
    """As a loop does."""

    def work(item: int) -> int:
        if item == 800:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(PATIENCE)
        return item

    with pytest.raises(KeyboardInterrupt):
        amorsize.execute(work, range(10_000))


def test_ctrl_c_in_a_first_call_leaves_no_worker_at_work(
    tmp_path: Path, plan_with: PlanWith
) -> None:
    """Also where nobody observes: what was begun is ended."""
    flag = tmp_path / "begun"
    plan_with(Early(StartWorkers("process", 2, 1)))

    def work(item: int) -> int:
        if item == 0:
            deadline = time.monotonic() + PATIENCE
            while not flag.exists() and time.monotonic() < deadline:
                sum(range(100_000))
            os.kill(os.getpid(), signal.SIGINT)
            while time.monotonic() < deadline:
                sum(range(1000))
        flag.touch()
        time.sleep(PATIENCE)
        return item

    with pytest.raises(KeyboardInterrupt):
        amorsize.execute(work, range(6))
    from amorsize.engines.process.pool import pool

    assert flag.exists()
    assert len(pool.pids()) <= 1  # the one that had no work may stay warm


# --- what an earlier run has shown ----


def compute(item: int) -> tuple[int, int]:
    sum(range(4_000_000))  # too long for the caller's thread to go on while workers start
    return item, os.getpid()


def pause(item: int) -> tuple[int, int]:
    time.sleep(0.02)
    return item, threading.get_ident()


@pytest.fixture
def forgetful() -> Iterator[None]:
    """Nothing is known of the functions before, nor after."""
    yield
    for func in (compute, pause):
        KNOWN.remember(func, workload=None)


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("func", [compute, pause])
def test_a_function_that_is_known_is_begun_with_at_once(
    func: Callable[[int], tuple[int, int]], hooks: HookManager, recorder: RecordingHook
) -> None:
    """It is not measured again: all its workers begin with the first call."""
    busy, wait = (1.0, 0.0) if func is compute else (0.0, 1.0)
    KNOWN.remember(func, workload=Workload(12, 5, 7, 5.0, 1.0, busy, busy, wait), sent_type=int)
    results = amorsize.execute(func, range(12), hooks=hooks)
    assert [item for item, _ in results] == list(range(12))
    assert_contract(recorder.contexts)
    (post,) = recorder.of(HookEvent.POST_EXECUTE)
    assert post.metadata["sampled_items"] == 1
    assert post.metadata["head_start_items"] >= 1
    done = recorder.of(HookEvent.ON_CHUNK_COMPLETE)
    chunks = {each.metadata["chunk_start"]: each for each in done}
    assert chunks[1].metadata["dispatched_at"] < chunks[0].metadata["started_at"]
    assert results[0][1] != results[1][1]


@pytest.mark.usefixtures("forgetful")
def test_a_function_that_has_changed_is_measured_again() -> None:
    """What was known of it holds no more once a call takes three times as long, or a third."""
    known = Workload(None, 5, 40, 0.0, PATIENCE, 0.0, 0.0, PATIENCE)
    KNOWN.remember(pause, workload=known)
    assert amorsize.execute(pause, range(40), return_optimization_result=True)[1].n_jobs > 1
    again = KNOWN.recall(pause).workload
    assert again is not None
    assert 0.02 <= again.item_seconds < PATIENCE / 3


class Locked:
    """Does not pickle."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


def test_items_of_another_type_are_tried_first() -> None:
    """What could be sent for one shows nothing of the results for another."""

    def work(item: Any) -> Any:
        sum(range(300_000))
        return item if isinstance(item, int) else Locked()

    assert amorsize.execute(work, range(100)) == list(range(100))
    assert len(amorsize.execute(work, ["a"] * 60)) == 60


INTERRUPTED = """
import signal, sys, threading, time
import amorsize
from amorsize.planning.known_functions import KNOWN
from amorsize.planning.workload import Workload

def pause(item):
    time.sleep(0.02)
    return item

interrupted = 0
for turn in range(12):
    KNOWN.remember(pause, workload=Workload(None, 5, 40, 0.0, 0.02, 0.0, 0.0, 0.02))
    kill = signal.pthread_kill
    args = threading.main_thread().ident, signal.SIGINT
    timer = threading.Timer(0.0005 * (turn + 1), kill, args)
    try:
        timer.start()
        amorsize.execute(pause, list(range(400)))
        timer.join()
        time.sleep(0.1)  # a signal is handled a moment later
    except KeyboardInterrupt:
        interrupted += 1
deadline = time.monotonic() + float(sys.argv[1])
left = True
while left and time.monotonic() < deadline:
    left = [each.name for each in threading.enumerate() if each.name.startswith("amorsize")]
    time.sleep(0.01)
print(interrupted, left)
"""


def test_ctrl_c_while_threads_begin_leaves_none_behind() -> None:
    """A function that is known has its threads started one after the other, at once.

    In a program of its own: there a Ctrl-C meets no code of a test framework.
    """
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(PATIENCE / 2)],
        capture_output=True,
        text=True,
        check=True,
    )
    interrupted, _, left = done.stdout.strip().partition(" ")
    assert int(interrupted) > 0
    assert left == "[]"


def test_a_module_may_run_something_while_it_is_imported(tmp_path: Path) -> None:
    """Whatever looks at its first call waits for nothing that the import holds."""
    (tmp_path / "imported.py").write_text(
        "import time\nimport amorsize\n\n"
        "def work(item):\n"
        "    end = time.perf_counter() + 0.25\n"
        "    while time.perf_counter() < end:\n"
        "        pass\n"
        "    return item\n\n"
        "RESULTS = amorsize.execute(work, list(range(4)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import imported; print(imported.RESULTS)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[0, 1, 2, 3]"


@pytest.mark.parametrize("at", [3, 6, 8])
def test_nothing_runs_after_an_item_that_failed_while_workers_start(at: int) -> None:
    """Choosing measures further items, and they may fail as well."""
    calls: list[int] = []

    def work(item: int) -> int:
        calls.append(item)
        if item == at:
            raise ValueError(f"item {item}")
        sum(range(300_000))
        return item

    with pytest.raises(ValueError, match=f"item {at}"):
        amorsize.execute(work, list(range(300)))
    assert len(calls) < 100


def test_nothing_is_remembered_of_a_function_that_is_gone() -> None:
    """A closure that was made for one run is not kept alive."""

    def make() -> Callable[[int], None]:
        return lambda item: time.sleep(0.02)

    func = make()
    amorsize.execute(func, range(6))
    KNOWN.remember(func, workload=Workload(None, 5, 30, 0.0, 0.02, 0.0, 0.0, 0.02))
    count = sys.getrefcount(func)
    assert count == 2
    gc.collect()  # what other tests have left
    before = len(KNOWN)
    del func
    gc.collect()
    assert len(KNOWN) == before - 1
