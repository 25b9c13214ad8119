"""What all exporters share: attaching, closing, enabling once, children, the interpreter's exit."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import PATIENCE

import amorsize
from amorsize.errors import ExporterError, InvalidValueError
from amorsize.exporters import Exporter
from amorsize.exporters.base import enable_once, in_child_process
from amorsize.hooks import HookContext, HookEvent, HookManager, get_default_manager
from amorsize.workers import role


class Recorder(Exporter):
    name = "recorder"

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def pre_execute(self, context: HookContext) -> None:
        self.calls.append("pre_execute")

    def post_execute(self, context: HookContext) -> None:
        self.calls.append("post_execute")

    def flush(self, timeout: float = 1.0) -> bool:
        self.calls.append("flush")
        return True

    def release(self) -> None:
        self.calls.append("release")

    def abandon(self) -> None:
        self.calls.append("abandon")


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with Recorder() as recorder:
        yield recorder


def fire(manager: HookManager) -> None:
    for event in HookEvent:
        manager.trigger(HookContext(event))


def test_only_overridden_events_are_registered(manager, recorder):
    """A method that is not overridden costs nothing."""
    recorder.attach(manager)
    registered = {event for event in HookEvent if manager.has_hooks(event)}
    assert registered == {HookEvent.PRE_EXECUTE, HookEvent.POST_EXECUTE}


def test_there_is_a_method_for_every_event():
    """Each is named as the event's value, does nothing, and says when it is called."""
    for event in HookEvent:
        assert getattr(Exporter, event.value).__doc__
        assert getattr(Exporter(), event.value)(HookContext(event)) is None


def test_events_arrive_once_however_often_it_is_attached(manager, recorder):
    """Attaching again changes nothing."""
    assert recorder.attach(manager).attach(manager) is recorder
    fire(manager)
    assert recorder.calls == ["pre_execute", "post_execute"]
    assert recorder.managers == (manager,)


def test_one_exporter_may_serve_several_managers(recorder):
    """And is detached from all of them when it closes."""
    managers = [HookManager(), HookManager()]
    for manager in managers:
        fire(recorder.attach(manager).managers[-1])
    assert recorder.calls == ["pre_execute", "post_execute"] * 2
    recorder.close()
    assert not any(manager.has_hooks() for manager in managers)


def test_without_a_manager_it_attaches_to_the_default_one(recorder):
    """That is the manager which every execute() triggers."""
    recorder.attach()
    assert recorder.managers == (get_default_manager(),)


def test_close_detaches_flushes_and_releases_once(manager, recorder):
    """In this order, and a second close does nothing."""
    recorder.attach(manager)
    recorder.close()
    recorder.close()
    fire(manager)
    assert recorder.calls == ["flush", "release"]
    assert not recorder.active


def test_a_closed_exporter_cannot_be_attached(manager, recorder):
    """It says so instead of staying silent for ever."""
    recorder.close()
    with pytest.raises(ExporterError, match=r"Recorder \(closed\).*is closed .* make a new one"):
        recorder.attach(manager)


def test_a_flush_that_fails_still_releases(manager):
    """What the exporter owns is freed however its backend behaves."""

    class Failing(Recorder):
        def flush(self, timeout: float = 1.0) -> bool:
            raise OSError("backend is gone")

    failing = Failing().attach(manager)
    with pytest.raises(OSError, match="backend is gone"):
        failing.close()
    assert failing.calls == ["release"]


def test_enabling_twice_with_equal_settings_gives_the_same_object():
    """So that a library and its application may both ask."""
    with enable_once(Recorder, {"port": 1}, Recorder) as recorder:
        assert enable_once(Recorder, {"port": 1}, Recorder) is recorder
        fire(get_default_manager())
        assert recorder.calls == ["pre_execute", "post_execute"]


def test_enabling_with_other_settings_names_them_and_a_remedy():
    """The message names settings without their values, which may be secrets."""
    with (
        enable_once(Recorder, {"port": 1, "password": "hunter2", "addr": "a"}, Recorder),
        pytest.raises(ExporterError) as raised,
    ):
        enable_once(Recorder, {"port": 2, "password": "hunter3", "addr": "a"}, Recorder)
    assert str(raised.value) == (
        "<Recorder (open)> is enabled already, with another password and port. "
        "Call its close() first to enable it again."
    )


def test_after_close_it_can_be_enabled_again():
    """With any settings."""
    enable_once(Recorder, {"port": 1}, Recorder).close()
    with enable_once(Recorder, {"port": 2}, Recorder) as recorder:
        assert recorder.active


