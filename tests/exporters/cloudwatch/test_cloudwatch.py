"""The CloudWatch exporter: its data, their times, and the limits of calls."""

from __future__ import annotations

import inspect
import io
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import hypothesis
import hypothesis.strategies as st
import pytest
from botocore.exceptions import EndpointConnectionError, ParamValidationError
from waiting import PATIENCE

import amorsize
from amorsize import enable_cloudwatch
from amorsize.errors import (
    ExporterError,
    InvalidTypeError,
    InvalidValueError,
    MissingExtraError,
)
from amorsize.exporters import delivery
from amorsize.exporters.base import close_all
from amorsize.exporters.cloudwatch import exporter as module
from amorsize.exporters.cloudwatch import settings
from amorsize.exporters.cloudwatch.data import dimension_name
from amorsize.exporters.cloudwatch.exporter import CloudWatchExporter
from amorsize.exporters.metrics import METRICS, Kind
from amorsize.hooks import HookEvent, HookManager

from ..datadog.test_datadog import NASTY, PYTHON
from ..events import UNCHANGED, Run, emit_run
from .client import Client, answer
from .test_cloudwatch_emf import parse, values


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.gate.set()


@pytest.fixture
def sends(client: Client, manager: HookManager) -> Iterator[Callable[..., CloudWatchExporter]]:
    """Make exporters that send to the client."""
    exporters = []

    def make(**settings: Any) -> CloudWatchExporter:
        exporters.append(CloudWatchExporter(client=client, **settings).attach(manager))
        return exporters[-1]

    yield make
    for exporter in exporters:
        exporter.close()


# --- the data ----


def test_every_row_arrives_under_its_name_and_unit(
    manager: HookManager, client: Client, sends: Callable[..., CloudWatchExporter]
) -> None:
    """With the labels of the row as dimensions, and the user's own."""
    manager.register(HookEvent.PRE_EXECUTE, lambda context: 1 / 0)
    exporter = sends(namespace="Ours", dimensions={"Stage": "test"})
    exporter._lost += 1
    emit_run(manager)
    assert exporter.flush(PATIENCE)
    expected = {
        (row.cloudwatch, row.cloudwatch_unit, tuple(map(dimension_name, row.labels)))
        for row in METRICS
        if row not in UNCHANGED
    }
    reported = {
        (
            each["MetricName"],
            each["Unit"],
            tuple(dimension["Name"] for dimension in each["Dimensions"][:-1]),
        )
        for each in client.data
    }
    assert reported == expected
    assert {call["Namespace"] for call in client.calls} == {"Ours"}
    for datum in client.data:
        assert datum["Dimensions"][-1] == {"Name": "Stage", "Value": "test"}
    for row in METRICS:
        for datum in client.of(row.cloudwatch):
            assert ("Values" in datum) == (row.kind is Kind.HISTOGRAM)


def test_the_numbers_are_those_of_the_events(
    manager: HookManager, client: Client, sends: Callable[..., CloudWatchExporter]
) -> None:
    """Whatever the moments are at which they are sent."""
    exporter = sends()
    emit_run(manager)
    assert exporter.flush(PATIENCE)
    emit_run(manager, elapsed=3.0)
    assert exporter.flush(PATIENCE)
    run = {"Function": "parse", "Executor": "process"}
    assert client.total("Executions", **run, Status="ok") == 2
    assert client.total("ItemsProcessed", **run) == 20
    assert client.total("ItemsFailed", **run) == 4
    assert client.total("Errors", **run, ErrorType="ValueError") == 2
    assert client.total("WorkerDeaths", **run) == 2
    assert client.total("WorkerBusy", **run) == 2.0
    assert client.samples("ChunkDuration", **run) == 4
    assert client.total("ChunkDuration", **run) == 1.5
    assert client.total("ChunkQueue", **run) == 1.0
    assert client.total("ExecutionDuration", **run, Status="ok") == 4.0
    assert client.last("ExecutionsInProgress", **run) == 0
    assert client.last("MeasuredSpeedup", Function="parse") == 2.5
    assert client.last("LastDuration", Function="parse") == 3.0
    assert exporter.counts() == (0, 0)


