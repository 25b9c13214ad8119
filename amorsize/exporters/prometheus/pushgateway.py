"""A group of metrics on a Pushgateway: where it is, and how it is replaced."""

from __future__ import annotations

import base64
from urllib.parse import quote

from amorsize.exporters.http_client import TIMEOUT_SECONDS, HttpClient
from amorsize.exporters.prometheus.page import PLAIN
from amorsize.exporters.prometheus.settings import DeliverySettings


class Pushgateway:
    """Pushes metrics to their group.

    Pushes replace the metrics of the same names in the group and leave others (``POST``, not
    ``PUT``): a job that fails before its first success keeps the time of the last one, which
    alerts ask for.

    Args:
        settings: name the gateway and the group.
        timeout_seconds: how long an attempt may wait for the gateway's next bytes.
    """

    def __init__(
        self, settings: DeliverySettings, *, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        group = "/".join(_path_of(label, value) for label, value in settings.group.items())
        self._url = f"{str(settings.pushgateway).rstrip('/')}/metrics/{group}"
        self._headers = {"Content-Type": PLAIN}
        if settings.gateway_authorization is not None:
            self._headers["Authorization"] = settings.gateway_authorization
        self._client = HttpClient(
            "the Pushgateway",
            context=settings.gateway_tls,
            timeout_seconds=timeout_seconds,
            quotes_answers=True,
        )

    def __repr__(self) -> str:
        return f"<Pushgateway {self._url}>"

    def push(self, page: bytes) -> None:
        """Push a page. Its errors are those of :meth:`HttpClient.post`."""
        self._client.post(self._url, page, self._headers)


def _path_of(label: str, value: str) -> str:
    """Write a label of the group as the gateway wants it in the path of its URL."""
    if value and "/" not in value:
        return f"{label}/{quote(value, safe='')}"
    encoded = base64.urlsafe_b64encode(value.encode()).decode() or "="
    return f"{label}@base64/{encoded}"
