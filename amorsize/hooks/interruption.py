"""Marks the functions that the first Ctrl-C, or the first SIGTERM, does not interrupt.

A run reports everything that it counts, so no exception may be raised between the two. There the
signal handlers (``running/signals.py``) only take a note, and the run raises it a little later.
Such functions are marked, on their code objects. A handler walks from the interrupted frame
outwards to the nearest mark (:func:`is_protected`). User code stays interruptible: a function that
calls it is marked with :func:`protected_between_calls`.

A mark is made at import and costs nothing afterwards, as in trio's ``_core/_ki.py``. At import only
the function or class is noted; its code objects are looked up when a signal comes, which few
programs ever see (for all that the shortest run loads, 0.2 ms). The rejected alternatives cost
something per call (Python 3.11; the call alone takes 0.03 µs):

- a local variable that the handler finds in ``frame.f_locals`` (trio until 0.27), set by a function
  around the function: 0.05 µs;
- a counter that goes up before the call and down after it: 0.17 µs, and a signal between the two
  lines is not covered;
- a context variable, set and reset: 0.15 µs, and the same gap;
- ``signal.pthread_sigmask()`` around the call: 2.7 µs, and it also blocks signals in user code.

A list of modules, compared with the frame's ``__name__``, costs nothing either. But renaming a
module disabled it silently, and it did not protect the functions that a listed module calls.
"""

from __future__ import annotations

from types import CodeType, FrameType, FunctionType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeVar

    MarkedT = TypeVar("MarkedT")


_MOST_FRAMES = 100
"""The walk ends here. Calls of protected functions are some ten frames deep; user code may recurse
without end."""

# By identity: code objects of different files are equal if their contents are. The values keep the
# code objects, so that no other object gets the identity of one of them.
_marks: dict[int, tuple[CodeType, bool]] = {}
_unread: list[tuple[object, bool]] = []
"""Marked functions whose code objects are not in ``_marks`` yet, in the order of marking."""


def protected(marked: MarkedT) -> MarkedT:
    """Mark a function: no first signal interrupts it, or the functions that it calls.

    Functions defined inside it are marked too. In a class, all functions are marked, except those
    with a mark of their own. A protected function must neither wait nor call user code.
    """
    _unread.append((marked, True))
    return marked


def protected_between_calls(marked: MarkedT) -> MarkedT:
    """Mark a function: no first signal interrupts its own lines; its calls are interruptible.

    The functions that it calls can have a mark of their own. Otherwise like :func:`protected`.
    """
    _unread.append((marked, False))
    return marked


def is_protected(frame: FrameType | None) -> bool:
    """Return whether a first signal must not raise an exception in this frame."""
    _read_marks()
    interrupted = frame
    for _ in range(_MOST_FRAMES):
        if frame is None:
            return False
        mark = _marks.get(id(frame.f_code))
        if mark is not None:
            _, calls = mark
            return calls or frame is interrupted
        frame = frame.f_back
    return False


def _read_marks() -> None:
    for unread in tuple(_unread):
        marked, calls = unread
        for code in _codes_of(marked):
            _marks.setdefault(id(code), (code, calls))
        try:
            _unread.remove(unread)  # last: the handler of a second signal may come in the middle
        except ValueError:
            pass  # and has read it


def _codes_of(marked: object) -> Iterator[CodeType]:
    match marked:
        case CodeType():
            yield marked
            for constant in marked.co_consts:
                if isinstance(constant, CodeType):
                    yield from _codes_of(constant)
        case FunctionType():
            yield from _codes_of(marked.__code__)
        case staticmethod() | classmethod():
            yield from _codes_of(marked.__func__)
        case property():
            yield from _codes_of(marked.fget)
            yield from _codes_of(marked.fset)
        case type():
            for value in vars(marked).values():
                if not isinstance(value, type):
                    yield from _codes_of(value)
