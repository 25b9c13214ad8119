"""Bad input is refused before anything runs, with words that help."""

from __future__ import annotations

import inspect
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from functools import partial
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

import amorsize
from amorsize.errors import AmorsizeError, InvalidTypeError, InvalidValueError
from amorsize.options import _CO_COROUTINE, _COROUTINE_MARK, Options, known_length


def check(func: Any = abs, data: Any = (1,), **others: Any) -> Any:
    options: dict[str, Any] = {
        "sample_size": 5,
        "target_chunk_duration": 0.2,
        "n_jobs": None,
        "chunksize": None,
        "executor": None,
        "verbose": False,
    }
    return Options.checked(func, data, **{**options, **others})


class Index:
    """An integer as NumPy has them."""

    def __index__(self) -> int:
        return 3


class Colour(Enum):
    RED = 1


class Sequence:
    """Iterable in the old way."""

    def __getitem__(self, index: int) -> int:
        raise IndexError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"func": None}, "func is None, which cannot be called; give a function"),
        ({"func": 3}, r"func is 3 \(int\), which cannot be called"),
        ({"data": 7}, r"data is 7 \(int\), which cannot be iterated; give a list"),
        ({"data": object}, "data is an object of type type, which cannot be iterated"),
        ({"n_jobs": True}, "n_jobs is True, a bool; give a whole number of at least 1"),
        ({"n_jobs": 2.5}, r"n_jobs is 2.5 \(float\); give a whole number of at least 1"),
        ({"n_jobs": "4"}, r"n_jobs is '4' \(str\)"),
        ({"chunksize": False}, "chunksize is False, a bool"),
        ({"chunksize": [1]}, "chunksize is an object of type list"),
        ({"sample_size": None}, "sample_size is None; give a whole number"),
        ({"sample_size": 1.0}, r"sample_size is 1.0 \(float\)"),
        (
            {"target_chunk_duration": "1"},
            r"is .1. \(str\); give a number of seconds, above 0",
        ),
        ({"target_chunk_duration": True}, "target_chunk_duration is True"),
        ({"target_chunk_duration": None}, "target_chunk_duration is None"),
        ({"target_chunk_duration": 1j}, "target_chunk_duration is an object of type complex"),
        ({"executor": 4}, r"executor is 4 \(int\), which cannot be used; give one of 'serial'"),
        ({"executor": ThreadPoolExecutor}, "executor is .*which cannot be used"),
    ],
)
def test_wrong_type(given: dict[str, Any], message: str) -> None:
    """A TypeError of ours: what was given, what is allowed, what to do."""
    with pytest.raises(InvalidTypeError, match=message) as caught:
        check(**given)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, AmorsizeError)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_jobs": 0}, r"n_jobs is 0; it must be at least 1 \(a number of workers\)"),
        ({"n_jobs": -3}, "n_jobs is -3; it must be at least 1.*or leave it out"),
        ({"chunksize": 0}, "chunksize is 0; it must be at least 1"),
        ({"sample_size": 0}, "sample_size is 0; it must be at least 1"),
        ({"target_chunk_duration": 0}, "target_chunk_duration is 0.0; give a finite number"),
        ({"target_chunk_duration": -1}, "is -1.0; give a finite number"),
        ({"target_chunk_duration": math.nan}, "is nan; give a finite"),
        ({"target_chunk_duration": math.inf}, "is inf; give a finite"),
        ({"target_chunk_duration": 10**400}, "is inf; give a finite"),
        ({"executor": "fork"}, "'fork', which is not a known name; give one of 'serial', 'thread'"),
        ({"executor": ""}, "executor is '', which is not a known name"),
    ],
)
def test_out_of_range(given: dict[str, Any], message: str) -> None:
    """A ValueError of ours."""
    with pytest.raises(InvalidValueError, match=message) as caught:
        check(**given)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "data", [[], "text", b"bytes", {1: 2}, range(3), iter([]), Colour, Sequence()]
)
def test_anything_that_can_be_iterated(data: Any) -> None:
    """Strings too: their items are characters."""
    check(data=data)


