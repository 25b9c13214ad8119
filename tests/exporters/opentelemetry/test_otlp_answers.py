"""What a collector answers, over HTTP and gRPC: which answers are repeated, and when."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from waiting import PATIENCE, wait_until

from amorsize.exporters.base import Exporter
from amorsize.exporters.opentelemetry.otlp import OwnTracing
from amorsize.exporters.opentelemetry.single_attempt import RETRYABLE_ANSWERS, RETRYABLE_CODES

SECRET = "hunter2"


class HttpCollector:
    """Answers with ``answers``, each a status, headers and a body; 200 after them."""

    variables: ClassVar = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.asked_at: list[float] = []
        self.paths: list[str] = []
        self.spans: list[str] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.asked_at.append(time.monotonic())
                collector.paths.append(self.path)
                status, headers, answer = 200, {}, b""
                if collector.answers:
                    status, headers, answer = collector.answers.pop(0)
                if status == 200:
                    collector.spans += names_of(ExportTraceServiceRequest.FromString(body))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *args: object) -> None:
                """Keep quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class GrpcCollector(trace_service_pb2_grpc.TraceServiceServicer):
    """Answers with ``answers``, each a code, its details and trailing metadata; OK after them."""

    variables: ClassVar = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}

    def __init__(self, port: int = 0) -> None:
        self.answers: list[tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]] = []
        self.asked_at: list[float] = []
        self.spans: list[str] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()

    def Export(
        self, request: ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        self.asked_at.append(time.monotonic())
        if self.answers:
            code, details, metadata = self.answers.pop(0)
            context.set_trailing_metadata(metadata)
            context.abort(code, details)
        self.spans += names_of(request)
        return ExportTraceServiceResponse()

    def close(self) -> None:
        self._server.stop(0).wait()


def names_of(request: ExportTraceServiceRequest) -> list[str]:
    return [
        span.name
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Exporter]:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "0")
    with Exporter() as made:
        yield made


@pytest.fixture
def http() -> Iterator[HttpCollector]:
    collector = HttpCollector()
    yield collector
    collector.close()


@pytest.fixture
def grpc_collector() -> Iterator[GrpcCollector]:
    collector = GrpcCollector()
    yield collector
    collector.close()


