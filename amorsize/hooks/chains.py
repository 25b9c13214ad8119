"""Several hooks as one: each link finds the return values of those before it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from amorsize.errors import InvalidTypeError
from amorsize.hooks.entries import Hook, is_async, name_of, require_hook
from amorsize.hooks.events import HookContext
from amorsize.hooks.interruption import protected_between_calls

KEY = "chain"
"""The key of ``context.metadata`` under which the links find these values."""


@protected_between_calls
class Chain:
    """A chain of plain functions. Made by :func:`chain`."""

    def __init__(self, links: tuple[Hook, ...]) -> None:
        self.links = links
        self._names = tuple(_distinct(links))
        self.__qualname__ = f"chain({', '.join(self._names)})"

    def __call__(self, context: HookContext) -> Any:
        values = context.metadata[KEY] = {}
        for name, link in zip(self._names, self.links, strict=True):
            try:
                values[name] = link(context)
            except Exception as error:
                self._explain(error, name)
                raise

    def _explain(self, error: Exception, name: str) -> None:
        error.add_note(
            f"Raised by {name}, a link of {self.__qualname__}; the links after it are not called."
        )

    def __eq__(self, other: object) -> bool:
        return self.links == other.links if isinstance(other, Chain) else NotImplemented

    def __hash__(self) -> int:
        return hash((Chain, self.links))

    def __repr__(self) -> str:
        return f"<{self.__qualname__}>"


@protected_between_calls
class AsyncChain(Chain):
    """A chain with an asynchronous link, itself an asynchronous hook. Made by :func:`chain`."""

    async def __call__(self, context: HookContext) -> None:
        values = context.metadata[KEY] = {}
        for name, link in zip(self._names, self.links, strict=True):
            try:
                value = link(context)
                values[name] = await value if inspect.isawaitable(value) else value
            except Exception as error:
                self._explain(error, name)
                raise


def chain(*links: Hook) -> Chain:
    """Make one hook of several, called in order; the first that fails ends it.

    The return value of a link is stored in the dictionary ``context.metadata["chain"]``, under the
    link's ``__name__``; the second link of a name is stored under ``name_2``. A failure is one
    failure of the chain, with a note that names the link. If a link is ``async``, so is the chain.

    Args:
        *links: hooks, at least one.

    Raises:
        InvalidTypeError: one of them is not a hook, or none is given.

    Example:
        >>> from amorsize import HookContext, HookEvent, HookManager
        >>> def minutes(context):
        ...     return context.elapsed_time / 60
        >>> def report(context):
        ...     print(f"{context.metadata['chain']['minutes']:.1f} minutes")
        >>> hooks = HookManager()
        >>> _ = hooks.register(HookEvent.POST_EXECUTE, chain(minutes, report))
        >>> hooks.trigger(HookContext(HookEvent.POST_EXECUTE, elapsed_time=90.0))
        1.5 minutes
    """
    if not links:
        raise InvalidTypeError("chain() takes one hook or more; got none")
    for link in links:
        require_hook(link)
    return (AsyncChain if any(map(is_async, links)) else Chain)(links)


def _distinct(links: tuple[Hook, ...]) -> Iterator[str]:
    seen: dict[str, int] = {}
    for link in links:
        name = str(getattr(link, "__name__", None) or name_of(link))
        seen[name] = count = seen.get(name, 0) + 1
        yield name if count == 1 else f"{name}_{count}"
