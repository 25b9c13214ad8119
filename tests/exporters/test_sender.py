"""The background sender, once for all exporters: against good backends, and every bad kind."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import amorsize
from amorsize.errors import InvalidValueError
from amorsize.exporters import Exporter
from amorsize.exporters.base import close_all, exporter_stats
from amorsize.exporters.sender import RefusedError, RetryLaterError, Sender, describe_error
from amorsize.hooks import HookManager

from .backends import Backend, dead_port, hanging_port, post_to

BOUND = 30.0
"""Seconds that nothing here takes, on the slowest machine."""


class FakeTime:
    """A clock that only waits move forward."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def clock(self) -> float:
        return self.now

    def wait(self, condition: threading.Condition, seconds: float) -> None:
        self.waits.append(round(seconds, 9))
        self.now += seconds

    def arguments(self, jitter: float = 0.0) -> dict[str, Any]:
        return {"clock": self.clock, "wait": self.wait, "jitter": lambda: jitter}


class Gated:
    """A ``send`` that waits in its first call until it is let go, and keeps what it got."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.received: list[Any] = []

    def __call__(self, batch: list[Any]) -> None:
        self.entered.set()
        assert self.gate.wait(BOUND)
        self.received += batch


@pytest.fixture
def backend() -> Iterator[Backend]:
    backend = Backend()
    yield backend
    backend.close()


@contextmanager
def closing(sender: Sender[Any]) -> Iterator[Sender[Any]]:
    try:
        yield sender
    finally:
        sender.close(0)


def settle(sender: Sender[Any]) -> None:
    """Wait until nothing is pending, without the nudge that flush() is."""
    with sender._changed:
        assert sender._changed.wait_for(lambda: not sender.stats().waiting, BOUND)


def fail(batch: list[Any]) -> None:
    raise OSError("no route")


# --- a backend that works ----


def test_items_arrive_in_order(backend):
    """In batches, and flush() says when."""
    with closing(Sender(post_to(backend.port), batch_items=7)) as sender:
        for number in range(50):
            sender.put(number)
        assert sender.flush(BOUND)
        assert backend.received == list(range(50))
        stats = sender.stats()
    assert (stats.sent, stats.dropped, stats.failed, stats.errors) == (50, 0, 0, 0)
    assert (stats.waiting, stats.last_error) == (0, None)


def test_nothing_starts_before_the_first_item():
    """An exporter without items costs no thread."""
    sender = Sender(fail, name="lazy")
    assert sender.flush()
    assert "amorsize-lazy" not in [thread.name for thread in threading.enumerate()]
    sender.close()


def test_its_one_thread_is_a_daemon_and_ends_with_close():
    """It holds neither the interpreter's exit nor anything after close()."""
    sender = Sender(list, name="daemon")
    for number in range(3):
        sender.put(number)
    threads = [each for each in threading.enumerate() if each.name == "amorsize-daemon"]
    assert [thread.daemon for thread in threads] == [True]
    sender.close(BOUND)
    threads[0].join(BOUND)
    assert not threads[0].is_alive()


def test_a_batch_is_no_larger_than_its_bound():
    """However much waits."""
    sizes = []
    gated = Gated()

    def send(batch: list[int]) -> None:
        sizes.append(len(batch))
        gated(batch)

    with closing(Sender(send, batch_items=4)) as sender:
        sender.put(0)
        assert gated.entered.wait(BOUND)
        for number in range(10):
            sender.put(number)
        gated.gate.set()
        assert sender.flush(BOUND)
    assert sizes == [1, 4, 4, 2]


def test_lingering_fills_a_batch():
    """Until it is full, or its time is over, or somebody flushes."""
    batches: list[list[int]] = []
    full = threading.Event()

    def send(batch: list[int]) -> None:
        batches.append(batch)
        full.set()

    with closing(Sender(send, batch_items=3, linger_seconds=3600)) as sender:
        for number in range(3):
            sender.put(number)
        assert full.wait(BOUND)
        sender.put(3)
        assert sender.flush(BOUND)
    assert batches == [[0, 1, 2], [3]]

    clock = FakeTime()
    with closing(Sender(send, linger_seconds=60, **clock.arguments())) as sender:
        sender.put(4)
        settle(sender)
    assert clock.waits == [60]


