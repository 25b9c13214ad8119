"""Functions to call before a signal ends the process: no exit functions run then."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    CallbackT = TypeVar("CallbackT", bound=Callable[[], object])

_callbacks: list[Callable[[], object]] = []


def at_termination(callback: CallbackT) -> CallbackT:
    """Register a function, once per process, to be called before a signal ends the process."""
    _callbacks.append(callback)
    return callback


def run_callbacks() -> None:
    """Call the registered functions, the last one first, as ``atexit`` does."""
    for callback in reversed(_callbacks):
        callback()
