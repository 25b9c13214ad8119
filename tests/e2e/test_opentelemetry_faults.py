"""Bad collectors: a run is right and not held up, and what is lost is counted and said once."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from waiting import PATIENCE, slowness

from .otlp import OtlpDouble, Ran, assert_is_one_trace, run_program

pytestmark = pytest.mark.e2e

ITEMS = 40
SPANS = 2 * ITEMS + 2
"""A chunk and one span in it for each item, the plan and the execution."""

EXIT_SECONDS = 2.0
MARGIN_SECONDS = 3.0
"""For a machine that does other things."""
LATE = str(int(1000 * PATIENCE))
"""Milliseconds after which spans are sent at last: by then the run is over, however slow it is."""

PROGRAM = """
import os, time
import amorsize
from amorsize.exporters.base import exporter_stats
from opentelemetry import trace

def work(item):
    with trace.get_tracer("user").start_as_current_span("user work"):
        return item * 2

if __name__ == "__main__":
    flush, *switches = sys.argv[1:]
    exporter = None
    if "off" not in switches:
        if "full" in switches:
            from amorsize.exporters.opentelemetry import execution_traces
            execution_traces._MAX_LATER = -30  # beside 40 of max_chunk_spans: room for ten chunks
            execution_traces._AT_ONCE = 1
        exporter = amorsize.enable_opentelemetry(
            metrics="metrics" in switches, max_chunk_spans=40 if "full" in switches else 1000
        )
    began = time.perf_counter()
    results = amorsize.execute(work, range(40), executor="process", n_jobs=2, chunksize=1)
    report(results=results, seconds=time.perf_counter() - began)
    if exporter is not None:
        delivered = float(flush) > 0 and exporter.flush(float(flush))
        report(delivered=delivered, stats=exporter_stats()["opentelemetry"])
    report(done=time.time())
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Ran]:
    """Run the program against an endpoint; its results must be right."""

    def run(endpoint: str, *switches: str, flush: float = 0, **variables: str) -> Ran:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": LATE,
            **variables,
        }
        path = tmp_path / "program.py"
        ran = run_program(path, PROGRAM, str(flush), *switches, environment=environment)
        assert ran.said["results"] == [item * 2 for item in range(ITEMS)]
        return ran

    return run


@contextmanager
def collector(kind: str, otlp_double: Callable[..., OtlpDouble]) -> Iterator[str]:
    """An endpoint that delivers nothing."""
    if kind == "none":
        with socket.socket() as bound:  # it refuses connections, and nobody else gets it
            bound.bind(("127.0.0.1", 0))
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        return
    double = otlp_double()
    double.gate.clear()
    yield double.url
    assert double.answered == []


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("kind", ["none", "hanging"])
def test_a_dead_collector_holds_up_neither_the_run_nor_the_exit(
    run: Callable[..., Ran],
    otlp_double: Callable[..., OtlpDouble],
    kind: str,
    protocol: str,
) -> None:
    """Against the same program without an exporter; one line in the log says what was lost."""
    with collector(kind, otlp_double) as endpoint:
        without = run(endpoint, "off")
        ran = run(endpoint, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)
    margin = MARGIN_SECONDS * slowness()
    assert ran.said["seconds"] < without.said["seconds"] + margin
    exit_seconds = ran.ended - ran.said["done"]
    assert exit_seconds < without.ended - without.said["done"] + EXIT_SECONDS + margin
    assert without.log == ""
    *outage, last = ran.log.splitlines()
    assert last == (
        f"The opentelemetry exporter was closed before {SPANS} items were delivered; they are lost."
    )
    assert len(outage) <= 1  # a connection that is refused has failed; one that hangs has not yet
    assert all("the attempt is repeated" in line for line in outage)


def test_readings_of_metrics_are_lost_as_quietly(
    run: Callable[..., Ran], otlp_double: Callable[..., OtlpDouble]
) -> None:
    """Both signals together say one line of what is lost."""
    with collector("none", otlp_double) as endpoint:
        ran = run(endpoint, "metrics")
    *outages, last = ran.log.splitlines()
    assert re.fullmatch(r".*was closed before \d+ items were delivered.*", last), ran.log
    assert len(outages) <= 2  # a sender of each signal


