"""``python -m benchmarks.choice``: whole calls beside those of the peers, and print the tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.choice import picture, table
from benchmarks.choice.workloads import WORKLOADS

_DESCRIPTION = """\
Run amorsize and its peers on the same workloads, each cell in a fresh process, interleaved, and
print how many times as long as the best peer of the row each takes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.choice", description=_DESCRIPTION)
    parser.add_argument("--rounds", type=int, default=5, help="of each cell (default: 5)")
    parser.add_argument(
        "--only", metavar="NAME", action="append", help="only this workload; may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="list the workloads and stop")
    parser.add_argument(
        "--picture", metavar="FILE", type=Path, help="draw them into FILE too (.png, .svg)"
    )
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; give 1 or more")
    chosen = options.only or list(WORKLOADS)
    for name in chosen:
        if name not in WORKLOADS:
            parser.error(f"no workload is called {name}; there are {', '.join(WORKLOADS)}")
    if options.list:
        for name in chosen:
            print(f"{name:<20}{WORKLOADS[name].title}")
        return 0
    machine = report.machine()
    print(machine, end="\n\n", flush=True)
    rows = list(table.run(chosen, options.rounds, say=report.say))
    report.say("")
    print(table.render(rows, markdown=options.markdown))
    if options.picture is not None:
        picture.draw(rows, options.picture, caption=machine)
    return 0


if __name__ == "__main__":
    sys.exit(main())
