"""``aexecute()`` and ``astream()``: the same runs, the same events, and a loop that stays free."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from waiting import PATIENCE, slowness

import amorsize
from amorsize import HookEvent, HookManager, OptimizationResult
from amorsize.errors import InvalidTypeError, InvalidValueError
from amorsize.testing import RecordingHook, assert_contract


def drivers() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "amorsize-stream"]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    """Whatever a test does, its run's driver has ended."""
    yield
    for thread in drivers():
        thread.join(PATIENCE)
        assert not thread.is_alive()


def status(recorder: RecordingHook) -> str:
    ended = recorder.wait_for(HookEvent.POST_EXECUTE, PATIENCE)
    return str(ended.metadata["status"])


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


# --- results ----


def test_aexecute_gives_what_execute_gives(
    hooks: HookManager, recorder: RecordingHook, mode: str
) -> None:
    """In every mode, with its events."""

    async def main() -> list[int]:
        return await amorsize.aexecute(
            abs, range(-20, 0), executor=mode, n_jobs=2, chunksize=3, hooks=hooks
        )

    assert asyncio.run(main()) == list(range(20, 0, -1))
    assert_contract(recorder.contexts)
    assert status(recorder) == "ok"


def test_astream_gives_what_stream_gives(
    hooks: HookManager, recorder: RecordingHook, mode: str
) -> None:
    """In order, or as chunks complete."""

    async def main(ordered: bool) -> list[int]:
        results = amorsize.astream(
            abs, range(-20, 0), ordered=ordered, executor=mode, n_jobs=2, chunksize=3, hooks=hooks
        )
        return [result async for result in results]

    assert asyncio.run(main(True)) == list(range(20, 0, -1))
    assert sorted(asyncio.run(main(False))) == list(range(1, 21))
    assert_contract(recorder.contexts)


def test_the_choice_is_returned_on_request_and_nothing_is_sampled_twice() -> None:
    """amorsize chooses here too."""
    calls: list[int] = []

    def note(item: int) -> int:
        calls.append(item)
        return item

    async def main() -> tuple[list[int], OptimizationResult]:
        return await amorsize.aexecute(note, range(8), return_optimization_result=True)

    results, optimization = asyncio.run(main())
    assert results == list(range(8))
    assert sorted(calls) == results or optimization.executor_type == "process"
    assert isinstance(optimization, OptimizationResult)


def test_the_functions_exception_passes_unchanged(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """The same object, after the results that came before it."""
    broken = LookupError("broken")

    def fail_at_three(item: int) -> int:
        if item == 3:
            raise broken
        return item

    async def execute() -> None:
        await amorsize.aexecute(fail_at_three, range(6), executor="thread", n_jobs=1, hooks=hooks)

    async def stream(seen: list[int]) -> None:
        results = amorsize.astream(
            fail_at_three, range(6), executor="thread", n_jobs=1, chunksize=1, hooks=hooks
        )
        async for result in results:
            seen.append(result)

    seen: list[int] = []
    for main in (execute(), stream(seen)):
        with pytest.raises(LookupError) as caught:
            asyncio.run(main)
        assert caught.value is broken
    assert seen == [0, 1, 2]
    assert_contract(recorder.contexts)
    assert status(recorder) == "error"


def test_bad_arguments_are_refused_before_anything_runs() -> None:
    """By the await of one, by the call of the other."""

    async def main() -> None:
        with pytest.raises(InvalidValueError):
            await amorsize.aexecute(abs, [1], n_jobs=0)
        with pytest.raises(InvalidTypeError, match=r"ordered is .* give True or False"):
            amorsize.astream(abs, [1], ordered="yes")  # type: ignore[arg-type]
        with pytest.raises(InvalidValueError):
            amorsize.astream(abs, [1], n_jobs=0)

    asyncio.run(main())


# --- beside other coroutines ----


def test_the_event_loop_stays_free_while_the_function_blocks() -> None:
    """The function waits for a coroutine of the same loop."""

    async def main() -> list[bool]:
        free = threading.Event()
        asyncio.get_running_loop().call_later(0.01, free.set)
        return await amorsize.aexecute(lambda _: free.wait(PATIENCE), [0], executor="serial")

    assert asyncio.run(main()) == [True]


def test_runs_go_on_beside_each_other() -> None:
    """Two that need each other to get on."""
    barrier = threading.Barrier(2)

    def meet(item: int) -> int:
        barrier.wait(PATIENCE)
        return item

    async def collect() -> list[int]:
        return [each async for each in amorsize.astream(meet, [2], executor="thread", n_jobs=1)]

    async def main() -> Any:
        one = amorsize.aexecute(meet, [1], executor="thread", n_jobs=1)
        return await asyncio.gather(one, collect())

    assert asyncio.run(main()) == [[1], [2]]


def test_hooks_see_the_callers_context_variables(hooks: HookManager) -> None:
    """On the driver's thread; an asynchronous hook sees them too."""
    variable = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []
    hooks.register(HookEvent.PRE_EXECUTE, lambda _: seen.append(variable.get()))

    @hooks.on(HookEvent.POST_EXECUTE)
    async def note(context: object) -> None:
        seen.append(variable.get())

    async def main() -> None:
        variable.set("the caller's")
        await amorsize.aexecute(abs, [1], executor="serial", hooks=hooks)
        async for _ in amorsize.astream(abs, [1], executor="serial", hooks=hooks):
            pass

    asyncio.run(main())
    assert seen == ["the caller's"] * 4
    hooks.close()


def test_a_slow_consumer_slows_the_run_down() -> None:
    """A few chunks per worker are in flight or waiting, whatever the input's length."""
    drawn = 0

    def endless() -> Iterator[int]:
        nonlocal drawn
        while True:
            drawn += 1
            yield drawn

    async def main() -> int:
        stream = amorsize.astream(abs, endless(), executor="thread", n_jobs=1, chunksize=1)
        async with contextlib.aclosing(stream) as results:
            async for result in results:
                await asyncio.sleep(0.001)
                if result == 50:
                    break
        return drawn

    assert 50 <= asyncio.run(main()) < 70


# --- cancellation ----


@pytest.mark.parametrize("executor", ["serial", "thread", "process"])
def test_cancelling_the_task_cancels_the_run(
    hooks: HookManager, recorder: RecordingHook, executor: str
) -> None:
    """Every event is emitted, with the status, by the time the cancellation arrives."""

    async def main() -> None:
        run = asyncio.create_task(
            amorsize.aexecute(
                time.sleep, [0.01] * 5000, executor=executor, n_jobs=1, chunksize=1, hooks=hooks
            )
        )
        await until(lambda: recorder.of(HookEvent.ON_CHUNK_COMPLETE))
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

    asyncio.run(main())
    assert status(recorder) == "cancelled"
    assert_contract(recorder.contexts)
    assert "cancelled by its consumer" in str(recorder.of(HookEvent.ON_ERROR)[0].error_message)


def test_a_timeout_of_asyncio_cancels_the_run(hooks: HookManager, recorder: RecordingHook) -> None:
    """``asyncio.timeout()`` works as around anything."""

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1 * slowness()):
                await amorsize.aexecute(
                    time.sleep, [0.005] * 10000, executor="thread", n_jobs=1, hooks=hooks
                )

    asyncio.run(main())
    assert status(recorder) == "cancelled"


