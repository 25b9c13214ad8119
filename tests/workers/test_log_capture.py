"""Log records of a worker that loads ``logging`` late, or not at all."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scripts import run_program

from amorsize.workers import log_capture, log_records

LOOK = """
    def look(item):
        import sys
        before = "logging" in sys.modules
        import logging
        logging.getLogger("late").warning("item %s", item)
        return before, logging.root.handlers != [], logging.__spec__.loader is logging.__loader__
"""


def test_the_first_record_of_a_worker_without_logging_is_handled_by_the_program(
    tmp_path: Path,
) -> None:
    """The function's own import loads it, and the record is not written by the worker."""
    (tmp_path / "late.py").write_text(LOOK.replace("\n    ", "\n"))
    program = """
        import json, sys, amorsize
        from late import look
        assert "logging" not in sys.modules
        run = lambda: amorsize.execute(look, [1], executor="process", n_jobs=1)
        first = run()
        assert "logging" in sys.modules, "the record is replayed"
        import logging
        class Handler(logging.Handler):
            def emit(self, record):
                seen.append((record.getMessage(), record.amorsize_worker is not None))
        seen = []
        logging.root.addHandler(Handler())
        second = run()
        print(json.dumps([first, second, seen]))
    """
    first, second, seen = run_program(program, tmp_path, stderr="item 1\n")
    assert first == [[False, True, True]]
    assert second == [[True, True, True]], "the worker is warm"
    assert seen == [["item 1", False]]


def test_without_logging_the_levels_are_those_that_it_would_have() -> None:
    """Those of a logging that nobody has configured."""
    script = (
        "import sys; from amorsize.workers import log_capture; levels = log_capture.read_levels()\n"
        "assert 'logging' not in sys.modules\n"
        "from amorsize.workers import log_records; assert levels == log_records.read_levels()"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_logging_that_another_thread_is_loading_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has no levels yet."""
    monkeypatch.setitem(sys.modules, "logging", type(sys)("logging"))
    assert log_capture.read_levels() == {"": logging.WARNING}


def test_levels_that_were_set_are_read() -> None:
    """By the module that knows how."""
    assert log_capture.read_levels() == log_records.read_levels()


@pytest.fixture
def _no_keeper() -> Any:
    handlers, level = list(logging.root.handlers), logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.mark.usefixtures("_no_keeper")
def test_records_of_a_loaded_logging_are_kept_at_once() -> None:
    """And taken once."""
    capture = log_capture.LogCapture()
    assert capture.take() == []
    capture.keep({"": logging.INFO})
    logging.getLogger("kept").info("here")
    assert [record["msg"] for record in capture.take()] == ["here"]
    assert capture.take() == []
