"""Workers that start, and work, before the plan is final: while the first items still run.

The first items run in the caller's thread, and say what to do with the rest of the input. All other
cores idle meanwhile, and where a single call takes minutes they idle for minutes. So the planner is
asked about a call in progress, from another thread, and the first workers begin once it is plain
what kind of work it is. No event is emitted before the caller's thread is back: then the run takes
over what was begun.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from threading import Lock
from typing import Any

from amorsize.engines import make_backend
from amorsize.engines.base import Backend, Message, Task
from amorsize.errors import AmorsizeError, ExecutionCancelledError
from amorsize.hooks.interruption import protected, protected_between_calls
from amorsize.planning.engine import Engine
from amorsize.planning.gil_probe import switching_often
from amorsize.planning.observations import EarlyWork
from amorsize.planning.plan import StartWorkers
from amorsize.running.failures import problem_of
from amorsize.running.first_items import FirstItems
from amorsize.workers.chunk import Chunk
from amorsize.workers.record import Record

logger = logging.getLogger(__name__)


class HandedOver(Record):
    """Workers that were started ahead of the plan; the run continues with them, and closes them.

    Attributes:
        backend: open, with its workers started.
        chunks: those that were handed to it.
        messages: what it has reported.
        error: what it failed with, if it did.
    """

    backend: Backend
    chunks: list[Chunk]
    messages: list[Message]
    error: Exception | None


@protected_between_calls
class EarlyWorkers:
    """An engine that is opened ahead of the plan. Used from one thread at a time.

    Args:
        task: what its chunks have in common.
        sequence: the input, where any of its items can be had by its index; None otherwise.
        first: the items that are measured meanwhile.
        context: the context variables of the run; the workers have them.
        state: what the planner sees of it.

    Attributes:
        refusals: of engines that turned out to be of no use: why.
    """

    def __init__(
        self,
        task: Task,
        sequence: Sequence[Any] | None,
        first: FirstItems,
        context: contextvars.Context,
        state: EarlyWork,
    ) -> None:
        self._task = task
        self._sequence = sequence
        self._first = first
        self._context = context
        self._backend: Backend | None = None
        self._chunks: list[Chunk] = []
        self._messages: list[Message] = []
        self._error: Exception | None = None
        self._abandoned = False
        self._working = Lock()
        self.state = state
        self.refusals: dict[str, str] = {}

    def start(self, plan: StartWorkers) -> None:
        """Start workers, and hand items to them, as planned; an error is noted, and logged."""
        from amorsize.running.signals import DuringExecute

        try:
            with DuringExecute(lambda: None):  # where it is the caller's thread that starts them
                self._start(plan)
        except Exception as error:
            # The run goes on without them, or meets that again, and says so.
            logger.debug("No workers are started ahead of the plan", exc_info=True)
            self._note_refusal(plan.engine, error)

    def _start(self, plan: StartWorkers) -> None:
        self._open(plan.engine, plan.n_jobs)
        if plan.dispatch:
            self._hand_out(plan.dispatch, plan.keep)

    def _open(self, engine: str, n_jobs: int) -> None:
        """Open the engine, and start workers that take time to start; again for more of them.

        Raises:
            TransportError: the function cannot be sent.
            OSError: no process can be started.
        """
        state = self.state
        with self._at_work(engine):
            if self._backend is None:
                backend = make_backend(Engine(engine), n_jobs)
                self._backend = backend  # from here on it is closed, whatever happens
                try:
                    self._context.run(backend.open, self._task)
                except BaseException:
                    self._close()
                    raise
                state.engine, state.n_jobs = engine, n_jobs
            elif n_jobs > state.n_jobs:
                self._backend.use_workers(n_jobs)
                state.n_jobs = n_jobs
            self._backend.start_workers()

    def _hand_out(self, chunks: int, keep: int) -> None:
        """Hand out items after the first ones, one per chunk; again, those after these.

        The first ones then take no further item; with ``keep`` they may take so many, which they
        have not begun with yet.
        """
        first, taken = self._first, keep or self._first.close()
        if taken is None or self._backend is None or self._sequence is None:
            return
        start = first.start + taken + self.state.dispatched
        try:
            with self._at_work(self.state.engine):
                for at in range(start, min(start + chunks, len(self._sequence))):
                    self._submit(at)
        finally:
            if not keep and not self.state.dispatched:
                first.reopen()

    def _submit(self, at: int) -> None:
        backend, sequence = self._backend, self._sequence
        assert sequence is not None
        if backend is None or not (backend.has_room() or backend.can_hold()):
            return
        chunk_id = self._first.chunk_id + 1 + len(self._chunks)
        chunk = Chunk(chunk_id, at, sequence[at : at + 1])
        backend.submit(chunk)
        self._chunks.append(chunk)
        self.state.dispatched += 1

    def is_up(self) -> bool:
        """Say whether a worker is ready to work, or never will be."""
        if self._backend is None or self._error is not None:
            self.state.is_up = True
            return True
        try:
            self._messages.extend(self._backend.wait(0))
        except AmorsizeError as error:  # nothing can be started, or the function not be loaded
            self._error = error
            self._note_refusal(str(self.state.engine), error)
        self.state.is_up = self._error is not None or self._backend.is_ready()
        return self.state.is_up

    def _note_refusal(self, engine: str, error: Exception) -> None:
        self.state.refused = True
        if problem := problem_of(error):
            self.refusals[engine] = problem

    def hand_over(self, engine: str, n_jobs: int) -> HandedOver | None:
        """Give what was begun to the run, which closes it; None where it has no use for it.

        Args:
            engine: what the run goes on with.
            n_jobs: with how many workers; it may have been begun with another number.
        """
        if self._backend is None or (engine != self.state.engine and not self._chunks):
            self.abandon()
            return None
        return self._give(n_jobs)

    @protected
    def _give(self, n_jobs: int) -> HandedOver:
        """Let go of the backend; between this and the run's taking it, nobody would close it."""
        backend, self._backend = self._backend, None
        assert backend is not None
        backend.use_workers(n_jobs)
        return HandedOver(backend, self._chunks, self._messages, self._error)

    def abandon(self) -> None:
        """Close what was not handed over, and begin nothing more."""
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
