"""Every query of every panel, rule and alert, asked of a real Prometheus after a real run."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from exporters.cloudwatch.client import Client
from exporters.dogstatsd import Agent
from opentelemetry.sdk.trace import TracerProvider
from PIL import Image
from waiting import poll

import amorsize
from amorsize import HookManager
from amorsize.exporters import metrics
from amorsize.exporters.cloudwatch.exporter import CloudWatchExporter
from amorsize.exporters.datadog.exporter import DatadogExporter
from amorsize.exporters.prometheus.exporter import PrometheusExporter
from dashboards.generator import asked, lint, pictures
from dashboards.generator.ask import View, conditions
from dashboards.generator.lint import Place
from dashboards.generator.scenario import FUNCTIONS, Scenario

from .alertmanager import Alertmanager, Webhook
from .backends import PrometheusServer

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
DASHBOARDS = ROOT / "dashboards"
BOARDS = sorted((DASHBOARDS / "grafana").glob("*.json"))
RULES = sorted((DASHBOARDS / "prometheus").glob("*.yml"))

SECONDS = 8.0
"""About how long the scenario runs."""


SEEN = {
    "executions failed": 'sum(amorsize_executions_total{status="error"}) >= 2',
    "an execution timed out": 'sum(amorsize_executions_total{status="timeout"}) >= 1',
    "workers died": "sum(amorsize_worker_deaths_total) >= 1",
    "a rate has two points": "count_over_time(amorsize_build_info[30s]) >= 8",
}
"""Queries that must have an answer before the others are asked."""


@dataclass
class Seen:
    """A Prometheus that has scraped the scenario, and the receivers of its alerts.

    Attributes:
        server: the Prometheus; the scenario still runs.
        webhook: notified by Alertmanager.
        agent: Datadog's.
        cloudwatch: what takes its calls.
        start: when the scenario began.
    """

    server: PrometheusServer
    webhook: Webhook
    agent: Agent
    cloudwatch: Client
    start: float

    def view(self, **variables: str) -> View:
        """Look at all of it, now."""
        return View(
            self.server.url,
            self.start,
            time.time(),
            window=5.0,
            step=0.5,
            variables={f"${name}": value for name, value in variables.items()},
        )


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """One scenario for all of this module, with our rules, and an Alertmanager."""
    directory = tmp_path_factory.mktemp("dashboards")
    manager = HookManager()
    tracer = TracerProvider().get_tracer("scenario")
    with (
        Webhook() as webhook,
        Alertmanager(directory / "alertmanager", webhook.url) as alertmanager,
        Agent() as agent,
        PrometheusExporter(port=0).attach(manager) as exporter,
        DatadogExporter(host="127.0.0.1", port=agent.port).attach(manager),
        CloudWatchExporter(client=(cloudwatch := Client()), interval=1).attach(manager),
    ):
        server = PrometheusServer(
            directory / "prometheus",
            [f"127.0.0.1:{exporter.port}"],
            scrape={"scrape_interval": "500ms", "scrape_timeout": "500ms"},
            config={
                "rule_files": [str(path) for path in RULES],
                "alerting": {
                    "alertmanagers": [{"static_configs": [{"targets": [alertmanager.address]}]}]
                },
            },
        )
        try:
            start = time.time()
            with Scenario(manager, seconds=SECONDS, tracer=tracer):
                for what, promql in SEEN.items():
                    poll(lambda query=promql: server.query(query), bool, what)
                yield Seen(server, webhook, agent, cloudwatch, start)
        finally:
            server.close()


def boards() -> list[Any]:
    return [
        pytest.param(json.loads(path.read_text(encoding="utf-8")), id=path.stem) for path in BOARDS
    ]


def rules() -> list[Place]:
    return [
        place
        for path in RULES
        for place in lint.rule_queries(yaml.safe_load(path.read_text(encoding="utf-8")))
    ]


def all_answer(make_view: Callable[[], View], places: list[Place]) -> None:
    """Ask until every query has had an answer."""
    left = list(places)

    def ask() -> list[str]:
        view = make_view()
        left[:] = [place for place in left if not view.ask(place)]
        return [f"{place.where}: {place.expr}" for place in left]

    poll(ask, lambda missing: not missing, "every query has an answer")


@pytest.mark.parametrize("board", boards())
def test_every_query_of_a_dashboard_returns_data(seen: Seen, board: dict[str, Any]) -> None:
    """Panels, annotations and variables, for all functions or, where there is one, for one."""
    places = list(lint.queries(board))
    assert len(places) > 10
    one_function = {"function": FUNCTIONS[0]} if board["uid"] == "amorsize-function" else {}
    all_answer(lambda: seen.view(**one_function), places)


def test_the_dashboard_of_a_function_shows_each_function(seen: Seen) -> None:
    """Functions that run without workers, too; only what a function does not do may be empty."""
    board = json.loads((DASHBOARDS / "grafana" / "amorsize-function.json").read_text())
    rates = [place for place in lint.queries(board) if "Items per second" in place.where]
    assert rates
    for function in FUNCTIONS:
        all_answer(lambda name=function: seen.view(function=name), rates)


def test_a_hundred_functions_and_nothing_running(
    prometheus_server: Callable[..., PrometheusServer],
) -> None:
    """No graph has more than ten lines, tables have all functions, and no number is missing."""
    manager = HookManager()
    with PrometheusExporter(port=0).attach(manager) as exporter:
        server = prometheus_server(
            targets=[f"127.0.0.1:{exporter.port}"],
            scrape={"scrape_interval": "500ms", "scrape_timeout": "500ms"},
        )
        start = time.time()
        for number in range(100):
            name = f"function_{number:03}"
            amorsize.execute(abs, range(3), executor="serial", hooks=manager, name=name)
        server.wait_for("count(amorsize_last_success_timestamp_seconds)", 100)
        server.wait_for("min(count_over_time(amorsize_executions_total[1m])) >= bool 2", 1)
        answers = {}
        view = View(server.url, start, time.time(), window=60.0, step=0.5, variables={})
        for path in BOARDS:
            board = json.loads(path.read_text(encoding="utf-8"))
            if board["uid"] == "amorsize-function":
                continue
            places = {place.where: place for place in lint.queries(board)}
            for panel in board["panels"]:
                for target in panel.get("targets", ()):
                    where = f"{board['title']}, {panel['title']}, {target['refId']}"
                    answer = view.ask(replace(places[where], instant=True))
                    answers[where] = answer
                    if panel["type"] in ("timeseries", "bargauge"):
                        assert len(answer) <= 10, where
                    assert (
                        answer
                        or panel["fieldConfig"]["defaults"].get("noValue")
                        or (panel["type"] in ("timeseries", "heatmap"))
                    ), where
    assert len(answers) > 50
    assert len(answers["amorsize / Overview, Functions, A"]) == 100
    for panel in ("Executions in progress, A", "Longest time left, A", "Progress, A"):
        assert answers[f"amorsize / Overview, {panel}"] == []
    [[(_, running)]] = [each.points for each in answers["amorsize / Overview, Running now, A"]]
    assert running == 0


def test_every_rule_and_alert_returns_data(seen: Seen) -> None:
    """Alerts without their thresholds: what they compare is there."""
    places = [
        part
        for place in rules()
        for part in conditions(place)
        if metrics.IN_PROGRESS_UNTIL.prometheus not in part.expr  # nothing is pushed here
    ]
    assert len(places) > 20
    asked = [  # nothing of this scenario is so old as to be before a range
        replace(place, expr=re.sub(r" offset \w+", "", place.expr), instant=True)
        for place in places
    ]
    all_answer(lambda: seen.view(), asked)


def test_what_is_recorded_can_be_asked_for(seen: Seen) -> None:
    """Each recording rule is evaluated without an error, and has its labels."""
    for path in RULES:
        known = lint.recorded(yaml.safe_load(path.read_text(encoding="utf-8")), {})
        for name, labels in known.items():
            answer = poll(lambda query=name: seen.server.query(query), bool, name)
            assert {frozenset(series) - {"__name__"} for series, _ in answer} == {labels}


def test_the_exemplars_of_durations_lead_to_traces(seen: Seen) -> None:
    """The dashboard of a function asks for them, and they carry what the data source links."""
    exemplars = seen.server.exemplars("amorsize_chunk_duration_seconds_bucket")
    assert exemplars
    assert all(len(each["labels"]["trace_id"]) == 32 for each in exemplars)


@pytest.mark.parametrize("board", boards())
def test_a_picture_of_it_is_drawn(seen: Seen, board: dict[str, Any], tmp_path: Path) -> None:
    """As ``make pictures`` does for the documentation; what is committed is no larger."""
    pictures.draw(board, seen.view(function=FUNCTIONS[0]), tmp_path / "picture.png")
    committed = ROOT / "docs" / "images" / f"{board['uid'].replace('amorsize-', 'dashboard-')}.png"
    for path in (tmp_path / "picture.png", committed):
        with Image.open(path) as image:
            assert image.width > 1000
            assert len(image.getcolors() or ()) > 10
        assert path.stat().st_size < 200_000


def test_a_killed_worker_rings(seen: Seen) -> None:
    """Through Prometheus, with the rules as they are shipped, and Alertmanager to a webhook."""
    [*_, alert] = poll(lambda: seen.webhook.alerts("AmorsizeWorkersDied"), bool, "the webhook")
    assert alert["status"] == "firing"
    labels = {name: alert["labels"][name] for name in ("job", "function", "severity")}
    assert labels == {"job": "amorsize", "function": FUNCTIONS[0], "severity": "warning"}
    assert alert["annotations"]["summary"] == f"Workers of {FUNCTIONS[0]} died"
    assert "var-function=import_orders" in alert["annotations"]["dashboard"]


def test_so_do_failed_executions_hooks_and_exporters(seen: Seen) -> None:
    """Alerts that the scenario provokes at once."""
    for name, label, value in (
        ("AmorsizeExecutionFailed", "function", FUNCTIONS[1]),
        ("AmorsizeHookErrors", "event", "post_execute"),
        ("AmorsizeExporterErrors", "exporter", "webhook"),
        ("AmorsizeExporterDropping", "exporter", "webhook"),
    ):
        alerts = poll(lambda alert=name: seen.webhook.alerts(alert), bool, f"{name} rings")
        assert value in {alert["labels"][label] for alert in alerts}


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("amorsize_workers{", "amorsize_worker{"),
        ('status=~"error|timeout"', 'status="failed"'),
        ("sum by (le) (rate(", "sum by (executor) (rate("),
    ],
)
def test_a_broken_query_is_found(seen: Seen, was: str, becomes: str) -> None:
    """The proof above can fail: each of these has no answer, here and now."""
    text = "".join(path.read_text(encoding="utf-8") for path in BOARDS)
    quoted = json.dumps(was)[1:-1]
    assert quoted in text
    broken: list[Place] = []
    for path in BOARDS:
        board = path.read_text(encoding="utf-8").replace(quoted, json.dumps(becomes)[1:-1])
        pairs = (lint.queries(json.loads(text)) for text in (path.read_text(), board))
        broken += [
            after
            for before, after in zip(*pairs, strict=True)
            if before != after and "or vector" not in after.expr
        ]
    assert broken
    view = seen.view(function=FUNCTIONS[0])
    assert [place for place in broken if view.ask(place)] == []


def test_datadog_has_got_all_that_its_dashboard_asks_for(seen: Seen) -> None:
    """Each metric, with all tags that are filtered or grouped by."""
    board = json.loads((DASHBOARDS / "datadog" / "amorsize.json").read_text(encoding="utf-8"))
    left = {(each.name, each.labels) for each in asked.datadog(board)}
    assert len(left) > 20

    def missing() -> set[tuple[str, frozenset[str]]]:
        for metric in seen.agent.metrics:
            tags = {tag.partition(":")[0] for tag in metric.tags}
            left.difference_update(
                [each for each in left if each[0] == metric.name and each[1] <= tags]
            )
        return left

    poll(missing, lambda rest: not rest, "Datadog's agent has received all")


def test_cloudwatch_has_got_all_that_its_dashboard_searches_for(seen: Seen) -> None:
    """Each metric, with just the dimensions of the search, and the values that it restricts."""
    board = json.loads((DASHBOARDS / "cloudwatch" / "amorsize.json").read_text(encoding="utf-8"))
    searches = list(asked.cloudwatch(board))
    assert len(searches) > 20

    def missing() -> list[str]:
        wanted = [
            (datum["MetricName"], {each["Name"]: each["Value"] for each in datum["Dimensions"]})
            for call in list(seen.cloudwatch.calls)
            for datum in call["MetricData"]
        ]
        return [
            each.expression
            for each in searches
            if "cancelled" not in each.values.values()  # nothing was
            and not any(
                name == each.name
                and set(dimensions) == each.labels
                and each.values.items() <= dimensions.items()
                for name, dimensions in wanted
            )
        ]

    poll(missing, lambda rest: not rest, "CloudWatch has received all")
