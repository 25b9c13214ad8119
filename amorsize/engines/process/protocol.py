"""What crosses between this process and a worker process, and how it is packed.

A message is a small header and, where there is one, a payload that was pickled on its own, so
that a payload which does not unpickle never damages the header it came with.

::

    parent -> worker   ("task", key, settings)          payload: the function, by cloudpickle
                       ("chunk", key, id, start, size)  payload: the items
                       ("end", key)
    worker -> parent   ("ready", epoch)
                       ("loaded", key)                  the function is there
                       ("started", key, hostname, thread name)
                       ("outcome", key, ...)            payload: the results, if any
                       ("unusable", key, text)          the function did not unpickle
"""

from __future__ import annotations

import io
import logging
import pickle
import sys
from collections.abc import Callable, Sequence
from functools import cache
from types import CodeType
from typing import TYPE_CHECKING, Any

from amorsize.errors import RemoteError, TransportError, UnpicklableItemError
from amorsize.workers.chunk import Chunk, ChunkOutcome, Failure, add_note

if TYPE_CHECKING:
    from amorsize.engines.process.connection import Channel

logger = logging.getLogger(__name__)


def send(connection: Channel, header: tuple[Any, ...], payload: bytes = b"") -> None:
    """Send one message; blocks until it is in the socket's buffer."""
    connection.send(pickle.dumps(header, 5), payload)


def receive(connection: Channel) -> tuple[tuple[Any, ...], bytearray]:
    """Receive one message; raises EOFError or OSError when the other side is gone."""
    header, payload = connection.receive()
    return pickle.loads(header), payload


def dump(value: Any) -> bytes:
    """Pickle so that functions and classes of ``__main__`` travel by value.

    That is what cloudpickle is for, which takes 10 ms to import and several times as long as
    pickle for each object: pickle goes first. What it writes is right where it names nothing of
    ``__main__``, unless the program has told cloudpickle of modules that are to travel by value.
    """
    loaded = sys.modules.get("cloudpickle")
    if loaded is None or not loaded.list_registry_pickle_by_value():
        try:
            data = pickle.dumps(value, 5)
        except Exception:
            pass  # cloudpickle may know how, or says why not
        else:
            if b"__main__" not in data:
                return data
    packed = io.BytesIO()
    _pickler_by_value()(packed, 5).dump(value)
    return packed.getvalue()


@cache
def _pickler_by_value() -> Any:
    """Return cloudpickle's pickler, for code that keeps the name of its file.

    Since 3.1.3 cloudpickle replaces that: tracebacks of a worker would not show the user's lines.
    """
    import cloudpickle

    reduce_code = cloudpickle.Pickler.dispatch_table[CodeType]

    def reduce_named(code: CodeType) -> Any:
        return _name_code, (*reduce_code(code), code.co_filename)

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
        dispatch_table = cloudpickle.Pickler.dispatch_table.new_child({CodeType: reduce_named})

    return Pickler


def _name_code(make: Callable[..., CodeType], arguments: tuple[Any, ...], file: str) -> CodeType:
    return make(*arguments).replace(co_filename=file)


def dump_function(func: Callable[[Any], Any]) -> bytes:
    """Pickle the user's function, or say clearly why that is not possible."""
    try:
        return dump(func)
    except Exception as error:
        raise TransportError(
            f"the function {func!r} cannot be sent to worker processes: it does not pickle "
            f"({type(error).__name__}: {error}). Pass executor='thread', or make what it closes "
            "over picklable."
        ) from error


def dump_items(chunk: Chunk) -> bytes:
    """Pickle the items of a chunk, or say which of them does not pickle."""
    try:
        return dump(chunk.items)
    except Exception as error:
        found = first_unpicklable(chunk.items)
        position, cause = found if found is not None else (0, error)
        raise UnpicklableItemError(
            chunk.start + position,
            type(chunk.items[position]).__name__,
            f"{type(cause).__name__}: {cause}",
        ) from cause


def first_unpicklable(values: Sequence[Any]) -> tuple[int, Exception] | None:
    """Find the first value that does not pickle on its own."""
    for position, value in enumerate(values):
        try:
            dump(value)
        except Exception as error:
            return position, error
    return None


def pack_outcome(outcome: ChunkOutcome) -> tuple[tuple[Any, ...], bytes]:
    """Turn an outcome into the rest of its header and the payload of its results.

    A result that does not pickle becomes the failure of its item. Exceptions that stand in
    place of results travel once, in the header.
    """
    failures = outcome.failures
    results = outcome.results
    payload = b""
    if results is not None:
        for failure in failures:
            results[failure.index - outcome.start] = None
        try:
            payload = _dump_results(results)
        except Exception:
            results = _replace_unpicklable(results, outcome)
            payload = _dump_results(results)
    header = (
        outcome.chunk_id,
        outcome.start,
        outcome.size,
        results is not None,
        [(f.index, pack_error(f.error), f.traceback) for f in failures],
        outcome.started_at,
        outcome.duration,
        outcome.thread_name,
        {name: packed for name, value in outcome.extras.items() if (packed := _pack_extra(value))},
    )
    return header, payload


