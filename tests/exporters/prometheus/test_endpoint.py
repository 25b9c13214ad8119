"""What scrapers are answered, by the endpoint of our own, over WSGI and over ASGI."""

from __future__ import annotations

import asyncio
import base64
import gzip
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from wsgiref.simple_server import WSGIServer, make_server
from wsgiref.validate import validator

import pytest
from waiting import PATIENCE

from amorsize.exporters.prometheus.endpoint import Endpoint
from amorsize.exporters.prometheus.exporter import PrometheusExporter
from amorsize.hooks import HookManager

from ..events import Run, fetch

USER, PASSWORD = "scraper", "hunter2: über"


def get(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return response.status, dict(response.headers), response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_healthy_is_answered(exporter: PrometheusExporter) -> None:
    """Without the work of a scrape."""
    status, _, body = get(exporter.url.replace("/metrics", "/-/healthy"))
    assert (status, body) == (200, b"Healthy\n")


@pytest.mark.parametrize(
    "accept", ["gzip", "deflate, GZIP;q=0.5", "gzip;q=0", "identity", "gzipped"]
)
def test_the_page_is_compressed_for_clients_that_accept_gzip(
    exporter: PrometheusExporter, accept: str
) -> None:
    """Prometheus does."""
    _, headers, body = get(exporter.url, **{"Accept-Encoding": accept})
    compressed = accept.lower() in ("gzip", "deflate, gzip;q=0.5")
    assert headers.get("Content-Encoding") == ("gzip" if compressed else None)
    page = gzip.decompress(body) if compressed else body
    assert b"amorsize_build_info" in page
    assert int(headers["Content-Length"]) == len(body)


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (basic(USER, PASSWORD), 200),
        (basic(USER, PASSWORD).replace("Basic", "basic"), 200),
        (basic(USER, "wrong"), 401),
        (basic("other", PASSWORD), 401),
        (basic(USER, PASSWORD + " "), 401),
        ("Basic ###", 401),
        ("Basic", 401),
        ("Bearer hunter2", 401),
        ("", 401),
    ],
)
def test_a_password_protects_the_page(authorization: str, status: int) -> None:
    """And not the health check; the exporter's text shows neither name nor password."""
    with PrometheusExporter(port=0, user=USER, password=PASSWORD) as exporter:
        answered, headers, body = get(exporter.url, Authorization=authorization)
        assert answered == status
        assert (b"amorsize_build_info" in body) == (status == 200)
        assert ("WWW-Authenticate" in headers) == (status == 401)
        assert get(exporter.url.replace("/metrics", "/-/healthy"))[0] == 200
        assert "hunter2" not in repr(exporter) + repr(vars(exporter))


@pytest.fixture
def mounted(manager: HookManager) -> Iterator[PrometheusExporter]:
    """An exporter that listens nowhere."""
    with PrometheusExporter(listen=False).attach(manager) as exporter:
        assert (exporter.port, exporter.url) == (0, "")
        Run(manager).begin()
        yield exporter


def test_the_wsgi_app_is_served_by_a_server_of_the_application(mounted: PrometheusExporter) -> None:
    """It keeps to the protocol, says the validator of the standard library."""
    server: WSGIServer = make_server("127.0.0.1", 0, validator(mounted.wsgi_app()))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        root = f"http://127.0.0.1:{server.server_port}"
        for path in ("/metrics", "/metrics/", "/"):
            assert "amorsize_executions_in_progress{" in fetch(root + path)
        assert get(f"{root}/-/healthy")[0] == 200
        assert get(f"{root}/other")[0] == 404
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask_asgi(app: Any, path: str, **scope: Any) -> tuple[int, dict[bytes, bytes], bytes]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    whole = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
    asyncio.run(app({**whole, **scope}, receive, send))
    start, body = sent
    assert (start["type"], body["type"]) == ("http.response.start", "http.response.body")
    return start["status"], dict(start["headers"]), body["body"]


def test_the_asgi_app_answers(mounted: PrometheusExporter) -> None:
    """Alone, and mounted below a path, whether or not the server leaves that path in."""
    app = mounted.asgi_app()
    for path, root_path in (("/metrics", ""), ("/", ""), ("/app/metrics", "/app"), ("", "")):
        status, headers, body = ask_asgi(app, path, root_path=root_path)
        assert status == 200
        assert b"amorsize_executions_in_progress{" in body
        assert int(headers[b"content-length"]) == len(body)
    assert ask_asgi(app, "/-/healthy")[0] == 200
    assert ask_asgi(app, "/other")[0] == 404
    assert ask_asgi(app, "/metrics", method="POST")[0] == 405
    status, headers, body = ask_asgi(app, "/metrics", method="HEAD")
    assert (status, body) == (200, b"")
    accept = [(b"accept", b"application/openmetrics-text; version=1.0.0")]
    assert ask_asgi(app, "/metrics", headers=accept)[2].endswith(b"# EOF\n")
    query = b"name[]=amorsize_workers"
    assert b"amorsize_items" not in ask_asgi(app, "/metrics", query_string=query)[2]


def test_the_asgi_app_stands_alone_under_a_server(mounted: PrometheusExporter) -> None:
    """Servers announce their start and stop; other protocols are refused."""
    app = mounted.asgi_app()
    reported = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[str] = []

    async def receive() -> Any:
        return next(reported)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    asyncio.run(app({"type": "lifespan"}, receive, send))
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    with pytest.raises(ValueError, match="not over websocket"):
        asyncio.run(app({"type": "websocket"}, receive, send))


def test_a_page_that_fails_is_a_500() -> None:
    """The failure is logged and counted, and the body does not describe it."""
    failures: list[bool] = []

    def render(accept: str, names: Any) -> tuple[str, bytes]:
        raise RuntimeError("hunter2")

    status, _, body = ask_asgi(Endpoint(render, lambda: failures.append(True)).asgi, "/metrics")
    assert (status, failures) == (500, [True])
    assert b"hunter2" not in body
