"""Fixtures that start real backends, and end them after the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from .backends import PrometheusServer
from .moto import MotoServer
from .otlp import OtlpDouble, OtlpReceiver
from .pushgateway import Gateway


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


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    """A Pushgateway with nothing in it."""
    gateway = Gateway(tmp_path / "gateway")
    yield gateway
    gateway.close()


@pytest.fixture(scope="session")
def _moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MotoServer]:
    """One process serves all tests: it takes a second to start."""
    server = MotoServer(tmp_path_factory.mktemp("moto") / "moto.log")
    yield server
    server.close()


@pytest.fixture
def moto(_moto: MotoServer, monkeypatch: pytest.MonkeyPatch) -> MotoServer:
    """A CloudWatch with nothing in it; this process' region and credentials are for it."""
    _moto.reset()
    for name, value in _moto.environment.items():
        monkeypatch.setenv(name, value)
    return _moto


@pytest.fixture(scope="session")
def _otlp_receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OtlpReceiver]:
    """One process serves all tests: it takes a second to start."""
    receiver = OtlpReceiver(tmp_path_factory.mktemp("otlp") / "receiver.log")
    yield receiver
    receiver.close()


@pytest.fixture
def otlp_receiver(_otlp_receiver: OtlpReceiver) -> OtlpReceiver:
    """A real OTLP receiver that holds nothing yet."""
    _otlp_receiver.clear()
    return _otlp_receiver


@pytest.fixture
def otlp_double() -> Iterator[Callable[..., OtlpDouble]]:
    """Start OTLP doubles that fail: ``otlp_double([503])``."""
    doubles: list[OtlpDouble] = []

    def start(statuses: Sequence[int] = (), *, delay: float = 0.0) -> OtlpDouble:
        doubles.append(OtlpDouble(statuses, delay=delay))
        return doubles[-1]

    yield start
    for double in doubles:
        double.close()
