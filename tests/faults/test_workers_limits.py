"""Places where worker processes cannot be started, and services that a run can do without."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import run_program

import amorsize
from amorsize.engines.process import launcher
from amorsize.engines.process.pool import pool
from amorsize.errors import ExecutionError
from amorsize.planning import process_support
from amorsize.planning.pickling import measure_payload


@pytest.fixture(autouse=True)
def _cold() -> Iterator[None]:
    amorsize.shutdown()
    yield
    amorsize.shutdown()


# --- programs that are no Python interpreter ----


def be_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)


def be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__compiled__", "nuitka", raising=False)


def be_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")


def be_uwsgi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/usr/bin/uwsgi")


HOSTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "frozen": (be_frozen, "this program is frozen"),
    "compiled": (be_compiled, "this program is frozen"),
    "embedded": (be_embedded, "sys.executable is empty"),
    "uwsgi": (be_uwsgi, "sys.executable is /usr/bin/uwsgi, by its name not a Python"),
}


@pytest.mark.parametrize("host", HOSTS)
def test_a_program_that_is_no_interpreter_is_never_started_once_more(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """A named engine says why; the automatic choice has no processes."""
    be_host, reason = HOSTS[host]
    be_host(monkeypatch)
    monkeypatch.setattr(os, "posix_spawn", lambda *_, **__: pytest.fail("a program is started"))
    with pytest.raises(ExecutionError, match=f"{reason}.*executor='thread'"):
        amorsize.execute(abs, [1], executor="process", n_jobs=2)
    # The explanation gives the problem of the payload as the reason (planning/test_explanation.py).
    assert reason in str(measure_payload(burn, [1], [1]).problem)
    result = amorsize.optimize(burn, range(2000))
    assert result.executor_type != "process"
    assert pool.pids() == []


# --- limits ----


def burn(x: int) -> int:
    return sum(range(300_000)) * 0 + x


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def refuse(number: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("place", ["posix_spawn", "ftruncate", "pipe"])
def test_where_nothing_can_be_started_a_named_engine_says_so_and_nothing_stays_open(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """No process, no memory for the item slots, no descriptor."""
    abs_before = amorsize.execute(abs, [-1], executor="thread")
    before = count_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, place, refuse(errno.EMFILE))
        with pytest.raises(ExecutionError, match=r"Too many open files.*ulimit -n.*'thread'"):
            amorsize.execute(abs, [-1], executor="process", n_jobs=2)
    pool.shutdown()
    assert count_descriptors() <= before
    assert abs_before == [1]
    assert "Too many open files" in str(process_support.why_no_processes()), "for a while"
    assert amorsize.optimize(burn, range(2000)).executor_type != "process"
    assert amorsize.execute(abs, [-1], executor="process", n_jobs=2) == [1]


def test_a_fork_that_fails_is_reported_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the template, which goes on."""
    failing = (
        "import os, errno\n"
        "def fail(): raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))\n"
        "os.fork = fail\n"
    )
    boot = launcher._BOOT.replace("; main()", f"; exec({failing!r}); main()")
    monkeypatch.setattr(launcher, "_BOOT", boot)
    with pytest.raises(ExecutionError, match="Resource temporarily unavailable"):
        amorsize.execute(abs, range(4), executor="process", n_jobs=2)


