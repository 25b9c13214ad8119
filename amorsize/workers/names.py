"""Names from the user's program, bounded for whoever shows them: in labels, spans, events, logs.

A function, an exception, a hook or a thread may have a name of any length, and a page repeats it in
every series.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

from amorsize.workers.chunk import encodable

MAX_CHARACTERS = 200
"""As many as Datadog keeps of a tag; Prometheus and OpenTelemetry have no limit of their own."""


def bounded(name: str) -> str:
    """Return a name that every backend can encode, with at most ``MAX_CHARACTERS`` characters.

    >>> bounded("parse"), len(bounded("x" * 100_000)), bounded("x" * 201)[-12:]
    ('parse', 200, 'xxx-b317db35')
    """
    if len(name) <= MAX_CHARACTERS and name.isascii():
        return name
    return cut(encodable(name), MAX_CHARACTERS)


def cut(name: str, room: int, size: Callable[[str], int] = len) -> str:
    """Cut a name to its beginning and eight digits of a checksum, so that it differs from others.

    Args:
        name: whole names that differ only after the cut stay different.
        room: the largest size, at least 9.
        size: measures a text, in the unit of ``room``.
    """
    if size(name) <= room:
        return name
    digest = f"-{zlib.crc32(name.encode()):08x}"
    return part(name, room - size(digest), size) + digest


def part(text: str, room: int, size: Callable[[str], int] = len, *, of_end: bool = False) -> str:
    """Return as many whole characters as there is room for, of the beginning or of the end.

    >>> part("straße", 5), part("straße", 5, lambda text: len(text.encode()))
    ('straß', 'stra')
    >>> part("a\\nb", 2, of_end=True)
    '\\nb'
    """
    if size(text) <= room:
        return text
    low, high = 0, len(text)  # low characters fit, high ones do not
    while high - low > 1:
        middle = (low + high) // 2
        if size(text[-middle:] if of_end else text[:middle]) <= room:
            low = middle
        else:
            high = middle
    return (text[-low:] if of_end else text[:low]) if low else ""
