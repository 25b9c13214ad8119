"""The command line, as a process."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from waiting import PATIENCE

import amorsize
from amorsize import cli

COMMAND = [sys.executable, "-m", "amorsize"]


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, **options)


@contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is killed when it outlives the test or a minute."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    timer = threading.Timer(PATIENCE, process.kill)
    timer.start()
    try:
        with process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()
    finally:
        timer.cancel()


def read_until(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if match := re.search(pattern, line):
            return match
    assert process.stderr is not None
    raise AssertionError(f"{pattern!r} is not in {''.join(seen)}\n{process.stderr.read()}")


def scrape(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def test_version():
    """The number of the package."""
    done = run("--version")
    assert done.stdout == f"amorsize {amorsize.__version__}\n"
    assert done.returncode == 0


def test_the_installed_command_is_the_module():
    """Both ways to start it call ``main``."""
    command = Path(sys.executable).with_name("amorsize")
    done = subprocess.run([command, "--version"], capture_output=True, text=True)
    assert done.stdout == f"amorsize {amorsize.__version__}\n"


def test_version_and_help_import_no_sdk():
    """They answer at once, and where no extra is installed."""
    code = (
        "import sys; from amorsize import cli\n"
        "try: cli.main(['demo', '--help'])\n"
        "except SystemExit: pass\n"
        "print({'psutil', 'prometheus_client', 'tqdm', 'multiprocessing'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("\nset()\n")


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"]])
def test_help_has_examples_and_exit_codes_and_fits_the_terminal(arguments):
    """What to type, and what comes back."""
    done = run(*arguments, env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 0
    assert "amorsize demo --forever" in done.stdout
    assert "exit codes:" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 90  # argparse's own lines: 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: command"),
        (["demonstrate"], "invalid choice: 'demonstrate'"),
        (["demo", "--port", "70000"], "a port is a number from 0 to 65535, not '70000'"),
        (["demo", "--port", "-1"], "a port is a number from 0 to 65535, not '-1'"),
        (["demo", "--port", "http"], "a port is a number from 0 to 65535, not 'http'"),
        (["demo", "--serve", "--forever"], "not allowed with argument --serve"),
        (["demo", "--json", "/nowhere/at/all"], "'/nowhere/at/all' is not a file in a writable"),
        (["demo", "--json", "/"], "'/' is not a file in a writable"),
    ],
)
def test_wrong_usage_is_explained(capsys, arguments, message):
    """Exit code 2, as is usual."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_taken_port_is_one_line():
    """No traceback: it says which port, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = run("demo", "--quick", "--port", str(port))
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"amorsize: error: port {port} on 127.0.0.1 is taken")


def test_a_wrong_port_in_the_environment_is_one_line():
    """The same, for a value that argparse does not see."""
    done = run("demo", "--quick", env={**os.environ, "AMORSIZE_PROMETHEUS_PORT": "70000"})
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "AMORSIZE_PROMETHEUS_PORT must be a port from 0 to 65535" in line


def test_a_missing_package_is_one_line():
    """It names the package and the command that installs it."""
    code = (
        "import sys; sys.modules['prometheus_client'] = None; from amorsize.cli import main\n"
        "sys.exit(main(['demo', '--quick', '--port', '0']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "prometheus-client" in line
    assert "pip install 'amorsize[prometheus]'" in line


def test_demo_serves_what_it_reports_until_ctrl_c(tmp_path):
    """Its /metrics says what its summary says; Ctrl-C ends it with 0 and frees the port."""
    path = tmp_path / "summary.json"
    with started(
        *COMMAND, "demo", "--quick", "--serve", "--port", "0", "--json", str(path)
    ) as demo:
        url = read_until(demo, r"Serving (http://127\.0\.0\.1:(\d+)/metrics) until Ctrl-C")
        port = int(url[2])
        text = scrape(port)
        summary = json.loads(path.read_text())
        os.killpg(demo.pid, signal.SIGINT)  # as a terminal does, the worker processes included
        _, errors = demo.communicate()
    assert demo.returncode == 0
    assert "Traceback" not in errors
    with socket.create_server(("127.0.0.1", port)):
        pass  # the port is free
    assert summary["metrics_url"] == url[1]
    for stage in summary["stages"]:
        # Where stderr is no terminal, the progress of a stage is one line.
        assert len(re.findall(rf"^{stage['name']} \(.*100%", errors, re.MULTILINE)) == 1
        processed = re.findall(
            rf'^amorsize_items_processed_total{{.*function="{stage["name"]}".*}} (.*)',
            text,
            re.MULTILINE,
        )
        assert sum(map(float, processed)) == stage["items"]
        assert stage["status"] == "ok"
    *_, fetch = summary["stages"]
    assert (fetch["engine"], fetch["n_jobs"] > 4) == ("thread", True)


def test_demo_goes_on_forever_with_failures_until_sigterm():
    """Every third round has refused requests; docker stop ends it with 0."""
    code = (
        "import sys; from amorsize.demo import run; from amorsize.cli import main\n"
        "run.PAUSE_SECONDS, run.REFUSE_ONE_IN, run.QUICK_FILES = 0.0, 4, 40\n"
        "sys.exit(main(['demo', '--quick', '--forever', '--port', '0']))"
    )
    with started(sys.executable, "-c", code) as demo:
        port = int(read_until(demo, r"Serving .*:(\d+)/metrics and working on until Ctrl-C")[1])
        assert "failed" not in read_until(demo, r"Round 2: .*").group()
        failed = read_until(demo, r"Round 3: .* fetch 40 items \((\d+) failed\)")[1]
        failures = re.findall(
            r'^amorsize_items_failed_total{.*function="fetch".*} (.*)', scrape(port), re.MULTILINE
        )
        assert sum(map(float, failures)) == int(failed)
        demo.send_signal(signal.SIGTERM)
        printed, _ = demo.communicate()
    assert demo.returncode == 0
    assert printed.endswith("\nStopped.\n")


def test_ctrl_c_at_work_ends_it_with_130():
    """Without a traceback, and without waiting for the rest of the work."""
    with started(*COMMAND, "demo", "--port", "0") as demo:
        read_until(demo, "Metrics while it runs")
        os.killpg(demo.pid, signal.SIGINT)
        _, errors = demo.communicate()
    assert demo.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "amorsize: stopped before the work was done"


def test_a_reader_that_goes_away_ends_it_without_a_traceback():
    """As under ``amorsize demo | head -1``."""
    with started(*COMMAND, "demo", "--quick", "--port", "0") as demo:
        read_until(demo, "Metrics while it runs")
        assert demo.stdout is not None
        demo.stdout.close()
        assert demo.stderr is not None
        errors = demo.stderr.read()
        assert demo.wait(timeout=PATIENCE) == 141
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors
