"""SIGTERM and Ctrl-C during a run: the run emits its last events, then the signal has its effect.

Python calls signal handlers in the main thread only, and a handler that the application has set is
never replaced, nor one that its host has set in C (uWSGI, an embedding program). Otherwise SIGTERM
ends the process at once, and its workers with it.

Python drops an exception that a handler raises during the callback of a weak reference, as when
threads end. So the handlers also take a note and wake the run loop, which calls :func:`check`. In
functions that are protected (``hooks/interruption.py``) they only take the note.
"""

from __future__ import annotations

import os
import threading

from amorsize.hooks.interruption import is_protected
from amorsize.hooks.termination import run_callbacks
from amorsize.workers import in_forked_child

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from types import FrameType
    from typing import Any
else:
    import _signal as signal  # what signal wraps in enums, which takes 2 ms


class Terminated(BaseException):
    """Raised in the main thread, inside ``execute()``, when SIGTERM arrives."""

    def __init__(self) -> None:
        super().__init__("the process was asked to end (SIGTERM)")


_runs: list[Callable[[], None]] = []
_streams: list[Callable[[], None]] = []
_pending: type[Terminated | KeyboardInterrupt] | None = None

PRESSES = 5
"""Somebody who presses Ctrl-C so often wants to get out, whatever is left open. Fewer interrupt no
protected function: two may come at once, the second while the run closes things for the first."""
_presses = 0


# Classes, because a generator's context manager writes to the exception that passes through it,
# which a frozen one refuses.
class DuringExecute:
    """Makes SIGTERM and Ctrl-C raise in the run; after the outermost run, SIGTERM ends the process.

    Args:
        wake: makes the run loop call :func:`check`; called by the signal handlers.
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
        # If a run fails or ends before it calls check(), the noted exception is raised here.
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
    """On SIGTERM, calls ``cancel()``, which ends the run and its events; then the process ends."""

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
    """Raise the exception that a signal handler has noted, if this is the main thread."""
    if _pending is not None and _is_main_thread():
        raise _pending


def is_terminating() -> bool:
    """Say whether a SIGTERM is ending the program."""
    return _pending is Terminated


def _on_sigterm(signum: int, frame: FrameType | None) -> None:
    global _pending
    is_second, _pending = _pending is Terminated, Terminated
    for cancel in list(_streams):
        cancel()
    if not _runs or is_second:  # something delays the end
        _end_by_signal()
    _wake_runs()
    if not is_protected(frame):
        raise Terminated


def _on_sigint(signum: int, frame: FrameType | None) -> None:
    global _pending, _presses
    if _runs:
        _presses = 1 if _pending is None else _presses + 1
        _pending = _pending or KeyboardInterrupt  # SIGTERM goes first
        _wake_runs()
        if _presses < PRESSES and is_protected(frame):
            return
    signal.default_int_handler(signum, frame)


_HANDLERS: dict[int, tuple[Any, Callable[[int, FrameType | None], None]]] = {
    signal.SIGTERM: (signal.SIG_DFL, _on_sigterm),
    signal.SIGINT: (signal.default_int_handler, _on_sigint),
}
"""For each signal, Python's default handler, and the handler during a run."""


def _wake_runs() -> None:
    for wake in _runs:
        wake()


@in_forked_child
def _reset_in_forked_child() -> None:
    global _pending
    _runs.clear()
    _streams.clear()
    _pending = None
    for signum, (default, ours) in _HANDLERS.items():
        if signal.getsignal(signum) is ours:
            signal.signal(signum, default)


def _is_main_thread() -> bool:
    # current_thread() would make an object for a thread that has none.
    return threading.get_ident() == threading.main_thread().ident


def _take_over(signum: int) -> bool:
    """Set our handler in place of the default one, and of no other; return whether ours is set."""
    if not _is_main_thread():
        return False
    default, ours = _HANDLERS[signum]
    handler = signal.getsignal(signum)
    if handler is default and not _host_handles():
        signal.signal(signum, ours)
        return True
    return handler is ours


def _host_handles() -> bool:
    """Say whether a host handles signals itself, of which Python does not know.

    Python says that SIGTERM has its default effect, and Linux that it is caught. A handler of the
    host for Ctrl-C is not visible, because Python catches that, too: a host that handles one
    handles both.
    """
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return False
    try:
        with open("/proc/self/stat", "rb") as file:  # 60 µs; the 32 first signals that are caught
            caught = int(file.read().rpartition(b")")[2].split()[31])
    except (OSError, IndexError, ValueError):
        return False
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def _give_back(signals: list[int]) -> None:
    # A generator may be collected in another thread, which cannot set handlers. Our handler then
    # stays and, without a run, has the effect of the default one.
    idle = not _runs and not _streams
    if idle and _is_main_thread():
        for signum in signals:
            default, ours = _HANDLERS[signum]
            if signal.getsignal(signum) is ours:
                signal.signal(signum, default)


def _end_by_signal() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    run_callbacks()
    os.kill(os.getpid(), signal.SIGTERM)
