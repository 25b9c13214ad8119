"""What amorsize costs, side by side with its peers: ``python -m benchmarks``.

``harness`` measures, ``report`` shows, and each module of ``figures`` declares some figures.
A new figure is a function with a decorator in one of them, or in a new one beside them.
"""

from __future__ import annotations

import os


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
