"""Totals of several processes as those of one program.

A counter is the sum over all processes, and so is a bucket of a histogram: also of those that have
ended, because a sum that falls is a restart to Prometheus, and counts as growth. Gauges differ:

=====================================  ==========================================================
gauge                                  the program's value
=====================================  ==========================================================
sums over the executions in progress   the sum over the processes that run; the dead add 0
set by an event, or by the function    the value that was set last, in whichever process, or
                                       none if it was removed last: that the last execution
                                       succeeded stays true when its process ends
longest chunk                          that of the execution that ended last, in whichever
                                       process, or of one in progress in a process that runs
since when it counts                   the smallest
anything else (the longest hook)       the largest
information                            of the processes that run
=====================================  ==========================================================
"""

from __future__ import annotations

from collections.abc import Callable

from amorsize.exporters.metrics import (
    COUNTING_SINCE,
    LABEL_LIMITS,
    LONGEST_CHUNK,
    METRICS,
    PROMETHEUS_ONLY,
    BoundedLabel,
    Kind,
    Metric,
)
from amorsize.exporters.series import Histogram, Labels, Share, Value
from amorsize.exporters.totals import LIVE_GAUGES
from amorsize.workers.user_metrics import MAX_NAMES

_TABLE = {metric.prometheus for metric in (*METRICS, *PROMETHEUS_ONLY)}


class Merger:
    """Adds up shares.

    Labels and names of the user's stay within the limits of one process: those that are added
    first keep their names.

    Example:
        >>> from amorsize.exporters.metrics import WORKER_DEATHS
        >>> merger = Merger()
        >>> for deaths in (2, 3):
        ...     merger.add(Share({WORKER_DEATHS: {("parse", "process"): deaths}}, {}))
        >>> merger.share().series[WORKER_DEATHS]
        {('parse', 'process'): 5}
    """

    def __init__(self) -> None:
        self._rows: dict[str, Metric] = {}  # by name: each process has rows of its user's own
        self._values: dict[str, dict[Labels, Value]] = {}
        self._set_at: dict[str, dict[Labels, float]] = {}
        self._limits = {label: BoundedLabel(limit) for label, limit in LABEL_LIMITS.items()}
        # By the names of the labels, then by their values: most rows have the same ones.
        self._bounded: dict[Labels, dict[Labels, Labels]] = {}
        self._longest: dict[Labels, float] = {}

    def add(self, share: Share, *, is_running: bool = True) -> None:
        """Add a share.

        Args:
            share: is not changed.
            is_running: whether its process has not ended.
        """
        for metric, series in share.series.items():
            if not self._takes(metric) or (metric.kind is Kind.INFO and not is_running):
                continue
            name = metric.prometheus
            set_at = share.set_at.get(metric, {})
            for labels, value in series.items():
                known = self._bound(metric.labels, labels)
                if metric in LIVE_GAUGES:
                    self._sum(name, known, value if is_running else 0)
                elif metric is COUNTING_SINCE:
                    self._keep(min, name, known, value)
                elif metric.kind is Kind.GAUGE:
                    if labels not in set_at:
                        self._keep(max, name, known, value)
                elif metric.kind is Kind.INFO:
                    self._values[name][known] = value
                else:
                    self._sum(name, known, value)
            for labels, time in set_at.items():
                self._replace(name, self._bound(metric.labels, labels), series.get(labels), time)
        if is_running:
            for labels, seconds in share.longest.items():
                known = self._bound(LONGEST_CHUNK.labels, labels)
                self._longest[known] = max(self._longest.get(known, 0.0), seconds)

    def share(self) -> Share:
        """Return the sum."""
        return Share(
            {self._rows[name]: values for name, values in self._values.items()},
            {self._rows[name]: times for name, times in self._set_at.items()},
            self._longest,
        )

    def _takes(self, metric: Metric) -> bool:
        name = metric.prometheus
        row = self._rows.get(name)
        if row is None:
            if name not in _TABLE and len(self._rows.keys() - _TABLE) >= MAX_NAMES:
                return False
            self._rows[name], self._values[name], self._set_at[name] = metric, {}, {}
            return True
        # A user's own name may have another kind in another process.
        return (row.kind, row.labels, row.buckets) == (metric.kind, metric.labels, metric.buckets)

    def _bound(self, names: Labels, values: Labels) -> Labels:
        known = self._bounded.setdefault(names, {})
        bounded = known.get(values)
        if bounded is None:
            bounded = known[values] = tuple(
                self._limits[name](value) if name in self._limits else value
                for name, value in zip(names, values, strict=True)
            )
        return bounded

    def _sum(self, name: str, labels: Labels, value: Value) -> None:
        values = self._values[name]
        before = values.get(labels)
        if isinstance(value, Histogram):
            if before is None:
                values[labels] = value.copy()
            else:
                assert isinstance(before, Histogram)
                before.add(value)
        else:
            assert not isinstance(before, Histogram)
            values[labels] = value + (before or 0)

    def _keep(
        self, choose: Callable[[float, float], float], name: str, labels: Labels, value: Value
    ) -> None:
        before = self._values[name].get(labels, value)
        assert not isinstance(value, Histogram)
        assert not isinstance(before, Histogram)
        self._values[name][labels] = choose(before, value)

    def _replace(self, name: str, labels: Labels, value: Value | None, set_at: float) -> None:
        values, times = self._values[name], self._set_at[name]
        if set_at >= times.get(labels, 0.0):
            times[labels] = set_at
            if value is None:
                values.pop(labels, None)
            else:
                values[labels] = value
