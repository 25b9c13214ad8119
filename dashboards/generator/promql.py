"""Builds PromQL from rows of the metric table: no metric or label name is written by hand."""

from __future__ import annotations

from amorsize.exporters import metrics
from amorsize.exporters.metrics import Kind, Metric
from amorsize.hooks.events import STATUSES

RATE_WINDOW = "$__rate_interval"
"""At least four scrapes, says Grafana, so that a rate has points whatever the zoom."""

VIEW = "$__range"
"""The time range of a dashboard."""

BAR = "$__interval"
"""The time from one point of a graph to the next."""

BEFORE = "1h"
"""How long before a range a series is looked for, to tell a new one from one that was not scraped
for a while. The outage of a Prometheus may last as long; a daily job's run of yesterday is past."""

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

    def total(self, metric: Metric, *by: str) -> str:
        """Sum a gauge of the executions in progress."""
        return f"{_sum(by)} ({self.live(self.series(metric))})"

    def live(self, value: str) -> str:
        """Leave out executions of programs that have pushed, or written a file, and been killed.

        What they have said last stays where they have said it.
        """
        return f"{value} unless {self.overdue()}"

    def overdue(self, seconds: float = 0) -> str:
        """Find executions whose program has not reported again when it should have.

        Args:
            seconds: since when, at least.
        """
        ago = f" - {seconds:g}" if seconds else ""
        return f"{self.series(metrics.IN_PROGRESS_UNTIL)} < time(){ago}"

    def rate(self, metric: Metric, *by: str, part: str = "", **matchers: str) -> str:
        """Growth per second."""
        return f"{_sum(by)} (rate({self.series(metric, part, **matchers)}[{self.window}]))"

    def growth(
        self, metric: Metric, *by: str, part: str = "", window: str = VIEW, **matchers: str
    ) -> str:
        """Growth over a range: by default, over all that the dashboard shows."""
        return f"{_sum(by)} ({grown(self.series(metric, part, **matchers), window)})"

    def count(self, metric: Metric, *by: str, **matchers: str) -> str:
        """Growth over all that the dashboard shows, of what is whole."""
        return f"round({self.growth(metric, *by, **matchers)})"

    def in_each_bar(self, metric: Metric, *by: str, part: str = "", **matchers: str) -> str:
        """Growth from one point of a graph to the next; together, the growth over all of it."""
        return self.growth(metric, *by, part=part, window=BAR, **matchers)

    def past(self, metric: Metric, window: str = VIEW, **matchers: str) -> str:
        """The last values of a gauge, also those of programs that have ended."""
        return f"last_over_time({self.series(metric, **matchers)}[{window}])"

    def latest(self, value: str, *by: str, window: str | None = VIEW) -> str:
        """Keep what the newest of several executions has set, in whichever program.

        Args:
            value: an expression of gauges that the end of an execution sets.
            by: one execution for each value of these labels.
            window: how old the end may be; None for programs that still run.
        """
        ended = metrics.LAST_COMPLETION
        ends = self.series(ended) if window is None else self.past(ended, window)
        newest = f"topk{_by(by)} (1, {ends})"
        return f"max{_by(by)} ({value} and ignoring (status) {newest})"

    def last(self, metric: Metric, *by: str) -> str:
        """What the newest execution has set, in the time that the dashboard shows."""
        return self.latest(self.past(metric), *by)

    def last_at(self, metric: Metric, *by: str) -> str:
        """The same at each point of a graph, of programs that ran then."""
        return self.latest(self.series(metric), *by, window=None)

    def last_speedup(self, metric: Metric) -> str:
        """The speedup of the newest execution, where it is known."""
        return self.latest(self.present_or_past(metric))

    def quantile(self, quantile: float, metric: Metric, *by: str, whole: bool = False) -> str:
        """A quantile of a histogram's observations.

        Args:
            quantile: from 0 to 1.
            metric: the histogram.
            by: labels.
            whole: count what a series appears with, too. It takes five times as long: for one
                function.
        """
        buckets = self._recent(metric, "le", *by, part="bucket", whole=whole)
        return f"histogram_quantile({quantile:g}, {buckets})"

    def mean(self, metric: Metric, *by: str) -> str:
        """The mean of a histogram's observations, of those that a series appears with, too."""
        count = self._recent(metric, *by, part="count", whole=True)
        return f"{self._recent(metric, *by, part='sum', whole=True)} / ({count} > 0)"

    def _recent(self, metric: Metric, *by: str, part: str, whole: bool) -> str:
        if whole:
            return self.growth(metric, *by, part=part, window=self.window)
        return self.rate(metric, *by, part=part)

    def average(self, metric: Metric, *by: str) -> str:
        """The sum of a gauge, averaged over the window of a rate that it is compared with."""
        average = f"avg_over_time({self.series(metric)}[{self.window}])"
        return f"{_sum(by)} ({self.live(average)})"

    def busy_share(self, *by: str, spent: Metric = metrics.WORKER_BUSY) -> str:
        """The share of the workers' time that is spent in the function, or there on a CPU."""
        return share(self.rate(spent, *by), self.rate(metrics.WORKER_AVAILABLE, *by))

    def busy_workers(self, *by: str, spent: Metric = metrics.WORKER_BUSY) -> str:
        """How many workers' worth of time is spent in the function, or there on a CPU."""
        return f"{self.average(metrics.WORKERS, *by)} * {self.busy_share(*by, spent=spent)}"

    def idle_workers(self, *by: str) -> str:
        """How many workers' worth of time is not spent in the function."""
        return f"{self.average(metrics.WORKERS, *by)} * (1 - {self.busy_share(*by)})"

    def wasted(self, *by: str) -> str:
        """Seconds that workers took part, and were not in the function."""
        busy = self.growth(metrics.WORKER_BUSY, *by)
        return f"clamp_min({self.growth(metrics.WORKER_AVAILABLE, *by)} - {busy}, 0)"

    def failed_share(self, *by: str, window: str) -> str:
        """How many of the items fail; 1 where chunks fail as a whole, and so are not processed."""
        failed = self.growth(metrics.ITEMS_FAILED, *by, window=window)
        processed = self.growth(metrics.ITEMS_PROCESSED, *by, window=window)
        return f"clamp_max({failed} / {processed}, 1)"

    def progress(self, *by: str) -> str:
        """How much of the input is done, of executions in progress whose input's length is known.

        Empty where nothing runs.
        """
        completed = self.total(metrics.ITEMS_COMPLETED, *by)
        return share(completed, self.total(metrics.ITEMS_EXPECTED, *by))

    def time_left(self, *by: str) -> str:
        """Seconds until all items are done at the present rate; empty where nothing runs."""
        expected = self.total(metrics.ITEMS_EXPECTED, *by)
        completed = self.total(metrics.ITEMS_COMPLETED, *by)
        pace = self.total(metrics.THROUGHPUT, *by)
        return f"clamp_min(({expected} > 0) - {completed}, 0) / ({pace} > 0)"

    def age(self, metric: Metric, *by: str, window: str = VIEW, **matchers: str) -> str:
        """Seconds since the newest of some timestamps, those of programs that have ended too."""
        return f"time() - max{_by(by)} ({self.past(metric, window, **matchers)})"

    def present_or_past(self, metric: Metric, window: str = VIEW) -> str:
        """A gauge that may become unknown: its value now, or the last one of an ended program."""
        running = self.series(metrics.LAST_COMPLETION)
        past = self.past(metric, window)
        return f"({self.series(metric)} or {past} unless ignoring (status) {running})"

    def speedup_share(self, *by: str) -> str:
        """The measured share of the estimated speedup, of each function's last execution.

        1 where it is all of it, or more.
        """
        measured = self.present_or_past(metrics.MEASURED_SPEEDUP)
        estimated = self.present_or_past(metrics.ESTIMATED_SPEEDUP)
        reached = self.latest(f"({measured} / ({estimated} > 1))", "function")
        return f"avg{_by(by)} (clamp_max({reached}, 1))"


