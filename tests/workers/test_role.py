"""Whether a process is a worker, and what it does not do then."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

import amorsize
from amorsize import HookContext
from amorsize.workers import role

DECORATED = """
import sys
import amorsize

@amorsize.on(amorsize.HookEvent.POST_EXECUTE)
def report(context):
    print("hook of", __name__, file=sys.stderr)

def nested(item):
    amorsize.execute(abs, [item], executor="serial")
    return amorsize.get_default_manager().get_hook_count()
"""


@pytest.fixture
def decorated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A script that decorates at its top, and so does every process that imports it."""
    script = tmp_path / "decorates.py"
    script.write_text(
        DECORATED
        + textwrap.dedent(
            """
            def pool(kind):
                import multiprocessing
                from concurrent.futures import ProcessPoolExecutor
                return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(kind))

            def cluster():
                import distributed
                return distributed.LocalCluster(
                    n_workers=1, threads_per_worker=1, host="127.0.0.1",
                    dashboard_address=None, worker_dashboard_address="127.0.0.1:0",
                )

            if __name__ == "__main__":
                kind = sys.argv[1]
                if kind == "process":
                    executor = kind
                elif kind == "dask":
                    import distributed
                    executor = distributed.Client(cluster())
                else:
                    executor = pool(kind)
                print(amorsize.execute(nested, [1, 2], executor=executor, n_jobs=1))
            """
        )
    )
    return str(script)


@pytest.mark.parametrize("kind", ["process", "fork", "forkserver", "spawn", "dask"])
def test_on_registers_nothing_in_any_kind_of_worker(decorated: str, kind: str) -> None:
    """Not in one that imports the decorating module before it knows that it is a worker, either."""
    if kind in ("fork", "forkserver") and kind not in multiprocessing.get_all_start_methods():
        pytest.skip(f"{kind} does not exist on this platform")
    if kind == "dask":
        pytest.importorskip("distributed")
    done = subprocess.run(
        [sys.executable, decorated, kind], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["[0, 0]"], done.stderr
    assert done.stderr.count("hook of") == done.stderr.count("hook of __main__") == 1


def test_a_process_becomes_a_worker_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was to be done then is done once, and a worker does it never."""
    monkeypatch.setattr(role, "_is_worker", False)
    monkeypatch.setattr(role, "_callbacks", [])
    called: list[str] = []
    role.when_worker(lambda: called.append("callback"))
    assert not role.is_worker()
    role.become_worker()
    role.become_worker()
    assert role.is_worker()
    assert called == ["callback"]


def test_a_worker_decorates_without_registering(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function stays what it was."""
    monkeypatch.setattr(role, "_is_worker", True)

    def report(context: HookContext) -> None: ...

    assert amorsize.on(amorsize.HookEvent.POST_EXECUTE)(report) is report
    assert not amorsize.get_default_manager().has_hooks()


def test_a_process_of_multiprocessing_is_no_worker() -> None:
    """It is a program of its own until it runs a chunk."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert not pool.submit(role.is_worker).result()
