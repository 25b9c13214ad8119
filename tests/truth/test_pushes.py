"""Jobs that push or write a file: each goes on where the last one ended, and keeps what is not its.

On a real Pushgateway, with real programs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from e2e.pushgateway import Gateway, Samples, samples, value
from waiting import poll

from .jobs import Job, Program, Run, run

pytestmark = pytest.mark.e2e

SUCCESS = "amorsize_last_success_timestamp_seconds"

Place: TypeAlias = tuple[dict[str, Any], Callable[[], Samples]]
"""Arguments of the exporter, and a function that reads what it has delivered."""


@pytest.fixture(params=["pushed", "text file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "pushed":
        gateway: Gateway = request.getfixturevalue("gateway")
        key = {"site": "a/b", "empty": ""}
        settings = {"pushgateway": gateway.url, "job": "nightly/1", "grouping_key": key}
        return settings, gateway.samples
    file = tmp_path / "nightly.prom"
    settings = {"textfile": str(file), "job": "nightly"}
    return settings, lambda: samples(file.read_text(encoding="utf-8"))


def test_counters_go_on_from_night_to_night(place: Place, tmp_path: Path) -> None:
    """Runs, items, failures, deaths, time and buckets: the sums of all programs."""
    settings, read = place
    ledger = tmp_path / "deaths"
    fails = Run(
        items=12,
        failing=3,
        killing=1,
        ledger=str(ledger),
        executor="process",
        n_jobs=2,
        broken=True,
    )
    ends = Run(items=5, failing=5, raises=True, broken=True)
    seconds = 0.0
    for night in (1, 2, 3):
        run(Program((fails, ends, Run(seconds=0.01)), settings))
        found = read()

        def total(name: str, found: Samples = found, **labels: str) -> float | None:
            return value(found, name, function="parse", **labels)

        assert total("amorsize_executions_total", status="ok") == 2 * night
        assert total("amorsize_executions_total", status="error") == night
        assert total("amorsize_items_processed_total") == (12 + 10) * night
        assert total("amorsize_items_failed_total") == (4 + 1) * night
        deaths = len(ledger.read_text(encoding="utf-8").splitlines())
        assert total("amorsize_worker_deaths_total") == deaths >= night
        assert total("amorsize_errors_total", error_type="WorkerDiedError") == deaths
        assert total("amorsize_execution_duration_seconds_count") == 3 * night
        assert total("amorsize_execution_duration_seconds_bucket", le="+Inf") == 3 * night
        assert value(found, "amorsize_hook_errors_total", event="post_execute") == 2 * night
        assert value(found, "amorsize_exporter_errors_total", exporter="webhook") == 2 * night
        before, seconds = seconds, total("amorsize_worker_busy_seconds_total") or 0.0
        assert seconds >= before + 0.1
        assert total("amorsize_last_items") == 10
        assert total("amorsize_last_failed_items") == 0


def test_a_stage_that_fails_keeps_its_last_success(place: Place) -> None:
    """Two stages succeed tonight; tomorrow one of them fails, and the other is pushed as before."""
    settings, read = place
    run(Program((Run("load"), Run("store")), settings))
    first = {stage: value(read(), SUCCESS, function=stage) for stage in ("load", "store")}
    run(Program((Run("load"), Run("store", failing=1, raises=True)), settings))
    assert value(read(), SUCCESS, function="store") == first["store"] is not None
    assert (value(read(), SUCCESS, function="load") or 0) > (first["load"] or 0)
    run(Program((Run("load"),), settings))
    assert value(read(), SUCCESS, function="store") == first["store"]
    failed = "amorsize_executions_total"
    assert value(read(), failed, function="store", status="error") == 1
    assert value(read(), "amorsize_last_failed_items", function="store") == 1


def test_what_is_not_known_of_the_last_run_is_not_that_of_the_one_before(place: Place) -> None:
    """Nor does anything that a killed program left in progress stay."""
    settings, read = place
    with Job(
        Program((Run(hangs=True, items=3),), {**settings, "push_interval": 1}, stays=True)
    ) as job:
        job.go_on()
        name = "amorsize_executions_in_progress"
        poll(lambda: _read(read, name), lambda number: number == 1, "the push of what runs")
        job.kill()
    assert value(read(), name, function="parse") == 1
    run(Program((Run(),), settings))
    assert value(read(), name, function="parse") == 0
    assert value(read(), "amorsize_executions_total", function="parse") == 1


def _read(read: Callable[[], Samples], name: str) -> float | None:
    try:
        return value(read(), name)
    except FileNotFoundError:
        return None


def test_stages_that_run_at_the_same_time_replace_nothing_of_each_other(gateway: Gateway) -> None:
    """Programs of one job, without any grouping_key; each pushes every second while it runs."""
    settings = {"pushgateway": gateway.url, "job": "nightly", "push_interval": 1}
    stages = ("load", "clean", "store")
    programs = [
        Program((Run(stage, items=3, seconds=0.5), Run(stage, failing=2, items=7)), settings)
        for stage in stages
    ]
    threads = [threading.Thread(target=run, args=(program,)) for program in programs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = gateway.samples()
    for stage in stages:
        assert value(found, "amorsize_executions_total", function=stage, status="ok") == 2
        assert value(found, "amorsize_items_processed_total", function=stage) == 10
        assert value(found, "amorsize_items_failed_total", function=stage) == 2
        assert value(found, SUCCESS, function=stage) is not None


@pytest.mark.parametrize("remembers", [True, False], ids=["remembers", "forgets"])
def test_a_gateway_that_is_restarted_has_all_of_a_running_program_again(
    gateway: Gateway, remembers: bool
) -> None:
    """Its functions that do not run now, too."""
    settings = {"pushgateway": gateway.url, "job": "nightly", "push_interval": 1}
    runs = (Run("load", failing=1), Run("store", hangs=True, items=3))
    with Job(Program(runs, settings, stays=True)) as job:
        job.go_on()
        job.go_on()
        poll(
            lambda: value(gateway.samples(), SUCCESS, function="load"),
            bool,
            "the push of the first",
        )
        gateway.restart(remembers=remembers)
        for name, stage in ((SUCCESS, "load"), ("amorsize_executions_in_progress", "store")):
            poll(
                lambda name=name, stage=stage: value(gateway.samples(), name, function=stage),
                bool,
                f"{name} is there again",
            )
        job.finish()
    found = gateway.samples()
    assert value(found, "amorsize_items_failed_total", function="load") == 1
    assert value(found, "amorsize_executions_total", function="store", status="ok") == 1
    run(Program((Run("load", failing=1),), settings))
    assert value(gateway.samples(), "amorsize_items_failed_total", function="load") == 2