# --- a dead, a refusing, a slow and a hanging backend ----


def test_a_dead_backend_fails_after_the_last_attempt():
    """Its error is logged, and the sender goes on to the next batch."""
    with (
        dead_port() as port,
        closing(Sender(post_to(port), attempts=3, **FakeTime().arguments())) as sender,
    ):
        sender.put("a")
        settle(sender)
        sender.put("b")
        settle(sender)
        stats = sender.stats()
    assert (stats.sent, stats.failed, stats.errors) == (0, 2, 6)
    assert stats.last_error is not None
    assert stats.last_error.startswith("ConnectionRefusedError: ")


def test_waits_double_up_to_a_bound():
    """No storm of attempts falls on a backend that is in trouble."""
    clock = FakeTime()
    bounds = {"attempts": 6, "backoff_seconds": 1, "max_backoff_seconds": 5}
    with closing(Sender(fail, **bounds, **clock.arguments())) as sender:
        sender.put(1)
        settle(sender)
    assert clock.waits == [1, 2, 4, 5, 5]


def test_waits_are_shortened_at_random():
    """By half at most, so that many programs spread."""
    clock = FakeTime()
    with closing(Sender(fail, attempts=3, backoff_seconds=1, **clock.arguments(1.0))) as sender:
        sender.put(1)
        settle(sender)
    assert clock.waits == [0.5, 1]


def test_attempts_are_bounded_in_time():
    """No attempt begins later than its bound, however many are left."""
    clock = FakeTime()
    bounds = {"attempts": 99, "backoff_seconds": 1, "retry_seconds": 5}
    with closing(Sender(fail, **bounds, **clock.arguments())) as sender:
        sender.put(1)
        settle(sender)
    assert clock.waits == [1, 2]
    assert sender.stats().errors == 3


def test_a_refused_batch_is_not_sent_again(backend):
    """The rest is."""
    backend.statuses = [400]
    with closing(Sender(post_to(backend.port))) as sender:
        sender.put("bad")
        settle(sender)
        sender.put("good")
        assert sender.flush(BOUND)
        stats = sender.stats()
    assert (stats.sent, stats.failed, stats.errors) == (1, 1, 1)
    assert stats.last_error == "RefusedError: the backend answered 400"
    assert backend.received == ["good"]


def test_a_backend_that_recovers_gets_everything(backend):
    """Failed attempts lose nothing while there is room and time."""
    backend.statuses = [503, 503, 503]
    with closing(Sender(post_to(backend.port), **FakeTime().arguments())) as sender:
        for number in range(20):
            sender.put(number)
        settle(sender)
        stats = sender.stats()
    assert backend.received == list(range(20))
    assert (stats.sent, stats.failed, stats.dropped, stats.errors) == (20, 0, 0, 3)


def test_flush_does_not_wait_for_the_next_attempt(backend):
    """A batch between two attempts, an hour apart, is tried at once."""
    backend.statuses = [503]
    failed = threading.Event()
    post = post_to(backend.port)

    def send(batch: list[Any]) -> None:
        try:
            post(batch)
        except OSError:
            failed.set()
            raise

    bounds = {"backoff_seconds": 3600, "max_backoff_seconds": 3600, "retry_seconds": 9999}
    with closing(Sender(send, **bounds)) as sender:
        sender.put(1)
        assert failed.wait(BOUND)
        assert sender.flush(BOUND)
    assert backend.received == [1]


