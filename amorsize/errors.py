"""The exceptions that amorsize raises.

::

    AmorsizeError
    ├── InvalidValueError (ValueError)        an argument of the right type, out of its range
    ├── InvalidTypeError (TypeError)          an argument of the wrong type
    ├── MissingExtraError (ImportError)       a feature whose optional package is not installed
    ├── ExporterError (RuntimeError)          an exporter cannot be enabled
    │   └── PortInUseError (OSError)          its port is taken
    ├── ExecutionError (RuntimeError)         a run failed for a reason outside the user's function
    │   ├── WorkerDiedError                   a worker process was killed, or exited
    │   ├── ExecutorBrokenError               a caller-owned executor no longer accepts work
    │   ├── TransportError                    something cannot be pickled, or unpickled
    │   │   └── UnpicklableItemError          an item of the input
    │   ├── ExecutionCancelledError           the consumer of a stream went away
    │   ├── RemoteError                       a worker's exception that cannot be rebuilt here
    │   ├── FunctionExitError                 the function raised SystemExit or KeyboardInterrupt
    │   ├── ExecutionTimeoutError (TimeoutError)    the run took longer than ``timeout=``
    │   └── ItemTimeoutError (TimeoutError)   an item took longer than ``item_timeout=``
    └── ContractError (AssertionError)        recorded events break the contract (amorsize.testing)

Exceptions that the user's own function raises are not in this tree: they pass unchanged.
"""

from __future__ import annotations


class AmorsizeError(Exception):
    """The base of every exception that amorsize itself raises."""

    def __reduce__(self) -> tuple[object, ...]:
        # Defined here, because Dask pickles classes with no __reduce__ of their own differently.
        return type(self), self.args, vars(self) or None


class InvalidValueError(AmorsizeError, ValueError):
    """An argument has the right type and a value that is not allowed."""


class InvalidTypeError(AmorsizeError, TypeError):
    """An argument has a type that is not allowed."""


class MissingExtraError(AmorsizeError, ImportError):
    """A feature needs an optional package that is not installed."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs the package '{package}', which is not installed. "
            f"Install it with: pip install 'amorsize[{extra}]'"
        )
        self.feature = feature
        self.package = package
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str, str]]:
        return type(self), (self.feature, self.package, self.extra)


class ExporterError(AmorsizeError, RuntimeError):
    """An exporter cannot be enabled as asked."""


class PortInUseError(ExporterError, OSError):
    """The port of an exporter is taken."""


class ExecutionError(AmorsizeError, RuntimeError):
    """A run failed for a reason outside the user's function.

    Attributes:
        problem: what is wrong, where the message also says what to do about it; else empty.
    """

    problem = ""


class WorkerDiedError(ExecutionError):
    """A worker process was killed, or exited, while it had work.

    Attributes:
        pid: the process id of the worker; 0 when unknown, which only occurs with Dask.
        exit_code: its exit code; negative for a signal, as in ``subprocess``.
        chunk_id: the chunk in flight, or None when there was none.
        item_index: the index in the input of the item in flight, or None when unknown.
    """

    def __init__(
        self,
        *,
        pid: int,
        exit_code: int | None,
        chunk_id: int | None = None,
        item_index: int | None = None,
        detail: str = "",
        hint: str = "",
    ) -> None:
        where = "" if chunk_id is None else f" in chunk {chunk_id}"
        if item_index is not None:
            where = f" on item {item_index}{where}"
        # As Linux numbers it: on Windows there is no signal.SIGKILL.
        lost = " The kernel does so when memory is short." if exit_code == -9 else ""
        if chunk_id is not None:
            lost += " Its results of that chunk are lost."
        worker = f"worker process {pid}" if pid else "a worker process"
        problem = (
            f"{worker} {describe_exit(exit_code)}{where}{' (' + detail + ')' if detail else ''}"
        )
        super().__init__(f"{problem}.{lost}{' ' + hint if hint else ''}")
        self.problem = problem
        self.pid = pid
        self.exit_code = exit_code
        self.chunk_id = chunk_id
        self.item_index = item_index
        self.detail = detail
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_worker_died, (
            self.pid,
            self.exit_code,
            self.chunk_id,
            self.item_index,
            self.detail,
            self.hint,
        )


class ExecutorBrokenError(ExecutionError):
    """A caller-owned executor broke, or was shut down, during the run or before it.

    Its own exception is the ``__cause__``.
    """


class TransportError(ExecutionError):
    """The function, an item or a result cannot be sent to another process."""


class UnpicklableItemError(TransportError):
    """An item of the input cannot be sent to a worker process.

    Attributes:
        index: its index in the input.
    """

    def __init__(self, index: int, kind: str, cause: str) -> None:
        super().__init__(
            f"item {index}, a {kind}, cannot be sent to a worker process: it cannot be pickled "
            f"({cause}). Pass executor='thread', or an input of picklable items."
        )
        self.index = index
        self.kind = kind
        self.cause = cause
        self.problem = f"item {index}, a {kind}, cannot be pickled: {cause}"

    def __reduce__(self) -> tuple[type[UnpicklableItemError], tuple[int, str, str]]:
        return type(self), (self.index, self.kind, self.cause)


class ExecutionCancelledError(ExecutionError):
    """The run was cancelled: the consumer of a stream closed it before its end."""


class RemoteError(ExecutionError):
    """A worker's exception that cannot be rebuilt in this process; its text is kept."""


class FunctionExitError(ExecutionError):
    """The function raised SystemExit, KeyboardInterrupt or GeneratorExit in a worker."""


class ExecutionTimeoutError(ExecutionError, TimeoutError):
    """The run took longer than ``timeout=`` allows."""


class ItemTimeoutError(ExecutionError, TimeoutError):
    """An item took longer than ``item_timeout=`` allows."""


class ContractError(AmorsizeError, AssertionError):
    """A sequence of recorded events breaks the event contract."""


def describe_exit(exit_code: int | None) -> str:
    """Describe how a process ended.

    >>> describe_exit(-9)
    'was killed by signal 9 (SIGKILL)'
    >>> describe_exit(3)
    'exited with code 3'
    """
    if exit_code is None:
        return "ended, its exit code is unknown,"
    if exit_code >= 0:
        return f"exited with code {exit_code}"
    try:
        import signal  # most programs never need it

        name = signal.Signals(-exit_code).name
    except ValueError:
        name = "unknown"
    return f"was killed by signal {-exit_code} ({name})"


def _rebuild_worker_died(
    pid: int,
    exit_code: int | None,
    chunk_id: int | None,
    item_index: int | None,
    detail: str,
    hint: str,
) -> WorkerDiedError:
    return WorkerDiedError(
        pid=pid,
        exit_code=exit_code,
        chunk_id=chunk_id,
        item_index=item_index,
        detail=detail,
        hint=hint,
    )


def input_shrank() -> RuntimeError:
    """Make the error for a function that removes items from the list that is its input."""
    return RuntimeError("the input, a list, lost items while the function went over it")
