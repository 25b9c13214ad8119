"""The choice, by clocks and on a machine that the test describes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any

import pytest
from fake_time import FakeTime

import amorsize
from amorsize.engines.base import Task
from amorsize.errors import InvalidTypeError, InvalidValueError
from amorsize.optimizer import optimize
from amorsize.planning.clocks import Clocks
from amorsize.planning.engine import resolve
from amorsize.planning.explanation import OptimizationResult, make_result
from amorsize.planning.gil_probe import GilProbe
from amorsize.planning.machine import StartupCosts, SystemFacts
from amorsize.planning.observations import Observations
from amorsize.planning.planner import Planner
from amorsize.running.first_items import FirstItems
from amorsize.running.input import Input
from amorsize.running.measurement import Measurement

FOUR = SystemFacts.of(4, total_bytes=16 << 30, available_bytes=8 << 30)


class Announced:
    """An iterator whose length is announced."""

    def __init__(self, iterator: Iterator[Any], length: int) -> None:
        self.iterator, self.length = iterator, length

    def __iter__(self) -> Iterator[Any]:
        return self.iterator

    def __len__(self) -> int:
        return self.length


def chosen(
    func: Callable[[Any], Any], data: Iterable[Any], total: int | None = None, **others: Any
) -> tuple[OptimizationResult, FirstItems]:
    """Choose on a described machine of four cores, where nothing has been measured yet."""
    clocks, startup = others.pop("clocks", None), others.pop("startup", StartupCosts())
    task = Task(func, return_exceptions=others.pop("returns_exceptions", False))
    system = others.pop("system", FOUR)
    seen = Observations(
        engine=resolve(others.pop("executor", None)),
        machine=system,
        memory_read=system is not None,
        startup={engine: startup.model(engine) for engine in ("serial", "thread", "process")},
        returns_exceptions=task.return_exceptions,
        **others,
    )
    source = Input(iter(data) if total is None else Announced(iter(data), total))
    measurement = Measurement(
        task, source, seen, Planner(), starts_early=False, clocks=clocks, startup=startup
    )
    result = make_result(measurement.find_plan(), seen)
    return result, measurement.first


def increment(item: int) -> int:
    return item + 1


def ticking(
    seconds: float, *, cores: float = 1.0, switches: int = 0
) -> tuple[Clocks, Callable[[Any], Any]]:
    """Clocks that a function moves: a call takes just so long, on so many cores.

    Args:
        seconds: what a call takes.
        cores: how many cores compute meanwhile.
        switches: how often a call waits.
    """
    fake, calls = FakeTime(cores), 0

    def func(item: Any) -> Any:
        nonlocal calls
        calls += 1
        fake.now += seconds
        return item

    return fake.clocks()._replace(usage=lambda: (calls * switches, 0, 0.0)), func


@pytest.fixture
def gil_share(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Has the probe see so much of the GIL free."""
    return lambda share: monkeypatch.setattr(GilProbe, "share", lambda self: share)


def test_computing_in_python_gets_processes(gil_share: Callable[[float], None]) -> None:
    """All of its time is on a CPU, and the GIL is held."""
    gil_share(0.03)
    clocks, compute = ticking(0.003)
    result, _ = chosen(compute, range(100_000), 100_000, clocks=clocks)
    assert (result.executor_type, result.n_jobs) == ("process", 4)
    assert 1.5 < result.estimated_speedup <= 4.1
    assert "the function computes" in result.reason


def test_sleeping_gets_threads(gil_share: Callable[[float], None]) -> None:
    """More than there are cores: no CPU, a free GIL, and a switch in each call."""
    gil_share(0.7)
    clocks, wait = ticking(0.005, cores=0.0, switches=1)
    result, _ = chosen(wait, range(10_000), 10_000, clocks=clocks)
    assert result.executor_type == "thread"
    assert 8 < result.n_jobs <= 64
    assert "waiting" in result.reason


def test_children_that_compute_are_no_waiting() -> None:
    """The CPU time of a subprocess counts, though the thread that waits for it uses none."""
    code = "import time; sum(i * i for i in range(400_000)); print(time.process_time())"
    spent: list[float] = []

    def run(_: int) -> None:
        done = subprocess.run([sys.executable, "-S", "-c", code], check=True, capture_output=True)
        spent.append(float(done.stdout))

    _, first = chosen(run, range(1000), 1000)
    assert first.sample.cpu_seconds >= 0.9 * sum(spent) > 0


def test_releasing_the_gil_gets_threads(gil_share: Callable[[float], None]) -> None:
    """As many as there are cores."""
    gil_share(0.63)
    clocks, compute = ticking(0.01)
    result, _ = chosen(compute, range(100), 100, clocks=clocks)
    assert (result.executor_type, result.n_jobs) == ("thread", 4)
    assert "releases the GIL" in result.reason


