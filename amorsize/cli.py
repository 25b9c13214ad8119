"""The command line: parse, call, print."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import amorsize
from amorsize.errors import AmorsizeError

_EXAMPLES = """\
examples:
  amorsize demo                     run the demo, in about 30 seconds
  amorsize demo --quick             run it on a tenth of the input
  amorsize demo --serve             then keep /metrics up, until Ctrl-C
  amorsize demo --forever           repeat the work, for dashboards
  amorsize demo --port 0 --json summary.json
                                    on a free port, with a summary for programs
  amorsize dashboards monitoring    write Grafana dashboards and Prometheus
                                    rules into the folder monitoring

exit codes:
  0    success; also when Ctrl-C or SIGTERM ends --forever, or --serve after
       its report
  1    the demo cannot run, a result was wrong, or files cannot be written: a
       line on stderr says why
  2    wrong usage
  130  Ctrl-C before the work was done
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; None means those of the process.

    Returns:
        The exit code. Wrong usage, ``--help`` and ``--version`` raise ``SystemExit``, as
        argparse does.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Each line reaches a pipe at once, and no file name can make print() fail.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    options = _parser().parse_args(argv)
    try:
        return _COMMANDS[options.command](options)
    except AmorsizeError as error:
        print(f"amorsize: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\namorsize: stopped before the work was done", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # As in `amorsize demo | head`. Without this, Python reports it again when flushing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _demo(options: argparse.Namespace) -> int:
    from amorsize.demo.run import DemoOptions, run_demo  # --help and --version stay quick

    return run_demo(
        DemoOptions(
            serve=options.serve,
            forever=options.forever,
            quick=options.quick,
            port=options.port,
            addr=options.addr,
            json_path=options.json,
            pushgateway=options.pushgateway,
            dask=options.dask,
        )
    )


def _dashboards(options: argparse.Namespace) -> int:
    from amorsize.dashboards import write_dashboards

    files = write_dashboards(
        options.directory,
        grafana_url=options.grafana_url,
        runbook_url=options.runbook_url,
        force=options.force,
    )
    for file in files:
        print(file)
    return 0


_COMMANDS = {"demo": _demo, "dashboards": _dashboards}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="amorsize",
        description="Run a Python function over data at the right parallelism,\n"
        "and observe the run.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"amorsize {amorsize.__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="run three stages of real work, and show their metrics",
        description="Runs three stages on the source files of Python's standard library. Each\n"
        "needs another engine: measure (processes), compress (threads), and fetch, from a slow\n"
        "HTTP service of its own (many threads). Shows what was chosen, why, and the metrics.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    staying = demo.add_mutually_exclusive_group()
    staying.add_argument(
        "--serve", action="store_true", help="keep /metrics up after the report, until Ctrl-C"
    )
    staying.add_argument(
        "--forever",
        action="store_true",
        help="repeat the work until Ctrl-C, with pauses of 5 seconds; every third round the "
        "service refuses one request in forty on purpose, so that dashboards have errors to show",
    )
    demo.add_argument(
        "--port",
        type=_port,
        metavar="P",
        help="serve /metrics on this port, 0 for a free one (default: $AMORSIZE_PROMETHEUS_PORT, "
        "else 9464, else a free one)",
    )
    demo.add_argument(
        "--addr",
        default="127.0.0.1",
        metavar="A",
        help="serve on this address (default: %(default)s)",
    )
    demo.add_argument(
        "--pushgateway",
        metavar="URL",
        help="push the metrics to this Pushgateway as well, as a short job does",
    )
    demo.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="run on the Dask cluster of this scheduler, such as tcp://127.0.0.1:8786; its "
        "workers need amorsize and the same Python",
    )
    demo.add_argument("--quick", action="store_true", help="work on a tenth of the input")
    demo.add_argument(
        "--json", type=_writable, metavar="FILE", help="write the summary to FILE, as JSON"
    )
    dashboards = commands.add_parser(
        "dashboards",
        help="write dashboards, rules and alerts into a folder",
        description="Writes dashboards for Grafana, Datadog and CloudWatch, recording rules and\n"
        "alerts for Prometheus, and provisioning for Grafana, and lists the files.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    dashboards.add_argument("directory", type=Path, metavar="DIR", help="the folder; may be new")
    dashboards.add_argument(
        "--grafana-url",
        default="http://localhost:3000",
        metavar="URL",
        help="the Grafana that the alerts link to (default: %(default)s)",
    )
    dashboards.add_argument(
        "--runbook-url",
        default="docs/dashboards.md",
        metavar="URL",
        help="the page that the alerts link to for what to do (default: %(default)s, in the "
        "sources)",
    )
    dashboards.add_argument(
        "--force", action="store_true", help="replace existing files that are different"
    )
    return parser


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, not {text!r}")
    return int(text)


def _writable(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} is not a file in a writable folder")
    return path
