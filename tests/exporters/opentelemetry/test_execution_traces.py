"""What becomes of spans where the application's own code is broken, or an error's text is huge."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import SpanProcessor
from waiting import PATIENCE

from amorsize.exporters.opentelemetry import execution_traces

from ..spans import Traces


class Choking(SpanProcessor):
    """Raises once: at the first chunk that a thread of its name writes, after so many others."""

    def __init__(self, thread: str, after: int) -> None:
        self._thread = thread
        self._left = after

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if span.name == "chunk" and threading.current_thread().name.startswith(self._thread):
            self._left -= 1
            if self._left == -1:
                raise RuntimeError("processor broken at the start")


@pytest.mark.parametrize(
    ("most", "thread", "after", "counted"),
    [(3000, "amorsize-", 0, 1), (100, "MainThread", 60, 0)],
    ids=["in the background", "kept for the end"],
)
def test_a_chunk_that_a_processor_chokes_on_takes_no_other_along(
    most: int, thread: str, after: int, counted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that wait for room, and of those that wait for the end of the execution."""
    monkeypatch.setattr(execution_traces, "_DRAINED_SECONDS", 1e9)
    traces = Traces(max_chunk_spans=most)
    traces.provider.add_span_processor(Choking(thread, after))
    try:
        traces.execute(abs, iter(range(1500)), executor="serial", chunksize=1)
        traces.exporter.flush(PATIENCE)
        kept = traces._kept.get_finished_spans()
        assert sum(span.name == "chunk" for span in kept) == min(most, 1500) - 1
        assert traces.exporter.counts()[0] == counted
    finally:
        traces.close()


def test_errors_and_functions_whose_text_is_no_unicode_can_be_sent() -> None:
    """And an endless text is cut: a batch that is too large would be refused whole."""
    traces = Traces()

    def fail(x: int) -> None:
        raise ValueError("no \udcff" + "x" * 10_000_000)

    try:
        with pytest.raises(ValueError, match="no"):
            traces.execute(fail, [1], executor="process", name="read \udcff")
        assert traces.execution.name == "execute read \\udcff"
        packed = encode_spans(traces.spans).SerializeToString()
    finally:
        traces.close()
    assert b"ValueError: no \\udcffxxx" in packed
    assert len(packed) < 10 * execution_traces._MAX_TEXT
