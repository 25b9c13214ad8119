"""The compose file's commands and health checks, run here with addresses replaced."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

from amorsize import cli
from stack.compose import Stack
from stack.processes import ServerProcess
from stack.run import app_command, push_command

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
SERVICES = Stack(ROOT).services


def command_of(service: str, replaced: dict[str, str]) -> list[str]:
    """Its command, run by this interpreter, with words and parts of words replaced."""
    name, *words = SERVICES[service]["command"]
    for old, new in replaced.items():
        assert any(old in word for word in words), f"{service} has no {old}"
        words = [word.replace(old, new) for word in words]
    return [sys.executable, "-m", name, *words]


def checked_url(service: str, port: int) -> str:
    """The URL of its health check, on another port."""
    [url] = re.findall(
        r"http://127\.0\.0\.1:\d+/[\w/-]+", SERVICES[service]["healthcheck"]["test"][-1]
    )
    return re.sub(r":\d+", f":{port}", url)


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[str]:
    """The profile ``dask``: the scheduler, and two workers beside it."""
    with ExitStack() as running:

        def start(name: str, service: str, replaced: dict[str, str], *more: str) -> None:
            dashboard = free_port()
            [old] = re.findall(r"--dashboard-address=\S+", " ".join(SERVICES[service]["command"]))
            replaced |= {old: f"--dashboard-address=127.0.0.1:{dashboard}"}
            process = ServerProcess(
                name,
                [*command_of(service, replaced), "--host=127.0.0.1", *more],
                log=tmp_path / f"{name}.log",
                ready_url=checked_url(service, dashboard),
            )
            running.callback(process.stop)
            process.wait_until_ready()

        port = free_port()
        start("scheduler", "dask-scheduler", {"--port=8786": f"--port={port}"})
        for number in range(SERVICES["dask-worker"]["deploy"]["replicas"]):
            folder = tmp_path / str(number)
            folder.mkdir()
            start(
                f"worker-{number}",
                "dask-worker",
                {"dask-scheduler:8786": f"127.0.0.1:{port}", "/tmp": str(folder)},
            )
        yield f"tcp://127.0.0.1:{port}"


def test_the_profile_dask_works(scheduler: str, tmp_path: Path) -> None:
    """Its app, for one round, on what its scheduler and its two workers are started with."""
    summary = tmp_path / "summary.json"
    replaced = {
        "tcp://dask-scheduler:8786": scheduler,
        "--addr=0.0.0.0": "--addr=127.0.0.1",
        "--port=9464": "--port=0",
    }
    command = command_of("app-dask", replaced)
    command.remove("--forever")
    done = subprocess.run([*command, "--json", str(summary)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stages = json.loads(summary.read_text())["stages"]
    assert {(stage["engine"], stage["status"], stage["n_jobs"]) for stage in stages} == {
        ("dask", "ok", 8)
    }


def test_the_apps_health_check_distinguishes_life_from_death(tmp_path: Path) -> None:
    """As it stands in the compose file, but for the port."""
    port = free_port()
    python, *check = SERVICES["app"]["healthcheck"]["test"][1:]
    assert python == "python"
    ask = [sys.executable, *(word.replace("9464", str(port)) for word in check)]
    assert subprocess.run(ask, capture_output=True).returncode != 0
    app = ServerProcess(
        "app",
        app_command(port, quick=True),
        log=tmp_path / "app.log",
        ready_url=checked_url("app", port),
    )
    try:
        app.wait_until_ready()
        assert subprocess.run(ask, capture_output=True).returncode == 0
    finally:
        app.stop()


def test_make_stack_runs_what_the_containers_run() -> None:
    """The same app and the same job, but for addresses."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    [app] = re.findall(r"^CMD (\[.*\])$", dockerfile, re.MULTILINE)
    container = [word for word in json.loads(app)[1:] if word not in ("--addr", "0.0.0.0")]
    assert container == app_command(9464, quick=False)[3:]
    assert SERVICES["push-job"]["command"][1:] == push_command("pushgateway:9091")[3:]


@pytest.mark.parametrize("service", ["push-job", "app-dask"])
def test_the_command_line_takes_what_a_service_says(service: str) -> None:
    """No option was renamed under it."""
    name, *arguments = SERVICES[service]["command"]
    assert name == "amorsize"
    parsed: Any = cli._parser().parse_args(arguments)
    assert parsed.command == "demo"


def test_make_stack_is_this_program() -> None:
    """``make stack`` installs what it needs, and runs it."""
    done = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "stack"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1].strip() == ".venv/bin/python -m stack"


def test_the_page_names_every_service_and_port() -> None:
    """docs/stack.md, as the compose file has them."""
    page = (ROOT / "docs" / "stack.md").read_text()
    table = page[page.index("| service | address") : page.index("Tags and ports stand in")]
    for name, service in SERVICES.items():
        assert f"`{name}`" in table
        for profile in service.get("profiles", ()):
            assert re.search(rf"^\|.*`{name}`.*\| `{profile}` \|", table, re.MULTILINE)
        for port in service.get("ports", ()):
            assert port.split(":")[1] in table
