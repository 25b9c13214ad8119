"""The trace of each execution in progress, from its events.

::

    events ──> ExecutionTraces ──> SpanBudget ──> SpanWriter ──> the application's provider
                                   which chunks    spans, made after the fact
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace as otel_trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.trace import Span, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from amorsize.exporters.metrics import ATTRIBUTES
from amorsize.exporters.opentelemetry.span_budget import ChunkRecord, SpanBudget
from amorsize.exporters.opentelemetry.span_writer import (
    SpanWriter,
    exception_event,
    for_each,
)
from amorsize.exporters.sender import Sender
from amorsize.exporters.series import number
from amorsize.hooks import HookContext
from amorsize.workers import trace_link
from amorsize.workers.chunk import encodable
from amorsize.workers.names import bounded
from amorsize.workers.trace_link import TraceLink

MAX_USER_SPANS = 256
"""Spans of the user's code that are sent back with a chunk."""

_AT_ONCE = 1000
"""Spans that are written at once: half of a batch processor's queue."""

_DRAINED_SECONDS = 10.0
"""Twice the time after which a batch processor sends its spans."""

_MAX_LATER = 5000
"""Chunks whose spans wait for processors to have room, beside those of one whole execution."""

_MAX_CORRECTIONS = 20

_MAX_TEXT = 16_384
"""Characters kept of an error's message, and of a traceback: collectors refuse a batch that is
larger than a few MB."""


@dataclass(slots=True)
class _Trace:
    """The trace of an execution in progress."""

    span: Span
    link: TraceLink
    context: Context
    began: int
    budget: SpanBudget
    common: dict[str, Any]
    workers: dict[int | None, dict[str, Any]] = field(default_factory=dict)
    failures: dict[int | None, tuple[str, str, str]] = field(default_factory=dict)
    corrections: int = 0


