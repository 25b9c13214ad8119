"""CloudWatch's limits, which its doubles are lax about, and a client that holds them."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from botocore.exceptions import ClientError
from waiting import PATIENCE

UNITS = {"Seconds", "Count", "Count/Second", "None"}


def assert_within_limits(call: Mapping[str, Any]) -> None:
    """What PutMetricData allows, by its API reference."""
    assert set(call) == {"Namespace", "MetricData"}
    assert 1 <= len(call["MetricData"]) <= 1000
    # Gzip'd or in CBOR it is smaller; this is about what JSON would be.
    assert len(json.dumps(call, default=str)) <= 1_000_000
    for datum in call["MetricData"]:
        assert 1 <= len(datum["MetricName"]) <= 255
        assert datum["MetricName"].isascii()
        assert datum["Unit"] in UNITS
        assert abs(datum["Timestamp"] - datetime.now(UTC)) < timedelta(hours=1)
        dimensions = datum["Dimensions"]
        assert len(dimensions) <= 30
        assert len({each["Name"] for each in dimensions}) == len(dimensions)
        for each in dimensions:
            assert set(each) == {"Name", "Value"}
            assert 1 <= len(each["Name"]) <= 255
            assert not each["Name"].startswith(":")
            assert 1 <= len(each["Value"]) <= 1024
            assert each["Value"].isascii()
            assert each["Value"].isprintable()
            assert each["Value"].strip()
        kinds = {"Value", "Values", "StatisticValues"} & set(datum)
        assert len(kinds) == 1
        statistics = datum.get("StatisticValues", {})
        values = [*datum.get("Values", ()), *statistics.values()]
        values += [datum["Value"]] if "Value" in datum else []
        assert all(math.isfinite(value) for value in values)
        assert all(value == 0 or 1e-108 <= abs(value) <= 1e108 for value in values)
        if "Values" in datum:
            assert 1 <= len(datum["Values"]) <= 150
            assert len(datum["Counts"]) == len(datum["Values"])
            assert all(count > 0 for count in datum["Counts"])
        if statistics:
            assert set(statistics) == {"SampleCount", "Sum", "Minimum", "Maximum"}


class Client:
    """Takes what a boto3 client would, within the limits, and keeps it.

    ``failures`` are raised by its next calls; it answers while ``gate`` is set.
    """

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.broken: list[AssertionError] = []
        self.failures: list[Exception] = []
        self.asked = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self._changed = threading.Condition()

    def put_metric_data(self, **call: Any) -> None:
        self.asked.release()
        assert self.gate.wait(PATIENCE)
        if self.failures:
            raise self.failures.pop(0)
        with self._changed:
            try:
                assert_within_limits(call)
            except AssertionError as broken:
                self.broken.append(broken)
            self.calls.append(call)
            self._changed.notify_all()

    @property
    def data(self) -> list[dict[str, Any]]:
        if self.broken:
            raise self.broken[0]
        return [datum for call in self.calls for datum in call["MetricData"]]

    def of(self, name: str, **dimensions: str) -> list[dict[str, Any]]:
        """The data of a name that have (at least) these dimensions."""
        return [
            datum
            for datum in self.data
            if datum["MetricName"] == name
            and dimensions.items()
            <= {each["Name"]: each["Value"] for each in datum["Dimensions"]}.items()
        ]

    def total(self, name: str, **dimensions: str) -> float:
        """The sum of all values."""
        return math.fsum(
            datum["Value"]
            if "Value" in datum
            else datum["StatisticValues"]["Sum"]
            if "StatisticValues" in datum
            else math.fsum(map(math.prod, zip(datum["Values"], datum["Counts"], strict=True)))
            for datum in self.of(name, **dimensions)
        )

    def samples(self, name: str, **dimensions: str) -> float:
        """How many observations there were."""
        return sum(sum(datum["Counts"]) for datum in self.of(name, **dimensions))

    def last(self, name: str, **dimensions: str) -> float | None:
        """The last value of a gauge."""
        data = self.of(name, **dimensions)
        return float(data[-1]["Value"]) if data else None

    def wait_for(self, good: Callable[[Client], Any]) -> None:
        """Wait until what came is good."""
        with self._changed:
            assert self._changed.wait_for(lambda: good(self), PATIENCE), self.data


def answer(status: int, code: str) -> ClientError:
    """What boto3 raises for an answer of CloudWatch's."""
    said: Any = {
        "Error": {"Code": code, "Message": "said so"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(said, "PutMetricData")
