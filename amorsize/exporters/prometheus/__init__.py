"""Prometheus: a page to scrape, a push, a text file.

The exporter is imported on first use: its parts are used by other exporters, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amorsize.exporters.prometheus.exporter import PrometheusExporter as PrometheusExporter
    from amorsize.exporters.prometheus.exporter import enable_prometheus as enable_prometheus

__all__ = ["PrometheusExporter", "enable_prometheus"]  # names resolved by __getattr__


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from amorsize.exporters.prometheus import exporter

    return getattr(exporter, name)
