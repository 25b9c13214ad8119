"""``python -m benchmarks``: measure, and print the table."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import compile_packages, figures, report
from benchmarks.harness import FIGURES, FULL, QUICK, Budget, Figure, run

_DESCRIPTION = "Measure what amorsize costs, side by side with its peers."

_EPILOG = """\
Each row compares one figure with one peer. The ratio is that of amorsize to the peer: below 1,
amorsize is faster. The noise is how far two timings of the same thing lie apart; what is closer
to 1 than that says nothing. Close other programs first: on a busy machine trust the ratios, not
the absolute values. docs/benchmarks.md says what each figure means.

examples:
  python -m benchmarks                         everything, in about five minutes
  python -m benchmarks --quick                 everything, less exact, in about a minute
  python -m benchmarks --only trigger          the figures with "trigger" in their names
  python -m benchmarks --json results.json     every round of every figure, too
"""


def main(arguments: Sequence[str] | None = None, *, budget: Budget | None = None) -> int:
    """Run the command line; ``budget`` overrides its options (for tests)."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        help="only figures whose names contain NAME; may be repeated",
    )
    parser.add_argument("--list", action="store_true", help="list the figures and stop")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all results to FILE")
    options = parser.parse_args(arguments)

    figures.load()
    chosen = _choose(options.only)
    if not chosen:
        parser.error(
            f"no figure is called like {' or '.join(options.only)}; there are {', '.join(FIGURES)}"
        )
    if options.list:
        print(report.aligned([(each.name, "", each.title) for each in chosen]))
        return 0

    print(report.machine(), end="\n\n", flush=True)
    compile_packages()
    began = time.perf_counter()
    results = []
    for at, each in enumerate(chosen, 1):
        report.say(f"{at} of {len(chosen)}: {each.title}")
        results.append(run(each, budget or (QUICK if options.quick else FULL)))
    report.say("")
    print(report.table(results, markdown=options.markdown))
    print(f"\nMeasured in {time.perf_counter() - began:.0f} s.")
    if options.json is not None:
        text = json.dumps(report.as_json(results), indent=2, ensure_ascii=False)
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0


def _choose(names: list[str] | None) -> list[Figure]:
    return [
        each for each in FIGURES.values() if names is None or any(n in each.name for n in names)
    ]


if __name__ == "__main__":
    raise SystemExit(main())
