"""A signal at each line that counts and emits: everything that is counted is reported."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from waiting import PATIENCE

import amorsize
from amorsize import HookContext, HookEvent, HookManager
from amorsize.engines.process.pool import pool
from amorsize.exporters.prometheus.exporter import PrometheusExporter
from amorsize.hooks.interruption import is_protected
from amorsize.running import reporter, signals
from amorsize.testing import RecordingHook, assert_contract

REPORTING = ("amorsize.running.reporter", "amorsize.hooks.manager")
WRAPPED = (*REPORTING, "amorsize.hooks.calls", "amorsize.hooks.entries")
RUNNING = ("amorsize.running.loop", "amorsize.running.sinks", "amorsize.running.input")


def trace_lines(modules: tuple[str, ...], at_line: Callable[[int, FrameType], None]) -> Any:
    """Make a trace function that counts the lines that run in some modules."""
    count = 0

    def local(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if event == "line":
            count += 1
            at_line(count - 1, frame)
        return local

    def enter(frame: FrameType, event: str, argument: object) -> Any:
        return local if frame.f_globals.get("__name__") in modules else None

    return enter


def refuse(item: int) -> None:
    raise LookupError(f"no {item}")


def run(
    modules: tuple[str, ...],
    at_line: Callable[[int, FrameType], None],
    function: Callable[[int], Any] = abs,
) -> tuple[Any, RecordingHook]:
    hooks = HookManager(timed="amorsize.hooks.calls" in modules)
    recorder = RecordingHook().attach(hooks)
    ended: Any = None
    before = sys.gettrace()
    sys.settrace(trace_lines(modules, at_line))
    try:
        ended = amorsize.execute(
            function, [-1, -2, -3], executor="serial", chunksize=1, hooks=hooks
        )
    except (KeyboardInterrupt, LookupError) as error:
        ended = error
    finally:
        sys.settrace(before)
    return ended, recorder


def count_lines(modules: tuple[str, ...], function: Callable[[int], Any]) -> int:
    lines: list[int] = []
    ended, _ = run(modules, lambda line, _: lines.append(line), function)
    assert ended == [1, 2, 3] or isinstance(ended, LookupError)
    return len(lines)


@pytest.mark.parametrize("function", [abs, refuse], ids=["going well", "failing"])
@pytest.mark.parametrize(
    "modules", [REPORTING, WRAPPED, RUNNING], ids=["reporting", "reporting-timed-hooks", "running"]
)
def test_ctrl_c_at_any_line_keeps_the_contract(
    modules: tuple[str, ...],
    function: Callable[[int], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is raised, also by a run that fails just then; until then all events agree."""
    interrupted: list[FrameType] = []
    # The handler is called in the trace function's frame; that of the line is meant.
    monkeypatch.setattr(signals, "is_protected", lambda _: is_protected(interrupted.pop()))
    lines = count_lines(modules, function)
    assert lines > 50
    for line in range(lines):

        def press(now: int, frame: FrameType, line: int = line) -> None:
            if now == line:
                sys.settrace(None)
                interrupted.append(frame)
                signal.raise_signal(signal.SIGINT)

        ended, recorder = run(modules, press, function)
        assert isinstance(ended, KeyboardInterrupt), f"line {line}: {ended!r}"
        if not recorder.contexts:
            continue  # it came before the first event
        try:
            assert_contract(recorder.contexts)
        except AssertionError as broken:
            pytest.fail(f"line {line} of {lines}: {broken}")
        assert recorder.of(HookEvent.POST_EXECUTE)


@pytest.mark.parametrize(
    "also", [None, signal.SIGINT], ids=["the run fails", "Ctrl-C comes after it"]
)
def test_sigterm_ends_the_process_whatever_else_the_run_ends_with(
    also: signal.Signals | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It arrived during an event, which it did not interrupt."""
    ended: list[bool] = []
    monkeypatch.setattr(signals, "_end_by_signal", lambda: ended.append(True))
    monkeypatch.setattr(signals, "is_protected", lambda _: True)
    hooks = HookManager()

    def ask(context: HookContext) -> None:
        registration.close()
        signal.raise_signal(signal.SIGTERM)
        if also is not None:
            signal.raise_signal(also)

    registration = hooks.register(HookEvent.ON_ERROR, ask)
    with pytest.raises(signals.Terminated):
        amorsize.execute(refuse, [1], executor="serial", hooks=hooks)
    assert ended == [True]


def test_ctrl_c_in_a_nested_run_is_raised_where_that_ends() -> None:
    """And not only where the run around it looks for signals again."""
    hooks = HookManager()
    went_on: list[int] = []

    def at_the_end(frame: FrameType, event: str, argument: object) -> None:
        if frame.f_code is reporter.Reporter.post_execute.__code__:
            sys.settrace(None)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(signals, "is_protected", lambda _: True)
                signal.raise_signal(signal.SIGINT)

    def nest(item: int) -> None:
        before = sys.gettrace()
        sys.settrace(at_the_end)
        try:
            amorsize.execute(abs, [item], executor="serial", hooks=hooks)
        finally:
            sys.settrace(before)
        went_on.append(item)

    with pytest.raises(KeyboardInterrupt):
        amorsize.execute(nest, [1], executor="serial", chunksize=1)
    assert went_on == []


def test_a_stream_is_ended_over_any_lock_that_its_ender_holds() -> None:
    """As a signal handler does, in the middle of whatever the main thread is at."""
    blocked = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        blocked.wait(PATIENCE)

    hooks = HookManager()
    recorder = RecordingHook().attach(hooks)
    exporter = PrometheusExporter(port=0).attach(hooks)
    stream: Any = amorsize.stream(
        abs, source(), executor="process", n_jobs=1, chunksize=1, hooks=hooks
    )
    assert next(stream) == 1

    def end() -> None:
        with hooks._lock, pool._lock, exporter._lock:
            stream.close()

    ender = threading.Thread(target=end, daemon=True)
    ender.start()
    ender.join(PATIENCE)
    blocked.set()
    assert not ender.is_alive()
    exporter.close()
    assert_contract(recorder.contexts)
    assert recorder.of(HookEvent.POST_EXECUTE)
