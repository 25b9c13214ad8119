"""Traces of real executions: their shape in every mode, failures, sampling, budgets, providers."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    ParentBased,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import SpanKind, Status, StatusCode
from waiting import PATIENCE, slowness

import amorsize
from amorsize import HookEvent, __version__
from amorsize.errors import (
    ExecutionTimeoutError,
    ExporterError,
    InvalidTypeError,
    InvalidValueError,
    ItemTimeoutError,
    MissingExtraError,
    TransportError,
    WorkerDiedError,
)
from amorsize.exporters.opentelemetry import exporter as opentelemetry
from amorsize.exporters.opentelemetry.exporter import OpenTelemetryExporter, enable_opentelemetry
from amorsize.hooks import HookManager
from amorsize.testing import assert_contract
from amorsize.workers import trace_link

from ..spans import Traces, attribute, attributes, parent_id

SCHEMA_URL = "https://opentelemetry.io/schemas/1.37.0"


@pytest.fixture
def traces() -> Iterator[Traces]:
    made = Traces()
    yield made
    made.close()


@pytest.fixture
def make() -> Iterator[Callable[..., Traces]]:
    """Make tracing with settings of the test's own."""
    made: list[Traces] = []

    def make(**settings: Any) -> Traces:
        made.append(Traces(**settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(params=["execute", "stream"])
def api(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(traces: Traces, api: str, func: Callable[..., Any], data: Any, **options: Any) -> list[Any]:
    return list(getattr(traces, api)(func, data, **options))


# --- the shape ----


def test_the_log_of_a_run_is_written_in_its_span(traces: Traces, mode: str, api: str) -> None:
    """Instrumentation of logging reads the current span while a record is handled."""
    spans = []

    class Instrumented(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            spans.append(trace.get_current_span().get_span_context())

    logger, handler = logging.getLogger("amorsize.runs"), Instrumented()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel("INFO")
    try:
        run(traces, api, int, ["1", "two"], executor=mode, return_exceptions=True)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    execution = traces.execution.context
    assert [(span.trace_id, span.span_id) for span in spans] == [
        (execution.trace_id, execution.span_id)
    ] * 2


def test_the_tree_is_the_same_in_every_mode(traces: Traces, mode: str, api: str) -> None:
    """Caller, execution, plan, chunks, and what the function opens in them."""
    tracer = traces.user

    def square(x: int) -> int:
        with tracer.start_as_current_span("square"):
            return x * x

    with tracer.start_as_current_span("caller") as caller:
        assert run(traces, api, square, range(6), executor=mode) == [0, 1, 4, 9, 16, 25]
    traces.check()
    assert_contract(traces.recorder.contexts)
    execution = traces.execution
    assert execution.name == f"execute {square.__module__}.{square.__qualname__}"
    assert parent_id(execution) == caller.get_span_context().span_id
    (plan,) = traces.named("plan")
    assert parent_id(plan) == execution.context.span_id
    chunks = traces.chunks
    assert {parent_id(chunk) for chunk in chunks} == {execution.context.span_id}
    squares = traces.named("square")
    assert len(squares) == 6
    of_chunk = {chunk.context.span_id: 0 for chunk in chunks}
    for span in squares:
        of_chunk[parent_id(span) or 0] += 1
    assert list(of_chunk.values()) == [2, 2, 2]
    assert {span.context.trace_id for span in traces.spans} == {caller.get_span_context().trace_id}


def test_names_scope_kind_and_status(traces: Traces, mode: str) -> None:
    """Names do not vary with the data, and success leaves the status unset."""
    traces.execute(abs, range(4), executor=mode)
    assert sorted(span.name for span in traces.spans) == [
        "chunk",
        "chunk",
        "execute builtins.abs",
        "plan",
    ]
    for span in traces.spans:
        scope = span.instrumentation_scope
        assert scope is not None
        assert (scope.name, scope.version, scope.schema_url) == (
            "amorsize",
            __version__,
            SCHEMA_URL,
        )
        assert span.kind is SpanKind.INTERNAL
        assert (span.status.status_code, span.status.description) == (StatusCode.UNSET, None)
        assert span.resource.attributes == {"service.name": "tests"}
        assert not span.events
        assert not span.links


def test_attributes_of_the_execution(traces: Traces, mode: str) -> None:
    """Exactly these names, with values of these types."""
    traces.execute(abs, range(6), executor=mode)
    found = attributes(traces.execution)
    (post,) = traces.recorder.of(HookEvent.POST_EXECUTE)
    assert found.pop("amorsize.concurrency") == post.metadata["concurrency"]
    assert found.pop("amorsize.measured_speedup", None) == post.metadata.get("measured_speedup")
    assert found == {
        "amorsize.execution.id": post.metadata["execution_id"],
        "code.function.name": "builtins.abs",
        "amorsize.executor": mode,
        "amorsize.n_jobs": post.n_jobs,
        "amorsize.chunksize": 2,
        "amorsize.items.total": 6,
        "amorsize.items.completed": 6,
        "amorsize.status": "ok",
        "amorsize.chunks.total": 3,
        "amorsize.chunks.untraced": 0,
        "amorsize.spans.dropped": 0,
    }
    integers = {name for name, value in found.items() if type(value) is int}
    assert integers == {
        f"amorsize.{name}"
        for name in (
            "n_jobs",
            "chunksize",
            "items.total",
            "items.completed",
            "chunks.total",
            "chunks.untraced",
            "spans.dropped",
        )
    }


def test_attributes_of_the_plan(traces: Traces, mode: str) -> None:
    """What was chosen, and what for."""
    traces.execute(abs, range(6), executor=mode)
    found = attributes(traces.named("plan")[0])
    (pre,) = traces.recorder.of(HookEvent.PRE_EXECUTE)
    expected = found.pop("amorsize.estimated_speedup", None)
    assert expected == (1.0 if mode == "serial" else None)
    assert found == {
        "amorsize.execution.id": pre.metadata["execution_id"],
        "code.function.name": "builtins.abs",
        "amorsize.executor": mode,
        "amorsize.n_jobs": pre.n_jobs,
        "amorsize.chunksize": 2,
        "amorsize.items.total": 6,
    }


def test_attributes_of_a_chunk(traces: Traces, mode: str) -> None:
    """As in the events, with its worker."""
    traces.execute(abs, range(5), executor=mode)
    starts = {c.worker_id: c for c in traces.recorder.of(HookEvent.ON_WORKER_START)}
    reported = sorted(
        traces.recorder.of(HookEvent.ON_CHUNK_COMPLETE), key=lambda event: event.chunk_id or 0
    )
    assert len(traces.chunks) == 3
    for chunk, event in zip(traces.chunks, reported, strict=True):
        worker = starts[event.worker_id].metadata
        assert attributes(chunk) == {
            "amorsize.execution.id": event.metadata["execution_id"],
            "code.function.name": "builtins.abs",
            "amorsize.executor": mode,
            "amorsize.chunk.id": event.chunk_id,
            "amorsize.chunk.start": event.metadata["chunk_start"],
            "amorsize.chunk.size": event.chunk_size,
            "amorsize.chunk.queue_seconds": event.metadata["queue_time"],
            "amorsize.chunk.cpu_seconds": event.metadata["cpu_seconds"],
            "amorsize.worker.id": event.worker_id,
            "process.pid": worker["pid"],
            "host.name": socket.gethostname(),
            "thread.name": worker["thread_name"],
        }
        assert type(attribute(chunk, "amorsize.chunk.queue_seconds")) is float
        assert chunk.start_time is not None
        assert chunk.end_time is not None
        # The worker's own clocks, but for the end of the last span that left before the chunk's.
        assert abs(chunk.start_time / 1e9 - event.metadata["started_at"]) < 0.01 * slowness()
        assert f"{chunk.context.span_id:016x}" == event.metadata["span_id"]


def test_an_input_of_unknown_length(traces: Traces, mode: str) -> None:
    """Its total is known at the end, and not in the plan."""
    traces.execute(abs, iter(range(5)), executor=mode)
    assert "amorsize.items.total" not in attributes(traces.named("plan")[0])
    assert attribute(traces.execution, "amorsize.items.total") == 5


def test_the_sample_is_a_chunk_of_this_process(traces: Traces, api: str) -> None:
    """It is measured before the plan is made, and what it opens lies within it."""
    tracer = traces.user

    def work(x: int) -> int:
        with tracer.start_as_current_span("work"):
            return x

    options: dict[str, Any] = {"n_jobs": None, "chunksize": None}
    assert run(traces, api, work, range(20), **options) == list(range(20))
    traces.check()
    sample = traces.chunks[0]
    assert attribute(sample, "amorsize.chunk.sampled") is True
    assert attribute(sample, "process.pid") == os.getpid()
    assert "amorsize.worker.id" not in attributes(sample)
    assert "amorsize.chunk.queue_seconds" not in attributes(sample)
    assert [attribute(chunk, "amorsize.chunk.sampled") for chunk in traces.chunks[1:]] == [None] * (
        len(traces.chunks) - 1
    )
    assert len(traces.named("work")) == 20
    (plan,) = traces.named("plan")
    assert (plan.end_time or 0) >= (sample.end_time or 0)


def test_each_execution_has_a_trace_of_its_own_without_a_caller(traces: Traces, mode: str) -> None:
    """Two runs, two roots, also when they run at the same time."""
    threads = [
        threading.Thread(target=traces.execute, args=(abs, range(8)), kwargs={"executor": mode})
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    traces.check()
    roots = [span for span in traces.spans if span.parent is None]
    assert [root.name for root in roots] == ["execute builtins.abs"] * 2
    assert len({span.context.trace_id for span in traces.spans}) == 2
    assert len(traces.chunks) == 8


def test_corrections_of_the_chunk_size_are_events(traces: Traces) -> None:
    """With the size that was corrected to, as ON_CHUNK_COMPLETE has it."""
    traces.execute(abs, range(3000), executor="serial", chunksize=None)
    reported = [
        event.metadata["corrected_chunksize"]
        for event in traces.recorder.of(HookEvent.ON_CHUNK_COMPLETE)
        if "corrected_chunksize" in event.metadata
    ]
    found = traces.events(traces.execution, "chunksize corrected")
    assert found
    assert found == [{"amorsize.chunksize": size} for size in reported]


def test_an_empty_input_has_an_execution_without_chunks(traces: Traces, mode: str) -> None:
    """Its tree is complete all the same."""
    assert traces.execute(abs, [], executor=mode) == []
    traces.check()
    assert attribute(traces.execution, "amorsize.chunks.total") == 0


# --- failures ----


def fail_at(position: int) -> Callable[[int], int]:
    def work(x: int) -> int:
        if x == position:
            raise KeyError(f"no {x}")
        return x

    return work


def assert_failed(span: ReadableSpan, kind: str, message: str, said: str) -> None:
    """The status, its description, the event and the attribute of a failure."""
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == f"{kind}: {message}"
    assert attribute(span, "error.type") == kind
    (event,) = [event for event in span.events if event.name == "exception"]
    found = dict(event.attributes or {})
    assert found.pop("exception.type") == kind
    assert found.pop("exception.message") == message
    assert said in str(found.pop("exception.stacktrace"))
    assert found == {}
    assert (span.start_time or 0) <= event.timestamp <= (span.end_time or 0)


@pytest.mark.parametrize("position", [0, 3, 7])
def test_a_failure_is_on_its_chunk_and_on_the_execution(
    traces: Traces, mode: str, api: str, position: int
) -> None:
    """The first, a middle and the last item."""
    with pytest.raises(KeyError):
        run(traces, api, fail_at(position), range(8), executor=mode)
    traces.check()
    (failed,) = [chunk for chunk in traces.chunks if chunk.status.status_code is StatusCode.ERROR]
    assert attribute(failed, "amorsize.chunk.start") == position // 2 * 2
    message = f"'no {position}'"
    assert_failed(failed, "KeyError", message, "raise KeyError(")
    assert_failed(traces.execution, "KeyError", message, "KeyError")
    assert attribute(traces.execution, "amorsize.status") == "error"
    assert traces.named("plan")[0].status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("position", [0, 3, 7])
def test_with_return_exceptions_only_the_chunk_fails(
    traces: Traces, mode: str, api: str, position: int
) -> None:
    """One span for it, though ON_ERROR and ON_CHUNK_COMPLETE both report it."""
    run(traces, api, fail_at(position), range(8), executor=mode, return_exceptions=True)
    traces.check()
    assert len(traces.chunks) == 4
    (failed,) = [chunk for chunk in traces.chunks if chunk.status.status_code is StatusCode.ERROR]
    assert_failed(failed, "KeyError", f"'no {position}'", "raise KeyError(")
    execution = traces.execution
    assert (execution.status.status_code, execution.events) == (StatusCode.UNSET, ())
    assert "error.type" not in attributes(execution)
    assert attribute(execution, "amorsize.status") == "ok"


def test_a_failing_sample(traces: Traces) -> None:
    """The failure of an item that was measured in this process."""
    with pytest.raises(KeyError):
        traces.execute(fail_at(1), range(8), n_jobs=None, chunksize=None)
    traces.check()
    assert_failed(traces.chunk, "KeyError", "'no 1'", "raise KeyError(")
    assert attribute(traces.chunk, "amorsize.chunk.sampled") is True


@pytest.mark.parametrize("items", [0, 3])
def test_an_input_that_raises_fails_the_execution_alone(
    traces: Traces, mode: str, items: int
) -> None:
    """The chunks before it went well."""

    def source() -> Iterator[int]:
        yield from range(items)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        traces.execute(abs, source(), executor=mode, chunksize=1)
    traces.check()
    assert_failed(traces.execution, "OSError", "the disk is gone", "in source")
    assert len(traces.chunks) == items
    assert {chunk.status.status_code for chunk in traces.chunks} <= {StatusCode.UNSET}


@pytest.mark.parametrize("return_exceptions", [True, False])
def test_an_item_that_does_not_pickle(traces: Traces, return_exceptions: bool) -> None:
    """Its chunk was never sent, and its span holds the reason."""
    data = [1, 2, threading.Lock(), 4]
    options: dict[str, Any] = {"executor": "process", "return_exceptions": return_exceptions}
    try:
        traces.execute(type, data, **options)
    except TransportError:
        assert not return_exceptions
    else:
        assert return_exceptions
    traces.check()
    failed = [chunk for chunk in traces.chunks if chunk.status.status_code is StatusCode.ERROR]
    assert {attribute(chunk, "error.type") for chunk in failed} == {"UnpicklableItemError"}
    expected = StatusCode.UNSET if return_exceptions else StatusCode.ERROR
    assert traces.execution.status.status_code is expected


@pytest.mark.parametrize("return_exceptions", [True, False])
def test_a_result_that_does_not_pickle(traces: Traces, return_exceptions: bool) -> None:
    """The function's spans are sent back nevertheless."""
    tracer = traces.user

    def work(x: int) -> Any:
        with tracer.start_as_current_span("work"):
            return threading.Lock() if x == 0 else x

    options: dict[str, Any] = {"executor": "process", "return_exceptions": return_exceptions}
    try:
        traces.execute(work, [0], **options)
    except TransportError as error:
        assert not return_exceptions
        kind = type(error).__name__
    else:
        kind = str(attribute(traces.chunk, "error.type"))
    traces.check()
    assert traces.chunk.status.status_code is StatusCode.ERROR
    assert attribute(traces.chunk, "error.type") == kind
    assert [parent_id(span) for span in traces.named("work")] == [traces.chunk.context.span_id]


def exit_at_four(x: int) -> int:
    if x == 4:
        os._exit(3)
    return x


def killed_at_four(x: int) -> int:
    if x == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


@pytest.mark.parametrize(("work", "code"), [(exit_at_four, 3), (killed_at_four, -signal.SIGKILL)])
def test_a_worker_that_dies_leaves_the_span_of_its_chunk(
    traces: Traces, work: Callable[[int], int], code: int
) -> None:
    """Made by the parent, from the dispatch to the death; the death is an event besides."""
    with pytest.raises(WorkerDiedError) as died:
        traces.execute(work, range(8), executor="process")
    traces.check()
    (failed,) = [chunk for chunk in traces.chunks if chunk.status.status_code is StatusCode.ERROR]
    assert_failed(failed, "WorkerDiedError", str(died.value), "WorkerDiedError")
    assert attribute(failed, "amorsize.chunk.start") == 4
    assert attribute(failed, "process.pid") == died.value.pid
    assert (failed.end_time or 0) > (failed.start_time or 0)
    (event,) = traces.recorder.of(HookEvent.ON_ERROR)
    assert abs((failed.start_time or 0) / 1e9 - event.metadata["dispatched_at"]) < 1e-3
    execution = traces.execution
    assert_failed(execution, "WorkerDiedError", str(died.value), "WorkerDiedError")
    (reported,) = traces.events(execution, "worker died")
    assert reported == {
        "amorsize.chunk.id": attribute(failed, "amorsize.chunk.id"),
        "exception.message": str(died.value),
    }
    deaths = [
        ended
        for ended in traces.events(execution, "worker ended")
        if ended["amorsize.worker.exit_reason"] == "died"
    ]
    assert deaths == [
        {
            "amorsize.worker.id": event.worker_id,
            "amorsize.worker.exit_reason": "died",
            "process.exit.code": code,
            "process.pid": died.value.pid,
            "host.name": socket.gethostname(),
            "thread.name": "MainThread",
        }
    ]


def test_deaths_with_return_exceptions(traces: Traces) -> None:
    """Every attempt has a span, and those of the second refer to the first."""
    results = traces.execute(killed_at_four, range(8), executor="process", return_exceptions=True)
    assert [type(result).__name__ for result in results].count("WorkerDiedError") == 1
    traces.check()
    failed = [chunk for chunk in traces.chunks if chunk.status.status_code is StatusCode.ERROR]
    assert len(failed) == 2
    first, again = failed
    assert attribute(again, "amorsize.chunk.retry_of") == attribute(first, "amorsize.chunk.id")
    assert len(traces.events(traces.execution, "worker died")) == 2
    assert traces.execution.status.status_code is StatusCode.UNSET
    retried = {attribute(chunk, "amorsize.chunk.retry_of") for chunk in traces.chunks}
    assert retried >= {attribute(first, "amorsize.chunk.id"), None}


def test_spans_of_chunks_before_a_death_are_not_lost(traces: Traces) -> None:
    """They were sent back with their chunks."""
    tracer = traces.user

    def work(x: int) -> None:
        with tracer.start_as_current_span(f"item {x}"):
            pass
        if x == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkerDiedError):
        traces.execute(work, range(5), executor="process", n_jobs=1, chunksize=1)
    traces.check()
    names = {span.name for span in traces.spans}
    assert names >= {f"item {x}" for x in range(4)}


def hang_at_three(x: int) -> int:
    if x == 3:
        threading.Event().wait(60)
    return x


def test_a_time_limit_of_an_item(traces: Traces, mode: str) -> None:
    """The chunk that it was in fails; the limit is an event of the execution."""
    with pytest.raises(ItemTimeoutError) as late:
        traces.execute(hang_at_three, range(6), executor=mode, item_timeout=0.3 * slowness())
    traces.check()
    execution = traces.execution
    assert attribute(execution, "amorsize.status") == "timeout"
    assert_failed(execution, "ItemTimeoutError", str(late.value), "ItemTimeoutError")
    (failed,) = [chunk for chunk in traces.chunks if chunk.status.status_code is StatusCode.ERROR]
    assert_failed(failed, "ItemTimeoutError", str(late.value), "ItemTimeoutError")
    assert len(traces.events(execution, "item timed out")) == 1
    assert (failed.end_time or 0) - (failed.start_time or 0) >= 0.3e9


def test_a_time_limit_of_an_item_with_return_exceptions(traces: Traces, mode: str) -> None:
    """The run goes on: chunks that are repeated have spans as well."""
    results = traces.execute(
        hang_at_three,
        range(6),
        executor=mode,
        item_timeout=0.3 * slowness(),
        return_exceptions=True,
    )
    assert isinstance(results[3], ItemTimeoutError)
    traces.check()
    assert traces.execution.status.status_code is StatusCode.UNSET
    assert len(traces.events(traces.execution, "item timed out")) == 1


def test_a_time_limit_of_the_execution(traces: Traces, mode: str) -> None:
    """No chunk is to blame."""
    with pytest.raises(ExecutionTimeoutError) as late:
        traces.execute(hang_at_three, range(6), executor=mode, timeout=0.3)
    traces.check()
    execution = traces.execution
    assert attribute(execution, "amorsize.status") == "timeout"
    assert_failed(execution, "ExecutionTimeoutError", str(late.value), "ExecutionTimeoutError")
    (reported,) = traces.events(execution, "execution timed out")
    assert reported["exception.type"] == "ExecutionTimeoutError"
    assert {chunk.status.status_code for chunk in traces.chunks} <= {StatusCode.UNSET}


def test_a_stream_that_is_closed_early(traces: Traces, mode: str) -> None:
    """A cancelled execution has not failed."""
    stream = traces.stream(abs, iter(int, 1), executor=mode)
    assert next(stream) == 0
    stream.close()
    traces.recorder.wait_for(HookEvent.POST_EXECUTE, PATIENCE)
    traces.check()
    execution = traces.execution
    assert attribute(execution, "amorsize.status") == "cancelled"
    assert execution.status.status_code is StatusCode.UNSET
    assert attribute(execution, "error.type") == "ExecutionCancelledError"
    (reported,) = traces.events(execution, "execution cancelled")
    assert reported["exception.type"] == "ExecutionCancelledError"
    assert traces.events(execution, "exception") == []


def test_a_stream_that_waits_for_its_input_is_closed(traces: Traces) -> None:
    """The consumer's thread emits the end, and the span ends with it."""
    blocked = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        blocked.wait(PATIENCE)

    stream = traces.stream(abs, source(), executor="thread", n_jobs=1, chunksize=1)
    assert next(stream) == 1
    stream.close()
    traces.recorder.wait_for(HookEvent.POST_EXECUTE, PATIENCE)
    blocked.set()
    traces.check()
    assert attribute(traces.execution, "amorsize.status") == "cancelled"


def test_an_interrupt_ends_the_span(traces: Traces, mode: str) -> None:
    """Ctrl-C, here in the middle of a hook."""

    def interrupt(event: Any) -> None:
        raise KeyboardInterrupt

    traces.hooks.register(HookEvent.ON_CHUNK_COMPLETE, interrupt)
    with pytest.raises(KeyboardInterrupt):
        traces.execute(abs, range(8), executor=mode)
    traces.check()
    execution = traces.execution
    assert attribute(execution, "amorsize.status") == "cancelled"
    assert execution.status.status_code is StatusCode.UNSET
    assert traces.events(execution, "execution cancelled")


def test_an_interrupt_during_the_sample(traces: Traces) -> None:
    """The plan is not finished then; its span, and the execution's, are."""

    def interrupt(x: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        traces.execute(interrupt, range(8), n_jobs=None, chunksize=None)
    reported = traces.recorder.of(HookEvent.POST_EXECUTE)
    assert len([span for span in traces.spans if span.name.startswith("execute")]) == len(reported)
    assert traces.exporter._executions is not None
    assert traces.exporter._executions._traces == {}


def test_a_run_whose_plan_fails_leaves_no_span_open(traces: Traces) -> None:
    """It emits no event, and has no span."""

    class Broken:
        def __iter__(self) -> Iterator[int]:
            raise OSError("no such table")

    with pytest.raises(OSError, match="no such table"):
        traces.execute(abs, Broken(), executor="serial")
    assert traces.recorder.contexts == []
    assert traces.exporter._executions is not None
    assert traces.exporter._executions._traces == {}


def test_chunks_in_progress_when_an_execution_ends_are_no_orphans(traces: Traces) -> None:
    """The failure of one thread's chunk ends the run in the middle of the other's."""
    tracer = traces.user
    both = threading.Barrier(2)

    def work(x: int) -> None:
        with tracer.start_as_current_span("work"):
            both.wait(PATIENCE)
            if x == 0:
                raise ValueError("first")
            threading.Event().wait(0.3)

    with pytest.raises(ValueError, match="first"):
        traces.execute(work, range(2), executor="thread", chunksize=1)
    spans = {span.context.span_id: span for span in traces.spans}
    assert attribute(traces.execution, "amorsize.status") == "error"
    of_chunks = {chunk.context.span_id for chunk in traces.chunks}
    assert {parent_id(span) for span in spans.values() if span.name == "work"} <= of_chunks


# --- what the function does to its chunk's span, and spans of its own ----


def test_attributes_that_the_function_sets_on_the_current_span_are_on_its_chunk(
    traces: Traces, mode: str
) -> None:
    """Attributes, events, exceptions and a status."""

    def work(x: int) -> None:
        span = trace.get_current_span()
        span.set_attribute("rows", x)
        span.set_attributes({"names": ["a", "b"], "amorsize.chunk.id": 99})
        span.add_event("loaded", {"bytes": 7})
        span.record_exception(ValueError("odd"))
        span.set_status(Status(StatusCode.OK))
        span.update_name("mine")
        span.end()

    traces.execute(work, [5], executor=mode)
    traces.check()
    chunk = traces.chunk
    found = attributes(chunk)
    assert (found["rows"], found["names"], found["amorsize.chunk.id"]) == (5, ("a", "b"), 0)
    assert chunk.name == "chunk"
    assert chunk.status.status_code is StatusCode.OK
    assert traces.events(chunk, "loaded") == [{"bytes": 7}]
    (raised,) = traces.events(chunk, "exception")
    assert (raised["exception.type"], raised["exception.message"]) == ("ValueError", "odd")
    assert "ValueError: odd" in raised["exception.stacktrace"]
    for event in chunk.events:
        assert (chunk.start_time or 0) <= event.timestamp <= (chunk.end_time or 0)


def test_a_failure_prevails_over_the_functions_status(traces: Traces, mode: str) -> None:
    """The exception decides on the status of the chunk."""

    def work(x: int) -> None:
        trace.get_current_span().set_status(StatusCode.OK)
        raise ValueError("late")

    with pytest.raises(ValueError, match="late"):
        traces.execute(work, [1], executor=mode)
    assert_failed(traces.chunk, "ValueError", "late", "raise ValueError")


def test_spans_of_the_function_arrive_whole(traces: Traces, mode: str) -> None:
    """Kind, links, events, status, scope and nesting, with ids that the function saw."""
    tracer = traces.provider.get_tracer("library", "1.2", "https://schema", {"tier": "gold"})
    linked = trace.SpanContext(0xABC, 0xDEF, is_remote=True)

    def work(x: int) -> list[str]:
        with tracer.start_as_current_span(
            "outer", kind=SpanKind.CLIENT, links=[trace.Link(linked, {"why": "batch"})]
        ) as outer:
            outer.add_event("sent", {"bytes": 3})
            with tracer.start_as_current_span("inner", attributes={"x": x}) as inner:
                inner.set_status(StatusCode.ERROR, "refused")
            return [f"{span.get_span_context().span_id:x}" for span in (outer, inner)]

    ((outer_id, inner_id),) = traces.execute(work, [5], executor=mode)
    traces.check()
    (outer,), (inner,) = traces.named("outer"), traces.named("inner")
    assert (f"{outer.context.span_id:x}", f"{inner.context.span_id:x}") == (outer_id, inner_id)
    assert parent_id(outer) == traces.chunk.context.span_id
    assert parent_id(inner) == outer.context.span_id
    assert outer.kind is SpanKind.CLIENT
    (link,) = outer.links
    assert (link.context.trace_id, link.context.span_id) == (0xABC, 0xDEF)
    assert dict(link.attributes or {}) == {"why": "batch"}
    assert traces.events(outer, "sent") == [{"bytes": 3}]
    assert attributes(inner) == {"x": 5}
    assert (inner.status.status_code, inner.status.description) == (StatusCode.ERROR, "refused")
    scope = outer.instrumentation_scope
    assert scope is not None
    assert (scope.name, scope.version, scope.schema_url) == ("library", "1.2", "https://schema")
    assert dict(scope.attributes or {}) == {"tier": "gold"}
    assert outer.resource.attributes == {"service.name": "tests"}


def test_roots_that_the_function_opens_stay_roots(traces: Traces, mode: str) -> None:
    """A new trace begun in a worker is not moved into ours."""
    tracer = traces.user

    def work(x: int) -> None:
        job = tracer.start_as_current_span("job", context=context.Context())
        with job, tracer.start_as_current_span("step"):
            pass

    traces.execute(work, [5], executor=mode)
    (job,), (step,) = traces.named("job"), traces.named("step")
    assert job.parent is None
    assert job.context.trace_id not in (0, traces.execution.context.trace_id)
    assert step.context.trace_id == job.context.trace_id
    assert parent_id(step) == job.context.span_id


def test_baggage_of_the_caller_is_there(traces: Traces, mode: str, api: str) -> None:
    """W3C baggage crosses like the trace itself."""

    def work(x: int) -> Any:
        return baggage.get_baggage("tenant")

    token = context.attach(baggage.set_baggage("tenant", "acme"))
    try:
        assert run(traces, api, work, [1], executor=mode) == ["acme"]
    finally:
        context.detach(token)


def test_the_context_that_the_function_sends_on_names_its_chunk(traces: Traces, mode: str) -> None:
    """What an instrumented HTTP client would inject."""

    def work(x: int) -> dict[str, str]:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        return carrier

    (carrier,) = traces.execute(work, [1], executor=mode)
    ours = traces.chunk.context
    flags = ours.trace_flags
    assert flags.sampled
    assert carrier["traceparent"] == f"00-{ours.trace_id:032x}-{ours.span_id:016x}-{flags:02x}"


def test_nothing_is_current_after_a_run(traces: Traces) -> None:
    """Each chunk detaches what it attached, whatever happened in it."""
    before = context.get_current()
    with pytest.raises(KeyError):
        traces.execute(fail_at(1), range(4), executor="serial")
    assert context.get_current() == before


@pytest.mark.parametrize("inner_mode", ["serial", "thread"])
def test_runs_inside_of_the_function_belong_to_the_trace(
    traces: Traces, mode: str, inner_mode: str
) -> None:
    """Their spans are below the chunk that began them, on whatever thread they end."""
    tracer, hooks = traces.user, traces.hooks if mode != "process" else None

    def leaf(x: int) -> int:
        with tracer.start_as_current_span("leaf"):
            return x

    def work(x: int) -> list[int]:
        options: dict[str, Any] = {"executor": inner_mode, "n_jobs": 2, "chunksize": 1}
        return amorsize.execute(leaf, range(x, x + 2), hooks=hooks, **options)

    results = traces.execute(work, range(2), executor=mode, chunksize=1)
    assert results == [[0, 1], [1, 2]]
    spans = traces.spans
    assert len({span.context.trace_id for span in spans}) == 1
    leaves = [span for span in spans if span.name == "leaf"]
    assert len(leaves) == 4
    if mode == "process":  # no exporter observes the inner runs
        outer = {chunk.context.span_id for chunk in traces.named("chunk")}
        assert {parent_id(span) for span in leaves} == outer
    else:
        traces.check()
        assert len([span for span in spans if span.name.startswith("execute")]) == 3


def test_spans_that_end_after_their_chunk_ride_with_the_next(traces: Traces) -> None:
    """As those of a background thread of the worker do."""
    tracer = traces.user

    def work(x: int) -> None:
        held = getattr(sys, "_held_span", None)
        if held is not None:
            held.end()
        sys._held_span = None if x == 3 else tracer.start_span(f"from {x}")  # type: ignore[attr-defined]

    traces.execute(work, range(4), executor="process", n_jobs=1, chunksize=1)
    chunks = traces.chunks
    for x in range(3):
        (span,) = traces.named(f"from {x}")
        assert parent_id(span) == chunks[x].context.span_id


def test_spans_of_an_untraced_run_are_not_sent_back_with_another(traces: Traces) -> None:
    """Workers stay warm between the two."""
    tracer = traces.user

    def work(x: int) -> int:
        with tracer.start_as_current_span(f"item {x}"):
            return os.getpid()

    (first,) = traces.execute(work, [1], executor="process", n_jobs=1)
    (second,) = amorsize.execute(work, [2], executor="process", n_jobs=1)
    (third,) = traces.execute(work, [3], executor="process", n_jobs=1)
    assert first == second == third
    assert [span.name for span in traces.spans if span.name.startswith("item")] == [
        "item 1",
        "item 3",
    ]


@pytest.mark.parametrize("spans_a_chunk", [256, 300])
def test_user_spans_of_a_chunk_are_bounded_and_counted(traces: Traces, spans_a_chunk: int) -> None:
    """Those that ended first are sent back."""
    tracer = traces.user

    def work(x: int) -> None:
        for number in range(spans_a_chunk):
            with tracer.start_as_current_span("small", attributes={"number": number}):
                pass

    traces.execute(work, [1], executor="process", n_jobs=1)
    traces.check()
    numbers = [attribute(span, "number") for span in traces.named("small")]
    assert numbers == list(range(256))
    assert attribute(traces.execution, "amorsize.spans.dropped") == spans_a_chunk - 256


def test_without_instrumented_workers_the_context_alone_crosses(
    make: Callable[..., Traces], mode: str
) -> None:
    """Spans of workers stay there; those of this process are the application's own."""
    traces = make(instrument_workers=False)
    tracer = traces.user

    def work(x: int) -> str:
        with tracer.start_as_current_span("work"):
            return f"{trace.get_current_span().get_span_context().trace_id:032x}"

    if mode == "process":  # whose spans would otherwise be kept since the last run
        amorsize.shutdown()
    (trace_id,) = traces.execute(work, [1], executor=mode)
    traces.check()
    assert trace_id == f"{traces.execution.context.trace_id:032x}"
    assert len(traces.named("work")) == (0 if mode == "process" else 1)


# --- the trace in events ----


def test_events_of_chunks_hold_the_spans_that_were_sent_back(traces: Traces, mode: str) -> None:
    """Once a chunk, in the metadata of whichever event ends it."""
    tracer = traces.user

    def work(x: int) -> None:
        trace.get_current_span().set_attribute("rows", x)
        with tracer.start_as_current_span("work"):
            if x == 2:
                raise ValueError("two")

    with pytest.raises(ValueError, match="two"):
        traces.execute(work, range(3), executor=mode, n_jobs=1, chunksize=1)
    ended = [
        event
        for event in traces.recorder.contexts
        if event.event in (HookEvent.ON_CHUNK_COMPLETE, HookEvent.ON_ERROR)
    ]
    assert [event.metadata["trace"]["attributes"] for event in ended] == [
        {"rows": x} for x in range(3)
    ]
    for event in ended:
        came_home = [span[0] for span in event.metadata["trace"].get("spans", [])]
        assert came_home == (["work"] if mode == "process" else [])
        assert event.metadata["dispatched_at"] <= event.metadata["started_at"] + 0.001
        assert "chunk_completes" not in event.metadata


def test_an_error_holds_whether_its_chunk_completes(traces: Traces, mode: str) -> None:
    """Returned spans are reported once, with the chunk's results."""
    traces.execute(fail_at(1), range(4), executor=mode, return_exceptions=True)
    (error,) = traces.recorder.of(HookEvent.ON_ERROR)
    assert error.metadata["chunk_completes"] is True
    assert "trace" not in error.metadata
    completed = [event.chunk_id for event in traces.recorder.of(HookEvent.ON_CHUNK_COMPLETE)]
    assert error.chunk_id in completed


def test_an_error_whose_chunk_is_lost_does_not_claim_that_it_completes(traces: Traces) -> None:
    """A death has no ON_CHUNK_COMPLETE of that chunk."""
    traces.execute(exit_at_four, range(8), executor="process", return_exceptions=True)
    deaths = traces.recorder.of(HookEvent.ON_ERROR)
    completed = {event.chunk_id for event in traces.recorder.of(HookEvent.ON_CHUNK_COMPLETE)}
    assert deaths
    for death in deaths:
        assert "chunk_completes" not in death.metadata
        assert death.chunk_id not in completed
        assert death.metadata["span_id"] in {
            f"{chunk.context.span_id:016x}" for chunk in traces.chunks
        }


def test_the_plan_and_the_execution_have_the_execution_s_ids(traces: Traces, mode: str) -> None:
    """Those of the span that was exported."""
    traces.execute(abs, range(4), executor=mode)
    execution = traces.execution.context
    for event in traces.recorder.contexts:
        assert event.metadata["trace_id"] == f"{execution.trace_id:032x}"
        if event.chunk_id is None:
            assert event.metadata["span_id"] == f"{execution.span_id:016x}"


# --- the caller's span ----


@pytest.mark.parametrize("api", ["execute", "stream"])
def test_the_execution_continues_a_trace_from_elsewhere(traces: Traces, api: str) -> None:
    """A remote parent, as a web framework makes of a request's headers."""
    remote = trace.SpanContext(0x123, 0x456, is_remote=True, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(remote)):
        run(traces, api, abs, [1], executor="process")
    execution = traces.execution
    assert execution.parent is not None
    assert (execution.parent.trace_id, execution.parent.span_id) == (0x123, 0x456)
    assert execution.context.trace_id == 0x123
    traces.check()


def test_hooks_see_the_callers_span(traces: Traces, mode: str, api: str) -> None:
    """As ever: the execution's is for what happens in its chunks."""
    seen = set()
    traces.hooks.register(
        HookEvent.ON_CHUNK_COMPLETE,
        lambda event: seen.add(trace.get_current_span().get_span_context().span_id),
    )
    with traces.user.start_as_current_span("caller") as caller:
        run(traces, api, abs, range(4), executor=mode)
    assert seen == {caller.get_span_context().span_id}


# --- sampling ----


def test_an_unsampled_execution_costs_and_exports_nothing(
    make: Callable[..., Traces], mode: str
) -> None:
    """Results are right, events have no ids, and no span is sent back."""
    traces = make(sampler=ALWAYS_OFF)
    tracer = traces.user

    def work(x: int) -> tuple[bool, bool]:
        with tracer.start_as_current_span("work") as span:
            return span.is_recording(), span.get_span_context().trace_flags.sampled

    assert traces.execute(work, range(4), executor=mode) == [(False, False)] * 4
    assert traces.spans == []
    for event in traces.recorder.contexts:
        assert not {"trace_id", "span_id"} & event.metadata.keys()
        assert event.metadata.get("trace", {}).keys() <= {"live"}


def test_a_caller_that_is_not_sampled_is_followed(make: Callable[..., Traces], mode: str) -> None:
    """By a sampler that heeds the parent, as the SDK's default does."""
    traces = make(sampler=ParentBased(ALWAYS_ON))
    parent = trace.SpanContext(1, 2, is_remote=True)
    with trace.use_span(trace.NonRecordingSpan(parent)):
        traces.execute(abs, range(4), executor=mode)
    assert traces.spans == []
    traces.recorder.contexts.clear()
    traces.execute(abs, range(4), executor=mode)
    traces.check()


def test_a_share_of_executions_is_sampled_whole(make: Callable[..., Traces]) -> None:
    """A trace is there with all of its spans, or not at all."""
    traces = make(sampler=TraceIdRatioBased(0.5))
    tracer = traces.user

    def work(x: int) -> None:
        with tracer.start_as_current_span("work"):
            pass

    executors = ["serial", "thread", "process"] * 20
    for executor in executors:
        traces.execute(work, range(4), executor=executor)
    of_trace: dict[int, list[str]] = {}
    for span in traces.spans:
        of_trace.setdefault(span.context.trace_id, []).append(span.name.split()[0])
    assert 0 < len(of_trace) < len(executors)
    whole = ["chunk", "chunk", "execute", "plan", "work", "work", "work", "work"]
    assert {tuple(sorted(names)) for names in of_trace.values()} == {tuple(whole)}


class NoChunks(Sampler):
    """Decides by name, as a sampler of the application's may."""

    def should_sample(self, parent_context: Any, trace_id: int, name: str, *args: Any) -> Any:
        chosen = ALWAYS_OFF if name == "chunk" else ALWAYS_ON
        return chosen.should_sample(parent_context, trace_id, name, *args)

    def get_description(self) -> str:
        return "no chunks"


def test_the_applications_sampler_has_the_last_word(make: Callable[..., Traces], mode: str) -> None:
    """It is asked for chunks as for any span."""
    traces = make(sampler=NoChunks())
    traces.execute(abs, range(4), executor=mode)
    assert sorted(span.name for span in traces.spans) == ["execute builtins.abs", "plan"]


# --- the budget ----


@pytest.mark.parametrize("most", [0, 1, 2, 5])
def test_no_more_chunks_than_allowed(make: Callable[..., Traces], mode: str, most: int) -> None:
    """What the function opens shares the fate of its chunk, in every mode."""
    traces = make(max_chunk_spans=most)
    tracer = traces.user

    def work(x: int) -> None:
        with tracer.start_as_current_span("work"):
            pass

    traces.execute(work, range(20), executor=mode)
    execution = traces.execution
    assert len(traces.chunks) == most
    assert attribute(execution, "amorsize.chunks.total") == 10
    assert attribute(execution, "amorsize.chunks.untraced") == 10 - most
    kept = {chunk.context.span_id for chunk in traces.chunks}
    works = traces.named("work")
    assert {parent_id(span) for span in works} <= kept
    if mode == "process":
        assert len(works) == 2 * most
        assert attribute(execution, "amorsize.spans.dropped") == 2 * (10 - most)
    else:  # what was not granted a place beforehand opens no spans
        assert len(works) == 2 * ((most + 1) // 2)


def test_failed_chunks_are_kept_wherever_they_are(make: Callable[..., Traces], mode: str) -> None:
    """Three failures at the end of many chunks, in a budget of eight."""
    traces = make(max_chunk_spans=8)

    def work(x: int) -> None:
        if x >= 47:
            raise ValueError(str(x))

    traces.execute(work, range(50), executor=mode, chunksize=1, return_exceptions=True)
    failed = [chunk for chunk in traces.chunks if chunk.status.status_code is StatusCode.ERROR]
    assert sorted(attribute(chunk, "amorsize.chunk.start") for chunk in failed) == [47, 48, 49]
    assert len(traces.chunks) == 8
    assert attribute(traces.execution, "amorsize.chunks.untraced") == 42


def test_slow_chunks_are_kept_wherever_they_are(make: Callable[..., Traces], mode: str) -> None:
    """Longer than all others by far, in the middle of the run."""
    traces = make(max_chunk_spans=4)
    longest = 0.2 * slowness()

    def work(x: int) -> None:
        if x == 20:
            time.sleep(longest)

    traces.execute(work, range(40), executor=mode, chunksize=1)
    assert 20 in [attribute(chunk, "amorsize.chunk.start") for chunk in traces.chunks]
    assert len(traces.chunks) == 4


def test_early_chunks_are_exported_while_the_run_goes_on(traces: Traces, mode: str) -> None:
    """So that a long run can be watched."""
    seen: list[list[str]] = []
    traces.hooks.register(
        HookEvent.ON_CHUNK_COMPLETE,
        lambda event: seen.append([span.name for span in traces.spans]),
    )
    traces.execute(abs, range(6), executor=mode, n_jobs=1)
    assert [names.count("chunk") for names in seen] == [1, 2, 3]
    assert all(names[0] == "plan" for names in seen)


def test_lost_chunks_take_no_more_than_their_share(make: Callable[..., Traces]) -> None:
    """Threads that hang were granted places, and chunks that the parent makes ask for one, too."""
    traces = make(max_chunk_spans=3)

    def work(x: int) -> None:
        if x % 2:
            threading.Event().wait(60)

    results = traces.execute(
        work,
        range(4),
        executor="thread",
        chunksize=1,
        item_timeout=0.2 * slowness(),
        return_exceptions=True,
    )
    assert [isinstance(result, ItemTimeoutError) for result in results] == [False, True] * 2
    execution = traces.execution
    total = attribute(execution, "amorsize.chunks.total")
    untraced = attribute(execution, "amorsize.chunks.untraced")
    assert total > 4
    assert len(traces.chunks) == total - untraced <= 3


# --- providers ----


@pytest.mark.parametrize("sampler", [ALWAYS_ON, ALWAYS_OFF])
def test_a_provider_that_hides_its_ids_makes_the_same_tree(
    make: Callable[..., Traces], mode: str, sampler: Sampler
) -> None:
    """Ids change on the way, and children follow their parents."""
    traces = make(hidden=True, sampler=sampler)
    tracer = traces.user

    def work(x: int) -> int:
        with tracer.start_as_current_span("outer"), tracer.start_as_current_span("inner"):
            return x

    assert traces.execute(work, range(4), executor=mode) == list(range(4))
    if sampler is ALWAYS_OFF:
        assert traces.spans == []
        return
    spans = {span.context.span_id: span for span in traces.spans}
    assert sorted(span.name.split()[0] for span in spans.values()) == sorted(
        ["execute", "plan", "chunk", "chunk"] + 4 * ["outer", "inner"]
    )
    for span in spans.values():
        if span.name in ("plan", "chunk"):
            assert parent_id(span) == traces.execution.context.span_id
        if span.name == "inner":
            assert spans[parent_id(span) or 0].name == "outer"
        if span.name == "outer":
            above = spans[parent_id(span) or 0].name
            assert above == ("chunk" if mode == "process" else traces.execution.name)


def test_limits_of_the_provider_apply(make: Callable[..., Traces], mode: str) -> None:
    """To amorsize's spans, and to those of workers."""
    limits = SpanLimits(max_span_attributes=3, max_attribute_length=4, max_events=1)
    traces = make(limits=limits)
    tracer = traces.user

    def work(x: int) -> None:
        with tracer.start_as_current_span("work") as span:
            span.set_attribute("text", "much too long")
            span.add_event("first")
            span.add_event("second")

    traces.execute(work, [1], executor=mode)
    (work_span,) = traces.named("work")
    assert attribute(work_span, "text") == "much"
    assert [event.name for event in work_span.events] == ["second"]
    assert len(attributes(traces.chunk)) == 3
    assert all(len(value) <= 4 for value in attributes(traces.chunk).values() if type(value) is str)


class Failing(SpanProcessor):
    """Raises wherever it can, for spans of one name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if span.name.startswith(self.name):
            raise RuntimeError("processor broken at the start")

    def on_end(self, span: ReadableSpan) -> None:
        if span.name.startswith(self.name):
            raise RuntimeError("processor broken at the end")


@pytest.mark.parametrize("name", ["execute", "plan", "chunk"])
def test_a_failing_span_processor_fails_no_run(
    traces: Traces, mode: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged; everything else is reported."""
    traces.provider.add_span_processor(Failing(name))
    assert traces.execute(abs, range(-4, 0), executor=mode) == [4, 3, 2, 1]
    assert traces.recorder.events[-1] is HookEvent.POST_EXECUTE
    if name != "execute":
        assert attribute(traces.execution, "amorsize.status") == "ok"
    else:
        assert "No trace can be begun" in caplog.text


class BrokenProvider(trace.TracerProvider):
    def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
        raise RuntimeError("no tracer for you")


def test_a_broken_provider_fails_no_run(
    hooks: HookManager, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once."""
    with OpenTelemetryExporter(tracer_provider=BrokenProvider(), metrics=False).attach(hooks):
        for _ in range(2):
            assert amorsize.execute(abs, [-1], executor="serial", hooks=hooks) == [1]
    assert caplog.text.count("Executions have no traces") == 1
    assert caplog.text.count("no tracer for you") == 1


def test_ctrl_c_while_providers_are_looked_up_costs_no_later_trace(hooks: HookManager) -> None:
    """The next execution looks again."""
    interrupts = iter([KeyboardInterrupt()])

    class Slow(TracerProvider):
        def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
            for interrupt in interrupts:
                raise interrupt
            return super().get_tracer(*args, **kwargs)

    provider, kept = Slow(shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    with OpenTelemetryExporter(tracer_provider=provider, metrics=False).attach(hooks):
        with pytest.raises(KeyboardInterrupt):
            amorsize.execute(abs, [-1], executor="serial", hooks=hooks)
        assert amorsize.execute(abs, [-1], executor="serial", hooks=hooks) == [1]
    assert "execute builtins.abs" in [span.name for span in kept.get_finished_spans()]


def test_a_provider_that_makes_nothing_is_no_trace(hooks: HookManager, mode: str) -> None:
    """As the SDK's own is when it is disabled; a remote parent stays what is current."""
    remote = trace.SpanContext(0x123, 0x456, is_remote=True, trace_flags=trace.TraceFlags(1))
    provider = trace.NoOpTracerProvider()

    def work(x: int) -> int:
        return trace.get_current_span().get_span_context().trace_id

    with OpenTelemetryExporter(tracer_provider=provider, metrics=False).attach(hooks):
        assert amorsize.execute(work, [1], executor=mode, hooks=hooks) == [0]
        with trace.use_span(trace.NonRecordingSpan(remote)):
            results = amorsize.execute(work, [1], executor=mode, hooks=hooks)
    assert results == [0x123]


# --- enabling and ending ----


@pytest.mark.parametrize("name", ["tracer_provider", "meter_provider"])
def test_something_that_is_no_provider_is_refused(name: str) -> None:
    """What was given, and what is allowed."""
    with pytest.raises(InvalidTypeError, match=f"{name} must be an OpenTelemetry provider.*got st"):
        OpenTelemetryExporter(**{name: "otlp"})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["traces", "metrics", "instrument_workers"])
def test_switches_are_true_or_false(name: str) -> None:
    """Not 1, nor a word."""
    with pytest.raises(InvalidTypeError, match=f"{name} must be True or False; got 'yes'"):
        OpenTelemetryExporter(**{name: "yes"})  # type: ignore[arg-type]


def test_the_budget_is_a_whole_number() -> None:
    """From 0 on."""
    for wrong in (1.5, "9", None, True):
        with pytest.raises(InvalidTypeError, match="max_chunk_spans must be a whole number; got"):
            OpenTelemetryExporter(max_chunk_spans=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="max_chunk_spans must be 0 or more; got -1"):
        OpenTelemetryExporter(max_chunk_spans=-1)


@pytest.mark.parametrize("module", ["opentelemetry.sdk.trace", "opentelemetry.trace"])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """With the extra that installs it."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"opentelemetry-sdk.*amorsize\[otel\]"):
        OpenTelemetryExporter()


def test_enabling_twice_gives_the_same_exporter() -> None:
    """Other settings are an error that names them."""
    provider = Traces().provider
    settings: dict[str, Any] = {"tracer_provider": provider, "metrics": False}
    with enable_opentelemetry(**settings) as exporter:
        assert enable_opentelemetry(**settings) is exporter
        with pytest.raises(ExporterError, match="another max_chunk_spans"):
            enable_opentelemetry(**settings, max_chunk_spans=7)
    with enable_opentelemetry(**settings, max_chunk_spans=7) as another:
        assert another is not exporter


def test_after_close_nothing_is_traced(traces: Traces, mode: str) -> None:
    """Nor is anything asked at the beginning of executions."""
    traces.execute(abs, [1], executor=mode)
    before = len(traces.spans)
    traces.exporter.close()
    traces.exporter.close()
    assert traces.exporter not in trace_link._sources
    assert traces.execute(abs, [-1], executor=mode) == [1]
    assert len(traces._kept.get_finished_spans()) == before


def test_closing_ends_the_spans_of_executions_in_progress(traces: Traces) -> None:
    """Their chunks, which have left, are no orphans."""
    traces.hooks.register(HookEvent.ON_CHUNK_COMPLETE, lambda event: traces.exporter.close())
    traces.execute(abs, range(8), executor="serial")
    spans = traces._kept.get_finished_spans()
    (execution,) = [span for span in spans if span.name.startswith("execute")]
    assert {parent_id(span) for span in spans} == {None, execution.context.span_id}
    assert "amorsize.status" not in attributes(execution)


def test_two_exporters_make_one_trace(traces: Traces, make: Callable[..., Traces]) -> None:
    """The first is asked; the second has no data."""
    other = make()
    other.exporter.attach(traces.hooks)
    traces.execute(abs, range(4), executor="serial")
    traces.check()
    assert other.spans == []


def test_executions_of_other_managers_are_not_traced(traces: Traces, hooks: HookManager) -> None:
    """The exporter observes only runs of its own manager."""
    amorsize.execute(abs, [1], executor="serial", hooks=hooks)
    assert traces.spans == []


def test_traces_can_be_left_out(hooks: HookManager) -> None:
    """With metrics alone, nobody is asked at the beginning of an execution."""
    with OpenTelemetryExporter(traces=False, metrics=False).attach(hooks) as exporter:
        assert exporter not in trace_link._sources
        amorsize.execute(abs, [1], executor="serial", hooks=hooks)
        assert exporter._executions is None


# --- the program's own providers: set once a process, so each in a program of its own ----


def run_program(script: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env={**clean, **environment},
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.strip()


def test_a_provider_that_is_set_later_is_used_and_stays() -> None:
    """Up to the first execution; a meter provider is not made beside it."""
    said = run_program(
        """
        import amorsize
        exporter = amorsize.enable_opentelemetry()
        from opentelemetry import metrics, trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        spans, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(spans))
        trace.set_tracer_provider(provider)
        tracer = trace.get_tracer("user")

        def work(x):
            with tracer.start_as_current_span("work"):
                return x

        for executor in ("serial", "thread", "process"):
            amorsize.execute(work, [1], executor=executor)
        print([span.name.split(" ")[0] for span in spans.get_finished_spans()].count("work"))
        print(trace.get_tracer_provider() is provider, exporter._own_tracing, exporter._own_metrics)
        print(type(metrics.get_meter_provider()).__name__)
        """
    )
    assert said.split("\n") == ["3", "True None None", "_ProxyMeterProvider"]


def test_where_there_is_no_provider_spans_leave_at_once() -> None:
    """Those of tracers made before and after; the first execution sets the provider for good."""
    said = run_program(
        """
        import amorsize
        from opentelemetry import trace

        before = trace.get_tracer("before")
        exporter = amorsize.enable_opentelemetry()
        after = trace.get_tracer("after")
        for tracer in (before, after):
            with tracer.start_as_current_span("early") as span:
                print(span.is_recording())
        assert amorsize.enable_opentelemetry() is exporter
        amorsize.execute(abs, [-1], executor="serial")
        print(trace.get_tracer_provider() is exporter._own_tracing.provider)
        print(after.start_span("late").is_recording())
        """,
        OTEL_TRACES_EXPORTER="none",
        OTEL_METRICS_EXPORTER="none",
    )
    assert said.split("\n") == ["True"] * 4


def test_tracers_of_before_give_way_to_a_provider_that_is_set_later() -> None:
    """What has begun before it leaves by ours; everything later by the program's."""
    said = run_program(
        """
        import amorsize
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        exporter = amorsize.enable_opentelemetry()
        tracer = trace.get_tracer("module")
        early = tracer.start_span("early")
        spans, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(spans))
        trace.set_tracer_provider(provider)
        tracer.start_span("late").end()
        amorsize.execute(abs, [-1], executor="serial")
        early.end()
        assert trace.get_tracer_provider() is provider
        print([span.name.split(" ")[0] for span in spans.get_finished_spans()])
        """,
        OTEL_TRACES_EXPORTER="console",
        OTEL_METRICS_EXPORTER="none",
    )
    assert re.findall(r'^    "name": "(\w+)', said, re.M) == ["early"]
    assert "['late', 'plan', 'chunk', 'execute']" in said


def test_an_exporter_that_closes_before_the_first_execution_leaves_no_provider() -> None:
    """A program can still set its own."""
    said = run_program(
        """
        import amorsize
        from opentelemetry import trace
        amorsize.enable_opentelemetry().close()
        print(type(trace.get_tracer_provider()).__name__)
        """,
        OTEL_TRACES_EXPORTER="none",
    )
    assert said == "ProxyTracerProvider"


CONFIGURATION = """
file_format: "1.0"
tracer_provider:
  processors:
    - simple:
        exporter:
          console: {}
"""

CONFIGURED = """
import amorsize
from opentelemetry import metrics, trace

exporter = amorsize.enable_opentelemetry()
trace.get_tracer("user").start_span("before").end()
amorsize.execute(abs, [-1], executor="serial")
print("own:", exporter._own_tracing, exporter._own_metrics)
print("meters:", type(metrics.get_meter_provider()).__name__)
"""


def test_a_configuration_file_is_honoured(tmp_path: Path) -> None:
    """Its providers are used; a signal that it leaves out is not sent, whatever variables say."""
    pytest.importorskip("opentelemetry.configuration")  # of an SDK newer than the lowest
    (tmp_path / "otel.yaml").write_text(CONFIGURATION)
    said = run_program(
        CONFIGURED,
        OTEL_CONFIG_FILE=str(tmp_path / "otel.yaml"),
        OTEL_TRACES_EXPORTER="none",
        OTEL_METRICS_EXPORTER="console",
    )
    assert re.findall(r'^    "name": "(\w+)', said, re.M) == ["before", "plan", "chunk", "execute"]
    assert said.endswith("own: None None\nmeters: _ProxyMeterProvider")
    assert "amorsize.items.processed" not in said


@pytest.mark.parametrize(
    ("before", "says"),
    [
        ("", r"the file of OTEL_CONFIG_FILE cannot be applied: \w+: .*nowhere\.yaml"),
        (
            "import sys; sys.modules['opentelemetry.configuration'] = None\n",
            r"OTEL_CONFIG_FILE is set, which needs the package 'opentelemetry-configuration'\. "
            r"Install it with: pip install",
        ),
    ],
    ids=["no file", "no package"],
)
def test_a_configuration_file_that_cannot_be_honoured_is_said(before: str, says: str) -> None:
    """Nothing is sent to where other variables point: the file says otherwise."""
    if not before:
        pytest.importorskip("opentelemetry.configuration")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", before + CONFIGURED],
        capture_output=True,
        text=True,
        env={**clean, "OTEL_CONFIG_FILE": "/nowhere.yaml", "OTEL_TRACES_EXPORTER": "console"},
    )
    assert (done.returncode, done.stdout) == (0, "own: None None\nmeters: _ProxyMeterProvider\n")
    ours = [line for line in done.stderr.splitlines() if "of executions" in line]
    assert len(ours) == 1
    assert re.match(f"There are no traces and no metrics of executions: {says}", ours[0])


def test_the_sdk_can_be_disabled() -> None:
    """Then there is neither a trace nor a metric, and everything runs."""
    said = run_program(
        """
        import amorsize
        from amorsize.testing import RecordingHook
        amorsize.enable_opentelemetry()
        recorder = RecordingHook().attach(amorsize.get_default_manager())
        for executor in ("serial", "thread", "process"):
            assert amorsize.execute(abs, [-1], executor=executor) == [1]
        print(any("trace_id" in context.metadata for context in recorder.contexts))
        """,
        OTEL_SDK_DISABLED="true",
        OTEL_TRACES_EXPORTER="console",
        OTEL_METRICS_EXPORTER="console",
    )
    assert said == "False"


@pytest.mark.parametrize(
    ("variable", "traced", "measured"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", True, True),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", True, True),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", True, False),
        ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", False, True),
        ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", False, False),
        ("OTEL_TRACES_EXPORTER", True, False),
        ("OTEL_METRICS_EXPORTER", False, True),
        ("OTEL_LOGS_EXPORTER", False, False),
        ("OTEL_SERVICE_NAME", False, False),
    ],
)
def test_which_variables_ask_for_a_signal(
    monkeypatch: pytest.MonkeyPatch, variable: str, traced: bool, measured: bool
) -> None:
    """Where the program has a provider for the other one."""
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    assert not opentelemetry._asks_for_otlp("TRACES")
    monkeypatch.setenv(variable, "none")
    assert opentelemetry._asks_for_otlp("TRACES") is traced
    assert opentelemetry._asks_for_otlp("METRICS") is measured


def test_the_other_signal_is_sent_where_a_variable_asks_for_it() -> None:
    """Beside a tracer provider of the program's own, which stays."""
    said = run_program(
        """
        import amorsize
        from opentelemetry import metrics, trace
        from opentelemetry.sdk.trace import TracerProvider
        provider = TracerProvider(shutdown_on_exit=False)
        trace.set_tracer_provider(provider)
        exporter = amorsize.enable_opentelemetry()
        amorsize.execute(abs, [1], executor="serial")
        print(trace.get_tracer_provider() is provider, exporter._own_tracing)
        print(metrics.get_meter_provider() is exporter._own_metrics.provider)
        """,
        OTEL_METRICS_EXPORTER="none",
    )
    assert said.split("\n") == ["True None", "True"]


@pytest.mark.parametrize("mode", ["serial", "thread"])
def test_spans_in_this_process_are_all_there_where_the_budget_has_room(mode: str) -> None:
    """Not those of its live half alone: the plan says how many chunks will come."""
    spans, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracer = provider.get_tracer("user")

    def work(x: int) -> None:
        tracer.start_span("step").end()

    hooks = HookManager()
    with OpenTelemetryExporter(tracer_provider=provider, metrics=False, max_chunk_spans=40).attach(
        hooks
    ):
        amorsize.execute(work, range(40), executor=mode, n_jobs=2, chunksize=1, hooks=hooks)
    names = [span.name for span in spans.get_finished_spans()]
    assert (names.count("chunk"), names.count("step")) == (40, 40)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork()")
def test_a_forked_child_reports_nothing() -> None:
    """It runs, and its spans would otherwise be the parent's a second time."""
    said = run_program(
        """
        import os, sys
        import amorsize
        from amorsize.workers import trace_link
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        spans, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(spans))
        settings = {"tracer_provider": provider, "metrics": False}
        exporter = amorsize.enable_opentelemetry(**settings)

        def run():
            assert amorsize.execute(abs, [-1], executor="serial") == [1]
            print(exporter.active, exporter in trace_link._sources, len(spans.get_finished_spans()))

        run()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            try:
                run()
                sys.stdout.flush()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        run()
        """
    )
    assert said.split("\n") == ["True True 3", "False False 3", "True True 6"]
