"""Messages over one descriptor: what ``multiprocessing.connection`` does, without its imports.

Those take 20 ms in this process and in every worker, a third of a worker's start. A message is a
header and a payload; large payloads are read into their place, and copied nowhere else.
"""

from __future__ import annotations

import os
import select
import struct

_LENGTHS = struct.Struct("!IQ")
"""What a message begins with: the bytes of its header, and of its payload."""

_READ_BYTES = 1 << 20


class Channel:
    """One end of a socket or of another duplex descriptor, which it owns.

    >>> import socket
    >>> ours, theirs = (Channel(end.detach()) for end in socket.socketpair())
    >>> ours.send(b"header", b"payload")
    >>> theirs.poll(), theirs.receive()
    (True, (bytearray(b'header'), bytearray(b'payload')))
    >>> ours.close(), theirs.close()
    (None, None)
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor; raises OSError once it is closed."""
        if self._fd < 0:
            raise OSError("the channel is closed")
        return self._fd

    def send(self, header: bytes, payload: bytes = b"") -> None:
        """Send one message; blocks until all of it is in the descriptor's buffer.

        Raises OSError when the other end is gone.
        """
        fd = self.fileno()
        pieces = [memoryview(_LENGTHS.pack(len(header), len(payload)) + header)]
        if payload:
            pieces.append(memoryview(payload))
        while pieces:
            written = os.writev(fd, pieces)
            while pieces and written >= len(pieces[0]):
                written -= len(pieces.pop(0))
            if written:
                pieces[0] = pieces[0][written:]

    def receive(self) -> tuple[bytearray, bytearray]:
        """Receive one message: header and payload.

        Raises EOFError when the other end is closed, also in the middle of a message, and OSError
        when it is gone.
        """
        lengths = self._read(_LENGTHS.size)
        header_bytes, payload_bytes = _LENGTHS.unpack(lengths)
        # Header and payload in one piece: one system call for nearly every message.
        if payload_bytes < _READ_BYTES:
            both = self._read(header_bytes + payload_bytes)
            return both[:header_bytes], both[header_bytes:]
        return self._read(header_bytes), self._read(payload_bytes)

    def poll(self) -> bool:
        """Say whether something can be read now: a message, or the end."""
        poller = select.poll()
        poller.register(self.fileno(), select.POLLIN)
        return bool(poller.poll(0))

    def close(self) -> None:
        """Close the descriptor; again does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        done = 0
        while done < size:
            read = os.readv(self.fileno(), [view[done:]])
            if read == 0:
                raise EOFError("the other end of the channel is closed")
            done += read
        return data
