"""amorsize's providers: the ``OTEL_*`` variables, and the delivery of spans and readings."""

from __future__ import annotations

import gzip
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import pytest
from opentelemetry import context as otel_context
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from waiting import PATIENCE

from amorsize.errors import ExporterError, InvalidValueError
from amorsize.exporters.base import Exporter
from amorsize.exporters.opentelemetry import otlp
from amorsize.exporters.opentelemetry.otlp import OwnMetrics, OwnTracing, resource

SPAN_EXPORTERS = "opentelemetry_traces_exporter"
METRIC_EXPORTERS = "opentelemetry_metrics_exporter"

library = logging.getLogger("opentelemetry.exporter.otlp.test")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine's own settings are not the test's."""
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


class Spans(SpanExporter):
    """Keeps what it is sent; its answers are ``results``, then success."""

    made: ClassVar[list[Spans]] = []

    def __init__(self, session: Any = None) -> None:
        self.batches: list[list[str]] = []
        self.results: list[Any] = []
        self.suppressed: list[Any] = []
        self.closed = 0
        Spans.made.append(self)

    def export(self, spans: Any) -> SpanExportResult:
        self.suppressed.append(otel_context.get_value(otel_context._SUPPRESS_INSTRUMENTATION_KEY))
        result = self.results.pop(0) if self.results else SpanExportResult.SUCCESS
        if isinstance(result, str):
            library.error(result)
            return SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            self.batches.append([span.name for span in spans])
        return result

    def shutdown(self) -> None:
        self.closed += 1


class Metrics(MetricExporter):
    """Keeps how many readings it is sent."""

    made: ClassVar[list[Metrics]] = []

    def __init__(self, session: Any = None) -> None:
        super().__init__()
        self.readings = 0
        self.closed = 0
        Metrics.made.append(self)

    def export(self, metrics_data: Any, timeout_millis: float = 0, **kwargs: Any) -> Any:
        self.readings += 1
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 0) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 0, **kwargs: Any) -> None:
        self.closed += 1


class Broken:
    def __init__(self) -> None:
        raise OSError("no certificate there")


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Replace installed exporters; record which were looked up."""
    asked: list[tuple[str, str]] = []
    Spans.made, Metrics.made = [], []
    known = {
        "otlp_proto_http": {SPAN_EXPORTERS: "Spans", METRIC_EXPORTERS: "Metrics"},
        "otlp_proto_grpc": {SPAN_EXPORTERS: "Spans", METRIC_EXPORTERS: "Metrics"},
        "mine": {SPAN_EXPORTERS: "Spans"},
        "broken": {SPAN_EXPORTERS: "Broken"},
    }

    def entry_points(*, group: str, name: str) -> list[EntryPoint]:
        asked.append((group, name))
        kind = known.get(name, {}).get(group)
        return [EntryPoint(name, f"{__name__}:{kind}", group)] if kind else []

    monkeypatch.setattr(otlp, "entry_points", entry_points)
    return asked


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    with Exporter() as made:
        yield made


def names(found: list[tuple[str, str]]) -> list[str]:
    return [name for _, name in found]


# --- which exporters ----


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ["otlp_proto_http"]),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ["otlp_proto_http"]),
        ({"OTEL_TRACES_EXPORTER": "  "}, ["otlp_proto_http"]),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ["otlp_proto_grpc"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, ["otlp_proto_grpc"]),
        (
            {
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            },
            ["otlp_proto_http"],
        ),
        ({"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc"}, ["otlp_proto_http"]),
        ({"OTEL_TRACES_EXPORTER": "mine, otlp"}, ["mine", "otlp_proto_http"]),
        ({"OTEL_TRACES_EXPORTER": "none"}, []),
        ({"OTEL_TRACES_EXPORTER": "mine,none"}, ["mine"]),
    ],
)
def test_variables_name_the_exporters(
    monkeypatch: pytest.MonkeyPatch,
    found: list[tuple[str, str]],
    exporter: Exporter,
    variables: dict[str, str],
    expected: list[str],
) -> None:
    """OTLP over HTTP by default, as in the specification."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    own = OwnTracing(exporter.new_sender)
    assert names(found) == expected
    assert len(Spans.made) == len(expected)
    own.close()
    assert [each.closed for each in Spans.made] == [1] * len(expected)


def test_metrics_have_variables_of_their_own(
    monkeypatch: pytest.MonkeyPatch, found: list[tuple[str, str]], exporter: Exporter
) -> None:
    """And entry points of their own."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc")
    own = OwnMetrics(exporter.new_sender)
    assert found == [(METRIC_EXPORTERS, "otlp_proto_grpc")]
    own.close()


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_{}"])
@pytest.mark.parametrize(("own", "signal"), [(OwnTracing, "TRACES"), (OwnMetrics, "METRICS")])
def test_a_protocol_that_is_unknown_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    exporter: Exporter,
    own: Callable[[Any], Any],
    signal: str,
    variable: str,
) -> None:
    """With those that are known."""
    monkeypatch.setenv(variable.format(f"{signal}_PROTOCOL"), "http/json")
    with pytest.raises(
        InvalidValueError,
        match=rf"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL, or OTEL_EXPORTER_OTLP_PROTOCOL, is "
        r"'http/json'; allowed are http/protobuf and grpc",
    ):
        own(exporter.new_sender)


