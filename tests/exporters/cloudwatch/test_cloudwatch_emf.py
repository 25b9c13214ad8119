"""CloudWatch's embedded metric format: every line against the specification, and the sums."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from typing import Any

import jsonschema
import pytest
from waiting import PATIENCE

import amorsize
from amorsize.exporters.cloudwatch.exporter import CloudWatchExporter
from amorsize.hooks import HookManager

from ..datadog.test_datadog import NASTY
from ..events import Run, emit_run

UNIT = (
    "^(Seconds|Milliseconds|Microseconds|Percent|None"
    "|(Count|Bytes|Bits|(Kilo|Mega|Giga|Tera)(bytes|bits))(/Second)?)$"
)

# As AWS publishes it in "Specification: Embedded metric format", with the limits of its text.
SCHEMA = {
    "type": "object",
    "required": ["_aws"],
    "properties": {
        "_aws": {
            "type": "object",
            "required": ["Timestamp", "CloudWatchMetrics"],
            "properties": {
                "Timestamp": {"type": "integer", "minimum": 1_600_000_000_000},
                "CloudWatchMetrics": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["Namespace", "Dimensions", "Metrics"],
                        "additionalProperties": False,
                        "properties": {
                            "Namespace": {"type": "string", "minLength": 1, "maxLength": 1024},
                            "Dimensions": {
                                "type": "array",
                                "minItems": 1,
                                "items": {
                                    "type": "array",
                                    "minItems": 1,
                                    "maxItems": 30,
                                    "uniqueItems": True,
                                    "items": {"type": "string", "minLength": 1, "maxLength": 250},
                                },
                            },
                            "Metrics": {
                                "type": "array",
                                "minItems": 1,
                                "maxItems": 100,
                                "items": {
                                    "type": "object",
                                    "required": ["Name"],
                                    "additionalProperties": False,
                                    "properties": {
                                        "Name": {
                                            "type": "string",
                                            "minLength": 1,
                                            "maxLength": 1024,
                                        },
                                        "Unit": {"type": "string", "pattern": UNIT},
                                        "StorageResolution": {"enum": [1, 60]},
                                    },
                                },
                            },
                        },
                    },
                },
            },
        },
    },
    "additionalProperties": {
        "oneOf": [
            {"type": "string", "minLength": 1, "maxLength": 1024},
            {"type": "number"},
            {"type": "array", "minItems": 1, "maxItems": 100, "items": {"type": "number"}},
        ]
    },
}

VALIDATOR = jsonschema.validators.validator_for(SCHEMA)(SCHEMA)
VALIDATOR.check_schema(SCHEMA)

LINE_BYTES = 256 * 1024


def refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def parse(text: str) -> list[dict[str, Any]]:
    """Parse lines, each of which must be what CloudWatch takes."""
    assert text.endswith("\n")
    documents = []
    for line in text[:-1].split("\n"):
        assert len(line.encode()) <= LINE_BYTES
        document = json.loads(line, parse_constant=refuse_constant)
        VALIDATOR.validate(document)
        (directive,) = document["_aws"]["CloudWatchMetrics"]
        dimensions = [name for names in directive["Dimensions"] for name in names]
        names = [metric["Name"] for metric in directive["Metrics"]]
        assert len(set(names)) == len(names)
        assert not set(names) & set(dimensions)
        assert {*names, *dimensions, "_aws"} == set(document)
        assert all(isinstance(document[name], str) for name in dimensions)
        assert not any(isinstance(document[name], str) for name in names)
        documents.append(document)
    return documents


def values(documents: list[dict[str, Any]], name: str, **dimensions: str) -> list[float]:
    """All values of a metric that has (at least) these dimensions."""
    found: list[float] = []
    for document in documents:
        if name in document and dimensions.items() <= document.items():
            value = document[name]
            found += value if isinstance(value, list) else [value]
    return found


def test_the_schema_refuses_the_lines_that_cloudwatch_refuses() -> None:
    """A test that cannot fail shows nothing."""
    stream = io.StringIO()
    manager = HookManager()
    with CloudWatchExporter(emf=stream).attach(manager):
        emit_run(manager)
    good = stream.getvalue().splitlines()[0]
    parse(good + "\n")
    for before, after in [
        ('"Unit":"Count"', '"Unit":"items"'),
        ('"Executions":1', '"Executions":NaN'),
        ('"Executions":1', '"Executions":' + str([1] * 101)),
        ('"Executions":1,', ""),
        ('"Function",', ""),
        ('"Timestamp":', '"Time":'),
        ('"Name":"Executions"', '"Name":"Executor"'),
    ]:
        assert before in good
        with pytest.raises((jsonschema.ValidationError, AssertionError, ValueError)):
            parse(good.replace(before, after) + "\n")


def test_lines_hold_the_numbers_of_the_events() -> None:
    """Of the users' histograms, what is known exactly."""
    stream = io.StringIO()
    manager = HookManager()

    def work(item: int) -> int:
        amorsize.count("seen", 2)
        amorsize.observe("size", item - 3)
        return item

    with CloudWatchExporter(emf=stream, dimensions={"Stage": "test"}).attach(manager) as exporter:
        emit_run(manager)
        emit_run(manager, function=NASTY)
        amorsize.execute(work, range(10), executor="serial", chunksize=4, hooks=manager)
    documents = parse(stream.getvalue())
    run = {"Function": "parse", "Executor": "process", "Stage": "test"}
    assert values(documents, "Executions", **run, Status="ok") == [1]
    assert values(documents, "ItemsProcessed", **run) == [10]
    assert values(documents, "ChunkDuration", **run) == [0.25, 0.5]
    assert sum(values(documents, "ItemsProcessed")) == 30
    mine = {"Executor": "serial", "Stage": "test"}
    assert values(documents, "User.seen", **mine) == [20]
    assert values(documents, "User.size.Count", **mine) == [10]
    assert values(documents, "User.size.Sum", **mine) == [15]
    assert values(documents, "User.size.Min", **mine) == [-3]
    assert values(documents, "User.size.Max", **mine) == [6]
    assert exporter.counts() == (0, 0)


