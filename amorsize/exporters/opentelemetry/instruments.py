"""The metric table as OpenTelemetry's instruments.

Counters and gauges are read at each collection; only durations are recorded as they come, because
each may have an exemplar: the trace in which it was measured.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from typing import Any

from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation

from amorsize.exporters import metrics, series
from amorsize.exporters.metrics import ATTRIBUTES, COUNTING_SINCE, METRICS, Kind, Metric
from amorsize.exporters.series import Labels, Series
from amorsize.exporters.totals import LIVE_GAUGES

_ADDITIVE = {*LIVE_GAUGES} - {metrics.THROUGHPUT}


_MADE = "amorsize_instruments"


def instruments_of(
    meter: Meter, snapshot: Callable[[], Series], *, prometheus_labels: bool = False
) -> Instruments:
    """Return the instruments of a meter, which read ``snapshot`` from now on.

    They are made once per meter: an instrument cannot be removed, and the SDK never reads a second
    one of the same name. An exporter that is enabled again takes over those of the closed one.
    """
    made = getattr(meter, _MADE, None)
    if isinstance(made, Instruments):
        made.read_from(snapshot, prometheus_labels=prometheus_labels)
        return made
    made = Instruments(meter, snapshot, prometheus_labels=prometheus_labels)
    try:
        setattr(meter, _MADE, made)
    except AttributeError:
        pass  # a meter of another make, with slots
    return made


class Instruments:
    """Instruments for every row, and for the user's own numbers as they appear.

    Args:
        meter: makes them.
        snapshot: the totals of this moment; empty once the exporter is closed.
        prometheus_labels: whether attributes have the names of Prometheus' labels.
    """

    def __init__(
        self, meter: Meter, snapshot: Callable[[], Series], *, prometheus_labels: bool = False
    ) -> None:
        self._meter = meter
        self._prometheus_labels = prometheus_labels
        self._snapshot = snapshot
        self._lock = threading.Lock()
        self._series: Series = {}
        self._read_rows: set[tuple[Metric, str]] = set()
        self._rows: dict[str, Metric] = {}
        self._histograms: dict[Metric, Histogram] = {}
        # That of the programs' beginnings has a value where labels are those of Prometheus.
        for row in (*METRICS, COUNTING_SINCE):
            if row.kind is Kind.HISTOGRAM:
                self._histograms[row] = meter.create_histogram(
                    row.dotted,
                    row.unit,
                    row.help,
                    explicit_bucket_boundaries_advisory=row.buckets,
                )
            else:
                self._observe(row)

    def read_from(self, snapshot: Callable[[], Series], *, prometheus_labels: bool) -> None:
        """Read other totals from now on."""
        self._prometheus_labels = prometheus_labels
        self._lock = threading.Lock()  # a thread of a forked child's parent may hold the old one
        self._snapshot = snapshot
        self._read_rows = set()

    def record(
        self, row: Metric, labels: Labels, seconds: float, context: Context | None = None
    ) -> None:
        """Record a duration; ``context`` holds the span that it was measured in."""
        self._histograms[row].record(seconds, self._attributes(row, labels), context)

    def follow(self, user_rows: Iterable[Metric]) -> None:
        """Make instruments for those of the user's numbers that have none yet."""
        for row in user_rows:
            if row.dotted in self._rows:
                continue
            self._rows[row.dotted] = row
            if row.kind is Kind.HISTOGRAM:
                self._observe_histogram(row)
            else:
                self._observe(row)

    def _observe(self, row: Metric) -> None:
        if row.kind is Kind.COUNTER:
            create: Any = self._meter.create_observable_counter
        elif row in _ADDITIVE:
            create = self._meter.create_observable_up_down_counter
        else:
            create = self._meter.create_observable_gauge
        create(row.dotted, [partial(self._read, row)], row.unit, row.help)

    def _observe_histogram(self, row: Metric) -> None:
        # Observations arrive summed in buckets, and no instrument accepts those. Three instruments
        # report their count and sum, which averages and rates need, and the count of each bucket.
        meter, name = self._meter, row.dotted
        meter.create_observable_counter(
            f"{name}.count", [partial(self._read_histogram, row, "count")], "", row.help
        )
        meter.create_observable_up_down_counter(
            f"{name}.sum", [partial(self._read_histogram, row, "sum")], row.unit, row.help
        )
        meter.create_observable_counter(
            f"{name}.bucket", [partial(self._read_buckets, row)], "", row.help
        )

    def _read(self, row: Metric, options: CallbackOptions) -> Iterable[Observation]:
        for labels, value in self._values(row, "value").items():
            if not isinstance(value, series.Histogram):
                yield Observation(value, self._attributes(row, labels))

    def _read_histogram(
        self, row: Metric, figure: str, options: CallbackOptions
    ) -> Iterable[Observation]:
        for labels, value in self._values(row, figure).items():
            if isinstance(value, series.Histogram):
                number = sum(value.counts) if figure == "count" else value.total
                yield Observation(number, self._attributes(row, labels))

    def _read_buckets(self, row: Metric, options: CallbackOptions) -> Iterable[Observation]:
        bounds = [f"{bound:g}" for bound in row.buckets] + ["+Inf"]
        for labels, value in self._values(row, "buckets").items():
            if isinstance(value, series.Histogram):
                reached = 0
                for bound, count in zip(bounds, value.counts, strict=True):
                    reached += count
                    yield Observation(reached, {**self._attributes(row, labels), "le": bound})

    def _attributes(self, row: Metric, labels: Labels) -> Mapping[str, str]:
        return attributes_of(row, labels, prometheus_labels=self._prometheus_labels)

    def _values(self, row: Metric, figure: str) -> Mapping[Labels, series.Value]:
        # Instruments are read one after the other, and share one snapshot of the totals until one
        # is read again: that is the next collection.
        with self._lock:
            if not self._read_rows or (row, figure) in self._read_rows:
                self._read_rows.clear()
                series = self._snapshot()
                # The user's rows are new objects in each snapshot: their names identify them.
                self._series = {self._rows.get(each.dotted, each): series[each] for each in series}
            self._read_rows.add((row, figure))
            return self._series.get(row, {})


@lru_cache(maxsize=1024)
def attributes_of(
    row: Metric, labels: Labels, *, prometheus_labels: bool = False
) -> Mapping[str, str]:
    """Name a series' labels as OpenTelemetry does, or as Prometheus."""
    names = row.labels if prometheus_labels else [ATTRIBUTES[name] for name in row.labels]
    return dict(zip(names, labels, strict=True))
