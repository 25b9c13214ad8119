"""Totals that earlier programs have left where this one delivers to, and how it continues them.

A job that pushes, or writes a text file, is a new program every night, and counts from zero. Left
at that, a counter shows 1 after each failure, and neither ``increase()`` nor anybody else sees the
second one. So a program adds what it counts to what it finds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from amorsize.exporters.metrics import (
    COUNTING_SINCE,
    LABEL_LIMITS,
    LAST_ACTIVITY,
    LAST_COMPLETION,
    LAST_SUCCESS,
    METRICS,
    Kind,
    Metric,
)
from amorsize.exporters.series import Histogram, Labels, Series, Value
from amorsize.exporters.totals import LIVE_GAUGES
from amorsize.exporters.user_totals import NAMESPACE, row_of_series
from amorsize.workers.names import bounded

MOST_FUNCTIONS = LABEL_LIMITS["function"]

_ROWS = {row.prometheus: row for row in (*METRICS, COUNTING_SINCE)}

_TIMES = (LAST_COMPLETION, LAST_SUCCESS, LAST_ACTIVITY)
"""Gauges that stay true whatever this program does, until it has a later one."""


class Family(NamedTuple):
    """The samples of one metric.

    Attributes:
        name: as in the table.
        type: ``counter``, ``gauge`` or ``histogram``.
        samples: labels and value; of a histogram the cumulative buckets by their bounds, and the
            sum.
    """

    name: str
    type: str
    samples: list[tuple[Mapping[str, str], float | tuple[dict[float, float], float]]]


class Earlier:
    """Totals of earlier programs, by function.

    Args:
        families: those that were found; of metrics that are not amorsize's nothing is kept.
    """

    def __init__(self, families: Iterable[Family] = ()) -> None:
        self._series: dict[str | None, Series] = {}
        for family in families:
            row = _ROWS.get(family.name)
            if row is None and family.name.startswith(NAMESPACE):
                row = row_of_series(family.name, family.type)
            if row is None or row in LIVE_GAUGES or row.kind is Kind.INFO:
                continue  # what runs now is for the present program to say
            for labels, found in family.samples:
                value = _value(row, found)
                if value is not None:
                    # A version that did not bound them may have written them.
                    key = tuple(bounded(labels.get(name, "")) for name in row.labels)
                    function = key[0] if _is_of_functions(row) else None
                    self._series.setdefault(function, {}).setdefault(row, {})[key] = value

    def continued(self, own: Mapping[str | None, Series]) -> Series:
        """Add what this program has counted, and keep functions that it did not call.

        Args:
            own: the program's series, by function.
        """
        functions = [*own, *(each for each in self._latest() if each not in own)]
        rows = {row.prometheus: row for series in own.values() for row in series}
        whole: Series = {}
        for function in functions:
            for row, values in self.continued_of(function, own.get(function, {})).items():
                known = rows.setdefault(row.prometheus, row)  # one row for a user's metric
                if known.kind is row.kind:
                    whole.setdefault(known, {}).update(values)
        return whole

    def continued_of(self, function: str | None, own: Series) -> Series:
        """Add what this program has counted of one function; None for what is of no function."""
        earlier = {row.prometheus: (row, v) for row, v in self._series.get(function, {}).items()}
        has_ended = bool(own.get(LAST_COMPLETION))
        whole: Series = {}
        for row, values in own.items():
            before, found = earlier.pop(row.prometheus, (row, {}))
            if before.kind is not row.kind:  # a user has changed it
                found = {}
            whole[row] = _merged(row, values, found, has_ended=has_ended)
        for row, found in earlier.values():
            whole[row] = _merged(row, {}, found, has_ended=has_ended)
        return {row: values for row, values in whole.items() if values}

    def _latest(self) -> list[str | None]:
        def activity(function: str | None) -> float:
            times = self._series[function].get(LAST_ACTIVITY, {}).values()
            return max((time for time in times if not isinstance(time, Histogram)), default=0.0)

        return sorted(self._series, key=activity, reverse=True)[:MOST_FUNCTIONS]


def by_function(series: Series) -> dict[str | None, Series]:
    """Divide series by their function; None for those that have none."""
    divided: dict[str | None, Series] = {}
    for row, values in series.items():
        of_functions = _is_of_functions(row)
        for labels, value in values.items():
            function = labels[0] if of_functions else None
            divided.setdefault(function, {}).setdefault(row, {})[labels] = value
    return divided


def families_of_text(text: str) -> Iterator[Family]:
    """Read Prometheus text.

    Raises:
        ValueError: it is none.
    """
    from prometheus_client.parser import text_string_to_metric_families

    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if family.type != "histogram":
            yield Family(name, family.type, [(each.labels, each.value) for each in family.samples])
            continue
        found: dict[frozenset[tuple[str, str]], tuple[dict[float, float], list[float]]] = {}
        for each in family.samples:
            labels = {key: value for key, value in each.labels.items() if key != "le"}
            buckets, sums = found.setdefault(frozenset(labels.items()), ({}, []))
            if each.name.endswith("_bucket"):
                buckets[float(each.labels["le"])] = each.value
            elif each.name.endswith("_sum"):
                sums.append(each.value)
        yield Family(
            name,
            family.type,
            [(dict(labels), (buckets, sum(sums))) for labels, (buckets, sums) in found.items()],
        )


def families_of_json(group: Mapping[str, Any]) -> Iterator[Family]:
    """Read a group of the Pushgateway's ``/api/v1/metrics``.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: it is none.
    """
    for name, family in group.items():
        if not isinstance(family, dict) or "metrics" not in family:
            continue  # its labels, and whether the last push succeeded
        kind = family["type"].lower()
        samples: list[Any] = []
        for each in family["metrics"]:
            if kind == "histogram":
                buckets = {float(le): float(count) for le, count in each["buckets"].items()}
                samples.append((each["labels"], (buckets, float(each["sum"]))))
            elif "value" in each:
                samples.append((each["labels"], float(each["value"])))
        yield Family(name, kind, samples)


def _is_of_functions(row: Metric) -> bool:
    return row.labels[:1] == ("function",)


def _value(row: Metric, found: float | tuple[dict[float, float], float]) -> Value | None:
    """Understand a value; None for one of another kind, or with other buckets."""
    if not isinstance(found, tuple):
        return None if row.kind is Kind.HISTOGRAM or found != found else _plain(found)
    buckets, total = found
    if row.kind is not Kind.HISTOGRAM or sorted(buckets) != [*row.buckets, float("inf")]:
        return None
    histogram = Histogram(len(row.buckets))
    cumulative = [int(buckets[bound]) for bound in sorted(buckets)]
    histogram.counts = [
        count - before for count, before in zip(cumulative, [0, *cumulative], strict=False)
    ]
    histogram.total = _plain(total)
    return histogram


def _plain(value: float) -> float:
    return int(value) if float(value).is_integer() else value


def _merged(
    row: Metric, own: dict[Labels, Value], earlier: dict[Labels, Value], *, has_ended: bool
) -> dict[Labels, Value]:
    if row.kind in (Kind.COUNTER, Kind.HISTOGRAM):
        return {**earlier, **{key: _sum(value, earlier.get(key)) for key, value in own.items()}}
    if row is COUNTING_SINCE:
        return {**earlier, **{key: _smaller(value, earlier.get(key)) for key, value in own.items()}}
    if row in _TIMES or row.prometheus.startswith(NAMESPACE):
        return {**earlier, **own}
    if has_ended or not _is_of_functions(row):
        return own
    # The last execution that ended is still that of the program before.
    return {**earlier, **{key: _greater(value, earlier.get(key)) for key, value in own.items()}}


def _sum(own: Value, earlier: Value | None) -> Value:
    if isinstance(own, Histogram):
        if not isinstance(earlier, Histogram) or len(own.counts) != len(earlier.counts):
            return own
        whole = own.copy()
        whole.counts = [a + b for a, b in zip(own.counts, earlier.counts, strict=True)]
        whole.total += earlier.total
        return whole
    return own + earlier if earlier is not None and not isinstance(earlier, Histogram) else own


def _smaller(own: Value, earlier: Value | None) -> Value:
    assert not isinstance(own, Histogram)
    return min(own, earlier) if isinstance(earlier, int | float) else own


def _greater(own: Value, earlier: Value | None) -> Value:
    assert not isinstance(own, Histogram)
    return max(own, earlier) if isinstance(earlier, int | float) else own
