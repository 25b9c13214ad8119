"""Asynchronous hooks, and slow ones in the background: order, bounds, time limits, the drain."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import PATIENCE, slowness

import amorsize
from amorsize import HookContext, HookEvent, HookManager
from amorsize.errors import InvalidTypeError, InvalidValueError

PROGRESS = HookEvent.ON_PROGRESS
CHUNK = HookEvent.ON_CHUNK_COMPLETE
POST = HookEvent.POST_EXECUTE


@pytest.fixture
def hooks() -> Iterator[HookManager]:
    """A manager whose thread ends with the test."""
    manager = HookManager(drain_timeout=PATIENCE)
    yield manager
    manager.unregister_all()
    manager.drain(timeout=0)
    manager.close()


def of(execution: object, event: HookEvent = PROGRESS, **fields: Any) -> HookContext:
    return HookContext(event, metadata={"execution_id": str(execution)}, **fields)


def stats_of(hooks: HookManager, event: HookEvent = PROGRESS) -> dict[str, Any]:
    (stats,) = hooks.get_stats()["hooks"][event].values()
    return stats


# --- where and when they run ----


def test_every_asynchronous_hook_of_a_run_is_done_when_execute_returns(
    hooks: HookManager, mode: str
) -> None:
    """On the manager's own thread, in the order of the events."""
    called: list[tuple[str, int]] = []
    threads: set[str] = set()

    async def note(context: HookContext) -> None:
        await asyncio.sleep(0)
        threads.add(threading.current_thread().name)
        called.append((context.event.value, context.items_completed))

    for event in HookEvent:
        hooks.register(event, note)
    amorsize.execute(abs, range(6), executor=mode, n_jobs=1, chunksize=2, hooks=hooks)
    events = [event for event, _ in called]
    assert events[0] == "pre_execute"
    assert events[-1] == "post_execute"
    assert [n for event, n in called if event == "on_chunk_complete"] == [2, 4, 6]
    assert events.count("on_worker_start") == events.count("on_worker_end")
    assert threads == {"amorsize-hooks"}
    assert hooks.get_stats()["error_counts"] == {}


def test_a_slow_hook_does_not_hold_up_the_run(hooks: HookManager) -> None:
    """The run goes on to its end while the hook still waits, and waits for it there."""
    last_chunk = threading.Event()
    seen: list[bool] = []

    def wait_for_the_end(context: HookContext) -> None:
        seen.append(last_chunk.wait(PATIENCE))

    hooks.register(HookEvent.PRE_EXECUTE, wait_for_the_end, background=True)
    hooks.register(POST, lambda _: last_chunk.set())
    amorsize.execute(abs, range(4), executor="serial", hooks=hooks)
    assert seen == [True]


@settings(max_examples=20, deadline=None)
@given(
    events=st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=30),
    naps=st.lists(st.sampled_from([0, 0.0005]), min_size=3, max_size=3),
)
def test_calls_of_one_execution_keep_their_order_and_never_overlap(
    events: list[tuple[int, bool]], naps: list[float]
) -> None:
    """Asynchronous and threaded ones together; several executions run beside each other."""
    hooks = HookManager(drain_timeout=PATIENCE)
    called: dict[str, list[tuple[str, int]]] = {}
    running: dict[str, int] = {}
    overlaps: list[str] = []

    def note(kind: str, context: HookContext) -> None:
        called.setdefault(context.metadata["execution_id"], []).append((kind, context.chunk_size))

    async def asynchronous(context: HookContext) -> None:
        lane = context.metadata["execution_id"]
        running[lane] = running.get(lane, 0) + 1
        await asyncio.sleep(naps[int(lane)])
        if running[lane] > 1:
            overlaps.append(lane)
        note("async", context)
        running[lane] -= 1

    def threaded(context: HookContext) -> None:
        lane = context.metadata["execution_id"]
        running[lane] = running.get(lane, 0) + 1
        if running[lane] > 1:
            overlaps.append(lane)
        note("thread", context)
        running[lane] -= 1

    hooks.register(PROGRESS, asynchronous)
    hooks.register(PROGRESS, threaded, background=True)
    hooks.register(POST, threaded, background=True)
    expected: dict[str, list[tuple[str, int]]] = {}
    for number, (execution, both) in enumerate(events):
        hooks.trigger(of(execution, PROGRESS if both else POST, chunk_size=number))
        kinds = ("async", "thread") if both else ("thread",)
        expected.setdefault(str(execution), []).extend((kind, number) for kind in kinds)
    assert hooks.drain()
    assert called == expected
    assert overlaps == []
    hooks.close()


