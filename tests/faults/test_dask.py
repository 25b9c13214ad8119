"""Dask: real clusters whose workers die, come and go; and what is left in them afterwards."""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest
from dask_cluster import DaskCluster
from modes import LOCAL_CLUSTER, Engines
from waiting import PATIENCE, wait_until

import amorsize
from amorsize import HookEvent, HookManager
from amorsize.engines.external.dask import DaskBackend
from amorsize.errors import (
    ExecutionError,
    ExecutionTimeoutError,
    ExecutorBrokenError,
    InvalidValueError,
    MissingExtraError,
    PortInUseError,
    WorkerDiedError,
)
from amorsize.exporters.base import in_child_process
from amorsize.testing import RecordingHook, assert_contract


@pytest.fixture
def client(engines: Engines) -> Any:
    """The client of the cluster that all tests share."""
    return engines.mode("dask").executor


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[DaskCluster]:
    """Scheduler and two workers, started by Dask's command line; one has two threads."""
    with DaskCluster(tmp_path) as cluster:
        cluster.start()
        cluster.start_worker("alice")
        cluster.start_worker("bob", threads=2)
        yield cluster


def tasks_left(client: Any) -> int:
    """How many tasks the scheduler knows."""

    def count(dask_scheduler: Any) -> int:
        return len(dask_scheduler.tasks)

    return int(client.run_on_scheduler(count))


# --- how it is named -------------------------------------------------------------------------


def test_dask_by_name_is_the_current_client(client: Any, hooks: HookManager) -> None:
    """Whichever that is: the one of a ``with``, or the one made last."""
    recorder = RecordingHook().attach(hooks)
    with client.as_current():
        assert amorsize.execute(lambda x: -x, range(10), executor="dask", hooks=hooks)[9] == -9
    assert recorder.contexts[0].metadata["executor_type"] == "dask"
    assert recorder.contexts[0].n_jobs == 2


