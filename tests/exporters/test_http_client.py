"""Posts of exporters against a real server: which answers are asked again, and when."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from amorsize.exporters.http_client import HttpClient, retry_after
from amorsize.exporters.sender import RefusedError, RetryLaterError


class Server:
    """Answers with a status and, where it is set, ``Retry-After``."""

    def __init__(self) -> None:
        self.status = 200
        self.retry_after: str | None = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(server.status)
                if server.retry_after is not None:
                    self.send_header("Retry-After", server.retry_after)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                """Keep quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.mark.parametrize("status", [429, 503])
def test_a_backend_that_names_a_time_is_asked_then(server: Server, status: int) -> None:
    """As seconds, or as a date; without it the sender's own waits apply."""
    client = HttpClient("it")
    server.status = status
    with pytest.raises(ConnectionError, match=f"it answered {status}"):
        client.post(server.url, b"", {})
    server.retry_after = "17"
    with pytest.raises(RetryLaterError, match=f"it answered {status}") as late:
        client.post(server.url, b"", {})
    assert late.value.seconds == 17
    server.retry_after = formatdate(time.time() + 100, usegmt=True)
    with pytest.raises(RetryLaterError) as late:
        client.post(server.url, b"", {})
    assert 0 < late.value.seconds <= 101


def test_a_refusal_is_not_asked_again_whatever_it_names(server: Server) -> None:
    """Nor is a redirection followed."""
    server.retry_after = "1"
    for server.status in (301, 400, 401, 403, 404):
        with pytest.raises(RefusedError, match=f"it answered {server.status}"):
            HttpClient("it").post(server.url, b"", {"Authorization": "Bearer secret"})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), (" 90 ", 90), ("", None), ("-1", None), ("1.5", None), ("soon", None), ("²", None)],
)
def test_a_time_that_is_not_one_is_none(text: str, seconds: float | None) -> None:
    """The specification knows whole seconds and dates."""
    assert retry_after(text) == seconds
    assert retry_after(None) is None


def test_a_date_that_has_passed_is_now() -> None:
    """Clocks differ."""
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
