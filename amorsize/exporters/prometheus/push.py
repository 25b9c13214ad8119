"""Numbers of short runs: brought to a Pushgateway, or to a file, before the program is gone.

::

    end of a run, interval, exit ──> Delivery ── one token ──> Sender's thread
                                                                  └─ page() ──> deliver(bytes)

The page is rendered when it is sent, not when that was asked for: what waits never grows old,
and one token waiting stands for any number of runs that ended meanwhile.
"""

from __future__ import annotations

import base64
import http.client
import re
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from amorsize.errors import InvalidTypeError, InvalidValueError
from amorsize.exporters.metrics import METRICS
from amorsize.exporters.prometheus.listening import check_credentials, check_file
from amorsize.exporters.prometheus.page import PLAIN
from amorsize.exporters.sender import RefusedError, Sender

TIMEOUT_SECONDS = 5.0
"""An attempt may wait so long for the gateway's next bytes."""

SENDER_BOUNDS: dict[str, Any] = {"capacity": 1, "batch_items": 2, "linger_seconds": 0.5}
"""Runs that end in quick succession are told of together, twice a second at most."""

_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_OWN_LABELS = {label for metric in METRICS for label in metric.labels} | {"le"}
_REFUSED_CHARACTERS = 200


class Pushgateway:
    """A group of metrics on a Pushgateway.

    Pushes replace the metrics of the same names in the group and leave others (``POST``, not
    ``PUT``): a job that fails before its first success keeps the time of the last one, which
    alerts ask for.

    Args: those of :func:`~amorsize.exporters.prometheus.enable_prometheus`, without their prefix.

    Raises:
        InvalidTypeError, InvalidValueError: one of them is wrong. No message shows a secret.
    """

    def __init__(
        self,
        url: str,
        *,
        job: str | None,
        grouping_key: Mapping[str, str] | None = None,
        user: str | None = None,
        password: str | None = None,
        token: str | None = None,
        cafile: Any = None,
        certfile: Any = None,
        keyfile: Any = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        scheme = _check_url(url)
        if job is None:
            raise InvalidValueError(
                "pushgateway needs job, the name under which it keeps the numbers; "
                'pass job="nightly", say'
            )
        group = [("job", _check_text("job", job)), *_check_grouping_key(grouping_key)]
        path = "/".join(_path_of(label, value) for label, value in group)
        self._url = f"{url.rstrip('/')}/metrics/{path}"
        self._headers = {"Content-Type": PLAIN}
        authorization = _authorization(user, password, token)
        if authorization is not None:
            self._headers["Authorization"] = authorization
        self._timeout_seconds = timeout_seconds
        context = _client_context(scheme, cafile, certfile, keyfile)
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=context), _NoRedirects
        )

    def __repr__(self) -> str:
        return f"<Pushgateway {self._url}>"

    def push(self, page: bytes) -> None:
        """Send a page.

        Raises:
            RefusedError: the gateway does not want it, now or later.
            OSError, http.client.HTTPException: this attempt failed.
        """
        request = urllib.request.Request(self._url, data=page, headers=self._headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout_seconds) as response:
                response.read(_REFUSED_CHARACTERS)
        except urllib.error.HTTPError as error:
            with error:
                if error.code >= 500 or error.code in (408, 429):
                    raise ConnectionError(f"the Pushgateway answered {error.code}") from None
                try:
                    said = error.read(_REFUSED_CHARACTERS).decode("utf-8", "replace").strip()
                except (OSError, http.client.HTTPException):
                    said = ""
                raise RefusedError(f"the Pushgateway answered {error.code}: {said}") from None


class Delivery:
    """Delivers the present page when asked to, on a background thread.

    Args:
        new_sender: makes the sender; :meth:`amorsize.exporters.base.Exporter.new_sender`.
        page: renders the page.
        deliver: brings it to its destination.
    """

    def __init__(
        self,
        new_sender: Callable[..., Sender[Any]],
        page: Callable[[], bytes],
        deliver: Callable[[bytes], None],
    ) -> None:
        self._page = page
        self._deliver = deliver
        self._lock = threading.RLock()  # a signal handler may ask, too
        self._asked = False
        self._batch: object = None
        self._sender = new_sender(self._send, **SENDER_BOUNDS)

    def ask(self) -> None:
        """Have the page delivered soon. Never waits."""
        with self._lock:
            if self._asked:
                return  # one that waits will show what is true when it is sent
            self._asked = True
        self._sender.put(object())

    def _send(self, batch: list[object]) -> None:
        with self._lock:
            if batch[0] is not self._batch:  # in a further attempt somebody may have asked again
                self._asked, self._batch = False, batch[0]
        page = self._page()
        if page:  # the exporter was closed meanwhile
            self._deliver(page)


