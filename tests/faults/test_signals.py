"""A signal at every single line that counts and tells: what is counted is told, always."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

import amorsize
from amorsize import HookEvent, HookManager, termination
from amorsize.testing import RecordingHook, assert_contract

TELLING = ("amorsize.reporting", "amorsize.hooks.manager")
WRAPPED = (*TELLING, "amorsize.hooks.calls", "amorsize.hooks.entries")
RUNNING = ("amorsize.run", "amorsize.sinks", "amorsize.chunking")


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


def run(
    modules: tuple[str, ...], at_line: Callable[[int, FrameType], None]
) -> tuple[Any, RecordingHook]:
    hooks = HookManager(timed="amorsize.hooks.calls" in modules)
    recorder = RecordingHook().attach(hooks)
    ended: Any = None
    before = sys.gettrace()
    sys.settrace(trace_lines(modules, at_line))
    try:
        ended = amorsize.execute(abs, [-1, -2, -3], executor="serial", chunksize=1, hooks=hooks)
    except KeyboardInterrupt as error:
        ended = error
    finally:
        sys.settrace(before)
    return ended, recorder


def count_lines(modules: tuple[str, ...]) -> int:
    lines: list[int] = []
    results, _ = run(modules, lambda line, _: lines.append(line))
    assert results == [1, 2, 3]
    return len(lines)


@pytest.mark.parametrize(
    "modules", [TELLING, WRAPPED, RUNNING], ids=["telling", "telling-timed-hooks", "running"]
)
def test_ctrl_c_at_any_line_keeps_the_contract(
    modules: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is raised, and until then every event agrees with every other."""
    interrupted: list[FrameType] = []
    is_telling = termination._is_telling
    # The handler is called in the trace function's frame; that of the line is meant.
    monkeypatch.setattr(termination, "_is_telling", lambda _: is_telling(interrupted.pop()))
    lines = count_lines(modules)
    assert lines > 100
    for line in range(lines):

        def press(now: int, frame: FrameType, line: int = line) -> None:
            if now == line:
                sys.settrace(None)
                interrupted.append(frame)
                signal.raise_signal(signal.SIGINT)

        ended, recorder = run(modules, press)
        assert isinstance(ended, KeyboardInterrupt), f"line {line}: {ended!r}"
        if not recorder.contexts:
            continue  # it came before anything was told
        try:
            assert_contract(recorder.contexts)
        except AssertionError as broken:
            pytest.fail(f"line {line} of {lines}: {broken}")
        assert recorder.of(HookEvent.POST_EXECUTE)
