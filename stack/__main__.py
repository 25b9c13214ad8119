"""``python -m stack``: parse, run, print."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import StackError
from .run import Options, run

_EPILOG = """\
Ports are those that people expect (9464, 9090, 9093, 9091) where they are free,
and free ones where they are not. Everything listens on 127.0.0.1 alone. The
app takes the environment's variables, AMORSIZE_EXPORTERS for example.

exit codes:
  0  after Ctrl-C or SIGTERM
  1  a program is missing, does not start, or ended by itself: stderr says which
  2  wrong usage
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a reader of a pipe sees lines at once
    options = _parser().parse_args(argv)
    try:
        return run(
            Options(
                directory=options.directory,
                free_ports=options.free_ports,
                interval=options.interval,
                quick=options.quick,
                json_path=options.json,
            )
        )
    except StackError as error:
        print(f"stack: error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stack",
        description="Runs the demo and around it Prometheus with our rules, Alertmanager and a\n"
        "Pushgateway, as processes of this machine, until Ctrl-C.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--directory",
        type=Path,
        metavar="DIR",
        help="keep logs and data there (default: a temporary folder, removed at the end)",
    )
    parser.add_argument("--free-ports", action="store_true", help="take free ports only")
    parser.add_argument(
        "--interval",
        type=_seconds,
        metavar="S",
        help="seconds between scrapes, and between looks at the alerts (default: those of "
        "stack/prometheus.yml, 15)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="have the app work on a tenth of its input"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write addresses and pids to FILE when ready"
    )
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"an interval is 0.1 to 3600 seconds, not {text!r}")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
