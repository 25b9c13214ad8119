"""Executions beside and inside one another, and in children of every kind."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from ports import free_port
from waiting import PATIENCE, wait_until

import amorsize
from amorsize import HookContext, HookEvent, HookManager
from amorsize.testing import RecordingHook, assert_contract


def test_several_threads_execute_at_once_and_their_events_do_not_mix(mode: str) -> None:
    """Each run has its own results, its own events and its own workers' ends."""
    everything = RecordingHook().attach(amorsize.get_default_manager())
    own = [HookManager() for _ in range(6)]
    recorders = [RecordingHook().attach(hooks) for hooks in own]
    results: dict[int, list[int]] = {}

    def run(number: int) -> None:
        results[number] = amorsize.execute(
            lambda x: x * number,
            range(60),
            executor=mode,
            n_jobs=2,
            chunksize=3,
            hooks=own[number],
            name=f"run {number}",
        )

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: [x * number for x in range(60)] for number in range(6)}
    for number, recorder in enumerate(recorders):
        assert_contract(recorder.contexts)
        assert {c.metadata["function"] for c in recorder.contexts} == {f"run {number}"}
        assert len({c.metadata["execution_id"] for c in recorder.contexts}) == 1
    assert_contract(everything.contexts)
    assert len(everything.contexts) == sum(len(recorder.contexts) for recorder in recorders)


def test_a_second_run_gets_its_share_of_workers_while_the_first_goes_on(tmp_path: Path) -> None:
    """The first run has more workers than its share, and gives one back between two chunks."""
    hooks = HookManager()
    recorder = RecordingHook().attach(hooks)
    stop = tmp_path / "stop"

    def endless() -> Any:
        while not stop.exists():
            yield 0.01

    def first() -> None:
        amorsize.execute(
            lambda seconds: __import__("time").sleep(seconds),
            endless(),
            executor="process",
            n_jobs=4,
            chunksize=1,
            hooks=hooks,
        )

    thread = threading.Thread(target=first)
    thread.start()
    recorder.wait_for(HookEvent.ON_WORKER_START, PATIENCE, count=4)
    other = HookManager()
    seen = RecordingHook().attach(other)

    def wait_for_the_other(x: int) -> int:
        (tmp_path / f"here {x}").touch()
        wait_until((tmp_path / f"here {1 - x}").exists, "the other")
        return x

    # Both items wait for each other: they need two workers at the same time.
    results = amorsize.execute(
        wait_for_the_other, [0, 1], executor="process", n_jobs=2, chunksize=1, hooks=other
    )
    stop.touch()
    thread.join()
    assert results == [0, 1]
    assert len(seen.of(HookEvent.ON_WORKER_START)) == 2
    assert_contract(seen.contexts)
    assert_contract(recorder.contexts)


def test_a_hook_may_execute(mode: str) -> None:
    """The inner run never waits for workers of the outer one."""
    hooks = HookManager()
    recorder = RecordingHook().attach(hooks)
    inner: list[Any] = []

    def run_inside(context: HookContext) -> None:
        inner.append(amorsize.execute(abs, [-1, -2], executor=mode, n_jobs=2))

    hooks.register(HookEvent.ON_CHUNK_COMPLETE, run_inside)
    assert amorsize.execute(abs, range(6), executor=mode, n_jobs=2, chunksize=3, hooks=hooks) == [
        *range(6)
    ]
    assert inner == [[1, 2], [1, 2]]
    assert hooks.get_stats()["error_counts"] == {}
    assert_contract(recorder.contexts)


