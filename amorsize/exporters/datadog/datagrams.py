"""DogStatsD: messages written by Datadog's client, sent to an agent as datagrams.

::

    write(client) ──> DogStatsd: format, tags, DD_*, buffer ──> datagrams ──> socket ──> agent

The client writes into memory instead of a socket, and this module sends the datagrams: one that
failed is known, and is sent later. The client by itself drops it, logs each drop, and keeps no
lasting count.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from datadog.dogstatsd.base import DogStatsd

UDP_BYTES = 1432
"""The most that fits into one packet of any network, by Datadog's advice."""

UNIX_BYTES = 8192
"""The default size of an agent's read; also the limit of a message."""

SOCKET_SECONDS = 1.0
"""How long to wait for a Unix socket whose agent hangs."""


class Datagrams:
    """The exporter's own DogStatsd client, and the way to the agent. Not safe for several threads.

    Args:
        host, port, socket_path: where the agent is, as :class:`datadog.dogstatsd.DogStatsd` has
            them; None takes it from ``DD_DOGSTATSD_URL``, ``DD_AGENT_HOST`` and
            ``DD_DOGSTATSD_PORT``. ``DD_ENV``, ``DD_SERVICE``, ``DD_VERSION`` and
            ``DATADOG_TAGS`` become tags of every message.

    Attributes:
        limit: of a datagram, in bytes.
        refused: datagrams whose loss was reported too late to send them again.
    """

    def __init__(
        self, host: str | None = None, port: int | None = None, socket_path: str | None = None
    ) -> None:
        from datadog.dogstatsd.base import DogStatsd

        where: dict[str, Any] = {
            "host": host,
            "port": port,
            "socket_path": socket_path,
            "disable_telemetry": True,  # its packets exceed 1,432 bytes; losses are counted here
            "track_instance": False,  # or else each os.fork() of the program waits for it
        }
        # It sends nothing: it holds the agent's address and connects to it.
        self._wire = DogStatsd(**where, socket_timeout=SOCKET_SECONDS)
        self.limit = UDP_BYTES if self._wire.socket_path is None else UNIX_BYTES
        self._writer = DogStatsd(
            **where,
            disable_buffering=False,
            max_buffer_len=self.limit,
            flush_interval=0,  # no thread of its own
        )
        self._written = _Memory()
        self._waiting: deque[bytes] = deque()
        self.refused = 0

    @property
    def destination(self) -> str:
        """The agent's address."""
        wire = self._wire
        return f"{wire.host}:{wire.port}" if wire.socket_path is None else wire.socket_path

    @property
    def constant_tags(self) -> list[str]:
        """The tags that the environment adds to every message."""
        return list(self._writer.constant_tags)

    @property
    def waiting(self) -> int:
        """Datagrams that were written and not yet sent."""
        return len(self._waiting)

    def write(self, write: Callable[[DogStatsd], object]) -> None:
        """Have messages written, in place of those that were not yet sent."""
        self._waiting = deque(self._datagrams(write))

    def length(self, write: Callable[[DogStatsd], object]) -> int:
        """Count the bytes that messages would have."""
        return sum(map(len, self._datagrams(write)))

    def send(self) -> None:
        """Send the written datagrams.

        Raises:
            OSError: the agent does not accept one. Those before it are not sent again.
        """
        while self._waiting:
            self._send(self._waiting[0])
            self._waiting.popleft()

    def close(self) -> None:
        """Close the socket, without waiting for a thread that uses it."""
        # Not close_socket(), which waits for a lock that a thread may hold during a name lookup.
        used = self._wire.socket
        if used is not None:
            used.close()

    def _datagrams(self, write: Callable[[DogStatsd], object]) -> list[bytes]:
        # Each time: an error in the client removes it.
        self._writer.socket = cast(Any, self._written)
        try:
            write(self._writer)
        finally:
            self._writer.flush_buffered_metrics()
            written, self._written.datagrams = self._written.datagrams, []
        return [part for datagram in written for part in _fitting(datagram, self.limit)]

    def _send(self, datagram: bytes) -> None:
        try:
            wire = self._wire.get_socket()
            if wire.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM:
                wire.sendall(struct.pack("<I", len(datagram)) + datagram)
                return
            try:
                wire.send(datagram)
            except ConnectionRefusedError:
                if wire.family != socket.AF_UNIX:
                    self.refused += 1  # this concerns the datagram before
                raise
            # A closed port of this machine has answered this very datagram already.
            if failed := wire.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(failed, os.strerror(failed))
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                self._wire.close_socket()  # an agent that was restarted has another socket
            raise


def _fitting(datagram: bytes, limit: int) -> Iterator[bytes]:
    """Divide a datagram that is too long: the client counts characters, not bytes."""
    while len(datagram) > limit:
        end = datagram.rfind(b"\n", 0, limit) + 1
        if not 0 < end < len(datagram):
            break
        yield datagram[:end]
        datagram = datagram[end:]
    yield datagram


class _Memory:
    """Replaces the client's connected socket, and keeps the datagrams."""

    family = socket.AF_INET

    def __init__(self) -> None:
        self.datagrams: list[bytes] = []

    def getsockopt(self, level: int, option: int) -> int:
        return socket.SOCK_DGRAM

    def send(self, datagram: bytes) -> int:
        self.datagrams.append(datagram)
        return len(datagram)

    def close(self) -> None:
        """Nothing to close."""
