"""The manager: registration, dispatch, failing hooks, threads and child processes."""

from __future__ import annotations

import functools
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amorsize import HookContext, HookEvent, HookManager, get_default_manager
from amorsize.errors import AmorsizeError, InvalidTypeError
from amorsize.hooks import Registration

PROGRESS = HookEvent.ON_PROGRESS
ERROR = HookEvent.ON_ERROR


class Recorder:
    """A hook that keeps what it is called with."""

    def __init__(self) -> None:
        self.contexts: list[HookContext] = []

    def __call__(self, context: HookContext) -> None:
        self.contexts.append(context)

    def method(self, context: HookContext) -> None:
        self.contexts.append(context)


def fail(context: HookContext) -> None:
    raise ValueError("the hook is broken")


# --- registration ----


def test_a_hook_is_called_with_the_context_of_its_event_alone(hooks: HookManager) -> None:
    """A hook is called at the event that it was registered for, and at no other."""
    recorder = Recorder()
    hooks.register(PROGRESS, recorder)
    context = HookContext(PROGRESS)
    hooks.trigger(context)
    hooks.trigger(HookContext(ERROR))
    assert [id(each) for each in recorder.contexts] == [id(context)]


def test_hooks_run_in_the_order_of_their_registration(hooks: HookManager) -> None:
    """Later hooks may count on what earlier ones did."""
    order: list[int] = []
    for number in range(5):
        hooks.register(PROGRESS, lambda _, number=number: order.append(number))
    hooks.trigger(HookContext(PROGRESS))
    assert order == [0, 1, 2, 3, 4]


def test_the_same_callback_registers_once_an_event(hooks: HookManager) -> None:
    """Registering again has no effect; another event is another registration."""
    recorder = Recorder()
    for _ in range(3):
        hooks.register(PROGRESS, recorder)
    hooks.register(ERROR, recorder)
    hooks.trigger(HookContext(PROGRESS))
    assert len(recorder.contexts) == 1
    assert hooks.get_hook_count() == 2


def test_a_bound_method_is_the_same_callback_each_time(hooks: HookManager) -> None:
    """Python makes a new bound method at every access; they are one hook all the same."""
    recorder = Recorder()
    hooks.register(PROGRESS, recorder.method)
    hooks.register(PROGRESS, recorder.method)
    assert hooks.get_hook_count(PROGRESS) == 1
    assert hooks.unregister(PROGRESS, recorder.method) is True


def test_unregister_says_whether_the_hook_was_registered(hooks: HookManager) -> None:
    """True the first time, False when there was nothing to remove."""
    recorder = Recorder()
    hooks.register(PROGRESS, recorder)
    assert hooks.unregister(ERROR, recorder) is False
    assert hooks.unregister(PROGRESS, recorder) is True
    assert hooks.unregister(PROGRESS, recorder) is False
    hooks.trigger(HookContext(PROGRESS))
    assert recorder.contexts == []


def test_unregister_all_removes_one_event_or_all_and_counts(hooks: HookManager) -> None:
    """None means every event."""
    for event in (PROGRESS, ERROR):
        hooks.register(event, Recorder())
        hooks.register(event, Recorder())
    assert hooks.unregister_all(PROGRESS) == 2
    assert hooks.get_hook_count() == 2
    hooks.register(PROGRESS, Recorder())
    assert hooks.unregister_all() == 3
    assert hooks.unregister_all() == 0
    assert not hooks.has_hooks()


def test_has_hooks_and_get_hook_count_take_one_event_or_all(hooks: HookManager) -> None:
    """The run loop asks this before it builds a context."""
    assert not hooks.has_hooks()
    assert hooks.get_hook_count() == 0
    hooks.register(PROGRESS, Recorder())
    hooks.register(PROGRESS, Recorder())
    hooks.register(ERROR, Recorder())
    assert hooks.has_hooks()
    assert hooks.has_hooks(PROGRESS)
    assert not hooks.has_hooks(HookEvent.PRE_EXECUTE)
    assert hooks.get_hook_count() == 3
    assert hooks.get_hook_count(PROGRESS) == 2
    assert hooks.get_hook_count(HookEvent.PRE_EXECUTE) == 0


def test_a_hook_may_unregister_itself_while_it_runs(hooks: HookManager) -> None:
    """Dispatch goes through the hooks as they were when the event fired."""
    calls: list[str] = []

    def once(context: HookContext) -> None:
        calls.append("once")
        hooks.unregister(PROGRESS, once)

    hooks.register(PROGRESS, once)
    hooks.register(PROGRESS, lambda _: calls.append("always"))
    hooks.trigger(HookContext(PROGRESS))
    hooks.trigger(HookContext(PROGRESS))
    assert calls == ["once", "always", "always"]


