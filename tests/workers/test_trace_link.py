"""What ties an execution to a trace: links, ids, sources, and what is current."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from waiting import PATIENCE

import amorsize
from amorsize import HookManager
from amorsize.testing import RecordingHook
from amorsize.workers import trace_link
from amorsize.workers.trace_link import TraceLink, as_current, chunk_span_id, current_ids

IDS = st.integers(1, 2**64 - 1)


def make_link(**fields: Any) -> TraceLink:
    plain: dict[str, Any] = {
        "carrier": {"traceparent": f"00-{0xABC:032x}-{0x77:016x}-01"},
        "trace_id": 0xABC,
        "span_id": 0x77,
        "sampled": True,
        "capture": True,
        "max_spans": 10,
    }
    return TraceLink(**plain | fields)


class Source:
    """Begins the link that it was made with."""

    def __init__(self, link: TraceLink | None = None, error: Exception | None = None) -> None:
        self.link = link
        self.error = error
        self.asked: list[tuple[Any, ...]] = []
        self.forgotten: list[str] = []

    def begin(self, managers: Sequence[Any], execution_id: str, function: str) -> TraceLink | None:
        self.asked.append((tuple(managers), execution_id, function))
        if self.error is not None:
            raise self.error
        return self.link

    def forget(self, execution_id: str) -> None:
        self.forgotten.append(execution_id)


@pytest.fixture(autouse=True)
def _no_sources() -> Iterator[None]:
    """No test sees another one's source."""
    before = trace_link._sources
    yield
    assert trace_link._sources == before


@pytest.fixture
def use() -> Iterator[Any]:
    """Add sources, and remove them in the end."""
    added: list[Source] = []

    def use(source: Source) -> Source:
        trace_link.add_source(source)
        added.append(source)
        return source

    yield use
    for source in added:
        trace_link.remove_source(source)


# --- ids ----


@given(IDS, st.integers(0, 2**40))
def test_the_id_of_a_chunks_span_is_an_id(execution: int, chunk: int) -> None:
    """Never 0, which is none, and of 64 bits; the same wherever it is computed."""
    derived = chunk_span_id(execution, chunk)
    assert 0 < derived < 2**64
    assert derived == chunk_span_id(execution, chunk)


@given(IDS)
def test_no_two_chunks_share_an_id(execution: int) -> None:
    """Nor with the plan, which is chunk -1, nor with the execution."""
    derived = {chunk_span_id(execution, chunk) for chunk in range(-1, 200)}
    assert len(derived | {execution}) == 202


# --- places ----


def test_no_more_places_are_granted_than_there_are() -> None:
    """However many threads ask."""
    link = make_link(live=100)
    granted: list[bool] = []

    def ask() -> None:
        granted.extend(link.grant() for _ in range(100))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert (len(granted), sum(granted), link.live) == (800, 100, 0)


def test_a_link_pickles() -> None:
    """It crosses into workers, and knows where it comes from."""
    link = make_link(live=3)
    back = pickle.loads(pickle.dumps(link))
    assert back == link
    assert back.pid == link.pid


# --- sources ----


def test_a_source_is_asked_once_an_execution(mode: str, hooks: HookManager, use: Any) -> None:
    """Before anything runs, with the managers that are notified."""
    source = use(Source())
    use(source)
    recorder = RecordingHook().attach(hooks)
    amorsize.execute(abs, range(4), executor=mode, hooks=hooks)
    ((managers, execution_id, function),) = source.asked
    assert managers == (amorsize.get_default_manager(), hooks)
    assert {context.metadata["execution_id"] for context in recorder.contexts} == {execution_id}
    assert function == "builtins.abs"
    assert "trace_id" not in recorder.contexts[0].metadata


def test_the_first_that_begins_a_trace_has_it(use: Any) -> None:
    """One that fails is passed over, and said in the log."""
    link = make_link()
    use(Source(error=RuntimeError("broken")))
    use(Source())
    use(Source(link))
    last = use(Source(make_link()))
    assert trace_link.begin([], "id", "f") is link
    assert last.asked == []


