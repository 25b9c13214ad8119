"""A helper of other tests: whether a process has ended."""

from __future__ import annotations

import subprocess
import sys

import psutil
from processes import has_ended, still_running


def test_a_zombie_has_ended() -> None:
    """Nobody may ever reap it."""
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    known = psutil.Process(process.pid)
    try:
        assert still_running([process.pid, known]) == []
        assert known.status() == psutil.STATUS_ZOMBIE
    finally:
        process.wait()
    assert has_ended(process.pid)
    assert has_ended(known)


def test_who_works_has_not_ended() -> None:
    """It is named, after the seconds that it was given."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert still_running([process.pid], 0.0) == [process.pid]
    finally:
        process.communicate()
