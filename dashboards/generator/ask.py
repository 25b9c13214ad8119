"""Runs the queries of dashboards and rules on a real Prometheus."""

from __future__ import annotations

import json
import math
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import promql_parser as ast

from .lint import Place, substitute

_COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")


@dataclass(frozen=True)
class Series:
    """The answer to a query.

    Attributes:
        labels: of the series.
        points: times in seconds since the epoch, and values; without NaN.
    """

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class View:
    """The view of a dashboard: a time range, and the values of its variables.

    Attributes:
        url: of Prometheus.
        start: in seconds since the epoch.
        end: the same.
        window: seconds, for ``$__rate_interval``.
        step: seconds between two points.
        variables: by name, with its ``$``.
    """

    url: str
    start: float
    end: float
    window: float
    step: float
    variables: Mapping[str, str]

    def ask(self, place: Place) -> list[Series]:
        """Run a query as Grafana would: at the end, or over the whole time range.

        Raises:
            ValueError: Prometheus does not understand the query.
        """
        query = {"query": self._written(place)}
        if place.instant:
            found = self._get("query", query | {"time": str(self.end)})
            answers = [(each["metric"], [each["value"]]) for each in found]
        else:
            when = {"start": str(self.start), "end": str(self.end), "step": str(self.step)}
            found = self._get("query_range", query | when)
            answers = [(each["metric"], each["values"]) for each in found]
        series = []
        for labels, values_found in answers:
            numbers = [(float(at), float(value)) for at, value in values_found]
            points = tuple((at, value) for at, value in numbers if not math.isnan(value))
            if points:
                series.append(Series(labels, points))
        return series

    def _written(self, place: Place) -> str:
        values = {
            "$__rate_interval": _duration(self.window),
            "$__range": _duration(self.end - self.start),
            "$__interval": _duration(self.step),
            "$__interval_ms": str(round(1000 * self.step)),
            **self.variables,
        }
        return substitute(place.expr, values)

    def exemplars(self, place: Place) -> list[tuple[float, float]]:
        """Ask for the exemplars of the series that a query reads: times and values."""
        query = {"query": self._written(place), "start": str(self.start), "end": str(self.end)}
        points = {
            (float(each["timestamp"]), float(each["value"]))
            for series in self._get("query_exemplars", query)
            for each in series["exemplars"]
        }
        return sorted(points)

    def _get(self, what: str, parameters: Mapping[str, str]) -> Any:
        url = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                data = json.load(answer)["data"]
                return data if isinstance(data, list) else data["result"]
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode()
            raise ValueError(f"{parameters['query']}: {said}") from None


def conditions(place: Place) -> Iterator[Place]:
    """Split an alert into the expressions that it compares, without its thresholds.

    A condition has no answer while all is well; what it compares always has one.
    """
    for expr in _parts(ast.parse(place.expr)):
        yield Place(f"{place.where}: {expr}", expr, instant=place.instant)


def _parts(tree: Any) -> Iterator[str]:
    match tree:
        case ast.BinaryExpr() if str(tree.op) in ("and", "or", "unless", *_COMPARISONS):
            yield from _parts(tree.lhs)
            yield from _parts(tree.rhs)
        case ast.ParenExpr() | ast.AggregateExpr() if _compares(tree.expr):
            yield from _parts(tree.expr)
        case _ if selects(tree):
            yield str(tree)


def selects(tree: Any) -> bool:
    """Say whether an expression reads any series: a threshold does not."""
    found: list[Any] = []

    def visit(node: Any) -> bool:
        if isinstance(node, ast.VectorSelector | ast.MatrixSelector):
            found.append(node)
        return True

    ast.walk(tree, visit)
    return bool(found)


def _compares(tree: Any) -> bool:
    if isinstance(tree, ast.ParenExpr):
        return _compares(tree.expr)
    return isinstance(tree, ast.BinaryExpr) and str(tree.op) in ("and", "or", "unless", ">", "<")


def _duration(seconds: float) -> str:
    return f"{max(1, round(1000 * seconds))}ms"
