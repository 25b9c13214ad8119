"""The user's own numbers, as a real Prometheus sees them."""

from __future__ import annotations

import subprocess
import urllib.request
from collections.abc import Callable

import pytest
from waiting import PATIENCE

import amorsize
from amorsize import HookManager
from amorsize.exporters.prometheus.exporter import PrometheusExporter

from .backends import PrometheusServer, require_binary

pytestmark = pytest.mark.e2e


def load(x: int) -> int:
    amorsize.count("e2e_rows", 0, help="Rows that were rejected")
    if x % 7 == 0:
        amorsize.count("e2e_rows", 3)
    amorsize.observe("e2e_seconds", 0.02)
    amorsize.set_gauge("e2e_version", 7)
    if x == 100:
        raise ValueError("the hundredth")
    return x


@pytest.mark.parametrize("mode", ["serial", "thread", "process"])
def test_promql_totals_equal_an_independent_count(
    mode: str, prometheus_server: Callable[..., PrometheusServer]
) -> None:
    """With failures among the items, on every engine."""
    manager = HookManager()
    with PrometheusExporter(port=0).attach(manager) as exporter:
        server = prometheus_server(targets=[f"127.0.0.1:{exporter.port}"])
        amorsize.execute(
            load,
            range(140),
            executor=mode,
            n_jobs=2,
            chunksize=9,
            hooks=manager,
            name="load",
            return_exceptions=True,
        )
        server.wait_for('amorsize_user_e2e_rows_total{function="load"}', 3 * 20)
        assert server.value("sum(amorsize_user_e2e_seconds_count)") == 140
        assert server.value(f'amorsize_user_e2e_version{{executor="{mode}"}}') == 7
        quantile = "histogram_quantile(0.5, sum by (le) (amorsize_user_e2e_seconds_bucket))"
        assert 0.01 < (server.value(quantile) or 0) <= 0.03


def test_promtool_has_nothing_to_say() -> None:
    """Names and help texts, given and not given, follow Prometheus' conventions."""
    promtool = require_binary("promtool", "prometheus")
    manager = HookManager()
    with PrometheusExporter(port=0).attach(manager) as exporter:
        amorsize.execute(load, range(20), executor="serial", hooks=manager, name="load")
        with urllib.request.urlopen(str(exporter.url), timeout=PATIENCE) as response:
            page = response.read()
    assert b"amorsize_user_e2e_rows_total" in page
    check = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True)
    assert (check.returncode, check.stdout + check.stderr) == (0, b"")
