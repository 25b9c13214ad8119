"""The format that a client accepts, by the weights in its headers (RFC 9110, section 12)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

OPENMETRICS, TEXT = "application/openmetrics-text", "text/plain"

_VERSIONS = {OPENMETRICS: ("", "1.0.0"), TEXT: ("", "0.0.4", "1.0.0")}
"""Those that are written; a client that names none accepts any."""

_WEIGHT = re.compile(r"0(\.[0-9]*)?|1(\.0*)?")


class Accepted(NamedTuple):
    """One element of a header: ``text/plain; version=0.0.4; q=0.5``."""

    name: str
    parameters: dict[str, str]
    weight: float


def accepted(header: str) -> Iterator[Accepted]:
    """Read a header's elements. One whose weight is not a number from 0 to 1 says nothing."""
    for element in header.split(","):
        name, *rest = element.split(";")
        parameters = {}
        for parameter in rest:
            key, _, value = parameter.partition("=")
            parameters[key.strip().lower()] = value.strip().strip('"')
        weight = parameters.pop("q", "1")
        if name.strip() and _WEIGHT.fullmatch(weight):
            yield Accepted(name.strip().lower(), parameters, float(weight))


def preferred_format(accept: str) -> str:
    """Return the one element of an ``Accept`` header that is answered.

    OpenMetrics where it weighs as much as text and is named, because it has exemplars; text where
    both are accepted as anything is, and where nothing that can be written is accepted.

    >>> preferred_format("application/openmetrics-text;version=1.0.0;q=0.4, text/plain;q=0.5")
    'text/plain'
    >>> preferred_format("application/openmetrics-text;version=1.0.0, text/plain;q=0.5")
    'application/openmetrics-text;version=1.0.0'
    """
    elements = list(accepted(accept))
    candidates: list[tuple[float, bool, bool, str]] = []
    for format, versions in _VERSIONS.items():
        named = [
            each
            for each in elements
            if each.name == format and each.parameters.get("version", "") in versions
        ]
        ranges = named
        for wildcard in (f"{format.partition('/')[0]}/*", "*/*"):  # the closest one counts
            ranges = ranges or [each for each in elements if each.name == wildcard]
        for each in ranges:
            prefers_openmetrics = (format == OPENMETRICS) == (ranges is named)
            described = {key: each.parameters.get(key) for key in ("version", "escaping")}
            chosen = ";".join(
                [format, *(f"{key}={value}" for key, value in described.items() if value)]
            )
            candidates.append((each.weight, ranges is named, prefers_openmetrics, chosen))
    best = max(candidates, key=lambda each: each[:3], default=None)
    return TEXT if best is None or not best[0] else best[3]


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether a client prefers a compressed answer to one as it is.

    >>> accepts_gzip("gzip, identity;q=0.5"), accepts_gzip("*;q=0.5"), accepts_gzip("gzip;q=0, *")
    (True, True, False)
    """
    weights = {each.name: each.weight for each in accepted(accept_encoding)}
    weight = weights.get("gzip", weights.get("*", 0.0))
    return weight > 0 and weight >= weights.get("identity", 0.0)
