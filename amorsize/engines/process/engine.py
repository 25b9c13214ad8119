"""Worker processes as an engine: dispatch over one connection a worker, deaths seen at once."""

from __future__ import annotations

import _socket
import itertools
import os
import selectors
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack

from amorsize.engines.base import (
    SHORT_CHUNK_SECONDS,
    Backend,
    ChunkDone,
    ChunkRefused,
    Message,
    Overdue,
    Task,
    WorkerEnded,
    WorkerLost,
    WorkerStarted,
)
from amorsize.engines.pauses import PAUSE_WATCH_SECONDS, PauseWatch
from amorsize.engines.process import protocol
from amorsize.engines.process.pool import (
    WorkerProcess,
    cannot_start,
    find_modules,
    pool,
    spare_descriptors,
)
from amorsize.engines.process.program_state import (
    Descriptors,
    modules_to_share,
    read_state,
)
from amorsize.errors import ExecutionError, TransportError, WorkerDiedError
from amorsize.hooks.interruption import protected, protected_between_calls
from amorsize.planning import machine
from amorsize.workers.chunk import HOSTNAME, Chunk
from amorsize.workers.item_slots import CHUNK, CHUNK_STARTED, ITEM, ITEM_STARTED
from amorsize.workers.log_capture import read_levels

TYPE_CHECKING = False
if TYPE_CHECKING:
    from amorsize.workers.cpu_time import Unfinished

_keys = itertools.count()

protected(protocol.SharedBuffers.__init__)  # marked here: a worker loads that module, too

_AHEAD_BYTES = 65536
"""A chunk is sent ahead only when it fits the socket's buffer: a larger one would be kept here."""

_NO_EXPORTERS = dict.fromkeys(
    ("OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER"), "none"
) | {"OTEL_CONFIG_FILE": ""}

_REAP_SECONDS = 1.0
_CANCEL_GRACE_SECONDS = 0.1
_TERMINATE_GRACE_SECONDS = 0.3
_FAILED_START_LIMIT = 3


class _Slot:
    """A worker's place in this execution."""

    def __init__(self, key: int, process: WorkerProcess) -> None:
        self.key = key
        self.process = process
        self.in_flight: deque[Chunk] = deque()
        self.loaded = False
        self.tried = False
        self.started = False
        self.writes = False
        self.hostname = HOSTNAME

    def unfinished(self) -> Unfinished | None:
        """Read what the worker has spent on the chunk that it is at."""
        if self.process.item_slots[CHUNK_STARTED] == 0:
            return None
        from amorsize.workers.cpu_time import unfinished

        return unfinished(self.process.item_slots, self.process.pid, self.process.pid)

    def may_queue(self) -> bool:
        """Say whether a chunk may be sent ahead of the one that is running."""
        return self.started and len(self.in_flight) == 1


