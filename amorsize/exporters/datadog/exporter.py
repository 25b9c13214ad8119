"""Datadog: metrics, events and service checks of every execution, by DogStatsD or the HTTP API.

::

    hooks ─┬─> TotalsExporter ── observations ──┐
           └─> Storyteller ── events, checks ───┴─> Sender's thread ─┬─> Datagrams ──> agent
                                 snapshot(): counts, gauges ─────────┤
                                                                     └─> Api (events, checks)
"""

from __future__ import annotations

import functools
import logging
import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from amorsize.errors import InvalidTypeError, InvalidValueError, MissingExtraError
from amorsize.exporters.base import enable_once, in_child_process
from amorsize.exporters.changes import Changes, ObservingNumbers
from amorsize.exporters.datadog.api import Api
from amorsize.exporters.datadog.datagrams import Datagrams
from amorsize.exporters.datadog.events import (
    CHECK,
    KINDS,
    Check,
    Event,
    Storyteller,
    cut,
    datagram_size,
    make_check,
)
from amorsize.exporters.metrics import LAST_ACTIVITY, Metric, closed_label
from amorsize.exporters.prometheus.push import Interval
from amorsize.exporters.sender import Sender
from amorsize.exporters.series import Labels
from amorsize.exporters.totals import TotalsExporter, status_of
from amorsize.exporters.user_totals import DOTTED_NAMESPACE
from amorsize.hooks import HookContext

if TYPE_CHECKING:
    from datadog.dogstatsd.base import DogStatsd

logger = logging.getLogger(__name__)

Path: TypeAlias = str | os.PathLike[str]

GAUGE_SECONDS = 10.0
"""An agent makes one point of a gauge in this time, and none where it was told nothing."""

LINGER_SECONDS = 1.0
"""How long messages wait for others, to go out together."""

TAG_BYTES = 200
"""Datadog cuts tags at 200 characters. In bytes, so that a line never outgrows a datagram."""

CONSTANT_TAGS_BYTES = 500

_NOT_IN_TAGS = re.compile(r"[^\w\-:/.]|:$")

_METHODS = ("count", "gauge", "distribution", "event", "service_check", "flush_buffered_metrics")
_WHERE_VARIABLES = ("DD_DOGSTATSD_URL", "DD_AGENT_HOST", "DD_DOGSTATSD_PORT")

_LENT_TEXT_BYTES = 6000
"""Of an event, where a lent client does not say how much it adds to it."""

_CANCELLED_SECONDS = 0.5
"""How long the end of a cancelled run waits for what is delivered."""


