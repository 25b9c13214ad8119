"""A worker has the state of its program, and one run's changes never meet the next run."""

from __future__ import annotations

import csv
import decimal
import locale
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from scripts import run_program

import amorsize
from amorsize.engines.process.pool import pool


@pytest.fixture(autouse=True)
def _warm() -> Iterator[None]:
    """Each test begins with one warm worker, which has the state as it was before the test."""
    amorsize.shutdown()
    in_worker(abs, -1)
    yield
    amorsize.shutdown()


def in_worker(func: Callable[[Any], Any], item: Any = None) -> Any:
    """Call a function in the one worker."""
    return amorsize.execute(func, [item], executor="process", n_jobs=1)[0]


def set_warnings(value: Any) -> None:
    warnings.filters[:] = value  # type: ignore[index]  # a list


def change_decimal() -> None:
    decimal.getcontext().prec = 50
    decimal.getcontext().traps[decimal.Inexact] = True


def quotient() -> str:
    try:
        return str(decimal.Decimal(1) / decimal.Decimal(7))
    except decimal.Inexact:
        return "inexact"


def divide_by_zero() -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return str(numpy.float64(1) / numpy.float64(0))
        except FloatingPointError:
            return "raised"


def read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def toggle_bytecode() -> None:
    sys.dont_write_bytecode = not sys.dont_write_bytecode
    sys.pycache_prefix = "/nowhere"


def warn() -> str:
    """Say what becomes of a warning."""
    try:
        warnings.warn("of a kind", BytesWarning, stacklevel=1)
    except BytesWarning:
        return "raised"
    return "not raised"


CHANGES: dict[str, tuple[Callable[[], object], Callable[[], Any]]] = {
    "recursion limit": (lambda: sys.setrecursionlimit(4321), sys.getrecursionlimit),
    "integer digits": (lambda: sys.set_int_max_str_digits(100_000), sys.get_int_max_str_digits),
    "socket timeout": (lambda: socket.setdefaulttimeout(7.5), socket.getdefaulttimeout),
    "umask": (lambda: os.umask(0o037), read_umask),
    "csv field size": (lambda: csv.field_size_limit(10**9), csv.field_size_limit),
    "decimal": (change_decimal, quotient),
    "numpy errors": (lambda: numpy.seterr(all="raise"), divide_by_zero),
    "warning filters": (lambda: warnings.simplefilter("ignore", BytesWarning), warn),
    "arguments": (lambda: sys.argv.append("--more"), lambda: sys.argv[-1]),
    "path": (lambda: sys.path.append("/nowhere"), lambda: list(sys.path)),
    "bytecode": (toggle_bytecode, lambda: (sys.dont_write_bytecode, sys.pycache_prefix)),
    "locale": (
        lambda: locale.setlocale(locale.LC_NUMERIC, "C.UTF-8"),
        lambda: locale.setlocale(locale.LC_ALL, None),
    ),
    "affinity": (
        lambda: os.sched_setaffinity(0, {max(os.sched_getaffinity(0))}),
        lambda: sorted(os.sched_getaffinity(0)),
    ),
}


@pytest.fixture
def _put_back() -> Iterator[None]:
    before = (
        sys.getrecursionlimit(),
        sys.get_int_max_str_digits(),
        socket.getdefaulttimeout(),
        read_umask(),
        csv.field_size_limit(),
        decimal.getcontext().copy(),
        dict(numpy.geterr()),
        list(warnings.filters),
        list(sys.argv),
        list(sys.path),
        (sys.dont_write_bytecode, sys.pycache_prefix),
        locale.setlocale(locale.LC_ALL, None),
        os.sched_getaffinity(0),
    )
    yield
    sys.setrecursionlimit(before[0])
    sys.set_int_max_str_digits(before[1])
    socket.setdefaulttimeout(before[2])
    os.umask(before[3])
    csv.field_size_limit(before[4])
    decimal.setcontext(before[5])
    numpy.seterr(**before[6])
    set_warnings(before[7])
    sys.argv[:] = before[8]
    sys.path[:] = before[9]
    sys.dont_write_bytecode, sys.pycache_prefix = before[10]
    locale.setlocale(locale.LC_ALL, before[11])
    os.sched_setaffinity(0, before[12])


