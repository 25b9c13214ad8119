"""The log of a run: one line at its end, at INFO, and warnings of its failures.

Independent of hooks and exporters. The loop makes a :class:`RunLog` for the first failure, and for
the line of the end where the log takes it; any other run only asks for the level.

A record has indexes, numbers and names of types, never an item, a result, or the text of an
exception of the function: that may quote its item. ``docs/logging.md`` lists the fields.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from amorsize.errors import ExecutionCancelledError, ItemTimeoutError, describe_exit
from amorsize.running import signals
from amorsize.workers import trace_link
from amorsize.workers.names import bounded
from amorsize.workers.observers import RUNS

if TYPE_CHECKING:
    from amorsize.engines.base import WorkerLost
    from amorsize.running.reporter import Reporter

logger = logging.getLogger(RUNS)

ONE_BY_ONE = 5
"""So many warnings of one kind are logged one by one in a run; after them the tenth, the hundredth
and so on. The end of the run then names the sums."""


class RunLog:
    """Writes one run to the log.

    Args:
        function: what the run calls its function.

    Attributes:
        report: the reporter of the run's events, which knows its ids; None while there is none.
    """

    def __init__(self, function: str) -> None:
        self._function = function
        self._counts = {"items_failed": 0, "worker_died": 0, "item_timeout": 0}
        self._failed_items = 0
        self._has_kept_back = False
        self.report: Reporter | None = None

    def items_failed(self, error: BaseException, *, items: int, index: int, chunk: int) -> None:
        """Warn that items of a chunk failed, the first of them with ``error``."""
        kind = bounded(type(error).__name__)
        self._warn_of(
            "items_failed",
            f"item {index} failed with {kind}"
            if items == 1
            else f"{items} items failed, the first, item {index}, with {kind}",
            error_type=kind,
            failed_items=items,
            item_index=index,
            chunk=chunk,
        )

    def worker_lost(self, error: BaseException, loss: WorkerLost, *, items: int) -> None:
        """Warn that a worker died, or was ended because its item took too long."""
        chunk = None if loss.chunk is None else loss.chunk.id
        if isinstance(error, ItemTimeoutError):
            event, text = "item_timeout", str(error)
        else:
            where = "" if loss.item_index is None else f" on item {loss.item_index}"
            where += "" if chunk is None else f" in chunk {chunk}"
            worker = f"worker process {loss.pid}" if loss.pid else "a worker process"
            how = describe_exit(loss.exit_code)
            event, text = "worker_died", f"{worker} {how}{where}".removesuffix(",")
        self._warn_of(
            event,
            text,
            error_type=bounded(type(error).__name__),
            failed_items=items,
            item_index=loss.item_index,
            chunk=chunk,
            pid=loss.pid or None,
            exit_code=loss.exit_code,
        )

    def run_failed(self, status: str, error: BaseException, *, items: int) -> None:
        """Warn that the run ends early, for a reason that was not logged yet."""
        kind, done = bounded(type(error).__name__), f"after {items} completed items"
        if status == "timeout":
            text = str(error)
        elif status == "cancelled":
            text = f"the run was cancelled by {_cause_of(error)}, {done}"
        else:
            text = f"the run failed with {kind}, {done}"
        event = {"timeout": "run_timeout", "cancelled": "run_cancelled"}.get(status, "run_failed")
        self._write(logging.WARNING, event, text, error_type=kind, items=items)

    def run_ended(
        self,
        status: str,
        error: BaseException | None,
        *,
        items: int,
        total: int | None,
        seconds: float,
        executor: str | None,
        n_jobs: int | None,
        item_seconds: float | None,
        slowest: tuple[float, int] | None,
    ) -> None:
        """Write the line of the run, at INFO; before it a warning, where some were kept back.

        Args:
            status, items, seconds: as in ``POST_EXECUTE``.
            error: what ended it early.
            total: items of the input, where known.
            executor, n_jobs: of the last plan; None where none was made.
            item_seconds: mean seconds per item inside the function.
            slowest: the longest chunk: its seconds, and its id.
        """
        deaths, timeouts = self._counts["worker_died"], self._counts["item_timeout"]
        sums = {
            "failed_items": self._failed_items,
            "deaths": deaths,
            "item_timeouts": timeouts,
            "items": items,
        }
        if self._has_kept_back:
            self._write(
                logging.WARNING,
                "run_failures",
                f"in all, {self._failed_items} items failed, {deaths} workers died and {timeouts} "
                "items took too long; not each was logged",
                **sums,
            )
        of_total = "" if total is None or total == items else f" of {total}"
        workers = "1 worker" if n_jobs == 1 else f"{n_jobs} workers"
        on = "" if executor is None else f" on {executor} ({workers})"
        each = "" if item_seconds is None else f", {item_seconds:.3g} s per item"
        longest = "" if slowest is None else f", slowest chunk {slowest[0]:.3g} s"
        self._write(
            logging.INFO,
            "run_ended",
            f"status {status}, {items}{of_total} items ({self._failed_items} failed) in "
            f"{seconds:.3g} s{on}{each}{longest}",
            **sums,
            status=status,
            total_items=total,
            duration_seconds=seconds,
            executor=executor,
            n_jobs=n_jobs,
            item_seconds=item_seconds,
            slowest_chunk_seconds=None if slowest is None else slowest[0],
            slowest_chunk=None if slowest is None else slowest[1],
            error_type=None if error is None else bounded(type(error).__name__),
        )

    def _warn_of(self, event: str, text: str, *, failed_items: int, **fields: Any) -> None:
        self._failed_items += failed_items
        self._counts[event] += 1
        count = self._counts[event]
        if count <= ONE_BY_ONE or _is_power_of_ten(count):
            self._write(logging.WARNING, event, text, failed_items=failed_items, **fields)
        else:
            self._has_kept_back = True

    def _write(self, level: int, event: str, text: str, **fields: Any) -> None:
        if not logger.isEnabledFor(level):
            return
        report = self.report
        extra = {
            "event": event,
            "function": self._function,
            "execution_id": None if report is None else report.execution_id,
            **fields,
        }
        # Instrumentation of logging reads the current span: the execution's may have ended.
        with trace_link.as_current(None if report is None else report.span_ids()):
            try:
                logger.log(
                    level,
                    "%s: %s",
                    self._function,
                    text,
                    extra={f"amorsize_{name}": value for name, value in extra.items()},
                )
            except Exception as error:  # of a filter of the application's: no run fails by its log
                logger.debug("A line of a run was not logged: %r", error)


def _cause_of(cancelled: BaseException) -> str:
    if isinstance(cancelled, signals.Terminated) or signals.is_terminating():
        return "SIGTERM"
    return "its consumer" if isinstance(cancelled, ExecutionCancelledError) else "Ctrl-C"


def _is_power_of_ten(count: int) -> bool:
    return str(count).rstrip("0") == "1"
