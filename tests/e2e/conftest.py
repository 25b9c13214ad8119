"""Fixtures that start real backends, and end them after the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from .backends import PrometheusServer


@pytest.fixture
def prometheus_server(tmp_path: Path) -> Iterator[Callable[..., PrometheusServer]]:
    """Start Prometheus servers: ``prometheus_server(targets=["127.0.0.1:9464"])``."""
    servers: list[PrometheusServer] = []

    def start(
        *arguments: str, targets: Sequence[str] = (), scrape: Mapping[str, Any] | None = None
    ) -> PrometheusServer:
        directory = tmp_path / f"prometheus-{len(servers)}"
        servers.append(PrometheusServer(directory, targets, *arguments, scrape=scrape))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
