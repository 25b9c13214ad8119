"""The Datadog exporter, on real sockets: what each event becomes, and what is in its way."""

from __future__ import annotations

import inspect
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datadog
import hypothesis
import hypothesis.strategies as st
import pytest
from datadog.dogstatsd.base import DogStatsd
from ports import free_port
from waiting import PATIENCE, wait_until

import amorsize
from amorsize import enable_datadog
from amorsize.errors import (
    ExporterError,
    InvalidTypeError,
    InvalidValueError,
    MissingExtraError,
    WorkerDiedError,
)
from amorsize.exporters.base import _open_exporters, close_all
from amorsize.exporters.datadog import exporter as module
from amorsize.exporters.datadog.events import KINDS
from amorsize.exporters.datadog.exporter import DatadogExporter
from amorsize.exporters.metrics import METRICS, Kind
from amorsize.hooks import HookEvent, HookManager
from amorsize.workers.user_metrics import empty_metric, merge

from ..dogstatsd import UDP_BYTES, Agent, Event, hanging_agent
from ..events import UNCHANGED, Run, emit_run

PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
ENVIRONMENT = [name for name in os.environ if name.startswith(("DD_", "DATADOG_"))]
NASTY = "größe|a,b#c\nd 👍 <locals>\ud800:x"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but what a test sets; where this runs in a container is no matter."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DD_ORIGIN_DETECTION_ENABLED", "false")


@pytest.fixture
def agent() -> Iterator[Agent]:
    with Agent() as agent:
        yield agent


@pytest.fixture
def sends(agent: Agent, manager: HookManager) -> Iterator[Callable[..., DatadogExporter]]:
    """Make exporters that send to the agent."""
    exporters = []

    def make(**settings: Any) -> DatadogExporter:
        settings = {"host": "127.0.0.1", "port": agent.port} | settings
        exporters.append(DatadogExporter(**settings).attach(manager))
        return exporters[-1]

    yield make
    for exporter in exporters:
        exporter.close()


# --- metrics ----


def test_every_row_arrives_under_its_name_and_kind(
    manager: HookManager, agent: Agent, sends: Callable[..., DatadogExporter]
) -> None:
    """Counts, gauges and distributions, with the labels of the row as tags."""
    manager.register(HookEvent.PRE_EXECUTE, lambda context: 1 / 0)
    exporter = sends()
    emit_run(manager)
    exporter._dropped += 1
    assert exporter.flush(PATIENCE)
    agent.wait_for(lambda agent: agent.checks)
    types = {Kind.COUNTER: "c", Kind.GAUGE: "g", Kind.INFO: "g", Kind.HISTOGRAM: "d"}
    expected = {row.dotted: types[row.kind] for row in METRICS if row not in UNCHANGED}
    assert agent.types() == expected
    labels = {row.dotted: row.labels for row in METRICS}
    for metric in agent.metrics:
        assert tuple(tag.partition(":")[0] for tag in metric.tags) == labels[metric.name]


def test_the_numbers_are_those_of_the_events(
    manager: HookManager, agent: Agent, sends: Callable[..., DatadogExporter]
) -> None:
    """Whatever the moments are at which they are sent."""
    exporter = sends()
    emit_run(manager)
    assert exporter.flush(PATIENCE)
    emit_run(manager, elapsed=3.0)
    assert exporter.flush(PATIENCE)
    agent.wait_for(lambda agent: len(agent.checks) == 2)
    run = ("function:parse", "executor:process")
    assert agent.total("amorsize.executions", *run, "status:ok") == 2
    assert agent.total("amorsize.items.processed", *run) == 20
    assert agent.total("amorsize.items.failed", *run) == 4
    assert agent.total("amorsize.errors", *run, "error_type:ValueError") == 2
    assert agent.total("amorsize.worker.deaths", *run) == 2
    assert agent.total("amorsize.worker.busy", *run) == 2.0
    assert agent.observations("amorsize.chunk.duration", *run) == 4
    assert agent.total("amorsize.chunk.duration", *run) == 1.5
    assert agent.total("amorsize.chunk.queue", *run) == 1.0
    assert agent.total("amorsize.execution.duration", *run, "status:ok") == 4.0
    assert agent.gauge("amorsize.executions.in_progress", *run) == 0
    assert agent.gauge("amorsize.measured_speedup", "function:parse") == 2.5
    assert agent.gauge("amorsize.concurrency", "function:parse") == 2.75
    assert agent.total("amorsize.worker.cpu", *run) == 1.0
    assert agent.gauge("amorsize.last_duration", "function:parse") == 3.0
    assert agent.gauge("amorsize.last_items", "function:parse") == 10
    assert exporter.counts() == (0, 0)


