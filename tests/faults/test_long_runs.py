"""Long inputs in flat memory, slow consumers, long chunks."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import PATIENCE, wait_until

import amorsize
from amorsize import HookContext, HookEvent, HookManager
from amorsize.testing import RecordingHook, assert_contract


@pytest.mark.parametrize("mode", ["serial", "thread", "process"])
def test_a_stream_over_ten_million_items_keeps_memory_flat(mode: str) -> None:
    """Less than 50 MB more than after the first hundred thousand."""
    program = textwrap.dedent(
        f"""
        import resource, sys
        import amorsize
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        total = 0
        stream = amorsize.stream(abs, iter(range(10_000_000)), executor="{mode}", n_jobs=2)
        for count, value in enumerate(stream, 1):
            total += value
            if count == 100_000:
                before = peak()
        assert total == sum(range(10_000_000))
        print((peak() - before) // 1_000_000)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 50


def test_a_slow_consumer_slows_the_producers_down(
    mode: str, hooks: HookManager, recorder: RecordingHook
) -> None:
    """While nothing is consumed nothing more is drawn, and running chunks are reported."""
    drawn: list[int] = []

    def source() -> Iterator[int]:
        for x in range(1000):
            drawn.append(x)
            yield x

    stream = amorsize.stream(abs, source(), executor=mode, n_jobs=2, chunksize=1, hooks=hooks)
    assert next(stream) == 0
    # The window: seven chunks in flight or waiting, one of them already consumed.
    window = 3 * recorder.contexts[0].n_jobs + 1
    recorder.wait_for(HookEvent.ON_CHUNK_COMPLETE, PATIENCE, count=window)
    held = len(drawn)
    assert held <= window + 2
    assert [next(stream) for _ in range(5)] == [1, 2, 3, 4, 5]
    recorder.wait_for(HookEvent.ON_CHUNK_COMPLETE, PATIENCE, count=window + 5)
    assert len(drawn) <= held + 7
    assert list(stream) == list(range(6, 1000))
    assert_contract(recorder.contexts)


def test_chunks_follow_what_items_turn_out_to_take(
    hooks: HookManager, recorder: RecordingHook
) -> None:
    """A named engine begins with one item and grows; items of 20 ms stay few a chunk."""
    import time

    amorsize.execute(abs, range(20_000), executor="thread", n_jobs=2, hooks=hooks)
    sizes = [c.chunk_size or 0 for c in recorder.of(HookEvent.ON_CHUNK_COMPLETE)]
    assert sizes[0] == 1
    assert max(sizes) > 100
    recorder.contexts.clear()
    amorsize.execute(
        lambda _: time.sleep(0.02), range(30), executor="thread", n_jobs=2, hooks=hooks
    )
    assert max(c.chunk_size or 0 for c in recorder.of(HookEvent.ON_CHUNK_COMPLETE)) <= 10


def test_a_worker_is_reported_while_its_chunk_runs_for_as_long_as_it_likes(
    tmp_path: Path, hooks: HookManager
) -> None:
    """The chunk ends only after its worker was reported: no clock is asked."""
    gate = tmp_path / "gate"
    reported = threading.Event()

    def open_gate(context: HookContext) -> None:
        reported.set()
        gate.touch()

    hooks.register(HookEvent.ON_WORKER_START, open_gate)

    def wait_for_gate(x: int) -> bool:
        wait_until(gate.exists, "the gate")
        return True

    assert amorsize.execute(wait_for_gate, [1], executor="process", hooks=hooks) == [True]
    assert reported.is_set()
