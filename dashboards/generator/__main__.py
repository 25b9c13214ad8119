"""``python -m dashboards.generator [DIR]``: write everything, into ``dashboards/`` by default."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from . import cloudwatch, datadog, lint, panels_page, provisioning, rules
from .boards import Board
from .function import function
from .health import health
from .overview import overview
from .workers import workers

HERE = Path(__file__).parent.parent


def boards() -> dict[str, Board]:
    """Build Grafana's dashboards, by their uids."""
    return {board.uid: board for board in (overview(), function(), workers(), health())}


def files() -> dict[str, str]:
    """Make all files, by their paths below ``dashboards/``.

    Raises:
        ValueError: what was made is wrong, and how.
    """
    built = boards()
    made = {f"grafana/{uid}.json": _json(board.to_json()) for uid, board in built.items()}
    made |= {
        "grafana/provisioning/datasources/amorsize.yml": provisioning.to_yaml(
            provisioning.data_sources()
        ),
        "grafana/provisioning/dashboards/amorsize.yml": provisioning.to_yaml(
            provisioning.providers()
        ),
        "prometheus/recording.yml": rules.recording_yaml(),
        "prometheus/alerts.yml": rules.alerts_yaml(built),
        "datadog/amorsize.json": _json(datadog.dashboard()),
        "cloudwatch/amorsize.json": _json(cloudwatch.dashboard()),
    }
    problems = problems_of(made)
    if problems:
        raise ValueError("\n".join(problems))
    return made


def problems_of(made: Mapping[str, str]) -> list[str]:
    """Find what is wrong with files as ``files`` makes them, for Grafana and Prometheus."""
    problems: list[str] = []
    for board in boards_of(made):
        problems += lint.check_board(board)
    recording = yaml.safe_load(made["prometheus/recording.yml"])
    known = lint.recorded(recording, lint.table())
    for document in (recording, yaml.safe_load(made["prometheus/alerts.yml"])):
        for place in lint.rule_queries(document):
            problems += lint.check_query(place, known)
    return problems


def main(arguments: list[str]) -> None:
    """Write the files; in the repository, also the documentation of the panels."""
    root = Path(arguments[0]) if arguments else HERE
    made = files()
    for name, text in made.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    if root == HERE:
        page = panels_page.PAGE.read_text(encoding="utf-8")
        panels_page.PAGE.write_text(
            panels_page.put_into(page, panels_page.to_markdown(boards_of(made))), encoding="utf-8"
        )


def boards_of(made: Mapping[str, str]) -> list[dict[str, Any]]:
    """Read Grafana's dashboards among files as ``files`` makes them, in its order."""
    return [
        json.loads(text)
        for path, text in made.items()
        if path.startswith("grafana/") and path.endswith(".json")
    ]


def _json(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
