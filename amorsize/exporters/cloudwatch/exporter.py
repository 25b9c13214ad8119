"""CloudWatch: the metrics of every execution, by its API or as lines in a log.

::

    hooks ──> TotalsExporter ── snapshot() ──┐
                   └── observations ──> Collector ──> Sender's thread ─┬─> put_metric_data
                                                                       └─> lines of a stream
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from amorsize.errors import InvalidTypeError, InvalidValueError, MissingExtraError
from amorsize.exporters.base import enable_once, in_child_process
from amorsize.exporters.changes import ObservingNumbers
from amorsize.exporters.cloudwatch import emf as embedded
from amorsize.exporters.cloudwatch.data import (
    DIMENSION_CHARACTERS,
    MAX_DIMENSIONS,
    NAME_CHARACTERS,
    OWN_NAMES,
    Collector,
    Dimensions,
    requests,
)
from amorsize.exporters.metrics import LAST_ACTIVITY, METRICS
from amorsize.exporters.prometheus.push import SENDER_BOUNDS, Interval
from amorsize.exporters.sender import RefusedError
from amorsize.exporters.series import Series
from amorsize.exporters.totals import TotalsExporter, status_of
from amorsize.hooks import HookContext

CONNECT_SECONDS = 3.0
READ_SECONDS = 5.0
"""What an attempt of boto3's may wait; how often it tries is for its own settings to say."""

WAITING_REQUESTS = 100
"""Requests that wait during an outage, beside the newest; beyond them the oldest are lost."""

_END_SECONDS = 1.0
"""How long the end of a run waits for a line to be written: in Lambda nothing runs after it."""

_CANCELLED_SECONDS = 0.5
"""How long the end of a cancelled run waits for what is delivered."""

_OWN_DIMENSIONS = max(len(metric.labels) for metric in METRICS)


class Stream(Protocol):
    """Something to write lines to."""

    def write(self, text: str, /) -> object: ...
    def flush(self) -> object: ...


