"""The trace inside a chunk: the current span there, and the returned spans."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
from typing import Any

import cloudpickle
import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Status, StatusCode

import amorsize
from amorsize.exporters.opentelemetry.exporter import OpenTelemetryExporter
from amorsize.workers import otel_context
from amorsize.workers.otel_context import (
    MAX_EVENTS,
    ChunkTrace,
    WorkerProvider,
    make_tracers_picklable,
    use_in_worker,
)
from amorsize.workers.trace_link import TraceLink, chunk_span_id

TRACE, EXECUTION = 0xABC, 0x77


def make_link(*, here: bool = False, **fields: Any) -> TraceLink:
    """A link from this process, or as a worker has it."""
    flags = "01" if fields.get("sampled", True) else "00"
    plain: dict[str, Any] = {
        "carrier": {
            "traceparent": f"00-{TRACE:032x}-{EXECUTION:016x}-{flags}",
            "tracestate": "vendor=1",
            "baggage": "tenant=acme",
        },
        "trace_id": TRACE,
        "span_id": EXECUTION,
        "sampled": True,
        "capture": True,
        "max_spans": 10,
        "live": 5,
        "pid": os.getpid() if here else os.getpid() + 1,
    }
    return TraceLink(**plain | fields)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> WorkerProvider:
    """This process as a worker that no provider was set in."""
    provider = WorkerProvider()
    monkeypatch.setattr(otel_context, "worker_provider", provider)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    return provider


def names(taken: dict[str, Any] | None) -> list[str]:
    return [span[0] for span in (taken or {}).get("spans", [])]


# --- what is current ----


@pytest.mark.parametrize("here", [True, False])
def test_the_chunks_span_is_current(worker: WorkerProvider, here: bool) -> None:
    """From enter() to leave(), with the id that the parent derives as well."""
    collector = ChunkTrace(make_link(here=here), 4)
    before = context.get_current()
    collector.enter()
    span = trace.get_current_span()
    found = span.get_span_context()
    assert (found.trace_id, found.span_id) == (TRACE, chunk_span_id(EXECUTION, 4))
    assert found.trace_flags.sampled
    assert dict(found.trace_state) == {"vendor": "1"}
    assert span.is_recording()
    assert baggage.get_baggage("tenant") == (None if here else "acme")
    collector.leave()
    assert context.get_current() == before
    collector.leave()
    assert context.get_current() == before


def test_in_the_callers_process_its_context_stays() -> None:
    """With whatever it holds beside the span."""
    token = context.attach(context.set_value("mine", 5))
    try:
        collector = ChunkTrace(make_link(here=True), 0)
        collector.enter()
        assert context.get_value("mine") == 5
        collector.leave()
    finally:
        context.detach(token)


def test_a_sample_enters_once_an_item() -> None:
    """And is one chunk all the same, with one place in the budget."""
    link = make_link(here=True, live=2)
    collector = ChunkTrace(link, 0)
    ids = []
    for _ in range(3):
        collector.enter()
        ids.append(trace.get_current_span().get_span_context().span_id)
        collector.leave()
    assert len(set(ids)) == 1
    assert link.live == 1
    taken = collector.take()
    assert taken is not None
    assert taken["live"] is True
    began, ended = taken["times"]
    assert began < ended


def test_a_chunk_that_never_runs_takes_no_place() -> None:
    """A plan without a sample makes a collector, too."""
    link = make_link(here=True, live=1)
    assert ChunkTrace(link, 0).take() is None
    assert link.live == 1


@pytest.mark.parametrize("live", [0, 1])
def test_without_a_place_spans_of_this_process_are_not_sampled(live: int) -> None:
    """They could not be held back; what is put on the chunk's span is kept for it."""
    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    collector = ChunkTrace(make_link(here=True, live=live), 0)
    collector.enter()
    trace.get_current_span().set_attribute("rows", 5)
    with provider.get_tracer("user").start_as_current_span("work") as span:
        assert span.is_recording() is bool(live)
    collector.leave()
    taken = collector.take()
    assert taken is not None
    assert taken["live"] is bool(live)
    assert taken["attributes"] == {"rows": 5}
    assert len(kept.get_finished_spans()) == live


def test_where_ids_are_not_exact_the_executions_span_is_current_here() -> None:
    """The chunk's id is not known yet: what the function opens hangs on the execution."""
    link = make_link(here=True, exact=False)
    collector = ChunkTrace(link, 0)
    collector.enter()
    assert trace.get_current_span().get_span_context().span_id == EXECUTION
    collector.leave()
    assert collector.take() is None
    assert link.live == 5


