"""Caller-owned executors: how they break, values that do not pickle, and their state afterwards."""

from __future__ import annotations

import contextvars
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import loky
import pytest
from exporters.spans import Traces
from modes import EXTERNAL_MODES, Mode
from waiting import PATIENCE, slowness, wait_until

import amorsize
from amorsize import HookEvent, HookManager
from amorsize.engines.external import futures, worker
from amorsize.errors import (
    ExecutionError,
    ExecutionTimeoutError,
    ExecutorBrokenError,
    FunctionExitError,
    InvalidValueError,
    TransportError,
    UnpicklableItemError,
)
from amorsize.testing import RecordingHook, assert_contract

ELSEWHERE = [name for name in EXTERNAL_MODES if name != "thread-pool"]
"""Those whose workers are other processes."""

elsewhere = pytest.mark.parametrize("external", ELSEWHERE, indirect=True)
everywhere = pytest.mark.parametrize("external", EXTERNAL_MODES, indirect=True)

POOLS: dict[str, Callable[[], Any]] = {
    **{
        method: lambda method=method: ProcessPoolExecutor(
            2, mp_context=multiprocessing.get_context(method)
        )
        for method in ("fork", "forkserver", "spawn")
    },
    "loky": lambda: loky.ProcessPoolExecutor(2),
}


@pytest.fixture(params=POOLS)
def pool(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A pool of processes of the test's own, to be broken."""
    pool = POOLS[request.param]()
    yield pool
    pool.shutdown()


class FailsToLoad:
    """Pickles, and raises when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("not a number",)


class NeedsTwoArguments(Exception):
    """Its constructor asks for what ``args`` does not hold."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


def ends(recorder: RecordingHook) -> list[tuple[str, int | None]]:
    """How each worker ended."""
    return [
        (end.metadata["exit_reason"], end.metadata["exit_code"])
        for end in recorder.of(HookEvent.ON_WORKER_END)
    ]


# --- executors that break --------------------------------------------------------------------


@pytest.mark.parametrize("return_exceptions", [False, True])
def test_a_pool_that_breaks_ends_the_run_with_the_deaths_of_its_workers(
    pool: Any, return_exceptions: bool, hooks: HookManager, recorder: RecordingHook
) -> None:
    """One ON_ERROR, all workers died, status error; the cause is what the pool says."""

    def kill_on_seven(x: int) -> int:
        if x == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    with pytest.raises(ExecutorBrokenError, match="no longer accepts work") as caught:
        amorsize.execute(
            kill_on_seven,
            range(1000),
            executor=pool,
            chunksize=1,
            return_exceptions=return_exceptions,
            hooks=hooks,
        )
    assert "chunk" in str(caught.value)
    assert "executor='process'" in str(caught.value)
    assert caught.value.__cause__ is not None
    assert_contract(recorder.contexts)
    (error,) = recorder.of(HookEvent.ON_ERROR)
    assert error.error is caught.value
    assert {reason for reason, _ in ends(recorder)} == {"died"}
    assert recorder.contexts[-1].metadata["status"] == "error"
    with pytest.raises(ExecutorBrokenError, match="no longer accepts work"):
        amorsize.execute(abs, [1], executor=pool)


def test_a_worker_killed_while_it_sends_its_result_does_not_hang_the_run(
    hooks: HookManager, recorder: RecordingHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The standard library's pool says nothing then: the process is seen to be gone."""
    monkeypatch.setattr(futures, "_ENDED_SECONDS", 0.3)

    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    (worker,) = {pool.submit(os.getpid).result(PATIENCE)}

    def read_so_far() -> int:
        return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])

    def kill_when_it_sends(before: int) -> None:
        wait_until(lambda: read_so_far() > before + 10_000_000, "the beginning of the result")
        os.kill(worker, signal.SIGKILL)

    killer = threading.Thread(target=kill_when_it_sends, args=(read_so_far(),))
    killer.start()
    with pytest.raises(ExecutorBrokenError, match="no longer accepts work"):
        amorsize.execute(bytes, [200_000_000], executor=pool, hooks=hooks)
    killer.join()
    assert_contract(recorder.contexts)
    assert {reason for reason, _ in ends(recorder)} == {"died"}
    # Its own thread would wait for the rest of that result, and hold the exit, for ever.
    pool._result_queue._writer.close()
    pool.shutdown()