def test_a_run_goes_on_with_the_workers_that_can_be_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer than it wanted."""
    failing = (
        "import os, errno\n"
        "fork, forked = os.fork, []\n"
        "def fail():\n"
        "    if forked: raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))\n"
        "    forked.append(1)\n"
        "    return fork()\n"
        "os.fork = fail\n"
    )
    boot = launcher._BOOT.replace("; main()", f"; exec({failing!r}); main()")
    monkeypatch.setattr(launcher, "_BOOT", boot)
    results = amorsize.execute(
        lambda _: os.getpid(), range(20), executor="process", n_jobs=4, chunksize=1
    )
    assert len(set(results)) == 1


@pytest.mark.parametrize("executor", ["process", None])
def test_a_program_with_few_descriptors(tmp_path: Path, executor: str | None) -> None:
    """Its run works with as many workers as there are descriptors for."""
    program = """
        import json, resource, sys, amorsize
        executor = None if sys.argv[1] == "None" else sys.argv[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
        def work(x):
            return sum(range(300_000)) * 0 + x
        results = amorsize.execute(work, range(60), executor=executor)
        print(json.dumps(results == list(range(60))))
    """
    assert run_program(program, tmp_path, str(executor), stderr=None)


def test_a_limit_on_the_size_of_files_is_a_clear_error(tmp_path: Path) -> None:
    """It holds for files in memory, too."""
    program = """
        import json, resource, amorsize
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        try:
            amorsize.execute(abs, [-1], executor="process", n_jobs=1)
        except amorsize.AmorsizeError as error:
            text = str(error)
        print(json.dumps(text))
    """
    command = f"exec {sys.executable} program.py | cat"  # a pipe has no size
    (tmp_path / "program.py").write_text(textwrap.dedent(program))
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "no worker process can be started: [Errno 27] File too large" in done.stdout


def test_a_run_whose_items_are_done_needs_no_further_thread(tmp_path: Path) -> None:
    """Idle workers end by themselves: nothing has to be started for that."""
    program = """
        import json, threading, amorsize
        def refuse(self):
            raise RuntimeError("can't start new thread")
        threading.Thread.start = refuse
        runs = [amorsize.execute(abs, range(-30, 0), executor="process", n_jobs=2)
                for _ in range(2)]
        print(json.dumps([len(run) for run in runs]))
    """
    assert run_program(program, tmp_path) == [30, 30]


def test_a_run_at_the_exit_of_the_program(tmp_path: Path) -> None:
    """In a function that runs at exit: the workers have been ended, and others serve it."""
    program = """
        import atexit, json, amorsize
        def last():
            print(json.dumps(amorsize.execute(abs, [-1, -2], executor="process", n_jobs=2)))
        import amorsize.engines.process.pool
        atexit.register(last)
        amorsize.execute(abs, [-1], executor="process", n_jobs=1)
    """
    assert run_program(program, tmp_path) == [1, 2]


def test_workers_do_not_keep_the_rights_that_their_program_has_given_up(tmp_path: Path) -> None:
    """Warm ones are replaced, and their template."""
    if os.getuid() != 0:
        pytest.skip("only root can give up rights")
    program = """
        import json, os, amorsize
        who = lambda _: os.getegid()
        run = lambda: amorsize.execute(who, [0], executor="process", n_jobs=1)[0]
        before = run()
        os.setegid(65534)
        print(json.dumps([before, run()]))
    """
    assert run_program(program, tmp_path) == [os.getegid(), 65534]


@pytest.mark.parametrize(
    ("processes", "workers"),
    [(1, 0), (2, 0), (3, 1), (5, 3)],
    ids=["no template", "no worker", "one worker", "three workers"],
)
def test_a_real_limit_on_processes(tmp_path: Path, processes: int, workers: int) -> None:
    """ulimit -u, which does not bind root: the program has a user of its own, and reads as root.

    A run goes on with the workers that there are; without any, the error says why. Nothing stays
    open.
    """
    if os.getuid() != 0:
        pytest.skip("only root can be a user of whom there are no other processes")
    program = """
        import gc, json, os, resource, sys, time, amorsize
        limit = int(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
        def work(x):
            time.sleep(0.02)
            return x, os.getpid()
        before = len(os.listdir("/proc/self/fd"))
        try:
            done = amorsize.execute(work, range(20), executor="process", n_jobs=4, chunksize=1)
            assert [x for x, _ in done] == list(range(20))
            said = len({pid for _, pid in done} - {os.getpid()})
        except amorsize.AmorsizeError as error:
            said = str(error)
        amorsize.shutdown()
        gc.collect()
        print(json.dumps([said, len(os.listdir("/proc/self/fd")) - before]))
    """
    (tmp_path / "program.py").write_text(textwrap.dedent(program))
    user = str(60_000 + os.getpid() % 5_000)
    rights = "-all,+dac_override"
    command = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups"]
    command += [f"--inh-caps={rights}", f"--ambient-caps={rights}", sys.executable]
    command += [str(tmp_path / "program.py"), str(processes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said, left_open = json.loads(done.stdout)
    assert left_open == 0
    if workers:
        assert said == workers
    else:
        assert "no worker process can be started: [Errno 11]" in said
        assert "ulimit -n, -u, -f" in said
