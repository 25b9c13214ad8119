"""The words: one sentence for each way a choice can go."""

from __future__ import annotations

from typing import Any

import pytest

from amorsize.planning.cost import compare
from amorsize.planning.explanation import format_bytes, format_seconds, say_reason, say_warnings
from amorsize.planning.machine import PRIORS, SystemFacts
from amorsize.planning.pickling import Payload
from amorsize.planning.workload import Workload

FOUR = SystemFacts.of(4, total_bytes=16 << 30, available_bytes=8 << 30)
SMALL = Payload(function_bytes=300, item_bytes=10, item_seconds=1e-6, result_bytes=10)
HEAVY = Payload(item_bytes=8 << 20, item_seconds=0.02)
LARGE_FUNCTION = Payload(function_bytes=50 << 20)
PROBLEM = Payload(problem="the function (f) cannot be pickled: TypeError: no")


def said(
    system: SystemFacts = FOUR, n_jobs: int | None = None, **others: Any
) -> tuple[str, list[str]]:
    facts: dict[str, Any] = {
        "total": 1000,
        "sampled": 5,
        "remaining": 995,
        "sample_seconds": 0.1,
        "item_seconds": 0.02,
        "cpu_seconds": 0.02,
        "gil_seconds": 0.02,
        "gil_known": True,
        "payload": SMALL,
    }
    workload = Workload(**{**facts, **others})
    plan = compare(workload, system, PRIORS, target_chunk_duration=0.2, n_jobs=n_jobs)
    return say_reason(plan, workload, n_jobs=n_jobs), say_warnings(plan, workload, system)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({}, "Processes, because the function computes under the GIL for 20 ms per item, and 4 "),
        ({"gil_known": False}, "Processes, because the function computes for 20 ms per item, and"),
        ({"n_jobs": 3}, "Processes, 3 workers as asked for, because the function computes under"),
        ({"gil_seconds": 0.0}, "Threads, because the function releases the GIL while it computes"),
        (
            {"cpu_seconds": 0.0, "gil_seconds": 0.0, "wait_seconds": 0.02},
            "Threads, because 100% of a call's 20 ms is waiting, and 64 calls wait at the same",
        ),
        (
            {"wait_seconds": 0.02, "n_jobs": 8, "total": 8, "remaining": 3},
            "Threads, 8 workers as asked for, because 100% of a call's 20 ms is waiting, and 3 ",
        ),
        (
            {"gil_seconds": 0.0, "n_jobs": 64},
            "Threads, 64 workers as asked for, because the function releases the GIL while it "
            "computes for 20 ms per item: calls compute at the same time, and nothing is copied.",
        ),
        ({"payload": PROBLEM, "n_jobs": 2}, "Threads, 2 workers as asked for, because processes "),
        (
            {"item_seconds": 1e-7, "cpu_seconds": 1e-7, "gil_seconds": 1e-7, "n_jobs": 2},
            "Threads, 2 workers as asked for, because processes would take longer for calls of 0.1",
        ),
        ({"remaining": 0}, "Serial, because nothing remains after the sample."),
        ({"remaining": 0, "sampled": 0}, "Serial, because the input is empty."),
        ({"inner_parallelism": 2.0}, "Serial, because the function already uses 2.0 cores by it"),
        ({"payload": PROBLEM}, "Serial, because the function (f) cannot be pickled: TypeError: no"),
        ({"remaining": 1, "item_seconds": 9.0}, "Serial, because only one item remains."),
        (
            {"remaining": 1, "item_seconds": 9.0, "sampled": 0},
            "Serial, because there is only one item.",
        ),
        (
            {"working_bytes": 7 << 30, "item_seconds": 9.0},
            "Serial, because memory does not hold two of its workers.",
        ),
        (
            {
                "system": SystemFacts.of(1),
                "wait_seconds": 0.001,
                "cpu_seconds": 0.019,
                "gil_seconds": 0.019,
            },
            "Serial, because 2 threads are predicted to take 18.9 s for the remaining 19.9 s of",
        ),
        ({"system": SystemFacts.of(1)}, "Serial, because one core is usable, and a call computes"),
        ({"payload": HEAVY}, "Serial, because moving an item and its result (8.4 MB) to a worker"),
        ({"input_seconds": 1.0}, "Serial, because producing an item takes 1 s, and the call only"),
        (
            {"item_seconds": 1e-7, "cpu_seconds": 1e-7, "gil_seconds": 1e-7, "remaining": 10},
            "Serial, because the remaining 1 µs of work are too little to gain from workers.",
        ),
        (
            {"item_seconds": 1e-7, "cpu_seconds": 1e-7, "gil_seconds": 1e-7, "total": None},
            "Serial, because a call takes 0.1 µs, too little to gain from workers.",
        ),
    ],
)
def test_reason(facts: dict[str, Any], reason: str) -> None:
    """A sentence that a user understands."""
    sentence, _ = said(**facts)
    assert sentence.startswith(reason)
    assert sentence.endswith(".")


@pytest.mark.parametrize(
    ("n_jobs", "reason"),
    [
        (None, "Serial, because this process is a worker itself, and starts no processes, and thr"),
        (2, "Threads, 2 workers as asked for, because this process is a worker itself, and starts"),
    ],
)
def test_a_worker_says_that_it_is_one(n_jobs: int | None, reason: str) -> None:
    """A minute of computing is not too little, and no processes were compared."""
    workload = Workload(1000, 5, 995, 0.1, 0.06, 0.06, 0.06)
    allowed = ("serial", "thread")
    plan = compare(
        workload, FOUR, PRIORS, target_chunk_duration=0.2, n_jobs=n_jobs, allowed=allowed
    )
    assert say_reason(plan, workload, n_jobs=n_jobs).startswith(reason)


@pytest.mark.parametrize(
    ("facts", "warning"),
    [
        ({"payload": PROBLEM}, "Worker processes cannot be used: the function (f) cannot be"),
        ({"payload": HEAVY}, "An item and its result are 8.4 MB pickled: if the function read"),
        ({"payload": LARGE_FUNCTION}, "The function carries 52.4 MB of data along"),
        ({"n_jobs": 9}, "n_jobs=9 for a function that computes, on 4 usable cores"),
        ({"n_jobs": 4, "input_seconds": 0.02}, "Producing an item takes 20 ms and calling the"),
        ({"working_bytes": 3 << 30}, "The 8.59 GB of memory still available hold no more than 2 "),
        ({"working_bytes": 7 << 30}, "The 8.59 GB of memory still available hold no two thread"),
        ({"working_bytes": 3 << 30, "n_jobs": 4}, "The 8.59 GB of memory still available hold few"),
    ],
)
def test_warning(facts: dict[str, Any], warning: str) -> None:
    """What the user may want to change."""
    _, warnings = said(**facts)
    assert any(text.startswith(warning) for text in warnings), warnings


def test_nothing_to_warn_of() -> None:
    """The plain case is quiet."""
    assert said()[1] == []


def test_units() -> None:
    """No rounding up into a unit's thousand."""
    assert [format_seconds(s) for s in (0.9994e-3, 0.9996e-3, 999.4, 1e6)] == [
        "999 µs",
        "1 ms",
        "999 s",
        "1,000,000 s",
    ]
    assert [format_bytes(n) for n in (0, 999, 1000, 10**12)] == ["0 B", "999 B", "1 kB", "1e+03 GB"]
