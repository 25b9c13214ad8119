"""Collectors of a chunk's extras, returned with its outcome: user metrics, spans, CPU time."""

from __future__ import annotations

from functools import cache
from types import ModuleType

from amorsize.workers.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from amorsize.workers.item_slots import ItemSlots
    from amorsize.workers.trace_link import TraceLink

    class Collector(Protocol):
        """Collects while it is entered; ``take()`` ends it, and returns None for nothing."""

        def enter(self) -> None: ...
        def leave(self) -> None: ...
        def take(self) -> Any: ...


class CollectSettings(Record):
    """The data to collect in every chunk of an execution; picklable.

    Attributes:
        user_metrics: whether the function's user metrics are.
        trace: the trace that the function's spans belong to, or None.
        cpu_time: whether the CPU time of the calls is.
    """

    user_metrics: bool = False
    trace: TraceLink | None = None
    cpu_time: bool = False

    def use_in_worker(self, provider_at_start: Any) -> None:
        """Prepare a worker process, before the function is loaded; see ``otel_context``."""
        if self.trace is not None:
            otel_context = _load_otel_context()
            if otel_context is not None:
                otel_context.use_in_worker(self.trace, provider_at_start)

    def in_chunk(self, chunk_id: int, item_slots: ItemSlots | None = None) -> ChunkCollector | None:
        """Make the collector of one chunk; None where nothing is to be collected."""
        collectors: dict[str, Collector] = {}
        if self.trace is not None and (tracer := _chunk_trace(self.trace, chunk_id)) is not None:
            collectors["trace"] = tracer
        if self.user_metrics:
            collectors["user_metrics"] = _load_user_metrics().MetricsCollector()
        if self.cpu_time:  # last, so that it measures the calls alone
            collectors["cpu_time"] = _load_cpu_time().CpuTimeCollector(item_slots)
        return ChunkCollector(collectors) if collectors else None


class ChunkCollector:
    """All collectors of one chunk, whose values become the outcome's extras."""

    __slots__ = ("_collectors",)

    def __init__(self, collectors: dict[str, Collector]) -> None:
        self._collectors = collectors

    def enter(self) -> None:
        """Start: the function is about to be called, in this context."""
        for collector in self._collectors.values():
            collector.enter()

    def leave(self) -> None:
        """Pause: the calls are over."""
        for collector in reversed(self._collectors.values()):
            collector.leave()

    def take(self) -> dict[str, Any]:
        """End, and return the collected values by name."""
        taken = {name: collector.take() for name, collector in self._collectors.items()}
        return {name: value for name, value in taken.items() if value is not None}


def _chunk_trace(link: TraceLink, chunk_id: int) -> Collector | None:
    otel_context = _load_otel_context()
    return None if otel_context is None else otel_context.ChunkTrace(link, chunk_id)


@cache
def _load_user_metrics() -> ModuleType:
    from amorsize.workers import user_metrics  # 1.5 ms, which most workers do not need

    return user_metrics


@cache
def _load_cpu_time() -> ModuleType:
    from amorsize.workers import cpu_time

    return cpu_time


@cache
def _load_otel_context() -> ModuleType | None:
    try:
        from amorsize.workers import otel_context  # imports OpenTelemetry's API, 25 ms
    except ImportError:
        return None  # OpenTelemetry is not installed on the worker's machine
    return otel_context
