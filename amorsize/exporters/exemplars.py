"""Exemplars: the trace that a value belongs to."""

from __future__ import annotations

from collections.abc import Mapping

from amorsize.exporters.series import Exemplar
from amorsize.hooks import HookContext
from amorsize.workers.trace_link import loaded_tracing

MAX_EXEMPLAR_CHARACTERS = 128
"""Of all names and values of one exemplar's labels together (OpenMetrics 1.0)."""


def current_trace() -> Mapping[str, str] | None:
    """Name the application's span that is current and recording, as an exemplar's labels.

    Call it as hooks are called: on the thread, and with the context variables, of the caller of
    ``execute()``.

    Returns:
        ``trace_id`` and ``span_id`` in hexadecimal digits; None where no such span is.
    """
    trace = loaded_tracing()
    if trace is None:
        return None
    try:
        span = trace.get_current_span()
        if not span.is_recording():
            return None
        context = span.get_span_context()
        if not context.is_valid:
            return None
        labels = {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
    except Exception:  # an odd span of the application's must not lose the chunk's numbers
        return None
    if sum(len(name) + len(value) for name, value in labels.items()) > MAX_EXEMPLAR_CHARACTERS:
        return None
    return labels


def exemplar_of(value: float, context: HookContext) -> Exemplar | None:
    """Make the exemplar of an event's value.

    It points to the span that amorsize makes of the event's chunk or execution or, where these
    are not traced, to the application's current span; None where there is neither.
    """
    metadata = context.metadata
    trace: Mapping[str, str] | None
    if "trace_id" in metadata:
        trace = {"trace_id": metadata["trace_id"], "span_id": metadata["span_id"]}
    else:
        trace = current_trace()
    return None if trace is None else Exemplar(trace, value, context.timestamp)
