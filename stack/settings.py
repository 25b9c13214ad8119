"""Writes the configuration files of the compose stack, with targets on this machine.

``make stack`` and its tests run on the very files that the containers mount: only where to find
the others is replaced, and how often to look, if that is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from .errors import StackError

HERE = Path(__file__).parent
ROOT = HERE.parent

PROMETHEUS_FILE = HERE / "prometheus.yml"
ALERTMANAGER_FILE = HERE / "alertmanager.yml"
RULES_FOLDER = ROOT / "dashboards" / "prometheus"


def prometheus(
    targets: Mapping[str, Sequence[str]], *, alertmanager: str, interval: float | None = None
) -> dict[str, Any]:
    """Replace the targets in ``prometheus.yml``.

    Args:
        targets: addresses as ``host:port``, by the name of their job; other jobs are left out.
        alertmanager: its address.
        interval: seconds between scrapes and between evaluations; None means those of the file.

    Raises:
        StackError: the file has no such job, or has settings that would lead elsewhere.
    """
    config: dict[str, Any] = read(PROMETHEUS_FILE)
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    unknown = set(targets) - set(jobs)
    if unknown:
        raise StackError(f"{PROMETHEUS_FILE} has no job named {', '.join(sorted(unknown))}")
    config["scrape_configs"] = [
        {key: value for key, value in jobs[name].items() if not key.endswith("_sd_configs")}
        | {"static_configs": [{"targets": list(addresses)}]}
        for name, addresses in targets.items()
    ]
    config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]}
    config["rule_files"] = [str(RULES_FOLDER / Path(name).name) for name in config["rule_files"]]
    if interval is not None:
        milliseconds = f"{max(round(interval * 1000), 1)}ms"
        config["global"] |= {
            "scrape_interval": milliseconds,
            "scrape_timeout": milliseconds,
            "evaluation_interval": milliseconds,
        }
    return config


def read(path: Path) -> Any:
    """Read a YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def write(path: Path, config: Mapping[str, Any]) -> Path:
    """Write a YAML file; returns its path."""
    path.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
    return path
