"""How tests wait: for as long as a busy machine needs, and no longer than the thing takes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

PATIENCE = 200.0
"""Seconds for what is sure to come.

Fewer than pytest's own limit for a test, so that the failure says what did not come.
"""

_POLL_SECONDS = 0.01

T = TypeVar("T")


def poll(probe: Callable[[], T], good: Callable[[T], object], what: str) -> T:
    """Ask until an answer is good.

    Args:
        probe: asks.
        good: judges an answer.
        what: the thing waited for, for the message of the failure.

    Returns:
        The good answer.

    Raises:
        AssertionError: no answer was good within ``PATIENCE`` seconds; with the last one.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        answer = probe()
        if good(answer):
            return answer
        assert time.monotonic() < deadline, f"{what}: not yet; the last answer was {answer!r}"
        time.sleep(_POLL_SECONDS)


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait until a condition holds, as ``poll`` does."""
    poll(condition, bool, what)


def json_of(path: Path) -> Any:
    """The content of a JSON file that another program writes; None until it has written all."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def slowness() -> float:
    """How many times as long as on an idle machine computing takes now; 1 or more.

    What the package promises in seconds it promises on a machine that has time for it: a test of
    such a promise multiplies the seconds by this.

    It is measured, and that of the last minute counts as well: the machine may have been idle for
    just the moment of the measurement.
    """
    seconds = 0.05
    began, worked = time.perf_counter(), time.thread_time()
    while time.thread_time() - worked < seconds:
        pass
    now = (time.perf_counter() - began) / seconds
    return max(1.0, now, os.getloadavg()[0] / (os.cpu_count() or 1))
