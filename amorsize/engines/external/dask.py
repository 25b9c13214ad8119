"""A Dask cluster as an engine: chunks are tasks of a caller-owned client.

::

    this process                    scheduler                  Dask workers
    submit ── chunk as a task ────────> ───────────────────────> run_chunk_there
    wait  <── reply, as it comes ────── <─────────────────────── reply
          <── topic "amorsize" ──────── <── log_event ────────── a thread starts its first chunk
          ─── which workers? ────────>                           (twice a second)
"""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError
from itertools import islice
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from amorsize.engines.base import Message, Task, WorkerEnded, WorkerLost
from amorsize.engines.external.base import (
    ChunkStarted,
    ExternalBackend,
    FutureDone,
    SubmittedChunk,
    Worker,
)
from amorsize.engines.external.worker import PackedChunk, Place, Reply, here, throttled
from amorsize.errors import ExecutionError, ExecutorBrokenError
from amorsize.workers import in_forked_child
from amorsize.workers.record import Record

if TYPE_CHECKING:
    from amorsize.workers.cpu_time import Unfinished

TOPIC = "amorsize"
"""The topic of Dask's event log in which workers report their start."""

_AHEAD = 2
"""Chunks in flight per thread of the cluster: one at work, one on its way."""
_SHORT_AHEAD = 10
"""The same for chunks that end before the next one could arrive."""

_POLL_SECONDS = 0.5
_CLOSE_SECONDS = 1.0
_LARGE_BYTES = 1 << 20
_DASKS_OWN = ("distributed", "dask", "tornado", "bokeh", "asyncio")


