"""The shipped configuration with other targets: nothing but those is different."""

from __future__ import annotations

from pathlib import Path

import pytest

from stack import settings
from stack.errors import StackError

SHIPPED = settings.read(settings.PROMETHEUS_FILE)
JOBS = {job["job_name"]: job for job in SHIPPED["scrape_configs"]}
APP, GATEWAY, MANAGER = "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"


def replaced(interval: float | None = None) -> dict[str, object]:
    targets = {"amorsize": [APP], "pushgateway": [GATEWAY]}
    return settings.prometheus(targets, alertmanager=MANAGER, interval=interval)


def test_targets_are_replaced_and_other_settings_stay() -> None:
    """Also where the container finds its targets by their names."""
    config = replaced()
    assert config["global"] == SHIPPED["global"]
    assert config["scrape_configs"] == [
        {"job_name": "amorsize", "static_configs": [{"targets": [APP]}]},
        {
            "job_name": "pushgateway",
            "honor_labels": True,
            "static_configs": [{"targets": [GATEWAY]}],
        },
    ]
    assert JOBS["pushgateway"]["honor_labels"] is True
    assert config["alerting"] == {"alertmanagers": [{"static_configs": [{"targets": [MANAGER]}]}]}


def test_the_rule_files_are_those_of_the_repository() -> None:
    """The same names as in the container, and they exist."""
    files = replaced()["rule_files"]
    assert isinstance(files, list)
    assert [Path(file).name for file in files] == [
        Path(file).name for file in SHIPPED["rule_files"]
    ]
    assert all(Path(file).is_file() for file in files)


def test_an_interval_is_that_of_scrapes_and_of_rules() -> None:
    """And no scrape may take longer."""
    assert replaced(0.5)["global"] == {
        "scrape_interval": "500ms",
        "scrape_timeout": "500ms",
        "evaluation_interval": "500ms",
    }


def test_a_job_that_the_file_has_not_is_said() -> None:
    """As after somebody renamed one."""
    with pytest.raises(StackError, match=r"prometheus\.yml has no job named app"):
        settings.prometheus({"app": [APP]}, alertmanager=MANAGER)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """By any reader of YAML."""
    assert settings.read(settings.write(tmp_path / "x.yml", replaced())) == replaced()