def enable_datadog(
    *,
    host: str | None = None,
    port: int | None = None,
    socket_path: Path | None = None,
    tags: Sequence[str] = (),
    events: Sequence[str] = ("error", "worker_death"),
    service_check: bool = True,
    client: DogStatsd | None = None,
    api_key: str | None = None,
    api_host: str | None = None,
) -> DatadogExporter:
    """Send metrics, events and a service check of every ``execute()`` to Datadog.

    They go to a Datadog agent, by DogStatsD. Where no agent is configured, neither here nor by
    ``DD_DOGSTATSD_URL``, ``DD_AGENT_HOST`` or ``DD_DOGSTATSD_PORT``, and there is an API key, the
    events and the service check go to the HTTP API, and there are no metrics. With neither, the
    agent is taken to listen on UDP port 8125 of this machine.

    ``DD_ENV``, ``DD_SERVICE``, ``DD_VERSION``, ``DD_TAGS`` and ``DATADOG_TAGS`` become tags.

    Args:
        host: where the agent listens for UDP.
        port: its port; None for 8125.
        socket_path: the agent's Unix socket, instead of the two; ``unix://``,
            ``unixgram://`` or ``unixstream://`` may stand before it.
        tags: further tags of all that is sent, mostly as ``name:value``.
        events: what makes an event: ``"error"`` (failures, timeouts, cancellations),
            ``"worker_death"``, ``"start"``, ``"completed"``.
        service_check: whether the check ``amorsize.execution`` tells how each execution ended:
            OK; CRITICAL after an error or a timeout; nothing after a cancellation.
        client: a ``DogStatsd`` client to use as it is, instead of one of the exporter's own.
        api_key: for the HTTP API; None for what ``DD_API_KEY`` says.
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
    settings = dict(locals())
    return enable_once(DatadogExporter, settings, lambda: DatadogExporter(**settings))


class DatadogExporter(TotalsExporter):
    """Sends what :func:`enable_datadog` says; arguments and errors are the same.

    Make one yourself to ``attach()`` it to a manager of your own.
    """

    name = "datadog"

    def __init__(
        self,
        *,
        host: str | None = None,
        port: int | None = None,
        socket_path: Path | None = None,
        tags: Sequence[str] = (),
        events: Sequence[str] = ("error", "worker_death"),
        service_check: bool = True,
        client: DogStatsd | None = None,
        api_key: str | None = None,
        api_host: str | None = None,
    ) -> None:
        try:
            import datadog.dogstatsd  # noqa: F401  # it is imported here to say if it is missing
        except ImportError:
            raise MissingExtraError("The Datadog exporter", "datadog", "datadog") from None
        where = _check_where(host, port, socket_path, client)
        self._kinds = _check_events(events)
        self._checks = bool(service_check)
        own_tags = _check_tags(tags)
        configured = bool(where) or client is not None
        configured = configured or any(os.environ.get(name) for name in _WHERE_VARIABLES)
        key = os.environ.get("DD_API_KEY") or None if api_key is None else api_key
        self._api: Api | None = None
        self._datagrams: Datagrams | None = None
        self._lent = client
        if api_host is not None and (configured or key is None):
            raise InvalidValueError(
                "api_host is for programs without an agent: it needs api_key, or DD_API_KEY, and "
                f"neither host, port, socket_path, client nor {', '.join(_WHERE_VARIABLES)}"
            )
        if key is not None and not configured:
            self._api = Api(key, api_host, os.environ)
            if api_key is None:
                logger.warning(
                    "DD_API_KEY is set, and no agent is configured: Datadog gets events and "
                    "service checks, and no metrics. For metrics set DD_AGENT_HOST, or pass host="
                )
        elif client is None and not in_child_process():
            self._datagrams = Datagrams(**where)
        if self._datagrams is not None:
            own_tags = _with_environment(own_tags, self._datagrams.constant_tags, ["DD_TAGS"])
        elif self._api is not None:
            own_tags = _with_environment(own_tags, [], ["DD_TAGS", "DATADOG_TAGS"])
        self._tags = own_tags
        super().__init__()
        self._changes = Changes()
        self._stories: dict[Any, Storyteller] = {}
        self._batch: object = None  # what the datagrams that wait were written for
        self._dropped = 0
        self._sender: Sender[Any]
        self._interval: Interval | None = None
        if self._api is not None:
            self._sender = self.new_sender(self._api.send, batch_items=1)
        else:
            self._numbers = ObservingNumbers(self._observed)
            # An agent's restart takes a while; what a lent client did with a message is its secret.
            attempts = 20 if self._lent is None else 1
            self._sender = self.new_sender(
                self._send, linger_seconds=LINGER_SECONDS, attempts=attempts
            )
            self._interval = Interval(GAUGE_SECONDS, lambda: bool(self._runs), self._renew)

    def pre_execute(self, context: HookContext) -> None:
        super().pre_execute(context)
        self._tell(self._story(context).begun(context))
        if self._interval is not None:
            self._interval.wake()
            self._sender.put(_Wake())

    def on_chunk_complete(self, context: HookContext) -> None:
        super().on_chunk_complete(context)
        self._tell_shares(context)

    def on_error(self, context: HookContext) -> None:
        super().on_error(context)
        self._tell_shares(context)
        self._tell(self._story(context).failed(context))

    def on_worker_start(self, context: HookContext) -> None:
        super().on_worker_start(context)
        self._wake()

    def post_execute(self, context: HookContext) -> None:
        super().post_execute(context)
        status = status_of(context)
        story = self._story(context)
        self._stories.pop(context.metadata.get("execution_id"), None)
        self._tell(story.ended(context, status))
        if self._checks:
            self._tell(make_check(context, status, self._run_tags(context)))
        if status == "cancelled":
            self.flush(_CANCELLED_SECONDS)  # SIGTERM may be about to end the process

    def flush(self, timeout: float = 1.0) -> bool:
        """Send the present numbers, and what waits, within ``timeout`` seconds.

        Returns:
            Whether it was sent. An agent on UDP does not say what it got.
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

    def _tell(self, message: Event | Check | None) -> None:
        if message is not None:
            self._sender.put(message)

    def _observed(self, metric: Metric, labels: Labels, value: float) -> None:
        self._sender.put((metric, labels, value))

    def _tell_shares(self, context: HookContext) -> None:
        """Tell a chunk's own histograms; counters and gauges are among the totals."""
        shares = context.metadata.get("user_metrics")
        if shares is None or self._api is not None:
            return
        for name, share in shares.items():
            if share["kind"] == "histogram" and share["calls"]:
                self._sender.put(_Share(name, self._run_tags(context), share))

    def _run_tags(self, context: HookContext) -> list[str]:
        function = self._function_label(context.metadata.get("function"))
        executor = closed_label("executor", context.metadata.get("executor_type"))
        return [*_label_tags(("function", "executor"), (function, executor)), *self._tags]

    def _story(self, context: HookContext) -> Storyteller:
        execution_id = context.metadata.get("execution_id")
        story = self._stories.get(execution_id)
        if story is None:
            story = Storyteller(self._kinds, self._run_tags(context))
            self._stories[execution_id] = story
        return story

    def _send(self, batch: list[Any]) -> None:
        """Send a batch, which may be one that could not be sent before."""
        if self._lent is not None:
            before = self._lent.packets_dropped
            self._write(self._lent, batch, [_LENT_TEXT_BYTES] * len(batch))
            self._dropped += max(0, self._lent.packets_dropped - before)
            return
        datagrams = self._datagrams
        assert datagrams is not None
        if batch[0] is not self._batch:
            rooms = [
                datagrams.limit - datagrams.length(functools.partial(_write_event, item, ""))
                if isinstance(item, Event)
                else 0
                for item in batch
            ]
            datagrams.write(lambda client: self._write(client, batch, rooms))
            self._batch = batch[0]
        datagrams.send()

    def _write(self, client: DogStatsd, batch: list[Any], rooms: list[int]) -> None:
        """Write a batch and, with it, what changed.

        Args:
            client: writes it.
            batch: what was put.
            rooms: how many bytes the text of each event may have.
        """
        all_gauges = False
        for item, room in zip(batch, rooms, strict=True):
            match item:
                case _Wake():
                    all_gauges = all_gauges or item.all_gauges
                case Event():
                    # The length is written, too: four digits where it was one.
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
            series = {}  # nothing ran yet, and there is nothing to say
        for metric, labels, grown in self._changes.growth(series):
            client.count(metric.dotted, grown, tags=self._tags_of(metric, labels), sample_rate=1)
        for metric, labels, value in self._changes.gauges(series, changed=not all_gauges):
            client.gauge(metric.dotted, value, tags=self._tags_of(metric, labels), sample_rate=1)
        client.flush_buffered_metrics()

    def _tags_of(self, metric: Metric, labels: Labels) -> list[str]:
        return [*_label_tags(metric.labels, labels), *self._tags]


