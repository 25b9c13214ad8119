"""The kinds of panels in the dashboards; each kind looks the same everywhere."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from amorsize.exporters import metrics

SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
"""The data source that the reader chose at the top."""

GREEN, YELLOW, ORANGE, RED, BLUE, GREY = "green", "yellow", "orange", "red", "blue", "#8e8e8e"

STATUS_COLORS = {"ok": GREEN, "error": RED, "timeout": ORANGE, "cancelled": GREY}

WITH_EXEMPLARS = (metrics.EXECUTION_DURATION, metrics.CHUNK_DURATION)
"""Histograms whose buckets have exemplars on /metrics; sums and gauges have none."""

Steps: TypeAlias = Sequence[tuple[float | None, str]]
"""Thresholds: a colour, from a value on; the first from minus infinity."""

CALM: Steps = [(None, BLUE)]
ANY_IS_BAD: Steps = [(None, GREEN), (0.5, RED)]

PER_SECOND, SHARE, SECONDS, COUNT = "cps", "percentunit", "s", "short"


@dataclass(frozen=True)
class Line:
    """A query, and the names of its series."""

    expr: str
    legend: str


def single(
    title: str,
    description: str,
    expr: str,
    unit: str,
    *,
    steps: Steps = CALM,
    empty: str = "nothing in the time shown",
    decimals: int | None = None,
) -> stat.Panel:
    """One number, as of now.

    Args:
        title: of the panel.
        description: what it says, and what to look at next.
        expr: the query.
        unit: one of Grafana's.
        steps: the colours.
        empty: the text for the time without data.
        decimals: how many; None for as many as Grafana likes.
    """
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .with_target(_target(expr, title, 0).instant())
        .unit(unit)
        .no_value(empty)
        .thresholds(_thresholds(steps))
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .graph_mode(looks.BigValueGraphMode.NONE)
        .color_mode(looks.BigValueColorMode.VALUE)
        .text_mode(looks.BigValueTextMode.VALUE)
        .height(4)
        .span(3)
    )
    return panel if decimals is None else panel.decimals(decimals)


def lines(
    title: str,
    description: str,
    unit: str,
    *queries: Line,
    width: int = 12,
    most: float | None = None,
    bars: bool = False,
    colors: Mapping[str, str] | None = None,
) -> timeseries.Panel:
    """Lines over time, or stacked bars.

    Args:
        title: of the panel.
        description: what it says, and what to look at next.
        unit: one of Grafana's.
        queries: what is drawn.
        width: of 24.
        most: where the axis ends; None for where the data do.
        bars: stacked bars, for what is counted.
        colors: of series, by name; the others take theirs from the palette, by name.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
        .draw_style(looks.GraphDrawStyle.BARS if bars else looks.GraphDrawStyle.LINE)
        .line_width(0 if bars else 2)
        .fill_opacity(80 if bars else 8)
        .show_points(looks.VisibilityMode.AUTO)
        .span_nulls(False)
        .stacking(
            common.StackingConfig().mode(
                looks.StackingMode.NORMAL if bars else looks.StackingMode.NONE
            )
        )
        .legend(
            common.VizLegendOptions()
            .display_mode(looks.LegendDisplayMode.LIST)
            .placement(looks.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(looks.TooltipDisplayMode.MULTI)
            .sort(looks.SortOrder.DESCENDING)
        )
        .height(8)
        .span(width)
    )
    if most is not None:
        panel.max(most)
    for position, query in enumerate(queries):
        panel.with_target(_target_over_time(query.expr, query.legend, position))
    for name, color in (colors or {}).items():
        fixed = {"mode": "fixed", "fixedColor": color}
        panel.override_by_name(name, [model.DynamicConfigValue(id_val="color", value=fixed)])
    return panel