def test_an_exporter_that_is_unknown_is_refused(
    monkeypatch: pytest.MonkeyPatch, found: list[tuple[str, str]], exporter: Exporter
) -> None:
    """With what is allowed."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkn")
    with pytest.raises(
        InvalidValueError, match=r"OTEL_TRACES_EXPORTER names 'zipkn'.*known are otlp, console and"
    ):
        OwnTracing(exporter.new_sender)


def test_an_exporter_that_cannot_be_made_is_named(
    monkeypatch: pytest.MonkeyPatch, found: list[tuple[str, str]], exporter: Exporter
) -> None:
    """With the reason."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "broken")
    with pytest.raises(
        ExporterError,
        match="the exporter 'broken' of OTEL_TRACES_EXPORTER cannot be made: OSError: no certif",
    ):
        OwnTracing(exporter.new_sender)


# --- bounds ----


def bounds(monkeypatch: pytest.MonkeyPatch, **variables: str) -> dict[str, Any]:
    """The bounds that a sender of spans gets."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    given: dict[str, Any] = {}

    class Silent:
        def __init__(self, send: Any, **bounds: Any) -> None:
            given.update(bounds)

    OwnTracing(Silent)  # type: ignore[arg-type]
    return given


def test_the_variables_of_the_batch_processor_are_bounds(
    monkeypatch: pytest.MonkeyPatch, found: list[tuple[str, str]]
) -> None:
    """Queue, batch and delay, with the specification's defaults."""
    defaults = {"capacity": 2048, "batch_items": 512, "linger_seconds": 5.0}
    assert bounds(monkeypatch) == defaults | otlp.PATIENCE
    set_to = {
        "OTEL_BSP_MAX_QUEUE_SIZE": "100",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": " 10 ",
        "OTEL_BSP_SCHEDULE_DELAY": "250",
    }
    assert bounds(monkeypatch, **set_to) == {
        "capacity": 100,
        "batch_items": 10,
        "linger_seconds": 0.25,
        **otlp.PATIENCE,
    }


@pytest.mark.parametrize("variable", ["OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"])
@pytest.mark.parametrize("wrong", ["0", "-5", "many", "1.5"])
def test_wrong_bounds_are_refused(
    monkeypatch: pytest.MonkeyPatch, found: list[tuple[str, str]], variable: str, wrong: str
) -> None:
    """With what was given, and what is allowed."""
    expected = re.escape(f"{variable} is {wrong!r}; give a whole number of at least 1")
    with pytest.raises(InvalidValueError, match=expected):
        bounds(monkeypatch, **{variable: wrong})


@pytest.mark.parametrize("wrong", ["-5", "soon", "1.5"])
def test_a_wrong_delay_is_refused(
    monkeypatch: pytest.MonkeyPatch, found: list[tuple[str, str]], wrong: str
) -> None:
    """It is counted in milliseconds."""
    with pytest.raises(
        InvalidValueError, match=r"OTEL_BSP_SCHEDULE_DELAY is .*; give a whole number of millisec"
    ):
        bounds(monkeypatch, OTEL_BSP_SCHEDULE_DELAY=wrong)


# --- the resource ----


@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("/srv/jobs/nightly.py", "nightly"),
        ("bin/report", "report"),
        ("-c", "python"),
        ("-", "python"),
        ("-m", "python"),
        ("", "python"),
        ("/x/__main__.py", "python"),
    ],
)
def test_a_program_without_a_service_name_has_its_own(
    monkeypatch: pytest.MonkeyPatch, program: str, name: str
) -> None:
    """And one that has none at all is called python."""
    monkeypatch.setattr(sys, "argv", [program])
    assert resource().attributes["service.name"] == name
    assert resource().attributes["telemetry.sdk.language"] == "python"


