"""``python -m benchmarks.choice.misleading``: inputs whose first items mislead about the rest.

No sample can be right about them. What is measured is how wrong it gets: ``execute()`` to a list
comprehension, in a fresh process, which is to be 1.5 at most whatever the input.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import compile_packages, report
from benchmarks.choice.workloads import LOOPS_PER_MS, burn

AT_MOST = 1.5


@dataclass(frozen=True, slots=True)
class Misleading:
    """A function and its misleading input, by its name."""

    func: Callable[[Any], Any]
    data: list[Any]


def burn_or_pass(loops: int) -> int:
    """Compute under the GIL, or do nothing."""
    return burn(loops) if loops else 0


def wait_or_pass(seconds: float) -> float:
    """Wait, or do nothing."""
    if seconds:
        time.sleep(seconds)
    return seconds


def inputs() -> dict[str, Misleading]:
    """Make them; a dictionary, in the order of the table."""
    slow, pause = 20 * LOOPS_PER_MS, 0.02
    return {
        "five slow, 1,000,000 trivial": Misleading(burn_or_pass, [slow] * 5 + [0] * 1_000_000),
        "five slow, 2,000 trivial": Misleading(burn_or_pass, [slow] * 5 + [0] * 2_000),
        "one very slow, 300,000 trivial": Misleading(burn_or_pass, [5 * slow] + [0] * 300_000),
        "five that wait, 1,000,000 trivial": Misleading(
            wait_or_pass, [pause] * 5 + [0.0] * 1_000_000
        ),
        "five that wait, 100 that compute": Misleading(
            _wait_then_burn, [(pause, 0)] * 5 + [(0.0, slow // 4)] * 100
        ),
        "300 trivial, 60 slow": Misleading(burn_or_pass, [0] * 300 + [slow] * 60),
        "slow and trivial in turns": Misleading(burn_or_pass, [slow, 0] * 50),
    }


def _wait_then_burn(work: tuple[float, int]) -> int:
    wait_or_pass(work[0])
    return burn_or_pass(work[1])


def measure(name: str) -> dict[str, Any]:
    """Time a comprehension, then a first and a later ``execute()``, in this process."""
    from amorsize import execute

    case = inputs()[name]
    seconds = []
    for run in (
        lambda: [case.func(item) for item in case.data],
        lambda: execute(case.func, case.data),
        lambda: execute(case.func, case.data),
    ):
        began = time.perf_counter()
        results = run()
        seconds.append(time.perf_counter() - began)
        assert len(results) == len(case.data)
    return dict(zip(("serial", "first", "later"), seconds, strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    from benchmarks.choice.table import run_cell

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.choice.misleading", description=__doc__.partition("\n\n")[2]
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each input (default: 3)")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; give 1 or more")
    print(report.machine(), end="\n\n", flush=True)
    compile_packages()
    lines = [("input", "comprehension", "first call", "later call")]
    worst = 0.0
    for name in inputs():
        report.say(name)
        rounds = [run_cell("misleading", name) for _ in range(options.rounds)]
        first, later = (
            statistics.median(each[call] / each["serial"] for each in rounds)
            for call in ("first", "later")
        )
        serial = statistics.median(each["serial"] for each in rounds)
        lines.append((name, f"{serial * 1e3:,.3g} ms", f"{first:.2f}", f"{later:.2f}"))
        worst = max(worst, first, later)
    report.say("")
    print(report.aligned(lines, words=(0,)))
    print("\n" + report.verdict("worst, to the comprehension", worst, AT_MOST))
    return 0


if __name__ == "__main__":
    sys.exit(main())
