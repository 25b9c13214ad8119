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

from amorsize.engines.process.connection import Channel


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = (Channel(end.detach()) for end in socket.socketpair())
    yield ours, theirs
    ours.close()
    theirs.close()


@given(st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=3000)), max_size=8))
def test_messages_arrive_as_they_were_sent(messages: list[tuple[bytes, bytes]]) -> None:
    """Empty headers and payloads too, in their order."""
    ours, theirs = (Channel(end.detach()) for end in socket.socketpair())
    for header, payload in messages:
        ours.send(header, payload)
    assert [theirs.receive() for _ in messages] == messages
    assert not theirs.poll()
    ours.close()
    theirs.close()


@pytest.mark.parametrize("size", [(1 << 20) - 1, 1 << 20, 9_000_000])
def test_a_payload_larger_than_the_socket_holds_arrives_whole(
    ends: tuple[Channel, Channel], size: int
) -> None:
    """It is written, and read, in several pieces."""
    ours, theirs = ends
    payload = os.urandom(1024) * (size // 1024) + b"x" * (size % 1024)
    sender = threading.Thread(target=ours.send, args=(b"header", payload))
    sender.start()
    assert theirs.receive() == (b"header", payload)
    sender.join(PATIENCE)
    assert not sender.is_alive()


def test_the_end_is_readable_and_raises(ends: tuple[Channel, Channel]) -> None:
    """As ``multiprocessing`` does: EOFError for who reads, OSError for who writes."""
    ours, theirs = ends
    assert not theirs.poll()
    ours.close()
    assert theirs.poll()
    with pytest.raises(EOFError, match="the other end of the channel is closed"):
        theirs.receive()
    with pytest.raises(OSError, match="Broken pipe"):
        theirs.send(b"x" * 100)


def test_an_end_in_the_middle_of_a_message_raises() -> None:
    """Its sender died while it sent."""
    left, right = socket.socketpair()
    channel = Channel(right.detach())
    left.send(b"\0\0\0\x05\0\0\0\0\0\0\0\x09head")
    left.close()
    with pytest.raises(EOFError, match="closed"):
        channel.receive()
    channel.close()


def test_a_closed_channel_says_so(ends: tuple[Channel, Channel]) -> None:
    """Closing again does nothing: its descriptor may be somebody else's by now."""
    ours, _ = ends
    ours.close()
    ours.close()
    for use in (ours.fileno, ours.poll, ours.receive, lambda: ours.send(b"x")):
        with pytest.raises(OSError, match="the channel is closed"):
            use()
