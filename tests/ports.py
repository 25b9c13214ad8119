"""Ports of 127.0.0.1 for servers that cannot choose one themselves."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A port that nothing else gets while the tests run.

    It is kept by a socket that is bound and does not listen: connections are refused, the system
    gives the port to nobody who asks for any, and a server that sets SO_REUSEADDR may listen on it.
    The socket's descriptor stays open on purpose, until this process ends: nobody knows earlier
    that no server needs the port any more.
    """
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    port: int = sock.getsockname()[1]
    sock.detach()
    return port
