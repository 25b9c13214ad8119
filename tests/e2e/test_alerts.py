"""Every alert rings and stops ringing on a real Prometheus, through Alertmanager to a webhook.

The job is scraped and stays. The rules are the shipped ones, with durations that are sixty times
shorter; jobs of other kinds, and the durations as they are, are in ``tests/truth/test_alerts.py``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from truth.jobs import Job, Program, Run
from waiting import poll

from dashboards.generator import rules
from dashboards.generator.__main__ import boards

from .alertmanager import Alertmanager, Webhook
from .backends import PrometheusServer

pytestmark = pytest.mark.e2e

FASTER = 60

BAD = (
    Run("raises", failing=1, raises=True, broken=True),
    Run("rejects", failing=3),
    Run("dies", items=4, killing=1, executor="process", n_jobs=1),
    Run("slow", speedups=(4.0, 1.0)),
)
GOOD = (
    *(Run(function) for function in ("raises", "rejects", "dies", "late")),
    Run("slow", speedups=(4.0, 3.5)),
)

RING = {
    ("AmorsizeExecutionFailed", "function", "raises"),
    ("AmorsizeNoRecentSuccess", "function", "late"),
    ("AmorsizeWorkersDied", "function", "dies"),
    ("AmorsizeItemsFailing", "function", "raises"),
    ("AmorsizeItemsFailing", "function", "rejects"),
    ("AmorsizeItemsFailing", "function", "dies"),
    ("AmorsizeSpeedupLow", "function", "slow"),
    ("AmorsizeHookErrors", "event", "post_execute"),
    ("AmorsizeExporterErrors", "exporter", "webhook"),
    ("AmorsizeExporterDropping", "exporter", "webhook"),
}
STALLED = ("AmorsizeExecutionStalled", "function", "stuck")

ROUNDS = 40
"""Bad executions that are made at most, three seconds apart, until all alerts ring."""


@pytest.fixture
def webhook(tmp_path: Path) -> Iterator[Webhook]:
    with Webhook() as webhook:
        yield webhook


@pytest.fixture
def job(tmp_path: Path, webhook: Webhook) -> Iterator[Job]:
    """A job, and a Prometheus that scrapes it."""
    times = rules.Times().divided_by(FASTER)
    texts = {"alerts": rules.alerts_yaml(boards(), times), "recording": rules.recording_yaml(times)}
    for name, text in texts.items():
        (tmp_path / f"{name}.yml").write_text(text, encoding="utf-8")
    with (
        Alertmanager(tmp_path / "alertmanager", webhook.url) as alertmanager,
        Job(Program((), {"port": 0}, stays=True)) as job,
    ):
        server = PrometheusServer(
            tmp_path / "prometheus",
            [job.address],
            config={
                "rule_files": [str(tmp_path / f"{name}.yml") for name in texts],
                "alerting": {
                    "alertmanagers": [{"static_configs": [{"targets": [alertmanager.address]}]}]
                },
            },
        )
        try:
            yield job
        finally:
            server.close()


def said(webhook: Webhook, status: str) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The newest notification of each alert, of those whose newest one has a status."""
    newest: dict[tuple[str, str, str], dict[str, Any]] = {}
    for body in list(webhook.notified):
        for alert in body["alerts"]:
            labels = alert["labels"]
            [subject] = [each for each in ("function", "event", "exporter") if each in labels]
            newest[labels["alertname"], subject, labels[subject]] = alert
    return {key: alert for key, alert in newest.items() if alert["status"] == status}


def make(job: Job, runs: Sequence[Run], *, ago: float = 0.0) -> None:
    for run in runs:
        job.go_on(time.time() - ago, run)


def test_every_alert_rings_and_stops(job: Job, webhook: Webhook) -> None:
    """When it should: while executions go wrong, and when they are good again."""
    make(job, [Run("late")], ago=rules.Times().success / FASTER + 60)
    for _ in range(ROUNDS):
        make(job, BAD)
        deadline = time.monotonic() + 3
        while not (rung := said(webhook, "firing").keys() >= RING) and time.monotonic() < deadline:
            time.sleep(0.1)
        if rung:
            break
    firing = said(webhook, "firing")
    assert firing.keys() == RING
    for alert in firing.values():
        texts = alert["annotations"]
        assert "{{" not in "".join(texts.values())
        assert not re.search(r"\d\.\d{3,}", texts["description"])
    died = firing["AmorsizeWorkersDied", "function", "dies"]["annotations"]["description"]
    assert re.search(r"killed or crashed within 10s: [1-9]\d*\.", died)
    make(job, GOOD)
    poll(lambda: said(webhook, "resolved").keys(), lambda keys: keys == RING, "all is well")
    make(job, [Run("stuck", items=3, hangs=True)], ago=rules.Times().silent / FASTER + 10)
    poll(lambda: said(webhook, "firing").keys(), lambda keys: keys == {STALLED}, "it stalls")
    job.go_on(time.time())
    poll(lambda: said(webhook, "resolved").keys(), lambda keys: keys == {*RING, STALLED}, "it ends")
