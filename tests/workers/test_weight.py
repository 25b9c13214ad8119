"""What objects weigh, about."""

from __future__ import annotations

import sys
from collections import deque, namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from amorsize.workers.weight import MOST_PARTS, weigh, weigh_all

MB = 1_000_000


@dataclass
class Plain:
    number: int
    data: Any


@dataclass(slots=True)
class Slotted:
    number: int
    data: Any


Named = namedtuple("Named", "number data")


class Table:
    """Counts as tables of pandas do: by the row, all that is in it, where it is asked to."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.looked_at = 0

    def __len__(self) -> int:
        return self.rows

    def head(self, rows: int) -> Table:
        return Table(min(rows, self.rows))

    def memory_usage(self, deep: bool) -> Any:
        return np.array([8, 992]) * self.rows if deep else np.array([8, 8]) * self.rows

    def __sizeof__(self) -> int:
        raise AssertionError("it looks at every row")


def data() -> bytes:
    return bytes(MB)


@pytest.mark.parametrize(
    "value",
    [
        data(),
        bytearray(MB),
        "x" * MB,
        memoryview(data()),
        np.zeros(MB, dtype=np.uint8),
        np.zeros((10, MB), dtype=np.uint8)[3],
        [data()],
        (1, data(), "x"),
        {"id": 1, "data": data()},
        {data()},
        deque([data()]),
        [bytes(10_000) for _ in range(100)],
        {f"key {number}": "x" * 50_000 for number in range(20)},
        [{"rows": [("x" * 750, number) for number in range(100)]} for _ in range(10)],
        Plain(1, data()),
        Slotted(1, data()),
        Named(1, data()),
        [Plain(1, np.zeros(MB // 4, dtype=np.uint8)) for _ in range(4)],
        np.array([bytes(10_000) for _ in range(100)], dtype=object),
        Table(1000),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_heavy_is_weighed_within_a_factor_of_two(value: Any) -> None:
    """Text, bytes, arrays and tables, and what holds them: each of these is a megabyte."""
    assert MB / 2 < weigh(value) < 2 * MB


@pytest.mark.parametrize(
    "value",
    [None, True, 7, 1.5, "text", b"text", (1, 2), [], {}, np.float64(1), Plain(1, None), object()],
)
def test_what_is_light_is_light(value: Any) -> None:
    """It is not bounded by its weight, so that it need not be exact."""
    assert 0 < weigh(value) < 1000


@pytest.mark.parametrize("value", [sys, Plain, test_what_is_light_is_light, print, [].append])
def test_what_is_only_referred_to_weighs_nothing(value: Any) -> None:
    """Modules, classes and functions belong to the program."""
    assert weigh(value) == 0


class Counted:
    """Counts how many of it are looked into."""

    looks = 0

    @property
    def nbytes(self) -> int:
        type(self).looks += 1
        return 100


@pytest.mark.parametrize(
    "make",
    [
        lambda: [Counted() for _ in range(10_000)],
        lambda: {number: Counted() for number in range(10_000)},
        lambda: [[[Counted() for _ in range(100)] for _ in range(10)] for _ in range(10)],
    ],
)
def test_of_many_parts_some_stand_for_all(make: Any) -> None:
    """So that weighing takes no longer, however much there is."""
    value, Counted.looks = make(), 0
    assert 500_000 < weigh(value) < 3_000_000
    assert Counted.looks <= 2 * MOST_PARTS


def test_a_circle_is_weighed() -> None:
    """Once or a few times round."""
    circle: list[Any] = [data()]
    circle.append(circle)
    assert MB < weigh(circle) < 10 * MB


class Hostile:
    def __getattr__(self, name: str) -> Any:
        raise LookupError(name)

    def __sizeof__(self) -> int:
        raise RuntimeError("no")


def test_an_object_that_raises_weighs_nothing() -> None:
    """Its own code runs, which may raise anything."""
    assert weigh(Hostile()) == 0
    assert weigh([Hostile(), data()]) > MB


def alternating(light: int, heavy: int) -> Iterator[bytes]:
    for number in range(4096):
        yield bytes(heavy if number % 2 else light)


def test_of_many_values_some_stand_for_all() -> None:
    """Also where light and heavy ones take turns."""
    assert weigh_all([]) == 0
    assert weigh_all([data()]) == sys.getsizeof(data())
    assert weigh_all(range(10_000)) < 1_000_000
    values = list(alternating(10, 10_000))
    true = sum(map(sys.getsizeof, values))
    assert true / 1.5 < weigh_all(values) < true * 1.5
