"""Messages over one descriptor, for both of its ends.

A message is a header and a payload, and descriptors that are sent beside it. A blocking end (in a
worker) waits in :meth:`Connection.send` and :meth:`Connection.receive`. A non-blocking end (in the
program) never does: what does not fit into the socket is kept until :meth:`Connection.flush`, and
a message of which a part is still to come is None for now. So a frozen worker holds nobody up.

``multiprocessing.connection`` does the same in blocking mode, and takes 20 ms to import. The
module ``_socket`` stands for ``socket``: it loads in a fraction of the time, and libraries that
patch sockets (gevent) do not reach it. A default timeout does, so blocking is set explicitly.
"""

from __future__ import annotations

import _socket
import os
import select
import struct
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_LENGTHS = struct.Struct("!IQ")
"""A message begins with the number of bytes of its header, and of its payload."""

_READ_BYTES = 1 << 16
_LARGE_BYTES = 1 << 16
"""Payloads from here on are read into their place, and copied nowhere else."""

_TURN_BYTES = 1 << 25
"""A non-blocking end reads, or writes, so much at a time: then others get their turn."""

STATUS = struct.Struct("!ci")
"""A record of a worker's status; :mod:`amorsize.engines.process.template` lists them."""

MAX_DESCRIPTORS = 8
_ANCILLARY_BYTES = _socket.CMSG_SPACE(MAX_DESCRIPTORS * struct.calcsize("i"))
_RECEIVE_FLAGS = getattr(_socket, "MSG_CMSG_CLOEXEC", 0)  # macOS has none


def connection_pair() -> tuple[Connection, int]:
    """Make a socket pair: our end, which does not block, and the descriptor of their blocking end.

    Raises OSError where no descriptor is left.
    """
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    fds = ours.detach(), theirs.detach()
    os.set_blocking(fds[1], True)
    return Connection(fds[0], blocking=False), fds[1]


