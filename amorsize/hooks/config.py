"""Hooks in a TOML file, as ``HookManager.save()`` writes it and ``load()`` reads it."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from itertools import groupby
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import amorsize
from amorsize.errors import AmorsizeError, InvalidValueError
from amorsize.hooks.chains import Chain, chain
from amorsize.hooks.conditions import every, function, on_failure, slower_than
from amorsize.hooks.entries import (
    Condition,
    Entry,
    Hook,
    HookOptions,
    check_options,
    name_of,
    require_hook,
)
from amorsize.hooks.events import HookEvent

_KEYS = ("events", "call", "chain", "when", "priority", "background", "timeout")
_CONDITIONS = (
    '"on_failure", {every = {seconds = 5}}, {every = {items = 1000}}, {slower_than = 60}, '
    '{function = "pkg.*"}, or a function of your own as "package.module:function"'
)
_EVENTS = {event.value: event for event in HookEvent}


@dataclass(frozen=True, slots=True)
class ExporterTables:
    """Functions that handle the ``[exporters.NAME]`` tables of a file.

    Attributes:
        check: takes a name and settings, and ``partial=True`` if more settings follow; raises for
            unknown ones.
        enable: takes settings by name, and the origin of the file.
        settings_of: takes a manager; returns the settings of its exporters by name, and the hooks
            that belong to these exporters.
    """

    check: Callable[..., None]
    enable: Callable[[dict[str, dict[str, Any]], str | None], None]
    settings_of: Callable[[Any], tuple[dict[str, dict[str, Any]], list[Hook]]]


_exporter_tables: ExporterTables | None = None


def handle_exporters(tables: ExporterTables) -> None:
    """Register these functions. Exporters do it, because hooks do not import exporters."""
    global _exporter_tables
    _exporter_tables = tables


def _exporters() -> ExporterTables:
    if _exporter_tables is None:
        _ = amorsize.enable  # the public name loads the registry of exporters, which registers
    assert _exporter_tables is not None
    return _exporter_tables


@dataclass(frozen=True, slots=True)
class HookTable:
    """A ``[[hooks]]`` table, read and imported."""

    events: tuple[HookEvent, ...]
    callback: Hook
    options: HookOptions


@dataclass(slots=True)
class Config:
    """The content of a file, all of it checked, none of it applied."""

    path: str
    hooks: list[HookTable] = field(default_factory=list)
    exporters: dict[str, dict[str, Any]] = field(default_factory=dict)

    def apply(self, register: Callable[..., object], *, origin: str | None = None) -> None:
        """Enable its exporters, then register its hooks.

        Args:
            register: the method of that name of a manager.
            origin: the environment variable that names the file: then the failure of an exporter
                for a reason outside the file is logged. None to raise it.
        """
        if self.exporters:
            _exporters().enable(self.exporters, origin)
        for table in self.hooks:
            for event in table.events:
                register(event, table.callback, **table.options.as_keywords())


def read(path: str | os.PathLike[str]) -> Config:
    """Read and check a file, and import the functions that it names.

    Raises:
        InvalidValueError: the file cannot be read or is not valid; the message gives the line.
    """
    try:
        text = Path(path).read_bytes().decode()
    except (OSError, ValueError) as error:
        raise InvalidValueError(f"{os.fspath(path)} cannot be read: {error}") from error
    text = text.replace("\r\n", "\n")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidValueError(f"{os.fspath(path)} is not valid TOML: {error}") from error
    return _Reader(os.fspath(path), text, data).config()


class _Reader:
    """Turns the data of a file into a :class:`Config`; finds the line of each mistake."""

    def __init__(self, path: str, text: str, data: dict[str, Any]) -> None:
        self._path = path
        self._lines = text.split("\n")
        self._data = data
        self._placed: InvalidValueError | None = None  # the error that has its line already

    def config(self) -> Config:
        config = Config(self._path)
        for key in self._data:
            self._require(key in ("hooks", "exporters"), (key,), key, (
                f"unknown key {key!r}; the file holds [[hooks]] and [exporters.NAME] tables"
            ))  # fmt: skip
        tables = self._data.get("hooks", [])
        is_tables = isinstance(tables, list) and all(isinstance(each, dict) for each in tables)
        self._require(is_tables, ("hooks",), "hooks", "hooks are written as [[hooks]] tables")
        for index, table in enumerate(tables):
            config.hooks.append(self._hook(("hooks", index), table))
        exporters = self._data.get("exporters", {})
        self._require(
            isinstance(exporters, dict), ("exporters",), "", "[exporters] must be a table"
        )
        for name, settings in exporters.items():
            at = ("exporters", name)
            self._require(
                isinstance(settings, dict), at, name,
                f"an exporter's settings are a table, [exporters.{name}]; got {settings!r}",
            )  # fmt: skip
            check = _exporters().check
            with self._at(at, name):
                check(name, {}, partial=True)
            for key, value in settings.items():
                with self._at((*at, key), key):
                    check(name, {key: value}, partial=True)
            with self._at(at, name):
                check(name, settings)
            config.exporters[name] = settings
        return config

    def _hook(self, at: tuple[str | int, ...], table: dict[str, Any]) -> HookTable:
        for key in table:
            self._require(key in _KEYS, (*at, key), key, (
                f"unknown key {key!r}; [[hooks]] takes {', '.join(_KEYS)}"
            ))  # fmt: skip
        names = table.get("events", [])
        names = [names] if isinstance(names, str) else names
        self._require(
            isinstance(names, list) and bool(names), (*at, "events") if "events" in table else at,
            "", "[[hooks]] needs events, such as events = [\"on_error\", \"post_execute\"]",
        )  # fmt: skip
        for name in names:
            self._require(
                isinstance(name, str) and name in _EVENTS, (*at, "events"), str(name),
                f"unknown event {name!r}; events are {', '.join(_EVENTS)}",
            )  # fmt: skip
        self._require(
            ("call" in table) != ("chain" in table), at, "",
            "[[hooks]] needs either call = \"package.module:function\" or chain = [...]",
        )  # fmt: skip
        callback = self._callback(at, table)
        keywords: dict[str, Any] = {
            key: table[key] for key in ("priority", "background", "timeout") if key in table
        }
        for key, value in keywords.items():
            with self._at((*at, key), key):
                background = key == "background" or bool(table.get("background"))
                check_options(callback, HookOptions(**{"background": background, key: value}))
        if "when" in table:
            keywords["when"] = self._condition((*at, "when"), table["when"])
        return HookTable(
            tuple(dict.fromkeys(_EVENTS[name] for name in names)), callback, HookOptions(**keywords)
        )

    def _callback(self, at: tuple[str | int, ...], table: dict[str, Any]) -> Hook:
        if "call" in table:
            hook: Hook = self._imported((*at, "call"), table["call"], require_hook)
            return hook
        links = table["chain"]
        at = (*at, "chain")
        self._require(
            isinstance(links, list) and bool(links), at, "",
            f"chain is a list of import paths, \"package.module:function\"; got {links!r}",
        )  # fmt: skip
        return chain(*(self._imported(at, link, require_hook) for link in links))

    def _condition(self, at: tuple[str | int, ...], when: Any) -> Condition:
        def check(condition: Condition) -> None:
            check_options(print, HookOptions(when=condition))

        if when == "on_failure":
            return on_failure
        if isinstance(when, str):
            condition: Condition = self._imported(at, when, check)
            return condition
        key: str = next(iter(when), "") if isinstance(when, dict) else ""
        value: Any = when[key] if key else None
        self._require(
            key in ("every", "slower_than", "function") and len(when) == 1,
            at, key, f"unknown condition {when!r}; known are {_CONDITIONS}",
        )  # fmt: skip
        with self._at(at, key):
            if key == "slower_than":
                return slower_than(value)
            if key == "function":
                return function(value)
            expected = f"every takes {{seconds = 5}} or {{items = 1000}}; got {value!r}"
            self._require(isinstance(value, dict), at, key, expected)
            for part in value:
                self._require(part in ("seconds", "items"), (*at, key, part), part, expected)
            return every(**value)

    def _imported(
        self, at: tuple[str | int, ...], path: Any, check: Callable[[Any], object]
    ) -> Any:
        """Import the object of an import path, ``package.module:name``, and check it."""
        module_name, colon, name = path.partition(":") if isinstance(path, str) else ("", "", "")
        self._require(
            bool(module_name and colon and name), at, str(path),
            f"{path!r} is not an import path, \"package.module:function\"",
        )  # fmt: skip
        with self._at(at, path):
            try:
                found: Any = import_module(module_name)
            except Exception as error:
                raise InvalidValueError(
                    f"the module {module_name!r} cannot be imported: "
                    f"{type(error).__name__}: {error}"
                ) from error
            for part in name.split("."):
                try:
                    found = getattr(found, part)
                except AttributeError:
                    raise InvalidValueError(f"the module {module_name!r} has no {name!r}") from None
            check(found)
        return found

    def _require(self, good: bool, at: tuple[str | int, ...], text: str, message: str) -> None:
        if not good:
            with self._at(at, text):
                raise InvalidValueError(message)

    @contextmanager
    def _at(self, at: tuple[str | int, ...], text: str) -> Iterator[None]:
        """Add the place in the file to an error that is raised within it."""
        try:
            yield
        except AmorsizeError as error:
            if error is self._placed:
                raise
            line = self._line_of(at, text)
            self._placed = InvalidValueError(f"{self._path}, line {line}: {error}")
            raise self._placed from (error.__cause__ or error)

    def _line_of(self, at: tuple[str | int, ...], text: str) -> int:
        """Find the line of a value, or of its key, because ``tomllib`` gives no lines.

        Its statement is the one after which the beginning of the file contains the value. In a
        statement of several lines, it is the line that contains ``text``.
        """
        begin = 0
        for end in range(1, len(self._lines) + 1):
            try:
                data: Any = tomllib.loads("\n".join(self._lines[:end]))
            except tomllib.TOMLDecodeError:
                continue
            if _holds(data, at):
                statement = range(begin, end)
                named = [line for line in statement if text and text in self._lines[line]]
                written = [line for line in statement if self._lines[line].strip()]
                return (named or written or [begin])[0] + 1
            begin = end
        return 1


def _holds(data: Any, at: tuple[str | int, ...]) -> bool:
    for key in at:
        try:
            data = data[key]
        except (LookupError, TypeError):
            return False
    return True


def write(path: str | os.PathLike[str], entries: Sequence[Entry], manager: object) -> None:
    """Write hooks, in the order of their registration, and the exporters of their manager.

    Raises:
        InvalidValueError: one of them cannot be saved; nothing is written.
    """
    exporters, theirs = _exporters().settings_of(manager)
    entries = [entry for entry in entries if entry.callback not in theirs]
    refused: dict[str, None] = {}
    tables = []
    for _, group in groupby(entries, key=lambda entry: (entry.callback, entry.options)):
        registered = list(group)
        try:
            tables.append(_hook_table(registered))
        except InvalidValueError as error:
            events = ", ".join(entry.event.value for entry in registered)
            refused[f"{error} (registered for {events})"] = None
    if refused:
        raise InvalidValueError(
            "load() could not find these hooks again, so nothing is saved: " + "; ".join(refused)
        )
    lines = ["# Written by HookManager.save(). docs/hooks.md describes the format."]
    for table in tables:
        lines += ["", "[[hooks]]", *_lines_of(table)]
    for name, settings in exporters.items():
        lines += ["", f"[exporters.{_key(name)}]", *_lines_of(settings)]
    _write_privately(Path(path), "\n".join(lines) + "\n")


def _hook_table(entries: list[Entry]) -> dict[str, Any]:
    callback, options = entries[0].callback, entries[0].options
    table: dict[str, Any] = {"events": [entry.event.value for entry in entries]}
    if isinstance(callback, Chain):
        table["chain"] = [_import_path(link) for link in callback.links]
    else:
        table["call"] = _import_path(callback)
    if options.when is not None:
        table["when"] = _condition_value(options.when)
    for key in ("priority", "background", "timeout"):
        value = getattr(options, key)
        if value != getattr(HookOptions(), key):
            table[key] = value
    return table


def _condition_value(condition: Condition) -> Any:
    if isinstance(condition, every):
        if condition.items is not None:
            return {"every": {"items": condition.items}}
        return {"every": {"seconds": condition.seconds}}
    if isinstance(condition, slower_than):
        return {"slower_than": condition.seconds}
    if isinstance(condition, function):
        return {"function": condition.pattern}
    return "on_failure" if condition is on_failure else _import_path(condition)


def _import_path(callback: Any) -> str:
    module_name = getattr(callback, "__module__", None)
    name = getattr(callback, "__qualname__", None)
    if module_name == "__main__":
        raise InvalidValueError(
            f"{name_of(callback)} is defined in __main__, which is another module in another "
            "program; move it to a module of its own"
        )
    try:
        found: Any = resolve_name(f"{module_name}:{name}")  # as load() will
    except Exception:  # the module may be of a kind that cannot be imported
        found = None
    if found is not callback and not (callable(found) and found == callback):
        where = f" of {module_name}" if module_name else ""
        raise InvalidValueError(
            f"{name_of(callback)}{where} has no name to import it by; "
            "use a function at the top level of a module"
        )
    return f"{module_name}:{name}"


def _lines_of(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_toml(value)}" for key, value in table.items()]


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if bare else _toml(key)


def _toml(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            # JSON's escapes are TOML's, but for DEL, which JSON leaves as it is.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case int() | float():
            return repr(value)
        case list() | tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case Mapping():
            return f"{{{', '.join(f'{_key(key)} = {_toml(each)}' for key, each in value.items())}}}"
    raise InvalidValueError(f"an object of type {type(value).__qualname__}")


def is_plain(value: Any) -> bool:
    """Return whether a value can be written to a file."""
    match value:
        case bool() | str() | int() | float():
            return True
        case list() | tuple():
            return all(map(is_plain, value))
        case Mapping():
            return all(isinstance(key, str) and is_plain(each) for key, each in value.items())
    return False


def _write_privately(path: Path, text: str) -> None:
    # Settings of exporters may be secrets. Concurrent readers see the old file or the new one.
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