def test_the_function_may_execute_and_a_worker_starts_no_workers(mode: str) -> None:
    """Nested in a worker process a run is serial or on threads, and says so."""

    def nested(x: int) -> tuple[list[int], str, bool]:
        records: list[str] = []

        class Keep(__import__("logging").Handler):  # type: ignore[misc]  # pickled by value
            def emit(self, record: Any) -> None:
                records.append(record.getMessage())

        logger = __import__("logging").getLogger("amorsize")
        keep = Keep()
        logger.addHandler(keep)
        results, plan = amorsize.execute(
            abs, [-x, x], executor="process", n_jobs=2, return_optimization_result=True
        )
        logger.removeHandler(keep)
        return results, plan.executor_type, any("runs serially there" in text for text in records)

    amorsize.shutdown()  # workers that have said it already, in another test, say it no more
    outcomes = amorsize.execute(nested, range(4), executor=mode, n_jobs=2)
    for number, (results, engine, _) in enumerate(outcomes):
        assert results == [number, number]
        assert engine == ("serial" if mode == "process" else "process")
    said = sum(said for _, _, said in outcomes)  # once per worker
    assert 1 <= said <= 2 if mode == "process" else said == 0


def test_a_chosen_engine_inside_a_worker_is_never_processes() -> None:
    """With the choice left open, too."""

    def nested(x: int) -> str:
        plan = amorsize.optimize(abs, range(3))
        _, chosen = amorsize.execute(
            lambda n: sum(range(300_000)), range(20), return_optimization_result=True
        )
        del plan
        return str(chosen.executor_type)

    engines = set(amorsize.execute(nested, range(2), executor="process", n_jobs=1))
    assert engines <= {"serial", "thread"}


CHILD = """
import os, sys
import amorsize
from amorsize import HookEvent, get_default_manager
exporter = amorsize.enable_prometheus(port=int(sys.argv[1]))
"""


def test_workers_and_spawned_children_that_import_the_same_module_open_no_port(
    tmp_path: Path,
) -> None:
    """``enable_prometheus()`` without a main guard: the parent's port, and nobody else's."""
    (tmp_path / "job.py").write_text(
        CHILD
        + """
import multiprocessing
def own(x):
    return x + 1
def child_state(_=None):
    import __main__
    return exporter.active
if __name__ == "__main__":
    assert exporter.active
    assert amorsize.execute(own, [1], executor="process") == [2]
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        assert pool.map(child_state, [0]) == [False]
    print("served", exporter.port)
"""
    )
    port = free_port()
    done = subprocess.run(
        [sys.executable, "job.py", str(port)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"served {port}\n", "")


def test_a_module_that_enables_an_exporter_on_import_is_inert_in_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function's module is imported in the worker, for real."""
    (tmp_path / "module_that_enables.py").write_text(
        "import amorsize\n"
        "exporter = amorsize.enable_prometheus(port=0)\n"
        "def state(_):\n"
        "    return exporter.active, amorsize.get_default_manager().get_hook_count()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import module_that_enables  # type: ignore[import-not-found]  # made above

    try:
        assert module_that_enables.state(0)[0] is True
        results = amorsize.execute(module_that_enables.state, [0], executor="process")
        assert results == [(False, 0)]
    finally:
        module_that_enables.exporter.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_executes_with_workers_of_its_own() -> None:
    """The parent's workers are not the child's; its exporters and hooks neither."""
    recorder = RecordingHook().attach(amorsize.get_default_manager())
    ours = set(amorsize.execute(lambda _: os.getpid(), range(4), executor="process", n_jobs=2))
    before = len(recorder.contexts)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        pids = set(amorsize.execute(lambda _: os.getpid(), range(4), executor="process", n_jobs=2))
        sender.send((pids, len(recorder.contexts)))
        amorsize.shutdown()

    process = context.Process(target=child)
    process.start()
    theirs, recorded_in_child = receiver.recv()
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert theirs.isdisjoint(ours)
    assert recorded_in_child == before
    # The parent's own workers still answer.
    assert set(amorsize.execute(lambda _: os.getpid(), range(4), executor="process", n_jobs=2)) <= (
        ours
    )


def test_first_executions_on_several_threads_start_the_engine_once() -> None:
    """None of them trips over a module that another one is still importing."""
    script = """if True:
        import threading
        import amorsize
        begin, results = threading.Barrier(8), []

        def run(item):
            begin.wait(200)
            results.append(amorsize.execute(abs, [-item], executor="process", n_jobs=1))

        threads = [threading.Thread(target=run, args=(item,)) for item in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(sorted(results))
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout == f"{[[item] for item in range(8)]}\n"
