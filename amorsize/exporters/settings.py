"""Settings of an exporter: one frozen class, checked when it is made, passed by its keywords.

A setting is named, with its type and default, in the settings class alone. The exporter's
constructor and its ``enable_*()`` take a settings object, and :func:`constructor` and
:func:`by_keywords` give them the signature of the settings class::

    @dataclass(frozen=True, kw_only=True)
    class WebhookSettings:
        url: str
        token: str | None = field(default=None, repr=False)  # a secret

        def __post_init__(self) -> None: ...  # raises where a setting is wrong

    class WebhookExporter(Exporter):
        @constructor(WebhookSettings)
        def __init__(self, settings: WebhookSettings) -> None: ...

    @by_keywords(WebhookSettings)
    def enable_webhook(settings: WebhookSettings) -> WebhookExporter:
        return enable_with(WebhookExporter, settings)

Users write ``WebhookExporter(url="...")`` and ``enable_webhook(url="...")``.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar
from urllib.parse import SplitResult, urlsplit

from amorsize.errors import InvalidTypeError, InvalidValueError
from amorsize.exporters.base import Exporter, enable_once

AnyPath: TypeAlias = str | os.PathLike[str]

P = ParamSpec("P")
OwnerT = TypeVar("OwnerT")
SettingsT = TypeVar("SettingsT")
ResultT = TypeVar("ResultT")
ExporterT = TypeVar("ExporterT", bound=Exporter)


def by_keywords(
    kind: Callable[P, SettingsT],
) -> Callable[[Callable[[SettingsT], ResultT]], Callable[P, ResultT]]:
    """Let a function that takes a settings object be called with its keywords.

    Args:
        kind: the settings class. :func:`settings_class` finds it again.
    """

    def decorate(function: Callable[[SettingsT], ResultT]) -> Callable[P, ResultT]:
        @functools.wraps(function)
        def called(*args: P.args, **keywords: P.kwargs) -> ResultT:
            return function(kind(*args, **keywords))

        returned = inspect.signature(function).return_annotation
        signature = inspect.signature(kind).replace(return_annotation=returned)
        called.__dict__.update(settings_class=kind, __signature__=signature)
        return called

    return decorate


def constructor(
    kind: Callable[P, SettingsT],
) -> Callable[[Callable[[OwnerT, SettingsT], None]], Callable[Concatenate[OwnerT, P], None]]:
    """Let an ``__init__`` that takes a settings object be called with its keywords."""

    def decorate(
        initialise: Callable[[OwnerT, SettingsT], None],
    ) -> Callable[Concatenate[OwnerT, P], None]:
        @functools.wraps(initialise)
        def called(owner: OwnerT, /, *args: P.args, **keywords: P.kwargs) -> None:
            initialise(owner, kind(*args, **keywords))

        owner = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        parameters = inspect.signature(kind).parameters.values()
        called.__dict__["__signature__"] = inspect.Signature([owner, *parameters])
        return called

    return decorate


def settings_class(enable: Callable[..., object]) -> Callable[..., object] | None:
    """Return the settings class of an ``enable_*()``; None where it has none."""
    return getattr(enable, "settings_class", None)


def enable_with(kind: type[ExporterT], settings: Any) -> ExporterT:
    """Enable an exporter with checked settings; see :func:`amorsize.exporters.base.enable_once`."""
    keywords = {each.name: getattr(settings, each.name) for each in fields(settings)}
    return enable_once(kind, keywords, lambda: kind(**keywords))


# --- checks of settings that several exporters have ----


def refuse_without(needed: str, **settings: object) -> None:
    """Refuse settings that have no effect without another one."""
    for setting, value in settings.items():
        if value is not None:
            raise InvalidValueError(f"{setting} needs {needed}")


def check_switch(setting: str, value: object) -> None:
    """Check that a setting is True or False."""
    if not isinstance(value, bool):
        raise InvalidTypeError(f"{setting} must be True or False; got {value!r}")


def check_optional_switch(setting: str, value: object) -> None:
    """Check that a setting is True, False or None."""
    if value is not None and not isinstance(value, bool):
        raise InvalidTypeError(f"{setting} must be True, False or None; got {value!r}")


def check_interval(setting: str, seconds: object, *, none_means: str = "") -> None:
    """Check seconds between two calls of an :class:`~amorsize.exporters.delivery.Interval`.

    Args:
        setting: the setting's name.
        seconds: its value.
        none_means: what None is for, where None is allowed.
    """
    if seconds is None and none_means:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        or_none = ", or None" if none_means else ""
        raise InvalidTypeError(f"{setting} must be seconds{or_none}; got {seconds!r}")
    if not 1 <= seconds <= threading.TIMEOUT_MAX:
        or_none = f", or None {none_means}" if none_means else ""
        raise InvalidValueError(f"{setting} must be at least 1 second{or_none}; got {seconds!r}")


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


def check_token(setting: str, token: object) -> None:
    """Check a token that is sent in a header; errors do not show it."""
    if not isinstance(token, str):
        raise InvalidTypeError(f"{setting} must be a string; got a {type(token).__name__}")
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidValueError(f"{setting} must be printable ASCII without spaces or line ends")


def check_file(setting: str, path: object) -> str:
    """Check that a setting names a file that can be read; return its path."""
    name = check_path(setting, "file", path)
    try:
        with open(name, "rb"):
            return name
    except OSError as error:
        raise InvalidValueError(
            f"{setting} must be a file that can be read; '{name}': {error.strerror}"
        ) from None


def check_path(setting: str, kind: str, path: object) -> str:
    """Check that a setting is a path: a string or an ``os.PathLike`` of one."""
    if not isinstance(path, str | os.PathLike) or isinstance(os.fspath(path), bytes):
        raise InvalidTypeError(f"{setting} must be the path of a {kind}; got {path!r}")
    return str(os.fspath(path))


def split_url(url: str) -> SplitResult | None:
    """Split the URL of an HTTP server; None where it is not one."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # raises where it is no number
    except ValueError:
        return None
    is_printable = url.isascii() and url.isprintable() and " " not in url
    return parts if is_printable and parts.hostname and parts.scheme in ("http", "https") else None
