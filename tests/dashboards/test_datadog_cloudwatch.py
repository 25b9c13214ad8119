"""The dashboards for Datadog and CloudWatch: their systems' own models, and the metric table."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datadog_api_client import Configuration
from datadog_api_client.model_utils import (
    ModelComposed,
    ModelNormal,
    UnparsedObject,
    validate_and_convert_types,
)
from datadog_api_client.v1.model.dashboard import Dashboard

from amorsize.exporters import metrics
from dashboards.generator import asked
from dashboards.generator.cloudwatch import search
from dashboards.generator.datadog import query

DASHBOARDS = Path(__file__).parents[2] / "dashboards"
DATADOG = json.loads((DASHBOARDS / "datadog" / "amorsize.json").read_text(encoding="utf-8"))
CLOUDWATCH = json.loads((DASHBOARDS / "cloudwatch" / "amorsize.json").read_text(encoding="utf-8"))


def unparsed(value: Any) -> list[Any]:
    """Find what Datadog's model could not make sense of, and keeps as it is."""
    if isinstance(value, UnparsedObject):
        return [value]
    if isinstance(value, ModelComposed):
        return [each for part in value._composed_instances for each in unparsed(part)]
    if isinstance(value, ModelNormal):
        return [each for part in value._data_store.values() for each in unparsed(part)]
    if isinstance(value, list):
        return [each for part in value for each in unparsed(part)]
    return []


def read(board: dict[str, Any]) -> Any:
    return validate_and_convert_types(
        copy.deepcopy(board), (Dashboard,), ["board"], True, True, Configuration()
    )


def test_datadogs_own_model_reads_all_of_it() -> None:
    """Every widget is one that it knows, and nothing is lost."""
    board = read(DATADOG)
    assert unparsed(board) == []
    assert board.to_dict() == DATADOG


def test_datadogs_own_model_finds_what_is_wrong() -> None:
    """The test above can fail."""
    broken = copy.deepcopy(DATADOG)
    broken["widgets"][1]["definition"]["widgets"][0]["definition"]["requests"][0][
        "display_type"
    ] = "pie"
    assert unparsed(read(broken))


def problems(queries: list[asked.Asked], known: dict[str, frozenset[str]]) -> list[str]:
    return [
        each.expression
        for each in queries
        if each.name not in known or not each.labels <= known[each.name]
    ]


def test_every_query_of_datadog_is_of_the_table() -> None:
    """Names, and tags."""
    queries = list(asked.datadog(DATADOG))
    known = {row.dotted: frozenset(row.labels) for row in metrics.METRICS}
    assert len(queries) > 30
    assert problems(queries, known) == []
    assert problems(queries, {name: labels - {"status"} for name, labels in known.items()})
    assert len(problems(queries, {})) == len(queries)


def requests_with_formulas(value: Any) -> Iterator[dict[str, Any]]:
    """Every request in nested lists and dictionaries that computes something."""
    if isinstance(value, dict):
        if "formulas" in value:
            yield value
        for each in value.values():
            yield from requests_with_formulas(each)
    elif isinstance(value, list):
        for each in value:
            yield from requests_with_formulas(each)


def test_what_datadog_divides_is_of_one_kind() -> None:
    """A rate over a gauge was a busy share of 185 %: time of workers that the gauge missed."""
    divided = [
        [query["query"].rpartition("}")[2] for query in request["queries"]]
        for request in requests_with_formulas(DATADOG)
        if any("/" in each["formula"] for each in request["formulas"])
    ]
    assert len(divided) >= 4
    assert [kinds for kinds in divided if len(set(kinds)) > 1] == []


def test_every_search_of_cloudwatch_is_of_the_table() -> None:
    """Names, and all dimensions: a search finds only metrics that have just these."""
    queries = list(asked.cloudwatch(CLOUDWATCH))
    known = asked.cloudwatch_table()
    assert len(queries) > 20
    assert problems(queries, known) == []
    assert [each.expression for each in queries if each.labels != known[each.name]] == []
    assert len(problems(queries, {})) == len(queries)


def test_the_widgets_of_cloudwatch_do_not_overlap() -> None:
    """In its grid of 24 columns; ids are unique in each widget, titles in all."""
    cells: set[tuple[int, int]] = set()
    titles = []
    for widget in CLOUDWATCH["widgets"]:
        assert widget["x"] + widget["width"] <= 24
        mine = {
            (x, y)
            for x in range(widget["x"], widget["x"] + widget["width"])
            for y in range(widget["y"], widget["y"] + widget["height"])
        }
        assert not mine & cells
        cells |= mine
        if widget["type"] == "metric":
            titles.append(widget["properties"]["title"])
            ids = [entry["id"] for [entry] in widget["properties"]["metrics"]]
            assert len(set(ids)) == len(ids)
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: query(metrics.WORKERS, "status"), "has the tags"),
        (lambda: query(metrics.WORKERS, how="p95"), "p95 is nothing to ask of amorsize.workers"),
        (lambda: query(metrics.CHUNK_QUEUE), "sum is nothing to ask of amorsize.chunk.queue"),
        (lambda: search(metrics.WORKERS, "Sum", status="ok"), "Workers has the labels"),
        (lambda: search(metrics.WORKERS, "p95"), "p95 is nothing to ask of Workers"),
    ],
)
def test_the_generator_refuses_what_the_table_has_not(make: Any, said: str) -> None:
    """Where it is written, not where it is read."""
    with pytest.raises(ValueError, match=said):
        make()
