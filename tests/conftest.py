"""What all tests share."""

from __future__ import annotations

# Before any test makes a provider of OpenTelemetry: in a forked child its handler takes a lock that
# this module renews, and handlers run in the order in which they were registered.
import concurrent.futures.thread  # noqa: F401
from collections.abc import Iterator

import pytest
from modes import MODES, Engines, Mode

from amorsize import HookManager, get_default_manager, shutdown
from amorsize.testing import RecordingHook
from amorsize.workers import user_metrics


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    """The engines of others; what it costs to start them is paid once a module.

    Not once a session: other tests count the children and descriptors of this process.
    """
    engines = Engines()
    yield engines
    engines.close()


@pytest.fixture
def lent(request: pytest.FixtureRequest, engines: Engines) -> Mode:
    """A foreign engine, by indirect parametrization."""
    return engines.mode(request.param)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """The engine under test."""
    return str(request.param)


@pytest.fixture
def hooks() -> HookManager:
    """A manager of the test's own."""
    return HookManager()


@pytest.fixture
def recorder(hooks: HookManager) -> RecordingHook:
    """Records every event of ``hooks``."""
    return RecordingHook().attach(hooks)


@pytest.fixture(autouse=True)
def _clean_default_manager() -> Iterator[None]:
    """No test sees what another one registered process-wide."""
    yield
    get_default_manager().unregister_all()


@pytest.fixture(autouse=True)
def _no_names_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's numbers are remembered by the process; each test begins without any."""
    monkeypatch.setattr(user_metrics, "_kinds", {})
    monkeypatch.setattr(user_metrics, "_admitted", {})
    monkeypatch.setattr(user_metrics, "_said", set())


@pytest.fixture(scope="session", autouse=True)
def _shut_down() -> Iterator[None]:
    """Warm workers serve all tests and end with the session."""
    yield
    shutdown()