def test_a_slow_backend_keeps_no_producer_waiting(backend):
    """put() returns at once, flush() at its bound; what was sent arrives in the end."""
    backend.gate.clear()
    with closing(Sender(post_to(backend.port))) as sender:
        for number in range(100):
            sender.put(number)
        assert not sender.flush(0.05)
        assert backend.received == []
        backend.gate.set()
        assert sender.flush(BOUND)
    assert backend.received == list(range(100))


def test_a_hanging_backend_holds_neither_flush_nor_close():
    """Both return at their bound; what is in flight counts as dropped."""
    with hanging_port() as port:
        sender = Sender(post_to(port), capacity=3)
        sender.put(0)
        began = time.monotonic()
        assert not sender.flush(0.05)
        for number in range(10):
            sender.put(number)
        sender.close(0.05)
        assert time.monotonic() - began < BOUND
        stats = sender.stats()
    assert (stats.sent, stats.dropped, stats.failed, stats.waiting) == (0, 11, 0, 0)


def test_an_overflow_drops_the_oldest_and_counts_exactly():
    """The newest remain."""
    gated = Gated()
    with closing(Sender(gated, capacity=5)) as sender:
        sender.put(0)
        assert gated.entered.wait(BOUND)  # the first is on its way; the others wait
        for number in range(1, 21):
            sender.put(number)
        assert sender.stats().dropped == 15
        gated.gate.set()
        assert sender.flush(BOUND)
        stats = sender.stats()
    assert gated.received == [0, 16, 17, 18, 19, 20]
    assert (stats.sent, stats.dropped) == (6, 15)


def test_an_item_may_stand_for_several_messages():
    """Losses, deliveries and what is left at the end are counted in messages; room in items."""
    gated = Gated()
    with closing(Sender(gated, capacity=2, batch_items=1, messages_of=len)) as sender:
        sender.put("a")
        assert gated.entered.wait(BOUND)
        for item in ("bb", "ccc", "dddd"):
            sender.put(item)
        assert sender.stats().dropped == 2
        gated.gate.set()
        assert sender.flush(BOUND)
        assert sender.stats().sent == 1 + 3 + 4
        assert sender.lost == 2


def test_flush_returns_whether_items_were_lost():
    """What was dropped while it waited was not delivered."""
    gated = Gated()
    results = []
    with closing(Sender(gated, capacity=1)) as sender:
        sender.put(0)
        assert gated.entered.wait(BOUND)
        sender.put(1)
        flushing = threading.Thread(target=lambda: results.append(sender.flush(BOUND)))
        with sender._changed:
            flushing.start()
            assert sender._changed.wait_for(lambda: sender._flushing, BOUND)
        sender.put(2)
        gated.gate.set()
        flushing.join(BOUND)
    assert results == [False]


def test_nothing_is_miscounted_by_many_threads():
    """Each item is sent, dropped or failed, and none twice."""
    attempts = iter(range(10**9))

    def send(batch: list[int]) -> None:
        if next(attempts) % 3 == 0:
            raise RefusedError("every third")

    def produce() -> None:
        for number in range(2000):
            sender.put(number)

    with closing(Sender(send, capacity=50, batch_items=7)) as sender:
        threads = [threading.Thread(target=produce) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(BOUND)
        sender.flush(BOUND)
        stats = sender.stats()
    assert stats.waiting == 0
    assert stats.sent + stats.dropped + stats.failed == 16_000
    assert stats.failed > 0


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), MemoryError()])
def test_the_thread_survives_any_exception_of_send(error):
    """A backend's library may raise anything."""
    errors = [error]
    received: list[int] = []

    def send(batch: list[int]) -> None:
        if errors:
            raise errors.pop()
        received.extend(batch)

    with closing(Sender(send, **FakeTime().arguments())) as sender:
        sender.put(1)
        settle(sender)
    assert received == [1]


# --- closing, forks, threads ----


def test_closing_drops_the_rest_and_ends():
    """A second close, and anything put later, does nothing."""
    sender = Sender(fail, backoff_seconds=3600, max_backoff_seconds=3600, retry_seconds=9999)
    sender.put(1)
    sender.close(0.05)
    sender.close()
    sender.put(2)
    assert sender.flush()
    stats = sender.stats()
    assert (stats.dropped, stats.waiting) == (1, 0)


