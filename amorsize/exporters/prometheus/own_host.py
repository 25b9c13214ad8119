"""Answers requests that are meant for this machine alone, where only it can connect.

A web page of anyone's can name ``evil.example``, give that name the address 127.0.0.1, and have a
browser on this machine read what listens there (DNS rebinding). The browser sends the name in its
Host header.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@,/\s]+)(:[0-9]*)?")

_ANSWER = b"This server is reached by the names of its own machine only, such as localhost\n"


class OwnHost:
    """A WSGI application that passes requests with a host of this machine to another one.

    Args:
        app: answers them. Any other request gets 421.
        bound: the name or address that the server was to listen on.
    """

    def __init__(self, app: WSGIApplication, bound: str) -> None:
        self._app = app
        self._bound = bound.lower()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if is_own(environ.get("HTTP_HOST"), self._bound):
            return self._app(environ, start_response)
        headers = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(_ANSWER))),
        ]
        start_response("421 Misdirected Request", headers)
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else _ANSWER]


def is_own(host: str | None, bound: str) -> bool:
    """Whether a Host header names this machine; without one, as in HTTP/1.0, no browser asks.

    >>> is_own("localhost:9464", "127.0.0.1"), is_own("evil.example:9464", "127.0.0.1")
    (True, False)
    """
    if host is None:
        return True
    match = _HOST.fullmatch(host.strip())
    if match is None:
        return False
    name = match[1].lower().removesuffix(".")
    return name in ("localhost", bound) or is_loopback(name.strip("[]"))


def is_loopback(address: str) -> bool:
    """Whether only this machine can connect to an address; a name is none.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0"), is_loopback("here")
    (True, True, False, False)
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback
