"""Worker processes that start before what chooses is loaded."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import amorsize
from amorsize.engines.process import pool as pool_module
from amorsize.engines.process.pool import pool
from amorsize.planning import machine
from amorsize.planning.workload import Workload
from amorsize.running.prestart import MOST_WORKERS, prestart

WAIT = 30.0


@pytest.fixture(autouse=True)
def _cold() -> Iterator[None]:
    amorsize.shutdown()
    yield
    amorsize.shutdown()


@pytest.fixture(autouse=True)
def _many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = machine.SystemFacts.of(4 * MOST_WORKERS)
    monkeypatch.setattr(machine, "read_system", lambda **_: facts)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lists how many workers are to start; none does."""
    asked: list[int] = []
    monkeypatch.setattr(pool, "prestart", asked.append)
    return asked


def computing(item_seconds: float = 0.01, remaining: int = 1000, **others: Any) -> Workload:
    """A function that computes under the GIL, unless told otherwise."""
    facts: dict[str, Any] = {
        "total": remaining + 2,
        "sampled": 2,
        "remaining": remaining,
        "sample_seconds": 2 * item_seconds,
        "item_seconds": item_seconds,
        "cpu_seconds": item_seconds,
        "gil_seconds": item_seconds,
    }
    return Workload(**{**facts, **others})


@pytest.mark.parametrize(
    "doubtful",
    [
        computing(wait_seconds=0.009, cpu_seconds=0.001, gil_seconds=0.001),
        computing(gil_seconds=0.0),
        computing(inner_parallelism=2.0),
        computing(remaining=12),
        computing(item_seconds=10.0, remaining=1),
    ],
    ids=["waits", "releases the GIL", "parallel inside", "little is left", "one item is left"],
)
def test_none_start_where_there_is_a_doubt(doubtful: Workload, started: list[int]) -> None:
    """What starts needlessly takes cores away from what runs."""
    prestart(doubtful)
    assert started == []


def test_as_many_start_as_there_is_work_for(started: list[int]) -> None:
    """The work that is left bounds them, the items, and a number for machines with many cores."""
    prestart(computing(item_seconds=0.01, remaining=30))
    prestart(computing(item_seconds=1.0, remaining=3))
    prestart(computing(item_seconds=1.0, remaining=1000))
    assert started == [3, 3, MOST_WORKERS]


def test_none_start_in_a_worker(started: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers of the outer run have the cores already."""
    monkeypatch.setattr(machine, "engines_here", lambda: ("serial", "thread"))
    prestart(computing())
    assert started == []


def test_where_none_can_be_started_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever needs them meets that again, and says so."""

    def refuse(environment: dict[str, str]) -> Any:
        raise OSError("no more processes")

    monkeypatch.setattr(pool_module, "WorkerProcess", refuse)
    with caplog.at_level(logging.DEBUG, logger="amorsize"):
        prestart(computing())
    assert "No workers are started ahead of the choice" in caplog.text
    assert pool.pids() == []


def test_an_execution_gets_those_that_were_started() -> None:
    """They count as warm only once they are up, and nobody starts others."""
    pool.prestart(2)
    pool.prestart(2)
    begun = set(pool.pids())
    assert len(begun) == 2
    cold = pool.warm_workers()
    results = amorsize.execute(
        lambda item: item + 1, range(4), executor="process", n_jobs=2, chunksize=1
    )
    assert results == [1, 2, 3, 4]
    assert cold < 2
    assert set(pool.pids()) == begun


def test_they_start_before_what_chooses_is_loaded(tmp_path: Path) -> None:
    """In a process that has not run anything yet."""
    script = tmp_path / "program.py"
    script.write_text(
        "import sys\n"
        "loaded = []\n"
        "def hook(event, arguments):\n"
        "    if event == 'os.posix_spawn':\n"
        "        loaded.append('amorsize.planning.planner' in sys.modules)\n"
        "def work(item):\n"
        "    return sum(range(1_000_000 + item))\n"
        "if __name__ == '__main__':\n"
        "    import amorsize\n"
        "    from amorsize.planning import machine\n"
        "    facts = machine.SystemFacts.of(2)\n"
        "    machine.read_system = lambda **_: facts\n"
        "    sys.addaudithook(hook)\n"
        "    results = amorsize.execute(work, range(300))\n"
        "    assert results == [sum(range(1_000_000 + item)) for item in range(300)]\n"
        "    print(loaded)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("[False")
