"""The name of the program that this process runs."""

from __future__ import annotations

import sys
from pathlib import Path

from amorsize.workers.names import bounded


def program_name() -> str:
    """Return the name of the script or module; empty where there is none."""
    return bounded(Path(sys.argv[0]).name) if sys.argv and sys.argv[0] else ""