@pytest.mark.parametrize("here", [True, False])
def test_what_is_not_sampled_is_not_recorded(worker: WorkerProvider, here: bool) -> None:
    """The context crosses, and nothing comes back."""
    use_in_worker(make_link(), None)
    link = make_link(here=here, sampled=False)
    collector = ChunkTrace(link, 0)
    collector.enter()
    span = trace.get_current_span()
    assert not span.is_recording()
    assert span.get_span_context().trace_id == TRACE
    assert not span.get_span_context().trace_flags.sampled
    span.set_attribute("rows", 5)
    span.add_event("loaded")
    with trace.get_tracer("user").start_as_current_span("work") as inner:
        assert not inner.is_recording()
        assert inner.get_span_context().trace_id == TRACE
    if not here:  # nor what the function begins by itself
        trace.get_tracer("user").start_span("root", context.Context()).end()
    collector.leave()
    assert collector.take() == (None if here else {"dropped": 1})
    assert link.live == 5


# --- the chunk's span ----


def test_what_is_done_to_the_chunks_span_is_kept_as_plain_values() -> None:
    """It pickles, whatever was passed."""
    collector = ChunkTrace(make_link(), 0)
    collector.enter()
    span = trace.get_current_span()

    class Named:
        def __str__(self) -> str:
            return "named"

    attributes: Any = {"list": ["a", "b"], "object": Named(), "set": {1}}
    span.set_attributes(attributes)
    span.add_event("seen", attributes, 123)
    span.set_status(StatusCode.ERROR, "odd")
    wrong: Any = "OK"
    span.set_status(wrong)
    span.record_exception(ValueError("odd"), {"extra": 1}, 456)
    span.update_name("other")
    span.end()
    collector.leave()
    taken = collector.take()
    plain = {"list": ("a", "b"), "object": "named", "set": (1,)}
    assert taken is not None
    assert pickle.loads(pickle.dumps(taken)) == taken
    assert taken["attributes"] == plain
    seen, raised = taken["events"]
    assert seen == ("seen", 123, plain)
    assert raised[:2] == ("exception", 456)
    assert raised[2]["exception.type"] == "ValueError"
    assert raised[2]["extra"] == 1
    assert taken["status"] == (StatusCode.ERROR.value, "odd")


def test_exceptions_of_libraries_are_named_with_their_module() -> None:
    """As the SDK does."""
    collector = ChunkTrace(make_link(), 0)
    collector.enter()
    trace.get_current_span().record_exception(subprocess.TimeoutExpired("ls", 3))
    trace.get_current_span().set_status(Status(StatusCode.OK))
    collector.leave()
    taken = collector.take()
    assert taken is not None
    ((_, _, described),) = taken["events"]
    assert described["exception.type"] == "subprocess.TimeoutExpired"
    assert taken["status"] == (StatusCode.OK.value, None)


def test_what_is_put_on_the_chunks_span_is_bounded() -> None:
    """A function may do so once an item, for thousands of items."""
    collector = ChunkTrace(make_link(), 0)
    collector.enter()
    span = trace.get_current_span()
    for number in range(1000):
        span.add_event(f"event {number}")
        span.set_attribute(f"attribute {number}", number)
        span.set_attribute("attribute 0", number)
    collector.leave()
    taken = collector.take()
    assert taken is not None
    assert [event[0] for event in taken["events"]] == [f"event {n}" for n in range(MAX_EVENTS)]
    assert len(taken["attributes"]) == MAX_EVENTS
    assert taken["attributes"]["attribute 0"] == 999


def test_after_its_end_the_chunks_span_takes_nothing() -> None:
    """Values that were returned do not change."""
    collector = ChunkTrace(make_link(), 0)
    collector.enter()
    span = trace.get_current_span()
    span.set_attribute("early", 1)
    collector.leave()
    taken = collector.take()
    assert not span.is_recording()
    span.set_attribute("late", 1)
    span.add_event("late")
    span.set_status(StatusCode.OK)
    assert taken == {"attributes": {"early": 1}}


# --- spans that end in a worker ----


