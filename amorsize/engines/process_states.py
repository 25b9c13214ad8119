"""The state of a process of this machine, as Linux reports it."""

from __future__ import annotations

ENDED = b"ZX"
"""It has ended: whoever has to has not waited for it yet."""
STOPPED = b"Tt"
"""By a signal, or by a debugger."""


def is_in_state(pid: int, states: bytes) -> bool:
    """Say whether a process is in one of these states; False where that is not known.

    >>> import os
    >>> is_in_state(os.getpid(), STOPPED)
    False
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in states
    except (OSError, IndexError):
        return False
