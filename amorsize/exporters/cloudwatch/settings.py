"""The settings of CloudWatch, as ``enable_cloudwatch()`` describes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from amorsize.errors import InvalidTypeError, InvalidValueError
from amorsize.exporters.cloudwatch.data import (
    DIMENSION_CHARACTERS,
    MAX_DIMENSIONS,
    NAME_CHARACTERS,
    OWN_NAMES,
)
from amorsize.exporters.metrics import METRICS
from amorsize.exporters.settings import check_interval

_OWN_DIMENSIONS = max(len(metric.labels) for metric in METRICS)


class Stream(Protocol):
    """Something to write lines to."""

    def write(self, text: str, /) -> object: ...
    def flush(self) -> object: ...


@dataclass(frozen=True, kw_only=True)
class CloudWatchSettings:
    """All that :func:`~amorsize.exporters.cloudwatch.enable_cloudwatch` takes."""

    namespace: str = "Amorsize"
    region: str | None = None
    dimensions: Mapping[str, str] | None = None
    interval: float = 60.0
    client: Any = None
    emf: bool | Stream = False

    def __post_init__(self) -> None:
        _check_namespace(self.namespace)
        _check_dimensions(self.dimensions)
        check_interval("interval", self.interval)
        if self.emf is False:
            _check_client(self.client, self.region)
        else:
            _check_emf(self.emf, self.region, self.client)


def _check_namespace(namespace: object) -> None:
    if not isinstance(namespace, str):
        raise InvalidTypeError(f"namespace must be a string; got {namespace!r}")
    if not re.fullmatch(r"(?!:)(?!AWS/)[A-Za-z0-9 ._/#:-]{1,255}", namespace):
        raise InvalidValueError(
            "namespace must be 1 to 255 letters, digits and any of ' ._/#:-', and begin neither "
            f"with a colon nor with 'AWS/'; got {namespace!r}"
        )
    if not namespace.strip():
        raise InvalidValueError(f"namespace must not be blank; got {namespace!r}")


def _check_dimensions(dimensions: object) -> None:
    if dimensions is None:
        return
    if not isinstance(dimensions, Mapping):
        raise InvalidTypeError(
            f"dimensions must be a mapping of names to values, or None; got {dimensions!r}"
        )
    most = MAX_DIMENSIONS - _OWN_DIMENSIONS
    if len(dimensions) > most:
        raise InvalidValueError(
            f"dimensions must have at most {most} names: with those of amorsize, that is "
            f"CloudWatch's limit of {MAX_DIMENSIONS}; got {len(dimensions)}"
        )
    for name, value in dimensions.items():
        for text, what, most in (
            (name, "name", NAME_CHARACTERS),
            (value, "value", DIMENSION_CHARACTERS),
        ):
            if not isinstance(text, str):
                raise InvalidTypeError(
                    f"dimensions must map strings to strings; got {name!r}: {value!r}"
                )
            good = text.isascii() and text.isprintable() and text.strip()
            if not good or len(text) > most or (what == "name" and text.startswith(":")):
                raise InvalidValueError(
                    f"the {what} of a dimension must be 1 to {most} printable ASCII characters, a "
                    f"name not beginning with a colon; got {text!r}"
                )
        if name in OWN_NAMES or name == "_aws":
            raise InvalidValueError(
                f"dimensions must not hold {name!r}, which amorsize itself uses"
            )


def _check_client(client: object, region: object) -> None:
    if region is not None and not isinstance(region, str):
        raise InvalidTypeError(f"region must be a string, or None; got {region!r}")
    if client is None:
        return
    if not callable(getattr(client, "put_metric_data", None)):
        raise InvalidTypeError(
            'client must be a boto3.client("cloudwatch"), or None; got an object of type '
            f"{type(client).__name__} without put_metric_data"
        )
    if region is not None:
        raise InvalidValueError("pass either region or client: a client has its region already")


def _check_emf(emf: object, region: object, client: object) -> None:
    if region is not None or client is not None:
        raise InvalidValueError(
            "emf writes to a stream and calls no API: leave out either emf, or region and client"
        )
    is_stream = callable(getattr(emf, "write", None)) and callable(getattr(emf, "flush", None))
    if emf is not True and not is_stream:
        raise InvalidTypeError(
            f"emf must be True, False, or a stream with write() and flush(); got {emf!r}"
        )
