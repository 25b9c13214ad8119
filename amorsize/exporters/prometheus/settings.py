"""The settings of Prometheus, as ``enable_prometheus()`` describes them: named and checked once.

They belong together in two groups: how scrapers reach the metrics, and where they are delivered.
"""

from __future__ import annotations

import base64
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from amorsize.errors import InvalidTypeError, InvalidValueError
from amorsize.exporters.metrics import METRICS
from amorsize.exporters.prometheus.file_lock import HAS_FILE_LOCKS
from amorsize.exporters.settings import (
    AnyPath,
    check_credentials,
    check_file,
    check_interval,
    check_optional_switch,
    check_path,
    check_token,
    refuse_without,
    split_url,
)
from amorsize.workers.names import MAX_CHARACTERS

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

DEFAULT_ADDR = "127.0.0.1"

DEFAULT_PORT = 9464
"""The port that OpenTelemetry's Prometheus exporters use too."""

PORT_VARIABLE = "AMORSIZE_PROMETHEUS_PORT"

DIRECTORY_VARIABLE = "AMORSIZE_PROMETHEUS_MULTIPROCESS_DIR"

PUSH_SECONDS = 15.0
"""Between two pushes: the interval at which Prometheus is mostly configured to scrape."""

TEXTFILE_SUFFIX = ".prom"
"""The node exporter reads no files of other names."""

_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_OWN_LABELS = {label for metric in METRICS for label in metric.labels} | {"le"}


@dataclass(frozen=True)
class ListenSettings:
    """How scrapers reach the metrics. ``port`` and ``listen`` are resolved where it listens."""

    port: int | None = None
    addr: str = DEFAULT_ADDR
    _: KW_ONLY
    listen: bool | None = None
    certfile: AnyPath | None = None
    keyfile: AnyPath | None = None
    client_cafile: AnyPath | None = None
    client_auth_required: bool | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    file_sd: AnyPath | None = None

    def __post_init__(self) -> None:
        check_optional_switch("listen", self.listen)
        if self.listen is False and self.port is not None:
            raise InvalidValueError(
                "port has no effect with listen=False; leave port out, or pass listen=True"
            )
        if not self.listens:
            self._refuse_all()
            return
        object.__setattr__(self, "port", resolve_port(self.port))
        object.__setattr__(self, "listen", True)
        if not isinstance(self.addr, str):
            raise InvalidTypeError(f"addr must be an IP address or a host name; got {self.addr!r}")
        if not self.addr:
            raise InvalidValueError(
                "addr must not be empty; pass '0.0.0.0' to listen on all interfaces"
            )
        _ = self.tls, self.credentials, self.file_sd_directory  # each raises where it is wrong

    @property
    def listens(self) -> bool:
        """Whether anything listens."""
        return self.listen is not False

    @cached_property
    def tls(self) -> ssl.SSLContext | None:
        """The encryption of connections; None for plain HTTP."""
        required = self.client_auth_required
        check_optional_switch("client_auth_required", required)
        if self.certfile is None:
            refuse_without(
                "certfile: without it there is no TLS",
                keyfile=self.keyfile,
                client_cafile=self.client_cafile,
                client_auth_required=required,
            )
            return None
        if self.client_cafile is None and required is not None:
            raise InvalidValueError(
                "client_auth_required needs client_cafile, the authorities that sign the "
                "certificates of clients"
            )
        certfile = check_file("certfile", self.certfile)
        keyfile = None if self.keyfile is None else check_file("keyfile", self.keyfile)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            # Without a password to try, an encrypted key asks for one on the terminal, and waits.
            context.load_cert_chain(certfile, keyfile, password=b"")
            if self.client_cafile is not None:
                context.load_verify_locations(check_file("client_cafile", self.client_cafile))
                context.verify_mode = ssl.CERT_OPTIONAL if required is False else ssl.CERT_REQUIRED
        except OSError as error:  # ssl.SSLError is one
            raise InvalidValueError(
                "certfile, keyfile and client_cafile must hold a certificate, its private key "
                "without a password, and certificates, in PEM format; they cannot be loaded: "
                f"{error}"
            ) from None
        return context

    @cached_property
    def credentials(self) -> tuple[str, str] | None:
        """User and password of those who may read; None for everybody."""
        return check_credentials("user", self.user, "password", self.password)

    @cached_property
    def file_sd_directory(self) -> Path | None:
        """The directory of ``file_sd``."""
        if self.file_sd is None:
            return None
        directory = Path(check_path("file_sd", "directory", self.file_sd)).absolute()
        _require_writable("file_sd", directory)
        return directory

    def _refuse_all(self) -> None:
        settings = {
            "addr": None if self.addr == DEFAULT_ADDR else self.addr,
            "certfile": self.certfile,
            "keyfile": self.keyfile,
            "client_cafile": self.client_cafile,
            "client_auth_required": self.client_auth_required,
            "user": self.user,
            "password": self.password,
            "file_sd": self.file_sd,
        }
        given = [name for name, value in settings.items() if value is not None]
        if given:
            raise InvalidValueError(
                f"{' and '.join(given)} would have no effect, because no port is opened. Pass a "
                "port, or listen=True, or leave them out."
            )


