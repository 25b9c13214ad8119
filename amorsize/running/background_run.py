"""A run on a thread of its own, for a consumer on another thread: streams, and coroutines."""

from __future__ import annotations

import atexit
import contextvars
import sys
import threading

from amorsize.errors import ExecutionCancelledError
from amorsize.planning.plan import RunChunks
from amorsize.running.loop import Run
from amorsize.running.sinks import StreamBuffer
from amorsize.workers import in_forked_child

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from amorsize.running.sinks import Sink

CLOSE_SECONDS = 1.0
"""How long a consumer that goes away waits for the run to end."""


class Driver:
    """Drives one run, with the context variables of the code that made it.

    Args:
        run: the run.
        sink: where the results go.
        on_end: called from the driver's thread when the run is over.

    Attributes:
        error: what the run failed with, once it is over.
    """

    def __init__(self, run: Run, sink: Sink, *, on_end: Callable[[], None] = lambda: None) -> None:
        self._run = run
        self._sink = sink
        self._on_end = on_end
        self.error: BaseException | None = None
        self._thread = threading.Thread(
            target=contextvars.copy_context().run,
            args=(self._drive,),
            name="amorsize-stream",
            daemon=True,
        )

    def start(self) -> None:
        """Begin the run.

        Raises ExecutionError where it can have no thread, and RuntimeError where nothing runs any
        more.
        """
        if sys.is_finalizing():  # it would start, and never run
            raise RuntimeError("no stream can run any more: the interpreter is shutting down")
        try:
            self._thread.start()
        except RuntimeError as error:
            from amorsize.engines.thread import cannot_start_thread

            raise cannot_start_thread(error, "use execute() in place of a stream") from error

    @property
    def started(self) -> bool:
        """Whether the run has begun."""
        return self._thread.ident is not None

    def ask_to_cancel(self) -> None:
        """Have the run end early, and return at once."""
        self._sink.cancel()
        self._run.wake()

    def cancel(self) -> None:
        """Have the run end early, and wait for that for a second."""
        self.ask_to_cancel()
        if not self.started or self._thread is threading.current_thread():
            return  # it has not begun; or it closes its own stream, in a hook or as garbage
        # A run that cannot be stopped (its input blocks) must not hold the consumer.
        self._thread.join(CLOSE_SECONDS)
        self.abandon()

    def abandon(self) -> None:
        """Report the end of a cancelled run that does not end by itself."""
        if self._thread.is_alive():
            self._run.abandon()
        _open_drivers.discard(self.cancel)

    def _drive(self) -> None:
        run = self._run
        run.on_plan = self._end_with_program
        try:
            with run:
                if isinstance(self._sink, StreamBuffer):
                    self._sink.on_room = run.wake
                run.drive()
        except BaseException as caught:
            self.error = caught
        finally:
            _open_drivers.discard(self.cancel)
            cancelled = isinstance(self.error, ExecutionCancelledError)
            # A consumer that is gone knows.
            self._sink.end(None if cancelled else self.error)
            # Objects that know each other would keep the user's data until they are collected.
            if isinstance(self._sink, StreamBuffer):
                self._sink.on_room = lambda: None
            self._on_end()

    def _end_with_program(self, plan: RunChunks) -> None:
        """Have the run end with the program."""
        _cancel_at_exit(self.cancel, processes=plan.choice.engine.type == "process")


_open_drivers: set[Callable[[], None]] = set()
in_forked_child(_open_drivers.clear)  # their threads are the parent's


def _cancel_at_exit(cancel: Callable[[], None], *, processes: bool) -> None:
    """Have a run that is open when the interpreter exits report its end.

    Exit functions run last in, first out: this one before those that end workers and exporters.
    """
    if processes:
        import amorsize.engines.process.pool  # noqa: F401  # registers its exit function first
    _open_drivers.add(cancel)
    atexit.unregister(_cancel_open_drivers)
    atexit.register(_cancel_open_drivers)


def _cancel_open_drivers() -> None:
    for cancel in list(_open_drivers):
        cancel()
