"""One trace from the caller through every worker, as a real OTLP receiver got it."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from amorsize import __version__
from amorsize.exporters.metrics import (
    CHUNK_DURATION,
    ESTIMATED_SPEEDUP,
    EXECUTION_DURATION,
    MEASURED_SPEEDUP,
    METRICS,
    Kind,
)
from amorsize.exporters.opentelemetry.exporter import SCHEMA_URL

from .otlp import (
    OtlpDouble,
    OtlpReceiver,
    Span,
    assert_is_one_trace,
    hex_of,
    run_program,
    shape_of,
)

pytestmark = pytest.mark.e2e

OURS = ("amorsize", __version__, SCHEMA_URL)
USER_WORK = ("user work", (("user detail", ()),))
CHUNK = ("chunk", (USER_WORK, USER_WORK))
EXECUTION = ("execute __main__.work", (CHUNK, CHUNK, CHUNK, CHUNK, ("plan", ())))

WORK = """
import os, signal, sys, threading, time
import amorsize
from opentelemetry import trace

tracer = trace.get_tracer("user", "1.2", schema_url="https://schemas.example/1")

def work(item):
    with tracer.start_as_current_span("user work") as span:
        threads = [thread.name for thread in threading.enumerate()]
        span.set_attributes({"item": item, "pid": os.getpid(), "threads": threads})
        with tracer.start_as_current_span("user detail"):
            meet(sys_argv[1], 2)
    return item * 2

def meet(directory, processes):
    "Return when so many processes came here."
    if not directory:
        return
    open(os.path.join(directory, str(os.getpid())), "w").close()
    deadline = time.monotonic() + 30
    while len(os.listdir(directory)) < processes:
        assert time.monotonic() < deadline
        time.sleep(0.002)

def set_provider():
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    if os.environ["OTEL_EXPORTER_OTLP_PROTOCOL"] == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)

sys_argv = list(sys.argv)
"""

TWO_WORKERS = (
    WORK
    + """
def run():
    return amorsize.execute(work, range(8), executor="process", n_jobs=2, chunksize=2)

if __name__ == "__main__":
    amorsize.enable_opentelemetry()
    if sys.argv[2] == "application":
        set_provider()
    else:
        run()  # our own provider is made with the first execution
    with trace.get_tracer("caller").start_as_current_span("caller") as caller:
        report(results=run(), trace=format(caller.get_span_context().trace_id, "032x"))
