"""Changes of the totals since they were last sent, for Datadog and CloudWatch.

::

    hooks ──> TotalsExporter ── each observation ──────────────> distributions
                    └── snapshot() ──> Changes ─┬─ growth ─────> counts
                                                └─ values now ─> gauges
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from amorsize.exporters.metrics import Kind, Metric
from amorsize.exporters.series import Histogram, Labels, Series
from amorsize.workers.user_metrics import UserHistogram, UserMetrics

Growth: TypeAlias = tuple[Metric, Labels, float]
"""A row, the values of its labels, and its growth or its present value."""


def observed_histograms(shares: UserMetrics) -> Iterator[tuple[str, UserHistogram]]:
    """Give those of a chunk's user histograms that have observations, by name."""
    for name, share in shares.items():
        if share["kind"] == "histogram" and share["calls"]:
            yield name, share


class Changes:
    """Compares totals with the last ones. Not safe for several threads.

    Example:
        >>> from amorsize.exporters.metrics import WORKER_DEATHS
        >>> changes = Changes()
        >>> labels = ("parse", "process")
        >>> [n for _, _, n in changes.growth({WORKER_DEATHS: {labels: 2}})]
        [2]
        >>> [n for _, _, n in changes.growth({WORKER_DEATHS: {labels: 5}})]
        [3]
        >>> [n for _, _, n in changes.growth({WORKER_DEATHS: {labels: 5}})]
        []
    """

    def __init__(self) -> None:
        # By name: the row of a user's own metric is a new one once its help is known.
        self._totals: dict[tuple[str, Labels], float] = {}
        self._gauges: dict[tuple[str, Labels], float] = {}

    def growth(self, series: Series) -> Iterator[Growth]:
        """Give the counters that grew, and their growth; new ones at zero did not grow."""
        for metric, labels, total in _plain(series, Kind.COUNTER):
            before = self._totals.get((metric.dotted, labels), 0)
            self._totals[metric.dotted, labels] = total
            # Counts of another exporter, or of a manager, restart when it does.
            grown = total - before if total >= before else total
            if grown:
                yield metric, labels, grown

    def gauges(self, series: Series, *, changed: bool = False) -> Iterator[Growth]:
        """Give the gauges, or only those that changed."""
        for kind in (Kind.GAUGE, Kind.INFO):
            for metric, labels, value in _plain(series, kind):
                before = self._gauges.get((metric.dotted, labels))
                self._gauges[metric.dotted, labels] = value
                if not changed or value != before:
                    yield metric, labels, value


def _plain(series: Series, kind: Kind) -> Iterator[Growth]:
    for metric, values in series.items():
        if metric.kind is kind:
            for labels, value in values.items():
                assert not isinstance(value, Histogram)
                yield metric, labels, value
