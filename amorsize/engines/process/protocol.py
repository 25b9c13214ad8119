"""The messages between the program and a worker process, and how they are packed.

A message is a small header and, where there is one, a payload that was pickled on its own, so
that a payload which does not unpickle never damages the header it came with.

::

    program -> worker  ("task", key, settings)          payload: the function
                       ("trial", key)                   payload: a result, to see that it can be
                                                        loaded
                       ("chunk", key, id, start, size, most bytes)  payload: the items
                       ("end", key)
    worker -> program  ("ready", epoch)
                       ("loaded", key, files)           the function is there; the files of
                                                        modules of the user's that were loaded
                       ("started", key, hostname, thread name)
                       ("outcome", key, ...)            payload: the results, if any
                       ("unusable", key, what, text, missing)  the function, or a result, did not
                                                        unpickle; whether something could not be
                                                        imported
                       ("idle", key, files)             what the run changed is restored
"""

from __future__ import annotations

import mmap
import os
from _pickle import dumps, loads

from amorsize.errors import RemoteError, TransportError, UnpicklableItemError
from amorsize.workers.by_value import dump
from amorsize.workers.chunk import Chunk, ChunkOutcome, Failure, add_note

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pickle import PickleBuffer
    from typing import Any

    from amorsize.engines.process.connection import Connection


IDLE_SECONDS = 60.0
"""A worker that was not used for so long ends by itself; the pool takes none that is about to."""


def send(
    connection: Connection,
    header: tuple[Any, ...],
    payload: bytes = b"",
    descriptors: Sequence[int] = (),
) -> None:
    """Send one message; see :meth:`Connection.send`."""
    connection.send(dumps(header, 5), payload, descriptors)


def receive(connection: Connection) -> tuple[tuple[Any, ...], bytearray] | None:
    """Receive one message, or None; see :meth:`Connection.receive`."""
    message = connection.receive()
    return None if message is None else (loads(message[0]), message[1])


def dump_function(
    func: Callable[[Any], Any],
    *,
    maps: bool = False,
    buffers: list[PickleBuffer] | None = None,
) -> bytes:
    """Pickle the user's function, or say clearly why that is not possible.

    See :func:`amorsize.workers.by_value.dump` for ``maps`` and ``buffers``.
    """
    try:
        return dump(func, maps=maps, buffers=buffers)
    except Exception as error:
        advice = "make what it closes over picklable."
        if "through inheritance" in str(error):  # locks, queues and values of multiprocessing
            advice = (
                "use those of a multiprocessing.Manager(): the others reach only processes that "
                "multiprocessing itself has started."
            )
        raise TransportError(
            f"the function {func!r} cannot be sent to worker processes: it cannot be pickled "
            f"({type(error).__name__}: {error}). Pass executor='thread', or {advice}"
        ) from error


class SharedBuffers:
    """Large buffers of the function, in a file in memory that all workers of a run map.

    Each worker has a private view of it: what is written there is its own, and what is not stands
    in memory once.

    Attributes:
        sizes: of the buffers, in order.
        descriptor: of the file, or None without buffers.
    """

    def __init__(self, buffers: Sequence[PickleBuffer]) -> None:
        self.sizes: list[int] = []
        self.descriptor: int | None = None
        if not buffers:
            return
        self.descriptor = os.memfd_create("amorsize-buffers")
        try:
            with os.fdopen(os.dup(self.descriptor), "wb") as file:
                for buffer in buffers:
                    raw = buffer.raw()
                    self.sizes.append(raw.nbytes)
                    file.write(raw)
                    file.write(bytes(-raw.nbytes % mmap.PAGESIZE))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the descriptor; workers keep what they have mapped."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def __del__(self) -> None:
        self.close()


def dump_shared_function(func: Callable[[Any], Any]) -> tuple[bytes, SharedBuffers]:
    """Pickle the function for many workers of this machine."""
    if not hasattr(os, "memfd_create"):
        return dump_function(func, maps=True), SharedBuffers(())
    buffers: list[PickleBuffer] = []
    data = dump_function(func, maps=True, buffers=buffers)
    try:
        return data, SharedBuffers(buffers)
    except OSError:  # no descriptor, or no memory of that kind
        return dump_function(func, maps=True), SharedBuffers(())


