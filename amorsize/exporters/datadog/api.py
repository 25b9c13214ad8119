"""Events and service checks by Datadog's HTTP API, for programs that have no agent."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from typing import Any

from amorsize.exporters.datadog.events import CHECK, TEXT_CHARACTERS, Check, DatadogEvent
from amorsize.exporters.datadog.settings import DatadogSettings
from amorsize.exporters.http_client import HttpClient

_ENVIRONMENT_TAGS = {"DD_ENV": "env", "DD_SERVICE": "service", "DD_VERSION": "version"}


class Api:
    """Posts events and service checks.

    Args:
        settings: hold the URL and the key.

    Attributes:
        destination: the URL of the API.
    """

    def __init__(self, settings: DatadogSettings) -> None:
        self.destination = settings.api_url.rstrip("/")
        self._key = settings.key or ""
        self._hostname = os.environ.get("DD_HOSTNAME") or socket.gethostname()
        self._tags = [
            f"{tag}:{os.environ[name]}"
            for name, tag in _ENVIRONMENT_TAGS.items()
            if os.environ.get(name)
        ]
        self._client = HttpClient("Datadog")

    def __repr__(self) -> str:
        return f"<Api {self.destination}>"

    def send(self, batch: Sequence[DatadogEvent | Check]) -> None:
        """Post one message, for a sender. Its errors are those of :meth:`HttpClient.post`."""
        (message,) = batch
        if isinstance(message, DatadogEvent):
            self._post("/api/v1/events", self._event(message))
        else:
            self._post("/api/v1/check_run", self._check(message))

    def _event(self, event: DatadogEvent) -> dict[str, Any]:
        return {
            "title": event.title,
            "text": event.text(TEXT_CHARACTERS),
            "alert_type": event.alert_type,
            "aggregation_key": event.aggregation_key,
            "date_happened": event.timestamp,
            "host": self._hostname,
            "tags": list(dict.fromkeys([*event.tags, *self._tags])),
        }

    def _check(self, check: Check) -> dict[str, Any]:
        return {
            "check": CHECK,
            "status": 0 if check.ok else 2,
            "message": check.message,
            "timestamp": check.timestamp,
            "host_name": self._hostname,
            "tags": list(dict.fromkeys([*check.tags, *self._tags])),
        }

    def _post(self, path: str, body: dict[str, Any]) -> None:
        headers = {"Content-Type": "application/json", "DD-API-KEY": self._key}
        self._client.post(f"{self.destination}{path}", json.dumps(body).encode(), headers)
