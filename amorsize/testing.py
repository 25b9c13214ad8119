"""A test double for code that uses amorsize, and a check of the event contract.

Example:
    >>> import amorsize
    >>> from amorsize.testing import RecordingHook, assert_contract
    >>> hooks = amorsize.HookManager()
    >>> recorder = RecordingHook().attach(hooks)
    >>> amorsize.execute(abs, [-1, 2], hooks=hooks)
    [1, 2]
    >>> assert_contract(recorder.contexts)
    >>> recorder.of(amorsize.HookEvent.POST_EXECUTE)[0].metadata["status"]
    'ok'
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Self

from amorsize.errors import ContractError
from amorsize.hooks.events import EXECUTOR_TYPES as EXECUTOR_TYPES
from amorsize.hooks.events import EXIT_REASONS as EXIT_REASONS
from amorsize.hooks.events import STATUSES as STATUSES
from amorsize.hooks.events import HookContext, HookEvent
from amorsize.hooks.manager import HookManager

_RUN_KEYS = {"execution_id", "function", "executor_type"}
_EVENT_KEYS = {
    HookEvent.ON_WORKER_START: {"pid", "hostname", "thread_name"},
    HookEvent.ON_WORKER_END: {
        "pid",
        "hostname",
        "thread_name",
        "exit_reason",
        "exit_code",
        "items",
        "busy_time",
    },
    HookEvent.ON_CHUNK_COMPLETE: {"chunk_start", "failed_items"},
    HookEvent.ON_ERROR: {"failed_items"},
    HookEvent.POST_EXECUTE: {"status", "planning_time", "busy_seconds", "concurrency"},
}


class RecordingHook:
    """A hook that records every context. Safe to use from several threads.

    Attributes:
        contexts: the recorded contexts, oldest first.
    """

    def __init__(self) -> None:
        self.contexts: list[HookContext] = []
        self._changed = threading.Condition()

    def __call__(self, context: HookContext) -> None:
        with self._changed:
            self.contexts.append(context)
            self._changed.notify_all()

    def attach(self, manager: HookManager, events: Iterable[HookEvent] = HookEvent) -> Self:
        """Register for ``events``, all of them by default; return the hook itself."""
        for event in events:
            manager.register(event, self)
        return self

    @property
    def events(self) -> list[HookEvent]:
        """The recorded events, oldest first."""
        return [context.event for context in self.contexts]

    def of(self, event: HookEvent) -> list[HookContext]:
        """Return the contexts of one event, oldest first."""
        return [context for context in self.contexts if context.event is event]

    def wait_for(self, event: HookEvent, timeout: float, *, count: int = 1) -> HookContext:
        """Wait until ``event`` was recorded ``count`` times; return that context.

        Raises:
            TimeoutError: that did not happen within ``timeout`` seconds; the message lists the
                recorded events.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.of(event)) >= count, timeout):
                seen = ", ".join(each.value for each in self.events) or "nothing"
                raise TimeoutError(
                    f"{event.value} was not seen {count} times within {timeout} seconds; "
                    f"recorded: {seen}"
                )
            return self.of(event)[count - 1]


def assert_contract(contexts: Sequence[HookContext]) -> None:
    """Check recorded contexts against the event contract (``docs/events.md``).

    Args:
        contexts: all contexts of one or more executions, in the order of their events.

    Raises:
        ContractError: a rule is broken; the message lists every broken one.
    """
    executions: dict[Any, list[HookContext]] = {}
    for context in contexts:
        executions.setdefault(context.metadata.get("execution_id"), []).append(context)
    broken = [] if contexts else ["no context was recorded"]
    for execution_id, recorded in executions.items():
        broken += [f"execution {execution_id}: {rule}" for rule in _broken_rules(recorded)]
    if broken:
        raise ContractError("the event contract is broken:\n" + "\n".join(broken))


def _broken_rules(contexts: list[HookContext]) -> list[str]:
    return [
        *_broken_frame(contexts),
        *_broken_fields(contexts),
        *_broken_monotony(contexts),
        *_broken_workers(contexts),
        *_broken_chunks(contexts),
        *_broken_end(contexts),
    ]


def _broken_frame(contexts: list[HookContext]) -> Iterable[str]:
    events = [context.event for context in contexts]
    for event, place, at in (
        (HookEvent.PRE_EXECUTE, "first", 0),
        (HookEvent.POST_EXECUTE, "last", -1),
    ):
        if events.count(event) != 1:
            yield f"{event.value} came {events.count(event)} times, not once"
        if events[at] is not event:
            yield f"the {place} event is {events[at].value}, not {event.value}"


