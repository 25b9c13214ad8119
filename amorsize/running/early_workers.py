"""Workers that start, and work, before the plan is final: while the sample still runs.

The sample's calls run in the caller's thread, and tell what to do with the rest of the input. All
other cores idle meanwhile, and where a single call takes minutes they idle for minutes. So the
optimizer looks at a call in progress, from another thread, and lets the first workers begin once it
is plain what kind of work it is; :class:`HeadStart` is what they begin in. No event is told before
the caller's thread is back: then the run takes over what was begun.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import Context
from threading import Lock
from typing import Any

from amorsize.engines.base import Backend, Message, Task
from amorsize.engines.factory import make_backend
from amorsize.errors import AmorsizeError, ExecutionCancelledError
from amorsize.planning.engine import Engine
from amorsize.planning.gil_probe import switching_often
from amorsize.planning.known_functions import KnownFunctions
from amorsize.planning.machine import STARTUP, engines_here
from amorsize.planning.plan import Begun, Plan
from amorsize.planning.planner import Chooser
from amorsize.planning.sampling import Sample
from amorsize.running.first_items import Opening
from amorsize.workers.chunk import Chunk

TRAVELLED = KnownFunctions[type]()
"""Functions whose results came home from worker processes, with the type of their first item."""


class HeadStart:
    """An engine that is opened ahead of the run. Used from one thread at a time.

    Args:
        task: what its chunks have in common.
        sequence: the input, where any of its items can be had by its index; None otherwise.
        context: the context variables of the run; what is started has them.
        may_work: whether the caller's thread may go on with the sample while workers start.
        start: the index in the sequence of the sample's first item.
        chunk_id: the id of the sample's chunk.

    Attributes:
        engine: what was begun, or None.
        n_jobs: with how many workers.
        dispatched: items that were handed to them.
        may_work: as given.
    """

    def __init__(
        self,
        task: Task,
        sequence: Sequence[Any] | None,
        context: Context,
        *,
        may_work: bool,
        start: int = 0,
        chunk_id: int = 0,
    ) -> None:
        self._task = task
        self._sequence = sequence
        self._context = context
        self._start = start
        self._chunk_id = chunk_id
        self._backend: Backend | None = None
        self._chunks: list[Chunk] = []
        self._news: list[Message] = []
        self._error: Exception | None = None
        self._abandoned = False
        self._working = Lock()
        self.may_work = may_work
        self.engine: str | None = None
        self.n_jobs = 0
        self.dispatched = 0

    @property
    def may_dispatch(self) -> bool:
        """Whether items can be had beside the sample."""
        return self._sequence is not None

    @property
    def travels(self) -> bool:
        """Whether results of this function are known to come home from worker processes."""
        sequence = self._sequence
        items = TRAVELLED.recall(self._task.func)
        return bool(sequence and items) and type(sequence[0]) is items  # type: ignore[index]

    def begin(self, engine: str, n_jobs: int) -> None:
        """Open an engine, and start workers that take time to start; again for more of them.

        Raises:
            TransportError: the function does not travel.
            OSError: no process can be started.
        """
        with self._at_work(engine):
            if self._backend is None:
                backend = make_backend(Plan(Engine(engine), n_jobs, 1, 1.0))
                self._backend = backend  # from here on it is closed, whatever happens
                try:
                    self._context.run(backend.open, self._task)
                except BaseException:
                    self._close()
                    raise
                self.engine, self.n_jobs = engine, n_jobs
            elif n_jobs > self.n_jobs:
                self._backend.use_workers(n_jobs)
                self.n_jobs = n_jobs
            self._backend.start_workers()

    def dispatch(self, sample: Sample, chunks: int, *, start: int | None = None) -> bool:
        """Have workers begin with the items behind the sample, one each; False where none can be.

        Once more, it goes on behind those that they have. The sample then takes no further item;
        with ``start`` it may take so many, which it has not begun with yet.
        """
        may_reopen = start is None
        if start is None and (taken := sample.close()) is not None:
            start = taken + self.dispatched
        if self._backend is None or self._sequence is None or start is None:
            return False
        try:
            start += self._start
            self._dispatch(range(start, min(start + chunks, len(self._sequence))))
        finally:
            if may_reopen and not self.dispatched:
                sample.reopen()
        return True

    def _dispatch(self, items: range) -> None:
        assert self._sequence is not None
        with self._at_work(self.engine):
            for at in items:
                backend = self._backend
                if backend is None or not (backend.has_room() or backend.can_hold()):
                    break
                chunk_id = self._chunk_id + 1 + len(self._chunks)
                chunk = Chunk(chunk_id, at, self._sequence[at : at + 1])
                backend.submit(chunk)
                self._chunks.append(chunk)
                self.dispatched += 1

    def is_up(self) -> bool:
        """Say whether a worker is ready to work, or will never be."""
        if self._backend is None or self._error is not None:
            return True
        try:
            self._news.extend(self._backend.wait(0))
        except AmorsizeError as error:  # its function cannot be loaded: the run says so
            self._error = error
            return True
        return self._backend.is_ready()

    def hand_over(self, engine: str, n_jobs: int) -> Begun | None:
        """Give what was begun to the run, which closes it; None where that is of no use to it.

        Args:
            engine: what the run goes on with.
            n_jobs: with how many workers; it may have been begun with another number.
        """
        if self._backend is None or (engine != self.engine and not self._chunks):
            self.abandon()
            return None
        backend, self._backend = self._backend, None
        backend.use_workers(n_jobs)
        return Begun(backend, self._chunks, self._news, self._error)

    def abandon(self) -> None:
        """Close what nobody took over, and begin nothing more."""
        self._abandoned = True
        # Where another thread is at work on it, that closes it.
        if self._working.acquire(blocking=False):
            try:
                self._close()
            finally:
                self._working.release()

    @contextmanager
    def _at_work(self, engine: str | None) -> Iterator[None]:
        # Threads need none of it, and where they compute, it would be each of them that gives way.
        often = nullcontext() if engine == "thread" else switching_often()
        with self._working, often:
            try:
                if self._abandoned:
                    raise ExecutionCancelledError("the run is over before its workers begin")
                yield
            finally:
                if self._abandoned:
                    self._close()

    def _close(self) -> None:
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.close(cancel=True)


def make_chooser(
    opening: Opening,
    task: Task,
    *,
    sample_size: int,
    target_chunk_duration: float,
    n_jobs: int | None = None,
    chunksize: int | None = None,
    may_work: bool = True,
    load: Callable[[], object] | None = None,
) -> Chooser:
    """Make the chooser of a run, with the head start that it may give."""
    pool_module = sys.modules.get("amorsize.engines.process.pool")
    pool = getattr(pool_module, "pool", None)  # another thread may be importing it just now
    return Chooser(
        task.func,
        opening.iterator,
        opening.total,
        opening.sample,
        sample_size=sample_size,
        return_exceptions=task.return_exceptions,
        n_jobs=n_jobs,
        chunksize=chunksize,
        target_chunk_duration=target_chunk_duration,
        allowed=engines_here(),
        warm_workers=0 if pool is None else int(pool.warm_workers()),
        again=False,
        system=None,
        startup=STARTUP,
        clocks=None,
        ahead=HeadStart(
            task,
            opening.sequence,
            opening.context,
            may_work=may_work,
            start=opening.start,
            chunk_id=opening.chunk_id,
        ),
        load=load,
    )