class ExecutionTraces:
    """Spans of executions, of their plans and of their chunks.

    Args:
        writer: makes them.
        max_chunk_spans: the most spans of chunks per execution.
        capture: whether worker processes send spans back.
        new_sender: makes the background thread on which spans wait for processors to have room.
    """

    def __init__(
        self,
        writer: SpanWriter,
        *,
        max_chunk_spans: int,
        capture: bool,
        new_sender: Callable[..., Sender[Any]],
    ) -> None:
        self._writer = writer
        self._max_chunk_spans = max_chunk_spans
        self._capture = capture
        self._traces: dict[Any, _Trace] = {}
        self._lock = threading.RLock()  # a signal handler may end a stream over its holder
        self._credit = _AT_ONCE
        self._credit_since = time.monotonic()
        # The end of an execution releases all of its waiting chunks at once.
        capacity = _MAX_LATER + max_chunk_spans
        self._later = new_sender(
            self._write_later,
            capacity=capacity,
            batch_items=1,
            attempts=1,
            messages_of=lambda item: _spans_of(item[0]),
        )

    def begin(self, execution_id: str, function: str) -> TraceLink | None:
        """Begin an execution's span, under the caller's; None where the SDK is disabled."""
        writer = self._writer
        began = time.time_ns()
        function = bounded(function)
        common = {"amorsize.execution.id": execution_id, ATTRIBUTES["function"]: function}
        span = writer.tracer.start_span(f"execute {function}", attributes=common, start_time=began)
        span_context = span.get_span_context()
        if not span_context.is_valid:
            return None  # the SDK is disabled
        context = otel_trace.set_span_in_context(span, otel_context.get_current())
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, context)
        W3CBaggagePropagator().inject(carrier, context)
        budget = SpanBudget(self._max_chunk_spans)
        link = TraceLink(
            carrier,
            span_context.trace_id,
            span_context.span_id,
            sampled=span_context.trace_flags.sampled,
            capture=self._capture,
            max_spans=MAX_USER_SPANS,
            exact=writer.exact,
            live=budget.live,
        )
        self._traces[execution_id] = _Trace(span, link, context, began, budget, common)
        return link

    def forget(self, execution_id: str) -> None:
        """Drop an execution's span; nothing where it has ended."""
        self._traces.pop(execution_id, None)

    def planned(self, context: HookContext) -> None:
        """Write the span of the plan."""
        trace = self._trace_of(context)
        if trace is None:
            return
        plan: dict[str, Any] = {
            "amorsize.executor": str(context.metadata.get("executor_type")),
            "amorsize.n_jobs": context.n_jobs,
            "amorsize.chunksize": context.chunksize,
        }
        if context.total_items is not None:
            plan["amorsize.items.total"] = context.total_items
            # In this process a chunk's live place decides on the spans of the user's code, too.
            expected_chunks = math.ceil(context.total_items / max(1, context.chunksize))
            trace.link.widen(trace.budget.widen(expected_chunks))
        trace.span.set_attributes(plan)
        speedup = number(context.metadata.get("estimated_speedup"))
        if speedup is not None:
            plan["amorsize.estimated_speedup"] = float(speedup)
        trace.common["amorsize.executor"] = plan["amorsize.executor"]
        self._writer.write(
            "plan",
            trace_id=trace.link.trace_id,
            span_id=trace_link.chunk_span_id(trace.link.span_id, -1),
            parent=trace.span.get_span_context(),
            start=trace.began,
            end=_epoch_ns(context.timestamp),
            attributes=trace.common | plan,
            context=trace.context,
        )

    def worker_started(self, context: HookContext) -> None:
        """Remember a worker's identity."""
        trace = self._trace_of(context)
        if trace is not None:
            trace.workers[context.worker_id] = _identity(context.worker_id, context.metadata)

    def chunk_completed(self, context: HookContext) -> None:
        """Record a completed chunk."""
        trace = self._trace_of(context)
        if trace is None:
            return
        self._take_chunk(trace, context, trace.failures.pop(context.chunk_id, None))
        corrected = context.metadata.get("corrected_chunksize")
        if corrected is not None and trace.corrections < _MAX_CORRECTIONS:
            trace.corrections += 1
            trace.span.add_event("chunksize corrected", {"amorsize.chunksize": corrected})

    def failed(self, context: HookContext) -> None:
        """Record a failure of a chunk, a worker or the execution."""
        trace = self._trace_of(context)
        if trace is None:
            return
        failure = _failure_of(context)
        if context.chunk_id is None:
            attributes = {"exception.type": failure[0], "exception.message": failure[1]}
            trace.span.add_event(_event_name(context), attributes)
        elif context.metadata.get("chunk_completes"):
            trace.failures[context.chunk_id] = failure
        else:
            if "started_at" not in context.metadata:  # its worker died, and returned nothing
                trace.span.add_event(
                    _event_name(context),
                    {"amorsize.chunk.id": context.chunk_id, "exception.message": failure[1]},
                )
            self._take_chunk(trace, context, failure)

    def worker_ended(self, context: HookContext) -> None:
        """Record the end of a worker; before the execution's end it is an event of its span."""
        trace = self._trace_of(context)
        if trace is None or context.metadata.get("exit_reason") == "finished":
            return
        attributes = _identity(context.worker_id, context.metadata)
        attributes["amorsize.worker.exit_reason"] = str(context.metadata.get("exit_reason"))
        code = context.metadata.get("exit_code")
        if code is not None:
            attributes["process.exit.code"] = code
        trace.span.add_event("worker ended", attributes)

    def ended(self, context: HookContext, status: str) -> None:
        """End the span of an execution."""
        trace = self._traces.pop(context.metadata.get("execution_id"), None)
        if trace is not None:
            self._end_trace(trace, context, status)

    def end_all(self) -> None:
        """End the spans of executions in progress: no more events will come."""
        for execution_id in list(self._traces):
            trace = self._traces.pop(execution_id, None)
            if trace is not None:
                self._end_span(trace, time.time_ns())

    def around(self, context: HookContext) -> Context | None:
        """Return the context in which an event happened, for exemplars: the chunk's span, or the
        execution's; None where neither is sampled."""
        trace = self._traces.get(context.metadata.get("execution_id"))
        if trace is None or not trace.link.sampled:
            return None
        if context.chunk_id is None or not trace.link.exact:
            return trace.context
        execution = trace.span.get_span_context()
        chunk_span = otel_trace.SpanContext(
            execution.trace_id,
            trace_link.chunk_span_id(execution.span_id, context.chunk_id),
            is_remote=False,
            trace_flags=execution.trace_flags,
        )
        return otel_trace.set_span_in_context(
            otel_trace.NonRecordingSpan(chunk_span), trace.context
        )

    def _trace_of(self, context: HookContext) -> _Trace | None:
        trace = self._traces.get(context.metadata.get("execution_id"))
        return trace if trace is not None and trace.span.is_recording() else None

    def _take_chunk(
        self, trace: _Trace, context: HookContext, failure: tuple[str, str, str] | None
    ) -> None:
        metadata = context.metadata
        now = _epoch_ns(context.timestamp)
        started = metadata.get("started_at") or metadata.get("dispatched_at")
        start = now if started is None else _epoch_ns(started)
        start = min(max(start, trace.began), now)  # other machines have other clocks
        ran = "started_at" in metadata
        end = min(start + int(context.chunk_time * 1e9), now) if ran else now
        returned = metadata.get("trace", {})
        # A chunk of this process asked for a place before it ran; one from elsewhere asks now.
        live = returned["live"] if "live" in returned else trace.link.grant()
        if not live and failure is None and trace.budget.turn_away(end - start, returned):
            return
        attributes = trace.common | {
            "amorsize.chunk.id": context.chunk_id,
            "amorsize.chunk.start": metadata.get("chunk_start", 0),
            "amorsize.chunk.size": context.chunk_size or 0,
        }
        if "queue_time" in metadata:
            attributes["amorsize.chunk.queue_seconds"] = float(metadata["queue_time"])
        if "cpu_seconds" in metadata:
            attributes["amorsize.chunk.cpu_seconds"] = float(metadata["cpu_seconds"])
        if metadata.get("sampled"):
            attributes["amorsize.chunk.sampled"] = True
        if "retry_of" in metadata:
            attributes["amorsize.chunk.retry_of"] = metadata["retry_of"]
        attributes |= trace.workers.get(context.worker_id) or _identity_here()
        if failure is not None:
            attributes[ATTRIBUTES["error_type"]] = failure[0]
        record = ChunkRecord(context.chunk_id or 0, start, end, attributes, failure, returned)
        if trace.budget.admit(record, live=live):
            self._release(trace, record)

    def _release(self, trace: _Trace, record: ChunkRecord) -> None:
        """Write a chunk now, where processors surely have room, or else in the background."""
        spans = _spans_of(record)
        now = time.monotonic()
        with self._lock:
            if now - self._credit_since > _DRAINED_SECONDS:
                self._credit, self._credit_since = _AT_ONCE, now
            at_once = self._credit >= spans and self._later.is_idle
            if at_once:
                self._credit -= spans
        item = (record, trace.span.get_span_context(), trace.context)
        if at_once:
            self._writer.write_chunk(*item)
        else:
            self._later.put(item)

    def _write_later(self, batch: list[Any]) -> None:
        """Write chunks on the sender's thread, and wait where processors are full."""
        for record, execution, context in batch:
            spans = _spans_of(record)
            with self._lock:
                is_full = self._credit < spans
                self._credit = (_AT_ONCE if is_full else self._credit) - spans
                self._credit_since = time.monotonic()
            if is_full:
                flush = getattr(self._writer.provider, "force_flush", None)
                if flush is not None:
                    flush()
            self._writer.write_chunk(record, execution, context)

    def _end_trace(self, trace: _Trace, context: HookContext, status: str) -> None:
        span = trace.span
        ended = max(_epoch_ns(context.timestamp), trace.began)
        span.set_attributes(
            {
                ATTRIBUTES["status"]: status,
                "amorsize.items.completed": context.items_completed,
            }
        )
        for name in ("concurrency", "measured_speedup"):
            if (figure := number(context.metadata.get(name))) is not None:
                span.set_attribute(f"amorsize.{name}", float(figure))
        if context.total_items is not None:
            span.set_attribute("amorsize.items.total", context.total_items)
        if context.error is not None:
            failure = _failure_of(context)
            kind, message = failure[:2]
            span.set_attribute(ATTRIBUTES["error_type"], kind)
            if status != "cancelled":  # the caller knows, and nothing failed
                name, timestamp, attributes = exception_event(*failure, ended)
                span.add_event(name, attributes, timestamp)
                span.set_status(Status(StatusCode.ERROR, f"{kind}: {message}"))
        self._end_span(trace, ended)

    def _end_span(self, trace: _Trace, ended: int) -> None:
        """Release the waiting chunks, and end the execution's span."""
        span, budget = trace.span, trace.budget
        try:
            for_each(budget.rest(), lambda record: self._release(trace, record))
        finally:  # a processor of the application's may raise
            span.set_attributes(
                {
                    "amorsize.chunks.total": budget.total,
                    "amorsize.chunks.untraced": budget.untraced,
                    "amorsize.spans.dropped": budget.dropped_spans,
                }
            )
            span.end(ended)


