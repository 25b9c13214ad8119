"""The Prometheus exporter, seen through a real Prometheus."""

from __future__ import annotations

import re
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE

from amorsize.exporters.prometheus.exporter import PrometheusExporter
from amorsize.hooks import HookContext, HookEvent, HookManager

from .backends import PrometheusServer, require_binary

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "prometheus.md"

pytestmark = pytest.mark.e2e


@pytest.fixture
def manager() -> HookManager:
    return HookManager()


@pytest.fixture
def exporter(manager: HookManager) -> Iterator[PrometheusExporter]:
    with PrometheusExporter(port=0).attach(manager) as exporter:
        yield exporter


def emit(manager: HookManager, event: HookEvent, metadata: Any = (), **fields: Any) -> None:
    about = {"execution_id": "1", "function": 'load "x"', "executor_type": "thread"}
    manager.trigger(HookContext(event, metadata={**about, **dict(metadata)}, **fields))


def begin(manager: HookManager) -> None:
    """An execution of ten chunks, of which nine are in and one failed."""
    emit(manager, HookEvent.PRE_EXECUTE, total_items=100)
    emit(manager, HookEvent.ON_WORKER_START, worker_id=0, worker_count=1)
    for chunk_id in range(9):
        emit(
            manager,
            HookEvent.ON_CHUNK_COMPLETE,
            {"queue_time": 0.001},
            worker_id=0,
            chunk_size=10,
            chunk_time=0.02,
            items_completed=10 * (chunk_id + 1),
        )
    error = ValueError("bad row")
    emit(manager, HookEvent.ON_ERROR, {"failed_items": 1}, error=error)


def end(manager: HookManager) -> None:
    emit(
        manager,
        HookEvent.POST_EXECUTE,
        {"status": "error", "planning_time": 0.1},
        elapsed_time=2.0,
        items_completed=90,
    )


def test_promql_totals_equal_the_events(
    manager: HookManager,
    exporter: PrometheusExporter,
    prometheus_server: Callable[..., PrometheusServer],
) -> None:
    """While the execution runs, and after it failed."""
    server = prometheus_server(targets=[f"127.0.0.1:{exporter.port}"])
    begin(manager)
    server.wait_for("sum(amorsize_items_processed_total)", 90)
    assert server.value('amorsize_items_completed{function="load \\"x\\""}') == 90
    assert server.value("sum(amorsize_executions_in_progress)") == 1
    assert server.value("amorsize_items_completed / amorsize_items_expected") == 0.9
    assert server.value("sum(amorsize_chunk_duration_seconds_count)") == 9
    assert server.value('amorsize_errors_total{error_type="ValueError"}') == 1
    assert server.value('sum(amorsize_executions_total{status="error"})') == 0
    end(manager)
    server.wait_for('sum(amorsize_executions_total{status="error"})', 1)
    assert server.value("sum(amorsize_executions_in_progress)") == 0
    assert server.value("sum(amorsize_workers)") == 0
    assert server.value("sum(amorsize_items_failed_total)") == 1
    quantile = "histogram_quantile(0.5, sum by (le) (amorsize_chunk_duration_seconds_bucket))"
    assert 0.005 < (server.value(quantile) or 0) <= 0.025
    # It was zero before, so that a rate sees the first failure.
    increase = 'sum(increase(amorsize_executions_total{status="error"}[1m])) > bool 0'
    server.wait_for(increase, 1)
    assert server.value("up") == 1


def test_promtool_finds_nothing_to_complain_about(
    manager: HookManager, exporter: PrometheusExporter
) -> None:
    """Names, types and help texts follow Prometheus' own conventions."""
    promtool = require_binary("promtool", "prometheus")
    begin(manager)
    end(manager)
    with urllib.request.urlopen(exporter.url, timeout=PATIENCE) as response:
        text = response.read()
    check = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True)
    assert (check.returncode, check.stdout + check.stderr) == (0, b"")


def test_the_questions_of_the_guide_have_answers(
    manager: HookManager,
    exporter: PrometheusExporter,
    prometheus_server: Callable[..., PrometheusServer],
) -> None:
    """Every PromQL expression of docs/prometheus.md is valid, and the first ones find series."""
    server = prometheus_server(targets=[f"127.0.0.1:{exporter.port}"])
    begin(manager)
    server.wait_for("sum(amorsize_items_processed_total)", 90)
    table = GUIDE.read_text(encoding="utf-8").partition("## Questions worth asking")[2]
    questions = re.findall(r"^\| [^`|]+ \| `([^`]+)`", table, re.M)
    assert len(questions) == 7
    for promql in questions:
        server.query(promql)
    assert server.value(questions[0]) == 0.9
