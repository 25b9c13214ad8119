"""``python -m benchmarks.choice.against FOLDER``: this checkout beside another one of amorsize.

The other one is the code before a change, such as a clone at an earlier commit. Both run the same
workloads of this checkout, in fresh processes and in turns, so that a machine whose speed drifts
disturbs both alike.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import compile_packages, report
from benchmarks.choice.options import add_options, parse
from benchmarks.choice.table import CALLS, OURS, TITLES, run_cell
from benchmarks.choice.workloads import WORKLOADS

HERE = Path(__file__).parents[2]
AT_MOST = 1.03


@dataclass
class Compared:
    """The seconds of one workload, one for each round, by call.

    Attributes:
        workload: its name.
        ours: those of this checkout.
        theirs: those of the other one.
    """

    workload: str
    ours: dict[str, list[float]] = field(default_factory=lambda: {call: [] for call in CALLS})
    theirs: dict[str, list[float]] = field(default_factory=lambda: {call: [] for call in CALLS})

    def ratio(self, call: str) -> float:
        """Return the median over the rounds of the ratio within a round."""
        pairs = zip(self.ours[call], self.theirs[call], strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)


def compare(
    other: Path,
    workloads: Sequence[str],
    rounds: int,
    *,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Compared]:
    """Measure workload after workload; each round begins with the one that came last before."""
    with _tree(HERE) as ours, _tree(other) as theirs:
        for at, workload in enumerate(workloads, 1):
            row = Compared(workload)
            sides = [(ours, row.ours), (theirs, row.theirs)]
            for turn in range(rounds):
                say(f"{at} of {len(workloads)}: {workload}, round {turn + 1} of {rounds}")
                for path, seconds in sides if turn % 2 == 0 else reversed(sides):
                    for call, taken in run_cell("call", workload, OURS, path=path).items():
                        seconds[call].append(taken)
            yield row


def render(rows: Sequence[Compared], *, markdown: bool = False) -> str:
    """Lay out the ratios, with their geometric means."""
    lines = [("workload", *(f"{call} call" for call in CALLS), *(f"ratio, {c}" for c in CALLS))]
    for row in rows:
        seconds = [f"{statistics.median(row.ours[call]) * 1e3:,.3g} ms" for call in CALLS]
        ratios = [f"{row.ratio(call):.2f}" for call in CALLS]
        lines.append((WORKLOADS[row.workload].title, *seconds, *ratios))
    means = {call: statistics.geometric_mean([row.ratio(call) for row in rows]) for call in CALLS}
    lines.append(("geometric mean", *("" for _ in CALLS), *(f"{means[c]:.2f}" for c in CALLS)))
    verdicts = [
        report.verdict(f"{TITLES[call]}, to before", means[call], AT_MOST) for call in CALLS
    ]
    return "\n".join([report.laid_out(lines, words=(0,), markdown=markdown), "", *verdicts])


@contextmanager
def _tree(checkout: Path) -> Iterator[Path]:
    """Make a folder with the amorsize of a checkout, and the benchmarks of this one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "amorsize").symlink_to(checkout.resolve() / "amorsize")
        (path / "benchmarks").symlink_to(HERE / "benchmarks")
        compile_packages(path)
        yield path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.choice.against",
        description="Run this checkout beside another one of amorsize, in turns.",
    )
    parser.add_argument("folder", type=Path, help="the other checkout")
    add_options(parser, rounds=5)
    options, chosen = parse(parser, arguments)
    if not (options.folder / "amorsize" / "__init__.py").is_file():
        parser.error(f"{options.folder} is not a checkout: it has no amorsize/__init__.py")
    print(report.machine(), end="\n\n", flush=True)
    rows = list(compare(options.folder, chosen, options.rounds, say=report.say))
    report.say("")
    print(render(rows, markdown=options.markdown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