def test_conditions_and_priorities_hold_in_the_background(hooks: HookManager) -> None:
    """The condition is asked in the run's thread, and what it passes over is never queued."""
    called: list[str] = []
    asked: list[str] = []

    def condition(context: HookContext) -> bool:
        asked.append(threading.current_thread().name)
        return context.items_completed > 1

    hooks.register(PROGRESS, lambda _: called.append("low"), background=True)
    hooks.register(
        PROGRESS, lambda _: called.append("high"), background=True, priority=1, when=condition
    )
    for completed in (1, 2):
        hooks.trigger(HookContext(PROGRESS, items_completed=completed))
    assert hooks.drain()
    assert called == ["low", "high", "low"]
    assert asked == [threading.current_thread().name] * 2


def test_the_callers_context_variables_apply(hooks: HookManager) -> None:
    """As they were when the event fired; what a hook sets stays its own."""
    variable = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []

    async def asynchronous(context: HookContext) -> None:
        seen.append(variable.get())
        variable.set("changed")

    hooks.register(PROGRESS, asynchronous)
    hooks.register(PROGRESS, lambda _: seen.append(variable.get()), background=True)
    for value in ("first", "second"):
        variable.set(value)
        hooks.trigger(HookContext(PROGRESS))
    assert hooks.drain()
    assert seen == ["first", "first", "second", "second"]


def test_the_metadata_is_as_it_was_when_the_event_fired(hooks: HookManager) -> None:
    """A chain of the run may add to it while this one waits."""
    seen: list[dict[str, Any]] = []
    hooks.register(PROGRESS, lambda ctx: seen.append(ctx.metadata), background=True, priority=1)
    hooks.register(PROGRESS, lambda ctx: ctx.metadata.update(later=True))
    hooks.trigger(of(1))
    assert hooks.drain()
    assert seen == [{"execution_id": "1"}]


# --- failures, time limits, drops ----


def test_failures_are_counted_and_logged_like_any_hooks(
    hooks: HookManager, caplog: pytest.LogCaptureFixture
) -> None:
    """``SystemExit`` too, which cannot end the program from there; later calls are made."""
    called: list[int] = []

    async def fail(context: HookContext) -> None:
        if context.items_completed == 0:
            raise ValueError("asynchronous and broken")
        if context.items_completed == 1:
            raise SystemExit(3)
        if context.items_completed == 2:
            raise asyncio.CancelledError
        called.append(context.items_completed)

    hooks.register(PROGRESS, fail)
    for completed in range(4):
        hooks.trigger(of(1, items_completed=completed))
    assert hooks.drain()
    assert called == [3]
    assert hooks.get_stats()["error_counts"] == {"on_progress": 3}
    assert hooks.get_stats()["call_counts"]["on_progress"] == 4
    assert "asynchronous and broken" in caplog.text


def test_an_asynchronous_hook_is_cancelled_at_its_timeout(hooks: HookManager) -> None:
    """That is a failure; the next call has its turn."""
    ends: list[str] = []

    async def hang(context: HookContext) -> None:
        try:
            await asyncio.sleep(0 if context.items_completed else PATIENCE)
            ends.append("done")
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    hooks.register(PROGRESS, hang, timeout=0.2 * slowness())
    hooks.trigger(of(1))
    hooks.trigger(of(1, items_completed=1))
    assert hooks.drain()
    assert ends == ["cancelled", "done"]
    stats = stats_of(hooks)
    assert (stats["calls"], stats["errors"], stats["dropped"]) == (2, 1, 0)
    assert stats["longest_seconds"] >= 0.2


