"""One attempt per export, with its cause: for the SDK's OTLP exporters, which repeat by themselves.

A sender repeats, so that the queue is bounded, losses are counted, and an exit waits for nothing.
It must know which answers may be repeated, and when: the table is the specification's
(https://opentelemetry.io/docs/specs/otlp/#failures). The SDK's exporters do not say: they return a
bare failure, after up to six attempts of their own, the cause of which is in their log.

So each request is made here: by the exporter's session (HTTP) or its client (gRPC), which then
raises what no retry of the SDK catches. Rejected: reading the SDK's log (its texts differ between
versions, a filter before ours drops repeated ones, and it cannot keep the SDK from repeating);
requests of our own, with encoders of the SDK's (all settings would have to be read here, too).
"""

from __future__ import annotations

from importlib.metadata import entry_points
from os import environ
from typing import Any

from amorsize.errors import ExporterError
from amorsize.exporters.http_client import retry_after
from amorsize.exporters.sender import RefusedError, RetryLaterError, describe_error

RETRYABLE_ANSWERS = frozenset({429, 502, 503, 504})
RETRYABLE_CODES = frozenset(
    {"CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"}
)
"""Besides RESOURCE_EXHAUSTED, where the answer says when to come back."""

_CREDENTIALS = "opentelemetry_otlp_credential_provider"


class AttemptFailedError(Exception):
    """Ends an export of the SDK's; the cause is in ``SingleAttempt.failure``."""


class SingleAttempt:
    """Makes an OTLP exporter of the SDK's, and remembers how its last request failed.

    Args:
        kind: the exporter's class.
        signal: ``traces`` or ``metrics``.
        grpc: whether it speaks gRPC.

    Attributes:
        exporter: the exporter.
        failure: what the last request failed with, for a sender; None where none was made.
    """

    def __init__(self, kind: Any, signal: str, *, grpc: bool) -> None:
        self.failure: Exception | None = None
        self.exporter: Any = kind() if grpc else kind(session=self._session(signal))
        self._grpc = grpc

    def export(self, batch: Any) -> object:
        """Export once.

        Returns:
            The exporter's result; None where its request failed.
        """
        self.failure = None
        if self._grpc and type(self.exporter._client) is not _Client:
            self.exporter._client = _Client(self.exporter._client, self)
        try:
            return self.exporter.export(batch)
        except AttemptFailedError:
            return None

    def reconnect(self) -> None:
        """Open another channel where the SDK would: a channel that has failed waits for long."""
        renew = getattr(self.exporter, "_initialize_channel_and_stub", None)
        if renew is not None:
            self.exporter._channel.close()
            renew()

    def _session(self, signal: str) -> Any:
        """Make a session of ``requests``, or have the program's credential provider make it."""
        import requests

        variable = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_{}CREDENTIAL_PROVIDER"
        name = environ.get(variable.format("")) or environ.get(
            variable.format(f"{signal.upper()}_")
        )
        session: Any = requests.Session()
        if name:
            found = next(iter(entry_points(group=_CREDENTIALS, name=name)), None)
            if found is None:
                raise ExporterError(f"no installed package has the credential provider {name!r}")
            session = found.load()()
        request = session.request

        def request_once(*args: Any, **kwargs: Any) -> Any:
            # A redirection would pass the headers, and with them credentials, to somebody else.
            kwargs["allow_redirects"] = False
            try:
                response = request(*args, **kwargs)
            except requests.RequestException as error:
                self.failure = ConnectionError(_cause_of(error))
                raise AttemptFailedError from None
            if not 200 <= response.status_code < 300:
                self.failure = _failure_of_answer(response)
                raise AttemptFailedError
            return response

        session.request = request_once
        return session


class _Client:
    """A client of gRPC whose failures are those of one attempt."""

    def __init__(self, client: Any, attempt: SingleAttempt) -> None:
        self._client = client
        self._attempt = attempt

    def Export(self, *args: Any, **kwargs: Any) -> Any:
        import grpc

        try:
            return self._client.Export(*args, **kwargs)
        except grpc.RpcError as error:
            self._attempt.failure = _failure_of_call(error)
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                self._attempt.reconnect()
            raise AttemptFailedError from None


def _failure_of_answer(response: Any) -> Exception:
    status = response.status_code
    text = " ".join(filter(None, ("the backend answered", str(status), response.reason)))
    if message := _message_of(response):
        text += f": {message}"
    if status not in RETRYABLE_ANSWERS:
        return RefusedError(text)
    wait = retry_after(response.headers.get("Retry-After"))
    return ConnectionError(text) if wait is None else RetryLaterError(text, wait)


def _message_of(response: Any) -> str:
    """Return the message of the ``Status`` that an answer has, unless it is about credentials."""
    from google.protobuf.message import DecodeError
    from google.rpc.status_pb2 import Status

    if response.status_code in (401, 403):
        return ""  # it may repeat them
    if response.headers.get("Content-Type", "").partition(";")[0] != "application/x-protobuf":
        return ""
    try:
        return str(Status.FromString(response.content).message)
    except DecodeError:
        return ""


def _failure_of_call(error: Any) -> Exception:
    code = error.code().name
    text = f"the backend answered {code}: {error.details() or 'no details'}"
    wait = _retry_delay(error.trailing_metadata() or ())
    if wait is not None and code in RETRYABLE_CODES | {"RESOURCE_EXHAUSTED"}:
        return RetryLaterError(text, wait)
    return ConnectionError(text) if code in RETRYABLE_CODES else RefusedError(text)


def _retry_delay(metadata: Any) -> float | None:
    """Return the seconds of a ``RetryInfo`` in the details of a call's status; None without one."""
    from google.protobuf.message import DecodeError
    from google.rpc.error_details_pb2 import RetryInfo
    from google.rpc.status_pb2 import Status

    for key, value in metadata:
        if key != "grpc-status-details-bin":
            continue
        try:
            details = Status.FromString(value).details
            for detail in details:
                info = RetryInfo()
                if detail.Unpack(info):
                    return float(info.retry_delay.ToTimedelta().total_seconds())
        except DecodeError:
            return None
    return None


def _cause_of(error: Any) -> str:
    """Describe what ``requests`` failed for: its texts begin with pools and retries."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return describe_error(reason if isinstance(reason, Exception) else error)
