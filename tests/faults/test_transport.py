"""Objects that do not pickle, and awkward exceptions: clear errors, never a hang."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import amorsize
from amorsize import HookEvent, HookManager
from amorsize.errors import FunctionExitError, RemoteError, TransportError, UnpicklableItemError
from amorsize.testing import RecordingHook, assert_contract


class NeedsTwoArguments(Exception):
    """Its constructor asks for what ``args`` does not hold."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class Unpicklable(Exception):
    """Holds what cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text, threading.Lock())
        self.lock = threading.Lock()
        self.text = text


class FailsToLoad:
    """Pickles, and raises when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("not a number",)


class Picky(Exception):
    """Not even its class can be rebuilt where it was not made."""

    def __init__(self) -> None:
        super().__init__("picky")

    def __reduce__(self) -> tuple[Any, ...]:
        return FailsToLoad().__reduce__()


def process(func: Callable[[Any], Any], data: Any, **options: Any) -> Any:
    """Run in processes, a few items per chunk."""
    options = {"n_jobs": 2, "chunksize": 3} | options
    return amorsize.execute(func, data, executor="process", **options)


def assert_workers_live_on() -> None:
    """The next run finds the workers of the last one."""
    assert process(abs, [-1, 2, -3]) == [1, 2, 3]


def raises_two_arguments(x: int) -> int:
    raise NeedsTwoArguments(4, "no")


def raises_unpicklable(x: int) -> int:
    raise Unpicklable("held")


