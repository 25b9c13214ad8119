"""Builds PromQL from rows of the metric table: no metric or label name is written by hand."""

from __future__ import annotations

from amorsize.exporters import metrics
from amorsize.exporters.metrics import STATUSES, Kind, Metric

RATE_WINDOW = "$__rate_interval"
"""At least four scrapes, says Grafana, so that a rate has points whatever the zoom."""

VIEW = "$__range"
"""The time range of a dashboard."""

FAILED = "|".join(status for status in STATUSES if status not in ("ok", "cancelled"))
"""How an execution ends that was not cancelled."""

TARGET_LABELS = ("job", "instance")
"""Labels that Prometheus adds to each series."""

FLEET = {"job": '=~"$job"', "function": '=~"$function"', "executor": '=~"$executor"'}
"""The variables of a dashboard that shows many functions."""

ONE = FLEET | {"function": '="$function"'}
"""Those of a dashboard that shows one."""

EVERYTHING: dict[str, str] = {}
"""For rules, which have no variables."""


class Query:
    """Writes the selectors of one dashboard.

    Args:
        variables: a matcher for each label that a variable of the dashboard restricts.
        window: the range of rates.

    Example:
        >>> Query(ONE).series(metrics.LAST_SUCCESS)
        'amorsize_last_success_timestamp_seconds{job=~"$job",function="$function"}'
    """

    def __init__(self, variables: dict[str, str], window: str = RATE_WINDOW) -> None:
        self.variables = variables
        self.window = window

    def series(self, metric: Metric, part: str = "", **matchers: str) -> str:
        """Select the series of a metric.

        Args:
            metric: a row of the table.
            part: of a histogram, ``bucket``, ``sum`` or ``count``.
            matchers: operator and quoted value, by label: ``status='="ok"'``.

        Raises:
            ValueError: the table has no such series.
        """
        if part and (metric.kind is not Kind.HISTOGRAM or part not in ("bucket", "sum", "count")):
            raise ValueError(f"{metric.prometheus} is a {metric.kind} and has no {part!r}")
        if metric.kind is Kind.HISTOGRAM and not part:
            raise ValueError(f"{metric.prometheus} is a histogram: say which part of it")
        unknown = matchers.keys() - set(metric.labels)
        if unknown:
            raise ValueError(
                f"{metric.prometheus} has the labels {metric.labels}, not {sorted(unknown)}"
            )
        found = {
            label: matcher
            for label, matcher in self.variables.items()
            if label in (*TARGET_LABELS, *metric.labels)
        }
        written = ",".join(f"{label}{matcher}" for label, matcher in (found | matchers).items())
        name = metric.prometheus + (f"_{part}" if part else "")
        return f"{name}{{{written}}}" if written else name

    def total(self, metric: Metric, *by: str, **matchers: str) -> str:
        """Sum a gauge."""
        return f"{_sum(by)} ({self.series(metric, **matchers)})"

    def rate(self, metric: Metric, *by: str, part: str = "", **matchers: str) -> str:
        """Growth a second."""
        return f"{_sum(by)} (rate({self.series(metric, part, **matchers)}[{self.window}]))"

    def growth(self, metric: Metric, *by: str, part: str = "", **matchers: str) -> str:
        """Growth over all that the dashboard shows."""
        return f"{_sum(by)} (increase({self.series(metric, part, **matchers)}[{VIEW}]))"

    def a_minute(self, metric: Metric, *by: str, **matchers: str) -> str:
        """Growth a minute, which for executions is a number that people can read."""
        return f"60 * {self.rate(metric, *by, **matchers)}"

    def quantile(self, quantile: float, metric: Metric, *by: str) -> str:
        """A quantile of a histogram's observations."""
        return f"histogram_quantile({quantile:g}, {self.rate(metric, 'le', *by, part='bucket')})"

    def mean(self, metric: Metric, *by: str) -> str:
        """The mean of a histogram's observations."""
        return (
            f"{self.rate(metric, *by, part='sum')} / ({self.rate(metric, *by, part='count')} > 0)"
        )

    def average(self, metric: Metric, *by: str) -> str:
        """The sum of a gauge, averaged over the window of a rate that it is compared with."""
        return f"{_sum(by)} (avg_over_time({self.series(metric)}[{self.window}]))"

    def busy_share(self, *by: str) -> str:
        """The share of the workers' time that is spent in the function."""
        return f"{self.rate(metrics.WORKER_BUSY, *by)} / ({self.average(metrics.WORKERS, *by)} > 0)"

    def idle_workers(self, *by: str) -> str:
        """How many workers' worth of time is not spent in the function."""
        busy = self.rate(metrics.WORKER_BUSY, *by)
        return f"clamp_min({self.average(metrics.WORKERS, *by)} - {busy}, 0)"

    def failed_share(self, *by: str, window: str | None = None) -> str:
        """How many of the items fail; 1 where chunks fail as a whole, and so are not processed."""
        query = Query(self.variables, window or self.window)
        failed = query.rate(metrics.ITEMS_FAILED, *by)
        return f"clamp_max({failed} / {query.rate(metrics.ITEMS_PROCESSED, *by)}, 1)"

    def progress(self, *by: str) -> str:
        """How much of the input is done, of executions in progress whose input's length is known.

        Empty where nothing runs.
        """
        expected = self.total(metrics.ITEMS_EXPECTED, *by)
        return f"{self.total(metrics.ITEMS_COMPLETED, *by)} / ({expected} > 0)"

    def time_left(self, *by: str) -> str:
        """Seconds until all items are done at the present rate; empty where nothing runs."""
        expected = self.total(metrics.ITEMS_EXPECTED, *by)
        completed = self.total(metrics.ITEMS_COMPLETED, *by)
        pace = self.total(metrics.THROUGHPUT, *by)
        return f"clamp_min(({expected} > 0) - {completed}, 0) / ({pace} > 0)"

    def age(self, metric: Metric, *by: str, **matchers: str) -> str:
        """Seconds since the newest of some timestamps."""
        newest = f"max by ({', '.join(by)})" if by else "max"
        return f"time() - {newest} ({self.series(metric, **matchers)})"

    def speedup_share(self, *by: str) -> str:
        """The measured share of the estimated speedup."""
        grouped = f"avg by ({', '.join(by)})" if by else "avg"
        measured = self.series(metrics.MEASURED_SPEEDUP)
        return f"{grouped} ({measured} / {self.series(metrics.ESTIMATED_SPEEDUP)})"


def top(count: int, query: str) -> str:
    """Keep the largest; a graph of a hundred lines shows none of them."""
    return f"topk({count}, {query})"


def or_zero(query: str) -> str:
    """Show 0 where there is nothing, instead of no data."""
    return f"{query} or vector(0)"


def _sum(by: tuple[str, ...]) -> str:
    return f"sum by ({', '.join(by)})" if by else "sum"
