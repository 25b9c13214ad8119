"""CloudWatch, end to end: real runs, boto3, and a real HTTP server that speaks its protocol."""

from __future__ import annotations

import gzip
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from exporters.backends import hanging_port
from exporters.cloudwatch.client import assert_within_limits
from ports import free_port
from waiting import PATIENCE, poll, slowness

import amorsize
from amorsize import HookEvent, HookManager
from amorsize.exporters.cloudwatch import exporter as cloudwatch
from amorsize.exporters.cloudwatch.exporter import CloudWatchExporter
from amorsize.testing import RecordingHook

from .moto import CREDENTIALS, MotoServer
from .test_datadog import EXIT_SECONDS, MODES, run_script
from .test_prometheus_exact import ITEMS, Ledger, Work

pytestmark = pytest.mark.e2e


def watch_limits(exporter: CloudWatchExporter) -> list[dict[str, Any]]:
    """Hold boto3's own client to AWS's limits, where moto is lax; return what it is given."""
    calls: list[dict[str, Any]] = []

    def check_parameters(params: dict[str, Any], **more: Any) -> None:
        assert_within_limits(params)
        calls.append(params)

    def check_request(request: Any, **more: Any) -> None:
        body = request.body if isinstance(request.body, bytes) else request.body.encode()
        if request.headers.get("Content-Encoding") in ("gzip", b"gzip"):
            body = gzip.decompress(body)
        assert 0 < len(body) <= 1_000_000

    events = exporter._client.meta.events
    events.register("provide-client-params.cloudwatch.PutMetricData", check_parameters)
    events.register("before-send.cloudwatch.PutMetricData", check_request)
    return calls


@MODES
def test_totals_equal_the_events_and_what_the_function_did(
    tmp_path: Path, moto: MotoServer, mode: str, killer: int | None
) -> None:
    """Every item once, every failure, every death; and the gauges are back at zero."""
    ledger, manager = Ledger(tmp_path / "ledger"), HookManager()
    recorder = RecordingHook().attach(manager)
    with CloudWatchExporter(dimensions={"Stage": "test"}).attach(manager) as exporter:
        calls = watch_limits(exporter)
        amorsize.execute(
            Work(ledger, killer),
            range(ITEMS),
            executor=mode,
            n_jobs=2,
            chunksize=4,
            return_exceptions=True,
            hooks=manager,
            name="größe,|#",
        )
        assert exporter.flush(PATIENCE)
    assert calls
    assert exporter.counts() == (0, 0)
    run = {"Function": r"gr\xf6\xdfe,|#", "Executor": mode, "Stage": "test"}
    chunks, errors = recorder.of(HookEvent.ON_CHUNK_COMPLETE), recorder.of(HookEvent.ON_ERROR)
    deaths = ledger.items("killed")
    assert moto.total("Executions", **run, Status="ok") == 1
    assert moto.total("ItemsProcessed", **run) == ITEMS
    assert moto.total("ItemsFailed", **run) == len({*ledger.items("raised"), *deaths})
    assert moto.total("Errors", **run) == len(errors)
    assert moto.total("WorkerDeaths", **run) == len(deaths)
    assert moto.samples("ChunkDuration", **run) == len(chunks)
    seconds = sum(chunk.chunk_time for chunk in chunks)
    assert moto.total("ChunkDuration", **run) == pytest.approx(seconds, rel=0.006)
    assert moto.samples("ExecutionDuration", **run, Status="ok") == 1
    for gauge in ("ExecutionsInProgress", "ItemsExpected", "ItemsCompleted", "Workers"):
        assert moto.statistic("Minimum", gauge, **run) == 0


def test_many_functions_are_several_calls(moto: MotoServer) -> None:
    """More than a thousand data, and nothing is missing."""
    manager = HookManager()
    with CloudWatchExporter().attach(manager) as exporter:
        calls = watch_limits(exporter)
        for number in range(100):
            amorsize.execute(
                abs, range(7), executor="serial", hooks=manager, name=f"{number}ü" * 100
            )
        assert exporter.flush(PATIENCE)
    assert sum(len(call["MetricData"]) for call in calls) > 1000
    assert len(calls) >= 2
    assert moto.total("ItemsProcessed") == 700
    assert exporter.counts() == (0, 0)