def _spans_of(record: ChunkRecord) -> int:
    """How many spans a chunk has: its own, and those of the user's code in it."""
    return 1 + len(record.spans())


def _epoch_ns(seconds: float) -> int:
    return int(seconds * 1e9)


def _identity(worker_id: int | None, metadata: dict[str, Any]) -> dict[str, Any]:
    """Name a worker by the conventions."""
    identity = {
        "amorsize.worker.id": worker_id,
        "process.pid": metadata.get("pid"),
        "host.name": metadata.get("hostname"),
        "thread.name": bounded(metadata.get("thread_name", "")) or None,
    }
    return {name: value for name, value in identity.items() if value is not None}


def _identity_here() -> dict[str, Any]:
    """Name this process and thread, which ran the sampled items."""
    return {
        "process.pid": os.getpid(),
        "host.name": socket.gethostname(),
        "thread.name": bounded(threading.current_thread().name),
    }


def _failure_of(context: HookContext) -> tuple[str, str, str]:
    error = context.error
    kind = "Exception" if error is None else bounded(type(error).__name__)
    message = encodable((context.error_message or "")[:_MAX_TEXT])
    return kind, message, encodable((context.error_traceback or "")[-_MAX_TEXT:])


def _event_name(context: HookContext) -> str:
    """Name an event in a few constant words."""
    kind = type(context.error).__name__
    names = {
        "WorkerDiedError": "worker died",
        "ItemTimeoutError": "item timed out",
        "ExecutionTimeoutError": "execution timed out",
        "ExecutionCancelledError": "execution cancelled",
        "KeyboardInterrupt": "execution cancelled",
        "Terminated": "execution cancelled",
    }
    return names.get(kind, "failure")
