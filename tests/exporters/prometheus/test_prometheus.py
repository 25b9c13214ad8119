"""The Prometheus exporter: exact numbers, over real HTTP, from a real registry."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
import urllib.error
import urllib.request
from pathlib import Path

import prometheus_client
import pytest
from ports import free_port
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from waiting import PATIENCE

import amorsize
from amorsize.errors import (
    ExporterError,
    InvalidTypeError,
    InvalidValueError,
    MissingExtraError,
    PortInUseError,
)
from amorsize.exporters import metrics
from amorsize.exporters.base import close_all
from amorsize.exporters.prometheus.exporter import PrometheusExporter, enable_prometheus
from amorsize.exporters.prometheus.settings import PORT_VARIABLE
from amorsize.hooks import HookContext, HookEvent, HookManager, get_default_manager
from amorsize.hooks.events import STATUSES

from ..events import Run, Scrape, fetch

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "prometheus.md"
RUN = {"function": "parse", "executor": "process"}
LIVE_GAUGES = (
    "amorsize_executions_in_progress",
    "amorsize_items_expected",
    "amorsize_items_completed",
    "amorsize_throughput_items_per_second",
    "amorsize_workers",
)


def test_a_running_execution_shows_in_the_gauges(manager, exporter):
    """What is expected, done and taking part, while it runs."""
    run = Run(manager)
    run.begin(total_items=10)
    run.start_worker(0)
    run.start_worker(1)
    run.complete_chunk(3, throughput=12.5)
    scrape = Scrape(exporter.url)
    assert [scrape(name, **RUN) for name in LIVE_GAUGES] == [1, 10, 3, 12.5, 2]


def test_two_executions_of_one_function_add_up(manager, exporter):
    """Neither overwrites the other, and one that ends takes away only its own part."""
    first, second = Run(manager, execution_id="a"), Run(manager, execution_id="b")
    first.begin(total_items=10)
    second.begin(total_items=100)
    first.start_worker()
    second.start_worker()
    second.start_worker(1)
    first.complete_chunk(4, throughput=2.0)
    second.complete_chunk(30, throughput=5.0)
    scrape = Scrape(exporter.url)
    assert [scrape(name, **RUN) for name in LIVE_GAUGES] == [2, 110, 34, 7, 3]
    second.end()
    scrape = Scrape(exporter.url)
    assert [scrape(name, **RUN) for name in LIVE_GAUGES] == [1, 10, 4, 2, 1]
    assert scrape("amorsize_items_processed_total", **RUN) == 34


@pytest.mark.parametrize("status", STATUSES)
def test_after_any_end_gauges_return_to_zero_and_counters_count_the_end(manager, exporter, status):
    """Even where the end of workers was never reported."""
    run = Run(manager)
    run.begin()
    run.start_worker()
    run.complete_chunk(3)
    run.end(status, elapsed=1.5)
    scrape = Scrape(exporter.url)
    assert [scrape(name, **RUN) for name in LIVE_GAUGES] == [0] * 5
    for each in STATUSES:
        ended = 1 if each == status else 0
        assert scrape("amorsize_executions_total", **RUN, status=each) == ended
        for part, value in (("count", ended), ("sum", 1.5 * ended)):
            shown = scrape(f"amorsize_execution_duration_seconds_{part}", status=each)
            assert shown == (value if ended or each == "ok" else None)


def test_the_end_of_a_run_sets_the_last_values(manager, exporter):
    """For alerts on jobs that did not succeed in time, and for short runs."""
    run = Run(manager)
    run.begin(timestamp=1000.0)
    assert Scrape(exporter.url)("amorsize_last_success_timestamp_seconds") is None
    run.complete_chunk(7)
    run.end("ok", elapsed=2.0, timestamp=1002.0)
    again = Run(manager, execution_id="again")
    again.begin(timestamp=1100.0)
    again.complete_chunk(1)
    again.end("error", elapsed=0.5, timestamp=1100.5)
    scrape = Scrape(exporter.url)
    last_completion = "amorsize_last_completion_timestamp_seconds"
    assert scrape("amorsize_last_success_timestamp_seconds", function="parse") == 1002.0
    assert scrape(last_completion, function="parse", status="ok") == 1002.0
    assert scrape(last_completion, function="parse", status="error") == 1100.5
    assert scrape("amorsize_last_activity_timestamp_seconds", **RUN) == 1100.5
    assert scrape("amorsize_last_duration_seconds", function="parse") == 0.5
    assert scrape("amorsize_last_items", function="parse") == 1
    assert scrape("amorsize_estimated_speedup_ratio", function="parse") == 3.5
    assert scrape("amorsize_measured_speedup_ratio", function="parse") == 2.5
    assert scrape("amorsize_planning_duration_seconds_sum", function="parse") == 0.06


def test_series_with_closed_labels_exist_at_zero_from_the_start(manager, exporter):
    """So that rate() sees the first event of each."""
    Run(manager).begin()
    scrape = Scrape(exporter.url)
    for status in STATUSES:
        assert scrape("amorsize_executions_total", **RUN, status=status) == 0
        at_zero = 0 if status == "ok" else None  # a histogram is two dozen series
        assert scrape("amorsize_execution_duration_seconds_count", **RUN, status=status) == at_zero
    for name in (
        "amorsize_items_processed_total",
        "amorsize_items_failed_total",
        "amorsize_chunk_duration_seconds_count",
        "amorsize_chunk_queue_seconds_count",
        "amorsize_worker_busy_seconds_total",
        "amorsize_worker_deaths_total",
    ):
        assert scrape(name, **RUN) == 0
    for event in HookEvent:
        assert scrape("amorsize_hook_errors_total", event=event.value) == 0
    assert scrape("amorsize_exporter_dropped_total", exporter="prometheus") == 0
    assert scrape("amorsize_exporter_errors_total", exporter="prometheus") == 0


def test_chunks_are_counted_in_histograms(manager, exporter):
    """Each in its bucket and all above; a sampled chunk has no wait and no worker."""
    run = Run(manager)
    run.begin()
    run.complete_chunk(2, chunk_time=0.02, worker_id=None, sampled=True)
    run.complete_chunk(3, chunk_time=0.1, queue_time=0.004)
    run.complete_chunk(5, chunk_time=100_000.0, queue_time=-0.5)
    scrape = Scrape(exporter.url)
    buckets = {
        bound: scrape("amorsize_chunk_duration_seconds_bucket", le=bound)
        for bound in ("0.005", "0.025", "0.1", "86400.0", "+Inf")
    }
    assert buckets == {"0.005": 0, "0.025": 1, "0.1": 2, "86400.0": 2, "+Inf": 3}
    assert scrape("amorsize_chunk_duration_seconds_sum") == pytest.approx(100_000.12)
    assert scrape("amorsize_chunk_queue_seconds_count") == 2
    assert scrape("amorsize_chunk_queue_seconds_sum") == 0.004
    assert scrape("amorsize_items_processed_total", **RUN) == 10
    assert scrape("amorsize_worker_busy_seconds_total", **RUN) == pytest.approx(100_000.1)


def test_busy_time_grows_with_each_chunk_and_ends_exact(manager, exporter):
    """What completed chunks do not account for is added when the worker ends."""
    run = Run(manager)
    run.begin()
    run.start_worker(0)
    run.complete_chunk(1, worker_id=0, chunk_time=2.0)
    assert Scrape(exporter.url)("amorsize_worker_busy_seconds_total", **RUN) == 2.0
    run.end_worker(0, busy_time=5.0)
    assert Scrape(exporter.url)("amorsize_worker_busy_seconds_total", **RUN) == 5.0


def test_errors_failed_items_and_deaths_are_counted(manager, exporter):
    """By the type of the exception; a worker that finished is no death."""
    run = Run(manager)
    run.begin()
    run.start_worker(0)
    run.start_worker(1)
    run.fail(ValueError("bad row"), failed_items=2)
    run.fail(KeyboardInterrupt(), failed_items=0)
    run.end_worker(0, exit_reason="died")
    run.end_worker(1, exit_reason="finished")
    scrape = Scrape(exporter.url)
    assert scrape("amorsize_errors_total", **RUN, error_type="ValueError") == 1
    assert scrape("amorsize_errors_total", **RUN, error_type="KeyboardInterrupt") == 1
    assert scrape("amorsize_items_failed_total", **RUN) == 2
    assert scrape("amorsize_worker_deaths_total", **RUN) == 1
    assert scrape("amorsize_workers", **RUN) == 0


def test_an_input_of_unknown_length_counts_once_its_length_is_known(manager, exporter):
    """Until then it expects nothing."""
    run = Run(manager)
    run.begin(total_items=None)
    run.complete_chunk(3)
    assert Scrape(exporter.url)("amorsize_items_expected", **RUN) == 0
    run.emit(HookEvent.ON_CHUNK_COMPLETE, chunk_size=0, total_items=3)
    assert Scrape(exporter.url)("amorsize_items_expected", **RUN) == 3


def test_an_exporter_attached_during_a_run_shows_the_rest_of_it(manager):
    """It did not see PRE_EXECUTE, and still shows the truth."""
    run = Run(manager)
    run.begin()
    with PrometheusExporter(port=0).attach(manager) as exporter:
        run.complete_chunk(3)
        scrape = Scrape(exporter.url)
        assert scrape("amorsize_executions_in_progress", **RUN) == 1
        assert scrape("amorsize_items_completed", **RUN) == 3
        run.end()
        assert Scrape(exporter.url)("amorsize_executions_in_progress", **RUN) == 0


@pytest.mark.parametrize("event", HookEvent)
def test_a_context_without_anything_breaks_nothing(manager, exporter, event):
    """Missing metadata costs a label, not the metric."""
    manager.trigger(HookContext(event))
    assert manager.get_stats()["error_counts"] == {}
    Scrape(exporter.url)
    manager.trigger(HookContext(HookEvent.POST_EXECUTE, elapsed_time=float("nan")))
    scrape = Scrape(exporter.url)
    assert scrape("amorsize_executions_total", function="other", executor="other", status="ok")
    assert scrape("amorsize_executions_in_progress", function="other") == 0


def test_labels_of_the_user_are_bounded(manager, exporter):
    """A hundred functions and fifty types of errors, then other."""
    for number in range(120):
        run = Run(manager, execution_id=str(number), function=f"function-{number}")
        run.begin()
        run.fail(type(f"Error{number}", (Exception,), {})())
        run.end()
    scrape = Scrape(exporter.url)
    functions = scrape.labels("amorsize_executions_total", "function")
    assert len(functions) == 101
    assert scrape("amorsize_executions_total", function="other", status="ok") == 20
    assert len(scrape.labels("amorsize_errors_total", "error_type")) == 51
    assert scrape("amorsize_errors_total", error_type="other") == 70


def test_names_that_need_escaping_arrive_whole(manager, exporter):
    """Quotes, newlines and lambdas are names of functions, too."""
    name = 'make.<locals>.<lambda> "a\\b"\nc'
    Run(manager, function=name).begin()
    Run(manager, execution_id="2", function="\ud800").begin()
    assert Scrape(exporter.url)("amorsize_executions_in_progress", function=name) == 1


def test_hook_errors_are_read_from_the_managers(manager, exporter):
    """Those of any hook beside the exporter."""

    def broken(context: HookContext) -> None:
        raise RuntimeError("broken")

    manager.register(HookEvent.ON_PROGRESS, broken)
    for _ in range(3):
        manager.trigger(HookContext(HookEvent.ON_PROGRESS))
    scrape = Scrape(exporter.url)
    assert scrape("amorsize_hook_errors_total", event="on_progress") == 3
    assert scrape("amorsize_hook_errors_total", event="post_execute") == 0


def test_exporters_are_independent():
    """Each counts the events of its own manager, on a port of its own."""
    managers = [HookManager(), HookManager()]
    with (
        PrometheusExporter(port=0).attach(managers[0]) as first,
        PrometheusExporter(port=0).attach(managers[1]) as second,
    ):
        assert first.port != second.port
        Run(managers[0]).begin()
        assert Scrape(first.url)("amorsize_executions_in_progress", **RUN) == 1
        assert Scrape(second.url)("amorsize_executions_in_progress") is None


def test_executions_in_many_threads_lose_nothing(manager, exporter):
    """Eight at once, scraped meanwhile."""

    def execute(execution_id: str) -> None:
        run = Run(manager, execution_id=execution_id)
        run.begin()
        for _ in range(500):
            run.complete_chunk(2)
        run.end()

    threads = [threading.Thread(target=execute, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        Scrape(exporter.url)
    scrape = Scrape(exporter.url)
    assert scrape("amorsize_items_processed_total", **RUN) == 8000
    assert scrape("amorsize_chunk_duration_seconds_count", **RUN) == 4000
    assert scrape("amorsize_executions_total", **RUN, status="ok") == 8
    assert scrape("amorsize_executions_in_progress", **RUN) == 0


def test_all_rows_of_the_table_are_served(manager, exporter):
    """With their help and type, and nothing else: no _created series, no process metrics."""
    Run(manager).begin()
    text = fetch(exporter.url)
    helps = [line for line in text.splitlines() if line.startswith("# HELP ")]
    rows = (*metrics.METRICS, metrics.COUNTING_SINCE)
    assert helps == [f"# HELP {row.prometheus} {row.help}" for row in rows]


def test_build_info_has_the_versions(exporter):
    """Of amorsize and of Python."""
    python = ".".join(map(str, sys.version_info[:3]))
    assert Scrape(exporter.url)("amorsize_build_info", python=python) == 1


def test_openmetrics_is_served_where_it_is_asked_for(manager, exporter):
    """Its strict parser reads all of it, with units."""
    run = Run(manager)
    run.begin()
    run.complete_chunk(3)
    run.end()
    text = fetch(exporter.url, accept="application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in parse_openmetrics(text)}
    assert text.endswith("# EOF\n")
    assert families["amorsize_chunk_duration_seconds"].unit == "seconds"
    assert families["amorsize_items_processed"].samples[0].value == 3


def test_a_registry_of_the_caller_keeps_its_own_metrics(manager):
    """The application's own metrics are served beside, and stay after close()."""
    registry = prometheus_client.CollectorRegistry(auto_describe=True)
    prometheus_client.Counter("orders", "Orders", registry=registry).inc(3)
    with PrometheusExporter(port=0, registry=registry).attach(manager) as exporter:
        Run(manager).begin()
        scrape = Scrape(exporter.url)
        assert scrape("orders_total") == 3
        assert scrape("amorsize_executions_in_progress") == 1
        only = fetch(exporter.url + "?name[]=amorsize_workers")
        assert "amorsize_workers{" in only
        assert "orders" not in only
    assert registry.get_sample_value("orders_total") == 3
    assert "amorsize" not in prometheus_client.generate_latest(registry).decode()


