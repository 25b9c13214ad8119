"""Daemon threads as workers."""

from __future__ import annotations

import contextvars
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from waiting import PATIENCE as WAIT

from amorsize.engines import thread
from amorsize.engines.base import ChunkDone, Message, Task, WorkerEnded, WorkerStarted
from amorsize.engines.thread import ThreadBackend
from amorsize.workers.chunk import HOSTNAME, Chunk


@pytest.fixture(autouse=True)
def _patient_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that are about to end do so within this, on any machine."""
    monkeypatch.setattr(thread, "_STOP_GRACE_SECONDS", WAIT)


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """The event that blocked functions wait for; set at the end, so that no thread stays."""
    event = threading.Event()
    yield event
    event.set()


def open_backend(func: Callable[[Any], Any], n_jobs: int = 1, **settings: Any) -> ThreadBackend:
    backend = ThreadBackend(n_jobs)
    backend.open(Task(func, **settings))
    return backend


def messages_until_done(backend: ThreadBackend, chunks: int) -> list[Message]:
    """Collect messages until so many chunks are done."""
    messages: list[Message] = []
    while sum(isinstance(message, ChunkDone) for message in messages) < chunks:
        came = backend.wait(WAIT)
        assert came, "no messages"
        messages += came
    return messages


def results(messages: list[Message]) -> list[Any]:
    done = [message.outcome for message in messages if isinstance(message, ChunkDone)]
    return [each.results for each in sorted(done, key=lambda outcome: outcome.chunk_id)]


def test_a_worker_reports_its_start_and_then_its_chunks() -> None:
    """The start names the thread; process and host are ours."""
    backend = open_backend(abs)
    backend.submit(Chunk(0, 0, [-1, -2]))
    started, done = messages_until_done(backend, 1)
    assert isinstance(started, WorkerStarted)
    assert isinstance(done, ChunkDone)
    assert (started.pid, started.hostname) == (os.getpid(), HOSTNAME)
    assert started.thread_name == done.outcome.thread_name
    assert started.thread_name.startswith("amorsize-")
    assert done.outcome.results == [1, 2]
    assert list(backend.close(cancel=False)) == [WorkerEnded(started.worker, "finished")]


def test_a_start_is_reported_while_the_first_chunk_runs(release: threading.Event) -> None:
    """Not with its results."""
    backend = open_backend(lambda _: release.wait(WAIT))
    backend.submit(Chunk(0, 0, [None]))
    assert [type(message) for message in backend.wait(WAIT)] == [WorkerStarted]
    release.set()
    assert results(messages_until_done(backend, 1)) == [[True]]
    backend.close(cancel=False)


def test_workers_are_daemon_threads_beside_the_caller_s() -> None:
    """An abandoned thread does not delay the interpreter's exit."""
    backend = open_backend(lambda _: (threading.get_ident(), threading.current_thread().daemon))
    backend.submit(Chunk(0, 0, [None]))
    [[(ident, daemon)]] = results(messages_until_done(backend, 1))
    assert daemon
    assert ident != threading.get_ident()
    backend.close(cancel=False)


def test_an_abandoned_thread_does_not_hold_the_exit() -> None:
    """The interpreter ends while a function blocks for ever."""
    script = """if True:
        import threading
        import amorsize
        try:
            amorsize.execute(lambda _: threading.Event().wait(), [1], executor="thread",
                             timeout=0.05)
        except TimeoutError:
            print("timeout")
    """
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "timeout\n"


def test_the_function_sees_the_caller_s_context_variables_and_changes_a_copy() -> None:
    """Each thread has a copy of its own, so two of them never enter the same context."""
    variable = contextvars.ContextVar("variable", default="default")
    both = threading.Barrier(2)

    def func(number: int) -> tuple[str, str]:
        before = variable.get()
        variable.set(f"worker {number}")
        both.wait(WAIT)
        return before, variable.get()

    token = variable.set("caller")
    try:
        backend = open_backend(func, n_jobs=2)
        backend.submit(Chunk(0, 0, [0]))
        backend.submit(Chunk(1, 1, [1]))
        seen = results(messages_until_done(backend, 2))
        backend.close(cancel=False)
        assert seen == [[("caller", "worker 0")], [("caller", "worker 1")]]
        assert variable.get() == "caller"
    finally:
        variable.reset(token)


def test_chunks_run_at_the_same_time_on_as_many_threads_as_asked_for() -> None:
    """Four that wait for each other all end, and as many are ready after them."""
    together = threading.Barrier(4)
    backend = open_backend(lambda _: together.wait(WAIT) >= 0, n_jobs=4)
    for number in range(8):
        assert backend.has_room() is (number < 4)
        assert backend.can_hold()
        backend.submit(Chunk(number, number, [None]))
    assert not backend.can_hold()
    messages = messages_until_done(backend, 8)
    assert len({m.worker for m in messages if isinstance(m, WorkerStarted)}) == 4
    backend.close(cancel=False)


def test_no_more_threads_start_than_there_are_chunks() -> None:
    """64 threads for one chunk would be a waste."""
    backend = open_backend(abs, n_jobs=64)
    backend.submit(Chunk(0, 0, [1]))
    messages_until_done(backend, 1)
    assert len(backend.close(cancel=False)) == 1


