"""Run all cells, interleaved, and lay out their ratios to the best peer of each row."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import compile_packages, report
from benchmarks.choice.contenders import CONTENDERS
from benchmarks.choice.workloads import WORKLOADS

CELL_SECONDS = 120.0
"""A cell that takes longer has hung."""

OURS = "amorsize"
TITLES = {"first": "First call in a process", "later": "A later call"}
CALLS = tuple(TITLES)


@dataclass(frozen=True, slots=True)
class Row:
    """The measurements of one workload.

    Attributes:
        workload: its name.
        seconds: by contender and by call (``first``, ``later``), one for each round.
        again: by call, the peer that led the first round, and its seconds once more, one for each
            round.
    """

    workload: str
    seconds: dict[str, dict[str, list[float]]]
    again: dict[str, tuple[str, list[float]]]

    def median(self, contender: str, call: str) -> float:
        """Return the median over the rounds."""
        return statistics.median(self.seconds[contender][call])

    def best_peer(self, call: str) -> str:
        """Name the peer with the lowest median."""
        peers = (name for name in self.seconds if name != OURS)
        return min(peers, key=lambda name: self.median(name, call))

    def ratio(self, contender: str, call: str) -> float:
        """Return the ratio of a contender's time to the best peer's."""
        return self.median(contender, call) / self.median(self.best_peer(call), call)

    def noise(self, call: str) -> float:
        """Return the difference between two medians of one peer, as a share."""
        peer, again = self.again[call]
        one = self.median(peer, call)
        return abs(statistics.median(again) - one) / one


def run(
    workloads: Sequence[str], rounds: int, *, say: Callable[[str], None] = lambda text: None
) -> Iterator[Row]:
    """Measure workload after workload; within one, round after round, each begun by another."""
    names = list(CONTENDERS)
    compile_packages()
    for at, workload in enumerate(workloads, 1):
        row = Row(workload, {name: {call: [] for call in CALLS} for name in names}, {})
        for turn in range(rounds):
            progress = f"{at} of {len(workloads)}: {workload}, round {turn + 1} of {rounds}"
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                say(f"{progress}, {name}")
                for call, taken in run_cell("call", workload, name).items():
                    row.seconds[name][call].append(taken)
            if not row.again:
                row.again.update({call: (row.best_peer(call), []) for call in CALLS})
            for call, (peer, again) in row.again.items():
                say(f"{progress}, {peer} again")
                again.append(run_cell("call", workload, peer)[call])
        yield row


def run_cell(what: str, *words: str, path: Path | None = None) -> dict[str, Any]:
    """Run one cell in a fresh process; :mod:`benchmarks.choice.cell` describes its output.

    Args:
        what, words: its command line.
        path: the folder to import amorsize and the benchmarks from; None for this one.
    """
    command = [sys.executable, "-m", "benchmarks.choice.cell", what, *words]
    # Into a file: workers that outlive the cell would hold a pipe open.
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            start_new_session=True,
            cwd=path,
            env=None if path is None else {**os.environ, "PYTHONPATH": str(path)},
        )
        try:
            code = process.wait(CELL_SECONDS)
        finally:
            # The cell leaves its pools open; this ends them too.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        out.seek(0)
        text = out.read()
    if code != 0:
        raise RuntimeError(f"{' '.join((what, *words))} ended with exit code {code}: {text}")
    found: dict[str, Any] = json.loads(text)
    return found


def render(rows: Sequence[Row], *, markdown: bool = False) -> str:
    """Lay out the ratios, with the geometric mean and the worst cell of each contender."""
    parts = []
    for call in CALLS:
        title = TITLES[call]
        lines = [("workload", "best peer", "takes", *rows[0].seconds, "noise")]
        for row in rows:
            best = row.best_peer(call)
            cells = [f"{row.ratio(name, call):.2f}" for name in row.seconds]
            seconds = f"{row.median(best, call) * 1e3:,.3g} ms"
            title_of = WORKLOADS[row.workload].title
            lines.append((title_of, best, seconds, *cells, f"{row.noise(call):.0%}"))
        means = [f"{geometric_mean(rows, name, call):.2f}" for name in rows[0].seconds]
        worst = [f"{max(row.ratio(name, call) for row in rows):.2f}" for name in rows[0].seconds]
        lines.append(("geometric mean", "", "", *means, ""))
        lines.append(("worst cell", "", "", *worst, ""))
        text = report.laid_out(lines, words=(0, 1), markdown=markdown)
        parts.append(f"{title}: times as long as the best peer of the row\n\n{text}")
    return "\n\n".join([*parts, "\n".join(judge(rows))])


def geometric_mean(rows: Sequence[Row], contender: str, call: str) -> float:
    """Return the geometric mean over the workloads of the ratios to the best peer."""
    return statistics.geometric_mean([row.ratio(contender, call) for row in rows])


def judge(rows: Sequence[Row]) -> list[str]:
    """Say for each target whether it is reached."""
    judged = [row for row in rows if not WORKLOADS[row.workload].short]
    worst_first = max((row.ratio(OURS, "first") for row in judged), default=0.0)
    ahead = [sum(row.ratio(OURS, call) < 1 for row in rows) for call in CALLS]
    figures = [
        ("geometric mean, first calls", geometric_mean(rows, OURS, "first"), 1.05),
        ("geometric mean, later calls", geometric_mean(rows, OURS, "later"), 1.00),
        ("worst cell, first calls (1 s and more of work)", worst_first, 1.20),
        ("worst cell, later calls", max(row.ratio(OURS, "later") for row in rows), 1.15),
    ]
    lines = [report.verdict(title, value, limit) for title, value, limit in figures]
    third = len(rows) / 3
    lines += [
        f"ahead of every peer, {call} calls: {count} of {len(rows)} rows, at least a third: "
        f"{'reached' if count >= third else 'NOT reached'}"
        for call, count in zip(CALLS, ahead, strict=True)
    ]
    return lines
