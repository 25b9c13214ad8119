"""Whether this program can have worker processes, and why not."""

from __future__ import annotations

import os
import sys
import time

REMEMBER_SECONDS = 60.0
"""Where no process could be started, the automatic choice tries none for so long."""

_failed_until = 0.0
_failure = ""


def why_no_template() -> str | None:
    """Return why no fresh interpreter can be started here, or None.

    Where ``sys.executable`` is the program itself, every worker would be the program once more.
    """
    import __main__

    executable = sys.executable
    frozen = getattr(sys, "frozen", False) or hasattr(__main__, "__compiled__")
    if frozen:
        return f"this program is frozen: {executable} is not a Python interpreter"
    if not executable:
        return (
            "sys.executable is empty in this embedded interpreter (set it to the path of a Python "
            "interpreter)"
        )
    name = os.path.basename(executable).lower()
    if not any(kind in name for kind in ("python", "pypy", "graal")):
        return (
            f"sys.executable is {executable}, by its name not a Python interpreter (set it to the "
            "path of one)"
        )
    if not hasattr(os, "posix_spawn"):
        return "this system has no posix_spawn()"
    return None


def note_failure(reason: str) -> None:
    """Note that no process could be started."""
    global _failed_until, _failure
    _failed_until, _failure = time.monotonic() + REMEMBER_SECONDS, reason


def why_no_processes() -> str | None:
    """Return why the automatic choice is not to use processes in this program, or None."""
    if time.monotonic() < _failed_until:
        return _failure
    return why_no_template()
