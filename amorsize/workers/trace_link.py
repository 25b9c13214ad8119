"""The link between an execution and a distributed trace; no tracing library is imported here.

An exporter that traces is a :class:`TraceSource`. It makes a :class:`TraceLink` when an execution
begins, before its first item runs. The link is sent wherever chunks run, and
:mod:`amorsize.workers.otel_context` makes its span the parent of the spans of the user's code.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

from amorsize.workers import in_forked_child
from amorsize.workers.record import Record, made

logger = logging.getLogger(__name__)

_MASK = (1 << 64) - 1
_granting = threading.Lock()

SpanIds: TypeAlias = tuple[int, int, bool]
"""Trace id, span id, and whether the trace is sampled."""


class TraceLink(Record):
    """An execution's place in a trace; picklable, and sent to workers.

    Attributes:
        carrier: W3C trace context and baggage, as headers.
        trace_id: of the execution's span.
        span_id: likewise.
        sampled: whether anything of this trace is kept.
        capture: return the spans that end in a worker process; False to pass on the context
            only.
        max_spans: how many of them per chunk.
        exact: chunk spans get the ids of :func:`chunk_span_id`. Where the application's
            tracing library cannot promise that, spans inside chunks that run in this process are
            children of the execution's span.
        live: in how many more chunks spans may be exported as they end. Chunks that run in the
            calling process ask for it before they begin: their spans cannot be held back.
        pid: the process that made the link.
    """

    carrier: dict[str, str]
    trace_id: int
    span_id: int
    sampled: bool
    capture: bool
    max_spans: int
    exact: bool = True
    live: int = 0
    pid: int = made(factory=os.getpid)

    def grant(self) -> bool:
        """Let the spans of one more chunk be exported as they end, if the budget allows it."""
        if self.live <= 0:
            return False
        with _granting:
            if self.live <= 0:
                return False
            self.live -= 1
            return True

    def widen(self, chunks: int) -> None:
        """Let those of so many chunks more leave at once."""
        with _granting:
            self.live += chunks


@in_forked_child
def _renew_lock() -> None:
    global _granting
    _granting = threading.Lock()


class TraceSource(Protocol):
    """Begins the trace of an execution."""

    def begin(
        self, managers: Sequence[Any], execution_id: str, function: str
    ) -> TraceLink | None: ...

    def forget(self, execution_id: str) -> None: ...


_sources: tuple[TraceSource, ...] = ()


def add_source(source: TraceSource) -> None:
    """Ask a source at the beginning of each execution; adding it twice changes nothing."""
    global _sources
    if source not in _sources:
        _sources += (source,)


def remove_source(source: TraceSource) -> None:
    """No longer ask a source."""
    global _sources
    _sources = tuple(each for each in _sources if each is not source)


def begin(managers: Sequence[Any], execution_id: str, function: str) -> TraceLink | None:
    """Begin the trace of an execution whose events go to ``managers``; None where none traces.

    Called where the caller's current span is current.
    """
    for source in _sources:
        try:
            link = source.begin(managers, execution_id, function)
        except Exception:
            logger.exception("No trace can be begun; the execution goes on without one")
            continue
        if link is not None:
            return link
    return None


def forget(execution_id: str) -> None:
    """Drop the trace of an execution that emits no events, because its plan was never made."""
    for source in _sources:
        source.forget(execution_id)


def chunk_span_id(execution_span_id: int, chunk_id: int) -> int:
    """Derive the id of a chunk's span: worker and parent get the same one without a message.

    A finalizer of 64 bits (that of SplitMix64: Steele, Lea and Flood 2014) is a bijection, so no
    two chunks of an execution share an id.
    """
    mixed = (execution_span_id + (chunk_id + 1) * 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31) or 1  # 0 is no span id


def shift(taken: dict[str, Any], nanoseconds: int) -> None:
    """Move a chunk's returned trace from another machine's clock to this one's."""
    taken["events"] = [
        (name, at + nanoseconds, attributes) for name, at, attributes in taken.get("events", ())
    ]
    taken["spans"] = [_shifted(span, nanoseconds) for span in taken.get("spans", ())]


def _shifted(span: tuple[Any, ...], nanoseconds: int) -> tuple[Any, ...]:
    moved = list(span)  # as otel_context.pack_span made it
    moved[5:7] = [at if at is None else at + nanoseconds for at in span[5:7]]
    moved[8] = [(name, at + nanoseconds, attributes) for name, at, attributes in span[8]]
    return tuple(moved)


def loaded_tracing() -> Any:
    """Return the module ``opentelemetry.trace`` where the application has loaded it, else None.

    Nothing can be traced before that. Importing it takes 25 ms, so that is left to the
    application, and to exporters that trace.
    """
    return sys.modules.get("opentelemetry.trace")


def current_ids() -> SpanIds | None:
    """Return the ids of the current span; None without one."""
    trace = loaded_tracing()
    if trace is None:
        return None
    try:
        context = trace.get_current_span().get_span_context()
        if not context.is_valid:
            return None
        return context.trace_id, context.span_id, bool(context.trace_flags.sampled)
    except Exception:  # half imported, or a module of the application's own
        return None


@contextmanager
def as_current(ids: SpanIds | None) -> Iterator[None]:
    """Make a span of another process current, by its ids; with None, change nothing."""
    trace = loaded_tracing()
    if trace is None or ids is None:
        yield
        return
    trace_id, span_id, sampled = ids
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if sampled else trace.TraceFlags.DEFAULT)
    context = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags)
    with trace.use_span(trace.NonRecordingSpan(context)):
        yield
