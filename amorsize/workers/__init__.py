"""The code that runs inside any worker: a chunk, its user metrics, logs, spans and item slots.

Nothing here knows the engine; of amorsize it imports the errors alone.

Workers may be forked, and so may the program itself, at any time and by anybody: by
``multiprocessing``, by an executor, by the user's function. A fork copies all of the memory, but
only the thread that forks. A lock that another thread holds stays locked in the child for ever, and
a list of threads names none that is there. The module that has such state renews it with
:func:`in_forked_child`. docs/development/fork-and-signals.md has the rules. The function is here
because the shortest run needs it, and a module of its own would take 0.2 ms to load.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    FunctionT = TypeVar("FunctionT", bound=Callable[[], object])


def in_forked_child(function: FunctionT) -> FunctionT:
    """Register a function to be called first in each forked child; also a decorator."""
    if hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(after_in_child=function)
    return function
