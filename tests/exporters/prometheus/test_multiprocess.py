"""One page of several processes: settings, forks, the one listener, and what goes wrong."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from ports import free_port
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from waiting import PATIENCE, poll, wait_until

from amorsize.errors import ExporterError, InvalidTypeError, InvalidValueError, PortInUseError
from amorsize.exporters.prometheus import exporter as exporter_module
from amorsize.exporters.prometheus import settings as settings_module
from amorsize.exporters.prometheus.exporter import PrometheusExporter
from amorsize.exporters.prometheus.settings import DIRECTORY_VARIABLE, PrometheusSettings
from amorsize.hooks import HookManager

from ..events import Run, Scrape, fetch

RUN = {"function": "parse", "executor": "process"}


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of temporary files is the test's own, also in children."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv(DIRECTORY_VARIABLE, raising=False)
    return tmp_path


def files_below(directory: Path) -> list[Path]:
    return list(directory.rglob("process-*.json"))


# --- settings ----


@pytest.mark.parametrize(
    ("settings", "variable", "expected"),
    [
        ({}, False, False),
        ({"port": 0}, False, False),
        ({"listen": False}, False, True),  # a server of the application's has the page
        ({"listen": False, "multiprocess": False}, True, False),
        ({"listen": False, "textfile": "x.prom"}, False, False),
        ({"textfile": "x.prom", "multiprocess": True}, False, True),
        ({"multiprocess": True}, False, True),
        ({"multiprocess_dir": "."}, False, True),
        ({}, True, True),
        ({"multiprocess": False}, True, False),
    ],
)
def test_when_processes_are_added_up(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    variable: bool,
    expected: bool,
) -> None:
    """Where several are likely, and where it is asked for."""
    monkeypatch.chdir(directory)
    if variable:
        monkeypatch.setenv(DIRECTORY_VARIABLE, str(directory))
    made = PrometheusSettings(**settings)
    assert made.is_multiprocess is expected
    named = expected and (variable or "multiprocess_dir" in settings)
    assert made.multiprocess_base == (directory if named else None)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"multiprocess": 1}, InvalidTypeError, "multiprocess must be True, False or None; got 1"),
        ({"multiprocess_dir": 1}, InvalidTypeError, "multiprocess_dir must be the path of a dir"),
        (
            {"multiprocess_dir": "none"},
            InvalidValueError,
            "multiprocess_dir must be in an existing directory",
        ),
        (
            {"multiprocess": False, "multiprocess_dir": "."},
            InvalidValueError,
            "multiprocess_dir would have no effect with multiprocess=False",
        ),
    ],
)
def test_wrong_settings_are_named(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Before anything is opened."""
    with pytest.raises(error, match=message):
        PrometheusSettings(**settings)


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the setting, which was not passed."""
    monkeypatch.setenv(DIRECTORY_VARIABLE, "/no/such/directory")
    with pytest.raises(InvalidValueError, match=f"the environment variable {DIRECTORY_VARIABLE} m"):
        PrometheusSettings()


def test_without_locks_of_files_it_is_off_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where nothing is forked."""
    monkeypatch.setattr(settings_module, "HAS_FILE_LOCKS", False)
    assert not PrometheusSettings(listen=False).is_multiprocess
    with pytest.raises(InvalidValueError, match="needs the fcntl module, which this system lacks"):
        PrometheusSettings(multiprocess=True)


# --- one process ----


def page_of(exporter: PrometheusExporter, accept: str = "text/plain") -> str:
    """The page that a server of the application's answers."""
    _, body = exporter._render(accept, ())
    return body.decode()


