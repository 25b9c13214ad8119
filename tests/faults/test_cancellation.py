"""Ctrl-C, SIGTERM and the parent's own death, on real programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from processes import still_running
from waiting import slowness

PROGRAM = textwrap.dedent(
    """
    import os, sys, time
    import amorsize
    from amorsize import HookEvent
    from amorsize.exporters.base import Exporter
    from amorsize.testing import RecordingHook, assert_contract

    mode, way, phase = sys.argv[1:]
    hooks = amorsize.HookManager()
    recorder = RecordingHook().attach(hooks)

    def say(*words):
        print(*words, flush=True)

    class Announcing(Exporter):
        def release(self):
            say("exporter closed")

    Announcing().attach(hooks)

    def report(context):
        try:
            assert_contract(recorder.contexts)
        except AssertionError as broken:
            say("broken", broken)
        ends = [c.metadata["exit_reason"] for c in recorder.of(HookEvent.ON_WORKER_END)]
        errors = [type(c.error).__name__ for c in recorder.of(HookEvent.ON_ERROR)]
        say("post", context.metadata["status"], errors, sorted(set(ends)))

    hooks.register(HookEvent.POST_EXECUTE, report)

    def work(x):
        # The sampled items run here, the others perhaps in a worker.
        if phase == "sampling" or x >= 2:
            os.write(1, b"ready\\n")  # whole lines, whoever else writes
            time.sleep(600)
        return x

    def source():
        yield 0
        if phase == "input":
            say("ready", os.getpid())
            time.sleep(600)
        yield from range(1, 100)

    executor = None if phase == "sampling" else mode
    options = {"executor": executor, "n_jobs": 2, "hooks": hooks}
    if executor is not None:
        options["chunksize"] = 1
    if way == "execute":
        amorsize.execute(work, source(), **options)
    else:
        for result in amorsize.stream(work, source(), **options):
            pass
    """
)


class Program:
    """A running program, with what it has printed so far."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        script = folder / "program.py"
        script.write_text(PROGRAM)
        self.process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.children: list[psutil.Process] = []

    def wait_until_ready(self, times: int = 1) -> None:
        """Wait until that many items or inputs have begun."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            times -= line.startswith("ready")
            if times == 0:
                break
        self.children = psutil.Process(self.process.pid).children(recursive=True)

    def finish(self) -> tuple[int, str, str]:
        out, err = self.process.communicate()
        return self.process.returncode, out, err

    def assert_no_child_is_left(self) -> None:
        assert still_running(self.children, 2 * slowness()) == []


@pytest.fixture
def start(tmp_path: Path) -> Iterator[type[Program]]:
    """Start programs, and make sure that none outlives the test."""
    started: list[Program] = []

    class Started(Program):
        def __init__(self, *arguments: str) -> None:
            super().__init__(tmp_path, *arguments)
            started.append(self)

    yield Started
    for program in started:
        for process in program.children:
            if process.is_running():
                process.kill()
        if program.process.poll() is None:
            program.process.kill()
        program.process.communicate()


CASES = [
    (mode, way, phase)
    for mode in ("serial", "thread", "process")
    for way in ("execute", "stream")
    for phase in ("running", "input")
] + [("serial", "execute", "sampling"), ("serial", "stream", "sampling")]


@pytest.mark.parametrize(("mode", "way", "phase"), CASES, ids=["-".join(case) for case in CASES])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_signal_reports_every_end_and_then_does_what_it_always_did(
    start: type[Program], mode: str, way: str, phase: str, signum: signal.Signals
) -> None:
    """Status cancelled, one ON_ERROR, every worker's end, exporters closed, nobody left."""
    program = start(mode, way, phase)
    program.wait_until_ready()
    began = time.monotonic()
    os.kill(program.process.pid, signum)
    code, out, err = program.finish()
    assert time.monotonic() - began < 10 * slowness()
    lines = [line for line in out.splitlines() if not line.startswith("ready")]
    post = next((line for line in lines if line.startswith("post")), None)
    if (way, phase) == ("stream", "sampling"):
        assert post is None  # the plan was not made yet: nothing had begun
    else:
        assert post is not None, (out, err)
        assert post.startswith("post cancelled ["), post
        assert post.count("'") >= 2
    assert not any(line.startswith("broken") for line in lines), out
    assert "exporter closed" in lines
    if signum == signal.SIGTERM:
        assert code == -signal.SIGTERM
        (warned,) = err.splitlines()
        assert warned.startswith("__main__.work: the run was cancelled by SIGTERM, after ")
    else:
        # The interpreter's own traceback of an uncaught KeyboardInterrupt, once, and no other.
        assert code == -signal.SIGINT
        assert err.count("Traceback (most recent call last)") == 1, err
        assert err.rstrip().endswith("KeyboardInterrupt")
    program.assert_no_child_is_left()


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_when_the_parent_is_killed_its_workers_are_gone_within_two_seconds(
    start: type[Program], mode: str
) -> None:
    """The kernel ends them."""
    program = start(mode, "execute", "running")
    program.wait_until_ready(times=2)
    os.kill(program.process.pid, signal.SIGKILL)
    program.assert_no_child_is_left()
    # Two workers, and the template that has forked them.
    assert len(program.children) == (3 if mode == "process" else 0)


def test_workers_that_hold_the_gil_die_with_their_parent(tmp_path: Path) -> None:
    """A worker inside one endless call in C cannot look at anything itself."""
    script = tmp_path / "busy.py"
    script.write_text(
        "import amorsize\n"
        "def busy(x):\n"
        "    print('ready', flush=True)\n"
        "    return sum(range(10**12))\n"
        "amorsize.execute(busy, [1], executor='process', n_jobs=1)\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 2
    process.kill()
    alive = still_running(children, 2 * slowness())
    for child in children:
        if child.is_running():
            child.kill()
    process.communicate()
    assert alive == []


@pytest.mark.parametrize("mode", ["serial", "thread", "process"])
def test_a_ctrl_c_that_python_drops_still_ends_the_run(mode: str, tmp_path: Path) -> None:
    """It comes while a weak reference's callback runs, where exceptions are printed and ignored."""
    script = tmp_path / "lost.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import os, signal, weakref
            import amorsize
            from amorsize import HookEvent

            class Thing:
                pass

            def press_ctrl_c(_):
                os.kill(os.getpid(), signal.SIGINT)

            def lose_it(context):
                if context.chunk_id == 2:
                    thing = Thing()
                    reference = weakref.ref(thing, press_ctrl_c)
                    del thing

            hooks = amorsize.HookManager()
            hooks.register(HookEvent.ON_CHUNK_COMPLETE, lose_it)
            hooks.register(HookEvent.POST_EXECUTE, lambda c: print(c.metadata["status"]))
            amorsize.execute(
                abs, range(100_000), executor="{mode}", n_jobs=2, chunksize=1, hooks=hooks
            )
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "cancelled\n")
    assert "Exception ignored in" in done.stderr
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")
