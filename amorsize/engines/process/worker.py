"""What a worker process does: started by ``process_pool``, it lives until its connection ends.

It has one thread and no exporter. What it is told and what it answers is listed in ``wire``.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import sys
import threading
import time
from typing import Any

from amorsize.engines.process import protocol
from amorsize.engines.process.connection import Channel
from amorsize.workers.chunk import (
    HOSTNAME,
    Chunk,
    ChunkOutcome,
    run_chunk,
    text_of,
    unreadable,
)
from amorsize.workers.collectors import CollectSettings
from amorsize.workers.item_slots import CHUNK, SLOT_COUNT, mark_chunk
from amorsize.workers.log_records import RecordKeeper, keep_records
from amorsize.workers.role import become_worker

_WATCH_SECONDS = 0.5
_MAX_TEXT = 4096

_provider_at_start: Any = None
"""What automatic instrumentation set up before this module ran, if it exports nothing itself."""


def main() -> None:
    """Serve the parent; the descriptors to use are on the command line."""
    global _provider_at_start
    become_worker()
    _provider_at_start = _find_muted_provider()
    connection_fd, slots_fd, lifeline_fd, parent_pid = (int(arg) for arg in sys.argv[2:6])
    # Ctrl-C is for the parent to handle; it ends this process by closing the connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with(parent_pid, lifeline_fd)
    connection = Channel(connection_fd)
    os.set_inheritable(connection_fd, False)
    # A process that the user's function forks must not hold the connection open after us.
    os.register_at_fork(after_in_child=connection.close)
    item_slots = memoryview(mmap.mmap(slots_fd, SLOT_COUNT * 8)).cast("q")
    os.close(slots_fd)
    try:
        protocol.send(connection, ("ready", time.time()))
        _serve(connection, item_slots)
    except (EOFError, OSError):
        pass  # the parent closed the connection, or is gone


def _serve(connection: Channel, item_slots: memoryview[int]) -> None:
    tasks: dict[int, _Task] = {}
    keeper = RecordKeeper()
    while True:
        header, payload = protocol.receive(connection)
        match header:
            case ("chunk", key, chunk_id, start, size):
                task = tasks.get(key)
                if task is None:
                    continue  # its function was unusable, and the parent knows
                mark_chunk(item_slots, chunk_id, start)
                if not task.told:
                    task.told = True
                    name = threading.current_thread().name
                    protocol.send(connection, ("started", key, HOSTNAME, name))
                keep_records(task.log_levels, keeper)
                outcome = task.run(chunk_id, start, size, payload, item_slots)
                if records := keeper.take():
                    outcome.extras["log_records"] = records
                packed, results = protocol.pack_outcome(outcome)
                del outcome, payload
                protocol.send(connection, ("outcome", key, packed), results)
                item_slots[CHUNK] = -1
            case ("task", key, settings):
                try:
                    tasks[key] = _Task(settings, payload)
                except Exception as error:
                    # Cut, because the parent may be sending while it does not listen.
                    text = f"{type(error).__name__}: {text_of(error)}"[:_MAX_TEXT]
                    protocol.send(connection, ("unusable", key, text))
                else:
                    protocol.send(connection, ("loaded", key))
            case ("end", key):
                tasks.pop(key, None)
            case _:
                raise AssertionError(f"unknown message {header!r}")


class _Task:
    """The function of one execution, and how to run it."""

    def __init__(self, settings: dict[str, Any], payload: bytearray) -> None:
        _take_surroundings(settings.get("surroundings"))
        self.collect: CollectSettings = settings["collect"]
        self.collect.use_in_worker(_provider_at_start)
        self.func = pickle.loads(payload)
        self.return_exceptions: bool = settings["return_exceptions"]
        self.stamp_items: bool = settings["stamp_items"]
        self.log_levels: dict[str, int] = settings["log_levels"]
        self.told = False

    def run(
        self, chunk_id: int, start: int, size: int, payload: bytearray, item_slots: memoryview[int]
    ) -> ChunkOutcome:
        try:
            items = pickle.loads(payload)
        except Exception as error:
            return unreadable(chunk_id, start, size, error)
        return run_chunk(
            self.func,
            Chunk(chunk_id, start, items),
            return_exceptions=self.return_exceptions,
            item_slots=item_slots,
            stamp_items=self.stamp_items,
            collect=self.collect,
        )


def _find_muted_provider() -> Any:
    trace = sys.modules.get("opentelemetry.trace")
    muted = os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    return getattr(trace, "_TRACER_PROVIDER", None) if muted else None


def _take_surroundings(surroundings: tuple[list[str], str, dict[str, str]] | None) -> None:
    """See the parent's import path, working directory and environment; None: as before."""
    if surroundings is None:
        return
    path, directory, environment = surroundings
    sys.path[:] = path
    try:
        os.chdir(directory)
    except OSError:
        pass  # the parent's directory is gone: stay where we are
    if dict(os.environ) != environment:
        os.environ.clear()
        os.environ.update(environment)


def _die_with(parent_pid: int, lifeline_fd: int) -> None:
    """End this process when its parent dies, even in the middle of a call that holds the GIL.

    The parent alone holds the other end of the lifeline, a pipe in which nothing is ever
    written. On Linux the kernel raises SIGIO here when that end closes, and SIGIO's default is
    to end the process (pipe(7), fcntl(2) O_ASYNC). Elsewhere a thread looks every half second.
    """
    os.set_inheritable(lifeline_fd, False)
    if sys.platform == "linux":
        import fcntl

        # A parent that blocks signals would have us inherit that.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGIO, signal.SIGTERM})
        signal.signal(signal.SIGIO, signal.SIG_DFL)
        fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(lifeline_fd, fcntl.F_GETFL)
        fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, flags | os.O_ASYNC)
    else:
        threading.Thread(target=_watch_parent, args=(parent_pid,), daemon=True).start()
    if os.getppid() != parent_pid:  # it died before we were ready
        os._exit(1)


def _watch_parent(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)
