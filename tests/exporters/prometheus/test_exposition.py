"""The fast encoder: the same page as prometheus_client's, and flat in memory."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import Any

import prometheus_client
import pytest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from amorsize.exporters.metrics import CHUNK_DURATION, Kind, Metric
from amorsize.exporters.prometheus.exporter import PrometheusExporter
from amorsize.exporters.prometheus.exposition import TextEncoder, exemplar_text, number_text
from amorsize.exporters.series import Exemplar, Histogram
from amorsize.hooks import HookContext, HookEvent, HookManager

from ..events import Run, fetch

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def families(text: str, parse: Any) -> dict[str, Any]:
    return {
        family.name: (
            family.type,
            family.documentation,
            family.unit,
            {
                (sample.name, frozenset(sample.labels.items())): (sample.value, sample.exemplar)
                for sample in family.samples
            },
        )
        for family in parse(text)
    }


@pytest.mark.parametrize(
    ("accept", "library", "parse"),
    [
        ("text/plain", prometheus_client.generate_latest, parse_text),
        (OPENMETRICS, generate_openmetrics, parse_openmetrics),
    ],
    ids=["text", "openmetrics"],
)
def test_the_page_is_that_of_prometheus_client(manager, accept, library, parse) -> None:
    """Name for name, label for label, number for number, in both formats."""
    registry = prometheus_client.CollectorRegistry()
    with PrometheusExporter(port=0, registry=registry).attach(manager) as exporter:
        for number, name in enumerate(["parse", 'a "quoted\\"\nname', "100 %s", "Zürich {le}"]):
            run = Run(manager, execution_id=str(number), function=name)
            run.begin(timestamp=1.7e9 + number)
            run.complete_chunk(3, chunk_time=0.02 * number, queue_time=1e-7)
            run.fail(ValueError("x"))
            if number % 2:
                run.end(elapsed=0.1 + number, timestamp=1.7e9 + number)
        ours = families(fetch(exporter.url, accept), parse)
        theirs = families(library(registry).decode(), parse)
        assert ours == theirs


def test_numbers_are_written_as_prometheus_reads_them() -> None:
    """Infinity and what is no number, too."""
    written = [number_text(value) for value in (3, 0.5, 1e300, 5e-324, float("inf"))]
    assert written == ["3", "0.5", "1e+300", "5e-324", "+Inf"]
    assert [number_text(-float("inf")), number_text(float("nan"))] == ["-Inf", "NaN"]


def test_exemplars_follow_their_bucket_in_openmetrics_alone() -> None:
    """The plain format has no place for them."""
    histogram = Histogram(len(CHUNK_DURATION.buckets))
    histogram.counts[2] = 4
    histogram.exemplars = {2: Exemplar({"trace_id": "ab", "span_id": "cd"}, 0.07, 12.5)}
    series: Any = {CHUNK_DURATION: {("parse", "thread"): histogram}}
    lines = TextEncoder().encode(series, openmetrics=True).splitlines()
    assert (
        'amorsize_chunk_duration_seconds_bucket{executor="thread",function="parse",le="0.1"} 4'
        ' # {trace_id="ab",span_id="cd"} 0.07 12.5'
    ) in lines
    assert sum(" # {" in line for line in lines) == 1
    assert " # {" not in TextEncoder().encode(series)
    assert exemplar_text(Exemplar({"a": '"'}, 1, 2)) == ' # {a="\\""} 1 2'


def test_further_rows_and_further_labels_are_written() -> None:
    """Rows beyond the table come last; labels of the encoder's own are on every series."""
    row = Metric(
        prometheus="amorsize_user_rows_total",
        dotted="amorsize.user.rows",
        kind=Kind.COUNTER,
        help="Rows",
        labels=(),
    )
    text = TextEncoder({"job": "nightly"}).encode({row: {(): 2}})
    assert text.endswith(
        "# HELP amorsize_user_rows_total Rows\n# TYPE amorsize_user_rows_total counter\n"
        'amorsize_user_rows_total{job="nightly"} 2\n'
    )


def test_memory_stays_flat_over_a_million_chunks() -> None:
    """With scrapes and changing traces; what is kept is bounded by the labels."""
    context = HookContext(
        HookEvent.ON_CHUNK_COMPLETE,
        chunk_size=1,
        chunk_time=0.02,
        worker_id=0,
        metadata={
            "execution_id": "1",
            "function": "parse",
            "executor_type": "thread",
            "queue_time": 0.01,
        },
    )
    with PrometheusExporter(listen=False).attach(HookManager()) as exporter:
        complete_chunk = exporter.on_chunk_complete
        for _ in itertools.repeat(None, 500_000):
            complete_chunk(context)
        exporter._page.render()
        tracemalloc.start()
        try:
            exporter._page.render()
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()  # it makes everything many times slower
            for _ in itertools.repeat(None, 400_000):
                complete_chunk(context)
            tracemalloc.start()
            for _ in itertools.repeat(None, 100_000):
                complete_chunk(context)
            exporter._page.render()
            after = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert after - before < 50_000
        _, page = exporter._page.render()
        assert b"amorsize_items_processed_total{" in page
        assert b" 1000000\n" in page
