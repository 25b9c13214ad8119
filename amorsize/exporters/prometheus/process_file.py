"""A share as the content of a file, which another process of the program reads.

JSON, because a file in a directory is read, not trusted: it must not run code, as a pickle does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from amorsize.exporters.metrics import METRICS, PROMETHEUS_ONLY, Kind, Metric
from amorsize.exporters.series import Exemplar, Histogram, Share, Value
from amorsize.exporters.user_totals import NAMESPACE

FORMAT = 1
"""Another version of amorsize may write another one, and is not read."""

_ROWS = {metric.prometheus: metric for metric in (*METRICS, *PROMETHEUS_ONLY)}


def encode(share: Share, **further: Any) -> bytes:
    """Write a share, and further plain values beside it."""
    metrics = [
        {
            "name": metric.prometheus,
            "kind": metric.kind,
            "help": metric.help,
            "dotted": metric.dotted,
            "labels": metric.labels,
            "buckets": metric.buckets,
            "series": [
                (labels, _plain(values.get(labels)), set_at.get(labels))
                for labels in dict.fromkeys((*values, *set_at))
            ],
        }
        for metric, values in share.series.items()
        for set_at in (share.set_at.get(metric, {}),)
    ]
    longest = list(share.longest.items())
    content = {"format": FORMAT, "metrics": metrics, "longest": longest, **further}
    return json.dumps(content, separators=(",", ":")).encode()


def decode(content: bytes) -> tuple[Share, Mapping[str, Any]]:
    """Read a share, and what stands beside it.

    Rows that this version does not know, or knows otherwise, are left out.

    Raises:
        ValueError: this is no share.
    """
    try:
        read = json.loads(content)
        if read["format"] != FORMAT:
            raise ValueError(f"its format is {read['format']!r}, and this version reads {FORMAT}")
        share = Share({}, {}, {tuple(labels): seconds for labels, seconds in read["longest"]})
        for each in read["metrics"]:
            metric = _row(each)
            if metric is not None:
                share.series[metric] = dict(_values(each["series"]))
                share.set_at[metric] = {
                    tuple(labels): set_at
                    for labels, _, set_at in each["series"]
                    if set_at is not None
                }
        return share, read
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"this is no share: {error!r}") from None


def _row(described: Mapping[str, Any]) -> Metric | None:
    row = Metric(
        prometheus=described["name"],
        dotted=described["dotted"],
        kind=Kind(described["kind"]),
        help=described["help"],
        labels=tuple(described["labels"]),
        buckets=tuple(described["buckets"]),
    )
    known = _ROWS.get(row.prometheus)
    if known is None:
        return row if row.prometheus.startswith(NAMESPACE) else None
    same = (row.kind, row.labels, row.buckets) == (known.kind, known.labels, known.buckets)
    return known if same else None


def _plain(value: Value | None) -> Any:
    if not isinstance(value, Histogram):
        return value
    exemplars = [(bucket, *each) for bucket, each in (value.exemplars or {}).items()]
    return value.counts, value.total, exemplars


def _values(series: Iterable[Any]) -> Iterable[tuple[tuple[str, ...], Value]]:
    for labels, value, _ in series:
        if value is None:
            continue  # it was removed
        if not isinstance(value, list):
            yield tuple(labels), value
            continue
        counts, total, exemplars = value
        histogram = Histogram(len(counts) - 1)
        histogram.counts, histogram.total = counts, total
        if exemplars:
            histogram.exemplars = {bucket: Exemplar(*each) for bucket, *each in exemplars}
        yield tuple(labels), histogram
