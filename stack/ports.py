"""Finds free ports of 127.0.0.1, and checks for listeners."""

from __future__ import annotations

import socket

HOST = "127.0.0.1"


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        port: int = sock.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    """Whether a server could listen on ``port`` now."""
    with socket.socket() as sock:
        # As servers do: a port with connections in TIME_WAIT only is free.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
        except OSError:
            return False
        return True


def choose(wanted: int) -> int:
    """``wanted`` if it is free, otherwise one that is."""
    return wanted if is_free(wanted) else free_port()
