"""Executions in progress, and the managers that are notified of them.

An exporter is attached to one manager, and counts the hooks of all that observe its executions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amorsize.hooks.manager import HookManager

_managers: dict[object, tuple[HookManager, ...]] = {}


def begin(execution_id: str, managers: Sequence[HookManager]) -> None:
    """Note that an execution's events begin."""
    _managers[execution_id] = tuple(managers)


def end(execution_id: str) -> None:
    """Note that they have ended."""
    _managers.pop(execution_id, None)


def managers_of(execution_id: object) -> tuple[HookManager, ...]:
    """Return the managers of an execution in progress; none for an unknown one."""
    return _managers.get(execution_id, ())
