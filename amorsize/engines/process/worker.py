"""A worker process: forked by the template, it lives until its connection ends.

It has one thread and no exporter. The messages that it gets and sends are listed in ``protocol``.
"""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
from _pickle import loads

from amorsize.engines.process import protocol
from amorsize.engines.process.connection import Connection
from amorsize.engines.process.module_files import ModuleFiles
from amorsize.engines.process.program_state import AppliedState, flush_streams
from amorsize.engines.process.protocol import IDLE_SECONDS
from amorsize.workers import in_forked_child
from amorsize.workers.chunk import (
    HOSTNAME,
    Chunk,
    ChunkOutcome,
    run_chunk,
    text_of,
    unreadable,
)
from amorsize.workers.item_slots import CHUNK, CHUNK_STARTED, mark_chunk
from amorsize.workers.log_capture import LogCapture
from amorsize.workers.role import become_worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from amorsize.workers.collectors import CollectSettings

_WATCH_SECONDS = 0.5
_MAX_TEXT = 4096


class Birth:
    """The arguments of a new worker.

    Attributes:
        connection: the descriptor of its connection.
        item_slots: where it shows the item that it is at.
        lifeline: the descriptor of a pipe that closes with the template.
    """

    def __init__(self, connection: int, item_slots: memoryview[int], lifeline: int) -> None:
        self.connection = connection
        self.item_slots = item_slots
        self.lifeline = lifeline


def main(birth: Birth) -> None:
    """Serve the program; returns, or exits, when the connection ends."""
    become_worker()
    try:
        os.setsid()  # a function that signals its process group does not reach other workers
    except PermissionError:
        pass
    _die_with_template(birth.lifeline)
    connection = Connection(birth.connection)
    # A process that the user's function forks must not hold the connection open after us.
    in_forked_child(connection.close)
    for stream in (sys.stdout, sys.stderr):
        # Printed lines are not lost when the process is killed.
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    worker = _Worker(connection, birth.item_slots)
    try:
        protocol.send(connection, ("ready", time.time()))
        worker.serve()
    except (EOFError, OSError) as error:
        if connection.is_ended() or isinstance(error, (EOFError, BrokenPipeError)):
            return  # the program closed the connection, or is gone
        raise


