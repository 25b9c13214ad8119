"""The base class of exporters: attaching to hooks, closing when the interpreter exits."""

from __future__ import annotations

import atexit
import functools
import logging
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, Self, TypeVar

from amorsize.errors import ExporterError
from amorsize.exporters.sender import Sender
from amorsize.hooks import Hook, HookContext, HookEvent, HookManager, get_default_manager
from amorsize.hooks.interruption import protected
from amorsize.hooks.termination import at_termination
from amorsize.workers import in_forked_child
from amorsize.workers.role import is_worker

logger = logging.getLogger(__name__)

_CLOSE_SECONDS = 1.0
"""How long close() waits for deliveries."""

_EXIT_SECONDS = 2.0
"""How long the interpreter's exit waits for all exporters together."""


class Exporter:
    """Sends events to a monitoring system. A base class: override the methods that you need.

    There is one method per event. Only overridden methods are registered, so the others cost
    nothing. They are called like any hook: in ``execute()`` from the caller's thread, in
    ``stream()`` from its driver thread, one call at a time per execution, but from several threads
    at once for several executions.

    An exporter is inert in child processes (forked, or started by ``multiprocessing``, or
    amorsize's own workers): it receives nothing there and must open nothing, see :attr:`active`.
    It is closed when the interpreter exits, unless it was before; all exporters together have
    two seconds then.

    Network traffic belongs on a background thread: see :meth:`new_sender`.

    Example:
        >>> from amorsize import HookContext, HookEvent, HookManager
        >>> class Printer(Exporter):
        ...     name = "printer"
        ...
        ...     def post_execute(self, context):
        ...         print(context.items_completed, "items")
        >>> hooks = HookManager()
        >>> with Printer().attach(hooks):
        ...     hooks.trigger(HookContext(HookEvent.POST_EXECUTE, items_completed=3))
        3 items
    """

    name: ClassVar[str] = "exporter"
    """Its name in messages and in the ``exporter`` label."""

    def __init__(self) -> None:
        self._state_lock = threading.Lock()
        self._active = not in_child_process()
        self._closed = False
        self._managers: tuple[HookManager, ...] = ()
        self._last = threading.local()
        self._senders: tuple[Sender[Any], ...] = ()
        self._hooks = {
            event: self._while_active(getattr(self, event.value))
            for event in HookEvent
            if getattr(type(self), event.value) is not getattr(Exporter, event.value)
        }
        _open_exporters.add(self)

    @property
    def active(self) -> bool:
        """Whether events arrive: False once closed, and in child processes."""
        return self._active

    @property
    def managers(self) -> tuple[HookManager, ...]:
        """The managers it is attached to."""
        return self._managers

    def pre_execute(self, context: HookContext) -> None:
        """An execution begins."""

    def on_worker_start(self, context: HookContext) -> None:
        """A worker takes its first chunk of an execution."""

    def on_chunk_complete(self, context: HookContext) -> None:
        """A chunk's results are in."""

    def on_progress(self, context: HookContext) -> None:
        """Follows ``on_chunk_complete``, unless ``progress_interval`` skips it."""

    def on_error(self, context: HookContext) -> None:
        """A chunk failed, a worker died, an execution was cancelled or timed out."""

    def on_worker_end(self, context: HookContext) -> None:
        """A worker has finished its part of an execution, or died."""

    def post_execute(self, context: HookContext) -> None:
        """An execution is over, however it ended."""

    def attach(self, manager: HookManager | None = None) -> Self:
        """Receive a manager's events from now on; attaching twice to one changes nothing.

        Args:
            manager: emits the events; None for the process-wide default manager, which every
                ``execute()`` triggers.

        Returns:
            The exporter itself.

        Raises:
            ExporterError: the exporter is closed.
        """
        manager = get_default_manager() if manager is None else manager
        with self._state_lock:
            if self._closed:
                raise ExporterError(f"{self!r} is closed and cannot be attached; make a new one")
            if not self._active:
                return self
            if manager not in self._managers:
                self._managers += (manager,)
            for event, hook in self._hooks.items():
                manager.register(event, hook)
        return self

    def new_sender(self, send: Callable[[list[Any]], object], **bounds: Any) -> Sender[Any]:
        """Make a background sender that ``flush()`` and ``close()`` include.

        Call it after ``super().__init__()``. Its losses and failures are counted under the
        exporter's name.

        Args:
            send: delivers a list of items, on the sender's thread.
            **bounds: those of :class:`amorsize.exporters.sender.Sender`.
        """
        sender: Sender[Any] = Sender(send, name=self.name, **bounds)
        self._senders += (sender,)
        return sender

    def flush(self, timeout: float = _CLOSE_SECONDS) -> bool:
        """Deliver all items of its senders, waiting at most ``timeout`` seconds.

        An override must keep to the timeout: an exporter that does not is abandoned when the
        interpreter exits.

        Returns:
            Whether everything was delivered.
        """
        deadline = time.monotonic() + timeout
        for sender in self._senders:
            sender.nudge()  # all at once; the waits below then share the time
        delivered = [sender.flush(deadline - time.monotonic()) for sender in self._senders]
        return all(delivered)

    def counts(self) -> tuple[int, int]:
        """Count lost items and failures to deliver. Cheap, never waits.

        Override it where something other than a sender can fail.

        Returns:
            The values of ``amorsize_exporter_dropped_total`` and
            ``amorsize_exporter_errors_total``.
        """
        lost = sum(sender.lost for sender in self._senders)
        return lost, sum(sender.errors for sender in self._senders)

    def release(self) -> None:
        """Free the exporter's resources. Override it; ``close()`` calls it once, after a flush."""

    def abandon(self) -> None:
        """Forget, in a forked child, the parent's resources. Override it.

        Close inherited descriptors here, and send nothing on them: the parent goes on using
        them. No other thread of the parent exists in the child, and such a thread may hold locks.
        """

    def close(self) -> None:
        """Detach from all managers, flush within a second, and free the exporter's resources.

        Items that could not be sent within that second are dropped, and counted.

        Closing twice does nothing. The interpreter's exit closes the exporter, too.
        """
        with self._state_lock:
            if self._closed:
                return
            self._closed = True
            managers, self._managers = self._managers, ()
        for manager in managers:
            for event, hook in self._hooks.items():
                manager.unregister(event, hook)
        deadline = min(time.monotonic() + _CLOSE_SECONDS, _exit_deadline)
        try:
            if self._active:
                self.flush(max(0.0, deadline - time.monotonic()))
        finally:
            self._active = False
            before = [sender.lost for sender in self._senders]
            for sender in self._senders:
                sender.close(max(0.0, deadline - time.monotonic()))
            self._log_cut_off(before)
            _open_exporters.discard(self)
            try:
                self.release()
            finally:
                _forget_enabled(self)

    def _log_cut_off(self, before: Sequence[int]) -> None:
        """Say what ``close()`` left undelivered.

        Also where a failure was logged: the losses that it named are no longer right. And a backend
        that hangs, or a client that retries by itself, has not failed yet.
        """
        cut_off = {
            sender: sender.lost - lost for sender, lost in zip(self._senders, before, strict=True)
        }
        items = sum(count for sender, count in cut_off.items() if not sender.latest)
        if items:
            logger.warning(
                "The %s exporter was closed before %s delivered; %s lost.",
                self.name,
                "1 item was" if items == 1 else f"{items} items were",
                "it is" if items == 1 else "they are",
            )
        if any(count for sender, count in cut_off.items() if sender.latest):
            logger.warning(
                "The %s exporter was closed before its last numbers were delivered.", self.name
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} ({self._state()})>"

    def _state(self) -> str:
        if self._closed:
            return "closed"
        return "open" if self._active else "inert in a child process"

    @protected
    def _while_active(self, method: Hook) -> Hook:
        # Managers other than the default one keep their hooks in a forked child.
        @functools.wraps(method)
        def hook(context: HookContext) -> None:
            if self._active and not (len(self._managers) > 1 and self._has_seen(context)):
                method(context)

        return hook

    def _has_seen(self, context: HookContext) -> bool:
        """Whether another manager of the same execution has emitted this very event already."""
        last, self._last.context = getattr(self._last, "context", None), context
        return last is context


