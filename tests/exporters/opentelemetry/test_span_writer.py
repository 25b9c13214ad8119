"""Spans written after the fact, through providers of several kinds."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    DEFAULT_ON,
    Decision,
    SamplingResult,
    StaticSampler,
)
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, TraceFlags, TraceState
from waiting import PATIENCE

from amorsize.exporters.opentelemetry.span_budget import ChunkRecord
from amorsize.exporters.opentelemetry.span_writer import SpanWriter, exception_event
from amorsize.workers.otel_context import pack_span
from amorsize.workers.trace_link import chunk_span_id

from ..spans import HiddenProvider, attributes, parent_id

SCOPE = ("amorsize", "9.9", "https://schema", None)
TRACE = 0xABCDEF
EXECUTION = SpanContext(
    TRACE,
    0x77,
    is_remote=False,
    trace_flags=TraceFlags(TraceFlags.SAMPLED),
    trace_state=TraceState([("vendor", "1")]),
)


class Written:
    """A writer, and what it wrote."""

    def __init__(self, *, hidden: bool = False, **options: Any) -> None:
        self._kept = InMemorySpanExporter()
        self.provider = TracerProvider(
            shutdown_on_exit=False, resource=Resource({"service.name": "tests"}), **options
        )
        self.provider.add_span_processor(SimpleSpanProcessor(self._kept))
        used = HiddenProvider(self.provider) if hidden else self.provider
        self.writer = SpanWriter(used, SCOPE)

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._kept.get_finished_spans())

    def named(self, name: str) -> ReadableSpan:
        (span,) = [span for span in self.spans if span.name == name]
        return span


def record(chunk_id: int = 0, *, failure: Any = None, **returned: Any) -> ChunkRecord:
    return ChunkRecord(chunk_id, 1000, 2000, {"amorsize.chunk.id": chunk_id}, failure, returned)


def packed(
    name: str,
    span_id: int,
    parent: int,
    *,
    start: int = 1100,
    end: int = 1200,
    trace_id: int = TRACE,
    scope: Any = ("user", "1", None, {}),
    **others: Any,
) -> tuple[Any, ...]:
    parts = {"kind": 0, "attributes": {}, "events": [], "links": [], "status": (0, None), **others}
    return (
        name,
        parts["kind"],
        trace_id,
        span_id,
        parent,
        start,
        end,
        parts["attributes"],
        parts["events"],
        parts["links"],
        parts["status"],
        scope,
    )


def test_a_span_has_the_ids_that_it_is_given() -> None:
    """With the scope, the resource and the times."""
    written = Written()
    assert written.writer.exact
    context = written.writer.write(
        "late",
        trace_id=TRACE,
        span_id=0x1234,
        parent=EXECUTION,
        start=10,
        end=20,
        attributes={"a": 1},
    )
    (span,) = written.spans
    assert (span.context.trace_id, span.context.span_id) == (TRACE, 0x1234)
    assert context == span.context
    assert parent_id(span) == 0x77
    assert span.context.trace_state == EXECUTION.trace_state
    assert (span.start_time, span.end_time, attributes(span)) == (10, 20, {"a": 1})
    assert span.resource.attributes == {"service.name": "tests"}
    scope = span.instrumentation_scope
    assert scope is not None
    assert (scope.name, scope.version, scope.schema_url) == SCOPE[:3]


def test_an_end_before_the_start_is_set_to_it() -> None:
    """A duration below nought would be accepted silently, and break what shows it."""
    written = Written()
    written.writer.write(
        "back", trace_id=TRACE, span_id=1, parent=None, start=20, end=10, attributes={}
    )
    (span,) = written.spans
    assert (span.start_time, span.end_time) == (20, 20)


def test_the_applications_own_spans_keep_their_ids() -> None:
    """The generator of preset ids is in a copy of the tracer alone."""
    written = Written()
    written.writer.write(
        "ours", trace_id=TRACE, span_id=1, parent=None, start=1, end=2, attributes={}
    )
    for _ in range(2):
        written.provider.get_tracer(*SCOPE).start_span("theirs").end()
        written.writer.tracer.start_span("as it happens").end()
    ids = [(span.context.trace_id, span.context.span_id) for span in written.spans]
    assert len(set(ids)) == 5
    assert ids.count((TRACE, 1)) == 1


def test_a_failed_chunk() -> None:
    """Its attributes win over those that the function set; its event is the last."""
    written = Written()
    failure = ("KeyError", "'x'", "Traceback: KeyError")
    returned = {
        "attributes": {"rows": 3, "amorsize.chunk.id": 99},
        "events": [("loaded", 1500, {"bytes": 7})],
        "status": (1, None),
    }
    count = written.writer.write_chunk(record(4, failure=failure, **returned), EXECUTION, None)
    assert count == 1
    (span,) = written.spans
    assert span.context.span_id == chunk_span_id(0x77, 4)
    assert attributes(span) == {"rows": 3, "amorsize.chunk.id": 4}
    assert [(event.name, event.timestamp) for event in span.events] == [
        ("loaded", 1500),
        ("exception", 2000),
    ]
    assert dict(span.events[1].attributes or {}) == {
        "exception.type": "KeyError",
        "exception.message": "'x'",
        "exception.stacktrace": "Traceback: KeyError",
    }
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "KeyError: 'x'")
    assert exception_event(*failure, 5)[:2] == ("exception", 5)


@pytest.mark.parametrize(
    ("status", "code", "description"),
    [
        ((0, None), StatusCode.UNSET, None),
        ((1, None), StatusCode.OK, None),
        ((1, "fine"), StatusCode.OK, None),
        ((2, "bad"), StatusCode.ERROR, "bad"),
    ],
)
def test_the_status_that_the_function_set(
    status: Any, code: StatusCode, description: str | None
) -> None:
    """Only an error has a description."""
    written = Written()
    written.writer.write_chunk(record(status=status), EXECUTION, None)
    (span,) = written.spans
    assert (span.status.status_code, span.status.description) == (code, description)


def test_a_chunk_lasts_as_long_as_its_spans() -> None:
    """Spans of other traces do not count, nor do those of earlier chunks that ended late."""
    written = Written()
    own = chunk_span_id(0x77, 0)
    spans = [
        packed("early", 1, own, start=900),
        packed("late", 2, own, end=2500),
        packed("elsewhere", 3, 0, start=1, end=9999, trace_id=5),
        packed("earlier", 4, chunk_span_id(0x77, 8), start=1),
    ]
    assert written.writer.write_chunk(record(spans=spans), EXECUTION, None) == 5
    chunk = written.named("chunk")
    assert (chunk.start_time, chunk.end_time) == (900, 2500)
    for name in ("early", "late"):
        assert parent_id(written.named(name)) == chunk.context.span_id
    live = Written()
    live.writer.write_chunk(record(times=(990, 2100)), EXECUTION, None)
    assert (live.spans[0].start_time, live.spans[0].end_time) == (990, 2100)


@pytest.mark.parametrize("hidden", [False, True])
def test_the_tree_is_right_with_either_source_of_ids(hidden: bool) -> None:
    """Also where children end, and are listed, before their parents."""
    written = Written(hidden=hidden)
    assert written.writer.exact is not hidden
    own = chunk_span_id(0x77, 0)
    spans = [
        packed("inner", 3, 2, start=1120, end=1150),
        packed("outer", 2, own, start=1110, end=1160),
        packed("sibling", 4, own, start=1170, end=1180),
        packed("at once, inner", 8, 7, start=1185, end=1185),
        packed("at once, outer", 7, own, start=1185, end=1185),
        packed("root", 5, 0, trace_id=99, start=1190, end=1195),
        packed("below the root", 6, 5, trace_id=99, start=1191, end=1192),
    ]
    written.writer.write_chunk(record(spans=spans), EXECUTION, None)
    chunk = written.named("chunk")
    assert parent_id(chunk) == 0x77
    assert parent_id(written.named("sibling")) == chunk.context.span_id
    for prefix in ("", "at once, "):
        outer = written.named(f"{prefix}outer")
        assert parent_id(outer) == chunk.context.span_id
        assert parent_id(written.named(f"{prefix}inner")) == outer.context.span_id
    root = written.named("root")
    assert root.parent is None
    assert root.context.trace_id != TRACE
    assert parent_id(written.named("below the root")) == root.context.span_id
    assert written.named("below the root").context.trace_id == root.context.trace_id
    if not hidden:
        assert [written.named(name).context.span_id for name in ("inner", "root")] == [3, 5]
        assert root.context.trace_id == 99


def test_spans_of_an_earlier_chunk_keep_its_parent() -> None:
    """They ended late, and rode with another chunk."""
    written = Written()
    earlier = chunk_span_id(0x77, 0)
    written.writer.write_chunk(record(1, spans=[packed("late", 9, earlier)]), EXECUTION, None)
    assert parent_id(written.named("late")) == earlier


def test_spans_whose_parents_were_dropped_stay_in_the_tree() -> None:
    """They are adopted by the chunk; where nothing was dropped, none is."""
    written = Written()
    spans = [packed("inside", 9, 8), packed("other trace", 7, 6, trace_id=99)]
    written.writer.write_chunk(record(spans=spans, dropped=3), EXECUTION, None)
    assert parent_id(written.named("inside")) == written.named("chunk").context.span_id
    assert parent_id(written.named("other trace")) == 6


def test_a_span_goes_there_and_back_unchanged() -> None:
    """What is packed in a worker is what the parent's processors see."""
    worker = Written()
    linked = SpanContext(0xA, 0xB, is_remote=True)
    tracer = worker.provider.get_tracer("library", "1.2", "https://library", {"tier": "gold"})
    parent = trace.set_span_in_context(trace.NonRecordingSpan(EXECUTION))
    span = tracer.start_span(
        "call",
        parent,
        SpanKind.PRODUCER,
        {"list": ["a", "b"], "flag": True, "ratio": 0.5},
        [trace.Link(linked, {"why": "batch"})],
        start_time=1100,
    )
    span.add_event("sent", {"bytes": 3}, 1110)
    span.set_status(StatusCode.ERROR, "refused")
    span.end(1200)
    (before,) = worker.spans
    written = Written()
    written.writer.write_chunk(record(spans=[pack_span(before)]), EXECUTION, None)
    after = written.named("call")
    assert pack_span(after) == pack_span(before)
    assert after.kind is SpanKind.PRODUCER
    assert [link.context.span_id for link in after.links] == [0xB]


