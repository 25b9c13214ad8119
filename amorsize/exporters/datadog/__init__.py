"""Datadog: DogStatsD, events, service checks.

The exporter is imported on first use: its parts are used by other exporters, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amorsize.exporters.datadog.exporter import DatadogExporter as DatadogExporter
    from amorsize.exporters.datadog.exporter import enable_datadog as enable_datadog

__all__ = ["DatadogExporter", "enable_datadog"]  # names resolved by __getattr__


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from amorsize.exporters.datadog import exporter

    return getattr(exporter, name)
