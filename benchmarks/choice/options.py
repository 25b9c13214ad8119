"""The common options of the command lines of the choice."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.choice.workloads import WORKLOADS


def add_options(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    """Add the options; ``rounds`` is the default."""
    parser.add_argument(
        "--rounds", type=int, default=rounds, help="of each cell (default: %(default)s)"
    )
    parser.add_argument(
        "--only", metavar="NAME", action="append", help="only this workload; may be repeated"
    )
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> tuple[argparse.Namespace, list[str]]:
    """Parse, and return the names of the requested workloads; exits on wrong usage."""
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; give 1 or more")
    chosen: list[str] = options.only or list(WORKLOADS)
    for name in chosen:
        if name not in WORKLOADS:
            parser.error(f"no workload is called {name}; there are {', '.join(WORKLOADS)}")
    return options, chosen
