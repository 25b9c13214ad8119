"""Settings classes: written once, checked when made, and silent about secrets."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import FrozenInstanceError, dataclass, field, fields
from pkgutil import resolve_name
from typing import Any

import pytest

import amorsize
from amorsize.errors import InvalidTypeError, InvalidValueError
from amorsize.exporters import Exporter, registry
from amorsize.exporters.base import close_all
from amorsize.exporters.prometheus.settings import (
    DeliverySettings,
    ListenSettings,
    PrometheusSettings,
)
from amorsize.exporters.settings import by_keywords, constructor, enable_with, settings_class

ENABLERS = [resolve_name(place) for place in registry.OWN.values()]
SECRET = "hunter2"
SECRETS = {"password", "pushgateway_password", "pushgateway_token", "api_key"}


@pytest.mark.parametrize("enable", ENABLERS, ids=lambda enable: enable.__name__)
def test_a_setting_is_written_once(enable: Any) -> None:
    """The function, the exporter and the settings class have one signature."""
    signature = inspect.signature(enable)
    exporter = getattr(sys.modules[enable.__module__], signature.return_annotation)
    assert issubclass(exporter, Exporter)
    assert signature.parameters == inspect.signature(settings_class(enable)).parameters
    assert signature.parameters == inspect.signature(exporter).parameters


@pytest.mark.parametrize("enable", ENABLERS, ids=lambda enable: enable.__name__)
def test_a_setting_is_described_where_help_looks_for_it(enable: Any) -> None:
    """All of them, in their order, and nothing else."""
    arguments = inspect.getdoc(enable).partition("Args:\n")[2].partition("\n\n")[0]
    described = re.findall(r"^    (\w+):", arguments, re.MULTILINE)
    assert described == list(inspect.signature(enable).parameters)


@pytest.mark.parametrize("enable", ENABLERS, ids=lambda enable: enable.__name__)
def test_no_text_of_settings_holds_a_secret(enable: Any) -> None:
    """Whatever is named like one is left out."""
    secret = re.compile("password|token|key$|secret|credential")
    shown = {each.name: each.repr for each in fields(settings_class(enable))}
    hidden = {name for name, is_shown in shown.items() if not is_shown}
    assert hidden == SECRETS & set(shown)
    assert {name for name in shown if secret.search(name)} - hidden <= {
        "grouping_key",  # labels of the metrics
    }


def test_the_text_of_settings_shows_no_secret() -> None:
    """In a log, in a debugger, in the text of an object that holds them."""
    settings = PrometheusSettings(
        port=0,
        user="me",
        password=SECRET,
        pushgateway="http://127.0.0.1:9091",
        job="nightly",
        pushgateway_token=SECRET,
    )
    assert settings.credentials == ("me", SECRET)
    assert settings.gateway_authorization == f"Bearer {SECRET}"
    assert "job='nightly'" in repr(settings)
    assert SECRET not in repr(settings)


def test_settings_cannot_be_changed() -> None:
    """What was checked stays so."""
    with pytest.raises(FrozenInstanceError):
        ListenSettings(port=0).addr = "0.0.0.0"  # type: ignore[misc]


def test_settings_resolve_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is read when they are made."""
    monkeypatch.setenv("AMORSIZE_PROMETHEUS_PORT", "1234")
    assert (PrometheusSettings().port, PrometheusSettings().listen) == (1234, True)
    delivered = PrometheusSettings(pushgateway="http://127.0.0.1:9091", job="nightly")
    assert (delivered.listens, delivered.port) == (False, None)
    assert PrometheusSettings(pushgateway="http://127.0.0.1:9091", job="nightly", port=0).listens


def test_each_group_checks_itself() -> None:
    """As soon as it is made, and without the other."""
    with pytest.raises(InvalidValueError, match="keyfile needs certfile"):
        ListenSettings(keyfile=__file__)
    with pytest.raises(InvalidValueError, match="pushgateway needs job"):
        DeliverySettings(pushgateway="http://127.0.0.1:9091")
    with pytest.raises(InvalidTypeError, match="push_interval must be seconds, or None; got '5'"):
        DeliverySettings(textfile="/tmp/x.prom", push_interval="5")  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Those of the exporter below."""

    size: int = 1
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InvalidValueError(f"size must be at least 1; got {self.size}")


class Sized(Exporter):
    """Somebody else's exporter."""

    name = "sized"

    @constructor(Settings)
    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.size = settings.size


@by_keywords(Settings)
def enable_sized(settings: Settings) -> Sized:
    """Enable it."""
    return enable_with(Sized, settings)


def test_an_exporter_of_anybodys_takes_its_settings_so() -> None:
    """By keyword, once, checked at once, named where a misspelt one is refused."""
    try:
        assert Sized(size=2).size == 2
        exporter = enable_sized(size=3, token=SECRET)
        assert enable_sized(size=3, token=SECRET) is exporter
        with pytest.raises(amorsize.AmorsizeError, match="with another token") as error:
            enable_sized(size=3)
        assert SECRET not in str(error.value)
        with pytest.raises(InvalidValueError, match="size must be at least 1; got 0"):
            Sized(size=0)
        with pytest.raises(TypeError, match="sice"):
            Sized(sice=1)  # type: ignore[call-arg]
    finally:
        close_all()
