"""The exception of the stack; its text is for the user."""

from __future__ import annotations


class StackError(Exception):
    """The stack cannot start or continue; the message says why, and what to do."""
