"""Prometheus: a page to scrape, a push, a text file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amorsize.public_names import lazy_names as _lazy_names

if TYPE_CHECKING:
    from amorsize.exporters.prometheus.exporter import PrometheusExporter as PrometheusExporter
    from amorsize.exporters.prometheus.exporter import enable_prometheus as enable_prometheus

_EXPORTER = "amorsize.exporters.prometheus.exporter"
_HOMES = {"PrometheusExporter": _EXPORTER, "enable_prometheus": _EXPORTER}

__all__ = [*_HOMES]
__getattr__, __dir__ = _lazy_names(globals(), _HOMES)