def test_gauges_are_sums_over_the_runs_in_progress(
    manager: HookManager, agent: Agent, sends: Callable[..., DatadogExporter]
) -> None:
    """Sums over executions of a function, and again while nothing happens."""
    exporter = sends()
    first, second = Run(manager, execution_id="1"), Run(manager, execution_id="2")
    first.begin(total_items=10)
    second.begin(total_items=None)
    first.start_worker()
    first.complete_chunk(4, throughput=8.0)
    assert exporter.flush(PATIENCE)
    agent.wait_for(lambda agent: agent.gauge("amorsize.executions.in_progress") == 2)
    assert agent.gauge("amorsize.items.expected") == 10
    assert agent.gauge("amorsize.items.completed") == 4
    assert agent.gauge("amorsize.throughput.items") == 8
    assert agent.gauge("amorsize.workers") == 1
    first.end()
    second.end()
    assert exporter.flush(PATIENCE)
    agent.wait_for(lambda agent: agent.gauge("amorsize.executions.in_progress") == 0)


def test_gauges_are_renewed_during_a_long_chunk(
    monkeypatch: pytest.MonkeyPatch,
    manager: HookManager,
    agent: Agent,
    sends: Callable[..., DatadogExporter],
) -> None:
    """An agent forgets a gauge that is not sent again."""
    monkeypatch.setattr(module, "GAUGE_SECONDS", 0.02)
    monkeypatch.setattr(module, "LINGER_SECONDS", 0.0)
    sends()
    run = Run(manager)
    run.begin()
    agent.wait_for(lambda agent: len(agent._of("amorsize.items.expected", (), "g")) >= 3)
    run.end()


def test_the_numbers_of_users_arrive(
    manager: HookManager, agent: Agent, sends: Callable[..., DatadogExporter]
) -> None:
    """Counters, gauges, and of histograms what is known exactly."""
    exporter = sends(tags=["team:data"])

    def work(item: int) -> int:
        amorsize.count("seen", 2)
        amorsize.set_gauge("level", item)
        amorsize.observe("size", item - 3)
        return item

    for _ in range(2):
        amorsize.execute(work, range(10), executor="serial", chunksize=4, hooks=manager)
        assert exporter.flush(PATIENCE)
    agent.wait_for(lambda agent: len(agent.checks) == 2)
    types = {name: kind for name, kind in agent.types().items() if ".user." in name}
    assert types == {
        "amorsize.user.seen": "c",
        "amorsize.user.level": "g",
        "amorsize.user.size.count": "c",
        "amorsize.user.size.sum": "c",
        "amorsize.user.size.min": "d",
        "amorsize.user.size.max": "d",
    }
    tags = ("executor:serial", "team:data")
    assert agent.total("amorsize.user.seen", *tags) == 40
    assert agent.gauge("amorsize.user.level", *tags) == 9
    assert agent.total("amorsize.user.size.count", *tags) == 20
    assert agent.total("amorsize.user.size.sum", *tags) == 30
    assert (
        min(v for each in agent._of("amorsize.user.size.min", tags, "d") for v in each.values) == -3
    )
    assert (
        max(v for each in agent._of("amorsize.user.size.max", tags, "d") for v in each.values) == 6
    )


def test_the_numbers_of_a_failed_chunk_arrive(
    manager: HookManager, agent: Agent, sends: Callable[..., DatadogExporter]
) -> None:
    """They come with its error."""
    exporter = sends()
    share = empty_metric("histogram")
    merge(share, {**empty_metric("histogram"), "calls": 1, "sum": 5, "min": 5, "max": 5})
    run = Run(manager)
    run.begin()
    run.emit(
        HookEvent.ON_ERROR,
        {"user_metrics": {"size": share}, "failed_items": 1},
        error=ValueError(),
    )
    run.end("error")
    assert exporter.flush(PATIENCE)
    agent.wait_for(lambda agent: agent.total("amorsize.user.size.sum") == 5)


