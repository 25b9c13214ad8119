"""The trace inside a chunk: the chunk's span is current while the function runs.

In the process that called ``execute()`` the application's own provider exports the spans of the
user's code. A worker process has none: :class:`WorkerProvider` keeps the spans that end, and they
are returned with the chunk's outcome. There is no exporter, no network and no thread there.
"""

from __future__ import annotations

import copyreg
import os
import time
import traceback
from collections.abc import Iterable, Mapping
from contextvars import ContextVar, Token
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from amorsize.workers.trace_link import TraceLink, chunk_span_id

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.util.types import AnyValue, Attributes

MAX_EVENTS = 128
"""Events kept that the user's code adds to the chunk's own span."""

_UNSAMPLED = trace.TraceFlags(trace.TraceFlags.DEFAULT)


class ChunkTrace:
    """One chunk's place in the trace; a :class:`amorsize.workers.collectors.Collector`."""

    __slots__ = (
        "_began",
        "_captures",
        "_chunk_id",
        "_context",
        "_ended",
        "_granted",
        "_link",
        "_span",
        "_token",
    )

    def __init__(self, link: TraceLink, chunk_id: int) -> None:
        self._link = link
        self._chunk_id = chunk_id
        self._captures = link.capture and link.pid != os.getpid()
        self._context: otel_context.Context | None = None
        self._span: _ChunkSpan | None = None
        self._token: Token[Any] | None = None
        self._granted: bool | None = None
        self._began = self._ended = 0

    def enter(self) -> None:
        if self._context is None:  # a sample enters once per item, and without items never
            self._context = self._make_context()
            self._began = time.time_ns()
        if self._captures:
            worker_provider.begin(self._link)
        self._token = otel_context.attach(self._context)

    def leave(self) -> None:
        if self._token is not None:
            otel_context.detach(self._token)
            self._token = None
            self._ended = time.time_ns()

    def take(self) -> dict[str, Any] | None:
        """Return the user code's changes to the chunk's span, and the spans that ended."""
        taken: dict[str, Any] = {}
        if self._span is not None:
            taken = self._span.take()
        if self._granted is not None:
            taken["live"] = self._granted
            if self._granted:  # exported already: the chunk's span must contain them
                taken["times"] = self._began, self._ended
        if self._captures:
            spans, dropped = worker_provider.take()
            if spans:
                taken["spans"] = spans
            if dropped:
                taken["dropped"] = dropped
        return taken or None

    def _make_context(self) -> otel_context.Context:
        link = self._link
        here = link.pid == os.getpid()
        received = _received(*(link.carrier.get(header) for header in _HEADERS))
        base = otel_context.get_current() if here else received
        parent = trace.get_current_span(received).get_span_context()
        if here and not link.exact:  # the id of the chunk's span is not known yet
            return trace.set_span_in_context(trace.NonRecordingSpan(parent), base)
        flags = parent.trace_flags
        if here and link.sampled:
            self._granted = link.grant()
            flags = flags if self._granted else _UNSAMPLED
        span_context = trace.SpanContext(
            trace_id=parent.trace_id,
            span_id=chunk_span_id(parent.span_id, self._chunk_id),
            is_remote=False,
            trace_flags=flags,
            trace_state=parent.trace_state,
        )
        self._span = _ChunkSpan(span_context, recording=link.sampled)
        return trace.set_span_in_context(self._span, base)


def use_in_worker(link: TraceLink, provider_at_start: Any) -> None:
    """Prepare a worker process, before the user's function is loaded.

    A provider that the user's code sets there takes precedence over ours, also later.

    Args:
        link: that of the execution whose function is about to be loaded.
        provider_at_start: the provider, without exporters, that automatic instrumentation set up
            when the process started; None where there was none, or one that exports.
    """
    if not link.capture:
        return
    if trace._TRACER_PROVIDER is None:
        # Not set_tracer_provider(): it works once per process, which is left to the user.
        trace._TRACER_PROVIDER = worker_provider
    elif trace._TRACER_PROVIDER is provider_at_start:
        worker_provider.also_capture(provider_at_start)


class _Spans:
    """Spans that ended in the chunks of one thread: a worker of Dask may have several."""

    __slots__ = ("dropped", "ended", "most")

    def __init__(self) -> None:
        self.ended: list[tuple[Any, ...]] = []
        self.dropped = 0
        self.most = 0


_spans: ContextVar[_Spans | None] = ContextVar("amorsize_spans", default=None)


