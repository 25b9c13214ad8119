"""Internals of CPython and of other packages have the shape that amorsize relies on.

One test for each row of docs/development/internals.md. It asks the internal itself, without our
code, so that a failure after an update names the assumption that no longer holds.
"""

from __future__ import annotations

import _thread
import functools
import importlib
import inspect
import multiprocessing
import operator
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import typing
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from waiting import PATIENCE

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "development" / "internals.md").read_text(encoding="utf-8")


def run(script: str, *arguments: str) -> str:
    """Run a script in a fresh interpreter; return its output."""
    done = subprocess.run(
        [sys.executable, *arguments, "-c", script], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- CPython ----


@pytest.mark.parametrize("kind", [list, tuple, lambda size: range(len(size))])
def test_an_iterator_moves_by_setstate(kind: Any) -> None:
    """Of lists, tuples and ranges; moved to the end, it is exhausted, and stays so."""
    items = kind(range(10))
    iterator = iter(items)
    iterator.__setstate__(4)  # type: ignore[attr-defined]
    assert (next(iterator), operator.length_hint(iterator)) == (4, 5)
    iterator.__setstate__(10)  # type: ignore[attr-defined]
    assert next(iterator, None) is None
    if isinstance(items, list):
        items.append(10)
    assert next(iterator, None) is None


def test_a_range_beyond_64_bits_moves_by_setstate() -> None:
    """CPython has another class of iterators for these."""
    iterator = iter(range(2**70, 2**70 + 10))
    iterator.__setstate__(4)  # type: ignore[attr-defined]
    assert (next(iterator), operator.length_hint(iterator)) == (2**70 + 4, 5)


def test_the_state_of_a_list_iterator_is_its_position() -> None:
    """Also if the list has become shorter; an exhausted iterator has no position."""
    items = list(range(10))
    iterator = iter(items)
    next(iterator)
    del items[5:]
    assert iterator.__reduce__()[2] == 1  # type: ignore[misc]
    assert len(list(iterator)) == 4
    assert len(iterator.__reduce__()) == 2


def test_a_map_of_calls_is_unpacked_in_one_instruction() -> None:
    """No other thread runs between the calls: the interpreter switches between instructions."""

    def unpack(calls: Iterator[Any]) -> Any:
        first, second, third = map(operator.call, calls)
        return first, second, third

    import dis

    names = [each.opname for each in dis.get_instructions(unpack)]
    assert names.count("UNPACK_SEQUENCE") == 1
    assert not {"FOR_ITER", "UNPACK_EX"} & set(names)


def test_a_thread_of_the_thread_module_is_not_listed() -> None:
    """It has no Thread object, and the interpreter's exit does not wait for it."""
    out = run(
        "import _thread, threading, time\n"
        "began = _thread.allocate_lock(); began.acquire()\n"
        "def work():\n    began.release()\n    time.sleep(60)\n"
        "_thread.start_new_thread(work, ())\n"
        "began.acquire()\n"
        "print(threading.active_count())"
    )
    assert out == "1"


def test_the_frames_of_a_thread_show_an_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the file name of importlib's frozen code."""
    begun, end = threading.Event(), threading.Event()
    sys.modules["amorsize_test_events"] = typing.cast(Any, type("E", (), {"b": begun, "e": end}))
    (tmp_path / "amorsize_test_slow.py").write_text(
        "import amorsize_test_events as events\nevents.b.set()\nevents.e.wait(60)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    thread = threading.Thread(target=__import__, args=("amorsize_test_slow",))
    thread.start()
    try:
        assert begun.wait(PATIENCE)
        assert thread.ident is not None
        frame: FrameType | None = sys._current_frames()[thread.ident]
        files = set()
        while frame is not None:
            files.add(frame.f_code.co_filename)
            frame = frame.f_back
        assert "<frozen importlib._bootstrap>" in files
    finally:
        end.set()
        thread.join()
        for name in ("amorsize_test_slow", "amorsize_test_events"):
            sys.modules.pop(name, None)


def test_a_frame_has_its_function_s_code_object() -> None:
    """The same object, and a nested function's code is among the constants of the outer one."""

    def inner() -> FrameType:
        frame = inspect.currentframe()
        assert frame is not None
        return frame

    assert inner().f_code is inner.__code__
    own = test_a_frame_has_its_function_s_code_object.__code__
    assert inner.__code__ in [each for each in own.co_consts if isinstance(each, CodeType)]


def test_the_module_behind_socket_passes_descriptors() -> None:
    """As socket does, whose functions are written in Python."""
    import _socket

    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    rights = struct.pack("i", ours.fileno())
    ours.sendmsg([b"x"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
    data, [(level, kind, received)], _, _ = theirs.recvmsg(10, _socket.CMSG_SPACE(4))
    assert (data, level, kind) == (b"x", _socket.SOL_SOCKET, _socket.SCM_RIGHTS)
    [fd] = struct.unpack("i", received)
    assert os.fstat(fd).st_ino == os.fstat(ours.fileno()).st_ino
    os.close(fd)
    ours.close()
    theirs.close()
    import _locale

    assert isinstance(_locale.setlocale(_locale.LC_ALL, None), str)


def test_the_limit_of_csv_is_in_its_module_of_c() -> None:
    """``csv`` only passes the function on, and cannot be loaded without that module."""
    import _csv
    import csv

    assert csv.field_size_limit is _csv.field_size_limit


def test_the_modules_behind_signal_pickle_and_functools_have_the_same() -> None:
    """Without the enums, and the Python code, that those add."""
    import _functools
    import _pickle
    import _signal  # type: ignore[import-not-found]  # typeshed has none

    assert (_signal.SIGTERM, _signal.SIG_DFL) == (signal.SIGTERM, signal.SIG_DFL)
    assert _signal.getsignal(signal.SIGWINCH) is _signal.SIG_DFL
    assert _signal.default_int_handler is signal.default_int_handler
    for name in ("dumps", "loads", "Pickler", "PickleBuffer"):
        assert getattr(_pickle, name) is getattr(pickle, name)
    assert _functools.partial is functools.partial


def test_no_signal_handler_runs_before_a_list_has_what_a_map_of_c_functions_returns() -> None:
    """The handler runs when the call is over, although the signal came in the middle."""

    class Came(Exception):
        pass

    def handle(number: int, frame: FrameType | None) -> None:
        raise Came

    kept: list[object] = []
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with pytest.raises(Came):
            kept.extend(map(_thread.interrupt_main, [signal.SIGUSR1]))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert kept == [None]


def test_the_options_of_this_interpreter_can_be_passed_on() -> None:
    """Those of -W and of -X."""
    out = run(
        "import sys; print(sys.warnoptions, sys._xoptions, sys.flags.optimize)",
        "-W",
        "error",
        "-X",
        "utf8",
        "-X",
        "tracemalloc=3",
        "-O",
    )
    assert out.split("\n")[0] == "['error'] {'utf8': True, 'tracemalloc': '3'} 1"


def test_a_resource_tracker_is_shared_by_its_descriptor() -> None:
    """The child of another process, which multiprocessing starts, has it so."""
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()
    shared: Any = resource_tracker._resource_tracker
    assert shared._fd == resource_tracker.getfd()
    assert isinstance(shared._pid, int)


def test_a_cached_function_has_a_type_of_its_own() -> None:
    """And says what it was made with; it pickles as its name."""

    @functools.lru_cache(maxsize=7, typed=True)
    def cached(x: int) -> int:
        return x

    assert type(cached) is functools._lru_cache_wrapper
    assert cached.cache_parameters() == {"maxsize": 7, "typed": True}
    assert cached.__reduce__() == cached.__qualname__


def test_a_reload_replaces_the_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module object stays."""
    (tmp_path / "reloaded_here.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("reloaded_here")
    before = module.__spec__
    assert importlib.reload(module) is module
    assert module.__spec__ is not before
    del sys.modules["reloaded_here"]


def test_a_spawned_child_that_imports_main_is_inheriting(tmp_path: Path) -> None:
    """It has no parent_process() then."""
    script = tmp_path / "program.py"
    script.write_text(
        "import multiprocessing as mp\n"
        "print(__name__, getattr(mp.current_process(), '_inheriting', False), flush=True)\n"
        "if __name__ == '__main__':\n"
        "    child = mp.get_context('spawn').Process(target=print)\n"
        "    child.start()\n"
        "    child.join()\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["__main__ False", "__mp_main__ True"], done.stderr
    assert not getattr(multiprocessing.current_process(), "_inheriting", False)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_child_of_multiprocessing_finalizes_at_its_end(tmp_path: Path, method: str) -> None:
    """What it registers after the fork, where it forgets the rest; a spawned one keeps all."""
    script = tmp_path / "program.py"
    script.write_text(
        "import multiprocessing as mp, sys\n"
        "from multiprocessing import util\n"
        "def end(which):\n"
        "    print(which, mp.parent_process() is not None, flush=True)\n"
        "def renew(which):\n"
        "    util.Finalize(None, end, ('renewed',), exitpriority=0)\n"
        "util.register_after_fork(end, renew)\n"
        "util.Finalize(None, end, ('registered',), exitpriority=0)\n"
        "if __name__ == '__main__':\n"
        "    child = mp.get_context(sys.argv[1]).Process(target=print)\n"
        "    child.start()\n"
        "    child.join()\n"
    )
    done = subprocess.run([sys.executable, script, method], capture_output=True, text=True)
    own = "registered True" if method == "spawn" else "renewed True"
    assert done.stdout.split("\n") == ["", own, "registered False", ""], done.stderr


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="this system has no /proc")
@pytest.mark.parametrize(
    ("method", "mark"),
    [("spawn", b"--multiprocessing-fork"), ("forkserver", b"multiprocessing.forkserver")],
)
def test_command_lines_show_the_children_of_multiprocessing(method: str, mark: bytes) -> None:
    """That of a spawned child, and of the server that forks the others."""
    out = run(
        "import multiprocessing as mp, os\n"
        "if __name__ == '__main__':\n"
        f"    with mp.get_context({method!r}).Pool(1) as pool:\n"
        f"        pid = pool.apply(os.getpid if {method!r} == 'spawn' else os.getppid)\n"
        "        print(open(f'/proc/{pid}/cmdline', 'rb').read())\n"
    )
    assert mark.decode() in out


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system has no /proc")
def test_the_kernel_knows_whether_a_process_has_executed_anything() -> None:
    """A forked process has the flag, until it executes a program."""
    show = "print(int(open('/proc/self/stat').read().rpartition(')')[2].split()[6]) & 0x40)"
    out = run(
        "import os, sys\n"
        f"show = {show!r}\n"
        "exec(show)\n"
        "sys.stdout.flush()\n"
        "if os.fork() == 0:\n"
        "    exec(show)\n"
        "    sys.stdout.flush()\n"
        "    os.execv(sys.executable, [sys.executable, '-c', show])\n"
        "os.wait()"
    )
    assert out.split() == ["0", "64", "0"]


def test_handlers_of_a_fork_run_in_the_order_of_their_registration() -> None:
    """In the child; before the fork they run in reverse order."""
    out = run(
        "import os\n"
        "for name in 'ab':\n"
        "    os.register_at_fork(before=lambda name=name: print('before', name, flush=True),\n"
        "                        after_in_child=lambda name=name: print(name, flush=True))\n"
        "if os.fork() == 0:\n    os._exit(0)\n"
        "os.wait()"
    )
    assert out.split("\n") == ["before b", "before a", "a", "b"]


def test_a_pool_of_threads_renews_its_lock_in_a_forked_child() -> None:
    """Its module registers that at import, so importing it early puts it first."""
    from concurrent.futures import thread

    assert hasattr(thread, "_global_shutdown_lock")


@pytest.mark.parametrize("kind", ["ThreadPoolExecutor", "ProcessPoolExecutor", "loky"])
def test_an_executor_says_how_many_workers_it_has(kind: str) -> None:
    """In an attribute that is not documented; where it is missing, the number is unknown."""
    import concurrent.futures as standard

    import loky

    makers = {
        "ThreadPoolExecutor": standard.ThreadPoolExecutor,
        "ProcessPoolExecutor": standard.ProcessPoolExecutor,
        "loky": loky.ProcessPoolExecutor,
    }
    with makers[kind](3) as executor:
        assert executor._max_workers == 3


# --- other packages ----


def test_cloudpickle_has_a_table_and_a_registry() -> None:
    """A pickler with a longer table can be derived, and modules by value are listed."""
    import cloudpickle

    assert CodeType in cloudpickle.Pickler.dispatch_table
    assert CodeType in cloudpickle.Pickler.dispatch_table.new_child({})
    assert cloudpickle.list_registry_pickle_by_value() == set()


def test_opentelemetry_s_global_providers() -> None:
    """The tracer provider is a module variable; the meter proxy takes the provider that is set."""
    out = run(
        "from opentelemetry import metrics, trace\n"
        "from opentelemetry.sdk.metrics import MeterProvider\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "takes = [hasattr(each, 'on_set_meter_provider') for each in\n"
        "         (metrics.get_meter_provider(), MeterProvider(), metrics.NoOpMeterProvider())]\n"
        "print(trace._TRACER_PROVIDER, takes)\n"
        "provider = TracerProvider()\n"
        "trace.set_tracer_provider(provider)\n"
        "print(trace._TRACER_PROVIDER is provider)\n"
    )
    assert out.split("\n") == ["None [True, False, False]", "True"]


def test_a_tracer_of_the_sdk_has_an_id_generator_and_a_scope() -> None:
    """A copy with another generator makes spans with the given ids."""
    from opentelemetry.sdk.trace import TracerProvider

    class Ids:
        def generate_trace_id(self) -> int:
            return 7

        def generate_span_id(self) -> int:
            return 8

        def is_trace_id_random(self) -> bool:
            return True

    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("name", "1")
    assert (tracer._instrumentation_scope.name, hasattr(tracer, "id_generator")) == ("name", True)
    copied = object.__new__(type(tracer))
    vars(copied).update(vars(tracer), id_generator=Ids())
    context = copied.start_span("span").get_span_context()
    assert (context.trace_id, context.span_id) == (7, 8)
    assert tracer.start_span("span").get_span_context().trace_id != 7


def test_an_exporter_of_the_sdk_has_its_preferences() -> None:
    """A reader takes temporality and aggregation from its exporter."""
    from opentelemetry import context
    from opentelemetry.sdk.metrics.export import ConsoleMetricExporter

    exporter = ConsoleMetricExporter()
    assert hasattr(exporter, "_preferred_temporality")
    assert hasattr(exporter, "_preferred_aggregation")
    assert context._SUPPRESS_INSTRUMENTATION_KEY


def test_dask_s_executor_has_its_client() -> None:
    """In an attribute that no other executor has."""
    from distributed import Client
    from distributed.cfexecutor import ClientExecutor

    client = Client.__new__(Client)
    assert ClientExecutor(client)._client is client
    assert hasattr(Client, "scheduler_info")


def test_dask_names_the_last_worker_of_a_killed_task() -> None:
    """And how many deaths it allows."""
    from distributed.scheduler import KilledWorker

    assert list(inspect.signature(KilledWorker).parameters)[:3] == [
        "task",
        "last_worker",
        "allowed_failures",
    ]


def test_dask_s_workers_know_the_state_of_their_tasks() -> None:
    """A task whose result is no longer wanted is "cancelled" while it runs."""
    from distributed import Client, worker_state_machine

    assert "tasks" in inspect.getsource(worker_state_machine.WorkerState)
    assert "cancelled" in typing.get_args(worker_state_machine.TaskStateState)
    assert callable(Client.get_events)
    assert callable(Client.subscribe_topic)


def test_a_dogstatsd_client_takes_a_socket_and_starts_no_thread() -> None:
    """Its messages go to any object with the methods of a socket."""
    from datadog.dogstatsd.base import DogStatsd

    threads = set(threading.enumerate())
    client = DogStatsd(
        disable_telemetry=True, track_instance=False, disable_buffering=False, flush_interval=0
    )
    assert set(threading.enumerate()) <= threads
    assert {"host", "port", "socket", "socket_path", "constant_tags", "packets_dropped"} <= {
        *vars(client),
        *dir(type(client)),
    }
    for method in ("get_socket", "close_socket", "flush_buffered_metrics"):
        assert callable(getattr(client, method))


def test_a_kernel_s_stream_notes_its_cell() -> None:
    """No other stream has this method."""
    from ipykernel.iostream import OutStream

    assert callable(OutStream.set_parent)
    assert not hasattr(sys.__stderr__, "set_parent")


def test_prometheus_client_chooses_an_encoder() -> None:
    """By the Accept header; a registry can be restricted to names."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    encode, content_type = choose_encoder("application/openmetrics-text; version=1.0.0")
    registry = CollectorRegistry()
    assert content_type.startswith("application/openmetrics-text")
    assert encode(registry).endswith(b"# EOF\n")
    assert encode(registry.restricted_registry(["name"])).endswith(b"# EOF\n")


# --- the guide ----


def test_the_guide_names_every_test_of_this_file() -> None:
    """A row of its tables for each test, and no row without one."""
    here = {name for name in globals() if name.startswith("test_") and "guide" not in name}
    named = {name for name in GUIDE.replace("`", " ").split() if name.startswith("test_")}
    assert here == named & here
    assert here
