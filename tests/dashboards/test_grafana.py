"""The dashboards as they are committed: made by the generator, as Grafana reads them, and sound."""

from __future__ import annotations

import copy
import json
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from opentelemetry.sdk.trace import TracerProvider
from waiting import PATIENCE

import amorsize
from amorsize import HookManager
from amorsize.exporters import metrics
from amorsize.exporters.prometheus.exporter import PrometheusExporter
from dashboards.generator import lint, panels_page, provisioning
from dashboards.generator.__main__ import boards_of, files, main, problems_of
from dashboards.generator.boards import ANNOTATION_FIELDS
from dashboards.generator.promql import ONE, Query

COMMITTED = Path(__file__).parents[2] / "dashboards"
BOARDS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((COMMITTED / "grafana").glob("*.json"))
}


def test_make_dashboards_makes_what_is_committed(tmp_path: Path) -> None:
    """Byte by byte, no file more and none less."""
    main([str(tmp_path)])
    made = {path.relative_to(tmp_path): path for path in tmp_path.rglob("*.*")}
    committed = {
        path.relative_to(COMMITTED)
        for path in COMMITTED.rglob("*.*")
        if path.suffix in (".json", ".yml")
    }
    assert set(made) == committed
    for name, path in made.items():
        assert path.read_bytes() == (COMMITTED / name).read_bytes(), f"{name}: make dashboards"


def test_the_documentation_says_what_each_panel_is_for() -> None:
    """As ``make dashboards`` writes it."""
    page = panels_page.PAGE.read_text(encoding="utf-8")
    assert panels_page.put_into(page, panels_page.to_markdown(boards_of(files()))) == page
    with pytest.raises(ValueError, match="the page has no"):
        panels_page.put_into("another page", "")


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS.keys())
def test_grafanas_own_model_reads_all_of_it(board: dict[str, Any]) -> None:
    """Its reader drops what it does not know, which is what its schema leaves out, no more."""
    register_default_plugins()
    expected = copy.deepcopy(board)
    beyond = [
        {name for name in ANNOTATION_FIELDS if annotation.pop(name, None)}
        for annotation in expected["annotations"]["list"]
    ]
    assert beyond == [
        set(),
        {"titleFormat", "tagKeys", "useValueForTime"},
        {"titleFormat", "tagKeys"},
    ]
    assert json.loads(json.dumps(Dashboard.from_json(board), cls=JSONEncoder)) == expected


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS.keys())
def test_the_linter_finds_nothing(board: dict[str, Any]) -> None:
    """The metric table, and our own rules."""
    assert list(lint.check_board(board)) == []


def test_there_are_the_four_that_people_look_at() -> None:
    """They link to each other by their tag."""
    assert set(BOARDS) == {
        f"amorsize-{name}" for name in ("overview", "function", "workers", "health")
    }
    for uid, board in BOARDS.items():
        assert board["uid"] == uid
        assert board["links"][0]["tags"] == board["tags"] == ["amorsize"]


def test_links_to_dashboards_lead_to_dashboards() -> None:
    """Those of tables, too."""
    linked = re.findall(r"/d/([\w-]+)", json.dumps(BOARDS))
    assert linked
    assert set(linked) <= set(BOARDS)


# --- what the linter finds ----

Break = Callable[[dict[str, Any]], object]


def panel(board: dict[str, Any], kind: str = "timeseries") -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in board["panels"] if each["type"] == kind)
    return found


def replace_in_queries(was: str, becomes: str) -> Break:
    def change(board: dict[str, Any]) -> None:
        for each in board["panels"]:
            for target in each.get("targets", ()):
                target["expr"] = target["expr"].replace(was, becomes)

    return change