class WorkerProvider(trace.TracerProvider):
    """Keeps spans that end in this worker process until their chunk is done.

    The SDK makes the spans. It is loaded with the first tracer: a function without one never waits
    for it.
    """

    def __init__(self) -> None:
        self._sdk: trace.TracerProvider | None = None
        self._latest = _Spans()
        self._also: Any = None

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> trace.Tracer:
        if trace._TRACER_PROVIDER is self:
            self.sdk()  # mostly while the function is loaded, and not in the middle of a chunk
        return YieldingTracer(
            self,
            (instrumenting_module_name, instrumenting_library_version, schema_url, attributes),
        )

    def begin(self, link: TraceLink) -> None:
        """Begin a chunk, and keep as many spans as its link allows."""
        spans = _spans.get()
        if spans is None:
            _spans.set(spans := _Spans())
        self._latest = spans
        # Spans that ended between two chunks go with the next one, if that is of the same trace.
        spans.ended = [span for span in spans.ended if span[2] == link.trace_id]
        spans.dropped = 0
        spans.most = link.max_spans if link.sampled else 0

    def take(self) -> tuple[list[tuple[Any, ...]], int]:
        """Return the spans that ended since the last time, and how many were too many."""
        spans = _spans.get() or self._latest
        ended, spans.ended = spans.ended, []
        dropped, spans.dropped = spans.dropped, 0
        return ended, dropped

    def keep(self, span: ReadableSpan) -> None:
        context = span.get_span_context()
        if context is None or not context.trace_flags.sampled:
            return
        # A thread that the function started without its context belongs to the latest chunk.
        spans = _spans.get() or self._latest
        if len(spans.ended) >= spans.most:
            spans.dropped += 1
            return
        spans.ended.append(pack_span(span))

    def also_capture(self, provider: Any) -> None:
        """Keep the spans of an SDK's provider as well."""
        if self._also is not provider and hasattr(provider, "add_span_processor"):
            self._also = provider
            provider.add_span_processor(_capture(self))

    def sdk(self) -> trace.TracerProvider:
        if self._sdk is None:
            # Handlers of a fork run in the order in which they were registered, and the SDK's
            # takes a lock in the child that only this module's has renewed: without it a
            # function that forks would hang its child.
            import concurrent.futures.thread  # noqa: F401

            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import SpanLimits, TracerProvider
            from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased

            # The parent's sampler, limits, resource and processors apply there.
            many = 1000
            sdk = TracerProvider(
                sampler=ParentBased(ALWAYS_ON),
                resource=Resource.get_empty(),
                shutdown_on_exit=False,
                span_limits=SpanLimits(max_span_attributes=many, max_events=many, max_links=many),
            )
            sdk.add_span_processor(_capture(self))
            self._sdk = sdk
        return self._sdk


class SdkProvider(Protocol):
    """A provider whose spans one of the SDK's makes."""

    def sdk(self) -> trace.TracerProvider: ...


class YieldingTracer(trace.Tracer):
    """Gives way to the provider that the user's code sets, whenever it does."""

    def __init__(self, provider: SdkProvider, scope: tuple[Any, ...]) -> None:
        self._provider = provider
        self._scope = scope
        self._by: tuple[Any, trace.Tracer] | None = None

    def __reduce__(self) -> Any:
        return trace.get_tracer, _arguments_of_get_tracer(*self._scope)

    def start_span(self, *args: Any, **kwargs: Any) -> trace.Span:
        return self._tracer().start_span(*args, **kwargs)

    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Any:
        return self._tracer().start_as_current_span(*args, **kwargs)

    def _tracer(self) -> trace.Tracer:
        provider: Any = trace.get_tracer_provider()
        if provider is self._provider:
            provider = self._provider.sdk()
        if self._by is None or self._by[0] is not provider:
            self._by = provider, provider.get_tracer(*self._scope)
        return self._by[1]


worker_provider = WorkerProvider()


