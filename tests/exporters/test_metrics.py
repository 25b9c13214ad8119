"""The metric table: complete, well named, documented, bounded."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from amorsize.exporters import metrics
from amorsize.exporters.metrics import (
    ATTRIBUTES,
    CLOSED_LABELS,
    LABEL_LIMITS,
    METRICS,
    BoundedLabel,
    Kind,
    closed_label,
    to_markdown,
)
from amorsize.hooks import HookEvent

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_holds_every_metric_of_the_design():
    """The names are a public interface: dashboards and alerts of strangers use them."""
    assert [metric.prometheus for metric in METRICS] == [
        "amorsize_executions_total",
        "amorsize_executions_in_progress",
        "amorsize_execution_duration_seconds",
        "amorsize_planning_duration_seconds",
        "amorsize_items_processed_total",
        "amorsize_items_failed_total",
        "amorsize_items_expected",
        "amorsize_items_completed",
        "amorsize_throughput_items_per_second",
        "amorsize_chunk_duration_seconds",
        "amorsize_chunk_queue_seconds",
        "amorsize_workers",
        "amorsize_worker_busy_seconds_total",
        "amorsize_worker_cpu_seconds_total",
        "amorsize_worker_available_seconds_total",
        "amorsize_worker_deaths_total",
        "amorsize_errors_total",
        "amorsize_estimated_speedup_ratio",
        "amorsize_measured_speedup_ratio",
        "amorsize_concurrency",
        "amorsize_last_activity_timestamp_seconds",
        "amorsize_last_completion_timestamp_seconds",
        "amorsize_last_success_timestamp_seconds",
        "amorsize_last_duration_seconds",
        "amorsize_last_items",
        "amorsize_last_failed_items",
        "amorsize_last_worker_deaths",
        "amorsize_longest_chunk_seconds",
        "amorsize_hook_errors_total",
        "amorsize_hook_calls_total",
        "amorsize_hook_busy_seconds_total",
        "amorsize_hook_longest_seconds",
        "amorsize_exporter_dropped_total",
        "amorsize_exporter_errors_total",
        "amorsize_dropped_user_metrics_total",
        "amorsize_build_info",
    ]


def test_names_follow_the_conventions_of_prometheus():
    """Counters end in _total, and units are in the name, as prometheus.io/docs/practices says."""
    for metric in METRICS:
        assert re.fullmatch(r"amorsize_[a-z_]+", metric.prometheus)
        assert metric.prometheus.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert metric.prometheus.removesuffix("_total").endswith(metric.prometheus_unit)
        assert metric.help
        assert not metric.help.endswith(".")


def test_opentelemetry_names_are_translated_to_those_of_prometheus():
    """As the compatibility specification says, so that one dashboard serves both."""
    words = {"s": "seconds", "1": "ratio", "{item}/s": "per_second"}
    for metric in METRICS:
        assert re.fullmatch(r"amorsize(\.[a-z_]+)+", metric.dotted)
        parts = [metric.dotted.replace(".", "_"), words.get(metric.unit, "")]
        if metric.kind is Kind.COUNTER:
            parts.append("total")
        assert "_".join(filter(None, parts)) == metric.prometheus


def test_names_and_units_in_cloudwatch():
    """CamelCase, and units out of CloudWatch's own list."""
    assert {metric.cloudwatch_unit for metric in METRICS} == {
        "Seconds",
        "Count",
        "Count/Second",
        "None",
    }
    assert metrics.CHUNK_DURATION.cloudwatch == "ChunkDuration"
    assert metrics.EXECUTIONS_IN_PROGRESS.cloudwatch == "ExecutionsInProgress"
    assert len({metric.cloudwatch for metric in METRICS}) == len(METRICS)


def test_every_label_has_an_attribute():
    """A label of Prometheus is an attribute of OpenTelemetry."""
    assert {label for metric in METRICS for label in metric.labels} == set(ATTRIBUTES)


def test_histograms_alone_have_buckets_few_and_rising():
    """Each bucket is a time series for every combination of labels."""
    for metric in METRICS:
        assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM)
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert len(metric.buckets) <= 24


def test_buckets_are_fine_where_runs_live():
    """A quantile of runs that take as long as each other is at most twice as long as they are."""
    for metric in (metrics.EXECUTION_DURATION, metrics.CHUNK_DURATION):
        bounds = [bound for bound in metric.buckets if 0.25 <= bound <= 120]
        assert all(upper <= 2 * lower for lower, upper in pairwise(bounds))
        assert (bounds[0], bounds[-1]) == (0.25, 120)
    for metric in (metrics.CHUNK_QUEUE, metrics.PLANNING_DURATION):
        bounds = [bound for bound in metric.buckets if 0.005 <= bound <= 10]
        assert all(upper <= 2.5 * lower for lower, upper in pairwise(bounds))
        assert (bounds[0], bounds[-1]) == (0.005, 10)


def test_every_label_is_bounded():
    """No label takes values without end: all are closed, limited, or set by amorsize itself."""
    bounded = {*CLOSED_LABELS, *LABEL_LIMITS, "exporter", "version", "python"}
    assert {label for metric in METRICS for label in metric.labels} <= bounded


def test_the_event_label_knows_every_event():
    """A new event cannot be forgotten."""
    assert set(CLOSED_LABELS["event"]) == {event.value for event in HookEvent}


def test_names_beyond_the_limit_become_other():
    """Who came first keeps its name, for ever."""
    label = BoundedLabel(100)
    names = [f"function-{number}" for number in range(150)]
    assert [label(name) for name in names] == names[:100] + ["other"] * 50
    assert label("function-0") == "function-0"


def test_a_value_without_a_name_becomes_other():
    """A context without metadata still counts, under a label that says so."""
    label = BoundedLabel(1)
    assert [label(None), label(""), label(7)] == ["other"] * 3
    assert label("first") == "first"


def test_a_name_that_cannot_be_encoded_is_escaped():
    """One lone surrogate would otherwise break every scrape."""
    assert BoundedLabel(1)("bad\ud800name") == "bad\\ud800name"


def test_values_outside_a_closed_label_become_other():
    """Only known executors are labels."""
    assert closed_label("executor", "thread") == "thread"
    assert closed_label("executor", "quantum") == "other"
    assert closed_label("executor", None) == "other"


def test_the_documentation_is_the_table():
    """docs/metrics.md is what the module prints; run it again after changing the table."""
    printed = subprocess.run(
        [sys.executable, "-W", "error", "-m", "amorsize.exporters.metrics"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed == to_markdown()
    assert (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8") == printed