def _broken_fields(contexts: list[HookContext]) -> Iterable[str]:
    functions = {context.metadata.get("function") for context in contexts}
    if len(functions) > 1:
        yield f"the function changes its name: {functions}"
    for context in contexts:
        missing = (_RUN_KEYS | _EVENT_KEYS.get(context.event, set())) - context.metadata.keys()
        if missing:
            yield f"{context.event.value} lacks metadata {sorted(missing)}"
        if context.metadata.get("executor_type") not in EXECUTOR_TYPES:
            yield f"unknown executor_type {context.metadata.get('executor_type')!r}"
        if (context.event is HookEvent.ON_ERROR) and context.error is None:
            yield "on_error without an error"
        if context.metadata.get("queue_time", 0.0) < 0:
            yield f"a negative queue_time: {context.metadata['queue_time']}"
        if context.chunk_time < 0:
            yield f"a negative chunk_time: {context.chunk_time}"
        total = context.total_items
        remaining = 0 if total is None else max(0, total - context.items_completed)
        if context.items_remaining != remaining:
            yield f"items_remaining is {context.items_remaining}, not {remaining}"


def _broken_monotony(contexts: list[HookContext]) -> Iterable[str]:
    for name in ("items_completed", "percent_complete", "elapsed_time"):
        values = [getattr(context, name) for context in contexts]
        if any(later < earlier for earlier, later in pairwise(values)):
            yield f"{name} goes back: {values}"
    if any(not 0.0 <= context.percent_complete <= 100.0 for context in contexts):
        yield "percent_complete leaves 0 to 100"


def _broken_workers(contexts: list[HookContext]) -> Iterable[str]:
    working: set[int | None] = set()
    appeared = 0
    for context in contexts:
        worker = context.worker_id
        if context.event is HookEvent.ON_WORKER_START:
            expected = len(working) + 1
        elif context.event is HookEvent.ON_WORKER_END:
            expected = len(working) - 1
        else:
            expected = len(working)
        if context.worker_count != expected:
            yield (
                f"worker_count is {context.worker_count} at {context.event.value}, where "
                f"{expected} take part"
            )
        match context.event:
            case HookEvent.ON_WORKER_START:
                if worker != appeared:
                    yield f"worker {worker} starts where {appeared} is next"
                appeared += 1
                working.add(worker)
            case HookEvent.ON_WORKER_END:
                if worker not in working:
                    yield f"worker {worker} ends without a start, or twice"
                working.discard(worker)
                if context.metadata.get("exit_reason") not in EXIT_REASONS:
                    yield f"unknown exit_reason {context.metadata.get('exit_reason')!r}"
            case HookEvent.ON_CHUNK_COMPLETE if worker is not None and worker not in working:
                yield f"chunk {context.chunk_id} comes from worker {worker}, which is not at work"
            case _:
                pass
    if working:
        yield f"workers {sorted(map(str, working))} have a start and no end"


def _broken_chunks(contexts: list[HookContext]) -> Iterable[str]:
    chunks = [each for each in contexts if each.event is HookEvent.ON_CHUNK_COMPLETE]
    ids = [chunk.chunk_id for chunk in chunks]
    if len(set(ids)) < len(ids):
        yield f"a chunk completes twice: {ids}"
    if None in ids:
        yield "a chunk without a chunk_id"
    if sum(chunk.chunk_size or 0 for chunk in chunks) != contexts[-1].items_completed:
        yield (
            f"the chunks add up to {sum(chunk.chunk_size or 0 for chunk in chunks)} items, "
            f"items_completed says {contexts[-1].items_completed}"
        )
    spans = sorted(
        (chunk.metadata.get("chunk_start", 0), chunk.chunk_size or 0) for chunk in chunks
    )
    gaps_allowed = contexts[-1].metadata.get("status") != "ok"
    for (start, size), (following, _) in pairwise([(0, 0), *spans]):
        if start + size > following:
            yield f"chunks overlap at item {following}"
        if start + size < following and not gaps_allowed:
            yield f"items {start + size} to {following - 1} are in no chunk of a run that is ok"
    for before, context in pairwise(contexts):
        if context.event is HookEvent.ON_PROGRESS and before.event is not (
            HookEvent.ON_CHUNK_COMPLETE
        ):
            yield f"on_progress follows {before.event.value}, not on_chunk_complete"


def _broken_end(contexts: list[HookContext]) -> Iterable[str]:
    last = contexts[-1]
    status = last.metadata.get("status")
    if status not in STATUSES:
        yield f"unknown status {status!r}"
    errors = sum(context.event is HookEvent.ON_ERROR for context in contexts)
    if status == "ok":
        if last.percent_complete != 100.0:
            yield f"percent_complete is {last.percent_complete!r} after success, not 100.0"
        if last.items_completed != last.total_items:
            yield f"{last.items_completed} of {last.total_items} items after success"
        progress = [each for each in contexts if each.event is HookEvent.ON_PROGRESS]
        if progress and progress[-1].items_completed != last.items_completed:
            yield "the last on_progress was not emitted"
    elif errors == 0:
        yield f"the run ended as {status} without an on_error"
    elif last.error is None:
        yield f"the run ended as {status} and post_execute has no error"