@pytest.fixture
def send(exporter: Exporter, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Send a span to a collector, and wait until it is delivered or given up."""
    made: list[OwnTracing] = []

    def send(collector: HttpCollector | GrpcCollector, *, name: str = "sent") -> None:
        if not made:
            for variable, value in collector.variables.items():
                monkeypatch.setenv(variable, value)
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Bearer%20{SECRET}")
            made.append(OwnTracing(exporter.new_sender))
        made[0].provider.get_tracer("test").start_span(name).end()
        (sender,) = exporter._senders
        wait_until(lambda: sender.is_idle, "the span is delivered, or given up")

    yield send
    for own in made:
        own.close()


def logged(caplog: pytest.LogCaptureFixture) -> str:
    """Return the first line of the log; check that all lines are ours, without a secret."""
    assert {record.name for record in caplog.records} == {"amorsize.exporters.sender"}
    assert SECRET not in caplog.text
    return caplog.messages[0]


# --- HTTP ----


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 408, 413, 500, 501])
def test_an_answer_that_is_final_is_not_repeated(
    send: Callable[..., None],
    http: HttpCollector,
    exporter: Exporter,
    status: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The specification knows four that may be; whatever Retry-After says."""
    http.answers = [(status, {"Retry-After": "0"}, b"")]
    send(http)
    assert (len(http.asked_at), http.spans) == (1, [])
    assert exporter.counts() == (1, 1)
    said = logged(caplog)
    assert f"RefusedError: the backend answered {status}" in said
    assert said.endswith("1 item was lost (1 so far), and not sent again.")


@pytest.mark.parametrize("status", sorted(RETRYABLE_ANSWERS))
def test_an_answer_that_passes_is_repeated(
    send: Callable[..., None],
    http: HttpCollector,
    exporter: Exporter,
    status: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once per wait of the sender, not by the SDK as well."""
    http.answers = [(status, {}, b"")] * 2
    send(http)
    assert (len(http.asked_at), http.spans) == (3, ["sent"])
    assert exporter.counts() == (0, 2)
    assert f"ConnectionError: the backend answered {status}" in logged(caplog)
    assert "the attempt is repeated" in logged(caplog)


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_waited_for(
    send: Callable[..., None], http: HttpCollector, as_date: bool
) -> None:
    """It is longer than the sender's own first wait, which is half a second."""
    named = formatdate(time.time() + 3, usegmt=True) if as_date else "2"
    http.answers = [(429, {"Retry-After": named}, b"")]
    send(http)
    first, second = http.asked_at
    assert second - first >= 1.9
    assert http.spans == ["sent"]


def test_a_redirection_is_not_followed(
    send: Callable[..., None], http: HttpCollector, caplog: pytest.LogCaptureFixture
) -> None:
    """The headers, with their credentials, would go to somebody else."""
    http.answers = [(307, {"Location": f"http://127.0.0.1:{http.port}/elsewhere"}, b"")]
    send(http)
    assert http.paths == ["/v1/traces"]
    assert "RefusedError: the backend answered 307" in logged(caplog)


@pytest.mark.parametrize(
    ("status", "message", "said"),
    [
        (400, "span 3 has no name", "400 Bad Request: span 3 has no name"),
        (401, f"no such key {SECRET}", "401 Unauthorized"),
        (403, f"no such key {SECRET}", "403 Forbidden"),
        (400, f"api_key={SECRET} is a wrong header", "400 Bad Request: api_key=*** is a wrong "),
    ],
)
def test_the_message_of_a_refusal_is_logged_without_credentials(
    send: Callable[..., None],
    http: HttpCollector,
    status: int,
    message: str,
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A collector may repeat a wrong key in its answer."""
    body = Status(message=message).SerializeToString()
    http.answers = [(status, {"Content-Type": "application/x-protobuf"}, body)]
    send(http)
    assert f"RefusedError: the backend answered {said}" in logged(caplog)


def test_a_collector_that_is_not_there_is_named_with_the_cause(
    send: Callable[..., None], exporter: Exporter, caplog: pytest.LogCaptureFixture
) -> None:
    """Not with the pools and retries of the library; and what waits is delivered when it comes."""
    collector = HttpCollector()
    send(collector, name="first")
    collector.close()
    thread = threading.Thread(target=send, args=(collector,))
    thread.start()
    wait_until(lambda: caplog.messages, "the failure is logged")
    assert "ConnectionError: NewConnectionError: " in caplog.messages[0]
    assert "Connection refused" in caplog.messages[0]
    exporter.close()
    thread.join(PATIENCE)


# --- gRPC ----

FINAL = [
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "FAILED_PRECONDITION",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAUTHENTICATED",
    "RESOURCE_EXHAUSTED",
]


def retry_info(seconds: float) -> tuple[tuple[str, bytes], ...]:
    detail = Any()
    delay = Duration()
    delay.FromMilliseconds(int(seconds * 1000))
    detail.Pack(RetryInfo(retry_delay=delay))
    return (("grpc-status-details-bin", Status(details=[detail]).SerializeToString()),)


def test_every_code_is_either_final_or_passes() -> None:
    """As the specification lists them."""
    assert {*FINAL, *RETRYABLE_CODES, "OK"} == {code.name for code in grpc.StatusCode}


@pytest.mark.parametrize("code", FINAL)
def test_a_code_that_is_final_is_not_repeated(
    send: Callable[..., None],
    grpc_collector: GrpcCollector,
    exporter: Exporter,
    code: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And the log names it, with the collector's words."""
    grpc_collector.answers = [(grpc.StatusCode[code], "the reason", ())]
    send(grpc_collector)
    assert (len(grpc_collector.asked_at), grpc_collector.spans) == (1, [])
    assert exporter.counts() == (1, 1)
    assert f"RefusedError: the backend answered {code}: the reason" in logged(caplog)


@pytest.mark.parametrize("code", sorted(RETRYABLE_CODES))
def test_a_code_that_passes_is_repeated(
    send: Callable[..., None],
    grpc_collector: GrpcCollector,
    exporter: Exporter,
    code: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once per wait of the sender."""
    grpc_collector.answers = [(grpc.StatusCode[code], "the reason", ())] * 2
    send(grpc_collector)
    assert (len(grpc_collector.asked_at), grpc_collector.spans) == (3, ["sent"])
    assert exporter.counts() == (0, 2)
    assert f"ConnectionError: the backend answered {code}: the reason" in logged(caplog)


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "UNAVAILABLE"])
def test_retry_info_is_waited_for(
    send: Callable[..., None], grpc_collector: GrpcCollector, code: str
) -> None:
    """With it, an exhausted collector may be asked again."""
    grpc_collector.answers = [(grpc.StatusCode[code], "later", retry_info(2))]
    send(grpc_collector)
    first, second = grpc_collector.asked_at
    assert second - first >= 1.9
    assert grpc_collector.spans == ["sent"]


def test_a_collector_that_comes_back_gets_what_waited(
    send: Callable[..., None], exporter: Exporter, caplog: pytest.LogCaptureFixture
) -> None:
    """gRPC's own waits between connections grow to minutes: the channel is opened again."""
    collector = GrpcCollector()
    send(collector, name="first")
    port = collector.port
    collector.close()
    back: list[GrpcCollector] = []

    def come_back() -> None:
        wait_until(lambda: exporter.counts()[1] >= 2, "two attempts failed")
        back.append(GrpcCollector(port))

    returning = threading.Thread(target=come_back)
    returning.start()
    send(collector, name="second")
    returning.join(PATIENCE)
    assert back[0].spans == ["second"]
    assert exporter.counts()[0] == 0
    assert "the backend answered UNAVAILABLE: " in logged(caplog)
    assert caplog.messages[-1].endswith(" exporter delivers again; nothing was lost meanwhile.")
    back[0].close()
