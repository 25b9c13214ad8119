"""Runs a program as a user would: in an interpreter of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from waiting import PATIENCE

_OF_RUNS = re.compile(
    r"\S+: (item \d+ failed with |\d+ items failed|in all, |the run |worker process |a worker )"
)


def without_log_of_runs(stderr: str) -> str:
    """Leave out what the log of runs warns of on stderr where logging is not configured."""
    return "".join(line for line in stderr.splitlines(True) if not _OF_RUNS.match(line))


def run_program(
    text: str,
    directory: Path,
    *arguments: str,
    flags: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    stderr: str | None = "",
) -> Any:
    """Run a script; return what it printed last, which is JSON.

    Args:
        text: the script; indented as it stands in a test.
        directory: where it is written, and run.
        arguments: its command line.
        flags: of the interpreter.
        environment: variables beside those of this process.
        stderr: what it must write there; None for anything.
    """
    script = directory / "program.py"
    script.write_text(textwrap.dedent(text))
    done = subprocess.run(
        [sys.executable, *flags, str(script), *arguments],
        cwd=directory,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if stderr is not None:
        assert done.stderr == stderr
    return json.loads(done.stdout.splitlines()[-1])