def test_a_short_program_loses_nothing(moto: MotoServer) -> None:
    """Two runs of milliseconds, and the environment alone says where to."""
    errors, seconds = run_script({"AMORSIZE_EXPORTERS": "cloudwatch", **moto.environment})
    assert errors == ""
    assert seconds < EXIT_SECONDS * slowness()
    assert moto.total("ItemsProcessed") == 137
    assert moto.total("ItemsFailed") == 14
    assert moto.total("Executions", Status="ok") == 2


@pytest.mark.parametrize("kind", ["refuses", "hangs"])
def test_a_program_without_cloudwatch_is_no_slower_to_exit(kind: str) -> None:
    """Its results are right, the log says once what is wrong, and no credentials."""
    with hanging_port() as hanging:
        port = free_port() if kind == "refuses" else hanging
        variables = {
            "AMORSIZE_EXPORTERS": "cloudwatch",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_DEFAULT_REGION": "eu-central-1",
            **CREDENTIALS,
        }
        errors, seconds = run_script(variables)
    assert seconds < EXIT_SECONDS * slowness()
    assert "Traceback" not in errors
    assert errors.count("cannot deliver") <= 1
    for secret in CREDENTIALS.values():
        assert secret not in errors


def test_a_server_that_dies_in_the_middle_of_a_run(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The results are right, and what it did not get is counted."""
    caplog.set_level(logging.DEBUG, "amorsize")
    server = MotoServer(tmp_path / "moto.log")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    manager = HookManager()
    exporter = CloudWatchExporter().attach(manager)
    arrived: list[float] = []

    def kill(context: amorsize.HookContext) -> None:
        if context.items_completed == 12:
            assert exporter.flush(PATIENCE)
            arrived.append(server.total("ItemsProcessed"))
            server.close()

    manager.register(HookEvent.ON_CHUNK_COMPLETE, kill)
    ledger = Ledger(tmp_path / "ledger")
    try:
        results = amorsize.execute(
            Work(ledger),
            range(ITEMS),
            executor=mode,
            n_jobs=2,
            chunksize=4,
            return_exceptions=True,
            hooks=manager,
        )
    finally:
        server.close()
    began = time.monotonic()
    exporter.close()
    assert time.monotonic() - began < EXIT_SECONDS * slowness()
    assert [item for item in results if isinstance(item, int)] == [
        item for item in range(ITEMS) if item % 10 != 3
    ]
    assert sorted(ledger.items("returned") + ledger.items("raised")) == list(range(ITEMS))
    dropped, _ = exporter.counts()
    assert dropped > 0
    assert 0 < arrived[0] < ITEMS
    assert manager.get_stats()["error_counts"] == {}
    for secret in CREDENTIALS.values():
        assert secret not in caplog.text + repr(exporter)


def test_a_server_that_comes_back_misses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Undelivered data is sent again, and nothing twice."""
    # What a new server has taken, but takes long to answer, would be sent twice.
    monkeypatch.setattr(cloudwatch, "READ_SECONDS", PATIENCE)
    port = free_port()
    environment = {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    environment |= {"AWS_DEFAULT_REGION": "eu-central-1", "AWS_MAX_ATTEMPTS": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    manager = HookManager()
    with CloudWatchExporter().attach(manager) as exporter:
        amorsize.execute(abs, range(7), executor="serial", hooks=manager)
        poll(lambda: exporter.flush(0.1) or exporter.counts()[1], bool, "an attempt failed")
        server = MotoServer(tmp_path / "moto.log", port)
        try:
            amorsize.execute(abs, range(5), executor="serial", hooks=manager)
            poll(lambda: exporter.flush(5), bool, "everything is sent")
            assert server.total("ItemsProcessed") == 12
            assert server.total("Executions") == 2
        finally:
            server.close()
    assert exporter.counts()[0] == 0
