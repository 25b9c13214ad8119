"""Datadog, end to end: real runs, real sockets, and whole programs, with and without an agent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from exporters.dogstatsd import Agent, hanging_agent
from scripts import without_log_of_runs
from waiting import PATIENCE, slowness

import amorsize
from amorsize import HookEvent, HookManager
from amorsize.exporters.datadog.exporter import DatadogExporter
from amorsize.testing import RecordingHook

from .test_prometheus_exact import ITEMS, KILLER, Ledger, Work

pytestmark = pytest.mark.e2e

MODES = pytest.mark.parametrize(
    ("mode", "killer"),
    [("serial", None), ("thread", None), ("process", None), ("process", KILLER)],
    ids=["serial", "thread", "process", "process with a death"],
)
EXIT_SECONDS = 10.0
"""Two are promised; a machine may be busy."""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("DD_", "DATADOG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DD_ORIGIN_DETECTION_ENABLED", "false")


@pytest.fixture(params=["UDP", "Unix"])
def agent(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Agent]:
    with Agent(tmp_path / "dsd.socket" if request.param == "Unix" else None) as agent:
        yield agent


def where(agent: Agent) -> dict[str, Any]:
    if agent.port:
        return {"host": "127.0.0.1", "port": agent.port}
    return {"socket_path": agent.path}


@MODES
def test_totals_equal_the_events_and_what_the_function_did(
    tmp_path: Path, agent: Agent, mode: str, killer: int | None
) -> None:
    """Every item once, every failure, every death; and the gauges are back at zero."""
    manager = HookManager()
    ledgers = [Ledger(tmp_path / "first"), Ledger(tmp_path / "second")]
    recorder = RecordingHook().attach(manager)
    with DatadogExporter(**where(agent), events=["error", "worker_death", "completed"]).attach(
        manager
    ) as exporter:
        for ledger in ledgers:
            amorsize.execute(
                Work(ledger, killer),
                range(ITEMS),
                executor=mode,
                n_jobs=2,
                chunksize=4,
                return_exceptions=True,
                hooks=manager,
                name="größe,|#",
            )
        assert exporter.flush(PATIENCE)
    assert exporter.counts() == (0, 0)
    run = ("function:größe___", f"executor:{mode}")
    agent.wait_for(lambda agent: len(agent.checks) == 2 and len(agent.events) >= 2)
    chunks, errors = recorder.of(HookEvent.ON_CHUNK_COMPLETE), recorder.of(HookEvent.ON_ERROR)
    deaths = sum(len(ledger.items("killed")) for ledger in ledgers)
    assert agent.total("amorsize.executions", *run, "status:ok") == 2
    assert agent.total("amorsize.items.processed", *run) == 2 * ITEMS
    failed = sum(len({*each.items("raised"), *each.items("killed")}) for each in ledgers)
    assert agent.total("amorsize.items.failed", *run) == failed
    assert agent.total("amorsize.errors", *run) == len(errors)
    assert agent.total("amorsize.worker.deaths", *run) == deaths
    assert agent.observations("amorsize.chunk.duration", *run) == len(chunks)
    assert agent.total("amorsize.chunk.duration", *run) == pytest.approx(
        sum(chunk.chunk_time for chunk in chunks)
    )
    assert agent.observations("amorsize.execution.duration", *run, "status:ok") == 2
    for gauge in ("executions.in_progress", "items.expected", "items.completed", "workers"):
        assert agent.gauge(f"amorsize.{gauge}", *run) == 0
    assert [each.status for each in agent.checks] == [0, 0]
    keys = {context.metadata["execution_id"] for context in recorder.contexts}
    assert {each.fields["k"] for each in agent.events} == keys
    died = [each for each in agent.events if each.title.endswith("lost a worker (exit code -9)")]
    assert len(died) == deaths
    assert all("exit code: `-9`" in each.text for each in died)
    assert all(len(each) <= agent.limit for each in agent.datagrams)


SCRIPT = """
import sys, time, amorsize

def parse(item):
    if item % 10 == 3:
        raise ValueError(item)
    return item

if __name__ == "__main__":
    for items in (100, 37):
        results = amorsize.execute(parse, range(items), executor="thread", n_jobs=2, chunksize=5,
                                   return_exceptions=True)
        failed = [number for number in range(items) if isinstance(results[number], ValueError)]
        assert failed == list(range(3, items, 10))
    print("done", flush=True)
