"""A tracer provider that keeps what ends, an exporter that uses it, and what any trace must be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Sampler
from waiting import PATIENCE

import amorsize
from amorsize import HookEvent, HookManager
from amorsize.exporters.opentelemetry.exporter import OpenTelemetryExporter
from amorsize.testing import RecordingHook


class HiddenProvider(trace.TracerProvider):
    """Makes real spans by tracers without an ``id_generator``."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider

    def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
        return _HiddenTracer(self._provider.get_tracer(*args, **kwargs))


class _HiddenTracer(trace.Tracer):
    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def __reduce__(self) -> Any:
        return trace.get_tracer, ("hidden",)

    def start_span(self, *args: Any, **kwargs: Any) -> trace.Span:
        return self._tracer.start_span(*args, **kwargs)

    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Any:
        return self._tracer.start_as_current_span(*args, **kwargs)


class Traces:
    """Runs executions that are traced, and holds their spans.

    ``user`` is a tracer for the functions that run: they may close over it in every mode.
    """

    def __init__(
        self,
        *,
        sampler: Sampler = DEFAULT_ON,
        hidden: bool = False,
        limits: SpanLimits | None = None,
        **settings: Any,
    ) -> None:
        self._kept = InMemorySpanExporter()
        self.provider = TracerProvider(
            sampler=sampler,
            resource=Resource({"service.name": "tests"}),
            shutdown_on_exit=False,
            span_limits=limits,
        )
        self.provider.add_span_processor(SimpleSpanProcessor(self._kept))
        used = HiddenProvider(self.provider) if hidden else self.provider
        self.user = used.get_tracer("user")
        self.hooks = HookManager()
        self.recorder = RecordingHook().attach(self.hooks)
        self.exporter = OpenTelemetryExporter(
            tracer_provider=used, **{"metrics": False, **settings}
        ).attach(self.hooks)

    def close(self) -> None:
        self.exporter.close()
        self.provider.shutdown()

    def execute(self, func: Callable[..., Any], data: Iterable[Any], **options: Any) -> list[Any]:
        """Run, by default with two items per chunk on two workers."""
        options = {"n_jobs": 2, "chunksize": 2, "hooks": self.hooks, **options}
        return amorsize.execute(func, data, **options)

    def stream(self, func: Callable[..., Any], data: Iterable[Any], **options: Any) -> Any:
        options = {"n_jobs": 2, "chunksize": 2, "hooks": self.hooks, **options}
        return amorsize.stream(func, data, **options)

    @property
    def spans(self) -> list[ReadableSpan]:
        """What has ended, in this order, once nothing is on its way any more."""
        assert self.exporter.flush(PATIENCE)
        return list(self._kept.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    @property
    def execution(self) -> ReadableSpan:
        """The execution's span; there is one."""
        (span,) = [span for span in self.spans if span.name.startswith("execute ")]
        return span

    @property
    def chunks(self) -> list[ReadableSpan]:
        """By their ids."""
        return sorted(self.named("chunk"), key=lambda span: attribute(span, "amorsize.chunk.id"))

    @property
    def chunk(self) -> ReadableSpan:
        """The chunk's span; there is one."""
        (span,) = self.chunks
        return span

    def events(self, span: ReadableSpan, name: str) -> list[dict[str, Any]]:
        return [dict(event.attributes or {}) for event in span.events if event.name == name]

    def check(self) -> None:
        """Check what is true of any finished trace that fits its budget.

        One span an execution and a plan; one a chunk of the events; all of them, and those of
        the functions, in one tree, inside of their parents' times.
        """
        spans = {span.context.span_id: span for span in self.spans}
        assert len(spans) == len(self.spans), "a span has ended twice"
        for span in spans.values():
            parent = span.parent and spans.get(span.parent.span_id)
            assert span.start_time is not None
            assert span.end_time is not None
            assert span.start_time <= span.end_time, span.name
            if span.name in ("plan", "chunk") or (
                span.instrumentation_scope.name == "user" and span.name != "caller"
            ):
                assert parent, f"{span.name} is an orphan"
            if parent:
                assert parent.context.trace_id == span.context.trace_id
                late = (parent.start_time or 0) - span.start_time
                over = span.end_time - (parent.end_time or 0)
                assert max(late, over) <= 0, (
                    f"{span.name} begins {late} ns before, ends {over} ns after {parent.name}"
                )
        ours = [span for span in spans.values() if span.instrumentation_scope.name == "amorsize"]
        ended = Counter(
            attribute(span, "amorsize.execution.id")
            for span in ours
            if span.name.startswith("execute ")
        )
        reported = Counter(
            c.metadata["execution_id"] for c in self.recorder.of(HookEvent.POST_EXECUTE)
        )
        assert ended == reported
        planned = Counter(
            attribute(span, "amorsize.execution.id") for span in ours if span.name == "plan"
        )
        assert planned == reported
        assert self._chunks_of(ours) == self._chunks_reported()

    def _chunks_of(self, spans: list[ReadableSpan]) -> Counter[Any]:
        return Counter(
            (attribute(span, "amorsize.execution.id"), attribute(span, "amorsize.chunk.id"))
            for span in spans
            if span.name == "chunk"
        )

    def _chunks_reported(self) -> Counter[Any]:
        failed = [c for c in self.recorder.of(HookEvent.ON_ERROR) if c.chunk_id is not None]
        reported = [c for c in failed if not c.metadata.get("chunk_completes")]
        reported += self.recorder.of(HookEvent.ON_CHUNK_COMPLETE)
        return Counter((c.metadata["execution_id"], c.chunk_id) for c in reported)


def attribute(span: ReadableSpan, name: str) -> Any:
    return (span.attributes or {}).get(name)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def parent_id(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id