def test_the_numbers_of_users_arrive(
    manager: HookManager, client: Client, sends: Callable[..., CloudWatchExporter]
) -> None:
    """Of histograms what is known exactly, as statistics."""
    exporter = sends()

    def work(item: int) -> int:
        amorsize.count("rows_seen", 2)
        amorsize.set_gauge("Rows_Seen", item)  # in CamelCase the same name
        amorsize.observe("size", item - 3)
        if item == 9:
            raise ValueError
        return item

    for _ in range(2):
        with pytest.raises(ValueError):
            amorsize.execute(work, range(10), executor="serial", chunksize=4, hooks=manager)
        assert exporter.flush(PATIENCE)
    assert client.total("User.rows_seen", Executor="serial") == 40
    assert client.last("User.Rows_Seen", Executor="serial") == 9
    statistics = [each["StatisticValues"] for each in client.of("User.size", Executor="serial")]
    assert statistics == [{"SampleCount": 10, "Sum": 15, "Minimum": -3, "Maximum": 6}] * 2


def test_no_duration_is_lost(
    manager: HookManager, client: Client, sends: Callable[..., CloudWatchExporter]
) -> None:
    """However many there are; each within half a percent, so that percentiles work."""
    exporter = sends()
    durations = [1.0003**number for number in range(10_000)]
    run = Run(manager)
    run.begin()
    for duration in durations:
        run.complete_chunk(1, chunk_time=duration)
    run.end()
    assert exporter.flush(PATIENCE)
    assert client.samples("ChunkDuration") == 10_000
    assert len(client.of("ChunkDuration")) > 1
    reported = sorted(
        value
        for datum in client.of("ChunkDuration")
        for value, count in zip(datum["Values"], datum["Counts"], strict=True)
        for _ in range(int(count))
    )
    for value, duration in zip(reported, durations, strict=True):
        assert value == pytest.approx(duration, rel=0.005)


def test_a_thousand_series_are_several_calls(
    manager: HookManager, client: Client, sends: Callable[..., CloudWatchExporter]
) -> None:
    """Each within the limits; nothing is sent twice, nothing is left out."""
    exporter = sends(dimensions={f"{'d' * 240}{n}": "v" * 1024 for n in range(27)})
    for number in range(100):
        emit_run(manager, function=f"ü{number}" * 300)
    assert exporter.flush(PATIENCE)
    assert len(client.calls) > 2
    assert client.total("Executions") == 100
    assert len(client.data) > 1000


def test_a_thousand_small_series_fill_a_call(
    manager: HookManager, client: Client, sends: Callable[..., CloudWatchExporter]
) -> None:
    """To the last of its thousand data."""
    exporter = sends()
    for number in range(100):
        emit_run(manager, function=f"f{number}")
    assert exporter.flush(PATIENCE)
    assert max(len(call["MetricData"]) for call in client.calls) == 1000
    assert client.total("ItemsProcessed") == 1000


def test_names_that_cloudwatch_refuses_are_spelt_out(
    manager: HookManager, client: Client, sends: Callable[..., CloudWatchExporter]
) -> None:
    """It takes printable ASCII."""
    exporter = sends()
    emit_run(manager, function=NASTY)
    emit_run(manager, function="\t ")
    assert exporter.flush(PATIENCE)
    functions = {
        each["Value"]
        for datum in client.data
        for each in datum["Dimensions"]
        if each["Name"] == "Function"
    }
    spelt = r"gr\xf6\xdfe|a,b#c\x0ad \U0001f44d <locals>\ud800:x"
    assert functions == {spelt, r"\x09 "}


