"""Datadog: metrics, events and service checks of every execution, by DogStatsD or the HTTP API.

::

    hooks ─┬─> TotalsExporter ── observations ──┐
           └─> EventBuilder ── events, checks ──┴─> Sender's thread ─┬─> Datagrams ──> agent
                                 snapshot(): counts, gauges ─────────┤
                                                                     └─> Api (events, checks)
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amorsize.errors import MissingExtraError
from amorsize.exporters.base import in_child_process
from amorsize.exporters.changes import Changes, observed_histograms
from amorsize.exporters.datadog.api import Api
from amorsize.exporters.datadog.datagrams import Datagrams
from amorsize.exporters.datadog.events import (
    CHECK,
    Check,
    DatadogEvent,
    EventBuilder,
    datagram_size,
    make_check,
)
from amorsize.exporters.datadog.settings import (
    NOT_IN_TAGS,
    DatadogSettings,
    add_environment_tags,
)
from amorsize.exporters.delivery import CANCELLED_SECONDS, Interval
from amorsize.exporters.metrics import LAST_ACTIVITY, Metric, closed_label
from amorsize.exporters.sender import Sender
from amorsize.exporters.series import Labels
from amorsize.exporters.settings import by_keywords, constructor, enable_with
from amorsize.exporters.totals import TotalsExporter, status_label
from amorsize.exporters.user_totals import DOTTED_NAMESPACE
from amorsize.hooks import HookContext
from amorsize.workers.names import cut
from amorsize.workers.user_metrics import UserMetrics

if TYPE_CHECKING:
    from datadog.dogstatsd.base import DogStatsd

logger = logging.getLogger(__name__)

GAUGE_SECONDS = 10.0
"""The interval of an agent, which makes a point of each gauge that it received in it."""

LINGER_SECONDS = 1.0
"""How long messages wait to be sent together."""

TAG_BYTES = 200
"""Datadog cuts tags at 200 characters. In bytes, so that a line never outgrows a datagram."""

_CLIENT_TEXT_BYTES = 6000
"""Of an event, where a client of the caller's does not say how much it adds to it."""


@by_keywords(DatadogSettings)
def enable_datadog(settings: DatadogSettings) -> DatadogExporter:
    """Send metrics, events and a service check of every ``execute()`` to Datadog.

    They go to a Datadog agent, by DogStatsD. Where no agent is configured, neither here nor by
    ``DD_DOGSTATSD_URL``, ``DD_AGENT_HOST`` or ``DD_DOGSTATSD_PORT``, and there is an API key, the
    events and the service check go to the HTTP API, and there are no metrics. With neither, the
    agent is taken to listen on UDP port 8125 of this machine.

    ``DD_ENV``, ``DD_SERVICE``, ``DD_VERSION``, ``DD_TAGS`` and ``DATADOG_TAGS`` become tags.

    Args:
        host: the agent's, for UDP.
        port: its port; None for 8125.
        socket_path: the agent's Unix socket, instead of the two; ``unix://``,
            ``unixgram://`` or ``unixstream://`` may stand before it.
        tags: further tags of all messages, mostly as ``name:value``.
        events: the kinds of events to send: ``"error"`` (failures, timeouts, cancellations),
            ``"worker_death"``, ``"start"``, ``"completed"``.
        service_check: whether to send the check ``amorsize.execution`` at the end of each
            execution: OK; CRITICAL after an error or a timeout; nothing after a cancellation.
        client: a ``DogStatsd`` client, used as it is and not closed; None for one of the
            exporter's own.
        api_key: for the HTTP API; None for that of ``DD_API_KEY``.
        api_host: the URL of the HTTP API; None for that of the site in ``DD_SITE``, or of
            datadoghq.com.

    Returns:
        The exporter; its ``close()`` ends it. Called again with the same arguments, the same one.

    Raises:
        InvalidTypeError, InvalidValueError: an argument, or an environment variable, is wrong. No
            message shows the key.
        MissingExtraError: the package datadog is not installed.
        ExporterError: it is enabled already with other arguments.

    Example:
        >>> import amorsize
        >>> with amorsize.enable_datadog(tags=["team:data"]) as exporter:
        ...     results = amorsize.execute(abs, [-1, 2])
    """
    return enable_with(DatadogExporter, settings)


