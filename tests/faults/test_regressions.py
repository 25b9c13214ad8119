"""Faults that once slipped through a review, each as small as it can be shown."""

from __future__ import annotations

import enum
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE, slowness

import amorsize
from amorsize import HookContext, HookEvent, HookManager
from amorsize.errors import FunctionExitError, TransportError
from amorsize.testing import RecordingHook, assert_contract


class Unprintable(Exception):
    """An exception whose text cannot be had."""

    def __str__(self) -> str:
        raise ValueError("no text")


class UnprintableExit(BaseException):
    """The same, and no ``Exception``."""

    def __str__(self) -> str:
        raise ValueError("no text")


class Colour(enum.StrEnum):
    """A string that is more than a string."""

    RED = "red"


def python(script: str, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    path = cwd / "program.py"
    path.write_text(textwrap.dedent(script))
    return subprocess.run(
        [sys.executable, str(path), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_sending_results_is_not_part_of_an_items_time(hooks: HookManager) -> None:
    """The parent is slow to take results: no item is late, and none is named."""
    recorder = RecordingHook().attach(hooks)
    seconds = 0.5 * slowness()
    hooks.register(HookEvent.ON_CHUNK_COMPLETE, lambda _: time.sleep(seconds + 0.2))
    results = amorsize.execute(
        lambda x: bytes([x]) * 3_000_000,
        range(4),
        executor="process",
        n_jobs=2,
        chunksize=1,
        item_timeout=seconds,
        return_exceptions=True,
        hooks=hooks,
    )
    assert [type(result) for result in results] == [bytes] * 4
    assert_contract(recorder.contexts)


def test_an_exception_without_a_text_passes(
    mode: str, hooks: HookManager, recorder: RecordingHook
) -> None:
    """As itself, in every mode; no worker is lost over it."""

    def fail(x: int) -> int:
        raise Unprintable

    with pytest.raises(Unprintable):
        amorsize.execute(fail, range(3), executor=mode, n_jobs=2, hooks=hooks)
    assert_contract(recorder.contexts)
    assert "cannot be shown" in (recorder.contexts[-1].error_message or "")


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_an_exit_without_a_text_is_the_failure_of_its_item(mode: str, hooks: HookManager) -> None:
    """Not a thread that dies in silence."""

    def fail(x: int) -> int:
        raise UnprintableExit

    with pytest.raises(FunctionExitError, match="UnprintableExit"):
        amorsize.execute(fail, range(3), executor=mode, n_jobs=2, timeout=PATIENCE, hooks=hooks)


def test_a_function_that_fails_to_load_beside_a_large_item_does_not_block(
    hooks: HookManager,
) -> None:
    """Its error is long, and the parent has something large to send at the same time."""

    class FailsToLoad:
        def __call__(self, x: bytes) -> int:
            return len(x)

        def __reduce__(self) -> tuple[Any, ...]:
            return int, ("x" * 1_000_000,)

    with pytest.raises(TransportError, match="cannot be loaded"):
        amorsize.execute(
            FailsToLoad(), [bytes(3_000_000)] * 4, executor="process", n_jobs=2, hooks=hooks
        )


def test_log_records_with_awkward_extras_come_home(caplog: pytest.LogCaptureFixture) -> None:
    """Subclasses of strings, and objects of classes that this process does not have."""

    def log(x: int) -> int:
        made_here = type("MadeHere", (), {})
        logging.getLogger("job").warning("hello", extra={"colour": Colour.RED, "it": made_here()})
        return x

    assert amorsize.execute(log, [1], executor="process", n_jobs=1) == [1]
    assert [record.getMessage() for record in caplog.records if record.name == "job"] == ["hello"]


@pytest.mark.parametrize("mode", ["serial", "thread"])
def test_sigterm_ends_a_child_that_the_function_forked(mode: str, tmp_path: Path) -> None:
    """As it would without us: by the signal, without a traceback."""
    done = python(
        f"""
        import multiprocessing, time, warnings
        import amorsize
        warnings.simplefilter("ignore", DeprecationWarning)
        def child_work(up):
            up.set()
            time.sleep(600)
        def work(x):
            context = multiprocessing.get_context("fork")
            up = context.Event()
            child = context.Process(target=child_work, args=(up,))
            child.start()
            up.wait()
            child.terminate()
            child.join()
            return child.exitcode
        print(amorsize.execute(work, [1], executor="{mode}"))
        """,
        tmp_path,
    )
    assert (done.stdout, done.stderr) == (f"[{-signal.SIGTERM}]\n", "")


def test_a_handler_that_the_application_sets_meanwhile_stays() -> None:
    """A handler is restored only where ours is still installed."""

    def theirs(signum: int, frame: Any) -> None:
        pass

    before = signal.getsignal(signal.SIGTERM)
    try:
        amorsize.execute(
            lambda _: signal.signal(signal.SIGTERM, theirs) and None, [1], executor="serial"
        )
        assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("event", list(HookEvent), ids=lambda event: event.value)
def test_a_ctrl_c_in_one_hook_is_not_hidden_from_the_others(
    event: HookEvent, hooks: HookManager
) -> None:
    """Hooks after it get the same event: starts and ends stay paired."""

    def press_ctrl_c(context: HookContext) -> None:
        hooks.unregister(event, press_ctrl_c)
        raise KeyboardInterrupt

    hooks.register(event, press_ctrl_c)
    recorder = RecordingHook().attach(hooks)
    everywhere = RecordingHook().attach(HookManager())

    def work(x: int) -> int:
        if event is HookEvent.ON_ERROR and x == 3:
            raise ValueError(x)
        return x

    with pytest.raises(KeyboardInterrupt):
        amorsize.execute(work, range(5), executor="thread", n_jobs=2, chunksize=1, hooks=hooks)
    assert everywhere.contexts == []
    assert_contract(recorder.contexts)
    if event is not HookEvent.POST_EXECUTE:  # there it was over, and well
        assert recorder.contexts[-1].metadata["status"] == "cancelled"


def test_a_stream_that_is_closed_by_its_own_hook_is_cancelled(
    mode: str, hooks: HookManager, recorder: RecordingHook
) -> None:
    """The driver does not wait for itself."""
    stream = amorsize.stream(abs, range(100), executor=mode, n_jobs=1, chunksize=1, hooks=hooks)

    consumed = threading.Event()

    def close(context: HookContext) -> None:
        if context.chunk_id == 3:
            assert consumed.wait(PATIENCE)  # a generator that is executing cannot be closed
            stream.close()  # type: ignore[attr-defined]  # it is a generator

    hooks.register(HookEvent.ON_CHUNK_COMPLETE, close)
    assert next(stream) == 0
    consumed.set()
    post = recorder.wait_for(HookEvent.POST_EXECUTE, PATIENCE)
    assert post.metadata["status"] in ("cancelled", "ok")
    assert_contract(recorder.contexts)


def test_nothing_is_imported_from_the_working_directory_by_chance(tmp_path: Path) -> None:
    """A file there that is named like a module of the standard library harms no worker."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "pickle.py").write_text("raise SystemExit(77)\n")
    done = python(
        """
        import os
        os.chdir("elsewhere")
        import amorsize
        print(amorsize.execute(abs, [-1], executor="process", n_jobs=1))
        """,
        tmp_path,
    )
    assert (done.stdout, done.stderr) == ("[1]\n", "")


@pytest.mark.parametrize("mode", ["serial", "thread", "process"])
def test_a_stream_that_is_open_at_exit_reports_its_end(mode: str, tmp_path: Path) -> None:
    """Before workers and exporters go."""
    done = python(
        f"""
        import amorsize
        hooks = amorsize.HookManager()
        hooks.register(
            amorsize.HookEvent.POST_EXECUTE, lambda c: print(c.metadata["status"], flush=True)
        )
        stream = amorsize.stream(abs, range(10**6), executor="{mode}", chunksize=1, hooks=hooks)
        print(next(stream), flush=True)
        import builtins
        builtins.kept = stream  # nothing collects it before the exit
        """,
        tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, "0\ncancelled\n")
    (warned,) = done.stderr.splitlines()
    assert warned.startswith("builtins.abs: the run was cancelled by its consumer, after ")


def test_ctrl_c_twice_leaves_no_worker_and_no_descriptor(tmp_path: Path) -> None:
    """The second one comes while the first is being handled."""
    done = python(
        """
        import os, signal, threading, time
        import psutil
        import amorsize
        from amorsize import HookEvent, HookManager

        pressing = []

        def press_again():
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

        def press(context):
            pressing.append(threading.Thread(target=press_again))
            pressing[-1].start()
            os.kill(os.getpid(), signal.SIGINT)

        def run():
            hooks = HookManager()
            hooks.register(HookEvent.ON_WORKER_START, press)
            amorsize.execute(
                lambda x: time.sleep(600), range(4), executor="process", n_jobs=2,
                chunksize=1, hooks=hooks,
            )

        me = psutil.Process()
        amorsize.execute(abs, [1], executor="process", n_jobs=2)
        amorsize.shutdown()
        before = me.num_fds()
        runs = iter([run] * 3)
        while True:
            try:
                # However late the second one comes, it comes before the next run begins.
                for thread in pressing:
                    thread.join()
                next(runs)()
            except KeyboardInterrupt:
                pass
            except StopIteration:
                break
        amorsize.shutdown()
        gone, alive = psutil.wait_procs(me.children(), timeout=60)
        print(len(alive), me.num_fds() - before)
        """,
        tmp_path,
    )
    assert done.stdout == "0 0\n", done.stderr


def test_a_worker_killed_while_the_input_waits_is_reported_without_a_chunk() -> None:
    """The message does not speak of results that were never there."""
    hooks = HookManager()
    recorder = RecordingHook().attach(hooks)

    def source() -> Any:
        yield 1
        recorder.wait_for(HookEvent.ON_CHUNK_COMPLETE, PATIENCE)
        os.kill(recorder.of(HookEvent.ON_WORKER_START)[0].metadata["pid"], signal.SIGKILL)
        yield 2

    stream = amorsize.stream(abs, source(), executor="process", n_jobs=1, chunksize=1, hooks=hooks)
    with pytest.raises(amorsize.AmorsizeError) as caught:
        list(stream)
    assert "Its results" not in str(caught.value)


def test_the_item_that_failed_is_named_in_every_mode(
    mode: str, hooks: HookManager, recorder: RecordingHook
) -> None:
    """By a note on the exception, and by the event."""

    def check(item: int) -> int:
        if item == 7:
            raise ValueError("seven")
        return item

    with pytest.raises(ValueError, match="seven") as caught:
        amorsize.execute(check, range(10), executor=mode, n_jobs=1, chunksize=5, hooks=hooks)
    assert "on item 7" in " ".join(caught.value.__notes__)
    [error] = recorder.of(HookEvent.ON_ERROR)
    assert error.metadata["item_index"] == 7


def test_one_exception_object_keeps_one_note(hooks: HookManager) -> None:
    """A function that raises the same object again and again does not make it grow."""
    error = ValueError("always")

    def fail(item: int) -> int:
        raise error

    amorsize.execute(fail, range(50), executor="serial", return_exceptions=True)
    assert error.__notes__ == ["Raised on item 0."]


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_a_time_limit_names_what_was_at_work(mode: str) -> None:
    """The items that nobody waits for any more."""
    with pytest.raises(amorsize.AmorsizeError, match=r"in flight were items 0 to 1 \(chunk 0\)"):
        amorsize.execute(
            lambda _: time.sleep(60), range(4), executor=mode, n_jobs=2, chunksize=2, timeout=0.5
        )


def test_a_choice_inside_a_worker_proposes_no_processes() -> None:
    """The workers of the outer run have the cores already."""

    def nested(_: int) -> list[str]:
        from amorsize.planning.machine import engines_here

        return list(engines_here())

    assert amorsize.execute(nested, [0], executor="process") == [["serial", "thread"]]
    assert amorsize.execute(nested, [0], executor="thread") == [["serial", "thread", "process"]]


def test_a_range_that_is_too_long_to_be_counted_streams(mode: str) -> None:
    """Its ``len()`` raises; its items come all the same."""
    stream: Any = amorsize.stream(abs, range(10**20), executor=mode, n_jobs=2, chunksize=2)
    assert [next(stream) for _ in range(5)] == [0, 1, 2, 3, 4]
    stream.close()