def test_spans_that_end_in_a_worker_are_returned(worker: WorkerProvider) -> None:
    """With the chunk in which they ended, once."""
    use_in_worker(make_link(), None)
    tracer = trace.get_tracer("user")
    for chunk_id in (0, 1):
        collector = ChunkTrace(make_link(), chunk_id)
        collector.enter()
        with tracer.start_as_current_span(f"outer {chunk_id}"):
            tracer.start_span(f"inner {chunk_id}").end()
        collector.leave()
        taken = collector.take()
        assert names(taken) == [f"inner {chunk_id}", f"outer {chunk_id}"]
        assert taken is not None
        inner, outer = taken["spans"]
        assert (inner[2], outer[2]) == (TRACE, TRACE)
        assert outer[4] == chunk_span_id(EXECUTION, chunk_id)
        assert inner[4] == outer[3]
        assert pickle.loads(pickle.dumps(taken)) == taken


def test_too_many_spans_are_counted(worker: WorkerProvider) -> None:
    """Each chunk has the whole allowance."""
    link = make_link(max_spans=3)
    use_in_worker(link, None)
    for ended, kept, dropped in ((5, 3, 2), (3, 3, None), (0, 0, None)):
        collector = ChunkTrace(link, 0)
        collector.enter()
        for number in range(ended):
            trace.get_tracer("user").start_span(str(number)).end()
        collector.leave()
        taken = collector.take() or {}
        assert len(names(taken)) == kept
        assert taken.get("dropped") == dropped


def test_without_capturing_nothing_is_set_up(worker: WorkerProvider) -> None:
    """The context alone crosses."""
    link = make_link(capture=False)
    use_in_worker(link, None)
    assert trace._TRACER_PROVIDER is None
    collector = ChunkTrace(link, 0)
    collector.enter()
    found = trace.get_current_span().get_span_context()
    assert found.span_id == chunk_span_id(EXECUTION, 0)
    collector.leave()
    assert collector.take() is None


def test_spans_of_another_execution_are_not_returned(worker: WorkerProvider) -> None:
    """What ended since the last chunk stays, if it is of the same trace."""
    use_in_worker(make_link(), None)
    collector = ChunkTrace(make_link(), 0)
    collector.enter()
    late = trace.get_tracer("user").start_span("late")
    collector.leave()
    collector.take()
    trace.get_tracer("user").start_span("of nobody").end()
    late.end()
    collector = ChunkTrace(make_link(), 1)
    collector.enter()
    collector.leave()
    assert names(collector.take()) == ["late"]


def test_a_tracer_from_before_works_and_gives_way(worker: WorkerProvider) -> None:
    """A module takes its tracer when it is loaded; its provider may be set later."""
    use_in_worker(make_link(), None)
    tracer = trace.get_tracer("user")
    worker.begin(make_link())
    tracer.start_span("first").end()
    kept = InMemorySpanExporter()
    own = TracerProvider(shutdown_on_exit=False)
    own.add_span_processor(SimpleSpanProcessor(kept))
    trace._TRACER_PROVIDER = own
    tracer.start_span("second").end()
    assert [span[0] for span in worker.take()[0]] == ["first"]
    assert [span.name for span in kept.get_finished_spans()] == ["second"]


def test_a_provider_that_exports_takes_precedence(worker: WorkerProvider) -> None:
    """It is left as it is: nothing is sent twice."""
    own = TracerProvider(shutdown_on_exit=False)
    trace._TRACER_PROVIDER = own
    use_in_worker(make_link(), None)
    use_in_worker(make_link(), object())
    assert trace._TRACER_PROVIDER is own
    worker.begin(make_link())
    own.get_tracer("user").start_span("own").end()
    assert worker.take() == ([], 0)


def test_a_provider_that_exports_nothing_is_listened_to(worker: WorkerProvider) -> None:
    """What automatic instrumentation set up in the worker, without exporters; once."""
    own = TracerProvider(shutdown_on_exit=False)
    trace._TRACER_PROVIDER = own
    for _ in range(3):
        use_in_worker(make_link(), own)
    assert trace._TRACER_PROVIDER is own
    worker.begin(make_link())
    own.get_tracer("user").start_span("instrumented").end()
    assert [span[0] for span in worker.take()[0]] == ["instrumented"]