ExporterT = TypeVar("ExporterT", bound=Exporter)


def enable_once(
    kind: type[ExporterT], settings: Mapping[str, Any], build: Callable[[], ExporterT]
) -> ExporterT:
    """Attach an exporter to the default manager, one of its kind at a time.

    Args:
        kind: the exporter's class.
        settings: those asked for now, compared with those of the enabled exporter.
        build: makes the exporter when there is none yet.

    Returns:
        The new exporter, or the one that was enabled with the same settings.

    Raises:
        ExporterError: one is enabled with other settings. Its message names the settings that
            differ, and no values: they may be secrets.
    """
    with _enable_lock:
        if kind in _enabled:
            enabled_settings, exporter = _enabled[kind]
            assert isinstance(exporter, kind)
            differing = [
                name
                for name in sorted({*settings, *enabled_settings})
                if settings.get(name) != enabled_settings.get(name)
            ]
            if differing and not _enabled_stays.get():
                raise ExporterError(
                    f"{exporter!r} is enabled already, with another {' and '.join(differing)}. "
                    "Call its close() first to enable it again."
                )
        else:
            exporter = build()
            _enabled[kind] = dict(settings), exporter
        return exporter.attach()


@contextmanager
def enabled_stays() -> Iterator[None]:
    """Let an enabled exporter keep its settings, without an error, where others are asked for."""
    token = _enabled_stays.set(True)
    try:
        yield
    finally:
        _enabled_stays.reset(token)


