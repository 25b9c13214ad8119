"""The main job, end to end: the demo runs, a real Prometheus scrapes it, and the totals agree."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from exporters.dogstatsd import Agent
from ports import free_port
from waiting import poll

from stack.compose import Stack

from .backends import PrometheusServer
from .otlp import OtlpReceiver

pytestmark = pytest.mark.e2e

READY = "until Ctrl-C"
EXPORTERS = Stack(Path(__file__).parents[2]).env["AMORSIZE_EXPORTERS"]
"""Those that the compose stack turns on."""


@contextmanager
def serving_demo(
    summary: Path, environment: Mapping[str, str] | None = None
) -> Iterator[dict[str, object]]:
    """Run ``amorsize demo --serve`` on a free port; gives its summary once the work is done."""
    command = [sys.executable, "-m", "amorsize", "demo", "--quick", "--serve", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--json", str(summary)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | (environment or {}),
    )
    assert process.stdout is not None
    try:
        printed = []
        for line in process.stdout:
            printed.append(line)
            if READY in line:
                break
        else:
            pytest.fail("the demo ended before it served:\n" + "".join(printed))
        yield json.loads(summary.read_text())
        process.send_signal(signal.SIGINT)
        process.communicate()
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_promql_totals_equal_what_the_demo_reports(
    tmp_path: Path, prometheus_server: Callable[..., PrometheusServer]
) -> None:
    """Items, executions and errors of every stage, as Prometheus has them."""
    with serving_demo(tmp_path / "summary.json") as summary:
        stages = summary["stages"]
        assert isinstance(stages, list)
        assert [stage["status"] for stage in stages] == ["ok"] * 3
        server = prometheus_server(targets=[urlsplit(str(summary["metrics_url"])).netloc])
        for stage in stages:
            labels = f'function="{stage["name"]}",executor="{stage["engine"]}"'
            assert stage["items"] > 0
            server.wait_for(f"sum(amorsize_items_processed_total{{{labels}}})", stage["items"])
            server.wait_for(f'sum(amorsize_executions_total{{{labels},status="ok"}})', 1)
            server.wait_for(f"sum(amorsize_items_failed_total{{{labels}}})", 0)
            server.wait_for(f"sum(amorsize_executions_in_progress{{{labels}}})", 0)
            server.wait_for(f"sum(amorsize_workers{{{labels}}})", 0)
        server.wait_for(
            "sum(amorsize_items_processed_total)", sum(stage["items"] for stage in stages)
        )


def test_the_demo_reports_to_all_backends_at_once(
    tmp_path: Path,
    otlp_receiver: OtlpReceiver,
    prometheus_server: Callable[..., PrometheusServer],
) -> None:
    """As in the compose stack: by the environment; exemplars lead to traces that arrived."""
    with Agent() as agent:
        environment = otlp_receiver.environment() | {
            "AMORSIZE_EXPORTERS": EXPORTERS,
            "OTEL_SERVICE_NAME": "amorsize-demo",
            "OTEL_METRIC_EXPORT_INTERVAL": "500",
            "DD_AGENT_HOST": "127.0.0.1",
            "DD_DOGSTATSD_PORT": str(agent.port),
        }
        with serving_demo(tmp_path / "summary.json", environment) as summary:
            server = prometheus_server(targets=[urlsplit(str(summary["metrics_url"])).netloc])
            server.wait_for("count(sum by (function) (amorsize_executions_total))", 3)
            exemplars = poll(
                lambda: server.exemplars("amorsize_chunk_duration_seconds_bucket"),
                bool,
                "exemplars",
            )
            linked = {exemplar["labels"]["trace_id"] for exemplar in exemplars}
            assert all(len(trace_id) == 32 for trace_id in linked)
            poll(
                lambda: {span.trace_id for span in otlp_receiver.spans()},
                lambda arrived: linked <= arrived,
                "the traces that exemplars lead to",
            )
            poll(otlp_receiver.points, bool, "OTLP metrics")
            poll(
                lambda: {metric.name for metric in agent.metrics},
                lambda names: {"amorsize.chunk.duration", "amorsize.executions"} <= names,
                "DogStatsD",
            )


def test_backends_that_are_away_cost_the_demo_nothing(tmp_path: Path) -> None:
    """All exporters on, and nobody there: every stage is right, and Prometheus has its page."""
    with Agent() as closed:
        pass
    environment = {
        "AMORSIZE_EXPORTERS": EXPORTERS,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}",
        "DD_AGENT_HOST": "127.0.0.1",
        "DD_DOGSTATSD_PORT": str(closed.port),
    }
    with serving_demo(tmp_path / "summary.json", environment) as summary:
        stages = summary["stages"]
        assert isinstance(stages, list)
        assert [(stage["name"], stage["status"]) for stage in stages] == [
            ("measure", "ok"),
            ("compress", "ok"),
            ("fetch", "ok"),
        ]
