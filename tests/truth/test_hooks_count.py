"""Every hook counts that an execution calls, whichever manager it is registered with."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest

import amorsize
from amorsize import HookContext, HookEvent, HookManager, execute
from amorsize.exporters.metrics import HOOK_BUSY, HOOK_CALLS, HOOK_ERRORS, HOOK_LONGEST
from amorsize.exporters.totals import TotalsExporter
from amorsize.hooks import manager as manager_module

CHUNK, POST = HookEvent.ON_CHUNK_COMPLETE, HookEvent.POST_EXECUTE


class Counted:
    """A hook that fails, and an independent count of its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self._lock = threading.Lock()

    def fail(self, context: HookContext) -> None:
        with self._lock:
            self.calls += 1
        raise RuntimeError("broken")

    def succeed(self, context: HookContext) -> None:
        self.calls += 1


FAIL = f"{__name__}.Counted.fail"
SUCCEED = f"{__name__}.Counted.succeed"


@pytest.fixture(autouse=True)
def _without_a_past(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default manager remembers the calls of other tests."""
    monkeypatch.setattr(manager_module, "_default", HookManager())


def counts(exporter: TotalsExporter, event: HookEvent) -> tuple[Any, Any]:
    """Calls of the failing hook, and errors of the event's hooks."""
    series = exporter.snapshot()
    return series[HOOK_CALLS].get((event, FAIL), 0), series[HOOK_ERRORS][event,]


def manager_with(hook: Counted, *events: HookEvent) -> HookManager:
    manager = HookManager()
    for event in events:
        manager.register(event, hook.fail)
    return manager


def test_hooks_of_a_manager_that_is_passed_to_a_run(mode: str) -> None:
    """In every mode, beside an exporter on the default manager; and they are timed."""
    hook = Counted()
    manager = manager_with(hook, CHUNK)
    with TotalsExporter().attach() as exporter:
        execute(abs, range(20), executor=mode, n_jobs=2, chunksize=2, hooks=manager)
        assert hook.calls == 10
        assert counts(exporter, CHUNK) == (10, 10)
        series = exporter.snapshot()
        seconds = manager.get_stats()["hooks"]["on_chunk_complete"][FAIL]
        assert series[HOOK_BUSY][CHUNK, FAIL] == seconds["total_seconds"] > 0
        assert series[HOOK_LONGEST][CHUNK, FAIL] == seconds["longest_seconds"] > 0
    assert not manager.timed


def test_managers_that_are_gone_stay_counted_and_are_not_kept_alive() -> None:
    """A manager is often made for one call; what its hooks did does not fall from the counts."""
    hook = Counted()
    gone = []

    def run() -> None:
        manager = HookManager()
        manager.register(POST, hook.succeed)
        gone.append(weakref.ref(manager))
        execute(abs, [1, 2], executor="serial", hooks=manager)

    with TotalsExporter().attach() as exporter:
        for runs in range(1, 4):
            run()
            gc.collect()
            assert exporter.snapshot()[HOOK_CALLS][POST, SUCCEED] == hook.calls == runs
            assert [manager() for manager in gone] == runs * [None]
        exporter.close()
        assert exporter.snapshot() == {}


def default() -> HookManager:
    return amorsize.get_default_manager()


def test_hooks_of_the_default_manager_beside_an_exporter_on_another() -> None:
    """An execution with ``hooks=`` also calls the process-wide hooks."""
    hook = Counted()
    manager = HookManager()
    with (
        TotalsExporter().attach(manager) as exporter,
        default().register(POST, hook.fail),
    ):
        execute(abs, [1], executor="serial", hooks=manager)
        assert counts(exporter, POST) == (1, 1)


def test_runs_at_once_and_inside_each_other() -> None:
    """Each with a manager of its own; a shared one counts once."""
    inner, shared = Counted(), Counted()
    common = manager_with(shared, POST)

    def nested(item: int) -> int:
        execute(abs, [item], executor="serial", hooks=manager_with(inner, POST))
        return item

    def run() -> None:
        execute(nested, range(5), executor="thread", n_jobs=2, chunksize=1, hooks=common)

    with TotalsExporter().attach() as exporter:
        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (inner.calls, shared.calls) == (15, 3)
        assert counts(exporter, POST) == (18, 18)


def test_two_exporters_count_alike_and_the_last_one_ends_the_timing() -> None:
    """Also of a manager that neither is attached to."""
    hook = Counted()
    manager = manager_with(hook, POST)
    first, second = TotalsExporter().attach(), TotalsExporter().attach()
    execute(abs, [1], executor="serial", hooks=manager)
    assert counts(first, POST) == counts(second, POST) == (1, 1)
    first.close()
    assert manager.timed
    second.close()
    assert not manager.timed


def test_hooks_in_the_background_and_asynchronous_ones() -> None:
    """They are called while the run goes on, and count when it has ended."""
    hook = Counted()

    async def fail(context: HookContext) -> None:
        hook.fail(context)

    manager = HookManager()
    manager.register(CHUNK, hook.fail, background=True)
    manager.register(CHUNK, fail)
    with TotalsExporter().attach() as exporter:
        execute(abs, range(6), executor="serial", chunksize=2, hooks=manager)
        assert hook.calls == 6
        assert exporter.snapshot()[HOOK_ERRORS][CHUNK,] == 6
    manager.close()


@pytest.mark.parametrize("call", ["stream", "aexecute"])
def test_other_calls_than_execute(call: str) -> None:
    """``hooks=`` means the same everywhere."""
    import asyncio

    hook = Counted()
    manager = manager_with(hook, POST)
    with TotalsExporter().attach() as exporter:
        if call == "stream":
            assert list(amorsize.stream(abs, [-1], executor="serial", hooks=manager)) == [1]
        else:
            asyncio.run(amorsize.aexecute(abs, [-1], executor="serial", hooks=manager))
        assert counts(exporter, POST) == (hook.calls, hook.calls) == (1, 1)
