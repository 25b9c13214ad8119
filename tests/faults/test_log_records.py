"""Log records of the user's function in a worker process appear in the parent's logging."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

import pytest

import amorsize
from amorsize import HookEvent, HookManager
from amorsize.testing import RecordingHook
from amorsize.workers.log_records import MAX_RECORDS, MAX_TEXT


def run(func: Any, data: Any, **options: Any) -> Any:
    options = {"n_jobs": 1} | options
    return amorsize.execute(func, data, executor="process", **options)


def texts_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the function has logged: the run has a log of its own."""
    return [record.getMessage() for record in records_of(caplog)]


def records_of(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name != "amorsize.runs"]


def log_item(x: int) -> int:
    logging.getLogger("job.step").warning("item %d", x, extra={"row": x})
    return os.getpid()


def test_records_come_home_with_their_worker_and_chunk(
    caplog: pytest.LogCaptureFixture, hooks: HookManager, recorder: RecordingHook
) -> None:
    """Name, level, process and the user's own extras are the worker's."""
    pids = run(log_item, range(4), chunksize=2, hooks=hooks)
    records = [record for record in caplog.records if record.name == "job.step"]
    assert [record.getMessage() for record in records] == [f"item {x}" for x in range(4)]
    assert [record.process for record in records] == pids
    assert os.getpid() not in pids
    assert [vars(record)["row"] for record in records] == [0, 1, 2, 3]
    assert [vars(record)["amorsize_chunk"] for record in records] == [0, 0, 1, 1]
    assert {vars(record)["amorsize_worker"] for record in records} == {
        start.worker_id for start in recorder.of(HookEvent.ON_WORKER_START)
    }


def test_the_parents_levels_are_respected(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records that the parent would not log are not sent; the others are."""

    def chatter(x: int) -> None:
        logging.getLogger("job.loud").debug("loud")
        logging.getLogger("job.quiet").info("quiet")
        logging.getLogger("job.other").info("other")

    for name, level in (("", "WARNING"), ("job.loud", "DEBUG"), ("job.quiet", "ERROR")):
        monkeypatch.setattr(logging.getLogger(name), "level", getattr(logging, level))
        logging.getLogger(name).setLevel(level)  # empties the loggers' caches, too
    run(chatter, [1])
    assert texts_of(caplog) == ["loud"]
    caplog.clear()
    logging.getLogger().setLevel("INFO")
    run(chatter, [1])
    assert texts_of(caplog) == ["loud", "other"]


def test_a_traceback_comes_home_as_text(caplog: pytest.LogCaptureFixture) -> None:
    """``logger.exception`` in the worker reads as usual in the parent."""

    def stumble(x: int) -> None:
        try:
            raise ValueError("stumbled")
        except ValueError:
            logging.getLogger("job").exception("went on")

    run(stumble, [1])
    assert "in stumble" in caplog.text
    assert "ValueError: stumbled" in caplog.text


def test_records_are_bounded_in_number_and_size(caplog: pytest.LogCaptureFixture) -> None:
    """Records beyond the bounds are counted, and a last record says how many."""

    def flood(x: int) -> None:
        for _ in range(MAX_RECORDS + 5):
            logging.getLogger("job").warning("x" * (MAX_TEXT + 5))

    run(flood, [1])
    records = records_of(caplog)
    assert len(records) == MAX_RECORDS + 1
    assert len(records[0].getMessage()) == MAX_TEXT
    assert records[-1].getMessage().startswith("5 further log records of this chunk")


def test_what_a_record_holds_need_not_pickle(caplog: pytest.LogCaptureFixture) -> None:
    """Arguments are formatted in the worker; extras that do not pickle are left out."""

    def awkward(x: int) -> None:
        lock = threading.Lock()
        logging.getLogger("job").warning("a %s", type(lock).__name__, extra={"held": lock})
        logging.getLogger("job").warning("needs %d %d", 1)

    run(awkward, [1])
    texts = texts_of(caplog)
    assert texts[0] == "a lock"
    assert not hasattr(caplog.records[0], "held")
    assert "cannot be formatted" in texts[1]


def test_records_of_a_failing_chunk_come_home_too(caplog: pytest.LogCaptureFixture) -> None:
    """They are what one wants to read then."""

    def fail(x: int) -> None:
        logging.getLogger("job").error("about to fail")
        raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        run(fail, [1])
    assert "about to fail" in caplog.text


@pytest.mark.parametrize("mode", ["serial", "thread"])
def test_in_this_process_nothing_is_logged_twice(
    mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Threads log where they always did."""
    amorsize.execute(log_item, range(3), executor=mode)
    assert texts_of(caplog) == ["item 0", "item 1", "item 2"]


def test_levels_that_the_parent_takes_back_are_taken_back_in_a_warm_worker(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that served an earlier run knows the levels of this one."""

    def chatter(x: int) -> None:
        logging.getLogger("job.moody").info("said")

    monkeypatch.setattr(logging.getLogger(), "level", logging.INFO)
    logging.getLogger().setLevel("INFO")
    moody = logging.getLogger("job.moody")
    moody.setLevel("ERROR")
    run(chatter, [1])
    moody.setLevel("NOTSET")
    run(chatter, [1])
    assert texts_of(caplog) == ["said"]
