"""Traces inside worker processes, beside tracing that the user's code has set up itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from .otlp import OtlpReceiver, Span, assert_is_one_trace, run_program, shape_of

pytestmark = pytest.mark.e2e

PRELUDE = """
import os, threading
import amorsize
from opentelemetry import baggage, context, trace

def set_provider():
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)

def run(func, **more):
    return amorsize.execute(func, range(8), executor="process", n_jobs=2, chunksize=2, **more)
"""


def user_spans(spans: list[Span]) -> list[Span]:
    return [span for span in spans if span.scope[0] != "amorsize"]


INSTRUMENTED = (
    PRELUDE
    + """
tracer = trace.get_tracer("user")

def work(item):
    with tracer.start_as_current_span("user work"):
        return os.getpid(), [thread.name for thread in threading.enumerate()]

if __name__ == "__main__":
    amorsize.enable_opentelemetry()
    with tracer.start_as_current_span("caller"):
        report(workers=run(work), pid=os.getpid(),
             threads=[thread.name for thread in threading.enumerate()])
"""
)


def test_under_automatic_instrumentation_nothing_arrives_twice(
    tmp_path: Path, otlp_receiver: OtlpReceiver
) -> None:
    """Workers are instrumented too, and export nothing: their spans leave by the parent."""
    environment = otlp_receiver.environment() | {
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_SERVICE_NAME": "nightly",
    }
    launcher = (str(Path(sys.prefix, "bin", "opentelemetry-instrument")), sys.executable)
    ran = run_program(
        tmp_path / "program.py", INSTRUMENTED, environment=environment, launcher=launcher
    )
    assert "OtelBatchSpanRecordProcessor" in ran.said["threads"]  # it is instrumented indeed
    assert {pid for pid, _ in ran.said["workers"]}.isdisjoint([ran.said["pid"]])
    assert [threads for _, threads in ran.said["workers"]] == [["MainThread"]] * 8
    spans = otlp_receiver.spans()
    root = assert_is_one_trace(spans)
    chunk = ("chunk", (("user work", ()), ("user work", ())))
    execution = ("execute __main__.work", (chunk, chunk, chunk, chunk, ("plan", ())))
    assert shape_of(spans, root) == ("caller", (execution,))
    # A provider of a worker's would have an instance id of its own.
    assert len({json.dumps(span.resource) for span in spans}) == 1
    assert spans[0].resource["service.name"] == "nightly"
    points = otlp_receiver.points()
    assert {point.scope[0] for point in points} >= {"amorsize"}
    assert len({json.dumps(point.resource) for point in points}) == 1


def test_a_provider_that_the_function_sets_takes_precedence(
    tmp_path: Path, otlp_receiver: OtlpReceiver
) -> None:
    """Also over tracers that were in use before; its spans are not returned."""
    source = (
        PRELUDE
        + """
tracer = trace.get_tracer("user")

def work(item):
    if not hasattr(trace, "was_set_up"):
        trace.was_set_up = True
        tracer.start_span("early").end()
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
        provider = TracerProvider()
        file = open(os.path.join(directory, str(os.getpid())), "w", buffering=1)
        one_line = lambda span: span.to_json(indent=None) + "\\n"
        exporter = ConsoleSpanExporter(out=file, formatter=one_line)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
        assert trace.get_tracer_provider() is provider
    with tracer.start_as_current_span("user work"):
        return item

if __name__ == "__main__":
    directory = sys.argv[1]
    amorsize.enable_opentelemetry(metrics=False)
    run(work)
"""
    )
    directory = tmp_path / "written"
    directory.mkdir()
    ran = run_program(
        tmp_path / "program.py", source, str(directory), environment=otlp_receiver.environment()
    )
    assert ran.log == ""
    spans = otlp_receiver.spans()
    assert_is_one_trace(spans)
    assert {span.name for span in user_spans(spans)} == {"early"}
    written: list[dict[str, Any]] = [
        json.loads(line) for file in directory.iterdir() for line in file.read_text().splitlines()
    ]
    assert len(written) == 8
    chunks = {f"0x{span.span_id}" for span in spans if span.name == "chunk"}
    assert {each["parent_id"] for each in written} == chunks
    assert {each["context"]["trace_id"] for each in written} == {f"0x{spans[0].trace_id}"}


@pytest.mark.parametrize("propagators", ["tracecontext,baggage", "none"])
@pytest.mark.parametrize("instrument_workers", [True, False])
def test_the_context_crosses_whatever_propagators_there_are(
    tmp_path: Path, otlp_receiver: OtlpReceiver, instrument_workers: bool, propagators: str
) -> None:
    """Trace id and baggage; without instrumentation no span is returned."""
    source = (
        PRELUDE
        + """
def work(item):
    here = trace.get_current_span().get_span_context()
    with trace.get_tracer("user").start_as_current_span("user work") as span:
        inside = span.get_span_context()
    tenant = baggage.get_baggage("tenant")
    return tenant, format(here.trace_id, "032x"), format(here.span_id, "016x"), inside == here

if __name__ == "__main__":
    amorsize.enable_opentelemetry(metrics=False, instrument_workers=sys.argv[1] == "True")
    context.attach(baggage.set_baggage("tenant", "a, b = c"))
    report(seen=run(work))
"""
    )
    environment = otlp_receiver.environment() | {"OTEL_PROPAGATORS": propagators}
    ran = run_program(
        tmp_path / "program.py", source, str(instrument_workers), environment=environment
    )
    assert ran.log == ""
    spans = otlp_receiver.spans()
    chunks = {span.attributes["amorsize.chunk.id"]: span for span in spans if span.name == "chunk"}
    for item, (tenant, trace_id, span_id, nothing_opened) in enumerate(ran.said["seen"]):
        chunk = chunks[item // 2]
        assert (tenant, trace_id, span_id) == ("a, b = c", chunk.trace_id, chunk.span_id)
        assert nothing_opened is not instrument_workers
    assert len(user_spans(spans)) == (8 if instrument_workers else 0)


def test_tracers_of_the_main_module_pickle_and_their_spans_come_home(
    tmp_path: Path, otlp_receiver: OtlpReceiver
) -> None:
    """Made before the provider was set, used since or not; and made after it."""
    source = (
        PRELUDE
        + """
