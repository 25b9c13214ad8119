"""CloudWatch: calls of its API, or metrics embedded in the log.

The exporter is imported on first use: its parts are used by other exporters, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amorsize.exporters.cloudwatch.exporter import CloudWatchExporter as CloudWatchExporter
    from amorsize.exporters.cloudwatch.exporter import enable_cloudwatch as enable_cloudwatch

__all__ = ["CloudWatchExporter", "enable_cloudwatch"]  # names resolved by __getattr__


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from amorsize.exporters.cloudwatch import exporter

    return getattr(exporter, name)
