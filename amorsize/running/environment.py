"""What the environment asks of the first run: a file of hooks, and exporters by their names."""

from __future__ import annotations

import os
import threading

VARIABLE = "AMORSIZE_EXPORTERS"
CONFIG_VARIABLE = "AMORSIZE_CONFIG"

_read = False
_config_done = False
_lock = threading.RLock()


def apply() -> None:
    """Do what it asks, on the first call; where it asks nothing, nothing is imported for it.

    The file that ``AMORSIZE_CONFIG`` names comes first: it may hold settings of an exporter that
    ``AMORSIZE_EXPORTERS`` names. Child processes take no notice of either.

    Raises:
        InvalidValueError, MissingExtraError: what the file, or
            :func:`amorsize.exporters.registry.enable_named` raises; by each call.
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
        _config_done = True  # already now: what it imports may itself call execute()
        try:
            read(path).apply(get_default_manager().register, origin=CONFIG_VARIABLE)
        except BaseException as error:
            _config_done = False
            if isinstance(error, InvalidValueError):
                error.add_note(f"The environment variable {CONFIG_VARIABLE} names this file.")
            raise


def _begin_anew_in_forked_child() -> None:
    global _lock
    _lock = threading.RLock()  # the old one may be held by a thread not here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew_in_forked_child)
