"""Grafana's provisioning: the data sources and dashboards that it has from its start."""

from __future__ import annotations

from typing import Any

import yaml

DASHBOARDS_PATH = "/var/lib/grafana/dashboards/amorsize"
"""Where Grafana is to find the folder ``grafana``; mount it there, or say another place."""

PROMETHEUS_UID = "amorsize-prometheus"
TRACES_UID = "amorsize-jaeger"

SCRAPE_INTERVAL = "15s"
"""Grafana makes ``$__rate_interval`` four times as long."""

JAEGER_URL = "http://localhost:16686"
"""Where a browser finds Jaeger. Grafana's own link opens its Explore, which viewers cannot see."""

TRACES_TO_METRICS = {
    "Chunks per second": "sum by (function) (rate(amorsize_chunk_duration_seconds_count{%s}[5m]))",
    "95th percentile of chunks": (
        "histogram_quantile(0.95, sum by (le, function) "
        "(rate(amorsize_chunk_duration_seconds_bucket{%s}[5m])))"
    ),
    "Errors per minute": "60 * sum by (function, error_type) (rate(amorsize_errors_total{%s}[5m]))",
}
"""The links of a span, by title: queries about its function, which replaces ``%s``."""

SPAN_TAGS = "$__tags"
"""Grafana puts the labels here that ``tags`` makes of a span's attributes."""


def data_sources() -> dict[str, Any]:
    """Describe Prometheus, with exemplars that open traces, and Jaeger, whose spans open metrics.

    Provisioning takes ``$`` for a variable of its environment: ``$$`` stands for one.
    """
    return {
        "apiVersion": 1,
        "datasources": [
            {
                "name": "Prometheus",
                "uid": PROMETHEUS_UID,
                "type": "prometheus",
                "access": "proxy",
                "url": "http://prometheus:9090",
                "isDefault": True,
                "jsonData": {
                    "timeInterval": SCRAPE_INTERVAL,
                    "httpMethod": "POST",
                    "exemplarTraceIdDestinations": [
                        {"name": "trace_id", "datasourceUid": TRACES_UID},
                        {
                            "name": "trace_id",
                            "url": f"{JAEGER_URL}/trace/$${{__value.raw}}",
                            "urlDisplayLabel": "Open in Jaeger",
                        },
                    ],
                },
            },
            {
                "name": "Jaeger",
                "uid": TRACES_UID,
                "type": "jaeger",
                "access": "proxy",
                "url": "http://jaeger:16686",
                "jsonData": {
                    "tracesToMetrics": {
                        "datasourceUid": PROMETHEUS_UID,
                        "spanStartTimeShift": "-15m",
                        "spanEndTimeShift": "15m",
                        "tags": [{"key": "code.function.name", "value": "function"}],
                        "queries": [
                            {"name": name, "query": query % f"${SPAN_TAGS}"}
                            for name, query in TRACES_TO_METRICS.items()
                        ],
                    },
                },
            },
        ],
    }


def providers() -> dict[str, Any]:
    """Describe the folder of the dashboards."""
    return {
        "apiVersion": 1,
        "providers": [
            {
                "name": "amorsize",
                "folder": "amorsize",
                "type": "file",
                "allowUiUpdates": False,
                "options": {"path": DASHBOARDS_PATH},
            }
        ],
    }


def to_yaml(document: dict[str, Any]) -> str:
    """Write either."""
    text: str = yaml.safe_dump(document, sort_keys=False, width=100)
    return f"# Written by `make dashboards`; do not edit by hand.\n{text}"
