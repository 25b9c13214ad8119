"""The caller's own thread as the only worker."""

from __future__ import annotations

import os
import threading

import pytest

from amorsize.engines.base import ChunkDone, Task, WorkerEnded, WorkerStarted
from amorsize.engines.serial import SerialBackend
from amorsize.workers.chunk import HOSTNAME, Chunk


@pytest.fixture
def backend() -> SerialBackend:
    return SerialBackend()


def test_a_start_comes_before_the_first_chunk_is_run(backend: SerialBackend) -> None:
    """So that it is reported even when that chunk runs for minutes."""
    ran: list[int] = []
    backend.open(Task(ran.append))
    backend.submit(Chunk(0, 0, [1, 2]))
    started = WorkerStarted(0, os.getpid(), HOSTNAME, threading.current_thread().name)
    assert list(backend.wait(None)) == [started]
    assert ran == []
    [done] = backend.wait(None)
    assert isinstance(done, ChunkDone)
    assert (done.worker, done.outcome.results, ran) == (0, [None, None], [1, 2])


def test_a_start_is_reported_once(backend: SerialBackend) -> None:
    """Later chunks come from the worker that is known."""
    backend.open(Task(abs))
    kinds = []
    for number in range(3):
        backend.submit(Chunk(number, number, [-number]))
        while not backend.has_room():
            kinds += [type(message) for message in backend.wait(None)]
    assert kinds == [WorkerStarted, ChunkDone, ChunkDone, ChunkDone]


def test_there_is_room_for_one_chunk_at_a_time(backend: SerialBackend) -> None:
    """The next one is drawn when this one is done."""
    backend.open(Task(abs))
    assert backend.has_room()
    backend.submit(Chunk(0, 0, [1]))
    assert not backend.has_room()
    backend.wait(None)
    assert not backend.has_room()
    backend.wait(None)
    assert backend.has_room()


def test_the_function_runs_in_the_caller_s_thread(backend: SerialBackend) -> None:
    """Whoever steps through it with a debugger stays where he is."""
    backend.open(Task(lambda _: threading.get_ident()))
    backend.submit(Chunk(0, 0, [None]))
    backend.wait(None)
    [done] = backend.wait(None)
    assert isinstance(done, ChunkDone)
    assert done.outcome.results == [threading.get_ident()]


def test_without_a_chunk_there_is_no_message(backend: SerialBackend) -> None:
    """wait() never sleeps: there is nobody else who could wake it."""
    backend.open(Task(abs))
    assert list(backend.wait(None)) == []
    backend.wake()
    assert list(backend.wait(None)) == []


def test_exceptions_stand_in_place_when_the_task_says_so(backend: SerialBackend) -> None:
    """The task's settings reach the chunk."""
    backend.open(Task(lambda number: 1 / number, return_exceptions=True))
    backend.submit(Chunk(0, 0, [1, 0]))
    backend.wait(None)
    [done] = backend.wait(None)
    assert isinstance(done, ChunkDone)
    assert done.outcome.results is not None
    assert [type(result) for result in done.outcome.results] == [float, ZeroDivisionError]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_exit_passes_through(backend: SerialBackend, kind: type[BaseException]) -> None:
    """Here Ctrl-C is the user's, and sys.exit() means the program."""

    def func(_: int) -> None:
        raise kind

    backend.open(Task(func))
    backend.submit(Chunk(0, 0, [1]))
    backend.wait(None)
    with pytest.raises(kind):
        backend.wait(None)
    assert list(backend.close(cancel=True)) == [WorkerEnded(0, "cancelled")]


def test_who_never_started_has_no_end(backend: SerialBackend) -> None:
    """Every end has its start."""
    backend.open(Task(abs))
    backend.submit(Chunk(0, 0, [1]))
    assert list(backend.close(cancel=True)) == []


@pytest.mark.parametrize(("cancel", "reason"), [(False, "finished"), (True, "cancelled")])
def test_the_end_says_why(backend: SerialBackend, cancel: bool, reason: str) -> None:
    """Finished, or given up before the end of the input."""
    backend.open(Task(abs))
    backend.submit(Chunk(0, 0, [1]))
    backend.wait(None)
    backend.wait(None)
    assert list(backend.close(cancel=cancel)) == [WorkerEnded(0, reason)]