def _capture(provider: WorkerProvider) -> Any:
    from opentelemetry.sdk.trace import SpanProcessor

    class Capture(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            provider.keep(span)

    return Capture()


def pack_span(span: ReadableSpan) -> tuple[Any, ...]:
    """Turn a span that ended into plain values, which are picklable everywhere.

    Returns:
        ``(name, kind, trace_id, span_id, parent_id, start, end, attributes, events, links,
        status, scope)``; ``parent_id`` 0 for a root, times in ns since the epoch.
    """
    context, parent, scope = span.context, span.parent, span.instrumentation_scope
    return (
        span.name,
        span.kind.value,
        context.trace_id,
        context.span_id,
        0 if parent is None else parent.span_id,
        span.start_time,
        span.end_time,
        dict(span.attributes or {}),
        [(event.name, event.timestamp, dict(event.attributes or {})) for event in span.events],
        [
            (each.context.trace_id, each.context.span_id, dict(each.attributes or {}))
            for each in span.links
        ],
        (span.status.status_code.value, span.status.description),
        (
            ("", None, None, None)
            if scope is None
            else (scope.name, scope.version, scope.schema_url, dict(scope.attributes or {}))
        ),
    )


class _ChunkSpan(trace.Span):
    """The chunk's span, as the function sees it; the parent makes the real one afterwards."""

    def __init__(self, context: trace.SpanContext, *, recording: bool) -> None:
        self._context = context
        self._recording = recording
        self._attributes: dict[str, Any] = {}
        self._events: list[tuple[str, int, dict[str, Any]]] = []
        self._status: tuple[int, str | None] | None = None

    def take(self) -> dict[str, Any]:
        self._recording = False
        taken = {
            "attributes": self._attributes,
            "events": self._events,
            "status": self._status,
        }
        return {name: value for name, value in taken.items() if value}

    def get_span_context(self) -> trace.SpanContext:
        return self._context

    def is_recording(self) -> bool:
        return self._recording

    def end(self, end_time: int | None = None) -> None:
        """Do nothing: the span ends with its chunk."""

    def set_attributes(self, attributes: Mapping[str, AnyValue]) -> None:
        for name, value in attributes.items():
            self.set_attribute(name, value)

    def set_attribute(self, key: str, value: AnyValue) -> None:
        if self._recording and (key in self._attributes or len(self._attributes) < MAX_EVENTS):
            self._attributes[key] = _plain(value)

    def add_event(
        self, name: str, attributes: Attributes = None, timestamp: int | None = None
    ) -> None:
        if self._recording and len(self._events) < MAX_EVENTS:
            plain = {key: _plain(value) for key, value in (attributes or {}).items()}
            self._events.append((name, timestamp or time.time_ns(), plain))

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        kind = type(exception)
        is_builtin = kind.__module__ == "builtins"
        described = {
            "exception.type": ("" if is_builtin else f"{kind.__module__}.") + kind.__qualname__,
            "exception.message": str(exception),
            "exception.stacktrace": "".join(traceback.format_exception(exception)),
            **(attributes or {}),
        }
        self.add_event("exception", described, timestamp)

    def set_status(self, status: Any, description: str | None = None) -> None:
        if isinstance(status, trace.Status):
            status, description = status.status_code, status.description
        if self._recording and isinstance(status, trace.StatusCode):  # else the SDK warns, too
            self._status = (status.value, description)

    def update_name(self, name: str) -> None:
        """Do nothing: names of spans should not vary."""


_HEADERS = ("traceparent", "tracestate", "baggage")


@lru_cache(maxsize=64)  # the same for every chunk of an execution
def _received(*headers: str | None) -> otel_context.Context:
    """Return the context of a link's headers, whatever propagators this process has."""
    carrier = {name: value for name, value in zip(_HEADERS, headers, strict=True) if value}
    received = TraceContextTextMapPropagator().extract(carrier, otel_context.Context())
    return W3CBaggagePropagator().extract(carrier, received)


_PLAIN = (str, bool, int, float, bytes)


def _plain(value: Any) -> Any:
    """Return a value that an attribute may have, and that is certainly picklable."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Iterable):
        return tuple(each if isinstance(each, _PLAIN) else str(each) for each in value)
    return str(value)


def _arguments_of_get_tracer(
    name: str, version: str | None, schema_url: str | None, attributes: Any
) -> tuple[Any, ...]:
    return name, version, None, schema_url, attributes


def make_tracers_picklable() -> None:
    """Make functions that hold a tracer picklable: the worker gets its own tracer of that name."""
    try:
        from opentelemetry.sdk.trace import Tracer
    except ImportError:
        return
    copyreg.pickle(Tracer, _reduce_tracer)


def _reduce_tracer(tracer: Any) -> Any:
    scope = tracer._instrumentation_scope
    attributes = dict(scope.attributes or {}) or None
    arguments = _arguments_of_get_tracer(scope.name, scope.version, scope.schema_url, attributes)
    return trace.get_tracer, arguments