def test_limits_of_the_provider_apply() -> None:
    """Attributes, events and links, and the length of values."""
    limits = SpanLimits(max_span_attributes=2, max_events=1, max_links=1, max_attribute_length=3)
    written = Written(span_limits=limits)
    many = packed(
        "many",
        3,
        chunk_span_id(0x77, 0),
        attributes={"a": "long enough", "b": 2, "c": 3},
        events=[("first", 1101, {}), ("second", 1102, {})],
        links=[(1, 2, {}), (3, 4, {})],
    )
    written.writer.write_chunk(record(spans=[many]), EXECUTION, None)
    span = written.named("many")
    assert (len(attributes(span)), len(span.events), len(span.links)) == (2, 1, 1)
    assert (span.dropped_attributes, span.dropped_events, span.dropped_links) == (1, 1, 1)


@pytest.mark.parametrize("sampled", [True, False])
def test_the_sampler_of_the_provider_applies(sampled: bool) -> None:
    """Nothing is written that it does not want."""
    written = Written(sampler=DEFAULT_ON if sampled else ALWAYS_OFF)
    spans = [packed("inside", 9, chunk_span_id(0x77, 0), events=[("e", 1, {})])]
    written.writer.write_chunk(record(spans=spans), EXECUTION, None)
    assert len(written.spans) == (2 if sampled else 0)


