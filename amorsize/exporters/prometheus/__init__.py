"""Prometheus: a page to scrape, a push, a text file."""

from amorsize.exporters.prometheus.exporter import PrometheusExporter, enable_prometheus

__all__ = ["PrometheusExporter", "enable_prometheus"]
