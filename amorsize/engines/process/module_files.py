"""Which code of the user's a worker holds, and whether it is still the program's.

A worker reports the files of the user's modules that it has loaded, by name, time and size. A
module is stale where its file has changed since, where the program has another of that name, or
where the program has reloaded it. Modules of the standard library and of installed packages are
not looked at.
"""

from __future__ import annotations

import os
import sys

from amorsize.workers.by_value import names_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    Stamp: TypeAlias = tuple[int, int]
    """Time of the last change in ns, and size."""

    Files: TypeAlias = dict[str, tuple[str, Stamp | None]]
    """File and stamp of each module."""

_STANDARD = os.path.dirname(os.__file__) + os.sep
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_OWN = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep


def stamp(file: str) -> Stamp | None:
    """Return the stamp of a file; None where there is none."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _file_of(module: Any) -> str | None:
    """Return the file of a module of the user's, None for others."""
    file = names_of(module).get("__file__")
    if not isinstance(file, str) or file.startswith((_STANDARD, _OWN)):
        return None
    return None if any(part in file for part in _INSTALLED) else file


class ModuleFiles:
    """In a worker: the user's modules that it has loaded."""

    def __init__(self) -> None:
        self._known = set(sys.modules)

    def read_new(self) -> Files:
        """Return what was loaded since the last call."""
        new = [name for name in sys.modules if name not in self._known]
        self._known.update(new)
        files = {}
        for name in new:
            file = _file_of(sys.modules.get(name))
            if file is not None:
                files[name] = file, stamp(file)
        return files


class HeldModules:
    """In the program: the user's modules that one worker has loaded."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[str, Stamp | None, Any]] = {}

    def add(self, files: Files) -> None:
        for name, (file, loaded) in files.items():
            self._held[name] = file, loaded, _spec(name)

    def are_stale(self, stamps: dict[str, Stamp | None]) -> bool:
        """Say whether one of them is stale; ``stamps`` remembers files between calls."""
        for name, (file, loaded, spec) in self._held.items():
            if file not in stamps:
                stamps[file] = stamp(file)
            if stamps[file] != loaded:
                return True
            here = _file_of(sys.modules.get(name))
            if here is not None and (here != file or _spec(name) is not spec):
                return True
        return False


def _spec(name: str) -> Any:
    """Return the spec of a module, which a reload replaces."""
    return names_of(sys.modules.get(name)).get("__spec__")
