"""Hooks in the background: asynchronous ones on an event loop, slow ones on threads.

The calls of one execution run one after another, in the order of the events; those of several
executions run concurrently. All executions share one bound on waiting calls.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from amorsize.hooks.entries import Hook
from amorsize.hooks.events import HookContext
from amorsize.hooks.interruption import protected, protected_between_calls
from amorsize.workers import in_forked_child

CALL_SECONDS = 30.0
"""How long a call may take by default."""

_STOP_SECONDS = 1.0
_SLICE_SECONDS = 0.5
"""A Ctrl-C that does not interrupt a wait is handled when the wait is over."""


class Outcome(Protocol):
    """Takes the result of a call, in the thread that saw it end."""

    def __call__(self, error: BaseException | None, seconds: float) -> None: ...


@dataclass(slots=True, eq=False)
class Job:
    """One call of a hook, to be made.

    Attributes:
        ended: called after the call, with its error and duration.
        dropped: called instead if the call will not be made.
    """

    callback: Hook
    context: HookContext
    is_async: bool
    timeout: float
    ended: Outcome
    dropped: Callable[[], None]
    variables: contextvars.Context = field(default_factory=contextvars.copy_context)


@dataclass(slots=True, eq=False)
class _Lane:
    """The calls of one execution, made one after another."""

    jobs: deque[Job] = field(default_factory=deque)
    current: Job | None = None
    began: float = 0.0
    task: asyncio.Task[None] | None = None
    done: threading.Event = field(default_factory=threading.Event)


class Background:
    """Makes calls on an event loop: one of its own, on a daemon thread, or a given one.

    Args:
        loop: the event loop to use; None for one of its own, which starts with the first call.
        queue_size: how many calls may wait.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None, queue_size: int) -> None:
        self._given = loop
        self._queue_size = queue_size
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        self._lock = threading.RLock()  # a signal handler may emit events in its holder's thread
        self._lanes: dict[Any, _Lane] = {}
        self._waiting = 0
        self._loop = self._given
        self._thread: threading.Thread | None = None

    @protected
    def submit(self, key: Any, job: Job) -> bool:
        """Queue a call of an execution; return False if too many are waiting."""
        with self._lock:
            if self._waiting >= self._queue_size:
                return False
            loop = self._started()
            lane = self._lanes.get(key)
            if lane is None:
                lane = _Lane()
                try:
                    loop.call_soon_threadsafe(self._begin, key, lane)
                except RuntimeError:  # the given loop is closed
                    return False
                self._lanes[key] = lane
            lane.jobs.append(job)
            self._waiting += 1
            return True

    @protected_between_calls
    def drain(self, timeout: float, key: Any = None) -> bool:
        """Wait for the calls of an execution, or (None) of all.

        At the timeout, waiting calls are dropped and a running one counts as timed out. Called on
        the event loop itself, it cannot wait, and drops nothing.

        Returns:
            Whether every call was made.
        """
        with self._lock:
            keys = list(self._lanes) if key is None else [key]
            lanes = {each: self._lanes[each] for each in keys if each in self._lanes}
        if not lanes:
            return True
        if self._is_on_loop():
            return False
        deadline = time.monotonic() + timeout
        try:
            for lane in lanes.values():
                while (left := deadline - time.monotonic()) > 0:
                    if lane.done.wait(min(left, _SLICE_SECONDS)):
                        break
        finally:
            abandoned = [self._abandon(each, lane) for each, lane in lanes.items()]
        return not any(abandoned)

    def stop(self) -> None:
        """End the thread, if there is one; running calls are cancelled."""
        with self._lock:
            for key, lane in list(self._lanes.items()):
                self._abandon(key, lane)
            loop, thread = self._loop, self._thread
            self._loop, self._thread = self._given, None
        if thread is None or loop is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():
            thread.join(_STOP_SECONDS)

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=_serve, args=(self._loop,), name="amorsize-hooks", daemon=True
            )
            self._thread.start()
        return self._loop

    def _is_on_loop(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def _begin(self, key: Any, lane: _Lane) -> None:
        lane.task = asyncio.get_running_loop().create_task(self._make_calls(key, lane))

    async def _make_calls(self, key: Any, lane: _Lane) -> None:
        while True:
            with self._lock:
                if self._lanes.get(key) is not lane:  # it was abandoned
                    return
                if not lane.jobs:
                    del self._lanes[key]
                    lane.done.set()
                    return
                job = lane.current = lane.jobs.popleft()
                self._waiting -= 1
                lane.began = time.perf_counter()
            error = await _make(job)
            if not self._finish(lane):
                return
            job.ended(error, time.perf_counter() - lane.began)

    def _finish(self, lane: _Lane) -> bool:
        """Note that the call of a lane was made; return False if it was abandoned before."""
        with self._lock:
            running, lane.current = lane.current, None
        return running is not None

    @protected
    def _abandon(self, key: Any, lane: _Lane) -> bool:
        with self._lock:
            if self._lanes.get(key) is not lane:
                return False
            del self._lanes[key]
            self._waiting -= len(lane.jobs)
            left, running = list(lane.jobs), lane.current
            lane.jobs.clear()
            lane.current = None
            loop, task = self._loop, lane.task
        if running is not None:
            error = TimeoutError("it was still running when the wait for it timed out")
            running.ended(error, time.perf_counter() - lane.began)
        for job in left:
            job.dropped()
        if task is not None and loop is not None:
            try:
                loop.call_soon_threadsafe(task.cancel)
            except RuntimeError:
                pass  # the loop is closed, and the task with it
        lane.done.set()
        return True


async def _make(job: Job) -> BaseException | None:
    """Make a call; return its error, if it fails."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[BaseException | None]
    if job.is_async:
        ended = loop.create_task(_await(job), context=job.variables)
    else:
        ended = loop.create_future()
        thread = threading.Thread(
            target=job.variables.run,
            args=(_call, job, loop, ended),
            name="amorsize-hook",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError as error:  # Python 3.12 starts none while the interpreter exits
            return error
    try:
        await asyncio.wait({ended}, timeout=job.timeout)
    except asyncio.CancelledError:
        ended.cancel()
        raise
    if ended.done():
        return asyncio.CancelledError() if ended.cancelled() else ended.result()
    ended.cancel()  # an asynchronous hook ends; a thread is abandoned
    return TimeoutError(f"it took longer than its timeout of {job.timeout:g} seconds")


async def _await(job: Job) -> BaseException | None:
    try:
        await job.callback(job.context)  # type: ignore[misc]  # known to be asynchronous
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # SystemExit here would end the loop, and not the program
        return error
    return None


def _call(
    job: Job, loop: asyncio.AbstractEventLoop, ended: asyncio.Future[BaseException | None]
) -> None:
    result: BaseException | None = None
    try:
        job.callback(job.context)
    except BaseException as error:
        result = error

    def finish() -> None:
        if not ended.done():
            ended.set_result(result)

    try:
        loop.call_soon_threadsafe(finish)
    except RuntimeError:
        pass  # the loop has ended, and nothing waits for the call


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks, timeout=_STOP_SECONDS))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


_all: weakref.WeakSet[Background] = weakref.WeakSet()
_loops_of_parent: list[asyncio.AbstractEventLoop | None] = []
"""Event loops of the parent process, kept so that a forked child does not close them."""


@in_forked_child
def _reset_in_forked_child() -> None:
    for background in _all:
        _loops_of_parent.append(background._loop)
        background._reset()
