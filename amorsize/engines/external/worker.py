"""Runs a chunk in a worker of a caller-owned executor, from arrival to reply.

Such a worker may be a process of a pool, a thread of a Dask worker on another machine, or a thread
of the calling process, where an executor pickles all the same. All that is known of it is that it
can import amorsize. A reply is one of

::

    ("outcome", place, header, results)   as ``protocol.pack_outcome`` made header and results
    ("missing", place)                    the function was not sent along, and is not loaded
    ("unusable", place, text)             the function does not unpickle
"""

from __future__ import annotations

import contextvars
import json
import logging
import os
import pickle
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

from amorsize.engines.process import protocol
from amorsize.workers import in_forked_child
from amorsize.workers.chunk import (
    HOSTNAME,
    Chunk,
    ChunkOutcome,
    run_chunk,
    unreadable,
)
from amorsize.workers.collectors import CollectSettings
from amorsize.workers.item_slots import SLOT_COUNT
from amorsize.workers.log_records import RecordKeeper, keep_records
from amorsize.workers.record import Record, made
from amorsize.workers.role import become_worker

MAX_FUNCTIONS = 4
MAX_FUNCTIONS_BYTES = 1 << 28
"""Functions kept in a worker process, and how large they may be together, pickled: those of the
executions that ran here last. The last one is kept, however large."""

_CHECK_SECONDS = 0.05
"""How often a chunk checks whether its run has ended."""

_process = os.urandom(8)
"""Distinguishes this process from those of other machines; a forked child has another pid."""


class Place(Record):
    """Where a chunk ran.

    Attributes:
        hostname, pid, thread: the worker; ``thread`` is the thread's identifier. These alone are
            compared.
        thread_name: the name of the thread.
        details: further metadata of the events of this worker.
    """

    hostname: str
    pid: int
    thread: int
    thread_name: str
    details: dict[str, Any] = made(factory=dict)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[str, int, int]:
        return self.hostname, self.pid, self.thread


Reply: TypeAlias = tuple[str, Place, *tuple[Any, ...]]
OnStart: TypeAlias = Callable[[Place, int, bool], object]
"""Reports to the parent that a chunk, by its id, starts at a place; and whether it is observed."""


def here(**details: Any) -> Place:
    """Return the place of this thread."""
    thread = threading.current_thread()
    return Place(HOSTNAME, os.getpid(), threading.get_ident(), thread.name, details)


def origin() -> tuple[bytes, int]:
    """Identify this process, so that a chunk knows whether it runs in another one."""
    return _process, os.getpid()


class TaskSettings(Record):
    """The part that all chunks of an execution share, apart from the function; picklable."""

    return_exceptions: bool
    collect: CollectSettings | None
    log_levels: dict[str, int]


class PackedChunk(Record):
    """A chunk as it is sent; call it where it is to run.

    Attributes:
        key: identifies the execution.
        origin: the process that it comes from.
        task: pickled: the :class:`TaskSettings` and the pickled function; None where the worker
            should have them already.
        chunk_id, start, size: as in the :class:`~amorsize.workers.chunk.Chunk`.
        items: pickled.
        start_pipe: the path of a named pipe in which chunks report their start, or "".
        most_bytes: as in the :class:`~amorsize.workers.chunk.Chunk`.
    """

    key: str
    origin: tuple[bytes, int]
    task: bytes | None
    chunk_id: int
    start: int
    size: int
    items: bytes
    start_pipe: str = ""
    most_bytes: int = 0

    def __call__(self) -> Reply:
        on_start = _start_writer(self.start_pipe) if self.start_pipe else None
        stopped = _run_ended(self.start_pipe) if self.start_pipe else None
        run = partial(self.run, here(), on_start=on_start, stopped=stopped)
        token, pid = self.origin
        forked = token == _process and pid != os.getpid()
        return _clean_context().run(run) if forked else run()

    def run(
        self, place: Place, *, on_start: OnStart | None, stopped: Callable[[], bool] | None
    ) -> Reply:
        """Run it in this thread; see :func:`amorsize.workers.chunk.run_chunk` for ``stopped``."""
        elsewhere = self.origin != origin()
        if elsewhere:
            become_worker()
        try:
            task = _find_task(self.key, self.task, elsewhere)
        except Exception as error:
            return "unusable", place, f"{type(error).__name__}: {error}"
        if task is None:
            return "missing", place
        if on_start is not None:
            on_start(place, self.chunk_id, task.settings.collect is not None)
        settings = task.settings
        with _records_kept(settings.log_levels, elsewhere) as keeper:
            outcome = self._run(task, stopped)
        if keeper is not None and (records := keeper.take()):
            outcome.extras["log_records"] = records
        return "outcome", place, *protocol.pack_outcome(outcome)

    def _run(self, task: _LoadedTask, stopped: Callable[[], bool] | None) -> ChunkOutcome:
        try:
            items = pickle.loads(self.items)
        except Exception as error:
            return unreadable(self.chunk_id, self.start, self.size, error)
        return run_chunk(
            task.func,
            Chunk(self.chunk_id, self.start, items, most_bytes=self.most_bytes),
            return_exceptions=task.settings.return_exceptions,
            item_slots=[-1] * SLOT_COUNT,
            stopped=stopped,
            collect=task.settings.collect,
        )


