"""Any ``concurrent.futures.Executor`` as an engine: caller-owned, never shut down here."""

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

from amorsize.engines.base import Message, Task, WorkerLost
from amorsize.engines.external.base import ChunkStarted, ExternalBackend, FutureDone, SubmittedChunk
from amorsize.engines.external.worker import PackedChunk, Place, here, read_start
from amorsize.engines.process_states import ENDED, is_in_state
from amorsize.errors import ExecutorBrokenError
from amorsize.workers.chunk import HOSTNAME, ChunkOutcome, run_chunk
from amorsize.workers.item_slots import SLOT_COUNT
from amorsize.workers.record import values_of

_STOP_GRACE_SECONDS = 0.3
_ENDED_SECONDS = 5.0
"""How long a chunk may stay in flight after its worker's process has ended. Process pools of the
standard library do not notice a worker that is killed while it sends a result."""


class FuturesBackend(ExternalBackend):
    """Chunks as calls of ``executor.submit``.

    An executor whose workers are threads of this process runs the call as it is: nothing is
    pickled. For one that pickles the call, ``__reduce__`` puts a packed chunk in its place.

    Args:
        executor: its ``submit`` returns futures of ``concurrent.futures``.
        n_jobs: chunks at work at once, at most.
        workers: how many the executor has, or None when that is not known.
    """

    def __init__(self, executor: Any, n_jobs: int, workers: int | None) -> None:
        super().__init__(n_jobs)
        self._executor = executor
        self._workers = workers
        self._stop = threading.Event()
        self._start_pipe = _StartPipe(self)
        self._broken = False
        client = getattr(executor, "_client", None)  # of Dask's client.get_executor()
        self._recovers = hasattr(client, "scheduler_info")
        self._seen: set[Place] = set()
        self._ended_since: dict[Place, float] = {}

    def open(self, task: Task) -> None:
        super().open(task)
        self._context = contextvars.copy_context()

    def window(self, short: bool) -> int:
        # Where not all of its workers are to be used, one that waits would be one at work.
        ahead = short and self._workers is not None and self.n_jobs >= self._workers
        return self.n_jobs * (2 if ahead else 1)

    def send(self, submitted: SubmittedChunk) -> None:
        try:
            future = submitted.future = self._executor.submit(_Call(self, submitted))
        except Exception as error:
            if submitted.refused is not None:  # the executor pickles at once
                raise submitted.refused from submitted.refused.__cause__
            self._broken = isinstance(error, BrokenExecutor)
            raise self._broken_error(error) from error
        # A future that is done by now calls back at once, in this thread.
        future.add_done_callback(lambda done: self.changes.put(_done(submitted, done)))

    def wait(self, timeout: float | None) -> Sequence[Message]:
        messages = super().wait(timeout)
        if not messages:
            self._check_processes()
        return messages

    def executor_failed(
        self, submitted: SubmittedChunk, error: BaseException, messages: list[Message]
    ) -> None:
        place = submitted.place
        if isinstance(error, BrokenExecutor | CancelledError):
            self._broken = isinstance(error, BrokenExecutor)
            if self.failed is None:
                self.failed = self._broken_error(error)
                self.failed.__cause__ = error
        elif place is not None and place in self.workers and self._has_ended(place):
            # An executor that survives a death, and names the chunk that it cost.
            worker = self.workers[place]
            del self.in_flight[submitted.chunk.id]
            messages.append(
                WorkerLost(
                    worker.key,
                    place.pid,
                    None,
                    True,
                    submitted.chunk,
                    detail=str(error),
                    unfinished=self.spent_by(worker),
                )
            )
            del self.workers[place]
        else:
            super().executor_failed(submitted, error, messages)

    def chunk_started(
        self, submitted: SubmittedChunk, place: Place, messages: list[Message]
    ) -> None:
        before = submitted.place
        if place not in self._seen and not _is_ended(place):
            self._seen.add(place)
        if before is not None and before != place and self._has_ended(before):
            # The executor runs the chunk again elsewhere.
            worker = self.workers.pop(before)
            messages.append(
                WorkerLost(
                    worker.key,
                    before.pid,
                    None,
                    True,
                    submitted.chunk,
                    detail="its executor runs the chunk again",
                    recovered=True,
                    unfinished=self.spent_by(worker),
                )
            )
        super().chunk_started(submitted, place, messages)

    def close(self, *, cancel: bool) -> Sequence[Message]:
        messages: list[Message] = []
        self.closing = True
        self._stop.set()
        self._start_pipe.close()
        if cancel:
            for submitted in list(self.in_flight.values()):
                if submitted.future is not None and submitted.future.cancel():
                    del self.in_flight[submitted.chunk.id]
            self._await_chunks(messages)
        reported = self.last_reports(messages)
        if self._broken:
            return self.lose_workers(reported)
        return self.end_workers(
            reported,
            reason="cancelled" if cancel else "finished",
            at_work="abandoned",
        )

    def note_start(self, place: Place, chunk_id: int, at: float) -> None:
        """Take note that a chunk has started; called from any thread."""
        self.changes.put(ChunkStarted(place, chunk_id, at))

    def reports_starts(self) -> bool:
        return all(place.hostname == HOSTNAME for place in self.workers)

    def start_pipe(self) -> str:
        """Return the path of the pipe in which other processes report starts, or ""."""
        return self._start_pipe.path()

    def run_here(self, submitted: SubmittedChunk) -> ChunkOutcome:
        """Run a chunk in this process, in a thread of the executor."""
        return self._context.copy().run(self._run_here, submitted)

    def _run_here(self, submitted: SubmittedChunk) -> ChunkOutcome:
        submitted.place = place = here()
        self.note_start(place, submitted.chunk.id, time.monotonic())
        return run_chunk(
            self.task.func,
            submitted.chunk,
            return_exceptions=self.task.return_exceptions,
            item_slots=[-1] * SLOT_COUNT,
            stopped=self._stop.is_set,
            collect=self.task.collect,
        )

    def _await_chunks(self, messages: list[Message]) -> None:
        """Give the chunks at work a moment to notice that the run is over."""
        deadline = time.monotonic() + _STOP_GRACE_SECONDS
        while self.in_flight and (left := deadline - time.monotonic()) > 0:
            if all(each.future is None or each.future.done() for each in self.in_flight.values()):
                break
            messages.extend(_wait_ignoring_errors(super().wait, left))
        for chunk_id, submitted in list(self.in_flight.items()):
            if self._broken:  # its workers died at work
                break
            if submitted.future is None or submitted.future.done():
                del self.in_flight[chunk_id]

    def _check_processes(self) -> None:
        """Detect the death of a worker process here that its executor does not report."""
        if self.failed is not None or self._recovers:
            return  # Dask runs lost chunks again, in its own time
        now = time.monotonic()
        for place in self.at_work():
            if not self._has_ended(place):
                self._ended_since.pop(place, None)
            elif now - self._ended_since.setdefault(place, now) > _ENDED_SECONDS:
                self._broken = True
                self.failed = self._broken_error(
                    RuntimeError(
                        f"its worker process {place.pid} has ended, which it does not report"
                    )
                )

    def _has_ended(self, place: Place) -> bool:
        """Return whether a worker's process was seen here, and has ended.

        A process that was never seen may live in another container, with other process ids.
        """
        return place in self._seen and place in self.workers and _is_ended(place)

    def _broken_error(self, error: BaseException) -> ExecutorBrokenError:
        kind = type(self._executor).__name__
        ids = ", ".join(map(str, sorted(self.in_flight)[:8]))
        lost = f" Its chunks in flight are lost: {ids}." if ids else ""
        return ExecutorBrokenError(
            f"the {kind} that was passed as executor= no longer accepts work: "
            f"{type(error).__name__}: {error}{lost} Pass a new one, or executor='process', which "
            "survives the death of a worker and names it."
        )


