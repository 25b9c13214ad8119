"""The meaning of ``executor=``: an engine of amorsize's own by its name, or an external one."""

from __future__ import annotations

from amorsize.workers.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from concurrent.futures import Executor
    from typing import Any, TypeAlias

    from distributed import Client

    AnyExecutor: TypeAlias = str | Executor | Client | None

TITLES = {
    "serial": "Serial",
    "thread": "Threads",
    "process": "Processes",
    "dask": "Dask",
    "custom": "The executor that was passed",
}
"""Every type of engine, and what explanations call it."""

NAMES = tuple(name for name in TITLES if name != "custom")
"""The types that ``executor=`` can name."""

_HOW = (
    "Make one first, as in client = distributed.Client() for processes of this machine, or "
    'distributed.Client("tcp://scheduler:8786"); it is then found, or pass it as executor=client.'
)


class Engine(Record):
    """The engine that a run is to use.

    Attributes:
        type: ``serial``, ``thread``, ``process``, ``dask`` or ``custom``.
        external: the Dask client or the executor that the caller owns; None for our own engines.
        workers: how many chunks an external one runs at once, or None when that is not known.
        instead_of: the type that the caller named, where this process cannot have it; else "".
    """

    type: str
    external: Any = None
    workers: int | None = None
    instead_of: str = ""


def resolve(executor: Any) -> Engine | None:
    """Find out what an ``executor=`` argument stands for; None when the choice is ours.

    Raises:
        InvalidValueError: a name that is not known; ``"dask"`` without a client; a client that
            is closed or asynchronous.
        InvalidTypeError: something else.
        MissingExtraError: ``"dask"`` where it is not installed.

    >>> resolve("thread").type
    'thread'
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> resolve(ThreadPoolExecutor(3)).workers
    3
    """
    if executor is None or isinstance(executor, Engine):
        return executor
    from amorsize.errors import InvalidTypeError, InvalidValueError

    if isinstance(executor, str):
        if executor == "dask":
            return _of_client(_current_client())
        if executor in NAMES:
            return Engine(executor)
        raise InvalidValueError(
            f"executor is {executor!r}, which is not a known name; give one of {_known()}, a "
            "concurrent.futures.Executor, a Dask client, or None to have it chosen."
        )
    if _is_dask_client(executor):
        return _of_client(executor)
    if not isinstance(executor, type) and callable(getattr(executor, "submit", None)):
        return Engine("custom", executor, _workers_of(executor))
    raise InvalidTypeError(
        f"executor is {_shown(executor)}, which cannot be used; give one of {_known()}, a "
        "concurrent.futures.Executor, a Dask client, or None to have it chosen."
    )


def _is_dask_client(value: Any) -> bool:
    """Say whether a value has what a run calls of a Dask client, and no other executor has."""
    return not isinstance(value, type) and all(
        callable(getattr(value, name, None)) for name in ("submit", "nthreads", "subscribe_topic")
    )


def _current_client() -> Any:
    from amorsize.errors import InvalidValueError, MissingExtraError

    try:
        import distributed
    except ImportError as error:
        raise MissingExtraError("executor='dask'", "distributed", "dask") from error
    try:
        return distributed.Client.current()  # type: ignore[no-untyped-call]  # theirs
    except ValueError as error:
        raise InvalidValueError(
            f"executor is 'dask', and there is no Dask client. {_HOW}"
        ) from error


def _of_client(client: Any) -> Engine:
    from amorsize.errors import InvalidValueError

    if client.asynchronous:
        raise InvalidValueError(
            "executor is an asynchronous Dask client, for which execute() and stream() cannot "
            f"wait; give a synchronous one, and call from outside of its event loop. {_HOW}"
        )
    if client.status != "running":
        raise InvalidValueError(
            f"executor is a Dask client whose status is {client.status!r}, not 'running'. {_HOW}"
        )
    return Engine("dask", client, sum(client.nthreads().values()))


def _workers_of(executor: Any) -> int | None:
    client = getattr(executor, "_client", None)  # of Dask's client.get_executor()
    if _is_dask_client(client):
        return _of_client(client).workers
    workers = getattr(executor, "_max_workers", None)  # the standard library's, loky's
    return workers if type(workers) is int and workers > 0 else None


def _known() -> str:
    return ", ".join(repr(name) for name in NAMES)


def _shown(value: Any) -> str:
    kind = type(value).__qualname__
    if isinstance(value, type):
        return f"the class {value.__qualname__} (make an instance of it)"
    if isinstance(value, bool | int | float):
        return f"{value!r} ({kind})"
    return f"an object of type {kind}"
