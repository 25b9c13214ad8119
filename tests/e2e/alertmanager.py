"""Debian's Alertmanager, and the webhook that it calls."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ports import free_port

from stack import servers, settings

from .backends import require_program


class Webhook:
    """Somebody who is notified, on a free port of 127.0.0.1.

    Attributes:
        url: where to.
        notified: the bodies of all notifications so far.
    """

    def __init__(self) -> None:
        self.notified: list[dict[str, Any]] = []
        notified = self.notified

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                notified.append(json.loads(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def alerts(self, name: str) -> list[dict[str, Any]]:
        """All that was said about an alert."""
        return [
            alert
            for body in list(self.notified)
            for alert in body["alerts"]
            if alert["labels"]["alertname"] == name
        ]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Alertmanager:
    """An Alertmanager that notifies a webhook of each alert at once.

    Args:
        directory: for its configuration, its data and its log.
        webhook_url: the address that it notifies.

    Attributes:
        address: ``host:port``, for Prometheus.
    """

    def __init__(self, directory: Path, webhook_url: str) -> None:
        require_program(servers.ALERTMANAGER)
        directory.mkdir(parents=True, exist_ok=True)
        config = {
            "route": {
                "receiver": "test",
                "group_by": ["alertname"],
                "group_wait": "0s",
                "group_interval": "1s",
            },
            "receivers": [{"name": "test", "webhook_configs": [{"url": webhook_url}]}],
        }
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        path = settings.write(directory / "alertmanager.yml", config)
        self._process = servers.start_alertmanager(directory, path, port)

    def __enter__(self) -> Self:
        try:
            self._process.wait_until_ready()
        except BaseException:
            self._process.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.stop()
