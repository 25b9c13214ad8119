"""What goes wrong here: one exception, whose text is for people."""

from __future__ import annotations


class StackError(Exception):
    """The stack cannot start, or cannot go on; the message says why and what to do."""
