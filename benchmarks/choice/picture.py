"""Draws the tables: one row per workload, one mark per contender, the best peer at 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.choice.table import CALLS, OURS, TITLES, Row
from benchmarks.choice.workloads import WORKLOADS

_FARTHEST = 12.0
"""Marks beyond this stand at the edge, with their number."""


def draw(rows: Sequence[Row], path: Path, *, caption: str) -> None:
    """Write the picture of both tables to ``path``, in the format of its suffix (PNG, SVG)."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullLocator

    names = list(rows[0].seconds)
    height = 1.6 + 0.42 * len(rows)
    figure, sheets = pyplot.subplots(1, 2, figsize=(13, height), sharey=True, layout="constrained")
    colours = dict(
        zip(
            names,
            ["#d62728", *pyplot.get_cmap("tab10").colors[:3], *pyplot.get_cmap("tab10").colors[4:]],
            strict=False,
        )
    )
    nearest = min(row.ratio(name, call) for row in rows for name in names for call in CALLS)
    for sheet, call in zip(sheets, CALLS, strict=True):
        sheet.axvline(1, color="#999999", linewidth=1)
        for name in [*names[1:], OURS]:  # ours on top
            ratios = [row.ratio(name, call) for row in rows]
            ours = name == OURS
            sheet.scatter(
                [min(ratio, _FARTHEST) for ratio in ratios],
                range(len(rows)),
                s=90 if ours else 40,
                marker="D" if ours else "o",
                color=colours[name],
                alpha=1.0 if ours else 0.6,
                label=name,
                zorder=3 if ours else 2,
            )
            for at, ratio in enumerate(ratios):
                if ours and ratio > _FARTHEST:
                    sheet.annotate(
                        f"{ratio:.0f}", (_FARTHEST, at), xytext=(7, -3), textcoords="offset points"
                    )
        sheet.set_xscale("log")
        sheet.set_xlim(min(0.2, 0.8 * nearest), _FARTHEST * 1.25)
        sheet.xaxis.set_major_locator(FixedLocator([0.125, 0.25, 0.5, 1, 2, 4, 8]))
        sheet.xaxis.set_minor_locator(NullLocator())
        sheet.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        sheet.set_title(TITLES[call])
        sheet.set_xlabel("times as long as the best peer of the row (left is faster)")
        sheet.grid(axis="y", color="#eeeeee")
        sheet.set_axisbelow(True)
    sheets[0].set_yticks(range(len(rows)), [WORKLOADS[row.workload].title for row in rows])
    sheets[0].invert_yaxis()
    handles, labels = sheets[0].get_legend_handles_labels()
    order = [labels.index(name) for name in names]
    figure.legend(
        [handles[at] for at in order],
        [labels[at] for at in order],
        loc="outside lower center",
        ncols=len(names),
        frameon=False,
    )
    figure.suptitle(caption, fontsize=9, color="#555555")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
