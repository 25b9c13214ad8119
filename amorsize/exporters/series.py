"""Series: the values of metrics by their labels, added up in this process."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple, TypeAlias

from amorsize.exporters.metrics import CLOSED_LABELS, LONGEST_CHUNK, METRICS, Kind, Metric
from amorsize.hooks.events import STATUSES

Labels: TypeAlias = tuple[str, ...]
"""Label values, in the order of the metric's labels."""


class Exemplar(NamedTuple):
    """One observation of a bucket, with labels that name its origin."""

    labels: Mapping[str, str]
    value: float
    timestamp: float


class Histogram:
    """Counts of observations.

    Attributes:
        counts: of each bucket alone, the one to infinity too.
        total: the sum of all observations.
        exemplars: the last one of each bucket that has one, by its position; None for none.
    """

    __slots__ = ("counts", "exemplars", "total")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * (buckets + 1)
        self.total: float = 0
        self.exemplars: dict[int, Exemplar] | None = None

    def copy(self) -> Histogram:
        """Copy it, with counts of its own."""
        copied = Histogram.__new__(Histogram)
        copied.counts = self.counts.copy()
        copied.total = self.total
        copied.exemplars = None if self.exemplars is None else self.exemplars.copy()
        return copied

    def add(self, other: Histogram) -> None:
        """Add the observations of another one, with the same buckets; the last exemplars stay."""
        if not any(other.counts):  # most have none
            return
        self.counts = [one + two for one, two in zip(self.counts, other.counts, strict=True)]
        self.total += other.total
        if other.exemplars:
            self.exemplars = self.exemplars or {}
            for bucket, exemplar in other.exemplars.items():
                mine = self.exemplars.get(bucket)
                if mine is None or exemplar.timestamp >= mine.timestamp:
                    self.exemplars[bucket] = exemplar


Value: TypeAlias = float | Histogram

Series: TypeAlias = dict[Metric, dict[Labels, Value]]

SetTimes: TypeAlias = dict[Metric, dict[Labels, float]]
"""When gauges were set or removed last, in seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Share:
    """The part of one process in the totals of its program.

    Attributes:
        series: its values, but for the executions in progress.
        set_at: when its gauges were set, or removed; a gauge that no event sets is missing.
        longest: the longest completed chunk of the executions in progress, by function and
            executor.
    """

    series: Series
    set_at: SetTimes
    longest: dict[Labels, float] = field(default_factory=dict)

    def shown(self) -> Series:
        """Return its values, with the executions in progress."""
        shown = dict(self.series)
        last = shown[LONGEST_CHUNK] = dict(shown.get(LONGEST_CHUNK, {}))
        for labels, seconds in self.longest.items():
            before = last.get(labels, 0.0)
            assert not isinstance(before, Histogram)
            last[labels] = max(before, seconds)
        return shown


class Totals:
    """Counters, gauges and histograms by metric and labels. Hold a lock around each call."""

    def __init__(self) -> None:
        self._plain: dict[Metric, dict[Labels, float]] = {
            metric: {} for metric in METRICS if metric.kind is not Kind.HISTOGRAM
        }
        self._histograms: dict[Metric, dict[Labels, Histogram]] = {
            metric: {} for metric in METRICS if metric.kind is Kind.HISTOGRAM
        }
        self._set_at: dict[Metric, dict[Labels, float]] = {}

    def add(self, metric: Metric, labels: Labels, amount: float) -> None:
        """Add to a counter."""
        series = self._plain[metric]
        series[labels] = series.get(labels, 0) + amount

    def set(self, metric: Metric, labels: Labels, value: float | None) -> None:
        """Set a gauge; None removes it: what is not known is absent."""
        if value is None:
            self._plain[metric].pop(labels, None)
        else:
            self._plain[metric][labels] = value
        self._set_at.setdefault(metric, {})[labels] = time.time()

    def observe(
        self, metric: Metric, labels: Labels, value: float, exemplar: Exemplar | None = None
    ) -> None:
        """Count a value in a histogram."""
        histogram = self._histograms[metric].get(labels)
        if histogram is None:
            histogram = self._histograms[metric][labels] = Histogram(len(metric.buckets))
        bucket = bisect_left(metric.buckets, value)
        histogram.counts[bucket] += 1
        histogram.total += value
        if exemplar is not None:
            if histogram.exemplars is None:
                histogram.exemplars = {}
            histogram.exemplars[bucket] = exemplar

    def start_at_zero(self, **known: str) -> None:
        """Create the counters and histograms of some labels, over all values of closed ones.

        ``rate()`` does not see the first event of a series that begins with it. A histogram is two
        dozen series: of those with a status, only that of executions that succeed is created.
        """
        for metric in METRICS:
            if known.keys().isdisjoint(metric.labels):
                continue
            closed = CLOSED_LABELS
            if metric.kind is Kind.HISTOGRAM:
                closed = {**CLOSED_LABELS, "status": STATUSES[:1]}
            values = [
                (known[label],) if label in known else closed.get(label, ())
                for label in metric.labels
            ]
            for labels in product(*values):
                if metric.kind is Kind.COUNTER:
                    self._plain[metric].setdefault(labels, 0)
                elif metric.kind is Kind.HISTOGRAM and labels not in self._histograms[metric]:
                    self._histograms[metric][labels] = Histogram(len(metric.buckets))

    def copy(self) -> Series:
        """Copy everything, which takes much less time than rendering it."""
        series: Series = {metric: dict(values) for metric, values in self._plain.items()}
        for metric, histograms in self._histograms.items():
            series[metric] = {labels: each.copy() for labels, each in histograms.items()}
        return series

    def set_times(self) -> SetTimes:
        """Copy when each gauge was set or removed last."""
        return {metric: dict(times) for metric, times in self._set_at.items()}


def number(value: object) -> float | None:
    """Return a finite number, at least 0; None for anything else.

    A duration is negative where a clock was set back; 0 replaces it, so that counters never fall.
    """
    if isinstance(value, int | float) and math.isfinite(value):
        return value if value > 0 else 0
    return None
