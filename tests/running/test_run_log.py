"""The log of a run: a line at its end, warnings of its failures, and never an item's content."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from modes import MODES
from scripts import run_program
from waiting import PATIENCE

import amorsize
from amorsize import HookEvent, HookManager
from amorsize.errors import ExecutionTimeoutError, ItemTimeoutError, WorkerDiedError
from amorsize.running import run_log
from amorsize.running.run_log import ONE_BY_ONE, RunLog
from amorsize.testing import RecordingHook

PAGE = (Path(__file__).parents[2] / "docs" / "logging.md").read_text(encoding="utf-8")
FOREVER = 200.0

Records = list[dict[str, Any]]


class Log(logging.Handler):
    """Keeps the records of runs as dictionaries, without the prefix of their fields."""

    def __init__(self) -> None:
        super().__init__()
        self.records: Records = []
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        fields = {
            name.removeprefix("amorsize_"): value
            for name, value in vars(record).items()
            if name.startswith("amorsize_")
        }
        self.records.append(fields | {"level": record.levelname})
        self.lines.append(record.getMessage())

    def of(self, event: str) -> Records:
        return [record for record in self.records if record["event"] == event]

    @property
    def end(self) -> dict[str, Any]:
        (end,) = self.of("run_ended")
        return end


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Any:
    """All records of runs, from INFO on."""
    handler = Log()
    before = run_log.logger.level
    run_log.logger.setLevel("INFO")
    run_log.logger.addHandler(handler)
    yield handler
    run_log.logger.removeHandler(handler)
    run_log.logger.setLevel(before)


# --- the line of the end ----


@pytest.mark.parametrize("executor", [None, *MODES])
def test_a_run_writes_one_line_at_its_end(
    executor: str | None, log: Log, hooks: HookManager, recorder: RecordingHook
) -> None:
    """With the figures of its events."""
    amorsize.execute(math.sqrt, range(100), executor=executor, chunksize=10, hooks=hooks)
    chunks = recorder.of(HookEvent.ON_CHUNK_COMPLETE)
    longest = max(chunks, key=lambda chunk: chunk.chunk_time)
    post = recorder.contexts[-1]
    assert [record["level"] for record in log.records] == ["INFO"]
    end = log.end
    assert end["duration_seconds"] >= post.elapsed_time
    assert end["item_seconds"] == pytest.approx(post.avg_item_time)
    assert {
        name: end[name] for name in end if name not in ("duration_seconds", "item_seconds")
    } == {
        "level": "INFO",
        "event": "run_ended",
        "function": "math.sqrt",
        "execution_id": post.metadata["execution_id"],
        "status": "ok",
        "error_type": None,
        "items": 100,
        "total_items": 100,
        "failed_items": 0,
        "deaths": 0,
        "item_timeouts": 0,
        "executor": post.metadata.get("changed_to", post.metadata["executor_type"]),
        "n_jobs": post.n_jobs,
        "slowest_chunk": longest.chunk_id,
        "slowest_chunk_seconds": longest.chunk_time,
    }


def test_the_line_reads_as_a_sentence(log: Log) -> None:
    """And a run that nobody observes has it, too."""
    amorsize.execute(abs, range(-10, 0), executor="thread", n_jobs=1, name="jobs.clean")
    (line,) = log.lines
    seconds = r"[\d.e-]+ s"
    assert re.fullmatch(
        rf"jobs\.clean: status ok, 10 items \(0 failed\) in {seconds} on thread \(1 worker\), "
        rf"{seconds} per item, slowest chunk {seconds}",
        line,
    )
    assert log.end["execution_id"] is None


def test_a_run_without_items_has_no_figures_of_items(log: Log) -> None:
    """None, not 0: they are not known."""
    amorsize.execute(abs, [])
    end = log.end
    assert (end["status"], end["items"], end["total_items"]) == ("ok", 0, 0)
    assert (end["item_seconds"], end["slowest_chunk"]) == (None, None)
    assert log.lines[0].startswith("builtins.abs: status ok, 0 items (0 failed) in ")


def test_streams_write_their_line(log: Log) -> None:
    """From the thread that drives the run."""
    assert list(amorsize.stream(abs, iter(range(50)), chunksize=5)) == list(range(50))
    assert (log.end["status"], log.end["items"], log.end["total_items"]) == ("ok", 50, 50)


def test_a_run_that_fails_before_it_begins_has_its_line(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its input refuses to be iterated."""

    class Refusing:
        def __iter__(self) -> Any:
            raise LookupError("secret")

    with pytest.raises(LookupError):
        amorsize.execute(abs, Refusing())
    assert [record["event"] for record in log.records] == ["run_failed", "run_ended"]
    assert (log.end["status"], log.end["error_type"]) == ("error", "LookupError")
    assert (log.end["executor"], log.end["n_jobs"]) == (None, None)


