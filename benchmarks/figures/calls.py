"""The overhead of ``execute()`` on calls that are too small to gain from workers."""

from __future__ import annotations

import amorsize
from benchmarks.harness import Contenders, figure, timed

ITEMS = 200_000


@figure(
    "call-trivial",
    "trivial function over 200,000 items",
    unit="ms",
    at_most=1.15,
    against="list comprehension",
)
def trivial_function() -> Contenders:
    data = list(range(ITEMS))
    yield {
        "amorsize": timed(lambda: amorsize.execute(_increment, data)),
        "list comprehension": timed(lambda: [_increment(item) for item in data]),
    }


@figure("call-warm", "execute() of 10 trivial items, later call", unit="µs", at_most=1000.0)
def warm_call() -> Contenders:
    data = list(range(10))
    yield {"amorsize": timed(lambda: amorsize.execute(_increment, data))}


def _increment(item: int) -> int:
    return item + 1
