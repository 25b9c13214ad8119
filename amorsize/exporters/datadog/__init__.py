"""Datadog: metrics, events and service checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amorsize.public_names import lazy_names as _lazy_names

if TYPE_CHECKING:
    from amorsize.exporters.datadog.exporter import DatadogExporter as DatadogExporter
    from amorsize.exporters.datadog.exporter import enable_datadog as enable_datadog

_EXPORTER = "amorsize.exporters.datadog.exporter"
_HOMES = {"DatadogExporter": _EXPORTER, "enable_datadog": _EXPORTER}

__all__ = [*_HOMES]
__getattr__, __dir__ = _lazy_names(globals(), _HOMES)