@pytest.mark.parametrize("how", ["aclose", "raise", "cancel", "drop", "end of the loop"])
def test_a_stream_that_is_left_ends_its_run(
    hooks: HookManager, recorder: RecordingHook, how: str
) -> None:
    """However the consumer goes away, the run is cancelled and its end is reported."""

    def new_stream() -> Any:
        data = [0.001] * 100_000
        return amorsize.astream(
            time.sleep, data, executor="thread", n_jobs=1, chunksize=1, hooks=hooks
        )

    async def consume(stream: Any) -> None:
        async for _ in stream:
            if how == "raise":
                raise LookupError

    async def main() -> None:
        stream = new_stream()
        if how == "raise":
            with pytest.raises(LookupError):
                async with contextlib.aclosing(stream):
                    await consume(stream)
            assert recorder.of(HookEvent.POST_EXECUTE)
            return
        if how == "cancel":
            task = asyncio.create_task(consume(stream))
            await until(lambda: recorder.of(HookEvent.ON_PROGRESS))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert recorder.of(HookEvent.POST_EXECUTE)
            return
        await anext(stream)
        if how == "aclose":
            await stream.aclose()
            assert recorder.of(HookEvent.POST_EXECUTE)
        elif how == "drop":
            del stream
            gc.collect()
            await until(lambda: recorder.of(HookEvent.POST_EXECUTE))

    asyncio.run(main())
    assert status(recorder) == "cancelled"
    assert_contract(recorder.contexts)


def test_a_stream_that_is_never_asked_never_runs(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """The first result that is asked for begins it."""

    async def main() -> None:
        stream = amorsize.astream(abs, [1], hooks=hooks)
        await stream.aclose()

    asyncio.run(main())
    assert recorder.contexts == []


def test_what_cannot_be_stopped_does_not_hold_the_cancellation(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """An input that blocks: its end is reported after a second, by the canceller."""
    blocked, release = threading.Event(), threading.Event()

    def blocking() -> Iterator[int]:
        yield 1
        blocked.set()
        release.wait(PATIENCE)

    async def main() -> None:
        run = asyncio.create_task(
            amorsize.aexecute(
                abs, blocking(), executor="thread", n_jobs=1, chunksize=1, hooks=hooks
            )
        )
        await until(blocked.is_set)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert status(recorder) == "cancelled"

    asyncio.run(main())
    release.set()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reports_the_end_of_the_run(signum: signal.Signals) -> None:
    """Ctrl-C by way of asyncio, SIGTERM by the handler that streams have."""
    script = """if True:
        import asyncio, os, sys, time
        import amorsize
        hooks = amorsize.HookManager()

        @hooks.on(amorsize.HookEvent.POST_EXECUTE)
        def note(context):
            os.write(1, f"{context.metadata['status']}\\n".encode())

        @hooks.on(amorsize.HookEvent.ON_PROGRESS, when=amorsize.every(items=5))
        def begun(context):
            os.write(1, b"begun\\n")

        async def main():
            await amorsize.aexecute(
                time.sleep, [0.005] * 20000, executor="thread", n_jobs=1, chunksize=5, hooks=hooks
            )

        asyncio.run(main())
    """
    program = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "begun\n"
    program.send_signal(signum)
    rest, _ = program.communicate()
    assert rest.splitlines()[-1] == "cancelled"
    assert program.returncode in (-signum, 128 + signum)
