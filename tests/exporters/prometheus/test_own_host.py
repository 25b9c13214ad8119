"""A server that only this machine can reach answers only who asks for this machine.

Otherwise a web page could name a host of its own, point that name to 127.0.0.1, and read the
metrics through the browser of whoever visits it.
"""

from __future__ import annotations

import http.client
import socket

import pytest
from waiting import PATIENCE

from amorsize.exporters.prometheus import own_host
from amorsize.exporters.prometheus.exporter import PrometheusExporter
from amorsize.exporters.prometheus.server import ScrapeServer

OWN = [
    "localhost",
    "LOCALHOST",
    "localhost.",
    "localhost:1",
    "127.0.0.1",
    "127.0.0.1:9464",
    "127.0.0.1:",
    "127.1.2.3:65535",
    "[::1]",
    "[::1]:9464",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]:80",
    None,
]
OTHERS = [
    "evil.example",
    "evil.example:9464",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil.example@127.0.0.1",
    "127.0.0.1@evil.example",
    "127.0.0.1, evil.example",
    "127.0.0.1:9464:1",
    "localhost:evil",
    "10.0.0.1",
    "0.0.0.0",
    "[::2]",
    "[127.0.0.1",
    "::1",
    "169.254.169.254",
    "",
    ":9464",
    "localhost/evil",
]


def ask(port: int, host: str | None, path: str = "/metrics", method: str = "GET") -> int:
    """Return the status of the answer to a request with this Host header, or without one."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.putrequest(method, path, skip_host=True)
        if host is not None:
            connection.putheader("Host", host)
        connection.endheaders()
        response = connection.getresponse()
        body = response.read()
        assert (b"amorsize_build_info" in body) <= (response.status == 200)
        return response.status
    finally:
        connection.close()


@pytest.mark.parametrize("host", OWN)
def test_a_host_of_this_machine_is_answered(exporter: PrometheusExporter, host: str | None) -> None:
    """By name or address, with any port: a tunnel has another one."""
    assert ask(exporter.port, host) == 200


@pytest.mark.parametrize("host", OTHERS)
def test_another_host_is_refused(exporter: PrometheusExporter, host: str) -> None:
    """On every path, by every method."""
    assert ask(exporter.port, host) == 421
    assert ask(exporter.port, host, "/-/healthy") == 421
    assert ask(exporter.port, host, method="HEAD") == 421


def test_the_loopback_interface_has_many_addresses() -> None:
    """It is checked on each, and by whichever name it was bound."""
    for addr in ("localhost", "127.0.0.2", "::1"):
        if addr == "::1" and not _has_ipv6():
            continue
        server = ScrapeServer(addr, 0, lambda environ, start_response: [b""])
        server.close()
        assert isinstance(server.get_app(), own_host.OwnHost)


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_the_name_that_it_is_bound_to_is_answered() -> None:
    """Such as that of this machine in /etc/hosts, where Debian gives it 127.0.1.1."""
    assert own_host.is_own("batch-host:9464", "batch-host")
    assert own_host.is_own("Batch-Host", "batch-host")
    assert not own_host.is_own("batch-host.evil.example", "batch-host")


def test_a_server_for_other_machines_checks_nothing() -> None:
    """It has as many names as they give it."""
    with PrometheusExporter(port=0, addr="0.0.0.0") as exporter:
        for host in (*OWN, "evil.example", "batch-host:9464"):
            assert ask(exporter.port, host) == 200


def test_a_server_of_the_application_decides_itself() -> None:
    """Its applications answer whichever host it passes."""
    with PrometheusExporter(listen=False, multiprocess=False) as exporter:
        answers: list[str] = []
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics", "HTTP_HOST": "shop.example"}
        exporter.wsgi_app()(environ, lambda status, headers: answers.append(status))
        assert answers == ["200 OK"]
