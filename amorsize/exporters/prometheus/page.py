"""The page of /metrics: amorsize's numbers, and the application's beside them.

::

    snapshot() ──> TextEncoder ──────────────────────────────┐
        └────> Collector ──> registry ──> its own endpoints  ├──> render()
                                └──> prometheus_client's encoder, of all others

A prometheus_client registry collects amorsize's numbers like any others. While this module renders
the page itself, the collector is hidden, and the fast encoder writes its part.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from amorsize.exporters.metrics import METRICS, Kind, Metric
from amorsize.exporters.prometheus.exposition import TextEncoder
from amorsize.exporters.prometheus.negotiation import OPENMETRICS, preferred_format
from amorsize.exporters.series import Histogram, Series, Value

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric as MetricFamily

PLAIN = "text/plain; version=0.0.4; charset=utf-8"


class Page:
    """Renders a registry to which it adds the numbers of an exporter.

    Args:
        registry: the application's; None for amorsize's numbers alone.
        snapshot: reads amorsize's numbers at this moment; empty once the exporter is closed.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None,
        snapshot: Callable[[], Series],
    ) -> None:
        from prometheus_client import CollectorRegistry

        self._has_others = registry is not None
        self._registry = CollectorRegistry() if registry is None else registry
        self._snapshot = snapshot
        self._collector = _Collector(snapshot)
        self._encoder = TextEncoder()

    def open(self) -> None:
        """Add amorsize's numbers to the registry.

        Raises:
            ValueError: it holds metrics of these names.
        """
        self._registry.register(self._collector)

    def close(self) -> None:
        """Remove amorsize's numbers from the registry."""
        self._registry.unregister(self._collector)

    def others(self) -> bytes:
        """Render the application's own metrics alone, as Prometheus text."""
        if not self._has_others:
            return b""
        with self._collector.hidden():
            return self._library_encoder("")[0](self._registry)

    def render(self, accept: str = "", names: Sequence[str] = ()) -> tuple[str, bytes]:
        """Render everything, for a scraper.

        Args:
            accept: the value of its ``Accept`` header, which is weighed.
            names: the metrics that it wants; empty for all.

        Returns:
            The content type, and the page.
        """
        encode, content_type = self._library_encoder(preferred_format(accept))
        if names:
            return content_type, encode(self._registry.restricted_registry(names))
        openmetrics = content_type.startswith(OPENMETRICS)
        return content_type, self._render(encode, openmetrics=openmetrics)

    def _render(self, encode: Callable[[Any], bytes], *, openmetrics: bool) -> bytes:
        series = self._snapshot()
        page = self._encoder.encode(series, openmetrics=openmetrics).encode() if series else b""
        if self._has_others:
            with self._collector.hidden():
                return page + encode(self._registry)
        return page + b"# EOF\n" if openmetrics else page

    def _library_encoder(self, accept: str) -> tuple[Callable[[Any], bytes], str]:
        from prometheus_client.exposition import choose_encoder

        # The library does not weigh: it takes the first format of a header.
        return choose_encoder(accept)


class _Collector:
    """Shows amorsize's numbers to a prometheus_client registry."""

    def __init__(self, snapshot: Callable[[], Series]) -> None:
        self._snapshot = snapshot
        self._here = threading.local()

    def hidden(self) -> _Hidden:
        """Hide from this thread, in a ``with`` statement."""
        return _Hidden(self._here)

    def describe(self) -> Iterator[MetricFamily]:
        """Name the metrics, so that the registry sees clashes at registration."""
        return (_family(metric, {}) for metric in METRICS)

    def collect(self) -> Iterator[MetricFamily]:
        """Give all metrics; nothing once the exporter is closed."""
        if getattr(self._here, "hides", False):
            return
        series = self._snapshot()
        if series:
            for metric in dict.fromkeys((*METRICS, *series)):
                yield _family(metric, series.get(metric, {}))


class _Hidden:
    def __init__(self, here: threading.local) -> None:
        self._here = here

    def __enter__(self) -> None:
        self._here.hides = True

    def __exit__(self, *error: object) -> None:
        self._here.hides = False


def _family(metric: Metric, series: Mapping[tuple[str, ...], Value]) -> MetricFamily:
    from prometheus_client import core

    families = {
        Kind.COUNTER: core.CounterMetricFamily,
        Kind.GAUGE: core.GaugeMetricFamily,
        Kind.HISTOGRAM: core.HistogramMetricFamily,
        Kind.INFO: core.InfoMetricFamily,
    }
    name = metric.prometheus.removesuffix("_info")
    family: Any = families[metric.kind](name, metric.help, labels=metric.labels)
    family.unit = metric.prometheus_unit
    bounds = [*map(str, metric.buckets), "+Inf"]
    for labels, value in series.items():
        if isinstance(value, Histogram):
            family.add_metric(labels, _buckets(bounds, value), value.total)
        elif metric.kind is Kind.INFO:
            family.add_metric(labels, {})
        else:
            family.add_metric(labels, value)
    return family  # type: ignore[no-any-return]  # one of four classes


def _buckets(bounds: list[str], histogram: Histogram) -> list[Any]:
    """Count the observations up to each bound, with the bucket's exemplar where it has one."""
    from prometheus_client.samples import Exemplar

    exemplars = histogram.exemplars or {}
    buckets: list[Any] = []
    for position, count in enumerate(accumulate(histogram.counts)):
        exemplar = exemplars.get(position)
        shown = None if exemplar is None else Exemplar(dict(exemplar.labels), *exemplar[1:])
        buckets.append((bounds[position], count, shown))
    return buckets
