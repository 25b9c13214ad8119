"""TLS, certificates of clients, settings that contradict each other, and taken ports."""

from __future__ import annotations

import http.client
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from waiting import PATIENCE, slowness

from amorsize.errors import InvalidTypeError, InvalidValueError, PortInUseError
from amorsize.exporters.prometheus import listening
from amorsize.exporters.prometheus.exporter import PrometheusExporter
from amorsize.exporters.prometheus.server import MAX_CONNECTIONS, ScrapeServer, _Handler
from amorsize.exporters.prometheus.settings import ListenSettings
from amorsize.hooks import HookManager

from ..certificates import Certificates
from ..events import Run


def scrape(port: int, context: ssl.SSLContext) -> bytes:
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=PATIENCE, context=context)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read()
    finally:
        connection.close()


@pytest.fixture
def secure(
    manager: HookManager, certificates: Certificates, capfd: Any
) -> Iterator[PrometheusExporter]:
    """Survives the test, and prints nothing."""
    with PrometheusExporter(port=0, certfile=certificates.server).attach(manager) as exporter:
        yield exporter
        Run(manager).begin()
        page = scrape(exporter.port, certificates.client_context())
        assert b"amorsize_executions_in_progress{" in page
    assert capfd.readouterr() == ("", "")


def connect(exporter: PrometheusExporter) -> socket.socket:
    return socket.create_connection(("127.0.0.1", exporter.port), timeout=PATIENCE)


def test_tls_is_served(secure: PrometheusExporter, certificates: Certificates) -> None:
    """To those who trust the authority; the url says https."""
    assert secure.url == f"https://127.0.0.1:{secure.port}/metrics"
    with pytest.raises(ssl.SSLCertVerificationError):
        scrape(secure.port, ssl.create_default_context())
    old = certificates.client_context()
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        scrape(secure.port, old)


def test_plain_requests_and_noise_do_not_stop_tls(
    secure: PrometheusExporter, certificates: Certificates
) -> None:
    """They end at the handshake, and get no metrics."""
    answered = b""
    for said in (b"GET /metrics HTTP/1.1\r\n\r\n", bytes(range(256)) * 100, b"\x16\x03\x01", b""):
        with connect(secure) as client:
            try:
                client.sendall(said)
                client.shutdown(socket.SHUT_WR)
                while answer := client.recv(65536):
                    answered += answer
            except OSError:
                pass  # the server has hung up already, which shutdown() says in its own way
    assert b"HTTP" not in answered
    assert b"amorsize" not in answered
    assert b"amorsize_build_info" in scrape(secure.port, certificates.client_context())


def test_silent_clients_do_not_stop_tls(secure: PrometheusExporter) -> None:
    """Two hundred that never begin the handshake; the oldest make room."""
    before = threading.active_count()  # other tests' threads may still be ending
    clients = [connect(secure) for _ in range(200)]
    assert clients[0].recv(1) == b""
    assert threading.active_count() <= before + MAX_CONNECTIONS + 1
    for client in clients:
        client.close()


def test_a_client_that_stalls_in_the_handshake_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, secure: PrometheusExporter
) -> None:
    """After a few bytes of it, too."""
    monkeypatch.setattr(_Handler, "timeout", 0.2 * slowness())
    with connect(secure) as client:
        client.sendall(b"\x16\x03\x01\x02\x00\x01")
        assert client.recv(1) == b""


def test_a_client_that_drips_its_handshake_is_cut_off(certificates: Certificates) -> None:
    """The deadline is for the handshake and the request together."""
    context = ListenSettings(certfile=certificates.server).tls
    server = ScrapeServer(
        "127.0.0.1", 0, lambda *_: [], tls=context, request_seconds=0.2 * slowness()
    )
    server.start()
    try:
        with socket.create_connection(
            ("127.0.0.1", server.server_port), timeout=PATIENCE
        ) as client:
            client.sendall(b"\x16\x03\x01")
            assert client.recv(1) == b""
    finally:
        server.close()