def enable_cloudwatch(
    *,
    namespace: str = "Amorsize",
    region: str | None = None,
    dimensions: Mapping[str, str] | None = None,
    interval: float = 60.0,
    client: Any = None,
    emf: bool | Stream = False,
) -> CloudWatchExporter:
    """Send the metrics of every ``execute()`` to Amazon CloudWatch.

    They are sent at an interval while an execution runs, at its end, and when the program exits.
    Credentials are boto3's affair: they come from wherever it takes them.

    Args:
        namespace: of the metrics.
        region: the AWS region; None for what ``AWS_DEFAULT_REGION`` or the AWS
            configuration says.
        dimensions: further dimensions of all metrics, at most 27.
        interval: seconds between two sendings while an execution runs, 1 or more.
        client: a boto3 client for CloudWatch to use as it is, instead of one of the exporter's
            own.
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
    settings = dict(locals())
    return enable_once(CloudWatchExporter, settings, lambda: CloudWatchExporter(**settings))


class CloudWatchExporter(TotalsExporter):
    """Sends what :func:`enable_cloudwatch` says; arguments and errors are the same.

    Make one yourself to ``attach()`` it to a manager of your own.
    """

    name = "cloudwatch"

    def __init__(
        self,
        *,
        namespace: str = "Amorsize",
        region: str | None = None,
        dimensions: Mapping[str, str] | None = None,
        interval: float = 60.0,
        client: Any = None,
        emf: bool | Stream = False,
    ) -> None:
        self._namespace = _check_namespace(namespace)
        self._collector = Collector(_check_dimensions(dimensions))
        seconds = _check_interval(interval)
        self._emf = _check_emf(emf, region, client)
        self._client: Any = None
        self._owns_client = False
        if self._emf is None:
            self._client = _check_client(client, region)
            if client is None and not in_child_process():
                self._client = _new_client(region)
                self._owns_client = True
        super().__init__()
        self._numbers = ObservingNumbers(self._collector.observe)
        self._asked = self._all_gauges = False
        self._batch: object = None  # what the last attempt was asked by
        self._ask_lock = threading.RLock()  # a signal handler may ask, too
        self._waiting: deque[tuple[Any, int]] = deque()
        self._lost = 0
        self._is_stuck = False  # the stream: then no end of a run waits for it
        # A stream that fails will not be better in a second, and the end of a run waits for it.
        attempts = {} if self._emf is None else {"attempts": 1}
        self._sender = self.new_sender(self._send, **(SENDER_BOUNDS | attempts))
        self._interval = Interval(seconds, lambda: bool(self._runs), self._renew)

    def pre_execute(self, context: HookContext) -> None:
        super().pre_execute(context)
        self._interval.wake()

    def on_chunk_complete(self, context: HookContext) -> None:
        super().on_chunk_complete(context)
        self._add_shares(context)

    def on_error(self, context: HookContext) -> None:
        super().on_error(context)
        self._add_shares(context)

    def post_execute(self, context: HookContext) -> None:
        super().post_execute(context)
        if status_of(context) == "cancelled":
            self.flush(_CANCELLED_SECONDS)  # SIGTERM may be about to end the process
        elif self._emf is not None and not self._is_stuck:
            self._is_stuck = not self.flush(_END_SECONDS)
        else:
            self._ask()

    def flush(self, timeout: float = 1.0) -> bool:
        """Send the present numbers, waiting at most ``timeout`` seconds.

        Returns:
            Whether they were sent.
        """
        self._ask()
        return super().flush(timeout)

    def counts(self) -> tuple[int, int]:
        # What the sender holds is only that something is to be sent.
        return self._lost + self._collector.out_of_range, self._sender.errors

    def release(self) -> None:
        self._interval.close()
        with self._lock:
            series = self._numbers.copy() | self._user_numbers.copy()
            left = self._collector.take(_counters(series))
            self._lost += len(left) + sum(size for _, size in self._waiting)
        if self._owns_client:
            self._client.close()

    def _state(self) -> str:
        return self._namespace if self.active else super()._state()

    def _add_shares(self, context: HookContext) -> None:
        shares = context.metadata.get("user_metrics")
        if shares is None:
            return
        with self._lock:
            labels = self._run_of(context).labels
            for name, share in shares.items():
                if share["kind"] == "histogram" and share["calls"]:
                    self._collector.add_share(name, labels, share)

    def _ask(self) -> None:
        """Have what changed sent soon. Never waits."""
        with self._ask_lock:
            if self._asked or not self.active:
                return
            self._asked = True
        self._sender.put(object())

    def _renew(self) -> None:
        self._all_gauges = True
        self._ask()

    def _send(self, batch: list[object]) -> None:
        """Send what waits since an earlier attempt, and what changed meanwhile."""
        with self._ask_lock:
            if batch[0] is not self._batch:  # in a further attempt somebody may have asked again
                self._asked, self._batch = False, batch[0]
            all_gauges, self._all_gauges = self._all_gauges, False
        series = self.snapshot()
        if series.get(LAST_ACTIVITY):  # otherwise nothing ran yet, and there is nothing to say
            with self._lock:
                data = self._collector.take(series, all_gauges=all_gauges)
            self._queue(data)
        deliver = self._put if self._emf is None else self._write
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
        if self._emf is None:
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
        assert self._emf is not None
        stream = self._emf()
        stream.write(text)
        stream.flush()


def _counters(series: Series) -> Series:
    """Leave the gauges out: what they said is no loss."""
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
        # A session of our own: the default one belongs to the application.
        return boto3.session.Session().client("cloudwatch", region_name=region, config=config)
    except NoRegionError:
        raise InvalidValueError(
            "no AWS region is set; pass region='eu-central-1', say, or set AWS_DEFAULT_REGION"
        ) from None


def _check_client(client: object, region: object) -> object:
    if region is not None and not isinstance(region, str):
        raise InvalidTypeError(f"region must be a string, or None; got {region!r}")
    if client is None:
        return None
    if not callable(getattr(client, "put_metric_data", None)):
        raise InvalidTypeError(
            'client must be a boto3.client("cloudwatch"), or None; got an object of type '
            f"{type(client).__name__} without put_metric_data"
        )
    if region is not None:
        raise InvalidValueError("pass region, or client, not both: a client has its region")
    return client


def _check_emf(emf: object, region: object, client: object) -> Callable[[], Stream] | None:
    """Check ``emf``; return what finds the stream to write to, or None."""
    if emf is False:
        return None
    if region is not None or client is not None:
        raise InvalidValueError(
            "emf writes to a stream and calls no API: leave region and client out, or emf"
        )
    if emf is True:
        return lambda: sys.stdout  # which may be replaced meanwhile
    if callable(getattr(emf, "write", None)) and callable(getattr(emf, "flush", None)):
        stream: Any = emf
        return lambda: stream
    raise InvalidTypeError(
        f"emf must be True, False, or a stream with write() and flush(); got {emf!r}"
    )


def _check_namespace(namespace: object) -> str:
    if not isinstance(namespace, str):
        raise InvalidTypeError(f"namespace must be a string; got {namespace!r}")
    if not re.fullmatch(r"(?!:)(?!AWS/)[A-Za-z0-9 ._/#:-]{1,255}", namespace):
        raise InvalidValueError(
            "namespace must be 1 to 255 letters, digits and any of ' ._/#:-', and begin neither "
            f"with a colon nor with 'AWS/'; got {namespace!r}"
        )
    if not namespace.strip():
        raise InvalidValueError(f"namespace must not be blank; got {namespace!r}")
    return namespace


def _check_dimensions(dimensions: object) -> Dimensions:
    if dimensions is None:
        return ()
    if not isinstance(dimensions, Mapping):
        raise InvalidTypeError(
            f"dimensions must be a mapping of names to values, or None; got {dimensions!r}"
        )
    most = MAX_DIMENSIONS - _OWN_DIMENSIONS
    if len(dimensions) > most:
        raise InvalidValueError(
            f"dimensions must be {most} at most, which with the metrics' own are "
            f"{MAX_DIMENSIONS}; got {len(dimensions)}"
        )
    for name, value in dimensions.items():
        for text, what, most in (
            (name, "name", NAME_CHARACTERS),
            (value, "value", DIMENSION_CHARACTERS),
        ):
            if not isinstance(text, str):
                raise InvalidTypeError(
                    f"dimensions must map strings to strings; got {name!r}: {value!r}"
                )
            good = text.isascii() and text.isprintable() and text.strip()
            if not good or len(text) > most or (what == "name" and text.startswith(":")):
                raise InvalidValueError(
                    f"the {what} of a dimension must be 1 to {most} printable ASCII characters, a "
                    f"name not beginning with a colon; got {text!r}"
                )
        if name in OWN_NAMES or name == "_aws":
            raise InvalidValueError(
                f"dimensions must not hold {name!r}, which is a name of amorsize's own"
            )
    return tuple(dimensions.items())


def _check_interval(interval: object) -> float:
    if isinstance(interval, bool) or not isinstance(interval, int | float):
        raise InvalidTypeError(f"interval must be seconds; got {interval!r}")
    if not 1 <= interval <= threading.TIMEOUT_MAX:
        raise InvalidValueError(f"interval must be at least 1 second; got {interval!r}")
    return float(interval)