@dataclass(frozen=True, kw_only=True)
class DeliverySettings:
    """Where the metrics are delivered: to a Pushgateway, to a text file."""

    pushgateway: str | None = None
    job: str | None = None
    grouping_key: Mapping[str, str] | None = None
    push_interval: float | None = PUSH_SECONDS
    pushgateway_user: str | None = None
    pushgateway_password: str | None = field(default=None, repr=False)
    pushgateway_token: str | None = field(default=None, repr=False)
    pushgateway_cafile: AnyPath | None = None
    pushgateway_certfile: AnyPath | None = None
    pushgateway_keyfile: AnyPath | None = None
    textfile: AnyPath | None = None

    def __post_init__(self) -> None:
        if self.pushgateway is None:
            refuse_without(
                "pushgateway",
                pushgateway_user=self.pushgateway_user,
                pushgateway_password=self.pushgateway_password,
                pushgateway_token=self.pushgateway_token,
                pushgateway_cafile=self.pushgateway_cafile,
                pushgateway_certfile=self.pushgateway_certfile,
                pushgateway_keyfile=self.pushgateway_keyfile,
            )
        else:
            _check_gateway_url(self.pushgateway)
            if self.job is None:
                raise InvalidValueError(
                    "pushgateway needs job, the name under which it keeps the metrics; "
                    'pass one, such as job="nightly"'
                )
            _ = self.gateway_authorization, self.gateway_tls  # each raises where it is wrong
        if not self.delivers:
            refuse_without("pushgateway or textfile", job=self.job, grouping_key=self.grouping_key)
        _ = self.group, self.textfile_path
        check_interval(
            "push_interval", self.push_interval, none_means="to push at the ends of runs only"
        )

    @property
    def delivers(self) -> bool:
        """Whether the metrics are delivered anywhere."""
        return self.pushgateway is not None or self.textfile is not None

    @cached_property
    def group(self) -> dict[str, str]:
        """``job`` and ``grouping_key``, the labels of delivered metrics."""
        group = {} if self.job is None else {"job": _check_text("job", self.job)}
        return group | _check_grouping_key(self.grouping_key)

    @cached_property
    def gateway_authorization(self) -> str | None:
        """The header that says who pushes."""
        credentials = check_credentials(
            "pushgateway_user",
            self.pushgateway_user,
            "pushgateway_password",
            self.pushgateway_password,
        )
        if self.pushgateway_token is None:
            if credentials is None:
                return None
            return f"Basic {base64.b64encode(':'.join(credentials).encode()).decode()}"
        if credentials is not None:
            raise InvalidValueError("pass pushgateway_token, or a user and a password, not both")
        check_token("pushgateway_token", self.pushgateway_token)
        return f"Bearer {self.pushgateway_token}"

    @cached_property
    def gateway_tls(self) -> ssl.SSLContext | None:
        """The encryption of pushes; None where the gateway's URL has none."""
        settings = {
            "pushgateway_cafile": self.pushgateway_cafile,
            "pushgateway_certfile": self.pushgateway_certfile,
            "pushgateway_keyfile": self.pushgateway_keyfile,
        }
        files = {
            name: check_file(name, path) for name, path in settings.items() if path is not None
        }
        cert, key = files.get("pushgateway_certfile"), files.get("pushgateway_keyfile")
        if not str(self.pushgateway).lower().startswith("https:"):
            if files:
                raise InvalidValueError(f"{' and '.join(files)} need a pushgateway URL with https")
            return None
        if key is not None and cert is None:
            raise InvalidValueError("pushgateway_keyfile needs pushgateway_certfile")
        try:
            context = ssl.create_default_context(cafile=files.get("pushgateway_cafile"))
            if cert is not None:
                context.load_cert_chain(cert, key, password=b"")
        except OSError as error:
            raise InvalidValueError(
                f"{' and '.join(files)} must hold certificates, and a private key without a "
                f"password, in PEM format; they cannot be loaded: {error}"
            ) from None
        return context

    @cached_property
    def textfile_path(self) -> Path | None:
        """The path of ``textfile``."""
        if self.textfile is None:
            return None
        path = Path(check_path("textfile", "file", self.textfile)).absolute()
        if path.suffix != TEXTFILE_SUFFIX:
            raise InvalidValueError(
                f"textfile must end in {TEXTFILE_SUFFIX}, because the node exporter reads only "
                f"such files; got '{self.textfile}'. Pass '{path.with_suffix(TEXTFILE_SUFFIX)}'?"
            )
        _require_writable("textfile", path.parent)
        return path


