"""Worker processes and the pool that keeps them warm: reuse, sharing, and nothing left behind."""

from __future__ import annotations

import gc
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import has_ended, still_running
from waiting import PATIENCE as WAIT

import amorsize
from amorsize.engines.process import pool as pool_module
from amorsize.engines.process import protocol
from amorsize.engines.process import worker as worker_module
from amorsize.engines.process.connection import Connection, connection_pair
from amorsize.engines.process.pool import Membership, WorkerPool, WorkerProcess, pool
from amorsize.engines.process.program_state import read_state
from amorsize.engines.process.template_client import Template, start_template
from amorsize.errors import ExecutionError
from amorsize.planning import machine
from amorsize.workers.item_slots import CHUNK, CHUNK_STARTED, CPU_STARTED


@pytest.fixture(autouse=True)
def _cold() -> Iterator[None]:
    """Each test begins and ends without workers."""
    amorsize.shutdown()
    yield
    amorsize.shutdown()


@pytest.fixture
def own_pool() -> Iterator[WorkerPool]:
    """A pool beside the process-wide one."""
    own = WorkerPool()
    yield own
    for member in list(own._members):
        for worker in list(member.held):
            member.discard(worker, 0)
    own.shutdown()


@pytest.fixture
def _four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = machine.SystemFacts.of(4)
    monkeypatch.setattr(pool_module.machine, "read_system", lambda **_: facts)


def nothing() -> None: ...


def pids_of(*, n_jobs: int = 1, items: int = 1) -> set[int]:
    """Run something in worker processes; return who ran it."""
    return set(
        amorsize.execute(
            lambda _: os.getpid(), range(items), executor="process", n_jobs=n_jobs, chunksize=1
        )
    )


def until_ready(worker: WorkerProcess) -> None:
    """Read its first message: it is up."""
    assert worker.connection.poll(WAIT)
    message = protocol.receive(worker.connection)
    assert message is not None
    assert message[0][0] == "ready"


