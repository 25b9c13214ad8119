"""Real programs: frozen, under pytest, in a notebook, patched by gevent, in development mode."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import nbclient
import nbformat
import pytest
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
