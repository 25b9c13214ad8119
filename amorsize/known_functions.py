"""What earlier runs have shown of functions."""

from __future__ import annotations

from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

K = TypeVar("K")


class KnownFunctions(Generic[K]):
    """Remembers something of functions; of what cannot be remembered, nothing.

    >>> known = KnownFunctions[str]()
    >>> known.remember(len, "short")
    >>> known.recall(len), known.recall(max), known.recall([])
    ('short', None, None)
    """

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Any, K] = WeakKeyDictionary()

    def remember(self, func: Any, what: K) -> None:
        """Remember something of a function for as long as that is there."""
        try:
            self._known[func] = what
        except TypeError:
            pass  # not hashable, or not to be referred to weakly

    def recall(self, func: Any) -> K | None:
        """Return what was last remembered of a function."""
        try:
            return self._known.get(func)
        except TypeError:
            return None

    def forget(self, func: Any) -> None:
        """Remember nothing more of a function."""
        try:
            self._known.pop(func, None)
        except TypeError:
            pass
