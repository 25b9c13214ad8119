"""Short runs: a script of a second loses nothing, by a real Pushgateway or a text file."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import without_log_of_runs

from .backends import require_binary
from .pushgateway import Gateway, Samples, samples, value

pytestmark = pytest.mark.e2e

SCRIPT = """
import sys, amorsize

def parse(item):
    if item % 10 == 3:
        raise ValueError(item)
    return item

if __name__ == "__main__":
    amorsize.enable_prometheus(**eval(sys.argv[1]))
    for items in (100, 37):
        amorsize.execute(parse, range(items), executor="thread", n_jobs=2, chunksize=5,
                         return_exceptions=True)
    if sys.argv[2:] == ["fails"]:
        raise SystemExit(3)
"""

FAILING = """
import sys, amorsize

def parse(item):
    raise ValueError(item)

amorsize.enable_prometheus(**eval(sys.argv[1]))
try:
    amorsize.execute(parse, [1], executor="serial")
except ValueError:
    pass
"""


TERMINATED = """
import sys, time, amorsize

def started(context):
    print("started", flush=True)

def wait(item):
    time.sleep(60 if item == 3 else 0)

amorsize.enable_prometheus(**eval(sys.argv[1]))
amorsize.get_default_manager().register(amorsize.HookEvent.ON_CHUNK_COMPLETE, started)
if sys.argv[2] == "execute":
    amorsize.execute(wait, range(4), executor="thread", n_jobs=1, chunksize=3, name="wait")
else:
    for _ in amorsize.stream(wait, range(4), executor="thread", n_jobs=1, chunksize=3, name="wait"):
        pass
"""


def run(script: str, settings: dict[str, object], *arguments: str, code: int = 0) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, repr(settings), *arguments],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, without_log_of_runs(done.stderr)) == (code, "")


def assert_exact(found: Samples, **labels: str) -> None:
    assert value(found, "amorsize_items_processed_total", **labels) == 137
    assert value(found, "amorsize_items_failed_total", **labels) == 14
    assert value(found, "amorsize_executions_total", status="ok", **labels) == 2
    assert value(found, "amorsize_execution_duration_seconds_count", **labels) == 2
    assert value(found, "amorsize_last_items", **labels) == 37
    assert value(found, "amorsize_executions_in_progress", **labels) == 0
    assert value(found, "amorsize_workers", **labels) == 0


@pytest.mark.parametrize(("arguments", "code"), [((), 0), (("fails",), 3)])
def test_the_pushgateway_has_the_exact_totals(
    gateway: Gateway, arguments: tuple[str, ...], code: int
) -> None:
    """Also of a script that exits with an error, in the group that was asked for."""
    settings = {
        "pushgateway": gateway.url,
        "job": "nightly/1",
        "grouping_key": {"customer": "a/b", "site": "", "place": "Zürich & more"},
    }
    run(SCRIPT, settings, *arguments, code=code)
    labels = {"job": "nightly/1", "customer": "a/b", "place": "Zürich & more"}
    assert_exact(gateway.samples(), function="__main__.parse", **labels)


def test_a_failed_run_keeps_the_time_of_the_last_success(tmp_path: Path, gateway: Gateway) -> None:
    """On the gateway and in the file, for the alert on a job that did not succeed in time."""
    file = tmp_path / "parse.prom"
    settings: dict[str, object] = {
        "pushgateway": gateway.url,
        "job": "nightly",
        "textfile": str(file),
    }
    run(SCRIPT, settings)
    name = "amorsize_last_success_timestamp_seconds"
    first = value(gateway.samples(), name, function="__main__.parse")
    assert first is not None
    run(FAILING, settings)
    for found in (gateway.samples(), samples(file.read_text())):
        assert value(found, name, function="__main__.parse") == first
        assert value(found, "amorsize_executions_total", status="error") == 1
    run(SCRIPT, settings)
    for found in (gateway.samples(), samples(file.read_text())):
        assert (value(found, name, function="__main__.parse") or 0) > first


@pytest.mark.parametrize("called", ["execute", "stream"])
def test_what_a_terminated_run_did_is_not_lost(
    tmp_path: Path, gateway: Gateway, called: str
) -> None:
    """SIGTERM is how batch systems end what takes too long; no atexit function runs then."""
    file = tmp_path / "wait.prom"
    settings = {"pushgateway": gateway.url, "job": "nightly", "textfile": str(file)}
    program = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", TERMINATED, repr(settings), called],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "started\n"
        program.terminate()
        program.wait()
    finally:
        program.kill()
        program.communicate()
    assert program.returncode == -signal.SIGTERM
    for found in (gateway.samples(), samples(file.read_text())):
        assert value(found, "amorsize_executions_total", status="cancelled") == 1
        assert value(found, "amorsize_items_processed_total", function="wait") == 3
        assert value(found, "amorsize_executions_in_progress", function="wait") == 0


def test_the_text_file_has_the_exact_totals(tmp_path: Path) -> None:
    """And promtool, which reads as the node exporter does, finds nothing to complain about."""
    promtool = require_binary("promtool", "prometheus")
    file = tmp_path / "parse.prom"
    run(SCRIPT, {"textfile": str(file), "job": "nightly"})
    assert [path.name for path in tmp_path.iterdir()] == ["parse.prom"]
    assert file.stat().st_mode & 0o777 == 0o644
    assert_exact(samples(file.read_text()), function="__main__.parse", job="nightly")
    check = subprocess.run(
        [promtool, "check", "metrics"], input=file.read_bytes(), capture_output=True
    )
    assert (check.returncode, check.stdout + check.stderr) == (0, b"")
