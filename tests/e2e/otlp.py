"""Receivers of OTLP: a real process, and a double that fails on demand.

Both hand out the same: messages of OTLP, flattened to spans and metric points.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from ports import free_port
from waiting import PATIENCE, poll

SIGNALS = {"traces": ExportTraceServiceRequest, "metrics": ExportMetricsServiceRequest}


@dataclass(frozen=True, slots=True)
class Span:
    """A span as it arrived; times in ns since the epoch, ids in hex, no parent is ``""``."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    status: tuple[str, str]
    scope: tuple[str, str, str]
    resource: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Point:
    """A metric's data point as it arrived, ``data`` as OTLP's JSON has it."""

    name: str
    unit: str
    kind: str
    data: dict[str, Any]
    attributes: dict[str, Any]
    scope: tuple[str, str, str]
    resource: dict[str, Any]


class Arrivals:
    """Reads messages of OTLP, as protobuf's JSON of them."""

    def requests(self, signal: str) -> list[dict[str, Any]]:
        raise NotImplementedError

    def spans(self) -> list[Span]:
        """Every span that arrived, in order of arrival."""
        return list(_spans(self.requests("traces")))

    def points(self) -> list[Point]:
        """Every point of every metric that arrived."""
        return list(_points(self.requests("metrics")))


class OtlpReceiver(Arrivals):
    """A ``ddapm-test-agent`` process, which takes OTLP over HTTP and gRPC."""

    def __init__(self, log: Path) -> None:
        program = Path(sys.prefix, "otlp-receiver", "bin", "ddapm-test-agent")
        if not program.exists():
            message = f"{program} is not installed (`make test` does it)"
            if os.environ.get("CI"):
                pytest.fail(message)
            pytest.skip(message)
        ports = {name: free_port() for name in ("-p", "--otlp-http-port", "--otlp-grpc-port")}
        arguments = [text for name, port in ports.items() for text in (name, str(port))]
        self._grpc_port = ports["--otlp-grpc-port"]
        self._info = f"http://127.0.0.1:{ports['-p']}/info"
        self._urls = {
            "http/protobuf": f"http://127.0.0.1:{ports['--otlp-http-port']}",
            "grpc": f"http://127.0.0.1:{self._grpc_port}",
        }
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [program, "--host", "127.0.0.1", *arguments],
                stdout=output,
                stderr=output,
                cwd=log.parent,
            )
        try:
            poll(self._is_ready, bool, "the OTLP receiver is ready")
        except BaseException:
            self.close()
            raise

    def environment(self, protocol: str = "http/protobuf") -> dict[str, str]:
        """Variables that have a program send here."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self._urls[protocol],
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        }

    def requests(self, signal: str) -> list[dict[str, Any]]:
        answer = self._get(f"{self._urls['http/protobuf']}/test/session/{signal}")
        requests: list[dict[str, Any]] = json.loads(answer)
        return requests

    def clear(self) -> None:
        """Forget what arrived so far."""
        self._get(f"{self._urls['http/protobuf']}/test/session/clear")

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _get(self, url: str) -> bytes:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            body: bytes = answer.read()
            return body

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            pytest.fail(f"the OTLP receiver ended: {self._log.read_text('utf-8')[-2000:]}")
        try:
            self._get(self._info)
            self._get(f"{self._urls['http/protobuf']}/test/session/traces")
            socket.create_connection(("127.0.0.1", self._grpc_port), 5).close()
        except OSError:
            return False
        return True


class OtlpDouble(Arrivals):
    """An OTLP/HTTP server that fails on demand.

    Args:
        statuses: its first answers; 200 after them.
        delay: seconds before each answer.

    Attributes:
        gate: it answers while this is set.
        answered: the statuses of its answers.
    """

    def __init__(self, statuses: Iterable[int] = (), *, delay: float = 0.0) -> None:
        self._statuses = list(statuses)
        self._requests: dict[str, list[dict[str, Any]]] = {signal: [] for signal in SIGNALS}
        self.answered: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        double = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                signal = self.path.rpartition("/")[2]
                request = SIGNALS[signal].FromString(body)
                time.sleep(delay)
                assert double.gate.wait(PATIENCE)
                status = double._statuses.pop(0) if double._statuses else 200
                if status == 200:
                    double._requests[signal].append(
                        MessageToDict(request, preserving_proto_field_name=True)
                    )
                double.answered.append(status)
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                except OSError:
                    pass  # the program did not wait for the answer

            def log_message(self, *args: object) -> None:
                """Keep quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def requests(self, signal: str) -> list[dict[str, Any]]:
        return list(self._requests[signal])

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()  # waits for its request threads, too
        self._thread.join()


