"""OpenTelemetry: a trace of every execution, from its caller into its workers, and metrics.

::

    hooks ──> OpenTelemetryExporter ─┬─> ExecutionTraces ──> the application's tracer provider
                                     └─> Instruments ──────> the application's meter provider

    trace_link.begin() ──> the execution's span ──> TraceLink ──> every chunk, wherever it runs

For an application without providers, :mod:`amorsize.exporters.opentelemetry.otlp` makes them.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from amorsize import __version__
from amorsize.errors import AmorsizeError, MissingExtraError
from amorsize.exporters.base import close_before_others_at_exit
from amorsize.exporters.metrics import COUNTING_SINCE, Metric
from amorsize.exporters.opentelemetry.settings import OpenTelemetrySettings
from amorsize.exporters.sender import describe_error
from amorsize.exporters.series import Labels, Share
from amorsize.exporters.settings import by_keywords, constructor, enable_with
from amorsize.exporters.totals import TotalsExporter, status_label
from amorsize.hooks import HookContext
from amorsize.workers import trace_link
from amorsize.workers.trace_link import TraceLink
from amorsize.workers.user_metrics import UserMetrics

if TYPE_CHECKING:
    from amorsize.exporters.opentelemetry.execution_traces import ExecutionTraces
    from amorsize.exporters.opentelemetry.instruments import Instruments
    from amorsize.exporters.opentelemetry.otlp import OwnMetrics, OwnTracing
    from amorsize.exporters.opentelemetry.provisional import ProvisionalProvider

logger = logging.getLogger(__name__)

SCHEMA_URL = "https://opentelemetry.io/schemas/1.37.0"
"""Of the semantic conventions that name attributes."""


_CONFIG_FILE = "OTEL_CONFIG_FILE"

_SCOPE = ("amorsize", __version__, SCHEMA_URL, None)


@by_keywords(OpenTelemetrySettings)
def enable_opentelemetry(settings: OpenTelemetrySettings) -> OpenTelemetryExporter:
    """Trace every ``execute()``, and measure it, with OpenTelemetry.

    The providers that the application has set are used as they are, also when it sets them after
    this call, up to the first execution. Missing ones are then made and set for the whole program;
    they send OTLP as the ``OTEL_*`` variables configure, or are those of the file that
    ``OTEL_CONFIG_FILE`` names. The program's own spans leave from this call on.

    Args:
        tracer_provider: makes spans; None for the program's.
        meter_provider: makes metrics; None for the program's.
        traces: whether to make spans.
        metrics: whether to make metrics.
        max_chunk_spans: the most spans of chunks per execution. Of more chunks, the failed and
            the slowest are kept.
        instrument_workers: whether worker processes send back the spans that the function's code
            opens; False passes them the trace's context, and no more.
        prometheus_labels: whether the attributes of metrics are named as the labels of ``/metrics``
            (``function``, ``executor``, ``status``), so that the dashboards, rules and alerts find
            them in a Prometheus that receives OTLP; False for OpenTelemetry's conventions. Those
            of spans follow the conventions in any case.

    Returns:
        The exporter; its ``close()`` ends it. Called again with the same arguments, the same one.

    Raises:
        InvalidTypeError, InvalidValueError: an argument is wrong. Wrong ``OTEL_*`` variables are
            logged at the first execution.
        MissingExtraError: OpenTelemetry's API or SDK is not installed.
        ExporterError: it is enabled already with other arguments.

    Example:
        >>> import amorsize
        >>> from opentelemetry.sdk.trace import TracerProvider
        >>> from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        >>> from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        >>> spans, provider = InMemorySpanExporter(), TracerProvider()
        >>> provider.add_span_processor(SimpleSpanProcessor(spans))
        >>> with amorsize.enable_opentelemetry(tracer_provider=provider, metrics=False):
        ...     results = amorsize.execute(abs, [-1, 2], executor="serial", chunksize=1)
        >>> [span.name for span in spans.get_finished_spans()]
        ['plan', 'chunk', 'chunk', 'execute builtins.abs']
    """
    exporter = enable_with(OpenTelemetryExporter, settings)
    exporter.trace_program()
    return exporter


class OpenTelemetryExporter(TotalsExporter):
    """Makes spans and metrics of executions.

    :func:`enable_opentelemetry` makes one and attaches it to every execution; make one yourself
    to ``attach()`` it to a manager of your own. Arguments and errors are the same.
    """

    name = "opentelemetry"

    @constructor(OpenTelemetrySettings)
    def __init__(self, settings: OpenTelemetrySettings) -> None:
        _require_package()
        self._settings = settings
        self._application_has_any = False
        self._file_decides = False
        self._resolving = threading.Lock()
        self._resolved = False
        self._executions: ExecutionTraces | None = None
        self._instruments: Instruments | None = None
        self._own_tracing: OwnTracing | None = None
        self._provisional: ProvisionalProvider | None = None
        self._own_metrics: OwnMetrics | None = None
        super().__init__()
        if not self.active:
            return
        if settings.traces:
            trace_link.add_source(self)

    # --- the start of a trace, before the first item runs ----

    def begin(self, managers: Sequence[Any], execution_id: str, function: str) -> TraceLink | None:
        """Begin an execution's span; None where this exporter does not observe that execution."""
        if not self.active or not any(manager in managers for manager in self.managers):
            return None
        self._resolve()
        return None if self._executions is None else self._executions.begin(execution_id, function)

    def forget(self, execution_id: str) -> None:
        """Drop an execution's span; nothing where it has ended."""
        if self._executions is not None:
            self._executions.forget(execution_id)

    # --- events ----

    def pre_execute(self, context: HookContext) -> None:
        super().pre_execute(context)
        self._resolve()
        if self._executions is not None:
            self._executions.planned(context)

    def on_worker_start(self, context: HookContext) -> None:
        super().on_worker_start(context)
        if self._executions is not None:
            self._executions.worker_started(context)

    def on_chunk_complete(self, context: HookContext) -> None:
        super().on_chunk_complete(context)
        if self._executions is not None:
            self._executions.chunk_completed(context)

    def on_error(self, context: HookContext) -> None:
        super().on_error(context)
        if self._executions is not None:
            self._executions.failed(context)

    def on_worker_end(self, context: HookContext) -> None:
        super().on_worker_end(context)
        if self._executions is not None:
            self._executions.worker_ended(context)

    def post_execute(self, context: HookContext) -> None:
        super().post_execute(context)
        if self._executions is not None:
            self._executions.ended(context, status_label(context))

    def share(self) -> Share:
        share = super().share()
        if self._settings.prometheus_labels:  # the alerts ask for it
            share.series[COUNTING_SINCE] = {(): self.counting_since}
        return share

    def _observed(self, metric: Metric, labels: Labels, value: float, context: HookContext) -> None:
        if self._instruments is not None:
            around = None if self._executions is None else self._executions.around(context)
            self._instruments.record(metric, labels, value, around)

    def _user_observed(self, shares: UserMetrics, labels: Labels) -> None:
        if self._instruments is not None:
            self._instruments.follow(self._user_rows())

    # --- providers ----

    def trace_program(self) -> None:
        """Have the program's own spans leave, if it has no provider, until an execution decides."""
        from opentelemetry import trace

        with self._resolving:
            if self._resolved or self._own_tracing is not None or not self.active:
                return
            self._look_at_application()
            provider = self._settings.tracer_provider or trace.get_tracer_provider()
            is_missing = isinstance(provider, trace.ProxyTracerProvider)
            if not (is_missing and self._settings.traces and self._may_make("TRACES")):
                return
            from amorsize.exporters.opentelemetry.otlp import OwnTracing
            from amorsize.exporters.opentelemetry.provisional import ProvisionalProvider

            try:
                self._own_tracing = OwnTracing(self.new_sender)
            except AmorsizeError:
                return  # a variable is wrong: the first execution says so
            self._provisional = ProvisionalProvider(self._own_tracing.provider)
            self._provisional.install()
            close_before_others_at_exit()

    def _look_at_application(self) -> None:
        """See which providers the application has; have its configuration file applied, once."""
        settings = self._settings
        self._application_has_any = _application_has_any(
            settings.tracer_provider, settings.meter_provider
        )
        if os.environ.get(_CONFIG_FILE) and not self._file_decides:
            self._file_decides = True
            if not self._application_has_any:
                _configure_by_file()

    def _resolve(self) -> None:
        """Find the application's providers, or make some: once, at the first execution."""
        with self._resolving:
            if self._resolved:
                return
            self._resolved = True  # also when it fails: the next execution would fail, too
            settings = self._settings
            self._look_at_application()
            for signal, wanted, resolve in (
                ("traces", settings.traces, self._trace),
                ("metrics", settings.metrics, self._measure),
            ):
                if not wanted:
                    continue
                try:
                    resolve()
                except Exception as error:  # a variable is wrong: the other signal goes on
                    text = str(error) if isinstance(error, AmorsizeError) else describe_error(error)
                    logger.error("Executions have no %s: %s", signal, text)
                except BaseException:  # Ctrl-C: the next execution looks again
                    self._resolved = False
                    raise
            close_before_others_at_exit()

    def _trace(self) -> None:
        from opentelemetry import trace

        from amorsize.exporters.opentelemetry.execution_traces import ExecutionTraces
        from amorsize.exporters.opentelemetry.span_writer import SpanWriter
        from amorsize.workers.otel_context import make_tracers_picklable

        provider: Any = self._settings.tracer_provider or trace.get_tracer_provider()
        is_missing = _is_missing(provider)
        if _is_closed(provider) or (is_missing and self._may_make("TRACES")):
            if self._own_tracing is None:
                from amorsize.exporters.opentelemetry.otlp import OwnTracing

                self._own_tracing = OwnTracing(self.new_sender, provider)
            provider = self._own_tracing.provider
            if is_missing:
                trace.set_tracer_provider(provider)
        else:
            self._give_way()
        make_tracers_picklable()
        self._executions = ExecutionTraces(
            SpanWriter(provider, _SCOPE),
            max_chunk_spans=self._settings.max_chunk_spans,
            capture=self._settings.instrument_workers,
            new_sender=self.new_sender,
        )

    def _give_way(self) -> None:
        """Leave the program's spans to its own provider; those that have begun here end here."""
        if self._provisional is not None:
            self._provisional.withdraw()
        if self._own_tracing is not None and not self._own_tracing.has_begun:
            self._own_tracing.close()
            self._own_tracing = None

    def _measure(self) -> None:
        from opentelemetry import metrics as otel_metrics

        from amorsize.exporters.opentelemetry.instruments import instruments_of

        provider: Any = self._settings.meter_provider or otel_metrics.get_meter_provider()
        is_missing = _is_meter_proxy(provider)
        if _is_closed(provider) or (is_missing and self._may_make("METRICS")):
            from amorsize.exporters.opentelemetry.otlp import OwnMetrics

            self._own_metrics = OwnMetrics(self.new_sender)
            provider = self._own_metrics.provider
            if is_missing:
                otel_metrics.set_meter_provider(provider)
        self._instruments = instruments_of(
            provider.get_meter(*_SCOPE),
            self.snapshot,
            prometheus_labels=self._settings.prometheus_labels,
        )

    def _may_make(self, signal: str) -> bool:
        """Whether a provider may be made for a signal.

        An application that has set up one signal has to ask for the other by a variable. Where
        there is a configuration file, a signal that it leaves out is not sent.
        """
        if self._file_decides:
            return False
        return not self._application_has_any or _asks_for_otlp(signal)

    def flush(self, timeout: float = 1.0) -> bool:
        """Write every span; deliver the spans and a reading of the metrics of amorsize's providers.

        Returns:
            Whether everything was delivered within ``timeout`` seconds. The application's own
            providers deliver by themselves.
        """
        if self._own_metrics is not None:
            self._own_metrics.collect()
        return super().flush(timeout)

    def close(self) -> None:
        trace_link.remove_source(self)
        if self._executions is not None:
            self._executions.end_all()
        super().close()

    def release(self) -> None:
        if self._provisional is not None:
            self._provisional.withdraw()
        for own in (self._own_tracing, self._own_metrics):
            if own is not None:
                own.close()

    def abandon(self) -> None:
        trace_link.remove_source(self)
        if self._provisional is not None:
            self._provisional.withdraw()
        for own in (self._own_tracing, self._own_metrics):
            if own is not None:
                own.abandon()
        self._executions = None