@pytest.mark.usefixtures("_put_back")
@pytest.mark.parametrize("name", CHANGES)
def test_a_worker_has_the_settings_of_its_program(name: str) -> None:
    """Also a warm one that was started before they were changed."""
    change, look = CHANGES[name]
    before = look()
    change()
    here = look()
    assert here != before
    assert in_worker(lambda _: look()) == here
    assert len(pool.pids()) == 1


@pytest.mark.usefixtures("_put_back")
@pytest.mark.parametrize("name", CHANGES)
def test_what_one_run_changes_never_meets_the_next(name: str) -> None:
    """The worker is the same, its settings are the program's."""
    change, look = CHANGES[name]
    here = look()

    def leave_changed(_: None) -> None:
        change()

    in_worker(leave_changed)
    [worker] = pool.pids()
    assert in_worker(lambda _: look()) == here
    assert pool.pids() == [worker]


def test_directory_and_environment_are_restored(tmp_path: Path) -> None:
    """A function that leaves its directory, even a removed one, does so for its own run alone."""

    def wander(directory: str) -> None:
        os.makedirs(directory)
        os.chdir(directory)
        os.rmdir(directory)
        os.environ["AMORSIZE_TEST_LEFT"] = "behind"

    in_worker(wander, str(tmp_path / "gone"))
    assert in_worker(lambda _: (os.getcwd(), os.environ.get("AMORSIZE_TEST_LEFT"))) == (
        os.getcwd(),
        None,
    )


def test_a_change_that_cannot_be_undone_costs_the_worker_alone() -> None:
    """Its priority, for instance: another takes its place."""
    [before] = pool.pids()
    in_worker(lambda _: os.nice(3))
    assert in_worker(lambda _: (os.nice(0), os.getpid() == before)) == (os.nice(0), False)


def test_a_signal_handler_and_an_alarm_end_with_their_run() -> None:
    """The next run is not interrupted by the alarm of the last."""

    def set_alarm(_: None) -> None:
        import signal

        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0.05)

    def look(_: None) -> tuple[bool, bool]:
        import signal

        time.sleep(0.1)
        default = signal.SIG_DFL
        return (
            signal.getsignal(signal.SIGALRM) is default,
            signal.getsignal(signal.SIGTERM) is default,
        )

    in_worker(set_alarm)
    [worker] = pool.pids()
    assert in_worker(look) == (True, True)
    assert pool.pids() == [worker]