def test_a_source_that_fails_fails_no_run(
    use: Any, hooks: HookManager, caplog: pytest.LogCaptureFixture
) -> None:
    """The execution goes on without a trace."""
    use(Source(error=RuntimeError("broken source")))
    assert amorsize.execute(abs, [-1], executor="serial", hooks=hooks) == [1]
    assert "No trace can be begun; the execution goes on without one" in caplog.text
    assert "broken source" in caplog.text


def test_a_source_that_is_removed_is_not_asked(use: Any) -> None:
    """Removing it twice changes nothing."""
    source = use(Source(make_link()))
    trace_link.remove_source(source)
    trace_link.remove_source(source)
    assert trace_link.begin([], "id", "f") is None
    assert source.asked == []


def test_a_run_without_a_plan_is_forgotten(use: Any, hooks: HookManager) -> None:
    """As is every other that is observed, once it has ended."""
    source = use(Source(make_link()))

    def broken() -> Iterator[int]:
        raise OSError("gone")
        yield 1

    with pytest.raises(TypeError):
        amorsize.execute(abs, 3)  # type: ignore[call-overload]
    assert source.asked == []
    with pytest.raises(OSError, match="gone"):
        amorsize.execute(abs, broken(), hooks=hooks)
    assert source.forgotten == [execution_id for _, execution_id, _ in source.asked]
    assert len(source.forgotten) == 1


@pytest.mark.parametrize("exact", [True, False])
def test_events_have_the_ids(mode: str, hooks: HookManager, use: Any, exact: bool) -> None:
    """Of chunk events the chunk's, where that is known; of all others the execution's."""
    use(Source(make_link(exact=exact, capture=False)))
    recorder = RecordingHook().attach(hooks)
    amorsize.execute(abs, range(4), executor=mode, chunksize=2, hooks=hooks)
    for context in recorder.contexts:
        assert context.metadata["trace_id"] == f"{0xABC:032x}"
        is_chunk = exact and context.chunk_id is not None
        expected = chunk_span_id(0x77, context.chunk_id or 0) if is_chunk else 0x77
        assert context.metadata["span_id"] == f"{expected:016x}"


def test_events_of_an_unsampled_trace_have_no_ids(hooks: HookManager, use: Any) -> None:
    """They would lead nowhere."""
    unsampled = {"traceparent": f"00-{0xABC:032x}-{0x77:016x}-00"}
    use(Source(make_link(sampled=False, carrier=unsampled)))
    recorder = RecordingHook().attach(hooks)
    amorsize.execute(abs, range(4), executor="serial", hooks=hooks)
    for context in recorder.contexts:
        assert not {"trace_id", "span_id"} & context.metadata.keys()


# --- what is current ----


def test_the_current_span_by_its_ids() -> None:
    """There and back; None where there is no span."""
    assert current_ids() is None
    for ids in ((0xA, 0xB, True), (0xC, 0xD, False)):
        with as_current(ids):
            assert current_ids() == ids
        assert current_ids() is None
    with as_current(None):
        assert current_ids() is None


def test_a_span_whose_ids_cannot_be_read_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the application put there must not cost it its log records."""
    monkeypatch.setattr(trace, "get_current_span", lambda: object())
    assert current_ids() is None


def test_nothing_is_imported_to_look_for_a_span() -> None:
    """A program without tracing does not pay for it, and everything works."""
    script = """
import sys
sys.modules["opentelemetry"] = None
import amorsize
from amorsize.workers import trace_link
assert trace_link.current_ids() is None
with trace_link.as_current((1, 2, True)):
    assert trace_link.current_ids() is None
for executor in ("serial", "thread", "process"):
    assert amorsize.execute(abs, [-1], executor=executor) == [1]
print(sorted(name for name in sys.modules if name.startswith("opentelemetry.")))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
