"""Reads ``docker-compose.yml`` and ``.env`` like Docker Compose, as far as the checks need it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

COMPOSE_FILE = "docker-compose.yml"
ENV_FILE = ".env"

_VARIABLE = re.compile(
    r"\$(?:(?P<dollar>\$)"
    r"|(?P<plain>[A-Za-z_]\w*)"
    r"|\{(?P<name>[A-Za-z_]\w*)(?:(?P<operator>:?[-+?])(?P<word>[^{}]*))?\})"
)
_SECRET = re.compile(
    r"(PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIALS?|(API|ACCESS|PRIVATE)_?KEY)$", re.I
)


@dataclass(frozen=True)
class Use:
    """A variable in the compose file: its name, and the rest of the braces."""

    name: str
    operator: str = ""


@dataclass(frozen=True)
class Mount:
    """A mount of a service: a folder or file of this repository, or a named volume."""

    source: str
    target: str
    read_only: bool

    @property
    def is_bind(self) -> bool:
        return self.source.startswith((".", "/", "~"))


@dataclass(frozen=True)
class Stack:
    """The compose file of a folder, with its ``.env`` and mounts.

    Attributes:
        root: the folder.
    """

    root: Path

    @cached_property
    def text(self) -> str:
        return (self.root / COMPOSE_FILE).read_text(encoding="utf-8")

    @cached_property
    def env(self) -> dict[str, str]:
        """The variables of ``.env``."""
        lines = (self.root / ENV_FILE).read_text(encoding="utf-8").splitlines()
        pairs = (line.partition("=") for line in lines if line.strip() and not line.startswith("#"))
        return {name.strip(): value.strip() for name, _, value in pairs}

    @cached_property
    def raw(self) -> dict[str, Any]:
        """The file, with its variables not replaced."""
        document: dict[str, Any] = yaml.safe_load(self.text)
        return document

    @cached_property
    def services(self) -> dict[str, dict[str, Any]]:
        """The services, with the values of ``.env``."""
        services: dict[str, dict[str, Any]] = interpolate(self.raw, self.env)["services"]
        return services

    @cached_property
    def uses(self) -> list[Use]:
        """All variables of the file, in its order, without those in comments."""
        return [use for text in strings(self.raw) for use in uses_in(text)]

    @cached_property
    def names(self) -> dict[str, str]:
        """The services, by the host names that other services use."""
        found = {name: name for name in self.services}
        for name, service in self.services.items():
            networks = service.get("networks") or {}
            if isinstance(networks, dict):
                for network in networks.values():
                    found |= dict.fromkeys((network or {}).get("aliases", ()), name)
        return found

    @property
    def declared_networks(self) -> set[str]:
        """The networks of the file; ``default`` is always one."""
        return {"default", *(self.raw.get("networks") or {})}

    def networks(self, service: str) -> set[str]:
        """The networks of a service."""
        return set(self.services[service].get("networks") or ["default"])

    def mounts(self, service: str) -> list[Mount]:
        """The mounts of a service."""
        found = []
        for volume in self.services[service].get("volumes", ()):
            if isinstance(volume, dict):
                found.append(
                    Mount(
                        str(volume.get("source", "")),
                        volume["target"],
                        bool(volume.get("read_only")),
                    )
                )
                continue
            source, _, rest = volume.partition(":")
            target, _, mode = rest.partition(":")
            found.append(Mount(source, target, "ro" in mode.split(",")))
        return found

    def in_container(self, service: str, path: str) -> Path | None:
        """The file of this repository that a service sees at a path, or None."""
        for mount in sorted(self.mounts(service), key=lambda each: -len(each.target)):
            if mount.is_bind and (path == mount.target or path.startswith(f"{mount.target}/")):
                return self.root / mount.source / path.removeprefix(mount.target).lstrip("/")
        return None


def environment_of(service: Mapping[str, Any]) -> dict[str, str | None]:
    """A service's variables; None for those from the shell."""
    given = service.get("environment") or {}
    if isinstance(given, list):
        pairs = (entry.partition("=") for entry in given)
        return {name: value if equals else None for name, equals, value in pairs}
    return {name: None if value is None else str(value) for name, value in given.items()}


def is_secret(name: str) -> bool:
    """Whether a name belongs to a secret."""
    return _SECRET.search(name) is not None


def strings(value: Any) -> Iterator[str]:
    """All strings of a document that can hold variables: values, not keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from strings(each)


def uses_in(text: str) -> Iterator[Use]:
    """The variables in a string."""
    for match in _VARIABLE.finditer(text):
        if not match["dollar"]:
            yield Use(match["plain"] or match["name"], match["operator"] or "")


def interpolate(value: Any, variables: Mapping[str, str]) -> Any:
    """Replace variables by values (https://docs.docker.com/reference/compose-file/interpolation)."""
    if isinstance(value, dict):
        return {key: interpolate(each, variables) for key, each in value.items()}
    if isinstance(value, list):
        return [interpolate(each, variables) for each in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        if match["dollar"]:
            return "$"
        given = variables.get(match["plain"] or match["name"])
        operator, word = match["operator"] or "", match["word"] or ""
        is_set = bool(given) if operator.startswith(":") else given is not None
        if operator.endswith("+"):
            return word if is_set else ""
        return given or "" if is_set or not operator.endswith("-") else word

    return _VARIABLE.sub(replace, value)
