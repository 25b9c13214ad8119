"""Worker processes that are killed, exit or crash: the run ends, or goes on, and says so."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE, slowness

import amorsize
from amorsize import HookEvent, HookManager
from amorsize.errors import WorkerDiedError
from amorsize.testing import RecordingHook, assert_contract


def kill_itself(x: int) -> int:
    if x == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def exit_with_three(x: int) -> int:
    if x == 13:
        os._exit(3)
    return x


def crash(x: int) -> int:
    if x == 13:
        ctypes.string_at(0)  # a segmentation fault
    return x


def be_killed_by_the_kernel(x: int) -> int:
    if x == 13:
        # A limit with the hard end that the out-of-memory killer also chooses: SIGKILL.
        resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
        while True:
            pass
    return x


DEATHS: list[tuple[Callable[[int], int], int]] = [
    (kill_itself, -signal.SIGKILL),
    (exit_with_three, 3),
    (crash, -signal.SIGSEGV),
    (be_killed_by_the_kernel, -signal.SIGKILL),
]


@pytest.mark.parametrize(("func", "exit_code"), DEATHS, ids=[func.__name__ for func, _ in DEATHS])
def test_a_death_ends_the_run_and_names_exit_code_chunk_and_item(
    func: Callable[[int], int], exit_code: int, hooks: HookManager, recorder: RecordingHook
) -> None:
    """One ON_ERROR and that worker's ON_WORKER_END say the same; the others are cancelled."""
    with pytest.raises(WorkerDiedError, match="item 13 in chunk 3") as caught:
        amorsize.execute(func, range(20), executor="process", n_jobs=2, chunksize=4, hooks=hooks)
    ended = time.time()
    error = caught.value
    assert (error.exit_code, error.chunk_id, error.item_index) == (exit_code, 3, 13)
    assert_contract(recorder.contexts)
    (reported,) = recorder.of(HookEvent.ON_ERROR)
    assert reported.error is error
    assert (reported.chunk_id, reported.metadata["chunk_start"]) == (3, 12)
    assert reported.metadata["item_index"] == 13
    ends = {end.worker_id: end for end in recorder.of(HookEvent.ON_WORKER_END)}
    died = ends.pop(reported.worker_id)
    assert (died.metadata["exit_reason"], died.metadata["exit_code"]) == ("died", exit_code)
    assert died.metadata["pid"] == error.pid
    assert {end.metadata["exit_reason"] for end in ends.values()} <= {"cancelled"}
    post = recorder.contexts[-1]
    assert (post.metadata["status"], post.error) == ("error", error)
    done = sum(chunk.chunk_size or 0 for chunk in recorder.of(HookEvent.ON_CHUNK_COMPLETE))
    assert post.items_completed == done
    assert ended - reported.timestamp < 2.0 * slowness()
    # The next run in the same process works.
    assert amorsize.execute(abs, [-1, -2], executor="process") == [1, 2]


def test_a_death_while_results_are_sent_names_the_chunk(
    hooks: HookManager, recorder: RecordingHook, tmp_path: Path
) -> None:
    """The worker is killed when its large result is half way through the connection."""

    class Slow:
        """Pickles in two parts, and is killed by a timer of its own before the second."""

        def __reduce__(self) -> tuple[Any, ...]:
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("not reached")

    with pytest.raises(WorkerDiedError, match=r"in chunk 0 \(while it sent its results") as caught:
        amorsize.execute(
            lambda x: Slow(), range(4), executor="process", n_jobs=1, chunksize=4, hooks=hooks
        )
    assert caught.value.item_index is None
    assert_contract(recorder.contexts)


def test_a_worker_killed_in_the_middle_of_a_large_message_is_seen(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """A part of a message is in the socket when its sender dies: no hang, and a clear error."""

    def answer(x: int) -> bytes:
        main = threading.main_thread().ident

        def kill_while_it_sends() -> None:
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                frame = sys._current_frames()[main]  # type: ignore[index]  # it is running
                if frame.f_code.co_name == "_write_some":  # of the connection
                    os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=kill_while_it_sends, daemon=True).start()
        return bytes(100_000_000)

    with pytest.raises(WorkerDiedError, match="SIGKILL"):
        amorsize.execute(answer, range(8), executor="process", n_jobs=1, chunksize=4, hooks=hooks)
    assert_contract(recorder.contexts)


