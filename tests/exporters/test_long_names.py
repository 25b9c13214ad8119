"""A name of any length, from any place of the user's program: every exporter bounds what it shows.

Two of each kind differ at their ends only, and stay two.
"""

from __future__ import annotations

import functools
import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import amorsize
from amorsize import HookEvent, HookManager
from amorsize.errors import InvalidValueError
from amorsize.exporters.base import Exporter
from amorsize.exporters.cloudwatch.exporter import CloudWatchExporter
from amorsize.exporters.datadog.exporter import DatadogExporter
from amorsize.exporters.opentelemetry.exporter import OpenTelemetryExporter
from amorsize.exporters.prometheus.exporter import PrometheusExporter
from amorsize.testing import RecordingHook
from amorsize.workers.names import MAX_CHARACTERS, bounded

from .cloudwatch.client import Client
from .dogstatsd import Agent
from .events import fetch
from .spans import Traces

LONG = 100_000
NAMES = [f"{'parse:' * (LONG // 6)}{number}" for number in (1, 2)]
SHORT = {bounded(name) for name in NAMES}


class _Named(Exporter):
    name = "x" * LONG


def fail(error: type[Exception], item: int) -> int:
    amorsize.count("rows")
    amorsize.observe("bytes", 17)
    amorsize.set_gauge("left", 3)
    raise error("bad")


def execute(hooks: HookManager, **options: Any) -> None:
    """Run under each of the names, with hooks, errors and threads of such names."""
    for name in NAMES:

        def hook(context: Any) -> None:
            pass

        hook.__qualname__ = f"hook_{name}"
        kind = type(f"Error_{name}", (ValueError,), {})
        hooks.register(HookEvent.ON_ERROR, hook)
        with _Named().attach(hooks):
            amorsize.execute(
                functools.partial(fail, kind),
                range(3),
                name=name,
                hooks=hooks,
                executor="thread",
                n_jobs=2,
                return_exceptions=True,
                **options,
            )


def texts(value: Any) -> Iterator[str]:
    """All texts in nested lists and dictionaries."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for pair in value.items():
            yield from texts(list(pair))
    elif isinstance(value, list | tuple | set):
        for each in value:
            yield from texts(each)


def assert_bounded(values: Any, *, at_most: int = MAX_CHARACTERS) -> None:
    longest = max(texts(values), key=len)
    assert len(longest) <= at_most, longest[:50]
    assert any(len(text) > 100 for text in texts(values)), "there is no long name at all"


def assert_page_is_bounded(page: str) -> None:
    """A line of a page is a name, its labels, and a value."""
    samples = [
        sample for family in text_string_to_metric_families(page) for sample in family.samples
    ]
    assert_bounded([sample.labels for sample in samples])
    for label in ("function", "hook", "error_type"):
        values = {sample.labels[label] for sample in samples if label in sample.labels}
        assert sum("parse:" in value for value in values) == 2, label
    assert {sample.labels["function"] for sample in samples if "function" in sample.labels} == SHORT
    user_metrics = [each for each in samples if each.name.startswith("amorsize_user_")]
    assert {sample.labels["function"] for sample in user_metrics} == SHORT
    assert len(page) < 200_000


def test_the_page_of_prometheus(manager: HookManager, tmp_path: Path) -> None:
    """As text and as OpenMetrics, through the application's registry, and the text file."""
    path = tmp_path / "amorsize.prom"
    with PrometheusExporter(port=0, textfile=path, job="nightly").attach(manager) as exporter:
        execute(manager)
        assert_page_is_bounded(fetch(exporter.url))
        openmetrics = fetch(exporter.url, "application/openmetrics-text")
        assert len(openmetrics) < 200_000
        assert max(map(len, openmetrics.splitlines())) < 1000
        assert exporter.flush(10)
    assert_page_is_bounded(path.read_text())


def test_a_name_that_an_older_version_wrote(manager: HookManager, tmp_path: Path) -> None:
    """It is continued under its short form."""
    path = tmp_path / "amorsize.prom"
    path.write_text(
        "# TYPE amorsize_executions_total counter\n"
        f'amorsize_executions_total{{executor="thread",function="{NAMES[0]}",status="ok"}} 5\n'
    )
    with PrometheusExporter(textfile=path).attach(manager):
        amorsize.execute(abs, [1], name=NAMES[0], hooks=manager, executor="thread", n_jobs=1)
    [total] = [
        sample.value
        for family in text_string_to_metric_families(path.read_text())
        for sample in family.samples
        if sample.name == "amorsize_executions_total" and sample.labels["status"] == "ok"
    ]
    assert total == 6


