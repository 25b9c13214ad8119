"""Real backends on 127.0.0.1, good and bad, and what sends to them."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from waiting import PATIENCE

from amorsize.exporters.sender import RefusedError


class Backend:
    """An HTTP server that keeps the JSON lists which it is sent.

    ``statuses`` are its next answers, 200 after them; it answers while ``gate`` is set.
    """

    def __init__(self, port: int = 0) -> None:
        self.received: list[Any] = []
        self.statuses: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Event()
        backend = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                backend.asked.set()
                assert backend.gate.wait(PATIENCE)
                status = backend.statuses.pop(0) if backend.statuses else 200
                if status == 200:
                    backend.received += body
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                """Keep quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()  # waits for its request threads, too
        self._thread.join()


def post_to(port: int, timeout: float = 60) -> Callable[[list[Any]], None]:
    """What an exporter would pass as ``send``: any answer but 200 fails, 4xx for good."""

    def post(batch: list[Any]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        try:
            connection.request("POST", "/", json.dumps(batch))
            status = connection.getresponse().status
        finally:
            connection.close()
        if 400 <= status < 500:
            raise RefusedError(f"the backend answered {status}")
        if status != 200:
            raise OSError(f"the backend answered {status}")

    return post


@contextmanager
def dead_port() -> Iterator[int]:
    """A port that refuses connections: it is bound, so nobody else gets it, and not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextmanager
def hanging_port() -> Iterator[int]:
    """A port whose connections are accepted by the system, and never answered."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(PATIENCE)
        yield listening.getsockname()[1]
        # Ends every connection, so that whoever waits for an answer stops waiting.