@pytest.mark.parametrize("required", [None, True, False])
def test_client_certificates(certificates: Certificates, required: bool | None) -> None:
    """One by the authority is let in, one by another never, none where that was asked for."""
    with PrometheusExporter(
        port=0,
        certfile=certificates.server,
        client_cafile=certificates.ca,
        client_auth_required=required,
    ) as exporter:
        page = scrape(exporter.port, certificates.client_context(certificates.client))
        assert b"amorsize_build_info" in page
        # With TLS 1.3 a client sees its refusal only when it reads; it may see a reset, too.
        with pytest.raises((OSError, http.client.HTTPException)):
            scrape(exporter.port, certificates.client_context(certificates.stranger))
        if required is False:
            assert b"amorsize" in scrape(exporter.port, certificates.client_context())
        else:
            with pytest.raises((OSError, http.client.HTTPException)):
                scrape(exporter.port, certificates.client_context())


def test_close_beside_a_silent_tls_client_frees_the_port(certificates: Certificates) -> None:
    """At once."""
    exporter = PrometheusExporter(port=0, certfile=certificates.server)
    with connect(exporter) as silent:
        scrape(exporter.port, certificates.client_context())
        exporter.close()
        assert silent.recv(1) == b""
    PrometheusExporter(port=exporter.port).close()


def test_a_key_with_a_password_is_refused_without_a_prompt(
    tmp_path: Path, certificates: Certificates
) -> None:
    """OpenSSL would ask on the terminal."""
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(certificates.server.read_bytes(), None)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"hunter2"),
        )
    )
    with pytest.raises(InvalidValueError, match="its private key without a password"):
        PrometheusExporter(port=0, certfile=certificates.server, keyfile=locked)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keyfile": __file__}, "keyfile needs certfile: without it there is no TLS"),
        ({"client_cafile": __file__}, "client_cafile needs certfile"),
        ({"client_auth_required": True}, "client_auth_required needs certfile"),
        ({"certfile": __file__}, "certfile, keyfile and client_cafile must hold a certificate"),
        (
            {"certfile": __file__, "client_auth_required": True},
            "client_auth_required needs client_cafile",
        ),
        ({"certfile": "/nowhere"}, "certfile must be a file that can be read; '/nowhere': No such"),
        ({"user": "me"}, "user and password belong together; password is missing"),
        ({"password": "hunter2"}, "user and password belong together; user is missing"),
        ({"user": "a:b", "password": "hunter2"}, "user must not contain a colon"),
        ({"user": "me", "password": ""}, "password must not be empty"),
        (
            {"file_sd": "/nowhere"},
            "file_sd must be in an existing directory; '/nowhere' is not one",
        ),
        ({"listen": False}, "port has no effect with listen=False"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    """Before anything is opened."""
    with pytest.raises(InvalidValueError, match=message) as raised:
        PrometheusExporter(port=0, **settings)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"certfile": 5}, "certfile must be the path of a file; got 5"),
        ({"client_auth_required": "yes"}, "must be True, False or None; got 'yes'"),
        ({"user": "me", "password": b"hunter2"}, "password must be a string; got a bytes"),
        ({"file_sd": 5}, "file_sd must be the path of a directory; got 5"),
    ],
)
def test_settings_of_a_wrong_type_are_refused(settings: dict[str, Any], message: str) -> None:
    """Before anything is opened."""
    with pytest.raises(InvalidTypeError, match=message) as raised:
        PrometheusExporter(port=0, **settings)
    assert "hunter2" not in str(raised.value)


def test_settings_of_listening_need_something_that_listens() -> None:
    """They would have no effect."""
    with pytest.raises(InvalidValueError, match="user and password would have no effect"):
        PrometheusExporter(listen=False, user="me", password="hunter2")


def test_a_port_of_another_process_is_reported_with_its_name() -> None:
    """And not with its command line, which may hold secrets."""
    script = (
        "import socket, sys\n"
        "sock = socket.create_server(('127.0.0.1', 0))\n"
        "print(sock.getsockname()[1], flush=True)\n"
        "sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, "hunter2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        port = int(holder.stdout.readline())
        with pytest.raises(PortInUseError, match=rf"taken by process {holder.pid} \(\S+\)\. Pass"):
            PrometheusExporter(port=port)
    finally:
        holder.communicate()


def test_where_the_system_hides_the_holder_it_is_another_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On macOS, and for processes of other users."""

    def denied(kind: str) -> list[Any]:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "net_connections", denied)
    assert listening.holder_of(9464) == "another program"
