"""Log records made inside the function name their span, also those of workers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .otlp import OtlpReceiver, hex_of, run_program

pytestmark = pytest.mark.e2e

WORK = """
import logging
import amorsize
from opentelemetry import trace

tracer = trace.get_tracer("user")
log = logging.getLogger("work")

def work(item):
    log.warning("item %d", item)
    with tracer.start_as_current_span("user work"):
        log.warning("inside %d", item)
    return item
"""

CORRELATED = (
    WORK
    + """
from opentelemetry._logs import set_logger_provider
from opentelemetry.instrumentation.logging import LoggingInstrumentor
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

class Kept(logging.Handler):
    def emit(self, record):
        kept.append([record.getMessage(), record.otelTraceID, record.otelSpanID])

if __name__ == "__main__":
    kept = []
    logs, spans = InMemoryLogRecordExporter(), InMemorySpanExporter()
    logger_provider, tracer_provider = LoggerProvider(), TracerProvider()
    logger_provider.add_log_record_processor(SimpleLogRecordProcessor(logs))
    tracer_provider.add_span_processor(SimpleSpanProcessor(spans))
    set_logger_provider(logger_provider)
    trace.set_tracer_provider(tracer_provider)
    LoggingInstrumentor().instrument(
        inject_trace_context=True, enable_log_auto_instrumentation=sys.argv[2] != "sdk"
    )
    if sys.argv[2] == "sdk":
        import warnings
        from opentelemetry.sdk._logs import LoggingHandler
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            logging.getLogger().addHandler(LoggingHandler(logger_provider=logger_provider))
    logging.getLogger().addHandler(Kept())
    amorsize.enable_opentelemetry(metrics=False)
    amorsize.execute(work, range(8), executor=sys.argv[1], n_jobs=int(sys.argv[3]), chunksize=2)
    seen = []
    for each in logs.get_finished_logs():
        record = each.log_record
        seen.append([record.body, format(record.trace_id, "032x"), format(record.span_id, "016x")])
    finished = [
        [s.name, format(s.context.trace_id, "032x"), format(s.context.span_id, "016x"),
         s.attributes.get("amorsize.chunk.id"), s.parent and format(s.parent.span_id, "016x")]
        for s in spans.get_finished_spans()
    ]
    report(kept=kept, seen=seen, spans=finished)
"""
)


@pytest.mark.parametrize("handler", ["instrumentation", "sdk"])
@pytest.mark.parametrize("mode", ["serial", "thread", "process"])
def test_records_name_the_span_that_they_were_made_in(
    tmp_path: Path, mode: str, handler: str
) -> None:
    """As attributes of the standard library's records, and as OpenTelemetry's log records."""
    jobs = "1" if mode == "serial" else "2"
    ran = run_program(tmp_path / "program.py", CORRELATED, mode, handler, jobs, environment={})
    (trace_id,) = {span[1] for span in ran.said["spans"]}
    chunks = {span[3]: span[2] for span in ran.said["spans"] if span[0] == "chunk"}
    users = {span[2]: span[4] for span in ran.said["spans"] if span[0] == "user work"}
    assert (len(chunks), len(users)) == (4, 8)
    for records in (ran.said["kept"], ran.said["seen"]):
        seen = {message: (trace, span) for message, trace, span in records}
        assert len(seen) == len(records) == 16
        for item in range(8):
            assert seen[f"item {item}"] == (trace_id, chunks[item // 2])
            inside_trace, inside_span = seen[f"inside {item}"]
            assert inside_trace == trace_id
            assert users[inside_span] == chunks[item // 2]


def test_under_automatic_instrumentation_records_arrive_once(
    tmp_path: Path, otlp_receiver: OtlpReceiver
) -> None:
    """Those of workers leave by the parent, with the ids of spans that exist."""
    source = (
        WORK
        + """
if __name__ == "__main__":
    amorsize.enable_opentelemetry(metrics=False)
    amorsize.execute(work, range(8), executor="process", n_jobs=2, chunksize=2)
"""
    )
    environment = otlp_receiver.environment() | {
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "otlp",
    }
    launcher = (str(Path(sys.prefix, "bin", "opentelemetry-instrument")), sys.executable)
    run_program(tmp_path / "program.py", source, environment=environment, launcher=launcher)
    records = [
        record
        for request in otlp_receiver.requests("logs")
        for of_resource in request["resource_logs"]
        for of_scope in of_resource["scope_logs"]
        for record in of_scope["log_records"]
        if of_scope["scope"]["name"] == "work"
    ]
    bodies = sorted(record["body"]["string_value"] for record in records)
    assert bodies == sorted(f"{word} {item}" for item in range(8) for word in ("item", "inside"))
    names = {(span.trace_id, span.span_id): span.name for span in otlp_receiver.spans()}
    for record in records:
        name = names[hex_of(record["trace_id"]), hex_of(record["span_id"])]
        inside = record["body"]["string_value"].startswith("inside")
        assert name == ("user work" if inside else "chunk")
