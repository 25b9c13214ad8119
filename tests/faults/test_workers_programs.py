"""Real programs: frozen, under pytest, in a notebook, patched by gevent, in development mode.

And real hosts: uWSGI, and a program in C that embeds Python.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import textwrap
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import NoReturn

import nbclient
import nbformat
import psutil
import pytest
from ports import free_port
from processes import still_running
from scripts import run_program
from waiting import PATIENCE

import amorsize

pytestmark = pytest.mark.timeout(300)

PACKAGE_PARENT = str(Path(amorsize.__file__).parent.parent)

UNUSED = [
    "IPython",
    "PIL",
    "_pytest",
    "botocore",
    "boto3",
    "cryptography",
    "dask",
    "datadog",
    "debugpy",
    "distributed",
    "docker",
    "flask",
    "google",
    "grpc",
    "ipykernel",
    "jinja2",
    "matplotlib",
    "moto",
    "msgpack",
    "numpy",
    "opentelemetry",
    "prometheus_client",
    "pytest",
    "sqlite3",
    "tkinter",
    "tornado",
    "tqdm",
    "yaml",
    "zmq",
]
"""Packages that a frozen program would bring along; without them it is made in seconds."""


def test_a_frozen_program_is_started_once(tmp_path: Path) -> None:
    """By PyInstaller: there ``sys.executable`` is the program itself."""
    pytest.importorskip("PyInstaller")
    program = """
        import os, sys
        depth = int(os.environ.get("DEPTH", "0"))
        os.environ["DEPTH"] = str(depth + 1)
        print("started at depth", depth, flush=True)
        if depth:
            sys.exit(9)

        import amorsize

        def work(x):
            return sum(range(100_000)) * 0 + x

        for executor in ("thread", "process", None):
            try:
                results = amorsize.execute(work, range(40), executor=executor, timeout=60)
                print(executor, results == list(range(40)))
            except amorsize.AmorsizeError as error:
                print(executor, type(error).__name__, error)
    """
    (tmp_path / "frozen_app.py").write_text(textwrap.dedent(program))
    command = [sys.executable, "-m", "PyInstaller", "--onedir", "--log-level", "ERROR"]
    command += ["--paths", PACKAGE_PARENT, "--distpath", "dist", "--specpath", "."]
    for package in UNUSED:
        command += ["--exclude-module", package]
    made = subprocess.run(
        [*command, "frozen_app.py"],
        cwd=tmp_path,
        env=os.environ | {"PYINSTALLER_CONFIG_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    done = subprocess.run(
        [tmp_path / "dist" / "frozen_app" / "frozen_app"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert lines[:2] == ["started at depth 0", "thread True"], done.stderr
    assert lines[2].startswith("process ExecutionError worker processes cannot be started: this")
    assert lines[3:] == ["None True"]


def test_functions_of_tests_under_pytest_with_importlib(tmp_path: Path) -> None:
    """There a test's module has a name by which nobody can import it."""
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_inner.py").write_text(
        textwrap.dedent("""
            import functools
            import amorsize
            import pytest

            class Point:
                def __init__(self, x):
                    self.x = x

            def double(x):
                return sum(range(50_000)) * 0 + 2 * x

            @functools.cache
            def cached(x):
                return double(x)

            def move(point):
                return Point(point.x + 1)

            @pytest.mark.parametrize("executor", ["process", "thread", None])
            def test_execute(executor):
                for func in (double, cached, functools.partial(double), lambda x: double(x)):
                    results = amorsize.execute(func, range(40), executor=executor)
                    assert results == [2 * x for x in range(40)]
                points = amorsize.execute(move, [Point(1), Point(2)], executor=executor)
                assert [type(point) for point in points] == [Point, Point]
        """)
    )
    command = [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "-W", "error"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "tests"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert "3 passed" in done.stdout, done.stdout


def test_an_edited_helper_of_a_notebook_with_autoreload(tmp_path: Path) -> None:
    """As %autoreload 2 brings it in, before the next cell runs."""
    (tmp_path / "notebook_helper.py").write_text("def help(x):\n    return 'old'\n")
    cells = [
        "%load_ext autoreload\n%autoreload 2\n"
        "import pathlib, time, amorsize, notebook_helper\n"
        "from notebook_helper import help\n"
        "def use(x): return notebook_helper.help(x)\n"
        "def run(func): return sorted(set(amorsize.execute(func, range(6), executor='process',"
        " n_jobs=2, chunksize=1)))",
        "run(help), run(use)",
        "pathlib.Path('notebook_helper.py').write_text("
        "\"def help(x):\\n    return 'new and longer'\\n\")",
        "(help(0), run(help), run(use), run(notebook_helper.help))",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    executed = nbclient.execute(notebook, cwd=str(tmp_path), timeout=int(PATIENCE))
    shown = [cell.outputs[-1]["data"]["text/plain"] for cell in executed.cells[1:]]
    assert shown[0] == "(['old'], ['old'])"
    new = "['new and longer']"
    assert "".join(shown[2].split("\n")).replace(" ", "") == (
        f"('new and longer', {new}, {new}, {new})".replace(" ", "")
    )


@pytest.mark.parametrize("mode", ["process", "thread", "serial"])
def test_a_program_that_gevent_has_patched(tmp_path: Path, mode: str) -> None:
    """Whatever the library replaces; other greenlets go on meanwhile."""
    pytest.importorskip("gevent")
    program = """
        from gevent import monkey
        monkey.patch_all()
        import json, sys, time
        import gevent, amorsize

        def work(x):
            time.sleep(0.02)
            return sum(range(50_000)) * 0 + x

        ticks = []
        def tick():
            while True:
                ticks.append(1)
                gevent.sleep(0.005)

        greenlet = gevent.spawn(tick)
        results = amorsize.execute(work, range(40), executor=sys.argv[1], n_jobs=2, timeout=100)
        large = amorsize.execute(len, [bytes(3_000_000)] * 3, executor=sys.argv[1])
        greenlet.kill()
        amorsize.shutdown()
        print(json.dumps([results == list(range(40)), large, len(ticks) > 3]))
    """
    assert run_program(program, tmp_path, mode) == [True, [3_000_000] * 3, True]


@pytest.mark.parametrize("executor", ["process", None])
def test_a_program_in_development_mode_with_warnings_as_errors(
    tmp_path: Path, executor: str | None
) -> None:
    """No warning of ours, neither here nor in a worker, nor at the end."""
    program = """
        import json, sys, warnings, amorsize

        def work(x):
            return sum(range(50_000)) * 0 + x, sys.flags.dev_mode, warnings.filters[0][0]

        executor = None if sys.argv[1] == "None" else sys.argv[1]
        results = amorsize.execute(work, range(60), executor=executor)
        large = amorsize.execute(len, [bytes(3_000_000)] * 3, executor=executor)
        print(json.dumps([sorted(set(map(repr, [each[1:] for each in results]))), large]))
    """
    flags = ["-X", "dev", "-W", "error"]
    came = run_program(program, tmp_path, str(executor), flags=flags)
    assert came == [["(True, 'error')"], [3_000_000] * 3]


def missing(what: str) -> NoReturn:
    """Skip a test that cannot run here; in CI it fails."""
    message = f"{what} is not there"
    pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)


HOSTED = """
import json, os, sys
print("loaded in", os.getpid(), file=sys.stderr, flush=True)
import amorsize

def work(x):
    return sum(range(100_000)) * 0 + x

def run_all():
    reported = {"executable": sys.executable}
    for executor in ("thread", "process", None):
        try:
            results, chosen = amorsize.execute(
                work, range(60), executor=executor, n_jobs=2, return_optimization_result=True
            )
            reported[str(executor)] = results == list(range(60))
        except amorsize.AmorsizeError as error:
            reported[str(executor)] = str(error)
    return reported
"""


def test_an_application_under_uwsgi(tmp_path: Path) -> None:
    """It loads the application once per worker of its own, and ends them as it does without us.

    The host handles signals in C, so that Python does not know of it.
    """
    if importlib.util.find_spec("pyuwsgi") is None:
        missing("pyuwsgi")
    (tmp_path / "app.py").write_text(
        f"import sys\nsys.path.insert(0, {PACKAGE_PARENT!r})\n"
        + HOSTED
        + "def application(environ, start_response):\n"
        "    body = json.dumps(run_all()).encode()\n"
        "    start_response('200 OK', [('Content-Length', str(len(body)))])\n"
        "    return [body]\n"
    )
    port = free_port()
    command = [sys.executable, "-c", "import pyuwsgi; pyuwsgi.run()"]
    command += ["--http-socket", f"127.0.0.1:{port}", "--wsgi-file", "app.py", "--master"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--processes", "1", "--lazy-apps"],
            cwd=tmp_path,
            stdout=log,
            stderr=log,
        )
    try:
        reported = json.loads(ask(f"http://127.0.0.1:{port}/", server))
        served = psutil.Process(server.pid).children(recursive=True)
        server.send_signal(signal.SIGINT)
        server.wait(PATIENCE)
    finally:
        server.kill()
        server.wait()
    lines = (tmp_path / "log").read_text()
    assert (reported["thread"], reported["None"]) == (True, True), reported
    assert reported["process"] is True or "not a Python interpreter" in reported["process"]
    assert lines.count("loaded in") == 1, lines
    assert not still_running(served)


def ask(address: str, server: subprocess.Popen[bytes]) -> bytes:
    """Get a page of a server that may still be starting."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
                return bytes(answer.read())
        except ConnectionError:
            pass
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionError):
                raise
        assert server.poll() is None, "the server has ended"
        assert time.monotonic() < deadline, f"{address} does not answer"
        time.sleep(0.05)


HOST = """
#include <Python.h>
#include <signal.h>
#include <stdio.h>

static volatile sig_atomic_t asked;
static void note(int number) { asked = number; }

int main(int argc, char **argv) {
    FILE *file = fopen(argv[1], "r");
    Py_Initialize();
    signal(SIGTERM, note);
    signal(SIGINT, note);
    int failed = PyRun_SimpleFile(file, argv[1]);
    raise(SIGTERM);
    printf("the host was asked by signal %d\\n", (int)asked);
    return Py_FinalizeEx() < 0 || failed;
}
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program in C that embeds this Python, and handles signals itself."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    headers = sysconfig.get_path("include")
    library = f"libpython{sysconfig.get_config_var('LDVERSION')}.so"
    directory = sysconfig.get_config_var("LIBDIR")
    if compiler is None or not Path(headers, "Python.h").exists():
        missing("a C compiler, or the headers of Python")
    if not Path(directory, library).exists():
        pytest.skip(f"this Python has no {library} that a program could embed")
    built = tmp_path_factory.mktemp("host")
    (built / "host.c").write_text(HOST)
    command = [str(compiler), "host.c", "-o", "host", f"-I{headers}", f"-L{directory}"]
    command += [f"-l:{library}", f"-Wl,-rpath,{directory}"]
    subprocess.run(command, cwd=built, check=True, capture_output=True)
    return built / "host"


@pytest.mark.parametrize("path", ["nothing", "an interpreter"])
def test_a_program_that_embeds_python(tmp_path: Path, host: Path, path: str) -> None:
    """Where it finds no interpreter there are threads, and never the host once more.

    Its signals are its own, afterwards as well.
    """
    (tmp_path / "program.py").write_text(
        f"import sys\nsys.path[:0] = {[PACKAGE_PARENT, *sys.path]!r}\n"
        + HOSTED
        + "print(json.dumps(run_all()), flush=True)\n"
    )
    (tmp_path / "bin").mkdir()
    if path == "an interpreter":
        (tmp_path / "bin" / "python3").symlink_to(sys.executable)
    done = subprocess.run(
        [host, "program.py"],
        cwd=tmp_path,
        env={"PATH": str(tmp_path / "bin"), "PYTHONHOME": sys.base_prefix},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    *_, reported_line, last = done.stdout.splitlines()
    reported = json.loads(reported_line)
    assert (reported["thread"], reported["None"]) == (True, True), reported
    if path == "nothing":
        assert "sys.executable is empty in this embedded interpreter" in reported["process"]
    else:
        assert reported["process"] is True, reported
    assert done.stderr.count("loaded in") == 1
    assert last == "the host was asked by signal 15"
