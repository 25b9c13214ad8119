"""Whether anybody observes a run, answered without loading hooks, exporters or user metrics.

A module that can observe runs registers a question when it is imported: ``hooks/manager`` whether
the default manager has hooks, ``user_metrics`` whether a chunk around this code collects numbers. A
module that is not loaded observes nothing, and is not loaded to be asked.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

DEBUG, INFO = 10, 20
"""Levels of ``logging``."""

RUNS = "amorsize.runs"
"""The logger of the log of runs."""

_questions: list[Callable[[], bool]] = []


def observes_when(question: Callable[[], bool]) -> None:
    """Register a function that returns whether something observes the runs of this thread now."""
    _questions.append(question)


def is_observed() -> bool:
    """Return whether anybody would be notified of a run that has no hooks of its own.

    Observers are the hooks of the default manager, the chunk that this code runs in, and the log
    at level DEBUG.
    """
    for question in _questions:
        if question():
            return True
    return is_logged("amorsize", DEBUG)


def is_logged(module: str, level: int) -> bool:
    """Return whether the log takes lines of a module and of a level below a warning.

    If the application has not loaded logging, it has set no level. Loading it takes 5 ms.
    """
    logging = sys.modules.get("logging")
    if logging is None or not hasattr(logging, "getLogger"):  # another thread is loading it
        return False
    return bool(logging.getLogger(module).isEnabledFor(level))
