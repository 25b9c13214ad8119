"""How people really run it: scripts without a main guard, standard input, a notebook."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from waiting import PATIENCE

import amorsize
from amorsize.engines.process import protocol

SCRIPT = textwrap.dedent(
    """
    import os, sys
    import amorsize
    from amorsize import HookManager
    from amorsize.testing import RecordingHook, assert_contract

    class Point:
        def __init__(self, x):
            self.x = x
        def __eq__(self, other):
            return isinstance(other, Point) and other.x == self.x

    table = list(range(100_000))
    runs = sum(1 for _ in open(sys.argv[1])) if os.path.exists(sys.argv[1]) else 0
    with open(sys.argv[1], "a") as log:
        log.write("the script was run\\n")

    def add(x):
        return x + 1

    def move(point):
        return Point(point.x + table[1])

    answers = []
    for mode in ("serial", "thread", "process"):
        hooks = HookManager()
        recorder = RecordingHook().attach(hooks)
        options = {"executor": mode, "n_jobs": 2, "hooks": hooks}
        answers.append([
            amorsize.execute(add, range(5), **options),
            amorsize.execute(lambda x: x + 1, (x for x in range(5)), **options),
            amorsize.execute(lambda x: table[x], [1, 99_999], **options),
            [p.x for p in amorsize.execute(move, [Point(1)], **options)],
            amorsize.execute(move, [Point(1)], **options) == [Point(2)],
        ])
        assert_contract(recorder.contexts)
    assert answers[0] == answers[1] == answers[2], answers
    print(answers[2])
    """
)
EXPECTED = "[[1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [1, 99999], [2], True]\n"


def python(*arguments: str, cwd: Path, script: str | None = None) -> str:
    """Run an interpreter and return what it printed; anything on stderr is a failure."""
    done = subprocess.run(
        [sys.executable, *arguments],
        input=script,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_script_without_a_main_guard(tmp_path: Path) -> None:
    """Equal results in all modes; no worker runs the script again."""
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    assert python(str(script), "log", cwd=tmp_path) == EXPECTED
    assert (tmp_path / "log").read_text() == "the script was run\n"


def test_a_script_from_standard_input(tmp_path: Path) -> None:
    """There is no file that a worker could import."""
    assert python("-", "log", cwd=tmp_path, script=SCRIPT) == EXPECTED


def test_a_script_on_the_command_line(tmp_path: Path) -> None:
    """As with ``python -c``."""
    assert python("-c", SCRIPT, "log", cwd=tmp_path) == EXPECTED


def test_workers_see_path_directory_and_environment_as_they_are_now(tmp_path: Path) -> None:
    """Also those that were started before a change."""
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "latecomer.py").write_text("def triple(x):\n    return 3 * x\n")
    script = """
import os, sys
import amorsize
def look(_):
    return os.getcwd(), os.environ.get("COLOUR"), "late" in sys.path
print(amorsize.execute(look, [0], executor="process")[0] == (os.getcwd(), None, False))
os.environ["COLOUR"] = "blue"
sys.path.insert(0, os.path.join(os.getcwd(), "late"))
sys.path.append("late")
os.chdir("late")
print(amorsize.execute(look, [0], executor="process")[0] == (os.getcwd(), "blue", True))
from latecomer import triple
print(amorsize.execute(triple, [1, 2], executor="process"))
"""
    assert python("-c", script, cwd=tmp_path) == "True\nTrue\n[3, 6]\n"


def test_inner_thread_pools_are_limited_unless_the_environment_says_otherwise(
    tmp_path: Path,
) -> None:
    """OpenMP and the like get their share of the cores; a value of the user's own stays."""
    script = """
import os
import amorsize
os.environ["MKL_NUM_THREADS"] = "7"
names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
def look(_):
    return [os.environ.get(name) for name in names]
print(amorsize.execute(look, [0], executor="process", n_jobs=64))
"""
    environment = {name: value for name, value in os.environ.items() if "THREADS" not in name}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[['1', '7']]\n"


def test_a_function_that_closes_over_50_mb_is_sent_once_a_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Chunks carry items alone; the function goes to a worker when it joins the execution."""
    sent: list[tuple[str, int]] = []
    send = protocol.send

    def counting(
        connection: Any, header: tuple[Any, ...], payload: bytes = b"", *more: Any
    ) -> None:
        sent.append((str(header[0]), len(payload)))
        send(connection, header, payload, *more)

    monkeypatch.setattr(protocol, "send", counting)
    blob = bytes(50_000_000)
    results = amorsize.execute(
        lambda x: blob[x] + x, range(40), executor="process", n_jobs=2, chunksize=1
    )
    assert results == list(range(40))
    functions = [size for kind, size in sent if kind == "task"]
    assert 1 <= len(functions) <= 2
    assert all(size > 50_000_000 for size in functions)
    assert max(size for kind, size in sent if kind == "chunk") < 1000


def test_a_notebook(tmp_path: Path) -> None:
    """Functions and classes that cells define, in a real Jupyter kernel, in every mode."""
    cells = [
        "import amorsize\nclass Point:\n    def __init__(self, x): self.x = x",
        "def move(p): return Point(p.x + 1)",
        "[[p.x for p in amorsize.execute(move, [Point(1), Point(2)], executor=mode, n_jobs=2)]"
        " for mode in ('serial', 'thread', 'process')]",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    executed = nbclient.execute(notebook, cwd=str(tmp_path), timeout=PATIENCE)
    outputs = executed.cells[-1].outputs
    assert outputs[0]["data"]["text/plain"] == "[[2, 3], [2, 3], [2, 3]]"