def test_a_registry_serves_one_exporter_at_a_time(exporter):
    """The second one says why, and leaves no port open."""
    registry = prometheus_client.CollectorRegistry()
    with (
        PrometheusExporter(port=0, registry=registry),
        pytest.raises(ExporterError, match="registry already holds metrics of these names"),
    ):
        PrometheusExporter(port=0, registry=registry)
    PrometheusExporter(port=0, registry=registry).close()


def test_other_paths_are_not_found(exporter):
    """Only /metrics, spelled exactly, has the metrics."""
    root = exporter.url.removesuffix("/metrics")
    for path in ("/", "/metrics/", "/metrics/../metrics", "/favicon.ico", "/%2e%2e/etc/passwd"):
        with pytest.raises(urllib.error.HTTPError) as raised:
            fetch(root + path)
        with raised.value as response:
            assert response.code == 404
            assert response.read() == b"The metrics are at /metrics\n"


def test_head_answers_without_a_body_and_other_methods_are_refused(exporter):
    """A load balancer may ask HEAD; nobody may POST."""
    head = urllib.request.Request(exporter.url, method="HEAD")
    with urllib.request.urlopen(head, timeout=PATIENCE) as response:
        assert response.status == 200
        assert int(response.headers["Content-Length"]) > 1000
        assert response.read() == b""
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "BREW"):
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(
                urllib.request.Request(exporter.url, method=method), timeout=PATIENCE
            )
        with raised.value as response:
            assert response.code == 405
            assert response.headers["Allow"] == "GET, HEAD"


