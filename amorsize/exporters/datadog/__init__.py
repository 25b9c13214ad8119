"""Datadog: metrics, events and service checks."""

from amorsize.exporters.datadog.exporter import DatadogExporter, enable_datadog

__all__ = ["DatadogExporter", "enable_datadog"]
