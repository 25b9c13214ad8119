"""CloudWatch: the metrics of every execution, by its API or as lines in a log.

::

    hooks ──> TotalsExporter ── snapshot() ──┐
                   └── observations ──> Collector ──> Sender's thread ─┬─> put_metric_data
                                                                       └─> lines of a stream
"""

from __future__ import annotations

import re
import sys
import time
from collections import deque
from typing import Any

from amorsize.errors import InvalidValueError, MissingExtraError
from amorsize.exporters.base import in_child_process
from amorsize.exporters.changes import observed_histograms
from amorsize.exporters.cloudwatch import emf as embedded
from amorsize.exporters.cloudwatch.data import Collector, requests
from amorsize.exporters.cloudwatch.settings import CloudWatchSettings
from amorsize.exporters.delivery import CANCELLED_SECONDS, Delivery, Interval
from amorsize.exporters.metrics import LAST_ACTIVITY, Metric
from amorsize.exporters.sender import RefusedError
from amorsize.exporters.series import Labels, Series
from amorsize.exporters.settings import by_keywords, constructor, enable_with
from amorsize.exporters.totals import TotalsExporter, status_label
from amorsize.hooks import HookContext
from amorsize.workers.user_metrics import UserMetrics

CONNECT_SECONDS = 3.0
READ_SECONDS = 5.0
"""Timeouts of an attempt of boto3's; its own settings decide how often it retries."""

WAITING_REQUESTS = 100
"""Requests that wait during an outage, beside the newest; more lose the oldest."""

_END_SECONDS = 1.0
"""How long the end of a run waits for a line to be written: in Lambda nothing runs after it."""


@by_keywords(CloudWatchSettings)
def enable_cloudwatch(settings: CloudWatchSettings) -> CloudWatchExporter:
    """Send the metrics of every ``execute()`` to Amazon CloudWatch.

    They are sent at an interval while an execution runs, at its end, and when the program exits.
    boto3 finds the credentials.

    Args:
        namespace: of the metrics.
        region: the AWS region; None for that of ``AWS_DEFAULT_REGION`` or of the AWS
            configuration.
        dimensions: further dimensions of all metrics, at most 27.
        interval: seconds between two calls while an execution runs, 1 or more.
        client: a boto3 client for CloudWatch, used as it is and not closed; None for one of the
            exporter's own.
        emf: True to call no API and write lines of the embedded metric format to standard output,
            for Lambda and for containers whose output goes to CloudWatch Logs; or a stream to
            write them to, which is not closed. boto3 is not needed then.

    Returns:
        The exporter; its ``close()`` ends it. Called again with the same arguments, the same one.

    Raises:
        InvalidTypeError, InvalidValueError: an argument is wrong, or no region is set.
        MissingExtraError: boto3 is not installed.
        ExporterError: it is enabled already with other arguments.

    Example:
        >>> import amorsize, io
        >>> log = io.StringIO()
        >>> with amorsize.enable_cloudwatch(emf=log):
        ...     results = amorsize.execute(abs, [-1, 2])
        >>> "ItemsProcessed" in log.getvalue()
        True
    """
    return enable_with(CloudWatchExporter, settings)