def test_an_exception_whose_constructor_needs_arguments_keeps_its_type(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """It is rebuilt without calling the constructor."""
    with pytest.raises(NeedsTwoArguments, match="4: no") as caught:
        process(raises_two_arguments, range(5), hooks=hooks)
    assert caught.value.code == 4
    assert_contract(recorder.contexts)
    assert_workers_live_on()


def test_an_exception_that_does_not_pickle_keeps_its_type_and_what_pickles(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """Attributes that do not pickle are left out, or shown as text."""
    with pytest.raises(Unpicklable, match="held") as caught:
        process(raises_unpicklable, range(5), hooks=hooks)
    assert caught.value.text == "held"
    assert not hasattr(caught.value, "lock")
    assert_contract(recorder.contexts)
    assert_workers_live_on()


def test_an_exception_that_cannot_be_rebuilt_is_reported_as_text(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """RemoteError names its class and holds its text; the traceback is a note."""

    class Local(Exception):
        __slots__ = ()

        def __new__(cls, *args: Any) -> Any:
            if args != ("picky",):
                raise TypeError("only ever picky")
            return super().__new__(cls, *args)

        def __reduce__(self) -> Any:
            raise TypeError("no")

        @property
        def args(self) -> Any:  # type: ignore[override]  # awkward on purpose
            return ("something", "else")

    def fail(x: int) -> int:
        raise Local("picky")

    with pytest.raises(RemoteError, match="Local") as caught:
        process(fail, range(5), hooks=hooks)
    assert "in fail" in caught.value.__notes__[0]
    assert_contract(recorder.contexts)
    assert_workers_live_on()


@pytest.mark.parametrize("exception", [SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("mode", ["thread", "process"])
def test_a_worker_that_wants_to_exit_is_a_failure_of_its_item(
    exception: type[BaseException], mode: str, hooks: HookManager, recorder: RecordingHook
) -> None:
    """Neither the worker nor the program ends."""

    def leave(x: int) -> int:
        if x == 4:
            raise exception("bye")
        return x

    with pytest.raises(FunctionExitError, match=rf"{exception.__name__}\(bye\) on item 4"):
        amorsize.execute(leave, range(9), executor=mode, n_jobs=2, chunksize=3, hooks=hooks)
    assert_contract(recorder.contexts)
    assert recorder.contexts[-1].metadata["status"] == "error"
    results = amorsize.execute(
        leave, range(9), executor=mode, n_jobs=2, chunksize=3, return_exceptions=True
    )
    assert [type(r) for r in results] == [int] * 4 + [FunctionExitError] + [int] * 4
    assert_workers_live_on()


def test_system_exit_in_the_callers_own_thread_passes(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """In a serial run it means what it says, and the events are emitted."""

    def leave(x: int) -> int:
        sys.exit(4)

    with pytest.raises(SystemExit) as caught:
        amorsize.execute(leave, range(3), executor="serial", hooks=hooks)
    assert caught.value.code == 4
    assert_contract(recorder.contexts)
    assert recorder.contexts[-1].metadata["status"] == "error"


def test_a_function_that_does_not_pickle_is_refused_with_its_reason(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """Before any worker starts; the events are emitted."""
    lock = threading.Lock()
    with pytest.raises(TransportError, match=r"cannot be pickled.*executor='thread'"):
        process(lambda x: lock.locked(), range(3), hooks=hooks)
    assert_contract(recorder.contexts)
    assert HookEvent.ON_WORKER_START not in recorder.events


@pytest.mark.parametrize("position", [0, 4, 8])
def test_an_item_that_does_not_pickle_is_named(
    position: int, hooks: HookManager, recorder: RecordingHook
) -> None:
    """By its index and type."""
    data: list[Any] = list(range(9))
    data[position] = threading.Lock()
    with pytest.raises(UnpicklableItemError, match=f"item {position}, a lock") as caught:
        process(str, data, hooks=hooks)
    assert caught.value.index == position
    assert_contract(recorder.contexts)
    results = process(lambda x: x, data, return_exceptions=True, hooks=hooks)
    assert [i for i, r in enumerate(results) if isinstance(r, UnpicklableItemError)] == [position]
    assert [r for r in results if isinstance(r, int)] == [x for x in range(9) if x != position]
    assert_contract(recorder.contexts)
    assert_workers_live_on()


def test_many_items_that_do_not_pickle_fail_one_by_one(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """However many there are in a row."""
    data = [threading.Lock() for _ in range(500)] + [3]
    results = process(lambda x: x, data, chunksize=100, return_exceptions=True, hooks=hooks)
    assert [type(r) for r in results] == [UnpicklableItemError] * 500 + [int]
    assert_contract(recorder.contexts)


def test_an_item_that_does_not_unpickle_fails_its_chunk(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """The error says which items; the worker lives on."""
    data = [1, 2, 3, 4, FailsToLoad(), 6, 7]
    with pytest.raises(TransportError, match=r"items 3 to 5 \(chunk 1\) cannot be unpickled"):
        process(str, data, hooks=hooks)
    assert_contract(recorder.contexts)
    results = process(str, data, return_exceptions=True, hooks=hooks)
    assert [isinstance(r, TransportError) for r in results] == [False] * 3 + [True] * 3 + [False]
    assert_contract(recorder.contexts)
    assert_workers_live_on()


def test_a_result_that_does_not_pickle_is_named(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """It is the failure of its item alone."""

    def answer(x: int) -> Any:
        return threading.Lock() if x == 4 else x

    with pytest.raises(TransportError, match="the result of item 4, a lock, cannot be sent back"):
        process(answer, range(9), hooks=hooks)
    assert_contract(recorder.contexts)
    results = process(answer, range(9), return_exceptions=True, hooks=hooks)
    assert [type(r) for r in results] == [int] * 4 + [TransportError] + [int] * 4
    assert_contract(recorder.contexts)
    assert_workers_live_on()


def test_a_result_that_does_not_unpickle_fails_its_chunk(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """The parent lives on, and so does the worker."""

    def answer(x: int) -> Any:
        return FailsToLoad() if x == 4 else x

    with pytest.raises(TransportError, match=r"results of items 3 to 5 \(chunk 1\) cannot be"):
        process(answer, range(9), hooks=hooks)
    assert_contract(recorder.contexts)
    results = process(answer, range(9), return_exceptions=True, hooks=hooks)
    assert [isinstance(r, TransportError) for r in results] == [False] * 3 + [True] * 3 + [
        False
    ] * 3
    assert_contract(recorder.contexts)
    assert_workers_live_on()


def test_a_module_that_the_worker_cannot_import_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hooks: HookManager, recorder: RecordingHook
) -> None:
    """What the function's module imports was importable here and is not there."""
    (tmp_path / "fleeting_module.py").write_text("three = 3\n")
    (tmp_path / "lasting_module.py").write_text(
        "import fleeting_module\ndef triple(x):\n    return fleeting_module.three * x\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import lasting_module  # type: ignore[import-not-found]  # made above

    (tmp_path / "fleeting_module.py").unlink()
    with pytest.raises(TransportError, match=r"No module named 'fleeting_module'.*sys\.path"):
        process(lasting_module.triple, range(5), hooks=hooks)
    assert_contract(recorder.contexts)
    assert_workers_live_on()


def test_a_recursion_too_deep_is_the_items_failure(
    mode: str, hooks: HookManager, recorder: RecordingHook
) -> None:
    """In the function, and in an item's own depth."""

    def dive(x: Any) -> Any:
        return dive(x)

    with pytest.raises(RecursionError):
        amorsize.execute(dive, range(3), executor=mode, n_jobs=2, hooks=hooks)
    assert_contract(recorder.contexts)

    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    if mode == "process":
        with pytest.raises(UnpicklableItemError, match="item 1, a list"):
            process(len, [[], deep], hooks=hooks)
        assert_contract(recorder.contexts)
        assert_workers_live_on()


def test_a_mixture_of_large_items_and_large_results_does_not_block(hooks: HookManager) -> None:
    """Both directions full at once: neither side waits for the other."""
    data = [bytes([x]) * 3_000_000 for x in range(24)]
    assert process(lambda blob: blob + blob, data, chunksize=1) == [blob + blob for blob in data]
