"""A small WSGI server for scrapes that no client can block, with or without TLS.

A client may be silent, drip bytes, send noise, hang up or connect two hundred times at once: it
holds at most one daemon thread, for at most a few seconds, and nothing is printed. The servers
of the standard library and of prometheus_client wait for such a client without a bound.

::

    accept loop ──> one daemon thread per connection ──> handshake ──> app(environ, start_response)
        │
        └── ends connections whose request is not in by its deadline,
            and the oldest of them when there are too many
"""

from __future__ import annotations

import io
import logging
import os
import selectors
import socket
import ssl
import threading
import time
from contextlib import suppress
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from amorsize.exporters.prometheus.own_host import OwnHost, is_loopback

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 32
"""Connections at a time; a Prometheus server needs one."""

STALL_SECONDS = 5.0
"""The longest wait for a client's next bytes, or for it to read the whole answer."""

REQUEST_SECONDS = 10.0
"""The longest time in which a request has to arrive, however steadily its bytes drip."""


class ScrapeServer(WSGIServer):
    """Serves a WSGI application on one port, from daemon threads.

    Binding happens here; answering begins with :meth:`start`.

    Args:
        addr: the address to listen on, IPv4 or IPv6, or a host name.
        port: the port, 0 for any free one; ``server_port`` is the actual port.
        app: the application, called from several threads. On a loopback address it is asked only
            by requests whose Host header names this machine.
        tls: encrypts connections; None for plain HTTP.
        request_seconds: the longest time for a request, with the handshake before it.

    Raises:
        OSError: the address cannot be listened on.
    """

    allow_reuse_address = os.name == "posix"  # elsewhere it would share a port that is taken
    request_queue_size = 128

    def __init__(
        self,
        addr: str,
        port: int,
        app: WSGIApplication,
        *,
        tls: ssl.SSLContext | None = None,
        request_seconds: float = REQUEST_SECONDS,
    ) -> None:
        found = socket.getaddrinfo(addr, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, _, _, _, address = found[0]
        super().__init__(address, _Handler)  # type: ignore[arg-type]  # IPv6 has four parts
        self.socket.setblocking(False)
        # A server that only this machine can reach answers only requests that name it.
        is_local = is_loopback(str(self.server_address[0]))
        self.set_app(OwnHost(app, addr) if is_local else app)
        self._tls = tls
        self._request_seconds = request_seconds
        self._lock = threading.Lock()
        # Connections whose request is not in yet, oldest first, with their deadlines.
        self._incoming: dict[socket.socket, float] = {}
        self._answering: set[socket.socket] = set()
        self._wake, self._waker = socket.socketpair()
        self._thread = threading.Thread(
            target=self._accept_until_woken, name="amorsize-metrics", daemon=True
        )

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks the DNS for the name of this host.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stop answering and free the port. Requests that have arrived are still answered."""
        self._waker.send(b"\0")
        if self._thread.ident is not None:
            self._thread.join()
        for sock in (self.socket, self._wake, self._waker):
            sock.close()
        with self._lock:
            for connection in list(self._incoming):
                self._hang_up(connection)

    def abandon(self) -> None:
        """Close, in a forked child, the copies of all descriptors; the parent goes on serving."""
        for sock in (self.socket, self._wake, self._waker, *self._incoming, *self._answering):
            # Not close(), which waits for the files that the parent's threads made of it.
            descriptor = sock.detach()
            if descriptor >= 0:
                os.close(descriptor)

    def request_is_in(self, connection: socket.socket) -> None:
        """Called by a connection's own thread when the request has arrived."""
        with self._lock:
            if self._incoming.pop(connection, None) is not None:
                self._answering.add(connection)

    def _accept_until_woken(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select(self._end_overdue())]
                if self._wake in ready:
                    return
                if ready:
                    self._accept()

    def _end_overdue(self) -> float | None:
        """End connections past their deadline; return the seconds until the next one's."""
        now = time.monotonic()
        with self._lock:
            for connection, deadline in list(self._incoming.items()):
                if deadline > now:
                    return deadline - now
                self._hang_up(connection)
        return None

    def _accept(self) -> None:
        try:
            connection, address = self.socket.accept()
        except BlockingIOError:
            return  # the client has hung up already
        except OSError:
            time.sleep(0.05)  # no descriptor left, most likely: do not spin until there is one
            return
        if self._tls is not None:
            try:
                # The handshake waits for the client: the connection's own thread does it.
                connection = self._tls.wrap_socket(
                    connection, server_side=True, do_handshake_on_connect=False
                )
            except (OSError, ValueError):
                connection.close()
                return
        with self._lock:
            if len(self._incoming) + len(self._answering) >= MAX_CONNECTIONS:
                if not self._incoming:
                    connection.close()
                    return
                self._hang_up(next(iter(self._incoming)))
            self._incoming[connection] = time.monotonic() + self._request_seconds
        try:
            threading.Thread(target=self._answer, args=(connection, address), daemon=True).start()
        except RuntimeError:  # no thread left
            self._forget(connection)

    def _hang_up(self, connection: socket.socket) -> None:
        """Shut a connection down, for its thread to end. Call it with the lock held."""
        del self._incoming[connection]
        with suppress(OSError):
            # Not SSLSocket's shutdown, which removes the state that the reading thread uses.
            socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def _answer(self, connection: socket.socket, address: Any) -> None:
        try:
            self.finish_request(connection, address)
        except Exception as error:  # hung up, timed out, or sent noise
            logger.debug("A request from %s was not answered: %r", address, error)
        finally:
            self._forget(connection)

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._incoming.pop(connection, None)
            self._answering.discard(connection)
        self.shutdown_request(connection)


class _Handler(WSGIRequestHandler):
    server: ScrapeServer
    timeout = STALL_SECONDS
    disable_nagle_algorithm = True
    # wsgiref writes each header on its own; each system call is a chance to wait for the GIL.
    wbufsize = 65536

    def setup(self) -> None:
        if isinstance(self.request, ssl.SSLSocket):
            self.request.settimeout(self.timeout)
            self.request.do_handshake()
        super().setup()

    def parse_request(self) -> bool:
        is_valid = super().parse_request()
        if is_valid:
            self.server.request_is_in(self.connection)
        return is_valid

    def get_stderr(self) -> Any:
        return io.StringIO()  # where wsgiref would print the traceback of a broken connection

    def log_message(self, format: str, *args: Any) -> None:
        pass  # no access log
