"""Named values, in a class that takes no time to make.

``NamedTuple`` and ``@dataclass`` write a class its methods when it is made, which takes 0.1 to
0.3 ms: a fourth of what loading took that the shortest runs need. These are written already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Self


class Record:
    """Named values that are compared, and shown, together.

    A class of records has an ``__init__`` that takes each value by the name of its attribute. None
    is changed once it is shared: :meth:`_replace` makes another.

    >>> class Point(Record):
    ...     def __init__(self, x: int, y: int = 0) -> None:
    ...         self.x = x
    ...         self.y = y
    >>> Point(1)._replace(y=2)
    Point(x=1, y=2)
    """

    def _replace(self, **changes: Any) -> Self:
        """Return a record with the same values, but for some."""
        return type(self)(**{**vars(self), **changes})

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # many hold what has none

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__qualname__}({values})"
