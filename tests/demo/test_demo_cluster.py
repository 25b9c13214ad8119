"""The demo on a real Dask cluster: a scheduler and two workers, from the command line."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dask_cluster import DaskCluster
from waiting import PATIENCE

from amorsize.demo import cluster
from amorsize.demo.cluster import connected
from amorsize.demo.service import FactsService
from amorsize.demo.sources import Sources, find_sources
from amorsize.demo.stages import fetch
from amorsize.errors import AmorsizeError

THREADS = 4
"""Of each worker, as in the compose file."""


@pytest.fixture(scope="module")
def sources() -> Sources:
    return find_sources(max_files=30)


@pytest.fixture(scope="module")
def needed(sources: Sources) -> str:
    """A file that every worker of this machine has."""
    return sources.path(next(iter(sources.sizes)))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scheduler with two workers, as the profile ``dask`` has them."""
    with DaskCluster(tmp_path_factory.mktemp("dask")).start() as running:
        for name in ("one", "two"):
            running.start_worker(name, threads=THREADS)
        yield address_of(running)


def address_of(running: DaskCluster) -> str:
    address = json.loads(Path(running.file).read_text())["address"]
    assert isinstance(address, str)
    return address


def test_all_stages_run_on_the_cluster(address: str, tmp_path: Path) -> None:
    """The files are read there, the service is reached from there, and every result is right."""
    with connected(address, __file__) as before:
        before.client.wait_for_workers(2, timeout=PATIENCE)
    summary = tmp_path / "summary.json"
    command = [sys.executable, "-m", "amorsize", "demo", "--quick", "--port", "0"]
    done = subprocess.run(
        [*command, "--dask", address, "--json", str(summary)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    stages = json.loads(summary.read_text())["stages"]
    assert [stage["name"] for stage in stages] == ["measure", "compress", "fetch"]
    for stage in stages:
        assert (stage["engine"], stage["status"], stage["failed"]) == ("dask", "ok", 0)
        assert stage["n_jobs"] == 2 * THREADS


def test_a_cluster_is_still_there_or_is_not(address: str, needed: str) -> None:
    """A demo that goes on for ever ends when its scheduler is gone: it is started again then."""
    with connected(address, needed) as found:
        found.require()
        assert found.host == "127.0.0.1"
    with pytest.raises(AmorsizeError, match=r"lost \(status: closed\); start the scheduler"):
        found.require()


def test_workers_without_the_files_are_named(address: str) -> None:
    """Before the first stage, instead of a FileNotFoundError for each of its items."""
    with (
        pytest.raises(AmorsizeError, match=r"has no /nowhere/at/all\.py; run its workers with the"),
        connected(address, "/nowhere/at/all.py"),
    ):
        pass


def test_a_scheduler_without_workers_is_said(tmp_path: Path, needed: str) -> None:
    """With the command that starts one."""
    with DaskCluster(tmp_path).start() as running:
        address = address_of(running)
        with (
            pytest.raises(AmorsizeError, match=f"has no worker after .* dask worker {address}"),
            connected(address, needed, seconds=1.0),
        ):
            pass


def test_no_scheduler_is_said(needed: str) -> None:
    """The port is closed."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{sock.getsockname()[1]}"
        with (
            pytest.raises(AmorsizeError, match=f"no Dask scheduler answers at '{address}'"),
            connected(address, needed, seconds=0.5),
        ):
            pass


@pytest.mark.parametrize(
    ("scheduler", "host"),
    [
        ("tcp://127.0.0.1:8786", "127.0.0.1"),
        ("tls://127.0.0.1:8786", "127.0.0.1"),
        ("inproc://", "127.0.0.1"),
    ],
)
def test_the_address_is_that_towards_the_scheduler(scheduler: str, host: str) -> None:
    """The workers reach this machine on the network that the scheduler is on, and no other."""
    assert cluster._address_towards(scheduler) == host


def test_the_service_listens_where_the_workers_come_from(sources: Sources) -> None:
    """And nowhere else: another address of this machine is refused."""
    name = next(iter(sources.sizes))
    with FactsService(sources, host="127.0.0.2", wait_seconds=(0.0, 0.001)) as service:
        url = service.url(name)
        assert url.startswith("http://127.0.0.2:")
        assert fetch(url).bytes == sources.sizes[name]
        with pytest.raises(ConnectionRefusedError):
            fetch(url.replace("127.0.0.2", "127.0.0.1"))
