"""Runs the stack without Docker: Prometheus, Alertmanager, Pushgateway and the app."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from . import servers, settings
from .errors import StackError
from .ports import HOST, choose, free_port
from .processes import ServerProcess

APP_PORT = 9464
APP_STOP_SECONDS = 20.0
"""The app finishes its current run; the compose file allows the same time."""

_WATCH_SECONDS = 0.2


@dataclass(frozen=True)
class Options:
    """The options of the command line, as in ``python -m stack --help``."""

    directory: Path | None = None
    free_ports: bool = False
    interval: float | None = None
    quick: bool = False
    json_path: Path | None = None


@dataclass(frozen=True)
class Addresses:
    """The addresses of all servers, each as ``host:port``."""

    app: str
    prometheus: str
    alertmanager: str
    pushgateway: str


def run(options: Options) -> int:
    """Run until Ctrl-C or SIGTERM, or until one of the processes ends.

    Returns:
        The exit code: 0 after Ctrl-C or SIGTERM.

    Raises:
        StackError: a program is missing, does not start, or has ended by itself. All others were
            ended before.
    """
    servers.require()
    with _stop_on_signals() as stopping, _directory(options.directory) as directory:
        running: list[ServerProcess] = []
        try:
            addresses = _choose_addresses(options)
            _start(running, addresses, options, directory, stopping)
            if not stopping.is_set():
                _print_where(addresses, running, directory, kept=options.directory is not None)
                _write_json(addresses, running, options)
                _watch(running, stopping)
        finally:
            _stop(running)
    print("Stopped; nothing is left running.")
    return 0


def app_command(port: int, *, quick: bool) -> list[str]:
    """The app, as the compose file runs it, on ``port`` of 127.0.0.1."""
    command = [sys.executable, "-m", "amorsize", "demo", "--forever", "--port", str(port)]
    return [*command, "--quick"] if quick else command


def push_command(pushgateway: str) -> list[str]:
    """A short job that pushes, as the compose file runs it."""
    url = f"http://{pushgateway}"
    return [sys.executable, "-m", "amorsize", "demo", "--quick", "--pushgateway", url]


def _choose_addresses(options: Options) -> Addresses:
    pick: Callable[[int], int] = (lambda wanted: free_port()) if options.free_ports else choose
    return Addresses(
        app=f"{HOST}:{pick(APP_PORT)}",
        prometheus=f"{HOST}:{pick(servers.PROMETHEUS.port)}",
        alertmanager=f"{HOST}:{pick(servers.ALERTMANAGER.port)}",
        pushgateway=f"{HOST}:{pick(servers.PUSHGATEWAY.port)}",
    )


def _start(
    running: list[ServerProcess],
    addresses: Addresses,
    options: Options,
    directory: Path,
    stopping: threading.Event,
) -> None:
    """Start the servers in the order of their dependencies; add each to ``running``."""

    def start_alertmanager() -> ServerProcess:
        folder = directory / "alertmanager"
        return servers.start_alertmanager(
            folder, settings.ALERTMANAGER_FILE, _port(addresses.alertmanager)
        )

    def start_pushgateway() -> ServerProcess:
        return servers.start_pushgateway(directory / "pushgateway", _port(addresses.pushgateway))

    def start_prometheus() -> ServerProcess:
        config = settings.prometheus(
            {
                "amorsize": [addresses.app],
                "pushgateway": [addresses.pushgateway],
                "prometheus": [addresses.prometheus],
                "alertmanager": [addresses.alertmanager],
            },
            alertmanager=addresses.alertmanager,
            interval=options.interval,
        )
        path = settings.write(directory / "prometheus.yml", config)
        return servers.start_prometheus(directory / "prometheus", path, _port(addresses.prometheus))

    def start_app() -> ServerProcess:
        return ServerProcess(
            "The app",
            app_command(_port(addresses.app), quick=options.quick),
            log=directory / "app.log",
            ready_url=f"http://{addresses.app}/-/healthy",
        )

    for start in (start_alertmanager, start_pushgateway, start_prometheus, start_app):
        if stopping.is_set():
            return
        running.append(start())
        running[-1].wait_until_ready(cancelled=stopping)


def _watch(running: list[ServerProcess], stopping: threading.Event) -> None:
    """Return when ``stop`` is set.

    Raises:
        StackError: one has ended by itself.
    """
    while not stopping.wait(_WATCH_SECONDS):
        for process in running:
            if process.exit_code is not None:
                raise StackError(process.obituary())


def _stop(running: list[ServerProcess]) -> None:
    """End all servers, dependent ones first. A second Ctrl-C has no effect."""
    for process in reversed(running):
        process.stop(APP_STOP_SECONDS)


def _print_where(
    addresses: Addresses, running: list[ServerProcess], directory: Path, *, kept: bool
) -> None:
    rows = [
        ("The app", f"http://{addresses.app}/metrics"),
        ("Prometheus", f"http://{addresses.prometheus}/"),
        ("alerts", _page(addresses.prometheus, "/alerts", "/classic/alerts", "/api/v1/alerts")),
        ("Alertmanager", f"http://{addresses.alertmanager}/api/v2/alerts"),
        ("Pushgateway", f"http://{addresses.pushgateway}/"),
        ("logs, data", f"{directory}{'' if kept else '  (removed at the end)'}"),
    ]
    pids = {process.name: process.pid for process in running}
    width = max(len(where) for _, where in rows)
    print(f"{'what':12}  {'where':{width}}  pid")
    print("-" * (12 + 2 + width + 2 + 7))
    for what, where in rows:
        print(f"{what:12}  {where:{width}}  {pids.get(what, '')}".rstrip())
    print(f"""
Try, in another terminal:

  kill a worker of the app, and see two alerts after the next scrape:
    {sys.executable} -m stack.kill_worker http://{addresses.app}/metrics
  run a short job that pushes its metrics when it is done:
    {" ".join(push_command(addresses.pushgateway))}
  what the app does:
    tail -f {directory / "app.log"}

docs/stack.md has more, including Grafana and traces. Ctrl-C stops the stack.""")


def _page(address: str, *paths: str) -> str:
    """The first page that exists: Debian's packages lack some, or rename them."""
    for path in paths:
        url = f"http://{address}{path}"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return url
        except OSError:
            continue
    return f"http://{address}/"


def _write_json(addresses: Addresses, running: list[ServerProcess], options: Options) -> None:
    if options.json_path is None:
        return
    summary = {
        "addresses": vars(addresses),
        "pids": {process.name: process.pid for process in running},
    }
    unfinished = options.json_path.with_name(f"{options.json_path.name}.tmp")
    unfinished.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(options.json_path)  # a reader never sees half of the file


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


@contextmanager
def _directory(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="amorsize-stack-", ignore_cleanup_errors=True) as made:
        yield Path(made)


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Set the event at Ctrl-C, SIGTERM, and when the terminal is closed."""
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if not stopping.is_set():
            print("\nStopping ...", flush=True)
        stopping.set()

    before = {
        number: signal.signal(number, stop)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        # Ignored signals stay ignored: a shell has its background jobs ignore Ctrl-C.
        if signal.getsignal(number) not in (None, signal.SIG_IGN)
    }
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