def test_what_a_full_queue_drops_is_counted_while_the_program_runs(
    run: Callable[..., Ran], otlp_double: Callable[..., OtlpDouble]
) -> None:
    """The oldest go; the log says so once."""
    double = otlp_double()
    double.gate.clear()
    ran = run(double.url, OTEL_BSP_MAX_QUEUE_SIZE="8", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="4")
    dropped, errors = ran.said["stats"]
    assert SPANS - 12 <= dropped <= SPANS - 8  # one batch is on its way, when it got so far
    assert errors == 0  # it hangs yet
    first, last = ran.log.splitlines()
    assert first == (
        "The opentelemetry exporter cannot keep up: its queue of 8 items is full, and the oldest "
        "are dropped (1 so far). The run goes on."
    )
    closed = re.fullmatch(
        r"The opentelemetry exporter was closed before (\d+) items were delivered; they are lost\.",
        last,
    )
    assert closed is not None
    assert 8 <= int(closed[1]) <= 12  # those that waited, and the batch on its way


def test_chunks_that_wait_for_a_queue_are_counted_by_their_spans(
    run: Callable[..., Ran], otlp_double: Callable[..., OtlpDouble]
) -> None:
    """Every span is counted once, when it is dropped or when the exporter closes."""
    with collector("none", otlp_double) as endpoint:
        ran = run(endpoint, "full", OTEL_BSP_MAX_QUEUE_SIZE="8", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="4")
    dropped, _ = ran.said["stats"]
    [closed] = re.findall(r"closed before (\d+) items were delivered", ran.log)
    assert dropped > 0
    assert dropped + int(closed) == SPANS


def test_a_collector_that_recovers_gets_everything(
    run: Callable[..., Ran], otlp_double: Callable[..., OtlpDouble]
) -> None:
    """Two answers that pass, and then it is back."""
    double = otlp_double([503, 502])
    ran = run(double.url, flush=PATIENCE)
    assert double.answered == [503, 502, 200]
    assert ran.said["delivered"]
    assert ran.said["stats"] == [0, 2]
    spans = double.spans()
    assert len(spans) == SPANS
    assert_is_one_trace(spans)
    first, second = ran.log.splitlines()
    assert first.startswith(
        "The opentelemetry exporter cannot deliver: ConnectionError: the backend answered 503 "
        "Service Unavailable. The run goes on; the attempt is repeated. "
    )
    assert (
        second == "The opentelemetry exporter delivers now, for the first time; nothing was lost."
    )


def test_what_is_lost_while_a_collector_is_down_is_what_the_queue_has_no_room_for(
    run: Callable[..., Ran], otlp_double: Callable[..., OtlpDouble]
) -> None:
    """The batch that is repeated and the newest spans arrive; all others are counted."""
    double = otlp_double([503] * 3)
    ran = run(
        double.url,
        flush=PATIENCE,
        OTEL_BSP_MAX_QUEUE_SIZE="16",
        OTEL_BSP_MAX_EXPORT_BATCH_SIZE="8",
        OTEL_BSP_SCHEDULE_DELAY="0",
    )
    dropped, errors = ran.said["stats"]
    assert errors == 3
    assert len(double.spans()) + dropped == SPANS


def test_a_slow_collector_gets_everything_and_slows_nothing(
    run: Callable[..., Ran], otlp_double: Callable[..., OtlpDouble]
) -> None:
    """Each of a dozen answers takes its time, and the run waits for none."""
    double = otlp_double(delay=0.1)
    ran = run(double.url, flush=PATIENCE, OTEL_BSP_MAX_EXPORT_BATCH_SIZE="8")
    assert ran.said["delivered"]
    assert ran.said["stats"] == [0, 0]
    assert len(double.answered) >= SPANS // 8
    assert len(double.spans()) == SPANS
    assert ran.log == ""