def heat_map(
    title: str, description: str, expr: str, unit: str, *, width: int = 12
) -> heatmap.Panel:
    """A histogram over time: the darker, the more observations."""
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .with_target(_target_over_time(expr, "{{le}}", 0).format(PromQueryFormat.HEATMAP))
        .unit(unit)
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .steps(64)
            .exponent(0.5)
            .fill("dark-orange")
            .reverse(False)
        )
        .y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(looks.AxisPlacement.LEFT))
        .cell_gap(1)
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .mode(looks.TooltipDisplayMode.SINGLE)
        .show_color_scale(True)
        .show_legend()
        .height(8)
        .span(width)
    )


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: what it is called.
        expr: its query; all columns of a table have the same labels.
        unit: one of Grafana's.
        steps: the colours of its text; None for none.
        bar: drawn as a bar from 0 to 1.
    """

    title: str
    expr: str
    unit: str
    steps: Steps | None = None
    bar: bool = False


def rows(
    title: str,
    description: str,
    keys: Mapping[str, str],
    *columns: Column,
    sort: str,
    empty: str,
    links: Mapping[str, str] | None = None,
    width: int = 24,
    height: int = 9,
) -> table.Panel:
    """A table of current values.

    Args:
        title: of the panel.
        description: what it says, and what to look at next.
        keys: labels, and what their columns are called.
        columns: the others.
        sort: the column whose largest values come first.
        empty: the text for the time without data.
        links: by column: where a click leads.
        width: of 24.
        height: in rows of the grid.
    """
    values = {
        f"Value #{letter}": column.title
        for letter, column in zip(string.ascii_uppercase, columns, strict=False)
    }
    names = dict(keys) | values
    panel = (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(COUNT)
        .no_value(empty)
        .transformations(
            [
                model.DataTransformerConfig(id_val="merge", options={}),
                model.DataTransformerConfig(
                    id_val="organize",
                    options={
                        "excludeByName": {"Time": True},
                        "indexByName": {name: at for at, name in enumerate(names)},
                        "renameByName": names,
                    },
                ),
            ]
        )
        .sort_by([common.TableSortByFieldState().display_name(sort).desc(True)])
        .cell_height(looks.TableCellHeight.SM)
        .show_header(True)
        .height(height)
        .span(width)
    )
    for position, column in enumerate(columns):
        target = _target(column.expr, "", position)
        panel.with_target(target.instant().format(PromQueryFormat.TABLE))
        settings: list[tuple[str, object]] = [("unit", column.unit)]
        if column.steps is not None:
            settings += [
                ("thresholds", _thresholds(column.steps).build()),
                ("custom.cellOptions", {"type": "color-text"}),
            ]
        if column.bar:
            settings += [
                ("min", 0),
                ("max", 1),
                ("custom.cellOptions", {"type": "gauge", "mode": "basic"}),
            ]
        panel.override_by_name(column.title, _settings(settings))
    for name, url in (links or {}).items():
        link = {"title": "Open", "url": url}
        panel.override_by_name(name, _settings([("links", [link])]))
    return panel


def bars(
    title: str,
    description: str,
    unit: str,
    query: Line,
    *,
    empty: str,
    width: int = 12,
    steps: Steps = CALM,
) -> bargauge.Panel:
    """A horizontal bar for each series, as of now."""
    return (
        bargauge.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .with_target(_target(query.expr, query.legend, 0).instant())
        .unit(unit)
        .min(0)
        .no_value(empty)
        .thresholds(_thresholds(steps))
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .orientation(looks.VizOrientation.HORIZONTAL)
        .display_mode(looks.BarGaugeDisplayMode.GRADIENT)
        .show_unfilled(True)
        .height(8)
        .span(width)
    )


Panel: TypeAlias = stat.Panel | timeseries.Panel | heatmap.Panel | table.Panel | bargauge.Panel


def _target(expr: str, legend: str, position: int) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .expr(expr)
        .legend_format(legend)
        .ref_id(string.ascii_uppercase[position])
        .datasource(SOURCE)
    )


def _target_over_time(expr: str, legend: str, position: int) -> prometheus.Dataquery:
    """A query over the time shown, with its traces as points where its series have them."""
    target = _target(expr, legend, position).range()
    reads_them = any(f"{row.prometheus}_bucket{{" in expr for row in WITH_EXEMPLARS)
    return target.exemplar(True) if reads_them else target


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(model.ThresholdsMode.ABSOLUTE)
        .steps([model.Threshold(value=value, color=color) for value, color in steps])
    )


def _settings(settings: Sequence[tuple[str, Any]]) -> list[model.DynamicConfigValue]:
    return [model.DynamicConfigValue(id_val=name, value=value) for name, value in settings]
