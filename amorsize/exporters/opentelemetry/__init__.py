"""OpenTelemetry: spans and metrics, by the application's providers or amorsize's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amorsize.public_names import lazy_names as _lazy_names

if TYPE_CHECKING:
    from amorsize.exporters.opentelemetry.exporter import (
        OpenTelemetryExporter as OpenTelemetryExporter,
    )
    from amorsize.exporters.opentelemetry.exporter import (
        enable_opentelemetry as enable_opentelemetry,
    )

_EXPORTER = "amorsize.exporters.opentelemetry.exporter"
_HOMES = {"OpenTelemetryExporter": _EXPORTER, "enable_opentelemetry": _EXPORTER}

__all__ = [*_HOMES]
__getattr__, __dir__ = _lazy_names(globals(), _HOMES)
