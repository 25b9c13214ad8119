"""Any ``concurrent.futures.Executor`` as an engine: lent by the caller, never shut down here."""

from __future__ import annotations

import contextvars
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, CancelledError
from typing import Any

from amorsize.engines.base import Message, Task, WorkerEnded, WorkerLost, WorkerStarted
from amorsize.engines.external.base import Begun, Flight, ForeignBackend, Landed
from amorsize.engines.external.worker import PackedChunk, Place, here, read_note
from amorsize.errors import ExecutorBrokenError
from amorsize.workers.chunk import HOSTNAME, ChunkOutcome, run_chunk
from amorsize.workers.item_slots import SLOT_COUNT
from amorsize.workers.record import values_of

_STOP_GRACE_SECONDS = 0.3
_GONE_SECONDS = 5.0
"""How long after its worker's process has gone a chunk may stay out. Process pools of the standard
library say nothing at all when a worker is killed while it sends a result."""


class FuturesBackend(ForeignBackend):
    """Chunks as calls of ``executor.submit``.

    An executor whose workers are threads of this process calls what it is given as it is: nothing
    is pickled. One that pickles it gets, by ``__reduce__``, a packed chunk in its place.

    Args:
        executor: whose ``submit`` returns futures of ``concurrent.futures``.
        n_jobs: chunks at work at once, at most.
        workers: how many the executor has, or None when that is not known.
    """

    def __init__(self, executor: Any, n_jobs: int, workers: int | None) -> None:
        super().__init__(n_jobs)
        self._executor = executor
        self._workers = workers
        self._stop = threading.Event()
        self._notes = _Notes(self)
        self._broken = False
        self._seen: set[Place] = set()
        self._gone_since: dict[Place, float] = {}

    def open(self, task: Task) -> None:
        super().open(task)
        self._context = contextvars.copy_context()

    def window(self, short: bool) -> int:
        # Where not all of its workers are to be used, one that waits would be one at work.
        ahead = short and self._workers is not None and self.n_jobs >= self._workers
        return self.n_jobs * (2 if ahead else 1)

    def send(self, flight: Flight) -> None:
        try:
            future = flight.future = self._executor.submit(_Call(self, flight))
        except Exception as error:
            if flight.refused is not None:  # it pickles there and then
                raise flight.refused from flight.refused.__cause__
            self._broken = isinstance(error, BrokenExecutor)
            raise self._broken_error(error) from error
        # By now it may be done: then this calls at once, in this thread.
        future.add_done_callback(lambda done: self.news.put(_landed(flight, done)))

    def wait(self, timeout: float | None) -> Sequence[Message]:
        news = super().wait(timeout)
        if not news:
            self._look_for_gone()
        return news

    def lost(self, flight: Flight, error: BaseException, news: list[Message]) -> None:
        place = flight.place
        if isinstance(error, BrokenExecutor | CancelledError):
            self._broken = isinstance(error, BrokenExecutor)
            if self.failed is None:
                self.failed = self._broken_error(error)
                self.failed.__cause__ = error
        elif place is not None and place in self.workers and self._has_gone(place):
            # An executor that survives a death, and says which chunk it cost.
            worker = self.workers[place]
            del self.flights[flight.chunk.id]
            news.append(
                WorkerLost(worker.key, place.pid, None, True, flight.chunk, detail=str(error))
            )
            del self.workers[place]
        else:
            super().lost(flight, error, news)

    def begun(self, flight: Flight, place: Place, news: list[Message]) -> None:
        before = flight.place
        if place not in self._seen and not _is_gone(place):
            self._seen.add(place)
        if before is not None and before != place and self._has_gone(before):
            # Somebody has it run again elsewhere.
            worker = self.workers.pop(before)
            news.append(
                WorkerLost(
                    worker.key,
                    before.pid,
                    None,
                    True,
                    flight.chunk,
                    detail="its executor runs the chunk again",
                    recovered=True,
                )
            )
        super().begun(flight, place, news)

    def close(self, *, cancel: bool) -> Sequence[Message]:
        news: list[Message] = []
        self._stop.set()
        self._notes.close()
        if cancel:
            for flight in list(self.flights.values()):
                if flight.future is not None and flight.future.cancel():
                    del self.flights[flight.chunk.id]
            self._await_flights(news)
        while not self.news.empty():
            self.take(self.news.get_nowait(), news)
        # Workers whose start was not read are told of; their chunks are not.
        told: list[Message] = [
            m for m in news if isinstance(m, WorkerStarted | WorkerLost | WorkerEnded)
        ]
        if self._broken:
            return self.tell_deaths(told)
        return self.tell_ends(
            told,
            reason="cancelled" if cancel else "finished",
            at_work="abandoned",
        )

    def note(self, place: Place, chunk_id: int) -> None:
        """Take the news that a chunk has begun; called from any thread."""
        self.news.put(Begun(place, chunk_id))

    def notes_path(self) -> str:
        """Name the pipe for such news from other processes, or ""."""
        return self._notes.path()

    def run_here(self, flight: Flight) -> ChunkOutcome:
        """Run a chunk in this process, in a thread of the executor."""
        return self._context.copy().run(self._run_here, flight)

    def _run_here(self, flight: Flight) -> ChunkOutcome:
        flight.place = place = here()
        self.note(place, flight.chunk.id)
        return run_chunk(
            self.task.func,
            flight.chunk,
            return_exceptions=self.task.return_exceptions,
            item_slots=[-1] * SLOT_COUNT,
            stopped=self._stop.is_set,
            collect=self.task.collect,
        )

    def _await_flights(self, news: list[Message]) -> None:
        """Give the chunks at work a moment to notice that the run is over."""
        deadline = time.monotonic() + _STOP_GRACE_SECONDS
        while self.flights and (left := deadline - time.monotonic()) > 0:
            if all(each.future is None or each.future.done() for each in self.flights.values()):
                break
            news.extend(_quietly(super().wait, left))
        for chunk_id, flight in list(self.flights.items()):
            if flight.future is None or flight.future.done():
                del self.flights[chunk_id]

    def _look_for_gone(self) -> None:
        """See the death of a worker process of this machine that its executor says nothing of."""
        if self.failed is not None or type(self._executor).__module__.startswith("distributed"):
            return  # Dask runs lost chunks again, in its own time
        now = time.monotonic()
        for place in self.at_work():
            if not self._has_gone(place):
                self._gone_since.pop(place, None)
            elif now - self._gone_since.setdefault(place, now) > _GONE_SECONDS:
                self._broken = True
                self.failed = self._broken_error(
                    RuntimeError(f"its worker process {place.pid} is gone, and it does not say so")
                )

    def _has_gone(self, place: Place) -> bool:
        """Say whether a worker's process was seen here, and is no more.

        What was never seen may live in another container, whose processes have other numbers.
        """
        return place in self._seen and place in self.workers and _is_gone(place)

    def _broken_error(self, error: BaseException) -> ExecutorBrokenError:
        kind = type(self._executor).__name__
        out = ", ".join(map(str, sorted(self.flights)[:8]))
        lost = f" Lost are its chunks in flight: {out}." if out else ""
        return ExecutorBrokenError(
            f"the {kind} that was passed as executor= takes no more work: "
            f"{type(error).__name__}: {error}{lost} Pass a new one, or executor='process', which "
            "survives the death of a worker and names it."
        )


