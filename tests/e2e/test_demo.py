"""The main job, end to end: the demo runs, a real Prometheus scrapes it, and the totals agree."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from .backends import PrometheusServer

pytestmark = pytest.mark.e2e

READY = "until Ctrl-C"


@contextmanager
def serving_demo(summary: Path) -> Iterator[dict[str, object]]:
    """Run ``amorsize demo --serve`` on a free port; gives its summary once the work is done."""
    command = [sys.executable, "-m", "amorsize", "demo", "--quick", "--serve", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--json", str(summary)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
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
        process.communicate(timeout=20)
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