"""
)


def chunks_of(spans: list[Span]) -> list[Span]:
    return [span for span in spans if span.name == "chunk"]


@pytest.mark.parametrize("provider", ["application", "own"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_one_trace_from_the_caller_through_two_workers(
    tmp_path: Path, otlp_receiver: OtlpReceiver, protocol: str, provider: str
) -> None:
    """Ids, times, resource and scope, by both protocols, whoever made the provider."""
    (tmp_path / "meeting").mkdir()
    environment = otlp_receiver.environment(protocol)
    if provider == "application":
        environment["OTEL_SERVICE_NAME"] = "nightly"
    ran = run_program(
        tmp_path / "program.py",
        TWO_WORKERS,
        str(tmp_path / "meeting"),
        provider,
        environment=environment,
    )
    assert ran.log == ""
    assert ran.said["results"] == [item * 2 for item in range(8)]
    arrived = otlp_receiver.spans()
    spans = [span for span in arrived if span.trace_id == ran.said["trace"]]
    root = assert_is_one_trace(spans)
    assert shape_of(spans, root) == ("caller", (EXECUTION,))

    service = "nightly" if provider == "application" else "program"
    assert {span.resource["service.name"] for span in arrived} == {service}
    scopes = {span.name: span.scope for span in spans}
    assert scopes.pop("caller") == ("caller", "", "")
    user = ("user", "1.2", "https://schemas.example/1")
    assert scopes.pop("user work") == scopes.pop("user detail") == user
    assert scopes.keys() == {"execute __main__.work", "plan", "chunk"}
    assert set(scopes.values()) == {OURS}

    chunks = {span.span_id: span for span in chunks_of(spans)}
    works = [span for span in spans if span.name == "user work"]
    assert len({span.attributes["pid"] for span in works}) == 2
    for span in works:
        chunk = chunks[span.parent_id].attributes
        assert span.attributes["pid"] == chunk["process.pid"]
        assert span.attributes["threads"] == ["MainThread"]  # nothing exports there
        assert span.attributes["item"] // 2 == chunk["amorsize.chunk.id"]
        assert chunk["amorsize.chunk.start"] == chunk["amorsize.chunk.id"] * 2
    if provider == "own":  # the first execution had no caller
        others = [span for span in arrived if span.trace_id != ran.said["trace"]]
        assert shape_of(others, assert_is_one_trace(others)) == EXECUTION


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_metrics_arrive_under_their_names_with_exemplars(
    tmp_path: Path, otlp_receiver: OtlpReceiver, protocol: str
) -> None:
    """Units, kinds, bounds in seconds; exemplars are spans of the trace. The user's own as well."""
    source = (
        WORK
        + """
def picky(item):
    amorsize.count("rows_read", 3)
    if item == 5:
        raise ValueError(item)

if __name__ == "__main__":
    amorsize.enable_opentelemetry()
    amorsize.execute(picky, range(8), executor="process", n_jobs=2, chunksize=2,
                     return_exceptions=True)
"""
    )
    environment = otlp_receiver.environment(protocol) | {"OTEL_SERVICE_NAME": "nightly"}
    ran = run_program(tmp_path / "program.py", source, "", environment=environment)
    assert all(" failed with ValueError" in line for line in ran.log.splitlines()), ran.log
    points, spans = otlp_receiver.points(), otlp_receiver.spans()
    (user,) = [point for point in points if point.name.startswith("amorsize.user.")]
    assert (user.name, user.kind) == ("amorsize.user.rows_read", "sum")
    assert float(user.data.get("as_double") or user.data["as_int"]) == 24
    assert user.attributes["code.function.name"] == "__main__.picky"
    points.remove(user)
    rows = {row.dotted: row for row in METRICS}
    kinds = {Kind.HISTOGRAM: "histogram", Kind.COUNTER: "sum"}
    for point in points:
        row = rows[point.name]
        assert (point.unit, point.scope) == (row.unit, OURS)
        assert point.resource["service.name"] == "nightly"
        assert point.kind == kinds.get(row.kind, point.kind)
        if row.kind is Kind.HISTOGRAM:
            assert tuple(point.data["explicit_bounds"]) == row.buckets
    del rows[ESTIMATED_SPEEDUP.dotted]  # nobody estimates what a named engine brings
    del rows[MEASURED_SPEEDUP.dotted]  # known of some runs
    assert rows.keys() == {point.name for point in points} - {MEASURED_SPEEDUP.dotted}

    (chunks,) = [point for point in points if point.name == CHUNK_DURATION.dotted]
    assert int(chunks.data["count"]) == 4
    assert chunks.attributes == {
        "code.function.name": "__main__.picky",
        "amorsize.executor": "process",
    }
    chunk_ids = {span.span_id for span in chunks_of(spans)}
    exemplars = chunks.data["exemplars"]
    assert exemplars
    assert {hex_of(each["span_id"]) for each in exemplars} <= chunk_ids
    assert {hex_of(each["trace_id"]) for each in exemplars} == {spans[0].trace_id}
    (execution,) = [point for point in points if point.name == EXECUTION_DURATION.dotted]
    (span,) = [span for span in spans if span.name.startswith("execute")]
    assert [hex_of(each["span_id"]) for each in execution.data["exemplars"]] == [span.span_id]
    assert execution.attributes["amorsize.status"] == "ok"


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_exemplars_in_prometheus_point_to_spans_that_exist(
    tmp_path: Path, otlp_receiver: OtlpReceiver, mode: str
) -> None:
    """On the page that Prometheus reads, of chunks and of the execution."""
    source = (
        WORK
        + """
import urllib.request

if __name__ == "__main__":
    amorsize.enable_opentelemetry(metrics=False)
    exporter = amorsize.enable_prometheus(port=0)
    amorsize.execute(work, range(8), executor=sys.argv[2], n_jobs=2, chunksize=2)
    request = urllib.request.Request(
        f"http://127.0.0.1:{exporter.port}/metrics",
        headers={"Accept": "application/openmetrics-text; version=1.0.0"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        report(page=answer.read().decode())
"""
    )
    environment = otlp_receiver.environment()
    ran = run_program(tmp_path / "program.py", source, "", mode, environment=environment)
    names = {(span.trace_id, span.span_id): span.name for span in otlp_receiver.spans()}
    for metric, name in (
        (CHUNK_DURATION, "chunk"),
        (EXECUTION_DURATION, "execute __main__.work"),
    ):
        pointed = [
            names[sample.exemplar.labels["trace_id"], sample.exemplar.labels["span_id"]]
            for family in text_string_to_metric_families(ran.said["page"])
            for sample in family.samples
            if family.name == metric.prometheus and sample.exemplar is not None
        ]
        assert pointed
        assert set(pointed) == {name}


