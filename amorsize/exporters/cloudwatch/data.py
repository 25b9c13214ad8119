"""CloudWatch's data: rows of the metric table with dimensions, within the limits of a call.

The limits are those of ``PutMetricData`` and of the embedded metric format, as AWS documents them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

from amorsize.exporters.changes import Changes
from amorsize.exporters.metrics import ATTRIBUTES, METRICS, Metric
from amorsize.exporters.series import Labels, Series
from amorsize.exporters.user_totals import DOTTED_NAMESPACE
from amorsize.workers.names import cut
from amorsize.workers.user_metrics import HISTOGRAM, UserMetric, empty_metric, merge

MAX_DATA = 1000
MAX_VALUES = 150
MAX_DIMENSIONS = 30
MAX_BYTES = 1_000_000
"""Of one call of ``PutMetricData``: its data, and the values and dimensions of each datum."""

NAME_CHARACTERS = 250
"""Of a dimension, in the embedded format; five more in the API."""

DIMENSION_CHARACTERS = 1024
"""Of its value."""

_LARGEST = 1e108
"""CloudWatch refuses a whole call that has a larger value, or one smaller than the inverse."""

_SIGNIFICANT_DIGITS = 3
"""Of a duration: an error of 0.5 % at most, and few distinct values, so that 150 go far."""

Dimensions: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of values that are not known one by one."""

    count: float
    total: float
    least: float
    greatest: float


@dataclass(frozen=True, slots=True)
class Datum:
    """A metric at one moment.

    Attributes:
        name: in CloudWatch.
        unit: one of CloudWatch's.
        dimensions: names and values.
        value: one number, or several numbers with their counts, or statistics.
    """

    name: str
    unit: str
    dimensions: Dimensions
    value: float | Mapping[float, int] | Statistics


class Collector:
    """Collects the next data. Hold a lock around each call.

    Args:
        dimensions: further ones of all data.
    """

    def __init__(self, dimensions: Dimensions) -> None:
        self._dimensions = dimensions
        self._changes = Changes()
        self._observed: dict[tuple[Metric, Labels], dict[float, int]] = {}
        self._shares: dict[tuple[str, Labels], UserMetric] = {}
        self.out_of_range = 0

    def observe(self, metric: Metric, labels: Labels, value: float) -> None:
        """Count a duration."""
        counts = self._observed.setdefault((metric, labels), {})
        rounded = float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
        counts[rounded] = counts.get(rounded, 0) + 1

    def add_share(self, name: str, labels: Labels, share: UserMetric) -> None:
        """Add the observations of a chunk to one of the user's histograms."""
        total = self._shares.get((name, labels))
        if total is None:
            total = self._shares[name, labels] = empty_metric(HISTOGRAM)
        merge(total, share)

    def take(self, series: Series, *, all_gauges: bool = False) -> list[Datum]:
        """Make data of the collected observations, and of the changes of the totals.

        Args:
            series: the totals.
            all_gauges: whether to include gauges that did not change.
        """
        found: list[Datum] = []
        for metric, labels, grown in self._changes.growth(series):
            found.append(self._datum(metric, labels, grown))
        for metric, labels, value in self._changes.gauges(series, changed=not all_gauges):
            found.append(self._datum(metric, labels, value))
        observed, self._observed = self._observed, {}
        for (metric, labels), counts in observed.items():
            found.append(self._datum(metric, labels, counts))
        shares, self._shares = self._shares, {}
        for (name, labels), share in shares.items():
            assert share["kind"] == HISTOGRAM
            statistics = Statistics(share["calls"], share["sum"], share["min"], share["max"])
            dimensions = self._dimensions_of(("function", "executor"), labels)
            found.append(Datum(user_metric_name(name), "None", dimensions, statistics))
        accepted = [datum for datum in found if _in_range(datum.value)]
        self.out_of_range += len(found) - len(accepted)
        return accepted

    def _datum(self, metric: Metric, labels: Labels, value: Any) -> Datum:
        if metric.dotted.startswith(DOTTED_NAMESPACE):
            name = user_metric_name(metric.dotted.removeprefix(DOTTED_NAMESPACE))
        else:
            name = metric.cloudwatch
        dimensions = self._dimensions_of(metric.labels, labels)
        return Datum(name, metric.cloudwatch_unit, dimensions, value)

    def _dimensions_of(self, names: Labels, labels: Labels) -> Dimensions:
        own = (
            (dimension_name(name), dimension_value(value))
            for name, value in zip(names, labels, strict=True)
        )
        return (*own, *self._dimensions)