def test_processors_see_the_baggage_of_the_caller() -> None:
    """Some copy it to attributes."""
    seen: list[Any] = []

    class Reading(SpanProcessor):
        def on_start(self, span: Any, parent_context: Context | None = None) -> None:
            seen.append(baggage.get_baggage("tenant", parent_context))

    written = Written()
    written.provider.add_span_processor(Reading())
    around = baggage.set_baggage("tenant", "acme", Context())
    spans = [packed("inside", 9, chunk_span_id(0x77, 0))]
    written.writer.write_chunk(record(spans=spans), EXECUTION, around)
    assert seen == ["acme", "acme"]


def test_several_threads_do_not_mix_up_ids() -> None:
    """Executions end at the same time."""
    written = Written()

    def write(first: int) -> None:
        for number in range(first, first + 200):
            written.writer.write(
                str(number),
                trace_id=number,
                span_id=number,
                parent=None,
                start=1,
                end=2,
                attributes={},
            )

    threads = [threading.Thread(target=write, args=(1000 * each,)) for each in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(written.spans) == 800
    for span in written.spans:
        assert int(span.name) == span.context.trace_id == span.context.span_id


def test_a_span_that_is_written_amid_another_does_not_mix_up_ids() -> None:
    """As a signal handler does that ends a stream; nothing waits for the other."""
    others = iter([2, 3])

    class Interrupted(StaticSampler):
        def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
            for number in others:
                write(number)
            return super().should_sample(*args, **kwargs)

    written = Written(sampler=Interrupted(Decision.RECORD_AND_SAMPLE))

    def write(number: int) -> None:
        written.writer.write(
            str(number),
            trace_id=number,
            span_id=number,
            parent=None,
            start=1,
            end=2,
            attributes={},
        )

    thread = threading.Thread(target=write, args=(1,), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert sorted(span.name for span in written.spans) == ["1", "2", "3"]
    for span in written.spans:
        assert int(span.name) == span.context.trace_id == span.context.span_id


@pytest.mark.parametrize("broken", ["chunk", "a"])
def test_one_span_that_a_processor_chokes_on_takes_no_other_along(broken: str) -> None:
    """What it raised is raised when all have been written."""

    class Choking(SpanProcessor):
        def on_start(self, span: Any, parent_context: Context | None = None) -> None:
            if span.name == broken:
                raise LookupError(broken)

    written = Written()
    written.provider.add_span_processor(Choking())
    own = chunk_span_id(0x77, 0)
    spans = [packed(name, number, own) for number, name in enumerate("abc", 1)]
    with pytest.raises(LookupError, match=broken):
        written.writer.write_chunk(record(spans=spans), EXECUTION, None)
    assert {span.name for span in written.spans} == {"chunk", "a", "b", "c"} - {broken}
    assert {parent_id(span) for span in written.spans} <= {own, 0x77}


def test_names_and_errors_that_are_no_unicode_can_be_sent() -> None:
    """A lone surrogate, as in the name of a file, would take its whole batch with it."""
    written = Written()
    failure = ("ValueError", "no \udcff", "Traceback: no \udcff")
    spans = [packed("open \udcff", 9, chunk_span_id(0x77, 0), status=(2, "no \udcff"))]
    written.writer.write_chunk(record(spans=spans, failure=failure), EXECUTION, None)
    assert encode_spans(written.spans).SerializeToString()
    assert {span.name for span in written.spans} == {"chunk", "open \\udcff"}
    assert {span.status.description for span in written.spans} == {
        "ValueError: no \\udcff",
        "no \\udcff",
    }
