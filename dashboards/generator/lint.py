"""Checks dashboards and rules offline, against the metric table and our own rules.

PromQL is read by a parser. Labels are followed through each expression, so that a label which is
dropped from the table, or from an aggregation, is found where it is missed: in a matcher, in
``by``, in ``on``, in a legend.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import promql_parser as ast
from grafana_foundation_sdk.models import units

from amorsize.exporters.metrics import LABEL_LIMITS, METRICS, PROMETHEUS_ONLY, Kind

from .promql import BAR, RATE_WINDOW, TARGET_LABELS, VIEW

Known = Mapping[str, frozenset[str]]
"""The labels of each existing series, by name."""

MOST_PANELS = 25

UNITS = {value for name, value in vars(units).items() if not name.startswith("_")}
"""Those that Grafana knows."""

USERS_LABELS = tuple(LABEL_LIMITS)
"""Labels that may have a hundred values: a graph shows the first ten."""

VARIABLES = ("datasource", "job", "function", "executor")

_GRAFANA = {
    "$__rate_interval": "60s",
    "$__range": "3600s",
    "$__interval_ms": "15000",
    "$__interval": "15s",
}
"""Grafana's built-in variables, with the values that replace them here."""

_SELECTED = re.compile(r'"\$(\w+)"')
_LEGEND = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_LABEL_VALUES = re.compile(r"^label_values\((?P<series>.+), *(?P<label>\w+)\)$")


@dataclass(frozen=True)
class Place:
    """A query, and its place.

    Attributes:
        where: for people.
        expr: the query.
        legend: what its series are called; empty where they are not.
        instant: whether it is asked for one moment.
    """

    where: str
    expr: str
    legend: str = ""
    instant: bool = False


def table() -> Known:
    """List the series of the metric table, histograms by their parts."""
    known: dict[str, frozenset[str]] = {}
    for metric in (*METRICS, *PROMETHEUS_ONLY):
        labels = frozenset(metric.labels + TARGET_LABELS)
        if metric.kind is Kind.HISTOGRAM:
            known[f"{metric.prometheus}_bucket"] = labels | {"le"}
            known[f"{metric.prometheus}_sum"] = known[f"{metric.prometheus}_count"] = labels
        else:
            known[metric.prometheus] = labels
    return known


def substitute(expr: str, values: Mapping[str, str] | None = None) -> str:
    """Do what Grafana does to a query before it sends it.

    Args:
        expr: the query.
        values: of variables, by name with its ``$``; what is missing is that of ``_GRAFANA``,
            and everything.
    """
    for name, value in sorted((_GRAFANA | dict(values or {})).items(), key=_longest_first):
        expr = expr.replace(name, value)
    return _SELECTED.sub('".*"', expr)


def queries(board: Mapping[str, Any]) -> Iterator[Place]:
    """List every query of a dashboard: panels, annotations, variables."""
    title = board["title"]
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield Place(
                f"{title}, {panel['title']}, {target['refId']}",
                target["expr"],
                target.get("legendFormat", ""),
                instant=target.get("instant", False),
            )
    for annotation in board["annotations"]["list"]:
        if "expr" in annotation:
            legend = annotation.get("titleFormat", "")
            tags = "".join(f"{{{{{tag}}}}}" for tag in annotation.get("tagKeys", "").split(","))
            yield Place(f"{title}, {annotation['name']}", annotation["expr"], legend + tags)
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            match = _LABEL_VALUES.match(variable["query"]["query"])
            assert match is not None, variable["query"]
            # Grafana's function is no PromQL; this query is equivalent.
            yield Place(
                f"{title}, variable {variable['name']}",
                f"count by ({match['label']}) ({match['series']})",
                instant=True,
            )


def rule_queries(rules: Mapping[str, Any]) -> Iterator[Place]:
    """List every query of a file of rules."""
    for group in rules["groups"]:
        for rule in group["rules"]:
            name = rule.get("record") or rule["alert"]
            texts = " ".join(rule.get("annotations", {}).values())
            used = re.findall(r"\$labels\.(\w+)", texts)
            yield Place(name, rule["expr"], "".join(f"{{{{{label}}}}}" for label in used))