BREAKS: dict[str, tuple[Break, str]] = {
    "a metric is renamed": (
        replace_in_queries("amorsize_errors_total", "amorsize_error_total"),
        "'amorsize_error_total' is not in the metric table",
    ),
    "a metric is a histogram": (
        replace_in_queries("_seconds_bucket", "_seconds"),
        "is not in the metric table",
    ),
    "a label is misspelt in a matcher": (
        replace_in_queries("executor=~", "engine=~"),
        "'engine' is matched, among",
    ),
    "a label is misspelt in an aggregation": (
        replace_in_queries("by (error_type)", "by (error)"),
        "'error' is aggregated by, among",
    ),
    "the buckets are summed away": (
        replace_in_queries("by (le)", "by (function)"),
        "'le' is needed for a quantile",
    ),
    "a query is no PromQL": (replace_in_queries("sum by", "sum of"), "is no PromQL"),
    "the sides of an operator do not match": (
        replace_in_queries(
            "ignoring (status) topk by (function) (1, last_over_time(amorsize_last_completion",
            "ignoring (executor) topk by (function) (1, last_over_time(amorsize_last_completion",
        ),
        "the sides of 'and' have",
    ),
    "a legend names a label that is not there": (
        lambda board: panel(board)["targets"][0].update(legendFormat="{{instance}}"),
        "'instance' is named",
    ),
    "a rate has a window of its own": (
        replace_in_queries("$__rate_interval", "5m"),
        "its window is 5m",
    ),
    "a data source is fixed": (
        lambda board: panel(board)["targets"][0]["datasource"].update(uid="prometheus-1"),
        "its data source is not ${datasource}",
    ),
    "a unit is missing": (
        lambda board: panel(board)["fieldConfig"]["defaults"].pop("unit"),
        "has no unit that Grafana knows, but None",
    ),
    "a unit is misspelt": (
        lambda board: panel(board)["fieldConfig"]["defaults"].update(unit="seconds"),
        "has no unit that Grafana knows, but 'seconds'",
    ),
    "a share may be above 100 %": (
        replace_in_queries("clamp_max(", "("),
        "a share that may be above 100 %",
    ),
    "a share of a table may be above 100 %": (
        lambda board: replace_in_queries("clamp_max(", "(")(
            {
                "panels": [panel(board, "table")],
                "templating": {"list": []},
                "annotations": {"list": []},
            }
        ),
        "Executions in progress: a share that may be above 100 %",
    ),
    "a number has no text for nothing": (
        lambda board: panel(board, "stat")["fieldConfig"]["defaults"].pop("noValue"),
        "has no text for the time without data",
    ),
    "a graph would have a hundred lines": (
        replace_in_queries("topk(10, ", "("),
        "keep the top ten",
    ),
    "a title is missing": (lambda board: panel(board).update(title=" "), "has no title"),
    "a description is missing": (
        lambda board: panel(board, "stat").pop("description"),
        "has no description",
    ),
    "a panel has no query": (lambda board: panel(board).pop("targets"), "has no query"),
    "two queries have one name": (
        lambda board: panel(board, "table")["targets"][1].update(refId="A"),
        "two queries have one refId",
    ),
    "two panels overlap": (
        lambda board: panel(board)["gridPos"].update(x=panel(board)["gridPos"]["x"] + 1),
        "lies over",
    ),
    "a panel reaches beyond the grid": (
        lambda board: board["panels"][-1]["gridPos"].update(x=4),
        "reaches beyond the grid",
    ),
    "two panels have one id": (
        lambda board: panel(board).update(id=panel(board, "stat")["id"]),
        "two panels have one id",
    ),
    "there are too many panels": (
        lambda board: board["panels"].extend([panel(board)] * 30),
        "more than 25",
    ),
    "a variable is missing": (
        lambda board: board["templating"]["list"].pop(),
        "its variables are",
    ),
    "a variable asks for what is not there": (
        lambda board: board["templating"]["list"][2]["query"].update(
            query="label_values(amorsize_workers, functions)"
        ),
        "'functions' is aggregated by",
    ),
    "an annotation names a label that is not there": (
        lambda board: board["annotations"]["list"][1].update(titleFormat="{{executor}} failed"),
        "'executor' is named",
    ),
    "it is editable": (lambda board: board.update(editable=True), "is editable"),
}


@pytest.mark.parametrize(("change", "said"), BREAKS.values(), ids=BREAKS.keys())
def test_the_linter_finds(change: Break, said: str) -> None:
    """A broken query in the dashboard of the overview."""
    board = copy.deepcopy(BOARDS["amorsize-overview"])
    change(board)
    problems = list(lint.check_board(board))
    assert [problem for problem in problems if said in problem], problems


# --- when the table changes ----


def without(metric: metrics.Metric, label: str) -> metrics.Metric:
    """The same row, with one label less."""
    labels = tuple(each for each in metric.labels if each != label)
    return metrics.Metric(
        prometheus=metric.prometheus,
        dotted=metric.dotted,
        kind=metric.kind,
        help=metric.help,
        labels=labels,
        unit=metric.unit,
        buckets=metric.buckets,
    )