# --- names that break formats ----


def test_names_that_break_formats_break_none(
    manager: HookManager, agent: Agent, sends: Callable[..., DatadogExporter]
) -> None:
    """Line ends, bars, commas, hashes, emoji, half characters, and too much of them."""
    exporter = sends(events=["error", "worker_death", "start", "completed"], tags=["a,b|c#\nd:e"])
    error = type("Bad|,#\n" + "ß" * 300, (ValueError,), {})(NASTY)
    run = Run(manager, function=NASTY)
    run.begin()
    run.fail(error)
    run.emit(
        HookEvent.ON_ERROR,
        {"failed_items": 1, "exit_code": -9},
        error=error,
        error_message=NASTY * 50,
        error_traceback=f"```\n{NASTY}%%%|m:x\\n" * 2000,
    )
    run.end("error", error=error, error_message=NASTY)
    emit_run(manager, function="ü" * 1000)
    emit_run(manager, function="ü" * 1001)
    assert exporter.flush(PATIENCE)
    agent.wait_for(lambda agent: len(agent.checks) == 3)
    assert {tag for each in agent.checks for tag in each.tags if tag.startswith("a_")} == {
        "a_b_c__d:e"
    }
    names = {tag for each in agent.metrics for tag in each.tags if tag.startswith("function:")}
    assert len(names) == 3, names  # the two long ones differ after the cut
    assert all(len(name.encode()) <= 200 for name in names)


@hypothesis.settings(
    max_examples=30, suppress_health_check=list(hypothesis.HealthCheck), deadline=None
)
@hypothesis.given(
    function=st.text(st.characters(), max_size=300),
    message=st.text(st.characters(), max_size=3000),
    kind=st.text(st.characters(codec="utf-8"), min_size=1, max_size=100),
    unix=st.booleans(),
)
def test_whatever_a_function_and_its_error_are_called(
    tmp_path_factory: pytest.TempPathFactory, function: str, message: str, kind: str, unix: bool
) -> None:
    """Every datagram is well formed, and short enough."""
    manager = HookManager()
    error = type(kind.replace("\0", "0"), (Exception,), {})(message)
    path = tmp_path_factory.mktemp("agent") / "s" if unix else None
    with Agent(path) as agent:
        where: dict[str, Any] = {"port": agent.port} if path is None else {"socket_path": path}
        with DatadogExporter(**where, events=KINDS).attach(manager) as exporter:
            run = Run(manager, function=function)
            run.begin()
            run.complete_chunk(3)
            run.emit(
                HookEvent.ON_ERROR,
                {"failed_items": 1},
                error=error,
                error_message=message,
                error_traceback=message * 5,
            )
            run.end("error", error=error, error_message=message)
            assert exporter.flush(PATIENCE)
        assert manager.get_stats()["error_counts"] == {}
        agent.wait_for(lambda agent: agent.checks and len(agent.events) == 3)
        assert agent.total("amorsize.items.processed") == 3


@pytest.mark.parametrize("unix", [False, True], ids=["UDP", "Unix"])
def test_an_event_is_cut_to_its_datagram_in_whole_characters(
    tmp_path: Path, manager: HookManager, unix: bool
) -> None:
    """What is kept of a traceback is its end."""
    path = tmp_path / "dsd.socket" if unix else None
    with Agent(path) as agent:
        where: dict[str, Any] = {"socket_path": path} if unix else {"port": agent.port}
        for length in range(3000, 3008):
            with DatadogExporter(host=None if unix else "127.0.0.1", **where).attach(manager):
                run = Run(manager)
                run.begin()
                run.emit(
                    HookEvent.ON_ERROR,
                    {"failed_items": 1},
                    error=ValueError("x"),
                    error_traceback="é€👍\n" * length + "x" * (length - 3000) + "the end\n",
                )
                run.end("error")
        agent.wait_for(lambda agent: len(agent.events) == 8)
        sizes = [len(each) for each in agent.datagrams if each.startswith(b"_e{")]
        # Nothing but a character of four bytes, or the two of a line end, may be missing.
        assert all(agent.limit - 3 <= size <= agent.limit for size in sizes), sizes
        for event in agent.events:
            assert event.text.startswith("%%% \n- function: `parse`")
            assert event.text.endswith("the end\n```\n %%%")
            assert "�" not in event.text


