"""Environment variables that the first run applies: a file of hooks, and names of exporters."""

from __future__ import annotations

import os

from amorsize.workers import in_forked_child

VARIABLE = "AMORSIZE_EXPORTERS"
CONFIG_VARIABLE = "AMORSIZE_CONFIG"

_read = False


def apply() -> None:
    """Apply the variables, on the first call. If none is set, nothing is imported.

    The file that ``AMORSIZE_CONFIG`` names comes first: it may hold settings of an exporter that
    ``AMORSIZE_EXPORTERS`` names. Child processes ignore both, unless
    ``AMORSIZE_EXPORTERS_IN_CHILDREN`` is 1.

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
        from amorsize.exporters.registry import warn_ignored

        apply_once(
            CONFIG_VARIABLE,
            lambda: _load(path),
            ignored=lambda: warn_ignored(
                f"The exporters and hooks of the file that {CONFIG_VARIABLE} names are"
            ),
        )
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


@in_forked_child
def _read_again_in_forked_child() -> None:
    """A child that may have exporters enables its own."""
    global _read
    if _read and (os.environ.get(CONFIG_VARIABLE) or os.environ.get(VARIABLE)):
        from amorsize.exporters.base import children_have_exporters

        _read = not children_have_exporters()