def test_a_time_zone_that_the_program_changes_is_that_of_warm_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TZ and tzset(), as Django does."""
    hour = lambda _: time.localtime(0).tm_hour  # noqa: E731
    for zone, expected in (("UTC", 0), ("Asia/Tokyo", 9), ("UTC", 0)):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        assert in_worker(hour) == expected
    monkeypatch.undo()
    time.tzset()


def test_all_workers_of_a_program_have_one_hash_seed() -> None:
    """Those before a shutdown, and those after it."""

    def hashes() -> set[int]:
        pids = amorsize.execute(
            lambda _: (time.sleep(0.05), hash("text"))[1],  # type: ignore[func-returns-value]
            range(8),
            executor="process",
            n_jobs=3,
            chunksize=1,
        )
        return set(pids)

    before = hashes()
    amorsize.shutdown()
    assert len(before | hashes()) == 1


def test_workers_hash_as_the_program_where_it_says_how(tmp_path: Path) -> None:
    """With PYTHONHASHSEED."""
    program = """
        import json, amorsize
        there = amorsize.execute(lambda _: hash("text"), [0], executor="process", n_jobs=1)
        print(json.dumps(there == [hash("text")]))
    """
    assert run_program(program, tmp_path, environment={"PYTHONHASHSEED": "17"})


def test_a_directory_that_may_not_be_entered_by_name(tmp_path: Path) -> None:
    """One whose name leads nowhere any more: moved away under the program."""
    program = """
        import json, os, amorsize
        os.makedirs("inner/here")
        os.chdir("inner/here")
        here = os.stat(".").st_ino
        look = lambda _: os.stat(".").st_ino
        run = lambda: amorsize.execute(look, [0], executor="process", n_jobs=1)[0]
        first = run()
        os.rename("../../inner", "../../moved")
        os.makedirs("../../inner/here")
        second = run()
        amorsize.shutdown()
        print(json.dumps([here == each for each in (first, second, run())]))
    """
    assert run_program(program, tmp_path) == [True, True, True]


@pytest.mark.parametrize("mode", ["execute", "stream"])
def test_a_default_socket_timeout_ends_no_worker(tmp_path: Path, mode: str) -> None:
    """Whatever is sent, and however long the function takes: the timeout is for the user's sockets.

    And for those of the function, in the worker.
    """
    program = """
        import json, socket, sys, time, amorsize
        socket.setdefaulttimeout(0.05)
        def slow(x):
            time.sleep(0.1)
            return len(x), socket.socket().gettimeout()
        call = getattr(amorsize, sys.argv[1])
        results = list(call(slow, [bytes(4_000_000)] * 4, executor="process", n_jobs=2))
        print(json.dumps(results))
    """
    assert run_program(program, tmp_path, mode, stderr=None) == [[4_000_000, 0.05]] * 4


def test_what_is_printed_arrives_with_its_chunk_and_before_a_death(tmp_path: Path) -> None:
    """Where stdout is a pipe, and so not written line by line."""
    program = """
        import os, sys, amorsize
        def work(x):
            print("line", x)
            sys.stdout.write(f"part {x} ")
            if x == 2:
                print("last words")
                os._exit(3)
        try:
            amorsize.execute(work, range(3), executor="process", n_jobs=1, chunksize=1)
        except amorsize.AmorsizeError:
            print("over", flush=True)
        print('"end"')
    """
    script = tmp_path / "program.py"
    import subprocess
    import textwrap

    script.write_text(textwrap.dedent(program))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, check=True
    )
    printed = done.stdout
    for expected in ("line 0\n", "part 0", "line 1\n", "part 1", "line 2\n", "last words\n"):
        assert printed.index(expected) < printed.index("over"), printed


def test_workers_print_where_the_program_prints_now(tmp_path: Path) -> None:
    """A warm worker follows when the program redirects its descriptors."""
    log = tmp_path / "log"
    with log.open("w") as file:
        before = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            in_worker(lambda _: print("redirected"))
        finally:
            os.dup2(before, 1)
            os.close(before)
    assert log.read_text() == "redirected\n"
    assert len(pool.pids()) == 1


def test_a_worker_has_the_flags_of_its_program(tmp_path: Path) -> None:
    """Those that change what code does: -O, -X utf8, -W, -b."""
    program = """
        import json, sys, amorsize
        def look(_):
            flags = sys.flags
            said = [flags.optimize, flags.utf8_mode, flags.bytes_warning, sys.warnoptions]
            return [*said, __debug__]
        here = look(None)
        print(json.dumps([here, *amorsize.execute(look, [0], executor="process", n_jobs=1)]))
    """
    flags = ["-O", "-X", "utf8", "-b", "-W", "ignore::ImportWarning"]
    here, there = run_program(program, tmp_path, flags=flags)
    assert there == here
    assert here[:3] == [1, 1, 1]


def test_limits_and_priority_are_those_of_the_start_of_the_template(tmp_path: Path) -> None:
    """As docs/workers.md says; the next template has those of the program."""
    program = """
        import json, os, resource, amorsize
        def look(_):
            return [resource.getrlimit(resource.RLIMIT_CORE)[0], os.nice(0)]
        run = lambda: amorsize.execute(look, [0], executor="process", n_jobs=1)[0]
        before = look(None)
        first = run()
        resource.setrlimit(resource.RLIMIT_CORE, (0, before[0]) if before[0] else (0, 0))
        os.nice(2)
        warm = run()
        amorsize.shutdown()
        print(json.dumps([before, first, warm, look(None), run()]))
    """
    before, first, warm, here, again = run_program(program, tmp_path)
    assert before == first == warm
    assert again == here
    assert here[1] == before[1] + 2