def recorded(rules: Mapping[str, Any], known: Known) -> Known:
    """Add the series that a file of rules records to the known series."""
    found = dict(known)
    for group in rules["groups"]:
        for rule in group["rules"]:
            if "record" in rule:
                name = rule["record"]
                # A rule that remembers names itself; its level says which labels it has.
                level = name.partition(":")[0].split("_")
                found[name] = frozenset(level)
    return found


def check_query(place: Place, known: Known) -> Iterator[str]:
    """Find names that are not in the table, and labels that a series lacks.

    Yields:
        What is wrong, for people.
    """
    try:
        tree = ast.parse(substitute(place.expr))
    except ValueError as error:
        yield f"{place.where}: is no PromQL: {error}"
        return
    found: list[str] = []
    labels = _labels(tree, known, found)
    for problem in found:
        yield f"{place.where}: {problem}"
    if labels is not None:
        for label in _LEGEND.findall(place.legend):
            if label not in labels:
                yield f"{place.where}: {label!r} is named, and the result has {_listed(labels)}"


def check_board(board: Mapping[str, Any], known: Known | None = None) -> Iterator[str]:
    """Find what is wrong with a dashboard.

    Yields:
        What is wrong, for people.
    """
    title = board["title"]
    for place in queries(board):
        yield from check_query(place, known or table())
        # What was before a range is looked for in a range of its own.
        for window in re.findall(r"\[([^\]]+)\](?! offset)", place.expr):
            if window not in (RATE_WINDOW, VIEW, BAR):
                yield f"{place.where}: its window is {window}, not one of Grafana's"
    names = [variable["name"] for variable in board["templating"]["list"]]
    if tuple(names) != VARIABLES:
        yield f"{title}: its variables are {names}, not {list(VARIABLES)}"
    if board.get("editable", True):
        yield f"{title}: is editable"
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    if len(panels) > MOST_PANELS:
        yield f"{title}: has {len(panels)} panels, more than {MOST_PANELS}"
    yield from _check_grid(board)
    for panel in panels:
        yield from _check_panel(f"{title}, {panel.get('title')}", panel)
    for holder in (*board["annotations"]["list"], *board["templating"]["list"]):
        if "expr" in holder or holder.get("type") == "query":
            yield from _check_source(f"{title}, {holder['name']}", holder)


def _check_panel(where: str, panel: Mapping[str, Any]) -> Iterator[str]:
    for field in ("title", "description"):
        if not panel.get(field, "").strip():
            yield f"{where}: has no {field}"
    defaults = panel.get("fieldConfig", {}).get("defaults", {})
    if defaults.get("unit") not in UNITS:
        yield f"{where}: has no unit that Grafana knows, but {defaults.get('unit')!r}"
    if panel["type"] in ("stat", "table", "bargauge") and not defaults.get("noValue"):
        yield f"{where}: has no text for the time without data"
    if not panel.get("targets"):
        yield f"{where}: has no query"
    refs = [target["refId"] for target in panel.get("targets", ())]
    if len(set(refs)) != len(refs):
        yield f"{where}: two queries have one refId"
    for target in panel.get("targets", ()):
        many = any(f"{{{{{label}}}}}" in target.get("legendFormat", "") for label in USERS_LABELS)
        if many and not target["expr"].startswith(("topk(", "bottomk(")):
            yield f"{where}: draws as many series as there are names; keep the top ten"
    yield from _check_shares(where, panel)
    for holder in (panel, *panel.get("targets", ())):
        yield from _check_source(where, holder)


def _check_shares(where: str, panel: Mapping[str, Any]) -> Iterator[str]:
    """A share is never above 100 %: one that can be says nothing."""
    config = panel.get("fieldConfig", {})
    columns = {
        field.removeprefix("Value #"): title
        for change in panel.get("transformations", ())
        for field, title in change["options"].get("renameByName", {}).items()
    }
    of_column = {
        each["matcher"]["options"]: setting["value"]
        for each in config.get("overrides", ())
        for setting in each["properties"]
        if setting["id"] == "unit"
    }
    for target in panel.get("targets", ()):
        unit = of_column.get(columns.get(target["refId"]), config["defaults"].get("unit"))
        if unit == "percentunit" and "clamp_max(" not in target["expr"]:
            yield f"{where}: a share that may be above 100 %; clamp it"


