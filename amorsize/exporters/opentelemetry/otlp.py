"""amorsize's providers, for programs without any: OTLP, as the ``OTEL_*`` variables configure.

Their spans and readings leave by background senders, like those of all other exporters: bounded,
counted, retried, and never waited for. Nothing here affects an application's own providers.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult

from amorsize.errors import ExporterError, InvalidValueError
from amorsize.exporters.opentelemetry.single_attempt import SingleAttempt
from amorsize.exporters.sender import RefusedError, Sender, blank_credentials, describe_error

logger = logging.getLogger(__name__)

NewSender = Callable[..., Sender[Any]]

_PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
_DEFAULTS = {"OTEL_BSP_MAX_QUEUE_SIZE": 2048, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": 512}
_MAX_WAITING_READINGS = 10

PATIENCE: dict[str, Any] = {"attempts": 1000, "retry_seconds": 300.0}
"""How long a batch is repeated. The queue bounds what waits meanwhile: a collector that is started
again within five minutes gets all that the queue had room for."""


def resource() -> Resource:
    """Describe this program: by ``OTEL_SERVICE_NAME``, or else by the name of its file."""
    found = Resource.create()
    if str(found.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        program = os.path.basename(sys.argv[0] if sys.argv else "").removesuffix(".py")
        if program in ("", "-", "-c", "-m", "__main__"):
            program = "python"
        found = found.merge(Resource({SERVICE_NAME: program}))
    return found


class OwnTracing:
    """A tracer provider whose spans leave by background senders.

    Args:
        new_sender: an exporter's ``new_sender``.
        found: the program's provider. One that was made here, and closed since or forked, serves
            again: no other can be set.

    Attributes:
        provider: the provider.

    Raises:
        InvalidValueError: one of the variables is wrong.
        ExporterError: an exporter that they name cannot be made.
    """

    def __init__(self, new_sender: NewSender, found: object = None) -> None:
        exporters = _make_exporters("traces")
        senders = tuple(
            new_sender(
                _Export(exporter, SpanExportResult.SUCCESS),
                capacity=_bound("OTEL_BSP_MAX_QUEUE_SIZE"),
                batch_items=_bound("OTEL_BSP_MAX_EXPORT_BATCH_SIZE"),
                linger_seconds=_milliseconds("OTEL_BSP_SCHEDULE_DELAY", 5000),
                **PATIENCE,
            )
            for exporter in exporters
        )
        self._exporters = exporters
        self.provider = found if isinstance(found, _OwnTracerProvider) else _OwnTracerProvider()
        self.provider.to_senders.has_begun = False
        self.provider.to_senders.senders = senders

    @property
    def has_begun(self) -> bool:
        """Whether a span was begun."""
        return self.provider.to_senders.has_begun

    def close(self) -> None:
        """Stop the exporters; a batch that is being sent is cut off."""
        self.abandon()
        for exporter in self._exporters:
            exporter.shutdown()

    def abandon(self) -> None:
        """Forget, in a forked child, the senders of the parent."""
        self.provider.to_senders.senders = None


class OwnMetrics:
    """A meter provider whose readings leave by background senders; see :class:`OwnTracing`."""

    def __init__(self, new_sender: NewSender) -> None:
        exporters = _make_exporters("metrics")
        self._exporters = exporters
        readers = []
        for exporter in exporters:
            sender = new_sender(
                _ExportEach(exporter),
                capacity=_MAX_WAITING_READINGS,
                batch_items=1,
                **PATIENCE,
            )
            readers.append(PeriodicExportingMetricReader(_MetricsToSender(exporter, sender)))
        self.provider = _OwnMeterProvider(
            metric_readers=readers, resource=resource(), shutdown_on_exit=False
        )

    def collect(self) -> None:
        """Take a last reading, to be sent."""
        self.provider.force_flush()

    def close(self) -> None:
        """Stop reading, and the exporters; a batch that is being sent is cut off."""
        self.abandon()
        self.provider.shutdown()
        for exporter in self._exporters:
            exporter.shutdown()

    def abandon(self) -> None:
        """Forget, in a forked child, the senders of the parent."""
        self.provider.amorsize_closed = True


class _Export:
    """Sends a batch, and raises the failure that the exporter only logs."""

    def __init__(self, exporter: Any, success: object) -> None:
        self._exporter = exporter
        self._success = success

    def __call__(self, batch: Any) -> None:
        # Instrumented HTTP clients make no spans of the sending of spans.
        suppressed = otel_context.set_value(otel_context._SUPPRESS_INSTRUMENTATION_KEY, True)
        token = otel_context.attach(suppressed)
        exporter = self._exporter
        try:
            with _library_logs.kept() as logged:
                result = exporter.export(batch)
        finally:
            otel_context.detach(token)
        if result is self._success:
            return
        text = blank_credentials(logged[0]) if logged else "the exporter reported a failure"
        if isinstance(exporter, _Otlp):
            # Without a request, the batch itself is at fault: too large, or not to be encoded.
            raise exporter.attempt.failure or RefusedError(text)
        raise ConnectionError(text)


class _Otlp:
    """An OTLP exporter of the SDK's, one attempt per export."""

    def __init__(self, attempt: SingleAttempt) -> None:
        self.attempt = attempt
        self.export = attempt.export

    def __getattr__(self, name: str) -> Any:
        return getattr(self.attempt.exporter, name)


class _ExportEach(_Export):
    """The same for readings, of which each is a message of its own."""

    def __init__(self, exporter: Any) -> None:
        super().__init__(exporter, MetricExportResult.SUCCESS)

    def __call__(self, batch: list[MetricsData]) -> None:
        for reading in batch:
            super().__call__(reading)


