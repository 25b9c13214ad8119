"""What earlier runs have shown of functions."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet


class KnownFunctions:
    """Functions of which something is known; whatever cannot be remembered is never among them.

    >>> known = KnownFunctions()
    >>> known.add(len)
    >>> len in known, max in known, [] in known
    (True, False, False)
    """

    def __init__(self) -> None:
        self._functions: WeakSet[Any] = WeakSet()

    def add(self, func: Any) -> None:
        """Remember a function for as long as it is there."""
        try:
            self._functions.add(func)
        except TypeError:
            pass  # not hashable, or not to be referred to weakly

    def __contains__(self, func: Any) -> bool:
        try:
            return func in self._functions
        except TypeError:
            return False
