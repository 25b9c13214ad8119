"""Every alert rings when it should and no longer, for jobs of every kind.

Real programs at made-up times; promtool evaluates the rules as they are shipped over what a
Prometheus has scraped of them. A real server is in ``tests/e2e/test_alerts.py``.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from e2e.backends import require_binary
from e2e.pushgateway import Gateway, Samples, samples

from dashboards.generator import lint

from .jobs import Job, Program, Run, run
from .timeline import Ringing, Timeline

pytestmark = pytest.mark.e2e

DASHBOARDS = Path(__file__).parents[2] / "dashboards"
RULES = [DASHBOARDS / "prometheus" / name for name in ("alerts.yml", "recording.yml")]

Nights: TypeAlias = Mapping[int, tuple[Run, ...]]
"""Executions, by the minute at which they begin."""

DAY = 1440

BAD = (
    Run("raises", failing=1, raises=True, broken=True),
    Run("rejects", failing=3),
    Run("dies", items=4, killing=1, executor="process", n_jobs=1),
    Run("slow", speedups=(4.0, 1.0)),
)
"""An execution of each function, and each goes wrong."""

GOOD = (*(Run(each.function) for each in BAD[:3]), Run("slow", speedups=(4.0, 3.5)))

NIGHTS: Nights = {10: BAD, 18: BAD, 26: BAD, 60: GOOD}

RINGS: dict[Ringing, list[tuple[int, int]]] = {
    ("AmorsizeExecutionFailed", "raises"): [(11, 41)],
    ("AmorsizeWorkersDied", "dies"): [(11, 36)],
    ("AmorsizeItemsFailing", "raises"): [(16, 41)],
    ("AmorsizeItemsFailing", "rejects"): [(16, 41)],
    ("AmorsizeItemsFailing", "dies"): [(16, 41)],
    ("AmorsizeSpeedupLow", "slow"): [(26, 60)],
    ("AmorsizeHookErrors", "post_execute"): [(11, 36)],
    ("AmorsizeExporterErrors", "webhook"): [(11, 36)],
    ("AmorsizeExporterDropping", "webhook"): [(11, 36)],
}
"""First and last minute: from the first scrape of a bad night on, until the last one is long
enough ago, without a pause between them. Two wait before they ring."""


@pytest.fixture(scope="module")
def promtool() -> str:
    return require_binary("promtool", "prometheus")


@dataclass(frozen=True)
class Place:
    """Where jobs deliver to.

    Attributes:
        directory: for files.
        gateway: starts a Pushgateway, or returns it.
    """

    directory: Path
    gateway: Callable[[], Gateway]

    @property
    def processes(self) -> dict[str, Any]:
        """Settings of programs of several processes."""
        return {"multiprocess": True, "multiprocess_dir": str(self.directory)}


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    return Place(tmp_path, lambda: request.getfixturevalue("gateway"))


def page_of(job: Job) -> Samples:
    with urllib.request.urlopen(f"{job.url}/metrics", timeout=10) as answer:
        return samples(answer.read().decode())


# --- kinds of jobs: each runs the nights, and shows them to Prometheus a minute later ----

Kind: TypeAlias = Callable[[Place, Timeline, Nights], None]


def scraped(place: Place, timeline: Timeline, nights: Nights, **settings: Any) -> None:
    """One program, which stays."""
    runs = tuple(each for night in nights.values() for each in night)
    began = min(nights) - 9
    with Job(Program(runs, {"port": 0, **settings}, clock=60 * began, stays=True)) as job:
        timeline.show("program", began, page_of(job), job="nightly", instance="host:1")
        for minute, night in nights.items():
            for number, _ in enumerate(night):
                job.go_on(None if number else 60 * minute)
            timeline.show("program", minute + 1, page_of(job), job="nightly", instance="host:1")


def of_processes(place: Place, timeline: Timeline, nights: Nights) -> None:
    """One page of a program whose executions are those of children, which end."""
    children = {
        minute: tuple(
            replace(each, in_child=each.function in ("rejects", "dies")) for each in night
        )
        for minute, night in nights.items()
    }
    scraped(place, timeline, children, **place.processes)


def ended(*ports: int) -> Kind:
    """Programs that are scraped once and end, each on its port."""

    def play(place: Place, timeline: Timeline, nights: Nights) -> None:
        for number, (minute, night) in enumerate(nights.items()):
            instance = f"host:{ports[number % len(ports)]}"
            with Job(Program(night, {"port": 0}, clock=60 * minute, stays=True)) as job:
                for _ in night:
                    job.go_on()
                timeline.show(instance, minute + 1, page_of(job), job="nightly", instance=instance)
            timeline.show(instance, minute + 2, None)

    return play


def pushed(place: Place, timeline: Timeline, nights: Nights, **settings: Any) -> None:
    """Programs that end before any scrape, and push to a gateway that stays."""
    gateway = place.gateway()
    deliver = {"pushgateway": gateway.url, "job": "nightly", **settings}
    for minute, night in nights.items():
        run(Program(night, deliver, clock=60 * minute))
        timeline.show("gateway", minute + 1, gateway.samples())


def forgotten(place: Place, timeline: Timeline, nights: Nights) -> None:
    """The same, and the gateway is restarted without its file after each."""
    for minute, night in nights.items():
        pushed(place, timeline, {minute: night})
        place.gateway().restart(remembers=False)
        timeline.show("gateway", minute + 3, None)


def written(place: Place, timeline: Timeline, nights: Nights, **settings: Any) -> None:
    """Programs that end before any scrape, and write a text file."""
    path = place.directory / "nightly.prom"
    deliver = {"textfile": str(path), "job": "nightly", **settings}
    for minute, night in nights.items():
        run(Program(night, deliver, clock=60 * minute))
        page = samples(path.read_text(encoding="utf-8"))
        timeline.show("node", minute + 1, page, job="node", instance="host:9100")


def without_a_past(play: Callable[..., None]) -> Kind:
    """Let counters begin at zero each night: several processes deliver to one place."""
    return lambda place, timeline, nights: play(place, timeline, nights, **place.processes)


def missed(play: Kind, first: int, last: int) -> Kind:
    """Let Prometheus be restarted, and scrape nothing in some minutes."""

    def played(place: Place, timeline: Timeline, nights: Nights) -> None:
        play(place, timeline, nights)
        timeline.stop_scraping(first, last)

    return played


KINDS: dict[str, Kind] = {
    "scraped": scraped,
    "processes": of_processes,
    "ended": ended(1),
    "ended on another port": ended(1, 2, 3, 4),
    "two programs": ended(1, 2),
    "pushed": pushed,
    "pushed from zero": without_a_past(pushed),
    "pushed, and the gateway forgets": forgotten,
    "pushed, and Prometheus is restarted": missed(pushed, 20, 24),
    "text file": written,
    "text file from zero": without_a_past(written),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_alert_rings_while_it_should_and_no_longer(
    kind: str, promtool: str, place: Place
) -> None:
    """Three bad nights that show the same, the first one too, and a good one."""
    timeline = Timeline(RULES, 75)
    KINDS[kind](place, timeline, NIGHTS)
    assert timeline.ringing(promtool, place.directory) == RINGS


@pytest.mark.parametrize("kind", ["pushed", "pushed from zero", "text file", "scraped"])
def test_what_an_outage_of_prometheus_hides_does_not_ring_after_it(
    kind: str, promtool: str, place: Place
) -> None:
    """Three hours later, counters are found again that have not grown."""
    timeline = Timeline(RULES, 260)
    KINDS[kind](place, timeline, {10: BAD, 30: GOOD})
    timeline.stop_scraping(50, 230)
    ringing = timeline.ringing(promtool, place.directory)
    assert ringing.keys() == RINGS.keys()
    assert max(last for rung in ringing.values() for _, last in rung) < 50


@pytest.mark.parametrize("kind", ["scraped", "ended", "pushed", "text file"])
def test_no_success_for_two_days(kind: str, promtool: str, place: Place) -> None:
    """A failure is none; nor is Prometheus' outage of a night."""
    timeline = Timeline(RULES, 2 * DAY + 200, step=4)
    fails = (Run("load", failing=1, raises=True),)
    later = 2 * DAY + 120
    KINDS[kind](place, timeline, {10: (Run("load"),), DAY: fails, later: (Run("load"),)})
    timeline.stop_scraping(200, 800)
    ringing = timeline.ringing(promtool, place.directory)
    assert ringing["AmorsizeNoRecentSuccess", "load"] == [(2 * DAY + 12, later)]