class _ToSenders(SpanProcessor):
    """Passes spans that end to senders; None once they are closed."""

    senders: tuple[Sender[ReadableSpan], ...] | None = None
    has_begun = False

    def on_start(self, span: Span, parent_context: otel_context.Context | None = None) -> None:
        self.has_begun = True

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            for sender in self.senders or ():
                sender.put(span)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        deadline = time.monotonic() + timeout_millis / 1000
        flushed = [sender.flush(deadline - time.monotonic()) for sender in self.senders or ()]
        return all(flushed)


class _OwnTracerProvider(TracerProvider):
    """Outlives the exporter that made it, since a program's provider is set once."""

    def __init__(self) -> None:
        super().__init__(resource=resource(), shutdown_on_exit=False)
        self.to_senders = _ToSenders()
        self.add_span_processor(self.to_senders)

    @property
    def amorsize_closed(self) -> bool:
        return self.to_senders.senders is None


class _OwnMeterProvider(MeterProvider):
    amorsize_closed = False


class _MetricsToSender(MetricExporter):
    """Passes readings to a sender, in the shape that its exporter wants."""

    def __init__(self, exporter: Any, sender: Sender[MetricsData]) -> None:
        super().__init__(
            preferred_temporality=exporter._preferred_temporality,
            preferred_aggregation=exporter._preferred_aggregation,
        )
        self._sender = sender

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        self._sender.put(metrics_data)
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True  # the exporter's own flush() waits for senders

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        pass  # the owner of the sender closes it


def _make_exporters(signal: str) -> Sequence[Any]:
    """Make the exporters that ``OTEL_TRACES_EXPORTER`` and the like name; OTLP where unset."""
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    names = os.environ.get(variable, "").strip() or "otlp"
    made = []
    for name in filter(None, map(str.strip, names.split(","))):
        if name == "none":
            continue
        key = _otlp_key(signal) if name == "otlp" else name
        found = next(iter(entry_points(group=f"opentelemetry_{signal}_exporter", name=key)), None)
        if found is None:
            raise InvalidValueError(
                f"{variable} names {name!r}, and no installed package has such an exporter; "
                "known are otlp, console and none, and what packages in the entry-point group "
                f"opentelemetry_{signal}_exporter add."
            )
        try:
            with _library_logs.kept() as logged:
                kind = found.load()
                if key in _PROTOCOLS.values():
                    made.append(_Otlp(SingleAttempt(kind, signal, grpc=key == _PROTOCOLS["grpc"])))
                else:
                    made.append(kind())
        except Exception as error:
            raise ExporterError(
                f"the exporter {name!r} of {variable} cannot be made: {describe_error(error)}"
            ) from None
        for text in logged:
            if "Header format invalid" in text:
                own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_HEADERS"
                _warn_of_headers(own if os.environ.get(own) else "OTEL_EXPORTER_OTLP_HEADERS")
            else:
                logger.warning("The exporter %r of %s: %s", name, variable, blank_credentials(text))
    return made


@cache
def _warn_of_headers(variable: str) -> None:
    logger.warning(
        "%s has an entry that is not name=value; it is ignored. Its text is not logged: it may be "
        "a secret.",
        variable,
    )


def _otlp_key(signal: str) -> str:
    variable = f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL"
    protocol = os.environ.get(variable) or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    protocol = protocol or "http/protobuf"  # the specification's default
    if protocol not in _PROTOCOLS:
        raise InvalidValueError(
            f"{variable}, or OTEL_EXPORTER_OTLP_PROTOCOL, is {protocol!r}; allowed are "
            f"{' and '.join(_PROTOCOLS)}."
        )
    return _PROTOCOLS[protocol]


def _bound(variable: str) -> int:
    given = os.environ.get(variable, "").strip()
    if not given:
        return _DEFAULTS[variable]
    if not given.isdigit() or int(given) < 1:
        raise InvalidValueError(f"{variable} is {given!r}; give a whole number of at least 1.")
    return int(given)


def _milliseconds(variable: str, default: int) -> float:
    given = os.environ.get(variable, "").strip()
    if given and not given.isdigit():
        raise InvalidValueError(f"{variable} is {given!r}; give a whole number of milliseconds.")
    return int(given or default) / 1000


class _LibraryLogs(logging.Filter):
    """Keeps the SDK from logging what a thread does here: the failure of each attempt, and secrets.

    A sender logs an outage once, without credentials. Other threads are the application's.
    """

    def __init__(self) -> None:
        super().__init__()
        self._of_thread = threading.local()

    @contextmanager
    def kept(self) -> Iterator[list[str]]:
        """Keep the texts of this thread's records instead of having them handled."""
        self._listen()
        texts: list[str] = []
        before = getattr(self._of_thread, "texts", None)
        self._of_thread.texts = texts
        try:
            yield texts
        finally:
            self._of_thread.texts = before

    def filter(self, record: logging.LogRecord) -> bool:
        texts = getattr(self._of_thread, "texts", None)
        if texts is None:
            return True
        texts.append(record.getMessage())
        return False

    def _listen(self) -> None:
        loggers = logging.root.manager.loggerDict
        for name in (_HEADERS_LOGGER, *loggers):
            if name == _HEADERS_LOGGER or name.startswith("opentelemetry.exporter."):
                logger = logging.getLogger(name)
                if self not in logger.filters:
                    logger.filters.insert(0, self)  # before one that drops what was logged before


_HEADERS_LOGGER = "opentelemetry.util.re"
_library_logs = _LibraryLogs()
