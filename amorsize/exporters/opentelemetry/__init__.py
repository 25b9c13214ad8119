"""OpenTelemetry: spans and metrics, by the application's providers or our own."""

from amorsize.exporters.opentelemetry.exporter import OpenTelemetryExporter, enable_opentelemetry

__all__ = ["OpenTelemetryExporter", "enable_opentelemetry"]
