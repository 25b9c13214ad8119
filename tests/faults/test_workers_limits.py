"""Places where worker processes cannot be started, and services that a run can do without."""

from __future__ import annotations

import errno
import json
import os
import platform
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


SETTING_A_LIMIT = """
    import gc, json, os, resource, sys, time
    import amorsize

    limit, executor, kind, values = sys.argv[1:]
    executor = None if executor == "None" else executor

    def work(x):
        if kind == "waits":
            time.sleep(0.01)
            return x
        return sum(range(200_000)) * 0 + x

    def run(value):
        number = getattr(resource, "RLIMIT_" + limit)
        resource.setrlimit(number, (value, value))
        try:
            said = amorsize.execute(work, range(60), executor=executor, n_jobs=2) == [*range(60)]
        except amorsize.AmorsizeError as error:
            said = str(error)
        amorsize.shutdown()
        gc.collect()
        return said

    reported = {}
    for value in map(int, values.split(",")):
        reader, writer = os.pipe()
        if not os.fork():
            os.dup2(writer, 3)
            os.closerange(4, 256)
            try:
                said = run(value)
            except BaseException as error:
                said = repr(error)
            left = len(os.listdir("/proc/self/fd")) - 5 if limit != "NOFILE" else 0
            with open(3, "w") as answer:
                json.dump([said, left], answer)
            os._exit(0)
        os.close(writer)
        with open(reader) as answer:
            reported[value] = json.load(answer)
        os.wait()
    print(json.dumps(reported))
"""


def run_within(
    limit: str, directory: Path, executor: str | None, *values: int, kind: str = "computes"
) -> dict[str, Any]:
    """Run one and the same program within several values of a limit.

    Returns:
        For each value whether all results came, or the error; and the descriptors left open.
    """
    reported = run_program(
        SETTING_A_LIMIT,
        directory,
        limit,
        str(executor),
        kind,
        ",".join(map(str, values)),
        stderr=None,
    )
    assert isinstance(reported, dict)
    return reported


def test_the_choice_is_made_within_any_limit_on_descriptors(tmp_path: Path) -> None:
    """Down to those that Python itself needs to load a module."""
    reported = run_within("NOFILE", tmp_path, None, *range(6, 30))
    assert len(reported) == 24
    assert all(each == [True, 0] for each in reported.values()), reported


def test_a_named_engine_within_any_limit_on_descriptors(tmp_path: Path) -> None:
    """It works, with fewer workers, or it gives one clear error."""
    reported = run_within("NOFILE", tmp_path, "process", *range(6, 30))
    clear = [said for said, _ in reported.values() if said is not True]
    assert all("no worker process can be started: [Errno 24]" in str(said) for said in clear)
    assert reported["6"][0] is not True
    assert reported["29"][0] is True


@pytest.mark.parametrize("kind", ["computes", "waits"])
def test_the_choice_is_made_within_any_limit_on_the_size_of_files(
    tmp_path: Path, kind: str
) -> None:
    """Memory that is shared is a file, too."""
    reported = run_within("FSIZE", tmp_path, None, 0, 1, 4096, 1 << 20, kind=kind)
    # The answers go through a pipe, which has no size.
    assert len(reported) == 4
    assert all(each == [True, 0] for each in reported.values()), reported


@pytest.mark.parametrize("executor", ["process", None])
def test_a_program_within_a_limit_on_its_memory(tmp_path: Path, executor: str | None) -> None:
    """ulimit -v: what a template and two workers need is no more than the program has."""
    reported = run_within("AS", tmp_path, executor, 150 << 20, 400 << 20)
    assert [said for said, _ in reported.values()] == [True, True]


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


AT_THE_END = """
    import atexit, json, sys, threading, types
    import amorsize
    from amorsize import execute

    when, executor = sys.argv[1:]
    executor = None if executor == "None" else executor

    def work(x):
        return sum(range(200_000)) * 0 + x

    def last(execute=execute, work=work, executor=executor, json=json):
        try:
            said = execute(work, [*range(60)], executor=executor) == [*range(60)]
        except RuntimeError as error:
            said = str(error)
        print(json.dumps(said), flush=True)

    class Late:
        def __del__(self, last=last):
            last()

    if when == "atexit":
        atexit.register(last)
    elif when == "thread":
        def wait():
            threading.main_thread().join()
            last()
        threading.Thread(target=wait).start()
    else:
        sys.modules["late_module"] = types.ModuleType("late_module")
        sys.modules["late_module"].late = Late()
"""


@pytest.mark.parametrize("executor", ["process", "thread", None])
@pytest.mark.parametrize("when", ["atexit", "thread"])
def test_a_run_while_the_interpreter_shuts_down(
    tmp_path: Path, when: str, executor: str | None
) -> None:
    """In a function that runs at exit, and in a thread that outlives the main one."""
    assert run_program(AT_THE_END, tmp_path, when, str(executor)) is True


@pytest.mark.parametrize("executor", ["process", "thread", "serial", None])
def test_a_run_after_the_interpreter_has_shut_down_is_a_clear_error(
    tmp_path: Path, executor: str | None
) -> None:
    """In a ``__del__`` that is called when the modules are gone; it neither hangs nor loads."""
    said = run_program(AT_THE_END, tmp_path, "del", str(executor))
    assert "the interpreter is shutting down" in said


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


