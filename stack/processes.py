"""Runs a server as a process: starts it, waits until it is ready, and ends it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import StackError

START_SECONDS = 30.0
"""The time limit for a server to be ready."""

STOP_SECONDS = 10.0
"""The time limit for a server to end before it is killed."""

_POLL_SECONDS = 0.05
_ANSWER_SECONDS = 5.0
_TAIL_LINES = 15


class ServerProcess:
    """A server process; the constructor starts it.

    It has a session of its own, so that a Ctrl-C in the terminal reaches this program alone, which
    ends the others in their order. On Linux the kernel ends it when this process is killed, or when
    the thread that made it ends.

    Args:
        name: what people call it.
        command: its command line.
        log: where to write what it prints.
        ready_url: answers 200 when it is ready.
        environment: its environment variables; None means those of this process.

    Raises:
        StackError: the program cannot be started.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        ready_url: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._log = log
        self._ready_url = ready_url
        try:
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    [*_ending_with_us(), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    start_new_session=True,
                )
        except OSError as error:
            raise StackError(f"{name} cannot be started: {error}") from error

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; ``-9`` after SIGKILL."""
        return self._process.poll()

    def wait_until_ready(
        self, seconds: float = START_SECONDS, *, cancelled: threading.Event | None = None
    ) -> None:
        """Wait until the server answers, or until ``cancelled`` is set.

        Raises:
            StackError: it ended, or was not ready in time; with the end of its log.
        """
        deadline = time.monotonic() + seconds
        while not self._answers():
            if cancelled is not None and cancelled.is_set():
                return
            if self.exit_code is not None:
                raise StackError(self.obituary())
            if time.monotonic() > deadline:
                raise StackError(
                    f"{self.name} was not ready within {seconds:.0f} s.{self._end_of_log()}"
                )
            time.sleep(_POLL_SECONDS)
        if self.exit_code is not None:  # another server answered, on a port that was taken
            raise StackError(self.obituary())

    def obituary(self) -> str:
        """Describe how it ended, with the end of its log."""
        return f"{self.name} ended with exit code {self.exit_code}.{self._end_of_log()}"

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Terminate it, and kill it if it does not end."""
        self._process.terminate()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self._ready_url, timeout=_ANSWER_SECONDS):
                return True
        except urllib.error.HTTPError as not_ready:
            not_ready.close()
            return False
        except OSError:
            return False

    def _end_of_log(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        if not lines:
            return f" Its log, {self._log}, is empty."
        indented = "\n".join(f"  {line}" for line in lines[-_TAIL_LINES:])
        return f" The end of its log, {self._log}:\n{indented}"


def _ending_with_us() -> list[str]:
    """A prefix of a command line: the kernel then ends the command when this process dies."""
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