def test_a_signal_handler_may_close_a_sender_that_the_main_thread_uses():
    """SIGTERM closes exporters from a handler, wherever the main thread is."""
    sender = Sender(list)
    before = signal.signal(signal.SIGUSR1, lambda *_: sender.close(BOUND))
    try:
        with sender._changed:
            sender.put(1)
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert sender.stats().sent == 1


def test_where_no_thread_can_be_started_flush_sends_itself(monkeypatch):
    """As in Python 3.12 while the interpreter exits."""

    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    received: list[int] = []
    with closing(Sender(received.extend)) as sender:
        sender.put(1)
        assert received == []
        assert sender.flush(BOUND)
    assert received == [1]
    with closing(Sender(fail)) as sender:
        sender.put(1)
        assert not sender.flush(BOUND)
        assert sender.stats().failed == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # 3.12: it is the point
def test_it_does_nothing_in_a_forked_child():
    """Even when it was forked while another thread held the lock."""
    gated = Gated()
    held, forked = threading.Event(), threading.Event()
    with closing(Sender(gated)) as sender:
        sender.put(1)
        assert gated.entered.wait(BOUND)

        def hold() -> None:
            with sender._changed:
                held.set()
                assert forked.wait(BOUND)

        holder = threading.Thread(target=hold)
        holder.start()
        assert held.wait(BOUND)
        child = os.fork()
        if child == 0:
            sender.put(2)
            sender.close(BOUND)
            good = sender.flush(BOUND) and sender.stats().waiting == 0
            os._exit(0 if good else 1)
        forked.set()
        holder.join(BOUND)
        assert os.waitpid(child, 0)[1] == 0
        gated.gate.set()
        assert sender.flush(BOUND)
    assert gated.received == [1]


@pytest.mark.parametrize(
    ("bound", "value", "message"),
    [
        ("capacity", 0, "capacity must be at least 1; got 0"),
        ("batch_items", 0, "batch_items must be at least 1; got 0"),
        ("attempts", 0, "attempts must be at least 1; got 0"),
        ("linger_seconds", -1, "linger_seconds must not be negative; got -1"),
        ("retry_seconds", float("nan"), "retry_seconds must not be negative; got nan"),
    ],
)
def test_a_bound_that_makes_no_sense_is_refused(bound, value, message):
    """At once, not at the first item."""
    with pytest.raises(InvalidValueError, match=message):
        Sender(fail, **{bound: value})


# --- a backend that names the time of the next attempt ----


@pytest.mark.parametrize(
    ("attempts", "at"), [(5, [0, 60, 60, 60]), (1, [0, 60, 60])], ids=["repeated", "given up"]
)
def test_nothing_is_sent_before_the_time_that_the_backend_names(attempts, at):
    """Neither that batch nor the next ones, also where that is after more than 30 seconds."""
    clock = FakeTime()
    asked: list[float] = []

    def send(batch: list[int]) -> None:
        asked.append(clock.now)
        if len(asked) == 1:
            raise RetryLaterError("429", 60)

    bounds = {"batch_items": 1, "linger_seconds": 5, "attempts": attempts}
    with closing(Sender(send, **bounds, **clock.arguments())) as sender:
        for number in range(3):
            sender.put(number)
        settle(sender)
        stats = sender.stats()
    assert asked == at
    assert (stats.sent, stats.failed, stats.errors) == (len(at) - 1, 4 - len(at), 1)