class _Call:
    """The call that runs a chunk: in this process, or, once pickled, in another one."""

    __name__ = "amorsize_chunk"  # the name of its Dask task

    def __init__(self, backend: FuturesBackend, submitted: SubmittedChunk) -> None:
        self._backend = backend
        self._submitted = submitted

    def __call__(self) -> ChunkOutcome:
        return self._backend.run_here(self._submitted)

    def __reduce__(self) -> tuple[Callable[..., PackedChunk], tuple[Any, ...]]:
        packed = self._backend.pack(self._submitted, self._backend.start_pipe())
        return PackedChunk, tuple(values_of(packed).values())

    def __dask_tokenize__(self) -> tuple[str, int, bool]:
        """Name the task without hashing the items."""
        return self._backend.key, self._submitted.chunk.id, self._submitted.with_task


class _StartPipe:
    """A named pipe in which processes of this machine report that they start a chunk.

    It exists from the first chunk that is pickled to the end of the run. Chunks at work stop when
    it no longer exists.
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
                pass  # another program removed the folder
            shutil.rmtree(self._folder, ignore_errors=True)
        self._reader.join(_STOP_GRACE_SECONDS)

    def _open(self) -> str:
        try:
            self._folder = tempfile.mkdtemp(prefix="amorsize-")  # readable by this user alone
            path = os.path.join(self._folder, "starts")
            os.mkfifo(path, 0o600)
            pipe = os.open(path, os.O_RDWR)  # also for writing, so that reading never ends
        except OSError:
            shutil.rmtree(self._folder, ignore_errors=True)
            return ""  # starts are reported with the outcomes
        self._reader = threading.Thread(
            target=self._read, args=(pipe,), name="amorsize-starts", daemon=True
        )
        self._reader.start()
        return path

    def _read(self, pipe: int) -> None:
        with open(pipe, "rb", buffering=0) as starts:
            rest = b""
            while True:
                *lines, rest = (rest + starts.read(65536)).split(b"\n")
                for line in lines:
                    if not line:
                        return
                    self._backend.note_start(*read_start(line))


def _done(submitted: SubmittedChunk, future: Any) -> FutureDone:
    try:
        return FutureDone(submitted, future.result())
    except BaseException as error:  # CancelledError, too
        return FutureDone(submitted, error=error)


def _wait_ignoring_errors(
    wait: Callable[[float], Sequence[Message]], seconds: float
) -> Sequence[Message]:
    try:
        return wait(seconds)
    except Exception:
        return ()  # the run has failed already


def _is_ended(place: Place) -> bool:
    """Return whether the process of a worker on this machine is known to have ended."""
    if place.hostname != HOSTNAME or place.pid == os.getpid():
        return False
    try:
        # WNOWAIT: whoever started this child is to wait for it.
        return os.waitid(os.P_PID, place.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        pass  # not our child, or waited for
    try:
        os.kill(place.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # of another user
    return is_in_state(place.pid, ENDED)
