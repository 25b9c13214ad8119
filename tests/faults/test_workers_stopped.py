"""Workers that are frozen, a template that is killed, and a program that was paused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import still_running
from waiting import PATIENCE, slowness, wait_until

import amorsize
from amorsize import HookContext, HookEvent, HookManager
from amorsize.engines.process.pool import pool
from amorsize.errors import ExecutionTimeoutError, ItemTimeoutError, WorkerDiedError

stopping = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")


@pytest.fixture(autouse=True)
def _cold() -> Iterator[None]:
    amorsize.shutdown()
    yield
    amorsize.shutdown()


def is_stopped(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(pid), "the process is stopped")


def large_result(_: int) -> bytes:
    """Return more than a socket holds, and stop while it is sent."""
    main = threading.main_thread().ident

    def stop_while_it_sends() -> None:
        while True:
            frame = sys._current_frames()[main]  # type: ignore[index]  # it is running
            if frame.f_code.co_name == "_write_some":
                os.kill(os.getpid(), signal.SIGSTOP)
                return

    threading.Thread(target=stop_while_it_sends, daemon=True).start()
    return bytes(100_000_000)


def test_a_worker_that_is_frozen_while_it_sends_does_not_outlast_the_timeout() -> None:
    """In the middle of a large result."""
    began = time.monotonic()
    with pytest.raises(ExecutionTimeoutError):
        amorsize.execute(large_result, [0], executor="process", n_jobs=1, timeout=2)
    assert time.monotonic() - began < 2 + 2 * slowness()


def test_a_worker_that_is_frozen_while_it_is_sent_items_does_not_outlast_the_timeout() -> None:
    """More of them than a socket holds."""
    hooks = HookManager()
    hooks.register(HookEvent.ON_WORKER_START, lambda context: stop(context.metadata["pid"]))
    items = [bytes(20_000_000)] * 4
    began = time.monotonic()
    with pytest.raises(ExecutionTimeoutError):
        amorsize.execute(
            len, items, executor="process", n_jobs=1, chunksize=1, timeout=2, hooks=hooks
        )
    assert time.monotonic() - began < 2 + 2 * slowness()


@stopping
@pytest.mark.parametrize("returned", [False, True], ids=["raised", "in place"])
def test_a_worker_that_is_frozen_between_two_items_is_noticed(returned: bool) -> None:
    """By the limit for an item: no item runs, and none will."""
    hooks = HookManager()
    hooks.register(HookEvent.ON_WORKER_START, lambda context: stop(context.metadata["pid"]))

    def run() -> list[Any]:
        return amorsize.execute(
            lambda x: x,
            range(3),
            executor="process",
            n_jobs=1,
            chunksize=1,
            item_timeout=1,
            return_exceptions=returned,
            hooks=hooks,
        )

    if not returned:
        with pytest.raises(ItemTimeoutError):
            run()
    else:
        assert any(isinstance(result, ItemTimeoutError) for result in run())


@stopping
@pytest.mark.parametrize("seconds", [0.0, 0.5], ids=["at once", "later"])
def test_a_worker_that_is_frozen_between_two_runs_is_replaced(seconds: float) -> None:
    """Before it has reported that the first is over, and after that; the next does not wait."""

    def who() -> int:
        [pid] = amorsize.execute(lambda _: os.getpid(), [0], executor="process", n_jobs=1)
        return int(pid)

    frozen = who()
    time.sleep(seconds)  # by then it is idle
    stop(frozen)
    assert who() != frozen
    assert not still_running([frozen])


def test_shutdown_ends_frozen_workers() -> None:
    """They cannot be asked."""
    amorsize.execute(abs, range(4), executor="process", n_jobs=2, chunksize=1)
    pids = pool.pids()
    assert pids
    for pid in pids:
        stop(pid)
    amorsize.shutdown()
    assert pool.pids() == []
    assert not still_running(pids)


PARENT = """
import os, signal, sys, time
import amorsize
def work(x):
    if sys.argv[1] == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    return sum(range(10**12))
def report(context):
    print(context.metadata["pid"], os.getppid(), flush=True)