class Connection:
    """One end of a socket pair, which it owns.

    >>> ours, their_fd = connection_pair()
    >>> theirs = Connection(their_fd)
    >>> ours.send(b"header", b"payload")
    >>> theirs.poll(), theirs.receive()
    (True, (b'header', bytearray(b'payload')))
    >>> ours.receive() is None
    True
    >>> ours.close(), theirs.close()
    (None, None)
    """

    __slots__ = (
        "_blocking",
        "_buffer",
        "_header",
        "_payload",
        "_read_bytes",
        "_socket",
        "_unsent",
        "received",
    )

    def __init__(self, fd: int, *, blocking: bool = True) -> None:
        self._socket = _socket.socket(fileno=fd)
        self._socket.setblocking(blocking)
        self._blocking = blocking
        self._buffer = bytearray()
        self._header = b""
        self._payload: bytearray | None = None
        self._read_bytes = 0
        self._unsent: deque[tuple[memoryview, Sequence[int]]] = deque()
        self.received: list[int] = []
        """Descriptors that came with messages; whoever takes one out owns it."""

    def fileno(self) -> int:
        """Return the descriptor; raises OSError once it is closed."""
        fd = self._socket.fileno()
        if fd < 0:
            raise OSError("the connection is closed")
        return fd

    @property
    def unsent(self) -> bool:
        """Whether a part of what was sent is still here: :meth:`flush` goes on with it."""
        return bool(self._unsent)

    def send(self, header: bytes, payload: bytes = b"", descriptors: Sequence[int] = ()) -> None:
        """Send one message; a non-blocking end keeps what does not fit into the socket.

        The descriptors must stay open until nothing is :attr:`unsent`. Raises OSError when the
        other end is gone.
        """
        head = memoryview(_LENGTHS.pack(len(header), len(payload)) + header)
        self._unsent.append((head, descriptors))
        if payload:
            self._unsent.append((memoryview(payload), ()))
        self.flush()

    def flush(self) -> None:
        """Write what can be written now. Raises OSError when the other end is gone."""
        fd, written_here = self.fileno(), 0
        while self._unsent and (self._blocking or written_here < _TURN_BYTES):
            try:
                written = self._write_some(fd)
            except BlockingIOError:
                return
            written_here += written
            while self._unsent and written >= len(self._unsent[0][0]):
                written -= len(self._unsent.popleft()[0])
            if written:
                self._unsent[0] = self._unsent[0][0][written:], ()

    def _write_some(self, fd: int) -> int:
        piece, descriptors = self._unsent[0]
        if descriptors:
            rights = struct.pack(f"{len(descriptors)}i", *descriptors)
            kind = _socket.SOL_SOCKET, _socket.SCM_RIGHTS
            return self._socket.sendmsg([piece], [(*kind, rights)])
        pieces = [piece]
        if len(self._unsent) > 1 and not self._unsent[1][1]:
            pieces.append(self._unsent[1][0])
        return os.writev(fd, pieces)

    def receive(self) -> tuple[bytes, bytearray] | None:
        """Return the next message, header and payload; None while a part of it is still to come.

        Raises EOFError when the other end is closed, also in the middle of a message, and OSError
        when it is gone.
        """
        read_here = 0
        while True:
            if self._payload is None:
                message = self._take_from_buffer()
                if message is not None:
                    return message
            payload = self._payload
            if payload is not None and self._read_bytes == len(payload):
                self._payload = None
                return self._header, payload
            if read_here >= _TURN_BYTES and not self._blocking:
                return None
            try:
                read = self._read_into(payload) if payload is not None else self._read_small()
            except BlockingIOError:
                return None
            if read == 0:
                raise EOFError("the other end of the connection is closed")
            read_here += read

    def _take_from_buffer(self) -> tuple[bytes, bytearray] | None:
        """Take a message out of the buffer, or begin with one that is too large for it."""
        buffer = self._buffer
        if len(buffer) < _LENGTHS.size:
            return None
        header_bytes, payload_bytes = _LENGTHS.unpack_from(buffer)
        start = _LENGTHS.size + header_bytes
        end = start + payload_bytes
        if len(buffer) >= end:
            header, payload = bytes(buffer[_LENGTHS.size : start]), buffer[start:end]
            del buffer[:end]
            return header, payload
        if len(buffer) >= start and payload_bytes >= _LARGE_BYTES:
            self._header = bytes(buffer[_LENGTHS.size : start])
            self._payload = bytearray(payload_bytes)
            self._read_bytes = len(buffer) - start
            self._payload[: self._read_bytes] = buffer[start:]
            buffer.clear()
        return None

    def _read_into(self, payload: bytearray) -> int:
        read = os.readv(self.fileno(), [memoryview(payload)[self._read_bytes :]])
        self._read_bytes += read
        return read

    def _read_small(self) -> int:
        self.fileno()
        data, ancillary, _, _ = self._socket.recvmsg(_READ_BYTES, _ANCILLARY_BYTES, _RECEIVE_FLAGS)
        for level, kind, rights in ancillary:
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                self.received.extend(struct.unpack(f"{len(rights) // 4}i", rights))
        self._buffer += data
        return len(data)

    def poll(self, timeout: float = 0.0) -> bool:
        """Say whether something can be read within ``timeout`` seconds: a message, or the end."""
        if self._buffer:
            return True
        poller = select.poll()
        poller.register(self.fileno(), select.POLLIN)
        return bool(poller.poll(timeout * 1000))

    def is_ended(self) -> bool:
        """Say whether the other end is closed, also where something that it sent is unread."""
        try:
            fd = self.fileno()
        except OSError:
            return True
        poller = select.poll()
        poller.register(fd, 0)  # the end is reported whatever is asked for
        return bool(poller.poll(0))

    def close(self) -> None:
        """Close the descriptor; again does nothing."""
        self._unsent.clear()
        self._socket.close()

    def __del__(self) -> None:
        if hasattr(self, "_socket"):
            self.close()