class CloudWatchExporter(TotalsExporter):
    """Sends metrics to CloudWatch. Arguments and errors are those of :func:`enable_cloudwatch`.

    Make one yourself to ``attach()`` it to a manager of your own.
    """

    name = "cloudwatch"

    @constructor(CloudWatchSettings)
    def __init__(self, settings: CloudWatchSettings) -> None:
        self._namespace = settings.namespace
        self._collector = Collector(tuple((settings.dimensions or {}).items()))
        self._emf = settings.emf
        self._client = settings.client
        self._owns_client = self._emf is False and self._client is None and not in_child_process()
        if self._owns_client:
            self._client = _new_client(settings.region)
        super().__init__()
        self._all_gauges = False
        self._waiting: deque[tuple[Any, int]] = deque()
        self._lost = 0
        self._is_stuck = False  # whether the stream hangs: then no end of a run waits for it
        # A stream that fails still fails a second later, and the end of a run waits for it.
        bounds = {} if self._emf is False else {"attempts": 1}
        self._delivery = Delivery(self.new_sender, self._deliver, **bounds)
        self._interval = Interval(settings.interval, lambda: bool(self._runs), self._renew)

    def pre_execute(self, context: HookContext) -> None:
        super().pre_execute(context)
        self._interval.wake()

    def post_execute(self, context: HookContext) -> None:
        super().post_execute(context)
        if status_label(context) == "cancelled":
            self.flush(CANCELLED_SECONDS)
        elif self._emf is not False and not self._is_stuck:
            self._is_stuck = not self.flush(_END_SECONDS)
        else:
            self._delivery.request()

    def flush(self, timeout: float = 1.0) -> bool:
        """Send the present numbers, waiting at most ``timeout`` seconds.

        Returns:
            Whether they were sent.
        """
        self._delivery.request()
        return super().flush(timeout)

    def counts(self) -> tuple[int, int]:
        # The sender's items are requests for a delivery, not data.
        return self._lost + self._collector.out_of_range, self._delivery.errors

    def release(self) -> None:
        self._interval.close()
        with self._lock:
            series = self._totals.copy() | self._user_totals.copy()
            left = self._collector.take(_counters(series))
            self._lost += len(left) + sum(size for _, size in self._waiting)
        if self._owns_client:
            self._client.close()

    def _state(self) -> str:
        return self._namespace if self.active else super()._state()

    def _observed(self, metric: Metric, labels: Labels, value: float, context: HookContext) -> None:
        with self._lock:
            self._collector.observe(metric, labels, value)

    def _user_observed(self, shares: UserMetrics, labels: Labels) -> None:
        with self._lock:
            for name, share in observed_histograms(shares):
                self._collector.add_share(name, labels, share)

    def _renew(self) -> None:
        self._all_gauges = True
        self._delivery.request()

    def _deliver(self) -> None:
        """Send the requests of earlier attempts, and the changes since then."""
        with self._lock:
            all_gauges, self._all_gauges = self._all_gauges, False
        series = self.snapshot()
        if series.get(LAST_ACTIVITY):  # otherwise nothing has run yet
            with self._lock:
                data = self._collector.take(series, all_gauges=all_gauges)
            self._queue(data)
        deliver = self._put if self._emf is False else self._write
        while self._waiting:
            request, size = self._waiting[0]
            try:
                deliver(request)
            except RefusedError:
                self._waiting.popleft()
                self._lost += size
                raise
            self._waiting.popleft()
        self._is_stuck = False

    def _queue(self, data: list[Any]) -> None:
        now = time.time()
        while len(self._waiting) > WAITING_REQUESTS:
            self._lost += self._waiting.popleft()[1]
        if self._emf is False:
            self._waiting.extend((request, len(request)) for request in requests(data, now))
        elif data:
            text = "\n".join(embedded.lines(data, self._namespace, now))
            self._waiting.append((text + "\n", len(data)))

    def _put(self, request: list[dict[str, Any]]) -> None:
        from botocore.exceptions import ClientError, ParamValidationError

        try:
            self._client.put_metric_data(Namespace=self._namespace, MetricData=request)
        except ParamValidationError as error:
            raise RefusedError(f"boto3 refuses the data: {error}") from None
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code = error.response.get("Error", {}).get("Code", "")
            passing = status in (408, 429) or re.search("Throttl|Expired|TimedOut", code)
            if 400 <= status < 500 and not passing:
                raise RefusedError(f"CloudWatch answered {status} ({code})") from None
            raise

    def _write(self, text: str) -> None:
        stream: Any = sys.stdout if self._emf is True else self._emf
        stream.write(text)
        stream.flush()


def _counters(series: Series) -> Series:
    """Leave the gauges out: an old value is no loss."""
    return {row: values for row, values in series.items() if row.kind == "counter"}


def _new_client(region: str | None) -> Any:
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import NoRegionError
    except ImportError:
        raise MissingExtraError("The CloudWatch exporter", "boto3", "cloudwatch") from None
    config = Config(connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS)
    try:
        # A session of its own: the default session belongs to the application.
        return boto3.session.Session().client("cloudwatch", region_name=region, config=config)
    except NoRegionError:
        raise InvalidValueError(
            "no AWS region is set; pass one, such as region='eu-central-1', or set "
            "AWS_DEFAULT_REGION"
        ) from None
