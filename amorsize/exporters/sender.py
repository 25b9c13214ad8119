"""The background sender: delivers an exporter's items over a network; the run never waits.

::

    a hook ── put(item) ──> queue ──> one daemon thread ── send(batch) ──> backend
                              │             └─ tries again, with growing waits in between
                              └─ bounded: when it is full, the oldest item is dropped and counted
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from amorsize.errors import ExporterError, InvalidValueError
from amorsize.workers import in_forked_child

logger = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")

_LOG_SECONDS = 300.0
"""Seconds between two log lines of an outage."""


class RefusedError(ExporterError):
    """A ``send`` callable raises it where the backend refuses for good: nothing is sent again."""


@dataclass(frozen=True, slots=True)
class SenderStats:
    """The fate of the items of a :class:`Sender`, at one moment.

    Attributes:
        sent: items that were delivered.
        dropped: items that were never delivered for want of room or, at ``close()``, of time.
        failed: items that were given up after the last attempt, or refused.
        errors: attempts that failed.
        waiting: items in the queue or being sent.
        last_error: the type and the message of the last failed attempt, without credentials;
            None where none failed.
    """

    sent: int
    dropped: int
    failed: int
    errors: int
    waiting: int
    last_error: str | None


class Sender(Generic[ItemT]):
    """Delivers items on a background thread; their producer never waits and never fails.

    The thread is a daemon, and starts with the first item. In a forked child, which lacks the
    thread, the sender does nothing.

    Args:
        send: delivers a list of items, on the sender's thread, one call at a time. An exception
            is a failed attempt, and the same list is sent again, except after a
            :class:`RefusedError`. Give it a timeout of its own: while it hangs nothing else is
            delivered.
        name: the exporter's, for the log.
        capacity: the most items that wait, beside those being sent.
        batch_items: the most items in one call of ``send``.
        linger_seconds: how long a batch waits to be filled; 0 to send it at once.
        attempts: the most calls of ``send`` with one batch.
        retry_seconds: seconds after the first attempt in which another may begin.
        backoff_seconds: the wait after a first failed attempt. It doubles with each further one,
            up to ``max_backoff_seconds``; half of it, at most, is taken off at random, so that
            many programs do not retry at the same moment.
        max_backoff_seconds: the longest such wait.
        clock, wait, jitter: in place of ``time.monotonic``, ``threading.Condition.wait`` (for
            lingering and between attempts) and ``random.random``, for tests.

    Raises:
        InvalidValueError: a bound is not above 0, or a duration is negative.

    Example:
        >>> sender = Sender(lambda batch: print("sends", batch), name="example", linger_seconds=9)
        >>> sender.put(1)
        >>> sender.put(2)
        >>> sender.flush(timeout=5)
        sends [1, 2]
        True
        >>> sender.close()
        >>> sender.stats().sent
        2
    """

    def __init__(
        self,
        send: Callable[[list[ItemT]], object],
        *,
        name: str = "exporter",
        capacity: int = 10_000,
        batch_items: int = 500,
        linger_seconds: float = 0.0,
        attempts: int = 5,
        retry_seconds: float = 30.0,
        backoff_seconds: float = 0.5,
        max_backoff_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Condition, float], object] = threading.Condition.wait,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        counts = {"capacity": capacity, "batch_items": batch_items, "attempts": attempts}
        for bound, value in counts.items():
            if value < 1:
                raise InvalidValueError(f"{bound} must be at least 1; got {value!r}")
        seconds = {
            "linger_seconds": linger_seconds,
            "retry_seconds": retry_seconds,
            "backoff_seconds": backoff_seconds,
            "max_backoff_seconds": max_backoff_seconds,
        }
        for bound, duration in seconds.items():
            if not duration >= 0:
                raise InvalidValueError(f"{bound} must not be negative; got {duration!r}")
        self.name = name
        self._send = send
        self._capacity = capacity
        self._batch_items = batch_items
        self._linger_seconds = linger_seconds
        self._attempts = attempts
        self._retry_seconds = retry_seconds
        self._backoff_seconds = backoff_seconds
        self._max_backoff_seconds = max_backoff_seconds
        self._clock = clock
        self._wait = wait
        self._jitter = jitter
        # Its lock is re-entrant: a signal handler may close what the main thread was using.
        self._changed = threading.Condition()
        self._queue: deque[ItemT] = deque()
        self._in_flight: Sequence[ItemT] = ()
        self._in_flight_began = 0  # how many items were put before the first of these
        self._put = self._sent = self._dropped = self._failed = self._errors = 0
        self._last_error: str | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._ended = False  # the thread has no more work
        self._flushing = 0  # flush() calls that wait now
        self._nudges = 0  # flush() calls: each allows one attempt without a wait
        self._failing_since_lost: int | None = None  # how many were lost before this outage
        self._failure_logged = False
        self._next_log = {"failure": float("-inf"), "overflow": float("-inf")}
        _senders.add(self)

    @property
    def is_idle(self) -> bool:
        """Whether no item waits or is being sent. Cheap."""
        return not self._queue and not self._in_flight

    def put(self, item: ItemT) -> None:
        """Queue an item. Never waits, never raises; after ``close()`` it does nothing."""
        with self._changed:
            if self._closed:
                return
            self._put += 1
            self._queue.append(item)
            overflow = len(self._queue) > self._capacity
            if overflow:
                self._queue.popleft()
                self._dropped += 1
            dropped = self._dropped
            self._start()
            if len(self._queue) in (1, self._batch_items):
                self._changed.notify_all()
        if overflow and self._may_log("overflow"):
            logger.warning(
                "The %s exporter cannot keep up: %d items wait already, and the oldest are "
                "dropped (%d so far). The run goes on.",
                self.name,
                self._capacity,
                dropped,
            )

    def flush(self, timeout: float = 1.0) -> bool:
        """Deliver all items that were put, waiting at most ``timeout`` seconds.

        A batch that waits for its next attempt is tried at once.

        Returns:
            Whether they were delivered, and nothing was lost meanwhile.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            target, lost = self._put, self.lost
            if self._closed or self._pending_from() >= target:
                return True
            self._nudges += 1
            self._flushing += 1
            self._changed.notify_all()
            try:
                self._start()
                if self._thread is None:
                    self._drain_here(deadline)
                while self._pending_from() < target and not self._closed:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        return False
                    self._changed.wait(left)
            finally:
                self._flushing -= 1
            return self.lost == lost

    def nudge(self) -> None:
        """Have a batch that waits for its next attempt tried at once; do not wait for it."""
        with self._changed:
            self._nudges += 1
            self._changed.notify_all()

    def close(self, timeout: float = 1.0) -> None:
        """Flush, waiting at most ``timeout`` seconds; drop the rest, and end the thread.

        Closing twice does nothing. A thread that hangs in ``send`` is abandoned.
        """
        deadline = time.monotonic() + timeout
        self.flush(timeout)
        with self._changed:
            if self._closed:
                return
            self._closed = True
            hanging = bool(self._in_flight)
            self._dropped += len(self._queue) + len(self._in_flight)
            self._queue.clear()
            self._in_flight = ()
            self._changed.notify_all()
            # Not join(): in a signal handler it would wait for a lock of its own thread.
            while self._thread is not None and not hanging and not self._ended:
                left = deadline - time.monotonic()
                if left <= 0 or self._thread is threading.current_thread():
                    break
                self._changed.wait(left)

    @property
    def lost(self) -> int:
        """Items that were put and will never be delivered: dropped, failed or refused."""
        return self._dropped + self._failed

    @property
    def errors(self) -> int:
        """Attempts that failed."""
        return self._errors

    def stats(self) -> SenderStats:
        """Count the items by their fate."""
        with self._changed:
            return SenderStats(
                sent=self._sent,
                dropped=self._dropped,
                failed=self._failed,
                errors=self._errors,
                waiting=len(self._queue) + len(self._in_flight),
                last_error=self._last_error,
            )

    def _pending_from(self) -> int:
        """How many items were put before the oldest one that is still pending."""
        return self._in_flight_began if self._in_flight else self._put - len(self._queue)

    def _start(self) -> None:
        if self._thread is not None:
            return
        thread = threading.Thread(target=self._work, name=f"amorsize-{self.name}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return  # no thread is left; or, in Python 3.12, the interpreter is exiting
        self._thread = thread

    def _drain_here(self, deadline: float) -> None:
        """Send on this thread, where no other can be started: one attempt, without a wait."""
        while self._queue and not self._closed and time.monotonic() < deadline:
            batch = self._take()
            if not self._attempt(batch):
                self._settle(batch, delivered=False)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closed:
                    self._changed.wait()
                self._linger()
                if self._closed:
                    self._ended = True
                    self._changed.notify_all()
                    return
                batch = self._take()
            self._deliver(batch)

    def _linger(self) -> None:
        until = self._clock() + self._linger_seconds
        while len(self._queue) < self._batch_items and not self._flushing and not self._closed:
            left = until - self._clock()
            if left <= 0:
                return
            self._wait(self._changed, left)

    def _take(self) -> list[ItemT]:
        self._in_flight_began = self._put - len(self._queue)
        size = min(len(self._queue), self._batch_items)
        batch = [self._queue.popleft() for _ in range(size)]
        self._in_flight = batch
        return batch

    def _deliver(self, batch: list[ItemT]) -> None:
        began = self._clock()
        for attempt in range(1, self._attempts + 1):
            nudges = self._nudges
            if self._attempt(batch):
                return
            longest = min(self._max_backoff_seconds, self._backoff_seconds * 2 ** (attempt - 1))
            until = self._clock() + longest * (1 - self._jitter() / 2)
            if self._in_flight is not batch:
                return  # refused, or closed meanwhile
            if attempt == self._attempts or until - began > self._retry_seconds:
                break
            with self._changed:
                while not self._closed and self._nudges == nudges:
                    left = until - self._clock()
                    if left <= 0:
                        break
                    self._wait(self._changed, left)
        self._settle(batch, delivered=False)

    def _attempt(self, batch: list[ItemT]) -> bool:
        """Call ``send`` once; return whether it delivered."""
        try:
            self._send(list(batch))
        except BaseException as error:  # the thread survives any exception of a backend's library
            text = describe_error(error)
            refused = isinstance(error, RefusedError)
        else:
            self._settle(batch, delivered=True)
            return True
        with self._changed:
            if self._closed:
                return False
            self._errors += 1
            self._last_error = text
            if self._failing_since_lost is None:
                self._failing_since_lost = self.lost
            lost = self.lost - self._failing_since_lost
        if refused:
            self._settle(batch, delivered=False)
        if self._may_log("failure"):
            logger.warning(
                "The %s exporter cannot deliver: %s. The run goes on; attempts are repeated, up "
                "to %d items wait, and the oldest beyond them are lost (%d so far).",
                self.name,
                text,
                self._capacity,
                lost + (len(batch) if refused else 0),
            )
        return False

    def _settle(self, batch: list[ItemT], *, delivered: bool) -> None:
        """Count a batch, unless ``close()`` has counted it already."""
        lost_meanwhile = None
        with self._changed:
            if self._in_flight is batch:
                self._in_flight = ()
                if delivered:
                    self._sent += len(batch)
                else:
                    self._failed += len(batch)
                self._changed.notify_all()
            if delivered and self._failing_since_lost is not None:
                lost_meanwhile = self.lost - self._failing_since_lost
                self._failing_since_lost = None
        if lost_meanwhile is not None and self._may_log("recovery"):
            logger.warning(
                "The %s exporter delivers again; %d items were lost meanwhile.",
                self.name,
                lost_meanwhile,
            )

    def _may_log(self, event: str) -> bool:
        """Whether this is the first time, or long after the last one."""
        now = self._clock()
        with self._changed:
            if event == "recovery":
                # Only after a logged failure: one that comes and goes is logged rarely, too.
                logged, self._failure_logged = self._failure_logged, False
                return logged
            if now < self._next_log[event]:
                return False
            self._next_log[event] = now + _LOG_SECONDS
            if event == "failure":
                self._failure_logged = True
            return True

    def _abandon(self) -> None:
        """Forget everything, in a forked child; a thread of the parent's may hold the lock."""
        self._changed = threading.Condition()
        self._closed = True
        self._queue = deque()
        self._in_flight = ()
        self._thread = None


_SECRETS = (
    (
        re.compile(
            r"(?i)(?<![\w-])([\w-]*?(?:key|token|secret|passw(?:or)?d|signature|credential)\w*)"
            r"(['\"]?\s*[=:]\s*)[^\s&]+"
        ),
        r"\1\2***",
    ),
    (re.compile(r"(?i)\b(bearer|basic)\s+\S+"), r"\1 ***"),
)
_SCHEME = re.compile(r"\W*[A-Za-z][\w+.-]*://")
_ERROR_CHARACTERS = 200


def describe_error(error: BaseException) -> str:
    """Describe an exception by its type and first line, short and without credentials.

    >>> describe_error(OSError("no route to http://me:hunter2@push.example/?api_key=hunter3"))
    'OSError: no route to http://***@push.example/?api_key=***'
    """
    try:
        text = str(error).strip()
    except Exception:
        text = ""
    words = text.partition("\n")[0].split(" ")
    line = " ".join(_without_user_information(word) for word in words)
    for secret, replacement in _SECRETS:
        line = secret.sub(replacement, line)
    if len(line) > _ERROR_CHARACTERS:
        line = line[:_ERROR_CHARACTERS] + "…"
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def _without_user_information(word: str) -> str:
    """Blank ``user:password@``, which may hold anything but a space, with or without a scheme."""
    before, at, after = word.rpartition("@")
    scheme = _SCHEME.match(before)
    return f"{'' if scheme is None else scheme.group()}***@{after}" if at else word


_senders: weakref.WeakSet[Sender[Any]] = weakref.WeakSet()


@in_forked_child
def _abandon_all_in_forked_child() -> None:
    for sender in list(_senders):
        sender._abandon()
