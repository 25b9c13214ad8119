"""Where the Prometheus exporter listens, how it is protected, and how Prometheus finds it.

Settings are checked before anything is opened. What is opened is one :class:`Listener`.
"""

from __future__ import annotations

import errno
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amorsize.errors import ExporterError, InvalidTypeError, InvalidValueError, PortInUseError
from amorsize.exporters.prometheus.file_sd import Entry, checked_directory
from amorsize.exporters.prometheus.ports import holder_of
from amorsize.exporters.prometheus.server import ScrapeServer, tls_context

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

DEFAULT_PORT = 9464
"""The port that OpenTelemetry's Prometheus exporters use too."""

PORT_VARIABLE = "AMORSIZE_PROMETHEUS_PORT"
DEFAULT_ADDR = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class ListenSettings:
    """Checked settings of a :class:`Listener`. Its text shows no password."""

    port: int
    addr: str = DEFAULT_ADDR
    tls: ssl.SSLContext | None = None
    credentials: tuple[str, str] | None = None
    file_sd: Path | None = None

    def __repr__(self) -> str:
        return f"<ListenSettings {self.addr} port {self.port}>"


def listens(port: object, listen: object, *, delivers: bool) -> bool:
    """Decide whether to listen at all.

    Args:
        port: the setting; None when it was left out.
        listen: the setting; None when it was left out.
        delivers: whether the numbers go elsewhere, to a Pushgateway or a text file.
    """
    if listen is not None and not isinstance(listen, bool):
        raise InvalidTypeError(f"listen must be True, False or None; got {listen!r}")
    if listen is False and port is not None:
        raise InvalidValueError("port needs listen=True: with listen=False nothing listens")
    return listen if listen is not None else port is not None or not delivers


def refuse_settings_of_listening(settings: dict[str, Any]) -> None:
    """Refuse what says how to listen, where nothing does."""
    given = [
        name
        for name, value in settings.items()
        if value is not None and not (name == "addr" and value == DEFAULT_ADDR)
    ]
    if given:
        raise InvalidValueError(
            f"{' and '.join(given)} would have no effect: nothing listens. Pass a port, or "
            "listen=True, or leave them out."
        )


def refuse_without(needed: str, settings: Mapping[str, object]) -> None:
    """Refuse settings that have no effect without another one."""
    for setting, value in settings.items():
        if value is not None:
            raise InvalidValueError(f"{setting} needs {needed}")


def check_listen_settings(
    *,
    port: int | None,
    addr: str,
    certfile: Any,
    keyfile: Any,
    client_cafile: Any,
    client_auth_required: bool | None,
    user: str | None,
    password: str | None,
    file_sd: Any,
) -> ListenSettings:
    """Check what :func:`~amorsize.exporters.prometheus.enable_prometheus` was given.

    Raises:
        InvalidTypeError, InvalidValueError: which setting is wrong, and what to pass.
    """
    port = resolve_port(port)
    if not isinstance(addr, str):
        raise InvalidTypeError(f"addr must be an IP address or a host name; got {addr!r}")
    if not addr:
        raise InvalidValueError(
            "addr must not be empty; pass '0.0.0.0' to listen on all interfaces"
        )
    return ListenSettings(
        port=port,
        addr=addr,
        tls=_check_tls(certfile, keyfile, client_cafile, client_auth_required),
        credentials=check_credentials("user", user, "password", password),
        file_sd=None if file_sd is None else checked_directory(file_sd),
    )


def check_credentials(
    user_setting: str, user: object, password_setting: str, password: object
) -> tuple[str, str] | None:
    """Check a user and a password; errors show neither of them."""
    if user is None and password is None:
        return None
    for setting, value in ((user_setting, user), (password_setting, password)):
        if value is None:
            raise InvalidValueError(
                f"{user_setting} and {password_setting} belong together; {setting} is missing"
            )
        if not isinstance(value, str):
            raise InvalidTypeError(f"{setting} must be a string; got a {type(value).__name__}")
        if not value:
            raise InvalidValueError(f"{setting} must not be empty; leave both out for none")
    assert isinstance(user, str)
    assert isinstance(password, str)
    if ":" in user:  # RFC 7617: it ends at the first colon
        raise InvalidValueError(f"{user_setting} must not contain a colon")
    return user, password


