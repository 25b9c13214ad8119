"""Entries for Prometheus' file service discovery: there while the program lives, then gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from amorsize.errors import ExporterError
from amorsize.exporters.prometheus import file_sd
from amorsize.exporters.prometheus.exporter import PrometheusExporter

from ..certificates import Certificates

PROGRAM = """
import sys, amorsize
exporter = amorsize.enable_prometheus(port=0, file_sd=sys.argv[1])
print(exporter.port, flush=True)
sys.stdin.read()
"""


def entries(directory: Path) -> list[Any]:
    """All target groups, by what Prometheus would read; and nothing else is there."""
    assert all(path.suffix == ".json" for path in directory.iterdir())
    return [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]


def start(directory: Path) -> tuple[subprocess.Popen[str], int]:
    program = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    return program, int(program.stdout.readline())


def test_an_entry_lives_as_long_as_the_exporter(tmp_path: Path) -> None:
    """It names the target, and the process for those who relabel."""
    with PrometheusExporter(port=0, file_sd=tmp_path) as exporter:
        ((group,),) = entries(tmp_path)
        assert group["targets"] == [f"127.0.0.1:{exporter.port}"]
        assert group["labels"]["__scheme__"] == "http"
        assert group["labels"]["__meta_amorsize_pid"] == str(os.getpid())
        assert all(name.startswith("__") for name in group["labels"])
        (path,) = tmp_path.iterdir()
        assert path.stat().st_mode & 0o777 == 0o644
    assert entries(tmp_path) == []


def test_an_entry_has_the_scheme_https_with_tls(tmp_path: Path, certificates: Certificates) -> None:
    """Prometheus reads the scheme from it."""
    with PrometheusExporter(port=0, file_sd=tmp_path, certfile=certificates.server):
        ((group,),) = entries(tmp_path)
        assert group["labels"]["__scheme__"] == "https"


def test_the_entries_of_several_programs(tmp_path: Path) -> None:
    """Each of its own port; each goes with its program."""
    programs = [start(tmp_path) for _ in range(2)]
    try:
        targets = sorted(group["targets"] for (group,) in entries(tmp_path))
        assert targets == sorted([f"127.0.0.1:{port}"] for _, port in programs)
    finally:
        for program, _ in programs:
            program.communicate()
    assert entries(tmp_path) == []


def test_the_entry_of_a_killed_program_is_removed_by_the_next(tmp_path: Path) -> None:
    """It stays until then: nobody else knows."""
    program, _ = start(tmp_path)
    program.send_signal(signal.SIGKILL)
    program.communicate()
    assert len(entries(tmp_path)) == 1
    with PrometheusExporter(port=0, file_sd=tmp_path) as exporter:
        ((group,),) = entries(tmp_path)
        assert group["targets"] == [f"127.0.0.1:{exporter.port}"]


def write_entry(directory: Path, **changes: str) -> Path:
    """An entry of this very process, but for the changes."""
    entry = file_sd.FileSdEntry(directory, "127.0.0.1:1", "http")
    content = json.loads(entry.path.read_text())
    entry.remove()
    content[0]["labels"] |= {f"__meta_amorsize_{name}": value for name, value in changes.items()}
    path = directory / "amorsize-other-1-1.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("changes", "stale"),
    [
        ({}, False),
        ({"started": "1000.0"}, True),  # another process, which got the same id
        ({"host": "elsewhere", "pid": "4194305"}, False),  # its ids mean nothing here
        ({"pid": "4194305"}, True),  # above the greatest id that Linux gives
        ({"pid": "x"}, False),
    ],
    ids=["alive", "id used again", "other host", "dead", "unreadable"],
)
def test_entries_of_dead_processes_are_stale(
    tmp_path: Path, changes: dict[str, str], stale: bool
) -> None:
    """What is not understood is left alone."""
    path = write_entry(tmp_path, **changes)
    file_sd.remove_stale(tmp_path)
    assert path.exists() == (not stale)


@pytest.mark.parametrize("text", ["", "[]", "{", "[{}]", '[{"labels": []}]', "\ufeff7"])
def test_files_that_are_no_entries_are_left_alone(tmp_path: Path, text: str) -> None:
    """Even under our name; those of others are not even read."""
    ours, theirs = tmp_path / "amorsize-x.json", tmp_path / "other.json"
    for path in (ours, theirs):
        path.write_text(text)
    file_sd.remove_stale(tmp_path)
    assert ours.exists()
    assert theirs.exists()


def test_an_entry_that_cannot_be_written_opens_no_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says so, and the registry is free again."""
    import prometheus_client

    def full(path: Path, content: bytes) -> None:
        raise OSError("No space left on device")

    registry = prometheus_client.CollectorRegistry()
    monkeypatch.setattr(file_sd, "write_atomically", full)
    with pytest.raises(ExporterError, match=r"no entry can be written.*No space left"):
        PrometheusExporter(port=0, file_sd=tmp_path, registry=registry)
    monkeypatch.undo()
    PrometheusExporter(port=0, file_sd=tmp_path, registry=registry).close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_leaves_the_entry_of_its_parent(tmp_path: Path) -> None:
    """Its close() does nothing."""
    with PrometheusExporter(port=0, file_sd=tmp_path) as exporter:
        child = os.fork()
        if child == 0:
            exporter.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert len(entries(tmp_path)) == 1
