"""A Dask cluster as an engine: chunks are tasks of a client that was lent.

::

    this process                    scheduler                  Dask workers
    submit ── chunk as a task ────────> ───────────────────────> run_chunk_there
    wait  <── reply, as it comes ────── <─────────────────────── reply
          <── topic "amorsize" ──────── <── log_event ────────── a thread begins its first chunk
          ─── who is there? ──────────>                          (twice a second)
"""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
import warnings
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

from amorsize.engines.base import Message, Task, WorkerEnded, WorkerLost, WorkerStarted
from amorsize.engines.external.base import Begun, Flight, ForeignBackend, Landed, Worker
from amorsize.engines.external.worker import PackedChunk, Place, Reply, here, seldom
from amorsize.errors import ExecutionError, ExecutorBrokenError

TOPIC = "amorsize"
"""Of Dask's event log; workers tell there that they begin."""

_AHEAD = 2
"""Chunks in flight for each thread of the cluster: one at work, one on its way."""
_SHORT_AHEAD = 10
"""The same for chunks that are over before the next one could get there."""

_LOOK_SECONDS = 0.5
_CLOSE_SECONDS = 1.0
_LARGE_BYTES = 1 << 20
_DASKS_OWN = ("distributed", "dask", "tornado", "bokeh", "asyncio")


