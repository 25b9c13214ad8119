"""Events and service checks by Datadog's HTTP API, for programs that have no agent."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from amorsize.errors import InvalidTypeError, InvalidValueError
from amorsize.exporters.datadog.events import CHECK, TEXT_CHARACTERS, Check, Event
from amorsize.exporters.sender import RefusedError

DEFAULT_SITE = "datadoghq.com"
TIMEOUT_SECONDS = 5.0

_ENVIRONMENT_TAGS = {"DD_ENV": "env", "DD_SERVICE": "service", "DD_VERSION": "version"}


class Api:
    """Posts events and service checks.

    Args:
        key: the API key.
        host: the URL of the API; None for that of ``DD_SITE``.
        environment: where ``DD_*`` variables are.

    Attributes:
        destination: the URL of the API.

    Raises:
        InvalidTypeError, InvalidValueError: the key or the URL is wrong. No message shows the key.
    """

    def __init__(self, key: str, host: str | None, environment: Mapping[str, str]) -> None:
        self._key = _checked_key(key)
        if host is None:
            host = f"https://api.{environment.get('DD_SITE') or DEFAULT_SITE}"
        self.destination = _checked_url(host)
        self._hostname = environment.get("DD_HOSTNAME") or socket.gethostname()
        self._tags = [
            f"{tag}:{environment[name]}"
            for name, tag in _ENVIRONMENT_TAGS.items()
            if environment.get(name)
        ]
        self._opener = urllib.request.build_opener(_NoRedirects)

    def __repr__(self) -> str:
        return f"<Api {self.destination}>"

    def send(self, batch: Sequence[Event | Check]) -> None:
        """Post one message; what a sender calls.

        Raises:
            RefusedError: the API does not want it, now or later.
            OSError, http.client.HTTPException: this attempt failed.
        """
        (message,) = batch
        if isinstance(message, Event):
            self._post("/api/v1/events", self._event(message))
        else:
            self._post("/api/v1/check_run", self._check(message))

    def _event(self, event: Event) -> dict[str, Any]:
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
        request = urllib.request.Request(
            f"{self.destination}{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "DD-API-KEY": self._key},
            method="POST",
        )
        try:
            with self._opener.open(request, timeout=TIMEOUT_SECONDS) as response:
                response.read(1)
        except urllib.error.HTTPError as error:
            with error:  # its text is not told: it may repeat what was sent
                if error.code >= 500 or error.code in (408, 429):
                    raise ConnectionError(f"Datadog answered {error.code}") from None
                raise RefusedError(f"Datadog answered {error.code} ({error.reason})") from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Turns a redirection into an error: it would carry the key to somebody else."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _checked_key(key: object) -> str:
    if not isinstance(key, str):
        raise InvalidTypeError(f"api_key must be a string; got a {type(key).__name__}")
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidValueError("api_key must be printable ASCII without spaces or line ends")
    return key


def _checked_url(url: object) -> str:
    if not isinstance(url, str):
        raise InvalidTypeError(f"api_host must be a URL, or None; got {url!r}")
    try:
        parts = urlsplit(url)
        good = bool(parts.hostname) and parts.scheme in ("http", "https")
        good = good and not (parts.query or parts.fragment or "@" in url)
        parts.port  # noqa: B018  # raises where it is no number
    except ValueError:
        good = False
    if not good or not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidValueError(
            "api_host (or the site in DD_SITE) must make a URL like 'https://api.datadoghq.eu', "
            f"without a user, a password or parameters{'' if '@' in url else f'; got {url!r}'}"
        )
    return url.rstrip("/")