def test_an_executor_that_was_shut_down_is_a_clear_error(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """Before the run, and in the middle of it."""
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    with pytest.raises(ExecutorBrokenError, match=r"ThreadPoolExecutor .* after shutdown"):
        amorsize.execute(abs, [1], executor=executor, hooks=hooks)
    assert_contract(recorder.contexts)
    recorder.contexts.clear()

    executor = ThreadPoolExecutor(1)

    def shut_down(x: int) -> int:
        executor.shutdown(wait=False, cancel_futures=True)
        return x

    with pytest.raises(ExecutorBrokenError, match="no longer accepts work"):
        amorsize.execute(shut_down, range(100), executor=executor, chunksize=1, hooks=hooks)
    assert_contract(recorder.contexts)
    assert {reason for reason, _ in ends(recorder)} == {"cancelled"}


def test_an_initializer_that_fails_breaks_a_pool_of_threads(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """No worker has started, and none is reported."""

    def fail() -> None:
        raise OSError("no licence")

    logging.getLogger("concurrent.futures").disabled = True
    with (
        ThreadPoolExecutor(1, initializer=fail) as executor,
        pytest.raises(ExecutorBrokenError, match="BrokenThreadPool"),
    ):
        amorsize.execute(abs, range(10), executor=executor, hooks=hooks)
    logging.getLogger("concurrent.futures").disabled = False
    assert_contract(recorder.contexts)
    assert recorder.of(HookEvent.ON_WORKER_START) == []


class Answers(Executor):
    """Gives one answer to everything, without calling anything."""

    def __init__(self, result: Any = None, error: Exception | None = None) -> None:
        self._result = result
        self._error = error

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if self._error is not None:
            future.set_exception(self._error)
        else:
            future.set_result(self._result)
        return future


@pytest.mark.parametrize(
    ("executor", "message"),
    [
        (Answers(error=OSError("disk full")), r"failed on chunk 0 \(items 0 to 0\).*disk full"),
        (Answers(result=7), "returned int for chunk 0"),
    ],
)
def test_an_executor_that_does_something_else_is_a_clear_error(
    executor: Executor, message: str, hooks: HookManager, recorder: RecordingHook
) -> None:
    """Its own exceptions are not the function's; a result that is not ours is refused."""
    with pytest.raises(ExecutionError, match=message):
        amorsize.execute(abs, [1], executor=executor, hooks=hooks)
    assert_contract(recorder.contexts)


# --- a caller-owned executor is left as it was --------------------------------------------------


class OneByOne:
    """The least that an executor can be: it calls at once, in the caller's thread."""

    def submit(self, fn: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn())
        return future


def test_whatever_has_a_submit_will_do(hooks: HookManager, recorder: RecordingHook) -> None:
    """Also what calls at once, and is no ``Executor`` by descent."""
    results = amorsize.execute(
        lambda x: -x, range(20), executor=OneByOne(), n_jobs=2, chunksize=3, hooks=hooks
    )
    assert results == [-x for x in range(20)]
    assert_contract(recorder.contexts)
    assert recorder.contexts[0].n_jobs == 2
    assert recorder.contexts[0].metadata["executor_type"] == "custom"


@everywhere
def test_an_executor_serves_its_owner_before_and_after(external: Mode) -> None:
    """It is not shut down, whether the run goes well or not."""

    def fail(x: int) -> int:
        raise ValueError(x)

    for func in (abs, fail):
        try:
            amorsize.execute(func, [1, 2], executor=external.executor)
        except ValueError:
            assert func is fail
        assert external.executor.submit(divmod, 7, 2).result(PATIENCE) == (3, 1)


class Counting(ThreadPoolExecutor):
    """Counts what it has been given and has not done."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.out = self.most_out = self.at_work = self.most_at_work = 0
        self._lock = threading.Lock()

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        def counted() -> Any:
            with self._lock:
                self.at_work += 1
                self.most_at_work = max(self.most_at_work, self.at_work)
            try:
                return fn()
            finally:
                with self._lock:
                    self.at_work -= 1
                    self.out -= 1

        with self._lock:
            self.out += 1
            self.most_out = max(self.most_out, self.out)
        return super().submit(counted)


@pytest.mark.parametrize(("n_jobs", "workers", "out"), [(None, 3, 6), (2, 2, 2), (8, 3, 6)])
def test_chunks_in_flight_are_bounded(
    n_jobs: int | None, workers: int, out: int, hooks: HookManager, recorder: RecordingHook
) -> None:
    """By the executor's workers, twice that for short chunks, or by a smaller ``n_jobs``."""
    with Counting(3) as executor:
        results, plan = amorsize.execute(
            abs,
            range(300),
            executor=executor,
            n_jobs=n_jobs,
            chunksize=1,
            hooks=hooks,
            return_optimization_result=True,
        )
        assert results == list(range(300))
        assert executor.most_out <= out
        assert executor.most_at_work <= workers
    assert recorder.contexts[0].n_jobs == workers
    assert bool(plan.warnings) == (n_jobs == 8)


def test_threads_call_the_function_itself() -> None:
    """Nothing is pickled for an executor that does not pickle: locks and lists are shared."""
    lock, seen = threading.Lock(), []

    def note(item: tuple[int, Any]) -> int:
        with lock:
            seen.append(item[0])
        return item[0]

    items = [(x, threading.Lock()) for x in range(20)]
    with ThreadPoolExecutor(2) as executor:
        assert amorsize.execute(note, items, executor=executor) == list(range(20))
    assert sorted(seen) == list(range(20))


# --- what can be sent, and what cannot ---------------------------------------------------------


@elsewhere
def test_a_function_that_does_not_pickle_is_refused_with_its_reason(
    external: Mode, hooks: HookManager, recorder: RecordingHook
) -> None:
    """No chunk runs, and the next run works."""
    lock = threading.Lock()

    def holds_a_lock(x: int) -> int:
        with lock:
            return x

    with pytest.raises(TransportError, match="holds_a_lock"):
        amorsize.execute(holds_a_lock, range(5), executor=external.executor, hooks=hooks)
    assert_contract(recorder.contexts)
    assert amorsize.execute(abs, [-1], executor=external.executor) == [1]


@elsewhere
def test_an_item_that_does_not_pickle_is_named(
    external: Mode, hooks: HookManager, recorder: RecordingHook
) -> None:
    """Alone it fails, where exceptions are returned; the items beside it run once."""
    items = [1, 2, threading.Lock(), 4, 5]
    with pytest.raises(UnpicklableItemError, match="item 2, a lock"):
        amorsize.execute(str, items, executor=external.executor, chunksize=5, hooks=hooks)
    results = amorsize.execute(
        str,
        items,
        executor=external.executor,
        chunksize=5,
        return_exceptions=True,
        hooks=hooks,
    )
    assert results[:2] + results[3:] == ["1", "2", "4", "5"]
    assert isinstance(results[2], UnpicklableItemError)
    assert_contract(recorder.contexts)


@elsewhere
@pytest.mark.parametrize(
    ("func", "kind", "message"),
    [
        (lambda x: threading.Lock(), TransportError, "result of item 0"),
        (lambda x: FailsToLoad(), TransportError, "results of items 0 to 2"),
        (lambda x: os.environ.clear() or exit(3), FunctionExitError, r"SystemExit\(3\) on item 0"),
    ],
    ids=["result", "result-there", "exit"],
)
def test_what_does_not_come_back_is_a_clear_error(
    func: Any, kind: type, message: str, external: Mode, hooks: HookManager, recorder: RecordingHook
) -> None:
    """The failure of its chunk; the worker lives on."""
    with pytest.raises(kind, match=message):
        amorsize.execute(func, range(3), executor=external.executor, chunksize=3, hooks=hooks)
    assert_contract(recorder.contexts)
    assert len(recorder.of(HookEvent.ON_ERROR)) == 1
    assert amorsize.execute(abs, [-1], executor=external.executor) == [1]


@elsewhere
def test_an_item_that_does_not_unpickle_fails_its_chunk(external: Mode) -> None:
    """It is pickled apart from what carries it."""
    with pytest.raises(TransportError, match="cannot be unpickled in the worker"):
        amorsize.execute(str, [FailsToLoad()], executor=external.executor)


@elsewhere
def test_a_function_that_does_not_unpickle_is_named(external: Mode) -> None:
    """The message says where, and what to look at."""
    broken = FailsToLoad()
    with pytest.raises(TransportError, match=r"cannot be loaded in worker process .* sys\.path"):
        amorsize.execute(lambda x: broken, [1], executor=external.executor)


@elsewhere
def test_an_exception_keeps_its_type_and_brings_its_traceback(external: Mode) -> None:
    """Whatever its constructor asks for."""

    def raise_it(x: int) -> int:
        raise NeedsTwoArguments(4, "no")

    with pytest.raises(NeedsTwoArguments, match="4: no") as caught:
        amorsize.execute(raise_it, [1], executor=external.executor)
    assert caught.value.code == 4
    assert "in raise_it" in "".join(caught.value.__notes__)


class Pickling(ThreadPoolExecutor):
    """Pickles as a pool of processes does, and counts the bytes; ``change`` is for the replies."""

    def __init__(self, workers: int, change: Callable[[Any], Any] = lambda reply: reply) -> None:
        super().__init__(workers)
        self.sent: list[int] = []
        self._change = change

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        packed = pickle.dumps(fn)
        self.sent.append(len(packed))
        return super().submit(lambda: self._change(pickle.loads(packed)()))


def test_a_large_function_is_sent_with_the_first_chunks_alone() -> None:
    """Once a worker; and again for a worker that has lost it, without a call too many."""
    table = bytes(1_000_000)
    loads: list[int] = []

    def forget_half_way(x: int) -> int:
        if x == 50:
            worker._tasks.clear()  # as in a worker that is new
        return len(table) + x

    with Pickling(2) as executor:
        results = amorsize.execute(forget_half_way, range(100), executor=executor, chunksize=1)
        assert results == [1_000_000 + x for x in range(100)]
    large = [size for size in executor.sent if size > 1_000_000]
    assert 2 <= len(large) <= 2 + 2 + 2, loads
    assert max(size for size in executor.sent if size < 1_000_000) < 2000


def test_functions_of_earlier_runs_do_not_pile_up_in_a_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A few are kept, for runs that go on side by side; of large ones the last alone."""
    monkeypatch.setattr(worker, "MAX_FUNCTIONS_BYTES", 10_000)
    with Pickling(1) as executor:
        for _ in range(10):
            amorsize.execute(lambda x: x, [1], executor=executor)
        assert len(worker._tasks) == worker.MAX_FUNCTIONS
        table = bytes(20_000)
        for _ in range(2):
            amorsize.execute(lambda x: len(table), [1], executor=executor)
        assert len(worker._tasks) == 1


# --- clocks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [-3600.0, 3600.0])
def test_the_clock_of_another_machine_is_clamped_into_the_run(
    ahead: float, hooks: HookManager, recorder: RecordingHook
) -> None:
    """A chunk begins after its dispatch, and ends before it is there."""

    def elsewhere(reply: Any) -> Any:
        kind, place, header, payload = reply
        header = list(header)
        header[5] += ahead
        return kind, place._replace(hostname="elsewhere"), tuple(header), payload

    before = time.time()
    with Pickling(2, elsewhere) as executor:
        amorsize.execute(abs, range(20), executor=executor, chunksize=2, hooks=hooks)
    assert_contract(recorder.contexts)
    after = time.time()
    for chunk in recorder.of(HookEvent.ON_CHUNK_COMPLETE):
        assert before <= chunk.metadata["started_at"] <= after
        assert chunk.metadata["queue_time"] <= after - before


# --- limits and cancellation -----------------------------------------------------------------


@everywhere
def test_a_run_that_takes_too_long_is_ended_and_its_workers_are_free_soon(
    external: Mode, hooks: HookManager, recorder: RecordingHook, tmp_path: Path
) -> None:
    """The chunk at work stops after the item that it is at, in another process, too."""
    begun = tmp_path / "begun"
    begun.touch()

    def slow(x: int) -> None:
        with begun.open("ab") as file:
            file.write(b".")
        time.sleep(0.02)

    with pytest.raises(ExecutionTimeoutError):
        amorsize.execute(
            slow, range(10_000), executor=external.executor, n_jobs=1, chunksize=5000,
            timeout=0.4, hooks=hooks,
        )  # fmt: skip
    assert_contract(recorder.contexts)
    assert recorder.contexts[-1].metadata["status"] == "timeout"
    assert recorder.contexts[-1].elapsed_time < 20 * slowness()
    # 10,000 items would have taken 200 seconds.
    done = [external.executor.submit(abs, -1) for _ in range(4)]
    assert [future.result(PATIENCE) for future in done] == [1] * 4
    assert begun.stat().st_size < 5000


def test_an_item_that_hangs_is_abandoned(hooks: HookManager, recorder: RecordingHook) -> None:
    """The run ends; what cannot be stopped is said."""
    release = threading.Event()
    with ThreadPoolExecutor(2) as executor:
        with pytest.raises(ExecutionTimeoutError):
            amorsize.execute(
                lambda x: release.wait(PATIENCE),
                [1],
                executor=executor,
                timeout=0.1,
                hooks=hooks,
            )
        release.set()
    assert_contract(recorder.contexts)
    assert ends(recorder) == [("abandoned", None)]


@everywhere
def test_item_timeout_is_refused(external: Mode) -> None:
    """Nobody's workers but our own can be ended."""
    with pytest.raises(InvalidValueError, match="item_timeout needs workers that can be ended"):
        amorsize.execute(abs, [1], executor=external.executor, item_timeout=1)


# --- what comes home beside results ----------------------------------------------------------


def count_and_log(x: int) -> int:
    amorsize.count("seen", 2)
    logging.getLogger("external").warning("at %d", x)
    return x


@everywhere
def test_user_metrics_are_returned_by_every_engine(
    external: Mode, hooks: HookManager, recorder: RecordingHook
) -> None:
    """Each once, whoever ran the chunk."""
    amorsize.execute(count_and_log, range(20), executor=external.executor, chunksize=3, hooks=hooks)
    counted = 0.0
    for chunk in recorder.of(HookEvent.ON_CHUNK_COMPLETE):
        counted += chunk.metadata["user_metrics"]["seen"]["value"]
    assert counted == 40


@pytest.mark.parametrize(
    "external", [name for name in ELSEWHERE if name != "fork-pool"], indirect=True
)
def test_log_records_are_returned(external: Mode, caplog: pytest.LogCaptureFixture) -> None:
    """With the worker and the chunk that they are from. (A forked worker has handlers.)"""
    with caplog.at_level(logging.WARNING, "external"):
        amorsize.execute(count_and_log, range(10), executor=external.executor, chunksize=5)
    records = [record for record in caplog.records if record.name == "external"]
    assert sorted(record.getMessage() for record in records) == [f"at {x}" for x in range(10)]
    assert {record.amorsize_chunk for record in records} == {0, 1}  # type: ignore[attr-defined]


def look_around(x: int) -> tuple[bool, tuple[str, ...], int]:
    from amorsize.exporters.base import in_child_process
    from amorsize.planning.machine import engines_here

    inner = amorsize.execute(abs, range(3), executor="process")
    return in_child_process(), engines_here(), len(inner)


@elsewhere
def test_a_worker_of_an_external_executor_is_a_worker(external: Mode) -> None:
    """No exporter opens there, and nested runs start no processes."""
    (seen,) = amorsize.execute(look_around, [1], executor=external.executor)
    assert seen == (True, ("serial", "thread"), 3)


def test_this_process_stays_what_it_is() -> None:
    """Also where an executor of threads pickles what it is given."""
    with Pickling(1) as executor:
        (seen,) = amorsize.execute(look_around, [1], executor=executor)
    assert seen == (False, ("serial", "thread", "process"), 3)


@everywhere
def test_spans_are_returned_by_every_engine(external: Mode) -> None:
    """Each under its chunk, in one trace."""
    traces = Traces()
    tracer = traces.user

    def work(x: int) -> int:
        with tracer.start_as_current_span("work"):
            return x

    try:
        traces.execute(work, range(12), executor=external.executor, chunksize=3)
        traces.check()
        chunks = {span.context.span_id for span in traces.named("chunk")}
        works = traces.named("work")
        assert len(works) == 12
        assert {span.parent.span_id for span in works if span.parent is not None} == chunks
    finally:
        traces.close()


def test_spans_of_a_machine_whose_clock_is_wrong_lie_within_their_chunk() -> None:
    """They are moved with it."""

    def elsewhere(reply: Any) -> Any:
        kind, place, header, payload = reply
        trace = pickle.loads(header[8]["trace"])
        ahead = 3600 * 10**9
        trace["spans"] = [
            (*span[:5], span[5] + ahead, span[6] + ahead, *span[7:]) for span in trace["spans"]
        ]
        moved = list(header)
        moved[5] += 3600
        moved[8] = {**header[8], "trace": pickle.dumps(trace)}
        return kind, place._replace(hostname="elsewhere"), tuple(moved), payload

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        traces = Traces()
        tracer = traces.user

        def work(x: int) -> int:
            with tracer.start_as_current_span("work"):
                return x

        class Changed:
            def submit(self, fn: Any) -> Future[Any]:
                future: Future[Any] = Future()
                future.set_result(elsewhere(pool.submit(fn).result(PATIENCE)))
                return future

        try:
            traces.execute(work, range(4), executor=Changed(), n_jobs=1, chunksize=2)
            traces.check()
            (execution,) = [traces.execution]
            assert len(traces.named("work")) == 4
            for span in traces.named("work"):
                assert execution.start_time <= span.start_time <= span.end_time
                assert span.end_time <= execution.end_time
        finally:
            traces.close()


def test_a_forked_worker_does_not_go_on_in_what_was_current_at_its_fork() -> None:
    """Pools fork at the first submit, wherever that is."""
    current: contextvars.ContextVar[str] = contextvars.ContextVar("current", default="nothing")
    current.set("something")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        assert pool.submit(os.getpid).result(PATIENCE) != os.getpid()
        assert amorsize.execute(lambda x: len(contextvars.copy_context()), [1], executor=pool) == [
            0
        ]
