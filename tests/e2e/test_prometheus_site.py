"""Features beside numbers: exemplars, TLS with passwords, programs that are discovered."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trustme
from opentelemetry.sdk.trace import TracerProvider
from waiting import poll

import amorsize
from amorsize import HookManager
from amorsize.exporters.prometheus.exporter import PrometheusExporter

from .backends import PrometheusServer

pytestmark = pytest.mark.e2e

PROGRAM = """
import sys, amorsize
amorsize.enable_prometheus(port=0, file_sd=sys.argv[1])
amorsize.execute(abs, range(int(sys.argv[2])), executor="serial", name=sys.argv[3])
print("done", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("called", ["execute", "stream"])
def test_exemplars_arrive_in_prometheus(
    called: str, prometheus_server: Callable[..., PrometheusServer]
) -> None:
    """With the trace of the application's span, on chunks and on the execution."""
    tracer = TracerProvider().get_tracer("application")
    manager = HookManager()
    with PrometheusExporter(port=0).attach(manager) as exporter:
        server = prometheus_server(targets=[f"127.0.0.1:{exporter.port}"])
        with tracer.start_as_current_span("nightly job") as span:
            run = getattr(amorsize, called)
            list(run(abs, range(20), executor="thread", n_jobs=2, chunksize=5, hooks=manager))
        context = span.get_span_context()
        labels = {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
        for metric in ("chunk", "execution"):
            selector = f"amorsize_{metric}_duration_seconds_bucket"
            found = poll(
                partial(server.exemplars, selector),
                bool,
                f"exemplars of {selector}",
            )
            assert all(exemplar["labels"] == labels for exemplar in found)


def test_prometheus_scrapes_with_tls_a_certificate_and_a_password(
    tmp_path: Path, prometheus_server: Callable[..., PrometheusServer]
) -> None:
    """And gets nothing with a wrong one."""
    authority = trustme.CA()
    ca, server_file, client_file = (tmp_path / name for name in ("ca", "server", "client"))
    authority.cert_pem.write_to_path(str(ca))
    for path, name in ((server_file, "127.0.0.1"), (client_file, "prometheus@example.org")):
        issued = authority.issue_cert(name)
        issued.private_key_and_cert_chain_pem.write_to_path(str(path))
    with PrometheusExporter(
        port=0,
        certfile=server_file,
        client_cafile=ca,
        user="prometheus",
        password="hunter2",
    ) as exporter:
        scrape = {
            "scheme": "https",
            "tls_config": {
                "ca_file": str(ca),
                "cert_file": str(client_file),
                "key_file": str(client_file),
            },
        }
        targets = [f"127.0.0.1:{exporter.port}"]
        right = {"basic_auth": {"username": "prometheus", "password": "hunter2"}}
        wrong = {"basic_auth": {"username": "prometheus", "password": "hunter3"}}
        let_in = prometheus_server(targets=targets, scrape=scrape | right)
        let_in.wait_for("up", 1)
        assert let_in.value("amorsize_build_info") == 1
        kept_out = prometheus_server(targets=targets, scrape=scrape | wrong)
        kept_out.wait_for("up", 0)
        # Not for another reason: TLS and the certificate are accepted, the password is not.
        assert kept_out.scrape_errors() == ["server returned HTTP status 401 Unauthorized"]
        assert kept_out.value("amorsize_build_info") is None


def test_programs_without_chosen_ports_are_discovered(
    tmp_path: Path, prometheus_server: Callable[..., PrometheusServer]
) -> None:
    """Two of them, by their entries; one that ends is no target any more."""
    directory = tmp_path / "targets"
    directory.mkdir()
    scrape = {
        "static_configs": [],
        "file_sd_configs": [{"files": [f"{directory}/*.json"], "refresh_interval": "1s"}],
        "relabel_configs": [
            {"source_labels": ["__meta_amorsize_program"], "target_label": "program"}
        ],
    }
    server = prometheus_server(scrape=scrape)
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(directory), items, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for items, name in (("30", "first"), ("40", "second"))
    ]
    try:
        for program in programs:
            assert program.stdout is not None
            assert program.stdout.readline() == "done\n"
        server.wait_for("sum(up)", 2)
        server.wait_for('sum(amorsize_items_processed_total{function="first"})', 30)
        server.wait_for('sum(amorsize_items_processed_total{function="second"})', 40)
        assert server.value('count(up{program="-c"})') == 2
        programs[0].communicate()
        server.wait_for("sum(up)", 1)
    finally:
        for program in programs:
            program.communicate()
    assert list(directory.iterdir()) == []