@pytest.mark.parametrize("metric", metrics.METRICS, ids=lambda metric: metric.prometheus)
def test_what_the_table_renames_is_missed(
    metric: metrics.Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The committed dashboards name every row of the table, so that each rename is found."""
    made = {
        str(path.relative_to(COMMITTED)): path.read_text(encoding="utf-8")
        for folder in ("grafana", "prometheus")
        for path in (COMMITTED / folder).rglob("*.*")
    }
    assert problems_of(made) == []
    monkeypatch.setattr(lint, "METRICS", [row for row in metrics.METRICS if row is not metric])
    assert problems_of(made)


@pytest.mark.parametrize(
    ("metric", "label"),
    [
        (metrics.EXECUTIONS, "status"),
        (metrics.ERRORS, "error_type"),
        (metrics.WORKER_DEATHS, "function"),
        (metrics.ITEMS_COMPLETED, "executor"),
        (metrics.HOOK_ERRORS, "event"),
        (metrics.EXPORTER_DROPPED, "exporter"),
        (metrics.BUILD_INFO, "python"),
    ],
    ids=lambda value: getattr(value, "prometheus", value),
)
def test_a_label_that_the_table_drops_is_missed(
    metric: metrics.Metric, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is matched, aggregated by, or shown."""
    made = {
        name: text for name, text in files().items() if name.startswith(("grafana/", "prometheus/"))
    }
    rows = [without(row, label) if row is metric else row for row in metrics.METRICS]
    monkeypatch.setattr(lint, "METRICS", rows)
    assert problems_of(made)


def test_the_generator_refuses_a_series_that_the_table_has_not() -> None:
    """Where it is written, not where it is read."""
    query = Query(ONE)
    with pytest.raises(ValueError, match=r"has the labels .* not \['status'\]"):
        query.series(metrics.WORKERS, status='="ok"')
    with pytest.raises(ValueError, match="amorsize_workers is a gauge and has no 'bucket'"):
        query.series(metrics.WORKERS, "bucket")
    with pytest.raises(ValueError, match="is a histogram: say which part of it"):
        query.series(metrics.CHUNK_DURATION)


def test_exemplars_are_asked_for_where_there_are_some() -> None:
    """Of the buckets of those histograms that have them on a page, and of nothing else."""
    hooks, tracer = HookManager(), TracerProvider(shutdown_on_exit=False).get_tracer("tests")
    with PrometheusExporter(port=0).attach(hooks) as exporter:
        with tracer.start_as_current_span("caller"):
            amorsize.execute(abs, range(100), executor="thread", n_jobs=2, hooks=hooks)
        request = urllib.request.Request(
            exporter.url, headers={"Accept": "application/openmetrics-text"}
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            page = answer.read().decode()
    buckets = {line.partition("{")[0] for line in page.splitlines() if " # {" in line}
    assert buckets
    asked = set()
    for board in BOARDS.values():
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                read = {name for name in buckets if f"{name}{{" in target["expr"]}
                over_time = panel["type"] in ("timeseries", "heatmap")
                assert target.get("exemplar", False) == bool(read and over_time), panel["title"]
                asked |= read
    assert asked == buckets


# --- provisioning ----


def provisioned() -> dict[str, dict[str, Any]]:
    """The data sources as they are committed, by uid."""
    path = COMMITTED / "grafana" / "provisioning" / "datasources" / "amorsize.yml"
    return {source["uid"]: source for source in yaml.safe_load(path.read_text())["datasources"]}


def test_the_provisioned_data_sources_link_exemplars_to_traces() -> None:
    """The uid that exemplars lead to is a data source's, and so is the label's name."""
    by_uid = provisioned()
    internal, external = by_uid["amorsize-prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert internal["name"] == external["name"] == "trace_id"
    assert by_uid[internal["datasourceUid"]]["type"] == "jaeger"
    assert external["url"].endswith("/trace/$${__value.raw}")  # one $ would be a variable's
    path = COMMITTED / "grafana" / "provisioning" / "dashboards" / "amorsize.yml"
    providers = yaml.safe_load(path.read_text())["providers"]
    assert providers[0]["options"]["path"] == provisioning.DASHBOARDS_PATH


def test_the_provisioned_data_sources_link_traces_to_metrics() -> None:
    """By an attribute that spans have, to queries whose names and labels are in the table."""
    by_uid = provisioned()
    link = by_uid["amorsize-jaeger"]["jsonData"]["tracesToMetrics"]
    assert by_uid[link["datasourceUid"]]["type"] == "prometheus"
    [tag] = link["tags"]
    assert metrics.ATTRIBUTES[tag["value"]] == tag["key"]
    assert len(link["queries"]) == len(provisioning.TRACES_TO_METRICS)
    for query in link["queries"]:
        assert query["query"].count("$$__tags") == 1
        expr = query["query"].replace("$$__tags", f'{tag["value"]}="measure"')
        place = lint.Place(query["name"], expr)
        assert list(lint.check_query(place, lint.table())) == []