def test_closing_an_own_exporter_leaves_the_enabled_one():
    """Only the enabled object itself gives up the place of its kind."""
    with enable_once(Recorder, {}, Recorder) as enabled:
        Recorder().close()
        assert enable_once(Recorder, {}, Recorder) is enabled


def test_it_is_closed_when_the_interpreter_exits():
    """Also when another exporter fails to close."""
    script = """
        import os
        from amorsize.exporters import Exporter
        class Loud(Exporter):
            def release(self):
                os.write(1, b"released\\n")  # in one piece: they close at the same time
                raise OSError("and failed")
        first, second = Loud(), Loud()
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "released\n" * 2
    assert ran.stderr.count("failed to close") == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # 3.12: it is the point
def test_it_is_inert_in_a_forked_child(recorder):
    """Events do not arrive, closing touches nothing of the parent's, and another may be enabled."""
    manager = HookManager()
    recorder.attach(manager)
    child = os.fork()
    if child == 0:
        fire(manager)
        recorder.close()
        again = enable_once(Recorder, {}, Recorder)
        good = recorder.calls == ["abandon"] and not recorder.active and again.active
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    fire(manager)
    assert recorder.calls == ["pre_execute", "post_execute"]


def test_it_is_inert_in_amorsizes_own_workers(manager, monkeypatch):
    """A worker that imports a module which enables an exporter attaches nothing."""
    monkeypatch.setattr(role, "_is_worker", True)
    assert in_child_process()
    with Recorder().attach(manager) as recorder:
        assert not recorder.active
        assert not manager.has_hooks()
        assert repr(recorder) == "<Recorder (inert in a child process)>"


# --- children that run executions ----

CHILD = """
import amorsize, logging, multiprocessing, os, sys
from amorsize.exporters import Exporter
from amorsize.exporters.base import enable_once

logging.basicConfig(format="%(levelname)s %(name)s %(message)s", stream=sys.stdout)

class Printer(Exporter):
    name = "printer"
    def post_execute(self, context):
        print("observed", context.items_completed, flush=True)
    def flush(self, timeout=1.0):
        print("flushed", flush=True)
        return True

def enable():
    return enable_once(Printer, {}, Printer)

def execute(count=1):
    for _ in range(count):
        amorsize.execute(abs, [1, 2], executor="serial")

def fork(function):
    sys.stdout.flush()
    if os.fork() == 0:
        function()
        sys.stdout.flush()
        os._exit(0)
    assert os.wait()[1] == 0
"""

INERT = (
    "WARNING amorsize.exporters.base The printer exporter is inert in this process (CHILD, a "
    "child of PARENT), whose executions are not observed. Enable it in this process, after "
    "amorsize.enable_in_child_process()."
)


