"""The contract as properties: any mixture of costs, failures, sizes and modes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis
from hypothesis import strategies as st

import amorsize
from amorsize import HookEvent, HookManager
from amorsize.testing import RecordingHook, assert_contract

OK, SLOW, FAIL, KILL = "ok", "slow", "fail", "kill"


class Scripted:
    """Does with each item what the item says, and notes every call in a folder."""

    def __init__(self, log: str) -> None:
        self.log = log

    def __call__(self, item: tuple[int, str]) -> int:
        index, fate = item
        descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, b"%d\n" % index)
        os.close(descriptor)
        if fate == SLOW:
            time.sleep(0.002)
        if fate == FAIL:
            raise ValueError(index)
        if fate == KILL:
            os._exit(7)
        return index * 2


fates = st.lists(st.sampled_from([OK, OK, OK, SLOW, FAIL]), max_size=40)
settings = hypothesis.settings(
    max_examples=60,
    deadline=None,  # processes start in some examples
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)


def run(
    fates: list[str], *, stream: bool, sized: bool, **options: Any
) -> tuple[list[Any], BaseException | None, list[int], RecordingHook]:
    """Run; return results, error, the indices called, and the events."""
    hooks = HookManager()
    recorder = RecordingHook().attach(hooks)
    items: Iterable[tuple[int, str]] = list(enumerate(fates))
    error: BaseException | None = None
    results: list[Any] = []
    with TemporaryDirectory() as folder:
        log = Path(folder, "calls")
        log.touch()
        func = Scripted(str(log))
        source = items if sized else iter(items)
        try:
            if stream:
                for result in amorsize.stream(func, source, hooks=hooks, **options):
                    results.append(result)
            else:
                results = amorsize.execute(func, source, hooks=hooks, **options)
        except Exception as caught:
            error = caught
        calls = [int(line) for line in log.read_text().split()]
    return results, error, calls, recorder


@settings
@hypothesis.given(
    fates=fates,
    mode=st.sampled_from([None, "serial", "thread", "process"]),
    n_jobs=st.sampled_from([None, 1, 2, 3]),
    chunksize=st.sampled_from([None, 1, 2, 7, 100]),
    stream=st.booleans(),
    sized=st.booleans(),
)
def test_exactly_once_in_order_with_exceptions_in_place(
    fates: list[str],
    mode: str | None,
    n_jobs: int | None,
    chunksize: int | None,
    stream: bool,
    sized: bool,
) -> None:
    """Every item is called once, gives its result or its exception, and is counted once."""
    results, error, calls, recorder = run(
        fates,
        stream=stream,
        sized=sized,
        executor=mode,
        n_jobs=n_jobs,
        chunksize=chunksize,
        return_exceptions=True,
    )
    assert error is None
    assert sorted(calls) == list(range(len(fates)))
    assert [r.args[0] if isinstance(r, ValueError) else r for r in results] == [
        index if fate == FAIL else index * 2 for index, fate in enumerate(fates)
    ]
    assert_contract(recorder.contexts)
    assert recorder.contexts[-1].items_completed == len(fates)
    failed = sum(c.metadata["failed_items"] for c in recorder.of(HookEvent.ON_ERROR))
    assert failed == fates.count(FAIL)


@settings
@hypothesis.given(
    fates=fates,
    mode=st.sampled_from([None, "serial", "thread", "process"]),
    chunksize=st.sampled_from([None, 1, 3, 100]),
    stream=st.booleans(),
)
def test_the_first_failure_ends_the_run_and_no_item_is_called_twice(
    fates: list[str], mode: str | None, chunksize: int | None, stream: bool
) -> None:
    """The events say how far it came."""
    results, error, calls, recorder = run(
        fates, stream=stream, sized=True, executor=mode, n_jobs=2, chunksize=chunksize
    )
    assert len(set(calls)) == len(calls)
    assert_contract(recorder.contexts)
    post = recorder.contexts[-1]
    if FAIL in fates:
        assert isinstance(error, ValueError)
        assert fates[error.args[0]] == FAIL
        assert post.error is error
        assert post.items_completed < len(fates)
        assert len(recorder.of(HookEvent.ON_ERROR)) == 1
    else:
        assert error is None
        assert results == [index * 2 for index in range(len(fates))]
    if stream:
        assert results == [index * 2 for index in range(len(results))]


@hypothesis.settings(settings, max_examples=15)
@hypothesis.given(
    fates=st.lists(st.sampled_from([OK] * 12 + [FAIL, KILL]), min_size=1, max_size=30),
    n_jobs=st.sampled_from([1, 2, 3]),
    chunksize=st.sampled_from([1, 4, 30]),
)
def test_with_killers_no_innocent_item_fails_and_none_runs_more_than_twice(
    fates: list[str], n_jobs: int, chunksize: int
) -> None:
    """Items that end their worker fail, alone."""
    results, error, calls, recorder = run(
        fates,
        stream=False,
        sized=True,
        executor="process",
        n_jobs=n_jobs,
        chunksize=chunksize,
        return_exceptions=True,
    )
    assert error is None
    assert [index for index, r in enumerate(results) if isinstance(r, Exception)] == [
        index for index, fate in enumerate(fates) if fate != OK
    ]
    assert set(calls) == set(range(len(fates)))
    assert max(calls.count(index) for index in set(calls)) <= 2
    assert_contract(recorder.contexts)
    failed = sum(c.metadata["failed_items"] for c in recorder.of(HookEvent.ON_ERROR))
    assert failed >= len(fates) - fates.count(OK)
