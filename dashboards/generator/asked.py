"""Lists the queries of the dashboards for Datadog and CloudWatch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from amorsize.exporters.cloudwatch.data import dimension_name
from amorsize.exporters.metrics import METRICS

_DATADOG = re.compile(
    r"(?P<how>\w+):(?P<name>[\w.]+)\{(?P<where>[^}]*)\}( by \{(?P<by>[^}]*)\})?(\.as_\w+\(\))?"
)
_DATADOG_TAG = re.compile(r"\$(\w+)|(\w+) IN \(|(\w+):")
_CLOUDWATCH = re.compile(
    r"SEARCH\('\{\w+,(?P<schema>[\w,]+)\} MetricName=\"(?P<name>\w+)\"(?P<more>[^']*)'"
)


@dataclass(frozen=True)
class Asked:
    """A query.

    Attributes:
        expression: all of it.
        name: of the metric.
        labels: tags or dimensions that it names.
        values: those that it restricts, and to what.
    """

    expression: str
    name: str
    labels: frozenset[str]
    values: Mapping[str, str]


def datadog(board: Mapping[str, Any]) -> Iterator[Asked]:
    """List the queries of a Datadog dashboard.

    Raises:
        ValueError: one is not of the form that the generator writes.
    """
    for expression in re.findall(r'"query": ("(?:[^"\\]|\\.)*")', json.dumps(board)):
        text = json.loads(expression)
        if "{" not in text:
            continue  # of the stream of events
        match = _DATADOG.fullmatch(text)
        if match is None:
            raise ValueError(f"no query: {text}")
        tags = {tag for found in _DATADOG_TAG.findall(match["where"]) for tag in found if tag}
        by = set(filter(None, (match["by"] or "").split(",")))
        yield Asked(text, match["name"], frozenset(tags | by), {})


def cloudwatch(board: Mapping[str, Any]) -> Iterator[Asked]:
    """List the searches of a CloudWatch dashboard.

    Raises:
        ValueError: one is not of the form that the generator writes.
    """
    for widget in board["widgets"]:
        for [entry] in widget["properties"].get("metrics", ()):
            match = _CLOUDWATCH.search(entry["expression"])
            if match is None:
                raise ValueError(f"no search: {entry['expression']}")
            shown = re.findall(r"Dim\.(\w+)", entry["label"])
            values = dict(re.findall(r'(\w+)="([^"]*)"', match["more"]))
            labels = frozenset((*match["schema"].split(","), *shown, *values))
            yield Asked(entry["expression"], match["name"], labels, values)


def cloudwatch_table() -> dict[str, frozenset[str]]:
    """List the dimensions of each metric in CloudWatch."""
    return {
        row.cloudwatch: frozenset(dimension_name(label) for label in row.labels) for row in METRICS
    }
