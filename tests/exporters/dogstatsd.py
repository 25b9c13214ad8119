"""A strict parser of DogStatsD datagrams, and real sockets that receive them.

Written from the published format (https://docs.datadoghq.com/developers/dogstatsd/datagram_shell/),
versions 1.0 to 1.3. What a lenient agent would drop, or guess at, is an error here.
"""

from __future__ import annotations

import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from waiting import PATIENCE

UDP_BYTES = 1432
UNIX_BYTES = 8192

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,199}")
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
_TYPES = {"c", "g", "h", "d", "ms", "s"}
_TAG = re.compile(r"[^\W\d_][\w\-:./]*")
_EVENT = re.compile(r"_e\{(\d+),(\d+)\}:")
_SO_RCVBUFFORCE = 33  # Linux; Python does not name it
_MARKER = b"all before this was received"
_CARDINALITIES = {"none", "low", "orchestrator", "high"}


class BadDatagram(ValueError):
    """It breaks the format."""


@dataclass(frozen=True)
class Metric:
    name: str
    values: tuple[float, ...]
    type: str
    rate: float = 1.0
    tags: tuple[str, ...] = ()
    timestamp: int | None = None
    container: str | None = None


@dataclass(frozen=True)
class Event:
    title: str
    text: str
    tags: tuple[str, ...] = ()
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    name: str
    status: int
    tags: tuple[str, ...] = ()
    message: str | None = None
    fields: dict[str, str] = field(default_factory=dict)


Message = Metric | Event | Check


def parse(datagram: bytes) -> list[Message]:
    """Parse a datagram, which may hold several messages, a line each."""
    try:
        text = datagram.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadDatagram(f"not UTF-8: {error}") from None
    lines = text.removesuffix("\n").split("\n")
    return [parse_line(line) for line in lines]


def parse_line(line: str) -> Message:
    if not line:
        raise BadDatagram("an empty line")
    if any(ord(character) < 32 and character != "\t" for character in line):
        raise BadDatagram(f"a control character in {line!r}")
    if line.startswith("_e"):
        return _event(line)
    if line.startswith("_sc"):
        return _check(line)
    return _metric(line)


def _metric(line: str) -> Metric:
    name, colon, rest = line.partition(":")
    if not colon or not _NAME.fullmatch(name):
        raise BadDatagram(f"no name of a metric in {line!r}")
    values, bar, rest = rest.partition("|")
    if not bar:
        raise BadDatagram(f"no type in {line!r}")
    kind, *sections = rest.split("|")
    if kind not in _TYPES:
        raise BadDatagram(f"an unknown type {kind!r} in {line!r}")
    numbers = values.split(":")
    if len(numbers) > 1 and kind not in {"h", "d", "ms"}:
        raise BadDatagram(f"several values of a {kind!r} in {line!r}")
    if kind != "s" and not all(_NUMBER.fullmatch(number) for number in numbers):
        raise BadDatagram(f"no number in {line!r}")
    found = _sections(
        line, sections, {"@": "rate", "#": "tags", "c:": "c", "T": "T", "e:": "e", "card:": "card"}
    )
    rate = found.get("rate", "1")
    if not _NUMBER.fullmatch(rate) or not 0 < float(rate) <= 1:
        raise BadDatagram(f"a bad sample rate in {line!r}")
    timestamp = found.get("T")
    if timestamp is not None and (not timestamp.isdigit() or kind not in {"c", "g"}):
        raise BadDatagram(f"a bad timestamp in {line!r}")
    return Metric(
        name,
        tuple(float(number) for number in numbers) if kind != "s" else (),
        kind,
        float(rate),
        _tags(line, found.get("tags")),
        None if timestamp is None else int(timestamp),
        found.get("c"),
    )


