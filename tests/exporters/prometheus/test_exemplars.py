"""Exemplars: the application's span, when it is current and recording, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from prometheus_client.openmetrics.parser import text_string_to_metric_families

import amorsize
from amorsize.exporters.exemplars import current_trace
from amorsize.exporters.prometheus.exporter import PrometheusExporter
from amorsize.hooks import HookManager

from ..events import Run, fetch

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture
def tracer() -> trace.Tracer:
    return TracerProvider().get_tracer("application")


def exemplars(exporter: PrometheusExporter) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for family in text_string_to_metric_families(fetch(exporter.url, OPENMETRICS)):
        for sample in family.samples:
            if sample.exemplar is not None:
                found.setdefault(family.name, []).append(sample.exemplar)
    return found


def test_chunks_and_executions_carry_the_current_span(
    manager: HookManager, exporter: PrometheusExporter, tracer: trace.Tracer
) -> None:
    """Its ids in hexadecimal digits, with the value and the time; in OpenMetrics only."""
    with tracer.start_as_current_span("job") as span:
        run = Run(manager)
        run.begin()
        run.complete_chunk(3, chunk_time=0.07)
        run.end(elapsed=1.5, timestamp=1000.0)
    context = span.get_span_context()
    ids = {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
    found = exemplars(exporter)
    assert set(found) == {"amorsize_chunk_duration_seconds", "amorsize_execution_duration_seconds"}
    (chunk,), (execution,) = found.values()
    if chunk.value != 0.07:
        chunk, execution = execution, chunk
    assert (chunk.labels, chunk.value) == (ids, 0.07)
    assert (execution.labels, execution.value, float(execution.timestamp)) == (ids, 1.5, 1000.0)
    assert "trace_id" not in fetch(exporter.url)


def test_a_run_in_every_mode_carries_the_span_of_its_caller(
    mode: str, manager: HookManager, exporter: PrometheusExporter, tracer: trace.Tracer
) -> None:
    """Hooks run where the caller's span is current, in stream()'s own thread, too."""
    with tracer.start_as_current_span("job") as span:
        amorsize.execute(abs, range(8), executor=mode, chunksize=4, hooks=manager)
        list(amorsize.stream(abs, range(8), executor=mode, chunksize=4, hooks=manager))
    trace_id = f"{span.get_span_context().trace_id:032x}"
    found = exemplars(exporter)
    assert len(found) == 2
    for each in found.values():
        assert {exemplar.labels["trace_id"] for exemplar in each} == {trace_id}


def test_without_a_recording_span_there_is_no_exemplar(
    manager: HookManager, exporter: PrometheusExporter
) -> None:
    """None at all, one that is not sampled, one that only came from outside."""
    unsampled = TracerProvider(sampler=ALWAYS_OFF).get_tracer("application")
    remote = trace.NonRecordingSpan(trace.SpanContext(5, 6, is_remote=True))
    run = Run(manager)
    run.begin()
    run.complete_chunk(1)
    with unsampled.start_as_current_span("job"):
        run.complete_chunk(1)
    with trace.use_span(remote):
        run.complete_chunk(1)
    run.end()
    assert exemplars(exporter) == {}


class Odd(trace.NonRecordingSpan):
    """Says that it is recording, and more."""

    def __init__(self, context: Any) -> None:
        self.context = context

    def is_recording(self) -> bool:
        return True

    def get_span_context(self) -> Any:
        if isinstance(self.context, Exception):
            raise self.context
        return self.context


@pytest.mark.parametrize(
    "context",
    [
        trace.INVALID_SPAN_CONTEXT,
        RuntimeError("broken"),
        None,
        trace.SpanContext(2**500, 1, is_remote=False),
    ],
    ids=["invalid", "raises", "none", "too long"],
)
def test_an_odd_span_gives_no_exemplar_and_breaks_nothing(context: Any) -> None:
    """Whatever an application's tracing puts there, a chunk is counted."""
    with trace.use_span(Odd(context)):
        assert current_trace() is None


def test_an_exemplar_goes_to_the_registry_of_the_application(
    manager: HookManager, tracer: trace.Tracer
) -> None:
    """Which serves it from its own endpoint."""
    import prometheus_client
    from prometheus_client.openmetrics.exposition import generate_latest

    registry = prometheus_client.CollectorRegistry()
    with PrometheusExporter(registry=registry, listen=False).attach(manager):
        with tracer.start_as_current_span("job"):
            run = Run(manager)
            run.begin()
            run.complete_chunk(1)
        assert b' # {span_id="' in generate_latest(registry).replace(b"{trace_id", b"{span_id")


def test_opentelemetry_is_never_imported() -> None:
    """An application that has a span has imported it."""
    script = (
        "import sys, amorsize\n"
        "with amorsize.enable_prometheus(port=0): amorsize.execute(abs, [1], executor='serial')\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
