"""Worker processes as an engine: dispatch over one connection a worker, deaths seen at once."""

from __future__ import annotations

import itertools
import selectors
import socket
import time
from collections import deque
from collections.abc import Sequence

from amorsize.engines.base import (
    SHORT_CHUNK_SECONDS,
    Backend,
    ChunkDone,
    Message,
    Overdue,
    Task,
    WorkerEnded,
    WorkerLost,
    WorkerStarted,
)
from amorsize.engines.process import protocol
from amorsize.engines.process.pool import WorkerProcess, pool, read_surroundings
from amorsize.errors import TransportError, WorkerDiedError
from amorsize.planning import machine
from amorsize.workers.chunk import HOSTNAME, Chunk
from amorsize.workers.item_slots import CHUNK, ITEM, ITEM_STARTED
from amorsize.workers.log_records import read_levels

_keys = itertools.count()

_AHEAD_BYTES = 65536
"""A chunk is sent ahead only when it fits the socket's buffer: sending it must not block while
the worker in turn waits for us to read its results."""

_NO_EXPORTERS = dict.fromkeys(
    ("OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER"), "none"
)

_REAP_SECONDS = 1.0
_CANCEL_GRACE_SECONDS = 0.1
_TERMINATE_GRACE_SECONDS = 0.3
_STILLBORN_LIMIT = 3
_POLL_SECONDS = 0.5


class _Seat:
    """A worker's place in this execution."""

    def __init__(self, key: int, process: WorkerProcess) -> None:
        self.key = key
        self.process = process
        self.in_flight: deque[Chunk] = deque()
        self.loaded = False
        self.started = False
        self.hostname = HOSTNAME

    def may_queue(self) -> bool:
        """Say whether a chunk may be sent ahead of the one that is running."""
        return self.started and len(self.in_flight) == 1


