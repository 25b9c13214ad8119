"""The workloads: one function and one input each, about a second of serial work.

All work is counted in loops, not in seconds: a function that looks at the clock would do less work
where it is disturbed.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

LOOPS_PER_MS = 40_000
"""Of :func:`burn`, on the machine of docs/benchmarks.md; on others all works grow alike."""

MEGABYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Workload:
    """A function and its input.

    Attributes:
        title: for the table.
        func: takes one item.
        make: makes a new input for each call; not timed, but drawing from it is.
        items: how many there are.
        short: whether the serial run is far below a second, so that first calls are not judged.
    """

    title: str
    func: Callable[[Any], Any]
    make: Callable[[], Iterable[Any]]
    items: int
    short: bool = False


def burn(loops: int) -> int:
    """Compute under the GIL."""
    total = 0
    for number in range(loops):
        total += number & 3
    return total


def increment(item: int) -> int:
    return item + 1


def wait(milliseconds: int) -> int:
    time.sleep(milliseconds / 1000)
    return milliseconds


def wait_and_burn(milliseconds: int) -> int:
    time.sleep(milliseconds / 1000)
    return burn(3 * LOOPS_PER_MS)


def derive_key(item: int) -> bytes:
    """Compute without the GIL: OpenSSL releases it."""
    return hashlib.pbkdf2_hmac("sha256", b"amorsize", item.to_bytes(4, "big"), 40_000)


def count_bytes(block: bytes) -> int:
    """Read a large input, and compute a little over it."""
    return block.count(b"\x07") + burn(4 * LOOPS_PER_MS)


def make_bytes(seed: int) -> bytes:
    """Return a large result, after a little computing."""
    burn(4 * LOOPS_PER_MS)
    return random.Random(seed).randbytes(MEGABYTE)


def multiply(size: int) -> float:
    """Compute on several cores at once: BLAS has threads of its own."""
    matrix = _matrix(size)
    return float((matrix @ matrix)[0, 0])


@cache
def _matrix(size: int) -> Any:
    import numpy as np

    return np.random.default_rng(size).random((size, size))


def _sizes(size: int, items: int) -> list[int]:
    _matrix(size)  # NumPy is imported, as in a program that has such data
    return [size] * items


def _loops(milliseconds: float, items: int) -> list[int]:
    return [int(milliseconds * LOOPS_PER_MS)] * items


def _skewed() -> list[int]:
    return _loops(0.2, 2000) + _loops(150, 4)


WORKLOADS = {
    "trivial": Workload(
        "x + 1, 200,000 items", increment, lambda: list(range(200_000)), 200_000, short=True
    ),
    "cpu-50us": Workload(
        "computing 50 µs, 20,000 items", burn, lambda: _loops(0.05, 20_000), 20_000
    ),
    "cpu-1ms": Workload("computing 1 ms, 1,000 items", burn, lambda: _loops(1, 1000), 1000),
    "cpu-5ms": Workload("computing 5 ms, 200 items", burn, lambda: _loops(5, 200), 200),
    "cpu-5ms-few": Workload(
        "computing 5 ms, 20 items", burn, lambda: _loops(5, 20), 20, short=True
    ),
    "cpu-150ms": Workload("computing 150 ms, 8 items", burn, lambda: _loops(150, 8), 8),
    "waiting": Workload("waiting 20 ms, 64 items", wait, lambda: [20] * 64, 64),
    "waiting-computing": Workload(
        "waiting 15 ms, computing 3 ms, 60 items", wait_and_burn, lambda: [15] * 60, 60
    ),
    "gil-free": Workload(
        "computing without the GIL, 100 items", derive_key, lambda: list(range(100)), 100
    ),
    "skewed": Workload("computing 0.2 ms, the last four 150 ms", burn, _skewed, 2004),
    "large-inputs": Workload(
        "inputs of 1 MB, computing 4 ms, 150 items",
        count_bytes,
        lambda: [bytes([at]) * MEGABYTE for at in range(150)],
        150,
    ),
    "large-results": Workload(
        "results of 1 MB, computing 4 ms, 150 items", make_bytes, lambda: list(range(150)), 150
    ),
    "generator": Workload(
        "computing 1 ms, a generator of 1,000", burn, lambda: iter(_loops(1, 1000)), 1000
    ),
    "parallel-inside": Workload(
        "products of matrices, parallel inside, 30 items",
        multiply,
        lambda: _sizes(900, 30),
        30,
    ),
    "too-small": Workload(
        "computing 10 µs, 100 items", burn, lambda: _loops(0.01, 100), 100, short=True
    ),
}
"""All workloads, by name."""
