"""The observers of a run: their managers, and the reporter of its events."""

from __future__ import annotations

from amorsize.workers.names import bounded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from amorsize.exporters.progress import ProgressBar
    from amorsize.hooks.manager import HookManager
    from amorsize.options import Options
    from amorsize.running.reporter import Reporter


class Observers:
    """The managers whose hooks observe one run, and its progress bar."""

    def __init__(self) -> None:
        self._bar: ProgressBar | None = None
        self._managers: list[HookManager] = []

    def make_reporter(self, func: Callable[[Any], Any], options: Options, began: float) -> Reporter:
        """Make the reporter of the run's events.

        Args:
            func: the function.
            options: those of the run.
            began: ``time.perf_counter()`` when it was called.
        """
        from amorsize.hooks.manager import HookManager, get_default_manager
        from amorsize.running.reporter import Reporter

        default = get_default_manager()
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
            began=began,
            function=function_name(func, options),
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


def function_name(func: Callable[..., Any], options: Options) -> str:
    """Return what events and the log call the function."""
    if options.name:
        return bounded(options.name)
    func = getattr(func, "func", func)  # functools.partial
    qualified = getattr(func, "__qualname__", None) or type(func).__qualname__
    module = getattr(func, "__module__", None) or type(func).__module__
    return bounded(f"{module}.{qualified}")