def test_a_hook_may_trigger_another_event(hooks: HookManager) -> None:
    """Nothing is locked while hooks run."""
    recorder = Recorder()
    hooks.register(ERROR, recorder)
    hooks.register(PROGRESS, lambda _: hooks.trigger(HookContext(ERROR)))
    hooks.trigger(HookContext(PROGRESS))
    assert len(recorder.contexts) == 1


# --- the two forms of trigger ----


def test_trigger_takes_a_context_or_an_event_and_a_context(hooks: HookManager) -> None:
    """With an event of its own, that one decides which hooks are called."""
    recorder = Recorder()
    hooks.register(ERROR, recorder)
    hooks.trigger(HookContext(ERROR))
    hooks.trigger(ERROR, HookContext(PROGRESS))
    hooks.trigger(PROGRESS, HookContext(ERROR))
    assert [context.event for context in recorder.contexts] == [ERROR, PROGRESS]


@pytest.mark.parametrize(
    "arguments",
    [(PROGRESS,), (PROGRESS, None), (None,), ("unknown", HookContext(PROGRESS))],
    ids=["event", "event-none", "none", "no-such-event"],
)
def test_trigger_refuses_anything_else(hooks: HookManager, arguments: tuple[Any, ...]) -> None:
    """The message says what it takes."""
    with pytest.raises(InvalidTypeError, match=r"trigger\(\) takes a HookContext, or a HookEvent"):
        hooks.trigger(*arguments)


# --- what is refused at registration ----


async def async_hook(context: HookContext) -> None: ...


class AsyncCallable:
    async def __call__(self, context: HookContext) -> None: ...

    async def method(self, context: HookContext) -> None: ...


@pytest.mark.parametrize("not_an_event", ["on_progress", None, 3, HookEvent])
def test_register_refuses_what_is_no_hook_event(hooks: HookManager, not_an_event: Any) -> None:
    """The message names the events that there are, and what came instead."""
    with pytest.raises(InvalidTypeError, match=r"must be a HookEvent, one of PRE_EXECUTE.*; got"):
        hooks.register(not_an_event, Recorder())
    assert hooks.get_hook_count() == 0


@pytest.mark.parametrize("method", ["unregister", "unregister_all"])
def test_unregister_refuses_what_is_no_hook_event(hooks: HookManager, method: str) -> None:
    """A misspelt event is an error there too, not a silent False."""
    arguments = ("on_progress", fail) if method == "unregister" else ("on_progress",)
    with pytest.raises(InvalidTypeError, match="must be a HookEvent"):
        getattr(hooks, method)(*arguments)


@pytest.mark.parametrize("not_callable", [None, 3, "print", object()])
def test_register_refuses_what_is_not_callable(hooks: HookManager, not_callable: Any) -> None:
    """The message says what a hook is, and what came instead."""
    with pytest.raises(InvalidTypeError, match="callable that takes one HookContext; got"):
        hooks.register(PROGRESS, not_callable)


@pytest.mark.parametrize(
    "wrong",
    [lambda: None, lambda a, b: None, lambda *, context: None, lambda a, *, b: None],
    ids=["none", "two", "keyword-only", "keyword-required"],
)
def test_register_refuses_a_hook_that_does_not_take_one_argument(
    hooks: HookManager, wrong: Callable[..., Any]
) -> None:
    """It would fail at every event; it fails at registration instead."""
    with pytest.raises(InvalidTypeError, match="called with one positional argument"):
        hooks.register(PROGRESS, wrong)


@pytest.mark.parametrize(
    "right",
    [
        lambda context: None,
        lambda context, more=None: None,
        lambda *contexts: None,
        functools.partial(lambda prefix, context: None, "prefix"),
        print,
        [].append,
        HookManager().trigger,
    ],
    ids=["one", "optional", "star", "partial", "builtin", "c-method", "method"],
)
def test_register_accepts_whatever_takes_one_argument(
    hooks: HookManager, right: Callable[..., Any]
) -> None:
    """Optional further arguments, partials and C callables are fine."""
    hooks.register(PROGRESS, right)
    assert hooks.get_hook_count() == 1


