"""The examples run, and print what is true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def demonstrations():
    """The text of each of the seven, without its title."""
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / "hooks_demo.py"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    warned = done.stderr.splitlines()
    assert warned
    assert all(re.search(r"items? .*failed", line) for line in warned), warned
    parts = re.split(r"^\d\. (.+)\n", done.stdout, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_there_are_seven(demonstrations):
    """In the order of the issue of interest: from one line to a whole dashboard."""
    assert list(demonstrations) == [
        "Progress",
        "Metrics collection",
        "Timing of stages",
        "Errors and logging",
        "Monitoring system",
        "Throughput",
        "Dashboard",
    ]


def test_progress(demonstrations):
    """A line a chunk, up to all."""
    text = demonstrations["Progress"]
    assert re.findall(r"(\S+)%  (\d+) of 100", text) == [
        ("25.0", "25"),
        ("50.0", "50"),
        ("75.0", "75"),
        ("100.0", "100"),
    ]


def test_metrics_collection(demonstrations):
    """There are 303 primes below 2000."""
    assert "40 items in 4 chunks, each found 303 primes" in demonstrations["Metrics collection"]


def test_timing(demonstrations):
    """The stages come in the order of the contract, at times that do not go back."""
    rows = re.findall(r"([\d.]+) ms  (\w+)", demonstrations["Timing of stages"])
    names = [name for _, name in rows]
    assert (names[0], names[-1]) == ("pre_execute", "post_execute")
    assert names.index("on_worker_start") < names.index("on_chunk_complete")
    assert {"on_progress", "on_worker_end"} < set(names)
    times = [float(time) for time, _ in rows]
    assert times == sorted(times)


def test_errors(demonstrations):
    """The failing item's exception is in its place, and was logged once."""
    text = demonstrations["Errors and logging"]
    assert text.count("ERROR ZeroDivisionError, says the worker: ZeroDivisionError: ") == 1
    assert "results: [20.0, ZeroDivisionError('division by zero'), 12.0]" in text


def test_monitoring(demonstrations):
    """The slow item is in the third chunk."""
    text = demonstrations["Monitoring system"]
    assert "journal: poll: 40 items; poll: ok" in text
    assert "alerts:  the chunk from item 20 on was slow\n" in text


def test_throughput(demonstrations):
    """Eight workers that wait do more than one."""
    one, eight = re.findall(r"n_jobs=\d: +(\d+) items", demonstrations["Throughput"])
    assert int(eight) > 2 * int(one)


def test_dashboard(demonstrations):
    """Everything about the run in one dictionary."""
    board = dict(re.findall(r"^(\w+) +(\S+)$", demonstrations["Dashboard"], re.MULTILINE))
    assert board["function"].endswith("count_primes")
    assert board["engine"] == "process"
    assert board["status"] == "ok"
    assert board["progress"] == "100/100"
    assert (board["errors"], board["workers"]) == ("0", "2")


def test_dask_cluster():
    """The same chunks and results on this machine and on a cluster of two processes."""
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / "dask_cluster.py"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    here, there = done.stdout.split("On the cluster:")
    assert re.findall(r"(\d+) chunks, (\d+) primes", here) == re.findall(
        r"(\d+) chunks, (\d+) primes", there
    )
    assert re.findall(r"(\d+) chunks", there) == ["8"]
    assert re.search(r"worker 0: [01] on \S+", there)
    assert "The results are the same." in there