def map_buffers(sizes: Sequence[int], descriptor: int) -> list[memoryview]:
    """Map the buffers that a :class:`SharedBuffers` wrote; closes the descriptor."""
    views, offset = [], 0
    try:
        for size in sizes:
            mapped = mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY, offset=offset)
            views.append(memoryview(mapped))
            offset += size + -size % mmap.PAGESIZE
    finally:
        os.close(descriptor)
    return views


def dump_items(chunk: Chunk, *, maps: bool = False) -> bytes:
    """Pickle the items of a chunk, or say which of them does not pickle."""
    try:
        return dump(chunk.items, maps=maps)
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
    place of results are sent once, in the header.
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
        outcome.is_full,
        outcome.is_unread,
    )
    return header, payload


def unpack_outcome(
    header: Sequence[Any], payload: bytes | bytearray, *, pid: int, hostname: str
) -> ChunkOutcome:
    """Rebuild an outcome in the parent; results that do not unpickle fail their chunk."""
    chunk_id, start, size, complete, packed, started_at, duration, thread_name, *more = header
    extras, is_full, is_unread = more
    failures = [Failure(index, unpack_error(error), text) for index, error, text in packed]
    for failure in failures:
        add_note(
            failure.error,
            f"\nIn worker process {pid}, on item {failure.index}:\n{failure.traceback}",
        )
    results: Any = None
    if complete:
        try:
            results = loads(payload)
        except Exception as error:
            failed = TransportError(
                f"the results of items {start} to {start + size - 1} (chunk {chunk_id}) cannot be "
                f"unpickled: {type(error).__name__}: {error}"
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
        is_full=is_full,
        is_unread=is_unread,
    )


def pack_error(error: BaseException) -> bytes:
    """Pickle an exception so that it can be rebuilt whatever its constructor asks for."""
    ways = ((_dump_plain, _is_same), (dump, _is_same), (_pack_parts, _is_same_type))
    for pack, is_rebuilt in ways:
        try:
            packed = pack(error)
            # Many exceptions pickle, and then fail to unpickle, or come out as something else.
            if is_rebuilt(loads(packed), error):
                return packed
        except Exception:
            continue
    return dumps(_describe(error), 5)


def unpack_error(packed: bytes) -> BaseException:
    """Rebuild an exception, or a RemoteError with its text."""
    try:
        error = loads(packed)
    except Exception as unloadable:
        return RemoteError(
            f"the function raised an exception that cannot be unpickled here "
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
    """Unpack the extras of an outcome; those that cannot be unpickled here are left out."""
    extras = {}
    for name, data in packed.items():
        try:
            extras[name] = loads(data)
        except Exception as error:
            import logging

            kind = type(error).__name__  # its text may quote what the function has returned
            text = "%s of a chunk cannot be unpickled and are left out (%s)"
            logging.getLogger(__name__).warning(text, name, kind)
    return extras


def _is_same(came: object, error: BaseException) -> bool:
    return _is_same_type(came, error) and str(came) == str(error)


def _is_same_type(came: object, error: BaseException) -> bool:
    return type(came) is type(error)


def _pack_parts(error: BaseException) -> bytes:
    """Pack class, arguments and attributes: rebuilt without calling the constructor."""
    args = tuple(arg if _can_be_sent(arg) else repr(arg) for arg in error.args)
    state = {name: value for name, value in vars(error).items() if _can_be_sent(value)}
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


def _can_be_sent(value: Any) -> bool:
    try:
        loads(dump(value))
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
        return dumps(results, 5)
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
                f"it cannot be pickled ({type(error).__name__}: {error})"
            )
            outcome.failures.append(Failure(index, failed, str(failed)))
            kept.append(None)
        else:
            kept.append(result)
    outcome.failures.sort(key=lambda failure: failure.index)
    return kept
