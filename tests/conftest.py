"""Fixtures and settings of all tests."""

from __future__ import annotations

# Before any test makes a provider of OpenTelemetry: in a forked child its handler takes a lock that
# this module renews, and handlers run in the order in which they were registered.
import concurrent.futures.thread  # noqa: F401
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from documented import documented_keys
from fake_time import FakeTime
from modes import MODES, Engines, Mode
from planned import PlanWith

from amorsize import HookManager, get_default_manager, shutdown
from amorsize.planning import machine, process_support
from amorsize.running import first_items, loop
from amorsize.testing import RecordingHook
from amorsize.workers import user_metrics

hypothesis.settings.register_profile(
    "amorsize",
    deadline=None,  # processes start in some examples, and other programs have the cores, too
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("amorsize")

LONGEST = ("test_benchmarks.py", "test_benchmarks_choice.py", "e2e", "truth", "faults")
"""Folders and files of tests that begin first, so that none is waited for alone at the end."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Folders are run by several processes, tests that are named by file in this one.

    Two processes a core: tests wait for more than half of their time.
    """
    if any(Path(argument.partition("::")[0]).is_file() for argument in config.args):
        return 0
    return min(2 * (os.cpu_count() or 1), 8)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest begin first."""
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.relative_to(here).parts[0] not in LONGEST)


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    """The engines of others; what it costs to start them is paid once a module.

    Not once a session: other tests count the children and descriptors of this process.
    """
    engines = Engines()
    yield engines
    engines.close()


@pytest.fixture
def external(request: pytest.FixtureRequest, engines: Engines) -> Mode:
    """An external engine, by indirect parametrization."""
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
def recorder(hooks: HookManager) -> Iterator[RecordingHook]:
    """Records every event of ``hooks``, whose metadata is that of docs/events.md."""
    recorder = RecordingHook().attach(hooks)
    yield recorder
    keys = {key for context in recorder.contexts for key in context.metadata}
    assert keys <= documented_keys(), "keys that docs/events.md does not name"


@pytest.fixture
def plan_with(monkeypatch: pytest.MonkeyPatch) -> PlanWith:
    """Has the runs of the test planned by another planner."""
    return lambda planner: monkeypatch.setattr(loop, "Planner", lambda: planner)


@pytest.fixture
def fake_time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    """The clock by which the first items of the test's runs are measured."""
    fake = FakeTime(cores=1.0)
    monkeypatch.setattr(first_items, "Clocks", fake.clocks)
    return fake


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
    monkeypatch.setattr(user_metrics, "_warned", set())


@pytest.fixture(autouse=True)
def _no_failures_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """That no process could be started is remembered for a minute; no test remembers another."""
    monkeypatch.setattr(process_support, "_failed_until", 0.0)


@pytest.fixture(autouse=True)
def _no_log_levels_of_other_tests() -> Iterator[None]:
    """A page's example, or a test, may ask for the log of runs."""
    loggers = [logging.getLogger(name) for name in ("amorsize", "amorsize.runs")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def _no_startup_costs_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a start of workers took is remembered as well, and decides."""
    monkeypatch.setattr(machine, "STARTUP_COSTS", machine.StartupCosts())


@pytest.fixture(scope="session", autouse=True)
def _shut_down() -> Iterator[None]:
    """Warm workers serve all tests and end with the session."""
    yield
    shutdown()
