"""``python -m stack``, as ``make stack`` runs it: real processes, a real failure, a real death."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from ports import free_port
from processes import has_ended, still_running
from waiting import PATIENCE, json_of, poll, wait_until

from amorsize.demo.run import PUSH_JOB
from stack import servers
from stack.compose import Stack
from stack.run import push_command

from .backends import PrometheusApi, require_program

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "stack"]


@dataclass
class Running:
    """A stack that is ready.

    Attributes:
        process: the program that was started.
        addresses: where its servers are, by name.
        pids: of its servers, by title.
        printed: the file with what it has printed.
    """

    process: subprocess.Popen[bytes]
    addresses: dict[str, str]
    pids: dict[str, int]
    printed: Path

    @property
    def prometheus(self) -> PrometheusApi:
        return PrometheusApi(f"http://{self.addresses['prometheus']}")

    def alerts(self) -> list[dict[str, Any]]:
        """The alerts that Alertmanager has received."""
        url = f"http://{self.addresses['alertmanager']}/api/v2/alerts"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            alerts: list[dict[str, Any]] = json.load(answer)
        return alerts

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait(self) -> int:
        """Wait for the end; returns the exit code."""
        return self.process.wait(PATIENCE)


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[Running]:
    """Start a stack that scrapes every half second, and end it if the test has not."""
    temporary = folder / "tmp"
    temporary.mkdir()
    for program in servers.ALL:
        require_program(program)
    printed, summary = folder / "printed", folder / "summary.json"
    with printed.open("wb") as output:
        process = subprocess.Popen(
            [*COMMAND, "--quick", "--interval", "0.5", "--json", str(summary), *arguments],
            cwd=ROOT,
            stdout=output,
            stderr=output,
            env=os.environ | {"TMPDIR": str(temporary)},
        )
    try:
        wait_until(lambda: json_of(summary) or process.poll() is not None, "the stack")
        if process.poll() is not None:
            pytest.fail(f"the stack has ended: {printed.read_text()}")
        found = json_of(summary)
        yield Running(process, found["addresses"], found["pids"], printed)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(PATIENCE)


def nobody_listens(addresses: Mapping[str, str]) -> bool:
    for address in addresses.values():
        host, _, port = address.rpartition(":")
        with socket.socket() as sock:
            if sock.connect_ex((host, int(port))) == 0:
                return False
    return True


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One stack for the tests that look at it."""
    folder = tmp_path_factory.mktemp("stack")
    with running(folder, "--free-ports", "--directory", str(folder / "data")) as started:
        yield started


def test_a_run_arrives(stack: Running) -> None:
    """Each stage of the app's first round, under the job of the shipped configuration."""
    for stage in ("measure", "compress", "fetch"):
        query = f'sum(amorsize_executions_total{{job="amorsize",function="{stage}",status="ok"}})'
        poll(
            lambda asked=query: stack.prometheus.value(asked),
            lambda value: (value or 0) >= 1,
            query,
        )
    poll(stack.prometheus.scrape_errors, lambda errors: set(errors) == {""}, "no error")
    assert stack.process.poll() is None


def test_a_failure_arrives(stack: Running) -> None:
    """Every third round the app's service refuses requests on purpose: the items are counted."""
    failed = 'sum(amorsize_items_failed_total{job="amorsize",function="fetch"})'
    poll(lambda: stack.prometheus.value(failed), lambda value: (value or 0) >= 1, failed)
    errors = 'sum(amorsize_errors_total{job="amorsize",function="fetch"})'
    assert (stack.prometheus.value(errors) or 0) >= 1


def test_the_rules_are_those_that_are_shipped(stack: Running) -> None:
    """All of them, evaluated without an error."""
    with urllib.request.urlopen(f"{stack.prometheus.url}/api/v1/rules", timeout=PATIENCE) as answer:
        groups = json.load(answer)["data"]["groups"]
    assert {Path(group["file"]) for group in groups} == set(
        (ROOT / "dashboards" / "prometheus").glob("*.yml")
    )
    poll(
        lambda: stack.prometheus.value("sum(prometheus_rule_evaluation_failures_total)"),
        lambda failures: failures == 0,
        "no rule fails",
    )