def test_without_a_listener_a_run_makes_no_log() -> None:
    """Where logging is loaded, its level is asked; where it is not, it stays so."""
    for statements in ("", "import logging\n"):
        script = (
            f"{statements}import sys, amorsize\namorsize.execute(abs, range(100))\n"
            "assert 'amorsize.running.run_log' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", script], check=True)


# --- failures ----


def fail_in_fives(item: int) -> int:
    if item % 5 == 0:
        raise ValueError("secret")
    return item


@pytest.mark.parametrize("executor", [None, *MODES])
def test_failed_items_are_warned_of(executor: str | None, log: Log) -> None:
    """With the first item's index, and the sum at the end."""
    amorsize.execute(
        fail_in_fives, range(20), executor=executor, chunksize=10, return_exceptions=True
    )
    failed = log.of("items_failed")
    assert {record["level"] for record in failed} == {"WARNING"}
    assert {record["error_type"] for record in failed} == {"ValueError"}
    assert sum(record["failed_items"] for record in failed) == 4
    assert all(record["item_index"] % 5 == 0 for record in failed)
    assert (log.end["status"], log.end["items"], log.end["failed_items"]) == ("ok", 20, 4)


@pytest.mark.parametrize("executor", [None, *MODES])
def test_an_item_that_ends_the_run_is_warned_of_once(executor: str | None, log: Log) -> None:
    """The line says what the run ended with."""
    with pytest.raises(ValueError, match="secret"):
        amorsize.execute(fail_in_fives, range(1, 20), executor=executor, n_jobs=1, chunksize=5)
    assert [record["event"] for record in log.records] == ["items_failed", "run_ended"]
    assert (log.records[0]["item_index"], log.records[0]["failed_items"]) == (4, 1)
    assert (log.end["status"], log.end["error_type"]) == ("error", "ValueError")
    assert log.end["failed_items"] == 1


def test_a_name_that_cannot_be_encoded_is_escaped(log: Log) -> None:
    """A handler could not write it to a file."""
    amorsize.execute(int, ["x"], name="job \udcff", return_exceptions=True)
    assert len(log.lines) == 2
    assert all("job \\udcff" in line for line in log.lines)
    assert {record["function"] for record in log.records} == {"job \\udcff"}


def test_many_failures_are_thinned_and_their_sum_is_named(log: Log) -> None:
    """A million of them are 12 lines."""
    amorsize.execute(int, ["secret"] * 1200, executor="serial", chunksize=1, return_exceptions=True)
    indexes = [record["item_index"] for record in log.of("items_failed")]
    assert indexes == [*range(ONE_BY_ONE), 9, 99, 999]
    (sums,) = log.of("run_failures")
    assert (sums["failed_items"], sums["deaths"], sums["level"]) == (1200, 0, "WARNING")
    assert log.end["failed_items"] == 1200


def kill_on_seven(item: int) -> int:
    if item == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_a_death_is_warned_of_where_the_run_goes_on(log: Log) -> None:
    """Twice: the item runs once more, alone, and only then has it failed."""
    results = amorsize.execute(
        kill_on_seven, range(10), executor="process", n_jobs=1, chunksize=5, return_exceptions=True
    )
    assert isinstance(results[7], WorkerDiedError)
    first, second = log.of("worker_died")
    for record in (first, second):
        assert (record["level"], record["error_type"]) == ("WARNING", "WorkerDiedError")
        assert (record["item_index"], record["exit_code"]) == (7, -9)
        assert record["pid"] not in (None, os.getpid())
    assert [record["failed_items"] for record in (first, second)] == [0, 1]
    assert second["pid"] == results[7].pid
    assert log.lines[0].endswith(
        f"worker process {first['pid']} was killed by signal 9 (SIGKILL) on item 7 in chunk 1"
    )
    end = log.end
    assert (end["status"], end["deaths"], end["failed_items"], end["items"]) == ("ok", 2, 1, 10)


