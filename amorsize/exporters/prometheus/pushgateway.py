"""A Pushgateway, and the groups of metrics that a program has on it."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from amorsize.exporters.http_client import TIMEOUT_SECONDS, HttpClient
from amorsize.exporters.prometheus.earlier import Earlier, Family, by_function, families_of_json
from amorsize.exporters.prometheus.exposition import TextEncoder
from amorsize.exporters.prometheus.page import PLAIN
from amorsize.exporters.prometheus.program import program_name
from amorsize.exporters.prometheus.settings import DeliverySettings
from amorsize.exporters.sender import RefusedError, describe_error
from amorsize.exporters.series import Series

logger = logging.getLogger(__name__)

READ_ATTEMPTS = 3
"""A gateway that takes pushes and cannot be read is not waited for."""

_MOST_BYTES = 64 * 2**20
"""A gateway shows all its groups at once, those of everybody."""

Group = Mapping[str, str]
"""The labels that name a group."""


class Pushgateway:
    """Sends pages to groups, and reads groups.

    Args:
        settings: name the gateway, and how to be let in.
        timeout_seconds: how long an attempt may wait for the gateway's next bytes.
    """

    def __init__(
        self, settings: DeliverySettings, *, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        self._url = str(settings.pushgateway).rstrip("/")
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

    def push(self, group: Group, page: bytes, *, replace: bool = False) -> None:
        """Push a page. Its errors are those of :meth:`HttpClient.post`.

        Args:
            group: where to.
            page: Prometheus text.
            replace: drop what else the group holds; otherwise metrics of other names stay.
        """
        path = "/".join(_path_of(label, value) for label, value in group.items())
        method = "PUT" if replace else "POST"
        self._client.request(method, f"{self._url}/metrics/{path}", self._headers, page)

    def read(self) -> list[dict[str, Any]]:
        """Read all groups, as the gateway's API describes them.

        Raises:
            ValueError: the answer is not that of a Pushgateway.
            RefusedError, OSError, http.client.HTTPException: as for :meth:`push`.
        """
        answer = self._client.request(
            "GET", f"{self._url}/api/v1/metrics", self._headers, most_bytes=_MOST_BYTES
        )
        document = json.loads(answer)
        groups = document.get("data") if isinstance(document, dict) else None
        if not isinstance(groups, list):
            raise ValueError("the answer has no groups")
        return groups


class GatewayGroups:
    """The groups of one program on a Pushgateway.

    A push replaces metrics in its group by name, whatever their labels. So each function has a
    group of its own: programs, and stages of one program, replace nothing of each other::

        job, grouping_key              the application's own metrics, if there are any
        job, grouping_key, program     amorsize's of the program: hooks and exporters
        job, grouping_key, function    amorsize's of a function

    The first push reads what earlier programs have left in these groups, and continues it. A
    gateway that cannot be read keeps what this program has no number for, as the time of a last
    success, and its counters begin at zero.

    Args:
        gateway: holds them.
        group: ``job`` and ``grouping_key``.
        continues: whether to read it; otherwise it is treated as one that cannot be read.
    """

    def __init__(self, gateway: Pushgateway, group: Group, *, continues: bool = True) -> None:
        self._gateway = gateway
        self._group = dict(group)
        self._encoder = TextEncoder()
        self._earlier = None if continues else Earlier()
        self._was_read = False
        self._read_failures = 0
        self._pushed: dict[str | None, bytes] = {}

    def push(self, series: Series, others: bytes = b"", *, again: bool = False) -> None:
        """Push what has changed.

        Args:
            series: amorsize's, of this program.
            others: the page of the application's own metrics.
            again: also push what has not: the gateway may have lost it.

        Raises:
            RefusedError: the gateway refused a group; it has the others.
            OSError, http.client.HTTPException: this attempt failed.
        """
        earlier = self._read()
        refused: RefusedError | None = None
        if others:
            refused = self._try(self._group, others, replace=False)
        for function, own in by_function(series).items():
            whole = earlier.continued_of(function, own)
            page = self._encoder.encode(whole, with_empty=False).encode()
            digest = hashlib.sha256(page).digest()
            if again or self._pushed.get(function) != digest:
                failed = self._try(self._group_of(function), page, replace=self._was_read)
                refused = refused or failed
                self._pushed[function] = digest
        if refused is not None:
            raise refused

    def _try(self, group: Group, page: bytes, *, replace: bool) -> RefusedError | None:
        try:
            self._gateway.push(group, page, replace=replace)
        except RefusedError as refused:
            return refused
        return None

    def _group_of(self, function: str | None) -> Group:
        if function is not None:
            return {**self._group, "function": function}
        return {**self._group, "program": self._group.get("program", program_name())}

    def _read(self) -> Earlier:
        if self._earlier is not None:
            return self._earlier
        try:
            self._earlier = self._find(self._gateway.read())
            self._was_read = True
        except (RefusedError, ValueError, LookupError, TypeError, AttributeError) as error:
            self._begin_at_zero(error)
        except (OSError, http.client.HTTPException) as error:
            self._read_failures += 1
            if self._read_failures < READ_ATTEMPTS:
                raise
            self._begin_at_zero(error)
        assert self._earlier is not None
        return self._earlier

    def _begin_at_zero(self, error: Exception) -> None:
        logger.warning(
            "%r cannot be read: %s Its counters begin at zero, as if no program had pushed before.",
            self._gateway,
            f"{describe_error(error).rstrip('.')}.",
        )
        self._earlier = Earlier()

    def _find(self, groups: list[dict[str, Any]]) -> Earlier:
        families: list[Family] = []
        for group in groups:
            labels = _without_empty(group["labels"])
            if labels == _without_empty(self._group_of(labels.get("function"))):
                families += families_of_json(group)
        return Earlier(families)


def _without_empty(group: Group) -> Group:
    return {label: value for label, value in group.items() if value}


def _path_of(label: str, value: str) -> str:
    """Write a label of the group as the gateway wants it in the path of its URL."""
    if value and "/" not in value:
        return f"{label}/{quote(value, safe='')}"
    encoded = base64.urlsafe_b64encode(value.encode()).decode() or "="
    return f"{label}@base64/{encoded}"
