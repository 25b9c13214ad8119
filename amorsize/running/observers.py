"""The observers of a run: whether there are any, and the reporter for them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from amorsize.workers.observers import is_observed

if TYPE_CHECKING:
    from amorsize.hooks.manager import HookManager
    from amorsize.options import Options
    from amorsize.running.reporter import Reporter


def is_logged() -> bool:
    """Say whether the log takes what a run has chosen."""
    logging = sys.modules.get("logging")  # a level can be set only where it is loaded: 4 ms
    if logging is None or not hasattr(logging, "getLogger"):  # another thread is loading it
        return False
    return bool(logging.getLogger("amorsize").isEnabledFor(logging.DEBUG))


class Observers:
    """The managers whose hooks observe one run.

    Args:
        func: the function.
        options: those of the run.
        began: ``time.perf_counter()`` when it was called.
    """

    def __init__(self, func: Callable[[Any], Any], options: Options, began: float) -> None:
        self._func = func
        self._options = options
        self._began = began
        self._bar: Any = None
        self._managers: list[HookManager] = []

    def are_there(self) -> bool:
        """Say whether there are any now: the function itself may register a hook."""
        return self._options.hooks is not None or self._options.progress or is_observed()

    def make_reporter(self) -> Reporter:
        """Make the reporter of the run's events."""
        from amorsize.hooks.manager import HookManager, get_default_manager
        from amorsize.running.reporter import Reporter

        options, default = self._options, get_default_manager()
        self._managers = [default]
        if options.hooks is not None and options.hooks is not default:  # notified once
            self._managers.append(options.hooks)
        if options.progress:
            from amorsize.exporters.progress import ProgressBar

            manager = HookManager()
            self._bar = ProgressBar().attach(manager)
            self._bar.__enter__()
            self._managers.append(manager)
        return Reporter(
            self._managers,
            began=self._began,
            function=options.name or _name_of(self._func),
            progress_interval=options.progress_interval,
        )

    def drain(self, execution_id: str) -> None:
        """Wait for the hooks in the background: for each manager's ``drain_timeout`` at most."""
        from contextlib import ExitStack

        with ExitStack() as drains:  # a Ctrl-C in one of them does not spare the others
            for manager in reversed(self._managers):
                drains.callback(manager.drain, execution_id)

    def close(self) -> None:
        """Close the progress bar."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)


def _name_of(func: Callable[..., Any]) -> str:
    func = getattr(func, "func", func)  # functools.partial
    qualified = getattr(func, "__qualname__", None) or type(func).__qualname__
    module = getattr(func, "__module__", None) or type(func).__module__
    return f"{module}.{qualified}"