def run(body: str, directory: Path, *arguments: str, **variables: str) -> list[str]:
    """Run a program; return the lines that it prints, with names in place of process ids."""
    script = directory / "program.py"
    script.write_text(CHILD + textwrap.dedent(body))
    ran = subprocess.Popen(
        [sys.executable, str(script), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    )
    printed, _ = ran.communicate(timeout=PATIENCE)
    assert ran.returncode == 0
    printed = printed.replace(f"a child of {ran.pid})", "a child of PARENT)")
    return re.sub(r"process \(\d+,", "process (CHILD,", printed).splitlines()


def test_the_first_execution_of_a_forked_child_reports_that_the_exporter_is_inert(tmp_path):
    """Once; and none of the parent, nor of a child in which it was enabled again."""
    printed = run(
        """
        enable()
        execute()
        fork(lambda: execute(3))
        fork(lambda: [enable(), execute()])
        """,
        tmp_path,
    )
    assert printed == ["observed 2", INERT, "observed 2", "flushed"]


def test_an_exporter_of_a_manager_of_ones_own_is_reported_as_well(tmp_path):
    """It keeps its hooks in a forked child."""
    printed = run(
        """
        hooks = amorsize.HookManager()
        exporter = Printer().attach(hooks)
        fork(lambda: [amorsize.execute(abs, [1], hooks=hooks) for _ in range(3)])
        exporter.close()
        fork(lambda: amorsize.execute(abs, [1], hooks=hooks))
        """,
        tmp_path,
    )
    assert printed == [INERT, "flushed"]


def test_a_child_of_an_inert_child_is_reported_too(tmp_path):
    """Also where the first one has run nothing."""
    printed = run("enable(); fork(lambda: [fork(execute), execute()])", tmp_path)
    reported = [line.partition(",")[0] for line in printed]
    assert reported == [INERT.partition(",")[0]] * 2 + ["flushed"]


ENABLED_IN_MAIN = """
    enable()
    if __name__ == "__main__":
        child = multiprocessing.get_context(sys.argv[1]).Process(target=execute, args=(2,))
        child.start()
        child.join()
"""


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_child_of_multiprocessing_reports_that_the_exporter_is_inert(tmp_path, method):
    """However it was started; nobody is silent."""
    assert run(ENABLED_IN_MAIN, tmp_path, method) == [INERT, "flushed"]


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_an_exporter_works_in_a_child_where_it_is_asked_for(tmp_path, method):
    """It is closed when the child ends, although that runs no exit functions."""
    body = """
    def serve():
        amorsize.enable_in_child_process()
        enable()
        execute(2)

    if __name__ == "__main__":
        enable()
        child = multiprocessing.get_context(sys.argv[1]).Process(target=serve)
        child.start()
        child.join()
        execute()
    """
    assert run(body, tmp_path, method) == [
        *["observed 2"] * 2,
        "flushed",  # by the child
        "observed 2",
        "flushed",
    ]


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_an_exporter_works_in_all_children_where_the_environment_says_so(tmp_path, method):
    """Where they import the module that enables it; a forked one enables it itself."""
    body = ENABLED_IN_MAIN.replace("target=execute, args=(2,)", "target=serve").replace(
        "    enable()\n", "    enable()\n    def serve(): enable(); execute()\n", 1
    )
    printed = run(body, tmp_path, method, AMORSIZE_EXPORTERS_IN_CHILDREN="1")
    assert printed == ["observed 2", "flushed", "flushed"]


def test_a_worker_never_has_exporters(tmp_path):
    """Whatever is asked for: its parent reports its chunks."""
    body = """
    def work(item):
        amorsize.enable_in_child_process()
        exporter = enable()
        amorsize.execute(abs, [item], executor="serial")
        return exporter.active, os.getpid()

    amorsize.enable_in_child_process()
    outcomes = amorsize.execute(work, range(8), executor="process", n_jobs=2, chunksize=1)
    print({active for active, pid in outcomes if pid != os.getpid()})
    """
    printed = run(body, tmp_path, AMORSIZE_EXPORTERS_IN_CHILDREN="1")
    assert "{False}" in printed
    assert not any("inert" in line for line in printed)


def test_a_process_of_a_pool_that_becomes_a_worker_reports_nothing(tmp_path):
    """It has imported the module that enables the exporter before."""
    body = """
    from concurrent.futures import ProcessPoolExecutor

    enable()
    def nested(item):
        return amorsize.execute(abs, [item], executor="serial")

    if __name__ == "__main__":
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            amorsize.execute(nested, range(4), executor=pool)
    """
    assert run(body, tmp_path) == ["observed 4", "flushed"]


def test_asking_in_one_process_does_not_ask_for_its_children(tmp_path):
    """A child that is forked from it is another process."""
    body = """
    amorsize.enable_in_child_process()
    enable()
    if __name__ == "__main__":
        child = multiprocessing.get_context("fork").Process(target=execute)
        child.start()
        child.join()
    """
    assert run(body, tmp_path) == [INERT, "flushed"]


@pytest.mark.parametrize("value", ["yes", "2", "true"])
def test_a_wrong_value_of_the_variable_is_an_error(monkeypatch, value):
    """Otherwise nobody would see that it has no effect."""
    monkeypatch.setenv("AMORSIZE_EXPORTERS_IN_CHILDREN", value)
    with pytest.raises(InvalidValueError, match=r"must be 1, to enable .*, or 0; it is '"):
        Recorder()


def test_an_exporter_that_fails_to_begin_again_is_inert(tmp_path):
    """The child goes on; the log has the reason."""
    body = """
    class Failing(Printer):
        def restart(self):
            raise OSError("no room")

    Failing(in_children=True).attach()
    fork(execute)
    """
    printed = run(body, tmp_path)
    assert printed[0].startswith("ERROR amorsize.exporters.base <Failing (")
    assert printed[-2:] == ["OSError: no room", "flushed"]


def test_one_that_is_attached_to_both_managers_of_a_run_hears_each_event_once(mode: str) -> None:
    """That of the process, and that of the call."""
    reported: list[HookContext] = []

    class Listening(Exporter):
        def on_chunk_complete(self, context: HookContext) -> None:
            reported.append(context)

        def post_execute(self, context: HookContext) -> None:
            reported.append(context)

    own = HookManager()
    with Listening().attach().attach(own):
        amorsize.execute(abs, range(6), executor=mode, chunksize=2, hooks=own)
        amorsize.execute(abs, range(2), executor=mode, chunksize=2)
    assert [context.event.value for context in reported] == [
        *["on_chunk_complete"] * 3,
        "post_execute",
        "on_chunk_complete",
        "post_execute",
    ]