# --- events and checks ----


def events_of(
    manager: HookManager, agent: Agent, sends: Callable[..., DatadogExporter], *kinds: str
) -> list[Event]:
    exporter = sends(events=kinds, service_check=False)
    run = Run(manager, execution_id="f" * 32)
    run.begin(total_items=10)
    run.complete_chunk(4)
    run.emit(
        HookEvent.ON_ERROR,
        {"failed_items": 2, "chunk_start": 4},
        error=ValueError("no `number`"),
        error_message="no `number`",
        error_traceback="Traceback:\nValueError: no `number`\n",
        total_items=10,
    )
    run.emit(
        HookEvent.ON_ERROR,
        {"failed_items": 1, "exit_code": -9, "item_index": 7},
        error=WorkerDiedError(pid=1, exit_code=-9),
        error_message="a worker died",
        total_items=10,
    )
    run.end("error", total_items=10)
    assert exporter.flush(PATIENCE)
    agent.wait_for(lambda agent: agent.total("amorsize.executions") == 1)
    agent.wait_for(lambda agent: len(agent.events) >= len(kinds))
    return agent.events


def test_an_error_is_an_event(
    manager: HookManager, agent: Agent, sends: Callable[..., DatadogExporter]
) -> None:
    """With what failed, what is lost, and how it came to it."""
    (event,) = events_of(manager, agent, sends, "error")
    assert event.title == "parse failed: ValueError"
    assert event.text == (
        "%%% \n"
        "- function: `parse`\n"
        "- executor: `process, 0 at a time`\n"
        f"- execution: `{'f' * 32}`\n"
        "- items done: `4 of 10`\n"
        "- items lost: `2`\n"
        "- first item of the chunk: `4`\n"
        "- error: `ValueError: no 'number'`\n"
        "\n"
        "```\n"
        "Traceback:\n"
        "ValueError: no `number`\n"
        "```\n"
        " %%%"
    )
    assert event.tags == ("function:parse", "executor:process")
    assert event.fields["t"] == "error"
    assert event.fields["k"] == "f" * 32


def test_a_death_is_an_event(
    manager: HookManager, agent: Agent, sends: Callable[..., DatadogExporter]
) -> None:
    """With the exit code, and the item."""
    (event,) = events_of(manager, agent, sends, "worker_death")
    assert event.title == "parse lost a worker (exit code -9)"
    assert "- items lost: `1`\n- exit code: `-9`\n- item: `7`\n" in event.text
    assert event.fields["t"] == "error"


def test_beginnings_and_ends_are_events_where_asked_for(
    manager: HookManager, agent: Agent, sends: Callable[..., DatadogExporter]
) -> None:
    """All under the key of the execution."""
    first, last = events_of(manager, agent, sends, "start", "completed")
    assert (first.title, first.fields["t"]) == ("parse started", "info")
    assert (last.title, last.fields["t"]) == ("parse failed", "error")
    assert "- items done: `4 of 10`\n- items lost: `3`\n- seconds: `1.000`" in last.text
    assert first.fields["k"] == last.fields["k"]


@pytest.mark.parametrize(
    ("status", "said", "alert", "check"),
    [
        ("ok", "completed", "success", 0),
        ("error", "failed", "error", 2),
        ("timeout", "timed out", "error", 2),
        ("cancelled", "was cancelled", "warning", None),
    ],
)
def test_how_a_run_ended(
    manager: HookManager,
    agent: Agent,
    sends: Callable[..., DatadogExporter],
    status: str,
    said: str,
    alert: str,
    check: int | None,
) -> None:
    """A cancelled run neither failed nor succeeded."""
    exporter = sends(events=["completed"])
    emit_run(manager, status=status)
    assert exporter.flush(PATIENCE)
    agent.wait_for(lambda agent: agent.total("amorsize.executions", f"status:{status}") == 1)
    agent.wait_for(lambda agent: agent.events)
    (event,) = agent.events
    assert (event.title, event.fields["t"]) == (f"parse {said}", alert)
    reported = [(each.name, each.status, each.message) for each in agent.checks]
    expected = [("amorsize.execution", check, f"parse: {status}")]
    assert reported == ([] if check is None else expected)