class DatadogExporter(TotalsExporter):
    """Sends to Datadog. Arguments and errors are those of :func:`enable_datadog`.

    Make one yourself to ``attach()`` it to a manager of your own.
    """

    name = "datadog"

    @constructor(DatadogSettings)
    def __init__(self, settings: DatadogSettings) -> None:
        try:
            import datadog.dogstatsd  # noqa: F401  # here, to say so where it is missing
        except ImportError:
            raise MissingExtraError("The Datadog exporter", "datadog", "datadog") from None
        self._kinds = settings.events
        self._checks = bool(settings.service_check)
        self._client = settings.client
        self._api: Api | None = None
        self._datagrams: Datagrams | None = None
        tags: Sequence[str] = settings.tags
        if settings.uses_api:
            self._api = Api(settings)
            tags = add_environment_tags(tags, [], ["DD_TAGS", "DATADOG_TAGS"])
            if settings.api_key is None:
                logger.warning(
                    "DD_API_KEY is set, and no agent is configured: Datadog receives events and "
                    "service checks, but no metrics. For metrics, set DD_AGENT_HOST or pass host="
                )
        elif settings.client is None and not in_child_process():
            self._datagrams = Datagrams(**settings.agent)
            tags = add_environment_tags(tags, self._datagrams.constant_tags, ["DD_TAGS"])
        self._tags = tags
        super().__init__()
        self._changes = Changes()
        self._builders: dict[Any, EventBuilder] = {}
        self._batch: object = None  # the first item of the batch that the waiting datagrams hold
        self._dropped = 0
        self._sender: Sender[Any]
        self._interval: Interval | None = None
        if self._api is not None:
            self._sender = self.new_sender(self._api.send, batch_items=1)
        else:
            # An agent's restart takes a while. A caller's client reports nothing.
            attempts = 20 if self._client is None else 1
            self._sender = self.new_sender(
                self._send, linger_seconds=LINGER_SECONDS, attempts=attempts
            )
            self._interval = Interval(GAUGE_SECONDS, lambda: bool(self._runs), self._renew)

    def pre_execute(self, context: HookContext) -> None:
        super().pre_execute(context)
        self._put(self._builder_of(context).started(context))
        if self._interval is not None:
            self._interval.wake()
            self._sender.put(_Wake())

    def on_error(self, context: HookContext) -> None:
        super().on_error(context)
        self._put(self._builder_of(context).failed(context))

    def on_worker_start(self, context: HookContext) -> None:
        super().on_worker_start(context)
        self._wake()

    def post_execute(self, context: HookContext) -> None:
        super().post_execute(context)
        status = status_label(context)
        builder = self._builder_of(context)
        self._builders.pop(context.metadata.get("execution_id"), None)
        self._put(builder.ended(context, status))
        if self._checks:
            self._put(make_check(context, status, builder.tags))
        if status == "cancelled":
            self.flush(CANCELLED_SECONDS)

    def flush(self, timeout: float = 1.0) -> bool:
        """Send the present numbers, and all waiting messages, within ``timeout`` seconds.

        Returns:
            Whether they were sent. An agent on UDP confirms nothing.
        """
        self._wake()
        return super().flush(timeout)

    def counts(self) -> tuple[int, int]:
        lost, errors = super().counts()
        refused = 0 if self._datagrams is None else self._datagrams.refused
        return lost + self._dropped + refused, errors

    def release(self) -> None:
        if self._interval is not None:
            self._interval.close()
        self.abandon()

    def abandon(self) -> None:
        if self._datagrams is not None:
            self._datagrams.close()

    def _state(self) -> str:
        if not self.active:
            return super()._state()
        where = self._api or self._datagrams
        return "a client that was passed" if where is None else where.destination

    def _wake(self) -> None:
        if self.active and self._api is None:
            self._sender.put(_Wake())

    def _renew(self) -> None:
        self._sender.put(_Wake(all_gauges=True))

    def _put(self, message: DatadogEvent | Check | None) -> None:
        if message is not None:
            self._sender.put(message)

    def _observed(self, metric: Metric, labels: Labels, value: float, context: HookContext) -> None:
        if self._api is None:
            self._sender.put((metric, labels, value))

    def _user_observed(self, shares: UserMetrics, labels: Labels) -> None:
        if self._api is None:  # counters and gauges are among the totals
            for name, share in observed_histograms(shares):
                self._sender.put(_Share(name, self._run_tags(labels), share))

    def _run_tags(self, labels: Labels) -> list[str]:
        return [*_label_tags(("function", "executor"), labels), *self._tags]

    def _builder_of(self, context: HookContext) -> EventBuilder:
        execution_id = context.metadata.get("execution_id")
        builder = self._builders.get(execution_id)
        if builder is None:
            function = self._function_label(context.metadata.get("function"))
            executor = closed_label("executor", context.metadata.get("executor_type"))
            builder = EventBuilder(self._kinds, self._run_tags((function, executor)))
            self._builders[execution_id] = builder
        return builder

    def _send(self, batch: list[Any]) -> None:
        """Send a batch, perhaps not for the first time."""
        if self._client is not None:
            before = self._client.packets_dropped
            self._write(self._client, batch, [_CLIENT_TEXT_BYTES] * len(batch))
            self._dropped += max(0, self._client.packets_dropped - before)
            return
        datagrams = self._datagrams
        assert datagrams is not None
        if batch[0] is not self._batch:
            rooms = [
                datagrams.limit - datagrams.length(functools.partial(_write_event, item, ""))
                if isinstance(item, DatadogEvent)
                else 0
                for item in batch
            ]
            datagrams.write(lambda client: self._write(client, batch, rooms))
            self._batch = batch[0]
        datagrams.send()

    def _write(self, client: DogStatsd, batch: list[Any], rooms: list[int]) -> None:
        """Write a batch, and the changes of the totals.

        Args:
            client: writes it.
            batch: the items that were put.
            rooms: the most bytes of each event's text.
        """
        all_gauges = False
        for item, room in zip(batch, rooms, strict=True):
            match item:
                case _Wake():
                    all_gauges = all_gauges or item.all_gauges
                case DatadogEvent():
                    # The message holds the length, too: four digits where it was one.
                    _write_event(item, item.text(room - 3, datagram_size), client)
                case Check():
                    _write_check(item, client)
                case _Share():
                    _write_share(item, client)
                case metric, labels, value:
                    client.distribution(
                        metric.dotted, value, tags=self._tags_of(metric, labels), sample_rate=1
                    )
        series = self.snapshot()
        if not series.get(LAST_ACTIVITY):
            series = {}  # nothing has run yet
        for metric, labels, grown in self._changes.growth(series):
            client.count(metric.dotted, grown, tags=self._tags_of(metric, labels), sample_rate=1)
        for metric, labels, value in self._changes.gauges(series, changed=not all_gauges):
            client.gauge(metric.dotted, value, tags=self._tags_of(metric, labels), sample_rate=1)
        client.flush_buffered_metrics()

    def _tags_of(self, metric: Metric, labels: Labels) -> list[str]:
        return [*_label_tags(metric.labels, labels), *self._tags]


