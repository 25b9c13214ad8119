"""A forked child: no lock stays locked, and nothing waits for threads that it does not have."""

from __future__ import annotations

import re
from pathlib import Path

from scripts import run_program

import amorsize

PACKAGE = Path(amorsize.__file__).parent
QUIET = ("-W", "ignore::DeprecationWarning")
"""Python 3.12 warns of a fork beside threads, which is what these tests are about."""


def test_no_lock_of_a_module_stays_locked_in_a_forked_child(tmp_path: Path) -> None:
    """Neither its own, nor that of an object that the module makes."""
    held, locked = run_program(
        """
        import _thread, contextlib, importlib, json, os, pkgutil, threading
        import amorsize

        LOCKS = _thread.LockType, type(threading.RLock()), threading.Condition

        def owners():
            for info in pkgutil.walk_packages(amorsize.__path__, "amorsize."):
                if info.name.startswith("amorsize.demo") or info.name.endswith("__main__"):
                    continue  # programs
                module = importlib.import_module(info.name)
                yield info.name, module
                for name, value in list(vars(module).items()):
                    if type(value).__module__.startswith("amorsize."):
                        yield f"{info.name}.{name}", value

        def attributes(owner):
            return {*getattr(owner, "__dict__", ()), *getattr(type(owner), "__slots__", ())}

        places = {
            f"{path}.{name}": (owner, name)
            for path, owner in owners()
            for name in attributes(owner)
            if isinstance(getattr(owner, name, None), LOCKS)
        }
        held, ended = threading.Event(), threading.Event()

        def hold():
            with contextlib.ExitStack() as stack:
                for owner, name in places.values():
                    stack.enter_context(getattr(owner, name))
                held.set()
                ended.wait()

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait()
        reader, writer = os.pipe()
        if os.fork() == 0:
            locked = [
                path
                for path, (owner, name) in places.items()
                if not getattr(owner, name).acquire(blocking=False)
            ]
            os.write(writer, json.dumps(locked).encode())
            os._exit(0)
        os.wait()
        ended.set()
        holder.join()
        print(json.dumps([sorted(places), json.loads(os.read(reader, 65536))]))
        """,
        tmp_path,
        flags=QUIET,
    )
    assert locked == []
    assert {
        "amorsize.engines.external.dask._subscribing",
        "amorsize.engines.external.worker._loading",
        "amorsize.engines.process.pool.pool._lock",
        "amorsize.exporters.base._enable_lock",
        "amorsize.hooks.manager._default._lock",
        "amorsize.planning.gil_probe._switching",
    } <= set(held)


def test_a_forked_child_exits_while_the_parent_s_stream_is_open(tmp_path: Path) -> None:
    """Its exit function ends the streams of this process, not those of its parent."""
    exit_code, rest = run_program(
        """
        import json, os, sys
        import amorsize
        from amorsize.running import background_run

        stream = amorsize.stream(abs, range(-100, 0), executor="thread", n_jobs=1, chunksize=1)
        next(stream)
        [cancel] = background_run._open_drivers
        with cancel.__self__._sink._changed, cancel.__self__._run._handover:
            child = os.fork()
            if child == 0:
                sys.exit(len(background_run._open_drivers))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([code, len(list(stream))]))
        """,
        tmp_path,
        flags=QUIET,
    )
    assert (exit_code, rest) == (0, 99)


def test_a_forked_child_switches_between_threads_as_the_program_does(tmp_path: Path) -> None:
    """Also if a thread of the parent has shortened the interval, and will set it back there."""
    seconds = run_program(
        """
        import json, os, sys, threading
        from amorsize.planning.gil_probe import switching_often

        before = sys.getswitchinterval()
        begun, ended = threading.Event(), threading.Event()

        def often():
            with switching_often():
                begun.set()
                ended.wait()

        thread = threading.Thread(target=often)
        thread.start()
        begun.wait()
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.write(writer, json.dumps(sys.getswitchinterval()).encode())
            os._exit(0)
        os.wait()
        during = sys.getswitchinterval()
        ended.set()
        thread.join()
        child = json.loads(os.read(reader, 100))
        print(json.dumps([before, during, child, sys.getswitchinterval()]))
        """,
        tmp_path,
        flags=QUIET,
    )
    before, during, child, after = seconds
    assert during < before
    assert (child, after) == (before, before)


def test_there_is_one_way_to_register_for_a_fork() -> None:
    """``in_forked_child``, which works where a system has no fork."""
    registering = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(r"register_at_fork\(", path.read_text())
    }
    assert registering == {"workers/__init__.py"}