def run_as_nobody(program: str, directory: Path, *arguments: str) -> Any:
    """Run a program as a user who has no other processes, and reads as root.

    Returns what it printed, which is JSON. Limits on processes do not bind root.
    """
    if os.getuid() != 0:
        pytest.skip("only root can be a user of whom there are no other processes")
    (directory / "program.py").write_text(textwrap.dedent(program))
    user = str(60_000 + os.getpid() % 5_000)
    rights = "-all,+dac_override"
    command = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups"]
    command += [f"--inh-caps={rights}", f"--ambient-caps={rights}", sys.executable]
    command += [str(directory / "program.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


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
    said, left_open = run_as_nobody(program, tmp_path, str(processes))
    assert left_open == 0
    if workers:
        assert said == workers
    else:
        assert "no worker process can be started: [Errno 11]" in said
        assert "ulimit -n, -u, -f" in said


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["computes", "waits"])
def test_the_choice_is_made_within_any_limit_on_processes(
    tmp_path: Path, processes: int, kind: str
) -> None:
    """Which is one on threads as well: at 1, all that is left is the calling thread."""
    program = """
        import gc, json, os, resource, sys, time, amorsize
        limit, kind = int(sys.argv[1]), sys.argv[2]
        resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
        def work(x):
            if kind == "waits":
                time.sleep(0.01)
                return x
            return sum(range(200_000)) * 0 + x
        before = len(os.listdir("/proc/self/fd"))
        done, chosen = amorsize.execute(work, range(60), return_optimization_result=True)
        last = (chosen.changes or [chosen.reason])[-1]
        amorsize.shutdown()
        gc.collect()
        print(json.dumps([done, last, len(os.listdir("/proc/self/fd")) - before]))
    """
    done, last, left_open = run_as_nobody(program, tmp_path, str(processes), kind)
    assert done == list(range(60))
    assert left_open == 0
    if processes == 1:
        assert "Serial, because" in last
        assert kind == "computes" or "no thread can be started" in last


@pytest.mark.parametrize("run", ["stream", "timeout"])
def test_what_needs_a_thread_is_a_clear_error_where_none_can_be_started(
    tmp_path: Path, run: str
) -> None:
    """A stream, whose consumer has the calling thread, and a run with a time limit."""
    program = """
        import json, resource, sys, amorsize
        from amorsize.errors import ExecutionError
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        try:
            if sys.argv[1] == "stream":
                list(amorsize.stream(abs, range(9)))
            else:
                amorsize.execute(abs, range(9), timeout=60)
        except ExecutionError as error:
            print(json.dumps(str(error)))
    """
    said = run_as_nobody(program, tmp_path, run)
    assert "no thread can be started" in said
    assert ("execute()" if run == "stream" else "executor='serial'") in said


WITHOUT_MEMORY_FILES = """
import ctypes, json, os, platform, struct, sys
import amorsize

executor = None if sys.argv[1] == "None" else sys.argv[1]
number = {"x86_64": 319, "aarch64": 279}[platform.machine()]
# Load the number of the system call; memfd_create() fails with EPERM, all else is allowed.
refuse, allow = (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), refuse, allow]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
program = struct.pack("HL", len(steps), ctypes.addressof(code))
assert libc.prctl(22, 2, program, 0, 0) == 0  # PR_SET_SECCOMP
try:
    os.memfd_create("refused")
except PermissionError:
    pass
else:
    raise SystemExit("memfd_create() is not refused")

def work(x):
    return sum(range(200_000)) * 0 + x

before = len(os.listdir("/proc/self/fd"))
try:
    said = amorsize.execute(work, range(60), executor=executor, n_jobs=2) == [*range(60)]
except amorsize.AmorsizeError as error:
    said = str(error)
amorsize.shutdown()
print(json.dumps([said, len(os.listdir("/proc/self/fd")) - before]))
"""

READ_ONLY = """
for place in /tmp /var/tmp /dev/shm; do
    mount --bind "$place" "$place" && mount -o remount,ro,bind "$place" || exit 77
done
cd /proc && exec "$@"
"""


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="needs the number of a system call"
)
@pytest.mark.parametrize("files", ["elsewhere", "nowhere"])
@pytest.mark.parametrize("executor", ["process", None])
def test_memory_files_that_the_system_refuses(executor: str | None, files: str) -> None:
    """A sandbox refuses memfd_create(): there are files on disk, unless nothing can be written."""
    command = [sys.executable, "-c", WITHOUT_MEMORY_FILES, str(executor)]
    environment = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
    if files == "nowhere":
        command = ["unshare", "-m", "sh", "-c", READ_ONLY, "sh", *command]
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if files == "nowhere" and done.returncode in (1, 77) and not done.stdout:
        if os.getuid() == 0 and "Operation not permitted" not in done.stderr:
            pytest.fail(done.stderr)
        pytest.skip("places cannot be made read-only here: unshare -m needs rights")
    assert done.returncode == 0, done.stderr
    said, left_open = json.loads(done.stdout)
    assert left_open == 0
    if files == "nowhere" and executor == "process":
        assert "no worker process can be started: [Errno 2] No usable temporary directory" in said
    else:
        assert said is True