def test_a_death_that_ends_the_run_is_warned_of(log: Log) -> None:
    """Beside the exception: a program that catches it still has it in its log."""
    with pytest.raises(WorkerDiedError):
        amorsize.execute(kill_on_seven, range(10), executor="process", n_jobs=1, chunksize=5)
    assert [record["event"] for record in log.records] == ["worker_died", "run_ended"]
    assert (log.end["status"], log.end["deaths"], log.end["items"]) == ("error", 1, 5)


def hang_on_three(item: int) -> int:
    if item == 3:
        time.sleep(FOREVER)
    return item


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_an_item_that_takes_too_long_is_warned_of(executor: str, log: Log) -> None:
    """With its index, and its worker."""
    results = amorsize.execute(
        hang_on_three,
        range(5),
        executor=executor,
        n_jobs=1,
        chunksize=1,
        item_timeout=2,
        return_exceptions=True,
    )
    assert isinstance(results[3], ItemTimeoutError)
    (late,) = log.of("item_timeout")
    assert (late["item_index"], late["failed_items"], late["level"]) == (3, 1, "WARNING")
    assert str(results[3]) in log.lines[0]
    assert (log.end["item_timeouts"], log.end["deaths"], log.end["failed_items"]) == (1, 0, 1)


@pytest.mark.parametrize("executor", MODES)
def test_a_run_that_takes_too_long_is_warned_of(executor: str, log: Log) -> None:
    """Where it stood, in numbers."""
    amorsize.execute(abs, [1], executor=executor)  # workers are up
    log.records.clear()
    with pytest.raises(ExecutionTimeoutError):
        amorsize.execute(
            hang_on_three, range(3, 5), executor=executor, n_jobs=1, chunksize=1, timeout=0.5
        )
    assert [record["event"] for record in log.records] == ["run_timeout", "run_ended"]
    assert log.records[0]["items"] == 0
    assert (log.end["status"], log.end["error_type"]) == ("timeout", "ExecutionTimeoutError")


def test_a_stream_that_is_closed_early_is_warned_of(log: Log) -> None:
    """The run was cancelled, whoever wanted that."""
    results = amorsize.stream(abs, iter(range(10**6)), chunksize=10, executor="thread", n_jobs=1)
    next(results)
    results.close()  # type: ignore[attr-defined]
    (cancelled,) = log.of("run_cancelled")
    assert (cancelled["level"], cancelled["items"]) == ("WARNING", log.end["items"])
    assert "cancelled by its consumer" in log.lines[0]
    assert log.end["status"] == "cancelled"


def test_an_input_that_fails_is_warned_of(log: Log) -> None:
    """By the name of the exception's class."""

    def source() -> Any:
        yield from range(10)
        raise OSError("secret")

    with pytest.raises(OSError, match="secret"):
        amorsize.execute(abs, source(), executor="serial", chunksize=1)
    (failed,) = log.of("run_failed")
    assert (failed["error_type"], failed["items"], failed["level"]) == ("OSError", 10, "WARNING")


SIGNALLED = """
    import logging, os, signal, threading, time
    logging.basicConfig(level="INFO", format="%(levelname)s %(message)s")
    import amorsize

    @amorsize.on(amorsize.HookEvent.ON_PROGRESS)
    def note(context):
        if context.items_completed == 5:
            threading.Thread(target=os.kill, args=(os.getpid(), signal.{signal})).start()

    def work(item):
        if item == 5:
            time.sleep(200)
        return item

    if "{form}" == "execute":
        amorsize.execute(work, range(10), executor="{executor}", n_jobs=1, chunksize=1)
    else:
        list(amorsize.stream(work, range(10), executor="{executor}", n_jobs=1, chunksize=1))
"""


