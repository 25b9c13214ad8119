"""Which of its formats the page has, for each Accept header."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Callable, Iterator
from typing import Any

import prometheus_client
import pytest
from waiting import PATIENCE

from amorsize.exporters.prometheus.exporter import PrometheusExporter
from amorsize.exporters.prometheus.negotiation import accepts_gzip, preferred_format

OPENMETRICS, TEXT = "application/openmetrics-text", "text/plain"

PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
TEXT_FIRST = PROMETHEUS_2.replace("0.3", "0.6")  # scrape_protocols: [PrometheusText0.0.4, ...]
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8"

CASES = {
    "": TEXT,
    "*/*": TEXT,
    PROMETHEUS_2: OPENMETRICS,
    PROMETHEUS_3: OPENMETRICS,
    TEXT_FIRST: TEXT,
    BROWSER: TEXT,
    OPENMETRICS: OPENMETRICS,
    f"{TEXT}, {OPENMETRICS}": OPENMETRICS,
    f"{OPENMETRICS};q=0.5, {TEXT}": TEXT,
    f"{TEXT};q=0.5, {OPENMETRICS}": OPENMETRICS,
    f"{OPENMETRICS};q=0.2, */*;q=0.1": OPENMETRICS,
    f"{OPENMETRICS};q=0.1, */*;q=0.2": TEXT,
    # Not acceptable at all:
    f"{OPENMETRICS};q=0": TEXT,
    f"{OPENMETRICS};q=0.000, {TEXT};q=0.001": TEXT,
    f"{OPENMETRICS};q=0, */*": TEXT,
    f"{TEXT};q=0, */*": OPENMETRICS,
    f"{TEXT};q=0, {OPENMETRICS};q=0.1": OPENMETRICS,
    "image/png": TEXT,
    # Ranges: the closest one counts.
    "application/*": OPENMETRICS,
    "text/*": TEXT,
    "text/*;q=0.1, application/*;q=0.2": OPENMETRICS,
    "text/*;q=0, */*;q=0.1": OPENMETRICS,
    "application/*;q=0, */*;q=0.1": TEXT,
    # Versions that nobody here writes:
    f"{OPENMETRICS};version=9.9.9": TEXT,
    f"{OPENMETRICS};version=0.0.1;q=0.9, {TEXT};q=0.1": TEXT,
    f"{OPENMETRICS};version=9.9.9, {OPENMETRICS};version=1.0.0;q=0.5, {TEXT};q=0.4": OPENMETRICS,
    # Spelt oddly, or wrong: what cannot be understood says nothing.
    f"{OPENMETRICS.upper()} ; Version=1.0.0 ; Q=1.0": OPENMETRICS,
    f'{OPENMETRICS};version="1.0.0"': OPENMETRICS,
    f"{OPENMETRICS};q=high": TEXT,
    f"{OPENMETRICS};q=, {TEXT};q=0.1": TEXT,
    f"{OPENMETRICS};q=2": TEXT,
    f"{OPENMETRICS};q=-1": TEXT,
    f"{OPENMETRICS};q=nan": TEXT,
    f"{OPENMETRICS};q=0.5;q": TEXT,
    f"{OPENMETRICS};version=...;;=;q=0.5": TEXT,
    ";q=1,,;,=": TEXT,
    "," * 10_000: TEXT,
}


@pytest.mark.parametrize(("accept", "format"), CASES.items())
def test_the_format_is_the_one_that_weighs_most(accept: str, format: str) -> None:
    """Of those that are written; text where none is acceptable."""
    assert preferred_format(accept).partition(";")[0] == format


def test_the_escaping_of_names_is_passed_on() -> None:
    """To the library, which writes the application's registry; the weight is not."""
    assert preferred_format(PROMETHEUS_3) == f"{OPENMETRICS};version=1.0.0;escaping=allow-utf-8"


@pytest.mark.parametrize(
    ("accept", "compressed"),
    [
        ("", False),
        ("gzip", True),
        ("GZIP;q=0.001", True),
        ("deflate, gzip;q=0.5, br", True),
        ("gzip;q=0", False),
        ("gzip;q=0.000, *", False),
        ("*", True),
        ("*;q=0", False),
        ("identity, gzip;q=0.5", False),
        ("identity;q=0.5, gzip", True),
        ("identity;q=0, *;q=0.1", True),
        ("gzip;q=x", False),
        ("xgzip", False),
    ],
)
def test_gzip_is_used_for_those_who_prefer_it(accept: str, compressed: bool) -> None:
    """Which is everybody that names it, unless it weighs less than a page as it is."""
    assert accepts_gzip(accept) == compressed


# --- on the wire ----


@pytest.fixture(params=["server", "registry", "wsgi", "asgi"])
def ask(request: pytest.FixtureRequest) -> Iterator[Callable[[str], tuple[str, bytes]]]:
    """Ask for the page, by each way that has one; gives its type and its content."""
    with_registry = request.param == "registry"
    registry = prometheus_client.CollectorRegistry() if with_registry else None
    if registry is not None:
        prometheus_client.Counter("orders", "Orders", registry=registry).inc()
    listen = request.param in ("server", "registry")
    settings: dict[str, Any] = {"port": 0} if listen else {"listen": False}
    with PrometheusExporter(registry=registry, multiprocess=False, **settings) as exporter:
        ways = {"wsgi": _ask_wsgi, "asgi": _ask_asgi}
        yield lambda accept: ways.get(request.param, _ask_server)(exporter, accept)


def _ask_server(exporter: PrometheusExporter, accept: str) -> tuple[str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", exporter.port, timeout=PATIENCE)
    try:
        connection.request("GET", "/metrics", headers={"Accept": accept} if accept else {})
        response = connection.getresponse()
        assert response.status == 200
        assert "Accept" in response.headers["Vary"]
        return response.headers["Content-Type"], response.read()
    finally:
        connection.close()


def _ask_wsgi(exporter: PrometheusExporter, accept: str) -> tuple[str, bytes]:
    started: list[Any] = []
    environ: Any = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics", "HTTP_ACCEPT": accept}
    body = b"".join(exporter.wsgi_app()(environ, lambda *answer: started.append(answer)))
    [(status, headers)] = started
    assert status == "200 OK"
    return dict(headers)["Content-Type"], body


def _ask_asgi(exporter: PrometheusExporter, accept: str) -> tuple[str, bytes]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    # A list may come as several headers.
    headers = [(b"accept", each.encode()) for each in accept.split(",")]
    scope = {"type": "http", "method": "GET", "path": "/metrics", "headers": headers}
    asyncio.run(exporter.asgi_app()(scope, receive, send))
    start, body = sent
    assert start["status"] == 200
    return dict(start["headers"])[b"content-type"].decode(), body["body"]


@pytest.mark.parametrize("accept", [each for each in CASES if len(each) < 1000])
def test_the_page_has_the_type_that_it_says(
    ask: Callable[[str], tuple[str, bytes]], accept: str
) -> None:
    """In OpenMetrics it ends with its mark, in text it does not."""
    content_type, page = ask(accept)
    assert content_type.partition(";")[0] == CASES[accept]
    assert page.endswith(b"# EOF\n") == (CASES[accept] == OPENMETRICS)
    assert b"amorsize_build_info" in page
