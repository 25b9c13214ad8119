"""What ``executor=`` stands for, and what follows from it for the plan."""

from __future__ import annotations

from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest

import amorsize
from amorsize.errors import InvalidTypeError, InvalidValueError
from amorsize.hooks.events import EXECUTOR_TYPES
from amorsize.planning import machine
from amorsize.planning.engine import NAMES, TITLES, Engine, resolve
from amorsize.planning.explanation import OptimizationResult, make_result
from amorsize.planning.observations import Observations
from amorsize.planning.plan import CORES, LookFurther, RunChunks
from amorsize.planning.planner import Planner


class Unbounded(Executor):
    """Does not say how many workers it has."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn())
        return future


def plan(executor: Any, total: int | None = 100, **options: Any) -> OptimizationResult:
    """The plan for an executor that is named."""
    seen = Observations(engine=resolve(executor), left=total, **options)
    step = Planner().next(seen)
    if step == LookFurther(CORES):
        seen.machine = machine.SystemFacts.of(2)
        step = Planner().next(seen)
    assert isinstance(step, RunChunks)
    return make_result(step, seen)


@pytest.mark.parametrize("name", ["serial", "thread", "process"])
def test_our_own_engines_go_by_their_names(name: str) -> None:
    """Nothing is owned by the caller."""
    assert resolve(name) == Engine(name)
    assert name in NAMES


def test_every_type_of_engine_has_a_title_and_is_known_to_the_events() -> None:
    """The events do not import this module, and short runs import no events."""
    assert tuple(TITLES) == EXECUTOR_TYPES


def test_none_leaves_the_choice_open_and_an_engine_is_one() -> None:
    """So that an argument can be resolved once, and handed on."""
    assert resolve(None) is None
    engine = Engine("thread")
    assert resolve(engine) is engine


def test_executors_say_how_many_workers_they_have() -> None:
    """Those of the standard library do, and nothing is started to know."""
    threads, processes = ThreadPoolExecutor(5), ProcessPoolExecutor(3)
    assert resolve(threads) == Engine("custom", threads, 5)
    assert resolve(processes) == Engine("custom", processes, 3)
    unbounded = Unbounded()
    assert resolve(unbounded) == Engine("custom", unbounded, None)


@pytest.mark.parametrize(
    ("executor", "kind", "message"),
    [
        ("fork", InvalidValueError, "'fork', which is not a known name; .* 'dask', a concurrent"),
        (ThreadPoolExecutor, InvalidTypeError, r"class ThreadPoolExecutor \(make an instance"),
        (7, InvalidTypeError, r"7 \(int\), which cannot be used; give one of 'serial'"),
        (object(), InvalidTypeError, "an object of type object"),
        (True, InvalidTypeError, r"True \(bool\)"),
    ],
)
def test_what_is_no_executor_is_refused(executor: Any, kind: type, message: str) -> None:
    """By ``execute()``, ``stream()`` and ``optimize()`` alike, before anything runs."""
    calls: list[Any] = []
    for call in (amorsize.execute, amorsize.stream, amorsize.optimize):
        with pytest.raises(kind, match=message):
            call(calls.append, [1], executor=executor)
    assert calls == []


@pytest.mark.parametrize(
    ("n_jobs", "workers", "warns"), [(None, 4, False), (2, 2, False), (9, 4, True)]
)
def test_a_pool_bounds_the_number_of_workers(n_jobs: int | None, workers: int, warns: bool) -> None:
    """What is asked beyond it is said to have no effect."""
    result = plan(ThreadPoolExecutor(4), n_jobs=n_jobs)
    assert (result.n_jobs, result.executor_type) == (workers, "custom")
    assert bool(result.warnings) == warns


def test_without_a_known_bound_the_callers_number_counts() -> None:
    """Or, without one, the cores of this machine."""
    assert plan(Unbounded(), n_jobs=9).n_jobs == 9
    assert plan(Unbounded()).n_jobs == plan("process").n_jobs


def test_a_cluster_is_as_wide_as_its_threads_or_as_the_caller_says() -> None:
    """More than it has now: an adaptive one grows with its work."""
    assert plan(Engine("dask", object(), 48)).n_jobs == 48
    assert plan(Engine("dask", object(), 48), n_jobs=100).n_jobs == 100
    assert plan(Engine("dask", object(), 0)).n_jobs == 1


@pytest.mark.parametrize("named", ["thread", "process", ThreadPoolExecutor(4), Unbounded()])
def test_nothing_is_expected_of_a_named_engine(named: Any) -> None:
    """Nothing was measured for it: how many calls it makes at once says nothing of their speed."""
    result = plan(named)
    assert result.estimated_speedup is None
    assert "speedup" not in f"{result}{result.explain()}"
    assert plan("serial").estimated_speedup == 1.0