@dataclass(eq=False, slots=True)
class _Wake:
    """Has the sender look for changes; all gauges are told again where it says so."""

    all_gauges: bool = False


@dataclass(eq=False, slots=True)
class _Share:
    """What a chunk adds to one of the user's histograms."""

    name: str
    tags: list[str]
    share: Any


def _write_event(event: Event, text: str, client: DogStatsd) -> None:
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
    # As distributions: the least of the chunks' least values is right over any time and tags.
    client.distribution(f"{name}.min", item.share["min"], tags=item.tags, sample_rate=1)
    client.distribution(f"{name}.max", item.share["max"], tags=item.tags, sample_rate=1)


@functools.lru_cache(maxsize=4096)
def _label_tags(names: Labels, values: Labels) -> tuple[str, ...]:
    return tuple(_tag(f"{name}:{value}") for name, value in zip(names, values, strict=True))


def _tag(tag: str) -> str:
    """Write a tag so that Datadog takes it: one that it would cut still differs from others."""
    tag = _NOT_IN_TAGS.sub("_", tag)  # as the client does, in events and checks since 0.56
    if datagram_size(tag) <= TAG_BYTES:
        return tag
    digest = f"-{zlib.crc32(tag.encode()):08x}"
    return cut(tag, TAG_BYTES - len(digest), datagram_size) + digest