@dataclass(frozen=True, kw_only=True)
class MultiprocessSettings:
    """Whether, and where, the processes of a program add up their metrics."""

    multiprocess: bool | None = None
    multiprocess_dir: AnyPath | None = None

    def __post_init__(self) -> None:
        check_optional_switch("multiprocess", self.multiprocess)
        if self.multiprocess is False and self.multiprocess_dir is not None:
            raise InvalidValueError("multiprocess_dir would have no effect with multiprocess=False")
        if self.multiprocess and not HAS_FILE_LOCKS:
            raise InvalidValueError("multiprocess needs the fcntl module, which this system lacks")
        _ = self.multiprocess_base  # raises where it is wrong

    @cached_property
    def multiprocess_base(self) -> Path | None:
        """The directory that is named, by the setting or by the environment."""
        directory, named = self.multiprocess_dir, "multiprocess_dir"
        if directory is None and self.multiprocess is not False:
            directory = os.environ.get(DIRECTORY_VARIABLE) or None
            named = f"the environment variable {DIRECTORY_VARIABLE}"
        if directory is None:
            return None
        path = Path(check_path(named, "directory", directory)).absolute()
        _require_writable(named, path)
        return path


@dataclass(frozen=True)
class PrometheusSettings(MultiprocessSettings, DeliverySettings, ListenSettings):
    """All that :func:`~amorsize.exporters.prometheus.enable_prometheus` takes."""

    registry: CollectorRegistry | None = None

    def __post_init__(self) -> None:
        if self.registry is not None and not _is_registry(self.registry):
            raise InvalidTypeError(
                "registry must be a prometheus_client.CollectorRegistry, or None; got "
                f"{self.registry!r}"
            )
        ListenSettings.__post_init__(self)
        DeliverySettings.__post_init__(self)
        MultiprocessSettings.__post_init__(self)

    @property
    def is_multiprocess(self) -> bool:
        """Whether the metrics are those of all processes of the program.

        By default where the directory is named, and where a server of the application's has the
        page, because it may have several processes.
        """
        if self.multiprocess is None:
            is_mounted = not self.listens and not self.delivers
            is_wanted = self.multiprocess_base is not None or is_mounted
            return is_wanted and HAS_FILE_LOCKS
        return self.multiprocess

    @property
    def listens(self) -> bool:
        """Whether anything listens: by default where nothing is delivered, or a port is given."""
        if self.listen is None:
            return self.port is not None or not self.delivers
        return self.listen


def _is_registry(value: object) -> bool:
    try:
        from prometheus_client import CollectorRegistry  # loaded already, if it is one
    except ImportError:
        return False
    return isinstance(value, CollectorRegistry)


def resolve_port(port: int | None) -> int:
    """Check a port; None stands for the environment's, or else for the default."""
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


def _check_gateway_url(url: object) -> None:
    if not isinstance(url, str):
        raise InvalidTypeError(
            f"pushgateway must be a URL like 'http://pushgateway:9091'; got {url!r}"
        )
    parts = split_url(url)
    if parts is not None and "@" in parts.netloc:
        raise InvalidValueError(
            "pushgateway must not hold a user or a password; pass pushgateway_user= and "
            "pushgateway_password="
        )
    if parts is None or "@" in url:
        raise InvalidValueError(
            "pushgateway must be a URL like 'http://pushgateway:9091', with http or https and a "
            f"host{'' if '@' in url else f'; got {url!r}'}"
        )
    if parts.query or parts.fragment or "/metrics/job" in parts.path:
        raise InvalidValueError(
            "pushgateway must be the URL of the gateway alone; its job and grouping_key are "
            "settings of their own"
        )


def _check_text(setting: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidTypeError(f"{setting} must be a string; got {value!r}")
    if not value:
        raise InvalidValueError(f"{setting} must not be empty")
    _check_length(setting, value)
    return value


def _check_length(setting: str, text: str) -> None:
    """Refuse a label that is longer than a page should repeat in each series."""
    if len(text) > MAX_CHARACTERS:
        raise InvalidValueError(
            f"{setting} must have at most {MAX_CHARACTERS} characters; got {len(text)}"
        )


def _check_grouping_key(grouping_key: object) -> dict[str, str]:
    if grouping_key is None:
        return {}
    if not isinstance(grouping_key, Mapping):
        raise InvalidTypeError(
            f"grouping_key must be a mapping of label names to values; got {grouping_key!r}"
        )
    for label, value in grouping_key.items():
        if not isinstance(label, str) or not isinstance(value, str):
            raise InvalidTypeError(
                f"grouping_key must map strings to strings; got {label!r}: {value!r}"
            )
        _check_length("names in grouping_key", label)
        _check_length("values in grouping_key", value)
        if not _LABEL.fullmatch(label) or label.startswith("__"):
            raise InvalidValueError(
                "names in grouping_key must be letters, digits and underscores, and begin with "
                f"neither a digit nor two underscores; got {label!r}"
            )
        if label == "job" or label in _OWN_LABELS:
            raise InvalidValueError(
                f"grouping_key must not hold {label!r}, which "
                + ("is passed as job=" if label == "job" else "is a label of the metrics")
            )
    return dict(sorted(grouping_key.items()))


def _require_writable(setting: str, directory: Path) -> None:
    """Refuse a directory that does not exist, or where this user may not write."""
    if not directory.is_dir():
        raise InvalidValueError(
            f"{setting} must be in an existing directory; '{directory}' is not one. Create it "
            "first."
        )
    if not os.access(directory, os.W_OK | os.X_OK):
        raise InvalidValueError(
            f"{setting} must be in a directory that this user may write to; '{directory}' is not "
            "writable."
        )
