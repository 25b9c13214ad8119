"""The user's own numbers on the page that Prometheus scrapes."""

from __future__ import annotations

import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text
from waiting import PATIENCE

import amorsize
from amorsize import HookContext, HookEvent, HookManager
from amorsize.exporters.metrics import LABEL_LIMITS, Kind
from amorsize.exporters.prometheus.exporter import PrometheusExporter
from amorsize.exporters.series import Histogram
from amorsize.exporters.user_totals import UserTotals
from amorsize.workers.user_metrics import BUCKETS, MAX_NAMES, empty_metric

MODES = ("serial", "thread", "process")
LABELS = ("load", "thread")


@pytest.fixture
def numbers() -> Iterator[UserTotals]:
    return UserTotals()


def scrape(exporter: PrometheusExporter, accept: str = "text/plain") -> str:
    request = urllib.request.Request(str(exporter.url), headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        return str(response.read().decode())


def samples(text: str, parse: Any = parse_text) -> dict[tuple[str, str, str], float]:
    """Read the users' samples of a page by name, function and bound."""
    return {
        (each.name, each.labels["function"], each.labels.get("le", "")): each.value
        for family in parse(text)
        if family.name.startswith("amorsize_user_")
        for each in family.samples
    }


def job(x: int) -> int:
    if x % 3 == 0:
        amorsize.count("rows_rejected", 3, help='Rows that were "no" rows')
    amorsize.observe("parse_seconds", x / 1000)
    amorsize.set_gauge("model_version", 7)
    return x


@pytest.mark.parametrize("mode", MODES)
def test_a_scrape_shows_the_function_s_counts(
    mode: str, exporter: PrometheusExporter, manager: HookManager
) -> None:
    """Over HTTP, after real work on every engine, against an independent count."""
    data = range(100)
    amorsize.execute(job, data, executor=mode, n_jobs=2, chunksize=7, hooks=manager, name="job")
    text = scrape(exporter)
    found = samples(text)
    assert found["amorsize_user_rows_rejected_total", "job", ""] == 3 * len(data[::3])
    assert found["amorsize_user_model_version", "job", ""] == 7
    assert found["amorsize_user_parse_seconds_count", "job", ""] == 100
    total = found["amorsize_user_parse_seconds_sum", "job", ""]
    assert total == pytest.approx(sum(x / 1000 for x in data))
    bounds = {
        float(bound): value
        for (name, _, bound), value in found.items()
        if name == "amorsize_user_parse_seconds_bucket"
    }
    assert bounds == {
        bound: sum(x / 1000 <= bound for x in data) for bound in (*BUCKETS, float("inf"))
    }
    assert f'amorsize_user_model_version{{executor="{mode}",function="job"}} 7' in text
    assert (
        '# HELP amorsize_user_rows_rejected_total Rows that were "no" rows\n'
        "# TYPE amorsize_user_rows_rejected_total counter\n"
    ) in text
    assert "# TYPE amorsize_user_parse_seconds histogram" in text
    assert "# TYPE amorsize_user_model_version gauge" in text


def test_openmetrics_shows_the_same(exporter: PrometheusExporter, manager: HookManager) -> None:
    """And its strict parser takes it."""
    amorsize.execute(job, range(20), executor="serial", hooks=manager, name="job")
    openmetrics = samples(scrape(exporter, "application/openmetrics-text"), parse_openmetrics)
    plain = samples(scrape(exporter))
    assert openmetrics["amorsize_user_rows_rejected_total", "job", ""] == 21
    assert openmetrics == plain


def test_a_registry_of_the_application_has_them_too(manager: HookManager) -> None:
    """Whoever collects it sees what a scrape shows."""
    registry = CollectorRegistry()
    with PrometheusExporter(port=0, registry=registry).attach(manager) as exporter:
        amorsize.execute(job, range(20), executor="serial", hooks=manager, name="job")
        labels = {"function": "job", "executor": "serial"}
        assert registry.get_sample_value("amorsize_user_rows_rejected_total", labels) == 21
        assert registry.get_sample_value("amorsize_user_parse_seconds_count", labels) == 20
        assert samples(scrape(exporter))["amorsize_user_rows_rejected_total", "job", ""] == 21
    assert registry.get_sample_value("amorsize_user_rows_rejected_total", labels) is None


def test_failed_chunks_are_counted(exporter: PrometheusExporter, manager: HookManager) -> None:
    """Up to and with the call that failed."""

    def fail(x: int) -> None:
        amorsize.count("attempts")
        if x == 4:
            raise ValueError("four")

    with pytest.raises(ValueError, match="four"):
        amorsize.execute(fail, range(9), executor="thread", n_jobs=1, hooks=manager, name="job")
    assert samples(scrape(exporter))["amorsize_user_attempts_total", "job", ""] == 5


def test_functions_are_bounded_as_in_the_table(
    exporter: PrometheusExporter, manager: HookManager
) -> None:
    """The numbers of what comes after the last name are those of ``other``."""
    limit = LABEL_LIMITS["function"]
    for number in range(limit + 3):
        amorsize.execute(job, [0], executor="serial", hooks=manager, name=f"job {number}")
    found = samples(scrape(exporter))
    counted = {f: v for (n, f, _), v in found.items() if n == "amorsize_user_rows_rejected_total"}
    assert counted == {f"job {number}": 3 for number in range(limit)} | {"other": 9}


def test_names_past_the_limit_are_counted(
    exporter: PrometheusExporter, manager: HookManager
) -> None:
    """The page counts the calls that are missing on it."""

    def explode(x: int) -> None:
        amorsize.count(f"user_{x}")

    data = range(MAX_NAMES + 9)
    amorsize.execute(abs, [1], executor="serial", hooks=manager, name="modest")
    amorsize.execute(explode, data, executor="serial", chunksize=5, hooks=manager, name="job")
    text = scrape(exporter)
    assert 'amorsize_dropped_user_metrics_total{executor="serial",function="modest"} 0' in text
    assert len(samples(text)) == MAX_NAMES
    assert 'amorsize_dropped_user_metrics_total{executor="serial",function="job"} 9' in text


def test_a_page_without_user_numbers_is_that_of_the_table(exporter: PrometheusExporter) -> None:
    """Nothing is added before something is counted."""
    text = scrape(exporter)
    assert "amorsize_user_" not in text
    assert "amorsize_dropped_user_metrics_total{" not in text


# --- the totals by themselves ----


def share(kind: Any, **fields: Any) -> dict[str, Any]:
    metric: Any = empty_metric(kind)
    return metric | {"calls": 1} | fields


def test_totals_add_up_by_name_and_labels(numbers: UserTotals) -> None:
    """Two functions never share a number."""
    counted: Counter[tuple[str, ...]] = Counter()
    for labels, value in ((LABELS, 2), (("store", "thread"), 5), (LABELS, 4)):
        numbers.add(labels, {"user_metrics": {"rows": share("counter", value=value)}})
        counted[labels] += value
    ((row, series),) = numbers.copy().items()
    assert (row.prometheus, row.kind) == ("amorsize_user_rows_total", Kind.COUNTER)
    assert series == counted


def test_the_newest_gauge_wins_over_workers(numbers: UserTotals) -> None:
    """By its own clock, whatever the order in which chunks return."""
    for value, time in ((1, 100.0), (2, 300.0), (3, 200.0)):
        metadata = {"user_metrics": {"level": share("gauge", value=value, time=time)}}
        numbers.add(LABELS, metadata)
    ((_, series),) = numbers.copy().items()
    assert series == {LABELS: 2}


def test_the_first_help_text_is_kept(numbers: UserTotals) -> None:
    """Without any, the text says where the number comes from."""

    def help_of(text: str | None) -> str:
        numbers.add(LABELS, {"user_metrics": {"rows": share("counter", help=text)}})
        return next(iter(numbers.copy())).help

    assert help_of(None) == "Counted by the function itself, with amorsize.count()"
    assert help_of("Rows that came in") == "Rows that came in"
    assert help_of("Something else") == "Rows that came in"


def test_a_copy_does_not_change_afterwards(numbers: UserTotals) -> None:
    """A scrape is rendered while chunks arrive."""
    metadata = {"user_metrics": {"seconds": share("histogram", buckets=[1] * (len(BUCKETS) + 1))}}
    numbers.add(LABELS, metadata)
    before = numbers.copy()
    numbers.add(LABELS, metadata)
    ((row, series),) = before.items()
    histogram = series[LABELS]
    assert isinstance(histogram, Histogram)
    assert histogram.counts == [1] * (len(BUCKETS) + 1)
    assert row.buckets == BUCKETS


def test_events_without_numbers_leave_no_trace(numbers: UserTotals) -> None:
    """As those of an application that counts nothing."""
    numbers.add(LABELS, HookContext(HookEvent.ON_CHUNK_COMPLETE).metadata)
    assert numbers.copy() == {}