def test_no_arguments_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an embedded interpreter."""
    monkeypatch.setattr(sys, "argv", [])
    assert resource().attributes["service.name"] == "python"


def test_variables_describe_the_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    """``OTEL_SERVICE_NAME`` before ``OTEL_RESOURCE_ATTRIBUTES``, as in every SDK."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=listed,team=data")
    assert resource().attributes["service.name"] == "listed"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "nightly")
    found = resource().attributes
    assert (found["service.name"], found["team"]) == ("nightly", "data")


# --- how spans and readings leave ----


def test_spans_leave_by_the_sender(
    monkeypatch: pytest.MonkeyPatch, found: list[tuple[str, str]], exporter: Exporter
) -> None:
    """In one batch, and the sending itself is not instrumented."""
    own = OwnTracing(exporter.new_sender)
    tracer = own.provider.get_tracer("test")
    for name in ("first", "second"):
        tracer.start_span(name).end()
    assert own.provider.force_flush(30_000)
    (kept,) = Spans.made
    assert (kept.batches, kept.suppressed) == ([["first", "second"]], [True])
    assert otel_context.get_value(otel_context._SUPPRESS_INSTRUMENTATION_KEY) is None
    assert exporter.counts() == (0, 0)


def test_a_sampler_of_the_variables_applies(
    monkeypatch: pytest.MonkeyPatch, found: list[tuple[str, str]], exporter: Exporter
) -> None:
    """Nothing that is not sampled is sent."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    own = OwnTracing(exporter.new_sender)
    own.provider.get_tracer("test").start_span("none").end()
    assert exporter.flush(PATIENCE)
    assert Spans.made[0].batches == []


def test_a_failure_is_tried_again_counted_and_logged_once(
    monkeypatch: pytest.MonkeyPatch,
    found: list[tuple[str, str]],
    exporter: Exporter,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With the library's message, which is not logged by itself."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "0")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "mine")
    own = OwnTracing(exporter.new_sender)
    (kept,) = Spans.made
    kept.results = ["Failed to export span batch: 503", SpanExportResult.FAILURE]
    own.provider.get_tracer("test").start_span("late").end()
    for _ in range(4):
        exporter.flush(5)
    assert kept.batches == [["late"]]
    assert exporter.counts() == (0, 2)
    assert caplog.text.count("503") == 1
    assert {record.name for record in caplog.records} == {"amorsize.exporters.sender"}


def test_libraries_still_log_on_other_threads(
    found: list[tuple[str, str]], exporter: Exporter, caplog: pytest.LogCaptureFixture
) -> None:
    """The application may use the same exporter itself."""
    OwnTracing(exporter.new_sender)
    OwnTracing(exporter.new_sender)
    library.error("the application's own")
    assert caplog.text.count("the application's own") == 1


def test_readings_leave_by_the_sender(found: list[tuple[str, str]], exporter: Exporter) -> None:
    """When they are asked for, and at the interval; none after close()."""
    own = OwnMetrics(exporter.new_sender)
    own.provider.get_meter("test").create_counter("calls").add(1)
    own.collect()
    assert exporter.flush(PATIENCE)
    (kept,) = Metrics.made
    assert kept.readings == 1
    own.close()
    assert kept.closed == 1


# --- a whole program ----


class Receiver:
    """Reads OTLP over HTTP, and keeps it."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        self.metrics: list[Any] = []
        self.headers: list[dict[str, str]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.headers.append(dict(self.headers))
                receiver.keep(self.path, body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                """Keep quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def keep(self, path: str, body: bytes) -> None:
        if path == "/v1/traces":
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                attributes = group.resource.attributes
                self.resources.append({each.key: each.value.string_value for each in attributes})
                self.spans += [span for scope in group.scope_spans for span in scope.spans]
        if path == "/v1/metrics":
            for measured in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                self.metrics += [each for scope in measured.scope_metrics for each in scope.metrics]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def run_program(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done


def test_one_line_is_enough(receiver: Receiver) -> None:
    """A short program's trace and metrics arrive before it ends, with its spans in workers."""
    done = run_program(
        """
        import amorsize
        from opentelemetry import trace
        amorsize.enable_opentelemetry()

        def work(x):
            with trace.get_tracer("user").start_as_current_span("work"):
                return x

        assert amorsize.execute(work, range(4), executor="process", chunksize=2) == [0, 1, 2, 3]
        print(trace.get_tracer_provider() is amorsize.enable_opentelemetry()._own_tracing.provider)
        """,
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
        OTEL_EXPORTER_OTLP_HEADERS="api-key=secret",
        OTEL_SERVICE_NAME="nightly",
        OTEL_RESOURCE_ATTRIBUTES="team=data",
    )
    assert done.stdout.strip() == "True"
    assert done.stderr == ""
    kinds = sorted(span.name.split()[0] for span in receiver.spans)
    assert kinds == ["chunk", "chunk", "execute", "plan", "work", "work", "work", "work"]
    assert len({span.trace_id for span in receiver.spans}) == 1
    for described in receiver.resources:
        assert (described["service.name"], described["team"]) == ("nightly", "data")
    assert "amorsize.items.processed" in {metric.name for metric in receiver.metrics}
    assert {headers["api-key"] for headers in receiver.headers} == {"secret"}


def test_spans_of_the_caller_before_the_first_execution_arrive(receiver: Receiver) -> None:
    """And those around it: one trace from a program of one line."""
    done = run_program(
        """
        import amorsize
        from opentelemetry import trace
        tracer = trace.get_tracer("user")
        amorsize.enable_opentelemetry()
        with tracer.start_as_current_span("job"):
            with tracer.start_as_current_span("load"):
                data = range(4)
            amorsize.execute(abs, data, executor="serial")
        """,
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
    )
    assert done.stderr == ""
    assert {"job", "load", "plan"} < {span.name for span in receiver.spans}
    assert len({span.trace_id for span in receiver.spans}) == 1


SECRET = "hunter2"


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("headers", [f"api-key {SECRET}", f"good=1,Bearer {SECRET}"])
def test_malformed_headers_are_not_logged(headers: str, protocol: str) -> None:
    """The SDK logs them in full; the log names the variable, once."""
    done = run_program(
        """
        import logging
        logging.basicConfig(level="DEBUG")
        import amorsize
        amorsize.enable_opentelemetry()
        assert amorsize.execute(abs, [-1], executor="serial") == [1]
        """,
        OTEL_EXPORTER_OTLP_HEADERS=headers,
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
    )
    assert SECRET not in done.stdout + done.stderr
    assert done.stderr.count("OTEL_EXPORTER_OTLP_HEADERS has an entry that is not name=value") == 1


def test_a_wrong_variable_is_logged_once_and_the_run_goes_on() -> None:
    """It is looked at by the first execution, which must not fail for it."""
    done = run_program(
        """
        import amorsize
        amorsize.enable_opentelemetry()
        for _ in range(3):
            assert amorsize.execute(abs, [-1], executor="serial") == [1]
        """,
        OTEL_EXPORTER_OTLP_PROTOCOL="http/json",
    )
    assert done.stderr.count("is 'http/json'; allowed are http/protobuf and grpc") == 2
    for signal in ("traces", "metrics"):
        assert done.stderr.count(f"Executions have no {signal}") == 1


def test_a_wrong_variable_of_one_signal_leaves_the_other_alone() -> None:
    """Metrics are printed, and traces are not."""
    done = run_program(
        """
        import amorsize
        amorsize.enable_opentelemetry()
        assert amorsize.execute(abs, [-1], executor="serial") == [1]
        """,
        OTEL_TRACES_EXPORTER="bogus",
        OTEL_METRICS_EXPORTER="console",
    )
    assert done.stderr.count("Executions have no traces: OTEL_TRACES_EXPORTER") == 1
    assert "Executions have no metrics" not in done.stderr
    assert "amorsize.items.processed" in done.stdout


def test_no_signal_is_sent_unasked() -> None:
    """With both exporters none, everything runs and no thread of the SDK starts."""
    done = run_program(
        """
        import threading
        import amorsize
        exporter = amorsize.enable_opentelemetry()
        assert amorsize.execute(abs, [-1], executor="serial") == [1]
        print(sorted(thread.name for thread in threading.enumerate()))
        """,
        OTEL_TRACES_EXPORTER="none",
        OTEL_METRICS_EXPORTER="none",
    )
    assert done.stdout.strip() == "['MainThread']"


def test_a_meter_provider_of_the_program_is_never_replaced() -> None:
    """Nor is a tracer provider made beside it that nobody asked for."""
    done = run_program(
        """
        import amorsize
        from opentelemetry import metrics, trace
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        reader = InMemoryMetricReader()
        provider = MeterProvider([reader])
        exporter = amorsize.enable_opentelemetry()
        metrics.set_meter_provider(provider)
        amorsize.execute(abs, [-1], executor="serial")
        assert metrics.get_meter_provider() is provider
        print(type(trace.get_tracer_provider()).__name__, exporter._own_tracing)
        data = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
        print("amorsize.executions" in {metric.name for metric in data})
        """
    )
    assert done.stdout.split("\n")[:2] == ["ProxyTracerProvider None", "True"]