def test_every_mode_makes_a_trace_of_the_same_shape(
    tmp_path: Path, otlp_receiver: OtlpReceiver
) -> None:
    """Serial, threads and processes; all at once, and as a stream."""
    source = (
        WORK
        + """
if __name__ == "__main__":
    amorsize.enable_opentelemetry(metrics=False)
    set_provider()
    traces = {}
    for mode in ("serial", "thread", "process"):
        how = {"executor": mode, "n_jobs": 1 if mode == "serial" else 2, "chunksize": 2}
        for call in (amorsize.execute, amorsize.stream):
            with trace.get_tracer("caller").start_as_current_span("caller") as caller:
                assert list(call(work, range(8), **how)) == [0, 2, 4, 6, 8, 10, 12, 14]
            name = f"{mode} {call.__name__}"
            traces[name] = format(caller.get_span_context().trace_id, "032x")
    report(traces=traces)
"""
    )
    environment = otlp_receiver.environment()
    ran = run_program(tmp_path / "program.py", source, "", environment=environment)
    assert ran.log == ""
    arrived = otlp_receiver.spans()
    assert len(ran.said["traces"]) == 6
    for name, trace_id in ran.said["traces"].items():
        spans = [span for span in arrived if span.trace_id == trace_id]
        root = assert_is_one_trace(spans)
        assert shape_of(spans, root) == ("caller", (EXECUTION,)), name
        assert {span.attributes["amorsize.executor"] for span in chunks_of(spans)} == {
            name.split()[0]
        }