def test_ctrl_c_is_a_warning(
    manager: HookManager, agent: Agent, sends: Callable[..., DatadogExporter]
) -> None:
    """Nobody is to be woken up by it."""
    exporter = sends()
    run = Run(manager)
    run.begin()
    run.fail(KeyboardInterrupt())
    run.end("cancelled")
    assert exporter.flush(PATIENCE)
    agent.wait_for(lambda agent: agent.events)
    (event,) = agent.events
    assert (event.title, event.fields["t"]) == (
        "parse was cancelled (KeyboardInterrupt)",
        "warning",
    )


def test_a_million_failures_are_ten_events(
    manager: HookManager, agent: Agent, sends: Callable[..., DatadogExporter]
) -> None:
    """The last of them says that there are more; the metrics count them all."""
    exporter = sends()
    run = Run(manager)
    run.begin()
    for _ in range(300):
        run.fail(ValueError("bad"))
    run.end("error")
    assert exporter.flush(PATIENCE)
    agent.wait_for(lambda agent: agent.total("amorsize.errors") == 300)
    agent.wait_for(lambda agent: len(agent.events) >= 10)
    assert len(agent.events) == 10
    assert "further failures of this execution have no events" in agent.events[-1].text


# --- where it goes ----


def test_unix_sockets(tmp_path: Path, manager: HookManager) -> None:
    """Of datagrams and of streams, with and without their schemes."""
    for stream, scheme in [
        (False, ""),
        (False, "unix://"),
        (False, "unixgram://"),
        (True, ""),
        (True, "unixstream://"),
    ]:
        path = tmp_path / f"{len(scheme)}{stream}.socket"
        with Agent(path, stream=stream) as agent:
            with DatadogExporter(socket_path=f"{scheme}{path}").attach(manager) as exporter:
                for number in range(40):
                    emit_run(manager, function=f"f{number}")
                assert exporter.flush(PATIENCE)
            agent.wait_for(lambda agent: agent.total("amorsize.executions") == 40)
            longest = max(map(len, agent.datagrams))
            assert UDP_BYTES < longest <= agent.limit


@pytest.mark.parametrize(
    "variables",
    [
        {"DD_AGENT_HOST": "127.0.0.1", "DD_DOGSTATSD_PORT": "PORT"},
        {"DD_DOGSTATSD_URL": "udp://127.0.0.1:PORT", "DD_AGENT_HOST": "nowhere.invalid"},
    ],
)
def test_the_environment_names_the_agent(
    monkeypatch: pytest.MonkeyPatch, manager: HookManager, agent: Agent, variables: dict[str, str]
) -> None:
    """As it does for all of Datadog's libraries; an API key does not matter then."""
    monkeypatch.setenv("DD_API_KEY", "hunter2")
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("PORT", str(agent.port)))
    with DatadogExporter().attach(manager) as exporter:
        assert repr(exporter) == f"<DatadogExporter (127.0.0.1:{agent.port})>"
        emit_run(manager)
    agent.wait_for(lambda agent: agent.total("amorsize.executions") == 1)


def test_tags_of_the_environment_are_sent_once(
    monkeypatch: pytest.MonkeyPatch,
    manager: HookManager,
    agent: Agent,
    sends: Callable[..., DatadogExporter],
) -> None:
    """On metrics, events and checks."""
    monkeypatch.setenv("DD_ENV", "staging")
    monkeypatch.setenv("DD_SERVICE", "etl")
    monkeypatch.setenv("DD_VERSION", "1.2")
    monkeypatch.setenv("DATADOG_TAGS", "a:b,shared:x")
    monkeypatch.setenv("DD_TAGS", "c:d shared:x,team:data")
    exporter = sends(tags=["team:data"])
    emit_run(manager)
    assert exporter.flush(PATIENCE)
    agent.wait_for(lambda agent: agent.checks and agent.events)
    common = {"env:staging", "service:etl", "version:1.2", "a:b", "c:d", "shared:x", "team:data"}
    for message in agent.messages:
        assert len(message.tags) == len(set(message.tags))
        assert common <= set(message.tags)