def test_ten_thousand_durations_are_many_lines() -> None:
    """None of them is lost."""
    stream = io.StringIO()
    manager = HookManager()
    with CloudWatchExporter(emf=stream).attach(manager):
        run = Run(manager)
        run.begin()
        for number in range(10_000):
            run.complete_chunk(1, chunk_time=1.0003**number, queue_time=0.5)
        run.end()
    documents = parse(stream.getvalue())
    assert len(documents) >= 100
    assert len(values(documents, "ChunkDuration")) == 10_000
    assert values(documents, "ChunkQueue") == [0.5] * 10_000
    assert sum(values(documents, "ItemsProcessed")) == 10_000


def test_many_metrics_are_several_lines() -> None:
    """A line holds a hundred."""
    stream = io.StringIO()
    manager = HookManager()

    def work(item: int) -> None:
        amorsize.observe(f"emf_{item}", item)

    with CloudWatchExporter(emf=stream).attach(manager):
        amorsize.execute(work, range(50), executor="serial", chunksize=1, hooks=manager)
    reported = [
        name for line in parse(stream.getvalue()) for name in line if name.startswith("User.")
    ]
    assert len(reported) == len(set(reported)) == 4 * 50


def test_a_line_is_written_before_execute_returns() -> None:
    """In Lambda nothing runs after the function returns."""
    script = (
        "import amorsize, os, sys\n"
        "amorsize.enable_cloudwatch(emf=True)\n"
        "amorsize.execute(abs, [-1, 2], executor='serial')\n"
        "sys.stdout.flush()\n"
        "os._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert values(parse(done.stdout), "ItemsProcessed", Function="builtins.abs") == [2]


def test_boto3_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor imported."""
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.setitem(sys.modules, "botocore.exceptions", None)
    stream = io.StringIO()
    with amorsize.enable_cloudwatch(emf=stream):
        amorsize.execute(abs, [-1, 2], executor="serial")
    assert sum(values(parse(stream.getvalue()), "ItemsProcessed")) == 2


def test_a_stream_that_hangs_holds_no_run_up_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be written is counted."""
    from amorsize.exporters.cloudwatch import exporter as cloudwatch

    monkeypatch.setattr(cloudwatch, "_END_SECONDS", 0.05)
    waits: list[float] = []
    flush = CloudWatchExporter.flush
    gate, asked = threading.Event(), threading.Event()

    class Pipe(io.StringIO):
        def write(self, text: str) -> int:
            asked.set()
            assert gate.wait(PATIENCE)
            return super().write(text)

    stream = Pipe()
    manager = HookManager()
    with CloudWatchExporter(emf=stream).attach(manager) as exporter:
        monkeypatch.setattr(exporter, "flush", lambda s: waits.append(s) or flush(exporter, s))
        emit_run(manager)
        assert asked.wait(PATIENCE)
        for _ in range(5):
            emit_run(manager)
        assert waits == [0.05]
    assert exporter.counts()[0] > 20
    gate.set()
    assert manager.get_stats()["error_counts"] == {}


def test_a_stream_that_is_closed_is_a_failure_and_not_the_runs() -> None:
    """It is counted, too."""
    stream = io.StringIO()
    manager = HookManager()
    with CloudWatchExporter(emf=stream).attach(manager) as exporter:
        stream.close()
        emit_run(manager)
    dropped, errors = exporter.counts()
    assert dropped > 20
    assert errors >= 1