def test_spans_of_finished_chunks_survive_a_killed_worker(
    tmp_path: Path, otlp_receiver: OtlpReceiver
) -> None:
    """They are home already; the dead chunk's own is made by the parent."""
    source = (
        WORK
        + """
def fragile(item):
    if item == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return work(item)

if __name__ == "__main__":
    amorsize.enable_opentelemetry()
    results = amorsize.execute(fragile, range(6), executor="process", n_jobs=1, chunksize=2,
                               return_exceptions=True)
    report(results=[str(result) for result in results])
"""
    )
    environment = otlp_receiver.environment()
    ran = run_program(tmp_path / "program.py", source, "", environment=environment)
    assert ran.said["results"][:4] == ["0", "2", "4", "6"]
    assert "SIGKILL" in ran.said["results"][4]
    assert ran.said["results"][5] == "10"
    spans = otlp_receiver.spans()
    root = assert_is_one_trace(spans)
    by_start: dict[int, list[Span]] = {}
    for span in chunks_of(spans):
        by_start.setdefault(span.attributes["amorsize.chunk.start"], []).append(span)
    for start in (0, 2):
        (chunk,) = by_start[start]
        assert chunk.status[0] == "STATUS_CODE_UNSET"
        assert shape_of(spans, chunk) == CHUNK
    dead = by_start[4][0]
    assert dead.status[0] == "STATUS_CODE_ERROR"
    assert "SIGKILL" in dead.status[1]
    assert dead.attributes["error.type"] == "WorkerDiedError"
    assert dead.attributes["process.pid"] == by_start[0][0].attributes["process.pid"]
    (rest,) = by_start[5]
    assert rest.attributes["process.pid"] != dead.attributes["process.pid"]
    assert [name for name, _ in dead.events] == ["exception"]
    assert [name for name, _ in root.events].count("worker died") >= 1
    works = Counter(span.attributes["item"] for span in spans if span.name == "user work")
    assert works == {0: 1, 1: 1, 2: 1, 3: 1, 5: 1}


@pytest.mark.parametrize("mode", ["serial", "thread", "process"])
def test_a_terminated_program_delivers_its_trace(
    tmp_path: Path, otlp_receiver: OtlpReceiver, mode: str
) -> None:
    """SIGTERM in the middle: what was done is there, and the execution says how it ended."""
    source = (
        WORK
        + """
def end(context):
    if context.items_completed == 4:
        os.kill(os.getpid(), signal.SIGTERM)

if __name__ == "__main__":
    amorsize.enable_opentelemetry()
    amorsize.get_default_manager().register(amorsize.HookEvent.ON_CHUNK_COMPLETE, end)
    amorsize.execute(work, range(100), executor=sys.argv[2], n_jobs=1, chunksize=2)
"""
    )
    environment = otlp_receiver.environment()
    path = tmp_path / "program.py"
    run_program(path, source, "", mode, environment=environment, code=-signal.SIGTERM)
    spans = otlp_receiver.spans()
    (root,) = [span for span in spans if span.name == "execute __main__.work"]
    assert root.attributes["amorsize.status"] == "cancelled"
    assert root.status == ("STATUS_CODE_UNSET", "")  # who cancels knows
    assert "execution cancelled" in [name for name, _ in root.events]
    for number in (0, 1):
        (chunk,) = [c for c in chunks_of(spans) if c.attributes["amorsize.chunk.id"] == number]
        assert chunk.parent_id == root.span_id
        assert shape_of(spans, chunk) == CHUNK


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_of_chunks_above_the_budget_none_is_lost_unsaid(
    tmp_path: Path, otlp_receiver: OtlpReceiver, mode: str
) -> None:
    """Through a batch processor as applications make it; the failed ones are among them."""
    source = (
        WORK
        + """
def tiny(item):
    with tracer.start_as_current_span("user work"):
        if item in (0, 1234, 2500, 4999):
            raise ValueError(f"bad {item}")
        if item % 25 == 0:
            time.sleep(0.002)  # those that fail are not the slowest

if __name__ == "__main__":
    amorsize.enable_opentelemetry(metrics=False, max_chunk_spans=100)
    set_provider()
    amorsize.execute(tiny, range(5000), executor=sys.argv[2], n_jobs=2, chunksize=1,
                     return_exceptions=True)
"""
    )
    environment = otlp_receiver.environment()
    ran = run_program(tmp_path / "program.py", source, "", mode, environment=environment)
    assert all(" failed with ValueError" in line for line in ran.log.splitlines()), ran.log
    spans = otlp_receiver.spans()
    root = assert_is_one_trace(spans)
    chunks = chunks_of(spans)
    reported = root.attributes
    assert reported["amorsize.chunks.total"] == 5000
    assert len(chunks) == 100
    assert reported["amorsize.chunks.untraced"] == 4900
    works = [span for span in spans if span.name == "user work"]
    if mode == "process":
        assert len(works) == 100
        assert reported["amorsize.spans.dropped"] == 4900
    else:  # what opens in this process leaves at once: only early chunks may, others are unsampled
        assert len(works) == 50
        assert reported["amorsize.spans.dropped"] == 0
    failed = {span.attributes["amorsize.chunk.id"] for span in chunks if span.status[1]}
    assert failed == {0, 1234, 2500, 4999}