def test_without_a_client_the_error_shows_how_to_make_one(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So do a client that is closed, and one of another event loop."""
    with pytest.raises(InvalidValueError, match=r"no Dask client.* client = distributed\.Client"):
        amorsize.execute(abs, [1], executor="dask")
    closed = distributed.Client(client.scheduler.address, set_as_default=False)
    closed.close()
    with pytest.raises(InvalidValueError, match="status is 'closed'"):
        amorsize.execute(abs, [1], executor=closed)

    async def of_another_loop() -> Any:
        async with distributed.Client(
            client.scheduler.address, asynchronous=True, set_as_default=False
        ) as unawaited:
            return amorsize.stream(abs, [1], executor=unawaited)

    with pytest.raises(InvalidValueError, match="asynchronous"):
        asyncio.run(of_another_loop())
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'amorsize\[dask\]'"):
        amorsize.execute(abs, [1], executor="dask")


@pytest.mark.parametrize(
    ("n_jobs", "threads", "named", "chunks"),
    [(8, 8, False, 16), (8, 20, False, 40), (8, 0, False, 2), (8, 2, True, 16), (2, 8, True, 2)],
    ids=["as it is", "grown", "gone", "to be grown", "a part of it"],
)
def test_chunks_in_flight_follow_the_cluster_or_the_caller(
    n_jobs: int, threads: int, named: bool, chunks: int
) -> None:
    """Two a thread; no more at once than asked for."""
    backend = DaskBackend(object(), n_jobs, threads, named=named)
    assert backend.window(short=False) == chunks


# --- what crosses ----------------------------------------------------------------------------


def test_data_crosses_once_and_a_large_chunk_without_a_warning(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk is sent at the size of its items; Dask warns of graphs past 10 MB."""
    sent: list[int] = []
    send = client._send_to_scheduler

    def weigh(message: dict[str, Any]) -> None:
        if message["op"] == "update-graph":
            sent.append(sum(len(frame) for frame in message["expr_ser"].frames))
        send(message)

    monkeypatch.setattr(client, "_send_to_scheduler", weigh)
    items = [bytes(12_000_000), bytes(1000)]
    assert amorsize.execute(len, items, executor=client, chunksize=1) == [12_000_000, 1000]
    assert 12_000_000 < sum(sent) < 12_020_000


def test_a_large_function_is_sent_to_each_worker_and_not_with_each_chunk(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each thread of the cluster, and again for one that was passed over."""
    table = bytes(1_000_000)
    large: list[bool] = []
    send = client.map

    def weigh(function: Any, packed: list[Any], **options: Any) -> Any:
        large.extend(each.task is not None for each in packed)
        return send(function, packed, **options)

    monkeypatch.setattr(client, "map", weigh)
    results = amorsize.execute(lambda x: len(table) + x, range(50), executor=client, chunksize=1)
    assert results == [1_000_000 + x for x in range(50)]
    assert 2 <= sum(large) <= 4


def test_nothing_is_left_in_the_cluster(client: Any) -> None:
    """After a run, whether it went well, failed, or was given up."""

    def fail_on_five(x: int) -> int:
        if x == 5:
            raise ValueError(x)
        return x

    amorsize.execute(abs, range(50), executor=client, chunksize=1)
    with pytest.raises(ValueError, match="5"):
        amorsize.execute(fail_on_five, range(50), executor=client, chunksize=1)
    stream = amorsize.stream(abs, range(1000), executor=client, chunksize=1)
    assert next(stream) == 0
    stream.close()  # type: ignore[attr-defined]  # it is a generator
    wait_until(lambda: tasks_left(client) == 0, "an empty scheduler")
    wait_until(lambda: not client.futures, "an empty client")


def test_a_chunk_that_nobody_wants_any_more_stops_between_two_items(
    client: Any, tmp_path: Path
) -> None:
    """Dask lets a cancelled task run on; its thread is to be free for others."""
    begun = tmp_path / "begun"
    begun.touch()

    def slow(x: int) -> None:
        with begun.open("ab") as file:
            file.write(b".")
        time.sleep(0.01)

    with pytest.raises(TimeoutError, match="took longer than timeout"):
        amorsize.execute(slow, range(6000), executor=client, n_jobs=1, chunksize=6000, timeout=0.3)
    wait_until(lambda: not any(client.run(_executing).values()), "idle workers")
    assert begun.stat().st_size < 5999


def _executing(dask_worker: Any) -> int:
    return len(dask_worker.state.executing)


# --- who works -------------------------------------------------------------------------------


def test_workers_have_a_host_a_name_and_threads(
    cluster: DaskCluster, hooks: HookManager, recorder: RecordingHook, tmp_path: Path
) -> None:
    """One worker of the events is one thread of the cluster; a start is reported at once."""
    gate = tmp_path / "gate"

    def wait_for_gate(x: int) -> tuple[int, int]:
        wait_until(gate.exists, "the gate")
        return os.getpid(), threading.get_ident()

    def open_gate() -> None:
        recorder.wait_for(HookEvent.ON_WORKER_START, timeout=PATIENCE, count=3)
        gate.touch()

    opener = threading.Thread(target=open_gate)
    with distributed.Client(scheduler_file=cluster.file, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=PATIENCE)
        wait_until(lambda: sum(client.nthreads().values()) == 3, "three threads")
        opener.start()
        seen = amorsize.execute(wait_for_gate, range(6), executor=client, chunksize=1, hooks=hooks)
    opener.join()
    assert_contract(recorder.contexts)
    assert recorder.contexts[0].n_jobs == 3
    starts = [start.metadata for start in recorder.of(HookEvent.ON_WORKER_START)]
    assert sorted(start["worker_name"] for start in starts) == ["alice", "bob", "bob"]
    assert {start["pid"] for start in starts} == {cluster.pid("alice"), cluster.pid("bob")}
    assert {pid for pid, _ in seen} <= {start["pid"] for start in starts}
    assert all(start["worker_address"].startswith("tcp://127.0.0.1:") for start in starts)
    assert len({start["thread_name"] for start in starts}) == 3


def test_a_worker_killed_in_the_middle_is_reported_and_its_chunks_run_again(
    cluster: DaskCluster, hooks: HookManager, recorder: RecordingHook
) -> None:
    """All results, one ON_ERROR for the death of two threads, status ok."""
    killed = threading.Event()

    def until_killed() -> Iterator[int]:
        yield from itertools.takewhile(lambda _: not killed.is_set(), itertools.count())

    def kill_bob() -> None:
        recorder.wait_for(HookEvent.ON_WORKER_START, timeout=PATIENCE, count=3)
        recorder.wait_for(HookEvent.ON_CHUNK_COMPLETE, timeout=PATIENCE, count=5)
        cluster.kill("bob")
        recorder.wait_for(HookEvent.ON_ERROR, PATIENCE)
        killed.set()

    def slow(x: int) -> int:
        time.sleep(0.02)
        return -x

    killer = threading.Thread(target=kill_bob)
    with distributed.Client(scheduler_file=cluster.file, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=PATIENCE)
        wait_until(lambda: sum(client.nthreads().values()) == 3, "three threads")
        killer.start()
        results = amorsize.execute(slow, until_killed(), executor=client, chunksize=1, hooks=hooks)
    killer.join()
    assert results == [-x for x in range(len(results))]
    assert_contract(recorder.contexts)
    assert recorder.contexts[-1].metadata["status"] == "ok"
    (error,) = recorder.of(HookEvent.ON_ERROR)
    assert isinstance(error.error, WorkerDiedError)
    assert error.error.pid == cluster.pid("bob")
    assert "Dask runs its chunks again" in (error.error_message or "")
    assert error.metadata["failed_items"] == 0
    ends = [end.metadata for end in recorder.of(HookEvent.ON_WORKER_END)]
    assert sorted((end["worker_name"], end["exit_reason"]) for end in ends) == [
        ("alice", "finished"),
        ("bob", "died"),
        ("bob", "died"),
    ]


def test_a_death_in_an_executor_that_recovers_is_reported(
    cluster: DaskCluster, hooks: HookManager, recorder: RecordingHook, tmp_path: Path
) -> None:
    """Of ``client.get_executor()``: the chunk begins again elsewhere, and its worker is gone."""
    at, bob = tmp_path / "at", cluster.pid("bob")

    def hold_up_bob(x: int) -> int:
        if os.getpid() == bob:
            at.touch()
            time.sleep(60)
        time.sleep(0.01)
        return -x

    def kill_bob() -> None:
        wait_until(at.exists, "a chunk at bob's")
        cluster.kill("bob")

    killer = threading.Thread(target=kill_bob)
    with distributed.Client(scheduler_file=cluster.file, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=PATIENCE)
        killer.start()
        results = amorsize.execute(
            hold_up_bob, range(30), executor=client.get_executor(), chunksize=1, hooks=hooks
        )
    killer.join()
    assert results == [-x for x in range(30)]
    assert_contract(recorder.contexts)
    assert recorder.contexts[-1].metadata["status"] == "ok"
    errors = [error.error for error in recorder.of(HookEvent.ON_ERROR)]
    assert {error.pid for error in errors if isinstance(error, WorkerDiedError)} == {bob}
    ends = [end.metadata for end in recorder.of(HookEvent.ON_WORKER_END)]
    assert {end["pid"] for end in ends if end["exit_reason"] == "died"} == {bob}


def test_workers_that_come_and_go_are_started_and_ended(
    tmp_path: Path, hooks: HookManager, recorder: RecordingHook
) -> None:
    """As in an adaptive cluster: retired without an error, and joined by another."""
    with DaskCluster(tmp_path) as cluster:
        cluster.start()
        cluster.start_worker("alice")

        def change() -> None:
            recorder.wait_for(HookEvent.ON_WORKER_START, timeout=PATIENCE)
            cluster.start_worker("bob")
            recorder.wait_for(HookEvent.ON_WORKER_START, timeout=PATIENCE, count=2)
            client.retire_workers(names=["alice"], close_workers=True)
            recorder.wait_for(HookEvent.ON_WORKER_END, timeout=PATIENCE)
            (tmp_path / "enough").touch()

        def slow(x: int) -> int:
            time.sleep(0.02)
            return -x

        def until_enough() -> Iterator[int]:
            at = 0
            while not (tmp_path / "enough").exists():
                yield at
                at += 1

        with distributed.Client(scheduler_file=cluster.file, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=PATIENCE)
            changer = threading.Thread(target=change)
            changer.start()
            results = amorsize.execute(
                slow, until_enough(), executor=client, chunksize=1, hooks=hooks
            )
            changer.join()
    assert results == [-x for x in range(len(results))]
    assert_contract(recorder.contexts)
    assert recorder.of(HookEvent.ON_ERROR) == []
    ends = [end.metadata for end in recorder.of(HookEvent.ON_WORKER_END)]
    assert [(end["worker_name"], end["exit_reason"]) for end in ends] == [
        ("alice", "finished"),
        ("bob", "finished"),
    ]


def test_an_adaptive_cluster_grows_for_a_run(hooks: HookManager, recorder: RecordingHook) -> None:
    """From no worker at all to as many as the run has work for."""

    def until_two() -> Iterator[int]:
        at = 0
        deadline = time.monotonic() + PATIENCE
        while len(recorder.of(HookEvent.ON_WORKER_START)) < 2 and time.monotonic() < deadline:
            yield at
            at += 1

    def slow(x: int) -> int:
        time.sleep(0.02)
        return -x

    with (
        distributed.LocalCluster(**LOCAL_CLUSTER | {"n_workers": 0}) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        cluster.adapt(minimum=0, maximum=2, interval="50ms", target_duration="10ms")
        results = amorsize.execute(
            slow, until_two(), executor=client, n_jobs=4, chunksize=1, hooks=hooks
        )
    assert results == [-x for x in range(len(results))]
    assert_contract(recorder.contexts)
    names = [s.metadata["worker_name"] for s in recorder.of(HookEvent.ON_WORKER_START)]
    assert len(set(names)) == 2
    assert recorder.of(HookEvent.ON_ERROR) == []


def test_a_cluster_of_threads_in_this_process(hooks: HookManager, recorder: RecordingHook) -> None:
    """Its workers are this process, which stays what it is."""
    with (
        distributed.LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            processes=False,
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        results = amorsize.execute(
            lambda x: (x, in_child_process()), range(20), executor=client, chunksize=2, hooks=hooks
        )
    assert results == [(x, False) for x in range(20)]
    assert_contract(recorder.contexts)
    pids = {start.metadata["pid"] for start in recorder.of(HookEvent.ON_WORKER_START)}
    assert pids == {os.getpid()}


def test_a_cluster_that_lacks_amorsize_is_a_clear_error(
    tmp_path: Path, hooks: HookManager, recorder: RecordingHook
) -> None:
    """A clear error, whoever misses it first: the scheduler or a worker."""
    hidden = tmp_path / "hidden" / "amorsize"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'amorsize'\", name='amorsize')"
    )
    with DaskCluster(tmp_path, PYTHONPATH=str(hidden.parent)) as cluster:
        cluster.start()
        cluster.start_worker("alice")
        with distributed.Client(scheduler_file=cluster.file, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=PATIENCE)
            with pytest.raises(ExecutionError, match="install the same version of amorsize"):
                amorsize.execute(abs, [1], executor=client, hooks=hooks)
    assert_contract(recorder.contexts)


@pytest.mark.parametrize("engine", ["process", "dask"])
def test_exceptions_stay_what_they_are_where_dask_is_loaded(engine: str, engines: Engines) -> None:
    """Dask has all exceptions pickled in another way, which not all of them survive."""

    def decode(x: int) -> str:
        return b"\xff".decode()

    with pytest.raises(UnicodeDecodeError, match="invalid start byte"):
        amorsize.execute(decode, [1], executor=engines.mode(engine).executor)


@pytest.mark.parametrize("kind", [ExecutionTimeoutError, PortInUseError, ExecutorBrokenError])
def test_our_own_exceptions_pickle_where_dask_is_loaded(kind: type[Exception]) -> None:
    """A task of Dask may raise them."""
    error = kind("why")
    error.add_note("more")
    came = pickle.loads(pickle.dumps(error))
    assert (type(came), came.args, came.__notes__) == (kind, ("why",), ["more"])


# --- at most once ----------------------------------------------------------------------------


@pytest.fixture
def never_again() -> Iterator[Any]:
    """A cluster whose scheduler runs no task again that was lost with its worker."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(**LOCAL_CLUSTER) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


def test_a_chunk_that_dask_gives_up_is_a_death(
    never_again: Any, hooks: HookManager, recorder: RecordingHook
) -> None:
    """Which ends the run, or costs the item that killed alone."""

    def kill_on_seven(x: int) -> int:
        if x == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    with pytest.raises(WorkerDiedError, match="Dask no longer tries it") as caught:
        amorsize.execute(kill_on_seven, range(10), executor=never_again, chunksize=2, hooks=hooks)
    assert_contract(recorder.contexts)
    assert recorder.contexts[-1].error is caught.value
    assert recorder.contexts[-1].metadata["status"] == "error"
    ends = [end.metadata["exit_reason"] for end in recorder.of(HookEvent.ON_WORKER_END)]
    assert ends.count("died") <= 1
    recorder.contexts.clear()

    results = amorsize.execute(
        kill_on_seven,
        range(6, 9),
        executor=never_again,
        n_jobs=1,
        chunksize=3,
        return_exceptions=True,
        hooks=hooks,
    )
    assert [type(result) for result in results] == [int, WorkerDiedError, int]
    assert_contract(recorder.contexts)
    assert recorder.contexts[-1].metadata["status"] == "ok"


def test_a_client_that_is_closed_in_the_middle_ends_the_run(
    client: Any, hooks: HookManager, recorder: RecordingHook
) -> None:
    """No result can come any more: an error, not a hang."""
    own = distributed.Client(client.scheduler.address, set_as_default=False)

    def close() -> None:
        recorder.wait_for(HookEvent.ON_CHUNK_COMPLETE, timeout=PATIENCE)
        own.close()

    closer = threading.Thread(target=close)
    closer.start()
    with pytest.raises(ExecutorBrokenError, match="no longer accepts work"):
        amorsize.execute(
            lambda x: time.sleep(0.02), range(10_000), executor=own, chunksize=1, hooks=hooks
        )
    closer.join()
    assert_contract(recorder.contexts)
    wait_until(lambda: tasks_left(client) == 0, "an empty scheduler")
