"""The run loop: the only one, for every engine, for lists and for streams.

It draws chunks from the input, hands them to a backend while that and the sink have room, and
turns what the backend tells into results and events. Whatever happens, every start that was told
has its end, and ``POST_EXECUTE`` comes last.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from amorsize import failures, log_records, termination
from amorsize.backends.base import (
    Backend,
    ChunkDone,
    ChunkRefused,
    Message,
    Task,
    WorkerEnded,
    WorkerLost,
    WorkerStarted,
)
from amorsize.backends.factory import make_backend
from amorsize.chunking import ChunkSizer, Input
from amorsize.engine import Engine
from amorsize.errors import (
    ExecutionCancelledError,
    ExecutionError,
    ExecutionTimeoutError,
    UnpicklableItemError,
)
from amorsize.head_start import TRAVELLED
from amorsize.plan import Begun, Plan, Sampled, TimeLimits
from amorsize.reporting import Reporter
from amorsize.sinks import Sink
from amorsize.worker import Chunk, ChunkOutcome, Failure, add_note

logger = logging.getLogger(__name__)

CHEAP_SECONDS = 5e-7
"""An item that takes less is done sooner than it is handed to a worker and back."""


class Run:
    """One execution, from the plan to its end."""

    def __init__(
        self,
        *,
        task: Task,
        plan: Plan,
        data: Input,
        total: int | None,
        sampled: Sampled,
        sizer: ChunkSizer,
        sink: Sink,
        reporter: Reporter,
        limits: TimeLimits,
        begun: Begun | None = None,
    ) -> None:
        self._task = task
        self._plan = plan
        self._input = data
        self._total = total
        self._sampled = sampled
        self._sizer = sizer
        self._sink = sink
        self._report = reporter
        self._limits = limits
        self._begun = begun
        self._backend: Backend | None = None if begun is None else begun.backend
        self._in_flight: dict[int, Chunk] = {}
        self._again: deque[Chunk] = deque()
        self._unsendable: deque[tuple[Chunk, UnpicklableItemError]] = deque()
        self._next_chunk_id = 0
        self._told: BaseException | None = None
        self._progress_due = False
        self._drawing = False
        self._leaving = False
        self._handover = threading.Lock()
        self._abandoned = False

    def drive(self) -> None:
        """Run to the end; raises what the run failed with."""
        status = "ok"
        failed: BaseException | None = None
        try:
            self._report.pre_execute(
                n_jobs=self._plan.n_jobs,
                chunksize=self._plan.chunksize,
                total_items=self._total,
                executor_type=self._plan.engine.type,
                estimated_speedup=self._plan.estimated_speedup,
                decided={
                    "reason": self._plan.reason,
                    "sampled_items": len(self._sampled.items),
                    "head_start_items": sum(
                        len(chunk.items) for chunk in (self._begun.chunks if self._begun else ())
                    ),
                },
            )
            self._take_sample()
            self._take_over()
            self._work()
        except BaseException as error:
            status, failed = failures.status_of(error), error
            if error is not self._told and not self._abandoned:
                self._report.error(error)
            raise
        finally:
            if not self._abandoned:
                self._end(status, failed)

    def abandon(self) -> bool:
        """End, from another thread, a cancelled run that is held up in the user's input.

        The input cannot be interrupted there, and it may never return: the run's end is told
        now, by the calling thread, and nothing after it. Says whether that was so.
        """
        with self._handover:
            if not self._drawing or self._report.is_telling():
                return False
            self._abandoned = True
        error = self._cancelled_error()
        self._report.error(error)
        self._end("cancelled", error)
        return True

    def _end(self, status: str, failed: BaseException | None) -> None:
        on_processes = self._plan.engine.type == "process" and self._backend is not None
        try:
            self._close_backend(cancel=failed is not None)
        except BaseException as error:
            if failed is None:  # Ctrl-C at the very end of a run that had gone well
                status, failed = failures.status_of(error), error
                self._report.error(error)
            raise
        finally:
            self._report.post_execute(status, failed)
        if on_processes and failed is None:
            first = self._sampled.items[0] if self._sampled.items else None
            TRAVELLED.remember(self._task.func, type(first))

    def wake(self) -> None:
        """Make the loop look at its sink; may be called from any thread."""
        if self._backend is not None:
            self._backend.wake()

    def _take_sample(self) -> None:
        outcome = self._sampled.outcome
        if outcome is not None:
            chunk = Chunk(self._new_id(), 0, self._sampled.items)
            self._take_outcome(chunk, outcome, None, sampled=True)
        if self._sampled.interrupted is not None:
            raise self._sampled.interrupted

    def _take_over(self) -> None:
        """Go on with what was begun while the sample ran."""
        begun, self._begun = self._begun, None
        if begun is None:
            return
        if begun.error is not None:
            raise begun.error
        for chunk in begun.chunks:
            self._in_flight[chunk.id] = chunk
            self._next_chunk_id = chunk.id + 1
        for message in begun.news:
            self._handle(message)

    def _work(self) -> None:
        self._fill()
        while not self._is_over():
            self._check_limits()
            if self._unsendable:
                self._take_unsendable(*self._unsendable.popleft())
            elif self._backend is not None:
                # Failures last: they may end the run, and what came with them counts.
                for message in sorted(
                    self._backend.wait(self._limits.patience()), key=failures.is_failure
                ):
                    self._handle(message)
            self._leave_workers()
            self._fill()
            self._tell_progress()
        if self._input.error is not None:
            add_note(self._input.error, f"Raised by the input, after {self._input.drawn} items.")
            raise self._input.error

    def _leave_workers(self) -> None:
        """Go on in this thread where items turn out to be cheaper than their way to workers."""
        item_seconds = self._sizer.item_seconds
        if self._plan.may_change and item_seconds is not None:
            self._leaving = self._leaving or item_seconds < CHEAP_SECONDS
        waiting = self._in_flight or self._again or self._unsendable
        if not self._leaving or waiting or self._input.exhausted:
            return
        self._leaving = False
        self._close_backend(cancel=False)
        self._plan = self._plan._replace(engine=Engine("serial"), n_jobs=1, may_change=False)
        self._backend = make_backend(self._plan)
        self._backend.open(self._task)
        self._sizer.go_on_alone()
        self._report.changed_engine("serial")
        logger.debug("Items take %.3g s: going on without workers", item_seconds)

    def _fill(self) -> None:
        """Dispatch what there is room for."""
        while (
            self._backend is None
            or self._backend.has_room()
            or (self._input.instant and self._backend.can_hold())
        ):
            if self._again:
                chunk = self._again.popleft()
            elif (
                self._leaving
                or self._input.exhausted
                or not self._sink.has_room(len(self._in_flight))
            ):
                break
            else:
                start = self._input.drawn
                remaining = None if self._total is None else max(1, self._total - start)
                items = self._draw(self._sizer.next_size(remaining))
                if not items:
                    break
                chunk = Chunk(self._new_id(), start, items)
            self._submit(chunk)
        if self._input.exhausted and self._input.error is None:
            # Only now is the length certain: len() of the input may have been an estimate.
            self._report.total_items = self._total = self._input.drawn

    def _draw(self, size: int) -> Sequence[Any]:
        self._drawing = True
        try:
            return self._input.draw(size)
        finally:
            with self._handover:
                self._drawing = False
            if self._abandoned:
                raise self._cancelled_error()

    def _submit(self, chunk: Chunk) -> None:
        if self._backend is None:
            self._backend = make_backend(self._plan)
            self._backend.open(self._task)
        self._in_flight[chunk.id] = chunk
        try:
            self._backend.submit(chunk)
        except UnpicklableItemError as error:
            # Told by the loop: here the events of another chunk may be half told.
            del self._in_flight[chunk.id]
            self._unsendable.append((chunk, error))

    def _handle(self, message: Message) -> None:
        match message:
            case WorkerStarted():
                self._report.worker_started(message)
            case ChunkDone(worker, outcome):
                chunk = self._in_flight.pop(outcome.chunk_id)
                self._take_outcome(chunk, outcome, worker)
            case ChunkRefused(chunk, error):
                del self._in_flight[chunk.id]
                self._unsendable.append((chunk, error))
            case WorkerLost():
                self._take_loss(message)
            case WorkerEnded(worker, exit_reason, exit_code):
                self._report.worker_ended(worker, exit_reason, exit_code)

    def _take_outcome(
        self,
        chunk: Chunk,
        outcome: ChunkOutcome,
        worker: int | None,
        *,
        sampled: bool = False,
    ) -> None:
        if records := outcome.extras.get("log_records"):
            log_records.replay(records, worker_id=self._report.worker_id(worker), chunk_id=chunk.id)
        results = outcome.results
        if outcome.failures:
            first = outcome.failures[0]
            if not self._task.return_exceptions:
                outcome.results = None  # also where only one result did not travel
            elif results is None:
                # The chunk could not be carried over: that is every item's failure.
                outcome.results = results = [first.error] * outcome.size
                outcome.failures = [
                    Failure(index, first.error, first.traceback)
                    for index in range(outcome.start, outcome.start + outcome.size)
                ]
            if outcome.pid == os.getpid():  # those of others have a note with their traceback
                for failure in outcome.failures:
                    failures.note_item(failure)
            self._fail(
                first.error,
                traceback_text=first.traceback,
                failed_items=len(outcome.failures),
                worker=worker,
                chunk=chunk,
                outcome=outcome,
                metadata={"item_index": first.index} | ({"sampled": True} if sampled else {}),
            )
        if results is None:
            return  # a sample that was interrupted before its first failure
        self._sizer.learn(outcome.size, outcome.duration)
        corrected = self._sizer.take_correction()
        self._report.chunk_completed(
            chunk, outcome, worker, sampled=sampled, corrected_chunksize=corrected
        )
        self._sink.deliver(outcome.start, results)
        self._progress_due = True
        if self._total is None and not self._in_flight:
            self._fill()  # whether this was the last chunk is known only by looking for another
        self._tell_progress()

    def _tell_progress(self) -> None:
        if not self._progress_due:
            return
        if self._is_over():
            last = self._input.error is None
        elif self._in_flight or self._again or self._unsendable:
            last = False
        elif self._total is not None:
            last = self._report.items_completed >= self._total
        else:
            return  # the sink is full, so that nothing could be drawn: the next draw decides
        self._progress_due = False
        self._report.progress(last=last)

    def _take_loss(self, loss: WorkerLost, error: ExecutionError | None = None) -> None:
        for untouched in loss.untouched:
            del self._in_flight[untouched.id]
        self._again.extendleft(reversed(loss.untouched))
        chunk = loss.chunk
        if chunk is None and not loss.started:
            logger.warning(
                "Worker process %s ended with exit code %s before it took any work; "
                "another takes its place",
                loss.pid,
                loss.exit_code,
            )
            return
        culprit_known = error is not None
        if error is None:
            error = failures.died(loss, goes_on=self._task.return_exceptions)
        if loss.recovered:
            self._report.error(
                error,
                worker=loss.worker,
                chunk=chunk,
                metadata={"exit_code": loss.exit_code, "item_index": None},
            )
            self._report.worker_ended(loss.worker, loss.exit_reason, loss.exit_code)
            return
        # With return_exceptions, a first death is held against no item: each runs again, alone.
        final = chunk is not None and (
            culprit_known or chunk.retry_of is not None or not self._task.return_exceptions
        )
        try:
            self._fail(
                error,
                failed_items=1 if final else 0,
                worker=loss.worker,
                chunk=chunk,
                metadata={"exit_code": loss.exit_code, "item_index": loss.item_index},
            )
        finally:
            self._report.worker_ended(loss.worker, loss.exit_reason, loss.exit_code)
        if chunk is None:
            return
        del self._in_flight[chunk.id]
        if final:
            item = chunk.start if loss.item_index is None else loss.item_index
            self._split(chunk, item, error, alone_before=True)
        else:
            suspects = len(chunk.items)
            if loss.item_index is not None:
                suspects = loss.item_index - chunk.start + 1
            self._run_again(chunk, 0, suspects, alone=True)
            self._run_again(chunk, suspects, len(chunk.items))

    def _take_unsendable(self, chunk: Chunk, error: UnpicklableItemError) -> None:
        self._fail(error, chunk=chunk, failed_items=1)
        self._split(chunk, error.index, error)

    def _split(
        self, chunk: Chunk, index: int, error: Exception, *, alone_before: bool = False
    ) -> None:
        """Let one item of a chunk fail, and run those around it."""
        position = index - chunk.start
        self._run_again(chunk, 0, position, alone=alone_before)
        self._run_again(chunk, position + 1, len(chunk.items))
        single = Chunk(self._new_id(), index, [chunk.items[position]], retry_of=chunk.id)
        outcome = ChunkOutcome(
            chunk_id=single.id,
            start=index,
            size=1,
            results=[error],
            failures=[],
            started_at=time.time(),
            duration=0.0,
            pid=0,
            hostname="",
            thread_name="",
        )
        self._take_outcome(single, outcome, None)

    def _run_again(self, chunk: Chunk, begin: int, end: int, *, alone: bool = False) -> None:
        """Queue items of a lost chunk; ``alone``, because one of them may be the killer."""
        width = 1 if alone else max(1, end - begin)
        for at in range(begin, end, width):
            items = chunk.items[at : min(at + width, end)]
            retry_of = chunk.id if alone else None
            self._again.append(Chunk(self._new_id(), chunk.start + at, items, retry_of))

    def _fail(
        self,
        error: BaseException,
        *,
        traceback_text: str | None = None,
        failed_items: int = 0,
        worker: int | None = None,
        chunk: Chunk | None = None,
        outcome: ChunkOutcome | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Tell of a failure; it ends the run unless exceptions are returned in place."""
        self._report.error(
            error,
            traceback_text=traceback_text,
            failed_items=failed_items,
            worker=worker,
            chunk=chunk,
            outcome=outcome,
            metadata=metadata,
        )
        if not self._task.return_exceptions:
            self._told = error
            raise error

    def _check_limits(self) -> None:
        termination.check()
        if self._sink.cancelled:
            raise self._cancelled_error()
        deadline = self._limits.deadline
        if deadline is not None and time.monotonic() >= deadline:
            at_work = failures.say_in_flight(self._in_flight.values(), len(self._in_flight))
            of_total = "" if self._total is None else f" of {self._total}"
            raise ExecutionTimeoutError(
                f"the run took longer than timeout={self._limits.timeout} seconds: "
                f"{self._report.items_completed}{of_total} items are done{at_work}"
            )
        if self._limits.item_timeout is not None and self._backend is not None:
            for late in self._backend.overdue(self._limits.item_timeout):
                loss = self._backend.end_worker(late)
                if loss is not None:
                    self._take_loss(loss, failures.overdue(late, loss, self._limits.item_timeout))

    def _cancelled_error(self) -> ExecutionCancelledError:
        return ExecutionCancelledError(
            f"the run was cancelled by its consumer, after {self._report.items_completed} "
            "completed items"
        )

    def _is_over(self) -> bool:
        return self._input.exhausted and not (self._in_flight or self._again or self._unsendable)

    def _close_backend(self, *, cancel: bool) -> None:
        backend, self._backend = self._backend, None  # once, also where a signal comes between
        try:
            for message in () if self._begun is None else self._begun.news:
                if isinstance(message, WorkerStarted):  # what it was at ends with the run
                    self._report.worker_started(message)
            if backend is not None:
                for message in backend.close(cancel=cancel):
                    if isinstance(message, WorkerLost):
                        self._report.worker_ended(message.worker, "died", message.exit_code)
                    else:
                        self._handle(message)
        finally:
            # Whatever kept the backend from telling, every start has its end.
            for worker in self._report.workers():
                self._report.worker_ended(worker, "cancelled" if cancel else "finished")

    def _new_id(self) -> int:
        self._next_chunk_id += 1
        return self._next_chunk_id - 1
