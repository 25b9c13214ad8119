"""The base class of exporters: attaching to hooks, closing when the interpreter exits."""

from __future__ import annotations

import atexit
import functools
import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, Self, TypeVar

from amorsize.errors import ExporterError, InvalidValueError
from amorsize.exporters.sender import Sender
from amorsize.hooks import Hook, HookContext, HookEvent, HookManager, get_default_manager
from amorsize.hooks.entries import Registration
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
    amorsize's own workers): it receives nothing there and must open nothing, see :attr:`active`. A
    warning says so where such a process runs an execution. :func:`enable_in_child_process` and
    ``in_children`` make exceptions. It is closed when the interpreter exits, unless it was before;
    all exporters together have two seconds then.

    Network traffic belongs on a background thread: see :meth:`new_sender`.

    Args:
        in_children: whether it is active in children that ``multiprocessing`` has started, and goes
            on in forked ones: see :meth:`restart`. Never in workers.

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

    remedy: ClassVar[str] = "Enable it in this process, after amorsize.enable_in_child_process()"
    """The advice where it is inert in a process that runs executions."""

    def __init__(self, *, in_children: bool = False) -> None:
        self._state_lock = threading.Lock()
        self._in_children = in_children
        self._active = not (is_worker() if in_children else in_child_process())
        self._is_inert = not self._active
        self._closed = False
        self._managers: tuple[HookManager, ...] = ()
        self._reporting: Registration | None = None
        self._last = threading.local()
        self._senders: tuple[Sender[Any], ...] = ()
        self._closed_beside: dict[str, tuple[int, int]] = {}
        self._hooks = {
            event: self._while_active(getattr(self, event.value))
            for event in HookEvent
            if getattr(type(self), event.value) is not getattr(Exporter, event.value)
        }
        _open(self)
        if self._active:
            close_at_exit_of_children()

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
                self._report_later(manager)
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

    def restart(self) -> None:
        """Begin again in a forked child, with nothing of the parent's. Override it.

        Called after :meth:`abandon`, on an exporter that was made with ``in_children`` and is
        attached to the default manager, which it is attached to again afterwards. Start no
        thread, and send nothing: most children run no execution.
        """
        self._senders = ()

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
            _remove(self)
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
            if not self._active:
                self._report_inert(context)
            elif not (len(self._managers) > 1 and self._has_seen(context)):
                method(context)

        return hook

    def _report_later(self, manager: HookManager) -> None:
        """Have the next execution that a manager observes report that the exporter is inert."""
        if not is_worker():  # its parent reports its chunks
            _inert_exporters.add(self)
            self._reporting = manager.register(HookEvent.PRE_EXECUTE, self._report_inert)

    def _report_inert(self, context: HookContext) -> None:
        reporting, self._reporting = self._reporting, None
        if reporting is not None:
            reporting.close()
        is_inert, self._is_inert = self._is_inert, False
        # A process of an executor becomes a worker after it has imported the module that enables
        # the exporter; and another exporter of the kind may have been enabled in a forked child.
        _, enabled = _enabled.get(type(self), (None, self))
        if is_inert and not is_worker() and not enabled.active:
            warn_inert(f"The {self.name} exporter is", self.remedy)

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


def exporter_stats(beside: Exporter | None = None) -> dict[str, tuple[int, int]]:
    """Count the losses of each open exporter, and its failures to deliver. Cheap, never waits.

    Args:
        beside: also count exporters that were closed while this one was open.

    Returns:
        ``{name: (dropped, errors)}``; exporters of one name are added up.

    Example:
        >>> class Quiet(Exporter):
        ...     name = "quiet"
        >>> with Quiet():
        ...     exporter_stats()["quiet"]
        (0, 0)
    """
    with _stats_lock:
        stats = {} if beside is None else dict(beside._closed_beside)
        for exporter in _open_exporters:
            _add_counts(stats, exporter)
    return stats


def _add_counts(stats: dict[str, tuple[int, int]], exporter: Exporter) -> None:
    dropped, errors = exporter.counts()
    before = stats.get(exporter.name, (0, 0))
    stats[exporter.name] = before[0] + dropped, before[1] + errors


def _open(exporter: Exporter) -> None:
    with _stats_lock:
        _open_exporters.add(exporter)


def _remove(exporter: Exporter) -> None:
    """Take an exporter from the open ones; those beside it keep its counts."""
    with _stats_lock:
        if exporter in _open_exporters:
            _open_exporters.discard(exporter)
            for other in _open_exporters:
                _add_counts(other._closed_beside, exporter)


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


def enable_in_child_process() -> None:
    """Let exporters be enabled in this process, although ``multiprocessing`` has started it.

    Call it in a child that runs executions of its own, before ``enable_*()``: in the function that
    the child runs, or in a module that the parent does not import. Exporters of the parent stay
    the parent's. The environment variable ``AMORSIZE_EXPORTERS_IN_CHILDREN=1`` says the same of
    all children. A worker of an execution never has exporters.

    Example:
        >>> import amorsize
        >>> def serve(requests):  # in a multiprocessing.Process
        ...     amorsize.enable_in_child_process()
        ...     amorsize.enable_prometheus(port=0)
        ...     for request in requests:
        ...         amorsize.execute(abs, request)
    """
    global _enabled_in
    _enabled_in = os.getpid()


