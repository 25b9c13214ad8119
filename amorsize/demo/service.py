"""A small HTTP service that answers slowly: the demo's stand-in for a slow API."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, unquote

from amorsize.demo.sources import Sources, count_lines

RESPONSE_SECONDS = (0.15, 0.45)
"""The shortest and the longest wait before an answer; a file's wait is always the same."""


class FactsService:
    """Answers ``/<name>`` with the size and the lines of a source file, as JSON.

    It listens on a free port while its ``with`` block runs.

    Args:
        sources: the files that it answers about; for all other names the status is 404.
        host: the address to listen on. Workers on other machines must be able to reach it.
        wait_seconds: the shortest and the longest wait before an answer.
        refuse_one_in: refuse one file in this many with status 503, at least one; 0 refuses none.
    """

    def __init__(
        self,
        sources: Sources,
        *,
        host: str = "127.0.0.1",
        wait_seconds: tuple[float, float] = RESPONSE_SECONDS,
        refuse_one_in: int = 0,
    ) -> None:
        self._host = f"[{host}]" if ":" in host else host
        self._server = _Server(sources, host, wait_seconds, refuse_one_in)
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.05},
            name="demo-service",
            daemon=True,
        )

    def url(self, name: str) -> str:
        """Return the URL of a file."""
        return f"http://{self._host}:{self._server.server_port}/{quote(name)}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # more than clients: the default of 5 makes them retry after a second

    def __init__(
        self, sources: Sources, host: str, wait_seconds: tuple[float, float], refuse_one_in: int
    ) -> None:
        self.sources = sources
        self.wait_seconds = wait_seconds
        self.refused = _choose_refused(sources, refuse_one_in)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, 0), _Handler)

    def server_bind(self) -> None:
        # HTTPServer would ask DNS for the name of the address, which blocks on some machines.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: the client went away, because its run was stopped."""


def _choose_refused(sources: Sources, one_in: int) -> frozenset[str]:
    """Choose the files to refuse, the same ones in every round."""
    if not one_in:
        return frozenset()
    scattered = sorted(sources.sizes, key=lambda name: zlib.crc32(name.encode()))
    return frozenset(scattered[: max(1, len(scattered) // one_in)])


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        name = unquote(self.path[1:])
        if name not in self.server.sources.sizes:
            self._answer(404, {"error": "no such file"})
            return
        number = zlib.crc32(name.encode())
        shortest, longest = self.server.wait_seconds
        time.sleep(shortest + (longest - shortest) * (number % 1000) / 1000)
        if name in self.server.refused:
            self._answer(503, {"error": "refused on purpose"})
            return
        with open(self.server.sources.path(name), "rb") as file:
            data = file.read()
        self._answer(200, {"name": name, "bytes": len(data), "lines": count_lines(data)})

    def _answer(self, status: int, answer: dict[str, object]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the progress bar is on that terminal."""
