"""Workers begin while the sample runs, and nothing of the contract changes.

When they do is decided by script (:mod:`planned`); that they do is real.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from planned import ALONE, PROCESSES, THREADS, Early, InTurn, PlanWith
from waiting import PATIENCE, wait_until

import amorsize
from amorsize.engines.base import Task
from amorsize.engines.process.pool import pool
from amorsize.errors import TransportError
from amorsize.hooks import HookEvent, HookManager
from amorsize.planning.observations import EarlyWork, Observations
from amorsize.planning.plan import (
    ITEMS,
    ITEMS_MEANWHILE,
    Choice,
    LookFurther,
    Plan,
    StartWorkers,
)
from amorsize.planning.planner import Planner
from amorsize.running.input import Input
from amorsize.running.measurement import Measurement
from amorsize.testing import RecordingHook, assert_contract


@pytest.fixture(autouse=True)
def no_warm_workers() -> None:
    amorsize.shutdown()


def early(engine: str) -> Early:
    """Have two workers start while the first call is in progress, with one item."""
    return Early(StartWorkers(engine, 2, 1))


def spin(done: Callable[[], bool]) -> None:
    """Compute under the GIL until ``done()``, asked now and then."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError("nobody else began")
        sum(range(100_000))


def posted(recorder: RecordingHook) -> dict[str, Any]:
    (post,) = recorder.of(HookEvent.POST_EXECUTE)
    return post.metadata


def test_processes_begin_with_other_items_while_a_first_call_computes(
    tmp_path: Path, hooks: HookManager, recorder: RecordingHook, plan_with: PlanWith
) -> None:
    """The first call ends only when another item has begun elsewhere: it did not wait for it."""
    plan_with(early("process"))
    flag = tmp_path / "begun"

    def work(item: int) -> tuple[int, int]:
        if item == 0:
            spin(flag.exists)
        else:
            flag.touch()
        with (tmp_path / f"{item}").open("a") as file:
            file.write("once")
        return item, os.getpid()

    results, plan = amorsize.execute(
        work, range(6), n_jobs=2, hooks=hooks, return_optimization_result=True
    )
    assert [item for item, _ in results] == list(range(6))
    assert results[0][1] == os.getpid()
    assert results[1][1] != os.getpid()
    assert [(tmp_path / f"{item}").read_text() for item in range(6)] == ["once"] * 6
    assert_contract(recorder.contexts)
    assert posted(recorder)["head_start_items"] == 1
    assert posted(recorder)["sampled_items"] == 1
    chunks = {each.chunk_id: each for each in recorder.of(HookEvent.ON_CHUNK_COMPLETE)}
    sampled, begun = chunks[0], chunks[1]
    assert (sampled.metadata["chunk_start"], sampled.worker_id) == (0, None)
    assert begun.metadata["chunk_start"] == 1
    assert begun.worker_id is not None
    # The flag shows that it began before the first call ended; the clock adds up calls alone.
    assert sampled.metadata["started_at"] < begun.metadata["started_at"] < sampled.timestamp
    assert plan.executor_type == "process"
    # The thread that looked at the first call is not listed among the program's.
    assert not [each for each in threading.enumerate() if each.name.startswith("Dummy")]
    assert "while the first call was in progress, workers began with 1 item" in plan.explain()


@pytest.mark.parametrize("executor", ["process", "thread"])
def test_two_items_are_enough(
    tmp_path: Path, hooks: HookManager, recorder: RecordingHook, executor: str, plan_with: PlanWith
) -> None:
    """The first call is one of them: the other does not wait for its end."""
    plan_with(early(executor))
    flag = tmp_path / "begun"

    def work(item: int) -> int:
        if item == 1:
            flag.touch()
        elif executor == "process":
            spin(flag.exists)
        else:
            wait_until(flag.exists, "the other item")
        return item

    assert amorsize.execute(work, [0, 1], hooks=hooks) == [0, 1]
    assert_contract(recorder.contexts)
    assert posted(recorder)["executor_type"] == executor
    assert posted(recorder)["head_start_items"] == 1