def exporter_stats() -> dict[str, tuple[int, int]]:
    """Count the losses of each open exporter, and its failures to deliver. Cheap, never waits.

    Returns:
        ``{name: (dropped, errors)}``; exporters of one name are added up.

    Example:
        >>> class Quiet(Exporter):
        ...     name = "quiet"
        >>> with Quiet():
        ...     exporter_stats()["quiet"]
        (0, 0)
    """
    stats: dict[str, tuple[int, int]] = {}
    for exporter in tuple(_open_exporters):
        dropped, errors = exporter.counts()
        before = stats.get(exporter.name, (0, 0))
        stats[exporter.name] = before[0] + dropped, before[1] + errors
    return stats


def attached_to(
    manager: HookManager,
) -> list[tuple[Exporter, dict[str, Any] | None, list[Hook]]]:
    """List a manager's exporters, the settings of those that are enabled, and their hooks."""
    with _enable_lock:
        settings = {exporter: settings for settings, exporter in _enabled.values()}
    return [
        (exporter, settings.get(exporter), list(exporter._hooks.values()))
        for exporter in tuple(_open_exporters)
        if manager in exporter.managers
    ]


def in_child_process() -> bool:
    """Return whether this process is a worker, or was started by ``multiprocessing``.

    Such a child often imports the modules that enable exporters in its parent again.
    """
    # While a child imports __main__ it has no parent_process() yet; multiprocessing knows it by
    # this attribute, from which it tells the user of the missing main guard.
    is_importing_main = getattr(multiprocessing.current_process(), "_inheriting", False)
    return is_worker() or is_importing_main or multiprocessing.parent_process() is not None


def apply_once(variable: str, apply: Callable[[], object]) -> None:
    """Apply an environment variable: once per process, and in parents only.

    Args:
        variable: its name.
        apply: applies its value. Where this raises, the next call tries it again.
    """
    with _applying:
        if variable in _applied or in_child_process():
            return
        _applied.add(variable)  # already now: what is applied may itself call execute()
        try:
            apply()
        except BaseException:
            _applied.discard(variable)
            raise


_applied: set[str] = set()
_applying = threading.RLock()
_open_exporters: set[Exporter] = set()
_enabled: dict[type[Exporter], tuple[dict[str, Any], Exporter]] = {}
_enable_lock = threading.RLock()
_enabled_stays = ContextVar("enabled_stays", default=False)
_exit_deadline = float("inf")


def _forget_enabled(exporter: Exporter) -> None:
    with _enable_lock:
        if type(exporter) in _enabled and _enabled[type(exporter)][1] is exporter:
            del _enabled[type(exporter)]


@at_termination
@atexit.register
def close_all() -> None:
    """Close every open exporter, all at the same time, within two seconds."""
    global _exit_deadline
    _exit_deadline = deadline = time.monotonic() + _EXIT_SECONDS
    try:
        exporters = list(_open_exporters)
        for exporter in exporters:
            for sender in exporter._senders:
                sender.nudge()
        closing = [(exporter, _start(_close, exporter)) for exporter in exporters]
        for others, (exporter, thread) in zip(
            range(len(closing) - 1, -1, -1), closing, strict=True
        ):
            left = max(0.0, deadline - time.monotonic())
            if thread is None:  # then it is closed here, within a fair share of the time
                _exit_deadline = time.monotonic() + left / (others + 1)
                _close(exporter)
                continue
            thread.join(left)
            if thread.is_alive():
                logger.warning(
                    "%r did not close within %g seconds and is abandoned",
                    exporter,
                    _EXIT_SECONDS,
                )
    finally:
        _exit_deadline = float("inf")


def close_before_others_at_exit() -> None:
    """Have exporters close before the exit functions that are registered so far.

    Exit functions run last in, first out: an exporter that passes data to an object of the
    application's must be done when that object closes.
    """
    atexit.unregister(close_all)
    atexit.register(close_all)


def _close(exporter: Exporter) -> None:
    try:
        exporter.close()
    except Exception:
        logger.exception("%r failed to close", exporter)


def _start(function: Callable[[Exporter], None], exporter: Exporter) -> threading.Thread | None:
    """Call a function on a daemon thread; None where no thread can be started."""
    thread = threading.Thread(
        target=function, args=(exporter,), name=f"amorsize-close-{exporter.name}", daemon=True
    )
    try:
        thread.start()
    except RuntimeError:  # Python 3.12 starts none while the interpreter exits
        return None
    return thread


@in_forked_child
def _abandon_all_in_forked_child() -> None:
    global _applying, _enable_lock
    _applying, _enable_lock = threading.RLock(), threading.RLock()
    _enabled.clear()
    exporters = list(_open_exporters)
    _open_exporters.clear()
    for exporter in exporters:
        exporter._state_lock = threading.Lock()
        exporter._active = False
        exporter._closed = True
        exporter._managers = ()
        try:
            exporter.abandon()
        except Exception:
            logger.exception("%r failed to abandon its resources in a forked child", exporter)