def test_the_sdk_is_loaded_with_the_first_tracer() -> None:
    """A function that has none does not wait for it; one that has one, mostly before its chunk."""
    script = """
import sys
from amorsize.workers.otel_context import ChunkTrace, use_in_worker
from amorsize.workers.trace_link import TraceLink
from opentelemetry import trace
link = TraceLink({"traceparent": f"00-{5:032x}-{7:016x}-01"}, 5, 7, True, True, 10, pid=1)
use_in_worker(link, None)
tracer = None
for opened in (False, True):
    if opened:
        tracer = trace.get_tracer("user")
    print("opentelemetry.sdk.trace" in sys.modules, end=" ")
    chunk = ChunkTrace(link, 0)
    chunk.enter()
    trace.get_current_span().set_attribute("rows", 1)
    if opened:
        tracer.start_span("work").end()
    chunk.leave()
    print(len(chunk.take().get("spans", [])))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["False 0", "True 1"]


def test_a_worker_has_no_thread_and_no_exporter_for_spans() -> None:
    """Whatever ends there leaves with the chunk."""

    def work(x: int) -> int:
        with trace.get_tracer("user").start_as_current_span("work"):
            return threading.active_count()

    hooks = amorsize.HookManager()
    provider = TracerProvider(shutdown_on_exit=False)
    kept = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    with OpenTelemetryExporter(tracer_provider=provider, metrics=False).attach(hooks):
        (threads,) = amorsize.execute(work, [1], executor="process", hooks=hooks)
    assert threads == 1
    assert "work" in [span.name for span in kept.get_finished_spans()]


def test_tracers_are_picklable(worker: WorkerProvider) -> None:
    """A function may hold one: it arrives as the worker's tracer of its name."""
    make_tracers_picklable()
    provider = TracerProvider(shutdown_on_exit=False)
    tracer = provider.get_tracer("library", "1.2", "https://schema", {"tier": "gold"})
    packed = cloudpickle.dumps(tracer)
    use_in_worker(make_link(), None)
    arrived = pickle.loads(packed)
    assert arrived._provider is worker
    assert arrived._scope == ("library", "1.2", "https://schema", {"tier": "gold"})
    again = copy.copy(arrived)
    assert (again._provider, again._scope) == (worker, arrived._scope)


def test_what_the_function_sets_up_in_a_worker_takes_precedence() -> None:
    """In a real one: its spans stay with its own provider, within the same trace."""
    amorsize.shutdown()  # a provider is set once a process

    def work(x: int) -> tuple[list[str], int]:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        kept, own = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
        own.add_span_processor(SimpleSpanProcessor(kept))
        trace.set_tracer_provider(own)
        assert trace.get_tracer_provider() is own
        with trace.get_tracer("user").start_as_current_span("work") as span:
            trace_id = span.get_span_context().trace_id
        return [span.name for span in kept.get_finished_spans()], trace_id

    hooks = amorsize.HookManager()
    provider = TracerProvider(shutdown_on_exit=False)
    home = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(home))
    try:
        with OpenTelemetryExporter(tracer_provider=provider, metrics=False).attach(hooks):
            ((there, trace_id),) = amorsize.execute(work, [1], executor="process", hooks=hooks)
    finally:
        amorsize.shutdown()
    assert there == ["work"]
    assert "work" not in [span.name for span in home.get_finished_spans()]
    assert {span.context.trace_id for span in home.get_finished_spans()} == {trace_id}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_function_with_a_tracer_may_fork_in_its_worker() -> None:
    """The SDK's handler of a fork must not wait, in the child, for a lock that nobody releases."""
    script = """if True:
        import os, signal, sys, time
        from amorsize.workers.otel_context import worker_provider
        worker_provider.sdk()
        import concurrent.futures.thread  # as any library may, later
        child = os.fork()
        if child == 0:
            os._exit(0)
        for _ in range(300):
            if os.waitpid(child, os.WNOHANG)[0]:
                sys.exit()
            time.sleep(0.1)
        os.kill(child, signal.SIGKILL)
        sys.exit("the child hangs")
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_values_on_the_chunks_span_are_always_picklable() -> None:
    """A value that does not pickle would keep the whole trace of its chunk in the worker."""
    chunk = ChunkTrace(make_link(), 0)
    chunk.enter()
    span = trace.get_current_span()
    span.set_attribute("locks", [threading.Lock(), 1])  # type: ignore[list-item]
    span.set_attribute("lock", threading.Lock())  # type: ignore[arg-type]
    chunk.leave()
    taken = pickle.loads(pickle.dumps(chunk.take()))
    assert taken["attributes"]["locks"][1] == 1
    assert "lock" in taken["attributes"]["lock"]
