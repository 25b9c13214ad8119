"""A signal at each line that counts and emits: everything that is counted is reported."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from waiting import PATIENCE

import amorsize
from amorsize import HookContext, HookEvent, HookManager
from amorsize.engines import warm_pool
from amorsize.engines.base import Task
from amorsize.engines.process import engine, launcher
from amorsize.engines.process.pool import pool
from amorsize.exporters.prometheus.exporter import PrometheusExporter
from amorsize.hooks.interruption import is_protected
from amorsize.planning.observations import Observations
from amorsize.planning.plan import StartWorkers
from amorsize.planning.planner import Planner
from amorsize.running import reporter, signals
from amorsize.running.input import Input
from amorsize.running.measurement import Measurement
from amorsize.testing import RecordingHook, assert_contract
from amorsize.workers.collectors import CollectSettings

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
    pressed: list[int] = []
    # The handler is called in the trace function's frame; that of the line is meant.
    monkeypatch.setattr(signals, "is_protected", lambda _: is_protected(interrupted.pop()))
    lines = count_lines(modules, function)
    assert lines > 50
    for line in range(lines):

        def press(now: int, frame: FrameType, line: int = line) -> None:
            if now == line:
                sys.settrace(None)
                interrupted.append(frame)
                pressed.append(line)
                signal.raise_signal(signal.SIGINT)

        pressed.clear()
        ended, recorder = run(modules, press, function)
        if not pressed:  # which chunk was the slowest so far decides on a few lines
            assert line >= lines - 10
            continue
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


# --- the start of worker processes ----


def open_descriptors() -> dict[str, str]:
    """Return the descriptors of this process, and what they lead to."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:  # the directory's own
            pass
    return found


def children() -> set[str]:
    """Return the processes that this one has started, zombies too."""
    tasks = Path("/proc/self/task").iterdir()
    return {pid for task in tasks for pid in (task / "children").read_text().split()}


def run_named() -> None:
    assert amorsize.execute(abs, [-1], executor="process", n_jobs=1) == [1]


def start_and_run() -> None:
    """Start the template before the run begins, when no handler of ours is set yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warm_pool, "pool", None)  # as before it is loaded
        launcher.start_early()
    run_named()


def start_ahead_of_the_plan() -> None:
    """Start workers as a run does that measures its first items."""
    task = Task(abs, False, False, CollectSettings())
    measurement = Measurement(task, Input([-1]), Observations(), Planner(), starts_early=True)
    try:
        measurement.early.start(StartWorkers("process", 1))
        with signals.DuringExecute(lambda: None):  # as a run does that goes on with them
            early = measurement.early.hand_over("process", 1)
            assert early is not None
            early.backend.close(cancel=True)
    finally:
        measurement.abandon()


def end_workers() -> None:
    """End idle workers; their template stays."""
    idle, pool._idle = pool._idle, []
    for worker in idle:
        worker.reap(0)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # closed all the same
@pytest.mark.parametrize(
    ("start", "end", "modules"),
    [
        (start_and_run, amorsize.shutdown, "process.launcher process.template_client"),
        (run_named, end_workers, "process.connection process.engine process.pool"),
        (start_ahead_of_the_plan, amorsize.shutdown, "running.early_workers process.launcher"),
    ],
    ids=["cold", "warm", "measured"],
)
def test_ctrl_c_at_any_line_of_a_start_leaves_nothing_open(
    start: Callable[[], None],
    end: Callable[[], None],
    modules: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No descriptor, no process, no place in the pool; a run after it has its workers."""
    names = tuple(
        f"amorsize.{name if name.startswith('running') else f'engines.{name}'}"
        for name in modules.split()
    )
    frames: list[FrameType] = []
    pressed = ""
    monkeypatch.setattr(signals, "is_protected", lambda _: is_protected(frames.pop()))
    monkeypatch.setattr(engine, "_CANCEL_GRACE_SECONDS", 0.0)

    def run_to(stop: int | None) -> int:
        """Run, and press Ctrl-C at the given one of the lines, in the order that they first run."""
        seen: set[tuple[object, int]] = set()

        def at_line(_: int, frame: FrameType) -> None:
            nonlocal pressed
            line = frame.f_code, frame.f_lineno
            if line in seen:
                return
            seen.add(line)
            if len(seen) - 1 == stop:
                sys.settrace(None)
                frames.append(frame)
                pressed = f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
                signal.raise_signal(signal.SIGINT)

        before = sys.gettrace()
        sys.settrace(trace_lines(names, at_line))
        try:
            start()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
            frames.clear()
            end()
        return len(seen)

    def look() -> Any:
        return open_descriptors(), children(), list(pool._members)

    amorsize.shutdown()
    run_to(None)
    before = look()
    lines = run_to(None)
    assert lines > 50
    for stop in range(lines):
        run_to(stop)
        if look() != before:  # held by the exception
            gc.collect()
            assert look() == before, pressed
    run_named()
    amorsize.shutdown()
