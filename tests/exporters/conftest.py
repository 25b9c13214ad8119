from __future__ import annotations

from collections.abc import Iterator

import pytest

from amorsize.exporters.prometheus.exporter import PrometheusExporter
from amorsize.hooks import HookManager

from .certificates import Certificates, make_certificates


@pytest.fixture
def manager() -> HookManager:
    return HookManager()


@pytest.fixture
def exporter(manager: HookManager) -> Iterator[PrometheusExporter]:
    with PrometheusExporter(port=0).attach(manager) as exporter:
        yield exporter


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))
