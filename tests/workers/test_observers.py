"""Whether anybody observes a run, asked without loading what observes."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

import amorsize
from amorsize import HookEvent
from amorsize.workers.observers import is_observed
from amorsize.workers.user_metrics import MetricsCollector


def test_hooks_of_the_default_manager_observe() -> None:
    """Until they are unregistered."""
    assert not is_observed()
    with amorsize.get_default_manager().register(HookEvent.ON_PROGRESS, print):
        assert is_observed()
    assert not is_observed()


def test_the_chunk_around_a_run_observes_it() -> None:
    """What a nested run counts belongs to that chunk."""
    collector = MetricsCollector()
    collector.enter()
    assert is_observed()
    collector.leave()
    assert not is_observed()


def test_the_log_observes_at_level_debug(caplog: pytest.LogCaptureFixture) -> None:
    """It says what was chosen, and why."""
    with caplog.at_level(logging.DEBUG, "amorsize"):
        assert is_observed()
    assert not is_observed()


def test_nothing_is_loaded_to_be_asked() -> None:
    """Loading it takes longer than many a run."""
    script = (
        "import sys\nfrom amorsize.workers.observers import is_observed\n"
        "assert not is_observed()\nprint(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = {name for name in done.stdout.split() if name.startswith("amorsize.")}
    assert loaded == {"amorsize.public_names", "amorsize.workers", "amorsize.workers.observers"}
    assert "logging" not in done.stdout.split()