def test_a_malformed_accept_header_gets_plain_text(exporter, capfd):
    """prometheus_client itself raises on it."""
    assert "amorsize_build_info" in fetch(exporter.url, "application/openmetrics-text; version=x")
    assert capfd.readouterr().err == ""


def test_a_collector_of_the_application_that_fails_is_seen(caplog):
    """The scraper gets a 500, the log the traceback, and the next scrape a count."""

    class Flaky:
        failing = True

        def collect(self):
            if self.failing:
                raise RuntimeError("flaky")
            return []

    registry = prometheus_client.CollectorRegistry()
    flaky = Flaky()
    registry.register(flaky)
    with PrometheusExporter(port=0, registry=registry).attach(HookManager()) as exporter:
        with (
            caplog.at_level(logging.ERROR),
            pytest.raises(urllib.error.HTTPError, match="500") as raised,
        ):
            fetch(exporter.url)
        raised.value.close()
        assert "A scrape failed" in caplog.text
        flaky.failing = False
        assert Scrape(exporter.url)("amorsize_exporter_errors_total", exporter="prometheus") == 1


def test_a_port_in_use_is_named_with_a_remedy(exporter):
    """As an OSError too, for those who catch that."""
    with pytest.raises(PortInUseError) as raised:
        PrometheusExporter(port=exporter.port)
    assert raised.value.errno == errno.EADDRINUSE
    assert str(raised.value) == (
        f"port {exporter.port} on 127.0.0.1 is taken by this very process. Pass another port to "
        "enable_prometheus(), or set AMORSIZE_PROMETHEUS_PORT; port=0 takes any free one: "
        "the exporter's .port is its number, and Prometheus finds it with file_sd=."
    )