def _event(line: str) -> Event:
    head = _EVENT.match(line)
    if head is None:
        raise BadDatagram(f"no lengths in {line!r}")
    body = line[head.end() :].encode()
    title_size, text_size = int(head[1]), int(head[2])
    end = title_size + 1 + text_size
    if not title_size or len(body) < end or body[title_size : title_size + 1] != b"|":
        raise BadDatagram(f"lengths that do not fit in {line!r}")
    if body[end : end + 1] not in (b"", b"|"):
        raise BadDatagram(f"a text that is longer than it says in {line!r}")
    try:
        title, text = body[:title_size].decode(), body[title_size + 1 : end].decode()
    except UnicodeDecodeError:
        raise BadDatagram(f"lengths that cut a character in {line!r}") from None
    sections = body[end:].decode().split("|")[1:]
    names = ("d:", "h:", "k:", "p:", "s:", "t:", "c:", "card:")
    found = _sections(line, sections, {"#": "tags", **{name: name[:-1] for name in names}})
    if not found.get("d", "1").isdigit():
        raise BadDatagram(f"a bad time in {line!r}")
    if found.get("p", "normal") not in {"normal", "low"}:
        raise BadDatagram(f"a bad priority in {line!r}")
    if found.get("t", "info") not in {"error", "warning", "info", "success"}:
        raise BadDatagram(f"a bad alert type in {line!r}")
    tags = _tags(line, found.pop("tags", None))
    return Event(title.replace("\\n", "\n"), text.replace("\\n", "\n"), tags, found)


def _check(line: str) -> Check:
    mark, *parts = line.split("|")
    if mark != "_sc" or len(parts) < 2:
        raise BadDatagram(f"no service check in {line!r}")
    name, status, *sections = parts
    if not _NAME.fullmatch(name) or status not in {"0", "1", "2", "3"}:
        raise BadDatagram(f"a bad name or status in {line!r}")
    found = _sections(
        line, sections, {"#": "tags", "d:": "d", "h:": "h", "m:": "m", "c:": "c", "card:": "card"}
    )
    if "m" in found and not sections[-1].startswith("m:"):
        raise BadDatagram(f"a message that is not last in {line!r}")
    if not found.get("d", "1").isdigit():
        raise BadDatagram(f"a bad time in {line!r}")
    tags = _tags(line, found.pop("tags", None))
    message = found.pop("m", None)
    return Check(name, int(status), tags, message, found)


