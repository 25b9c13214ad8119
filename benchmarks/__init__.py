"""Measures the cost of amorsize, beside its peers: ``python -m benchmarks``.

``harness`` measures, ``report`` shows, and each module of ``figures`` declares some figures.
A new figure is a function with a decorator in one of them, or in a new one beside them.
"""

from __future__ import annotations

import compileall
import os
from pathlib import Path


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compile_packages(checkout: Path = Path(__file__).parents[1]) -> None:
    """Compile the bytecode of a checkout, as an installation does; the peers' exists already."""
    for folder in (checkout / "amorsize", checkout / "benchmarks"):
        if not compileall.compile_dir(folder, quiet=1):
            raise RuntimeError(f"{folder} does not compile")
