"""Public names of a package that are imported on first use, as PEP 562 allows.

Importing a package then costs little, whatever its names need. A package writes::

    _HOMES = {"execute": "amorsize.executor"}
    __all__ = [*_HOMES]
    __getattr__, __dir__ = lazy_names(globals(), _HOMES)

``import amorsize`` loads this module, so it imports nothing: ``importlib`` alone takes 0.4 ms, and
even ``from __future__ import annotations`` takes 0.1 ms.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def lazy_names(
    namespace: "dict[str, Any]", homes: dict[str, str]
) -> "tuple[Callable[[str], Any], Callable[[], list[str]]]":
    """Make the ``__getattr__`` of a package, and a ``__dir__`` that lists its public names alone.

    Submodules that are imported are attributes as usual, but are not listed.

    Args:
        namespace: the package's ``globals()``.
        homes: the full name of the module that defines each public name.
    """
    package = namespace["__name__"]

    def __getattr__(name: str) -> object:
        if name not in homes:
            # With a name but no object, Python adds no suggestion of its own.
            raise AttributeError(_describe_unknown(package, name, homes), name=name)
        home = __import__(homes[name], fromlist=(name,))  # a fromlist: the module, not its package
        value = namespace[name] = getattr(home, name)
        return value

    def __dir__() -> list[str]:
        special = (name for name in namespace if name.startswith("__"))
        return sorted({*special, *homes})

    return __getattr__, __dir__


def _describe_unknown(package: str, name: str, homes: dict[str, str]) -> str:
    message = f"module {package!r} has no attribute {name!r}"
    if name.startswith("_"):  # asked for by tools, not misspelled
        return message
    from difflib import get_close_matches

    matches = get_close_matches(name, homes, n=1)
    return f"{message}. Did you mean: {matches[0]!r}?" if matches else message
