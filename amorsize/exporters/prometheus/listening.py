"""The listener of the Prometheus exporter: its address, and its file_sd entry."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from amorsize.errors import ExporterError, PortInUseError
from amorsize.exporters.prometheus.file_sd import FileSdEntry
from amorsize.exporters.prometheus.server import ScrapeServer
from amorsize.exporters.prometheus.settings import PORT_VARIABLE, ListenSettings

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


class Listener:
    """Serves an application at the settings' address, from now until :meth:`close`.

    Attributes:
        port: that it listens on.
        url: of the metrics, from this machine.

    Raises:
        PortInUseError: the port is taken.
        ExporterError: the address cannot be listened on, or the file_sd entry not be written.
    """

    def __init__(self, settings: ListenSettings, app: WSGIApplication) -> None:
        self._server = _bind(settings, app)
        self._entry: FileSdEntry | None = None
        self._directory = settings.file_sd_directory
        self.port = self._server.server_port
        self._scheme = "http" if settings.tls is None else "https"
        self._target = f"{_reachable(settings.addr)}:{self.port}"
        self.url = f"{self._scheme}://{self._target}/metrics"

    def start(self) -> None:
        """Begin to answer, and write the file_sd entry."""
        if self._directory is not None:
            try:
                self._entry = FileSdEntry(self._directory, self._target, self._scheme)
            except OSError as error:
                self._server.close()
                raise ExporterError(
                    f"no entry can be written to the file_sd directory: {error}"
                ) from error
        self._server.start()

    def close(self) -> None:
        """Remove the entry, and free the port."""
        try:
            if self._entry is not None:
                self._entry.remove()
        finally:
            self._server.close()

    def abandon(self) -> None:
        """Close the descriptors in a forked child; the parent goes on serving."""
        self._server.abandon()


def _bind(settings: ListenSettings, app: WSGIApplication) -> ScrapeServer:
    addr, port = settings.addr, settings.port
    assert port is not None  # resolved by the settings
    try:
        return ScrapeServer(addr, port, app, tls=settings.tls)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise ExporterError(
                f"the Prometheus exporter cannot listen on {addr} port {port}: {error}. "
                "Pass an addr of this machine, and a port that this user may open."
            ) from error
        in_use = PortInUseError(
            f"port {port} on {addr} is taken by {holder_of(port)}. Pass another port to "
            f"enable_prometheus(), or set {PORT_VARIABLE}; port=0 takes any free one: the "
            "exporter's .port is its number, and Prometheus finds it with file_sd=."
        )
        in_use.errno = error.errno
        raise in_use from None


def _reachable(addr: str) -> str:
    """Return the host of a URL for ``addr``, from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(addr, addr)
    return f"[{host}]" if ":" in host else host


def holder_of(port: int) -> str:
    """Describe the process that listens on a TCP port of this machine.

    Returns:
        Such as ``process 4711 (python3)``; "another program" where the system hides it, as it
        may for processes of other users.
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
            return f"process {connection.pid}{_program_of(connection.pid)}"
    return "another program"


def _program_of(pid: int) -> str:
    import psutil

    try:
        return f" ({psutil.Process(pid).name()})"
    except (psutil.Error, OSError):
        return ""
