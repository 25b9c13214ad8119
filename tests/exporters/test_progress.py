"""The progress bar: fed with events, drawn on a terminal and on what is none."""

from __future__ import annotations

import ast
import io
import os
import sys
import termios
import threading

import nbclient
import nbformat
import pytest
from waiting import PATIENCE

from amorsize import HookContext, HookEvent, HookManager
from amorsize.errors import MissingExtraError
from amorsize.exporters.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def emit(
    hooks: HookManager,
    event: HookEvent,
    done: int = 0,
    *,
    total: int | None = 10,
    elapsed: float = 1.0,
    run: str = "a",
    name: str = "work",
    engine: str | None = "process",
    **metadata: object,
) -> None:
    metadata |= {"execution_id": run, "function": name}
    if engine is not None:
        metadata["executor_type"] = engine
    hooks.trigger(
        HookContext(
            event,
            n_jobs=2,
            total_items=total,
            items_completed=done,
            elapsed_time=elapsed,
            metadata=metadata,
        )
    )


def emit_run(hooks: HookManager, *, total: int | None = 10, status: str = "ok") -> None:
    emit(hooks, HookEvent.PRE_EXECUTE, total=total)
    for done in range(1, 11):
        emit(hooks, HookEvent.ON_CHUNK_COMPLETE, done, total=total)
    emit(hooks, HookEvent.POST_EXECUTE, 10, total=total, status=status)


@pytest.fixture
def hooks() -> HookManager:
    return HookManager()


@pytest.fixture(autouse=True)
def _no_hook_failed(hooks: HookManager):
    """A failing hook is only logged, so ask."""
    yield
    assert hooks.get_stats()["error_counts"] == {}


def test_a_terminal_shows_one_bar_that_ends_at_all_items(hooks):
    """The last state stays, on one line, with function, engine and workers."""
    file = Terminal()
    with ProgressBar(file=file).attach(hooks):
        emit_run(hooks)
    assert file.getvalue().count("\n") == 1
    last = file.getvalue().rstrip("\n").split("\r")[-1]
    assert last.startswith("work (process x2): 100%")
    assert "10/10" in last


@pytest.mark.parametrize("size", [(0, 0), (30, 70)])
def test_a_bar_fits_a_real_terminal(hooks, size):
    """One that does not know its size, as in some containers, shows the bar all the same."""
    reader, writer = os.openpty()
    termios.tcsetwinsize(writer, size)
    with open(reader, "rb"), open(writer, "w") as file:
        with ProgressBar(file=file).attach(hooks):
            emit_run(hooks)
        drawn = b""
        while not drawn.endswith(b"\n"):
            drawn += os.read(reader, 100_000)
    last = drawn.decode().rstrip().split("\r")[-1]
    assert last.startswith("work (process x2): 100%")
    columns = size[1] or 80
    assert len(last) in (columns - 1, columns)  # old versions of tqdm use the last one, too


def test_the_time_runs_from_the_call_of_execute(hooks):
    """Sampled items count at once, so the seconds that they took must count too."""
    file = Terminal()
    with ProgressBar(file=file).attach(hooks):
        emit(hooks, HookEvent.PRE_EXECUTE, elapsed=60.0)
        emit(hooks, HookEvent.ON_CHUNK_COMPLETE, 10, elapsed=60.0)
        emit(hooks, HookEvent.POST_EXECUTE, 10, elapsed=60.0, status="ok")
    assert "01:00<00:00" in file.getvalue()


