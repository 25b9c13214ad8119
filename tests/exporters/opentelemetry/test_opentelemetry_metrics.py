"""The metric table and the users' numbers, as a reader of the application's meter provider sees."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    InMemoryMetricReader,
    Sum,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramData
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

import amorsize
from amorsize import HookEvent, __version__
from amorsize.exporters import metrics, series
from amorsize.exporters.metrics import ATTRIBUTES, METRICS, Kind, Metric
from amorsize.exporters.opentelemetry.exporter import OpenTelemetryExporter
from amorsize.exporters.opentelemetry.instruments import Instruments, attributes_of
from amorsize.exporters.totals import LIVE_GAUGES, TotalsExporter
from amorsize.hooks import HookManager
from amorsize.testing import RecordingHook
from amorsize.workers import user_metrics

from ..events import Run

Key = frozenset[tuple[str, Any]]

DELTA = dict.fromkeys((Counter, ObservableCounter, Histogram), AggregationTemporality.DELTA)


class Metered:
    """An exporter with a meter provider that is read by hand."""

    def __init__(self, *, temporality: Any = None, **settings: Any) -> None:
        self.reader = InMemoryMetricReader(preferred_temporality=temporality)
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)
        self.hooks = HookManager()
        self.totals = TotalsExporter().attach(self.hooks)
        self.exporter = OpenTelemetryExporter(
            meter_provider=self.provider, **{"traces": False, **settings}
        ).attach(self.hooks)

    def close(self) -> None:
        self.exporter.close()
        self.totals.close()
        self.provider.shutdown()

    def read(self) -> dict[str, Any]:
        """Collect once: metrics by their names."""
        data = self.reader.get_metrics_data()
        found = {}
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                assert scope.scope.name == "amorsize"
                assert scope.scope.version == __version__
                assert scope.scope.schema_url == "https://opentelemetry.io/schemas/1.37.0"
                for metric in scope.metrics:
                    assert metric.name not in found
                    found[metric.name] = metric
        return found


@pytest.fixture
def metered() -> Iterator[Metered]:
    made = Metered()
    yield made
    made.close()


@pytest.fixture
def make() -> Iterator[Callable[..., Metered]]:
    made: list[Metered] = []

    def make(**settings: Any) -> Metered:
        made.append(Metered(**settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


def points(metric: Any) -> dict[Key, Any]:
    """Data points by their attributes."""
    found = {frozenset(point.attributes.items()): point for point in metric.data.data_points}
    assert len(found) == len(metric.data.data_points)
    return found


def values(metric: Any) -> dict[Key, float]:
    return {key: point.value for key, point in points(metric).items()}


def of_row(row: Metric, series: series.Series) -> dict[Key, Any]:
    """The totals of the same events for a row."""
    found = series.get(row, {})
    return {
        frozenset(zip((ATTRIBUTES[label] for label in row.labels), labels, strict=True)): value
        for labels, value in found.items()
    }


def work(x: int) -> int:
    if x == 3:
        raise ValueError("three")
    return x


def run_all(metered: Metered, mode: str) -> None:
    """Runs of all sorts: every row has a value."""
    options: dict[str, Any] = {"executor": mode, "n_jobs": 2, "chunksize": 2}
    amorsize.execute(str, range(10), hooks=metered.hooks)  # the speedups of a choice are known
    amorsize.execute(abs, range(10), hooks=metered.hooks, **options)
    amorsize.execute(work, range(10), return_exceptions=True, hooks=metered.hooks, **options)
    with pytest.raises(ValueError, match="three"):
        amorsize.execute(work, range(10), hooks=metered.hooks, **options)


def test_every_row_arrives_with_the_values_of_the_events(metered: Metered, mode: str) -> None:
    """Names, units, kinds, attributes and values, as a second exporter adds them up."""

    def count(x: int) -> None:
        amorsize.count("calls")  # without it, nothing can be dropped

    run_all(metered, mode)
    amorsize.execute(count, [1], executor=mode, hooks=metered.hooks)
    found = metered.read()
    series = metered.totals.snapshot()
    assert {row.dotted for row in METRICS} | {"amorsize.user.calls"} == found.keys()
    for row in METRICS:
        metric = found[row.dotted]
        assert metric.unit == row.unit
        assert metric.description == row.help
        expected = of_row(row, series)
        assert expected, row
        if row.kind is not Kind.HISTOGRAM:
            assert values(metric) == expected, row
            continue
        assert isinstance(metric.data, HistogramData)
        for key, point in points(metric).items():
            assert point.explicit_bounds == row.buckets
            assert list(point.bucket_counts) == expected[key].counts
            assert point.count == sum(expected[key].counts)
            assert point.sum == pytest.approx(expected[key].total)
        observed = {key for key, value in expected.items() if sum(value.counts)}
        assert points(metric).keys() == observed


def test_kinds_of_instruments(metered: Metered) -> None:
    """Counters only grow; what adds up over processes is a sum; the rest are gauges."""
    run_all(metered, "serial")
    found = metered.read()
    for row in METRICS:
        if row is metrics.USER_METRICS_DROPPED:
            continue
        data = found[row.dotted].data
        if row.kind is Kind.COUNTER:
            assert isinstance(data, Sum)
            assert data.is_monotonic
            assert data.aggregation_temporality == AggregationTemporality.CUMULATIVE
        elif row in LIVE_GAUGES and row is not metrics.THROUGHPUT:
            assert isinstance(data, Sum)
            assert not data.is_monotonic
        elif row.kind in (Kind.GAUGE, Kind.INFO):
            assert isinstance(data, Gauge)


def test_attributes_have_the_names_of_the_conventions(metered: Metered) -> None:
    """As on the spans."""
    run_all(metered, "serial")
    found = metered.read()
    (errors,) = [
        dict(key)
        for key, value in values(found["amorsize.errors"]).items()
        if value and dict(key)["error.type"] == "ValueError"
    ]
    assert errors == {
        "code.function.name": f"{work.__module__}.work",
        "amorsize.executor": "serial",
        "error.type": "ValueError",
    }
    assert {name for key in points(found["amorsize.executions"]) for name, _ in key} == {
        "code.function.name",
        "amorsize.executor",
        "amorsize.status",
    }
    row = metrics.CHUNK_DURATION
    assert attributes_of(row, ("f", "serial")) == {
        "code.function.name": "f",
        "amorsize.executor": "serial",
    }


def test_gauges_of_executions_in_progress(metered: Metered, mode: str) -> None:
    """They count the executions in progress, and are 0 afterwards."""
    seen: list[dict[str, Any]] = []
    metered.hooks.register(HookEvent.ON_CHUNK_COMPLETE, lambda event: seen.append(metered.read()))
    amorsize.execute(abs, range(6), executor=mode, n_jobs=2, chunksize=2, hooks=metered.hooks)

    def total(found: dict[str, Any], row: Metric) -> float:
        return sum(values(found[row.dotted]).values())

    assert [total(each, metrics.EXECUTIONS_IN_PROGRESS) for each in seen] == [1, 1, 1]
    assert [total(each, metrics.ITEMS_COMPLETED) for each in seen] == [2, 4, 6]
    assert [total(each, metrics.ITEMS_EXPECTED) for each in seen] == [6, 6, 6]
    assert all(total(each, metrics.WORKERS) >= 1 for each in seen)
    assert all(total(each, metrics.THROUGHPUT) > 0 for each in seen)
    after = metered.read()
    assert [total(after, row) for row in LIVE_GAUGES] == [0] * len(LIVE_GAUGES)


def test_one_reading_is_of_one_moment(hooks: HookManager) -> None:
    """All instruments share a snapshot, and the next reading has another."""
    taken: list[int] = []

    def snapshot() -> series.Series:
        taken.append(len(taken))
        labels = ("f", "serial")
        return {row: {labels: float(len(taken))} for row in LIVE_GAUGES}

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    instruments = Instruments(provider.get_meter("test"), snapshot)
    assert instruments
    for reading in (1, 2, 3):
        data: Any = reader.get_metrics_data()
        found = {
            point.value
            for metric in data.resource_metrics[0].scope_metrics[0].metrics
            for point in metric.data.data_points
        }
        assert (found, len(taken)) == ({reading}, reading)
    provider.shutdown()


def test_readings_of_the_interval_add_up(make: Callable[..., Metered], mode: str) -> None:
    """Delta temporality: the shares of all readings together are the totals."""
    metered = make(temporality=DELTA)
    counters = (metrics.EXECUTIONS, metrics.ITEMS_PROCESSED, metrics.ERRORS)
    sums = dict.fromkeys(counters, 0.0)
    chunks = 0
    for _ in range(3):
        run_all(metered, mode)
        found = metered.read()
        for row in counters:
            assert found[row.dotted].data.aggregation_temporality == AggregationTemporality.DELTA
            sums[row] += sum(values(found[row.dotted]).values())
        durations = points(found[metrics.CHUNK_DURATION.dotted])
        chunks += sum(point.count for point in durations.values())
    series: Any = metered.totals.snapshot()
    assert sums == {row: sum(series[row].values()) for row in counters}
    assert sums[metrics.EXECUTIONS] == 12
    assert chunks == sum(sum(each.counts) for each in series[metrics.CHUNK_DURATION].values())


def test_after_close_nothing_more_is_reported(metered: Metered) -> None:
    """Counters and gauges are not asked for; durations are not recorded."""
    run_all(metered, "serial")
    before = metered.read()
    metered.exporter.close()
    run_all(metered, "serial")
    after = metered.read()
    histograms = {row.dotted for row in METRICS if row.kind is Kind.HISTOGRAM}
    assert {name for name, metric in after.items() if metric.data.data_points} <= histograms
    for name in histograms & after.keys():
        assert sum(p.count for p in points(after[name]).values()) == sum(
            p.count for p in points(before[name]).values()
        )


def test_an_exporter_that_is_enabled_again_reports_all_rows(metered: Metered) -> None:
    """Instruments cannot be taken back: it goes on with those of the one that was closed."""

    def count_up(x: int) -> int:
        user_metrics.count("widgets")
        return x

    for runs in (1, 2):
        amorsize.execute(count_up, range(4), executor="serial", hooks=metered.hooks)
        rows = metered.read()
        reported = {metric.dotted for metric in METRICS} & set(rows)
        if runs == 1:
            first = reported
            metered.exporter.close()
            metered.exporter = OpenTelemetryExporter(
                meter_provider=metered.provider, traces=False
            ).attach(metered.hooks)
    assert "amorsize.items.processed" in reported
    assert reported == first
    assert [point.value for point in rows["amorsize.items.processed"].data.data_points] == [4]
    assert [point.value for point in rows["amorsize.user.widgets"].data.data_points] == [4]


def test_metrics_can_be_left_out(make: Callable[..., Metered]) -> None:
    """Nothing is made of a provider that is not used."""
    metered = make(metrics=False)
    amorsize.execute(abs, [1], executor="serial", hooks=metered.hooks)
    assert metered.read() == {}


def test_exemplars_point_to_the_span_of_the_chunk(make: Callable[..., Metered], mode: str) -> None:
    """And those of executions to the execution's: the ids of the events."""
    metered = make(
        traces=True, tracer_provider=TracerProvider(shutdown_on_exit=False), max_chunk_spans=1000
    )
    recorder = RecordingHook().attach(metered.hooks)
    amorsize.execute(abs, range(6), executor=mode, n_jobs=2, chunksize=2, hooks=metered.hooks)
    found = metered.read()
    reported = {
        (context.metadata["trace_id"], context.metadata["span_id"])
        for context in recorder.of(HookEvent.ON_CHUNK_COMPLETE)
    }
    for name in ("amorsize.chunk.duration", "amorsize.chunk.queue"):
        exemplars = [each for p in found[name].data.data_points for each in p.exemplars]
        assert exemplars
        assert {(f"{each.trace_id:032x}", f"{each.span_id:016x}") for each in exemplars} <= reported
    (post,) = recorder.of(HookEvent.POST_EXECUTE)
    for name in ("amorsize.execution.duration", "amorsize.planning.duration"):
        (exemplar,) = [each for p in found[name].data.data_points for each in p.exemplars]
        assert f"{exemplar.trace_id:032x}" == post.metadata["trace_id"]
        assert f"{exemplar.span_id:016x}" == post.metadata["span_id"]