def check_file(setting: str, path: object) -> str:
    """Check that a setting names a file that can be read."""
    if not isinstance(path, str | os.PathLike) or isinstance(os.fspath(path), bytes):
        raise InvalidTypeError(f"{setting} must be the path of a file; got {path!r}")
    name = str(os.fspath(path))
    try:
        with open(name, "rb"):
            return name
    except OSError as error:
        raise InvalidValueError(
            f"{setting} must be a file that can be read; '{name}': {error.strerror}"
        ) from None


def resolve_port(port: int | None) -> int:
    """Check a port; None is what the environment says, or else the default."""
    if port is not None:
        if isinstance(port, bool) or not isinstance(port, int):
            raise InvalidTypeError(f"port must be an integer from 0 to 65535; got {port!r}")
        if not 0 <= port <= 65535:
            raise InvalidValueError(f"port must be from 0 to 65535, 0 for any free one; got {port}")
        return port
    text = os.environ.get(PORT_VARIABLE, "").strip()
    if not text:
        return DEFAULT_PORT
    if not (text.isascii() and text.isdigit() and int(text[:6]) <= 65535):
        raise InvalidValueError(
            f"the environment variable {PORT_VARIABLE} must be a port from 0 to 65535, 0 for any "
            f"free one; it is {text!r}"
        )
    return int(text)


def _check_tls(
    certfile: object, keyfile: object, client_cafile: object, client_auth_required: object
) -> ssl.SSLContext | None:
    if client_auth_required is not None and not isinstance(client_auth_required, bool):
        raise InvalidTypeError(
            f"client_auth_required must be True, False or None; got {client_auth_required!r}"
        )
    if certfile is None:
        needing = {"keyfile": keyfile, "client_cafile": client_cafile}
        needing["client_auth_required"] = client_auth_required
        for setting, value in needing.items():
            if value is not None:
                raise InvalidValueError(f"{setting} needs certfile: without it there is no TLS")
        return None
    if client_cafile is None and client_auth_required is not None:
        raise InvalidValueError(
            "client_auth_required needs client_cafile, the authorities that sign the certificates "
            "of clients"
        )
    files = [
        None if path is None else check_file(setting, path)
        for setting, path in (
            ("certfile", certfile),
            ("keyfile", keyfile),
            ("client_cafile", client_cafile),
        )
    ]
    assert files[0] is not None
    try:
        return tls_context(
            files[0], files[1], files[2], client_required=client_auth_required is not False
        )
    except OSError as error:
        raise InvalidValueError(
            "certfile, keyfile and client_cafile must hold a certificate, its private key without "
            f"a password, and certificates, in PEM format; they are refused: {error}"
        ) from None


class Listener:
    """Serves an application where the settings say, from now until :meth:`close`.

    Attributes:
        port: that it listens on.
        url: of the metrics, from this machine.

    Raises:
        PortInUseError: the port is taken.
        ExporterError: the address cannot be listened on, or the file_sd entry not be written.
    """

    def __init__(self, settings: ListenSettings, app: WSGIApplication) -> None:
        self._server = _bind(settings, app)
        self._entry: Entry | None = None
        self._directory = settings.file_sd
        self.port = self._server.server_port
        self._scheme = "http" if settings.tls is None else "https"
        self._target = f"{_reachable(settings.addr)}:{self.port}"
        self.url = f"{self._scheme}://{self._target}/metrics"

    def start(self) -> None:
        """Begin to answer, and to be found."""
        if self._directory is not None:
            try:
                self._entry = Entry(self._directory, self._target, self._scheme)
            except OSError as error:
                self._server.close()
                raise ExporterError(
                    f"no entry can be written to the file_sd directory: {error}"
                ) from error
        self._server.start()

    def close(self) -> None:
        """Take the entry back, and free the port."""
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
            f"enable_prometheus(), or set {PORT_VARIABLE}; port=0 takes any free one, which the "
            "exporter's .port then tells, and which Prometheus finds with file_sd=."
        )
        in_use.errno = error.errno
        raise in_use from None


def _reachable(addr: str) -> str:
    """The host of a URL for ``addr``, from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(addr, addr)
    return f"[{host}]" if ":" in host else host
