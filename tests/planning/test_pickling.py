"""What would cross to a worker process: its size, and whether it can."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest

from amorsize.planning.pickling import measure_payload
from amorsize.running.first_items import FirstItems
from amorsize.running.input import Input


def test_payload_sizes() -> None:
    """Sizes of item and result, and of a function that closes over data."""
    data = bytes(100_000)

    def func(item: bytes) -> bytes:
        return data[: len(item) // 2]

    payload = measure_payload(func, [bytes(5000)] * 3, [func(bytes(5000))] * 3)
    assert payload.problem is None
    assert payload.function_bytes > 100_000
    assert 1_600 <= payload.item_bytes < 5_200  # one object three times: pickled once
    assert payload.result_bytes > 0


def test_payload_is_bounded() -> None:
    """A huge object is pickled in part, and its size is still about right."""
    huge = bytearray(8 << 20)
    payload = measure_payload(len, [huge], [[huge]], limit_bytes=1 << 20)
    assert payload.item_bytes >= 8 << 20
    assert payload.result_bytes > 1 << 20


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("not me")


@pytest.mark.parametrize(
    ("items", "results", "what"),
    [
        ([Unpicklable()], [1], r"an item \(Unpicklable\)"),
        ([1], [threading.Lock()], r"a result \(lock\)"),
    ],
)
def test_payload_says_what_cannot_be_pickled(
    items: list[Any], results: list[Any], what: str
) -> None:
    """The kind of object and the pickler's own words."""
    payload = measure_payload(len, items, results)
    assert payload.problem is not None
    with pytest.raises(TypeError, match=what + " cannot be pickled: TypeError: "):
        raise TypeError(payload.problem)


def test_payload_of_a_function_that_closes_over_a_lock() -> None:
    """Even cloudpickle cannot carry it."""
    lock = threading.Lock()
    payload = measure_payload(lambda item: lock, [1], [])
    assert payload.problem is not None
    assert payload.problem.startswith("the function (")


def test_lambdas_and_local_classes_can_be_pickled() -> None:
    """What plain pickle refuses is tried with cloudpickle."""

    class Local:
        pass

    with pytest.raises(Exception, match="local"):
        pickle.dumps(Local())
    payload = measure_payload(lambda item: item, [Local()], [lambda: 1])
    assert payload.problem is None
    assert min(payload.function_bytes, payload.item_bytes, payload.result_bytes) > 50


def test_failed_items_are_no_results() -> None:
    """Exceptions in place do not count as what crosses."""

    def func(item: int) -> int:
        raise ValueError(item)

    first = FirstItems(func, Input([1, 2]), return_exceptions=True)
    first.measure(2)
    assert first.returned() == []
    assert measure_payload(abs, first.items, first.returned()).result_bytes == 0
