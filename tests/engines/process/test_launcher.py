"""The start of the template: ahead of everything else, and with what its workers are to have."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import has_ended, still_running
from scripts import run_program

import amorsize
from amorsize.engines import warm_pool
from amorsize.engines.process import launcher, template_client
from amorsize.errors import InvalidValueError


@pytest.fixture(autouse=True)
def _cold(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test begins without workers, and as if the pool were not loaded."""
    amorsize.shutdown()
    monkeypatch.setattr(warm_pool, "pool", None)
    yield
    amorsize.shutdown()


def started_early() -> int:
    """Return the process id of the template that was started early."""
    assert warm_pool.early is not None
    [pid] = warm_pool.early.pids
    return pid


def test_a_template_that_no_run_has_taken_ends_at_shutdown() -> None:
    """Its run was refused, because of its arguments."""
    with pytest.raises(InvalidValueError):
        amorsize.execute(abs, [1], executor="process", n_jobs=-1)
    pid = started_early()
    assert not has_ended(pid)
    amorsize.shutdown()
    assert warm_pool.early is None
    assert has_ended(pid)


def test_the_next_run_takes_it() -> None:
    """It is not started again."""
    launcher.start_early()
    pid = started_early()
    launcher.start_early()
    assert started_early() == pid
    template = template_client.start_template()
    assert template._pid == pid
    template.close()


def test_one_that_is_not_what_the_program_is_now_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of a program that has given up its rights meanwhile."""
    launcher.start_early()
    pid = started_early()
    identity = launcher.read_identity()
    monkeypatch.setattr(launcher, "read_identity", lambda: (*identity, "changed"))
    template = template_client.start_template()
    assert template._pid != pid
    assert has_ended(pid)
    template.close()


def test_a_forked_child_leaves_it_to_its_parent() -> None:
    """Its copy of the connection is closed: the template ends with the program alone."""
    launcher.start_early()
    early = warm_pool.early
    assert early is not None
    child = os.fork()
    if not child:
        os._exit(warm_pool.early is not None or early.control is not None)
    assert os.waitpid(child, 0)[1] == 0
    assert warm_pool.early is early


def test_it_ends_with_a_program_that_has_no_use_for_it(tmp_path: Path) -> None:
    """Which nobody waits for."""
    program = """
        import json
        from amorsize.engines import warm_pool
        from amorsize.engines.process import launcher
        launcher.start_early()
        print(json.dumps(warm_pool.early.pids))
    """
    [pid] = run_program(program, tmp_path, flags=["-X", "dev"])
    assert not still_running([pid])


@pytest.mark.parametrize("place", launcher._CONTROL_FDS)
def test_its_connection_may_have_any_descriptor(place: int, tmp_path: Path) -> None:
    """Also the one where the template is to find it: that would be closed otherwise."""
    program = """
        import json, os, sys, amorsize
        while (fd := os.open("/dev/null", os.O_RDONLY)) < int(sys.argv[1]) - 1:
            pass
        os.set_inheritable(fd, True)
        print(json.dumps(amorsize.execute(abs, [-1, -2], executor="process", n_jobs=2)))
    """
    assert run_program(program, tmp_path, str(place)) == [1, 2]


def test_nothing_is_loaded_before_it_is_started() -> None:
    """Its start takes as long as loading what runs a run: both happen at the same time."""
    script = (
        "import os, sys\n"
        "before = set(sys.modules)\n"
        "def spawn(*_, **__):\n"
        "    print(*sorted(set(sys.modules) - before), flush=True)\n"
        "    os._exit(0)\n"
        "os.posix_spawn = spawn\n"
        "import amorsize\n"
        "amorsize.execute(abs, [1], executor='process', n_jobs=1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == {
        "__future__",
        "_functools",
        "_socket",
        "amorsize",
        "amorsize.engines",
        "amorsize.engines.process",
        "amorsize.engines.process.launcher",
        "amorsize.engines.warm_pool",
        "amorsize.executor",
        "amorsize.planning",
        "amorsize.planning.process_support",
        "amorsize.public_names",
        "amorsize.workers",
        "amorsize.workers.role",
    }


def test_modules_that_the_program_has_loaded_are_loaded_once_for_all_workers(
    tmp_path: Path,
) -> None:
    """Those of the standard library that a function is likely to need; the others are not."""
    (tmp_path / "looking.py").write_text(
        "import os, sys\ndef look(name):\n    return name in sys.modules\n"
    )
    program = """
        import json, sys, amorsize
        if "loaded" in sys.argv:
            import pathlib
        from looking import look
        print(json.dumps(amorsize.execute(look, ["pathlib"], executor="process", n_jobs=1)))
    """
    assert run_program(program, tmp_path, "loaded") == [True]
    assert run_program(program, tmp_path) == [False]


def test_a_program_that_logs_has_the_capture_of_records_loaded_once_for_all_workers(
    tmp_path: Path,
) -> None:
    """As it has logging itself."""
    program = """
        import json, logging, sys, amorsize
        from amorsize.engines.process import program_state
        from amorsize.engines.process.pool import find_modules
        amorsize.execute(abs, [1], executor="process", n_jobs=1)
        state = program_state.read_state(1)
        shared = find_modules(program_state.modules_to_share(state))
        print(json.dumps([name for name, _ in shared if "log" in name]))
    """
    assert run_program(program, tmp_path) == ["logging", "amorsize.workers.log_records"]


def test_a_file_of_the_program_s_that_is_named_like_one_of_those_is_not_loaded_there(
    tmp_path: Path,
) -> None:
    """Nothing of the user's is loaded in the template."""
    (tmp_path / "json.py").write_text("print('loaded')")
    program = """
        import sys, amorsize
        sys.path.insert(0, sys.argv[1])
        import json
        assert amorsize.execute(abs, [-1], executor="process", n_jobs=1) == [1]
        print(1)
    """
    script = tmp_path / "elsewhere" / "program.py"
    script.parent.mkdir()
    script.write_text("\n".join(line[8:] for line in program.splitlines()))
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["loaded", "1"]