def test_an_unsampled_execution_has_no_exemplars(make: Callable[..., Metered]) -> None:
    """They would point to nothing."""
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    metered = make(traces=True, tracer_provider=provider)
    amorsize.execute(abs, range(6), executor="serial", hooks=metered.hooks)
    for metric in metered.read().values():
        for point in metric.data.data_points:
            assert not getattr(point, "exemplars", ())


# --- the user's own numbers ----


def measure(x: int) -> None:
    amorsize.count("rows", 2, help="Rows that were read")
    amorsize.observe("row_bytes", x)
    amorsize.set_gauge("model", 7)


def test_the_users_numbers_arrive_from_every_mode(metered: Metered, mode: str) -> None:
    """A counter, a gauge, and a histogram as its count, its sum and its buckets."""
    options: dict[str, Any] = {"executor": mode, "n_jobs": 2, "chunksize": 5}
    amorsize.execute(measure, range(20), hooks=metered.hooks, **options)
    found = metered.read()
    key = frozenset(
        {"code.function.name": f"{measure.__module__}.measure", "amorsize.executor": mode}.items()
    )
    assert values(found["amorsize.user.rows"]) == {key: 40}
    assert found["amorsize.user.rows"].description == "Rows that were read"
    assert found["amorsize.user.rows"].data.is_monotonic
    assert values(found["amorsize.user.model"]) == {key: 7}
    assert isinstance(found["amorsize.user.model"].data, Gauge)
    assert values(found["amorsize.user.row_bytes.count"]) == {key: 20}
    assert values(found["amorsize.user.row_bytes.sum"]) == {key: 190}
    buckets = {
        dict(each)["le"]: value
        for each, value in values(found["amorsize.user.row_bytes.bucket"]).items()
    }
    assert (buckets["0"], buckets["1"], buckets["3"], buckets["10"]) == (1, 2, 4, 11)
    assert buckets["+Inf"] == 20
    assert len(buckets) == len(user_metrics.BUCKETS) + 1
    amorsize.execute(measure, range(20), hooks=metered.hooks, **options)
    assert values(metered.read()["amorsize.user.rows"]) == {key: 80}