def _check_where(host: object, port: object, socket_path: object, client: object) -> dict[str, Any]:
    """Check where the agent is, and return what was said of it."""
    where = {"host": host, "port": port, "socket_path": socket_path}
    given = {name: value for name, value in where.items() if value is not None}
    if client is not None:
        missing = [method for method in _METHODS if not callable(getattr(client, method, None))]
        if missing:
            raise InvalidTypeError(
                "client must be a datadog.dogstatsd.DogStatsd, or None; got an object of type "
                f"{type(client).__name__} without {', '.join(missing)}"
            )
        if given:
            raise InvalidValueError(
                f"pass {' and '.join(given)}, or client, not both: it knows where its agent is"
            )
    if socket_path is not None:
        if len(given) > 1:
            raise InvalidValueError("pass socket_path, or host and port, not both")
        if not isinstance(socket_path, str | os.PathLike):
            raise InvalidTypeError(f"socket_path must be a path, or None; got {socket_path!r}")
        given["socket_path"] = os.fspath(socket_path)
    if host is not None:
        if not isinstance(host, str):
            raise InvalidTypeError(f"host must be a string, or None; got {host!r}")
        if not host:
            raise InvalidValueError("host must not be empty; leave it out for this machine")
    if port is not None:
        if not isinstance(port, int) or isinstance(port, bool):
            raise InvalidTypeError(f"port must be a number, or None; got {port!r}")
        if not 1 <= port <= 65535:
            raise InvalidValueError(f"port must be from 1 to 65535, or None for 8125; got {port}")
    return given


def _check_events(events: object) -> tuple[str, ...]:
    known = ", ".join(repr(kind) for kind in KINDS)
    if isinstance(events, str) or not isinstance(events, Iterable):
        raise InvalidTypeError(f"events must be several of {known}; got {events!r}")
    kinds = tuple(events)
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise InvalidValueError(f"events must be several of {known}; got {unknown[0]!r}")
    return kinds


def _check_tags(tags: object) -> list[str]:
    if isinstance(tags, (str, Mapping)) or not isinstance(tags, Iterable):
        raise InvalidTypeError(f"tags must be several strings like 'team:data'; got {tags!r}")
    checked = list(tags)
    for tag in checked:
        if not isinstance(tag, str):
            raise InvalidTypeError(f"tags must be strings like 'team:data'; got {tag!r} among them")
        if not tag:
            raise InvalidValueError("tags must not be empty; got '' among them")
    return [_NOT_IN_TAGS.sub("_", tag) for tag in checked]


def _with_environment(
    tags: list[str], constant: list[str], environment: Sequence[str]
) -> list[str]:
    """Add the tags of environment variables that the client does not read, each once."""
    for variable in environment:
        tags = [
            *tags,
            *_check_tags(filter(None, re.split(r"[,\s]+", os.environ.get(variable, "")))),
        ]
    tags = [tag for tag in dict.fromkeys(tags) if tag not in constant]
    size = sum(datagram_size(tag) + 1 for tag in [*tags, *constant])
    if size > CONSTANT_TAGS_BYTES:
        raise InvalidValueError(
            f"tags, with those of the environment, have {size} bytes; at most "
            f"{CONSTANT_TAGS_BYTES} leave room for metrics in a datagram"
        )
    return tags