class DaskBackend(ForeignBackend):
    """Chunks as tasks of a Dask client.

    A task that is lost with its worker is run again by Dask, up to its ``allowed-failures``; then
    the chunk counts as lost. The client is never closed here.

    Args:
        client: a synchronous client.
        n_jobs: threads to keep busy.
        threads: those that the cluster has now.
        named: whether the caller said how many; otherwise it is as many as the cluster has, also
            when it grows or shrinks.
    """

    def __init__(self, client: Any, n_jobs: int, threads: int, *, named: bool) -> None:
        super().__init__(n_jobs)
        self._client = client
        self._named = named
        self._threads = threads
        self._numbers = itertools.count()
        self._outbox: list[tuple[Flight, PackedChunk]] = []
        self._looking: Any = None
        self._removed: set[str] = set()
        self._suspects: deque[Flight] = deque()

    def open(self, task: Task) -> None:
        super().open(task)
        self.pack_task()  # what does not pickle is told before anything is sent
        name = getattr(task.func, "__name__", type(task.func).__name__)
        self._group = f"{re.sub('[^A-Za-z0-9_]', '', name)}-{self.key}"
        _listen(self._client, self)
        self._looking = self._on_loop(self._look())

    def window(self, short: bool) -> int:
        if self._suspects:
            return 0
        if self._named and self.n_jobs < self._threads:
            return self.n_jobs  # one that waits would be one at work
        ahead = _SHORT_AHEAD if short else _AHEAD
        return ahead * max(1, self.n_jobs if self._named else self._threads)

    def send(self, flight: Flight) -> None:
        if flight.chunk.retry_of is None:
            self._send(flight)
        else:
            self._suspects.append(flight)
            self._send_suspect()

    def _send_suspect(self) -> None:
        """Send a chunk that may kill its worker when nothing else is out.

        Dask holds a death against every task that the worker had been given.
        """
        if self._suspects and len(self.flights) == len(self._suspects):
            self._send(self._suspects.popleft())

    def _send(self, flight: Flight) -> None:
        self._outbox.append((flight, self.pack(flight)))

    def wait(self, timeout: float | None) -> Sequence[Message]:
        self._flush()
        return super().wait(timeout)

    def _flush(self) -> None:
        """Send what was submitted since the last time, together: half the price of one by one."""
        if not self._outbox:
            return
        outbox, self._outbox = self._outbox, []
        flights = [flight for flight, _ in outbox]
        packed = [each for _, each in outbox]
        keys = [(self._group, number) for number in islice(self._numbers, len(outbox))]
        size = sum(len(each.items) + len(each.task or b"") for each in packed)
        with warnings.catch_warnings():
            if size > _LARGE_BYTES:
                # Every chunk is sent once, as it should be, however large.
                warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
            try:
                futures = self._client.map(run_chunk_there, packed, key=keys, pure=False)
            except Exception as error:
                raise self._broken_error(error) from error
        for flight, future in zip(flights, futures, strict=True):
            flight.future = future
            self._on_loop(self._bring(flight, future))

    def lost(self, flight: Flight, error: BaseException, news: list[Message]) -> None:
        from distributed.scheduler import KilledWorker

        if isinstance(error, KilledWorker):
            self._take_killed(flight, error, news)
        elif isinstance(error, asyncio.CancelledError | CancelledError) or not self._is_connected():
            if self.failed is None:
                self.failed = self._broken_error(error)
                self.failed.__cause__ = error
        elif isinstance(error, ImportError) or "deserialization" in str(error):
            self.fail(
                "the Dask cluster cannot load what it was sent: install the same version of "
                "amorsize on the scheduler and on the workers, and the same Python "
                f"({type(error).__name__}: {error})",
                error,
            )
        else:
            super().lost(flight, error, news)

    def close(self, *, cancel: bool) -> Sequence[Message]:
        if self._looking is not None:
            self._looking.cancel()
            _unlisten(self._client, self)
        futures = [each.future for each in self.flights.values() if each.future is not None]
        news: list[Message] = []
        while not self.news.empty():
            self.take(self.news.get_nowait(), news)
        if futures and self._is_connected():
            done = self._on_loop(self._cancel(futures))
            try:
                done.result(_CLOSE_SECONDS)
            except Exception:
                pass  # the scheduler does not answer: it will see that nobody wants them
        self.flights.clear()
        told: list[Message] = [
            m for m in news if isinstance(m, WorkerStarted | WorkerLost | WorkerEnded)
        ]
        return self.tell_ends(told, reason="cancelled" if cancel else "finished")

    def log_levels(self) -> dict[str, int]:
        """A Dask worker serves others as well: what Dask itself logs there is left alone."""
        levels = super().log_levels()
        return {n: level for n, level in levels.items() if n.partition(".")[0] not in _DASKS_OWN}

    def take(self, each: Any, news: list[Message]) -> None:
        if isinstance(each, _Removed):
            self._take_removal(each, news)
        elif isinstance(each, _Threads):
            self._threads = each.count
        else:
            super().take(each, news)
            try:
                self._send_suspect()
            except ExecutionError as error:
                self.failed = self.failed or error

    def heard(self, message: dict[str, Any]) -> None:
        """Take what a worker said on the topic; called from the client's loop."""
        place = Place(
            message["hostname"],
            message["pid"],
            message["thread"],
            message["thread_name"],
            message["details"],
        )
        self.news.put(Begun(place, message["chunk"]))

    # --- on the client's event loop -----------------------------------------------------------

    def _on_loop(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._client.loop.asyncio_loop)

    async def _bring(self, flight: Flight, future: Any) -> None:
        try:
            reply = await future
        except BaseException as error:
            self.news.put(Landed(flight, error=error))
        else:
            self.news.put(Landed(flight, reply))
        finally:
            future.release()  # at once, so that nothing piles up in the cluster

    async def _cancel(self, futures: list[Any]) -> None:
        await self._client.cancel(futures, asynchronous=True, force=True)

    async def _look(self) -> None:
        """Follow who is in the cluster, for as long as the run goes on."""
        known: dict[str, int] = {}
        while True:
            try:
                present = await self._client.nthreads()
                for address in known.keys() - present.keys():
                    events = await self._client.get_events(address)
                    self.news.put(_Removed(address, _read_removal(events)))
            except (OSError, RuntimeError):
                pass  # the connection is lost: the futures say so
            else:
                if present != known:
                    self.news.put(_Threads(sum(present.values())))
                known = present
            await asyncio.sleep(_LOOK_SECONDS)

    def begun(self, flight: Flight, place: Place, news: list[Message]) -> None:
        address = place.details["worker_address"]
        before = [p for p in self.workers if p.details["worker_address"] == address]
        if any(each.pid != place.pid for each in before):  # its nanny was quick
            detail = f"the Dask worker {address}; Dask runs again what it was at"
            self._bury(address, news, detail=detail)
        super().begun(flight, place, news)

    # --- deaths -------------------------------------------------------------------------------

    def _take_killed(self, flight: Flight, error: Any, news: list[Message]) -> None:
        """Dask has given a task up: as many workers as it allows died with it."""
        address = error.last_worker.address
        del self.flights[flight.chunk.id]
        detail = (
            f"the Dask worker {address}; it is the last of {error.allowed_failures + 1} that died "
            "with this chunk, and Dask tries it no more"
        )
        self._bury(address, news, flight=flight, detail=detail)

    def _take_removal(self, removed: _Removed, news: list[Message]) -> None:
        if removed.address in self._removed:
            self._removed.discard(removed.address)
            return  # told with the chunk that it was the last for
        if removed.expected:
            for worker in self._pop_workers(removed.address):
                news.append(WorkerEnded(worker.key, "finished"))
            return
        detail = f"the Dask worker {removed.address}; Dask runs again what it was at"
        self._bury(removed.address, news, detail=detail)

    def _bury(
        self, address: str, news: list[Message], *, detail: str, flight: Flight | None = None
    ) -> None:
        """Tell of the death of a Dask worker: one loss, and the ends of its other threads."""
        gone = self._pop_workers(address)
        if gone and flight is not None:
            self._removed.add(address)  # its removal is still to be heard of
        if flight is not None and flight.place is not None:
            gone.sort(key=lambda worker: worker.place != flight.place)
        if not gone and flight is None:
            return  # it took no part
        first = gone[0] if gone else None
        news.append(
            WorkerLost(
                -1 if first is None else first.key,
                0 if first is None else first.place.pid,
                None,
                first is not None,
                None if flight is None else flight.chunk,
                detail=detail,
                recovered=flight is None,
            )
        )
        news.extend(WorkerEnded(worker.key, "died") for worker in gone[1:])

    def _pop_workers(self, address: str) -> list[Worker]:
        places = [p for p in self.workers if p.details["worker_address"] == address]
        return [self.workers.pop(place) for place in places]

    def _is_connected(self) -> bool:
        return bool(self._client.status == "running")

    def _broken_error(self, error: BaseException) -> ExecutorBrokenError:
        return ExecutorBrokenError(
            f"the Dask cluster takes no more work ({type(error).__name__}: {error}): its client "
            f"is {self._client.status}, or its tasks were cancelled. Look at the scheduler, or "
            "pass executor='process' to run on this machine."
        )


