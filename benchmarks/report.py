"""Shows results: a table for people, JSON for programs."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import cores
from benchmarks.harness import UNITS, Result

COLUMNS = ("figure", "value", "peer", "its value", "ratio or difference", "noise", "at most")
_PEERS = ("pluggy", "blinker", "prometheus-client", "joblib", "mpire")


def machine() -> str:
    """Describe the machine, its load and the versions, in two lines."""
    versions = " · ".join(f"{name} {_version(name)}" for name in ("amorsize", *_PEERS))
    python = f"{platform.python_implementation()} {platform.python_version()}"
    load = f" · load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{python} · {platform.system()} · {cores()} cores · {_processor()}{load}\n{versions}"


def rows(result: Result) -> list[tuple[str, ...]]:
    """Lay out one result: a row for each peer."""
    figure = result.figure
    noise = f"{result.noise:.0%}" if result.noise >= 0.01 else "< 1%"
    value = _show(result.seconds(), figure.unit)
    if not result.peers:
        return [(figure.title, value, "", "", "", noise, _target(result))]
    laid: list[tuple[str, ...]] = []
    for peer in result.peers:
        theirs = _show(result.seconds(peer), figure.unit)
        target = _target(result) if peer == figure.against else ""
        # The figure's own columns appear once, in its first row.
        of_figure = (figure.title, value, noise) if not laid else ("", "", "")
        laid.append((*of_figure[:2], peer, theirs, _compare(result, peer), of_figure[2], target))
    return laid


def laid_out(
    lines: Sequence[tuple[str, ...]], *, words: Sequence[int], markdown: bool = False
) -> str:
    """Lay out a table whose first line is its head, for a terminal or as Markdown."""
    if not markdown:
        return aligned(lines, words=words)
    rule = tuple("---" if at in words else "---:" for at in range(len(lines[0])))
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def verdict(title: str, value: float, at_most: float) -> str:
    """Say whether a target is reached."""
    reached = "reached" if value <= at_most else "NOT reached"
    return f"{title}: {value:.2f}, at most {at_most:.2f}: {reached}"


def table(results: Sequence[Result], *, markdown: bool = False) -> str:
    """Lay out all results as a table, for a terminal or as Markdown."""
    lines = [COLUMNS, *(row for result in results for row in rows(result))]
    return laid_out(lines, words=(0, 2, 6), markdown=markdown)


def aligned(lines: Sequence[tuple[str, ...]], *, words: Sequence[int] = (0, 2, 6)) -> str:
    """Pad the columns; those of ``words`` to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at in words else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def as_json(results: Sequence[Result]) -> dict[str, Any]:
    """Return all measurements, in seconds, with each round."""
    return {
        "machine": machine(),
        "figures": [
            {
                "name": result.figure.name,
                "title": result.figure.title,
                "of": result.name,
                "seconds": result.seconds(),
                "noise": result.noise,
                "at_most": result.figure.at_most,
                "judged": result.judged,
                "peers": {
                    peer: {
                        "seconds": result.seconds(peer),
                        "ratio": result.ratio(peer),
                        "difference_seconds": result.difference(peer),
                    }
                    for peer in result.peers
                },
                "rounds": result.rounds,
            }
            for result in results
        ],
    }


def say(what: str) -> None:
    """Show the current measurement on a terminal, on one line that is overwritten."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{what}")
        sys.stderr.flush()


def _compare(result: Result, peer: str) -> str:
    if not result.figure.difference:
        return f"{result.ratio(peer):.2f}"
    more = result.difference(peer)
    text = f"{'+' if more >= 0 else '-'}{_show(abs(more), result.figure.unit)}"
    if result.figure.share_of is not None:
        text += f" ({more / result.figure.share_of:.3%} of {result.figure.share_of:g} s)"
    return text


def _target(result: Result) -> str:
    judged = result.judged
    if judged is None:
        return ""
    in_value = result.figure.against is None or result.figure.difference
    unit = f" {result.figure.unit}" if in_value else ""
    verdict = "reached" if judged <= (result.figure.at_most or 0.0) else "NOT reached"
    return f"{result.figure.at_most:g}{unit}: {verdict}"


def _show(seconds: float, unit: str) -> str:
    value = seconds / UNITS[unit]
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