class Interval:
    """Calls something at an interval, from a daemon thread, while there is a reason to.

    Args:
        seconds: between two calls.
        has_reason: asked before each call.
        act: called.
    """

    def __init__(
        self, seconds: float, has_reason: Callable[[], bool], act: Callable[[], None]
    ) -> None:
        self._seconds = seconds
        self._has_reason = has_reason
        self._act = act
        self._reason = threading.Event()
        self._closing = threading.Event()
        self._lock = threading.RLock()  # likewise
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """There is a reason now. Never waits."""
        self._reason.set()
        with self._lock:
            if self._thread is None and not self._closing.is_set():
                thread = threading.Thread(target=self._work, name="amorsize-interval", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return  # no thread left: the end of the run is told all the same
                self._thread = thread

    def close(self) -> None:
        """End the thread, without waiting for it."""
        self._closing.set()
        self._reason.set()

    def _work(self) -> None:
        while True:
            self._reason.wait()
            if self._closing.wait(self._seconds):
                return
            self._reason.clear()
            if self._has_reason():
                self._reason.set()
                self._act()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Turns a redirection into an error: it would carry the credentials to somebody else."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def check_grouping(job: object, grouping_key: object) -> dict[str, str]:
    """Check ``job`` and ``grouping_key`` where they become labels of a text file."""
    labels = {} if job is None else {"job": _check_text("job", job)}
    return labels | dict(_check_grouping_key(grouping_key))


def check_interval(seconds: object) -> float | None:
    """Check ``push_interval``."""
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise InvalidTypeError(f"push_interval must be seconds, or None; got {seconds!r}")
    if not 1 <= seconds <= threading.TIMEOUT_MAX:
        raise InvalidValueError(
            f"push_interval must be at least 1 second, or None to push at the ends of runs only; "
            f"got {seconds!r}"
        )
    return float(seconds)


def _check_url(url: object) -> str:
    if not isinstance(url, str):
        raise InvalidTypeError(
            f"pushgateway must be a URL like 'http://pushgateway:9091'; got {url!r}"
        )
    try:
        parts = urlsplit(url)
        user, host, _ = parts.username or parts.password, parts.hostname, parts.port
    except ValueError:
        user, host = None, None
    if user is not None:
        raise InvalidValueError(
            "pushgateway must not hold a user or a password; pass pushgateway_user= and "
            "pushgateway_password="
        )
    printable = url.isascii() and url.isprintable() and " " not in url
    if not (host and printable and parts.scheme in ("http", "https")) or "@" in url:
        raise InvalidValueError(
            "pushgateway must be a URL like 'http://pushgateway:9091', with http or https and a "
            f"host{'' if '@' in url else f'; got {url!r}'}"
        )
    if parts.query or parts.fragment or "/metrics/job" in parts.path:
        raise InvalidValueError(
            "pushgateway must be the URL of the gateway alone; its job and grouping_key are "
            "settings of their own"
        )
    return parts.scheme


def _check_text(setting: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidTypeError(f"{setting} must be a string; got {value!r}")
    if not value:
        raise InvalidValueError(f"{setting} must not be empty")
    return value


def _check_grouping_key(grouping_key: object) -> list[tuple[str, str]]:
    if grouping_key is None:
        return []
    if not isinstance(grouping_key, Mapping):
        raise InvalidTypeError(
            f"grouping_key must be a mapping of label names to values; got {grouping_key!r}"
        )
    for label, value in grouping_key.items():
        if not isinstance(label, str) or not isinstance(value, str):
            raise InvalidTypeError(
                f"grouping_key must map strings to strings; got {label!r}: {value!r}"
            )
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
    return sorted(grouping_key.items())


def _path_of(label: str, value: str) -> str:
    """Write a label of the group as the gateway wants it in the path of its URL."""
    if value and "/" not in value:
        return f"{label}/{quote(value, safe='')}"
    encoded = base64.urlsafe_b64encode(value.encode()).decode() or "="
    return f"{label}@base64/{encoded}"


def _authorization(user: object, password: object, token: object) -> str | None:
    credentials = check_credentials("pushgateway_user", user, "pushgateway_password", password)
    if token is None:
        if credentials is None:
            return None
        return f"Basic {base64.b64encode(':'.join(credentials).encode()).decode()}"
    if credentials is not None:
        raise InvalidValueError("pass pushgateway_token, or a user and a password, not both")
    if not isinstance(token, str):
        raise InvalidTypeError(f"pushgateway_token must be a string; got a {type(token).__name__}")
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidValueError(
            "pushgateway_token must be printable ASCII without spaces or line ends"
        )
    return f"Bearer {token}"


def _client_context(
    scheme: str, cafile: object, certfile: object, keyfile: object
) -> ssl.SSLContext:
    files = {
        setting: None if path is None else check_file(setting, path)
        for setting, path in (
            ("pushgateway_cafile", cafile),
            ("pushgateway_certfile", certfile),
            ("pushgateway_keyfile", keyfile),
        )
    }
    given = [setting for setting, path in files.items() if path is not None]
    if given and scheme != "https":
        raise InvalidValueError(f"{' and '.join(given)} need a pushgateway URL with https")
    ca, cert, key = files.values()
    if key is not None and cert is None:
        raise InvalidValueError("pushgateway_keyfile needs pushgateway_certfile")
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert is not None:
            context.load_cert_chain(cert, key, password=b"")
    except OSError as error:
        raise InvalidValueError(
            f"{' and '.join(given)} must hold certificates, and a private key without a password, "
            f"in PEM format; they are refused: {error}"
        ) from None
    return context