class _Call:
    """A chunk on its way to whoever calls it: here, or, once pickled, elsewhere."""

    __name__ = "amorsize_chunk"  # what Dask calls its task

    def __init__(self, backend: FuturesBackend, flight: Flight) -> None:
        self._backend = backend
        self._flight = flight

    def __call__(self) -> ChunkOutcome:
        return self._backend.run_here(self._flight)

    def __reduce__(self) -> tuple[Callable[..., PackedChunk], tuple[Any, ...]]:
        packed = self._backend.pack(self._flight, self._backend.notes_path())
        return PackedChunk, tuple(values_of(packed).values())

    def __dask_tokenize__(self) -> tuple[str, int, bool]:
        """Name the task without hashing what it carries."""
        return self._backend.key, self._flight.chunk.id, self._flight.with_task


class _Notes:
    """A named pipe in which processes of this machine tell that they begin a chunk.

    It is there from the first chunk that is pickled to the end of the run; that it is gone tells
    chunks at work to stop.
    """

    def __init__(self, backend: FuturesBackend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._folder = ""
        self._path: str | None = None
        self._closed = False

    def path(self) -> str:
        with self._lock:
            if self._path is None and not self._closed:
                self._path = self._open()
            return self._path or ""

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if not self._path:
                return
            try:
                pipe = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)
                os.write(pipe, b"\n")  # ends the reader
                os.close(pipe)
            except OSError:
                pass  # the folder was removed by somebody else
            shutil.rmtree(self._folder, ignore_errors=True)
        self._reader.join(_STOP_GRACE_SECONDS)

    def _open(self) -> str:
        try:
            self._folder = tempfile.mkdtemp(prefix="amorsize-")  # for this user's eyes only
            path = os.path.join(self._folder, "notes")
            os.mkfifo(path, 0o600)
            pipe = os.open(path, os.O_RDWR)  # also for writing, so that it never ends
        except OSError:
            shutil.rmtree(self._folder, ignore_errors=True)
            return ""  # starts are told with the outcomes
        self._reader = threading.Thread(
            target=self._read, args=(pipe,), name="amorsize-notes", daemon=True
        )
        self._reader.start()
        return path

    def _read(self, pipe: int) -> None:
        with open(pipe, "rb", buffering=0) as notes:
            rest = b""
            while True:
                *lines, rest = (rest + notes.read(65536)).split(b"\n")
                for line in lines:
                    if not line:
                        return
                    self._backend.note(*read_note(line))


def _landed(flight: Flight, future: Any) -> Landed:
    try:
        return Landed(flight, future.result())
    except BaseException as error:  # CancelledError, too
        return Landed(flight, error=error)


def _quietly(wait: Callable[[float], Sequence[Message]], seconds: float) -> Sequence[Message]:
    try:
        return wait(seconds)
    except Exception:
        return ()  # the run fails already


def _is_gone(place: Place) -> bool:
    """Say whether the process of a worker on this machine has ended, for all that can be seen."""
    if place.hostname != HOSTNAME or place.pid == os.getpid():
        return False
    try:
        # Of a child that nobody has waited for yet; it stays so.
        return os.waitid(os.P_PID, place.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        pass  # not our child, or waited for
    try:
        os.kill(place.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # somebody else's
    return False
