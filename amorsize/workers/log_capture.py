"""Log records of a worker, kept from the moment that something imports ``logging``.

Importing ``logging`` takes 5 ms: where neither the program nor its function does, nobody does.
The records themselves are the business of :mod:`.log_records`, which needs ``logging`` to be there.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    from amorsize.workers.log_records import RecordKeeper

_DEFAULT_LEVELS = {"": 30}
"""The levels that :func:`amorsize.workers.log_records.read_levels` returns where none was set."""


def read_levels() -> dict[str, int]:
    """Read the levels of this process' loggers, by name; ``""`` is the root."""
    logging = sys.modules.get("logging")
    if logging is None or not hasattr(logging, "getLogger"):  # another thread is loading it
        return _DEFAULT_LEVELS
    from amorsize.workers import log_records

    return log_records.read_levels()


class LogCapture:
    """Keeps the records of the chunk in progress."""

    def __init__(self) -> None:
        self._keeper: RecordKeeper | None = None
        self._levels: dict[str, int] | None = None
        if "logging" in sys.modules:
            self._begin()
        else:
            sys.meta_path.insert(0, _LoggingFinder(self._begin))

    def keep(self, levels: dict[str, int]) -> None:
        """Keep what passes these levels from now on."""
        self._levels = levels
        if self._keeper is not None:
            from amorsize.workers import log_records

            log_records.keep_records(levels, self._keeper)

    def take(self) -> list[dict[str, Any]]:
        """Return the records kept so far, and drop them."""
        return [] if self._keeper is None else self._keeper.take()

    def _begin(self) -> None:
        from amorsize.workers import log_records

        self._keeper = log_records.RecordKeeper()
        if self._levels is not None:
            self.keep(self._levels)


class _LoggingFinder:
    """Finds ``logging`` once, and has something done as soon as it is loaded."""

    def __init__(self, done: Callable[[], object]) -> None:
        self._done = done

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "logging":
            return None
        sys.meta_path.remove(self)
        from importlib.util import find_spec

        spec = find_spec(name)
        if spec is not None:
            spec.loader = _Announcing(spec, self._done)  # type: ignore[assignment]  # of the same kind
        return spec


class _Announcing:
    """Loads a module as its loader does, and says when that is done."""

    def __init__(self, spec: ModuleSpec, done: Callable[[], object]) -> None:
        self._spec = spec
        self._loader: Any = spec.loader
        self._done = done

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._spec.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._done()
