"""The progress bar of ``execute(..., progress=True)``: one tqdm bar per run."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

from amorsize.errors import MissingExtraError
from amorsize.hooks import HookContext, HookEvent, HookManager

if TYPE_CHECKING:
    from tqdm.std import tqdm

_REFRESH_SECONDS = 0.1
"""Between two refreshes of a bar on a terminal."""

_LINE_SECONDS = 10.0
"""Between two lines where there is no terminal, such as in a log file."""

_LINE_COLUMNS = 96
"""Width of such a line: a log has no width that could be asked for."""


class ProgressBar:
    """Shows a bar for every execution whose events it receives.

    On a terminal (and in a notebook) the bar moves in place. Elsewhere it is a line every ten
    seconds and one at the end, so that a log stays readable. A bar is closed by its execution's
    ``POST_EXECUTE``, and by ``close()`` in any case.

    Args:
        file: where to draw; None means the ``sys.stderr`` of the moment.

    Raises:
        MissingExtraError: tqdm is not installed.

    Example:
        >>> from amorsize import HookManager
        >>> from amorsize.exporters.progress import ProgressBar
        >>> hooks = HookManager()
        >>> with ProgressBar().attach(hooks):
        ...     pass  # executions with these hooks are shown here
        >>> hooks.get_hook_count()
        0
    """

    def __init__(self, *, file: TextIO | None = None) -> None:
        try:
            self._tqdm: type[tqdm[Any]] = import_module("tqdm.std").tqdm
        except ImportError:
            raise MissingExtraError("progress=True", "tqdm", "progress") from None
        self._file = file
        self._views: dict[object, _View] = {}
        self._managers: list[HookManager] = []
        # ON_PROGRESS adds nothing: it repeats the numbers of ON_CHUNK_COMPLETE, and may be thinned.
        self._hooks = {
            HookEvent.PRE_EXECUTE: self._open,
            HookEvent.ON_CHUNK_COMPLETE: self._update,
            HookEvent.ON_ERROR: self._note_error,
            HookEvent.POST_EXECUTE: self._finish,
        }

    def attach(self, manager: HookManager) -> Self:
        """Register for the events of ``manager``; they are handled on the thread that fires them.

        Returns:
            This bar, to be used in ``with``.
        """
        for event, hook in self._hooks.items():
            manager.register(event, hook)
        self._managers.append(manager)
        return self

    def close(self) -> None:
        """Unregister everywhere and close what is still open. Closing twice does nothing."""
        for manager in self._managers:
            for event, hook in self._hooks.items():
                manager.unregister(event, hook)
        self._managers.clear()
        while self._views:
            _, view = self._views.popitem()
            view.close("interrupted")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _open(self, context: HookContext) -> None:
        file = self._file if self._file is not None else sys.stderr
        if file is None:  # as under pythonw: there is no terminal
            return
        view: _View
        if file.isatty() or _is_of_a_notebook(file):
            view = _Terminal(self._tqdm, file, context)
        else:
            view = _Lines(self._tqdm, file, context)
        self._views[_key(context)] = view

    def _update(self, context: HookContext) -> None:
        view = self._views.get(_key(context))
        if view is not None:
            view.move(context)

    def _note_error(self, context: HookContext) -> None:
        view = self._views.get(_key(context))
        if view is not None:
            view.note_error(context)

    def _finish(self, context: HookContext) -> None:
        view = self._views.pop(_key(context), None)
        if view is not None:
            view.move(context)
            status = context.metadata.get("status", "ok")
            view.close({"ok": "", "error": "failed"}.get(status, status))


class _View(Protocol):
    """The display of one execution."""

    def move(self, context: HookContext) -> None: ...
    def note_error(self, context: HookContext) -> None: ...
    def close(self, verdict: str) -> None: ...


class _Terminal:
    """A bar that moves in place."""

    def __init__(self, tqdm_class: type[tqdm[Any]], file: TextIO, context: HookContext) -> None:
        self._bar = _without_monitor(tqdm_class)(
            desc=_describe(context),
            total=context.total_items,
            unit="item",
            file=file,
            mininterval=_REFRESH_SECONDS,
            miniters=1,
            smoothing=0,  # the mean rate: chunks arrive in bursts, one per worker
            **_size_of(file),
        )
        # The run began before its plan was made, and sampled items count from there.
        self._bar.start_t -= context.elapsed_time
        self._errors = 0

    def move(self, context: HookContext) -> None:
        self._bar.update(context.items_completed - self._bar.n)

    def note_error(self, context: HookContext) -> None:
        self._errors += 1
        self._bar.set_postfix_str(_count_errors(self._errors), refresh=False)

    def close(self, verdict: str) -> None:
        # How a run ended matters more than a count of errors, the last of which ended it.
        self._bar.set_postfix_str(verdict or _count_errors(self._errors), refresh=False)
        self._bar.close()


class _Lines:
    """The same numbers, as a few whole lines."""

    def __init__(self, tqdm_class: type[tqdm[Any]], file: TextIO, context: HookContext) -> None:
        self._format = tqdm_class.format_meter
        self._file = file
        self._description = _describe(context)
        self._last = context
        self._written = context.elapsed_time
        self._errors = 0

    def move(self, context: HookContext) -> None:
        self._last = context
        if context.elapsed_time - self._written >= _LINE_SECONDS:
            self._write(_count_errors(self._errors))

    def note_error(self, context: HookContext) -> None:
        self._errors += 1

    def close(self, verdict: str) -> None:
        self._write(verdict or _count_errors(self._errors))

    def _write(self, notes: str) -> None:
        self._written = self._last.elapsed_time
        line = self._format(
            n=self._last.items_completed,
            total=self._last.total_items,  # type: ignore[arg-type]  # None is its unknown
            elapsed=self._last.elapsed_time,
            ncols=_LINE_COLUMNS,
            prefix=self._description,
            ascii=True,
            unit="item",
            postfix=notes,
        )
        self._file.write(line.rstrip() + "\n")
        self._file.flush()


def _without_monitor(tqdm_class: type[tqdm[Any]]) -> type[tqdm[Any]]:
    """A tqdm that starts no monitor thread: with ``miniters=1`` there is nothing to repair."""
    return type("tqdm", (tqdm_class,), {"monitor_interval": 0})


def _size_of(file: TextIO) -> dict[str, Any]:
    """Have tqdm follow the terminal's size; at size 0 (some containers) it would hide its bars."""
    try:
        known = min(os.get_terminal_size(file.fileno())) > 1
    except (OSError, ValueError):
        known = False
    return {"dynamic_ncols": True} if known else {"ncols": 79, "nrows": 24}


def _is_of_a_notebook(file: TextIO) -> bool:
    """Say whether a notebook shows what is written here, in which a bar can move in place.

    The stream of a kernel notes to which cell it writes (ipykernel's ``OutStream.set_parent``).
    """
    return hasattr(file, "set_parent")


def _key(context: HookContext) -> object:
    return context.metadata.get("execution_id")


def _describe(context: HookContext) -> str:
    function = context.metadata.get("function", "execute")
    engine = context.metadata.get("executor_type")
    if engine is None:
        return str(function)
    workers = f" x{context.n_jobs}" if context.n_jobs > 1 else ""
    return f"{function} ({engine}{workers})"


def _count_errors(count: int) -> str:
    if count == 0:
        return ""
    return "1 error" if count == 1 else f"{count} errors"