hooks = amorsize.HookManager()
hooks.register(amorsize.HookEvent.ON_WORKER_START, report)
amorsize.execute(work, [0, 1], executor="process", n_jobs=2, chunksize=1, hooks=hooks)
"""


@pytest.mark.parametrize("state", ["computing", "stopped"])
@pytest.mark.parametrize("killed", ["program", "template"])
def test_workers_end_with_their_program_and_with_their_template(
    tmp_path: Path, state: str, killed: str
) -> None:
    """In the middle of a call in C, and frozen."""
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(PARENT))
    program = subprocess.Popen(
        [sys.executable, str(script), state],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert program.stdout is not None
    workers = [psutil.Process(int(program.stdout.readline().split()[0])) for _ in range(2)]
    if state == "stopped":
        wait_until(lambda: all(is_stopped(each.pid) for each in workers), "the workers stop")
    template = workers[0].parent()
    assert template is not None
    (psutil.Process(program.pid) if killed == "program" else template).kill()
    alive = still_running([*workers, template], 2 * slowness())
    program.kill()
    program.communicate(timeout=PATIENCE)
    assert alive == []


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the orphans")
def test_the_template_reaps_the_workers_that_it_kills(tmp_path: Path) -> None:
    """Where its program was killed, in a container whose init process reaps nobody."""
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(PARENT))
    init = """if True:
        import ctypes, json, os, subprocess, sys
        PR_SET_CHILD_SUBREAPER = 36
        assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
        program = subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=subprocess.PIPE)
        workers = [int(program.stdout.readline().split()[0]) for _ in range(2)]
        program.kill()
        program.wait()
        orphans = []
        while True:
            try:
                orphans.append(os.wait()[0])
            except ChildProcessError:
                break
        print(json.dumps([workers, orphans]))
    """
    done = subprocess.run(
        [sys.executable, "-c", init, str(script), "computing"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    workers, orphans = json.loads(done.stdout)
    assert len(orphans) == 1, "the template"
    assert orphans[0] not in workers


def kill_template(context: HookContext) -> None:
    """Kill the parent of a worker."""
    template = psutil.Process(context.metadata["pid"]).parent()
    assert template is not None
    assert "amorsize.engines.process.template" in " ".join(template.cmdline())
    template.kill()


def test_a_template_that_is_killed_is_a_death_of_its_workers_and_another_takes_over() -> None:
    """Their exit codes are unknown, and so None."""
    endings: list[Any] = []
    hooks = HookManager()
    hooks.register(
        HookEvent.ON_WORKER_END, lambda context: endings.append(context.metadata["exit_code"])
    )

    hooks.register(HookEvent.ON_WORKER_START, kill_template)
    with pytest.raises(WorkerDiedError, match="exit code is unknown"):
        amorsize.execute(
            lambda _: time.sleep(60), range(2), executor="process", n_jobs=1, hooks=hooks
        )
    assert endings == [None]
    assert amorsize.execute(abs, [-1], executor="process", n_jobs=1) == [1]


def test_a_template_that_is_killed_between_two_runs_is_started_again() -> None:
    """Nobody sees it."""
    assert amorsize.execute(abs, [-1], executor="process", n_jobs=1) == [1]
    template = psutil.Process(pool.pids()[0]).parent()
    assert template is not None
    template.kill()
    template.wait(PATIENCE)
    assert amorsize.execute(abs, [-2], executor="process", n_jobs=1) == [2]


@stopping
@pytest.mark.parametrize(
    ("mode", "who"),
    [("process", "program"), ("process", "tree"), ("thread", "program"), ("serial", "program")],
)
def test_a_program_that_was_paused_has_no_item_that_ran_too_long(
    tmp_path: Path, mode: str, who: str
) -> None:
    """As by ``docker pause``: the time in which nobody could look does not count."""
    script = tmp_path / "program.py"
    script.write_text(
        "import sys, time, amorsize\n"
        "def work(x):\n"
        "    if x == 0:\n"
        "        print('working', flush=True)\n"
        "    time.sleep(0.5)\n"
        "    return x\n"
        "results = amorsize.execute(work, range(8), executor=sys.argv[1], chunksize=2,\n"
        "    item_timeout=2, n_jobs=None if sys.argv[1] == 'serial' else 2)\n"
        "print(results == list(range(8)))\n"
    )
    program = subprocess.Popen(
        [sys.executable, str(script), mode], stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "working\n"
    tree = [program.pid]
    if who == "tree":
        tree += [child.pid for child in psutil.Process(program.pid).children(recursive=True)]
    for pid in tree:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4)
    for pid in tree:
        os.kill(pid, signal.SIGCONT)
    output, _ = program.communicate(timeout=PATIENCE)
    assert output == "True\n"


@pytest.mark.parametrize("handling", ["ignored", "reaped"])
def test_the_exit_code_is_known_whatever_the_program_does_with_its_children(
    tmp_path: Path, handling: str
) -> None:
    """Its template reaps the workers."""
    script = tmp_path / "program.py"
    script.write_text(
        "import os, signal, subprocess, sys, amorsize\n"
        "def reap(*_):\n"
        "    try:\n"
        "        while os.waitpid(-1, os.WNOHANG)[0]: pass\n"
        "    except ChildProcessError: pass\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN if sys.argv[1] == 'ignored' else reap)\n"
        "def die(x):\n"
        "    code = subprocess.run([sys.executable, '-c', 'raise SystemExit(3)']).returncode\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if code == 3 else None\n"
        "try:\n"
        "    amorsize.execute(die, [0], executor='process', n_jobs=1)\n"
        "except amorsize.AmorsizeError as error:\n"
        "    print(error.exit_code)\n"
        "amorsize.shutdown()\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), handling], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.stdout == "-9\n"
    (warned,) = done.stderr.splitlines()
    assert warned.endswith(" was killed by signal 9 (SIGKILL) on item 0 in chunk 0")