HANGS = Run("load", items=3, hangs=True)


def watched(kind: str, place: Place) -> tuple[dict[str, Any], Callable[[Job], Samples]]:
    """Settings of a job of a kind, and how to read what it shows."""
    if kind == "pushed":
        gateway = place.gateway()
        return {"pushgateway": gateway.url, "job": "nightly"}, lambda job: gateway.samples()
    if kind == "text file":
        path = place.directory / "nightly.prom"
        settings = {"textfile": str(path), "job": "nightly"}
        return settings, lambda job: samples(path.read_text(encoding="utf-8"))
    return {"port": 0}, page_of


def running_now(timeline: Timeline, promtool: str, directory: Path, minute: int) -> float:
    """What the panel shows."""
    board = json.loads((DASHBOARDS / "grafana" / "amorsize-overview.json").read_text())
    [panel] = [each for each in lint.queries(board) if "Running now" in each.where]
    return timeline.value(promtool, directory, lint.substitute(panel.expr), minute)


@pytest.mark.parametrize("kind", ["scraped", "pushed", "text file"])
def test_an_execution_that_stalls(kind: str, promtool: str, place: Place) -> None:
    """From half an hour after its last sign of life on, until it goes on."""
    settings, read = watched(kind, place)
    if kind != "scraped":
        settings["push_interval"] = 900  # for an hour, one is enough
    timeline = Timeline(RULES, 80)
    with Job(Program((HANGS, Run("other")), settings, stays=True)) as job:
        for minute in (10, 68):
            job.go_on(60 * minute)
            timeline.show("job", minute + 1, read(job), job="nightly", instance="host:1")
        job.finish()
    ringing = timeline.ringing(promtool, place.directory)
    assert ringing == {("AmorsizeExecutionStalled", "load"): [(41, 68)]}
    for minute, running in ((40, 1), (66, 1), (69, 0), (80, 0)):
        assert running_now(timeline, promtool, place.directory, minute) == running


@pytest.mark.parametrize("kind", ["pushed", "text file"])
def test_a_job_that_is_killed(kind: str, promtool: str, place: Place) -> None:
    """It does not run now; half an hour later it rings, for a day, or until it runs again."""
    settings, read = watched(kind, place)
    timelines = Timeline(RULES, DAY + 100, step=5), Timeline(RULES, 80)
    with Job(Program((HANGS,), settings, stays=True)) as job:
        job.go_on(600)
        job.kill()
    killed = read(job)
    for timeline in timelines:
        timeline.show(kind, 11, killed, job="nightly", instance="host:1")
    run(Program((Run("load"),), settings, clock=60 * 60))
    timelines[1].show(kind, 61, read(job), job="nightly", instance="host:1")
    alert = ("AmorsizeExecutionStalled", "load")
    for timeline, first, last in zip(timelines, (45, 41), (DAY + 10, 60), strict=True):
        assert timeline.ringing(promtool, place.directory) == {alert: [(first, last)]}
    for minute, running in ((11, 1), (13, 0), (30, 0), (70, 0)):
        assert running_now(timelines[1], promtool, place.directory, minute) == running
