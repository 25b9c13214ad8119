"""Environment variables that the first run applies: a file of hooks, and names of exporters."""

from __future__ import annotations

import os

VARIABLE = "AMORSIZE_EXPORTERS"
CONFIG_VARIABLE = "AMORSIZE_CONFIG"

_read = False


def apply() -> None:
    """Apply the variables, on the first call. If none is set, nothing is imported.

    The file that ``AMORSIZE_CONFIG`` names comes first: it may hold settings of an exporter that
    ``AMORSIZE_EXPORTERS`` names. Child processes ignore both.

    Raises:
        InvalidValueError, MissingExtraError: the file, or a name, is wrong: see
            :func:`amorsize.exporters.registry.enable_named`. Each call raises again.
    """
    global _read
    if _read:
        return
    path = os.environ.get(CONFIG_VARIABLE)
    if path:
        from amorsize.exporters.base import apply_once

        apply_once(CONFIG_VARIABLE, lambda: _load(path))
    names = os.environ.get(VARIABLE)
    if names:
        from amorsize.exporters.registry import enable_named

        enable_named(names, VARIABLE)
    _read = True


def _load(path: str) -> None:
    from amorsize.errors import InvalidValueError
    from amorsize.hooks.config import read
    from amorsize.hooks.manager import get_default_manager

    try:
        read(path).apply(get_default_manager().register, origin=CONFIG_VARIABLE)
    except InvalidValueError as error:
        error.add_note(f"The environment variable {CONFIG_VARIABLE} names this file.")
        raise
