"""Marks on functions: where the first Ctrl-C is only noted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

import pytest

import amorsize
from amorsize import HookContext, HookEvent, HookManager
from amorsize.hooks.interruption import is_protected, protected, protected_between_calls
from amorsize.running.loop import Run
from amorsize.running.reporter import Reporter


def look() -> bool:
    return is_protected(sys._getframe())


def look_around() -> bool:
    return is_protected(sys._getframe(1))


@protected
def counting(call: Callable[[], bool]) -> tuple[bool, bool, list[bool]]:
    return look_around(), call(), [call() for _ in range(1)]


@protected_between_calls
def calling(call: Callable[[], bool]) -> tuple[bool, bool, list[bool]]:
    own, *rest = look_around(), call(), [look_around() for _ in range(1)]
    return own, *rest  # type: ignore[return-value]


def test_a_protected_function_is_protected_with_what_it_calls() -> None:
    """Helpers of the standard library, which nobody marks, are called from there too."""
    assert counting(look) == (True, True, [True])


def test_a_function_protected_between_calls_protects_its_own_lines() -> None:
    """A comprehension is a function of its own in Python 3.11, and belongs to them."""
    assert calling(look) == (True, False, [True])


def test_the_nearest_mark_counts() -> None:
    """A hook that a protected function calls can be interrupted; what counts in it cannot."""
    assert counting(lambda: calling(look)[1]) == (True, False, [False])
    assert calling(lambda: counting(look)[1])[1]


def test_without_a_mark_everything_is_interruptible() -> None:
    """So is the end of the frames, and user code that recurses without end."""
    assert not look()
    assert not is_protected(None)

    def recurse(depth: int) -> bool:
        return look() if depth == 0 else recurse(depth - 1)

    assert not protected(lambda: recurse(200))()


def test_the_functions_of_a_class_are_marked_except_those_with_a_mark_of_their_own() -> None:
    """Properties and class methods are functions too."""

    @protected
    class Counts:
        @protected_between_calls
        def call(self) -> bool:
            return look()

        def count(self) -> bool:
            return look()

        @property
        def value(self) -> bool:
            return look()

        @classmethod
        def make(cls) -> bool:
            return look()

        @staticmethod
        def read() -> bool:
            return look()

    counts = Counts()
    assert not counts.call()
    assert counts.count()
    assert counts.value
    assert counts.make()
    assert counts.read()


@pytest.mark.parametrize("marked", [Run.drive, Run._take_outcome, Reporter.post_execute])
def test_the_loop_and_the_reporter_are_marked(marked: Callable[..., object]) -> None:
    """What they count they report."""

    class Frame:
        f_code = marked.__code__
        f_back = None

    frame: FrameType = Frame()  # type: ignore[assignment]  # a frame cannot be made
    assert is_protected(frame)


def test_hooks_conditions_and_the_function_are_interruptible(hooks: HookManager) -> None:
    """All user code is, wherever it is called from."""
    seen: list[bool] = []

    def see(*args: object) -> bool:
        seen.append(look())
        return True

    hooks.register(HookEvent.POST_EXECUTE, see)
    hooks.register(HookEvent.POST_EXECUTE, lambda _: None, when=see)
    hooks.register(HookEvent.POST_EXECUTE, amorsize.chain(lambda context: see(context)))
    hooks.register(
        HookEvent.ON_CHUNK_COMPLETE, amorsize.create_timing_hook(lambda name, at: see(name))
    )
    amorsize.execute(see, [1], executor="serial", hooks=hooks)
    assert seen == [False] * 5


def test_exporters_are_protected(hooks: HookManager) -> None:
    """What they have counted of an event they deliver."""
    from amorsize.exporters import Exporter

    seen: list[bool] = []

    class Watching(Exporter):
        def post_execute(self, context: HookContext) -> None:
            seen.append(look())

    with Watching().attach(hooks):
        amorsize.execute(abs, [1], executor="serial", hooks=hooks)
    assert seen == [True]
