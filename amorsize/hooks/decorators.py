"""Hooks by decoration: a function is registered at once, a method when its object is attached."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FunctionType
from typing import Any, NamedTuple

from amorsize.hooks.entries import Hook, HookOptions
from amorsize.hooks.events import HookEvent

_MARKS = "__amorsize_hooks__"


class Mark(NamedTuple):
    """The registration that a decorator asked for."""

    manager: object
    events: tuple[HookEvent, ...]
    options: HookOptions


def is_method(decorated: object) -> bool:
    """Return whether it is a function in a class body that takes an object and a context."""
    if not isinstance(decorated, FunctionType):
        return False
    around, _, _ = decorated.__qualname__.rpartition(".")
    if not around or around.endswith("<locals>"):
        return False
    try:
        inspect.signature(decorated).bind(None, None)
    except TypeError:
        return False
    return True


def mark(method: object, mark: Mark) -> None:
    """Note on a method how it is to be registered."""
    setattr(method, _MARKS, (*getattr(method, _MARKS, ()), mark))


def marked_methods(owner: object, manager: object) -> Iterator[tuple[Mark, Hook]]:
    """Yield the methods of an object that were marked for a manager, in the order of the source."""
    names: dict[str, None] = {}
    for kind in reversed(type(owner).__mro__):
        names |= dict.fromkeys(vars(kind))
    for name in names:
        written: Any = inspect.getattr_static(type(owner), name, None)
        for each in getattr(written, _MARKS, ()) if isinstance(written, FunctionType) else ():
            if each.manager is manager:
                yield each, getattr(owner, name)
