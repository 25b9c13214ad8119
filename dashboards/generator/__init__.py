"""Generates the dashboards, rules and provisioning of this folder from the metric table.

::

    amorsize.exporters.metrics ─> promql ─┬─> overview, function, workers, health ─> grafana/*.json
                                          ├─> rules ─> prometheus/*.yml
                                          └─> datadog, cloudwatch ─> datadog/, cloudwatch/

``lint`` holds them to the table and to rules of our own, ``scenario`` is a real run that shows
all of it, and ``pictures`` draws what a real Prometheus answers.
"""