def test_a_killed_worker_rings(stack: Running) -> None:
    """By the command that is printed: the death, the failure of the execution, and their alerts."""
    url = f"http://{stack.addresses['app']}/metrics"
    assert f"-m stack.kill_worker {url}" in stack.printed.read_text()
    killed = subprocess.run(
        [sys.executable, "-m", "stack.kill_worker", url],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (killed.returncode, killed.stderr) == (0, "")
    function = killed.stdout.rpartition("worked on ")[2].strip().rstrip(".")
    assert function in {"measure", "compress"}
    labels = f'job="amorsize",function="{function}",executor="process"'
    for query in (
        f"sum(amorsize_worker_deaths_total{{{labels}}})",
        f'sum(amorsize_errors_total{{{labels},error_type="WorkerDiedError"}})',
        f'sum(amorsize_executions_total{{{labels},status="error"}})',
    ):
        poll(
            lambda asked=query: stack.prometheus.value(asked),
            lambda value: (value or 0) >= 1,
            query,
        )
    for alert in ("AmorsizeWorkersDied", "AmorsizeExecutionFailed"):
        firing = f'ALERTS{{alertname="{alert}",function="{function}",alertstate="firing"}}'
        poll(lambda asked=firing: stack.prometheus.value(asked), bool, firing)
    poll(
        lambda: {
            each["labels"]["alertname"]
            for each in stack.alerts()
            if each["labels"].get("function") == function
        },
        lambda names: {"AmorsizeWorkersDied", "AmorsizeExecutionFailed"} <= names,
        "both alerts reach Alertmanager",
    )


def test_a_push_is_scraped(stack: Running) -> None:
    """A short job that has ended is in Prometheus, under its own job."""
    command = push_command(stack.addresses["pushgateway"])
    assert " ".join(command) in stack.printed.read_text()
    pushed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert pushed.returncode == 0, pushed.stderr
    assert f"as the job '{PUSH_JOB}'" in pushed.stdout
    totals = f'sum(amorsize_items_processed_total{{job="{PUSH_JOB}",function="measure"}})'
    poll(lambda: stack.prometheus.value(totals), lambda value: value == 75, totals)


@pytest.mark.parametrize("service", ["prometheus", "alertmanager"])
def test_a_servers_health_check_distinguishes_life_from_death(stack: Running, service: str) -> None:
    """By the tool that its image has, with the words of the compose file."""
    words = Stack(ROOT).services[service]["healthcheck"]["test"]
    assert words[0] == "CMD"
    here = stack.addresses[service].rpartition(":")[2]
    for port, healthy in ((here, True), (str(free_port()), False)):
        command = [re.sub(r"(?<=127\.0\.0\.1:)\d+", port, word) for word in words[1:]]
        asked = subprocess.run(command, capture_output=True)
        assert (asked.returncode == 0) == healthy


def test_everything_listens_on_the_loopback_interface_alone(stack: Running) -> None:
    """The servers, the app and its workers: none is open to the network."""
    listening = [
        connection.laddr
        for process in stack.descendants()
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {address.port for address in listening} >= {
        int(address.rpartition(":")[2]) for address in stack.addresses.values()
    }
    assert {address.ip for address in listening} == {"127.0.0.1"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end every process that was started, and remove what was written."""
    with running(tmp_path, "--free-ports") as started:
        temporary = tmp_path / "tmp"
        [pushgateway] = [each for each in started.descendants() if "push" in each.name()]
        assert any(str(temporary) in word for word in pushgateway.cmdline())
        [data] = temporary.glob("amorsize-stack-*")
        processes = started.descendants()
        assert len(processes) >= 4
        started.process.send_signal(number)
        assert started.wait() == 0
        assert all(map(has_ended, processes))
        assert nobody_listens(started.addresses)
        assert not data.exists()
        assert "nothing is left running" in started.printed.read_text()


def test_when_one_dies_the_others_end_and_it_is_said_which(tmp_path: Path) -> None:
    """With the end of its log."""
    with running(tmp_path, "--free-ports") as started:
        processes = started.descendants()
        os.kill(started.pids["Prometheus"], signal.SIGKILL)
        assert started.wait() == 1
        printed = started.printed.read_text()
        assert "stack: error: Prometheus ended with exit code -9. The end of its log" in printed
        assert "Server is ready to receive web requests" in printed
        assert all(map(has_ended, processes))


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to end children with their parent")
def test_when_it_is_killed_itself_nothing_is_left(tmp_path: Path) -> None:
    """SIGKILL leaves no time to end anything: the system does it."""
    with running(tmp_path, "--free-ports") as started:
        processes = started.descendants()
        assert len(processes) >= 4
        started.process.kill()
        started.wait()
        assert not still_running(processes)


def test_a_port_that_is_taken_is_no_obstacle(tmp_path: Path) -> None:
    """Another one is taken, and printed; without --free-ports those that people expect are."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", 9090))
            sock.listen()
        except OSError:
            pass  # somebody else has it, which is as good
        with running(tmp_path) as started:
            assert not started.addresses["prometheus"].endswith(":9090")
            assert started.addresses["prometheus"] in started.printed.read_text()


@pytest.mark.parametrize(
    "missing", [[servers.PUSHGATEWAY], [servers.PROMETHEUS, servers.ALERTMANAGER]]
)
def test_what_is_not_installed_is_named(tmp_path: Path, missing: list[servers.Program]) -> None:
    """With the command that installs it; nothing is started before."""
    for program in servers.ALL:
        require_program(program)
        if program not in missing:
            (tmp_path / program.names[0]).symlink_to(str(program.find()))
    done = subprocess.run(
        COMMAND,
        cwd=ROOT,
        env=os.environ | {"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert f"not installed: {', '.join(program.title for program in missing)}." in done.stderr
    packages = " ".join(program.package for program in missing)
    assert f"sudo apt-get install --no-install-recommends {packages}\n" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--interval", "0"], "an interval is 0.1 to 3600 seconds, not '0'"),
        (["--interval", "soon"], "an interval is 0.1 to 3600 seconds, not 'soon'"),
        (["--docker"], "unrecognized arguments: --docker"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str) -> None:
    """Is said before anything starts."""
    done = subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize("piped", [False, True], ids=["as a module", "piped, as into a container"])
def test_kill_worker_says_when_there_is_nobody(piped: bool) -> None:
    """Instead of waiting for it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/metrics"
    with (ROOT / "stack" / "kill_worker.py").open() as program:
        done = subprocess.run(
            [sys.executable, *(["-"] if piped else ["-m", "stack.kill_worker"]), url],
            cwd=ROOT,
            stdin=program,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1
    assert f"no program of this user listens on port {port}" in done.stderr


# --- the files, by the tools that read them ----


@pytest.fixture
def promtool() -> Callable[[str], subprocess.CompletedProcess[str]]:
    """``promtool check config`` on a text."""
    return lambda path: subprocess.run(
        ["promtool", "check", "config", path], capture_output=True, text=True
    )


def mounted(folder: Path) -> Path:
    """The configuration of Prometheus, with its rule files where the container has them."""
    text = (ROOT / "stack" / "prometheus.yml").read_text()
    rules = folder / "amorsize"
    shutil.copytree(ROOT / "dashboards" / "prometheus", rules)
    assert "/etc/prometheus/amorsize/" in text
    path = folder / "prometheus.yml"
    path.write_text(text.replace("/etc/prometheus/amorsize", str(rules)))
    return path


def test_promtool_accepts_the_configuration(
    tmp_path: Path, promtool: Callable[[str], subprocess.CompletedProcess[str]]
) -> None:
    """With both rule files; and refuses it when it is broken."""
    require_program(servers.PROMETHEUS)
    path = mounted(tmp_path)
    done = promtool(str(path))
    assert done.returncode == 0, done.stderr
    assert "2 rule files found" in done.stdout
    path.write_text(path.read_text().replace("honor_labels: true", "honour_labels: true"))
    assert promtool(str(path)).returncode == 1


def test_amtool_accepts_the_configuration(tmp_path: Path) -> None:
    """And refuses it when a receiver is missing."""
    require_program(servers.ALERTMANAGER)
    path = ROOT / "stack" / "alertmanager.yml"
    command = ["amtool", "check-config"]
    assert subprocess.run([*command, str(path)], capture_output=True).returncode == 0
    broken = tmp_path / "alertmanager.yml"
    broken.write_text(path.read_text().replace("  - name: critical\n", ""))
    done = subprocess.run([*command, str(broken)], capture_output=True, text=True)
    assert done.returncode == 1
    assert 'undefined receiver "critical"' in done.stdout + done.stderr


@pytest.mark.parametrize("broken", [False, True], ids=["as it is", "broken"])
def test_the_compose_file_is_one_by_its_specification(tmp_path: Path, broken: bool) -> None:
    """By the schema of the compose specification, which check-jsonschema brings."""
    text = (ROOT / "docker-compose.yml").read_text()
    path = tmp_path / "docker-compose.yml"
    path.write_text(text.replace("    mem_limit:", "    memory_limit:") if broken else text)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "check_jsonschema",
            "--builtin-schema",
            "vendor.compose-spec",
            str(path),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == int(broken), done.stdout
    assert ("memory_limit" in done.stdout) == broken