class _LoadedTask(Record):
    settings: TaskSettings
    func: Callable[[Any], Any]
    size_bytes: int


_tasks: OrderedDict[str, _LoadedTask] = OrderedDict()
_loading = threading.Lock()


@in_forked_child
def _renew_lock() -> None:
    global _loading
    _loading = threading.Lock()


def _are_too_many() -> bool:
    size = sum(task.size_bytes for task in _tasks.values())
    return len(_tasks) > MAX_FUNCTIONS or size > MAX_FUNCTIONS_BYTES


_contexts = threading.local()


def _clean_context() -> contextvars.Context:
    """Return this thread's context for chunks: its own is the one that was current at the fork."""
    context: contextvars.Context | None = getattr(_contexts, "own", None)
    if context is None:
        context = _contexts.own = contextvars.Context()
    return context


def _find_task(key: str, packed: bytes | None, elsewhere: bool) -> _LoadedTask | None:
    with _loading:  # the threads of one worker share one function
        task = _tasks.get(key)
        if task is None and packed is not None:
            settings, function = pickle.loads(packed)
            if elsewhere and (collect := settings.collect) is not None:
                trace = collect.trace
                if trace is not None and trace.pid == os.getpid():
                    trace.pid = -1  # the same number on another machine
                collect.use_in_worker(None)
            task = _tasks[key] = _LoadedTask(settings, pickle.loads(function), len(function))
            while len(_tasks) > 1 and _are_too_many():
                _tasks.popitem(last=False)
        elif task is not None:
            _tasks.move_to_end(key)
        return task


@contextmanager
def _records_kept(levels: dict[str, int], elsewhere: bool) -> Iterator[RecordKeeper | None]:
    """Keep this thread's log records, unless the process has handlers of its own.

    A forked worker has its parent's handlers, and an initializer may have set up some.
    """
    others = [each for each in logging.root.handlers if not isinstance(each, RecordKeeper)]
    if not elsewhere or others:
        yield None
        return
    keeper = RecordKeeper()
    thread = threading.get_ident()
    keeper.addFilter(lambda record: record.thread == thread)
    keep_records(levels, keeper)
    try:
        yield keeper
    finally:
        logging.root.removeHandler(keeper)


def _start_writer(path: str) -> OnStart:
    def on_start(place: Place, chunk_id: int, observed: bool) -> None:
        now = time.monotonic()
        parts = [place.hostname, place.pid, place.thread, place.thread_name, chunk_id, now]
        try:
            pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return  # another machine, or the run is over
        try:
            # Short enough to be written in one piece (PIPE_BUF is 512 at least).
            os.write(pipe, json.dumps(parts).encode() + b"\n")
        except OSError:
            pass  # full: the outcome will report the start
        finally:
            os.close(pipe)

    return on_start


def read_start(line: bytes) -> tuple[Place, int, float]:
    """Read a line that a chunk wrote into its pipe: place, chunk id, and when, by its clock."""
    hostname, pid, thread, thread_name, chunk_id, at = json.loads(line)
    return Place(hostname, pid, thread, thread_name), chunk_id, at


def _run_ended(path: str) -> Callable[[], bool] | None:
    """Make a check for the end of the run, which removes its pipe; None on another machine."""
    return throttled(lambda: not os.path.exists(path)) if os.path.exists(path) else None


def throttled(check: Callable[[], bool]) -> Callable[[], bool]:
    """Make a check that runs at most every 0.05 s and else is False, for use between items."""
    due = time.perf_counter() + _CHECK_SECONDS

    def check_if_due() -> bool:
        nonlocal due
        now = time.perf_counter()
        if now < due:
            return False
        due = now + _CHECK_SECONDS
        return check()

    return check_if_due
