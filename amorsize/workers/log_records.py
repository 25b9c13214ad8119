"""Log records that the user's function makes in a worker process, handled in the parent.

In the worker, loggers have the levels of the parent's, and a handler on the root logger keeps the
records. They are returned with the chunk's outcome, and the parent's own loggers handle them.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterable
from typing import Any

from amorsize.workers import trace_link

MAX_RECORDS = 1000
"""Records kept per chunk; one further record says how many more there were."""

MAX_TEXT = 16_384
"""Characters kept per message or traceback."""

_TRACE = "_amorsize_trace"

_FORMATTER = logging.Formatter()


def read_levels() -> dict[str, int]:
    """Read the levels of this process' loggers, by name; ``""`` is the root."""
    levels = {"": logging.root.level}
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level:
            levels[name] = logger.level
    # Records that logging.disable() drops need not be made.
    levels[""] = max(levels[""], logging.root.manager.disable + 1)
    return levels


class RecordKeeper(logging.Handler):
    """Keeps the records of the chunk in progress, ready to be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[dict[str, Any]] = []
        self._left_out = 0
        self.levels: dict[str, int] = {}
        """The levels that were last taken over from the parent."""

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._records) >= MAX_RECORDS:
            self._left_out += 1
            return
        try:
            self._records.append(_packable(record))
        except Exception:
            self.handleError(record)

    def take(self) -> list[dict[str, Any]]:
        """Return the records kept so far, and drop them."""
        records, self._records = self._records, []
        if self._left_out:
            notice = logging.LogRecord(
                __name__,
                logging.WARNING,
                __file__,
                0,
                "%d further log records of this chunk were left out: %d are kept per chunk",
                (self._left_out, MAX_RECORDS),
                None,
            )
            self._left_out = 0
            records.append(_packable(notice))
        return records


def keep_records(levels: dict[str, int], keeper: RecordKeeper) -> None:
    """Take over the parent's levels, and keep the records that pass them."""
    if keeper not in logging.root.handlers:
        logging.root.addHandler(keeper)
    if levels == keeper.levels:
        return
    for name in keeper.levels.keys() - levels.keys():
        logging.getLogger(name).setLevel(logging.NOTSET)
    for name, level in levels.items():
        logging.getLogger(name or None).setLevel(level)
    keeper.levels = levels


def replay(records: Iterable[dict[str, Any]], *, worker_id: int | None, chunk_id: int) -> None:
    """Have this process' loggers of the same names handle records.

    Each record gets two more attributes: ``amorsize_worker`` and ``amorsize_chunk``.
    """
    for state in records:
        # Instrumentation of logging reads the current span when a record is made, or handled.
        with trace_link.as_current(state.pop(_TRACE, None)):
            record = logging.makeLogRecord(state)
            record.amorsize_worker = worker_id
            record.amorsize_chunk = chunk_id
            logger = logging.getLogger(record.name)
            if logger.isEnabledFor(record.levelno):
                logger.handle(record)


def _packable(record: logging.LogRecord) -> dict[str, Any]:
    state = dict(vars(record))
    if (ids := trace_link.current_ids()) is not None:
        state[_TRACE] = ids
    try:
        message = record.getMessage()
    except Exception as error:
        message = f"{record.msg!r} (cannot be formatted: {type(error).__name__}: {error})"
    state |= {"msg": message[:MAX_TEXT], "args": None, "exc_info": None}
    if record.exc_info and not record.exc_text:
        state["exc_text"] = _FORMATTER.formatException(record.exc_info)[-MAX_TEXT:]
    return {name: value for name, value in state.items() if _is_picklable(value)}


def _is_picklable(value: Any) -> bool:
    if value is None or type(value) in (str, int, float, bool):
        return True
    try:
        pickle.dumps(value)
    except Exception:
        return False
    return True