def test_the_librarys_own_client_is_left_alone(
    manager: HookManager, agent: Agent, sends: Callable[..., DatadogExporter]
) -> None:
    """It belongs to the application."""
    before = dict(vars(datadog.statsd))
    exporter = sends(tags=["a:b"])
    emit_run(manager)
    exporter.close()
    assert dict(vars(datadog.statsd)) == before


def test_a_client_of_the_caller_is_used_as_it_is(manager: HookManager, agent: Agent) -> None:
    """With its own tags and namespace, and it is open afterwards."""
    client = DogStatsd(
        host="127.0.0.1",
        port=agent.port,
        namespace="ours",
        constant_tags=["ours:yes"],
        disable_telemetry=True,
        default_sample_rate=0.01,
    )
    with DatadogExporter(client=client, tags=["a:b"], events=["completed"]).attach(
        manager
    ) as exporter:
        assert repr(exporter) == "<DatadogExporter (a client that was passed)>"
        emit_run(manager)
    agent.wait_for(lambda agent: agent.total("ours.amorsize.executions", "ours:yes", "a:b") == 1)
    agent.wait_for(lambda agent: agent.events and agent.checks)
    client.increment("still.open", sample_rate=1)
    agent.wait_for(lambda agent: agent.total("ours.still.open") == 1)
    client.stop()


def test_losses_of_a_caller_s_client_are_counted(tmp_path: Path, manager: HookManager) -> None:
    """As far as it counts it itself."""
    client = DogStatsd(socket_path=str(tmp_path / "nothing"), telemetry_min_flush_interval=1000)
    logging.getLogger("datadog.dogstatsd").setLevel(logging.CRITICAL)
    with DatadogExporter(client=client).attach(manager) as exporter:
        emit_run(manager)
        exporter.flush(PATIENCE)
        assert exporter.counts()[0] == client.packets_dropped > 0
    client.stop()


# --- an agent that is not there ----


@pytest.mark.parametrize("unix", [False, True], ids=["UDP", "Unix"])
def test_a_dead_agent_costs_its_messages_and_nothing_else(
    tmp_path: Path,
    manager: HookManager,
    caplog: pytest.LogCaptureFixture,
    unix: bool,
) -> None:
    """All of them are counted, and the log says it once."""
    where: dict[str, Any] = {"socket_path": tmp_path / "no"} if unix else {"port": free_port()}
    exporter = DatadogExporter(**where).attach(manager)
    emit_run(manager)
    emit_run(manager)
    exporter.close()
    stats = exporter._sender.stats()
    dropped, errors = exporter.counts()
    assert stats.sent == 0
    assert dropped == stats.dropped + stats.failed >= 14
    assert errors >= 1
    assert manager.get_stats()["error_counts"] == {}
    assert len([each for each in caplog.records if "cannot deliver" in each.message]) == 1
    assert {each.name for each in caplog.records} == {
        "amorsize.exporters.sender",
        "amorsize.exporters.base",
    }
    # What the first line said of losses is not the end: the last one says how many were cut off.
    closed = [each.message for each in caplog.records if each.name == "amorsize.exporters.base"]
    assert len(closed) == 1
    said = re.fullmatch(
        r"The datadog exporter was closed before (\d+) items were delivered; they are lost\.",
        closed[0],
    )
    assert said is not None
    assert 1 <= int(said[1]) <= dropped


def test_an_agent_that_comes_back_misses_nothing(tmp_path: Path, manager: HookManager) -> None:
    """What it did not take is sent again, and nothing twice."""
    path = tmp_path / "dsd.socket"
    exporter = DatadogExporter(socket_path=path).attach(manager)
    with Agent(path) as agent:
        emit_run(manager, function="before")
        assert exporter.flush(PATIENCE)
        agent.wait_for(lambda agent: agent.total("amorsize.executions") == 1)
    path.unlink()
    emit_run(manager, function="meanwhile")
    wait_until(lambda: exporter.flush(0.2) or exporter.counts()[1], "an attempt that failed")
    with Agent(path) as agent:
        assert exporter.flush(PATIENCE)
        emit_run(manager, function="after")
        exporter.close()
        agent.wait_for(lambda agent: agent.total("amorsize.executions") == 2)
        assert agent.total("amorsize.items.processed", "function:meanwhile") == 10
        assert agent.total("amorsize.items.processed", "function:before") == 0
    assert exporter.counts()[0] == 0


