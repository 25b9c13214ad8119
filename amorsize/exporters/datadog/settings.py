"""The settings of Datadog, as ``enable_datadog()`` describes them; and ``DD_*`` variables."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from amorsize.errors import InvalidTypeError, InvalidValueError
from amorsize.exporters.datadog.events import KINDS, datagram_size
from amorsize.exporters.settings import AnyPath, check_token, split_url

if TYPE_CHECKING:
    from datadog.dogstatsd.base import DogStatsd

DEFAULT_SITE = "datadoghq.com"

NOT_IN_TAGS = re.compile(r"[^\w\-:/.]|:$")
"""Characters that a tag cannot hold."""

CONSTANT_TAGS_BYTES = 500

_CLIENT_METHODS = (
    "count",
    "gauge",
    "distribution",
    "event",
    "service_check",
    "flush_buffered_metrics",
)
_AGENT_VARIABLES = ("DD_DOGSTATSD_URL", "DD_AGENT_HOST", "DD_DOGSTATSD_PORT")


@dataclass(frozen=True, kw_only=True)
class DatadogSettings:
    """All that :func:`~amorsize.exporters.datadog.enable_datadog` takes."""

    host: str | None = None
    port: int | None = None
    socket_path: AnyPath | None = None
    tags: Sequence[str] = ()
    events: Sequence[str] = ("error", "worker_death")
    service_check: bool = True
    client: DogStatsd | None = None
    api_key: str | None = field(default=None, repr=False)
    api_host: str | None = None

    def __post_init__(self) -> None:
        _check_agent(self.host, self.port, self.socket_path, self.client)
        # As tuples: an iterator could be read once only.
        object.__setattr__(self, "events", _checked_events(self.events))
        object.__setattr__(self, "tags", checked_tags(self.tags))
        if self.api_host is not None and (self.has_agent or self.key is None):
            raise InvalidValueError(
                "api_host is for programs without an agent: it needs api_key, or DD_API_KEY, and "
                f"neither host, port, socket_path, client nor {', '.join(_AGENT_VARIABLES)}"
            )
        if self.uses_api:
            check_token("api_key", self.key)
            _check_api_url(self.api_url)

    @property
    def agent(self) -> dict[str, Any]:
        """The agent's address as it was passed, by the keywords of ``DogStatsd``."""
        path = None if self.socket_path is None else os.fspath(self.socket_path)
        where = {"host": self.host, "port": self.port, "socket_path": path}
        return {name: value for name, value in where.items() if value is not None}

    @cached_property
    def has_agent(self) -> bool:
        """Whether an agent is configured, here or in the environment."""
        in_environment = any(os.environ.get(name) for name in _AGENT_VARIABLES)
        return bool(self.agent) or self.client is not None or in_environment

    @cached_property
    def key(self) -> str | None:
        """The API key, passed or from the environment."""
        return os.environ.get("DD_API_KEY") or None if self.api_key is None else self.api_key

    @property
    def uses_api(self) -> bool:
        """Whether messages go to the HTTP API."""
        return self.key is not None and not self.has_agent

    @cached_property
    def api_url(self) -> str:
        """The URL of the HTTP API."""
        if self.api_host is not None:
            return self.api_host
        return f"https://api.{os.environ.get('DD_SITE') or DEFAULT_SITE}"


def checked_tags(tags: object) -> tuple[str, ...]:
    """Check tags; return them without the characters that Datadog does not accept."""
    if isinstance(tags, (str, Mapping)) or not isinstance(tags, Iterable):
        raise InvalidTypeError(f"tags must be a list of strings like 'team:data'; got {tags!r}")
    checked = tuple(tags)
    for tag in checked:
        if not isinstance(tag, str):
            raise InvalidTypeError(f"tags must be strings like 'team:data'; got {tag!r} among them")
        if not tag:
            raise InvalidValueError("tags must not be empty; got '' among them")
    return tuple(NOT_IN_TAGS.sub("_", tag) for tag in checked)


def add_environment_tags(
    tags: Sequence[str], constant: list[str], variables: Sequence[str]
) -> list[str]:
    """Add the tags of environment variables that the client does not read, each once."""
    words = [re.split(r"[,\s]+", os.environ.get(variable, "")) for variable in variables]
    given = [*tags, *checked_tags(filter(None, chain.from_iterable(words)))]
    tags = [tag for tag in dict.fromkeys(given) if tag not in constant]
    size = sum(datagram_size(tag) + 1 for tag in [*tags, *constant])
    if size > CONSTANT_TAGS_BYTES:
        raise InvalidValueError(
            f"tags have {size} bytes, together with those of the environment; more than "
            f"{CONSTANT_TAGS_BYTES} leave no room for metrics in a datagram"
        )
    return tags


def _check_agent(host: object, port: object, socket_path: object, client: object) -> None:
    where = {"host": host, "port": port, "socket_path": socket_path}
    given = [name for name, value in where.items() if value is not None]
    if client is not None:
        missing = [name for name in _CLIENT_METHODS if not callable(getattr(client, name, None))]
        if missing:
            raise InvalidTypeError(
                "client must be a datadog.dogstatsd.DogStatsd, or None; got an object of type "
                f"{type(client).__name__} without {', '.join(missing)}"
            )
        if given:
            raise InvalidValueError(
                f"pass either {' and '.join(given)}, or client, which has its agent's address"
            )
    if socket_path is not None:
        if len(given) > 1:
            raise InvalidValueError("pass either socket_path, or host and port")
        if not isinstance(socket_path, str | os.PathLike):
            raise InvalidTypeError(f"socket_path must be a path, or None; got {socket_path!r}")
    if host is not None:
        if not isinstance(host, str):
            raise InvalidTypeError(f"host must be a string, or None; got {host!r}")
        if not host:
            raise InvalidValueError("host must not be empty; leave it out for this machine")
    if port is not None:
        if not isinstance(port, int) or isinstance(port, bool):
            raise InvalidTypeError(f"port must be a number, or None; got {port!r}")
        if not 1 <= port <= 65535:
            raise InvalidValueError(f"port must be from 1 to 65535, or None for 8125; got {port}")


def _checked_events(events: object) -> tuple[str, ...]:
    known = ", ".join(repr(kind) for kind in KINDS)
    if isinstance(events, str) or not isinstance(events, Iterable):
        raise InvalidTypeError(f"events must be a list of names; known are {known}; got {events!r}")
    kinds = tuple(events)
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise InvalidValueError(f"events must be known names, {known}; got {unknown[0]!r}")
    return kinds


def _check_api_url(url: object) -> None:
    if not isinstance(url, str):
        raise InvalidTypeError(f"api_host must be a URL, or None; got {url!r}")
    parts = split_url(url)
    if parts is None or parts.query or parts.fragment or "@" in url:
        raise InvalidValueError(
            "api_host (or the site in DD_SITE) must make a URL like 'https://api.datadoghq.eu', "
            f"without a user, a password or parameters{'' if '@' in url else f'; got {url!r}'}"
        )
