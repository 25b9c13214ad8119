"""Whether this process is a worker: it runs chunks of executions that are another process's.

The main code of a worker says so (:func:`become_worker`), whatever kind of worker it is: a process
of our own, of an executor that was passed, or of Dask. A worker opens no exporter, registers no
hook of ``@amorsize.on``, and starts no workers; its forked children do not either.
"""

from __future__ import annotations

from collections.abc import Callable

_is_worker = False
_callbacks: list[Callable[[], object]] = []


def is_worker() -> bool:
    """Return whether this process is a worker. Once it is one, it stays one."""
    return _is_worker


def become_worker() -> None:
    """Note that this process is a worker, before it loads anything of the user's for a chunk."""
    global _is_worker
    if not _is_worker:
        _is_worker = True
        while _callbacks:
            _callbacks.pop()()


def when_worker(callback: Callable[[], object]) -> None:
    """Have a function called if this process, which is no worker yet, becomes one."""
    _callbacks.append(callback)
