"""Hooks: what happens during an execution, told to whoever registered for it.

``events`` says what a hook is told, ``manager`` who is told and how,
``helpers`` holds ready-made hooks for the commonest wishes.
"""

from amorsize.hooks.events import HookContext, HookEvent
from amorsize.hooks.helpers import (
    create_error_hook,
    create_progress_hook,
    create_throughput_hook,
    create_timing_hook,
)
from amorsize.hooks.manager import Hook, HookManager, Registration, get_default_manager

__all__ = [
    "Hook",
    "HookContext",
    "HookEvent",
    "HookManager",
    "Registration",
    "create_error_hook",
    "create_progress_hook",
    "create_throughput_hook",
    "create_timing_hook",
    "get_default_manager",
]