unused = trace.get_tracer("unused", "1")
used = trace.get_tracer("used", "2", schema_url="https://schemas.example/2")

class Work:
    def __init__(self, tracer):
        self.tracer = tracer

    def __call__(self, item):
        with self.tracer.start_as_current_span("by attribute"):
            return item

def work(item):
    with unused.start_as_current_span("a"), used.start_as_current_span("b"):
        with after.start_as_current_span("c"):
            return Work(after)(item)

if __name__ == "__main__":
    amorsize.enable_opentelemetry(metrics=False)
    set_provider()
    after = trace.get_tracer("after", "3", attributes={"kind": "late"})
    with used.start_as_current_span("caller"):
        report(results=run(work))
        report(more=run(Work(after)))
"""
    )
    ran = run_program(tmp_path / "program.py", source, environment=otlp_receiver.environment())
    assert ran.log == ""
    assert ran.said == {"results": [*range(8)], "more": [*range(8)]}
    spans = otlp_receiver.spans()
    nested = ("a", (("b", (("c", (("by attribute", ()),)),)),))
    shapes = [
        (f"execute __main__.{name}", (*[("chunk", (inner, inner))] * 4, ("plan", ())))
        for name, inner in (("Work", ("by attribute", ())), ("work", nested))
    ]
    assert shape_of(spans, assert_is_one_trace(spans)) == ("caller", tuple(shapes))
    scopes = {span.name: span.scope for span in user_spans(spans)}
    assert scopes == {
        "caller": ("used", "2", "https://schemas.example/2"),
        "a": ("unused", "1", ""),
        "b": ("used", "2", "https://schemas.example/2"),
        "c": ("after", "3", ""),
        "by attribute": ("after", "3", ""),
    }


def test_of_more_spans_than_are_returned_the_rest_is_counted_and_none_is_orphaned(
    tmp_path: Path, otlp_receiver: OtlpReceiver
) -> None:
    """And what an execution that nobody traces opens in the same workers is not mixed in."""
    source = (
        PRELUDE
        + """
from amorsize.exporters.opentelemetry.exporter import OpenTelemetryExporter

tracer = trace.get_tracer("user")

def work(item):
    with tracer.start_as_current_span("outer"):
        for _ in range(200):
            with tracer.start_as_current_span("inner"):
                pass
    return os.getpid()

def few(item):
    with tracer.start_as_current_span("few"):
        return os.getpid()

if __name__ == "__main__":
    hooks = amorsize.HookManager()
    with OpenTelemetryExporter(metrics=False).attach(hooks):
        report(pids=[run(work, hooks=hooks), run(work), run(few, hooks=hooks)])
"""
    )
    ran = run_program(tmp_path / "program.py", source, environment=otlp_receiver.environment())
    assert ran.log == ""
    arrived = otlp_receiver.spans()
    roots = {span.name: span for span in arrived if not span.parent_id}
    assert roots.keys() == {"execute __main__.work", "execute __main__.few"}
    traced, after = (
        [span for span in arrived if span.trace_id == roots[name].trace_id]
        for name in ("execute __main__.work", "execute __main__.few")
    )
    assert_is_one_trace(traced)
    spans = user_spans(traced)
    assert len(spans) == 4 * 256
    assert roots["execute __main__.work"].attributes["amorsize.spans.dropped"] == 8 * 201 - 4 * 256
    assert_is_one_trace(after)
    assert [span.name for span in user_spans(after)] == ["few"] * 8
    assert roots["execute __main__.few"].attributes["amorsize.spans.dropped"] == 0


def test_what_the_applications_provider_does_it_does_to_spans_from_workers(
    tmp_path: Path, otlp_receiver: OtlpReceiver
) -> None:
    """Its resource, limits and processors, which see the baggage as well."""
    source = (
        PRELUDE
        + """
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

class Tenant(SpanProcessor):
    def on_start(self, span, parent_context=None):
        span.set_attribute("tenant", str(baggage.get_baggage("tenant", parent_context)))

def work(item):
    with trace.get_tracer("user").start_as_current_span("user work") as span:
        span.set_attribute("text", "abcdef" * 100)
        span.add_event("said", {"text": "abcdef" * 100})
    return item

if __name__ == "__main__":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    provider = TracerProvider(
        resource=Resource({"service.name": "shop", "team": "blue"}),
        span_limits=SpanLimits(max_attribute_length=40),
    )
    provider.add_span_processor(Tenant())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    amorsize.enable_opentelemetry(metrics=False, tracer_provider=provider)
    context.attach(baggage.set_baggage("tenant", "blue & co"))
    run(work)
    report(is_global=trace.get_tracer_provider() is provider)
"""
    )
    ran = run_program(tmp_path / "program.py", source, environment=otlp_receiver.environment())
    assert ran.said == {"is_global": False}
    spans = otlp_receiver.spans()
    assert_is_one_trace(spans)
    assert {span.attributes["tenant"] for span in spans} == {"blue & co"}
    assert {(span.resource["service.name"], span.resource["team"]) for span in spans} == {
        ("shop", "blue")
    }
    works = user_spans(spans)
    assert len(works) == 8
    for span in works:
        text = ("abcdef" * 100)[:40]
        assert span.attributes["text"] == text
        assert span.events == [("said", {"text": text})]
