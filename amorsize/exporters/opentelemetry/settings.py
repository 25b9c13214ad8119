"""The settings of OpenTelemetry, as ``enable_opentelemetry()`` describes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from amorsize.errors import InvalidTypeError, InvalidValueError
from amorsize.exporters.settings import check_switch

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider


@dataclass(frozen=True, kw_only=True)
class OpenTelemetrySettings:
    """All that :func:`~amorsize.exporters.opentelemetry.enable_opentelemetry` takes."""

    tracer_provider: TracerProvider | None = None
    meter_provider: MeterProvider | None = None
    traces: bool = True
    metrics: bool = True
    max_chunk_spans: int = 1000
    instrument_workers: bool = True
    prometheus_labels: bool = False

    def __post_init__(self) -> None:
        _check_provider("tracer_provider", self.tracer_provider, "get_tracer")
        _check_provider("meter_provider", self.meter_provider, "get_meter")
        check_switch("traces", self.traces)
        check_switch("metrics", self.metrics)
        check_switch("instrument_workers", self.instrument_workers)
        check_switch("prometheus_labels", self.prometheus_labels)
        spans = self.max_chunk_spans
        if isinstance(spans, bool) or not isinstance(spans, int):
            raise InvalidTypeError(f"max_chunk_spans must be a whole number; got {spans!r}")
        if spans < 0:
            raise InvalidValueError(f"max_chunk_spans must be 0 or more; got {spans}")


def _check_provider(name: str, provider: object, method: str) -> None:
    if provider is not None and not callable(getattr(provider, method, None)):
        raise InvalidTypeError(
            f"{name} must be an OpenTelemetry provider, with a {method}(), or None; got "
            f"{type(provider).__name__}"
        )
