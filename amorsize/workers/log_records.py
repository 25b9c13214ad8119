"""Log records that the user's function makes in a worker process, brought home to the parent.

In the worker a handler on the root logger keeps them, beside the levels that the parent's loggers
have; they travel with the chunk's outcome, and the parent hands them to its own loggers.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterable
from typing import Any

from amorsize.workers import trace_link

MAX_RECORDS = 1000
"""Records kept a chunk; what is more is counted and said in one further record."""

MAX_TEXT = 16_384
"""Characters kept of a message or a traceback."""

_TRACE = "_amorsize_trace"

_FORMATTER = logging.Formatter()


def read_levels() -> dict[str, int]:
    """Read the levels of this process' loggers, by name; ``""`` is the root."""
    levels = {"": logging.root.level}
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level:
            levels[name] = logger.level
    # What is disabled altogether need not be made, nor sent.
    levels[""] = max(levels[""], logging.root.manager.disable + 1)
    return levels


class RecordKeeper(logging.Handler):
    """Keeps the records of the chunk in progress, ready to be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[dict[str, Any]] = []
        self._left_out = 0
        self.levels: dict[str, int] = {}
        """What was last taken over from the parent."""

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._records) >= MAX_RECORDS:
            self._left_out += 1
            return
        try:
            self._records.append(_packable(record))
        except Exception:
            self.handleError(record)

    def take(self) -> list[dict[str, Any]]:
        """Return the records kept so far, and begin anew."""
        records, self._records = self._records, []
        if self._left_out:
            said = logging.LogRecord(
                __name__,
                logging.WARNING,
                __file__,
                0,
                "%d further log records of this chunk were left out: %d are kept a chunk",
                (self._left_out, MAX_RECORDS),
                None,
            )
            self._left_out = 0
            records.append(_packable(said))
        return records


def keep_records(levels: dict[str, int], keeper: RecordKeeper) -> None:
    """Take over the parent's levels, and keep what passes them."""
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
    """Hand records to the loggers of this process that they were made for.

    Each has two attributes more: ``amorsize_worker`` and ``amorsize_chunk``.
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
    return {name: value for name, value in state.items() if _travels(value)}


def _travels(value: Any) -> bool:
    if value is None or type(value) in (str, int, float, bool):
        return True
    try:
        pickle.dumps(value)
    except Exception:
        return False
    return True