def test_a_thread_that_hangs_is_abandoned_at_its_timeout(
    hooks: HookManager, caplog: pytest.LogCaptureFixture
) -> None:
    """It cannot be stopped; the next call runs on another one."""
    release = threading.Event()
    seen: list[int] = []

    def hang(context: HookContext) -> None:
        if context.items_completed == 0:
            release.wait(PATIENCE)
        seen.append(context.items_completed)

    seconds = round(0.2 * slowness(), 2)
    hooks.register(PROGRESS, hang, background=True, timeout=seconds)
    hooks.trigger(of(1))
    hooks.trigger(of(1, items_completed=1))
    assert hooks.drain()
    assert seen == [1]
    assert stats_of(hooks)["errors"] == 1
    assert f"it took longer than its timeout of {seconds} seconds" in caplog.text
    release.set()


def test_a_full_queue_drops_and_counts(caplog: pytest.LogCaptureFixture) -> None:
    """The run does not wait for room, and memory does not grow."""
    hooks = HookManager(queue_size=3, drain_timeout=PATIENCE)
    begun, release = threading.Event(), threading.Event()

    def block(context: HookContext) -> None:
        begun.set()
        release.wait(PATIENCE)

    hooks.register(PROGRESS, block, background=True)
    hooks.trigger(of(1))
    assert begun.wait(PATIENCE)
    for _ in range(10):
        hooks.trigger(of(1))
    stats = stats_of(hooks)
    assert (stats["dropped"], stats["errors"]) == (7, 7)
    release.set()
    assert hooks.drain()
    assert stats_of(hooks)["calls"] == 4
    assert "a call in the background was dropped: hooks did not keep up" in caplog.text
    hooks.close()


def test_the_end_of_a_run_waits_no_longer_than_the_drain_timeout() -> None:
    """What runs then counts as failed, what waits as dropped, and none begins later."""
    hooks = HookManager(drain_timeout=0.3 * slowness())
    seen: list[str] = []

    async def hang(context: HookContext) -> None:
        seen.append(context.event.value)
        await asyncio.sleep(PATIENCE)

    hooks.register(CHUNK, hang)
    hooks.register(POST, hang)
    began = time.monotonic()
    amorsize.execute(abs, range(4), executor="serial", chunksize=1, hooks=hooks)
    assert time.monotonic() - began < PATIENCE / 2
    assert seen == ["on_chunk_complete"]
    stats = hooks.get_stats()["hooks"]
    (chunk,), (post,) = stats["on_chunk_complete"].values(), stats["post_execute"].values()
    assert (chunk["calls"], chunk["dropped"], chunk["errors"]) == (1, 3, 4)
    assert (post["calls"], post["dropped"], post["errors"]) == (0, 1, 1)
    assert hooks.drain(), "nothing is left"
    assert seen == ["on_chunk_complete"]
    hooks.close()


def test_the_drain_of_one_execution_leaves_the_others_alone(hooks: HookManager) -> None:
    """Two runs of one manager at the same time."""
    release = threading.Event()
    seen: list[str] = []

    def hook(context: HookContext) -> None:
        if context.metadata["execution_id"] == "slow":
            release.wait(PATIENCE)
        seen.append(context.metadata["execution_id"])

    hooks.register(PROGRESS, hook, background=True)
    hooks.trigger(of("slow"))
    hooks.trigger(of("quick"))
    assert hooks.drain("quick")
    assert seen == ["quick"]
    release.set()
    assert hooks.drain()
    assert seen == ["quick", "slow"]


