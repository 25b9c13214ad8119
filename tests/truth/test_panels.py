"""Every panel says what has happened, for jobs of every kind, also a minute after they have ended.

Real programs and a real Prometheus; what has happened is counted by the test, and by the programs
in a file. The queries are those of the shipped dashboards.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from e2e.backends import PrometheusServer
from e2e.pushgateway import Gateway
from waiting import poll

from dashboards.generator import lint
from dashboards.generator.ask import Series, View
from dashboards.generator.lint import Place

from .jobs import Job, Program, Run, run

pytestmark = pytest.mark.e2e

BOARDS = sorted((Path(__file__).parents[2] / "dashboards" / "grafana").glob("*.json"))

KINDS = ("scraped", "ended", "processes", "pushed", "written")

FAILED_ITEMS, RAISED, ITEMS = 4, 1, 10
"""Items that fail in the first execution and in the second, and items of the last one."""


def runs(deaths: Path, *, in_child: bool = False) -> tuple[Run, ...]:
    """One with failed items and dead workers, one that raises, and a good one of a tenth second."""
    return (
        Run(
            items=12,
            failing=FAILED_ITEMS - 1,
            killing=1,
            ledger=str(deaths),
            executor="process",
            n_jobs=2,
            broken=True,
        ),
        Run(items=5, failing=5, raises=True, broken=True),
        Run(items=ITEMS, seconds=0.01, in_child=in_child),
    )


@dataclass(frozen=True)
class Seen:
    """What a Prometheus has scraped of jobs.

    Attributes:
        server: scrapes them.
        start: when it began, in seconds since the epoch.
        deaths: by kind: the file with a line for each death.
    """

    server: PrometheusServer
    start: float
    deaths: dict[str, Path]

    def died(self, kind: str) -> int:
        return len(self.deaths[kind].read_text(encoding="utf-8").splitlines())


class _Files(SimpleHTTPRequestHandler):
    """What a node exporter does with text files, as far as Prometheus sees it."""

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """A job of each kind; that which is scraped and ends has ended."""
    directory = tmp_path_factory.mktemp("panels")
    deaths = {kind: directory / f"{kind}-deaths" for kind in KINDS}
    (directory / "files").mkdir()
    file = directory / "files" / "metrics.prom"
    file.write_text("")
    together = {"multiprocess": True, "multiprocess_dir": str(directory)}
    with ExitStack() as stack:
        files = ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(_Files, directory=str(directory / "files"))
        )
        thread = threading.Thread(target=files.serve_forever)
        thread.start()
        stack.callback(thread.join)
        stack.callback(files.server_close)
        stack.callback(files.shutdown)
        gateway = Gateway(directory / "gateway")
        stack.callback(gateway.close)
        jobs = {}
        for kind in ("scraped", "ended", "processes"):
            of_processes = kind == "processes"
            settings = {"port": 0, **(together if of_processes else {})}
            program = Program(runs(deaths[kind], in_child=of_processes), settings, stays=True)
            jobs[kind] = stack.enter_context(Job(program))
        targets = {kind: job.address for kind, job in jobs.items()}
        targets["pushed"] = gateway.address
        start = time.time()
        server = PrometheusServer(
            directory / "prometheus",
            [],
            scrape={
                "honor_labels": True,
                "static_configs": [
                    {"targets": [address], "labels": {"job": kind}}
                    for kind, address in targets.items()
                ]
                + [
                    {
                        "targets": [f"127.0.0.1:{files.server_port}"],
                        "labels": {"job": "written", "__metrics_path__": "/metrics.prom"},
                    }
                ],
            },
        )
        stack.callback(server.close)
        delivered: dict[str, dict[str, Any]] = {
            "pushed": {"pushgateway": gateway.url},
            "written": {"textfile": str(file)},
        }
        for kind, settings in delivered.items():
            run(Program(runs(deaths[kind]), {**settings, "job": kind}))
        for job in jobs.values():
            for _ in range(3):
                job.go_on()
        for kind in KINDS:
            server.wait_for(f'sum(amorsize_executions_total{{job="{kind}"}})', 3)
        # A point of a graph is drawn where a value stands for as long as from one to the next.
        scrapes = 'count_over_time(amorsize_last_success_timestamp_seconds{job="ended"}[1h])'
        poll(lambda: server.value(scrapes), lambda found: (found or 0) >= 3, "it is scraped")
        jobs["ended"].finish()
        ended = 'count(amorsize_executions_total{job="ended"})'
        poll(lambda: server.value(ended), lambda found: found is None, "it has ended")
        yield Seen(server, start, deaths)


Check: TypeAlias = Callable[[list[Series], "Seen", str], bool]


def is_(number: float) -> Check:
    return lambda answer, seen, kind: values(answer) == [number]


def within(least: float, most: float) -> Check:
    return lambda answer, seen, kind: [least <= each <= most for each in values(answer)] == [True]


def values(answer: list[Series]) -> list[float]:
    return [each.points[-1][1] for each in answer]


def sums(answer: list[Series], label: str) -> dict[str, float]:
    """Add up the bars of each series; those without anything are left out."""
    found: dict[str, float] = {}
    for each in answer:
        found[each.labels[label]] = sum(number for _, number in each.points)
    return {name: round(number, 6) for name, number in found.items() if number}


def empty(answer: list[Series], seen: Seen, kind: str) -> bool:
    return answer == []


def none_or_share(answer: list[Series], seen: Seen, kind: str) -> bool:
    return all(0 <= each <= 1 for each in values(answer))


def recently(answer: list[Series], seen: Seen, kind: str) -> bool:
    return within(0, time.time() + 60 - seen.start)(answer, seen, kind)


def deaths(answer: list[Series], seen: Seen, kind: str) -> bool:
    return values(answer) == [seen.died(kind)] != [0]


def deaths_over_time(answer: list[Series], seen: Seen, kind: str) -> bool:
    return sums(answer, "executor") == {"process": seen.died(kind)}


def bars(label: str, **expected: float) -> Check:
    return lambda answer, seen, kind: sums(answer, label) == expected


def errors(answer: list[Series], seen: Seen, kind: str) -> bool:
    found = sums(answer, "error_type")
    raised = FAILED_ITEMS - 1 + RAISED
    return found == {"ValueError": raised, "WorkerDiedError": seen.died(kind)}


def some(answer: list[Series], seen: Seen, kind: str) -> bool:
    return any(number > 0 for each in answer for _, number in each.points)


def possible(answer: list[Series], seen: Seen, kind: str) -> bool:
    return all(number >= 0 for each in answer for _, number in each.points)


NOT_NOW = ("Progress now", "Time left", "Longest time left", "Executions in progress", "Progress")
"""Panels that are empty while nothing runs."""

PER_SECOND = (
    "Items per second",
    "Busy now",
    "Busy share",
    "Idle workers",
    "Workers",
    "Imbalance",
    "Queue wait, p95",
    "Queue wait by function, p95",
    "Time in hooks",
)
"""Panels of rates: empty where Prometheus has not scraped while it ran, as docs/dashboards.md says;
never a number that cannot be."""

EXPECTED: dict[str, Check] = {
    "Running now": is_(0),
    "Workers now": is_(0),
    "Executions": is_(3),
    "Failed executions": is_(1),
    "Failed": is_(1),
    "Success": within(0.6666, 0.6667),
    "Failed items": is_(FAILED_ITEMS + RAISED),
    "Worker deaths": deaths,
    "Longest without success": recently,
    "Since last success": recently,
    "Last duration": within(0.1, 60),
    "Last items": is_(ITEMS),
    "Measured speedup": lambda answer, seen, kind: all(0 < each <= 2 for each in values(answer)),
    "Busy time": within(0.1, 120),
    "Wasted time": within(0, 240),
    "Speedup reached": none_or_share,
    "Hook errors": is_(2),
    "Exporter errors": is_(2),
    "Dropped messages": is_(2),
    "Dropped user metrics": is_(0),
    "Function names": is_(1),
    "Error types": is_(2),
    "Versions": is_(1),
    "Versions of programs": is_(1),
    "Functions, A": is_(1),
    "Functions, B": is_(3),
    "Functions, C": is_(FAILED_ITEMS + RAISED),
    "Functions, D": deaths,
    "Functions, E": recently,
    "Functions, F": within(0.1, 60),
    "Functions, G": is_(ITEMS),
    "Functions, H": is_(0),
    "Wasted worker time by function": within(0, 240),
    "Speedup reached by function": none_or_share,
    "Share of planning": within(0, 1),
    "Executions by how they ended": bars("status", ok=2, error=1),
    "Errors by type": errors,
    "Worker deaths by function": deaths_over_time,
    "Chunks": some,
    "Queue waits": some,
    "Duration of executions": possible,
    "Duration of the last execution": some,
    "Duration of chunks": some,
    "Queue wait of chunks": possible,
    "Planning": possible,
    "Speedup, estimated and measured": possible,
    "Workers by function": possible,
    "Hook errors by event": bars("event", post_execute=2),
    "Exporter errors by exporter": bars("exporter", webhook=2),
    "Dropped messages by exporter": bars("exporter", webhook=2),
    "Calls of hooks": some,
    "Longest call of a hook": some,
    "Dropped user metrics by function": lambda answer, seen, kind: sums(answer, "function") == {},
    "Label values": some,
    "Programs": lambda answer, seen, kind: values(answer) == [0 if kind == "ended" else 1],
}
EXPECTED |= dict.fromkeys(NOT_NOW, empty) | dict.fromkeys(PER_SECOND, possible)


def panels(board: dict[str, Any]) -> Iterator[tuple[str, str, Place]]:
    """Titles of panels, their queries' letters, and the queries."""
    places = {place.where: place for place in lint.queries(board)}
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            where = f"{board['title']}, {panel['title']}, {target['refId']}"
            yield panel["title"], target["refId"], places[where]


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("later", [2, 60], ids=["now", "a minute later"])
def test_every_panel_says_what_has_happened(
    seen: Seen, path: Path, kind: str, later: float
) -> None:
    """Counts are exact; nothing runs; nothing that has happened is "never" or a green zero."""
    board = json.loads(path.read_text(encoding="utf-8"))
    variables = {"$job": kind, "$function": "parse", "$executor": ".*"}
    end = time.time() + later
    wrong = {}
    for title, letter, place in panels(board):
        if title == "Progress" and not place.instant:
            continue  # a graph of the past
        view = View(seen.server.url, seen.start, end, 15.0, 1.0, variables)
        answer = view.ask(place)
        check = EXPECTED.get(f"{title}, {letter}") or EXPECTED[title]
        if not check(answer, seen, kind):
            wrong[f"{title}, {letter}"] = [(dict(each.labels), each.points[-3:]) for each in answer]
    assert wrong == {}