def _check_source(where: str, holder: Mapping[str, Any]) -> Iterator[str]:
    if holder.get("datasource", {}).get("uid") != "${datasource}":
        yield f"{where}: its data source is not ${{datasource}}"


def _check_grid(board: Mapping[str, Any]) -> Iterator[str]:
    title = board["title"]
    ids = [panel["id"] for panel in board["panels"]]
    if len(set(ids)) != len(ids):
        yield f"{title}: two panels have one id"
    taken: dict[tuple[int, int], str] = {}
    for panel in board["panels"]:
        grid = panel["gridPos"]
        if grid["x"] + grid["w"] > 24:
            yield f"{title}, {panel['title']}: reaches beyond the grid"
        cells = [
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        ]
        below = {taken[cell] for cell in cells if cell in taken}
        for other in sorted(below):
            yield f"{title}, {panel['title']}: lies over {other}"
        taken.update(dict.fromkeys(cells, panel["title"]))


def _labels(tree: Any, known: Known, found: list[str]) -> frozenset[str] | None:
    """Follow labels through an expression; None is a number, which has any and none."""
    match tree:
        case ast.VectorSelector():
            return _selected(tree, known, found)
        case ast.MatrixSelector():
            return _selected(tree.vector_selector, known, found)
        case ast.AggregateExpr():
            inner = _labels(tree.expr, known, found) or frozenset()
            if str(tree.op) in ("topk", "bottomk"):
                return inner
            if tree.modifier is None:
                return frozenset()
            named = frozenset(tree.modifier.labels)
            _miss(named - inner, "is aggregated by", inner, found)
            by = tree.modifier.type == ast.AggModifierType.By
            return named if by else inner - named
        case ast.BinaryExpr():
            return _combined(tree, known, found)
        case ast.Call():
            results = [_labels(each, known, found) for each in tree.args]
            inner = next((each for each in results if each is not None), None)
            if tree.func.name == "histogram_quantile" and inner is not None:
                _miss({"le"} - inner, "is needed for a quantile", inner, found)
                return inner - {"le"}
            return frozenset() if tree.func.name == "vector" else inner
        case ast.ParenExpr() | ast.SubqueryExpr() | ast.UnaryExpr():
            return _labels(tree.expr, known, found)
        case ast.NumberLiteral() | ast.StringLiteral():
            return None
    raise TypeError(f"an expression of a kind that is not known here: {tree!r}")


def _selected(selector: Any, known: Known, found: list[str]) -> frozenset[str]:
    if selector.name not in known:
        found.append(f"{selector.name!r} is not in the metric table")
        return frozenset()
    labels = known[selector.name]
    _miss({each.name for each in selector.matchers.matchers} - labels, "is matched", labels, found)
    return labels


def _combined(tree: Any, known: Known, found: list[str]) -> frozenset[str] | None:
    left, right = _labels(tree.lhs, known, found), _labels(tree.rhs, known, found)
    if left is None or right is None:
        return right if left is None else left
    matching = None if tree.modifier is None else tree.modifier.matching
    if matching is not None:
        named = frozenset(matching.labels)
        if matching.type == ast.LabelModifierType.Exclude:
            if left - named != right - named:
                found.append(
                    f"the sides of {str(tree.op)!r} have {_listed(left)} and {_listed(right)}, "
                    f"of which {_listed(named)} are ignored"
                )
            return left
        _miss(named - left, "is matched on", left, found)
        _miss(named - right, "is matched on", right, found)
        return left
    operator = str(tree.op)
    constant = frozenset[str]()  # of vector(0), which only fills in
    if operator != "or" and left != right:
        found.append(f"the sides of {operator!r} have {_listed(left)} and {_listed(right)}")
    if operator == "or" and right != constant:
        return left & right
    return left


def _miss(
    missing: frozenset[str] | set[str], what: str, labels: frozenset[str], found: list[str]
) -> None:
    found.extend(f"{label!r} {what}, among {_listed(labels)}" for label in sorted(missing))


def _listed(labels: frozenset[str]) -> str:
    return ", ".join(sorted(labels)) or "no labels"


def _longest_first(item: tuple[str, str]) -> int:
    return -len(item[0])