def test_the_hooks_of_a_run_that_fails_are_drained_too(hooks: HookManager) -> None:
    """The last message is the one that matters."""
    seen: list[Any] = []

    async def note(context: HookContext) -> None:
        await asyncio.sleep(0.01)
        seen.append(context.metadata["status"])

    hooks.register(POST, note)
    with pytest.raises(TypeError):
        amorsize.execute(abs, ["x"], executor="serial", hooks=hooks)
    assert seen == ["error"]
    assert list(amorsize.stream(abs, [-1], executor="serial", hooks=hooks)) == [1]
    assert seen == ["error", "ok"]


def test_a_hook_may_itself_execute_with_the_same_manager(hooks: HookManager) -> None:
    """From a thread it waits for the inner run's hooks; on the loop it does not wait for itself."""
    seen: list[str] = []

    def outer(context: HookContext) -> None:
        if context.metadata["function"] == "outer":
            amorsize.execute(abs, [-1], executor="serial", name="inner", hooks=hooks)
        seen.append(context.metadata["function"])

    async def outer_async(context: HookContext) -> None:
        outer(context)

    hooks.register(POST, outer, background=True)
    hooks.register(HookEvent.PRE_EXECUTE, outer_async)
    amorsize.execute(abs, [-1], executor="serial", name="outer", hooks=hooks)
    hooks.drain()
    assert sorted(seen) == ["inner"] * 4 + ["outer"] * 2


# --- whose loop, whose thread ----


def test_hooks_run_on_a_loop_that_is_given() -> None:
    """The program's own, where its clients live."""

    async def main() -> list[object]:
        loops: list[object] = []

        async def note(context: HookContext) -> None:
            loops.append(asyncio.get_running_loop())

        hooks = HookManager(loop=asyncio.get_running_loop(), drain_timeout=PATIENCE)
        hooks.register(POST, note)
        await amorsize.aexecute(abs, [-1], executor="serial", hooks=hooks)
        assert len(loops) == 1
        # On the loop itself a run cannot wait for what runs there: it comes right after.
        amorsize.execute(abs, [-1], executor="serial", hooks=hooks)
        assert len(loops) == 1
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(loops) == 2
        hooks.close()
        return [each is asyncio.get_running_loop() for each in loops]

    assert asyncio.run(main()) == [True, True]
    assert "amorsize-hooks" not in {thread.name for thread in threading.enumerate()}


def test_a_given_loop_that_is_closed_drops_and_counts() -> None:
    """The run goes on."""

    async def note(context: HookContext) -> None: ...

    loop = asyncio.new_event_loop()
    loop.close()
    hooks = HookManager(loop=loop)
    hooks.register(POST, note)
    assert amorsize.execute(abs, [-1], executor="serial", hooks=hooks) == [1]
    assert stats_of(hooks, POST)["dropped"] == 1


def test_the_thread_begins_with_the_first_call_and_ends_with_close(hooks: HookManager) -> None:
    """It starts again when it is needed again."""

    def threads() -> list[threading.Thread]:
        return [each for each in threading.enumerate() if each.name == "amorsize-hooks"]

    async def note(context: HookContext) -> None: ...

    before = threads()
    hooks.register(PROGRESS, note)
    assert threads() == before
    for _ in range(2):
        hooks.register(PROGRESS, note)
        hooks.trigger(of(1))
        (thread,) = set(threads()) - set(before)
        hooks.close()
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert stats_of(hooks)["errors"] == 0


