"""What a Prometheus has scraped, minute by minute, and what rings then: input for promtool.

Pages are those of real programs, gateways and files. Time begins with the epoch, so a program whose
clock says that it is ten past midnight, in 1970, belongs to minute 10.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

from e2e.pushgateway import Samples

Labels: TypeAlias = frozenset[tuple[str, str]]

Ringing: TypeAlias = tuple[str, str]
"""An alert, and what it is about: a function, an event or an exporter."""

SUBJECTS = ("function", "event", "exporter")


class Timeline:
    """The series of one Prometheus that scrapes once a minute.

    Args:
        rules: files of recording rules and alerts; only what they read is kept.
        minutes: how long it goes on.
        step: minutes between two evaluations.
    """

    def __init__(self, rules: Iterable[Path], minutes: int, step: int = 1) -> None:
        self._rules = list(rules)
        self.minutes = minutes
        self._step = step
        text = "".join(path.read_text(encoding="utf-8") for path in self._rules)
        self._names = set(re.findall(r"\bamorsize_\w+", text))
        self._pages: dict[str, dict[int, Mapping[tuple[str, Labels], float]]] = {}
        self._down: set[int] = set()

    def show(self, target: str, minute: int, page: Samples | None, **labels: str) -> None:
        """Let a target show a page from a minute on.

        Args:
            target: its name.
            minute: of the first scrape that finds the page.
            page: None for a target that is gone.
            labels: that Prometheus adds; where the page has one of them, it becomes
                ``exported_...``.
        """
        kept = {
            (name, _labelled(its, labels)): value
            for (name, its), value in (page or {}).items()
            if name in self._names
        }
        assert kept or not page
        self._pages.setdefault(target, {})[minute] = kept

    def stop_scraping(self, first: int, last: int) -> None:
        """Let Prometheus be down in some minutes."""
        self._down.update(range(first, last + 1))

    def ringing(self, promtool: str, directory: Path) -> dict[Ringing, list[tuple[int, int]]]:
        """Evaluate the rules in each minute.

        Returns:
            For each alert that rings at all: the first and the last minute, each time.
        """
        expr = f"count by (alertname, {', '.join(SUBJECTS)}) (ALERTS{{alertstate='firing'}})"
        rang: dict[Ringing, list[int]] = {}
        minutes = range(0, self.minutes + 1, self._step)
        for minute, labels, _ in self._evaluate(promtool, directory, expr, minutes):
            [subject] = [labels[name] for name in SUBJECTS if name in labels]
            rang.setdefault((labels["alertname"], subject), []).append(minute)
        return {ringing: list(_runs(found, self._step)) for ringing, found in rang.items()}

    def value(self, promtool: str, directory: Path, expr: str, minute: int) -> float:
        """Evaluate a query that has one answer."""
        [(_, labels, value)] = self._evaluate(promtool, directory, expr, [minute])
        assert labels == {}
        return value

    def _evaluate(
        self, promtool: str, directory: Path, expr: str, minutes: Iterable[int]
    ) -> Iterable[tuple[int, dict[str, str], float]]:
        # promtool compares: what it has got instead of nothing is the answer.
        test = {
            "interval": "1m",
            "input_series": list(self._input()),
            "promql_expr_test": [
                {"eval_time": f"{minute}m", "expr": expr, "exp_samples": []} for minute in minutes
            ],
        }
        document = {
            "rule_files": [str(path) for path in self._rules],
            "evaluation_interval": f"{self._step}m",
            "group_eval_order": [f"amorsize-{group}" for group in ("recording", "alerts")],
            "tests": [test],
        }
        file = directory / "timeline.yml"
        file.write_text(json.dumps(document), encoding="utf-8")
        done = subprocess.run(
            [promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False
        )
        said = done.stdout + done.stderr
        found = re.findall(r"time: (\S+),\s+exp: *(?:nil)?\s+got:(.*)", said)
        assert found or done.returncode == 0, said
        for when, got in found:
            for labels, value in re.findall(r"{(.*?)} (\S+?)(?:, |$)", got):
                yield _minutes(when), dict(re.findall(r'(\w+)="(.*?)"', labels)), float(value)

    def _input(self) -> Iterable[dict[str, Any]]:
        values: dict[tuple[str, Labels], dict[int, str]] = {}
        for pages in self._pages.values():
            shown: Mapping[tuple[str, Labels], float] = {}
            seen: set[tuple[str, Labels]] = set()
            for minute in range(self.minutes + 1):
                shown = pages.get(minute, shown)
                if minute in self._down:
                    continue
                for series, value in shown.items():
                    values.setdefault(series, {})[minute] = repr(float(value))
                for series in seen - shown.keys():
                    values[series].setdefault(minute, "stale")
                seen = set(shown)
        for (name, labels), found in values.items():
            written = ",".join(f"{label}={json.dumps(value)}" for label, value in sorted(labels))
            every = (found.get(minute, "_") for minute in range(self.minutes + 1))
            yield {"series": f"{name}{{{written}}}", "values": " ".join(_shortened(every))}


def _labelled(its: Labels, added: Mapping[str, str]) -> Labels:
    kept = {f"exported_{name}" if name in added else name: value for name, value in its if value}
    return frozenset((kept | dict(added)).items())


def _shortened(values: Iterable[str]) -> Iterable[str]:
    for value, run in groupby(values):
        times = sum(1 for _ in run)
        if value == "stale":
            yield from ["stale"] * times
        elif value == "_":
            yield f"_x{times}"
        else:
            yield f"{value}x{times - 1}"


def _minutes(duration: str) -> int:
    """Read Go's duration: ``1h5m0s``, or Prometheus' ``1d5m``."""
    units = {"w": 10080, "d": 1440, "h": 60, "m": 1, "s": 0}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)(\w)", duration))


def _runs(minutes: Iterable[int], step: int) -> Iterable[tuple[int, int]]:
    first = last = None
    for minute in minutes:
        if first is None or last is None:
            first = minute
        elif minute > last + step:
            yield first, last
            first = minute
        last = minute
    if first is not None and last is not None:
        yield first, last