@pytest.mark.parametrize(
    "settings",
    [
        {"job": "j" * (MAX_CHARACTERS + 1)},
        {"job": "nightly", "grouping_key": {"customer": "c" * (MAX_CHARACTERS + 1)}},
        {"job": "nightly", "grouping_key": {"c" * (MAX_CHARACTERS + 1): "acme"}},
    ],
)
def test_a_label_that_is_set_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    """At once, because whoever sets it can shorten it."""
    message = f"at most {MAX_CHARACTERS} characters; got {MAX_CHARACTERS + 1}"
    with pytest.raises(InvalidValueError, match=message):
        PrometheusExporter(textfile=tmp_path / "amorsize.prom", **settings)


def test_the_spans_of_opentelemetry() -> None:
    """Their names, their attributes, and those of their events, but for the exception's texts."""
    traces = Traces()
    threading.current_thread().name, before = "t" * LONG, threading.current_thread().name
    try:
        execute(traces.hooks)
    finally:
        threading.current_thread().name = before
        traces.close()
    spans = traces._kept.get_finished_spans()
    assert {span.name for span in spans if span.name.startswith("execute ")} == {
        f"execute {name}" for name in SHORT
    }
    whole = {"exception.stacktrace", "exception.message"}
    for span in spans:
        shown = [span.name.removeprefix("execute "), dict(span.attributes or {})]
        for event in span.events:
            shown.append({k: v for k, v in (event.attributes or {}).items() if k not in whole})
        assert_bounded(shown)


def test_the_metrics_of_opentelemetry(manager: HookManager) -> None:
    """The attributes of every point, and the page that a Prometheus reader makes of it."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    with OpenTelemetryExporter(meter_provider=provider, traces=False).attach(manager):
        execute(manager)
        read = json.loads(reader.get_metrics_data().to_json())
    provider.shutdown()
    points = [
        point["attributes"]
        for resource in read["resource_metrics"]
        for scope in resource["scope_metrics"]
        for metric in scope["metrics"]
        for point in metric["data"]["data_points"]
    ]
    assert_bounded(points)
    assert {
        point["code.function.name"] for point in points if "code.function.name" in point
    } == SHORT
    assert len({point["error.type"] for point in points if "error.type" in point}) == 2


def test_datadog(manager: HookManager) -> None:
    """Its tags, the titles of its events, and its checks."""
    with (
        Agent() as agent,
        DatadogExporter(host="127.0.0.1", port=agent.port).attach(manager) as exporter,
    ):
        execute(manager)
        assert exporter.flush(10)
        messages = agent.messages
    tags = {tag for message in messages for tag in message.tags}
    assert_bounded(tags)
    for label in ("function", "hook", "error_type"):
        assert sum(tag.startswith(f"{label}:") and "parse:" in tag for tag in tags) == 2, label


@pytest.mark.parametrize("character", ["x", "😀"])
def test_cloudwatch(manager: HookManager, character: str) -> None:
    """A dimension in which each character is escaped stays within its limit, and distinct."""
    client = Client()
    names = [character * 5000 + end for end in "12"]
    with CloudWatchExporter(client=client).attach(manager) as exporter:
        execute(manager)
        for name in names:
            amorsize.execute(abs, [1], name=name, hooks=manager, executor="thread", n_jobs=1)
        assert exporter.flush(10)
    values = {
        each["Value"]
        for datum in client.data
        for each in datum["Dimensions"]
        if each["Name"] == "Function"
    }
    assert_bounded(values, at_most=1024)
    assert len(values) == len(NAMES) + len(names)


def test_the_events_and_the_log(manager: HookManager) -> None:
    """The context of every event, and the fields and the texts of the log of runs."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("amorsize")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    recorder = RecordingHook().attach(manager)
    try:
        execute(manager)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    assert {context.metadata["function"] for context in recorder.contexts} == SHORT
    fields = [vars(record) for record in records if hasattr(record, "amorsize_event")]
    assert {each["amorsize_function"] for each in fields} == SHORT
    assert len({each.get("amorsize_error_type") for each in fields} - {None}) == 2
    for each in fields:
        assert_bounded({key: value for key, value in each.items() if key.startswith("amorsize_")})
    assert max(len(record.getMessage()) for record in records) < 1000


def test_the_memory_of_a_label() -> None:
    """No long name is kept, not even to recognise it."""
    from amorsize.exporters.metrics import BoundedLabel

    label = BoundedLabel(10)
    shown: Callable[[str], str] = label
    for number in range(10):
        name = "x" * LONG + str(number)
        assert shown(name) == shown(name) == bounded(name)
    assert shown("y" * LONG) == "other"
    assert sum(map(len, label._known)) <= 10 * MAX_CHARACTERS