def user_metric_name(name: str) -> str:
    """Name a user metric as it is spelt: in CamelCase two names might become one."""
    return f"User.{name}"


def dimension_name(label: str) -> str:
    """Name a label.

    >>> dimension_name("error_type")
    'ErrorType'
    """
    return "".join(word.capitalize() for word in label.split("_"))


OWN_NAMES = {dimension_name(label) for label in ATTRIBUTES} | {row.cloudwatch for row in METRICS}
"""Names that a user's dimension must not have; the embedded format has metrics beside them."""


def dimension_value(label: str) -> str:
    """Write a label's value in printable ASCII: CloudWatch accepts nothing else.

    >>> dimension_value("größe")
    'gr\\\\xf6\\\\xdfe'
    """
    text = label.encode("ascii", "backslashreplace").decode()
    text = re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\x{ord(match[0]):02x}", text)
    return cut(text, DIMENSION_CHARACTERS) if text.strip() else "-"


def requests(data: Iterable[Datum], now: float) -> Iterator[list[dict[str, Any]]]:
    """Make the ``MetricData`` of calls of ``put_metric_data``, each within the limits.

    Args:
        data: to be sent.
        now: the time of the data, in seconds since the epoch.
    """
    timestamp = datetime.fromtimestamp(now, UTC)
    request: list[dict[str, Any]] = []
    size = 0
    for datum in data:
        for entry in _entries(datum, timestamp):
            entry_size = _size(entry)
            if request and (len(request) == MAX_DATA or size + entry_size > MAX_BYTES):
                yield request
                request, size = [], 0
            request.append(entry)
            size += entry_size
    if request:
        yield request


def _entries(datum: Datum, timestamp: datetime) -> Iterator[dict[str, Any]]:
    common = {
        "MetricName": datum.name,
        "Dimensions": [{"Name": name, "Value": value} for name, value in datum.dimensions],
        "Timestamp": timestamp,
        "Unit": datum.unit,
    }
    value = datum.value
    if isinstance(value, Statistics):
        statistics = {
            "SampleCount": float(value.count),
            "Sum": float(value.total),
            "Minimum": float(value.least),
            "Maximum": float(value.greatest),
        }
        yield {**common, "StatisticValues": statistics}
    elif isinstance(value, Mapping):
        counts = list(value.items())
        for start in range(0, len(counts), MAX_VALUES):
            part = counts[start : start + MAX_VALUES]
            yield {
                **common,
                "Values": [each for each, _ in part],
                "Counts": [float(count) for _, count in part],
            }
    else:
        yield {**common, "Value": float(value)}


def _size(entry: Mapping[str, Any]) -> int:
    """Bound the bytes of a datum, in the wordiest protocol that boto3 speaks."""
    numbers = 2 * len(entry.get("Values", ())) + len(entry.get("StatisticValues", "1"))
    texts = [text for each in entry["Dimensions"] for text in each.values()]
    fields = 3 + numbers + len(texts)
    # A field of a form: "&MetricData.member.1000.StatisticValues.SampleCount=" is the longest
    # name, a number has up to 24 characters, and percent signs make three of a text's character.
    return 80 * fields + 3 * sum(map(len, [entry["MetricName"], *texts]))


def _in_range(value: float | Mapping[float, int] | Statistics) -> bool:
    if isinstance(value, Statistics):
        numbers: Iterable[float] = (value.total, value.least, value.greatest)
    elif isinstance(value, Mapping):
        numbers = value
    else:
        numbers = (value,)
    return all(number == 0 or 1 / _LARGEST <= abs(number) <= _LARGEST for number in numbers)
