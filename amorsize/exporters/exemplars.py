"""The trace that a number belongs to, for Prometheus' exemplars.

OpenTelemetry is looked for among the modules that are loaded, never imported: an application
that has a current span has loaded it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from amorsize.exporters.numbers import Exemplar

MAX_CHARACTERS = 128
"""Of all names and values of one exemplar's labels together, says OpenMetrics 1.0."""


def current_trace() -> Mapping[str, str] | None:
    """Name the application's span that is current and recording, as an exemplar's labels.

    Called on the thread, and with the context variables, of the caller of ``execute()``, as
    hooks are.

    Returns:
        ``trace_id`` and ``span_id`` in hexadecimal digits; None where no such span is.
    """
    trace = sys.modules.get("opentelemetry.trace")
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
    except Exception:  # whatever the application put there must not cost it a chunk's numbers
        return None
    if sum(len(name) + len(value) for name, value in labels.items()) > MAX_CHARACTERS:
        return None
    return labels


def exemplar_of(value: float, timestamp: float) -> Exemplar | None:
    """Make the exemplar of a number that was measured now; None without a current span."""
    trace = current_trace()
    return None if trace is None else Exemplar(trace, value, timestamp)
