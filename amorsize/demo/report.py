"""The report of the demo: a table of its stages, some lines of /metrics, and a JSON summary."""

from __future__ import annotations

import json
import os
import platform
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import amorsize


@dataclass(frozen=True)
class StageReport:
    """One execution, as the table and the JSON summary show it.

    Attributes:
        name: the stage, which is also the ``function`` label of its metrics.
        items: the number of items in its input.
        failed: the number of items whose call raised.
        engine, n_jobs, chunksize, reason, estimated_speedup: the plan, as the optimizer made it.
        measured_speedup, seconds, status: the results. A speedup that is not known is None.
        finding: a sentence about the results.
    """

    name: str
    items: int
    failed: int
    engine: str
    n_jobs: int
    chunksize: int
    reason: str
    estimated_speedup: float | None
    measured_speedup: float | None
    seconds: float
    status: str
    finding: str


_COLUMNS: tuple[tuple[str, int], ...] = (
    ("stage", -8), ("items", 5), ("engine", -7), ("n_jobs", 6), ("chunksize", 9),
    ("estimated", 9), ("measured", 8), ("time", 6), ("status", -6),
)  # fmt: skip
"""Headings and widths; a negative width aligns to the left, as in C's printf."""

_TABLE_WIDTH = sum(abs(width) for _, width in _COLUMNS) + 2 * (len(_COLUMNS) - 1)

_SHOWN = (
    "amorsize_executions_total",
    "amorsize_items_processed_total",
    "amorsize_items_failed_total",
    "amorsize_chunk_duration_seconds_count",
    "amorsize_worker_busy_seconds_total",
    "amorsize_measured_speedup_ratio",
)


def format_table(reports: Sequence[StageReport], *, width: int) -> str:
    """Format the stages as a table, with the reason of the plan and the finding below each."""
    lines = [_row([head for head, _ in _COLUMNS]), "-" * _TABLE_WIDTH]
    for report in reports:
        cells = [
            report.name,
            str(report.items),
            report.engine,
            str(report.n_jobs),
            str(report.chunksize),
            _times(report.estimated_speedup),
            _times(report.measured_speedup),
            f"{report.seconds:.1f} s",
            report.status,
        ]
        lines.append(_row(cells))
        lines += _paragraph("why:    ", report.reason, width)
        lines += [*_paragraph("result: ", report.finding, width), ""]
    return "\n".join(lines[:-1])


def format_round(number: int, reports: Sequence[StageReport]) -> str:
    """Format a round as one line."""
    stages = [
        f"{report.name} {report.items} items"
        + (f" ({report.failed} failed)" if report.failed else "")
        + f" {report.seconds:.1f} s"
        for report in reports
    ]
    return f"Round {number}: " + ", ".join(stages)


def promql_totals(reports: Sequence[StageReport]) -> Iterator[str]:
    """Yield PromQL expressions that must hold after one round."""
    for report in reports:
        yield f'sum(amorsize_items_processed_total{{function="{report.name}"}}) == {report.items}'


def select_metrics(text: str, names: Sequence[str]) -> list[str]:
    """Select the most informative lines about the functions ``names``, in the order of ``text``."""
    wanted = re.compile(rf'({"|".join(_SHOWN)})\{{.*function="({"|".join(map(re.escape, names))})"')
    return [
        line
        for line in text.splitlines()
        if wanted.match(line) and not line.endswith((" 0.0", " 0"))
    ]


def summarise(
    reports: Sequence[StageReport], *, metrics_url: str, files: int, total_bytes: int, rounds: int
) -> dict[str, Any]:
    """Return the content of the table, and what it was measured on, as a dictionary for JSON."""
    return {
        "amorsize": amorsize.__version__,
        "python": platform.python_version(),
        "metrics_url": metrics_url,
        "files": files,
        "bytes": total_bytes,
        "rounds": rounds,
        "stages": [asdict(report) for report in reports],
    }


def write_json(path: Path, summary: dict[str, Any]) -> None:
    """Write the summary at once, so that a program that waits for the file never reads half."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    unfinished.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)


def _row(cells: Sequence[str]) -> str:
    return "  ".join(
        cell.ljust(-width) if width < 0 else cell.rjust(width)
        for cell, (_, width) in zip(cells, _COLUMNS, strict=True)
    ).rstrip()


def _paragraph(label: str, text: str, width: int) -> list[str]:
    indent = " " * 4
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent + label,
        subsequent_indent=indent + " " * len(label),
        break_long_words=False,
    )


def _times(speedup: float | None) -> str:
    return "-" if speedup is None else f"{speedup:.1f}x"