class ProcessBackend(Backend):
    """Up to ``n_jobs`` worker processes out of the shared pool."""

    def __init__(self, n_jobs: int) -> None:
        self._n_jobs = n_jobs
        self._key = next(_keys)
        self._seats: dict[int, _Seat] = {}
        self._seat_keys = itertools.count()
        self._short = False
        self._stillborn = 0
        self._selector = selectors.DefaultSelector()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._selector.register(self._wake_receiver, selectors.EVENT_READ, None)
        self._member = pool.join(n_jobs, self.wake)
        self._waiting: tuple[Chunk, bytes] | None = None
        self._denied = False

    def open(self, task: Task) -> None:
        cores = machine.read_system(memory=False).usable_cores
        self._surroundings = read_surroundings(max(1, cores // self._n_jobs))
        self._settings = {
            "return_exceptions": task.return_exceptions,
            "stamp_items": task.stamp_items,
            "collect": task.collect,
            "log_levels": read_levels(),
        }
        self._start_environment = self._surroundings[2]
        if task.collect.trace is not None and task.collect.trace.capture:
            # Automatic instrumentation, which starts with the interpreter, exports nothing there.
            self._start_environment = self._start_environment | _NO_EXPORTERS
        self._function = protocol.dump_function(task.func)

    def start_workers(self) -> None:
        while len(self._seats) < self._n_jobs:
            process = self._member.acquire(self._start_environment)
            if process is None:
                break
            self._seat(process)

    def use_workers(self, n_jobs: int) -> None:
        self._n_jobs = n_jobs
        idle = [seat for seat in self._seats.values() if not seat.in_flight]
        for seat in idle[: max(0, len(self._seats) - n_jobs)]:
            self._dismiss(seat)

    def is_ready(self) -> bool:
        return any(seat.loaded for seat in self._seats.values())

    def has_room(self) -> bool:
        return self._waiting is None and (
            (len(self._seats) < self._n_jobs and not self._denied)
            or any(not seat.in_flight for seat in self._seats.values())
            or (self._short and any(seat.may_queue() for seat in self._seats.values()))
        )

    def can_hold(self) -> bool:
        return self._waiting is None

    def submit(self, chunk: Chunk) -> None:
        self._waiting = (chunk, protocol.dump_items(chunk))
        self._place()

    def wait(self, timeout: float | None) -> Sequence[Message]:
        self._denied = False
        self._place()
        news: list[Message] = []
        if timeout is None and any(s.process.sentinel is None for s in self._seats.values()):
            timeout = _POLL_SECONDS
        for key, _ in self._selector.select(timeout):
            seat = key.data
            if seat is None:
                self._drain_wakes()
            elif seat.key in self._seats:
                self._hear(seat, key.fd == seat.process.sentinel, news)
        for seat in list(self._seats.values()):
            if seat.process.sentinel is None and not seat.process.is_alive():
                self._hear(seat, True, news)
        self._share(news)
        return news

    def wake(self) -> None:
        try:
            self._wake_sender.send(b"\0")
        except OSError:
            pass  # woken already, or closed

    def close(self, *, cancel: bool) -> Sequence[Message]:
        ended: list[Message] = []
        try:
            if cancel:
                ended.extend(self._stop_work())
            for seat in list(self._seats.values()):
                self._dismiss(seat)
                if seat.started:
                    ended.append(WorkerEnded(seat.key, "cancelled" if cancel else "finished"))
        finally:  # a Ctrl-C may come here, too: what is still held is killed
            self._member.leave()
            self._selector.close()
            self._wake_receiver.close()
            self._wake_sender.close()
        return ended

    def overdue(self, seconds: float) -> list[Overdue]:
        now = time.monotonic_ns()
        late = []
        for seat in self._seats.values():
            board = seat.process.board
            stamp, item, chunk = board[ITEM_STARTED], board[ITEM], self._chunk_at_work(seat)
            running = (now - stamp) / 1e9
            if chunk is not None and stamp > 0 and running > seconds:
                late.append(Overdue(seat.key, chunk, item, running, stamp))
        return late

    def end_worker(self, late: Overdue) -> WorkerLost | None:
        seat = self._seats.get(late.worker)
        if seat is None or self._chunk_at_work(seat) is not late.chunk:
            return None
        if seat.process.board[ITEM_STARTED] != late.stamp:
            return None
        seat.process.kill()
        self._leave(seat)
        code = self._member.discard(seat.process, _REAP_SECONDS)
        return WorkerLost(
            seat.key,
            seat.process.pid,
            code,
            seat.started,
            late.chunk,
            late.item_index,
            [chunk for chunk in seat.in_flight if chunk is not late.chunk],
            exit_reason="cancelled",
        )

    def _place(self) -> None:
        """Send the waiting chunk to a worker, if one may have it now."""
        self._member.hungry = False
        if self._waiting is None:
            return
        chunk, payload = self._waiting
        seat = self._find_seat(len(payload))
        if seat is None:
            return
        self._waiting = None
        seat.in_flight.append(chunk)
        chunk.dispatched_at = time.time()
        header = ("chunk", self._key, chunk.id, chunk.start, len(chunk.items))
        try:
            protocol.send(seat.process.connection, header, payload)
        except OSError:
            pass  # it died: wait() sees that, and what became of the chunk

    def _find_seat(self, payload_bytes: int) -> _Seat | None:
        for seat in self._seats.values():
            if not seat.in_flight and self._takes(seat, payload_bytes):
                return seat
        if len(self._seats) < self._n_jobs:
            process = self._member.acquire(self._start_environment)
            if process is not None:
                seat = self._seat(process)
                return seat if self._takes(seat, payload_bytes) else None
            self._denied = True
        if self._short and payload_bytes <= _AHEAD_BYTES:
            return next((seat for seat in self._seats.values() if seat.may_queue()), None)
        return None

    def _takes(self, seat: _Seat, payload_bytes: int) -> bool:
        """Say whether a chunk can be sent to an idle worker without waiting for it to listen.

        One that is still loading the function listens to nothing: more than its socket holds
        would keep us from hearing the others, and from looking at time limits.
        """
        return seat.loaded or len(self._function) + payload_bytes <= _AHEAD_BYTES

    def _seat(self, process: WorkerProcess) -> _Seat:
        seat = _Seat(next(self._seat_keys), process)
        self._seats[seat.key] = seat
        self._selector.register(process.connection, selectors.EVENT_READ, seat)
        if process.sentinel is not None:
            self._selector.register(process.sentinel, selectors.EVENT_READ, seat)
        settings = self._settings | {"surroundings": process.news_of(self._surroundings)}
        try:
            protocol.send(process.connection, ("task", self._key, settings), self._function)
        except OSError:
            pass  # it died: wait() sees that
        return seat

    def _leave(self, seat: _Seat) -> None:
        del self._seats[seat.key]
        self._selector.unregister(seat.process.connection)
        if seat.process.sentinel is not None:
            self._selector.unregister(seat.process.sentinel)

    def _hear(self, seat: _Seat, ended: bool, news: list[Message]) -> None:
        """Read what a worker has to say; with ``ended``, to the last byte."""
        connection = seat.process.connection
        try:
            # poll() is true at the connection's end, too: receive() then raises.
            while not ended or connection.poll():
                self._take(seat, *protocol.receive(connection), news)
                if not ended:
                    break
        except (EOFError, OSError):
            ended = True
        if ended and seat.key in self._seats:
            self._bury(seat, news)

    def _take(
        self, seat: _Seat, header: tuple[object, ...], payload: bytearray, news: list[Message]
    ) -> None:
        if header[0] != "ready" and header[1] != self._key:
            return  # of an earlier execution, which ended before it was read
        match header:
            case ("outcome", _, packed):
                outcome = protocol.unpack_outcome(
                    packed,  # type: ignore[arg-type]  # as protocol.pack_outcome made it
                    payload,
                    pid=seat.process.pid,
                    hostname=seat.hostname,
                )
                self._short = outcome.duration < SHORT_CHUNK_SECONDS
                seat.in_flight.popleft()
                news.append(ChunkDone(seat.key, outcome))
            case ("started", _, str() as hostname, str() as thread_name):
                seat.started = True
                self._stillborn = 0
                seat.hostname = hostname
                news.append(WorkerStarted(seat.key, seat.process.pid, hostname, thread_name))
            case ("ready", float() as at):
                seat.process.is_up(at)
            case ("loaded", _):
                seat.loaded = True
            case ("unusable", _, text):
                raise TransportError(
                    f"the function cannot be loaded in worker process {seat.process.pid}: {text}. "
                    "Its module must be importable there: check sys.path and what is installed."
                )
            case _:
                raise AssertionError(f"unknown message {header!r}")

    def _bury(self, seat: _Seat, news: list[Message]) -> None:
        """Find out what a dead worker was at, from the board that outlives it."""
        self._leave(seat)
        chunk = self._chunk_at_work(seat)
        item = seat.process.board[ITEM] if chunk is not None else None
        code = self._member.discard(seat.process, _REAP_SECONDS)
        if not seat.started:
            self._stillborn += 1
            if self._stillborn >= _STILLBORN_LIMIT:
                raise WorkerDiedError(
                    pid=seat.process.pid,
                    exit_code=code,
                    detail=f"before it took any work, as did {self._stillborn - 1} before it",
                )
        untouched = [each for each in seat.in_flight if each is not chunk]
        detail = ""
        if chunk is not None and item is not None and item >= chunk.start + len(chunk.items):
            item, detail = None, "while it sent its results"
        news.append(
            WorkerLost(
                seat.key,
                seat.process.pid,
                code,
                seat.started,
                chunk,
                item,
                untouched,
                detail=detail,
            )
        )

    def _chunk_at_work(self, seat: _Seat) -> Chunk | None:
        at_work = seat.process.board[CHUNK]
        return next((chunk for chunk in seat.in_flight if chunk.id == at_work), None)

    def _stop_work(self) -> list[Message]:
        """Stop the workers that are at work; those that are done within a moment stay warm."""
        ended: list[Message] = []
        deadline = time.monotonic() + _CANCEL_GRACE_SECONDS
        ignored: list[Message] = []
        while any(seat.in_flight for seat in self._seats.values()):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            for key, _ in self._selector.select(left):
                if key.data is None:
                    self._drain_wakes()
                elif key.data.key in self._seats:
                    try:
                        self._hear(key.data, key.fd == key.data.process.sentinel, ignored)
                    except (TransportError, WorkerDiedError):
                        pass  # the run fails already
        # Workers whose start was told too late, or whose end came just now, are still told of.
        ended.extend(m for m in ignored if isinstance(m, WorkerStarted | WorkerLost))
        busy = [seat for seat in self._seats.values() if seat.in_flight]
        for seat in busy:
            seat.process.terminate()
        deadline = time.monotonic() + _TERMINATE_GRACE_SECONDS
        for seat in busy:
            self._leave(seat)
            code = self._member.discard(seat.process, max(0.0, deadline - time.monotonic()))
            if seat.started:
                ended.append(WorkerEnded(seat.key, "cancelled", code))
        return ended

    def _share(self, news: list[Message]) -> None:
        """Give a worker to an execution that has fewer, between two chunks."""
        if len(self._seats) < 2 or not self._member.should_share():
            return
        for seat in list(self._seats.values()):
            if not seat.in_flight:
                self._dismiss(seat)
                if seat.started:
                    news.append(WorkerEnded(seat.key, "finished"))
                return

    def _dismiss(self, seat: _Seat) -> None:
        """Give a worker without work back to the pool, or let go of one that is dead."""
        self._leave(seat)
        try:
            protocol.send(seat.process.connection, ("end", self._key))
        except OSError:
            self._member.discard(seat.process, 0)
        else:
            self._member.release(seat.process)

    def _drain_wakes(self) -> None:
        try:
            while self._wake_receiver.recv(4096):
                pass
        except BlockingIOError:
            pass