@pytest.mark.parametrize("executor", MODES)
@pytest.mark.parametrize("form", ["execute", "stream"])
@pytest.mark.parametrize(
    ("name", "cause"), [("SIGTERM", "SIGTERM"), ("SIGINT", "Ctrl-C")], ids=["SIGTERM", "SIGINT"]
)
def test_a_signal_is_in_the_log_before_the_program_ends(
    name: str, cause: str, form: str, executor: str
) -> None:
    """A service that is stopped says what it left undone."""
    if (name, form) == ("SIGINT", "stream"):
        cause = "its consumer"  # the exception is raised in the consumer, which leaves the stream
    program = textwrap.dedent(SIGNALLED).format(signal=name, form=form, executor=executor)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == (-signal.SIGTERM if name == "SIGTERM" else -signal.SIGINT)
    warned, ended = done.stderr.splitlines()[:2]
    assert warned == (
        f"WARNING __main__.work: the run was cancelled by {cause}, after 5 completed items"
    )
    assert ended.startswith("INFO __main__.work: status cancelled, 5 of 10 items (0 failed) in ")


def test_warnings_reach_stderr_where_logging_is_not_configured(tmp_path: Path) -> None:
    """As those of every library do."""
    out = run_program(
        """
        import amorsize
        results = amorsize.execute(int, ["secret"], return_exceptions=True)
        print(len(results))
        """,
        tmp_path,
        stderr="builtins.int: item 0 failed with ValueError\n",
    )
    assert out == 1


# --- what is never in it ----


class Awkward:
    """An item whose every word is secret."""

    def __repr__(self) -> str:
        return "secret"

    def __reduce__(self) -> Any:
        raise ValueError("secret")


def refuse(item: Any) -> Any:
    raise type("Refused", (ValueError,), {})(f"secret {item}")


@pytest.mark.parametrize("executor", [None, *MODES])
@pytest.mark.parametrize("goes_on", [True, False])
@pytest.mark.parametrize(
    ("function", "item"), [(refuse, "secret"), (str, Awkward()), (Awkward.__reduce__, Awkward())]
)
def test_no_record_has_an_items_content(
    function: Any, item: Any, goes_on: bool, executor: str | None, log: Log
) -> None:
    """Nor that of an exception, which may quote it."""
    with suppress(Exception):
        amorsize.execute(
            function, [item] * 3, executor=executor, chunksize=1, return_exceptions=goes_on
        )
    assert log.of("run_ended")
    assert "secret" not in repr((log.records, log.lines))


def test_a_filter_that_raises_fails_no_run(log: Log) -> None:
    """The log is no part of the work."""

    class Broken(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("broken")

    broken = Broken()
    run_log.logger.addFilter(broken)
    try:
        assert amorsize.execute(abs, [-1]) == [1]
    finally:
        run_log.logger.removeFilter(broken)


# --- what is documented ----


def rows(title: str) -> dict[str, str]:
    """Return a table of the page: the first column's names, and their row."""
    section = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    found = {}
    for line in section.splitlines():
        if line.startswith("| `"):
            first = line.split("|")[1]
            found |= dict.fromkeys(re.findall(r"`(\w+)`", first), line)
    return found


def test_every_event_and_field_is_documented(log: Log) -> None:
    """The page has each event with its level, and in each event exactly the fields that it has."""
    failing = RunLog("f")
    error = ExecutionTimeoutError("too long")
    for count in range(ONE_BY_ONE + 2):
        failing.items_failed(error, items=1, index=count, chunk=count)
    from amorsize.engines.base import WorkerLost

    lost = WorkerLost(1, 4711, -9, True)
    failing.worker_lost(WorkerDiedError(pid=4711, exit_code=-9), lost, items=0)
    failing.worker_lost(ItemTimeoutError("late"), lost, items=0)
    for status in ("timeout", "cancelled", "error"):
        failing.run_failed(status, error, items=0)
    failing.run_ended(
        "error",
        error,
        items=0,
        total=None,
        seconds=1.0,
        executor=None,
        n_jobs=None,
        item_seconds=None,
        slowest=None,
    )
    events, fields = rows("Records"), rows("Fields")
    assert {record["event"]: record["level"] for record in log.records} == {
        event: row.split("|")[2].strip()
        for event, row in events.items()
        if event != "amorsize_event"
    }
    for record in log.records:
        event = record["event"]
        documented = set()
        for field, row in fields.items():
            where = row.split("|")[2].strip()
            named = set(re.findall(r"`(\w+)`", where))
            is_in = event not in named if where.startswith("all but") else event in named
            if where == "all" or is_in:
                documented.add(field)
        assert {f"amorsize_{name}" for name in record if name != "level"} == documented, event
