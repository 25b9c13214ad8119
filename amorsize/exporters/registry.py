"""Exporters by name: amorsize's own, and those that other packages register.

A package registers one in the entry-point group ``amorsize.exporters``: the entry point's name is
the exporter's, its object an :class:`~amorsize.exporters.Exporter` class, or a function that
enables one and returns it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from amorsize.errors import (
    AmorsizeError,
    ExporterError,
    InvalidTypeError,
    InvalidValueError,
    MissingExtraError,
)
from amorsize.exporters.base import (
    CHILDREN_VARIABLE,
    Exporter,
    apply_once,
    attached_to,
    enable_once,
    enabled_stays,
    warn_inert,
)
from amorsize.exporters.sender import describe_error
from amorsize.exporters.settings import settings_class
from amorsize.hooks import Hook, HookManager
from amorsize.hooks.config import ExporterTables, handle_exporters, is_plain
from amorsize.workers.role import is_worker

logger = logging.getLogger(__name__)

GROUP = "amorsize.exporters"
"""The entry-point group."""

OWN = {
    "cloudwatch": "amorsize.exporters.cloudwatch:enable_cloudwatch",
    "datadog": "amorsize.exporters.datadog:enable_datadog",
    "opentelemetry": "amorsize.exporters.opentelemetry:enable_opentelemetry",
    "prometheus": "amorsize.exporters.prometheus:enable_prometheus",
}
"""amorsize's own exporters. Without entry points, they also work in a checkout."""


def enable(name: str, **settings: Any) -> Exporter:
    """Enable an exporter by its name.

    Args:
        name: ``"prometheus"``, or the name of an exporter that an installed package registers.
        **settings: those of its own ``enable_*()``.

    Returns:
        The exporter, attached to every execution. Called again with the same settings, the same
        one.

    Raises:
        InvalidValueError: there is no exporter of this name; the message lists those there are.
        InvalidTypeError: the name is no string, or the exporter has no such setting.
        MissingExtraError: the package that the exporter needs is not installed.
        ExporterError: the exporter cannot be loaded, or cannot be enabled as asked.

    Example:
        >>> import amorsize
        >>> with amorsize.enable("prometheus", port=0) as exporter:
        ...     results = amorsize.execute(abs, [-1, 2])
    """
    if not isinstance(name, str):
        raise InvalidTypeError(f"name must be the name of an exporter, a string; got {name!r}")
    return _enable(name, _require(name), settings)


def enable_named(names: str, origin: str) -> None:
    """Enable the exporters that an environment variable names: once, and not in inert children.

    An exporter that is enabled already stays as it is. A mistake in the variable, or in one that
    an exporter reads, is raised; where an exporter fails for another reason, such as a port that
    is taken, this is logged, and the run goes on without it.

    Args:
        names: the names, separated by commas.
        origin: the environment variable that holds them.

    Raises:
        InvalidValueError: a name is unknown, or a variable that an exporter reads is wrong. The
            next call raises it again.
        MissingExtraError: the package that an exporter needs is not installed.
    """
    apply_once(
        origin,
        lambda: _enable_all(names, origin),
        ignored=lambda: warn_ignored(f"The exporters that {origin} names are"),
    )


def warn_ignored(what: str) -> None:
    """Log that an environment variable is ignored in a child, unless that is a worker."""
    if not is_worker():
        warn_inert(what, f"Set {CHILDREN_VARIABLE}=1 to enable them in it")


def _enable_all(names: str, origin: str) -> None:
    found: dict[str, EntryPoint] = {}
    for name in filter(None, map(str.strip, names.split(","))):
        entry_point = _find(name)
        if entry_point is None:
            raise InvalidValueError(
                f"the environment variable {origin} names {name!r}, and there is no such "
                f"exporter; known are {_known()}. Separate several by commas."
            )
        found[name] = entry_point
    _enable_found({name: (each, {}) for name, each in found.items()}, origin)


def check_settings(name: str, settings: dict[str, Any], *, partial: bool = False) -> None:
    """Raise the error of :func:`enable` for a name or for settings that are wrong.

    Args:
        name: the exporter's.
        settings: checked by its settings class, where it has one; otherwise by their names alone.
        partial: whether further settings follow; then their names alone are checked.
    """
    target = _load(name, _require(name))
    _require_settings(name, target, settings, partial=partial)
    kind = settings_class(target)
    if kind is not None and not partial:
        kind(**settings)


def enable_configured(tables: dict[str, dict[str, Any]], origin: str | None) -> None:
    """Enable the exporters of a configuration file, once :func:`check_settings` knows them all.

    Args:
        tables: settings by the exporter's name.
        origin: the environment variable that names the file: then failures and exporters that
            are enabled already are treated as by :func:`enable_named`. None to raise them.
    """
    if origin is None:
        for name, settings in tables.items():
            enable(name, **settings)
        return
    found = {name: (_find(name), settings) for name, settings in tables.items()}
    _enable_found({name: (each, s) for name, (each, s) in found.items() if each}, origin)