@hypothesis.settings(
    max_examples=30, suppress_health_check=list(hypothesis.HealthCheck), deadline=None
)
@hypothesis.given(
    function=st.text(st.characters(), max_size=2000),
    kind=st.text(st.characters(codec="utf-8"), min_size=1, max_size=2000),
    seconds=st.floats(min_value=0),
)
def test_whatever_a_function_and_its_error_are_called(
    function: str, kind: str, seconds: float
) -> None:
    """Every call is within the limits, and so is every line."""
    error = type(kind.replace("\0", "0"), (Exception,), {})()
    for where in ({"client": Client()}, {"emf": io.StringIO()}):
        manager = HookManager()
        with CloudWatchExporter(**where).attach(manager) as exporter:  # type: ignore[arg-type]
            run = Run(manager, function=function)
            run.begin()
            run.complete_chunk(3, chunk_time=seconds)
            run.fail(error)
            run.end("error", elapsed=seconds)
        assert exporter._waiting == deque()
        assert manager.get_stats()["error_counts"] == {}
        if "client" in where:
            assert where["client"].total("ItemsProcessed") == 3  # type: ignore[attr-defined]
        else:
            lines = parse(where["emf"].getvalue())  # type: ignore[attr-defined]
            assert values(lines, "ItemsProcessed") == [3]


def test_values_that_cloudwatch_refuses_are_left_out_and_counted(
    manager: HookManager, client: Client, sends: Callable[..., CloudWatchExporter]
) -> None:
    """One bad number would cost all that comes with it."""
    exporter = sends()

    def work(item: int) -> None:
        amorsize.count("large", 1e300)
        amorsize.observe("small", 1e-300)
        amorsize.count("good", 1)

    amorsize.execute(work, [1], executor="serial", hooks=manager)
    assert exporter.flush(PATIENCE)
    assert client.of("User.large") == client.of("User.small") == []
    assert client.total("User.good") == 1
    assert exporter.counts() == (2, 0)


# --- when ----


def test_it_is_sent_at_the_end_of_a_run(
    manager: HookManager, client: Client, sends: Callable[..., CloudWatchExporter]
) -> None:
    """Without anybody asking for it."""
    sends()
    emit_run(manager)
    client.wait_for(lambda client: client.total("Executions") == 1)
    [execution] = client.of("Executions")
    assert {each["Name"]: each["Value"] for each in execution["Dimensions"]}["Status"] == "ok"


def test_it_is_sent_at_the_interval_while_a_run_is_in_progress(
    monkeypatch: pytest.MonkeyPatch,
    manager: HookManager,
    client: Client,
    sends: Callable[..., CloudWatchExporter],
) -> None:
    """Gauges again and again, what grew once."""
    monkeypatch.setattr(settings, "check_interval", lambda *_: None)
    monkeypatch.setitem(delivery.SENDER_BOUNDS, "linger_seconds", 0.0)
    sends(interval=0.02)
    run = Run(manager)
    run.begin()
    run.complete_chunk(4)
    client.wait_for(lambda client: len(client.of("ItemsExpected")) >= 3)
    assert client.total("ItemsProcessed") == 4
    assert client.last("ItemsCompleted") == 4
    run.end()
    client.wait_for(lambda client: client.total("Executions") == 1)


# --- failures ----


def test_a_passing_failure_is_tried_again_and_nothing_is_sent_twice(
    manager: HookManager, client: Client, sends: Callable[..., CloudWatchExporter]
) -> None:
    """Beyond what boto3 tries itself."""
    client.failures = [
        EndpointConnectionError(endpoint_url="http://cloudwatch"),
        answer(400, "Throttling"),
        answer(500, "InternalServiceFault"),
    ]
    exporter = sends()
    emit_run(manager)
    for _ in range(3):
        assert client.asked.acquire(timeout=PATIENCE)
        exporter._senders[0].nudge()
    assert exporter.flush(PATIENCE)
    assert client.total("ItemsProcessed") == 10
    assert exporter.counts() == (0, 3)


