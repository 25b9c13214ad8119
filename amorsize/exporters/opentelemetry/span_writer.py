"""Writes spans after the fact, through the application's own tracer provider.

Its sampler, limits, resource and processors apply as to any span. So that spans keep the ids that
workers gave them, a copy of the provider's tracer generates these ids; a provider without a
replaceable id generator gives ids of its own, and children then refer to their parent's new id.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)

from amorsize.exporters.opentelemetry.span_budget import ChunkRecord
from amorsize.workers.chunk import encodable
from amorsize.workers.trace_link import chunk_span_id

CHUNK_NAME = "chunk"

ItemT = TypeVar("ItemT")

SpanScope = tuple[Any, ...]
SpanEvent = tuple[str, int, Mapping[str, Any]]


class SpanWriter:
    """Writes spans that have ended; safe to use from several threads, and from signal handlers.

    Exceptions of the application's samplers and processors pass through.

    Args:
        provider: the application's tracer provider.
        scope: the arguments of ``get_tracer()`` for amorsize's own spans.

    Attributes:
        provider: as given.
        exact: whether spans get the ids that are asked for.
        tracer: for spans that are made as they happen.
    """

    def __init__(self, provider: trace.TracerProvider, scope: SpanScope) -> None:
        self.provider = provider
        self._scope = scope
        self._tracers: dict[Any, trace.Tracer] = {}
        self._ids = _PresetIds()
        self.tracer = provider.get_tracer(*scope)
        self.exact = hasattr(self.tracer, "id_generator")

    def write_chunk(
        self, record: ChunkRecord, execution: SpanContext, context: Context | None
    ) -> int:
        """Write a chunk's span and the spans inside it; return how many were written.

        Args:
            record: the chunk.
            execution: the execution's span, its parent.
            context: the parent's, for span processors (baggage).
        """
        spans = record.spans()
        own_id = chunk_span_id(execution.span_id, record.chunk_id)
        start, end = record.start, record.end
        began, ended = record.returned.get("times", (start, end))
        start, end = min(start, began), max(end, ended)
        for span in spans:
            if span[4] == own_id:  # a chunk lasts as long as what happens in it
                start, end = min(start, span[5]), max(end, span[6])
        events: list[SpanEvent] = list(record.returned.get("events", ()))
        status: tuple[int, str | None] = record.returned.get("status", (0, None))
        if record.failure is not None:
            kind, message, text = record.failure
            events.append(exception_event(kind, message, text, end))
            status = (StatusCode.ERROR.value, f"{kind}: {message}")
        known: dict[int, SpanContext] = {}
        try:
            known[own_id] = self.write(
                CHUNK_NAME,
                trace_id=execution.trace_id,
                span_id=own_id,
                parent=execution,
                start=start,
                end=end,
                attributes=record.returned.get("attributes", {}) | record.attributes,
                events=events,
                status=status,
                context=context,
            )
        finally:
            # Outer spans end last, and are the first to be dropped: inner spans stay in the tree.
            adopting = known.get(own_id) if record.returned.get("dropped") else None
            # Parents begin first and end last; where clocks are coarse, when their children do.
            parents_first = spans[::-1]
            parents_first.sort(key=lambda span: span[5])
            for_each(
                parents_first,
                lambda span: self._write_user_span(span, execution, known, adopting, context),
            )
        return 1 + len(spans)

    def _write_user_span(
        self,
        span: tuple[Any, ...],
        execution: SpanContext,
        known: dict[int, SpanContext],
        adopting: SpanContext | None,
        context: Context | None,
    ) -> None:
        name, kind, trace_id, span_id, parent_id, start, end, attributes, events, links = span[:10]
        status, scope = span[10:]
        parent = None
        if parent_id:
            is_ours = trace_id == execution.trace_id
            parent = known.get(parent_id) or (adopting if is_ours else None)
            parent = parent or SpanContext(
                trace_id,
                parent_id,
                is_remote=False,
                trace_flags=TraceFlags(TraceFlags.SAMPLED),
                trace_state=execution.trace_state if is_ours else None,
            )
        known[span_id] = self.write(
            name,
            trace_id=trace_id,
            span_id=span_id,
            parent=parent,
            start=start,
            end=end,
            attributes=attributes,
            events=events,
            status=status,
            context=context,
            kind=SpanKind(kind),
            links=[
                Link(SpanContext(linked_trace, linked_span, is_remote=True), linked_attributes)
                for linked_trace, linked_span, linked_attributes in links
            ],
            scope=scope,
        )

    def write(
        self,
        name: str,
        *,
        trace_id: int,
        span_id: int,
        parent: SpanContext | None,
        start: int,
        end: int,
        attributes: Mapping[str, Any],
        events: Sequence[SpanEvent] = (),
        status: tuple[int, str | None] = (0, None),
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        links: Sequence[Link] = (),
        scope: SpanScope | None = None,
    ) -> SpanContext:
        """Write one span; return its actual context.

        Args:
            start, end: ns since the epoch. An end before the start is set to it.
            status: a ``StatusCode``'s value, and its description.
        """
        around = Context() if context is None else context
        around = trace.set_span_in_context(
            trace.INVALID_SPAN if parent is None else NonRecordingSpan(parent), around
        )
        tracer = self._tracer(scope or self._scope)
        ids = self._ids
        before = ids.trace_id, ids.span_id  # a signal handler may write a span during this one
        ids.trace_id, ids.span_id = trace_id, span_id
        try:
            span = tracer.start_span(encodable(name), around, kind, attributes, links, start)
        finally:
            ids.trace_id, ids.span_id = before
        if span.is_recording():
            for event_name, timestamp, event_attributes in events:
                span.add_event(event_name, event_attributes, timestamp)
            code, description = status
            if code:
                is_error = code == StatusCode.ERROR.value
                text = encodable(description) if is_error and description else None
                span.set_status(Status(StatusCode(code), text))
        span.end(max(start, end))
        return span.get_span_context()

    def _tracer(self, scope: SpanScope) -> trace.Tracer:
        key = (*scope[:3], *sorted((scope[3] or {}).items()))
        tracer = self._tracers.get(key)
        if tracer is None:
            tracer = self.provider.get_tracer(*scope)
            if hasattr(tracer, "id_generator"):
                tracer = _with_ids(tracer, self._ids)
            self._tracers[key] = tracer
        return tracer


def for_each(items: Iterable[ItemT], write: Callable[[ItemT], object]) -> None:
    """Write each item, also after a failure; then raise the first failure, if any."""
    failure: Exception | None = None
    for item in items:
        try:
            write(item)
        except Exception as error:
            failure = failure or error
    if failure is not None:
        raise failure


def exception_event(kind: str, message: str, text: str, timestamp: int) -> SpanEvent:
    """Make the event that stands for an exception, as the conventions say."""
    attributes = {
        "exception.type": kind,
        "exception.message": message,
        "exception.stacktrace": text,
    }
    return "exception", timestamp, attributes


def _with_ids(tracer: Any, ids: _PresetIds) -> Any:
    # Not copy.copy(): like pickle, it would call get_tracer() for the tracer of that name.
    copied = object.__new__(type(tracer))
    vars(copied).update(vars(tracer), id_generator=ids)
    return copied


class _PresetIds(threading.local):
    """An SDK's id generator, by duck typing, that returns the ids preset on this thread."""

    trace_id = 0
    span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id

    def is_trace_id_random(self) -> bool:
        return True
