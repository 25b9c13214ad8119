"""A Dask cluster by its command line: a scheduler and workers, each a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from waiting import PATIENCE, json_of, poll


class DaskCluster:
    """``dask scheduler`` and ``dask worker``, on free ports of 127.0.0.1.

    Args:
        folder: for what they write.
        settings: environment variables, such as ``DASK_DISTRIBUTED__SCHEDULER__...``.
    """

    def __init__(self, folder: Path, **settings: str) -> None:
        self._folder = folder
        self._file = folder / "scheduler.json"
        here = Path(__file__).parent
        path = os.pathsep.join((str(here), str(here.parent)))  # the package whose tests these are
        self._environment = os.environ | {"PYTHONPATH": path} | settings
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def file(self) -> str:
        """The scheduler file, for ``Client(scheduler_file=)``."""
        return str(self._file)

    def start(self) -> Self:
        """Start the scheduler; returns when clients may connect."""
        self._run(
            "scheduler",
            *("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show"),
            *("--dashboard-address", "127.0.0.1:0", "--scheduler-file", self.file),
        )
        poll(
            lambda: (json_of(self._file), self.log("scheduler")),
            lambda seen: seen[0] is not None,
            "the scheduler",
        )
        return self

    def start_worker(self, name: str, *, threads: int = 1) -> None:
        """Start a worker; whoever needs it waits for it with ``Client.wait_for_workers``."""
        self._run(
            "worker",
            *(
                "--host",
                "127.0.0.1",
                "--no-dashboard",
                "--no-nanny",
                "--death-timeout",
                str(PATIENCE),
            ),
            *("--scheduler-file", self.file, "--nthreads", str(threads), "--name", name),
            *("--local-directory", str(self._folder / name)),
            called=name,
        )

    def pid(self, name: str) -> int:
        """The process of a worker."""
        return self._processes[name].pid

    def kill(self, name: str) -> None:
        """Kill a process, without a chance to say so."""
        self._processes[name].send_signal(signal.SIGKILL)

    def stop(self, name: str) -> None:
        """Ask a process to end."""
        self._processes[name].terminate()

    def log(self, name: str) -> str:
        """The output of a process."""
        return (self._folder / f"{name}.log").read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in reversed(self._processes.values()):
            process.kill()
        for process in self._processes.values():
            process.wait(PATIENCE)

    def _run(self, command: str, *arguments: str, called: str | None = None) -> None:
        called = called or command
        with (self._folder / f"{called}.log").open("wb") as log:
            self._processes[called] = subprocess.Popen(
                [sys.executable, "-m", "dask", command, *arguments],
                cwd=self._folder,  # which comes first on the import path
                env=self._environment,
                stdout=log,
                stderr=log,
            )
