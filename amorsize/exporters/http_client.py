"""HTTP requests of exporters: bounded, not redirected, divided into retries and refusals."""

from __future__ import annotations

import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from amorsize.exporters.sender import RefusedError, RetryLaterError

TIMEOUT_SECONDS = 5.0
"""An attempt may wait so long for the backend's next bytes."""

_QUOTED_CHARACTERS = 200


class HttpClient:
    """Sends requests to one backend.

    Args:
        backend: its name, for messages.
        context: TLS; None for what the system trusts.
        timeout_seconds: how long an attempt may wait for the backend's next bytes.
        quotes_answers: whether an error quotes what the backend answered. Not for a
            backend that repeats secrets.
    """

    def __init__(
        self,
        backend: str,
        *,
        context: ssl.SSLContext | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        quotes_answers: bool = False,
    ) -> None:
        self._backend = backend
        self._timeout_seconds = timeout_seconds
        self._quotes_answers = quotes_answers
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=context), _NoRedirects
        )

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Post once.

        Raises:
            RefusedError: the backend will not accept this later either.
            RetryLaterError: it names the time of the next attempt.
            OSError, http.client.HTTPException: this attempt failed.
        """
        self.request("POST", url, headers, body)

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        most_bytes: int = _QUOTED_CHARACTERS,
    ) -> bytes:
        """Send a request once; its errors are those of :meth:`post`.

        Returns:
            The answer, up to ``most_bytes``.
        """
        request = urllib.request.Request(url, data=body, headers=dict(headers), method=method)
        try:
            with self._opener.open(request, timeout=self._timeout_seconds) as response:
                answer: bytes = response.read(most_bytes)
                return answer
        except urllib.error.HTTPError as error:
            with error:
                answered = f"{self._backend} answered {error.code}"
                if error.code >= 500 or error.code in (408, 429):
                    wait = retry_after(error.headers.get("Retry-After"))
                    if wait is not None:
                        raise RetryLaterError(answered, wait) from None
                    raise ConnectionError(answered) from None
                why = f": {_quote(error)}" if self._quotes_answers else f" ({error.reason})"
                raise RefusedError(f"{answered}{why}") from None


def retry_after(header: str | None) -> float | None:
    """Return the seconds that a backend asks to wait, by its header ``Retry-After``; or None.

    It is a number of seconds, or a date (RFC 9110, section 10.2.3).

    >>> retry_after("120"), retry_after("soon")
    (120.0, None)
    """
    value = (header or "").strip()
    if value.isdecimal() and value.isascii():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
        return max(0.0, at.timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _quote(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(_QUOTED_CHARACTERS).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException):
        return ""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Turns a redirection into an error: it would pass the credentials to somebody else."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None
