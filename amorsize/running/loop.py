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
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from amorsize.engines.base import (
    Backend,
    ChunkDone,
    ChunkRefused,
    Message,
    Task,
    WorkerEnded,
    WorkerLost,
    WorkerStarted,
)
from amorsize.engines.factory import make_backend
from amorsize.errors import ExecutionCancelledError, ExecutionError, UnpicklableItemError
from amorsize.hooks.interruption import protected_between_calls
from amorsize.planning.plan import Begun, TimeLimits
from amorsize.running import failures, signals
from amorsize.running.abandonable import run_apart
from amorsize.running.early_workers import TRAVELLED
from amorsize.running.input import Input
from amorsize.running.replanning import Course
from amorsize.running.reporter import Reporter
from amorsize.running.retries import Retries
from amorsize.running.sinks import Sink
from amorsize.workers import log_records
from amorsize.workers.chunk import Chunk, ChunkOutcome, Failure, add_note

logger = logging.getLogger(__name__)

T = TypeVar("T")


@protected_between_calls
class Run:
    """One execution, from the plan to its end."""

    def __init__(
        self,
        *,
        task: Task,
        course: Course,
        data: Input,
        sink: Sink,
        reporter: Reporter,
        limits: TimeLimits,
    ) -> None:
        self._task = task
        self._input = data
        self._sink = sink
        self._report = reporter
        self._limits = limits
        self._course = course
        self._begun: Begun | None
        self._backend: Backend | None
        self._begin()
        self._in_flight: dict[int, Chunk] = {}
        self._retries = Retries()
        self._unsendable: deque[tuple[Chunk, UnpicklableItemError]] = deque()
        self._next_chunk_id = 0
        self._told: BaseException | None = None
        self._progress_due = False
        self._held_up = False
        self._handover = threading.Lock()
        self._abandoned = False

    def drive(self) -> None:
        """Run to the end; raises what the run failed with."""
        status = "ok"
        failed: BaseException | None = None
        plan, begun = self._course.plan, self._begun
        try:
            self._report.pre_execute(
                n_jobs=plan.n_jobs,
                chunksize=plan.chunksize,
                total_items=self._course.total,
                executor_type=plan.engine.type,
                estimated_speedup=plan.estimated_speedup,
                decided={
                    "reason": plan.reason,
                    "sampled_items": len(self._course.sampled.items),
                    "head_start_items": 0 if begun is None else len(begun.chunks),
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
        """End, from another thread, a cancelled run that is held up in code of the user's.

        Neither the input nor a call that is measured can be interrupted, and it may never return:
        the run's end is told now, by the calling thread, and nothing after it. Says whether that
        was so.
        """
        with self._handover:
            if not self._held_up or self._report.is_telling():
                return False
            self._abandoned = True
        self._input.exhausted = True  # nothing more is begun
        error = self._cancelled_error()
        self._report.error(error)
        self._end("cancelled", error)
        return True

    def _end(self, status: str, failed: BaseException | None) -> None:
        on_processes = self._course.plan.engine.type == "process" and self._backend is not None
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
            first = self._course.sampled.items[0] if self._course.sampled.items else None
            TRAVELLED.remember(self._task.func, type(first))

    def wake(self) -> None:
        """Make the loop look at its sink; may be called from any thread."""
        if self._backend is not None:
            self._backend.wake()

    def _take_sample(self) -> None:
        sampled = self._course.sampled
        if (outcome := sampled.outcome) is not None:
            chunk = Chunk(self._new_id(), outcome.start, sampled.items)
            self._take_outcome(chunk, outcome, None, sampled=True)
        if sampled.interrupted is not None:
            raise sampled.interrupted

    def _take_over(self) -> None:
        """Go on with what was begun while the sample ran."""
        begun, self._begun = self._begun, None
        if begun is None:
            return
        if begun.error is not None:
            raise begun.error
        for chunk in begun.chunks:
            self._input.skip(len(chunk.items))
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
            self._grow()
            self._fill()
            self._tell_progress()
        if self._input.error is not None:
            add_note(self._input.error, f"Raised by the input, after {self._input.drawn} items.")
            raise self._input.error

    def _leave_workers(self) -> None:
        """Go on in this thread where items turn out to be cheaper than their way to workers."""
        self._course.look_for_cheap_items()
        waiting = self._in_flight or self._retries or self._unsendable
        if not self._course.leaving or waiting or self._input.exhausted:
            return
        self._close_backend(cancel=False)
        self._course.leave_workers()
        self._report.changed_engine(self._course.plan)

    def _grow(self) -> None:
        """Choose anew where items turn out to be too long for one worker."""
        if not self._course.growing or self._in_flight or self._input.exhausted:
            return
        self._course.growing = False
        self._close_backend(cancel=False)
        items, chunk_id = iter(self._input), self._next_chunk_id
        if self._limits.deadline is None:
            stage = self._run_theirs(lambda: self._course.ask(items, chunk_id))
        else:
            stage = run_apart(
                lambda items: self._course.ask(items, chunk_id),
                draw=lambda: self._draw(1),
                check=self._check_limits,
            )
        self._course.turn_to(stage)
        self._begin()
        if not self._course.is_alone:
            self._report.changed_engine(self._course.plan)
        self._take_sample()
        self._take_over()

    def _begin(self) -> None:
        self._begun = begun = self._course.take_over()
        self._backend = None if begun is None else begun.backend

    def _take_back(self, chunk: Chunk, outcome: ChunkOutcome) -> None:
        """Take back what a serial chunk has left because its items have become too long."""
        end = outcome.start + outcome.size
        if outcome.size < len(chunk.items):
            # Those behind it were not begun.
            behind = [each for each in self._in_flight.values() if each.start >= end]
            self._input.give_back([chunk.items[outcome.size :], *(each.items for each in behind)])
            for each in behind:
                del self._in_flight[each.id]
            self._course.growing = True
        elif outcome.size and self._course.is_too_long(outcome.duration / outcome.size, end):
            self._course.growing = True

    def _fill(self) -> None:
        """Dispatch what there is room for."""
        while (
            self._backend is None
            or self._backend.has_room()
            or (self._input.instant and self._backend.can_hold())
        ):
            if self._retries:
                chunk = self._retries.take()
            elif (
                not self._course.is_open
                or self._input.exhausted
                or not self._sink.has_room(len(self._in_flight))
            ):
                break
            else:
                start = self._input.drawn
                total = self._course.total
                remaining = None if total is None else max(1, total - start)
                items = self._draw(self._course.sizer.next_size(remaining))
                if not items:
                    break
                chunk = Chunk(self._new_id(), start, items)
            self._submit(chunk)
        if self._input.exhausted and self._input.error is None:
            # Only now is the length certain: len() of the input may have been an estimate.
            self._report.total_items = self._course.total = self._input.drawn

    def _draw(self, size: int) -> Sequence[Any]:
        return self._run_theirs(lambda: self._input.draw(size))

    def _run_theirs(self, work: Callable[[], T]) -> T:
        """Run code of the user's, during which the run can be abandoned."""
        self._held_up = True
        try:
            return work()
        finally:
            with self._handover:
                self._held_up = False
            if self._abandoned:
                raise self._cancelled_error()

    def _submit(self, chunk: Chunk) -> None:
        if self._backend is None:
            plan = self._course.plan
            self._backend = make_backend(plan, self._course.is_too_long if plan.may_grow else None)
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
                if self._course.plan.may_grow and self._course.is_alone:
                    self._take_back(chunk, outcome)
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
        self._course.sizer.learn(outcome.size, outcome.duration)
        corrected = self._course.sizer.take_correction()
        self._report.chunk_completed(
            chunk, outcome, worker, sampled=sampled, corrected_chunksize=corrected
        )
        self._sink.deliver(outcome.start, results)
        self._progress_due = True
        # Whether this was the last chunk may be known only by looking for another.
        if not self._course.is_open and not self._in_flight:
            self._input.give_back([self._draw(1)])
        if self._course.total is None and not self._in_flight:
            self._fill()
        self._tell_progress()

    def _tell_progress(self) -> None:
        if not self._progress_due:
            return
        if self._is_over():
            last = self._input.error is None
        elif self._in_flight or self._retries or self._unsendable or not self._course.is_open:
            last = False
        elif self._course.total is not None:
            last = self._report.items_completed >= self._course.total
        else:
            return  # the sink is full, so that nothing could be drawn: the next draw decides
        self._progress_due = False
        self._report.progress(last=last)

    def _take_loss(self, loss: WorkerLost, error: ExecutionError | None = None) -> None:
        for untouched in loss.untouched:
            del self._in_flight[untouched.id]
        self._retries.put_first(loss.untouched)
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
            self._retries.put_suspects(chunk, loss.item_index, self._new_id)

    def _take_unsendable(self, chunk: Chunk, error: UnpicklableItemError) -> None:
        self._fail(error, chunk=chunk, failed_items=1)
        self._split(chunk, error.index, error)

    def _split(
        self, chunk: Chunk, index: int, error: Exception, *, alone_before: bool = False
    ) -> None:
        """Let one item of a chunk fail, and run those around it."""
        single = self._retries.put_around(
            chunk, index - chunk.start, self._new_id, alone_before=alone_before
        )
        self._take_outcome(single, failures.in_place(single, error), None)

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
        signals.check()
        if self._sink.cancelled:
            raise self._cancelled_error()
        deadline = self._limits.deadline
        if deadline is not None and time.monotonic() >= deadline:
            done, in_flight = self._report.items_completed, self._in_flight.values()
            raise failures.timed_out(self._limits.timeout, done, self._course.total, in_flight)
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
        return self._input.exhausted and not (self._in_flight or self._retries or self._unsendable)

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
