"""The HTTP endpoint: paths, methods, formats, passwords.

One function answers; WSGI and ASGI are two ways to call it.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from urllib.parse import parse_qs

from amorsize.exporters.prometheus.negotiation import accepts_gzip

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

logger = logging.getLogger(__name__)

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

Render: TypeAlias = Callable[[str, Sequence[str]], tuple[str, bytes]]
"""Takes the ``Accept`` header and the wanted names; gives the content type and the page."""

METRICS_PATH = "/metrics"
HEALTHY_PATH = "/-/healthy"

_TEXT = ("Content-Type", "text/plain; charset=utf-8")
_GZIP_LEVEL = 1
"""A page of 100 functions shrinks to a thirtieth; the default level takes four times as long."""


class Answer(NamedTuple):
    """An HTTP response."""

    status: HTTPStatus
    headers: list[tuple[str, str]]
    body: bytes


class Endpoint:
    """Answers scrapes.

    Args:
        render: makes the page.
        failed: called when rendering failed.
        paths: of the page.
        credentials: user and password that the page asks for; None for everybody.
    """

    def __init__(
        self,
        render: Render,
        failed: Callable[[], None],
        *,
        paths: Sequence[str] = (METRICS_PATH,),
        credentials: tuple[str, str] | None = None,
    ) -> None:
        self._render = render
        self._failed = failed
        self._paths = frozenset(paths)
        self._credentials = None if credentials is None else ":".join(credentials).encode()

    def wsgi(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer as a WSGI application."""
        status, headers, body = self._answer(
            environ["REQUEST_METHOD"],
            environ.get("PATH_INFO", ""),
            environ.get("QUERY_STRING", ""),
            {
                "accept": environ.get("HTTP_ACCEPT", ""),
                "accept-encoding": environ.get("HTTP_ACCEPT_ENCODING", ""),
                "authorization": environ.get("HTTP_AUTHORIZATION", ""),
            },
        )
        start_response(f"{status.value} {status.phrase}", headers)
        return [body]

    async def asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as an ASGI 3 application, alone or mounted in another one."""
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        if scope["type"] != "http":
            raise ValueError(f"metrics are served over HTTP, not over {scope['type']}")
        status, headers, body = self._answer(
            scope["method"],
            scope["path"].removeprefix(scope.get("root_path", "")),
            scope.get("query_string", b"").decode("latin-1"),
            _joined(scope["headers"]),
        )
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers]
        await send({"type": "http.response.start", "status": status.value, "headers": encoded})
        await send({"type": "http.response.body", "body": body})

    def _answer(self, method: str, path: str, query: str, headers: dict[str, str]) -> Answer:
        answer = self._answer_get(method, path, query, headers)
        length = ("Content-Length", str(len(answer.body)))
        body = b"" if method == "HEAD" else answer.body
        return Answer(answer.status, [*answer.headers, length], body)

    def _answer_get(self, method: str, path: str, query: str, headers: dict[str, str]) -> Answer:
        if path != HEALTHY_PATH and path not in self._paths:
            return Answer(HTTPStatus.NOT_FOUND, [_TEXT], b"The metrics are at /metrics\n")
        if method not in ("GET", "HEAD"):
            allow = ("Allow", "GET, HEAD")
            return Answer(HTTPStatus.METHOD_NOT_ALLOWED, [_TEXT, allow], b"Use GET or HEAD\n")
        if path == HEALTHY_PATH:
            return Answer(HTTPStatus.OK, [_TEXT], b"Healthy\n")
        if not self._may_read(headers.get("authorization", "")):
            challenge = ("WWW-Authenticate", 'Basic realm="amorsize", charset="UTF-8"')
            return Answer(HTTPStatus.UNAUTHORIZED, [_TEXT, challenge], b"Who are you?\n")
        try:
            content_type, page = self._render(
                headers.get("accept", ""), parse_qs(query).get("name[]", [])
            )
        except Exception:
            # The run must not fail, and the scraper must see the failure.
            logger.exception("A scrape failed")
            self._failed()
            body = b"See the log of the program\n"
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, [_TEXT], body)
        sent = [("Content-Type", content_type), ("Vary", "Accept, Accept-Encoding")]
        if accepts_gzip(headers.get("accept-encoding", "")):
            page = gzip.compress(page, _GZIP_LEVEL)
            sent.append(("Content-Encoding", "gzip"))
        return Answer(HTTPStatus.OK, sent, page)

    def _may_read(self, authorization: str) -> bool:
        if self._credentials is None:
            return True
        scheme, _, encoded = authorization.partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            given = base64.b64decode(encoded.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(given, self._credentials)


def _joined(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Read headers; those of one name are one list, as in WSGI."""
    joined: dict[str, str] = {}
    for encoded_name, encoded_value in headers:
        name, value = encoded_name.decode("latin-1"), encoded_value.decode("latin-1")
        joined[name] = f"{joined[name]},{value}" if name in joined else value
    return joined