def test_an_address_of_another_machine_is_refused():
    """192.0.2.1 is reserved for documentation (RFC 5737), so nobody has it."""
    with pytest.raises(ExporterError, match=r"cannot listen on 192\.0\.2\.1 port 0: "):
        PrometheusExporter(port=0, addr="192.0.2.1")


def test_close_frees_the_port_at_once(manager):
    """The same port can be taken again, also right after a scrape and beside a silent client."""
    exporter = PrometheusExporter(port=0).attach(manager)
    with socket.create_connection(("127.0.0.1", exporter.port)) as silent:
        fetch(exporter.url)
        exporter.close()
        silent.settimeout(PATIENCE)
        assert silent.recv(1) == b""
    assert repr(exporter) == "<PrometheusExporter (closed)>"
    with PrometheusExporter(port=exporter.port) as again:
        assert again.port == exporter.port
        fetch(again.url)


@pytest.mark.parametrize(
    ("addr", "host"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("0.0.0.0", "127.0.0.1")]
)
def test_it_listens_on_its_address(addr, host):
    """On IPv6 too; the url can be used from this machine."""
    try:
        exporter = PrometheusExporter(port=0, addr=addr)
    except ExporterError:
        pytest.skip(f"this machine has no {addr}")
    with exporter:
        assert exporter.url == f"http://{host}:{exporter.port}/metrics"
        fetch(exporter.url)


@pytest.mark.parametrize("port", [70000, -1, 65536])
def test_a_port_out_of_range_is_refused(port):
    """Before anything is bound."""
    with pytest.raises(InvalidValueError, match=f"port must be from 0 to 65535.*got {port}"):
        enable_prometheus(port)


@pytest.mark.parametrize("port", [True, 2.5, "x", b"9464"])
def test_a_port_that_is_no_integer_is_refused(port):
    """Before anything is bound."""
    with pytest.raises(InvalidTypeError, match="port must be an integer from 0 to 65535; got"):
        enable_prometheus(port)


@pytest.mark.parametrize("text", ["x", "70000", "-1", "2.5", "9" * 5000])
def test_a_wrong_environment_variable_is_named(monkeypatch, text):
    """It is read where no port is passed."""
    monkeypatch.setenv(PORT_VARIABLE, text)
    with pytest.raises(InvalidValueError, match="variable AMORSIZE_PROMETHEUS_PORT must be"):
        enable_prometheus()


def test_other_wrong_arguments_are_refused():
    """Each with what is allowed."""
    with pytest.raises(InvalidTypeError, match="addr must be an IP address or a host name; got 5"):
        enable_prometheus(0, addr=5)
    with pytest.raises(InvalidValueError, match="addr must not be empty"):
        enable_prometheus(0, addr="")
    with pytest.raises(InvalidTypeError, match="registry must be a prometheus_client"):
        enable_prometheus(0, registry="mine")


def test_the_environment_variable_chooses_the_port(monkeypatch):
    """And equals the same port passed by hand."""
    free = free_port()
    monkeypatch.setenv(PORT_VARIABLE, str(free))
    with enable_prometheus() as exporter:
        assert exporter.port == free
        assert enable_prometheus(port=free) is exporter