class ProcessBackend(Backend):
    """Up to ``n_jobs`` worker processes out of the shared pool."""

    @protected
    def __init__(self, n_jobs: int) -> None:
        self._n_jobs = n_jobs
        self._key = next(_keys)
        self._slots: dict[int, _Slot] = {}
        self._slot_keys = itertools.count()
        self._short = False
        self._failed_starts = 0
        self._unusable: ExecutionError | None = None
        self._waiting: tuple[Chunk, bytes] | None = None
        self._denied = False
        self._descriptors: Descriptors | None = None
        self._watch: _ItemWatch | None = None
        self._shared: protocol.SharedBuffers | None = None
        with ExitStack() as on_failure:
            try:
                with spare_descriptors():
                    self._selector = selectors.DefaultSelector()
                    on_failure.callback(self._selector.close)
                    self._wake_receiver, self._wake_sender = _socket.socketpair()
            except OSError as error:
                raise cannot_start(error) from error
            on_failure.pop_all()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._selector.register(self._wake_receiver, selectors.EVENT_READ, None)
        self._member = pool.join(n_jobs, self.wake)

    def open(self, task: Task) -> None:
        self._task = task
        cores = machine.read_system(memory=False).usable_cores
        self._state = read_state(max(1, cores // self._n_jobs))
        trace = task.collect.trace if task.collect else None
        captures = trace is not None and trace.capture
        self._settings: dict[str, object] = {
            "return_exceptions": task.return_exceptions,
            "stamp_items": task.stamp_items,
            "collect": task.collect,
            "log_levels": read_levels(),
            # Automatic instrumentation, which starts with the interpreter, exports nothing there.
            "site_environment": _NO_EXPORTERS if captures else {},
        }
        if task.stamp_items:
            self._watch = _ItemWatch()
        self._function, self._shared = protocol.dump_shared_function(task.func)
        self._settings["buffer_sizes"] = self._shared.sizes
        by_value = ["cloudpickle.cloudpickle"] * (b"cloudpickle" in self._function)
        self._modules = find_modules([*modules_to_share(self._state), *by_value])

    def start_workers(self) -> None:
        while len(self._slots) < self._n_jobs:
            process = self._member.acquire(self._modules)
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
        payload = protocol.dump_items(chunk, maps=True)
        chunk.items_bytes = max(chunk.items_bytes, len(payload))
        self._waiting = (chunk, payload)
        try:
            self._place()
        except ExecutionError:
            self._waiting = None
            raise

    def wait(self, timeout: float | None) -> Sequence[Message]:
        self._denied = False
        messages: list[Message] = []
        try:
            if self._unusable is not None and not self._slots:
                raise self._unusable
            self._place()
        except ExecutionError as error:
            if self._waiting is None:
                raise
            messages.append(ChunkRefused(self._waiting[0], error))
            self._waiting = None
            return messages
        if self._watch is not None:
            self._watch.look()
            timeout = PAUSE_WATCH_SECONDS if timeout is None else min(timeout, PAUSE_WATCH_SECONDS)
        for key, events in self._selector.select(timeout):
            slot = key.data
            if slot is None:
                self._drain_wakes()
            elif slot.key in self._slots:
                self._attend(slot, key.fd, events, messages)
        if self._watch is not None:
            self._watch.look()
        self._share(messages)
        return messages

    def wake(self) -> None:
        try:
            self._wake_sender.send(b"\0")
        except OSError:
            pass  # woken already, or closed

    @protected_between_calls
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
            self._release()
        return ended

    @protected
    def _release(self) -> None:
        with ExitStack() as closing:  # all of it, also where a second Ctrl-C ends a wait
            if self._shared is not None:
                closing.callback(self._shared.close)
            if self._descriptors is not None:
                closing.callback(self._descriptors.close)
            for each in (self._wake_sender, self._wake_receiver, self._selector):
                closing.callback(each.close)
            self._member.leave()

    def overdue(self, seconds: float) -> list[Overdue]:
        watch = self._watch
        if watch is None:
            return []
        watch.look()
        late = []
        for slot in self._slots.values():
            chunk = self._current_chunk(slot)
            if chunk is None:
                continue
            stamp = slot.process.item_slots[ITEM_STARTED]
            running = watch.running(slot, stamp)
            if running > seconds:
                # Of a worker that is stopped before its first item, or after its last, the nearest.
                last = chunk.start + len(chunk.items) - 1
                item = min(max(chunk.start, slot.process.item_slots[ITEM]), last)
                late.append(Overdue(slot.key, chunk, item, running, stamp))
        return late

    def end_worker(self, late: Overdue) -> WorkerLost | None:
        slot = self._slots.get(late.worker)
        if slot is None or self._current_chunk(slot) is not late.chunk:
            return None
        if slot.process.item_slots[ITEM_STARTED] != late.stamp:
            return None
        spent = slot.unfinished()
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
            unfinished=spent,
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
        if not slot.tried and self._task.pickled_result:
            slot.tried = True
            self._send(slot, ("trial", self._key), self._task.pickled_result)
        slot.in_flight.append(chunk)
        chunk.dispatched_at = time.time()
        place = chunk.id, chunk.start, len(chunk.items)
        self._send(slot, ("chunk", self._key, *place, chunk.most_bytes), payload)

    def _find_slot(self, payload_bytes: int) -> _Slot | None:
        for slot in self._slots.values():
            if not slot.in_flight:
                return slot
        if len(self._slots) < self._n_jobs:
            process = self._member.acquire(self._modules)
            if process is not None:
                return self._add_slot(process)
            self._denied = True
        if self._short and payload_bytes <= _AHEAD_BYTES:
            return next((slot for slot in self._slots.values() if slot.may_queue()), None)
        return None

    @protected
    def _add_slot(self, process: WorkerProcess) -> _Slot:
        state = process.state_to_send(self._state)
        if state is not None and self._descriptors is None:
            try:
                self._descriptors = Descriptors(self._state)
            except OSError as error:
                raise cannot_start(error) from error
        slot = _Slot(next(self._slot_keys), process)
        self._slots[slot.key] = slot
        self._selector.register(process.connection, selectors.EVENT_READ, slot)
        self._selector.register(process.status, selectors.EVENT_READ, slot)
        settings = self._settings | {"state": state}
        descriptors = []
        shared = self._shared.descriptor if self._shared is not None else None
        if shared is not None:
            descriptors.append(shared)
        if state is not None:
            assert self._descriptors is not None
            settings["has"] = self._descriptors.has
            descriptors.extend(self._descriptors.opened)
        self._send(slot, ("task", self._key, settings), self._function, descriptors)
        return slot

    def _leave(self, slot: _Slot) -> None:
        del self._slots[slot.key]
        self._selector.unregister(slot.process.connection)
        self._selector.unregister(slot.process.status)

    def _send(
        self,
        slot: _Slot,
        header: tuple[object, ...],
        payload: bytes = b"",
        descriptors: Sequence[int] = (),
    ) -> None:
        try:
            protocol.send(slot.process.connection, header, payload, descriptors)
        except OSError:
            pass  # it died: wait() sees that, and what became of its chunks
        self._update_interest(slot)

    def _update_interest(self, slot: _Slot) -> None:
        """Wait for room in the socket only where something is left to be sent."""
        unsent = slot.process.connection.unsent
        if unsent != slot.writes:
            slot.writes = unsent
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if unsent else 0)
            self._selector.modify(slot.process.connection, events, slot)

    def _attend(self, slot: _Slot, fd: int, events: int, messages: list[Message]) -> None:
        """Write what a worker has room for, and read what it has sent."""
        process = slot.process
        if events & selectors.EVENT_WRITE:
            try:
                process.connection.flush()
            except OSError:
                pass  # as in _send()
            self._update_interest(slot)
        if fd == process.status:
            if process.has_ended():
                self._read_messages(slot, messages, ended=True)
        elif events & selectors.EVENT_READ:
            self._read_messages(slot, messages, ended=False)

    def _read_messages(self, slot: _Slot, messages: list[Message], *, ended: bool) -> None:
        """Read all messages that have come; with ``ended``, the last ones."""
        try:
            # A worker that cannot be used is given back while its messages are read.
            while slot.key in self._slots and (
                message := protocol.receive(slot.process.connection)
            ):
                self._take(slot, *message, messages)
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
            case ("loaded", _, files):
                slot.loaded = True
                self._unusable = None
                slot.process.holds(files)  # type: ignore[arg-type]  # as the worker read them
            case ("unusable", _, what, text, missing):
                advice = (
                    " Its module must be importable there: check sys.path and what is installed."
                )
                problem = f"{what} cannot be loaded in worker process {slot.process.pid}: {text}"
                error = TransportError(f"{problem}.{advice if missing else ''}")
                error.problem = problem
                self._refuse(slot, error, messages)
                self._dismiss(slot)
            case _:
                raise AssertionError(f"unknown message {header!r}")

    def _refuse(self, slot: _Slot, error: ExecutionError, messages: list[Message]) -> None:
        """Take note that a worker can do nothing: of what was sent to it, nothing was begun."""
        messages.extend(ChunkRefused(chunk, error) for chunk in slot.in_flight)
        slot.in_flight.clear()
        self._unusable = error

    def _handle_death(self, slot: _Slot, messages: list[Message]) -> None:
        """Find out what a dead worker was at, from the item slots that outlive it."""
        self._leave(slot)
        chunk = self._chunk_at_work(slot)
        item = slot.process.item_slots[ITEM] if chunk is not None else None
        spent = slot.unfinished() if chunk is not None else None
        if spent is not None:
            spent.cpu_seconds = None  # the system forgets it, sooner or later
        code = self._member.discard(slot.process, _REAP_SECONDS)
        if slot.process.start_error:
            number = slot.process.start_error
            if not self._slots:
                self._refuse(slot, cannot_start(OSError(number, os.strerror(number))), messages)
                return
            self._n_jobs = len(self._slots)  # go on with those that there are
        elif not slot.started:
            self._failed_starts += 1
            if self._failed_starts >= _FAILED_START_LIMIT:
                died = WorkerDiedError(
                    pid=slot.process.pid,
                    exit_code=code,
                    detail=f"before it took any work, as did {self._failed_starts - 1} before it",
                )
                self._refuse(slot, died, messages)
                return
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
                unfinished=spent,
            )
        )

    def _chunk_at_work(self, slot: _Slot) -> Chunk | None:
        at_work = slot.process.item_slots[CHUNK]
        return next((chunk for chunk in slot.in_flight if chunk.id == at_work), None)

    def _current_chunk(self, slot: _Slot) -> Chunk | None:
        """Return the chunk at work, or the one that the worker is about to take."""
        if not slot.in_flight:
            return None
        return self._chunk_at_work(slot) or slot.in_flight[0]

    def _stop_work(self) -> list[Message]:
        """Stop the workers that are at work; those that are done within a moment stay warm."""
        ended: list[Message] = []
        deadline = time.monotonic() + _CANCEL_GRACE_SECONDS
        ignored: list[Message] = []
        while any(slot.in_flight for slot in self._slots.values()):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            for key, events in self._selector.select(left):
                if key.data is None:
                    self._drain_wakes()
                elif key.data.key in self._slots:
                    try:
                        self._attend(key.data, key.fd, events, ignored)
                    except ExecutionError:
                        pass  # the run fails already
        # Starts and chunks that were reported too late, and deaths just seen, are passed on.
        ended.extend(m for m in ignored if isinstance(m, WorkerStarted | WorkerLost | ChunkDone))
        busy = [slot for slot in self._slots.values() if slot.in_flight]
        spent = {slot.key: slot.unfinished() for slot in busy}
        for slot in busy:
            slot.process.terminate()
        deadline = time.monotonic() + _TERMINATE_GRACE_SECONDS
        for slot in busy:
            self._leave(slot)
            code = self._member.discard(slot.process, max(0.0, deadline - time.monotonic()))
            if slot.started:
                ended.append(WorkerEnded(slot.key, "cancelled", code, spent[slot.key]))
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
        connection = slot.process.connection
        try:
            protocol.send(connection, ("end", self._key))
        except OSError:
            self._member.discard(slot.process, 0)
        else:
            if connection.unsent:  # it does not read: it is frozen, or still loads a large function
                self._member.discard(slot.process, 0)
            else:
                self._member.release(slot.process, self._key)

    def _drain_wakes(self) -> None:
        try:
            while self._wake_receiver.recv(4096):
                pass
        except BlockingIOError:
            pass


class _ItemWatch(PauseWatch):
    """Measures for how long items have been running, or their workers been stopped."""

    def __init__(self) -> None:
        super().__init__()
        self._stopped: dict[int, int] = {}

    def running(self, slot: _Slot, stamp: int) -> float:
        """Return the seconds since ``stamp``; between two items, since the worker was stopped."""
        if stamp > 0:
            self._stopped.pop(slot.key, None)
            return self.seconds_since(stamp)
        if not slot.process.is_stopped():
            self._stopped.pop(slot.key, None)
            return 0.0
        return self.seconds_since(self._stopped.setdefault(slot.key, self.looked_at))