def test_an_agent_that_hangs_holds_no_run_up(tmp_path: Path, manager: HookManager) -> None:
    """Its socket is full: all that was for it is counted."""
    path = tmp_path / "dsd.socket"
    with hanging_agent(path):
        exporter = DatadogExporter(socket_path=path).attach(manager)
        emit_run(manager)
        assert not exporter.flush(0.1)
        exporter.close()
    stats = exporter._sender.stats()
    assert stats.sent == 0
    assert exporter.counts()[0] == stats.dropped + stats.failed >= 8
    assert manager.get_stats()["error_counts"] == {}


FORKED = """
import os, amorsize

class Client:
    def __init__(self):
        self.processes = []

    def put_metric_data(self, **call):
        self.processes.append(os.getpid())

def work(name):
    amorsize.execute(abs, range(-5, 5), executor="serial", name=name)

client = Client()
exporters = [amorsize.enable_datadog(), amorsize.enable_cloudwatch(client=client)]
work("before")
assert all([each.flush(30) for each in exporters])
reported = len(client.processes)
child = os.fork()
if child == 0:
    work("child")
    for each in exporters:
        each.flush(0.1)
        each.close()
    os._exit(len(client.processes) - reported)
assert os.waitpid(child, 0)[1] == 0
work("after")
assert all([each.flush(30) for each in exporters])
assert set(client.processes) == {os.getpid()} and len(client.processes) > reported
"""


def inert_exporters(logged: str) -> list[str]:
    """Name the exporters that the log of a child reports as inert; it holds nothing else."""
    lines = logged.splitlines()
    found = [re.match(r"The (\w+) exporter is inert in this process ", line) for line in lines]
    assert all(found), logged
    return sorted(match[1] for match in found if match)


def test_a_forked_child_sends_nothing(agent: Agent) -> None:
    """Neither of the exporters that send; nor does it end what the parent goes on using."""
    variables = {"DD_AGENT_HOST": "127.0.0.1", "DD_DOGSTATSD_PORT": str(agent.port)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", FORKED],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert inert_exporters(done.stderr) == ["cloudwatch", "datadog"]
    for function, executions in [("before", 1), ("child", 0), ("after", 1)]:
        assert agent.total("amorsize.executions", f"function:{function}") == executions


CHILD = """
import multiprocessing, amorsize

exporters = [amorsize.enable_datadog(), amorsize.enable_cloudwatch()]

def child(queue):
    amorsize.execute(abs, [1], executor="serial")
    queue.put([(repr(each), each.flush(1), each.counts()) for each in exporters])

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    for line in queue.get(timeout=200):
        print(line)
    process.join()
"""


def test_a_child_that_imports_the_program_again_sends_nothing(agent: Agent, tmp_path: Path) -> None:
    """Neither of the exporters that send makes a client there, or sends anything."""
    script = tmp_path / "program.py"
    script.write_text(CHILD)
    variables = {"DD_AGENT_HOST": "127.0.0.1", "DD_DOGSTATSD_PORT": str(agent.port)}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        env={**os.environ, **variables, "AWS_DEFAULT_REGION": "eu-central-1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "('<DatadogExporter (inert in a child process)>', True, (0, 0))",
        "('<CloudWatchExporter (inert in a child process)>', True, (0, 0))",
    ]
    assert inert_exporters(done.stderr) == ["cloudwatch", "datadog"]
    assert agent.total("amorsize.executions") == 0


def test_nothing_is_left_when_it_is_closed(
    manager: HookManager, sends: Callable[..., DatadogExporter]
) -> None:
    """No thread, no socket."""
    before = set(threading.enumerate())
    exporter = sends()
    emit_run(manager)
    assert exporter.flush(PATIENCE)
    used = exporter._datagrams._wire.socket  # type: ignore[union-attr]
    exporter.close()
    assert used is not None
    assert used.fileno() == -1
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE)
        assert not thread.is_alive()


# --- how it is enabled ----