def test_a_failing_item_is_an_outcome_not_the_end_of_its_thread() -> None:
    """The next chunk runs on the same worker, exits included."""

    def func(number: int) -> None:
        raise SystemExit(number)

    backend = open_backend(func)
    for number in range(2):
        backend.submit(Chunk(number, number, [number]))
        done = messages_until_done(backend, 1)[-1]
        assert isinstance(done, ChunkDone)
        assert done.outcome.failures[0].index == number
    assert len(backend.close(cancel=False)) == 1


def test_wake_ends_a_wait() -> None:
    """From any thread, before or during the wait; it makes no message."""
    backend = open_backend(abs)
    backend.wake()
    assert list(backend.wait(None)) == []
    threading.Thread(target=backend.wake).start()
    assert list(backend.wait(None)) == []
    assert list(backend.wait(0)) == []


def test_a_cancelled_thread_leaves_its_chunk_after_the_item_it_is_at(
    release: threading.Event,
) -> None:
    """Items that were not begun are not run."""
    seen: list[int] = []
    entered = threading.Event()

    def func(number: int) -> None:
        seen.append(number)
        entered.set()
        release.wait(WAIT)

    backend = open_backend(func)
    backend.submit(Chunk(0, 0, [0, 1, 2]))
    assert entered.wait(WAIT)
    backend._stop.set()
    release.set()
    [started, late, ended] = backend.close(cancel=True)
    assert isinstance(started, WorkerStarted)
    assert isinstance(late, ChunkDone)  # its time was spent
    assert late.outcome.results is None
    assert ended == WorkerEnded(started.worker, "cancelled")
    assert seen == [0]


def test_a_thread_that_does_not_stop_is_abandoned(
    release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be done about it but to say so."""
    monkeypatch.setattr(thread, "_STOP_GRACE_SECONDS", 0.01)
    entered = threading.Event()

    def func(_: int) -> None:
        entered.set()
        release.wait(WAIT)

    backend = open_backend(func)
    backend.submit(Chunk(0, 0, [0]))
    assert entered.wait(WAIT)
    started, ended = backend.close(cancel=True)
    assert isinstance(started, WorkerStarted)
    assert ended == WorkerEnded(started.worker, "abandoned")


def test_a_thread_that_is_done_is_finished_even_if_it_has_not_ended_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a busy machine threads take their time to end; a successful run abandons none."""
    monkeypatch.setattr(thread, "_STOP_GRACE_SECONDS", 0.0)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(10.0)  # the thread gets no chance to run while close() does
    try:
        backend = open_backend(abs)
        backend.submit(Chunk(0, 0, [1]))
        messages_until_done(backend, 1)
        assert [each.exit_reason for each in backend.close(cancel=False)] == ["finished"]  # type: ignore[union-attr]
    finally:
        sys.setswitchinterval(interval)


def test_threads_are_gone_after_the_end() -> None:
    """Nothing stays after a run that finished."""
    backend = open_backend(abs, n_jobs=4)
    for number in range(4):
        backend.submit(Chunk(number, number, [number]))
    messages_until_done(backend, 4)
    ours = [worker.thread for worker in backend._workers.values()]
    backend.close(cancel=False)
    assert ours
    assert not any(each.is_alive() for each in ours)


def test_an_overdue_item_is_seen_and_its_worker_replaced(release: threading.Event) -> None:
    """The chunks after it get a thread of their own."""
    entered = threading.Event()

    def func(number: int) -> int:
        if number == 1:
            entered.set()
            release.wait(WAIT)
        return number

    backend = open_backend(func, stamp_items=True)
    chunk = Chunk(7, 0, [0, 1, 2])
    backend.submit(chunk)
    assert entered.wait(WAIT)
    [late] = backend.overdue(0.0)
    assert (late.chunk, late.item_index) == (chunk, 1)
    assert late.seconds > 0
    assert backend.overdue(3600.0) == []
    [started] = backend.wait(WAIT)
    loss = backend.end_worker(late)
    assert loss is not None
    assert (loss.chunk, loss.item_index, loss.exit_reason) == (chunk, 1, "abandoned")
    assert loss.started
    assert "cannot be stopped and is abandoned" in loss.detail
    backend.submit(Chunk(8, 3, [3]))
    messages = messages_until_done(backend, 1)
    assert results(messages) == [[3]]
    assert isinstance(started, WorkerStarted)
    assert started.worker not in {m.worker for m in messages if isinstance(m, WorkerStarted)}
    assert len(backend.close(cancel=False)) == 1


def test_what_an_abandoned_thread_brings_later_is_ignored(release: threading.Event) -> None:
    """Its items have been given up; they must not come twice."""
    entered = threading.Event()

    def func(number: int) -> int:
        entered.set()
        release.wait(WAIT)
        return number

    backend = open_backend(func, stamp_items=True)
    backend.submit(Chunk(0, 0, [0]))
    assert entered.wait(WAIT)
    left_behind = next(iter(backend._workers.values())).thread
    [late] = backend.overdue(0.0)
    assert backend.end_worker(late) is not None
    release.set()
    left_behind.join(WAIT)
    assert list(backend.wait(0)) == []


def test_a_worker_whose_item_ended_meanwhile_is_not_dismissed() -> None:
    """Between looking and acting, the item may have come to its end."""
    entered, go = threading.Event(), threading.Event()

    def func(_: int) -> None:
        entered.set()
        go.wait(WAIT)

    backend = open_backend(func, stamp_items=True)
    backend.submit(Chunk(0, 0, [0]))
    assert entered.wait(WAIT)
    [late] = backend.overdue(0.0)
    go.set()
    messages_until_done(backend, 1)
    assert backend.end_worker(late) is None
    assert len(backend.close(cancel=False)) == 1