def test_numbers_of_a_chunk_that_failed_arrive(metered: Metered, mode: str) -> None:
    """Also when no chunk of the run ever completes."""

    def failing(x: int) -> None:
        amorsize.count("attempts")
        raise ValueError("never")

    with pytest.raises(ValueError, match="never"):
        amorsize.execute(failing, [1], executor=mode, hooks=metered.hooks)
    assert list(values(metered.read()["amorsize.user.attempts"]).values()) == [1]


def test_several_runs_at_once_add_up(metered: Metered) -> None:
    """Readings meanwhile do not disturb them."""
    threads = [
        threading.Thread(
            target=amorsize.execute,
            args=(measure, range(50)),
            kwargs={"executor": "serial", "chunksize": 1, "hooks": metered.hooks},
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        metered.read()
    found = metered.read()
    assert sum(values(found["amorsize.user.rows"]).values()) == 4 * 50 * 2
    assert sum(values(found["amorsize.items.processed"]).values()) == 4 * 50


# --- providers that misbehave ----


class BrokenProvider:
    def get_meter(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no meter for you")


def test_a_broken_meter_provider_fails_no_run(
    hooks: HookManager, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once; the results are right."""
    provider: Any = BrokenProvider()
    with OpenTelemetryExporter(meter_provider=provider, traces=False).attach(hooks) as exporter:
        for _ in range(2):
            assert amorsize.execute(abs, [-1], executor="serial", hooks=hooks) == [1]
        assert exporter.snapshot()[metrics.EXECUTIONS]
    assert "no meter for you" in caplog.text


def test_events_made_by_hand_are_measured(metered: Metered) -> None:
    """Durations fall into the buckets of the table."""
    run = Run(metered.hooks)
    run.begin()
    run.complete_chunk(3, chunk_time=0.07, queue_time=0.002)
    run.end(elapsed=1.5)
    found = metered.read()
    (chunk,) = found["amorsize.chunk.duration"].data.data_points
    assert (chunk.sum, chunk.count, chunk.bucket_counts[2]) == (0.07, 1, 1)
    (queue,) = found["amorsize.chunk.queue"].data.data_points
    assert (queue.sum, queue.bucket_counts[1]) == (0.002, 1)
    (execution,) = found["amorsize.execution.duration"].data.data_points
    assert (execution.sum, dict(execution.attributes)["amorsize.status"]) == (1.5, "ok")
    (planning,) = found["amorsize.planning.duration"].data.data_points
    assert (planning.sum, dict(planning.attributes)) == (0.03, {"code.function.name": "parse"})


FORKING = """
import os
import amorsize
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
reader = InMemoryMetricReader()
provider = MeterProvider([reader], shutdown_on_exit=False)
amorsize.enable_opentelemetry(meter_provider=provider, traces=False)
amorsize.execute(abs, [1, 2], executor="serial")

def read():
    metrics = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    return {each.name: each.data.data_points for each in metrics if each.data.data_points}

before = read()
assert "amorsize.items.processed" in before
chunks = sum(point.count for point in before["amorsize.chunk.duration"])
pid = os.fork()
if pid == 0:
    code = 1
    try:
        amorsize.execute(abs, [1, 2], executor="serial")
        reported = read()
        code = 2 if "amorsize.items.processed" in reported else 3
        counted = sum(point.count for point in reported["amorsize.chunk.duration"])
        if code == 3:
            code = 0 if counted == chunks else 4
    finally:
        os._exit(code)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork()")
def test_a_forked_child_reports_no_totals_of_its_parent() -> None:
    """It would report them a second time. What the SDK adds up itself stays as it was."""
    done = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