def test_a_flush_does_not_ask_before_that_time_and_does_not_wait_for_it():
    """The exit of a program would take longer for nothing."""
    asked: list[int] = []
    refused = threading.Event()

    def send(batch: list[int]) -> None:
        asked.extend(batch)
        refused.set()
        raise RetryLaterError("503", 3600)

    sender = Sender(send)
    sender.put(1)
    assert refused.wait(BOUND)
    with sender._changed:
        assert sender._changed.wait_for(lambda: sender.stats().errors, BOUND)
    began = time.monotonic()
    assert not sender.flush(BOUND)
    sender.close(BOUND)
    assert time.monotonic() - began < BOUND
    assert (asked, sender.stats().dropped) == ([1], 1)


@pytest.mark.parametrize(("named", "kept"), [(-5, 0), (0, 0), (7, 7), (10**9, 300)])
def test_the_time_that_a_backend_names_is_bounded(named, kept):
    """A mistake there must not stop an exporter for a year."""
    assert RetryLaterError("429", named).seconds == kept


# --- what the log says ----


class Backendlike:
    """A ``send`` that fails with what it is given, until that is None."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def __call__(self, batch: list[Any]) -> None:
        if self.error is not None:
            raise self.error


def test_an_outage_is_logged_once_then_thinned_and_its_end_too(caplog):
    """Not once an attempt: a night without a backend must not fill a disk."""
    clock, send = FakeTime(), Backendlike(None)
    with closing(Sender(send, name="push", attempts=2, **clock.arguments())) as sender:
        sender.put(0)
        settle(sender)
        send.error = OSError("no route to http://me:hunter2@push.example/")
        for number in range(10):
            sender.put(number)
            settle(sender)
        assert caplog.messages == [
            "The push exporter cannot deliver: OSError: no route to http://***@push.example/. "
            "The run goes on; the attempt is repeated. Up to 10000 items may wait, and the oldest "
            "beyond them are lost (0 so far)."
        ]
        clock.now += 301
        sender.put(10)
        settle(sender)
        assert len(caplog.messages) == 2
        assert "(10 so far)" in caplog.messages[1]
        send.error = None
        for number in range(3):
            sender.put(number)
            assert sender.flush(BOUND)
    assert caplog.messages[2:] == [
        "The push exporter delivers again; 11 items were lost meanwhile."
    ]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


@pytest.mark.parametrize(
    ("bounds", "error", "follows"),
    [
        (
            {},
            RefusedError("403"),
            "RefusedError: 403. The run goes on; 1 item was lost (1 so far),",
        ),
        ({"attempts": 1}, OSError("x"), "OSError: x. The run goes on; 1 item was lost (1 so far),"),
        ({"retry_seconds": 0}, OSError("x"), "OSError: x. The run goes on; 1 item was lost (1 so "),
    ],
    ids=["refused", "one attempt", "too late"],
)
def test_no_repetition_is_announced_where_none_comes(bounds, error, follows, caplog):
    """And what was lost is said at once."""
    send, clock = Backendlike(error), FakeTime()
    with closing(Sender(send, name="push", **bounds, **clock.arguments())) as sender:
        sender.put(0)
        settle(sender)
        (message,) = caplog.messages
        assert message.startswith(f"The push exporter cannot deliver: {follows}")
        assert message.endswith("and not sent again.")
        assert sender.stats().errors == 1


def test_what_delivers_for_the_first_time_does_not_deliver_again(caplog):
    """A backend that was wrong from the beginning, and that nothing was lost for."""
    send, clock = Backendlike(OSError("x")), FakeTime()
    with closing(Sender(send, name="push", attempts=1, **clock.arguments())) as sender:
        sender.put(0)
        settle(sender)
        send.error = None
        sender.put(1)
        settle(sender)
    assert caplog.messages[1:] == [
        "The push exporter delivers now, for the first time; 1 item was lost."
    ]


def test_where_nothing_was_lost_the_log_says_so(caplog):
    """An attempt later everything was delivered."""
    failures = [OSError("x")]

    def send(batch: list[Any]) -> None:
        if failures:
            raise failures.pop()

    with closing(Sender(send, name="push", **FakeTime().arguments())) as sender:
        sender.put(0)
        settle(sender)
    assert caplog.messages[1:] == [
        "The push exporter delivers now, for the first time; nothing was lost."
    ]


def test_requests_for_the_present_numbers_are_not_called_lost(caplog):
    """The next delivery has all numbers of those that failed."""
    send, clock = Backendlike(None), FakeTime()
    with closing(Sender(send, name="push", attempts=2, latest=True, **clock.arguments())) as sender:
        sender.put(0)
        settle(sender)
        send.error = OSError("x")
        sender.put(1)
        settle(sender)
        clock.now += 301
        send.error = RefusedError("400")
        sender.put(2)
        settle(sender)
        send.error = None
        sender.put(3)
        settle(sender)
    assert caplog.messages == [
        "The push exporter cannot deliver: OSError: x. The run goes on; the attempt is repeated.",
        "The push exporter cannot deliver: RefusedError: 400. The run goes on; the next delivery "
        "is the next attempt.",
        "The push exporter delivers again.",
    ]


def test_an_overflow_is_logged_once(caplog):
    """By the first item that it costs."""
    gated = Gated()
    with closing(Sender(gated, name="push", capacity=2)) as sender:
        sender.put(0)
        assert gated.entered.wait(BOUND)
        for number in range(20):
            sender.put(number)
        gated.gate.set()
    assert caplog.messages == [
        "The push exporter cannot keep up: its queue of 2 items is full, and the oldest are "
        "dropped (1 so far). The run goes on."
    ]


@pytest.mark.parametrize(
    "message",
    [
        "cannot reach https://user:hunter2@host:9091/metrics",
        "cannot reach https://user:hun/ter2@host:9091/metrics?",
        "nonnumeric port: 'hunter2@host:9091'",
        "POST http://host/v1?api_key=hunter2&x=1 failed",
        "{'api-key': 'hunter2'}",
        "headers: Authorization: Bearer hunter2",
        "rejected: Basic hunter2==",
        "first line\nhunter2 in the second",
        "password=hunter2",
    ],
)
def test_credentials_never_reach_the_text_of_an_error(message):
    """Wherever libraries put them."""
    text = describe_error(ValueError(message)).replace("hun/ter2", "hunter2")
    assert text.startswith("ValueError: ")
    assert "hunter2" not in text


def test_the_text_of_an_error_is_short():
    """A backend's page of HTML does not fill the log."""
    assert len(describe_error(ValueError("x" * 10_000))) < 300
    assert describe_error(ValueError()) == "ValueError"

    class Wordless(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert describe_error(Wordless()) == "Wordless"


# --- as part of an exporter ----


class Poster(Exporter):
    """Sends the number of items of every run."""

    name = "poster"

    def __init__(self, port: int, **bounds: Any) -> None:
        super().__init__()
        self.sender = self.new_sender(post_to(port), **bounds)

    def post_execute(self, context: amorsize.HookContext) -> None:
        self.sender.put(context.items_completed)


def run(exporter: Exporter, times: int = 1) -> None:
    manager = HookManager()
    exporter.attach(manager)
    for _ in range(times):
        assert amorsize.execute(abs, [-1, 2, -3], executor="serial", hooks=manager) == [1, 2, 3]
    assert manager.get_stats()["error_counts"] == {}


def test_an_exporters_flush_and_close_deliver(backend):
    """Its items reach the backend."""
    with Poster(backend.port) as exporter:
        run(exporter)
        assert exporter.flush(BOUND)
        assert backend.received == [3]
        run(exporter)
    assert backend.received == [3, 3]


def test_a_bad_backend_costs_a_run_nothing_and_is_counted(backend):
    """Dead, refusing, slow or hanging: results are right, and close() comes back."""
    backend.gate.clear()
    with dead_port() as dead, hanging_port() as hanging:
        for port in (dead, hanging, backend.port):
            with Poster(port, capacity=2, attempts=1) as exporter:
                run(exporter, times=20)
                exporter.flush(0.05)
            stats = exporter.sender.stats()
            assert (stats.sent, stats.dropped + stats.failed) == (0, 20)
            assert exporter.counts() == (20, stats.errors)


def test_items_that_close_cuts_off_are_logged_once(backend, caplog):
    """Nothing has failed yet where a backend hangs, and yet it is lost: not in silence."""
    backend.gate.clear()
    with Poster(backend.port) as exporter:
        run(exporter, times=3)
        assert backend.asked.wait(BOUND)
        assert caplog.messages == []
    exporter.close()
    assert caplog.messages == [
        "The poster exporter was closed before 3 items were delivered; they are lost."
    ]


def test_the_counters_of_open_exporters_are_there_to_be_shown(backend):
    """By name; those of one name are added up, and a closed one is gone."""
    backend.statuses = [400, 400]
    with Poster(backend.port) as first, Poster(backend.port) as second:
        for exporter in (first, second):
            run(exporter)
            settle(exporter.sender)
        assert exporter_stats()["poster"] == (2, 2)
        second.close()
        assert exporter_stats()["poster"] == (1, 1)
    assert "poster" not in exporter_stats()


def test_all_senders_of_an_exporter_are_flushed(backend):
    """One that fails does not keep the other's items back."""
    exporter = Exporter()
    with dead_port() as port, exporter:
        bad = exporter.new_sender(post_to(port), attempts=1)
        good = exporter.new_sender(post_to(backend.port))
        bad.put(1)
        good.put(2)
        exporter.flush(BOUND)
        assert (bad.stats().failed, good.stats().sent) == (1, 1)
    assert backend.received == [2]


def test_closing_all_is_bounded_for_all_together():
    """Each hangs for ever in a way of its own; those that work are closed all the same."""
    never = threading.Event()

    class Stubborn(Poster):
        def flush(self, timeout: float = 1.0) -> bool:
            return never.wait(BOUND)

    with hanging_port() as port:
        exporters = [Stubborn(port) for _ in range(5)] + [Poster(port) for _ in range(5)]
        for exporter in exporters:
            run(exporter)
        began = time.monotonic()
        close_all()
        assert time.monotonic() - began < BOUND
        assert not any(exporter.active for exporter in exporters[5:])
        never.set()


def test_where_no_thread_can_be_started_all_share_the_time_in_turn(backend, monkeypatch):
    """Those that hang do not use up what the others need."""
    with hanging_port() as port:
        exporters = [Poster(port) for _ in range(4)] + [Poster(backend.port)]
        for exporter in exporters:
            run(exporter)
        monkeypatch.setattr("amorsize.exporters.base._start", lambda *_: None)
        began = time.monotonic()
        close_all()
        assert time.monotonic() - began < BOUND
        assert not any(exporter.active for exporter in exporters)
    assert backend.received == [3]


def test_at_exit_everything_is_delivered_or_left_within_two_seconds(backend):
    """Nothing that hangs holds the exit, and what works delivers its last items."""
    script = """
        import atexit, sys, threading, time
        atexit.register(lambda: print(time.monotonic() - began))  # runs last
        import amorsize
        from amorsize.exporters import Exporter
        from exporters.test_sender import Poster

        class Stubborn(Exporter):
            def flush(self, timeout=1.0):
                return threading.Event().wait(60)

        good, bad = map(int, sys.argv[1:])
        exporters = [Stubborn() for _ in range(5)]
        exporters += [Poster(bad).attach() for _ in range(5)] + [Poster(good).attach()]
        amorsize.execute(abs, [1, 2])

        @atexit.register  # runs first
        def begin():
            global began
            began = time.monotonic()
    """
    with hanging_port() as port:
        ran = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), str(backend.port), str(port)],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[1],
        )
    assert backend.received == [2]
    assert ran.stderr.count("did not close within 2 seconds and is abandoned") == 5
    # Two seconds and what a busy machine adds: far from the minutes that they would take.
    assert float(ran.stdout) < BOUND
