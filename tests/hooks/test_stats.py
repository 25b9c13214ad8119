"""What hooks cost: ``get_stats()["hooks"]``, and when it is measured."""

from __future__ import annotations

import json
import time

import pytest

import amorsize
from amorsize import HookContext, HookEvent, HookManager
from amorsize.exporters.metrics import HOOK_BUSY, HOOK_CALLS, HOOK_ERRORS, HOOK_LONGEST
from amorsize.exporters.totals import TotalsExporter

PROGRESS = HookEvent.ON_PROGRESS
POST = HookEvent.POST_EXECUTE


def quick(context: HookContext) -> None: ...


def slow(context: HookContext) -> None:
    until = time.perf_counter() + context.elapsed_time
    while time.perf_counter() < until:
        pass


def fail(context: HookContext) -> None:
    raise ValueError


def test_a_timed_manager_says_how_long_each_hook_took(hooks: HookManager) -> None:
    """Total and longest, of calls that failed too."""
    hooks = HookManager(timed=True)
    hooks.register(PROGRESS, slow)
    hooks.register(PROGRESS, fail)
    for seconds in (0.003, 0.001):
        hooks.trigger(HookContext(PROGRESS, elapsed_time=seconds))
    stats = hooks.get_stats()["hooks"]["on_progress"]
    took, failed = stats[f"{__name__}.slow"], stats[f"{__name__}.fail"]
    assert (took["calls"], took["timed_calls"], took["errors"], took["dropped"]) == (2, 2, 0, 0)
    assert 0.003 <= took["longest_seconds"] < took["total_seconds"]
    assert took["total_seconds"] >= 0.004
    assert (failed["calls"], failed["timed_calls"], failed["errors"]) == (2, 2, 1 + 1)
    assert failed["total_seconds"] > 0


def test_plain_hooks_are_called_as_they_are_until_somebody_asks_for_times(
    hooks: HookManager,
) -> None:
    """No clock is read for them; calls and errors are exact all the same."""
    hooks.register(PROGRESS, quick)
    hooks.register(PROGRESS, fail)
    assert hooks._hooks[PROGRESS].calls == (quick, fail)
    for _ in range(3):
        hooks.trigger(HookContext(PROGRESS))
    stats = hooks.get_stats()["hooks"]["on_progress"]
    assert stats[f"{__name__}.quick"] == {
        "calls": 3,
        "errors": 0,
        "dropped": 0,
        "timed_calls": 0,
        "total_seconds": 0.0,
        "longest_seconds": 0.0,
    }
    assert stats[f"{__name__}.fail"]["errors"] == 3


def test_timing_can_be_switched_while_hooks_are_registered(hooks: HookManager) -> None:
    """Calls go on being counted; only those in between are measured."""
    hooks.register(PROGRESS, quick)
    for timed in (False, True, False):
        hooks.timed = timed
        hooks.trigger(HookContext(PROGRESS))
    (stats,) = hooks.get_stats()["hooks"]["on_progress"].values()
    assert (stats["calls"], stats["timed_calls"]) == (3, 1)


def test_hooks_with_conditions_and_in_the_background_are_always_timed(hooks: HookManager) -> None:
    """They have a wrapper already, and are expected to be slow."""
    hooks.register(PROGRESS, slow, when=lambda _: True)
    hooks.register(POST, slow, background=True)
    for event in (PROGRESS, POST):
        hooks.trigger(HookContext(event, elapsed_time=0.002))
    assert hooks.drain()
    for event in ("on_progress", "post_execute"):
        (stats,) = hooks.get_stats()["hooks"][event].values()
        assert stats["timed_calls"] == 1
        assert stats["longest_seconds"] >= 0.002
    hooks.close()


def test_what_was_unregistered_stays_counted_and_names_are_bounded(hooks: HookManager) -> None:
    """A program that makes hooks for ever does not fill its memory with their names."""
    for number in range(1200):

        def hook(context: HookContext) -> None: ...

        hook.__qualname__ = f"hook_{number}"
        with hooks.register(PROGRESS, hook):
            hooks.trigger(HookContext(PROGRESS))
    stats = hooks.get_stats()["hooks"]["on_progress"]
    assert len(stats) == 1001
    assert stats["other"]["calls"] == 200
    assert hooks.get_stats()["call_counts"]["on_progress"] == 1200


def test_the_names_hold_no_addresses_and_no_values(hooks: HookManager) -> None:
    """They become labels."""

    class Secretive:
        def __repr__(self) -> str:
            return "<token=hunter2 at 0x7f>"

        def __call__(self, context: HookContext) -> None: ...

        def method(self, context: HookContext) -> None: ...

    secretive = Secretive()
    hooks.register(PROGRESS, secretive)
    hooks.register(PROGRESS, secretive.method)
    names = list(hooks.get_stats()["hooks"]["on_progress"])
    here = f"{__name__}.test_the_names_hold_no_addresses_and_no_values.<locals>.Secretive"
    assert names == [here, f"{here}.method"]
    assert "hunter2" not in json.dumps(hooks.get_stats())


def test_what_hooks_cost_are_rows_of_the_metric_table(hooks: HookManager) -> None:
    """Attaching an exporter of metrics begins the measuring; closing it keeps the last counts."""
    hooks.register(POST, slow)
    hooks.register(POST, fail)
    exporter = TotalsExporter().attach(hooks)
    assert hooks.timed
    hooks.trigger(HookContext(POST, elapsed_time=0.002))
    series = exporter.snapshot()
    labels = ("post_execute", f"{__name__}.slow")
    assert series[HOOK_CALLS][labels] == 1
    assert series[HOOK_BUSY][labels] >= 0.002
    assert series[HOOK_LONGEST][labels] >= 0.002
    assert series[HOOK_ERRORS]["post_execute",] == 1
    own = ("post_execute", "amorsize.exporters.totals.TotalsExporter.post_execute")
    assert series[HOOK_CALLS][own] == 1
    assert series[HOOK_BUSY][own] > 0
    exporter.close()


def test_the_measuring_ends_with_the_last_exporter_that_shows_it(hooks: HookManager) -> None:
    """Unless the program itself had asked for it."""
    first, second = TotalsExporter().attach(hooks), TotalsExporter().attach(hooks)
    first.close()
    assert hooks.timed
    second.close()
    assert not hooks.timed
    asked = HookManager(timed=True)
    TotalsExporter().attach(asked).close()
    assert asked.timed


def test_prometheus_shows_the_hooks_of_a_run() -> None:
    """A hook of the program's own, by its name."""
    prometheus_client = pytest.importorskip("prometheus_client")
    from amorsize.exporters.prometheus.exporter import PrometheusExporter

    registry = prometheus_client.CollectorRegistry()
    with PrometheusExporter(port=0, registry=registry).attach():
        with amorsize.get_default_manager().register(POST, quick):
            amorsize.execute(abs, [-1], executor="serial")
        labels = {"event": "post_execute", "hook": f"{__name__}.quick"}
        assert registry.get_sample_value("amorsize_hook_calls_total", labels) == 1
        busy = registry.get_sample_value("amorsize_hook_busy_seconds_total", labels)
        longest = registry.get_sample_value("amorsize_hook_longest_seconds", labels)
        assert busy == longest > 0
    assert not amorsize.get_default_manager().timed
