"""The extras that a chunk returns beside its results."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

import amorsize
from amorsize import workers
from amorsize.workers import collectors
from amorsize.workers.chunk import Chunk, run_chunk
from amorsize.workers.collectors import ChunkCollector, CollectSettings
from amorsize.workers.trace_link import TraceLink


class Told:
    """A collector that says what is done to it."""

    def __init__(self, said: list[str], name: str, value: Any = None) -> None:
        self._said = said
        self._name = name
        self._value = value

    def enter(self) -> None:
        self._said.append(f"{self._name} enters")

    def leave(self) -> None:
        self._said.append(f"{self._name} leaves")

    def take(self) -> Any:
        self._said.append(f"{self._name} is taken")
        return self._value


def link(pid: int = 1) -> TraceLink:
    return TraceLink(
        {"traceparent": f"00-{0xABC:032x}-{0x77:016x}-01"},
        0xABC,
        0x77,
        sampled=True,
        capture=False,
        max_spans=10,
        pid=pid,
    )


def test_all_collectors_are_asked_and_nothing_is_left_out() -> None:
    """What has nothing to bring has no place in the extras."""
    said: list[str] = []
    collector = ChunkCollector(
        {
            "first": Told(said, "first", [1]),
            "second": Told(said, "second"),
            "third": Told(said, "third", 0),
        }
    )
    collector.enter()
    collector.leave()
    assert collector.take() == {"first": [1], "third": 0}
    names = ["first", "second", "third"]
    assert said == [
        *(f"{name} enters" for name in names),
        *(f"{name} leaves" for name in reversed(names)),
        *(f"{name} is taken" for name in names),
    ]


@pytest.mark.parametrize("numbers", [True, False])
@pytest.mark.parametrize("traced", [True, False])
def test_only_what_is_asked_for_is_collected(numbers: bool, traced: bool) -> None:
    """Without anything, a chunk costs nothing more."""
    collect = CollectSettings(numbers, link() if traced else None)
    collector = collect.in_chunk(3)
    assert (collector is None) == (not numbers and not traced)

    def work(x: int) -> None:
        from opentelemetry import trace

        amorsize.count("collected_calls")
        trace.get_current_span().set_attribute("x", x)

    outcome = run_chunk(work, Chunk(3, 0, [7]), collect=collect)
    expected: dict[str, Any] = {}
    if numbers:
        metric = {"kind": "counter", "help": None, "calls": 1, "value": 1}
        expected["user_metrics"] = ({"collected_calls": metric}, 0)
    if traced:
        expected["trace"] = {"attributes": {"x": 7}}
    assert outcome.extras == expected


def test_it_crosses_into_workers() -> None:
    """With the trace's link."""
    collect = CollectSettings(True, link())
    assert pickle.loads(pickle.dumps(collect)) == collect


def test_a_worker_without_opentelemetry_brings_no_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine of a cluster that lacks it: the function runs."""
    monkeypatch.setattr(collectors, "_load_otel_context", lambda: None)
    collect = CollectSettings(False, link())
    collect.use_in_worker(None)
    assert collect.in_chunk(0) is None
    assert run_chunk(abs, Chunk(0, 0, [-1]), collect=collect).results == [1]


def test_a_missing_package_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import that fails costs each time it is tried."""
    import sys

    collectors._load_otel_context.cache_clear()
    monkeypatch.setitem(sys.modules, "amorsize.workers.otel_context", None)
    monkeypatch.delattr(workers, "otel_context", raising=False)
    try:
        assert collectors._load_otel_context() is None
        monkeypatch.undo()
        assert collectors._load_otel_context() is None
    finally:
        collectors._load_otel_context.cache_clear()
    assert collectors._load_otel_context() is not None


def test_an_exception_that_passes_leaves_the_collector() -> None:
    """Ctrl-C in the caller's own thread."""
    from opentelemetry import trace

    def interrupt(x: int) -> None:
        assert trace.get_current_span().is_recording()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_chunk(
            interrupt, Chunk(0, 0, [1]), collect=CollectSettings(True, link()), exits_pass=True
        )
    assert not trace.get_current_span().get_span_context().is_valid
    amorsize.count("nobody_listens")