def _configure_by_file() -> None:
    """Have the SDK set the providers of the configuration file; log why that cannot be.

    The other variables do not apply then, as the specification says: without the file's providers
    there are none.
    """
    try:
        from opentelemetry.configuration import configure_sdk, load_config_file
    except ImportError:
        logger.error(
            "There are no traces and no metrics of executions: %s is set, which needs the package "
            "'opentelemetry-configuration'. Install it with: pip install --pre "
            "opentelemetry-configuration",
            _CONFIG_FILE,
        )
        return
    try:
        configure_sdk(load_config_file(os.environ[_CONFIG_FILE]))
    except Exception as error:
        logger.error(
            "There are no traces and no metrics of executions: the file of %s cannot be applied: "
            "%s",
            _CONFIG_FILE,
            describe_error(error),
        )


def _require_package() -> None:
    try:
        import opentelemetry.sdk.trace
        import opentelemetry.trace  # noqa: F401
    except ImportError:
        raise MissingExtraError("The OpenTelemetry exporter", "opentelemetry-sdk", "otel") from None


def _application_has_any(tracer_provider: Any, meter_provider: Any) -> bool:
    """Whether the application has set up traces or metrics. amorsize's providers do not count."""
    from opentelemetry import metrics, trace

    tracer_provider = tracer_provider or trace.get_tracer_provider()
    meter_provider = meter_provider or metrics.get_meter_provider()
    traces = _is_missing(tracer_provider) or _is_closed(tracer_provider)
    return not (traces and (_is_meter_proxy(meter_provider) or _is_closed(meter_provider)))


def _is_missing(provider: Any) -> bool:
    """Whether the program has set no tracer provider: it has none, or a provisional one."""
    from opentelemetry import trace

    is_provisional = getattr(provider, "amorsize_provisional", False) is True
    return is_provisional or isinstance(provider, trace.ProxyTracerProvider)


def _is_closed(provider: Any) -> bool:
    """Whether it is amorsize's, of a closed exporter or of the parent of a forked child."""
    return getattr(provider, "amorsize_closed", False) is True


def _is_meter_proxy(provider: Any) -> bool:
    return hasattr(provider, "on_set_meter_provider")  # it waits for the application's


def _asks_for_otlp(signal: str) -> bool:
    """Whether a variable asks for a signal to be sent: its own, or one for all signals."""
    signals = ("TRACES", "METRICS", "LOGS")
    of_others = tuple(f"OTEL_EXPORTER_OTLP_{other}_" for other in signals if other != signal)
    return f"OTEL_{signal}_EXPORTER" in os.environ or any(
        name.startswith("OTEL_EXPORTER_OTLP_") and not name.startswith(of_others)
        for name in os.environ
    )
