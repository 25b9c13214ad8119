"""Whether this process is a worker, which runs chunks of another process's executions.

The main code of every kind of worker calls :func:`become_worker`: worker processes of our own, of
a caller-owned executor, and of Dask. A worker opens no exporter, registers no hook of
``@amorsize.on`` and starts no workers. Its forked children do not either.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_is_worker = False
_callbacks: list[Callable[[], object]] = []


def is_worker() -> bool:
    """Return whether this process is a worker. Once it is one, it stays one."""
    return _is_worker


def become_worker() -> None:
    """Note that this process is a worker. Call it before unpickling a function or items."""
    global _is_worker
    if not _is_worker:
        _is_worker = True
        while _callbacks:
            _callbacks.pop()()


def when_worker(callback: Callable[[], object]) -> None:
    """Register a function to be called if this process becomes a worker."""
    _callbacks.append(callback)