"""


def run_script(environment: dict[str, str], script: str = SCRIPT) -> tuple[str, float]:
    """Run a program; return its stderr without the log of runs, and how long its exit took."""
    program = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "done\n", program.communicate()[1]
        done = time.monotonic()
        _, errors = program.communicate()
    finally:
        program.kill()
        program.communicate()
    assert program.returncode == 0, errors
    return without_log_of_runs(errors), time.monotonic() - done


def test_a_short_program_loses_nothing() -> None:
    """Two runs of milliseconds, and the environment alone says where to."""
    with Agent() as agent:
        url = f"udp://127.0.0.1:{agent.port}"
        variables = {"AMORSIZE_EXPORTERS": "datadog", "DD_DOGSTATSD_URL": url, "DD_ENV": "ci"}
        errors, _ = run_script(variables)
        assert errors == ""
        agent.wait_for(lambda agent: len(agent.checks) == 2)
        assert agent.total("amorsize.items.processed", "env:ci") == 137
        assert agent.total("amorsize.items.failed", "env:ci") == 14
        assert agent.total("amorsize.executions", "status:ok", "env:ci") == 2


@pytest.mark.parametrize("kind", ["no agent", "no socket", "hanging socket", "no such host"])
def test_a_program_without_an_agent_is_no_slower_to_exit(tmp_path: Path, kind: str) -> None:
    """Its results are right, and the log says once what is wrong."""
    with Agent() as closed:
        pass
    path = tmp_path / "dsd.socket"
    urls = {
        "no agent": f"udp://127.0.0.1:{closed.port}",
        "no such host": "udp://amorsize.invalid:8125",
    }
    variables = {"AMORSIZE_EXPORTERS": "datadog"}
    variables["DD_DOGSTATSD_URL"] = urls.get(kind, f"unixgram://{path}")
    with hanging_agent(path) if kind == "hanging socket" else nullcontext():
        errors, seconds = run_script(variables)
    assert seconds < EXIT_SECONDS * slowness()
    assert "Traceback" not in errors
    assert errors.count("cannot deliver") <= 1


@pytest.mark.parametrize("kind", ["UDP", "Unix"])
def test_an_agent_that_dies_in_the_middle_of_a_run(tmp_path: Path, mode: str, kind: str) -> None:
    """The results are right, and what it did not get is counted."""
    path = tmp_path / "dsd.socket"
    agent = Agent(None if kind == "UDP" else path)
    manager = HookManager()
    exporter = DatadogExporter(**where(agent)).attach(manager)

    def kill(context: amorsize.HookContext) -> None:
        if context.items_completed == 12:  # chunks may come in any order
            assert exporter.flush(PATIENCE)
            agent.wait_for(lambda agent: agent.total("amorsize.items.processed") >= 4)
            agent.close()

    manager.register(HookEvent.ON_CHUNK_COMPLETE, kill)
    ledger = Ledger(tmp_path / "ledger")
    results = amorsize.execute(
        Work(ledger),
        range(ITEMS),
        executor=mode,
        n_jobs=2,
        chunksize=4,
        return_exceptions=True,
        hooks=manager,
    )
    began = time.monotonic()
    exporter.close()
    assert time.monotonic() - began < EXIT_SECONDS * slowness()
    assert [item for item in results if isinstance(item, int)] == [
        item for item in range(ITEMS) if item % 10 != 3
    ]
    assert sorted(ledger.items("returned") + ledger.items("raised")) == list(range(ITEMS))
    dropped, errors = exporter.counts()
    assert dropped > 0
    assert errors > 0
    assert 0 < agent.total("amorsize.items.processed") < ITEMS
    assert manager.get_stats()["error_counts"] == {}


TERMINATED = """
import sys, time, amorsize

amorsize.enable_datadog(events=["error", "completed"])

def started(context):
    print("done", flush=True)

def wait(item):
    time.sleep(60)

amorsize.get_default_manager().register(amorsize.HookEvent.ON_WORKER_START, started)
amorsize.execute(wait, range(4), executor=sys.argv[1], n_jobs=2, chunksize=1)
"""


def test_a_terminated_program_says_so(mode: str) -> None:
    """SIGTERM in the middle of a run: it counts as cancelled, and nothing is critical."""
    with Agent() as agent:
        program = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", TERMINATED, mode],
            stdout=subprocess.PIPE,
            env={**os.environ, "DD_AGENT_HOST": "127.0.0.1", "DD_DOGSTATSD_PORT": str(agent.port)},
        )
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == b"done\n"
            program.send_signal(signal.SIGTERM)
            program.wait()
        finally:
            program.kill()
            program.communicate()
        assert program.returncode == -signal.SIGTERM
        agent.wait_for(lambda agent: agent.total("amorsize.executions", "status:cancelled") == 1)
        agent.wait_for(lambda agent: len(agent.events) == 2)
        assert {each.fields["t"] for each in agent.events} == {"warning"}
        assert agent.checks == []
        assert agent.gauge("amorsize.executions.in_progress") == 0
