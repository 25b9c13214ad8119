"""The Prometheus exporter by itself: a chunk's event, and scrapes of a hundred functions.

The scrapes take place while another thread reports chunks as fast as it can, which is harder
than any real run: it and the scrape fight for the interpreter's lock. "Quiet" is without it.
"""

from __future__ import annotations

import http.client
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, generate_latest

import amorsize
from amorsize import HookContext, HookEvent, HookManager
from amorsize.exporters.prometheus.exporter import PrometheusExporter
from benchmarks.harness import Contender, Contenders, figure, timed

FUNCTIONS = 100
CHUNKS = 500


@figure("prometheus-chunk", "Prometheus exporter, a chunk's event", unit="µs", at_most=10.0)
def chunk() -> Contenders:
    with PrometheusExporter(port=0) as exporter:
        yield {
            "amorsize": timed(
                "report(context)", report=exporter.on_chunk_complete, context=_chunk()
            )
        }


@figure(
    "prometheus-run",
    "a chunk of a run, Prometheus exporter",
    unit="µs",
    difference=True,
    at_most=10.0,
    against="hooks that do nothing",
)
def chunk_of_a_run() -> Contenders:
    exporting, idle = HookManager(), HookManager()
    with PrometheusExporter(port=0).attach(exporting):
        for event in HookEvent:
            if exporting.has_hooks(event):
                idle.register(event, lambda context: None)
        yield {"amorsize": _run(exporting), "hooks that do nothing": _run(idle)}


@figure("prometheus-scrape", "a scrape of 100 functions, chunks arriving", unit="ms", at_most=100.0)
def scrape() -> Contenders:
    with _exporter_of_functions() as exporter, _chunks_arriving(exporter):
        yield {"amorsize": timed(lambda: _scrape(exporter.port))}


@figure("prometheus-scrape-quiet", "a scrape of 100 functions, quiet", unit="ms")
def quiet_scrape() -> Contenders:
    registry = CollectorRegistry()
    with _exporter_of_functions(registry) as exporter:
        yield {
            "amorsize": timed(lambda: _scrape(exporter.port)),
            "prometheus-client's text alone": timed(lambda: generate_latest(registry)),
        }


def _run(manager: HookManager) -> Contender:
    def run() -> object:
        return amorsize.execute(abs, range(CHUNKS), executor="serial", chunksize=1, hooks=manager)

    return timed(run, per=CHUNKS)


def _chunk(function: int = 0) -> HookContext:
    metadata = {
        "execution_id": str(function),
        "function": f"module.function_{function}",
        "executor_type": "process",
        "queue_time": 0.003,
    }
    return HookContext(
        HookEvent.ON_CHUNK_COMPLETE,
        chunk_size=10,
        chunk_time=0.2,
        worker_id=0,
        items_completed=10,
        metadata=metadata,
    )


@contextmanager
def _exporter_of_functions(
    registry: CollectorRegistry | None = None,
) -> Iterator[PrometheusExporter]:
    with PrometheusExporter(port=0, registry=registry).attach(HookManager()) as exporter:
        for function in range(FUNCTIONS):
            exporter.on_chunk_complete(_chunk(function))
        yield exporter


@contextmanager
def _chunks_arriving(exporter: PrometheusExporter) -> Iterator[None]:
    done = threading.Event()

    def report() -> None:
        for context in itertools.cycle([_chunk(function) for function in range(FUNCTIONS)]):
            exporter.on_chunk_complete(context)
            if done.is_set():
                return

    thread = threading.Thread(target=report)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _scrape(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/metrics", headers={"Accept-Encoding": "gzip"})
        assert connection.getresponse().read()
    finally:
        connection.close()