@pytest.mark.parametrize(
    "asynchronous",
    [async_hook, AsyncCallable().method, functools.partial(async_hook), AsyncCallable()],
    ids=["function", "method", "partial", "callable-object"],
)
def test_an_async_hook_is_awaited(hooks: HookManager, asynchronous: Any) -> None:
    """Calling it only makes a coroutine, which has to be awaited."""
    hooks.register(PROGRESS, asynchronous)
    hooks.trigger(HookContext(PROGRESS))
    assert hooks.drain()
    assert hooks.get_stats()["call_counts"]["on_progress"] == 1
    assert hooks.get_stats()["error_counts"] == {}
    hooks.close()


def test_what_registration_refuses_is_an_amorsize_error_and_a_type_error(
    hooks: HookManager,
) -> None:
    """Both families of handlers catch it."""
    with pytest.raises(AmorsizeError) as caught:
        hooks.register(PROGRESS, None)  # type: ignore[arg-type]
    assert isinstance(caught.value, TypeError)


# --- the handle ----


def test_register_returns_a_handle_that_closes(hooks: HookManager) -> None:
    """Closing unregisters; closing twice does nothing."""
    recorder = Recorder()
    registration = hooks.register(PROGRESS, recorder)
    assert isinstance(registration, Registration)
    assert (registration.event, registration.callback) == (PROGRESS, recorder)
    registration.close()
    assert not hooks.has_hooks()
    registration.close()


def test_a_handle_closes_one_registration_only(hooks: HookManager) -> None:
    """Other hooks, and the same hook at other events, stay."""
    recorder = Recorder()
    other = hooks.register(ERROR, recorder)
    hooks.register(PROGRESS, Recorder())
    hooks.register(PROGRESS, recorder).close()
    assert hooks.get_hook_count(PROGRESS) == 1
    assert hooks.get_hook_count(ERROR) == 1
    other.close()


def test_a_handle_works_in_with_even_when_the_block_raises(hooks: HookManager) -> None:
    """The hook is gone after the block, and the exception passes."""
    recorder = Recorder()

    def use() -> None:
        with hooks.register(PROGRESS, recorder):
            hooks.trigger(HookContext(PROGRESS))
            raise LookupError

    with pytest.raises(LookupError):
        use()
    hooks.trigger(HookContext(PROGRESS))
    assert len(recorder.contexts) == 1


def test_a_handle_shows_its_hook_and_event(hooks: HookManager) -> None:
    """Its repr is of use in a log."""
    assert repr(hooks.register(ERROR, fail)) == "<Registration of fail for on_error>"


# --- failing hooks ----


def test_a_failing_hook_is_counted_and_the_others_run(hooks: HookManager) -> None:
    """The hooks after the failing one are called too."""
    recorder = Recorder()
    hooks.register(PROGRESS, fail)
    hooks.register(PROGRESS, recorder)
    hooks.trigger(HookContext(PROGRESS))
    hooks.trigger(HookContext(PROGRESS))
    assert len(recorder.contexts) == 2
    assert hooks.get_stats()["error_counts"] == {"on_progress": 2}
    assert hooks.get_stats()["call_counts"]["on_progress"] == 4


def test_a_failing_hook_is_logged_once_with_its_traceback_and_then_thinned(
    hooks: HookManager, caplog: pytest.LogCaptureFixture
) -> None:
    """A hook that fails ten thousand times does not fill the disk."""
    hooks.register(PROGRESS, fail)
    for _ in range(1000):
        hooks.trigger(HookContext(PROGRESS))
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert caplog.records[0].name == "amorsize.hooks.manager"
    assert caplog.records[0].exc_info is not None
    assert "fail failed at on_progress" in caplog.text
    assert "the hook is broken" in caplog.text
    for _ in range(1000):
        hooks.trigger(HookContext(PROGRESS))
    assert len(caplog.records) == 2
    assert hooks.get_stats()["error_counts"] == {"on_progress": 2000}


def test_every_failing_hook_of_an_event_is_logged(
    hooks: HookManager, caplog: pytest.LogCaptureFixture
) -> None:
    """One broken hook does not hide that another is broken too."""

    def fail_too(context: HookContext) -> None:
        raise KeyError("so is this one")

    hooks.register(PROGRESS, fail)
    hooks.register(PROGRESS, fail_too)
    hooks.trigger(HookContext(PROGRESS))
    assert "the hook is broken" in caplog.text
    assert "so is this one" in caplog.text


def test_a_hook_that_fails_at_every_event_is_logged_once(
    hooks: HookManager, caplog: pytest.LogCaptureFixture
) -> None:
    """It is one broken hook, not seven."""
    for event in HookEvent:
        hooks.register(event, fail)
    for event in HookEvent:
        hooks.trigger(HookContext(event))
    assert len(caplog.records) == 1
    assert hooks.get_stats()["error_counts"] == {event.value: 1 for event in HookEvent}