def duration(seconds: float) -> str:
    """Write seconds as Prometheus does.

    Example:
        >>> duration(900), duration(86_400), duration(0.25)
        ('15m', '1d', '250ms')
    """
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds // size:.0f}{unit}"
    return f"{1000 * seconds:.0f}ms"


def grown(series: str, window: str, begins: str = "") -> str:
    """Growth of a counter over a range, for each series.

    Not increase(): that needs two values in the range, so it misses what a series appears with
    (programs that end before their second scrape, the first push of a job), and it extrapolates to
    fractions. Here a series that was not there before the range counts in full, and one that was
    there counts from its last value before. Only where a counter was reset within the range, by
    another program under the same labels, increase() is the better answer.

    Args:
        series: of the counter.
        window: the range.
        begins: what has to hold for a series that was not there before to count; empty for
            nothing. After a long outage of Prometheus, series are found again that are not new.
    """
    now = f"last_over_time({series}[{window}])"
    before = f"last_over_time({series}[{BEFORE}] offset {window})"
    least = f"min_over_time({series}[{window}])"
    appears = f"({now} {begins})" if begins else now
    return (
        f"(({now} - ({before} <= {least})) or {appears}) unless resets({series}[{window}]) > 0 "
        f"or increase({series}[{window}])"
    )


def share(part: str, whole: str) -> str:
    """How much of a whole its part is; empty where there is no whole.

    Never above 1: two rates, or two sums of programs that end, are not of the very same moments.
    """
    return f"clamp_max({part} / ({whole} > 0), 1)"


def top(count: int, query: str) -> str:
    """Keep the largest; a graph of a hundred lines shows none of them."""
    return f"topk({count}, {query})"


def or_zero(query: str) -> str:
    """Show 0 where there is nothing, instead of no data."""
    return f"{query} or vector(0)"


def _sum(by: tuple[str, ...]) -> str:
    return f"sum{_by(by)}"


def _by(labels: tuple[str, ...]) -> str:
    return f" by ({', '.join(labels)})" if labels else ""