def test_a_manager_that_is_collected_ends_its_thread() -> None:
    """A manager made for each run leaks nothing."""

    async def note(context: HookContext) -> None: ...

    before = set(threading.enumerate())
    hooks = HookManager()
    hooks.register(PROGRESS, note)
    hooks.trigger(of(1))
    assert hooks.drain()
    (thread,) = set(threading.enumerate()) - before
    gone = weakref.ref(hooks)
    del hooks
    gc.collect()
    assert gone() is None
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_program_ends_cleanly_with_hooks_under_way_and_after_a_fork() -> None:
    """No warning, no hang; in the forked child the default manager is empty, others work."""
    script = """if True:
        import asyncio, os, sys, time, warnings
        import amorsize
        from amorsize import HookContext, HookEvent
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads
        hooks = amorsize.HookManager(drain_timeout=30)

        @amorsize.on(HookEvent.POST_EXECUTE)
        @hooks.on(HookEvent.POST_EXECUTE)
        async def note(context):
            await asyncio.sleep(0)
            os.write(1, f"{context.metadata['function']}\\n".encode())

        amorsize.execute(abs, [1], executor="serial", name="both", hooks=hooks)
        if (pid := os.fork()) == 0:
            amorsize.execute(abs, [1], executor="serial", name="child", hooks=hooks)
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0

        async def hang(context):
            await asyncio.sleep(60)
        hooks.register(HookEvent.ON_PROGRESS, hang)
        hooks.register(HookEvent.ON_PROGRESS, lambda _: time.sleep(60), background=True)
        hooks.trigger(HookContext(HookEvent.ON_PROGRESS))
    """
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", script], capture_output=True, text=True
    )
    assert done.stdout.split() == ["both", "both", "child"]
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "destroyed" not in done.stderr


def test_ctrl_c_interrupts_the_drain() -> None:
    """The run is over by then, and no call of a hook has to be waited for."""
    script = """if True:
        import asyncio, signal, sys, threading, time, traceback
        import amorsize
        hooks = amorsize.HookManager(drain_timeout=60)
        main = threading.main_thread().ident

        def press_in_the_drain():
            names = []
            while names[-1:] != ["wait"] or "drain" not in names:
                time.sleep(0.01)
                stack = traceback.extract_stack(sys._current_frames()[main])
                names = [frame.name for frame in stack]
            signal.pthread_kill(main, signal.SIGINT)

        @hooks.on(amorsize.HookEvent.POST_EXECUTE)
        async def hang(context):
            threading.Thread(target=press_in_the_drain).start()
            await asyncio.sleep(60)

        try:
            amorsize.execute(abs, [1], executor="serial", hooks=hooks)
        except KeyboardInterrupt:
            print("interrupted", hooks.get_stats()["error_counts"])
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "interrupted {'post_execute': 1}\n"
    assert done.returncode == 0


def test_a_terminated_program_calls_its_asynchronous_hooks_first() -> None:
    """The message that a job was killed is the important one."""
    script = """if True:
        import asyncio, os, signal
        import amorsize
        hooks = amorsize.HookManager(drain_timeout=30)

        @hooks.on(amorsize.HookEvent.POST_EXECUTE)
        async def note(context):
            await asyncio.sleep(0.01)
            os.write(1, context.metadata["status"].encode())

        def end(_):
            signal.raise_signal(signal.SIGTERM)

        amorsize.execute(end, [1], executor="serial", hooks=hooks)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("cancelled", -15)


# --- what is refused ----


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"timeout": 1.0}, InvalidValueError, "pass background=True with timeout=1.0"),
        ({"timeout": 0, "background": True}, InvalidValueError, "above 0 seconds, and finite"),
        ({"timeout": "1", "background": True}, InvalidTypeError, "a number of seconds; got '1'"),
        ({"background": 1}, InvalidTypeError, "background must be True or False; got 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    hooks: HookManager, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    """At registration."""
    with pytest.raises(kind, match=message):
        hooks.register(PROGRESS, print, **options)


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"queue_size": 0}, InvalidValueError, "queue_size must be 1 or more; got 0"),
        ({"queue_size": 1.5}, InvalidTypeError, "queue_size must be a whole number"),
        ({"drain_timeout": -1}, InvalidValueError, "drain_timeout must be 0 seconds or more"),
        ({"drain_timeout": None}, InvalidTypeError, "drain_timeout must be a number"),
    ],
)
def test_settings_of_a_manager_that_make_no_sense_are_refused(
    settings: dict[str, Any], kind: type[Exception], message: str
) -> None:
    """Nothing is made."""
    with pytest.raises(kind, match=message):
        HookManager(**settings)
