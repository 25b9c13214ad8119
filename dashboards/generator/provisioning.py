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


def data_sources() -> dict[str, Any]:
    """Describe Prometheus, with exemplars that open traces, and Jaeger."""
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
                        {"name": "trace_id", "datasourceUid": TRACES_UID}
                    ],
                },
            },
            {
                "name": "Jaeger",
                "uid": TRACES_UID,
                "type": "jaeger",
                "access": "proxy",
                "url": "http://jaeger:16686",
            },
        ],
    }


def providers() -> dict[str, Any]:
    """Say where the dashboards are."""
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
