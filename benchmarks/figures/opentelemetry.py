"""The OpenTelemetry exporter: the cost of a chunk with a span and metrics.

Spans go through the SDK's batch processor, as in production, to an exporter that drops them. The
peer is the same run with hooks that do nothing, and for the span alone the SDK itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

import amorsize
from amorsize import HookContext, HookEvent, HookManager
from amorsize.exporters.opentelemetry.exporter import OpenTelemetryExporter
from benchmarks.harness import Contender, Contenders, figure, timed

CHUNKS = 500
CHUNK_SECONDS = 0.2
"""The default of ``target_chunk_duration``."""


@figure(
    "opentelemetry-traced",
    "a chunk with a span",
    unit="µs",
    difference=True,
    at_most=60.0,
    against="hooks that do nothing",
)
def traced() -> Contenders:
    with _exporting(metrics=False) as (manager, provider):
        yield {
            "amorsize": _run(manager),
            "hooks that do nothing": _run(_idle()),
            "the SDK's span alone": timed(_sdk_spans(provider), per=CHUNKS),
        }


@figure(
    "opentelemetry-untraced",
    "a chunk beyond the budget of spans",
    unit="µs",
    difference=True,
    against="hooks that do nothing",
)
def untraced() -> Contenders:
    with _exporting(metrics=False, max_chunk_spans=0) as (manager, _):
        yield {"amorsize": _run(manager), "hooks that do nothing": _run(_idle())}


@figure(
    "opentelemetry-all",
    "a chunk with a span and metrics",
    unit="µs",
    difference=True,
    at_most=1000.0,  # half a percent of a chunk
    against="hooks that do nothing",
    share_of=CHUNK_SECONDS,
)
def everything() -> Contenders:
    with _exporting() as (manager, _):
        yield {"amorsize": _run(manager), "hooks that do nothing": _run(_idle())}


class _Dropped(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


@contextmanager
def providers() -> Iterator[dict[str, Any]]:
    """The application's providers, as arguments of the exporter."""
    tracer_provider = TracerProvider(shutdown_on_exit=False)
    tracer_provider.add_span_processor(BatchSpanProcessor(_Dropped()))
    meter_provider = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    try:
        yield {"tracer_provider": tracer_provider, "meter_provider": meter_provider}
    finally:
        tracer_provider.shutdown()
        meter_provider.shutdown()


@contextmanager
def _exporting(**settings: Any) -> Iterator[tuple[HookManager, TracerProvider]]:
    manager = HookManager()
    with (
        providers() as those,
        OpenTelemetryExporter(**those, **settings).attach(manager),
    ):
        yield manager, those["tracer_provider"]


def _sdk_spans(provider: TracerProvider) -> Any:
    tracer = provider.get_tracer("benchmark")
    attributes = {f"attribute.{number}": number for number in range(12)}

    def spans() -> None:
        for _ in range(CHUNKS):
            tracer.start_span("chunk", attributes=attributes).end()

    return spans


def _run(manager: HookManager) -> Contender:
    def run() -> object:
        return amorsize.execute(abs, range(CHUNKS), executor="serial", chunksize=1, hooks=manager)

    return timed(run, per=CHUNKS)


def _idle() -> HookManager:
    manager = HookManager()
    for event in HookEvent:
        manager.register(event, _do_nothing)
    return manager


def _do_nothing(context: HookContext) -> None:
    pass
