"""Whether anybody observes what this process runs, before anything that observes is loaded.

A module whose objects can observe a run registers a question when it is imported: the default
manager asks whether it has hooks, user metrics whether a chunk around this code collects them.
What is not imported does not observe, and is not imported to be asked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

_questions: list[Callable[[], bool]] = []


def observes_when(question: Callable[[], bool]) -> None:
    """Register a function that returns whether something observes the runs of this thread now."""
    _questions.append(question)


def is_observed() -> bool:
    """Return whether anybody would notice the events of a run that has no hooks of its own.

    Observers are the hooks of the default manager, the chunk that this code runs in, and the log
    at level DEBUG.
    """
    for question in _questions:
        if question():
            return True
    # The application's module: importing it takes longer than many a run.
    logging = sys.modules.get("logging")
    return logging is not None and logging.getLogger("amorsize").isEnabledFor(logging.DEBUG)
