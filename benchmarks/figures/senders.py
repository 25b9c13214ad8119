"""Datadog and CloudWatch: a chunk's event, a chunk of a run, and a run whose backend is dead.

Datadog sends to a real socket that is read; CloudWatch to a client that accepts each call at once,
so that the figure is ours and not that of a network.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import amorsize
from amorsize import HookContext, HookEvent, HookManager
from amorsize.exporters import Exporter
from amorsize.exporters.cloudwatch.exporter import CloudWatchExporter
from amorsize.exporters.datadog.exporter import DatadogExporter
from amorsize.exporters.opentelemetry.exporter import OpenTelemetryExporter
from amorsize.exporters.prometheus.exporter import PrometheusExporter
from benchmarks.figures.opentelemetry import providers
from benchmarks.harness import Contender, Contenders, figure, timed

CHUNKS = 500


class _Client:
    def put_metric_data(self, **call: Any) -> None:
        """Take it."""


@contextmanager
def _agent() -> Iterator[int]:
    """A port whose reader discards everything."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as agent:
        agent.bind(("127.0.0.1", 0))

        def read() -> None:
            while agent.recv(65536) != b"end":
                pass

        thread = threading.Thread(target=read)
        thread.start()
        port: int = agent.getsockname()[1]
        try:
            yield port
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ending:
                ending.sendto(b"end", ("127.0.0.1", port))
            thread.join()


@contextmanager
def _all_on(manager: HookManager) -> Iterator[list[Exporter]]:
    with ExitStack() as stack:
        port = stack.enter_context(_agent())
        exporters = [
            PrometheusExporter(port=0),
            DatadogExporter(host="127.0.0.1", port=port),
            CloudWatchExporter(client=_Client()),
            OpenTelemetryExporter(**stack.enter_context(providers())),
        ]
        yield [stack.enter_context(exporter.attach(manager)) for exporter in exporters]


@figure("datadog-chunk", "Datadog exporter, a chunk's event", unit="µs", at_most=30.0)
def datadog_chunk() -> Contenders:
    with _agent() as port, DatadogExporter(host="127.0.0.1", port=port) as exporter:
        yield {
            "amorsize": timed(
                "report(context)", report=exporter.on_chunk_complete, context=_chunk()
            )
        }


@figure("cloudwatch-chunk", "CloudWatch exporter, a chunk's event", unit="µs", at_most=15.0)
def cloudwatch_chunk() -> Contenders:
    with CloudWatchExporter(client=_Client()) as exporter:
        yield {
            "amorsize": timed(
                "report(context)", report=exporter.on_chunk_complete, context=_chunk()
            )
        }


@figure(
    "exporters-run",
    "a chunk of a run, all exporters on, delivered",
    unit="µs",
    difference=True,
    at_most=100.0,
    against="hooks that do nothing",
)
def all_exporters() -> Contenders:
    exporting, idle = HookManager(), HookManager()
    with _all_on(exporting) as exporters:
        for event in HookEvent:
            if exporting.has_hooks(event):
                idle.register(event, lambda context: None)

        def flush() -> None:  # what is done on other threads counts, too
            for exporter in exporters:
                assert exporter.flush(60)

        yield {"amorsize": _run(exporting, flush), "hooks that do nothing": _run(idle)}


@figure(
    "exporters-dead",
    "a run on two processes, all backends dead",
    unit="ms",
    against="hooks that do nothing",
)
def dead_backends() -> Contenders:
    exporting, idle = HookManager(), HookManager()
    for event in HookEvent:
        idle.register(event, lambda context: None)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with (
        DatadogExporter(host="127.0.0.1", port=port).attach(exporting),
        CloudWatchExporter(client=_Dead()).attach(exporting),
    ):
        yield {"amorsize": _processes(exporting), "hooks that do nothing": _processes(idle)}
    amorsize.shutdown()


class _Dead:
    def put_metric_data(self, **call: Any) -> None:
        raise ConnectionError("no backend")


def _run(manager: HookManager, after: Callable[[], object] = lambda: None) -> Contender:
    def run() -> None:
        amorsize.execute(abs, range(CHUNKS), executor="serial", chunksize=1, hooks=manager)
        after()

    return timed(run, per=CHUNKS)


def _processes(manager: HookManager) -> Contender:
    def run() -> object:
        return amorsize.execute(
            sum, _INPUT, executor="process", n_jobs=2, chunksize=1, hooks=manager
        )

    return timed(run)


_INPUT: list[Any] = [range(100_000)] * 20


def _chunk() -> HookContext:
    metadata = {
        "execution_id": "0",
        "function": "module.function",
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
