"""Totals of user metrics, as further rows beside the metric table.

The numbers come with each chunk, in ``metadata["user_metrics"]``
(:mod:`amorsize.workers.user_metrics`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amorsize.exporters.metrics import Kind, Metric
from amorsize.exporters.series import Histogram, Labels, Series, SetTimes, Value
from amorsize.workers.user_metrics import (
    BUCKETS,
    GAUGE,
    UserMetric,
    UserMetrics,
    empty_metric,
    merge,
)

NAMESPACE = "amorsize_user_"
DOTTED_NAMESPACE = "amorsize.user."

_LABELS = ("function", "executor")

_HELP = {
    Kind.COUNTER: "Counted by the function itself, with amorsize.count()",
    Kind.GAUGE: "Set by the function itself, with amorsize.set_gauge()",
    Kind.HISTOGRAM: "Observed by the function itself, with amorsize.observe()",
}


class UserTotals:
    """User counters, gauges and histograms by name and labels. Hold a lock around each call."""

    def __init__(self) -> None:
        self._totals: dict[str, dict[Labels, UserMetric]] = {}
        self._rows: dict[str, Metric] = {}
        self._explained: set[str] = set()

    def add(self, labels: Labels, metadata: Mapping[str, Any]) -> None:
        """Add the user metrics of an event, if it has any.

        Args:
            labels: function and executor.
            metadata: of the event.
        """
        shares: UserMetrics | None = metadata.get("user_metrics")
        if shares is None:
            return
        for name, share in shares.items():
            totals = self._totals.setdefault(name, {})
            total = totals.get(labels)
            if total is None:
                total = totals[labels] = empty_metric(share["kind"])
            merge(total, share)
            help_text = share["help"]
            if name not in self._rows or (help_text and name not in self._explained):
                self._rows[name] = _row(name, Kind(share["kind"]), help_text)
                if help_text:
                    self._explained.add(name)

    def rows(self) -> list[Metric]:
        """List the rows so far."""
        return list(self._rows.values())

    def copy(self) -> Series:
        """Copy all series, by their rows."""
        return {
            self._rows[name]: {labels: _value(total) for labels, total in totals.items()}
            for name, totals in self._totals.items()
        }

    def set_times(self) -> SetTimes:
        """Copy when each gauge was set last, by the clock of its worker."""
        return {
            self._rows[name]: {
                labels: total["time"] for labels, total in totals.items() if total["kind"] == GAUGE
            }
            for name, totals in self._totals.items()
        }


def row_of_series(series: str, kind: str) -> Metric | None:
    """Make the row of a user metric of another program, by its name in Prometheus.

    None where its kind is none that a user metric has.
    """
    if kind not in _HELP:
        return None
    name = series.removeprefix(NAMESPACE)
    return _row(name.removesuffix("_total") if kind == Kind.COUNTER else name, Kind(kind), None)


def _row(name: str, kind: Kind, help_text: str | None) -> Metric:
    return Metric(
        prometheus=f"{NAMESPACE}{name}_total" if kind is Kind.COUNTER else f"{NAMESPACE}{name}",
        dotted=f"{DOTTED_NAMESPACE}{name}",
        kind=kind,
        help=help_text or _HELP[kind],
        labels=_LABELS,
        buckets=BUCKETS if kind is Kind.HISTOGRAM else (),
    )


def _value(metric: UserMetric) -> Value:
    if metric["kind"] != "histogram":
        return metric["value"]
    histogram = Histogram(len(BUCKETS))
    histogram.counts = metric["buckets"].copy()
    histogram.total = metric["sum"]
    return histogram
