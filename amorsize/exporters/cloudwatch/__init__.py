"""CloudWatch: calls of its API, or metrics embedded in the log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amorsize.public_names import lazy_names as _lazy_names

if TYPE_CHECKING:
    from amorsize.exporters.cloudwatch.exporter import CloudWatchExporter as CloudWatchExporter
    from amorsize.exporters.cloudwatch.exporter import enable_cloudwatch as enable_cloudwatch

_EXPORTER = "amorsize.exporters.cloudwatch.exporter"
_HOMES = {"CloudWatchExporter": _EXPORTER, "enable_cloudwatch": _EXPORTER}

__all__ = [*_HOMES]
__getattr__, __dir__ = _lazy_names(globals(), _HOMES)
