"""What can be pickled, and not be loaded in another process.

The automatic choice finds that out before a worker has begun with anything that it would lose, and
goes on without processes: no item runs twice. A named engine says what could not be loaded, and
why.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from planned import Computing, PlanWith

import amorsize
from amorsize import HookEvent, HookManager
from amorsize.engines import warm_pool
from amorsize.errors import ExecutionError, TransportError
from amorsize.testing import RecordingHook, assert_contract

PROGRAM = "AMORSIZE_TEST_PROGRAM"
COUNT = 60


@pytest.fixture(autouse=True)
def _program(monkeypatch: pytest.MonkeyPatch, plan_with: PlanWith) -> Iterator[None]:
    """Workers know by the environment that they are not the program; they are up."""
    monkeypatch.setenv(PROGRAM, str(os.getpid()))
    plan_with(Computing())
    amorsize.shutdown()
    warm_up()
    yield
    amorsize.shutdown()


def warm_up() -> None:
    while warm_pool.warm_workers() < 2:
        amorsize.execute(lambda _: time.sleep(0.1), range(2), executor="process", n_jobs=2)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Counter[str]]:
    """Counts how often each item was called, wherever that was."""
    file = tmp_path / "calls"
    monkeypatch.setenv("AMORSIZE_TEST_CALLS", str(file))
    return lambda: Counter(file.read_text().split() if file.exists() else [])


def called(item: Any) -> Any:
    """Note a call that takes long enough for processes to pay."""
    with open(os.environ["AMORSIZE_TEST_CALLS"], "a") as file:
        file.write(f"{item}\n")
    sum(range(400_000))
    return item


def is_elsewhere() -> bool:
    return os.getpid() != int(os.environ[PROGRAM])


class Reduced:
    """A function that is made by what raises elsewhere."""

    def __call__(self, item: Any) -> Any:
        return called(item)

    def __reduce__(self) -> tuple[Any, ...]:
        return make_here, (Reduced,)


def make_here(kind: type, *arguments: Any) -> Any:
    if is_elsewhere():
        raise ConnectionError("no connection from here")
    return kind(*arguments)


class Stateful:
    """A function whose state cannot be set elsewhere."""

    def __getstate__(self) -> dict[str, int]:
        return {"state": 1}

    def __setstate__(self, state: dict[str, int]) -> None:
        if is_elsewhere():
            raise ConnectionError("no connection from here")

    def __call__(self, item: Any) -> Any:
        return called(item)


class Deadly:
    """A function that ends the process in which it is loaded."""

    def __call__(self, item: Any) -> Any:
        return called(item)

    def __reduce__(self) -> tuple[Any, ...]:
        return end_elsewhere, ()


def end_elsewhere() -> Any:
    if is_elsewhere():
        os._exit(7)
    return Deadly()


class Bound:
    """An item, or a result, that can be loaded only where it was pickled."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return bind, (self.number, os.getpid())


def bind(number: int, pid: int) -> Bound:
    if os.getpid() != pid:
        raise ConnectionError("no connection from here")
    return Bound(number)


class Locked(Bound):
    """An item that does not even pickle."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Locked, (self.lock,)


class TwoArguments(Exception):
    """As a result: it pickles, and does not come back."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number = number


def give_bound(number: int) -> Bound:
    return Bound(called(number))


def give_exception(number: int) -> TwoArguments:
    return TwoArguments("no", called(number))


def number_of(item: Any) -> int:
    return called(item.number if isinstance(item, Bound) else item)  # type: ignore[no-any-return]


def run_chosen(func: Callable[[Any], Any], data: Any, **options: Any) -> tuple[list[Any], Any]:
    """Let the choice be made: it would be processes."""
    return amorsize.execute(func, data, n_jobs=2, return_optimization_result=True, **options)


def run_named(func: Callable[[Any], Any], data: Any, **options: Any) -> Any:
    return amorsize.execute(func, data, executor="process", n_jobs=2, chunksize=3, **options)


def all_said(result: Any) -> str:
    return " ".join([result.reason, *result.warnings, *result.changes])


# --- the function ----

FUNCTIONS: dict[str, tuple[Callable[[], Callable[[Any], Any]], str]] = {
    "reduce": (Reduced, "the function cannot be loaded .*ConnectionError: no connection"),
    "state": (Stateful, "the function cannot be loaded .*ConnectionError: no connection"),
    "deadly": (Deadly, r"exited with code 7 \(before it took any work"),
}


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_a_function_that_no_worker_can_load_runs_here(
    kind: str,
    warm: bool,
    calls: Callable[[], Counter[str]],
    hooks: HookManager,
    recorder: RecordingHook,
) -> None:
    """Whether the workers are there already, or start while the first items run."""
    if not warm:
        amorsize.shutdown()
    results, _ = run_chosen(FUNCTIONS[kind][0](), range(COUNT), hooks=hooks)
    assert results == list(range(COUNT))
    assert calls() == Counter(map(str, range(COUNT)))
    assert_contract(recorder.contexts)
    assert HookEvent.ON_ERROR not in recorder.events
    pids = {c.metadata["pid"] for c in recorder.of(HookEvent.ON_WORKER_START)}
    assert pids <= {os.getpid()}, "no worker process has begun with a chunk"


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_a_named_engine_says_why_the_function_could_not_be_loaded(
    kind: str, calls: Callable[[], Counter[str]], hooks: HookManager, recorder: RecordingHook
) -> None:
    """No item has run."""
    make, reason = FUNCTIONS[kind]
    with pytest.raises(ExecutionError, match=reason):
        run_named(make(), range(COUNT), hooks=hooks)
    assert not calls()
    assert_contract(recorder.contexts)
    assert run_named(abs, range(-6, 0)) == [6, 5, 4, 3, 2, 1]