def test_what_passes_is_normalised() -> None:
    """Integers of other kinds become int, seconds float."""
    arguments = check(n_jobs=Index(), chunksize=Index(), sample_size=Index())
    assert (arguments.n_jobs, arguments.chunksize, arguments.sample_size) == (3, 3, 3)
    assert type(arguments.n_jobs) is int
    assert check(target_chunk_duration=1).target_chunk_duration == 1.0


def test_executors_that_pass() -> None:
    """The names of the engines, and None."""
    passed = [check(executor=executor) for executor in (None, "serial", "thread", "process")]
    assert len(passed) == 4


def test_messages_show_no_payload() -> None:
    """A long value is cut, an object is named by its type."""
    with pytest.raises(InvalidTypeError) as caught:
        check(n_jobs="secret" * 1000)
    assert len(str(caught.value)) < 250


class Unsized:
    """As tqdm over a generator: it has a length, and does not know it."""

    def __iter__(self) -> Any:
        return iter([1])

    def __len__(self) -> int:
        raise TypeError("no length")


def test_known_length() -> None:
    """Only where the input says so by itself."""
    assert known_length([1, 2]) == 2
    assert known_length(iter([1, 2])) is None
    assert known_length(Unsized()) is None


async def _coroutine(item: int) -> int:
    return item


class _CallsACoroutine:
    async def __call__(self, item: int) -> int:
        return item

    async def method(self, item: int) -> int:
        return item

    def plain(self, item: int) -> int:
        return item


async def _with_an_attribute(item: int) -> int:
    return item


_with_an_attribute.note = "it has one"  # type: ignore[attr-defined]


@pytest.mark.parametrize("func", [_coroutine, _CallsACoroutine()])
def test_a_coroutine_function_is_refused(func: Any) -> None:
    """Its calls would make coroutines that nobody awaits."""
    with pytest.raises(InvalidTypeError, match=r"coroutine function.* asyncio\.run"):
        amorsize.execute(func, [1])
    with pytest.raises(InvalidTypeError, match="coroutine function"):
        amorsize.optimize(func, [1])


def test_coroutine_functions_are_known_without_inspect(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortest runs do not load it, and say what it says."""
    functions = [
        _coroutine,
        _with_an_attribute,
        _CallsACoroutine().method,
        partial(partial(_coroutine), 1),
        partial(_CallsACoroutine().method),
        AsyncMock(),
        Mock(),
        *(abs, str, str.upper, "a".join, partial(abs), _CallsACoroutine().plain, lambda x: x),
    ]
    refused = [func for func in functions if inspect.iscoroutinefunction(func)]
    assert len(refused) == 6
    monkeypatch.delitem(sys.modules, "inspect")
    for func in [*refused, _CallsACoroutine()]:
        with pytest.raises(InvalidTypeError, match="coroutine function"):
            check(func)
    for func in functions:
        if func not in refused:
            check(func)
    assert "inspect" not in sys.modules


def test_a_function_that_is_marked_as_a_coroutine_function_is_refused() -> None:
    """It is a plain one that makes coroutines; from Python 3.12 on it can be marked."""

    def marked(item: int) -> Any:
        return _coroutine(item)

    check(marked)
    mark = getattr(inspect, "markcoroutinefunction", None)
    if mark is None:
        setattr(marked, _COROUTINE_MARK, object())
    else:
        mark(marked)
        assert inspect.iscoroutinefunction(marked)
    with pytest.raises(InvalidTypeError, match="coroutine function"):
        check(marked)


def test_the_flag_of_a_coroutine_function_is_the_interpreters() -> None:
    """It is written down because importing ``inspect`` for it takes 8 ms."""
    assert inspect.CO_COROUTINE == _CO_COROUTINE


@pytest.mark.parametrize("name", ["return_exceptions", "progress", "verbose"])
@pytest.mark.parametrize("value", ["yes", 1, None])
def test_a_switch_is_true_or_false(name: str, value: Any) -> None:
    """A string would be taken as true, whatever it says."""
    with pytest.raises(InvalidTypeError, match=f"{name} is .*; give True or False"):
        amorsize.execute(abs, [1], **{name: value})
