"""Messages over one descriptor: whole, in order, and an end that is noticed."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import PATIENCE

from amorsize.engines.process.connection import Connection, connection_pair


@pytest.fixture
def ends() -> Iterator[tuple[Connection, Connection]]:
    ours, theirs = (Connection(end.detach()) for end in socket.socketpair())
    yield ours, theirs
    ours.close()
    theirs.close()


@given(st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=3000)), max_size=8))
def test_messages_arrive_as_they_were_sent(messages: list[tuple[bytes, bytes]]) -> None:
    """Empty headers and payloads too, in their order."""
    ours, theirs = (Connection(end.detach()) for end in socket.socketpair())
    for header, payload in messages:
        ours.send(header, payload)
    assert [theirs.receive() for _ in messages] == messages
    assert not theirs.poll()
    ours.close()
    theirs.close()


@pytest.mark.parametrize("size", [(1 << 20) - 1, 1 << 20, 9_000_000])
def test_a_payload_larger_than_the_socket_holds_arrives_whole(
    ends: tuple[Connection, Connection], size: int
) -> None:
    """It is written, and read, in several pieces."""
    ours, theirs = ends
    payload = os.urandom(1024) * (size // 1024) + b"x" * (size % 1024)
    sender = threading.Thread(target=ours.send, args=(b"header", payload))
    sender.start()
    assert theirs.receive() == (b"header", payload)
    sender.join(PATIENCE)
    assert not sender.is_alive()


def test_the_end_is_readable_and_raises(ends: tuple[Connection, Connection]) -> None:
    """As ``multiprocessing`` does: EOFError for who reads, OSError for who writes."""
    ours, theirs = ends
    assert not theirs.poll()
    ours.close()
    assert theirs.poll()
    with pytest.raises(EOFError, match="the other end of the connection is closed"):
        theirs.receive()
    with pytest.raises(OSError, match="Broken pipe"):
        theirs.send(b"x" * 100)


def test_an_end_in_the_middle_of_a_message_raises() -> None:
    """Its sender died while it sent."""
    left, right = socket.socketpair()
    connection = Connection(right.detach())
    left.send(b"\0\0\0\x05\0\0\0\0\0\0\0\x09head")
    left.close()
    with pytest.raises(EOFError, match="closed"):
        connection.receive()
    connection.close()


def test_a_closed_connection_says_so(ends: tuple[Connection, Connection]) -> None:
    """Closing again does nothing: its descriptor may be somebody else's by now."""
    ours, _ = ends
    ours.close()
    ours.close()
    for use in (ours.fileno, ours.poll, ours.receive, lambda: ours.send(b"x")):
        with pytest.raises(OSError, match="the connection is closed"):
            use()


def test_a_descriptor_arrives_with_its_message(ends: tuple[Connection, Connection]) -> None:
    """Beside it, in order, and not inherited by programs that are started."""
    ours, theirs = ends
    reader, writer = os.pipe()
    ours.send(b"first")
    ours.send(b"second", b"payload", [writer])
    os.close(writer)
    assert [theirs.receive(), theirs.receive()] == [(b"first", b""), (b"second", b"payload")]
    [received] = theirs.received
    assert not os.get_inheritable(received)
    os.write(received, b"written")
    os.close(received)
    assert os.read(reader, 20) == b"written"
    os.close(reader)


def test_an_end_that_does_not_block_keeps_what_does_not_fit() -> None:
    """And reads a message in as many turns as it takes."""
    ours, their_fd = connection_pair()
    theirs = Connection(their_fd)
    payload = os.urandom(1 << 20) * 40
    assert ours.receive() is None
    ours.send(b"large", payload)
    assert ours.unsent
    came: list[object] = []
    reader = threading.Thread(target=lambda: came.append(theirs.receive()))
    reader.start()
    while ours.unsent:
        ours.flush()
    reader.join(PATIENCE)
    assert came == [(b"large", payload)]
    writer = threading.Thread(target=theirs.send, args=(b"back", payload))
    writer.start()
    turns = 0
    while (message := ours.receive()) is None:
        assert ours.poll(PATIENCE)
        turns += 1
    assert turns
    assert message == (b"back", payload)
    writer.join(PATIENCE)
    ours.close()
    theirs.close()


@pytest.mark.parametrize("seconds", [0.01, 5.0])
def test_a_default_timeout_of_the_program_changes_nothing(seconds: float) -> None:
    """The ends block, or do not, as they were made."""
    socket.setdefaulttimeout(seconds)
    try:
        ours, their_fd = connection_pair()
        theirs = Connection(their_fd)
    finally:
        socket.setdefaulttimeout(None)
    assert os.get_blocking(theirs.fileno())
    assert not os.get_blocking(ours.fileno())
    ours.close()
    theirs.close()


def test_an_end_is_seen_before_what_came_before_it_is_read(
    ends: tuple[Connection, Connection],
) -> None:
    """Whether a process is gone does not depend on who has read its last words."""
    ours, theirs = ends
    ours.send(b"last words")
    assert not theirs.is_ended()
    ours.close()
    assert theirs.is_ended()
    assert theirs.receive() == (b"last words", b"")
    theirs.close()
    assert theirs.is_ended()