def test_a_worker_killed_while_idle_between_runs_is_replaced(hooks: HookManager) -> None:
    """It had nothing to lose: the next run does not notice."""
    (pid,) = set(amorsize.execute(lambda _: os.getpid(), [0], executor="process", n_jobs=1))
    os.kill(pid, signal.SIGKILL)
    recorder = RecordingHook().attach(hooks)
    assert amorsize.execute(abs, [-1], executor="process", n_jobs=1, hooks=hooks) == [1]
    assert_contract(recorder.contexts)
    assert recorder.of(HookEvent.ON_ERROR) == []


def test_a_worker_killed_while_idle_in_a_run_ends_it(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """The input is slow, and the worker that waits for it is killed from outside."""

    def slow_input() -> Any:
        yield 1
        pid = recorder.wait_for(HookEvent.ON_WORKER_START, PATIENCE).metadata["pid"]
        recorder.wait_for(HookEvent.ON_CHUNK_COMPLETE, PATIENCE)
        os.kill(pid, signal.SIGKILL)
        yield 2

    stream = amorsize.stream(
        abs, slow_input(), executor="process", n_jobs=1, chunksize=1, hooks=hooks
    )
    with pytest.raises(WorkerDiedError, match="SIGKILL"):
        list(stream)
    assert_contract(recorder.contexts)
    (end,) = recorder.of(HookEvent.ON_WORKER_END)
    assert end.metadata["exit_reason"] == "died"


@pytest.mark.parametrize("chunksize", [1, 7, 200])
def test_with_return_exceptions_only_the_killers_fail(
    chunksize: int, hooks: HookManager, recorder: RecordingHook, tmp_path: Path
) -> None:
    """Three killers among 200 items: each fails alone, and nothing runs more than twice."""
    log = tmp_path / "log"

    def run(x: int) -> int:
        with log.open("a") as lines:
            lines.write(f"{x}\n")
        if x in (3, 90, 199):
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    results = amorsize.execute(
        run,
        range(200),
        executor="process",
        n_jobs=2,
        chunksize=chunksize,
        return_exceptions=True,
        hooks=hooks,
    )
    failed = [index for index, result in enumerate(results) if isinstance(result, Exception)]
    assert failed == [3, 90, 199]
    assert all(isinstance(results[index], WorkerDiedError) for index in failed)
    assert [results[index].item_index for index in failed] == failed  # type: ignore[union-attr]
    assert [r for r in results if isinstance(r, int)] == [
        x for x in range(200) if x not in (3, 90, 199)
    ]
    runs = Counter(int(line) for line in log.read_text().split())
    assert set(runs) == set(range(200))
    assert max(runs.values()) == 2
    assert_contract(recorder.contexts)
    post = recorder.contexts[-1]
    assert (post.metadata["status"], post.items_completed) == ("ok", 200)
    deaths = [
        end for end in recorder.of(HookEvent.ON_WORKER_END) if end.metadata["exit_reason"] == "died"
    ]
    assert len(deaths) == len(recorder.of(HookEvent.ON_ERROR)) == 6
    assert sum(c.metadata["failed_items"] for c in recorder.of(HookEvent.ON_ERROR)) == 3


def test_an_innocent_item_whose_worker_is_killed_from_outside_succeeds(
    hooks: HookManager, recorder: RecordingHook, tmp_path: Path
) -> None:
    """Its second run, alone, is what counts."""
    flag = tmp_path / "killed"

    def run(x: int) -> int:
        if x == 2 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    results = amorsize.execute(
        run, range(5), executor="process", n_jobs=1, return_exceptions=True, hooks=hooks
    )
    assert results == [0, 1, 2, 3, 4]
    assert_contract(recorder.contexts)
    assert [c.metadata["failed_items"] for c in recorder.of(HookEvent.ON_ERROR)] == [0]


def test_workers_that_cannot_start_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hooks: HookManager, recorder: RecordingHook
) -> None:
    """The interpreter is broken: a clear error after three attempts, not a loop."""
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 9\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(WorkerDiedError, match=r"exited with code 9.*before it took any work"):
        amorsize.execute(abs, range(5), executor="process", n_jobs=1, hooks=hooks)
    assert_contract(recorder.contexts)
    assert recorder.of(HookEvent.ON_WORKER_START) == []


def test_a_function_that_kills_on_arrival_ends_the_run(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """The function's own unpickling ends the worker, again and again."""

    class Bomb:
        def __call__(self, x: int) -> int:
            return x

        def __reduce__(self) -> tuple[Any, ...]:
            return os._exit, (5,)

    with pytest.raises(WorkerDiedError, match="exited with code 5"):
        amorsize.execute(Bomb(), range(5), executor="process", n_jobs=1, hooks=hooks)
    assert_contract(recorder.contexts)
