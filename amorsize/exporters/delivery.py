"""When an exporter delivers: soon after it is asked to, and at an interval while something runs.

::

    end of a run, interval, exit ──> Delivery ── one token ──> Sender's thread ──> deliver()

The numbers are read when they are sent, not when the delivery was requested: nothing that waits
grows old, and one waiting token stands for any number of runs that ended meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from amorsize.exporters.sender import Sender

CANCELLED_SECONDS = 0.5
"""How long the end of a cancelled run waits for its delivery: SIGTERM may be about to end the
process."""

SENDER_BOUNDS: dict[str, Any] = {
    "capacity": 1,
    "batch_items": 2,
    "linger_seconds": 0.5,
    "latest": True,
}
"""Runs that end in quick succession are delivered together, twice a second at most."""


class Delivery:
    """Delivers on a background thread when requested.

    Args:
        new_sender: makes the sender; :meth:`amorsize.exporters.base.Exporter.new_sender`.
        deliver: delivers the present numbers. Its errors are those of a sender's ``send``.
        **bounds: of the sender, in place of ``SENDER_BOUNDS``.
    """

    def __init__(
        self, new_sender: Callable[..., Sender[Any]], deliver: Callable[[], None], **bounds: Any
    ) -> None:
        self._deliver = deliver
        self._lock = threading.RLock()  # a signal handler may request a delivery, too
        self._requested = False
        self._batch: object = None
        self._sender = new_sender(self._send, **(SENDER_BOUNDS | bounds))

    @property
    def errors(self) -> int:
        """Attempts that failed."""
        return self._sender.errors

    def request(self) -> None:
        """Have the present numbers delivered soon. Never waits."""
        with self._lock:
            if self._requested:
                return  # the waiting delivery will read the numbers when it is sent
            self._requested = True
        self._sender.put(object())

    def _send(self, batch: list[object]) -> None:
        with self._lock:
            # A further attempt comes with the same batch: a request made since then stands.
            if batch[0] is not self._batch:
                self._requested, self._batch = False, batch[0]
        self._deliver()


class Interval:
    """Calls a function at an interval, from a daemon thread, while there is a reason to.

    Args:
        seconds: between two calls.
        has_reason: asked before each call.
        act: called.
    """

    def __init__(
        self, seconds: float, has_reason: Callable[[], bool], act: Callable[[], None]
    ) -> None:
        self._seconds = seconds
        self._has_reason = has_reason
        self._act = act
        self._changed = threading.Condition()  # reentrant: a signal handler may wake it, too
        self._has_woken = False
        self._is_closing = False
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """There is a reason now. Never waits."""
        with self._changed:
            self._has_woken = True
            self._changed.notify()
            if self._thread is None and not self._is_closing:
                thread = threading.Thread(target=self._work, name="amorsize-interval", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return  # no thread is left: the end of the run is delivered all the same
                self._thread = thread

    def close(self) -> None:
        """End the thread, without waiting for it."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._has_woken or self._is_closing)
                if self._changed.wait_for(lambda: self._is_closing, self._seconds):
                    return
                self._has_woken = False
            if self._has_reason():
                with self._changed:
                    self._has_woken = True
                self._act()
