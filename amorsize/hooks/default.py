"""``@amorsize.on(...)``: hooks of every execution, by decoration."""

from __future__ import annotations

import sys
from collections.abc import Callable

from amorsize.hooks.entries import Condition
from amorsize.hooks.events import HookEvent
from amorsize.hooks.manager import HookT, get_default_manager


def on(
    *events: HookEvent,
    when: Condition | None = None,
    priority: int = 0,
    background: bool = False,
    timeout: float | None = None,
) -> Callable[[HookT], HookT]:
    """Decorate a function to be called at one event of every execution, or at several.

    This is :meth:`HookManager.on` of the default manager. In a worker process, which often imports
    the module that decorates, it registers nothing.

    Example:
        >>> import amorsize
        >>> @amorsize.on(amorsize.HookEvent.POST_EXECUTE)
        ... def tell(context):
        ...     print(context.metadata["status"])
        >>> amorsize.execute(abs, [-1])
        ok
        [1]
        >>> amorsize.get_default_manager().unregister_all()
        1
    """
    worker = sys.modules.get("amorsize.engines.process.worker")
    if getattr(worker, "serving", False):
        return lambda decorated: decorated
    return get_default_manager().on(
        *events, when=when, priority=priority, background=background, timeout=timeout
    )
