"""Whether processes have ended whose parent is not the test.

Nobody may ever reap such a process: where its parent was killed, and the init process of a
container reaps no orphans, it stays a zombie. A zombie has ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import psutil
from waiting import PATIENCE

_POLL_SECONDS = 0.01


def has_ended(process: psutil.Process | int) -> bool:
    """Say whether a process has ended, reaped or not."""
    try:
        known = psutil.Process(process) if isinstance(process, int) else process
        return not known.is_running() or known.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def still_running(
    processes: Iterable[psutil.Process | int], seconds: float = PATIENCE
) -> list[psutil.Process | int]:
    """Wait until processes have ended, for so many seconds at most.

    Returns:
        Those that have not ended.
    """
    deadline = time.monotonic() + seconds
    running = list(processes)
    while running := [process for process in running if not has_ended(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL_SECONDS)
    return running