def test_a_program_of_one_process_shows_the_same_page(manager: HookManager) -> None:
    """Byte for byte, in both formats and by name, and leaves nothing behind."""
    with (
        PrometheusExporter(listen=False).attach(manager) as merged,
        PrometheusExporter(listen=False, multiprocess=False).attach(manager) as plain,
    ):
        run = Run(manager)
        run.begin()
        run.start_worker()
        run.complete_chunk(3, trace_id="4f" * 16, span_id="2a" * 8)
        for accept in ("text/plain", "application/openmetrics-text; version=1.0.0"):
            pages = [page_of(exporter, accept).splitlines() for exporter in (merged, plain)]
            same = [
                [line for line in page if "hook" not in line and "timestamp" not in line]
                for page in pages
            ]
            assert same[0] == same[1]
        assert " # {trace_id=" in page_of(merged, "application/openmetrics-text; version=1.0.0")
        _, only = merged._render("text/plain", ["amorsize_workers"])
        assert b"amorsize_workers{" in only
        assert b"amorsize_items" not in only


def test_the_end_of_the_program_removes_the_files(directory: Path) -> None:
    """Of one process, and of several."""
    script = """
        import amorsize, os
        exporter = amorsize.enable_prometheus(listen=False)
        amorsize.execute(abs, [1])
        if os.fork() == 0:
            amorsize.execute(abs, [1])
            raise SystemExit
        os.wait()
        exporter._render("", ())
        print(len(list(exporter._files.directory.glob("ended.json"))))
    """
    assert python(script, directory) == "1\n"
    (user,) = directory.glob("amorsize-*")
    assert list(user.iterdir()) == []


