"""A job that is not scraped: its OTLP becomes the series that dashboards and alerts ask for.

A Prometheus that receives OTLP translates names and attributes by the rules of
https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/ (its default,
``UnderscoreEscapingWithSuffixes``), which ``translated()`` applies here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client.parser import text_string_to_metric_families

import amorsize
from amorsize import HookManager
from amorsize.errors import InvalidTypeError
from amorsize.exporters.metrics import COUNTING_SINCE
from amorsize.exporters.opentelemetry.exporter import OpenTelemetryExporter
from amorsize.exporters.prometheus.exporter import PrometheusExporter

from ..events import fetch
from ..spans import Traces

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]

SINCE = COUNTING_SINCE.prometheus

_UNITS = {"s": "seconds", "By": "bytes"}


def translated(reader: InMemoryMetricReader) -> Series:
    """Read the metrics as the series that Prometheus makes of them."""
    found: Series = {}
    data = reader.get_metrics_data()
    assert data is not None
    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                name = _name(metric)
                for point in metric.data.data_points:
                    labels = {_escaped(key): str(value) for key, value in point.attributes.items()}
                    for series, more, value in _samples(name, point):
                        found[series, frozenset({**labels, **more}.items())] = value
    return found


def _name(metric: Any) -> str:
    kind = type(metric.data).__name__
    unit = re.sub(r"\{.*?\}", "", metric.unit or "")
    words = [_escaped(metric.name)]
    if (metric.unit or "").endswith("/s"):
        words.append("per_second")
    elif unit == "1" and kind == "Gauge":
        words.append("ratio")
    elif unit in _UNITS:
        words.append(_UNITS[unit])
    if kind == "Sum" and metric.data.is_monotonic:
        words.append("total")
    first, *suffixes = words
    return "_".join([first, *(each for each in suffixes if not first.endswith(f"_{each}"))])


def _samples(name: str, point: Any) -> Iterator[tuple[str, dict[str, str], float]]:
    if not hasattr(point, "bucket_counts"):
        yield name, {}, point.value
        return
    reached = 0
    for bound, count in zip([*point.explicit_bounds, "+Inf"], point.bucket_counts, strict=True):
        reached += count
        yield f"{name}_bucket", {"le": str(bound)}, reached
    yield f"{name}_count", {}, point.count
    yield f"{name}_sum", {}, point.sum


def _escaped(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_:]", "_", name)


def scraped(url: str) -> Series:
    """The series of a page."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(fetch(url))
        for sample in family.samples
    }


def work(item: int) -> int:
    amorsize.count("rows")
    amorsize.set_gauge("left", item)
    if item == 7:
        raise ValueError(item)
    return item


@pytest.fixture
def both() -> Iterator[Callable[..., tuple[Series, Series]]]:
    """Run jobs, and give what OTLP becomes and what a scrape shows."""
    reader, hooks = InMemoryMetricReader(), HookManager()
    provider = MeterProvider([reader], shutdown_on_exit=False)

    def run(**settings: Any) -> tuple[Series, Series]:
        otlp = OpenTelemetryExporter(meter_provider=provider, traces=False, **settings)
        with otlp.attach(hooks), PrometheusExporter(port=0).attach(hooks) as prometheus:
            amorsize.execute(
                work, range(10), executor="thread", n_jobs=2, hooks=hooks, return_exceptions=True
            )
            with pytest.raises(ValueError, match="7"):
                amorsize.execute(work, range(10), executor="serial", hooks=hooks)
            return translated(reader), scraped(prometheus.url)

    yield run
    provider.shutdown()


def without_exporters(series: Series) -> Series:
    """Leave out what each exporter counts of itself alone, and since when."""
    own = ("amorsize_hook_", "amorsize_exporter_", SINCE)
    return {
        (name, labels): value
        for (name, labels), value in series.items()
        if not name.startswith(own)
    }


def test_otlp_becomes_the_series_of_a_scrape(both: Callable[..., tuple[Series, Series]]) -> None:
    """Name by name, label by label, and with the same values."""
    otlp, page = both(prometheus_labels=True)
    ours, theirs = without_exporters(otlp), without_exporters(page)
    # A histogram that has observed nothing exists on a page, and not in OTLP.
    unobserved = {key for key in theirs.keys() - ours.keys() if not theirs[key]}
    assert {name for name, _ in unobserved} <= {
        f"amorsize_{row}_{part}"
        for row in ("execution_duration_seconds", "chunk_queue_seconds", "chunk_duration_seconds")
        for part in ("bucket", "count", "sum")
    }
    assert ours == {key: value for key, value in theirs.items() if key not in unobserved}
    for prefix in ("amorsize_hook_", "amorsize_exporter_", SINCE):
        names = {(name, frozenset(k for k, _ in labels)) for name, labels in otlp}
        assert {each for each in names if each[0].startswith(prefix)} == {
            (name, frozenset(k for k, _ in labels))
            for name, labels in page
            if name.startswith(prefix)
        }


def test_without_it_labels_have_the_names_of_the_conventions(
    both: Callable[..., tuple[Series, Series]],
) -> None:
    """Which no rule and no panel asks for."""
    otlp, _ = both()
    labels = {key for _, pairs in otlp for key, _ in pairs}
    assert {"code_function_name", "amorsize_executor", "amorsize_status"} <= labels
    assert not labels & {"function", "executor", "status"}


def test_enabled_again_the_names_are_those_asked_for_now(
    both: Callable[..., tuple[Series, Series]],
) -> None:
    """The instruments are the meter's, and stay."""
    both()
    otlp, _ = both(prometheus_labels=True)
    [total] = [
        value
        for (name, labels), value in otlp.items()
        if name == "amorsize_items_processed_total"
        and {("function", f"{__name__}.work"), ("executor", "thread")} <= labels
    ]
    assert total == 10


def test_it_is_a_switch() -> None:
    """Any other value is refused."""
    with pytest.raises(InvalidTypeError, match="prometheus_labels must be True or False; got 'x'"):
        OpenTelemetryExporter(prometheus_labels="x")  # type: ignore[arg-type]


def test_the_attributes_of_spans_stay_those_of_the_conventions() -> None:
    """They are no labels of Prometheus."""
    traces = Traces(prometheus_labels=True)
    traces.execute(abs, [1, 2], executor="serial", name="absolute")
    assert (traces.execution.attributes or {})["code.function.name"] == "absolute"
    traces.close()
