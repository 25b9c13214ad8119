"""Prometheus' file service discovery: each running program has a file that names its port.

::

    scrape_configs:
      - job_name: batch
        file_sd_configs: [{files: ["/run/amorsize/*.json"]}]

A program that was killed leaves its file behind, and the next program removes it: the file
identifies the process by its id and start time, and by the host (and container) of that id.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from amorsize.exporters.prometheus.processes import host, host_name
from amorsize.exporters.prometheus.program import program_name
from amorsize.exporters.prometheus.textfile import write_atomically

logger = logging.getLogger(__name__)

PREFIX = "amorsize-"

_CLOCK_SECONDS = 5.0
"""An adjusted clock shifts the start time of a process, but not so far."""

_PID = "__meta_amorsize_pid"
_STARTED = "__meta_amorsize_started"
_HOST = "__meta_amorsize_host"
_PROGRAM = "__meta_amorsize_program"


class FileSdEntry:
    """This process' entry in a directory, from now until :meth:`remove`.

    Args:
        directory: that Prometheus watches; entries of dead processes in it are removed.
        target: ``host:port``.
        scheme: ``http`` or ``https``.
    """

    def __init__(self, directory: Path, target: str, scheme: str) -> None:
        remove_stale(directory)
        port = target.rpartition(":")[2]
        self.path = directory / f"{PREFIX}{host_name()}-{os.getpid()}-{port}.json"
        labels = {
            "__scheme__": scheme,
            # Prometheus drops such labels unless they are relabelled.
            _PID: str(os.getpid()),
            _STARTED: f"{_started(os.getpid()) or 0.0:.2f}",
            _HOST: host(),
            _PROGRAM: program_name(),
        }
        content = json.dumps([{"targets": [target], "labels": labels}], indent=1) + "\n"
        write_atomically(self.path, content.encode())

    def remove(self) -> None:
        """Remove the entry."""
        self.path.unlink(missing_ok=True)


def remove_stale(directory: Path) -> None:
    """Remove the entries of processes of this host that have ended."""
    for path in directory.glob(f"{PREFIX}*.json"):
        try:
            if _is_stale(json.loads(path.read_text(encoding="utf-8"))):
                path.unlink(missing_ok=True)
        except (OSError, ValueError, LookupError, TypeError) as error:
            logger.debug("%s cannot be understood, or not be removed: %r", path, error)


def _is_stale(content: Any) -> bool:
    labels = content[0]["labels"]
    if labels[_HOST] != host():
        return False
    started = _started(int(labels[_PID]))
    return started is None or abs(started - float(labels[_STARTED])) > _CLOCK_SECONDS


def _started(pid: int) -> float | None:
    """Return when a process started, in seconds since the epoch; None where it has ended."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None
    except (psutil.Error, OSError):
        return 0.0 if psutil.pid_exists(pid) else None
