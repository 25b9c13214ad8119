"""What crosses between processes: framing, results, and exceptions of every kind."""

from __future__ import annotations

import json
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import CodeType
from typing import Any

import pytest
from waiting import PATIENCE

from amorsize.engines.process import protocol
from amorsize.engines.process.connection import Connection
from amorsize.errors import RemoteError, TransportError, WorkerDiedError
from amorsize.workers.chunk import Chunk, ChunkOutcome, run_chunk

BOUNDARY = 65536


@pytest.fixture
def pipe() -> Iterator[tuple[Connection, Connection]]:
    ours, theirs = (Connection(end.detach()) for end in socket.socketpair())
    yield ours, theirs
    ours.close()
    theirs.close()


def send(outcome: ChunkOutcome) -> ChunkOutcome:
    """Take an outcome through everything that happens on its way, except the socket."""
    header, payload = protocol.pack_outcome(outcome)
    header = pickle.loads(pickle.dumps(header, 5))
    return protocol.unpack_outcome(header, payload, pid=77, hostname="there")


def outcome_of(func: Any, *items: Any, return_exceptions: bool = False) -> ChunkOutcome:
    return run_chunk(func, Chunk(4, 10, items), return_exceptions=return_exceptions)


def send_error(error: BaseException) -> BaseException:
    return protocol.unpack_error(protocol.pack_error(error))


# --- framing ----


@pytest.mark.parametrize("size", [0, 1, BOUNDARY - 1, BOUNDARY, BOUNDARY + 1, 5_000_000])
def test_a_message_arrives_whole_whatever_its_size(
    pipe: tuple[Connection, Connection], size: int
) -> None:
    """Small payloads are sent in the message of their header, large ones after it."""
    ours, theirs = pipe
    payload = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    sender = threading.Thread(target=protocol.send, args=(ours, ("chunk", 1, 2), payload))
    sender.start()
    assert protocol.receive(theirs) == (("chunk", 1, 2), payload)
    sender.join(PATIENCE)
    assert not theirs.poll()


def test_messages_arrive_in_order(pipe: tuple[Connection, Connection]) -> None:
    """Those without a payload beside those with one."""
    ours, theirs = pipe
    protocol.send(ours, ("task", 1), b"function")
    protocol.send(ours, ("end", 1))
    protocol.send(ours, ("chunk", 1), b"y" * BOUNDARY)
    came = [protocol.receive(theirs) for _ in range(3)]
    assert [message and message[0][0] for message in came] == ["task", "end", "chunk"]


def test_receiving_from_who_is_gone_raises(pipe: tuple[Connection, Connection]) -> None:
    """So the end of a connection is noticed."""
    ours, theirs = pipe
    ours.close()
    with pytest.raises(EOFError):
        protocol.receive(theirs)


# --- the function and the items ----


def test_code_keeps_the_name_of_its_file() -> None:
    """A worker's traceback shows the lines of a function that travelled by value."""
    sent = lambda x: [x for _ in range(3)]  # noqa: E731  # and the code in it
    came = pickle.loads(protocol.dump_function(sent))
    assert came.__code__ is not sent.__code__
    assert came(1) == [1, 1, 1]
    codes = [came.__code__, *(c for c in came.__code__.co_consts if isinstance(c, CodeType))]
    assert len(codes) == (2 if sys.version_info < (3, 12) else 1)  # comprehensions are inlined
    assert {code.co_filename for code in codes} == {__file__}


def test_lambdas_and_closures_travel() -> None:
    """By value: the other side does not know them."""
    factor = 3
    func = pickle.loads(protocol.dump_function(lambda number: number * factor))
    assert func(5) == 15


def test_a_function_that_does_not_pickle_is_named_with_the_reason_and_a_way_out() -> None:
    """The cause is kept, for whoever wants the whole story."""
    lock = threading.Lock()
    with pytest.raises(TransportError, match=r"TypeError: cannot pickle.*executor='thread'") as it:
        protocol.dump_function(lambda _: lock)
    assert isinstance(it.value.__cause__, TypeError)


def test_the_first_item_that_does_not_pickle_is_found() -> None:
    """With what was wrong with it."""
    found = protocol.first_unpicklable([1, "a", threading.Lock(), (each for each in ())])
    assert found is not None
    assert found[0] == 2
    assert isinstance(found[1], TypeError)
    assert protocol.first_unpicklable([1, "a", lambda: None]) is None


# --- results ----


