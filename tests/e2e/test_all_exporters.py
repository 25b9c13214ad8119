"""Every exporter that there is, all on at once: one truth, in every mode.

Another exporter is one more class here, with what it says of each of ``FIGURES``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from exporters.dogstatsd import Agent
from exporters.events import Scrape
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from ports import free_port
from waiting import PATIENCE, slowness

import amorsize
from amorsize import HookEvent, get_default_manager
from amorsize.exporters import registry
from amorsize.exporters.base import close_all
from amorsize.testing import RecordingHook, assert_contract

from .moto import CREDENTIALS, MotoServer
from .test_datadog import EXIT_SECONDS, MODES, environment, run_script  # noqa: F401  # an autouse fixture, here too
from .test_prometheus_exact import ITEMS, Ledger, Work

pytestmark = pytest.mark.e2e

NAME = "work"


class Prometheus:
    """The answer to a scrape."""

    name = "prometheus"

    def __init__(self, stack: ExitStack, request: pytest.FixtureRequest) -> None:
        self.exporter: Any = amorsize.enable_prometheus(port=0)

    def figures(self, mode: str) -> dict[str, float]:
        scrape = Scrape(self.exporter.url)

        def value(name: str, **labels: str) -> float:
            return scrape(f"amorsize_{name}", function=NAME, executor=mode, **labels) or 0

        return {
            "executions": value("executions_total", status="ok"),
            "items": value("items_processed_total"),
            "failed": value("items_failed_total"),
            "errors": value("errors_total"),
            "deaths": value("worker_deaths_total"),
            "chunks": value("chunk_duration_seconds_count"),
            "chunk_seconds": value("chunk_duration_seconds_sum"),
            "seen": value("user_seen_total"),
            "sizes": value("user_size_count"),
            "size": value("user_size_sum"),
            "in_progress": value("executions_in_progress") + value("items_expected"),
        }


class Datadog:
    """The datagrams of a socket."""

    name = "datadog"

    def __init__(self, stack: ExitStack, request: pytest.FixtureRequest) -> None:
        self.agent = stack.enter_context(Agent())
        self.exporter: Any = amorsize.enable_datadog(host="127.0.0.1", port=self.agent.port)

    def figures(self, mode: str) -> dict[str, float]:
        run = (f"function:{NAME}", f"executor:{mode}")

        def value(name: str, *tags: str) -> float:
            return self.agent.total(f"amorsize.{name}", *run, *tags)

        def gauge(name: str) -> float:
            found = self.agent.gauge(f"amorsize.{name}", *run)
            assert found is not None
            return found

        return {
            "executions": value("executions", "status:ok"),
            "items": value("items.processed"),
            "failed": value("items.failed"),
            "errors": value("errors"),
            "deaths": value("worker.deaths"),
            "chunks": self.agent.observations("amorsize.chunk.duration", *run),
            "chunk_seconds": value("chunk.duration"),
            "seen": value("user.seen"),
            "sizes": value("user.size.count"),
            "size": value("user.size.sum"),
            "in_progress": gauge("executions.in_progress") + gauge("items.expected"),
        }


class CloudWatch:
    """The calls to a server that speaks its protocol."""

    name = "cloudwatch"

    def __init__(self, stack: ExitStack, request: pytest.FixtureRequest) -> None:
        self.moto: MotoServer = request.getfixturevalue("moto")
        self.exporter: Any = amorsize.enable_cloudwatch()

    def figures(self, mode: str) -> dict[str, float]:
        run = {"Function": NAME, "Executor": mode}
        total, samples = self.moto.total, self.moto.samples
        return {
            "executions": total("Executions", **run, Status="ok"),
            "items": total("ItemsProcessed", **run),
            "failed": total("ItemsFailed", **run),
            "errors": total("Errors", **run),
            "deaths": total("WorkerDeaths", **run),
            "chunks": samples("ChunkDuration", **run),
            "chunk_seconds": total("ChunkDuration", **run),
            "seen": total("User.seen", **run),
            "sizes": samples("User.size", **run),
            "size": total("User.size", **run),
            "in_progress": sum(
                self.moto.statistic("Minimum", gauge, **run)
                for gauge in ("ExecutionsInProgress", "ItemsExpected")
            ),
        }


class OpenTelemetry:
    """The readings of the application's meter provider."""

    name = "opentelemetry"

    def __init__(self, stack: ExitStack, request: pytest.FixtureRequest) -> None:
        self.reader = InMemoryMetricReader()
        meter_provider = MeterProvider([self.reader], shutdown_on_exit=False)
        stack.callback(meter_provider.shutdown)
        self.exporter: Any = amorsize.enable_opentelemetry(
            meter_provider=meter_provider, tracer_provider=TracerProvider(shutdown_on_exit=False)
        )

    def figures(self, mode: str) -> dict[str, float]:
        data = self.reader.get_metrics_data()
        assert data is not None
        points: dict[str, list[Any]] = {
            metric.name: list(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }
        run = {"code.function.name": NAME, "amorsize.executor": mode}

        def value(name: str, of: str = "value", **attributes: str) -> float:
            wanted = (run | attributes).items()
            return sum(
                getattr(point, of)
                for point in points.get(f"amorsize.{name}", ())
                if wanted <= dict(point.attributes).items()
            )

        return {
            "executions": value("executions", **{"amorsize.status": "ok"}),
            "items": value("items.processed"),
            "failed": value("items.failed"),
            "errors": value("errors"),
            "deaths": value("worker.deaths"),
            "chunks": value("chunk.duration", "count"),
            "chunk_seconds": value("chunk.duration", "sum"),
            "seen": value("user.seen"),
            "sizes": value("user.size.count"),
            "size": value("user.size.sum"),
            "in_progress": value("executions.in_progress") + value("items.expected"),
        }


BACKENDS: list[Callable[[ExitStack, pytest.FixtureRequest], Any]] = [
    Prometheus,
    Datadog,
    CloudWatch,
    OpenTelemetry,
]


class CountingWork(Work):
    """Also counts what it does, as users do."""

    def __call__(self, item: int) -> int:
        amorsize.count("seen")
        amorsize.observe("size", item)
        return super().__call__(item)


@pytest.fixture
def backends(request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    with ExitStack() as stack:
        stack.callback(close_all)
        yield [make(stack, request) for make in BACKENDS]


def test_there_is_a_backend_here_for_every_exporter() -> None:
    """A further exporter is held to the same truth."""
    assert {backend.name for backend in BACKENDS} == set(registry.OWN)  # type: ignore[attr-defined]


@MODES
def test_totals_agree_with_each_other_and_with_what_was_done(
    tmp_path: Path, backends: list[Any], mode: str, killer: int | None
) -> None:
    """With the events, and with what the function wrote down itself."""
    ledger = Ledger(tmp_path / "ledger")
    recorder = RecordingHook().attach(get_default_manager())
    results = amorsize.execute(
        CountingWork(ledger, killer),
        range(ITEMS),
        executor=mode,
        n_jobs=2,
        chunksize=4,
        return_exceptions=True,
        name=NAME,
    )
    assert_contract(recorder.contexts)
    failed = {*ledger.items("raised"), *ledger.items("killed")}
    assert {item for item in range(ITEMS) if results[item] != item} == failed
    assert {*ledger.items("returned"), *failed} == set(range(ITEMS))
    chunks = recorder.of(HookEvent.ON_CHUNK_COMPLETE)
    # What a worker counted in the chunk that it died in is gone with it.
    shares = [chunk.metadata.get("user_metrics", {}) for chunk in chunks]
    expected = {
        "executions": 1,
        "items": ITEMS,
        "failed": len(failed),
        "errors": len(recorder.of(HookEvent.ON_ERROR)),
        "deaths": len(ledger.items("killed")),
        "chunks": len(chunks),
        "chunk_seconds": pytest.approx(sum(chunk.chunk_time for chunk in chunks), rel=0.006),
        "seen": sum(share["seen"]["value"] for share in shares if share),
        "sizes": sum(share["size"]["calls"] for share in shares if share),
        "size": sum(share["size"]["sum"] for share in shares if share),
        "in_progress": 0,
    }
    if killer is None:
        assert (expected["seen"], expected["size"]) == (ITEMS, sum(range(ITEMS)))
    for backend in backends:
        assert backend.exporter.flush(PATIENCE)
        assert backend.figures(mode) == expected, backend.name
        assert backend.exporter.counts() == (0, 0), backend.name


def test_several_runs_at_once_are_distinguished(
    tmp_path: Path, backends: list[Any], mode: str
) -> None:
    """Two executions of one function on two threads, and all of them are in every total."""
    ledgers = [Ledger(tmp_path / name) for name in ("first", "second")]

    def run(ledger: Ledger) -> None:
        amorsize.execute(
            CountingWork(ledger),
            range(ITEMS),
            executor=mode,
            n_jobs=2,
            chunksize=4,
            return_exceptions=True,
            name=NAME,
        )

    threads = [threading.Thread(target=run, args=(ledger,)) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    raised = sum(len(ledger.items("raised")) for ledger in ledgers)
    for backend in backends:
        assert backend.exporter.flush(PATIENCE)
        figures = backend.figures(mode)
        assert figures["executions"] == 2
        assert figures["items"] == figures["seen"] == figures["sizes"] == 2 * ITEMS
        assert figures["failed"] == raised == 12
        assert figures["size"] == 2 * sum(range(ITEMS))
        assert figures["in_progress"] == 0


def test_all_backends_dead_at_once_hold_no_program_up() -> None:
    """Results are right, the exit takes no longer, and each exporter says once what is wrong."""
    with Agent() as closed:
        pass
    errors, seconds = run_script(
        {
            "AMORSIZE_EXPORTERS": "prometheus,datadog,cloudwatch,opentelemetry",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}",
            "AMORSIZE_PROMETHEUS_PORT": "0",
            "DD_AGENT_HOST": "127.0.0.1",
            "DD_DOGSTATSD_PORT": str(closed.port),
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}",
            "AWS_DEFAULT_REGION": "eu-central-1",
            **CREDENTIALS,
        }
    )
    assert seconds < EXIT_SECONDS * slowness()
    assert "Traceback" not in errors
    for name in ("datadog", "cloudwatch"):
        assert errors.count(f"The {name} exporter cannot deliver") <= 1