def test_enable_attaches_to_every_execution():
    """By the default manager; it is detached again by close()."""
    with enable_prometheus(port=0) as exporter:
        Run(get_default_manager()).begin()
        assert Scrape(exporter.url)("amorsize_executions_in_progress", **RUN) == 1
    assert not get_default_manager().has_hooks()


def test_enabling_twice(exporter):
    """The same settings give the same object, others a clear error, after close() all is open."""
    with enable_prometheus(port=0) as first:
        assert enable_prometheus(port=0) is first
        with pytest.raises(
            ExporterError, match=rf"{first.port}/metrics\)> is enabled already, wit"
        ):
            enable_prometheus(port=0, addr="::1")
    with enable_prometheus(port=0) as second:
        assert second is not first


def test_without_prometheus_client_the_error_names_the_remedy(monkeypatch):
    """The module itself can be imported."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingExtraError, match=r"The Prometheus exporter needs .*amorsize\[prom"):
        enable_prometheus(port=0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # 3.12: it is the point
def test_a_forked_child_is_inert_and_holds_no_port(manager, exporter):
    """Its copy of the socket is closed, so the parent can free the port while the child lives."""
    reported_read, reported_write = os.pipe()
    release_read, release_write = os.pipe()
    with socket.create_connection(("127.0.0.1", exporter.port)) as silent:
        fetch(exporter.url)  # the silent one was accepted before this one
        child = os.fork()
        if child == 0:
            Run(manager).begin()
            exporter.close()
            good = not exporter.active and not list(exporter._page._collector.collect())
            os.write(reported_write, b"y" if good else b"n")
            os.read(release_read, 1)
            os._exit(0)
        try:
            assert os.read(reported_read, 1) == b"y"
            assert Scrape(exporter.url)("amorsize_executions_in_progress") is None
            exporter.close()
            silent.settimeout(PATIENCE)
            assert silent.recv(1) == b""
            PrometheusExporter(port=exporter.port).close()
        finally:
            os.write(release_write, b"x")
            os.waitpid(child, 0)
            for descriptor in (reported_read, reported_write, release_read, release_write):
                os.close(descriptor)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_child_that_imports_main_again_opens_no_port(tmp_path, method):
    """Where the exporter is enabled without a main guard."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    script = tmp_path / "program.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import multiprocessing
            from amorsize.exporters.prometheus.exporter import enable_prometheus
            from amorsize.hooks import HookEvent, get_default_manager

            exporter = enable_prometheus(port=0)

            def report():
                has_hooks = get_default_manager().has_hooks(HookEvent.POST_EXECUTE)
                print(exporter.active, exporter.port, has_hooks)

            if __name__ == "__main__":
                print(exporter.active, exporter.port > 0, flush=True)
                child = multiprocessing.get_context("{method}").Process(target=report)
                child.start()
                child.join()
            """
        )
    )
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(script)], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "True True\nFalse 0 False\n"
    assert ran.stderr == ""


def test_importing_the_module_imports_no_sdk():
    """prometheus_client is loaded by the first exporter."""
    script = (
        "import sys, amorsize.exporters.prometheus; sys.exit('prometheus_client' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("snippet", re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.S))
def test_the_snippets_of_the_guide_run(monkeypatch, tmp_path, certificates, snippet):
    """Each on its own, with a function and data, files and a gateway as the reader has them."""
    monkeypatch.setenv(PORT_VARIABLE, "0")
    monkeypatch.setenv("METRICS_PASSWORD", "hunter2")
    monkeypatch.setenv("PUSHGATEWAY_TOKEN", "hunter2")
    snippet = snippet.replace("/etc/amorsize", str(certificates.ca.parent))
    for directory in ("/var/lib/node_exporter", "/run/amorsize"):
        snippet = snippet.replace(directory, str(tmp_path))
    snippet = snippet.replace("pushgateway:9091", "127.0.0.1:9")  # nobody is there
    try:
        exec(snippet, {"amorsize": amorsize, "func": abs, "data": [-1, 2], "os": os})
    finally:
        close_all()
    assert not get_default_manager().has_hooks()
    assert len(list(tmp_path.iterdir())) == snippet.count("textfile=")