def test_an_outcome_arrives_as_it_was_sent() -> None:
    """With the place that the parent knows, and the size of its results."""
    sent = outcome_of(str, 1, 2)
    sent.extras["numbers"] = {"rows": 3}
    came = send(sent)
    assert came.results == ["1", "2"]
    assert came.failures == []
    assert (came.chunk_id, came.start, came.size) == (4, 10, 2)
    assert (came.started_at, came.duration) == (sent.started_at, sent.duration)
    assert (came.pid, came.hostname, came.thread_name) == (77, "there", sent.thread_name)
    assert came.extras == {"numbers": {"rows": 3}}
    assert came.results_bytes == len(pickle.dumps(["1", "2"], 5))


def test_results_that_only_cloudpickle_carries_arrive() -> None:
    """Lambdas and local classes are results like any others."""
    came = send(outcome_of(lambda number: lambda: number + 1, 1, 2))
    assert came.results is not None
    assert [result() for result in came.results] == [2, 3]


def test_a_result_that_does_not_pickle_is_the_failure_of_its_item_alone() -> None:
    """The others arrive; the message says which, and what kind it was."""
    came = send(outcome_of(lambda each: threading.Lock() if each == 1 else each, 0, 1, 2))
    assert came.results is not None
    assert [came.results[0], came.results[2]] == [0, 2]
    assert [failure.index for failure in came.failures] == [11]
    assert came.results[1] is came.failures[0].error
    assert isinstance(came.failures[0].error, TransportError)
    assert "the result of item 11, a lock, cannot be sent back" in str(came.failures[0].error)


class Bomb:
    """Pickles well, and fails to unpickle."""

    def __reduce__(self) -> Any:
        return int, ("this is no number",)


def test_results_that_do_not_unpickle_fail_their_chunk() -> None:
    """Nothing can be said of single results; the message names the chunk and the reason."""
    came = send(outcome_of(lambda _: Bomb(), 0, 1))
    assert came.results is None
    assert [failure.index for failure in came.failures] == [10]
    assert isinstance(came.failures[0].error, TransportError)
    assert "items 10 to 11 (chunk 4) cannot be unpickled: ValueError" in str(came.failures[0].error)


def test_exceptions_in_place_of_results_travel_once() -> None:
    """The exception in the results is the one in the failures."""

    def func(number: int) -> float:
        return 1 / number

    came = send(outcome_of(func, 1, 0, 2, return_exceptions=True))
    assert came.results is not None
    assert [came.results[0], came.results[2]] == [1.0, 0.5]
    assert came.results[1] is came.failures[0].error
    assert isinstance(came.results[1], ZeroDivisionError)


def test_failures_of_both_kinds_come_in_the_order_of_their_items() -> None:
    """A raised one after an unpicklable result stays after it."""

    def func(number: int) -> Any:
        return threading.Lock() if number == 1 else 1 / number

    came = send(outcome_of(func, 2, 0, 1, 0, return_exceptions=True))
    assert [failure.index for failure in came.failures] == [11, 12, 13]
    kinds = [type(failure.error) for failure in came.failures]
    assert kinds == [ZeroDivisionError, TransportError, ZeroDivisionError]


def test_a_failed_chunk_has_no_payload() -> None:
    """Results of items before the failure are not sent: nobody takes them."""
    header, payload = protocol.pack_outcome(outcome_of(lambda number: 1 / number, 1, 0))
    assert payload == b""
    came = protocol.unpack_outcome(header, payload, pid=77, hostname="there")
    assert came.results is None
    assert came.results_bytes == 0


def test_a_failure_s_exception_has_the_worker_s_traceback_as_a_note() -> None:
    """Whoever sees it printed sees where it happened."""
    error = send(outcome_of(lambda number: 1 / number, 1, 0)).failures[0].error
    assert len(error.__notes__) == 1
    assert "In worker process 77, on item 11:" in error.__notes__[0]
    assert "ZeroDivisionError: division by zero" in error.__notes__[0]


# --- exceptions ----


