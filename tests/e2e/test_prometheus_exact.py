"""PromQL totals against what the function itself wrote down, in every mode, through faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scripts import without_log_of_runs
from waiting import PATIENCE

import amorsize
from amorsize import HookManager
from amorsize.exporters.prometheus.exporter import PrometheusExporter

from .backends import PrometheusServer

pytestmark = pytest.mark.e2e

ITEMS = 60
KILLER = 41
LIVE_GAUGES = (
    "amorsize_executions_in_progress",
    "amorsize_items_expected",
    "amorsize_items_completed",
    "amorsize_throughput_items_per_second",
    "amorsize_workers",
)


class Ledger:
    """A record of the calls, one line each, appended by the process that runs it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, word: str, item: int) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{word} {item}\n".encode())
        os.close(descriptor)

    def items(self, word: str) -> list[int]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [int(line.split()[1]) for line in lines if line.startswith(f"{word} ")]


class Work:
    """Returns, raises for every tenth item, and kills its worker at one."""

    def __init__(self, ledger: Ledger, killer: int | None = None) -> None:
        self.ledger = ledger
        self.killer = killer

    def __call__(self, item: int) -> int:
        if item == self.killer:
            self.ledger.note("killed", item)
            os.kill(os.getpid(), signal.SIGKILL)
        if item % 10 == 3:
            self.ledger.note("raised", item)
            raise ValueError(f"bad item {item}")
        self.ledger.note("returned", item)
        return item


@pytest.fixture
def manager() -> HookManager:
    return HookManager()


@pytest.fixture
def exporter(manager: HookManager) -> Iterator[PrometheusExporter]:
    with PrometheusExporter(port=0).attach(manager) as exporter:
        yield exporter


@pytest.fixture
def server(
    exporter: PrometheusExporter, prometheus_server: Callable[..., PrometheusServer]
) -> PrometheusServer:
    return prometheus_server(targets=[f"127.0.0.1:{exporter.port}"])


def assert_idle(server: PrometheusServer, name: str) -> None:
    for gauge in LIVE_GAUGES:
        assert server.value(f'{gauge}{{function="{name}"}}') == 0, gauge


@pytest.mark.parametrize(
    ("mode", "killer"),
    [("serial", None), ("thread", None), ("process", None), ("process", KILLER)],
    ids=["serial", "thread", "process", "process with a death"],
)
def test_totals_equal_what_the_function_did(
    tmp_path: Path, mode: str, killer: int | None, manager: HookManager, server: PrometheusServer
) -> None:
    """Every item once, every failure, every death; and the gauges are back at zero."""
    ledger = Ledger(tmp_path / "ledger")
    results = amorsize.execute(
        Work(ledger, killer),
        range(ITEMS),
        executor=mode,
        n_jobs=2,
        chunksize=4,
        return_exceptions=True,
        hooks=manager,
        name="work",
    )
    server.wait_for('sum(amorsize_executions_total{function="work",status="ok"})', 1)
    returned, raised = ledger.items("returned"), ledger.items("raised")
    deaths = ledger.items("killed")
    assert Counter(returned).keys() | Counter(raised).keys() | set(deaths) == set(range(ITEMS))
    run = f'function="work",executor="{mode}"'
    failed = {*raised, *deaths}
    assert sum(isinstance(result, Exception) for result in results) == len(failed)
    for promql, expected in {
        f"amorsize_items_processed_total{{{run}}}": ITEMS,
        f"amorsize_items_failed_total{{{run}}}": len(failed),
        f"amorsize_worker_deaths_total{{{run}}}": len(deaths),
        "sum(amorsize_executions_total)": 1,
        f"amorsize_execution_duration_seconds_count{{{run},status='ok'}}": 1,
        'amorsize_last_items{function="work"}': ITEMS,
    }.items():
        assert server.value(promql) == expected, promql
    assert_idle(server, "work")


def test_an_execution_that_fails_leaves_the_truth(
    tmp_path: Path, mode: str, manager: HookManager, server: PrometheusServer
) -> None:
    """Items done before the exception are counted, and nothing runs any more."""
    ledger = Ledger(tmp_path / "ledger")
    done: list[int] = []
    manager.register(
        amorsize.HookEvent.ON_CHUNK_COMPLETE, lambda context: done.append(context.chunk_size or 0)
    )
    with pytest.raises(ValueError, match=r"bad item \d*3"):
        amorsize.execute(
            Work(ledger),
            range(ITEMS),
            executor=mode,
            n_jobs=2,
            chunksize=1,
            hooks=manager,
            name="work",
        )
    server.wait_for('sum(amorsize_executions_total{status="error"})', 1)
    assert server.value('sum(amorsize_errors_total{error_type="ValueError"})') == 1
    assert server.value("sum(amorsize_items_failed_total)") == 1
    processed = server.value("sum(amorsize_items_processed_total)") or 0
    assert 0 <= processed == sum(done) <= len(ledger.items("returned"))
    assert_idle(server, "work")


def test_two_executions_of_one_function_at_once(
    tmp_path: Path, mode: str, manager: HookManager, server: PrometheusServer
) -> None:
    """Both are seen running, and both are counted."""
    ledger = Ledger(tmp_path / "ledger")
    both_run, seen = threading.Barrier(2), threading.Event()

    def wait_once(context: amorsize.HookContext) -> None:
        if context.items_completed == 4:
            both_run.wait(PATIENCE)
            seen.wait(PATIENCE)

    manager.register(amorsize.HookEvent.ON_CHUNK_COMPLETE, wait_once)

    def run() -> None:
        amorsize.execute(
            Work(ledger),
            range(ITEMS),
            executor=mode,
            n_jobs=2,
            chunksize=4,
            return_exceptions=True,
            hooks=manager,
            name="work",
        )

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        server.wait_for("sum(amorsize_items_completed)", 8)
        assert server.value("sum(amorsize_executions_in_progress)") == 2
        assert server.value("sum(amorsize_items_expected)") == 2 * ITEMS
    finally:
        seen.set()
        for thread in threads:
            thread.join(PATIENCE)
    server.wait_for('sum(amorsize_executions_total{status="ok"})', 2)
    written = len(ledger.items("returned")) + len(ledger.items("raised"))
    assert server.value("sum(amorsize_items_processed_total)") == written == 2 * ITEMS
    assert server.value("sum(amorsize_items_failed_total)") == len(ledger.items("raised"))
    assert_idle(server, "work")


CTRL_C = """
import sys, time, amorsize
amorsize.enable_prometheus(textfile=sys.argv[2], port=None)
def started(context):
    print("started", flush=True)
amorsize.get_default_manager().register(amorsize.HookEvent.ON_WORKER_START, started)
def wait(item):
    time.sleep(60)
try:
    amorsize.execute(wait, range(8), executor=sys.argv[1], n_jobs=2, chunksize=1, name="wait")
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_leaves_the_truth(tmp_path: Path, mode: str) -> None:
    """The run counts as cancelled, and no gauge stays up."""
    file = tmp_path / "wait.prom"
    program = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", CTRL_C, mode, str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "started\n"
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate()
    finally:
        program.kill()
        program.communicate()
    assert (program.returncode, without_log_of_runs(errors)) == (0, "")
    run = f'{{executor="{mode}",function="wait"}}'
    lines = file.read_text().splitlines()
    ended = f'amorsize_executions_total{{executor="{mode}",function="wait",status="cancelled"}} 1'
    assert ended in lines
    for gauge in LIVE_GAUGES:
        assert f"{gauge}{run} 0.0" in lines or f"{gauge}{run} 0" in lines