def test_a_notebook_shows_a_bar_that_moves(hooks):
    """In a real kernel. What a cell redirects to a file is a log like any other."""
    cells = [
        "import contextlib, io, sys, amorsize\n"
        "def run(): amorsize.execute(abs, range(9), executor='serial', chunksize=3, progress=True)",
        "run()",
        "with contextlib.redirect_stderr(io.StringIO()) as log: run()\n(log.getvalue(),)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    executed = nbclient.execute(notebook, timeout=int(PATIENCE))
    moved = "".join(output["text"] for output in executed.cells[1].outputs)
    assert "\r" in moved
    assert "9/9" in moved
    [shown] = executed.cells[2].outputs
    [log] = ast.literal_eval(shown["data"]["text/plain"])
    assert "\r" not in log
    assert "9/9" in log


@pytest.mark.parametrize("make_file", [Terminal, io.StringIO])
def test_an_unknown_total_is_counted(hooks, make_file):
    """A generator has no length: there is a count, and no percentage."""
    file = make_file()
    with ProgressBar(file=file).attach(hooks):
        emit_run(hooks, total=None)
    assert "10item [" in file.getvalue()
    assert "%" not in file.getvalue()


def test_no_terminal_gets_a_line_at_the_end(hooks):
    """A log file is spared the refreshes, and carriage returns."""
    file = io.StringIO()
    with ProgressBar(file=file).attach(hooks):
        emit_run(hooks)
    [line] = file.getvalue().splitlines()
    assert line.startswith("work (process x2): 100%|####")
    assert "10/10 [00:01<00:00, 10.00item/s]" in line
    assert "\r" not in file.getvalue()


def test_no_terminal_gets_a_line_every_ten_seconds(hooks):
    """A long run shows in its log that it lives."""
    file = io.StringIO()
    with ProgressBar(file=file).attach(hooks):
        emit(hooks, HookEvent.PRE_EXECUTE)
        for second in range(2, 28):
            emit(hooks, HookEvent.ON_CHUNK_COMPLETE, second // 3, elapsed=second)
        emit(hooks, HookEvent.POST_EXECUTE, 10, elapsed=28, status="ok")
    counts = [line.partition("| ")[2].split()[0] for line in file.getvalue().splitlines()]
    assert counts == ["3/10", "7/10", "10/10"]


@pytest.mark.parametrize("make_file", [Terminal, io.StringIO])
@pytest.mark.parametrize(
    ("status", "verdict"),
    [("ok", "1 error"), ("error", "failed"), ("cancelled", "cancelled"), ("timeout", "timeout")],
)
def test_the_last_line_names_the_end_of_a_run(hooks, make_file, status, verdict):
    """The bar stays where the run stopped; one that went on in spite of errors counts them."""
    file = make_file()
    with ProgressBar(file=file).attach(hooks):
        emit(hooks, HookEvent.PRE_EXECUTE)
        emit(hooks, HookEvent.ON_CHUNK_COMPLETE, 4)
        emit(hooks, HookEvent.ON_ERROR, 4)
        emit(hooks, HookEvent.POST_EXECUTE, 4, status=status)
    last = file.getvalue().rstrip("\n").split("\r")[-1]
    assert "4/10" in last
    assert last.endswith(f"item/s, {verdict}]")


@pytest.mark.parametrize("make_file", [Terminal, io.StringIO])
def test_an_exception_leaves_nothing_open(hooks, make_file):
    """Without a POST_EXECUTE, the end of the block closes the bar and unregisters."""
    file = make_file()
    progress = ProgressBar(file=file)

    def run() -> None:
        with progress.attach(hooks):
            emit(hooks, HookEvent.PRE_EXECUTE)
            emit(hooks, HookEvent.ON_ERROR)
            emit(hooks, HookEvent.ON_ERROR)
            raise KeyError

    with pytest.raises(KeyError):
        run()
    assert "interrupted]" in file.getvalue()
    assert file.getvalue().endswith("\n")
    assert not hooks.has_hooks()
    drawn = file.getvalue()
    progress.close()
    assert file.getvalue() == drawn


def test_two_executions_at_once_have_a_bar_each(hooks):
    """Their ids distinguish executions."""
    file = io.StringIO()
    with ProgressBar(file=file).attach(hooks):
        for run in "ab":
            emit(hooks, HookEvent.PRE_EXECUTE, run=run, name=f"work-{run}", engine=None)
        emit(hooks, HookEvent.ON_CHUNK_COMPLETE, 3, run="a")
        emit(hooks, HookEvent.ON_CHUNK_COMPLETE, 5, run="b")
        for run, done in ("b", 5), ("a", 3):
            emit(hooks, HookEvent.POST_EXECUTE, done, run=run, status="error")
    first, second = file.getvalue().splitlines()
    assert first.startswith("work-b:")
    assert "5/10" in first
    assert second.startswith("work-a:")
    assert "3/10" in second


def test_events_of_a_run_that_began_before_are_passed_over(hooks):
    """Who attaches in the middle of a run sees the next one."""
    file = io.StringIO()
    with ProgressBar(file=file).attach(hooks):
        emit(hooks, HookEvent.ON_CHUNK_COMPLETE, 3)
        emit(hooks, HookEvent.ON_ERROR, 3)
        emit(hooks, HookEvent.POST_EXECUTE, 3, status="error")
    assert file.getvalue() == ""


def test_no_thread_is_started(hooks):
    """tqdm's monitor would outlive the bar."""
    before = set(threading.enumerate())
    with ProgressBar(file=Terminal()).attach(hooks):
        emit(hooks, HookEvent.PRE_EXECUTE)
        assert set(threading.enumerate()) <= before


def test_the_default_is_stderr_as_it_is_at_the_start_of_a_run(hooks, capsys):
    """Who replaces sys.stderr gets the bar too; who has none gets no bar."""
    with ProgressBar().attach(hooks):
        emit_run(hooks)
    assert "10/10" in capsys.readouterr().err


def test_without_stderr_nothing_is_shown(hooks, monkeypatch):
    """As under pythonw."""
    monkeypatch.setattr(sys, "stderr", None)
    with ProgressBar().attach(hooks):
        emit_run(hooks)
    assert hooks.get_stats()["error_counts"] == {}


def test_without_tqdm_the_error_names_the_command(monkeypatch):
    """Asked for at once, not at the first event."""
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.delitem(sys.modules, "tqdm.std", raising=False)
    with pytest.raises(MissingExtraError, match=r"progress=True.*tqdm.*amorsize\[progress\]"):
        ProgressBar()
