"""Debian's Alertmanager, and the webhook that it calls."""

from __future__ import annotations

import json
import subprocess
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from .backends import START_SECONDS, free_port, poll, require_binary


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
    """An Alertmanager that tells a webhook of each alert at once.

    Args:
        directory: for its configuration, its data and its log.
        webhook_url: whom it tells.

    Attributes:
        address: ``host:port``, for Prometheus.
    """

    def __init__(self, directory: Path, webhook_url: str) -> None:
        binary = require_binary("prometheus-alertmanager", "prometheus-alertmanager")
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
        (directory / "alertmanager.yml").write_text(json.dumps(config), encoding="utf-8")
        self._log = directory / "alertmanager.log"
        self.address = f"127.0.0.1:{free_port()}"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    binary,
                    f"--config.file={directory / 'alertmanager.yml'}",
                    f"--storage.path={directory / 'data'}",
                    f"--web.listen-address={self.address}",
                    "--cluster.listen-address=",
                ],
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Self:
        try:
            poll(self._is_ready, bool, START_SECONDS, "alertmanager is ready")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            pytest.fail(f"alertmanager ended: {self._log.read_text(encoding='utf-8')[-2000:]}")
        try:
            with urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=5):
                return True
        except OSError:  # HTTPError is one
            return False