@pytest.mark.parametrize(
    "refusal",
    [
        answer(403, "AccessDenied"),
        answer(400, "InvalidParameterValue"),
        ParamValidationError(report="bad"),
    ],
    ids=lambda refusal: str(refusal)[:60],
)
def test_a_refusal_is_counted(
    manager: HookManager,
    client: Client,
    sends: Callable[..., CloudWatchExporter],
    refusal: Exception,
) -> None:
    """Refused data are gone; later data are sent."""
    client.failures = [refusal]
    exporter = sends()
    emit_run(manager)
    assert not exporter.flush(PATIENCE)
    lost = exporter.counts()[0]
    assert lost >= 20
    assert "RefusedError" in str(exporter._senders[0].stats().last_error)
    emit_run(manager)
    assert exporter.flush(PATIENCE)
    assert client.total("ItemsProcessed") == 10
    assert client.total("ExporterDropped", Exporter="cloudwatch") == lost


def test_a_long_outage_costs_the_oldest_requests(
    monkeypatch: pytest.MonkeyPatch,
    manager: HookManager,
    client: Client,
    sends: Callable[..., CloudWatchExporter],
) -> None:
    """They are counted, and what is not lost arrives once."""
    monkeypatch.setattr(module, "WAITING_REQUESTS", 1)
    monkeypatch.setitem(delivery.SENDER_BOUNDS, "attempts", 1)
    client.failures = [answer(500, "InternalServiceFault") for _ in range(4)]
    exporter = sends()
    for _ in range(4):
        emit_run(manager)
        assert not exporter.flush(PATIENCE)
    assert exporter.counts()[0] > 20
    emit_run(manager)
    assert exporter.flush(PATIENCE)
    # The present one and the one before it: five runs, of which three are lost.
    assert client.total("ItemsProcessed") == 20


