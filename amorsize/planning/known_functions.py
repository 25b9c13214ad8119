"""What earlier runs have shown of functions."""

from __future__ import annotations

from typing import Any, Generic, TypeVar
from weakref import ref

K = TypeVar("K")


class KnownFunctions(Generic[K]):
    """Remembers something of functions; of what cannot be remembered, nothing.

    Functions are told apart by their identity: none of their code runs.

    >>> known = KnownFunctions[str]()
    >>> known.remember(len, "short")
    >>> known.recall(len), known.recall(max), known.recall([])
    ('short', None, None)
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[ref[Any], K]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def remember(self, func: Any, what: K) -> None:
        """Remember something of a function for as long as that is there."""
        key, known = id(func), self._known
        try:
            known[key] = ref(func, lambda gone: known.pop(key, None)), what
        except TypeError:
            pass  # not to be referred to weakly

    def recall(self, func: Any) -> K | None:
        """Return what was last remembered of a function."""
        found = self._known.get(id(func))
        return found[1] if found is not None and found[0]() is func else None

    def forget(self, func: Any) -> None:
        """Remember nothing more of a function."""
        self._known.pop(id(func), None)