def test_a_burst_larger_than_the_processors_queue_loses_nothing(
    tmp_path: Path, otlp_double: Callable[..., OtlpDouble]
) -> None:
    """A batch processor drops what its queue of 2,048 cannot hold: spans are released at a pace."""
    source = (
        WORK
        + """
def tiny(item):
    tracer.start_span("user work").end()

if __name__ == "__main__":
    exporter = amorsize.enable_opentelemetry(metrics=False, max_chunk_spans=4000)
    set_provider()
    amorsize.execute(tiny, range(4000), executor="process", n_jobs=2, chunksize=1)
    report(flushed=exporter.flush(30))
"""
    )
    double = otlp_double(delay=0.05)  # a quick one would empty the queue in time
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": double.url,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    }
    ran = run_program(tmp_path / "program.py", source, "", environment=environment)
    assert (ran.log, ran.said) == ("", {"flushed": True})
    names = Counter(span.name for span in double.spans())
    assert (names["chunk"], names["user work"]) == (4000, 4000)


def test_what_an_execution_keeps_for_its_end_finds_room(tmp_path: Path) -> None:
    """However large a budget it was given."""
    source = (
        WORK
        + """
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

class Count(SpanProcessor):
    chunks = 0
    def on_end(self, span):
        self.chunks += span.name == "chunk"

if __name__ == "__main__":
    provider, count = TracerProvider(), Count()
    provider.add_span_processor(count)
    with amorsize.enable_opentelemetry(
        metrics=False, max_chunk_spans=14_000, tracer_provider=provider
    ) as exporter:
        amorsize.execute(abs, range(14_000), executor="serial", chunksize=1)
        report(flushed=exporter.flush(30), chunks=count.chunks)
"""
    )
    ran = run_program(tmp_path / "program.py", source, "", environment={})
    assert (ran.log, ran.said) == ("", {"flushed": True, "chunks": 14_000})


@pytest.mark.parametrize("then", ["closed", "forked"])
def test_our_own_providers_serve_again_when_they_are_enabled_again(
    tmp_path: Path, otlp_receiver: OtlpReceiver, then: str
) -> None:
    """After a close, and in a forked child: a program's provider can be set only once."""
    source = (
        WORK
        + """
def again(item):
    return work(item)

def run(func):
    amorsize.execute(func, range(2), executor="serial", chunksize=2)

if __name__ == "__main__":
    with amorsize.enable_opentelemetry() as exporter:
        run(work)
        if sys.argv[2] == "forked":
            if child := os.fork():
                sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        else:
            exporter.close()
        amorsize.enable_opentelemetry()
        run(again)
"""
    )
    environment = otlp_receiver.environment()
    ran = run_program(tmp_path / "program.py", source, "", then, environment=environment)
    assert ran.log == ""
    spans = otlp_receiver.spans()
    names = ["__main__.work", "__main__.again"]
    for name in names:
        (root,) = [span for span in spans if span.name == f"execute {name}"]
        trace = [span for span in spans if span.trace_id == root.trace_id]
        assert_is_one_trace(trace)
        assert shape_of(trace, root) == (f"execute {name}", (CHUNK, ("plan", ())))
    counted = [
        (point.attributes["code.function.name"], int(point.data["count"]))
        for point in otlp_receiver.points()
        if point.name == CHUNK_DURATION.dotted
    ]
    assert sorted(counted) == [(name, 1) for name in sorted(names)]
