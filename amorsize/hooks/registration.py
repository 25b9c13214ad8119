"""The handle of a registered hook."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from amorsize.hooks.entries import Hook, name_of
from amorsize.hooks.events import HookEvent


class Registration:
    """A hook's registration: closes it, by hand or at the end of a ``with`` block.

    Example:
        >>> from amorsize import HookEvent, HookManager
        >>> hooks = HookManager()
        >>> with hooks.register(HookEvent.ON_PROGRESS, print):
        ...     hooks.has_hooks(HookEvent.ON_PROGRESS)
        True
        >>> hooks.has_hooks(HookEvent.ON_PROGRESS)
        False
    """

    __slots__ = ("_unregister", "callback", "event")

    def __init__(
        self, unregister: Callable[[HookEvent, Hook], bool], event: HookEvent, callback: Hook
    ) -> None:
        self._unregister = unregister
        self.event = event
        self.callback = callback

    def close(self) -> None:
        """Unregister the hook. Closing twice does nothing."""
        self._unregister(self.event, self.callback)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Registration of {name_of(self.callback)} for {self.event.value}>"