def test_the_reason_of_the_choice_names_what_could_not_be_loaded(
    calls: Callable[[], Counter[str]],
) -> None:
    """In the reason, a warning or a change of engine."""
    _, chosen = run_chosen(Reduced(), range(COUNT))
    assert "the function cannot be loaded in worker process" in all_said(chosen)
    assert "ConnectionError: no connection from here" in all_said(chosen)


@pytest.mark.parametrize("executor", ["process", None])
def test_functions_of_modules_that_were_made_by_hand_inside_of_others(
    executor: str | None, calls: Callable[[], Counter[str]]
) -> None:
    """``made`` and ``made.inner`` stand in no file: they are sent by value."""
    outer, inner = types.ModuleType("made_outer"), types.ModuleType("made_outer.inner")
    sys.modules |= {"made_outer": outer, "made_outer.inner": inner}
    exec("def f(x):\n    return sum(range(200_000)) * 0 + 2 * x\n", vars(inner))
    try:
        results = amorsize.execute(inner.f, range(COUNT), executor=executor, n_jobs=2)
        assert results == [2 * x for x in range(COUNT)]
    finally:
        del sys.modules["made_outer"], sys.modules["made_outer.inner"]


# --- items ----


@pytest.mark.parametrize("others", [True, False], ids=["one of many", "all of them"])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Bound, "cannot be unpickled in the worker: ConnectionError: no connection"),
        (Locked, "cannot be pickled: TypeError"),
    ],
)
def test_items_that_reach_no_worker_run_here(
    kind: type,
    reason: str,
    others: bool,
    calls: Callable[[], Counter[str]],
    hooks: HookManager,
    recorder: RecordingHook,
) -> None:
    """Each item once, whether those before it have run in workers or not."""
    data = [number if others and number != 30 else kind(number) for number in range(COUNT)]
    results, chosen = run_chosen(number_of, data, hooks=hooks)
    assert results == list(range(COUNT))
    assert calls() == Counter(map(str, range(COUNT)))
    assert reason in all_said(chosen)
    assert_contract(recorder.contexts)
    assert HookEvent.ON_ERROR not in recorder.events


def test_an_item_that_cannot_be_loaded_is_an_error_of_a_named_engine(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """It names the items of the chunk."""
    data: list[Any] = [0, 1, 2, 3, Bound(4), 5]
    with pytest.raises(TransportError, match=r"items 3 to 5 \(chunk 1\) .*no connection from here"):
        run_named(str, data, hooks=hooks)
    assert_contract(recorder.contexts)


# --- results ----


@pytest.mark.parametrize("func", [give_bound, give_exception])
def test_results_that_cannot_be_loaded_are_found_before_a_worker_runs_anything(
    func: Callable[[int], Any],
    calls: Callable[[], Counter[str]],
    hooks: HookManager,
    recorder: RecordingHook,
) -> None:
    """A worker has tried with a result of the first items."""
    results, chosen = run_chosen(func, range(COUNT), hooks=hooks)
    assert [result.number for result in results] == list(range(COUNT))
    assert calls() == Counter(map(str, range(COUNT)))
    assert "a result cannot be loaded in worker process" in all_said(chosen)
    assert_contract(recorder.contexts)


@pytest.mark.parametrize("func", [give_bound, give_exception])
def test_a_result_that_cannot_be_loaded_is_an_error_of_a_named_engine(
    func: Callable[[int], Any],
    calls: Callable[[], Counter[str]],
    hooks: HookManager,
    recorder: RecordingHook,
) -> None:
    """It names the items whose results they are, and the reason."""
    with pytest.raises(TransportError, match=r"the results of items \d+ to \d+ .*Error: "):
        run_named(func, range(6), hooks=hooks)
    assert_contract(recorder.contexts)
    assert run_named(abs, range(-6, 0)) == [6, 5, 4, 3, 2, 1]


# --- streams, and what comes late ----


def test_a_stream_goes_on_without_processes(calls: Callable[[], Counter[str]]) -> None:
    """In order, and each item once."""
    data = [*range(COUNT)]
    data[40] = Bound(40)  # type: ignore[call-overload]  # on purpose
    assert list(amorsize.stream(number_of, iter(data), n_jobs=2)) == list(range(COUNT))
    assert calls() == Counter(map(str, range(COUNT)))


def test_with_exceptions_in_place_nothing_fails(calls: Callable[[], Counter[str]]) -> None:
    """Items that cannot be loaded elsewhere are no failures of theirs."""
    data: list[Any] = [Bound(x) if x % 7 == 6 else x for x in range(COUNT)]
    results, _ = run_chosen(number_of, data, return_exceptions=True)
    assert results == list(range(COUNT))
    assert calls() == Counter(map(str, range(COUNT)))