def test_runs_during_an_outage_ask_once(
    manager: HookManager,
    client: Client,
    sends: Callable[..., CloudWatchExporter],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One request to send waits, however many runs end, and is not taken for an overflow."""
    client.failures = [answer(500, "InternalServiceFault") for _ in range(3)]
    exporter = sends()
    for _ in range(3):
        for _ in range(3):
            emit_run(manager)
        exporter._senders[0].nudge()
        assert client.asked.acquire(timeout=PATIENCE)
    assert exporter._senders[0].stats().dropped == 0
    assert exporter.flush(PATIENCE)
    assert client.total("Executions") == 9
    assert "cannot keep up" not in caplog.text


def test_a_client_that_hangs_holds_no_run_up(
    manager: HookManager, client: Client, sends: Callable[..., CloudWatchExporter]
) -> None:
    """What it did not take is counted, and what was not even offered to it."""
    client.gate.clear()
    exporter = sends()
    emit_run(manager)
    assert client.asked.acquire(timeout=PATIENCE)
    emit_run(manager)
    exporter.close()
    offered = len(
        {
            (datum["MetricName"], str(datum["Dimensions"]))
            for call, _ in exporter._waiting
            for datum in call
        }
    )
    assert exporter.counts()[0] > offered > 20
    assert manager.get_stats()["error_counts"] == {}


def test_a_client_of_the_caller_is_not_closed(manager: HookManager, client: Client) -> None:
    """It has no close() to be called at all."""
    with CloudWatchExporter(client=client).attach(manager):
        emit_run(manager)
    assert not hasattr(client, "close")
    assert client.total("Executions") == 1


# --- how it is enabled ----


@pytest.fixture
def no_region(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))


def test_the_signature_of_enable_cloudwatch() -> None:
    """All by keyword; a name or a default that changes here changes for every user."""
    parameters = inspect.signature(enable_cloudwatch).parameters
    assert {each.kind for each in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert {name: each.default for name, each in parameters.items()} == {
        "namespace": "Amorsize",
        "region": None,
        "dimensions": None,
        "interval": 60.0,
        "client": None,
        "emf": False,
    }


def test_enabling_twice(client: Client) -> None:
    """The same settings give the same exporter, others an error."""
    with enable_cloudwatch(client=client) as exporter:
        assert enable_cloudwatch(client=client) is exporter
        assert amorsize.enable("cloudwatch", client=client) is exporter
        with pytest.raises(ExporterError, match="another namespace"):
            enable_cloudwatch(client=client, namespace="Ours")


def test_without_boto3_the_error_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And what it is for."""
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'amorsize\[cloudwatch\]'"):
        enable_cloudwatch(region="eu-central-1")


def test_without_a_region_the_error_names_the_variable_that_sets_it(no_region: None) -> None:
    """Rather than a guess."""
    with pytest.raises(InvalidValueError, match="no AWS region is set; pass one, such as region="):
        enable_cloudwatch()


def test_the_default_session_of_boto3_is_left_alone(no_region: None) -> None:
    """It belongs to the application."""
    before = boto3.DEFAULT_SESSION
    with CloudWatchExporter(region="eu-central-1") as exporter:
        assert exporter._client.meta.region_name == "eu-central-1"
    assert boto3.DEFAULT_SESSION is before


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"namespace": 5}, InvalidTypeError, "namespace must be a string; got 5"),
        ({"namespace": ""}, InvalidValueError, "namespace must be 1 to 255 letters"),
        ({"namespace": "AWS/EC2"}, InvalidValueError, "nor with 'AWS/'; got 'AWS/EC2'"),
        ({"namespace": "größe"}, InvalidValueError, "got 'größe'"),
        ({"namespace": " "}, InvalidValueError, "must not be blank"),
        ({"region": 5}, InvalidTypeError, "region must be a string, or None; got 5"),
        ({"client": 5}, InvalidTypeError, "of type int without put_metric_data"),
        ({"client": Client(), "region": "eu"}, InvalidValueError, "pass either region or client"),
        ({"interval": "60"}, InvalidTypeError, "interval must be seconds; got '60'"),
        ({"interval": 0.5}, InvalidValueError, "interval must be at least 1 second; got 0.5"),
        ({"dimensions": ["a"]}, InvalidTypeError, "must be a mapping of names to values"),
        ({"dimensions": {"a": 5}}, InvalidTypeError, "must map strings to strings; got 'a': 5"),
        ({"dimensions": {":a": "b"}}, InvalidValueError, "not beginning with a colon"),
        ({"dimensions": {"a": ""}}, InvalidValueError, "the value of a dimension must be 1 to"),
        ({"dimensions": {"a": "ü"}}, InvalidValueError, "printable ASCII characters"),
        ({"dimensions": {"Function": "b"}}, InvalidValueError, "which amorsize itself uses"),
        ({"dimensions": {"Workers": "b"}}, InvalidValueError, "which amorsize itself uses"),
        (
            {"dimensions": dict.fromkeys("abcdefghijklmnopqrstuvwxyzAB", "v")},
            InvalidValueError,
            "at most 27 names",
        ),
        ({"emf": "log"}, InvalidTypeError, "emf must be True, False, or a stream"),
        (
            {"emf": True, "region": "eu"},
            InvalidValueError,
            "leave out either emf, or region and client",
        ),
    ],
)
def test_a_wrong_setting_is_refused(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    """With what was given, and what is allowed."""
    with pytest.raises(error, match=message):
        enable_cloudwatch(**settings)


PAGE = Path(__file__).parents[3] / "docs" / "cloudwatch.md"


@pytest.mark.parametrize("snippet", PYTHON.findall(PAGE.read_text()))
def test_the_snippets_of_the_page_run(
    snippet: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    client: Client,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As they stand, with a function and data, and a client that holds the limits."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "_new_client", lambda region: client)
    monkeypatch.setattr(Client, "close", lambda client: None, raising=False)
    names: dict[str, Any] = {"amorsize": amorsize, "func": abs, "data": range(-9, 9)}
    try:
        exec(compile(snippet, "cloudwatch.md", "exec"), names)
        amorsize.execute(abs, range(10), executor="serial")
    finally:
        close_all()
    files = "".join(file.read_text() for file in tmp_path.iterdir())
    lines = capsys.readouterr().out + files
    assert client.total("ItemsProcessed") >= 10 or '"ItemsProcessed":' in lines


def test_the_page_names_every_setting() -> None:
    """Nothing that can be passed is left out."""
    parameters = inspect.signature(enable_cloudwatch).parameters
    assert [name for name in parameters if f"| `{name}` |" not in PAGE.read_text()] == []