@pytest.mark.parametrize("way", ["execute", "stream"])
def test_threads_begin_while_a_first_call_waits(
    hooks: HookManager, recorder: RecordingHook, way: str, plan_with: PlanWith
) -> None:
    """It ends only when one has begun."""
    plan_with(early("thread"))
    begun = threading.Event()

    def work(item: int) -> int:
        if item > 0:
            begun.set()
        elif not begun.wait(PATIENCE):
            raise TimeoutError("nobody else began")
        return item

    results = list(getattr(amorsize, way)(work, range(40), hooks=hooks))
    assert results == list(range(40))
    assert_contract(recorder.contexts)
    assert posted(recorder)["head_start_items"] >= 1


def test_threads_are_added_while_a_first_call_waits(
    hooks: HookManager, recorder: RecordingHook, plan_with: PlanWith
) -> None:
    """Few at first; it ends only when many times as many are at work."""
    many = 48
    plan_with(
        Early(
            StartWorkers("thread", 4, 7, look_again_seconds=0.01),
            StartWorkers("thread", 8, 8, look_again_seconds=0.01),
            StartWorkers("thread", many, 2 * many - 16),
        )
    )
    at_work: set[int] = set()
    enough = threading.Event()

    def work(item: int) -> int:
        at_work.add(threading.get_ident())
        if len(at_work) >= many:
            enough.set()
        if not enough.wait(PATIENCE):
            raise TimeoutError(f"only {len(at_work)} threads began")
        return item

    results = amorsize.execute(work, range(200), hooks=hooks)
    assert results == list(range(200))
    assert_contract(recorder.contexts)
    assert posted(recorder)["head_start_items"] >= many - 1


def test_a_generator_is_not_drawn_from_two_threads(
    hooks: HookManager, recorder: RecordingHook, plan_with: PlanWith
) -> None:
    """Only what can be had by its index is begun beside the sample."""
    drawn_by = set()
    looked = threading.Event()

    class Asked(Early):
        def next(self, seen: Observations) -> Plan | None:
            if seen.in_progress and seen.early is not None and seen.early.engine is not None:
                looked.set()
            return super().next(seen)

    start = StartWorkers("thread", 8, 15, look_again_seconds=0.001)
    plan_with(Asked(start, start))

    def items() -> Any:
        for item in range(8):
            drawn_by.add(threading.get_ident())
            yield item

    def work(item: int) -> int:
        if item == 0:
            assert looked.wait(PATIENCE)
        return item

    assert amorsize.execute(work, items(), hooks=hooks) == list(range(8))
    assert drawn_by == {threading.get_ident()}
    assert posted(recorder)["head_start_items"] == 0
    assert_contract(recorder.contexts)


def test_the_caller_works_on_while_workers_start(
    hooks: HookManager, recorder: RecordingHook, plan_with: PlanWith
) -> None:
    """Processes take a moment to start: the sample goes on, each item once."""

    class Meanwhile(InTurn):
        def next(self, seen: Observations) -> Plan | None:
            early = seen.early
            if seen.plan is None and seen.sample.asked_items and early is not None:
                if early.engine is None:
                    return StartWorkers("process", 2)
                if not early.is_up:
                    return LookFurther(ITEMS_MEANWHILE, 1900)
            return super().next(seen)

    plan_with(Meanwhile(PROCESSES))

    def work(item: int) -> int:
        return item + 0 * sum(range(50_000))

    assert amorsize.execute(work, range(2000), hooks=hooks, chunksize=10) == list(range(2000))
    assert_contract(recorder.contexts)
    assert posted(recorder)["executor_type"] == "process"
    assert posted(recorder)["sampled_items"] > 5


