"""OpenTelemetry: spans and metrics, by the application's providers or our own.

The exporter is imported on first use: its parts are used by other exporters, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amorsize.exporters.opentelemetry.exporter import (
        OpenTelemetryExporter as OpenTelemetryExporter,
    )
    from amorsize.exporters.opentelemetry.exporter import (
        enable_opentelemetry as enable_opentelemetry,
    )

__all__ = ["OpenTelemetryExporter", "enable_opentelemetry"]  # names resolved by __getattr__


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from amorsize.exporters.opentelemetry import exporter

    return getattr(exporter, name)
