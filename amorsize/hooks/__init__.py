"""Hooks: what happens during an execution, told to whoever registered for it.

``events`` says what a hook is told, ``manager`` who is told and how; ``conditions`` and ``chains``
say when, and what together; ``helpers`` holds ready-made hooks for the commonest wishes.

The names are resolved on first use, as those of amorsize are: a run needs the manager alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amorsize.hooks.chains import chain as chain
    from amorsize.hooks.conditions import every as every
    from amorsize.hooks.conditions import function as function
    from amorsize.hooks.conditions import on_failure as on_failure
    from amorsize.hooks.conditions import slower_than as slower_than
    from amorsize.hooks.entries import Condition as Condition
    from amorsize.hooks.entries import Hook as Hook
    from amorsize.hooks.events import HookContext as HookContext
    from amorsize.hooks.events import HookEvent as HookEvent
    from amorsize.hooks.helpers import create_error_hook as create_error_hook
    from amorsize.hooks.helpers import create_progress_hook as create_progress_hook
    from amorsize.hooks.helpers import create_throughput_hook as create_throughput_hook
    from amorsize.hooks.helpers import create_timing_hook as create_timing_hook
    from amorsize.hooks.manager import HookManager as HookManager
    from amorsize.hooks.manager import get_default_manager as get_default_manager
    from amorsize.hooks.manager import on as on
    from amorsize.hooks.registration import Registration as Registration

_HOME = {
    "Condition": "entries",
    "Hook": "entries",
    "HookContext": "events",
    "HookEvent": "events",
    "HookManager": "manager",
    "Registration": "registration",
    "chain": "chains",
    "create_error_hook": "helpers",
    "create_progress_hook": "helpers",
    "create_throughput_hook": "helpers",
    "create_timing_hook": "helpers",
    "every": "conditions",
    "function": "conditions",
    "get_default_manager": "manager",
    "on": "manager",
    "on_failure": "conditions",
    "slower_than": "conditions",
}

__all__ = [*_HOME]  # names resolved by __getattr__


def __getattr__(name: str) -> object:
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