class DaskBackend(ExternalBackend):
    """Chunks as tasks of a Dask client.

    A task that is lost with its worker is run again by Dask, up to its ``allowed-failures``; then
    the chunk counts as lost. The client is never closed here.

    Args:
        client: a synchronous client.
        n_jobs: threads to keep busy.
        threads: how many the cluster has now.
        named: whether the caller gave ``n_jobs``; otherwise all threads of the cluster are used,
            also when it grows or shrinks.
    """

    def __init__(self, client: Any, n_jobs: int, threads: int, *, named: bool) -> None:
        super().__init__(n_jobs)
        self._client = client
        self._named = named
        self._threads = threads
        self._numbers = itertools.count()
        self._outbox: list[tuple[SubmittedChunk, PackedChunk]] = []
        self._polling: Any = None
        self._present: dict[str, int] = {}
        self._lost: dict[int, Unfinished | None] = {}
        self._removed: set[str] = set()
        self._suspects: deque[SubmittedChunk] = deque()

    def open(self, task: Task) -> None:
        super().open(task)
        self.pack_task()  # a function that does not pickle is refused before anything is sent
        name = getattr(task.func, "__name__", type(task.func).__name__)
        self._group = f"{re.sub('[^A-Za-z0-9_]', '', name)}-{self.key}"
        _subscribe(self._client, self)
        self._polling = self._on_loop(self._poll_workers())

    def window(self, short: bool) -> int:
        if self._suspects:
            return 0
        if self._named and self.n_jobs < self._threads:
            return self.n_jobs  # a waiting chunk would take one more thread
        ahead = _SHORT_AHEAD if short else _AHEAD
        return ahead * max(1, self.n_jobs if self._named else self._threads)

    def send(self, submitted: SubmittedChunk) -> None:
        if submitted.chunk.retry_of is None:
            self._send(submitted)
        else:
            self._suspects.append(submitted)
            self._send_suspect()

    def _send_suspect(self) -> None:
        """Send a chunk that may kill its worker, when no other one is in flight.

        Dask counts a death against every task that was assigned to the worker.
        """
        if self._suspects and len(self.in_flight) == len(self._suspects):
            self._send(self._suspects.popleft())

    def _send(self, submitted: SubmittedChunk) -> None:
        self._outbox.append((submitted, self.pack(submitted)))

    def wait(self, timeout: float | None) -> Sequence[Message]:
        self._flush()
        return super().wait(timeout)

    def _flush(self) -> None:
        """Send all chunks submitted since the last time together: that halves the cost."""
        if not self._outbox:
            return
        outbox, self._outbox = self._outbox, []
        chunks = [submitted for submitted, _ in outbox]
        packed = [each for _, each in outbox]
        keys = [(self._group, number) for number in islice(self._numbers, len(outbox))]
        size = sum(len(each.items) + len(each.task or b"") for each in packed)
        with warnings.catch_warnings():
            if size > _LARGE_BYTES:
                # Every chunk is sent only once, however large.
                warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
            try:
                futures = self._client.map(run_chunk_there, packed, key=keys, pure=False)
            except Exception as error:
                raise self._broken_error(error) from error
        for submitted, future in zip(chunks, futures, strict=True):
            submitted.future = future
            self._on_loop(self._await_future(submitted, future))

    def executor_failed(
        self, submitted: SubmittedChunk, error: BaseException, messages: list[Message]
    ) -> None:
        from distributed.scheduler import KilledWorker

        if isinstance(error, KilledWorker):
            self._take_killed(submitted, error, messages)
        elif isinstance(error, asyncio.CancelledError | CancelledError) or not self._is_connected():
            if self.failed is None:
                self.failed = self._broken_error(error)
                self.failed.__cause__ = error
        elif isinstance(error, ImportError) or "deserialization" in str(error):
            self.fail(
                "the Dask cluster cannot load the chunk: install the same version of "
                "amorsize on the scheduler and on the workers, and the same Python "
                f"({type(error).__name__}: {error})",
                error,
            )
        else:
            super().executor_failed(submitted, error, messages)

    def close(self, *, cancel: bool) -> Sequence[Message]:
        if self._polling is not None:
            self._polling.cancel()
            if self.workers and self._is_connected():  # one may have died since the last look
                self._wait_for(self._look_at_workers())
            _unsubscribe(self._client, self)
        futures = [each.future for each in self.in_flight.values() if each.future is not None]
        reported = self.last_reports([])
        if futures and self._is_connected():
            self._wait_for(self._cancel(futures))
        ended = self.end_workers(reported, reason="cancelled" if cancel else "finished")
        self.in_flight.clear()
        return ended

    def log_levels(self) -> dict[str, int]:
        """Leave out the levels of Dask's own loggers: its workers serve other programs as well."""
        levels = super().log_levels()
        return {n: level for n, level in levels.items() if n.partition(".")[0] not in _DASKS_OWN}

    def handle(self, change: Any, messages: list[Message]) -> None:
        if isinstance(change, _Removed):
            self._take_removal(change, messages)
        elif isinstance(change, _Threads):
            self._threads = change.count
        else:
            super().handle(change, messages)
            try:
                self._send_suspect()
            except ExecutionError as error:
                self.failed = self.failed or error

    def note_start(self, message: dict[str, Any]) -> None:
        """Take note of a start that a worker reported; called on the client's event loop."""
        place = Place(
            message["hostname"],
            message["pid"],
            message["thread"],
            message["thread_name"],
            message["details"],
        )
        self.changes.put(ChunkStarted(place, message["chunk"], message["at"]))

    # --- on the client's event loop -----------------------------------------------------------

    def _on_loop(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._client.loop.asyncio_loop)

    def _wait_for(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        try:
            self._on_loop(coroutine).result(_CLOSE_SECONDS)
        except Exception:
            pass  # the scheduler does not answer: it drops tasks of released futures

    async def _await_future(self, submitted: SubmittedChunk, future: Any) -> None:
        try:
            reply = await future
        except BaseException as error:
            self.changes.put(FutureDone(submitted, error=error))
        else:
            self.changes.put(FutureDone(submitted, reply))
        finally:
            future.release()  # at once, so that no results pile up in the cluster

    async def _cancel(self, futures: list[Any]) -> None:
        await self._client.cancel(futures, asynchronous=True, force=True)

    async def _poll_workers(self) -> None:
        """Follow which workers are in the cluster, for as long as the run goes on."""
        while True:
            try:
                await self._look_at_workers()
            except (OSError, RuntimeError):
                pass  # the connection is lost: the futures fail
            await asyncio.sleep(_POLL_SECONDS)

    async def _look_at_workers(self) -> None:
        known, present = self._present, await self._client.nthreads()
        for address in known.keys() - present.keys():
            events = await self._client.get_events(address)
            self.changes.put(_Removed(address, _read_removal(events)))
        if present != known:
            self.changes.put(_Threads(sum(present.values())))
        self._present = present

    def chunk_started(
        self, submitted: SubmittedChunk, place: Place, messages: list[Message]
    ) -> None:
        address = place.details["worker_address"]
        before = [p for p in self.workers if p.details["worker_address"] == address]
        if any(each.pid != place.pid for each in before):  # its nanny has restarted it
            detail = f"the Dask worker {address}; Dask runs its chunks again"
            self._handle_death(address, messages, detail=detail)
        elif submitted.place not in (None, place) and submitted.place in self.workers:
            # Its worker has left the cluster, dead or retired: the scheduler knows which.
            left = self.workers[submitted.place]
            self._lost[left.key] = self.spent_by(left)
        super().chunk_started(submitted, place, messages)

    # --- deaths -------------------------------------------------------------------------------

    def _take_killed(self, submitted: SubmittedChunk, error: Any, messages: list[Message]) -> None:
        """Report a chunk that Dask gave up: it cost as many workers as Dask allows."""
        address = error.last_worker.address
        detail = (
            f"the Dask worker {address}; it is the last of {error.allowed_failures + 1} that died "
            "with this chunk, and Dask no longer tries it"
        )
        self._handle_death(address, messages, submitted=submitted, detail=detail)
        del self.in_flight[submitted.chunk.id]

    def _take_removal(self, removed: _Removed, messages: list[Message]) -> None:
        if removed.address in self._removed:
            self._removed.discard(removed.address)
            return  # reported with the chunk that killed it
        if removed.expected:
            for worker in self._pop_workers(removed.address):
                unfinished = self._lost.get(worker.key)
                messages.append(WorkerEnded(worker.key, "finished", unfinished=unfinished))
            return
        detail = f"the Dask worker {removed.address}; Dask runs its chunks again"
        self._handle_death(removed.address, messages, detail=detail)

    def _handle_death(
        self,
        address: str,
        messages: list[Message],
        *,
        detail: str,
        submitted: SubmittedChunk | None = None,
    ) -> None:
        """Report the death of a Dask worker: one loss, and the ends of its other threads."""
        spent = self.unfinished() | self._lost
        gone = self._pop_workers(address)
        if gone and submitted is not None:
            self._removed.add(address)  # its removal is still to be seen
        if submitted is not None and submitted.place is not None:
            gone.sort(key=lambda worker: worker.place != submitted.place)
        if not gone and submitted is None:
            return  # it took no part
        first = gone[0] if gone else None
        messages.append(
            WorkerLost(
                -1 if first is None else first.key,
                0 if first is None else first.place.pid,
                None,
                first is not None,
                None if submitted is None else submitted.chunk,
                detail=detail,
                recovered=submitted is None,
                unfinished=None if first is None else spent.get(first.key),
            )
        )
        messages.extend(
            WorkerEnded(worker.key, "died", unfinished=spent.get(worker.key)) for worker in gone[1:]
        )

    def _pop_workers(self, address: str) -> list[Worker]:
        places = [p for p in self.workers if p.details["worker_address"] == address]
        return [self.workers.pop(place) for place in places]

    def _is_connected(self) -> bool:
        return bool(self._client.status == "running")

    def _broken_error(self, error: BaseException) -> ExecutorBrokenError:
        return ExecutorBrokenError(
            f"the Dask cluster no longer accepts work ({type(error).__name__}: {error}): its "
            f"client is {self._client.status}, or its tasks were cancelled. Look at the scheduler, "
            "or pass executor='process' to run on this machine."
        )


class _Removed(Record):
    """A Dask worker has left the cluster; ``expected`` where it was retired."""

    address: str
    expected: bool


class _Threads(Record):
    """The number of threads of the cluster has changed."""

    count: int


def _read_removal(events: Sequence[tuple[Any, Any]]) -> bool:
    """Return whether a worker was retired, from the scheduler's events about it."""
    for _, event in reversed(events):
        if isinstance(event, dict) and event.get("action") == "remove-worker":
            return bool(event.get("expected", not event.get("processing-tasks")))
    return False


# --- subscriptions to the topic: Dask has one handler per topic and client ----------------------

_subscribing = threading.Lock()
_subscribers: WeakKeyDictionary[Any, dict[str, DaskBackend]] = WeakKeyDictionary()


@in_forked_child
def _renew_lock() -> None:
    global _subscribing
    _subscribing = threading.Lock()


def _subscribe(client: Any, backend: DaskBackend) -> None:
    with _subscribing:
        subscribers = _subscribers.get(client)
        if subscribers is None:
            subscribers = _subscribers[client] = {}
            client.subscribe_topic(TOPIC, _handler(subscribers))
        subscribers[backend.key] = backend


def _unsubscribe(client: Any, backend: DaskBackend) -> None:
    with _subscribing:
        _subscribers.get(client, {}).pop(backend.key, None)


def _handler(subscribers: dict[str, DaskBackend]) -> Callable[[tuple[float, Any]], None]:
    def handle(event: tuple[float, Any]) -> None:
        _, message = event
        backend = subscribers.get(message.get("key", "")) if isinstance(message, dict) else None
        if backend is not None:  # else of another client's run, or another program's
            backend.note_start(message)

    return handle


# --- in a Dask worker ---------------------------------------------------------------------------

_reported = threading.local()


def run_chunk_there(packed: PackedChunk) -> Reply:
    """Run a chunk as a Dask task."""
    from distributed import Reschedule, get_worker

    worker = get_worker()
    place = here(worker_name=str(worker.name), worker_address=worker.address)

    def on_start(place: Place, chunk_id: int, observed: bool) -> None:
        if getattr(_reported, "key", None) == packed.key and not observed:
            return  # once per thread is enough; of each chunk, the time in one that is lost
        _reported.key = packed.key
        message = {
            "key": packed.key,
            "chunk": chunk_id,
            "hostname": place.hostname,
            "pid": place.pid,
            "thread": place.thread,
            "thread_name": place.thread_name,
            "details": place.details,
            "at": time.monotonic(),
        }
        worker.log_event(TOPIC, message)

    stopped = throttled(_cancelled(worker, worker.get_current_task()))
    reply = packed.run(place, on_start=on_start, stopped=stopped)
    match reply:
        case ("outcome", _, (_, _, _, False, [], *_), _):
            raise Reschedule  # stopped half way: it is either not waited for, or is to run again
    return reply


def _cancelled(worker: Any, key: Any) -> Callable[[], bool]:
    """Make a check whether a running task was cancelled: Dask itself lets it run on."""

    def check() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state == "cancelled"

    return check
