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
_FAILED_START_LIMIT = 3
_POLL_SECONDS = 0.5


class _Slot:
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
        self._slots: dict[int, _Slot] = {}
        self._slot_keys = itertools.count()
        self._short = False
        self._failed_starts = 0
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
        while len(self._slots) < self._n_jobs:
            process = self._member.acquire(self._start_environment)
            if process is None:
                break
            self._add_slot(process)

    def use_workers(self, n_jobs: int) -> None:
        self._n_jobs = n_jobs
        idle = [slot for slot in self._slots.values() if not slot.in_flight]
        for slot in idle[: max(0, len(self._slots) - n_jobs)]:
            self._dismiss(slot)

    def is_ready(self) -> bool:
        return any(slot.loaded for slot in self._slots.values())

    def has_room(self) -> bool:
        return self._waiting is None and (
            (len(self._slots) < self._n_jobs and not self._denied)
            or any(not slot.in_flight for slot in self._slots.values())
            or (self._short and any(slot.may_queue() for slot in self._slots.values()))
        )

    def can_hold(self) -> bool:
        return self._waiting is None

    def submit(self, chunk: Chunk) -> None:
        self._waiting = (chunk, protocol.dump_items(chunk))
        self._place()

    def wait(self, timeout: float | None) -> Sequence[Message]:
        self._denied = False
        self._place()
        messages: list[Message] = []
        if timeout is None and any(slot.process.sentinel is None for slot in self._slots.values()):
            timeout = _POLL_SECONDS
        for key, _ in self._selector.select(timeout):
            slot = key.data
            if slot is None:
                self._drain_wakes()
            elif slot.key in self._slots:
                self._read_messages(slot, key.fd == slot.process.sentinel, messages)
        for slot in list(self._slots.values()):
            if slot.process.sentinel is None and not slot.process.is_alive():
                self._read_messages(slot, True, messages)
        self._share(messages)
        return messages

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
            for slot in list(self._slots.values()):
                self._dismiss(slot)
                if slot.started:
                    ended.append(WorkerEnded(slot.key, "cancelled" if cancel else "finished"))
        finally:  # a Ctrl-C may come here, too: what is still held is killed
            self._member.leave()
            self._selector.close()
            self._wake_receiver.close()
            self._wake_sender.close()
        return ended

    def overdue(self, seconds: float) -> list[Overdue]:
        now = time.monotonic_ns()
        late = []
        for slot in self._slots.values():
            item_slots = slot.process.item_slots
            stamp, item, chunk = (
                item_slots[ITEM_STARTED],
                item_slots[ITEM],
                self._chunk_at_work(slot),
            )
            running = (now - stamp) / 1e9
            if chunk is not None and stamp > 0 and running > seconds:
                late.append(Overdue(slot.key, chunk, item, running, stamp))
        return late

    def end_worker(self, late: Overdue) -> WorkerLost | None:
        slot = self._slots.get(late.worker)
        if slot is None or self._chunk_at_work(slot) is not late.chunk:
            return None
        if slot.process.item_slots[ITEM_STARTED] != late.stamp:
            return None
        slot.process.kill()
        self._leave(slot)
        code = self._member.discard(slot.process, _REAP_SECONDS)
        return WorkerLost(
            slot.key,
            slot.process.pid,
            code,
            slot.started,
            late.chunk,
            late.item_index,
            [chunk for chunk in slot.in_flight if chunk is not late.chunk],
            exit_reason="cancelled",
        )

    def _place(self) -> None:
        """Send the waiting chunk to a worker, if one may have it now."""
        self._member.hungry = False
        if self._waiting is None:
            return
        chunk, payload = self._waiting
        slot = self._find_slot(len(payload))
        if slot is None:
            return
        self._waiting = None
        slot.in_flight.append(chunk)
        chunk.dispatched_at = time.time()
        header = ("chunk", self._key, chunk.id, chunk.start, len(chunk.items))
        try:
            protocol.send(slot.process.connection, header, payload)
        except OSError:
            pass  # it died: wait() sees that, and what became of the chunk

    def _find_slot(self, payload_bytes: int) -> _Slot | None:
        for slot in self._slots.values():
            if not slot.in_flight and self._takes(slot, payload_bytes):
                return slot
        if len(self._slots) < self._n_jobs:
            process = self._member.acquire(self._start_environment)
            if process is not None:
                slot = self._add_slot(process)
                return slot if self._takes(slot, payload_bytes) else None
            self._denied = True
        if self._short and payload_bytes <= _AHEAD_BYTES:
            return next((slot for slot in self._slots.values() if slot.may_queue()), None)
        return None

    def _takes(self, slot: _Slot, payload_bytes: int) -> bool:
        """Say whether a chunk can be sent to an idle worker without waiting for it to listen.

        One that is still loading the function listens to nothing: more than its socket holds
        would keep us from hearing the others, and from looking at time limits.
        """
        return slot.loaded or len(self._function) + payload_bytes <= _AHEAD_BYTES

    def _add_slot(self, process: WorkerProcess) -> _Slot:
        slot = _Slot(next(self._slot_keys), process)
        self._slots[slot.key] = slot
        self._selector.register(process.connection, selectors.EVENT_READ, slot)
        if process.sentinel is not None:
            self._selector.register(process.sentinel, selectors.EVENT_READ, slot)
        settings = self._settings | {"surroundings": process.changes_of(self._surroundings)}
        try:
            protocol.send(process.connection, ("task", self._key, settings), self._function)
        except OSError:
            pass  # it died: wait() sees that
        return slot

    def _leave(self, slot: _Slot) -> None:
        del self._slots[slot.key]
        self._selector.unregister(slot.process.connection)
        if slot.process.sentinel is not None:
            self._selector.unregister(slot.process.sentinel)

    def _read_messages(self, slot: _Slot, ended: bool, messages: list[Message]) -> None:
        """Read what a worker has to say; with ``ended``, to the last byte."""
        connection = slot.process.connection
        try:
            # poll() is true at the connection's end, too: receive() then raises.
            while not ended or connection.poll():
                self._take(slot, *protocol.receive(connection), messages)
                if not ended:
                    break
        except (EOFError, OSError):
            ended = True
        if ended and slot.key in self._slots:
            self._handle_death(slot, messages)

    def _take(
        self, slot: _Slot, header: tuple[object, ...], payload: bytearray, messages: list[Message]
    ) -> None:
        if header[0] != "ready" and header[1] != self._key:
            return  # of an earlier execution, which ended before it was read
        match header:
            case ("outcome", _, packed):
                outcome = protocol.unpack_outcome(
                    packed,  # type: ignore[arg-type]  # as protocol.pack_outcome made it
                    payload,
                    pid=slot.process.pid,
                    hostname=slot.hostname,
                )
                self._short = outcome.duration < SHORT_CHUNK_SECONDS
                slot.in_flight.popleft()
                messages.append(ChunkDone(slot.key, outcome))
            case ("started", _, str() as hostname, str() as thread_name):
                slot.started = True
                self._failed_starts = 0
                slot.hostname = hostname
                messages.append(WorkerStarted(slot.key, slot.process.pid, hostname, thread_name))
            case ("ready", float() as at):
                slot.process.is_up(at)
            case ("loaded", _):
                slot.loaded = True
            case ("unusable", _, text):
                raise TransportError(
                    f"the function cannot be loaded in worker process {slot.process.pid}: {text}. "
                    "Its module must be importable there: check sys.path and what is installed."
                )
            case _:
                raise AssertionError(f"unknown message {header!r}")

    def _handle_death(self, slot: _Slot, messages: list[Message]) -> None:
        """Find out what a dead worker was at, from the item slots that outlive it."""
        self._leave(slot)
        chunk = self._chunk_at_work(slot)
        item = slot.process.item_slots[ITEM] if chunk is not None else None
        code = self._member.discard(slot.process, _REAP_SECONDS)
        if not slot.started:
            self._failed_starts += 1
            if self._failed_starts >= _FAILED_START_LIMIT:
                raise WorkerDiedError(
                    pid=slot.process.pid,
                    exit_code=code,
                    detail=f"before it took any work, as did {self._failed_starts - 1} before it",
                )
        untouched = [each for each in slot.in_flight if each is not chunk]
        detail = ""
        if chunk is not None and item is not None and item >= chunk.start + len(chunk.items):
            item, detail = None, "while it sent its results"
        messages.append(
            WorkerLost(
                slot.key,
                slot.process.pid,
                code,
                slot.started,
                chunk,
                item,
                untouched,
                detail=detail,
            )
        )

    def _chunk_at_work(self, slot: _Slot) -> Chunk | None:
        at_work = slot.process.item_slots[CHUNK]
        return next((chunk for chunk in slot.in_flight if chunk.id == at_work), None)

    def _stop_work(self) -> list[Message]:
        """Stop the workers that are at work; those that are done within a moment stay warm."""
        ended: list[Message] = []
        deadline = time.monotonic() + _CANCEL_GRACE_SECONDS
        ignored: list[Message] = []
        while any(slot.in_flight for slot in self._slots.values()):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            for key, _ in self._selector.select(left):
                if key.data is None:
                    self._drain_wakes()
                elif key.data.key in self._slots:
                    try:
                        self._read_messages(key.data, key.fd == key.data.process.sentinel, ignored)
                    except (TransportError, WorkerDiedError):
                        pass  # the run fails already
        # Workers whose start was told too late, or whose end came just now, are still told of.
        ended.extend(m for m in ignored if isinstance(m, WorkerStarted | WorkerLost))
        busy = [slot for slot in self._slots.values() if slot.in_flight]
        for slot in busy:
            slot.process.terminate()
        deadline = time.monotonic() + _TERMINATE_GRACE_SECONDS
        for slot in busy:
            self._leave(slot)
            code = self._member.discard(slot.process, max(0.0, deadline - time.monotonic()))
            if slot.started:
                ended.append(WorkerEnded(slot.key, "cancelled", code))
        return ended

    def _share(self, messages: list[Message]) -> None:
        """Give a worker to an execution that has fewer, between two chunks."""
        if len(self._slots) < 2 or not self._member.should_share():
            return
        for slot in list(self._slots.values()):
            if not slot.in_flight:
                self._dismiss(slot)
                if slot.started:
                    messages.append(WorkerEnded(slot.key, "finished"))
                return

    def _dismiss(self, slot: _Slot) -> None:
        """Give a worker without work back to the pool, or let go of one that is dead."""
        self._leave(slot)
        try:
            protocol.send(slot.process.connection, ("end", self._key))
        except OSError:
            self._member.discard(slot.process, 0)
        else:
            self._member.release(slot.process)

    def _drain_wakes(self) -> None:
        try:
            while self._wake_receiver.recv(4096):
                pass
        except BlockingIOError:
            pass
