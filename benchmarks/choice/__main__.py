"""``python -m benchmarks.choice``: whole calls beside those of the peers, and print the tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.choice import picture, table
from benchmarks.choice.options import add_options, parse
from benchmarks.choice.workloads import WORKLOADS

_DESCRIPTION = """\
Run amorsize and its peers on the same workloads, each cell in a fresh process, interleaved, and
print each one's ratio to the best peer of the row."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.choice", description=_DESCRIPTION)
    add_options(parser, rounds=5)
    parser.add_argument("--list", action="store_true", help="list the workloads and stop")
    parser.add_argument(
        "--picture", metavar="FILE", type=Path, help="draw them into FILE too (.png, .svg)"
    )
    options, chosen = parse(parser, arguments)
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