class _Worker:
    """Serves one run after another."""

    def __init__(self, connection: Connection, item_slots: memoryview[int]) -> None:
        self._connection = connection
        self._item_slots = item_slots
        self._state = AppliedState()
        self._modules = ModuleFiles()
        self._log = LogCapture()
        self._tasks: dict[int, _Task] = {}
        self._provider_at_start: Any = None
        self._site_has_run = False

    def serve(self) -> None:
        connection = self._connection
        while True:
            if not self._tasks and not connection.poll(IDLE_SECONDS):
                return
            message = connection.receive()
            assert message is not None, "a blocking connection waits"
            header, payload = loads(message[0]), message[1]
            del message
            match header:
                case ("chunk", key, chunk_id, start, size, most_bytes):
                    task = self._tasks.get(key)
                    if task is not None:  # else its function was unusable, and the program knows
                        # No name here, which would keep the items until the next message.
                        self._run_chunk(
                            key,
                            task,
                            Chunk(chunk_id, start, range(size), most_bytes=most_bytes),
                            payload,
                        )
                case ("task", key, settings):
                    self._begin(key, settings, payload)
                case ("trial", key):
                    self._try(key, payload)
                case ("end", key):
                    self._tasks.pop(key, None)
                    if not self._state.restore():
                        return
                    protocol.send(connection, ("idle", key, self._modules.read_new()))
                case _:
                    raise AssertionError(f"unknown message {header!r}")
            del payload

    def _run_chunk(self, key: int, task: _Task, chunk: Chunk, payload: bytearray) -> None:
        connection, item_slots = self._connection, self._item_slots
        mark_chunk(item_slots, chunk.id, chunk.start)
        if not task.reported:
            task.reported = True
            name = threading.current_thread().name
            protocol.send(connection, ("started", key, HOSTNAME, name))
        self._log.keep(task.log_levels)
        outcome = task.run(chunk, payload, item_slots)
        flush_streams()
        if records := self._log.take():
            outcome.extras["log_records"] = records
        packed, results = protocol.pack_outcome(outcome)
        del outcome, payload, chunk
        protocol.send(connection, ("outcome", key, packed), results)
        item_slots[CHUNK], item_slots[CHUNK_STARTED] = -1, 0

    def _begin(self, key: int, settings: dict[str, Any], payload: bytearray) -> None:
        """Take over the state of the program, and load the function of a run."""
        connection = self._connection
        received = iter(connection.received[:])
        connection.received.clear()
        buffers = []
        if settings["buffer_sizes"]:
            buffers = protocol.map_buffers(settings["buffer_sizes"], next(received))
        state = settings["state"]
        if state is not None:
            self._state.take(state, [next(received) if has else None for has in settings["has"]])
        self._state.apply()
        if state is not None and state["site"]:
            self._run_site(settings["site_environment"])
        try:
            self._tasks[key] = _Task(settings, payload, buffers, self._provider_at_start)
        except Exception as error:
            self._refuse(key, "the function", error)
        else:
            self._state.apply_warnings()
            protocol.send(connection, ("loaded", key, self._modules.read_new()))

    def _try(self, key: int, payload: bytearray) -> None:
        """See whether a result of a run can be loaded in another process than its own."""
        try:
            loads(payload)
        except Exception as error:
            if self._tasks.pop(key, None) is not None:  # else the program knows
                self._refuse(key, "a result", error)

    def _refuse(self, key: int, what: str, error: Exception) -> None:
        # Cut, because the program may be sending while it does not listen.
        text = f"{type(error).__name__}: {text_of(error)}"[:_MAX_TEXT]
        missing = isinstance(error, (ImportError, AttributeError))
        protocol.send(self._connection, ("unusable", key, what, text, missing))

    def _run_site(self, environment: dict[str, str]) -> None:
        """Run what ``site`` runs at the start of an interpreter, once."""
        if self._site_has_run:
            return
        self._site_has_run = True
        os.environ.update(environment)
        import site

        site.main()
        self._provider_at_start = _find_muted_provider()
        self._state.apply()


class _Task:
    """The function of one execution, and how to run it."""

    def __init__(
        self,
        settings: dict[str, Any],
        payload: bytearray,
        buffers: list[Any],
        provider_at_start: Any,
    ) -> None:
        self.collect: CollectSettings | None = settings["collect"]
        if self.collect is not None:
            self.collect.use_in_worker(provider_at_start)
        self.func = loads(payload, buffers=buffers)
        self.return_exceptions: bool = settings["return_exceptions"]
        self.stamp_items: bool = settings["stamp_items"]
        self.log_levels: dict[str, int] = settings["log_levels"]
        self.reported = False

    def run(self, chunk: Chunk, payload: bytearray, item_slots: memoryview[int]) -> ChunkOutcome:
        """Run a chunk; only the number of its items is known, they are in the payload."""
        try:
            chunk.items = loads(payload)
        except Exception as error:
            return unreadable(chunk.id, chunk.start, len(chunk.items), error)
        return run_chunk(
            self.func,
            chunk,
            return_exceptions=self.return_exceptions,
            item_slots=item_slots,
            stamp_items=self.stamp_items,
            collect=self.collect,
        )


def _find_muted_provider() -> Any:
    """Return what automatic instrumentation set up before any run, if it exports nothing itself."""
    if os.environ.get("OTEL_TRACES_EXPORTER") != "none":
        return None
    from amorsize.workers.trace_link import loaded_tracing

    return getattr(loaded_tracing(), "_TRACER_PROVIDER", None)


def _die_with_template(lifeline: int) -> None:
    """End this process when the template dies, even in the middle of a call that holds the GIL.

    The template alone holds the other end of the lifeline, a pipe in which nothing is ever
    written. On Linux the kernel raises SIGIO here when that end closes, and SIGIO's default is
    to end the process (pipe(7), fcntl(2) O_ASYNC). Elsewhere a thread looks every half second.
    """
    template = os.getppid()
    if sys.platform == "linux":
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC)
    else:
        threading.Thread(target=_watch_template, args=(template,), daemon=True).start()
    if os.getppid() != template:  # it died before we were ready
        os._exit(1)


def _watch_template(template: int) -> None:
    while os.getppid() == template:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)