def unpack_outcome(
    header: Sequence[Any], payload: bytes | bytearray, *, pid: int, hostname: str
) -> ChunkOutcome:
    """Rebuild an outcome in the parent; results that do not unpickle fail their chunk."""
    chunk_id, start, size, complete, packed, started_at, duration, thread_name, extras = header
    failures = [Failure(index, unpack_error(error), text) for index, error, text in packed]
    for failure in failures:
        add_note(
            failure.error,
            f"\nIn worker process {pid}, on item {failure.index}:\n{failure.traceback}",
        )
    results: Any = None
    if complete:
        try:
            results = pickle.loads(payload)
        except Exception as error:
            failed = TransportError(
                f"the results of items {start} to {start + size - 1} (chunk {chunk_id}) do not "
                f"unpickle: {type(error).__name__}: {error}"
            )
            failures = [Failure(start, failed, str(failed))]
        else:
            for failure in failures:
                results[failure.index - start] = failure.error
    return ChunkOutcome(
        chunk_id=chunk_id,
        start=start,
        size=size,
        results=results,
        failures=failures,
        started_at=started_at,
        duration=duration,
        pid=pid,
        hostname=hostname,
        thread_name=thread_name,
        results_bytes=len(payload),
        extras=_unpack_extras(extras),
    )


def pack_error(error: BaseException) -> bytes:
    """Pickle an exception so that it can be rebuilt whatever its constructor asks for."""
    ways = ((_dump_plain, _is_same), (dump, _is_same), (_pack_parts, _is_same_type))
    for pack, is_rebuilt in ways:
        try:
            packed = pack(error)
            # Many exceptions pickle, and then fail to unpickle, or come out as something else.
            if is_rebuilt(pickle.loads(packed), error):
                return packed
        except Exception:
            continue
    return pickle.dumps(_describe(error), 5)


def unpack_error(packed: bytes) -> BaseException:
    """Rebuild an exception, or a RemoteError with its text."""
    try:
        error = pickle.loads(packed)
    except Exception as unloadable:
        return RemoteError(
            f"the function raised an exception that does not unpickle here "
            f"({type(unloadable).__name__}: {unloadable})"
        )
    return error if isinstance(error, BaseException) else RemoteError(str(error))


class _Plain:
    """Pickles as the exception in it says itself.

    Importing distributed has tblib register a way of its own for every exception, which some do not
    survive (a UnicodeDecodeError loses its text) and which drags tracebacks along.
    """

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __reduce__(self) -> Any:
        return self._error.__reduce_ex__(5)


def _dump_plain(error: BaseException) -> bytes:
    return dump(_Plain(error))


def _pack_extra(value: Any) -> bytes:
    try:
        return _dump_results(value)
    except Exception:
        return b""


def _unpack_extras(packed: dict[str, bytes]) -> dict[str, Any]:
    """Unpack what rides home beside the results; what does not unpickle here is left out."""
    extras = {}
    for name, data in packed.items():
        try:
            extras[name] = pickle.loads(data)
        except Exception as error:
            logger.warning("%s of a chunk do not unpickle and are left out: %r", name, error)
    return extras


def _is_same(came: object, error: BaseException) -> bool:
    return _is_same_type(came, error) and str(came) == str(error)


def _is_same_type(came: object, error: BaseException) -> bool:
    return type(came) is type(error)


def _pack_parts(error: BaseException) -> bytes:
    """Pack class, arguments and attributes: rebuilt without calling the constructor."""
    args = tuple(arg if _travels(arg) else repr(arg) for arg in error.args)
    state = {name: value for name, value in vars(error).items() if _travels(value)}
    return dump(_Parts(type(error), args, state))


class _Parts:
    """Unpickles as the exception that it was made of."""

    def __init__(self, kind: type, args: tuple[Any, ...], state: dict[str, Any]) -> None:
        self._made_of = (kind, args, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_error, self._made_of


def _rebuild_error(
    kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]
) -> BaseException:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def _travels(value: Any) -> bool:
    try:
        pickle.loads(dump(value))
    except Exception:
        return False
    return True


def _describe(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = "<its text cannot be shown>"
    kind = type(error)
    return f"{kind.__module__}.{kind.__qualname__}: {text}"


def _dump_results(results: Any) -> bytes:
    # pickle refuses what only this worker knows (classes of the parent's __main__, lambdas);
    # what is of __main__ here is so in the parent.
    try:
        return pickle.dumps(results, 5)
    except Exception:
        return dump(results)


def _replace_unpicklable(results: list[Any], outcome: ChunkOutcome) -> list[Any]:
    kept: list[Any] = []
    for index, result in enumerate(results, outcome.start):
        try:
            dump(result)
        except Exception as error:
            failed = TransportError(
                f"the result of item {index}, a {type(result).__name__}, cannot be sent back: "
                f"it does not pickle ({type(error).__name__}: {error})"
            )
            outcome.failures.append(Failure(index, failed, str(failed)))
            kept.append(None)
        else:
            kept.append(result)
    outcome.failures.sort(key=lambda failure: failure.index)
    return kept