def settings_of(manager: HookManager) -> tuple[dict[str, dict[str, Any]], list[Hook]]:
    """Return the settings of a manager's exporters by their names, and their hooks.

    Settings with default values are left out.

    Raises:
        InvalidValueError: an exporter was not enabled by its name, or has a setting that is no
            plain value. The message holds no value: it may be a secret.
    """
    tables: dict[str, dict[str, Any]] = {}
    hooks: list[Hook] = []
    for exporter, settings, its_hooks in attached_to(manager):
        name = exporter.name
        found = _find(name)
        if settings is None or found is None:
            raise InvalidValueError(
                f"{exporter!r} cannot be saved: only exporters that were enabled by "
                "amorsize.enable(), or by their enable_*() function, can be enabled again"
            )
        parameters = inspect.signature(_load(name, found)).parameters
        defaults = {each.name: each.default for each in parameters.values()}
        tables[name] = {}
        for setting, value in settings.items():
            if value is None or value == defaults.get(setting, inspect.Parameter.empty):
                continue
            if not is_plain(value):
                raise InvalidValueError(
                    f"the exporter {name!r} cannot be saved: its setting {setting!r} is an object "
                    f"of type {type(value).__qualname__}"
                )
            tables[name][setting] = value
        hooks += its_hooks
    return tables, hooks


handle_exporters(ExporterTables(check_settings, enable_configured, settings_of))


def _enable_found(found: dict[str, tuple[EntryPoint, dict[str, Any]]], origin: str) -> None:
    for name, (entry_point, settings) in found.items():  # none is enabled before all are known
        try:
            with enabled_stays():
                _enable(name, entry_point, settings)
        except (InvalidValueError, InvalidTypeError, MissingExtraError):
            raise
        except Exception as error:
            # Messages of amorsize's own errors are to be read in full, and hold no secrets.
            text = str(error) if isinstance(error, AmorsizeError) else describe_error(error)
            logger.error(
                "%s asks for the %s exporter, which failed: %s The run goes on without it.",
                origin,
                name,
                text if text.endswith(".") else f"{text}.",
            )


def _find(name: str) -> EntryPoint | None:
    if name in OWN:
        return EntryPoint(name, OWN[name], GROUP)
    candidates = {each.value: each for each in entry_points(group=GROUP, name=name)}
    if len(candidates) > 1:
        raise ExporterError(
            f"several packages register an exporter {name!r}: {', '.join(sorted(candidates))}. "
            "Uninstall all but one."
        )
    return next(iter(candidates.values()), None)


def _require(name: str) -> EntryPoint:
    found = _find(name)
    if found is None:
        raise InvalidValueError(f"there is no exporter {name!r}; known are {_known()}")
    return found


def _known() -> str:
    return ", ".join(sorted({*OWN, *entry_points(group=GROUP).names}))


def _enable(name: str, entry_point: EntryPoint, settings: dict[str, Any]) -> Exporter:
    target = _load(name, entry_point)
    _require_settings(name, target, settings)
    if isinstance(target, type):
        kind: type[Exporter] = target
        return enable_once(kind, settings, lambda: kind(**settings))
    exporter = target(**settings)
    if not isinstance(exporter, Exporter):
        raise ExporterError(
            f"the exporter {name!r} ({entry_point.value}) returned {type(exporter).__name__} "
            "when it was enabled; it must return an amorsize.exporters.Exporter"
        )
    return exporter


def _load(name: str, entry_point: EntryPoint) -> type[Exporter] | Callable[..., object]:
    try:
        target = entry_point.load()
    except AmorsizeError:
        raise
    except Exception as error:
        distribution = "" if entry_point.dist is None else f" of {entry_point.dist.name}"
        raise ExporterError(
            f"the exporter {name!r} ({entry_point.value}{distribution}) cannot be loaded: "
            f"{describe_error(error)}"
        ) from error
    if isinstance(target, type):
        good, kind = issubclass(target, Exporter), f"the class {target.__qualname__}"
    else:
        good, kind = callable(target), f"an object of type {type(target).__name__}"
    if not good:
        raise ExporterError(
            f"the exporter {name!r} ({entry_point.value}) must be a subclass of "
            f"amorsize.exporters.Exporter, or a function that enables and returns one; it is {kind}"
        )
    return target  # type: ignore[no-any-return]  # checked just now


def _require_settings(
    name: str, target: Callable[..., object], settings: dict[str, Any], *, partial: bool = False
) -> None:
    try:
        signature = inspect.signature(target)
    except (ValueError, TypeError):
        return  # some callables have no signature
    try:
        (signature.bind_partial if partial else signature.bind)(**settings)
    except TypeError as mismatch:
        takes = ", ".join(signature.parameters) or "none"
        raise InvalidTypeError(
            f"the exporter {name!r} cannot be enabled with these settings: {mismatch}. "
            f"Its settings are: {takes}"
        ) from None
