"""Hooks: what happens during an execution, told to whoever registered for it.

``events`` says what a hook is told, ``manager`` who is told and how; ``conditions`` and ``chains``
say when, and what together; ``helpers`` holds ready-made hooks for the commonest wishes.
"""

from amorsize.hooks.chains import chain
from amorsize.hooks.conditions import every, function, on_failure, slower_than
from amorsize.hooks.default import on
from amorsize.hooks.entries import Condition, Hook
from amorsize.hooks.events import HookContext, HookEvent
from amorsize.hooks.helpers import (
    create_error_hook,
    create_progress_hook,
    create_throughput_hook,
    create_timing_hook,
)
from amorsize.hooks.manager import HookManager, get_default_manager
from amorsize.hooks.registration import Registration

__all__ = [
    "Condition",
    "Hook",
    "HookContext",
    "HookEvent",
    "HookManager",
    "Registration",
    "chain",
    "create_error_hook",
    "create_progress_hook",
    "create_throughput_hook",
    "create_timing_hook",
    "every",
    "function",
    "get_default_manager",
    "on",
    "on_failure",
    "slower_than",
]
