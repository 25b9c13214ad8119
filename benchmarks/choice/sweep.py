"""``python -m benchmarks.choice.sweep``: every engine, n_jobs and chunksize, beside the choice.

The regret of ``optimize()`` is how many times as long its choice takes as the best of the sweep:
first calls in fresh processes, the import left out, because that is what it predicts. Every setting
runs once; the fastest run again, beside the choice, and only that is compared: the best of thirty
single runs would be the luckiest.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import compile_packages, cores, report
from benchmarks.choice.options import add_options, parse
from benchmarks.choice.table import run_cell
from benchmarks.choice.workloads import WORKLOADS, Workload

THREADS = (2, 4, 8, 16, 32, 64)

FINALISTS = 5
"""The number of settings that run again."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One point of the sweep."""

    engine: str
    n_jobs: int
    chunksize: int

    def __str__(self) -> str:
        if self.engine == "serial":
            return "serial"
        return f"{self.engine}, {self.n_jobs} workers, chunks of {self.chunksize:,}"


@dataclass(frozen=True, slots=True)
class Swept:
    """The result of a sweep.

    Attributes:
        workload: its name.
        chosen: what ``optimize()`` chose, one for each round.
        seconds: of each finalist, one for each round; the chosen ones among them.
        heat: of every setting, once.
    """

    workload: str
    chosen: list[Setting]
    seconds: dict[Setting, list[float]]
    heat: dict[Setting, float]

    def median(self, setting: Setting) -> float:
        """Return the median over the rounds."""
        return statistics.median(self.seconds[setting])

    @property
    def best(self) -> Setting:
        """The setting with the lowest median."""
        return min(self.seconds, key=self.median)

    @property
    def regret(self) -> float:
        """The median over the rounds, of the choice's time relative to the best setting."""
        taken = [self.seconds[chosen][turn] for turn, chosen in enumerate(self.chosen)]
        return statistics.median(taken) / self.median(self.best)


def settings(workload: Workload) -> list[Setting]:
    """List the chunk sizes to try: one item, a share, and a worker's whole part."""
    found = {Setting("serial", 1, workload.items): None}
    processes = range(2, cores() + 2)  # one more than there are cores, too
    for engine, counts in (("thread", THREADS), ("process", processes)):
        for n_jobs in counts:
            if n_jobs > workload.items:
                continue
            # Chunks of one item, of trivial items by the hundred thousand, would take minutes.
            least = max(1, workload.items // 2000)
            for chunks in (workload.items // least, 16 * n_jobs, 4 * n_jobs, n_jobs):
                size = max(1, -(-workload.items // chunks))
                found[Setting(engine, n_jobs, size)] = None
    return list(found)


def sweep(name: str, rounds: int, *, say: Callable[[str], None] = lambda text: None) -> Swept:
    """Measure all settings of one workload, then the best ones and the choice again."""
    heat: dict[Setting, float] = {}
    tried = settings(WORKLOADS[name])
    for at, setting in enumerate(tried):
        say(f"{name}, setting {at + 1} of {len(tried)}: {setting}")
        heat[setting] = _measure(name, setting)
    finalists = sorted(tried, key=heat.__getitem__)[:FINALISTS]
    swept = Swept(name, [], {setting: [] for setting in finalists}, heat)
    for turn in range(rounds):
        plan = run_cell("plan", name)
        chosen = Setting(plan["engine"], plan["n_jobs"], plan["chunksize"])
        swept.chosen.append(chosen)
        for at, setting in enumerate(dict.fromkeys([*swept.seconds, chosen])):
            say(f"{name}, round {turn + 1} of {rounds}, finalist {at + 1}: {setting}")
            taken = swept.seconds.setdefault(setting, [])
            while len(taken) <= turn:  # also the earlier rounds of one that is chosen only now
                taken.append(_measure(name, setting))
    return swept


def _measure(name: str, setting: Setting) -> float:
    found = run_cell("setting", name, setting.engine, str(setting.n_jobs), str(setting.chunksize))
    return float(found["seconds"])


def render(swept: Sequence[Swept], *, markdown: bool = False) -> str:
    """Lay out the regrets, with their geometric mean and the worst."""
    lines = [("workload", "chosen", "takes", "best of the sweep", "takes", "settings", "regret")]
    for each in swept:
        chosen = each.chosen[-1]
        lines.append(
            (
                WORKLOADS[each.workload].title,
                str(chosen),
                f"{each.median(chosen) * 1e3:,.3g} ms",
                str(each.best),
                f"{each.median(each.best) * 1e3:,.3g} ms",
                str(len(each.heat)),
                f"{each.regret:.2f}",
            )
        )
    text = report.laid_out(lines, words=(0, 1, 3), markdown=markdown)
    return "\n".join([text, "", *judge(swept)])


def judge(swept: Sequence[Swept]) -> Iterator[str]:
    """Say for each target whether it is reached."""
    regrets = [each.regret for each in swept]
    mean = statistics.geometric_mean(regrets)
    yield report.verdict("regret of optimize(), geometric mean", mean, 1.05)
    yield report.verdict("regret of optimize(), worst", max(regrets), 1.15)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.choice.sweep", description=__doc__.partition("\n\n")[2]
    )
    add_options(parser, rounds=5)
    parser.add_argument("--all", action="store_true", help="show every setting that was tried")
    options, chosen = parse(parser, arguments)
    print(report.machine(), end="\n\n", flush=True)
    compile_packages()
    swept = [sweep(name, options.rounds, say=report.say) for name in chosen]
    report.say("")
    if options.all:
        print("\n\n".join(map(_render_all, swept)), end="\n\n")
    print(render(swept, markdown=options.markdown))
    return 0


def _render_all(swept: Swept) -> str:
    found = {setting: swept.median(setting) for setting in swept.seconds} | swept.heat
    best = min(found.values())
    lines: list[tuple[Any, ...]] = [(WORKLOADS[swept.workload].title, "takes", "to the best", "")]
    for setting, seconds in sorted(found.items(), key=lambda each: each[1]):
        mark = "chosen" if setting in swept.chosen else ""
        lines.append((str(setting), f"{seconds * 1e3:,.3g} ms", f"{seconds / best:.2f}", mark))
    return report.aligned(lines, words=(0, 3))


if __name__ == "__main__":
    sys.exit(main())
