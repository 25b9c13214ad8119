"""Who listens on a port, as far as the system tells."""

from __future__ import annotations

import os


def holder_of(port: int) -> str:
    """Describe the process that listens on a TCP port of this machine.

    Returns:
        Such as ``process 4711 (python3)``; "another program" where the system does not tell, as
        it may for processes of other users.
    """
    import psutil

    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError, RuntimeError):
        connections = []
    for connection in connections:
        if (
            connection.status == psutil.CONN_LISTEN
            and connection.laddr
            and connection.laddr.port == port
            and connection.pid is not None
        ):
            if connection.pid == os.getpid():
                return "this very process"
            # Not its command line: that may hold secrets.
            return f"process {connection.pid}{_name_of(connection.pid)}"
    return "another program"


def _name_of(pid: int) -> str:
    import psutil

    try:
        return f" ({psutil.Process(pid).name()})"
    except (psutil.Error, OSError):
        return ""