class _Removed:
    """A Dask worker that is no more in the cluster; expected where it took its leave."""

    __slots__ = ("address", "expected")

    def __init__(self, address: str, expected: bool) -> None:
        self.address = address
        self.expected = expected


class _Threads:
    """How many threads the cluster has now."""

    __slots__ = ("count",)

    def __init__(self, count: int) -> None:
        self.count = count


def _read_removal(events: Sequence[tuple[Any, Any]]) -> bool:
    """Say whether a worker took its leave, from what the scheduler logged of it."""
    for _, event in reversed(events):
        if isinstance(event, dict) and event.get("action") == "remove-worker":
            return bool(event.get("expected", not event.get("processing-tasks")))
    return False


# --- who listens to the topic, by client: Dask has one handler a topic and client ---------------

_listening = threading.Lock()
_listeners: WeakKeyDictionary[Any, dict[str, DaskBackend]] = WeakKeyDictionary()


def _listen(client: Any, backend: DaskBackend) -> None:
    with _listening:
        listeners = _listeners.get(client)
        if listeners is None:
            listeners = _listeners[client] = {}
            client.subscribe_topic(TOPIC, _handler(listeners))
        listeners[backend.key] = backend


def _unlisten(client: Any, backend: DaskBackend) -> None:
    with _listening:
        _listeners.get(client, {}).pop(backend.key, None)


def _handler(listeners: dict[str, DaskBackend]) -> Callable[[tuple[float, Any]], None]:
    def handle(event: tuple[float, Any]) -> None:
        _, message = event
        backend = listeners.get(message.get("key", "")) if isinstance(message, dict) else None
        if backend is not None:  # else of another client's run, or something else altogether
            backend.heard(message)

    return handle


# --- in a Dask worker ---------------------------------------------------------------------------

_last = threading.local()


def run_chunk_there(packed: PackedChunk) -> Reply:
    """Run a chunk as a Dask task."""
    from distributed import Reschedule, get_worker

    worker = get_worker()
    place = here(worker_name=str(worker.name), worker_address=worker.address)

    def note(place: Place, chunk_id: int) -> None:
        if getattr(_last, "key", None) == packed.key:
            return  # once a thread is enough
        _last.key = packed.key
        message = {
            "key": packed.key,
            "chunk": chunk_id,
            "hostname": place.hostname,
            "pid": place.pid,
            "thread": place.thread,
            "thread_name": place.thread_name,
            "details": place.details,
        }
        worker.log_event(TOPIC, message)

    stopped = seldom(_cancelled(worker, worker.get_current_task()))
    reply = packed.run(place, note=note, stopped=stopped)
    match reply:
        case ("outcome", _, (_, _, _, False, [], *_), _):
            raise Reschedule  # stopped half way: nobody waits for it, or else it is to run again
    return reply


def _cancelled(worker: Any, key: Any) -> Callable[[], bool]:
    """Make a check whether a task in progress is wanted no more: Dask itself lets it run on."""

    def look() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state == "cancelled"

    return look