@dataclass(frozen=True, slots=True)
class Ran:
    """A program that ended as it should.

    Attributes:
        said: the values that it printed with ``report()``, by name.
        log: its standard error.
        ended: ``time.time()`` when its process was gone.
    """

    said: dict[str, Any]
    log: str
    ended: float


REPORT = '''
import json, sys

def report(**values):
    """In one piece, whoever else prints."""
    sys.stdout.write("".join(json.dumps({k: v}) + "\\n" for k, v in values.items()))
    sys.stdout.flush()
'''


def run_program(
    path: Path,
    source: str,
    *arguments: str,
    environment: Mapping[str, str],
    launcher: tuple[str, ...] = (),
    code: int = 0,
) -> Ran:
    """Run a program that says what it found with ``report(name=value)``; check how it ends."""
    path.write_text(REPORT + source, encoding="utf-8")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "AMORSIZE_"))}
    ran = subprocess.run(
        [*(launcher or (sys.executable,)), str(path), *arguments],
        env=inherited | dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    ended = time.time()
    assert ran.returncode == code, ran.stderr[-4000:]
    said: dict[str, Any] = {}
    for line in ran.stdout.splitlines():
        said |= json.loads(line)
    return Ran(said, ran.stderr, ended)


def _spans(requests: Iterable[dict[str, Any]]) -> Iterable[Span]:
    for request in requests:
        for resource, scope, scoped in _scoped(request, "resource_spans", "scope_spans"):
            for span in scoped.get("spans", ()):
                status = span.get("status", {})
                yield Span(
                    name=span["name"],
                    trace_id=hex_of(span["trace_id"]),
                    span_id=hex_of(span["span_id"]),
                    parent_id=hex_of(span.get("parent_span_id", "")),
                    start=int(span["start_time_unix_nano"]),
                    end=int(span["end_time_unix_nano"]),
                    attributes=_attributes(span),
                    events=[
                        (event["name"], _attributes(event)) for event in span.get("events", ())
                    ],
                    status=(status.get("code", "STATUS_CODE_UNSET"), status.get("message", "")),
                    scope=scope,
                    resource=resource,
                )


def _points(requests: Iterable[dict[str, Any]]) -> Iterable[Point]:
    kinds = ("gauge", "sum", "histogram", "exponential_histogram", "summary")
    for request in requests:
        for resource, scope, scoped in _scoped(request, "resource_metrics", "scope_metrics"):
            for metric in scoped.get("metrics", ()):
                kind = next(kind for kind in kinds if kind in metric)
                for data in metric[kind].get("data_points", ()):
                    unit = metric.get("unit", "")
                    attributes = _attributes(data)
                    yield Point(metric["name"], unit, kind, data, attributes, scope, resource)


def _scoped(
    request: dict[str, Any], outer: str, inner: str
) -> Iterable[tuple[dict[str, Any], tuple[str, str, str], dict[str, Any]]]:
    for of_resource in request.get(outer, ()):
        resource = _attributes(of_resource.get("resource", {}))
        for of_scope in of_resource.get(inner, ()):
            scope = of_scope.get("scope", {})
            named = (scope.get("name", ""), scope.get("version", ""))
            yield resource, (*named, of_scope.get("schema_url", "")), of_scope


def _attributes(holder: Mapping[str, Any]) -> dict[str, Any]:
    return {each["key"]: _value(each.get("value", {})) for each in holder.get("attributes", ())}


def _value(value: Mapping[str, Any]) -> Any:
    for kind, given in value.items():
        if kind == "int_value":
            return int(given)
        if kind == "array_value":
            return [_value(each) for each in given.get("values", ())]
        return given
    return None


def hex_of(text: str) -> str:
    """An id as people write it, from OTLP's JSON of it."""
    return base64.b64decode(text).hex()


Shape = tuple[str, tuple[Any, ...]]


def shape_of(spans: Iterable[Span], root: Span) -> Shape:
    """The tree below a span: its name, and the shapes of its children in sorted order."""
    spans = list(spans)
    children = [span for span in spans if span.parent_id == root.span_id]
    return root.name, tuple(sorted(shape_of(spans, child) for child in children))


def assert_is_one_trace(spans: list[Span]) -> Span:
    """Check ids and times of a trace; return its root."""
    assert len({span.trace_id for span in spans}) == 1
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans), "a span came twice"
    roots = [span for span in spans if not span.parent_id]
    assert len(roots) == 1
    for span in spans:
        assert span.start <= span.end
        if span.parent_id:
            parent = by_id[span.parent_id]
            assert parent.start <= span.start, (parent, span)
            assert span.end <= parent.end, (parent, span)
    return roots[0]
