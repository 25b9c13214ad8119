"""Which processes are one program: real ones, however they were started."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from amorsize.exporters.prometheus import processes
from amorsize.exporters.prometheus.processes import (
    Process,
    host,
    is_running,
    program_of,
    this_process,
)

CHILD = """
import json, multiprocessing, os, subprocess, sys

def show():
    from amorsize.exporters.prometheus.processes import program_of, this_process
    line = json.dumps([this_process(), program_of(os.getpid())]) + "\\n"
    os.write(1, line.encode())  # in one piece: several processes write

def grandchild():
    process = multiprocessing.get_context(sys.argv[1]).Process(target=show)
    process.start()
    process.join()
"""


def run(body: str, directory: Path, *arguments: str, **options: Any) -> list[Any]:
    """Run a script that shows processes; return each as [itself, its program]."""
    script = directory / "program.py"
    script.write_text(CHILD + textwrap.dedent(body))
    ran = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        check=True,
        **options,
    )
    return [json.loads(line) for line in ran.stdout.splitlines()]


STARTED = """
if __name__ == "__main__":
    show()
    process = multiprocessing.get_context(sys.argv[1]).Process(target=grandchild)
    process.start()
    process.join()
"""


@pytest.fixture(params=["proc", "psutil"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The environment of a program that reads processes from /proc, or as macOS has to."""
    if request.param == "proc":
        return dict(os.environ)
    (tmp_path / "sitecustomize.py").write_text(
        "import amorsize.exporters.prometheus.processes as each\neach._has_proc = lambda: False\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_children_and_their_children_are_of_the_program(
    tmp_path: Path, method: str, source: dict[str, str]
) -> None:
    """However ``multiprocessing`` starts them, and without having imported anything before."""
    (parent, program), (child, of_child) = run(STARTED, tmp_path, method, env=source)
    assert parent == program == of_child
    assert child != parent


def test_a_forked_child_is_of_the_program(tmp_path: Path) -> None:
    """So are its children; that of a program which it executes is not."""
    body = """
    if os.fork() == 0:
        if os.fork() == 0:
            show()
            subprocess.run([sys.executable, "-c", '''if True:
                import sys; sys.argv[:] = [""]; exec(open(%r).read())
                show()
            ''' % __file__.replace("program", "library")])
            os._exit(0)
        os.wait()
        os._exit(0)
    show()
    os.wait()
    """
    (tmp_path / "library.py").write_text(CHILD)
    shown = run(body, tmp_path)
    by_program = {tuple(program): [] for _, program in shown}
    for process, program in shown:
        by_program[tuple(program)].append(tuple(process))
    assert sorted(map(len, by_program.values())) == [1, 2]
    assert all(program in members for program, members in by_program.items())


def test_programs_of_one_shell_are_several(tmp_path: Path) -> None:
    """Also where they are the same script, with the same arguments."""
    script = tmp_path / "program.py"
    script.write_text(CHILD + "show()\n")
    one = f"'{sys.executable}' '{script}'"
    ran = subprocess.run(
        ["sh", "-c", f"{one} & {one}; wait"], capture_output=True, text=True, check=True
    )
    (first, of_first), (second, of_second) = map(json.loads, ran.stdout.splitlines())
    assert first == of_first != second == of_second


def test_a_daemon_is_a_program(tmp_path: Path) -> None:
    """It has forked twice without executing anything, and has no parent any more."""
    body = """
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while os.getppid() == int(os.environ["MIDDLE"] or 0):
                pass
            if os.fork() == 0:
                show()
                os._exit(0)
            os.wait()
            show()
            os.write(write, b"x")
        os._exit(0)
    os.wait()
    show()
    os.read(read, 1)
    """
    body = body.replace('int(os.environ["MIDDLE"] or 0)', "middle").replace(
        "os.setsid()", "os.setsid(); middle = os.getpid()"
    )
    shown = run(body, tmp_path)
    starter = next(process for process, program in shown if program == process)
    assert len(shown) == 3
    programs = {tuple(program) for _, program in shown}
    assert len(programs) == 2
    assert tuple(starter) in programs


def test_a_process_that_has_ended_is_not_running() -> None:
    """Nor a zombie, nor another process with the same id."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    status = processes._status_of(child.pid)
    assert status is not None
    process = status.process
    assert is_running(process)
    assert not is_running(Process(process.pid, process.started + 1))
    child.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_running(process), "the zombie")
    child.communicate()
    assert not is_running(process)


def test_this_process_is_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is identified alike from outside."""
    assert is_running(this_process())
    assert this_process().pid == os.getpid()
    assert is_running(program_of(os.getpid()))
    monkeypatch.setattr(processes, "_has_proc", lambda: False)
    assert is_running(this_process())


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (lambda name: "/usr/bin/python", "/usr/bin/python"),
        (PermissionError, None),
    ],
)
def test_an_executable_that_is_hidden_is_unknown(
    monkeypatch: pytest.MonkeyPatch, found: Callable[[str], str], expected: str | None
) -> None:
    """As that of another user's process is: the server's first one runs as root."""

    def readlink(path: str) -> str:
        answer = found(path)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(os, "readlink", readlink)
    assert processes._executable_of(1) == expected


def test_a_host_without_namespaces_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no character that the name of a file may not have."""

    def readlink(path: str) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "readlink", readlink)
    monkeypatch.setattr(processes.socket, "gethostname", lambda: "a/b c")
    assert host() == "a_b_c"
