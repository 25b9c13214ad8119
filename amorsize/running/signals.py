"""SIGTERM and Ctrl-C during a run: its events are told first, then the signal does as always.

Python calls signal handlers in the main thread only, and a handler that the application set is
never replaced: elsewhere SIGTERM ends the process at once, and its workers follow.

What a handler raises can get lost: Python drops it when it comes while a weak reference's callback
runs, as it does when threads end. So the handlers also take a note, and the run loop, which they
wake, asks :func:`check`. The note is all they take where an exception would come between counting
something and telling of it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from amorsize.hooks.interruption import is_protected
from amorsize.hooks.termination import run_callbacks


class Terminated(BaseException):
    """Raised in the main thread, inside ``execute()``, when SIGTERM arrives."""

    def __init__(self) -> None:
        super().__init__("the process was asked to end (SIGTERM)")


_runs: list[Callable[[], None]] = []
_streams: list[Callable[[], None]] = []
_pending: type[Terminated | KeyboardInterrupt] | None = None


# Classes, because a generator's context manager writes to the exception that passes through it,
# which a frozen one refuses.
class DuringExecute:
    """Has SIGTERM and Ctrl-C raise in the run, and SIGTERM end the process behind the outermost.

    Args:
        wake: makes the run loop look around; called by the signal handlers.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._taken: list[int] = []

    def __enter__(self) -> None:
        self._taken = [signum for signum in _HANDLERS if _take_over(signum)]
        if self._taken:
            _runs.append(self._wake)

    def __exit__(self, kind: object, error: BaseException | None, tb: object) -> None:
        global _pending
        if not self._taken:
            return
        # A run that fails, or is over, before it has looked at the note raises what it says, too.
        noted = None if _pending is None or isinstance(error, _pending) else _pending
        try:
            if (isinstance(error, Terminated) or noted is Terminated) and len(_runs) <= 1:
                _end_by_signal()
        finally:
            if self._wake in _runs:  # not in a forked child
                _runs.remove(self._wake)
            if not _runs:
                _pending = None
            _give_back(self._taken)
        if noted is not None:
            raise noted


class DuringStream:
    """On SIGTERM, calls ``cancel()``, which tells the end of the run, before the process ends."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._taken = False

    def __enter__(self) -> None:
        self._taken = _take_over(signal.SIGTERM)
        if self._taken:
            _streams.append(self._cancel)

    def __exit__(self, kind: object, error: BaseException | None, tb: object) -> None:
        if not self._taken:
            return
        if self._cancel in _streams:  # not in a forked child
            _streams.remove(self._cancel)
        _give_back([signal.SIGTERM])


def check() -> None:
    """Raise, in the main thread, what a signal handler has raised during its run."""
    if _pending is not None and threading.current_thread() is threading.main_thread():
        raise _pending


def _on_sigterm(signum: int, frame: FrameType | None) -> None:
    global _pending
    for cancel in list(_streams):
        cancel()
    if not _runs or _pending is Terminated:  # asked twice: something holds the end up
        _end_by_signal()
    _pending = Terminated
    _wake_runs()
    if not is_protected(frame):
        raise Terminated


def _on_sigint(signum: int, frame: FrameType | None) -> None:
    global _pending
    if _runs:
        is_first = _pending is None
        _pending = _pending or KeyboardInterrupt  # SIGTERM goes first
        _wake_runs()
        if is_first and is_protected(frame):
            return
    signal.default_int_handler(signum, frame)


_HANDLERS: dict[int, tuple[Any, Callable[[int, FrameType | None], None]]] = {
    signal.SIGTERM: (signal.SIG_DFL, _on_sigterm),
    signal.SIGINT: (signal.default_int_handler, _on_sigint),
}
"""What stands by default, and what stands during a run."""


def _wake_runs() -> None:
    for wake in _runs:
        wake()


def _forget_in_forked_child() -> None:
    global _pending
    _runs.clear()
    _streams.clear()
    _pending = None
    for signum, (default, ours) in _HANDLERS.items():
        if signal.getsignal(signum) is ours:
            signal.signal(signum, default)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_forked_child)


def _take_over(signum: int) -> bool:
    """Handle a signal, where nobody but the default handler does; say whether we do."""
    if threading.current_thread() is not threading.main_thread():
        return False
    default, ours = _HANDLERS[signum]
    handler = signal.getsignal(signum)
    if handler is default:
        signal.signal(signum, ours)
        return True
    return handler is ours


def _give_back(signals: list[int]) -> None:
    # A generator may be collected in another thread, which cannot set handlers; ours then stays
    # and, with no run left, does what the default does.
    idle = not _runs and not _streams
    if idle and threading.current_thread() is threading.main_thread():
        for signum in signals:
            default, ours = _HANDLERS[signum]
            if signal.getsignal(signum) is ours:
                signal.signal(signum, default)


def _end_by_signal() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A process that ends by a signal runs no exit functions: what exporters hold is sent now.
    run_callbacks()
    os.kill(os.getpid(), signal.SIGTERM)
