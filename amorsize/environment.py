"""What the environment asks of the first run: the exporters that ``AMORSIZE_EXPORTERS`` names."""

from __future__ import annotations

import os

VARIABLE = "AMORSIZE_EXPORTERS"

_read = False


def enable_exporters() -> None:
    """Enable them, on the first call; where none is named, nothing is imported for it.

    What :func:`amorsize.exporters.registry.enable_named` raises is raised by each call.
    """
    global _read
    if _read:
        return
    names = os.environ.get(VARIABLE)
    if names:
        from amorsize.exporters.registry import enable_named

        enable_named(names, VARIABLE)
    _read = True