def test_verbose_prints_each_failure_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """Every failure, with its traceback, not the first one alone."""
    hooks = HookManager(verbose=True)
    hooks.register(PROGRESS, fail)
    hooks.trigger(HookContext(PROGRESS))
    hooks.trigger(HookContext(PROGRESS))
    printed = capsys.readouterr()
    assert printed.err.count("amorsize: hook fail failed at on_progress:\nTraceback") == 2
    assert printed.err.count("ValueError: the hook is broken") == 2
    assert printed.out == ""


def test_a_quiet_manager_prints_nothing(
    hooks: HookManager, capsys: pytest.CaptureFixture[str]
) -> None:
    """Failures are in the log only."""
    hooks.register(PROGRESS, fail)
    hooks.trigger(HookContext(PROGRESS))
    assert capsys.readouterr() == ("", "")


def test_a_verbose_failure_without_a_stderr_does_not_reach_the_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Programs without a console have no sys.stderr."""
    hooks = HookManager(verbose=True)
    hooks.register(PROGRESS, fail)
    monkeypatch.setattr(sys, "stderr", None)
    hooks.trigger(HookContext(PROGRESS))
    assert hooks.get_stats()["error_counts"] == {"on_progress": 1}


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_exception_passes_through(hooks: HookManager, kind: type[BaseException]) -> None:
    """Ctrl-C in a hook ends the program as it would anywhere."""

    def interrupt(context: HookContext) -> None:
        raise kind

    hooks.register(PROGRESS, interrupt)
    with pytest.raises(kind):
        hooks.trigger(HookContext(PROGRESS))
    assert hooks.get_stats()["error_counts"] == {}


def test_a_hook_that_unregisters_is_forgotten_with_its_failures_still_counted(
    hooks: HookManager,
) -> None:
    """Counters count all calls, also those of hooks that are no longer registered."""
    with hooks.register(PROGRESS, fail):
        hooks.trigger(HookContext(PROGRESS))
    stats = hooks.get_stats()
    assert stats["hook_counts"]["on_progress"] == 0
    assert stats["error_counts"] == {"on_progress": 1}


# --- statistics ----


def test_stats_are_keyed_by_event_value_with_errors_only_above_zero(hooks: HookManager) -> None:
    """A fresh manager lists all events at zero, and no error."""
    zeros = {event.value: 0 for event in HookEvent}
    assert hooks.get_stats() == {
        "hook_counts": zeros,
        "call_counts": zeros,
        "error_counts": {},
        "hooks": {},
    }
    hooks.register(ERROR, fail)
    hooks.register(ERROR, Recorder())
    hooks.trigger(HookContext(ERROR))
    stats = hooks.get_stats()
    hooks_of_events = stats.pop("hooks")
    assert stats == {
        "hook_counts": zeros | {"on_error": 2},
        "call_counts": zeros | {"on_error": 2},
        "error_counts": {"on_error": 1},
    }
    assert {name: each["errors"] for name, each in hooks_of_events["on_error"].items()} == {
        f"{__name__}.fail": 1,
        f"{__name__}.Recorder": 0,
    }


def test_stats_are_a_copy_with_plain_string_keys(hooks: HookManager) -> None:
    """They serialise, and changing them changes nothing."""
    stats = hooks.get_stats()
    stats["hook_counts"].clear()
    assert hooks.get_stats()["hook_counts"]
    assert all(type(key) is str for key in hooks.get_stats()["call_counts"])
    assert json.loads(json.dumps(hooks.get_stats())) == hooks.get_stats()


# --- threads ----


def in_threads(count: int, work: Callable[[int], object]) -> None:
    """Run ``work(number)`` in threads that start together; raise what one of them raised."""
    together = threading.Barrier(count)
    raised: list[BaseException] = []

    def run(number: int) -> None:
        together.wait()
        try:
            work(number)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


@pytest.fixture
def _frequent_switches() -> Any:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("_frequent_switches")
def test_triggers_from_several_threads_are_all_counted(hooks: HookManager) -> None:
    """No call and no failure gets lost between two threads."""
    recorder = Recorder()
    hooks.register(PROGRESS, recorder)
    hooks.register(PROGRESS, fail)
    logging.getLogger("amorsize.hooks.manager").disabled = True
    try:
        in_threads(8, lambda _: [hooks.trigger(HookContext(PROGRESS)) for _ in range(300)])
    finally:
        logging.getLogger("amorsize.hooks.manager").disabled = False
    assert len(recorder.contexts) == 2400
    assert hooks.get_stats()["call_counts"]["on_progress"] == 4800
    assert hooks.get_stats()["error_counts"]["on_progress"] == 2400


@pytest.mark.usefixtures("_frequent_switches")
def test_registrations_from_several_threads_all_count(hooks: HookManager) -> None:
    """Threads that register at the same time lose no hook, and leave none when they unregister."""
    recorders = [[Recorder() for _ in range(100)] for _ in range(8)]

    def register(number: int) -> None:
        for recorder in recorders[number]:
            hooks.register(PROGRESS, recorder)

    def unregister(number: int) -> None:
        assert all(hooks.unregister(PROGRESS, each) for each in recorders[number])

    in_threads(8, register)
    assert hooks.get_hook_count(PROGRESS) == 800
    in_threads(8, unregister)
    assert hooks.get_hook_count(PROGRESS) == 0


@pytest.mark.usefixtures("_frequent_switches")
def test_a_hook_that_stays_misses_nothing_while_others_come_and_go(hooks: HookManager) -> None:
    """Registration swaps the hooks as a whole, so dispatch never sees half a change."""
    steady = Recorder()
    hooks.register(PROGRESS, steady)

    def work(number: int) -> None:
        for _ in range(200):
            if number % 2:
                hooks.trigger(HookContext(PROGRESS))
            else:
                with hooks.register(PROGRESS, Recorder()):
                    pass

    in_threads(4, work)
    assert len(steady.contexts) == 400
    assert hooks.get_hook_count() == 1


# --- the default manager ----


def run_script(tmp_path: Path, text: str) -> list[str]:
    script = tmp_path / "script.py"
    script.write_text(text)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_there_is_one_default_manager_and_it_is_empty_until_something_registers() -> None:
    """A process that enables nothing builds no context."""
    script = """if True:
        from amorsize import HookManager, get_default_manager
        manager = get_default_manager()
        assert type(manager) is HookManager
        assert manager is get_default_manager()
        assert manager.get_hook_count() == 0
    """
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_default_manager_is_triggered_by_executions() -> None:
    """execute() triggers the default manager without any argument."""
    from amorsize import execute

    recorder = Recorder()
    with get_default_manager().register(HookEvent.POST_EXECUTE, recorder):
        execute(abs, [-1, 2], executor="serial")
    assert [context.items_completed for context in recorder.contexts] == [2]


def test_a_forked_child_finds_the_default_manager_empty(tmp_path: Path) -> None:
    """Even when it was forked while another thread held the manager's lock."""
    script = """if True:
        import os, sys, warnings
        from amorsize import HookContext, HookEvent, get_default_manager
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads
        manager = get_default_manager()
        manager.register(HookEvent.ON_PROGRESS, lambda context: print("seen", flush=True))
        manager.trigger(HookContext(HookEvent.ON_PROGRESS))
        with manager._lock:
            pid = os.fork()
            if pid == 0:
                assert get_default_manager() is manager
                manager.trigger(HookContext(HookEvent.ON_PROGRESS))
                stats = manager.get_stats()
                print("child", manager.get_hook_count(), sum(stats["call_counts"].values()))
                sys.stdout.flush()
                os._exit(0)
            os.waitpid(pid, 0)
        print("parent", manager.get_hook_count())
    """
    assert run_script(tmp_path, script) == ["seen", "child", "0", "0", "parent", "1"]


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_a_child_of_multiprocessing_finds_the_default_manager_empty(
    tmp_path: Path, method: str
) -> None:
    """Whatever the start method, no hook of the parent fires in a child."""
    script = f"""if True:
        import multiprocessing, sys, warnings
        from amorsize import HookEvent, get_default_manager

        def count(_):
            return get_default_manager().get_hook_count()

        if __name__ == "__main__":
            warnings.simplefilter("ignore", DeprecationWarning)
            get_default_manager().register(HookEvent.ON_PROGRESS, print)
            with multiprocessing.get_context({method!r}).Pool(1) as pool:
                print(pool.map(count, [0])[0], count(0))
    """
    assert run_script(tmp_path, script) == ["0", "1"]


def test_a_worker_process_finds_the_default_manager_empty() -> None:
    """Only the parent emits events."""
    from amorsize import execute

    def count(_: int) -> int:
        from amorsize import get_default_manager

        return get_default_manager().get_hook_count()

    with get_default_manager().register(HookEvent.ON_WORKER_START, Recorder()):
        assert execute(count, [0], executor="process", n_jobs=1) == [0]
