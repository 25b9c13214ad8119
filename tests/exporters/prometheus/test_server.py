"""The server of /metrics: no client stops it, and none makes it print."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator

import pytest
from waiting import PATIENCE, slowness

from amorsize.exporters.prometheus.server import MAX_CONNECTIONS, ScrapeServer, _Handler


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


@pytest.fixture
def server(capfd) -> Iterator[ScrapeServer]:
    server = ScrapeServer("127.0.0.1", 0, hello)
    server.start()
    yield server
    assert get(server) == b"hello"
    server.close()
    assert capfd.readouterr() == ("", "")


def connect(server: ScrapeServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.server_port), timeout=PATIENCE)


def get(server: ScrapeServer) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=PATIENCE)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read()
    finally:
        connection.close()


def send(server: ScrapeServer, request: bytes) -> bytes:
    """Send bytes and read the answer up to the end of the connection, however it ends."""
    with connect(server) as client:
        answer = b""
        try:
            client.sendall(request)
            while data := client.recv(65536):
                answer += data
        except ConnectionError:
            pass
        return answer


def test_silent_clients_in_any_number_do_not_stop_it(server):
    """The oldest make room for the next, so that the threads stay few."""
    clients = [connect(server) for _ in range(200)]
    assert get(server) == b"hello"
    assert threading.active_count() < MAX_CONNECTIONS + 20
    assert clients[0].recv(1) == b""
    for client in clients:
        client.close()


def test_a_client_that_drips_is_cut_off():
    """Its deadline is for the whole request, not for the next byte."""
    server = ScrapeServer("127.0.0.1", 0, hello, request_seconds=0.2 * slowness())
    server.start()
    with connect(server) as client:
        client.sendall(b"GET / HTTP/1.1\r\nX: ")
        assert client.recv(1) == b""
    assert get(server) == b"hello"
    server.close()


def test_a_client_that_stalls_is_cut_off(monkeypatch, server):
    """Nothing for a while is the end of it."""
    monkeypatch.setattr(_Handler, "timeout", 0.2 * slowness())
    with connect(server) as client:
        assert client.recv(1) == b""


def test_a_client_that_does_not_read_is_cut_off(monkeypatch, server):
    """Its thread ends when the answer was not taken in time."""
    monkeypatch.setattr(_Handler, "timeout", 0.2 * slowness())
    done = threading.Event()

    def endless(environ, start_response):
        start_response("200 OK", [])
        try:
            for _ in range(1000):
                yield b"x" * 1_000_000
        finally:
            done.set()

    server.set_app(endless)
    with connect(server) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert done.wait(PATIENCE)
    server.set_app(hello)


@pytest.mark.parametrize(
    ("request_bytes", "code"),
    [
        (bytes(range(256)) * 10 + b"\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 505),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 200 + b"\r\n", 431),
    ],
    ids=["noise", "tls", "version", "long path", "long header", "many headers"],
)
def test_noise_is_refused(server, request_bytes, code):
    """With its error code, unless the connection was reset while bytes were on their way."""
    answer = send(server, request_bytes)
    assert answer == b"" or f"Error code: {code}".encode() in answer


def test_a_client_that_hangs_up_leaves_nothing(server):
    """At any point of its request."""
    for request in (b"", b"GET", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\n\r\n"):
        with connect(server) as client:
            client.sendall(request)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert get(server) == b"hello"


def test_an_application_that_fails_answers_500(server):
    """And prints nothing."""

    def broken(environ, start_response):
        raise RuntimeError("broken")

    server.set_app(broken)
    assert b" 500 " in send(server, b"GET / HTTP/1.0\r\n\r\n").splitlines()[0]
    server.set_app(hello)


def test_requests_that_are_in_are_answered_after_close():
    """A scrape that has begun is not cut off."""
    entered, proceed = threading.Event(), threading.Event()

    def slow(environ, start_response):
        entered.set()
        proceed.wait(PATIENCE)
        return hello(environ, start_response)

    server = ScrapeServer("127.0.0.1", 0, slow)
    server.start()
    answers: list[bytes] = []
    client = threading.Thread(target=lambda: answers.append(get(server)))
    client.start()
    assert entered.wait(PATIENCE)
    server.close()
    proceed.set()
    client.join(PATIENCE)
    assert answers == [b"hello"]


def test_a_server_that_never_started_closes():
    """Its port is free again."""
    server = ScrapeServer("127.0.0.1", 0, hello)
    server.close()
    again = ScrapeServer("127.0.0.1", server.server_port, hello)
    assert again.server_port == server.server_port
    again.close()
