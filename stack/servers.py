"""The servers Prometheus, Alertmanager and Pushgateway: their programs and command lines."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import StackError
from .ports import HOST
from .processes import ServerProcess


@dataclass(frozen=True)
class Program:
    """A server whose program has one name in Debian and another upstream.

    Attributes:
        title: what people call it.
        package: Debian's package.
        names: of the program: Debian's, and that of the makers' archive.
        port: where people expect it.
    """

    title: str
    package: str
    names: tuple[str, ...]
    port: int

    def find(self) -> str | None:
        """The path of the program, or None."""
        return next(filter(None, map(shutil.which, self.names)), None)


PROMETHEUS = Program("Prometheus", "prometheus", ("prometheus",), 9090)
ALERTMANAGER = Program(
    "Alertmanager", "prometheus-alertmanager", ("prometheus-alertmanager", "alertmanager"), 9093
)
PUSHGATEWAY = Program(
    "Pushgateway", "prometheus-pushgateway", ("prometheus-pushgateway", "pushgateway"), 9091
)
ALL = (PROMETHEUS, ALERTMANAGER, PUSHGATEWAY)


def require(programs: Iterable[Program] = ALL) -> None:
    """Check that programs are installed.

    Raises:
        StackError: some are not; it names all of them, and the command that installs them.
    """
    missing = [program for program in programs if program.find() is None]
    if missing:
        raise StackError(
            f"not installed: {', '.join(program.title for program in missing)}. "
            "On Debian and Ubuntu:\n\n"
            "  sudo apt-get install --no-install-recommends "
            f"{' '.join(program.package for program in missing)}\n\n"
            "Elsewhere put the programs of https://prometheus.io/download/ on the PATH. "
            "With Docker: docker compose up."
        )


def start_prometheus(
    directory: Path, config: Path, port: int, arguments: Sequence[str] = ()
) -> ServerProcess:
    """Start a Prometheus that keeps exemplars, on ``port`` of 127.0.0.1."""
    return _start(
        PROMETHEUS,
        directory,
        port,
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'data'}",
        "--enable-feature=exemplar-storage",
        *arguments,
    )


def start_alertmanager(directory: Path, config: Path, port: int) -> ServerProcess:
    """Start a single Alertmanager on ``port`` of 127.0.0.1."""
    return _start(
        ALERTMANAGER,
        directory,
        port,
        f"--config.file={config}",
        f"--storage.path={directory / 'data'}",
        "--cluster.listen-address=",  # otherwise it listens on all interfaces for its peers
    )


def start_pushgateway(directory: Path, port: int) -> ServerProcess:
    """Start a Pushgateway on ``port`` of 127.0.0.1.

    Pushed metrics stay in ``directory``: Debian's would write below /var otherwise, and remember
    the pushes of another day.
    """
    return _start(PUSHGATEWAY, directory, port, f"--persistence.file={directory / 'metrics'}")


def _start(program: Program, directory: Path, port: int, *arguments: str) -> ServerProcess:
    require([program])
    directory.mkdir(parents=True, exist_ok=True)
    address = f"{HOST}:{port}"
    return ServerProcess(
        program.title,
        [str(program.find()), f"--web.listen-address={address}", *arguments],
        log=directory / f"{program.title.lower()}.log",
        ready_url=f"http://{address}/-/ready",
    )
