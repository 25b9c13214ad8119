"""The embedded metric format: metrics as lines of a log, which CloudWatch Logs picks out.

The format: https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/
CloudWatch_Embedded_Metric_Format_Specification.html
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, repeat
from typing import Any, TypeAlias

from amorsize.exporters.cloudwatch.data import Datum, Dimensions, Statistics

MAX_METRICS = 100
MAX_LINE_VALUES = 100
"""Metrics in a line, and values of a metric."""

_Metric: TypeAlias = tuple[str, str, float | list[float]]


def lines(data: Iterable[Datum], namespace: str, now: float) -> Iterator[str]:
    """Write data as lines, without their line ends.

    Args:
        data: to be written.
        namespace: of the metrics.
        now: the time of the data, in seconds since the epoch.
    """
    by_dimensions: dict[Dimensions, list[Datum]] = {}
    for datum in data:
        by_dimensions.setdefault(datum.dimensions, []).append(datum)
    for dimensions, group in by_dimensions.items():
        for metrics in _spread(metric for datum in group for metric in _metrics(datum)):
            yield _line(metrics, dimensions, namespace, now)


def _metrics(datum: Datum) -> Iterator[_Metric]:
    value = datum.value
    if isinstance(value, Statistics):
        # The format has single values only: each statistic gets a name of its own.
        yield f"{datum.name}.Count", "Count", value.count
        yield f"{datum.name}.Sum", datum.unit, value.total
        yield f"{datum.name}.Min", datum.unit, value.least
        yield f"{datum.name}.Max", datum.unit, value.greatest
    elif isinstance(value, Mapping):
        values = list(chain.from_iterable(repeat(each, count) for each, count in value.items()))
        for start in range(0, len(values), MAX_LINE_VALUES):
            yield datum.name, datum.unit, values[start : start + MAX_LINE_VALUES]
    else:
        yield datum.name, datum.unit, value


def _spread(metrics: Iterable[_Metric]) -> Iterator[dict[str, _Metric]]:
    """Put metrics into lines, each name at most once per line."""
    waiting: list[dict[str, _Metric]] = []
    for metric in metrics:
        line = next((each for each in waiting if metric[0] not in each), None)
        if line is None:
            line = {}
            waiting.append(line)
        line[metric[0]] = metric
        if len(line) == MAX_METRICS:
            waiting.remove(line)
            yield line
    yield from waiting


def _line(
    metrics: Mapping[str, _Metric], dimensions: Dimensions, namespace: str, now: float
) -> str:
    definitions = [{"Name": name, "Unit": unit} for name, unit, _ in metrics.values()]
    document: dict[str, Any] = {
        "_aws": {
            "Timestamp": int(now * 1000),
            "CloudWatchMetrics": [
                {
                    "Namespace": namespace,
                    "Dimensions": [[name for name, _ in dimensions]],
                    "Metrics": definitions,
                }
            ],
        },
        **dict(dimensions),
        **{name: value for name, _, value in metrics.values()},
    }
    return json.dumps(document, separators=(",", ":"))