def python(
    script: str, directory: Path, *arguments: str, stderr: str | None = "", **variables: str
) -> str:
    """Run a program; return what it prints."""
    path = directory / "program.py"
    path.write_text(textwrap.dedent(script))
    ran = subprocess.run(
        [sys.executable, str(path), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        timeout=PATIENCE,
    )
    assert ran.returncode == 0, ran.stderr
    if stderr is not None:
        assert ran.stderr == stderr
    return ran.stdout


def test_a_run_is_written_before_it_returns(manager: HookManager, directory: Path) -> None:
    """So a process that is killed then, or ends by os._exit(), has lost nothing of it."""
    with PrometheusExporter(listen=False).attach(manager):
        run = Run(manager)
        run.begin()
        run.end(elapsed=1000.0)
        (path,) = files_below(directory)
        assert '[["parse","process","ok"],1,' in path.read_text()


def test_runs_that_end_in_quick_succession_are_written_soon(
    manager: HookManager, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a thread, several together; and by close()."""
    with PrometheusExporter(listen=False).attach(manager) as exporter:
        Run(manager).begin()
        assert exporter._files is not None
        monkeypatch.setattr(exporter._files, "may_write_at_once", lambda: False)
        Run(manager).end(elapsed=1.0)
        assert not any(
            '[["parse","process","ok"],1,' in p.read_text() for p in files_below(directory)
        )
        wait_until(
            lambda: any(
                '[["parse","process","ok"],1,' in path.read_text()
                for path in files_below(directory)
            ),
            "the file",
        )


def test_a_long_run_is_written_while_it_runs(manager: HookManager, directory: Path) -> None:
    """For the pages of the other processes."""
    with PrometheusExporter(listen=False).attach(manager):
        run = Run(manager)
        run.begin()
        run.complete_chunk(7)
        wait_until(
            lambda: any(
                '[["parse","process"],7,' in path.read_text() for path in files_below(directory)
            ),
            "the file",
        )
        ended = '[["parse","process","ok"],1,'
        assert not any(ended in path.read_text() for path in files_below(directory))


def test_where_nothing_can_be_kept_each_process_shows_its_own(
    manager: HookManager, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A container without a writable directory goes on as it did; the log says so once."""
    (directory / f"amorsize-{os.geteuid()}").touch()
    with PrometheusExporter(listen=False).attach(manager) as exporter:
        Run(manager).begin()
        for _ in range(2):
            assert "amorsize_executions_in_progress{" in page_of(exporter)
    (message,) = caplog.messages
    assert message.startswith("Each process of this program shows its own metrics alone, because")
    assert "Name a directory with multiprocess_dir=, or pass multiprocess=False." in message


def test_where_it_was_asked_for_a_failure_is_one(
    manager: HookManager, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The scraper sees it, the log and a counter say it; the run does not fail."""
    (directory / f"amorsize-{os.geteuid()}").touch()
    settings: dict[str, Any] = {"listen": False, "multiprocess": True}
    with PrometheusExporter(**settings).attach(manager) as exporter:
        for _ in range(2):
            Run(manager).begin()
            Run(manager).end(elapsed=1000.0)
        (message,) = caplog.messages
        assert message.startswith("The metrics of this process cannot be written: ")
        assert exporter.counts() == (0, 2)
        with pytest.raises(OSError, match="must be a directory of this user's"):
            page_of(exporter)
        (directory / f"amorsize-{os.geteuid()}").unlink()
        assert "amorsize_executions_total{" in page_of(exporter)


def test_a_listener_without_a_directory_is_an_error(directory: Path) -> None:
    """When it is enabled."""
    (directory / f"amorsize-{os.geteuid()}").touch()
    with pytest.raises(ExporterError, match="the processes have no directory: "):
        PrometheusExporter(port=0, multiprocess=True)


def test_an_error_at_the_start_leaves_its_number_free() -> None:
    """Otherwise this process would add up with others than its siblings."""
    registry = prometheus_client.CollectorRegistry()
    with PrometheusExporter(listen=False, registry=registry) as first:
        with pytest.raises(ExporterError, match="already holds metrics"):
            PrometheusExporter(listen=False, registry=registry)
        with PrometheusExporter(listen=False) as second:
            assert first._files is not None
            assert second._files is not None
            assert second._files.exporter == first._files.exporter + 1


# --- forked children ----

FORKED = """
import amorsize, json, os, re, sys

def work(item):
    amorsize.count("seen")
    amorsize.set_gauge("pid", os.getpid())
    return item

def page():
    body = exporter._render("", ())[1].decode()
    samples = re.findall(r"^(amorsize\\S*) (\\S+)$", body, re.M)
    return {name: float(value) for name, value in samples}

def items():
    found = {n: v for n, v in page().items() if n.startswith("amorsize_items_processed_total")}
    return sum(found.values())
"""


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_forked_children_go_on_from_zero(directory: Path) -> None:
    """What the parent has counted is counted once, and everybody shows the sum."""
    script = f"""{FORKED}
exporter = amorsize.enable_prometheus(listen=False)
amorsize.execute(work, range(5), executor="thread", n_jobs=2)
assert items() == 5
for size in (10, 100):
    if os.fork() == 0:
        assert exporter.active
        assert amorsize.enable_prometheus(listen=False) is exporter
        amorsize.execute(work, range(size), executor="serial")
        amorsize.execute(work, range(size), executor="process", n_jobs=2)
        print(items(), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
print(items())
print(sum(v for n, v in page().items() if n.startswith("amorsize_user_seen_total")))
print(sum(v for n, v in page().items() if n.startswith("amorsize_executions_total")))
print(page()['amorsize_user_pid{{executor="thread",function="__main__.work"}}'] == os.getpid())
"""
    assert python(script, directory).split() == ["25.0", "225.0", "225.0", "225.0", "5.0", "True"]


def test_a_child_forked_under_any_lock_goes_on(directory: Path) -> None:
    """A thread that is not in the child holds them for ever."""
    script = f"""{FORKED}
import threading
exporter = amorsize.enable_prometheus(listen=False)
amorsize.execute(work, range(5), executor="serial")
locked, done = threading.Event(), threading.Event()
locks = [exporter._lock, exporter._state_lock, exporter._files._writing, exporter._files._merging,
         amorsize.get_default_manager()._lock, exporter._writes._changed]
def hold():
    for lock in locks:
        lock.acquire()
    locked.set()
    done.wait()
    for lock in reversed(locks):
        lock.release()
thread = threading.Thread(target=hold)
thread.start()
locked.wait()
if os.fork() == 0:
    amorsize.execute(work, range(7), executor="serial")
    print(items(), flush=True)
    exporter.close()
    os._exit(0)
assert os.wait()[1] == 0
done.set()
thread.join()
print(items())
"""
    assert python(script, directory).split() == ["12.0", "12.0"]


def test_calls_of_hooks_before_a_fork_count_once(directory: Path) -> None:
    """A manager of the program's own remembers those of the parent in the child."""
    script = f"""{FORKED}
hooks = amorsize.HookManager()
hooks.register(amorsize.HookEvent.POST_EXECUTE, print)
def calls():
    return sum(v for n, v in page().items() if n.startswith("amorsize_hook_calls") and "print" in n)

sys.stdout = open(os.devnull, "w")
exporter = amorsize.enable_prometheus(listen=False)
for _ in range(3):
    amorsize.execute(work, [1], executor="serial", hooks=hooks)
counted = [calls()]
if os.fork() == 0:
    for _ in range(5):
        amorsize.execute(work, [1], executor="serial", hooks=hooks)
    os._exit(calls())
counted.append(os.waitstatus_to_exitcode(os.wait()[1]))
counted.append(calls())
sys.__stdout__.write(json.dumps(counted))
"""
    script = script.replace("os._exit(calls())", "os._exit(int(calls()))")
    assert python(script, directory) == "[3.0, 8, 8.0]"


def test_a_forked_child_that_runs_nothing_leaves_no_trace(directory: Path) -> None:
    """Most do: a pool of the application's, a program that it starts."""
    script = f"""{FORKED}
exporter = amorsize.enable_prometheus(listen=False)
if os.fork() == 0:
    exporter.close()
    raise SystemExit
assert os.wait()[1] == 0
print(len(list(exporter._files.directory.iterdir())))
"""
    assert python(script, directory) == "0\n"


def test_a_registry_of_the_applications_stays_in_a_forked_child(directory: Path) -> None:
    """It is that of prometheus_client's metrics, too."""
    script = f"""{FORKED}
import prometheus_client
registry = prometheus_client.CollectorRegistry()
exporter = amorsize.enable_prometheus(listen=False, registry=registry)
if os.fork() == 0:
    amorsize.execute(work, range(7), executor="serial")
    body = prometheus_client.generate_latest(registry).decode()
    print(*re.findall(r"^amorsize_items_processed_total.* (.*)$", body, re.M), flush=True)
    os._exit(0)
assert os.wait()[1] == 0
"""
    assert python(script, directory) == "7.0\n"


def test_an_exporter_of_another_manager_is_inert_in_a_forked_child(directory: Path) -> None:
    """The default manager alone is empty there; nothing shows which manager counted the rest."""
    script = f"""{FORKED}
hooks = amorsize.HookManager()
from amorsize.exporters.prometheus import PrometheusExporter
exporter = PrometheusExporter(listen=False).attach(hooks)
if os.fork() == 0:
    for _ in range(2):
        amorsize.execute(work, range(7), executor="serial", hooks=hooks)
    print(exporter.active, flush=True)
    os._exit(0)
assert os.wait()[1] == 0
print(items())
"""
    ran = python(script, directory, stderr=None)
    assert ran == "False\n0\n"


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_children_of_multiprocessing_are_added_up(directory: Path, method: str) -> None:
    """Also what they ran last: they end without exit functions, right after it."""
    script = f"""{FORKED}
import multiprocessing

exporter = amorsize.enable_prometheus(listen=False)

def serve(size):
    for _ in range(20):
        amorsize.execute(work, range(size), executor="serial")

if __name__ == "__main__":
    amorsize.execute(work, range(1), executor="serial")
    context = multiprocessing.get_context(sys.argv[1])
    children = [context.Process(target=serve, args=(size,)) for size in (10, 100)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    print(items(), [child.exitcode for child in children])
"""
    assert python(script, directory, method) == "2201.0 [0, 0]\n"


def test_workers_of_an_execution_have_no_file(directory: Path) -> None:
    """Neither our own, nor those of a caller-owned pool; their parent reports them."""
    script = f"""{FORKED}
from concurrent.futures import ProcessPoolExecutor

exporter = amorsize.enable_prometheus(listen=False)

def nested(item):
    return amorsize.execute(work, [item], executor="serial")

if __name__ == "__main__":
    amorsize.execute(nested, range(8), executor="process", n_jobs=2, chunksize=1)
    with ProcessPoolExecutor(2) as pool:
        amorsize.execute(nested, range(8), executor=pool, chunksize=1)
    found = sum(v for n, v in page().items() if "items_processed" in n and "nested" in n)
    print(len(list(exporter._files.directory.glob("process-*"))), found)
"""
    assert python(script, directory, stderr=None) == "1 16.0\n"


# --- the one listener ----

LISTENING = f"""{FORKED}
exporter = amorsize.enable_prometheus(int(sys.argv[1]), multiprocess=True)
"""


def test_one_process_listens_and_another_takes_over(directory: Path) -> None:
    """When it is killed; the page is the same, and nothing is lost."""
    script = f"""{LISTENING.replace("exporter =", "def enable(): return")}
import signal
children = []
for size in (10, 100):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        exporter = enable()
        amorsize.execute(work, range(size), executor="thread", n_jobs=2)
        os.write(write, str(exporter.port).encode() + b" ")
        signal.pause()
    children.append((pid, int(os.read(read, 9))))
print(json.dumps(children), flush=True)
sys.stdin.read()
for pid, _ in children:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""
    path = directory / "program.py"
    path.write_text(script)
    port = free_port()
    program = subprocess.Popen(
        [sys.executable, str(path), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stdout is not None
        import json

        (first, of_first), (second, of_second) = json.loads(program.stdout.readline())
        assert (of_first, of_second) == (port, 0)
        url = f"http://127.0.0.1:{port}/metrics"
        name = "amorsize_items_processed_total"
        assert Scrape(url)(name) == 110
        os.kill(first, signal.SIGKILL)
        assert Scrape(answered(url))(name) == 110
        assert second != first
    finally:
        program.communicate("")


def answered(url: str) -> str:
    """Wait until a page is answered."""

    def page() -> str | None:
        try:
            return fetch(url)
        except OSError:
            return None

    poll(page, bool, url)
    return url


def test_a_parent_listens_for_its_forked_children(directory: Path) -> None:
    """They hold neither its port nor its lock: when it closes, one of them listens."""
    script = f"""{LISTENING}
import signal
(read, write), (waiting, ending) = os.pipe(), os.pipe()
if os.fork() == 0:
    os.close(ending)
    amorsize.execute(work, range(10), executor="serial")
    os.write(write, b"x")
    os.read(waiting, 1)
    os._exit(0)
os.read(read, 1)
print(exporter.url, items(), flush=True)
sys.stdin.readline()
exporter.close()
print("closed", flush=True)
sys.stdin.read()
os.close(ending)
os.wait()
"""
    path = directory / "program.py"
    path.write_text(script)
    program = subprocess.Popen(
        [sys.executable, str(path), str(free_port())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdin is not None
    assert program.stdout is not None
    try:
        url, items = program.stdout.readline().split()
        assert float(items) == 10
        assert Scrape(url)("amorsize_items_processed_total") == 10
        program.stdin.write("close\n")
        program.stdin.flush()
        assert program.stdout.readline() == "closed\n"
        assert Scrape(answered(url))("amorsize_items_processed_total") == 10
    finally:
        program.communicate()


def test_a_port_of_another_program_is_in_use(exporter: PrometheusExporter) -> None:
    """When the first process of this one is enabled; then nobody of it has the lock."""
    with pytest.raises(PortInUseError):
        PrometheusExporter(port=exporter.port, multiprocess=True)
    with PrometheusExporter(port=0, multiprocess=True) as free:
        assert free.port > 0


def test_a_port_that_is_taken_meanwhile_is_waited_for(
    manager: HookManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By another program, after the process that listened; the log says so once."""
    from amorsize.exporters.prometheus import standby

    monkeypatch.setattr(standby, "WAIT_SECONDS", 0.01)
    port = free_port()
    with PrometheusExporter(port=port, multiprocess=True) as first:
        assert first._files is not None
        number = first._files.exporter
        monkeypatch.setattr(
            exporter_module,
            "ProgramFiles",
            lambda base, read, _: exporter_module_files(base, read, number),
        )
        second = PrometheusExporter(port=port, multiprocess=True).attach(manager)
        monkeypatch.undo()
        monkeypatch.setattr(standby, "WAIT_SECONDS", 0.01)
        assert (first.port, second.port) == (port, 0)
        listener, refused = second._listen, []

        def taken() -> Any:
            refused.append(True)
            if len(refused) < 3:
                raise PortInUseError("port is taken by process 1")
            return listener()

        assert second._standby is not None
        second._standby._listen = taken
    wait_until(lambda: second.port, "the second one")
    assert second.port == port
    assert [m for m in caplog.messages if "No process of this program serves" in m] == [
        "No process of this program serves the metrics: port is taken by process 1"
    ]
    second.close()


exporter_module_files = exporter_module.ProgramFiles


def test_a_page_in_openmetrics_has_the_exemplars_of_all(directory: Path) -> None:
    """Which prometheus_client's own multiprocess mode cannot show."""
    script = f"""{FORKED}
import contextlib
from amorsize.exporters import exemplars, totals
exporter = amorsize.enable_prometheus(listen=False)
for digit in "12":
    if os.fork() == 0:
        from amorsize.exporters import exemplars
        exemplars.current_trace = lambda: {{"trace_id": digit * 32, "span_id": digit * 16}}
        amorsize.execute(work, range(1), executor="serial", name="f" + digit)
        os._exit(0)
    assert os.wait()[1] == 0
print(exporter._render("application/openmetrics-text; version=1.0.0", ())[1].decode())
"""
    families = list(parse_openmetrics(python(script, directory).rstrip("\n") + "\n"))
    found = {
        sample.exemplar.labels["trace_id"][0]
        for family in families
        for sample in family.samples
        if sample.exemplar
    }
    assert found == {"1", "2"}


def test_pushes_and_text_files_are_of_all_processes(directory: Path) -> None:
    """Whichever process writes last."""
    script = f"""{FORKED}
exporter = amorsize.enable_prometheus(textfile=sys.argv[1], job="web", multiprocess=True)
for size in (10, 100):
    if os.fork() == 0:
        amorsize.execute(work, range(size), executor="serial")
        assert exporter.flush(60)
        os._exit(0)
    assert os.wait()[1] == 0
print(re.findall("^amorsize_items_processed_total.* (.*)", open(sys.argv[1]).read(), re.M))
"""
    printed = python(script, directory, str(directory / "web.prom"))
    assert printed == "['110']\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_workers_of_another_user_have_files_of_their_own(directory: Path) -> None:
    """As those of a server that root has started: nobody can enter the directory of root."""
    script = f"""{FORKED}
exporter = amorsize.enable_prometheus(listen=False)
amorsize.execute(work, range(1), executor="serial")
items()
os.chmod(sys.argv[1], 0o1777)
for size in (10, 100):
    if os.fork() == 0:
        os.setuid(65534)
        amorsize.execute(work, range(size), executor="serial")
        print(items(), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
print(items())
"""
    shared = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        printed = python(script, directory, str(shared), TMPDIR=str(shared))
        assert printed.split() == ["10.0", "110.0", "1.0"]
        modes = {path.name: path.stat().st_mode & 0o777 for path in shared.iterdir()}
        assert modes == {"amorsize-0": 0o700, "amorsize-65534": 0o700}
    finally:
        shutil.rmtree(shared)


SNIPPETS = re.findall(
    r"^```python\n(.*?)^```",
    (Path(__file__).parents[3] / "docs" / "web-servers.md").read_text(encoding="utf-8"),
    re.DOTALL | re.MULTILINE,
)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_the_snippets_of_the_page_on_web_servers_run(snippet: str, directory: Path) -> None:
    """Each as the module of an application; that of WSGI answers, that of celery is called."""
    calls = """
if "metrics" in globals():
    get = lambda path: b"".join(app({"PATH_INFO": path, "REQUEST_METHOD": "GET"}, print))
    assert get("/") == b"A B"
    assert b"amorsize_executions_total{" in get("/metrics")
if "shout" in globals():
    assert shout(["a"]) == ["A"]
"""
    variables = {"AMORSIZE_PROMETHEUS_PORT": "0"}
    python(snippet + calls, directory, stderr=None, **variables)


@pytest.fixture(autouse=True)
def _levels(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.WARNING):
        yield