def _sections(line: str, sections: Iterable[str], marks: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for section in sections:
        mark = next((mark for mark in marks if section.startswith(mark)), None)
        if mark is None or section == mark:
            raise BadDatagram(f"an unknown or empty section {section!r} in {line!r}")
        if marks[mark] in found:
            raise BadDatagram(f"{mark!r} twice in {line!r}")
        found[marks[mark]] = section.removeprefix(mark)
    if found.get("card", "low") not in _CARDINALITIES:
        raise BadDatagram(f"an unknown cardinality in {line!r}")
    return found


def _tags(line: str, tags: str | None) -> tuple[str, ...]:
    if tags is None:
        return ()
    found = tuple(tags.split(","))
    for tag in found:
        if not _TAG.fullmatch(tag) or len(tag) > 200 or tag.endswith(":"):
            raise BadDatagram(f"a bad tag {tag!r} in {line!r}")
    return found


class Agent:
    """Receives on a real socket what a DogStatsD server would, and parses it.

    Args:
        path: of a Unix socket; None for UDP on a free port of 127.0.0.1.
        stream: whether the Unix socket is one of streams.
        port: the UDP port, 0 for a free one.
    """

    def __init__(self, path: Path | None = None, *, stream: bool = False, port: int = 0) -> None:
        self.path = path
        self.limit = UDP_BYTES if path is None else UNIX_BYTES
        self.datagrams: list[bytes] = []
        self.errors: list[BadDatagram] = []
        self._messages: list[Message] = []
        self._changed = threading.Condition()
        self._stream = stream
        self._closed = False
        self._markers_sent = self._markers_seen = 0
        self._connections: list[socket.socket] = []
        kind = socket.SOCK_STREAM if stream else socket.SOCK_DGRAM
        self._socket = socket.socket(socket.AF_INET if path is None else socket.AF_UNIX, kind)
        # What comes while this thread has no processor must wait, and UDP drops what does not fit.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 23)
        with suppress(OSError):  # more than the system allows everybody, for root
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 23)
        self._socket.bind(("127.0.0.1", port) if path is None else str(path))
        if stream:
            self._socket.listen()
        self.port: int = self._socket.getsockname()[1] if path is None else 0
        self._wake_in, self._wake_out = socket.socketpair()
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    @property
    def messages(self) -> list[Message]:
        """All that was sent so far; none of it breaks the format, and no datagram is too long."""
        self._catch_up()
        with self._changed:
            if self.errors:
                raise self.errors[0]
            return list(self._messages)

    @property
    def metrics(self) -> list[Metric]:
        return [message for message in self.messages if isinstance(message, Metric)]

    @property
    def events(self) -> list[Event]:
        return [message for message in self.messages if isinstance(message, Event)]

    @property
    def checks(self) -> list[Check]:
        return [message for message in self.messages if isinstance(message, Check)]

    def total(self, name: str, *tags: str) -> float:
        """Add up counts, or the observations of a distribution, that have (at least) these tags."""
        return sum(sum(each.values) for each in self._of(name, tags, "cd"))

    def observations(self, name: str, *tags: str) -> int:
        """Count the observations of a distribution."""
        return sum(len(each.values) for each in self._of(name, tags, "d"))

    def gauge(self, name: str, *tags: str) -> float | None:
        """The last value of a gauge."""
        values = [each.values[0] for each in self._of(name, tags, "g")]
        return values[-1] if values else None

    def types(self) -> dict[str, str]:
        """The type of each metric, which has one."""
        types: dict[str, str] = {}
        for metric in self.metrics:
            assert types.setdefault(metric.name, metric.type) == metric.type, metric.name
        return types

    def wait_for(self, good: Callable[[Agent], Any], seconds: float = 30.0) -> None:
        """Wait until what was received is good."""
        deadline = time.monotonic() + seconds
        while not good(self):
            with self._changed:
                left = deadline - time.monotonic()
                assert left > 0, f"not within {seconds:g} s; received were {self.messages}"
                self._changed.wait(min(left, 0.05))

    def _catch_up(self) -> None:
        """Send a datagram, and wait for it: what was sent before it is here, too."""
        if self._stream or self._closed:
            return
        with socket.socket(self._socket.family, socket.SOCK_DGRAM) as sender:
            with self._changed:
                self._markers_sent += 1
                target = self._markers_sent
            sender.sendto(_MARKER, self._socket.getsockname())
        with self._changed:
            assert self._changed.wait_for(lambda: self._markers_seen >= target, PATIENCE)

    def close(self) -> None:
        """Close the socket: from now on nobody listens."""
        if self._closed:
            return
        self._closed = True
        self._wake_in.send(b"x")
        self._thread.join(PATIENCE)
        for each in (self._socket, self._wake_in, self._wake_out, *self._connections):
            each.close()

    def _of(self, name: str, tags: tuple[str, ...], types: str) -> list[Metric]:
        return [
            each
            for each in self.metrics
            if each.name == name and each.type in types and set(tags) <= set(each.tags)
        ]

    def _receive(self) -> None:
        buffers: dict[socket.socket, bytes] = {}
        while True:
            sources = [self._socket, self._wake_out, *buffers]
            readable = select.select(sources, [], [])[0]
            # What arrived before close() is received first.
            for source in sorted(readable, key=lambda each: each is self._wake_out):
                if source is self._wake_out:
                    return
                if self._stream and source is self._socket:
                    connection, _ = self._socket.accept()
                    self._connections.append(connection)
                    buffers[connection] = b""
                elif self._stream:
                    self._receive_stream(source, buffers)
                else:
                    self._take(source.recv(65536))

    def _receive_stream(self, source: socket.socket, buffers: dict[socket.socket, bytes]) -> None:
        received = source.recv(65536)
        if not received:
            del buffers[source]
            return
        buffer = buffers[source] + received
        while len(buffer) >= 4 and len(buffer) >= 4 + struct.unpack("<I", buffer[:4])[0]:
            end = 4 + struct.unpack("<I", buffer[:4])[0]
            self._take(buffer[4:end])
            buffer = buffer[end:]
        buffers[source] = buffer

    def _take(self, datagram: bytes) -> None:
        with self._changed:
            if datagram == _MARKER:
                self._markers_seen += 1
                self._changed.notify_all()
                return
            self.datagrams.append(datagram)
            try:
                if len(datagram) > self.limit:
                    raise BadDatagram(f"{len(datagram)} bytes are more than {self.limit}")
                self._messages += parse(datagram)
            except BadDatagram as error:
                self.errors.append(error)
            self._changed.notify_all()


@contextmanager
def hanging_agent(path: Path) -> Iterator[None]:
    """A Unix socket that nobody reads, and that is full already."""
    with ExitStack() as stack:
        kind = (socket.AF_UNIX, socket.SOCK_DGRAM)
        stack.enter_context(socket.socket(*kind)).bind(str(path))
        filled = False
        while not filled:  # each sender may only fill a part of it
            sender = stack.enter_context(socket.socket(*kind))
            sender.connect(str(path))
            sender.setblocking(False)
            filled = True
            with suppress(BlockingIOError):
                while sender.send(b"x"):
                    filled = False
        yield