def test_tiny_work_is_serial_and_the_machine_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten additions."""
    monkeypatch.setattr("amorsize.planning.machine.read_system", lambda **_: pytest.fail("looked"))
    clocks, func = ticking(1e-6)
    result, sample = chosen(func, range(10), 10, system=None, clocks=clocks)
    assert (result.executor_type, result.n_jobs, result.estimated_speedup) == ("serial", 1, 1.0)
    assert sample.results[:5] == [0, 1, 2, 3, 4]
    assert "too little" in result.reason


def test_unpicklable_function_is_never_for_processes() -> None:
    """It closes over a lock; the warning says so."""
    lock = threading.Lock()
    clocks, compute = ticking(0.01)

    def func(item: int) -> int:
        with lock:
            return int(compute(item))

    result, _ = chosen(func, range(1000), 1000, clocks=clocks)
    assert result.executor_type == "serial"
    assert any("cannot be pickled" in warning for warning in result.warnings)
    forced, _ = chosen(func, range(1000), 1000, clocks=clocks, n_jobs=3)
    assert (forced.executor_type, forced.n_jobs) == ("thread", 3)


def test_unpicklable_result_is_never_for_processes() -> None:
    """Only the sample shows it."""
    clocks, compute = ticking(0.01)
    result, _ = chosen(lambda x: (compute(x), threading.Lock()), range(999), 999, clocks=clocks)
    assert result.executor_type == "serial"
    assert "a result (tuple) cannot be pickled" in result.warnings[0]


def test_large_payload_stays_inside() -> None:
    """16 MB of real pickling for each millisecond of computing."""
    clocks, compute = ticking(0.001)
    data = [os.urandom(16 << 20)] * 400
    result, _ = chosen(lambda x: compute(x) and None, data, 400, clocks=clocks)
    assert result.executor_type == "serial"
    assert "moving an item and its result (16.8 MB)" in result.reason
    assert "given a path or an index" in result.warnings[0]


def test_parallel_inside_stays_serial() -> None:
    """One call keeps three cores busy."""
    clocks, func = ticking(0.02, cores=3.0)
    result, _ = chosen(func, range(1000), 1000, clocks=clocks)
    assert result.executor_type == "serial"
    assert "already uses 3.0 cores" in result.reason


def test_one_slow_call_is_looked_at_again_where_many_remain() -> None:
    """It may have been a warm-up; with few items left there is no time for that."""
    clocks, func = ticking(0.3)
    _, many = chosen(func, range(100), 100, clocks=clocks)
    _, few = chosen(func, range(10), 10, clocks=clocks)
    assert (len(many.items), len(few.items)) == (2, 1)


def test_memory_is_minded() -> None:
    """Room for two workers of four."""
    clocks, func = ticking(0.01)
    tight = SystemFacts.of(4, total_bytes=1 << 30, available_bytes=90 << 20)
    result, _ = chosen(func, range(9999), 9999, clocks=clocks, system=tight)
    assert (result.executor_type, result.n_jobs) == ("process", 2)
    assert "hold no more than 2 process workers of this work, out of 4" in result.warnings[0]


@pytest.mark.parametrize(("executor", "n_jobs"), [("serial", 1), ("thread", 16), ("process", 4)])
def test_a_named_executor_takes_no_sample(executor: str, n_jobs: int) -> None:
    """The first chunks on its workers are the sample."""
    untouched = count()
    result, sample = chosen(increment, untouched, None, executor=executor)
    assert sample.items == []
    assert next(untouched) == 0
    assert (result.executor_type, result.n_jobs, result.chunksize) == (executor, n_jobs, 1)
    assert result.reason.endswith("as asked for.")
    given, _ = chosen(increment, [], 0, executor=executor, n_jobs=1, chunksize=9)
    assert (given.n_jobs, given.chunksize) == (1, 9)
    assert given.estimated_speedup == (1.0 if executor == "serial" else None)


def test_one_worker_is_a_serial_run() -> None:
    """Nothing to choose, nothing to sample; workers beside a serial run are a mistake."""
    result, sample = chosen(increment, range(10), 10, n_jobs=1)
    assert (result.executor_type, sample.items) == ("serial", [])
    result, _ = chosen(increment, range(10), 10, n_jobs=4, executor="serial")
    assert result.n_jobs == 1
    assert "n_jobs=4 has no effect" in result.warnings[0]


def test_given_numbers_are_honoured() -> None:
    """Workers and chunks as asked for, on the engine that suits."""
    clocks, func = ticking(0.01)
    result, _ = chosen(func, range(9999), 9999, clocks=clocks, n_jobs=7, chunksize=13)
    assert (result.executor_type, result.n_jobs, result.chunksize) == ("process", 7, 13)
    assert "7 workers as asked for" in result.reason
    assert "more workers than cores" in result.warnings[0]


@pytest.mark.parametrize("total", [3, None])
def test_a_failure_ends_the_choice(total: int | None) -> None:
    """The caller learns what was sampled, and reports it in its own way."""
    result, sample = chosen(lambda x: 1 // (1 - x), range(3), total)
    assert (sample.items, sample.results, len(sample.failures)) == ([0, 1], [1], 1)
    assert result.executor_type == "serial"
    assert "raised ZeroDivisionError on item 1" in result.reason
    assert "ZeroDivisionError" in result.explain()


def test_failures_in_place_do_not_end_it() -> None:
    """Under return_exceptions they are results."""
    result, sample = chosen(lambda x: 1 // (1 - x), range(3), 3, returns_exceptions=True)
    assert len(sample.results) == 3
    assert "too little" in result.reason or "nothing remains" in result.reason


def test_optimize_raises_what_the_sample_raised() -> None:
    """The same object, without a cause or a context of ours."""
    error = LookupError("mine")

    def func(item: int) -> None:
        raise error

    with pytest.raises(LookupError) as caught:
        optimize(func, [1])
    assert caught.value is error
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_optimize_raises_what_the_input_raised() -> None:
    """So does an interrupt."""

    def broken() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    def stop(item: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(OSError, match="gone"):
        optimize(abs, broken())
    with pytest.raises(KeyboardInterrupt):
        optimize(stop, [1])


@pytest.mark.parametrize("length", [0, 1, 4, 5, 6, 50])
def test_data_yields_every_item(length: int) -> None:
    """The sampled ones come first again; an input that can be read again is given back."""
    assert list(optimize(increment, (i for i in range(length))).data) == list(range(length))
    numbers = list(range(length))
    assert optimize(increment, numbers).data is numbers
    assert list(optimize(increment, iter(numbers), executor="thread").data) == numbers


def test_an_endless_input_is_not_consumed() -> None:
    """Only the sample is taken."""
    numbers = count()
    result = optimize(increment, numbers, sample_size=3)
    assert next(numbers) == 3
    data = iter(result.data)
    assert [next(data) for _ in range(4)] == [0, 1, 2, 4]


def test_validation_comes_first() -> None:
    """Nothing has run by then."""
    calls: list[int] = []
    with pytest.raises(InvalidValueError, match="n_jobs is 0"):
        optimize(calls.append, [1], n_jobs=0)
    with pytest.raises(InvalidTypeError, match="cannot be iterated"):
        optimize(calls.append, 5)  # type: ignore[arg-type]  # on purpose
    assert calls == []


def test_explain_shows_the_arithmetic() -> None:
    """Facts, sample, each engine with its terms, which was taken and why."""
    clocks, func = ticking(0.01)
    result, _ = chosen(func, range(1000), 1000, clocks=clocks)
    text = result.explain()
    assert result.reason in text
    for part in (
        "4 usable cores",
        "8.59 GB of 17.2 GB memory available",
        "2 items, 10 ms per call",
        "998 items, 9.98 s one after the other",
        "start-up",
        "compute",
        "pickling",
        "round trips",
        "total",
        "speedup",
        "process *",
        "pickled: item",
    ):
        assert part in text
    engines = [line.split()[0] for line in text.splitlines() if line.startswith("  ")]
    assert [e for e in engines if e in ("serial", "thread", "process")] == [
        "serial",
        "thread",
        "process",
    ]
    assert all(len(line) <= 200 for line in text.splitlines())


def test_verbose_writes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """And stays quiet without it."""
    result = optimize(increment, [1, 2], verbose=True)
    captured = capsys.readouterr()
    assert captured.err == result.explain() + "\n"
    assert captured.out == ""
    optimize(increment, [1, 2])
    assert capsys.readouterr().err == ""


def test_the_choice_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """For debugging, without a payload."""
    with caplog.at_level(logging.DEBUG, logger="amorsize.planning"):
        optimize(increment, [1, 2])
    assert "serial, n_jobs=1" in caplog.text


def test_a_long_run_measures_the_start_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """optimize() only: a run measures its own pool."""
    measured: list[str] = []
    costs = StartupCosts()

    def measure(engine: str) -> None:
        measured.append(engine)
        costs.record(engine, workers=1, seconds=0.1, cores=4)

    monkeypatch.setattr("amorsize.planning.machine.measure_startup", measure)
    clocks, func = ticking(0.01)
    for runs_again, expected in ((False, []), (True, ["process"])):
        chosen(func, range(1000), 1000, clocks=clocks, startup=costs, runs_again=runs_again)
        assert measured == expected


def test_result_reads_well() -> None:
    """repr without the data, str in a line."""
    result = OptimizationResult(4, 25, "process", 3.61, "Because.", data=[1] * 1000)
    assert repr(result) == (
        "OptimizationResult(n_jobs=4, chunksize=25, executor_type='process', "
        "estimated_speedup=3.61, reason='Because.', warnings=[])"
    )
    assert str(result) == "process, n_jobs=4, chunksize=25, estimated speedup 3.6: Because."
    assert not hasattr(result, "__dict__")


def test_importing_is_light() -> None:
    """Nothing heavy before it is needed."""
    code = (
        "import sys, amorsize.optimizer\n"
        "heavy = {'multiprocessing', 'psutil', 'cloudpickle', 'subprocess', 'concurrent.futures'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_public_names() -> None:
    """Both are at the top of the package."""
    assert amorsize.optimize is optimize
    assert amorsize.OptimizationResult is OptimizationResult