def in_child_process() -> bool:
    """Return whether exporters are inert: in a worker, or in a child of ``multiprocessing``.

    Such a child often imports the modules that enable exporters in its parent again.

    Raises:
        InvalidValueError: the environment variable about children is wrong.
    """
    if is_worker():
        return True
    if _enabled_in == os.getpid() or children_have_exporters():
        return False
    # While a child imports __main__ it has no parent_process() yet; multiprocessing knows it by
    # this attribute, by which it notices a missing main guard.
    is_importing_main = getattr(multiprocessing.current_process(), "_inheriting", False)
    return is_importing_main or multiprocessing.parent_process() is not None


def apply_once(
    variable: str, apply: Callable[[], object], *, ignored: Callable[[], object]
) -> None:
    """Apply an environment variable: once per process.

    Args:
        variable: its name.
        apply: applies its value. Where this raises, the next call tries it again.
        ignored: called instead, at every call, in a child process that may not have exporters.
    """
    with _applying:
        if variable in _applied:
            return
        if in_child_process():
            ignored()
            return
        _applied.add(variable)  # already now: what is applied may itself call execute()
        try:
            apply()
        except BaseException:
            _applied.discard(variable)
            raise


_applied: set[str] = set()
_applying = threading.RLock()


def children_have_exporters() -> bool:
    """Return whether the environment lets children enable exporters.

    Raises:
        InvalidValueError: the variable is neither 1 nor 0.
    """
    value = os.environ.get(CHILDREN_VARIABLE, "").strip()
    if value not in ("", "0", "1"):
        raise InvalidValueError(
            f"the environment variable {CHILDREN_VARIABLE} must be 1, to enable exporters in "
            f"children of multiprocessing, or 0; it is {value!r}"
        )
    return value == "1"


def warn_inert(what: str, remedy: str) -> None:
    """Log that executions of this process are not observed.

    Args:
        what: the exporters that are inert, with their verb.
        remedy: what to do.
    """
    parent = multiprocessing.parent_process()
    logger.warning(
        "%s inert in this process (%d, a child of %s), whose executions are not observed. %s.",
        what,
        os.getpid(),
        os.getppid() if parent is None else parent.pid,
        remedy,
    )


CHILDREN_VARIABLE = "AMORSIZE_EXPORTERS_IN_CHILDREN"

_enabled_in: int | None = None
"""The process in which exporters can be enabled although it is a child."""

_open_exporters: set[Exporter] = set()
_inert_exporters: set[Exporter] = set()
_enabled: dict[type[Exporter], tuple[dict[str, Any], Exporter]] = {}
_enable_lock = threading.RLock()
_stats_lock = threading.RLock()  # a signal handler may close an exporter, too
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


def close_at_exit_of_children() -> None:
    """Have exporters close when a child ends that runs no exit functions.

    Such are forked children of ``multiprocessing``, and the processes of celery's pool.
    """
    global _registered, _registered_at_celery
    from multiprocessing import util

    signals = sys.modules.get("celery.signals")
    if signals is not None and not _registered_at_celery:
        _registered_at_celery = True
        signals.worker_process_shutdown.connect(_close_in_pool_of_celery, weak=False)
    if not _registered:
        _registered = True  # and in children that are forked from here
        util.register_after_fork(
            close_all, lambda _: util.Finalize(None, close_all, exitpriority=0)
        )
        if multiprocessing.parent_process() is not None:  # this child has begun already
            util.Finalize(None, close_all, exitpriority=0)


_registered = False
_registered_at_celery = False


def _close_in_pool_of_celery(**_: object) -> None:
    close_all()


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
    global _applying, _enable_lock, _stats_lock
    _applying, _enable_lock, _stats_lock = (threading.RLock() for _ in range(3))
    exporters = list(_open_exporters)
    for exporter in exporters:
        exporter._state_lock = threading.Lock()
        exporter._active = False
        try:
            exporter.abandon()
        except Exception:
            logger.exception("%r failed to abandon its resources in a forked child", exporter)
    default = get_default_manager()
    reported = {each for each in exporters if default in each._managers} | _inert_exporters
    going_on = {each for each in reported if each._in_children and not is_worker()}
    for kind, (_, exporter) in list(_enabled.items()):
        if exporter not in going_on:
            del _enabled[kind]
    _open_exporters.intersection_update(going_on)
    for exporter in {*exporters, *reported}:
        exporter._managers = ()
        exporter._reporting = None
        exporter._closed = exporter not in going_on
        exporter._is_inert = exporter._closed
    # The default manager is empty, and has a lock of its own: its handler was registered before.
    for exporter in reported:
        if exporter in going_on:
            _go_on(exporter)
        else:
            exporter._report_later(default)
    if _applied and children_have_exporters():
        _applied.clear()


def _go_on(exporter: Exporter) -> None:
    try:
        exporter.restart()
    except Exception:
        logger.exception("%r failed to begin again in a forked child", exporter)
    else:
        exporter._active = True
        exporter.attach()