@dataclass(eq=False, slots=True)
class _Wake:
    """Has the sender look for changes; ``all_gauges`` sends unchanged gauges, too."""

    all_gauges: bool = False


@dataclass(eq=False, slots=True)
class _Share:
    """A chunk's observations for one of the user's histograms."""

    name: str
    tags: list[str]
    share: Any


def _write_event(event: DatadogEvent, text: str, client: DogStatsd) -> None:
    client.event(
        event.title,
        text,
        alert_type=event.alert_type,
        aggregation_key=event.aggregation_key,
        date_happened=event.timestamp,
        tags=list(event.tags),
    )


def _write_check(check: Check, client: DogStatsd) -> None:
    client.service_check(
        CHECK,
        client.OK if check.ok else client.CRITICAL,
        tags=list(check.tags),
        timestamp=check.timestamp,
        message=check.message,
    )


def _write_share(item: _Share, client: DogStatsd) -> None:
    name = f"{DOTTED_NAMESPACE}{item.name}"
    client.count(f"{name}.count", item.share["calls"], tags=item.tags, sample_rate=1)
    client.count(f"{name}.sum", item.share["sum"], tags=item.tags, sample_rate=1)
    # As distributions: the minimum of the chunks' minima is right over any time and tags.
    client.distribution(f"{name}.min", item.share["min"], tags=item.tags, sample_rate=1)
    client.distribution(f"{name}.max", item.share["max"], tags=item.tags, sample_rate=1)


@functools.lru_cache(maxsize=4096)
def _label_tags(names: Labels, values: Labels) -> tuple[str, ...]:
    return tuple(_tag(f"{name}:{value}") for name, value in zip(names, values, strict=True))


def _tag(tag: str) -> str:
    """Write a tag that Datadog accepts: a tag that it would cut still differs from others."""
    # As the client does, in events and checks since 0.56.
    return cut(NOT_IN_TAGS.sub("_", tag), TAG_BYTES, datagram_size)
