"""Draws panels at their places, from answers to their queries; ``pictures`` uses it."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator
from PIL import Image

from .ask import Series

mpl.use("agg")

Answers = Sequence[tuple[Mapping[str, Any], Sequence[Series]]]
"""Targets, and their answers."""

BACKGROUND, PANEL, BORDER, TEXT, MUTED = "#111217", "#181b1f", "#2c3235", "#d8d9da", "#8e9297"

COLORS = {
    "green": "#73bf69",
    "yellow": "#fade2a",
    "orange": "#ff9830",
    "red": "#f2495c",
    "blue": "#5794f2",
}
PALETTE = ("#73bf69", "#5794f2", "#fade2a", "#b877d9", "#ff9830", "#f2495c", "#37872d", "#8ab8ff")

PIXELS_A_COLUMN, PIXELS_A_ROW, GAP = 62, 30, 4
DPI = 100


class Painter:
    """Draws one dashboard.

    Args:
        board: as it is committed.
        start: of what is shown, in seconds since the epoch.
        end: the same.
    """

    def __init__(self, board: Mapping[str, Any], start: float, end: float) -> None:
        rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
        self._width = 24 * PIXELS_A_COLUMN + GAP
        self._top = 34
        self._height = rows * PIXELS_A_ROW + self._top + GAP
        self._start, self._end = start, end
        self._marks: list[tuple[float, str]] = []
        self._names: dict[str, str] = {}
        self._figure = Figure((self._width / DPI, self._height / DPI), dpi=DPI)
        self._figure.set_facecolor(BACKGROUND)
        self._text(10, 24, board["title"], TEXT, 11, weight="bold")

    def annotate(self, marks: Mapping[str, tuple[Mapping[str, Any], Sequence[Series]]]) -> None:
        """Take the annotations; they are drawn in each graph."""
        x = self._width - 10
        for name, (annotation, series) in marks.items():
            color = COLORS.get(annotation["iconColor"], annotation["iconColor"])
            last = -math.inf
            for at, value in sorted(point for each in series for point in each.points):
                if annotation.get("useValueForTime"):
                    moments = [value / 1000]
                else:
                    moments = [at] if at - last > 3 else []
                    last = at
                self._marks += [(moment, color) for moment in moments if moment > self._start]
            self._text(x, 24, f"▲ {name}", color, 8, ha="right")
            x -= 150
        self._marks = sorted(set(self._marks))

    def panel(
        self, panel: Mapping[str, Any], answers: Answers, exemplars: Sequence[tuple[float, float]]
    ) -> None:
        """Draw a panel.

        Args:
            panel: of the dashboard.
            answers: of its queries.
            exemplars: times and values.
        """
        grid = panel["gridPos"]
        x, y = grid["x"] * PIXELS_A_COLUMN + GAP, grid["y"] * PIXELS_A_ROW + self._top
        width = grid["w"] * PIXELS_A_COLUMN - GAP
        height = grid["h"] * PIXELS_A_ROW - GAP
        if panel["type"] == "row":
            self._text(x + 4, y + 20, f"⌄ {panel['title']}", TEXT, 9.5, weight="bold")
            return
        box = FancyBboxPatch(
            (x / self._width, 1 - (y + height) / self._height),
            width / self._width,
            height / self._height,
            boxstyle="square,pad=0",
            facecolor=PANEL,
            edgecolor=BORDER,
            linewidth=0.7,
            zorder=-2,
            transform=self._figure.transFigure,
        )
        self._figure.add_artist(box)
        self._text(x + 8, y + 17, panel["title"], TEXT, 8, weight="bold")
        draw = {
            "stat": self._stat,
            "timeseries": self._graph,
            "heatmap": self._heat_map,
            "table": self._table,
            "bargauge": self._bars,
        }[panel["type"]]
        draw(panel, answers, (x, y + 24, width, height - 24))
        if exemplars and panel["type"] == "timeseries":
            axes = self._figure.axes[-1]
            low, high = axes.get_ylim()
            seen = [(at, value) for at, value in exemplars if low <= value <= high]
            axes.scatter(
                [at for at, _ in seen], [value for _, value in seen],
                marker="D", s=9, color="#8ab8ff", edgecolors=PANEL, linewidths=0.4, zorder=5,
            )  # fmt: skip

    def save(self, path: Path) -> None:
        """Write the picture, with as few colours as it needs."""
        buffer = io.BytesIO()
        self._figure.savefig(buffer, format="png", dpi=DPI, facecolor=BACKGROUND)
        buffer.seek(0)
        with Image.open(buffer) as image:
            image.convert("RGB").quantize(128).save(path, optimize=True)

    def _stat(self, panel: Mapping[str, Any], answers: Answers, box: Box) -> None:
        x, y, width, height = box
        defaults = panel["fieldConfig"]["defaults"]
        values = [each.points[-1][1] for _, series in answers for each in series]
        value = values[0] if values else None
        color = _threshold(defaults, value)
        text = defaults["noValue"] if value is None else _said(value, defaults["unit"])
        size = 19 if value is not None else 12
        self._text(x + width / 2, y + height / 2 + 4, text, color, size, ha="center")

    def _graph(self, panel: Mapping[str, Any], answers: Answers, box: Box) -> None:
        defaults = panel["fieldConfig"]["defaults"]
        fixed = _fixed_colors(panel)
        stacked = defaults["custom"]["drawStyle"] == "bars"
        series = [
            (_name(target["legendFormat"], each), each)
            for target, found in answers
            for each in found
        ]
        series.sort(key=lambda pair: pair[0])
        axes = self._axes(box, legend=20 if series else 0)
        floor: dict[float, float] = {}
        shown = []
        for name, each in series:
            color = fixed.get(name) or self._color(name)
            times = [at for at, _ in each.points]
            values = [value for _, value in each.points]
            if stacked:
                if not any(values):
                    continue
                bottoms = [floor.get(at, 0.0) for at in times]
                axes.bar(times, values, 1.5, bottoms, color=color, alpha=0.85, linewidth=0)
                floor.update(
                    {
                        at: below + value
                        for at, below, value in zip(times, bottoms, values, strict=True)
                    }
                )
            else:
                for part in _unbroken(each.points):
                    axes.plot(*zip(*part, strict=True), color=color, linewidth=1.2)
                axes.fill_between(times, values, color=color, alpha=0.05, linewidth=0)
            shown.append((name, color))
        low, high = axes.get_ylim()
        axes.set_ylim(0, defaults.get("max") or max(high, 1e-3 if high == low else high))
        for at, color in self._marks:
            axes.axvline(at, color=color, linewidth=0.7, linestyle=(0, (3, 3)), alpha=0.55)
        self._y_axis(axes, defaults["unit"])
        self._legend(shown, box)

    def _heat_map(self, panel: Mapping[str, Any], answers: Answers, box: Box) -> None:
        [(_, series)] = answers
        buckets = sorted(series, key=lambda each: float(each.labels["le"]))
        axes = self._axes(box, legend=0)
        times = sorted({at for each in buckets for at, _ in each.points})
        grid = []
        below = dict.fromkeys(times, 0.0)
        for each in buckets:
            found = dict(each.points)
            grid.append([max(0.0, found.get(at, 0) - below[at]) for at in times])
            below = {at: found.get(at, 0) for at in times}
        used = [row for row, counts in enumerate(grid) if any(counts)] or [0]
        low, high = max(0, min(used) - 1), min(len(grid), max(used) + 2)
        colors = LinearSegmentedColormap.from_list("", [PANEL, "#7c3a12", "#ff9830", "#ffe6c2"])
        axes.pcolormesh(
            [*times, times[-1] + 1.5],
            list(range(high - low + 1)),
            [[math.sqrt(count) for count in counts] for counts in grid[low:high]],
            cmap=colors,
        )
        axes.set_yticks(list(range(1, high - low + 1)))
        axes.set_yticklabels(
            [
                "+Inf" if each.labels["le"] == "+Inf" else _said(float(each.labels["le"]), "s")
                for each in buckets[low:high]
            ]
        )

    def _table(self, panel: Mapping[str, Any], answers: Answers, box: Box) -> None:
        x, y, width, height = box
        organize = panel["transformations"][1]["options"]
        names: Mapping[str, str] = organize["renameByName"]
        keys = [key for key in names if not key.startswith("Value #")]
        table: dict[tuple[str, ...], dict[str, float]] = {}
        for target, series in answers:
            for each in series:
                key = tuple(each.labels.get(name, "") for name in keys)
                column = names[f"Value #{target['refId']}"]
                table.setdefault(key, {})[column] = each.points[-1][1]
        columns = [names[key] for key in names]
        settings = {
            override["matcher"]["options"]: {
                item["id"]: item.get("value") for item in override["properties"]
            }
            for override in panel["fieldConfig"]["overrides"]
        }
        sort = panel["options"]["sortBy"][0]["displayName"]
        rows = sorted(table.items(), key=lambda row: -row[1].get(sort, -1))
        if not rows:
            self._text(x + 10, y + 24, panel["fieldConfig"]["defaults"]["noValue"], MUTED, 9)
            return
        weights = [1.6 if name in ("Function", "Progress") else 1.0 for name in columns]
        lefts = [x + 10 + (width - 20) * sum(weights[:at]) / sum(weights) for at in range(99)]
        for at, name in enumerate(columns):
            self._text(lefts[at], y + 14, name, MUTED, 7.5, weight="bold")
        for number, (key, found) in enumerate(rows):
            line = y + 36 + 24 * number
            if line > y + height - 4:
                break
            for at, name in enumerate(columns):
                setting = settings.get(name, {})
                if at < len(keys):
                    color = COLORS["blue"] if "links" in setting else TEXT
                    self._text(lefts[at], line, key[at], color, 8)
                elif name in found:
                    value = found[name]
                    color = TEXT
                    if "thresholds" in setting:
                        color = _threshold({"thresholds": setting["thresholds"]}, value)
                    room = (width - 20) * weights[at] / sum(weights)
                    left = lefts[at]
                    if "max" in setting:
                        self._bar(left, line - 10, (room - 60) * min(1, value), 11, color)
                        left += room - 52
                    self._text(left, line, _said(value, setting["unit"]), color, 8)

    def _bars(self, panel: Mapping[str, Any], answers: Answers, box: Box) -> None:
        x, y, width, height = box
        defaults = panel["fieldConfig"]["defaults"]
        found = [
            (_name(target["legendFormat"], each), each.points[-1][1])
            for target, series in answers
            for each in series
        ]
        most = max((value for _, value in found), default=0) or 1
        for number, (name, value) in enumerate(sorted(found, key=lambda pair: -pair[1])):
            line = y + 20 + 34 * number
            if line > y + height - 14:
                break
            color = _threshold(defaults, value)
            self._text(x + 10, line, name, TEXT, 8)
            self._text(x + width - 10, line, _said(value, defaults["unit"]), color, 8, ha="right")
            self._bar(x + 10, line + 4, width - 20, 9, BORDER)
            self._bar(x + 10, line + 4, (width - 20) * max(0.0, value) / most, 9, color)

    def _axes(self, box: Box, *, legend: float) -> Axes:
        x, y, width, height = box
        left, bottom = 52, 22 + legend
        axes = self._figure.add_axes(
            (
                (x + left) / self._width,
                1 - (y + height - bottom) / self._height,
                (width - left - 12) / self._width,
                (height - bottom - 6) / self._height,
            ),
            facecolor=PANEL,
        )
        axes.set_xlim(self._start, self._end)
        minutes = [self._start + seconds for seconds in range(0, int(self._end - self._start), 60)]
        axes.set_xticks(minutes)
        axes.set_xticklabels([f"{number} min" for number in range(len(minutes))])
        axes.tick_params(colors=MUTED, labelsize=6.5, length=0, pad=3)
        axes.grid(color=BORDER, linewidth=0.6)
        axes.set_axisbelow(True)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return axes

    def _y_axis(self, axes: Axes, unit: str) -> None:
        low, high = axes.get_ylim()
        scale = 0.001 if unit == "s" and high < 1 else 60 if unit == "s" and high > 120 else 1
        ticks = [scale * each for each in MaxNLocator(4).tick_values(low / scale, high / scale)]
        ticks = [tick for tick in ticks if low <= tick <= high * 1.001]
        axes.set_yticks(ticks)
        axes.set_yticklabels([_said(tick, unit) for tick in ticks])

    def _legend(self, shown: Sequence[tuple[str, str]], box: Box) -> None:
        x, y, width, height = box
        left = x + 12.0
        for name, color in shown:
            room = 16 + 5.6 * len(name)
            if left + room > x + width:
                break
            self._bar(left, y + height - 12, 10, 3, color)
            self._text(left + 14, y + height - 7, name, TEXT, 7)
            left += room + 12

    def _bar(self, x: float, y: float, width: float, height: float, color: str) -> None:
        patch = FancyBboxPatch(
            (x / self._width, 1 - (y + height) / self._height),
            max(width, 0.5) / self._width,
            height / self._height,
            boxstyle="square,pad=0",
            facecolor=color,
            linewidth=0,
            zorder=-1,
            transform=self._figure.transFigure,
        )
        self._figure.add_artist(patch)

    def _text(self, x: float, y: float, text: str, color: str, size: float, **more: Any) -> None:
        self._figure.text(
            x / self._width, 1 - y / self._height, text, color=color, fontsize=size, **more
        )

    def _color(self, name: str) -> str:
        return self._names.setdefault(name, PALETTE[len(self._names) % len(PALETTE)])


Box = tuple[float, float, float, float]
"""Left, top, width and height, in pixels from the top left."""


def _name(legend: str, series: Series) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: series.labels.get(match[1], ""), legend)


def _unbroken(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Cut a line where it has no values."""
    parts: list[list[tuple[float, float]]] = []
    for point in points:
        if not parts or point[0] - parts[-1][-1][0] > 3.2:
            parts.append([])
        parts[-1].append(point)
    return parts


def _fixed_colors(panel: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for override in panel["fieldConfig"].get("overrides", ()):
        for item in override["properties"]:
            if item["id"] == "color":
                color = item["value"]["fixedColor"]
                found[override["matcher"]["options"]] = COLORS.get(color, color)
    return found


def _threshold(defaults: Mapping[str, Any], value: float | None) -> str:
    color = MUTED
    if value is not None:
        for step in defaults["thresholds"]["steps"]:
            if step.get("value") is None or value >= step["value"]:
                color = COLORS.get(step["color"], step["color"])
    return color


def _said(value: float, unit: str) -> str:
    """Write a number as Grafana does, about."""
    if unit == "s":
        for limit, scale, name in ((1, 1000, "ms"), (120, 1, "s"), (7200, 1 / 60, "min")):
            if abs(value) < limit:
                return f"{value * scale:.3g} {name}" if value else "0 s"
        return f"{value / 3600:.3g} h"
    if unit == "percentunit":
        return f"{100 * value:.3g}%"
    suffix = {"cps": "/s"}.get(unit, "")
    if abs(value) >= 10_000:
        return f"{value / 1000:.3g} K{suffix}"
    if value == round(value):
        return f"{value:.0f}{suffix}"
    return f"{value:.3g}{suffix}"