def test_with_a_time_limit_the_caller_does_not_work_on(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """An item that hangs must hang where it can be ended."""

    def work(item: int) -> int:
        return item + 0 * sum(range(50_000))

    assert amorsize.execute(work, range(500), n_jobs=2, item_timeout=30, hooks=hooks)
    assert posted(recorder)["sampled_items"] <= 5
    assert_contract(recorder.contexts)


def test_a_first_call_that_fails_ends_what_was_begun(
    tmp_path: Path, hooks: HookManager, recorder: RecordingHook, plan_with: PlanWith
) -> None:
    """The user's own exception, and every start has its end."""
    plan_with(early("process"))
    flag = tmp_path / "begun"

    def work(item: int) -> int:
        if item == 0:
            spin(flag.exists)
            raise ValueError("the first")
        flag.touch()
        time.sleep(PATIENCE)
        return item

    began = time.monotonic()
    with pytest.raises(ValueError, match="the first"):
        amorsize.execute(work, range(6), n_jobs=2, hooks=hooks)
    assert time.monotonic() - began < PATIENCE
    assert_contract(recorder.contexts)
    assert posted(recorder)["status"] == "error"
    assert len(recorder.of(HookEvent.ON_WORKER_START)) == len(recorder.of(HookEvent.ON_WORKER_END))


def test_a_worker_that_dies_meanwhile_is_reported(
    tmp_path: Path, hooks: HookManager, recorder: RecordingHook, plan_with: PlanWith
) -> None:
    """With its item, as any other."""
    plan_with(early("process"))
    flag = tmp_path / "begun"
    here = os.getpid()

    def work(item: int) -> int:
        if item == 0:
            spin(flag.exists)
        elif item == 1:
            flag.touch()
            assert os.getpid() != here
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    with pytest.raises(amorsize.errors.WorkerDiedError, match="SIGKILL") as caught:
        amorsize.execute(work, range(6), n_jobs=2, hooks=hooks)
    assert caught.value.item_index == 1
    assert_contract(recorder.contexts)


def test_ctrl_c_in_the_first_call_ends_what_was_begun(
    tmp_path: Path, hooks: HookManager, recorder: RecordingHook, plan_with: PlanWith
) -> None:
    """And no worker is left behind at work."""
    plan_with(early("process"))
    flag = tmp_path / "begun"

    def work(item: int) -> int:
        if item == 0:
            spin(flag.exists)
            os.kill(os.getpid(), signal.SIGINT)
            spin(lambda: False)
        flag.touch()
        time.sleep(PATIENCE)
        return item

    with pytest.raises(KeyboardInterrupt):
        amorsize.execute(work, range(6), n_jobs=2, hooks=hooks)
    assert_contract(recorder.contexts)
    assert posted(recorder)["status"] == "cancelled"
    assert len(pool.pids()) <= 1  # the one that had no work may stay warm


def test_a_function_that_cannot_be_sent_begins_nothing(
    hooks: HookManager, recorder: RecordingHook, plan_with: PlanWith
) -> None:
    """It is run as if nothing had been tried."""
    lock = threading.Lock()
    states: list[EarlyWork] = []

    class Noted(Early):
        def next(self, seen: Observations) -> Plan | None:
            if seen.early is not None:
                states.append(seen.early)
            return super().next(seen)

    plan_with(Noted(StartWorkers("process", 2, 1)))

    def work(item: int) -> int:
        if item == 0:
            wait_until(lambda: any(state.refused for state in states), "a start that is refused")
        with lock:
            return item

    assert amorsize.execute(work, range(4), hooks=hooks) == list(range(4))
    assert_contract(recorder.contexts)


def test_a_result_that_cannot_be_sent_is_named(
    tmp_path: Path, hooks: HookManager, plan_with: PlanWith
) -> None:
    """The item was begun before the first result could show it: it does not run twice."""
    plan_with(early("process"))
    flag = tmp_path / "begun"

    def work(item: int) -> Any:
        if item == 0:
            spin(flag.exists)
        else:
            flag.touch()
        return threading.Lock()

    with pytest.raises(TransportError, match=r"result of item [1-5], a lock, cannot be sent back"):
        amorsize.execute(work, range(6), n_jobs=2, hooks=hooks)


@pytest.mark.parametrize("choice", [PROCESSES, THREADS])
def test_items_that_turn_out_very_short_are_taken_back(
    hooks: HookManager, recorder: RecordingHook, choice: Choice, plan_with: PlanWith
) -> None:
    """Each runs once, the later ones here."""
    data = range(50_000)
    plan_with(InTurn(choice, ALONE, at=lambda seen: seen.left is not None and seen.left < 49_900))
    assert amorsize.execute(lambda item: item, data, hooks=hooks) == list(data)
    assert_contract(recorder.contexts)
    metadata = posted(recorder)
    assert metadata["executor_type"] == choice.engine.type
    assert metadata["changed_to"] == "serial"
    starts = recorder.of(HookEvent.ON_WORKER_START)
    assert starts[-1].metadata["pid"] == os.getpid()
    ends = [each.metadata["exit_reason"] for each in recorder.of(HookEvent.ON_WORKER_END)]
    assert ends == ["finished"] * len(starts)


def test_workers_that_were_asked_for_are_kept(hooks: HookManager, recorder: RecordingHook) -> None:
    """Who names them wants them, however short the items are."""
    assert amorsize.execute(abs, range(100_000), executor="thread", hooks=hooks)
    assert "changed_to" not in posted(recorder)
    assert_contract(recorder.contexts)


# --- the template that starts before it is planned what for ----


PROGRAM = """
import sys
from amorsize.engines.base import Task
from amorsize.planning.machine import SystemFacts
from amorsize.planning.observations import Observations, Sample
from amorsize.planning.planner import Planner
from amorsize.running.input import Input
from amorsize.running.measurement import Measurement

started = []

def hook(event, arguments):
    if event == "os.posix_spawn":
        started.append("amorsize.planning.cost" in sys.modules)
        REFUSE

sys.addaudithook(hook)
seen = Observations(machine=SystemFacts.of(2), loading_seconds=0.01)
measurement = Measurement(Task(abs), Input([0] * 300), seen, Planner(), starts_early=True)
seen.left = 298
seen.sample = Sample(
    taken=2, seconds=0.02, item_seconds=[0.01] * 2, cpu_seconds=0.02, process_cpu_seconds=0.02,
    input_seconds=[0.0] * 2, gil_share=0.0, asked_items=5, asked_together=True,
)
print(measurement.planner.next(seen))
measurement.start_template()
print(measurement.planner.next(seen).at, started)
import amorsize
print(amorsize.execute(abs, [-1, -2], executor=ENGINE), len(started))
amorsize.shutdown()
"""


@pytest.mark.parametrize(
    ("refuse", "engine", "last"),
    [("pass", "process", "[1, 2] 1"), ("raise OSError", None, "[1, 2] 1")],
    ids=["started", "refused"],
)
def test_the_template_starts_before_what_compares_engines_is_loaded(
    tmp_path: Path, refuse: str, engine: str | None, last: str
) -> None:
    """In a process that has run nothing yet; a run takes it, or meets later that there is none."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.replace("REFUSE", refuse).replace("ENGINE", repr(engine)))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"StartTemplate()\nmemory [False]\n{last}\n"


def test_workers_that_are_abandoned_begin_nothing_more() -> None:
    """A call that is looked at only once the run is over starts none."""
    measurement = Measurement(
        Task(abs), Input([1, 2]), Observations(), Planner(), starts_early=True
    )
    measurement.abandon()
    measurement.early.start(StartWorkers("thread", 2, 1))
    assert measurement.early.state == EarlyWork(refused=True)
    assert measurement.early.hand_over("thread", 2) is None


def test_the_cpu_time_of_a_look_is_not_the_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that waits does not look parallel inside because something is loaded beside."""

    def compute(self: Planner, seen: Observations) -> None:
        began = time.thread_time()
        while time.thread_time() < began + 0.1:
            pass

    monkeypatch.setattr(Planner, "next", compute)
    measurement = Measurement(
        Task(time.sleep), Input([0.5, 0.5]), Observations(), Planner(), starts_early=True
    )
    measurement.look(LookFurther(ITEMS, 1))
    assert measurement.first.results == [None]
    assert measurement.first.sample.process_cpu_seconds < 0.05
