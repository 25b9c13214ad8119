"""Facts that earlier runs have shown about functions."""

from __future__ import annotations

from weakref import ref

from amorsize.workers.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from amorsize.planning.workload import Workload


class Known(Record):
    """The facts known about one function.

    Attributes:
        workload: what its calls are like, where it last ran with workers; else None.
        short: whether its first calls were over before anybody could look at one.
        sent_type: the type of the first item of a run whose results came back from processes.
    """

    workload: Workload | None = None
    short: bool = False
    sent_type: type | None = None


NOTHING = Known()


class KnownFunctions:
    """Remembers :class:`Known` of functions, as long as these exist.

    Functions are distinguished by their identity: none of their code runs. Those that cannot be
    referred to weakly are not remembered.

    >>> known = KnownFunctions()
    >>> known.remember(len, short=True)
    >>> known.recall(len).short, known.recall(max).short, known.recall([]).short
    (True, False, False)
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[ref[Any], Known]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def remember(self, func: Any, **facts: Any) -> None:
        """Remember facts of a function; those that are not named stay."""
        key, known = id(func), self._known
        before = self.recall(func)
        try:
            known[key] = ref(func, lambda gone: known.pop(key, None)), before._replace(**facts)
        except TypeError:
            pass

    def recall(self, func: Any) -> Known:
        """Return what is known of a function."""
        found = self._known.get(id(func))
        return found[1] if found is not None and found[0]() is func else NOTHING


KNOWN = KnownFunctions()
"""The facts from the runs of this process."""
