"""The run loop: the only one, for every engine, observed or not, for lists and for streams.

::

    measure the first items -> plan -> run chunks on an engine -> observe -> plan again

The planner is asked before the first item, and before each chunk; what it wants to know is measured
by :mod:`.measurement`. The loop draws chunks from the input, hands them to a backend while that and
the sink have room, and turns what the backend reports into results and events. A change of engine
happens between two chunks. Every reported start of a worker has its end, and ``POST_EXECUTE`` comes
last, whatever happens.

Importing this module is paid for by the shortest runs: what only others need is imported by the
functions that need it.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque

from amorsize.engines import make_backend
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
from amorsize.hooks.interruption import protected, protected_between_calls
from amorsize.options import Options
from amorsize.planning.engine import Engine
from amorsize.planning.gil_probe import AFTER_SECONDS
from amorsize.planning.known_functions import KNOWN, NOTHING
from amorsize.planning.observations import ChunkTimes, Observations, Weights
from amorsize.planning.plan import LookFurther, Plan, RunChunks
from amorsize.planning.planner import REPLANNING_SECONDS, Planner
from amorsize.running.input import Input
from amorsize.running.measurement import Measurement, asked_for
from amorsize.workers.chunk import Chunk, ChunkOutcome, Failure
from amorsize.workers.observers import DEBUG, INFO, RUNS, is_logged, is_observed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any, TypeVar

    from amorsize.errors import ExecutionCancelledError, ExecutionError, UnpicklableItemError
    from amorsize.planning.explanation import OptimizationResult
    from amorsize.running.early_workers import HandedOver
    from amorsize.running.observers import Observers
    from amorsize.running.reporter import Reporter
    from amorsize.running.retries import Retries
    from amorsize.running.run_log import RunLog
    from amorsize.running.signals import DuringExecute
    from amorsize.running.sinks import Sink

    T = TypeVar("T")

MOST_CHUNK_ITEMS = 100_000
"""A bound on items that are held at once; chunks of very short items could be millions long."""
MOST_STREAM_CHUNK_ITEMS = 10_000
MOST_SERIAL_CHUNK_ITEMS = 10_000_000
"""Nothing is copied for a serial chunk of an input that is held in memory anyway: the duration of
chunks alone bounds them."""

LONGEST_WAIT_SECONDS = 0.5
"""A signal that comes just before the loop begins to wait does not interrupt the wait: Python runs
its handler when the wait is over."""

protected_between_calls(make_backend)  # its module loads nothing to mark it

_loaded = False
"""Whether what plans for workers is loaded: whether a run of this process has compared engines."""


@protected_between_calls
class Run:
    """One execution.

    Args:
        func: the function.
        data: the input.
        options: the checked arguments.
        sink: where the results go.
        in_background: whether a thread of ours drives it, for a consumer in another one.
        explain: whether the result that explains the choice is wanted.

    Attributes:
        result: the choice, where it is wanted, once it is made.
        on_plan: called with each choice of an engine, from the thread that drives.
    """

    def __init__(
        self,
        func: Callable[[Any], Any],
        data: Iterable[Any],
        options: Options,
        sink: Sink,
        *,
        in_background: bool = False,
        explain: bool = False,
    ) -> None:
        self._began_monotonic = time.monotonic()
        self._func = func
        self._data = data
        self._options = options
        self._sink = sink
        self._in_background = in_background
        self._explain = explain or options.verbose
        self.result: OptimizationResult | None = None
        self.on_plan: Callable[[RunChunks], None] = lambda plan: None
        self._began = time.perf_counter()
        self._observers: Observers | None = None
        self._report: Reporter | None = None
        self._run_log: RunLog | None = None
        self._signals: DuringExecute | None = None
        self._seen: Observations
        self._planner = Planner()
        self._measurement: Measurement
        self._input: Input
        self._task: Task
        self._plan: RunChunks | None = None
        self._change: Plan | None = None
        self._backend: Backend | None = None
        self._handed_over: HandedOver | None = None
        self._in_flight: dict[int, Chunk] = {}
        self._retries: Retries | None = None
        self._unsendable: deque[tuple[Chunk, UnpicklableItemError]] = deque()
        self._refused: list[Chunk] = []
        self._next_chunk_id = 0
        self._workers: dict[int, WorkerStarted] = {}
        self._items_completed = 0
        self._busy_seconds = 0.0
        self._slowest: tuple[float, int] | None = None
        self._planning_seconds = 0.0
        self._failures: list[Failure] = []
        self._reported_size = 1
        self._corrections = 0
        self._final_chunksize: int | None = None
        self._changes: list[str] = []
        self._reported_error: BaseException | None = None
        self._progress_due = False
        self._messages: Iterator[Message] = iter(())
        self._held_up = False
        self._held_back = False
        self._handover = threading.Lock()
        self._abandoned = False

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc: Any) -> None:
        try:
            # Objects that know each other would keep the user's data until they are collected.
            signals, self._signals = self._signals, None
            if signals is not None:
                signals.__exit__(*exc)
        finally:
            if self._report is not None:
                self._report.forget_trace()
            if self._observers is not None:
                self._observers.close()

    def drive(self) -> None:
        """Run to the end; raises what the run failed with. Called inside of the run's context."""
        status = "ok"
        failed: BaseException | None = None
        try:
            try:
                self._begin()
                self._follow(self._find_plan(self._measurement), is_first=True)
                while (look := self._run_chunks()) is not None:
                    self._plan_again(look)
            except BaseException as error:
                status, failed = _status_of(error), error
                if error is not self._reported_error and not self._abandoned:
                    self._report_end(status, error)
                raise
            finally:
                if not self._abandoned:
                    self._end(status, failed)
        finally:
            self._conclude()

    def abandon(self) -> bool:
        """End, from another thread, a cancelled run that is held up in code of the user's.

        Neither the input nor a call that is measured can be interrupted, and it may never return:
        the run's end is reported now, by the calling thread, and nothing after it. Says whether
        that was so.
        """
        with self._handover:
            if not self._held_up or (self._report is not None and self._report.is_emitting()):
                self._log_last_words()
                return False
            self._abandoned = True
        self._input.exhausted = True  # nothing more is begun
        error = self._cancelled_error()
        self._report_end("cancelled", error)
        self._end("cancelled", error)
        return True

    def _log_last_words(self) -> None:
        """Log the end of a run that the program ends with, before its first items are done."""
        from amorsize.running import signals

        if signals.is_terminating():
            error = self._cancelled_error()
            self._log().run_failed("cancelled", error, items=self._items_completed)

    def wake(self) -> None:
        """Make the loop look at its sink; from any thread, and from a signal handler."""
        backend = self._backend
        if backend is not None:
            backend.wake()

    # --- the beginning, and every plan ----

    def _begin(self) -> None:
        options, collect = self._options, None
        if self._is_observed():
            self._guard()
            self._report = self._make_reporter()
            collect = self._report.begin_collecting()
        self._input = data = Input(self._data)
        self._task = Task(
            self._func, options.return_exceptions, options.item_timeout is not None, collect
        )
        known, sequence = KNOWN.recall(self._func), data.sequence
        self._seen = seen = asked_for(options)
        seen.engine = _engine_here(options.engine)
        seen.interruptible = seen.time_limit or self._in_background
        seen.loading_seconds = 0.0 if _loaded else REPLANNING_SECONDS
        seen.known = known
        seen.sendable = bool(sequence) and type(sequence[0]) is known.sent_type  # type: ignore[index]
        seen.most_chunk_items = seen.most_serial_items = MOST_CHUNK_ITEMS
        seen.streams = self._sink.is_bounded
        if seen.streams:
            seen.most_chunk_items = seen.most_serial_items = MOST_STREAM_CHUNK_ITEMS
        elif sequence is not None:
            seen.most_serial_items = MOST_SERIAL_CHUNK_ITEMS
            plain = not (seen.interruptible or options.return_exceptions or options.chunksize)
            seen.whole = self._report is None and plain
        # An item that takes too long must not be in a call that is looked at by another thread.
        starts_early = seen.n_jobs != 1 and not (seen.engine or seen.item_time_limit)
        self._measurement = Measurement(
            self._task, data, seen, self._planner, starts_early=starts_early
        )

    def _is_observed(self) -> bool:
        """Say whether anybody observes the run now: the function itself may register a hook."""
        return self._options.hooks is not None or self._options.progress or is_observed()

    def _make_reporter(self) -> Reporter:
        from amorsize.running.observers import Observers

        self._observers = observers = Observers()
        return observers.make_reporter(self._func, self._options, self._began)

    def _guard(self) -> None:
        """Have SIGTERM and Ctrl-C end the run in order: its events, and its workers."""
        if self._signals is None and not self._in_background:
            from amorsize.running.signals import DuringExecute

            self._signals = DuringExecute(self.wake)
            self._signals.__enter__()

    def _follow(self, plan: RunChunks, *, is_first: bool = False) -> None:
        """Go by a plan: use its engine from now on, after the items that were measured for it."""
        global _loaded
        if is_first:
            self._planning_seconds = time.perf_counter() - self._began
        seen, choice, first = self._seen, plan.choice, self._measurement.first
        self._explain_choice(plan, is_first)
        self._plan = seen.plan = plan
        seen.chunks, seen.weights = ChunkTimes(), Weights()
        seen.deviating_seconds = 0.0
        seen.loading_seconds = 0.0
        self._reported_size = plan.usual_size
        self._remember(plan, is_first)
        if choice.comparison is not None:
            _loaded = True
        alone = choice.is_serial
        if not alone:
            self._guard()
        self._input.copies = not alone or seen.interruptible
        self._input.weighs = not (choice.is_local and self._input.in_memory)
        if self._measurement.has_started:
            early = self._measurement.early
            self._handed_over = early.hand_over(choice.engine.type, choice.n_jobs)
            if self._handed_over is not None:
                self._backend = self._handed_over.backend
        self.on_plan(plan)
        if is_first:
            if self._report is not None:
                self._emit_start(self._report)
        else:
            if self._report is not None:
                self._report.measured_again(first.sample.taken)
            if not alone:
                self._note_change(plan)
        self._take_measured()
        if first.interrupted is not None:
            raise first.interrupted
        self._take_over()

    def _explain_choice(self, plan: RunChunks, is_first: bool) -> None:
        if not (self._explain or is_logged("amorsize.planning.explanation", DEBUG)):
            return
        from amorsize.planning.explanation import log_choice, make_result

        result = make_result(plan, self._seen)
        log_choice(result, self._options.verbose)
        if is_first:
            self.result = result
            result.data = self._data

    def _remember(self, plan: RunChunks, is_first: bool) -> None:
        """Remember what the function is like, for the next run."""
        seen, choice = self._seen, plan.choice
        if choice.workload is None:
            return
        if not is_first or self._measurement.has_changed:
            # A further run's first items are not like these.
            KNOWN.remember(self._func, workload=None, short=False)
        elif not choice.is_serial:
            KNOWN.remember(self._func, workload=choice.workload)
        elif choice.comparison is None and choice.workload.sampled and not seen.known.short:
            KNOWN.remember(self._func, short=choice.workload.item_seconds < AFTER_SECONDS)

    def _take_measured(self) -> None:
        """Deliver the items that were measured, as a chunk."""
        first = self._measurement.first
        if (outcome := first.outcome()) is not None:
            chunk = Chunk(self._new_id(), outcome.start, first.items[: outcome.size])
            first.release()
            self._take_outcome(chunk, outcome, None, sampled=True)
        elif self._report is not None and (seconds := first.sample.all_seconds):
            from amorsize.workers.cpu_time import Unfinished

            self._report.add_unfinished(Unfinished(seconds))  # its first call was interrupted

    def _take_over(self) -> None:
        """Go on with what was begun while the first items ran."""
        begun, self._handed_over = self._handed_over, None
        if begun is None:
            return
        for chunk in begun.chunks:
            self._input.skip(len(chunk.items))
            self._in_flight[chunk.id] = chunk
            self._next_chunk_id = chunk.id + 1
        self._messages = iter(begun.messages)
        for message in self._messages:
            self._handle(message)
        if begun.error is not None:
            self._refuse(None, begun.error)

    def _note_change(self, plan: RunChunks) -> None:
        """Note that the run goes on with another engine, and why."""
        from amorsize.planning.explanation import reason_of

        change = f"After {self._items_completed:,} items: {reason_of(plan.choice, self._seen)}"
        self._changes.append(change)
        if self._report is not None:
            self._report.changed_engine(plan, change)

    # --- running chunks ----

    def _run_chunks(self) -> LookFurther | None:
        """Run chunks until the run is over (None), or has to be planned again."""
        self._fill()
        while not self._is_over():
            self._check_limits()
            if self._unsendable:
                self._take_unsendable(*self._unsendable.popleft())
            elif self._backend is not None:
                self._wait(self._backend)
            if self._change is not None and self._may_change():
                change, self._change = self._change, None
                self._close_backend(cancel=False)
                if isinstance(change, LookFurther):
                    return change
                assert isinstance(change, RunChunks)
                if self._refused:
                    self._again().put_first(sorted(self._refused, key=lambda chunk: chunk.start))
                    self._refused, self._seen.refused_items = [], 0
                self._plan = self._seen.plan = change
                self._note_change(change)
            self._fill()
            self._emit_progress()
        if self._input.error is not None:
            from amorsize.workers.chunk import add_note

            add_note(self._input.error, f"Raised by the input, after {self._input.drawn} items.")
            raise self._input.error
        return None

    def _plan_again(self, look: LookFurther) -> None:
        """Measure the next items like first ones, and go by what they say."""
        seen, plan = self._seen, self._plan
        assert plan is not None
        seen.plan, seen.expected_seconds = None, plan.choice.item_seconds
        seen.payload, seen.stopped, seen.notes = None, "", ()
        seen.known, seen.sendable = NOTHING, False
        self._input.copies = True
        self._measurement = measurement = Measurement(
            self._task,
            self._input,
            seen,
            self._planner,
            starts_early=True,
            chunk_id=self._next_chunk_id,
        )
        again = self._find_plan(measurement, look)
        if not again.choice.is_serial:
            seen.growths += 1
        self._follow(again)

    def _find_plan(self, measurement: Measurement, look: LookFurther | None = None) -> RunChunks:
        """Look as far as the planner wants to, beginning with ``look``, within all limits."""
        if self._seen.time_limit:
            from amorsize.running.limited_look import LimitedLook

            limited = LimitedLook(
                measurement, self._input, self._draw, self._check_limits, self._options.item_timeout
            )
            perform: Callable[[LookFurther], None] | None = limited.perform
        elif look is not None:

            def perform(step: LookFurther) -> None:
                self._run_theirs(lambda: measurement.look(step))
        else:
            perform = None
        if look is not None:
            assert perform is not None
            perform(look)
        return measurement.find_plan(perform)

    def _ask(self) -> RunChunks | None:
        """Ask the planner what follows; None, and a note, where it is no chunk on this engine."""
        seen, plan = self._seen, self._plan
        assert plan is not None
        seen.left = self._input.left
        self._see_what_is_held()
        following = self._planner.next(seen)
        if isinstance(following, RunChunks) and following.choice is plan.choice:
            self._plan = seen.plan = following
            return following
        self._change = following
        return None

    def _may_change(self) -> bool:
        if self._in_flight or self._retries or self._unsendable:
            return False
        return bool(self._refused) or not self._input.exhausted

    def _is_too_long(self, each_seconds: float, at: int) -> bool:
        """Say whether a serial chunk is to end before the item of index ``at``.

        Asked by the chunk, from the thread that runs it or another.
        """
        total = self._input.total
        left = None if total is None else max(0, total - at)
        seen = self._seen._replace(deviating_seconds=each_seconds, left=left)
        if isinstance(self._planner.next(seen), RunChunks):
            return False
        self._seen.deviating_seconds = each_seconds
        return True

    def _take_back(self, chunk: Chunk, outcome: ChunkOutcome) -> None:
        """Take back what a serial chunk has left because its items have become too long."""
        end = outcome.start + outcome.size
        if outcome.size < len(chunk.items) and not outcome.is_full:
            # Those after it were not begun.
            later = [each for each in self._in_flight.values() if each.start >= end]
            self._input.give_back([chunk.items[outcome.size :], *(each.items for each in later)])
            for each in later:
                del self._in_flight[each.id]
        elif outcome.size:
            self._seen.deviating_seconds = outcome.duration / outcome.size

    def _fill(self) -> None:
        """Dispatch what there is room for."""
        while (self._retries or not self._input.exhausted) and (
            self._backend is None
            or self._backend.has_room()
            or (self._input.instant and self._backend.can_hold())
        ):
            if (chunk := self._next_chunk()) is None:
                break
            self._submit(chunk)
        if self._input.exhausted and self._input.error is None:
            # Only now is the length certain: len() of the input may have been an estimate.
            self._input.total = self._input.drawn
            if self._report is not None:
                self._report.total_items = self._input.total

    def _next_chunk(self) -> Chunk | None:
        """Take the next chunk; None where there is none for now."""
        retries, data = self._retries, self._input
        if retries and not retries.need_room:
            return retries.take()
        plan = self._ask() if self._change is None else None
        has_room = plan is not None and plan.size > 0
        if plan is not None and not has_room:
            # Workers that idle for their consumer say nothing of the speed of the run.
            self._held_back |= self._seen.streams and len(self._in_flight) < plan.choice.n_jobs
        if retries:
            # Where nothing else can come, the consumer may be waiting for just these items.
            waits = not self._in_flight and self._sink.is_empty()
            return retries.take() if has_room or waits else None
        if plan is None:
            return None
        if not has_room:
            if self._backend is None:
                try:
                    self._open_backend()  # by which the consumer wakes this thread
                except Exception as error:
                    self._refuse(None, error)
            return None
        start = data.drawn
        if not (items := self._draw(plan.size, plan.most_bytes)):
            return None
        chunk = Chunk(self._new_id(), start, items)
        chunk.items_bytes, chunk.most_bytes = data.drawn_bytes, plan.most_bytes
        return chunk

    def _see_what_is_held(self) -> None:
        """Add up what waits in the sink and what is in flight, with the results it will have."""
        assert self._plan is not None
        seen, chunks = self._seen, self._in_flight.values()
        in_sink, in_sink_bytes = self._sink.held()
        each = seen.weights_on(self._plan.choice.engine.type).result_bytes
        seen.held_chunks = in_sink + len(chunks)
        seen.held_bytes = in_sink_bytes + sum(
            chunk.items_bytes + each * len(chunk.items) for chunk in chunks
        )

    def _draw(self, size: int, most_bytes: int = 0) -> Sequence[Any]:
        if self._input.instant:
            return self._input.draw(size, most_bytes)
        return self._run_theirs(lambda: self._input.draw(size, most_bytes))

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

    def _open_backend(self) -> Backend:
        assert self._plan is not None
        choice = self._plan.choice
        self._backend = make_backend(
            choice.engine,
            choice.n_jobs,
            interruptible=self._seen.interruptible,
            n_jobs_named=self._options.n_jobs is not None,
            too_long=self._is_too_long if choice.may_grow else None,
        )
        self._backend.open(self._task)
        return self._backend

    def _submit(self, chunk: Chunk) -> None:
        try:
            backend = self._backend or self._open_backend()
            self._in_flight[chunk.id] = chunk
            backend.submit(chunk)
        except Exception as error:
            self._in_flight.pop(chunk.id, None)
            self._refuse(chunk, error)

    def _refuse(self, chunk: Chunk | None, error: Exception) -> None:
        """Go on without workers where they were chosen, and are of no use.

        Where the caller has named them, the error passes, or is that of an item.

        Args:
            chunk: was not begun, because it could not reach a worker; None for no chunk.
            error: why.
        """
        from amorsize.errors import UnpicklableItemError
        from amorsize.running.failures import problem_of

        plan, seen = self._plan, self._seen
        assert plan is not None
        engine, problem = plan.choice.engine.type, problem_of(error)
        if problem and self._options.engine is None and engine in ("process", "thread"):
            seen.refusals = {engine: problem, **seen.refusals}
            if chunk is not None:
                self._refused.append(chunk)
                seen.refused_items += len(chunk.items)
            if self._change is None:
                self._ask()
        elif chunk is not None and isinstance(error, UnpicklableItemError):
            # Reported by the loop: here the events of another chunk may be half emitted.
            self._unsendable.append((chunk, error))
        else:
            raise error

    def _wait(self, backend: Backend) -> None:
        """Wait for what the backend reports, and handle it."""
        try:
            messages = backend.wait(self._patience())
        except Exception as error:
            self._refuse(None, error)
        else:
            self._handle_all(messages)

    # --- what backends report ----

    def _handle_all(self, messages: Sequence[Message]) -> None:
        if len(messages) > 1:
            # Failures last: they may end the run, and what came with them counts.
            from amorsize.running.failures import is_failure

            messages = sorted(messages, key=is_failure)
        self._messages = iter(messages)
        for message in self._messages:
            self._handle(message)

    def _handle(self, message: Message) -> None:
        match message:
            case WorkerStarted():
                self._workers[message.worker] = message
                if self._report is not None:
                    self._report.worker_started(message)
            case ChunkDone(worker, outcome):
                chunk = self._in_flight.pop(outcome.chunk_id)
                assert self._plan is not None
                choice = self._plan.choice
                if outcome.is_unread and self._options.engine is None:
                    self._refuse(chunk, outcome.failures[0].error)  # type: ignore[arg-type]  # ours
                    return
                if choice.may_grow and choice.is_serial:
                    self._take_back(chunk, outcome)
                self._take_outcome(chunk, outcome, worker)
            case ChunkRefused(chunk, error):
                del self._in_flight[chunk.id]
                self._refuse(chunk, error)
            case WorkerLost():
                self._take_loss(message)
            case WorkerEnded():
                self._end_worker(message)

    def _end_worker(self, ended: WorkerEnded | WorkerLost) -> None:
        if self._workers.pop(ended.worker, None) is not None and self._report is not None:
            self._report.worker_ended(
                ended.worker, ended.exit_reason, ended.exit_code, ended.unfinished
            )

    def _take_outcome(
        self,
        chunk: Chunk,
        outcome: ChunkOutcome,
        worker: int | None,
        *,
        sampled: bool = False,
    ) -> None:
        report = self._report
        if outcome.extras and (records := outcome.extras.get("log_records")):
            from amorsize.workers import log_records

            number = None if report is None else report.worker_id(worker)
            log_records.replay(records, worker_id=number, chunk_id=chunk.id)
        results = outcome.results
        if outcome.failures:
            results = self._take_failures(chunk, outcome, worker, sampled=sampled)
        if results is None:
            return  # first items that were interrupted before their first failure
        self._seen.chunks.add(outcome.size, outcome.duration)
        weight = self._weigh(chunk, outcome, results, sampled=sampled)
        self._items_completed += outcome.size
        self._busy_seconds += outcome.duration
        if self._slowest is None or outcome.duration > self._slowest[0]:
            self._slowest = outcome.duration, chunk.id
        if self._change is None:
            self._ask()
        corrected = self._take_correction()
        if outcome.is_full:
            assert self._plan is not None
            queue = self._again()
            queue.put_left(chunk, outcome.size, self._plan.usual_size, self._new_id)
        if report is not None:
            report.chunk_completed(
                chunk,
                outcome,
                worker,
                sampled=sampled,
                alone=self._was_alone(sampled),
                corrected_chunksize=corrected,
            )
        self._sink.deliver(outcome.start, results, weight)
        chunk.items = ()  # not to be held while further ones are drawn
        self._progress_due = True
        # Whether this was the last chunk may be known only by looking for another.
        if self._change is not None and not self._in_flight:
            self._input.give_back([self._draw(1)])
        if self._input.total is None and not self._in_flight:
            self._fill()
        self._emit_progress()
        if report is None and self._is_observed():
            self._catch_up()

    def _was_alone(self, sampled: bool) -> bool:
        """Say whether no other worker was at work beside a chunk that has just completed."""
        assert self._plan is not None
        early = self._seen.early
        if sampled:
            return early is None or not early.dispatched
        return self._plan.choice.n_jobs == 1

    def _weigh(
        self, chunk: Chunk, outcome: ChunkOutcome, results: list[Any], *, sampled: bool
    ) -> int:
        """Take note of what a chunk weighs; return what its results weigh."""
        seen, weight = self._seen, outcome.results_bytes
        if sampled:
            return seen.sample.results_bytes
        if seen.streams:
            from amorsize.workers.weight import weigh_all

            weight = max(weight, weigh_all(results))
        seen.weights.add(outcome.size, chunk.items_bytes * outcome.size // len(chunk.items), weight)
        return weight

    def _take_correction(self) -> int | None:
        """Return the size of chunks where it has changed by half or more since it was reported."""
        assert self._plan is not None
        size = self._plan.usual_size
        if self._seen.whole or 2 / 3 < size / self._reported_size < 1.5:
            return None
        self._reported_size = self._final_chunksize = size
        self._corrections += 1
        return size

    def _take_failures(
        self, chunk: Chunk, outcome: ChunkOutcome, worker: int | None, *, sampled: bool
    ) -> list[Any] | None:
        from amorsize.running.failures import note_item

        first = outcome.failures[0]
        if not self._task.return_exceptions:
            outcome.results = None  # also where only one result could not be sent
        elif outcome.results is None:
            # The chunk could not be sent back: that is every item's failure.
            outcome.results = [first.error] * outcome.size
            outcome.failures = [
                Failure(index, first.error, first.traceback)
                for index in range(outcome.start, outcome.start + outcome.size)
            ]
        if outcome.pid == os.getpid():  # those of others have a note with their traceback
            for failure in outcome.failures:
                note_item(failure)
        if self._report is None:
            self._failures += outcome.failures
        try:
            self._fail(
                first.error,
                traceback_text=first.traceback,
                failed_items=len(outcome.failures),
                worker=worker,
                chunk=chunk,
                outcome=outcome,
                metadata={"item_index": first.index} | ({"sampled": True} if sampled else {}),
            )
        finally:
            self._log().items_failed(
                first.error, items=len(outcome.failures), index=first.index, chunk=chunk.id
            )
        return outcome.results

    def _take_loss(self, loss: WorkerLost, error: ExecutionError | None = None) -> None:
        from amorsize.running import failures

        for untouched in loss.untouched:
            del self._in_flight[untouched.id]
        self._again().put_first(loss.untouched)
        chunk = loss.chunk
        if chunk is None and not loss.started:
            failures.warn_of_failed_start(loss)
            return
        culprit_known = error is not None
        if error is None:
            error = failures.died(loss, goes_on=self._task.return_exceptions)
        if loss.recovered:
            if self._report is not None:
                self._report.error(
                    error,
                    worker=loss.worker,
                    chunk=chunk,
                    metadata={"exit_code": loss.exit_code, "item_index": None},
                )
            self._end_worker(loss)
            self._log().worker_lost(error, loss, items=0)
            return
        # With return_exceptions, a first death is held against no item: each runs again, alone.
        final = chunk is not None and (
            culprit_known or chunk.retry_of is not None or not self._task.return_exceptions
        )
        try:
            self._fail(
                error,
                failed_items=int(final),
                worker=loss.worker,
                chunk=chunk,
                metadata={"exit_code": loss.exit_code, "item_index": loss.item_index},
            )
        finally:
            self._end_worker(loss)
            self._log().worker_lost(error, loss, items=int(final))
        if chunk is None:
            return
        del self._in_flight[chunk.id]
        if final:
            item = chunk.start if loss.item_index is None else loss.item_index
            self._split(chunk, item, error, alone_before=True)
        else:
            self._again().put_suspects(chunk, loss.item_index, self._new_id)

    def _take_unsendable(self, chunk: Chunk, error: UnpicklableItemError) -> None:
        try:
            self._fail(error, chunk=chunk, failed_items=1)
        finally:
            self._log().items_failed(error, items=1, index=error.index, chunk=chunk.id)
        self._split(chunk, error.index, error)

    def _split(
        self, chunk: Chunk, index: int, error: Exception, *, alone_before: bool = False
    ) -> None:
        """Let one item of a chunk fail, and run those around it."""
        from amorsize.running.failures import in_place

        single = self._again().put_around(
            chunk, index - chunk.start, self._new_id, alone_before=alone_before
        )
        self._take_outcome(single, in_place(single, error), None)

    def _again(self) -> Retries:
        """The chunks that are handed out again."""
        if self._retries is None:
            from amorsize.running.retries import Retries

            self._retries = Retries()
        return self._retries

    def _fail(self, error: BaseException, **details: Any) -> None:
        """Report a failure; it ends the run unless exceptions are returned in place."""
        if self._report is not None:
            self._report.error(error, **details)
        if not self._task.return_exceptions:
            self._reported_error = error
            raise error

    def _report_end(self, status: str, error: BaseException) -> None:
        """Report what ends the run, where it was not reported as a failure of its items."""
        try:
            if self._report is not None:
                self._report.error(error)
        finally:
            self._log().run_failed(status, error, items=self._items_completed)

    def _log(self) -> RunLog:
        if self._run_log is None:
            from amorsize.running.observers import function_name
            from amorsize.running.run_log import RunLog

            self._run_log = RunLog(function_name(self._func, self._options))
        self._run_log.report = self._report
        return self._run_log

    def _log_end(self, status: str, failed: BaseException | None) -> None:
        if self._run_log is None and not is_logged(RUNS, INFO):
            return
        items, choice = self._items_completed, None if self._plan is None else self._plan.choice
        data = getattr(self, "_input", None)  # none where the run failed before it began
        self._log().run_ended(
            status,
            failed,
            items=items,
            total=None if data is None else data.total,
            seconds=time.monotonic() - self._began_monotonic,
            executor=None if choice is None else choice.engine.type,
            n_jobs=None if choice is None else choice.n_jobs,
            item_seconds=self._busy_seconds / items if items else None,
            slowest=self._slowest,
        )

    # --- limits ----

    def _patience(self) -> float:
        """Return how long the loop may sleep before it must look at a limit again."""
        patience, options = LONGEST_WAIT_SECONDS, self._options
        if options.timeout is not None:
            left = self._began_monotonic + options.timeout - time.monotonic()
            patience = min(patience, max(0.0, left))
        if options.item_timeout is not None:
            patience = min(patience, options.item_timeout / 4, 0.25)
        return patience

    def _check_limits(self) -> None:
        if self._signals is not None:
            from amorsize.running import signals

            signals.check()
        if self._sink.cancelled:
            raise self._cancelled_error()
        timeout, item_timeout = self._options.timeout, self._options.item_timeout
        if timeout is not None and time.monotonic() >= self._began_monotonic + timeout:
            from amorsize.running.failures import timed_out

            done = self._items_completed + len(self._measurement.first.results)
            in_flight = self._in_flight.values()
            raise timed_out(timeout, done, self._input.total, in_flight)
        if item_timeout is not None and self._backend is not None:
            for late in self._backend.overdue(item_timeout):
                loss = self._backend.end_worker(late)
                if loss is not None:
                    from amorsize.running.failures import overdue

                    self._take_loss(loss, overdue(late, loss, item_timeout))

    def _cancelled_error(self) -> ExecutionCancelledError:
        from amorsize.errors import ExecutionCancelledError

        return ExecutionCancelledError(
            f"the run was cancelled by its consumer, after {self._items_completed} completed items"
        )

    def _is_over(self) -> bool:
        waiting = self._in_flight or self._retries or self._unsendable or self._refused
        return self._input.exhausted and not waiting

    # --- events ----

    def _emit_start(self, report: Reporter) -> None:
        from amorsize.planning.explanation import reason_of

        plan, begun = self._plan, self._handed_over
        assert plan is not None
        report.pre_execute(
            n_jobs=plan.choice.n_jobs,
            chunksize=plan.usual_size,
            total_items=self._input.total,
            executor_type=plan.choice.engine.type,
            estimated_speedup=plan.choice.estimated_speedup,
            planning_seconds=self._planning_seconds,
            decided={
                "reason": reason_of(plan.choice, self._seen),
                "sampled_items": self._measurement.first.sample.taken,
                "head_start_items": 0 if begun is None else len(begun.chunks),
            },
        )

    def _catch_up(self) -> None:
        """Report to observers that have come meanwhile: what was done before is one chunk."""
        self._guard()
        self._report = report = self._make_reporter()
        self._emit_start(report)
        for started in self._workers.values():
            report.worker_started(started)
        done = ChunkOutcome(
            chunk_id=0,
            start=0,
            size=self._items_completed,
            results=[],
            failures=self._failures,
            started_at=time.time() - self._busy_seconds,
            duration=self._busy_seconds,
            pid=os.getpid(),
            hostname="",
            thread_name="",
        )
        chunk = Chunk(0, 0, ())
        if self._failures:
            first = self._failures[0]
            report.error(
                first.error,
                traceback_text=first.traceback,
                failed_items=len(self._failures),
                chunk=chunk,
                outcome=done,
                metadata={"item_index": first.index},
            )
        report.chunk_completed(chunk, done, None, sampled=True, alone=self._was_alone(False))
        self._progress_due = True
        self._emit_progress()

    def _emit_progress(self) -> None:
        if not self._progress_due or self._report is None:
            return
        if self._is_over():
            last = self._input.error is None
        elif self._in_flight or self._retries or self._unsendable or self._change is not None:
            last = False
        elif self._input.total is not None:
            last = self._items_completed >= self._input.total
        else:
            return  # the sink is full, so that nothing could be drawn: the next draw decides
        self._progress_due = False
        self._report.progress(last=last)

    # --- the end ----

    def _end(self, status: str, failed: BaseException | None) -> None:
        plan = self._plan
        on_processes = (
            plan is not None and plan.choice.engine.type == "process" and self._backend is not None
        )
        try:
            self._close_backend(cancel=failed is not None)
        except BaseException as error:
            if failed is None:  # Ctrl-C at the very end of a run that had gone well
                status, failed = _status_of(error), error
                self._report_end(status, error)
            raise
        finally:
            if self._report is not None:
                self._report.post_execute(
                    status,
                    failed,
                    corrections=self._corrections,
                    final_chunksize=self._final_chunksize,
                    **self._facts(),
                )
            self._log_end(status, failed)
        if on_processes and failed is None:
            KNOWN.remember(self._func, sent_type=self._measurement.first.item_type)

    def _facts(self) -> dict[str, Any]:
        """Say what bears on the speedup of a run, beside what its chunks took."""
        if self._plan is None:
            return {}
        return {
            "known": self._plan.choice.workload or self._seen.known.workload,
            "input_seconds": self._input.seconds,
            "held_up": self._held_back,
        }

    def _close_backend(self, *, cancel: bool) -> None:
        backend, self._backend = self._backend, None  # once, also where a signal comes between
        begun = self._handed_over
        if backend is None and begun is None and not self._workers:
            return
        try:
            for message in (*(() if begun is None else begun.messages), *self._messages):
                self._handle_late(message)  # calls hooks, in which a Ctrl-C may come
        finally:
            try:
                for message in () if backend is None else backend.close(cancel=cancel):
                    self._handle_late(message)
            finally:
                # Every start has its end, also where the backend could not report it.
                for worker in list(self._workers):
                    self._end_worker(WorkerEnded(worker, "cancelled" if cancel else "finished"))

    def _handle_late(self, message: Message) -> None:
        """Handle what is reported once the run is over: workers have ended, time was spent."""
        if isinstance(message, WorkerLost):
            if message.recovered:
                self._take_loss(message)
                return
            from amorsize.running.failures import died

            self._end_worker(message)
            self._log().worker_lost(died(message, goes_on=False), message, items=0)
        elif not isinstance(message, ChunkDone):
            self._handle(message)
        elif self._report is not None:
            self._report.came_too_late(message.worker, message.outcome)

    def _conclude(self) -> None:
        """Close what nobody went on with; complete the result; wait for hooks in the background."""
        measurement = getattr(self, "_measurement", None)
        if measurement is not None:
            measurement.abandon()
        self.on_plan = lambda plan: None
        if self.result is not None:
            self.result.corrections = self._corrections
            self.result.final_chunksize = self._final_chunksize
            self.result.changes = self._changes
        if self._report is not None and self._observers is not None:
            self._observers.drain(self._report.execution_id)

    def _new_id(self) -> int:
        self._next_chunk_id += 1
        return self._next_chunk_id - 1


@protected
def _status_of(error: BaseException) -> str:
    from amorsize.running.failures import status_of

    return status_of(error)


@protected
def _engine_here(engine: Engine | None) -> Engine | None:
    """Return the engine that a named one stands for in this process."""
    if engine is None or engine.type not in ("process", "dask"):
        return engine
    from amorsize.planning.machine import engines_here

    if "process" in engines_here():
        return engine
    # And a task that waits for tasks, in a cluster of such tasks, may wait for ever.
    from amorsize.running.failures import warn_of_nested_run

    warn_of_nested_run(engine.type)
    return Engine("serial", instead_of=engine.type)
