"""Each alert fires when it should, and resolves: promtool, on the rules as they are shipped."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = [ROOT / "dashboards" / "prometheus" / name for name in ("alerts.yml", "recording.yml")]
ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load(RULES[0].read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
}

FUNCTION = 'job="nightly",instance="host:9464",function="parse"'
RUN = f'{FUNCTION},executor="process"'
OF_FUNCTION = {"job": "nightly", "function": "parse"}
OF_RUN = {**OF_FUNCTION, "instance": "host:9464", "executor": "process"}
HOUR, DAY = 60, 24 * 60
WEEK = 7 * DAY


@dataclass(frozen=True)
class Case:
    """How an alert comes and goes.

    Attributes:
        alert: its name.
        series: values a minute, in promtool's notation.
        labels: those of the alert, without name and severity.
        value: at the first minute that it fires, as people read it.
        fires: minutes at which it does; the value is that of the first.
        silent: minutes at which it does not.
        evaluated: how often the rules are.
    """

    alert: str
    series: Mapping[str, str]
    labels: Mapping[str, str] = field(default_factory=lambda: OF_FUNCTION)
    value: str = ""
    fires: tuple[int, ...] = ()
    silent: tuple[int, ...] = ()
    evaluated: str = "1m"


FAILED_AT_10 = {
    f'amorsize_last_completion_timestamp_seconds{{{FUNCTION},status="error"}}': "_x10 600x60"
}
LATE = "amorsize_last_success_timestamp_seconds{" + FUNCTION + "}"
IN_PROGRESS = f"amorsize_executions_in_progress{{{RUN}}}"
ACTIVITY = f"amorsize_last_activity_timestamp_seconds{{{RUN}}}"
LONGEST = f"amorsize_longest_chunk_seconds{{{RUN}}}"
COMPLETED = f'amorsize_last_completion_timestamp_seconds{{{FUNCTION},status="ok"}}'
SPEEDUPS = {
    f"amorsize_estimated_speedup_ratio{{{FUNCTION}}}": "4x60",
    f"amorsize_measured_speedup_ratio{{{FUNCTION}}}": "1x30 3.5x30",
    COMPLETED: "0x30 1860x30",
}
EVENT = 'job="nightly",instance="host:9464",event="on_error"'
EXPORTER = 'job="nightly",instance="host:9464",exporter="datadog"'

CASES = {
    "an execution failed": Case(
        "AmorsizeExecutionFailed",
        FAILED_AT_10,
        value="2m 0s",
        fires=(12,),
        silent=(9, 25, 60),
    ),
    "an execution timed out": Case(
        "AmorsizeExecutionFailed",
        {key.replace('"error"', '"timeout"'): each for key, each in FAILED_AT_10.items()},
        value="1m 0s",
        fires=(11,),
        silent=(9, 26),
    ),
    "an execution was cancelled": Case(
        "AmorsizeExecutionFailed",
        {key.replace('"error"', '"cancelled"'): each for key, each in FAILED_AT_10.items()},
        silent=(11, 20),
    ),
    "no success for two days": Case(
        "AmorsizeNoRecentSuccess",
        {LATE: f"3600x{2 * DAY + 2 * HOUR} 180000x60"},
        value="2d 0h 12m 0s",
        fires=(2 * DAY + HOUR + 12,),
        silent=(2 * DAY + HOUR, 2 * DAY + 2 * HOUR + 12),
        evaluated="4m",
    ),
    "no success for two days, of a program that has ended": Case(
        "AmorsizeNoRecentSuccess",
        {LATE: "0 0 0"},
        value="2d 0h 4m 0s",
        fires=(2 * DAY + 4,),
        silent=(2 * DAY, WEEK + 4),
        evaluated="4m",
    ),
    "workers died": Case(
        "AmorsizeWorkersDied",
        {f"amorsize_worker_deaths_total{{{RUN}}}": "0x9 2x40"},
        value="2",
        fires=(10, 18),
        silent=(9, 20, 40),
    ),
    "a worker died before the first scrape": Case(
        "AmorsizeWorkersDied",
        {f"amorsize_worker_deaths_total{{{RUN}}}": "_x10 1x40", ACTIVITY: "_x10 590x40"},
        value="1",
        fires=(10, 19),
        silent=(9, 20, 40),
    ),
    "a tenth of the items fail": Case(
        "AmorsizeItemsFailing",
        {
            f"amorsize_items_failed_total{{{RUN}}}": "0+10x20 200x40",
            f"amorsize_items_processed_total{{{RUN}}}": "0+100x60",
        },
        value="10%",
        fires=(12,),
        silent=(2, 50),
    ),
    "one in a hundred items fails": Case(
        "AmorsizeItemsFailing",
        {
            f"amorsize_items_failed_total{{{RUN}}}": "0+1x60",
            f"amorsize_items_processed_total{{{RUN}}}": "0+100x60",
        },
        silent=(12, 30),
    ),
    "an execution stalls": Case(
        "AmorsizeExecutionStalled",
        {IN_PROGRESS: "1x60 0x10", ACTIVITY: "0x70"},
        labels=OF_RUN,
        value="31m 0s",
        fires=(31, 60),
        silent=(30, 61),
    ),
    "an execution stalls, and goes on": Case(
        "AmorsizeExecutionStalled",
        {IN_PROGRESS: "1x70", ACTIVITY: "0x40 2400x30"},
        labels=OF_RUN,
        value="40m 0s",
        fires=(40,),
        silent=(30, 41, 60),
    ),
    "an execution with chunks of hours is no stall": Case(
        "AmorsizeExecutionStalled",
        {IN_PROGRESS: "1x400", ACTIVITY: "0x400", LONGEST: "7200x400"},
        labels=OF_RUN,
        value="6h 1m 0s",
        fires=(361,),
        silent=(31, 120, 360),
    ),
    "an execution with a chunk of half an hour waits for three of them": Case(
        "AmorsizeExecutionStalled",
        {IN_PROGRESS: "1x400", ACTIVITY: "0x400", LONGEST: "1860x400"},
        labels=OF_RUN,
        value="1h 34m 0s",
        fires=(94,),
        silent=(31, 93),
    ),
    "an execution with chunks of ten minutes waits for half an hour": Case(
        "AmorsizeExecutionStalled",
        {IN_PROGRESS: "1x400", ACTIVITY: "0x400", LONGEST: "600x400"},
        labels=OF_RUN,
        value="31m 0s",
        fires=(31,),
        silent=(30,),
    ),
    "nothing runs": Case(
        "AmorsizeExecutionStalled", {IN_PROGRESS: "0x200", ACTIVITY: "0x200"}, silent=(31, 190)
    ),
    "a quarter of the estimated speedup": Case(
        "AmorsizeSpeedupLow",
        {**SPEEDUPS, f"amorsize_last_duration_seconds{{{FUNCTION}}}": "60x60"},
        value="25%",
        fires=(16, 30),
        silent=(14, 31),
    ),
    "runs too short to tell": Case(
        "AmorsizeSpeedupLow",
        {**SPEEDUPS, f"amorsize_last_duration_seconds{{{FUNCTION}}}": "2x60"},
        silent=(16, 30),
    ),
    "a hook raises": Case(
        "AmorsizeHookErrors",
        {f"amorsize_hook_errors_total{{{EVENT}}}": "0x9 9x40"},
        labels={"job": "nightly", "event": "on_error"},
        value="9",
        fires=(10,),
        silent=(9, 20),
    ),
    "an exporter fails": Case(
        "AmorsizeExporterErrors",
        {f"amorsize_exporter_errors_total{{{EXPORTER}}}": "0x9 9x40"},
        labels={"job": "nightly", "exporter": "datadog"},
        value="9",
        fires=(10,),
        silent=(9, 20),
    ),
    "an exporter drops": Case(
        "AmorsizeExporterDropping",
        {f"amorsize_exporter_dropped_total{{{EXPORTER}}}": "0x9 9x40"},
        labels={"job": "nightly", "exporter": "datadog"},
        value="9",
        fires=(10,),
        silent=(9, 20),
    ),
}


@pytest.fixture(scope="session")
def promtool() -> str:
    path = shutil.which("promtool")
    if path is None:
        message = "promtool is not installed (on Debian: apt-get install prometheus)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path


def rendered(case: Case) -> dict[str, str]:
    """Fill in the texts of an alert as Prometheus does."""

    def fill(match: re.Match[str]) -> str:
        label = re.search(r"\$labels\.(\w+)", match[0])
        return case.labels[label[1]] if label else case.value

    texts = ALERTS[case.alert]["annotations"]
    return {name: re.sub(r"\{\{.*?\}\}", fill, text) for name, text in texts.items()}


def run_promtool(promtool: str, directory: Path, case: Case) -> subprocess.CompletedProcess[str]:
    labels = {**case.labels, "severity": ALERTS[case.alert]["labels"]["severity"]}
    checks: list[tuple[int, list[Any]]] = [(minute, []) for minute in case.silent]
    for minute in case.fires[:1]:
        checks.append((minute, [{"exp_labels": labels, "exp_annotations": rendered(case)}]))
    test: dict[str, Any] = {
        "interval": "1m",
        "input_series": [
            {"series": series, "values": values} for series, values in case.series.items()
        ],
        "alert_rule_test": [
            {"eval_time": f"{minute}m", "alertname": case.alert, "exp_alerts": alerts}
            for minute, alerts in checks
        ],
        # Later the value in the texts is another one; that it fires still is what counts.
        "promql_expr_test": [
            {
                "eval_time": f"{minute}m",
                "expr": f'count(ALERTS{{alertname="{case.alert}",alertstate="firing"}})',
                "exp_samples": [{"labels": "{}", "value": 1}],
            }
            for minute in case.fires[1:]
        ],
    }
    document = {
        "rule_files": [str(path) for path in RULES],
        "evaluation_interval": case.evaluated,
        "tests": [test],
    }
    file = directory / "case.yml"
    file.write_text(json.dumps(document), encoding="utf-8")
    return subprocess.run(
        [promtool, "test", "rules", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_rules_are_rules(promtool: str) -> None:
    """promtool reads both files, and finds none of them empty."""
    done = subprocess.run(
        [promtool, "check", "rules", *map(str, RULES)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("SUCCESS") == 2


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_an_alert_fires_and_resolves(promtool: str, tmp_path: Path, case: Case) -> None:
    """At the minute it should, with the texts that people read, and not before or after."""
    done = run_promtool(promtool, tmp_path, case)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_recorded_series_is_documented() -> None:
    """By its name; and the runbook has the alerts in their order."""
    recording = yaml.safe_load(RULES[1].read_text(encoding="utf-8"))
    names = {rule["record"] for group in recording["groups"] for rule in group["rules"]}
    page = (ROOT / "docs" / "dashboards.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+:\w+:\w+)` \|", page, re.MULTILINE)) == names
    assert re.findall(r"^### (Amorsize\w+)$", page, re.MULTILINE) == list(ALERTS)


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    """A new alert is not shipped untested."""
    assert {case.alert for case in CASES.values() if case.fires and case.silent} == set(ALERTS)


def test_a_wrong_text_is_found(promtool: str, tmp_path: Path) -> None:
    """The cases can fail: another value, and another minute."""
    case = CASES["workers died"]
    for wrong in (
        Case(case.alert, case.series, value="3", fires=(10,)),
        Case(case.alert, case.series, silent=(10,)),
        Case(case.alert, case.series, value=case.value, fires=(10, 20)),
    ):
        assert run_promtool(promtool, tmp_path, wrong).returncode != 0


@pytest.mark.parametrize("alert", ALERTS.values(), ids=ALERTS.keys())
def test_an_alert_says_what_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    """Severity, summary, description, a panel that exists, and an entry of the runbook."""
    assert alert["labels"]["severity"] in ("critical", "warning")
    texts = alert["annotations"]
    assert set(texts) == {"summary", "description", "dashboard", "runbook_url"}
    assert len(texts["summary"]) < 80 < len(texts["description"])
    link = re.match(r"http://localhost:3000/d/([\w-]+)\?viewPanel=(\d+)&", texts["dashboard"])
    assert link is not None
    board = json.loads((ROOT / "dashboards" / "grafana" / f"{link[1]}.json").read_text())
    assert int(link[2]) in {each["id"] for each in board["panels"] if each["type"] != "row"}
    variables = {each["name"] for each in board["templating"]["list"]}
    assert set(re.findall(r"var-(\w+)=", texts["dashboard"])) <= variables
    page, _, anchor = texts["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert anchor in {heading.lower() for heading in headings}