def run_script(text: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", text],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- warm workers ----


def test_workers_stay_warm_for_the_next_execution() -> None:
    """The second one starts no process."""
    first = pids_of()
    assert len(first) == 1
    assert os.getpid() not in first
    assert pool.warm_workers() == 1
    assert pids_of() == first


def test_threads_of_the_process_share_one_pool() -> None:
    """A worker that one thread left is taken by another."""
    first = pids_of()
    seen: list[set[int]] = []
    other = threading.Thread(target=lambda: seen.append(pids_of()))
    other.start()
    other.join(WAIT)
    assert seen == [first]


def test_a_function_that_fails_leaves_its_worker_warm() -> None:
    """An exception of the user's is no reason for a new process."""
    first = pids_of()
    with pytest.raises(ZeroDivisionError):
        amorsize.execute(lambda number: 1 / number, [0], executor="process", n_jobs=1)
    assert pids_of() == first


def test_no_more_workers_start_than_there_are_chunks() -> None:
    """One item needs one process, whatever n_jobs says."""
    pids_of(n_jobs=4, items=1)
    assert len(pool.pids()) == 1


def test_a_worker_that_died_while_idle_is_not_used() -> None:
    """It is let go of, and another takes its place."""
    [victim] = pids_of()
    [worker] = pool._idle
    worker.kill()
    assert worker.wait(WAIT)
    [survivor] = pids_of()
    assert survivor != victim
    assert pool.pids() == [survivor]


def test_workers_that_nobody_uses_end_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while, of which they need no reminder; a later execution starts others."""
    [first] = pids_of()
    [worker] = pool._idle
    monkeypatch.setattr(pool_module, "IDLE_SECONDS", 0.0)
    assert not worker.is_usable({}), "it may end at any moment"
    assert first not in pids_of()
    assert not still_running([first])


def test_an_idle_worker_ends_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Although its program goes on: nothing there has to remember it."""
    monkeypatch.setattr(worker_module, "IDLE_SECONDS", 0.01)
    ours, theirs = connection_pair()
    board = memoryview(bytearray(24)).cast("q")
    connection = Connection(theirs)
    worker_module._Worker(connection, board).serve()
    assert not ours.poll(), "it returned by itself, and sent nothing"
    connection.close()
    ours.close()


# --- shutdown ----


def test_shutdown_ends_every_process_and_later_runs_start_others() -> None:
    """Nothing is left."""
    first = pids_of(n_jobs=2, items=8)
    assert pool.pids()
    amorsize.shutdown()
    assert pool.pids() == []
    assert pool.warm_workers() == 0
    assert not still_running(first)
    assert not pids_of() & first


def test_shutdown_without_workers_does_nothing() -> None:
    """Twice in a row, or before anything ran."""
    amorsize.shutdown()
    amorsize.shutdown()
    assert pool.pids() == []


def test_shutdown_kills_the_workers_of_a_run_in_progress(tmp_path: Path) -> None:
    """That run fails with the death of its worker."""
    entered = tmp_path / "entered"
    os.mkfifo(entered)
    raised: list[BaseException] = []

    def work(path: str) -> None:
        with open(path, "w"):
            pass
        threading.Event().wait()

    def run() -> None:
        try:
            amorsize.execute(work, [str(entered)], executor="process", n_jobs=1)
        except amorsize.AmorsizeError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    with entered.open():  # blocks until the function opens the other end
        pass
    amorsize.shutdown()
    thread.join(WAIT)
    assert [type(error).__name__ for error in raised] == ["WorkerDiedError"]
    assert pool.pids() == []


def test_nothing_is_left_after_shutdown() -> None:
    """Neither processes nor descriptors, however many runs there were."""
    me = psutil.Process()
    amorsize.shutdown()
    # Of the engines that other tests use, some of which may just be ending.
    others = set(me.children(recursive=True))

    def use() -> None:
        pids_of(n_jobs=2, items=8)
        amorsize.shutdown()
        gc.collect()

    use()  # what the first use opens for good does not count
    before = me.num_fds()
    for _ in range(3):
        use()
    assert me.num_fds() <= before
    assert set(me.children(recursive=True)) <= others


def test_a_death_leaves_no_descriptor_behind() -> None:
    """A worker that was killed is released like one that ended."""
    me = psutil.Process()
    amorsize.shutdown()
    # Of the engines that other tests use, some of which may just be ending.
    others = set(me.children(recursive=True))

    def die() -> None:
        with pytest.raises(amorsize.AmorsizeError, match="SIGKILL"):
            amorsize.execute(lambda _: os.kill(os.getpid(), 9), [0], executor="process", n_jobs=1)
        amorsize.shutdown()
        gc.collect()

    die()
    before = me.num_fds()
    for _ in range(3):
        die()
    assert me.num_fds() <= before
    assert set(me.children(recursive=True)) <= others


def test_workers_end_with_their_program() -> None:
    """A script that never calls shutdown() leaves nothing running."""
    script = """if True:
        import json, os, amorsize
        pids = amorsize.execute(lambda _: os.getpid(), range(4), executor="process", n_jobs=2,
                                chunksize=1)
        print(json.dumps(sorted(set(pids))))
    """
    pids = run_script(script)
    assert pids
    assert not still_running(pids)


# --- sharing ----


def take(member: Membership, workers: int) -> list[WorkerProcess]:
    """Acquire up to so many workers."""
    came = []
    for _ in range(workers):
        worker = member.acquire()
        if worker is not None:
            came.append(worker)
    return came


@pytest.mark.usefixtures("_four_cores")
def test_two_members_share_the_workers_fairly(own_pool: WorkerPool) -> None:
    """The first gives up workers until the second has its share, and no more."""
    woken: list[str] = []
    first = own_pool.join(4, lambda: woken.append("first"))
    assert len(take(first, 6)) == 4
    second = own_pool.join(4, lambda: woken.append("second"))
    assert not first.should_share()

    assert len(take(second, 2)) == 1, "one worker is always had, the next must be waited for"
    assert woken == ["first"]
    assert first.should_share()

    released = next(iter(first.held))
    first.release(released, 0)
    released.last_key = None  # there was no run whose end it could report
    assert woken == ["first", "second"]
    assert len(take(second, 1)) == 1
    assert not first.should_share()
    assert (len(first.held), len(second.held)) == (3, 2)
    assert take(second, 1) == []
    assert not first.should_share(), "a member that has its share takes no more"


@pytest.mark.usefixtures("_four_cores")
def test_every_member_has_one_worker_at_least(own_pool: WorkerPool) -> None:
    """No execution waits for another to end, however many there are."""
    members = [own_pool.join(4, nothing) for _ in range(6)]
    assert [len(take(member, 1)) for member in members] == [1] * 6


@pytest.mark.usefixtures("_four_cores")
def test_a_member_that_is_alone_may_have_what_it_asks_for(own_pool: WorkerPool) -> None:
    """More workers than cores, if the user says so."""
    member = own_pool.join(6, nothing)
    assert len(take(member, 8)) == 6


@pytest.mark.usefixtures("_four_cores")
def test_a_member_takes_idle_workers_first(own_pool: WorkerPool) -> None:
    """Those that another released."""
    first = own_pool.join(2, nothing)
    workers = take(first, 2)
    for worker in workers:
        first.release(worker, 0)
        worker.last_key = None  # there was no run to report the end of
    first.leave()
    second = own_pool.join(2, nothing)
    assert {id(worker) for worker in take(second, 2)} == {id(worker) for worker in workers}


def test_executions_at_the_same_time_all_come_to_their_end() -> None:
    """Six threads, each with a run that wants two workers."""
    came: list[list[int]] = []

    def run() -> None:
        came.append(
            amorsize.execute(lambda x: x + 1, range(50), executor="process", n_jobs=2, chunksize=5)
        )

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert came == [list(range(1, 51))] * 6


# --- one worker ----


@pytest.fixture
def template() -> Iterator[Template]:
    own = start_template()
    yield own
    own.close()


@pytest.fixture
def worker(template: Template) -> Iterator[WorkerProcess]:
    process = WorkerProcess(template)
    yield process
    process.kill()
    process.reap(WAIT)


def test_a_worker_says_when_it_is_up(
    worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its parent remembers how long that took."""
    recorded: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        "amorsize.planning.machine.record_startup", lambda *startup: recorded.append(startup)
    )
    until_ready(worker)
    assert not worker.has_ended()
    assert psutil.Process(worker.pid).ppid() == worker._template._pid
    worker.is_up(worker._started_at + 0.1)
    assert recorded == [("process", 1, pytest.approx(0.1, abs=1e-3))]


def test_a_worker_ends_when_its_connection_does(worker: WorkerProcess) -> None:
    """That is how it is asked to; it exits with code 0."""
    until_ready(worker)
    worker.end()
    assert worker.reap(WAIT) == 0
    assert not still_running([worker.pid])


def test_a_worker_that_does_not_end_in_time_is_killed(worker: WorkerProcess) -> None:
    """Its exit code says so."""
    until_ready(worker)
    assert worker.reap(0.0) == -9


def test_the_status_reports_a_death(worker: WorkerProcess) -> None:
    """Without a look at the connection, and with the exit code."""
    until_ready(worker)
    assert not worker.has_ended()
    assert select.select([worker.status], [], [], 0)[0] == []
    worker.kill()
    assert select.select([worker.status], [], [], WAIT)[0] == [worker.status]
    assert worker.has_ended()
    assert worker.exit_code == -9


def test_new_item_slots_show_no_work(worker: WorkerProcess) -> None:
    """-1 in the slots of chunk and item, and no chunk that began."""
    assert list(worker.item_slots)[:CPU_STARTED] == [-1, -1, -1, 0]
    worker.item_slots[CHUNK] = worker.item_slots[CHUNK_STARTED] = 5
    worker.clear_item_slots()
    assert list(worker.item_slots)[:CPU_STARTED] == [-1, -1, -1, 0]


def test_a_worker_is_sent_the_state_once_unless_it_changes(worker: WorkerProcess) -> None:
    """The environment may be large, and runs are many."""
    here = read_state(1)
    assert worker.state_to_send(here) is here
    assert worker.state_to_send(read_state(1)) is None
    changed = here | {"environment": here["environment"] | {"AMORSIZE_TEST_NEW": "new"}}
    assert worker.state_to_send(changed) is changed
    assert worker.state_to_send(changed) is None


def test_a_worker_that_cannot_be_started_leaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptors are released when the interpreter is not there."""
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    me = psutil.Process()
    gc.collect()
    before = me.num_fds()
    with pytest.raises(ExecutionError, match=r"No such file or directory.*executor='thread'"):
        pids_of()
    gc.collect()
    assert me.num_fds() <= before


# --- the state of the program ----


def in_worker(func: Callable[[None], Any]) -> Any:
    return amorsize.execute(func, [None], executor="process", n_jobs=1)[0]


def test_a_warm_worker_sees_what_changed_around_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Import path, working directory and environment are those of the call."""

    def look(_: None) -> tuple[str, str | None, str | None, bool]:
        variables = os.environ.get("AMORSIZE_TEST_NEW"), os.environ.get("AMORSIZE_TEST_OLD")
        return os.getcwd(), *variables, "/somewhere/new" in sys.path

    monkeypatch.setenv("AMORSIZE_TEST_OLD", "old")
    assert in_worker(look) == (os.getcwd(), None, "old", False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AMORSIZE_TEST_NEW", "new")
    monkeypatch.delenv("AMORSIZE_TEST_OLD")
    monkeypatch.syspath_prepend("/somewhere/new")
    assert in_worker(look) == (str(tmp_path), "new", None, True)
    assert len(pool.pids()) == 1


def test_a_directory_that_is_gone_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program may have been started in one that was removed since."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert in_worker(lambda _: 7) == 7


def test_inner_thread_pools_are_limited_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """n workers with a pool of n threads each only disturb each other."""
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    seen = read_state(2)["environment"]
    assert (seen["OPENBLAS_NUM_THREADS"], seen["OMP_NUM_THREADS"]) == ("2", "5")
    assert "OPENBLAS_NUM_THREADS" not in os.environ


# --- forks by other code ----


def test_a_forked_child_forgets_the_parent_s_workers() -> None:
    """It starts its own; the parent's stay warm, and whole."""
    script = """if True:
        import json, os, sys, amorsize
        from amorsize.engines.process.pool import pool

        def who():
            return amorsize.execute(lambda _: os.getpid(), [0], executor="process", n_jobs=1)[0]

        before = who()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            inherited = pool.pids()
            own = who()
            amorsize.shutdown()
            os.write(writer, json.dumps({"inherited": inherited, "own": own}).encode())
            os._exit(0)
        os.waitpid(child, 0)
        pids = json.loads(os.read(reader, 4096))
        print(json.dumps(pids | {"before": before, "after": who()}))
    """
    pids = run_script(script)
    assert pids["inherited"] == []
    assert pids["own"] != pids["before"]
    assert pids["after"] == pids["before"]


def test_a_fork_while_the_pool_is_locked_does_not_hang_the_child() -> None:
    """The thread that held the lock does not exist in the child."""
    script = """if True:
        import os, amorsize
        from amorsize.engines.process.pool import pool
        amorsize.execute(abs, [1], executor="process", n_jobs=1)
        with pool._lock:
            child = os.fork()
            if child == 0:
                os._exit(pool.warm_workers() + amorsize.execute(abs, [-2], executor="process")[0])
            _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status))
    """
    assert run_script(script) == 2


def test_the_parent_s_workers_end_with_it_though_a_forked_child_lives_on() -> None:
    """A child that outlives its parent must not keep the parent's workers alive."""
    script = """if True:
        import json, os, signal, sys, amorsize
        worker = amorsize.execute(lambda _: os.getpid(), [0], executor="process", n_jobs=1)[0]
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writer)
            for stream in (0, 1, 2):
                os.close(stream)
            os.read(reader, 1)
            signal.pause()
        print(json.dumps([worker, child]), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    worker, child = json.loads(done.stdout)
    try:
        assert not still_running([worker])
        assert not has_ended(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_starting_and_ending_workers_is_not_logged_as_trouble(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Warnings are for what the user should change."""
    with caplog.at_level(logging.DEBUG, "amorsize"):
        pids_of(n_jobs=2, items=4)
        amorsize.shutdown()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
