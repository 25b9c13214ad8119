"""Environment variables that the first run applies: a file of hooks, and names of exporters."""

from __future__ import annotations

import os
import threading

VARIABLE = "AMORSIZE_EXPORTERS"
CONFIG_VARIABLE = "AMORSIZE_CONFIG"

_read = False
_config_done = False
_lock = threading.RLock()


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
        _load(path)
    names = os.environ.get(VARIABLE)
    if names:
        from amorsize.exporters.registry import enable_named

        enable_named(names, VARIABLE)
    _read = True


def _load(path: str) -> None:
    global _config_done
    from amorsize.errors import InvalidValueError
    from amorsize.exporters.base import in_child_process
    from amorsize.hooks.config import read
    from amorsize.hooks.manager import get_default_manager

    with _lock:
        if _config_done or in_child_process():
            return
        _config_done = True  # set first: the imported modules may themselves call execute()
        try:
            read(path).apply(get_default_manager().register, origin=CONFIG_VARIABLE)
        except BaseException as error:
            _config_done = False
            if isinstance(error, InvalidValueError):
                error.add_note(f"The environment variable {CONFIG_VARIABLE} names this file.")
            raise


def _renew_lock_in_forked_child() -> None:
    global _lock
    _lock = threading.RLock()  # the old one may be held by a thread that is not here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock_in_forked_child)