def test_the_signature_of_enable_datadog() -> None:
    """All by keyword; a name or a default that changes here changes for every user."""
    parameters = inspect.signature(enable_datadog).parameters
    assert {each.kind for each in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert {name: each.default for name, each in parameters.items()} == {
        "host": None,
        "port": None,
        "socket_path": None,
        "tags": (),
        "events": ("error", "worker_death"),
        "service_check": True,
        "client": None,
        "api_key": None,
        "api_host": None,
    }


def test_enabling_twice(agent: Agent) -> None:
    """The same settings give the same exporter, others an error."""
    with enable_datadog(host="127.0.0.1", port=agent.port) as exporter:
        assert enable_datadog(host="127.0.0.1", port=agent.port) is exporter
        assert amorsize.enable("datadog", host="127.0.0.1", port=agent.port) is exporter
        with pytest.raises(ExporterError, match="another events and tags"):
            enable_datadog(host="127.0.0.1", port=agent.port, tags=["a"], events=["start"])


def test_without_datadog_the_error_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And what it is for."""
    monkeypatch.setitem(sys.modules, "datadog.dogstatsd", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'amorsize\[datadog\]'"):
        enable_datadog()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"host": 5}, InvalidTypeError, "host must be a string, or None; got 5"),
        ({"host": ""}, InvalidValueError, "host must not be empty"),
        ({"port": "8125"}, InvalidTypeError, "port must be a number, or None; got '8125'"),
        ({"port": 0}, InvalidValueError, "port must be from 1 to 65535"),
        ({"socket_path": 5}, InvalidTypeError, "socket_path must be a path, or None; got 5"),
        ({"socket_path": "a", "host": "b"}, InvalidValueError, "socket_path, or host and port"),
        ({"client": object()}, InvalidTypeError, "of type object without count, gauge"),
        ({"client": datadog.statsd, "port": 1}, InvalidValueError, "pass either port, or client"),
        (
            {"events": "error"},
            InvalidTypeError,
            "a list of names; known are 'error', 'worker_",
        ),
        ({"events": ["death"]}, InvalidValueError, "got 'death'"),
        ({"tags": "a:b"}, InvalidTypeError, "tags must be a list of strings like 'team:data'"),
        ({"tags": [1]}, InvalidTypeError, "got 1 among them"),
        ({"tags": [""]}, InvalidValueError, "tags must not be empty"),
        ({"tags": ["a" * 300, "b" * 300]}, InvalidValueError, "have 602 bytes, .* more than 500"),
        ({"api_host": "https://a.b"}, InvalidValueError, "it needs api_key, or DD_API_KEY"),
    ],
)
def test_a_wrong_setting_is_refused(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    """With what was given, and what is allowed."""
    with pytest.raises(error, match=message):
        enable_datadog(**settings)


PAGE = Path(__file__).parents[3] / "docs" / "datadog.md"


@pytest.mark.parametrize("snippet", PYTHON.findall(PAGE.read_text()))
def test_the_snippets_of_the_page_run(
    snippet: str, monkeypatch: pytest.MonkeyPatch, agent: Agent
) -> None:
    """As they stand, with a function and data."""
    if "api_key" in snippet:
        monkeypatch.setenv("DD_API_KEY", "hunter2")
        monkeypatch.setenv("DD_SITE", "localhost:1")
    else:
        monkeypatch.setenv("DD_AGENT_HOST", "127.0.0.1")
        monkeypatch.setenv("DD_DOGSTATSD_PORT", str(agent.port))
    names: dict[str, Any] = {"amorsize": amorsize, "func": abs, "data": range(-9, 9)}
    try:
        exec(compile(snippet, "datadog.md", "exec"), names)
        assert [each.name for each in _open_exporters] == ["datadog"]
        amorsize.execute(abs, range(10), executor="serial")
    finally:
        close_all()
    if "api_key" not in snippet:
        agent.wait_for(lambda agent: agent.total("amorsize.items.processed") >= 10)


def test_the_page_names_every_setting_and_every_kind_of_event() -> None:
    """Nothing that can be passed is left out."""
    text = PAGE.read_text()
    parameters = inspect.signature(enable_datadog).parameters
    assert [name for name in parameters if f"{name}=" not in text] == []
    assert [kind for kind in KINDS if f'"{kind}"' not in text] == []


def test_tags_as_a_mapping_are_refused() -> None:
    """Its keys alone would be sent."""
    with pytest.raises(InvalidTypeError, match="a list of strings like 'team:data'"):
        DatadogExporter(tags={"team": "data"})  # type: ignore[arg-type]
