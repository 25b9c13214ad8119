"""CloudWatch: calls of its API, or metrics embedded in the log."""

from amorsize.exporters.cloudwatch.exporter import CloudWatchExporter, enable_cloudwatch

__all__ = ["CloudWatchExporter", "enable_cloudwatch"]
