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
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from amorsize.errors import ExporterError, InvalidValueError
from amorsize.workers import in_forked_child

logger = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")

_LOG_SECONDS = 300.0
"""Seconds between two log lines of an outage."""

LONGEST_RETRY_AFTER_SECONDS = 300.0
"""How long a backend may have the next attempt wait."""


class RefusedError(ExporterError):
    """A ``send`` callable raises it where the backend refuses for good: nothing is sent again."""


class RetryLaterError(ExporterError):
    """A ``send`` callable raises it where the backend names the time of the next attempt.

    Attributes:
        seconds: how long nothing is sent; ``LONGEST_RETRY_AFTER_SECONDS`` at most.
    """

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = min(max(seconds, 0.0), LONGEST_RETRY_AFTER_SECONDS)


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
            :class:`RefusedError`. After a :class:`RetryLaterError` nothing is sent for as long as
            it says, not even for ``flush()``. Give it a timeout of its own: while it hangs nothing
            else is delivered.
        name: the exporter's, for the log.
        capacity: the most items that wait, beside those being sent.
        batch_items: the most items in one call of ``send``.
        linger_seconds: how long a batch waits to be filled; 0 to send it at once.
        attempts: the most calls of ``send`` with one batch.
        retry_seconds: seconds after the first attempt in which another may begin, unless the
            backend has named a later time.
        backoff_seconds: the wait after a first failed attempt. It doubles with each further one,
            up to ``max_backoff_seconds``; half of it, at most, is taken off at random, so that
            many programs do not retry at the same moment.
        max_backoff_seconds: the longest such wait.
        latest: whether an item is a request to deliver the present numbers: what one that fails
            did not deliver, the next one does, so that none is called lost.
        messages_of: how many messages an item stands for, where it is not one: losses and
            deliveries are counted in messages.
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
        latest: bool = False,
        messages_of: Callable[[ItemT], int] | None = None,
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
        self._not_before = float("-inf")  # by the clock: the backend's own word
        self.latest = latest
        self._messages_of = messages_of
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
        # How many were lost, and delivered, before this outage.
        self._failing_since: tuple[int, int] | None = None
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
                self._dropped += self._messages([self._queue.popleft()])
            dropped = self._dropped
            self._start()
            if len(self._queue) in (1, self._batch_items):
                self._changed.notify_all()
        if overflow and not self.latest and self._may_log("overflow"):
            logger.warning(
                "The %s exporter cannot keep up: its queue of %s is full, and the oldest are "
                "dropped (%d so far). The run goes on.",
                self.name,
                _items(self._capacity),
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
                    if left <= max(0.0, self._not_before - self._clock()):
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
            self._dropped += self._messages(self._queue) + self._messages(self._in_flight)
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

    def _messages(self, items: Collection[ItemT]) -> int:
        return len(items) if self._messages_of is None else sum(map(self._messages_of, items))

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
            if self._clock() < self._not_before:
                return
            batch = self._take()
            error = self._attempt(batch)
            if error is not None:
                self._give_up(batch, error)

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
        while not self._closed:
            now, is_wanted = self._clock(), self._flushing or len(self._queue) >= self._batch_items
            left = self._not_before - now if is_wanted else max(until, self._not_before) - now
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
            error = self._attempt(batch)
            if error is None or self._in_flight is not batch:
                return  # delivered, or closed meanwhile
            longest = min(self._max_backoff_seconds, self._backoff_seconds * 2 ** (attempt - 1))
            until = self._clock() + longest * (1 - self._jitter() / 2)
            is_late = until - began > self._retry_seconds and self._not_before < until
            if isinstance(error, RefusedError) or attempt == self._attempts or is_late:
                self._give_up(batch, error)
                return
            self._log_failure(error, lost=0, again=True)
            with self._changed:
                while not self._closed:
                    earliest = self._not_before
                    if self._nudges == nudges:
                        earliest = max(earliest, until)
                    left = earliest - self._clock()
                    if left <= 0:
                        break
                    self._wait(self._changed, left)
                if self._closed:
                    return

    def _attempt(self, batch: list[ItemT]) -> BaseException | None:
        """Call ``send`` once; return what it raised."""
        try:
            self._send(list(batch))
        except BaseException as error:  # the thread survives any exception of a backend's library
            with self._changed:
                if not self._closed:
                    self._errors += 1
                    self._last_error = describe_error(error)
                    if isinstance(error, RetryLaterError):
                        self._not_before = self._clock() + error.seconds
                    if self._failing_since is None:
                        self._failing_since = self.lost, self._sent
            return error
        self._log_recovery()
        self._settle(batch, delivered=True)
        return None

    def _give_up(self, batch: list[ItemT], error: BaseException) -> None:
        self._log_failure(error, lost=self._messages(batch), again=False)
        self._settle(batch, delivered=False)

    def _settle(self, batch: list[ItemT], *, delivered: bool) -> None:
        """Count a batch, unless ``close()`` has counted it already."""
        with self._changed:
            if self._in_flight is batch:
                self._in_flight = ()
                if delivered:
                    self._sent += self._messages(batch)
                else:
                    self._failed += self._messages(batch)
                self._changed.notify_all()

    def _log_failure(self, error: BaseException, *, lost: int, again: bool) -> None:
        """Log a failed attempt, where an outage begins or goes on for long."""
        with self._changed:
            since = self._failing_since
        if since is None or not self._may_log("failure"):
            return  # closed meanwhile, or thinned
        so_far = self.lost - since[0] + lost
        if again:
            follows = "the attempt is repeated"
            if not self.latest:
                follows += (
                    f". Up to {_items(self._capacity)} may wait, and the oldest beyond them are "
                    f"lost ({so_far} so far)"
                )
        elif self.latest:
            follows = "the next delivery is the next attempt"
        else:
            follows = f"{_items(lost)} {_were(lost)} lost ({so_far} so far), and not sent again"
        logger.warning(
            "The %s exporter cannot deliver: %s. The run goes on; %s.",
            self.name,
            describe_error(error),
            follows,
        )

    def _log_recovery(self) -> None:
        """Log the end of an outage whose beginning was logged."""
        with self._changed:
            since, self._failing_since = self._failing_since, None
        if since is None or not self._may_log("recovery"):
            return
        lost, sent = since
        again = "delivers again" if sent else "delivers now, for the first time"
        if not self.latest:
            missing = self.lost - lost
            what = f"{_items(missing)} {_were(missing)} lost" if missing else "nothing was lost"
            again += f"; {what}{' meanwhile' if sent else ''}"
        logger.warning("The %s exporter %s.", self.name, again)

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
    line = blank_credentials(text.partition("\n")[0])
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def blank_credentials(line: str) -> str:
    """Blank what may be a secret in a line that others have written, and shorten it.

    >>> blank_credentials("POST /v1?token=hunter2 failed")
    'POST /v1?token=*** failed'
    """
    line = " ".join(_without_user_information(word) for word in line.split(" "))
    for secret, replacement in _SECRETS:
        line = secret.sub(replacement, line)
    if len(line) > _ERROR_CHARACTERS:
        line = line[:_ERROR_CHARACTERS] + "…"
    return line


def _without_user_information(word: str) -> str:
    """Blank ``user:password@``, which may hold anything but a space, with or without a scheme."""
    before, at, after = word.rpartition("@")
    scheme = _SCHEME.match(before)
    return f"{'' if scheme is None else scheme.group()}***@{after}" if at else word


def _items(count: int) -> str:
    return "1 item" if count == 1 else f"{count} items"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


_senders: weakref.WeakSet[Sender[Any]] = weakref.WeakSet()


@in_forked_child
def _abandon_all_in_forked_child() -> None:
    for sender in list(_senders):
        sender._abandon()