class NeedsTwo(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


class KeywordOnly(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class Wraps(Exception):
    """Its constructor makes the message from an argument: calling it again would wrap twice."""

    def __init__(self, code: int) -> None:
        super().__init__(f"failed with {code}")
        self.code = code


class Optional(Exception):
    """Called with its own ``args``, its constructor would take the message for the code."""

    def __init__(self, code: object, message: str = "unknown") -> None:
        super().__init__(message)
        self.code = code


class HoldsLock(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message, threading.Lock())
        self.lock = threading.Lock()
        self.kept = "this is sent"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad"),
        KeyError("key"),
        OSError(2, "No such file or directory", "nowhere.txt"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        ExceptionGroup("two", [ValueError("one"), KeyError("other")]),
        WorkerDiedError(pid=7, exit_code=-9, chunk_id=1),
        NeedsTwo(500, "boom"),
        KeywordOnly(code=500),
        Wraps(500),
        Optional(500, "boom"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_keeps_its_type_its_text_and_its_attributes(error: Exception) -> None:
    """Whatever its constructor asks for, or makes of what it is given."""
    came = send_error(error)
    assert type(came) is type(error)
    assert str(came) == str(error)
    assert vars(came) == vars(error)
    assert len(came.args) == len(error.args)


def test_notes_travel() -> None:
    """What the user's code added with ``add_note()`` is part of the exception."""
    error = ValueError("bad")
    error.add_note("in line 7")
    assert send_error(error).__notes__ == ["in line 7"]


def test_a_local_exception_class_is_the_same_class_when_it_comes_home() -> None:
    """So that ``except`` catches it."""

    class Local(Exception):
        pass

    assert type(send_error(Local("here"))) is Local


def test_what_an_exception_holds_and_cannot_pickle_is_left_out() -> None:
    """The rest arrives: type, text where it can, attributes where they can."""
    came = send_error(HoldsLock("locked"))
    assert type(came) is HoldsLock
    assert came.args[0] == "locked"
    assert "lock" in came.args[1]
    assert vars(came) == {"kept": "this is sent"}


class Unreachable(Exception):
    """Neither the whole nor its parts come back."""

    def __new__(cls, *args: object) -> Unreachable:
        if len(args) != 1 or args[0] != "first":
            raise TypeError("cannot be made again")
        return super().__new__(cls, *args)

    def __init__(self, first: object) -> None:
        super().__init__("secretly", "changed")


class Liar(Exception):
    def __reduce__(self) -> Any:
        return list, ()

    def __init__(self, text: str) -> None:
        super().__init__(text)


class Mute(Unreachable):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_exception_that_cannot_be_rebuilt_is_a_remote_error_with_its_text() -> None:
    """Its class and its message are all that is known."""
    came = send_error(Unreachable("first"))
    assert type(came) is RemoteError
    assert str(came).endswith("test_protocol.Unreachable: ('secretly', 'changed')")


def test_an_exception_without_a_text_is_a_remote_error_all_the_same() -> None:
    """Even ``str()`` of a user's exception may raise."""
    assert str(send_error(Mute("first"))).endswith("Mute: <its text cannot be shown>")


def test_an_exception_that_unpickles_as_something_else_is_no_surprise() -> None:
    """What arrives is an exception in any case."""
    came = send_error(Liar("I am a list"))
    assert isinstance(came, Liar | RemoteError)
    assert "I am a list" in str(came)


def test_an_exception_that_is_unknown_here_is_a_remote_error() -> None:
    """The worker may have modules that the parent has not."""
    came = protocol.unpack_error(b"cno_such_module\nMissing\n.")
    assert type(came) is RemoteError
    assert "cannot be unpickled here (ModuleNotFoundError: No module named" in str(came)


# --- classes of __main__ ----

SCRIPT = """
import json
from dataclasses import dataclass
from amorsize import execute

@dataclass
class Point:
    x: int

class Refused(Exception):
    def __init__(self, code):
        super().__init__(f"refused with {code}")
        self.code = code

def double(point):
    if point.x < 0:
        raise Refused(point.x)
    return Point(point.x * 2)

came = execute(double, [Point(1), Point(-1)], executor="process", n_jobs=2,
               return_exceptions=True)
print(json.dumps({
    "result": [type(came[0]) is Point, came[0] == Point(2)],
    "error": [type(came[1]) is Refused, came[1].code, str(came[1])],
}))
"""


@pytest.mark.parametrize("stdin", [False, True], ids=["command", "stdin"])
def test_classes_of_main_make_the_round_trip(stdin: bool) -> None:
    """Items, results and exceptions are of the caller's own classes, not of copies."""
    done = subprocess.run(
        [sys.executable, "-"] if stdin else [sys.executable, "-c", SCRIPT],
        input=SCRIPT if stdin else None,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "result": [True, True],
        "error": [True, -1, "refused with -1"],
    }
