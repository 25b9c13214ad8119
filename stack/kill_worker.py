"""Kills one worker process of the app while it works, as the kernel does when memory is short.

On this machine: ``python -m stack.kill_worker http://127.0.0.1:9464/metrics``. In the compose
stack the file is piped into the app's container, which needs nothing but what it has:
``docker compose exec -T app python - < stack/kill_worker.py``.
"""

import re
import sys
import time
import urllib.request
from urllib.parse import urlsplit

import psutil

URL = "http://127.0.0.1:9464/metrics"
WAIT_SECONDS = 120.0
"""Threads do most of a round of the app; a worker process is busy again in less time than this."""

_POLL_SECONDS = 0.05
_SERIES = re.compile(r"^(amorsize_\w+)\{(.*)\} ([0-9.e+]+)$", re.MULTILINE)
_FUNCTION = re.compile(r'function="([^"]+)"')
_NOTICE_SECONDS = 5.0


def main(arguments: list[str]) -> int:
    """Kill a worker of the program that serves the given metrics; returns the exit code."""
    url = arguments[0] if arguments else URL
    try:
        app = listener(urlsplit(url).port or 80)
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            function, deaths = look_at(url)
            # It may have finished in the meantime: then no busy worker died.
            if function and (pid := kill_one(app)) and is_noticed(url, deaths):
                print(f"Killed worker process {pid}, which worked on {function}.")
                return 0
            time.sleep(_POLL_SECONDS)
    except (OSError, LookupError, psutil.Error) as error:
        print(f"kill_worker: error: {url}: {error}", file=sys.stderr)
        return 1
    print(f"kill_worker: error: no worker worked for {WAIT_SECONDS:.0f} s", file=sys.stderr)
    return 1


def listener(port: int) -> psutil.Process:
    """The program that listens on a port.

    Raises:
        LookupError: no process does, or it belongs to another user.
    """
    for process in psutil.process_iter():
        try:
            connections = process.net_connections(kind="tcp")
        except psutil.Error:  # of another user, or it has ended
            continue
        for each in connections:
            if each.status == psutil.CONN_LISTEN and each.laddr.port == port:
                return process
    raise LookupError(f"no program of this user listens on port {port}")


def look_at(url: str) -> tuple[str | None, float]:
    """Return the functions that worker processes run now, and the number of deaths so far."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    busy, deaths = None, 0.0
    for name, labels, value in _SERIES.findall(text):
        if name == "amorsize_worker_deaths_total":
            deaths += float(value)
        elif name == "amorsize_workers" and 'executor="process"' in labels and float(value) > 0:
            [busy] = _FUNCTION.findall(labels)
    return busy, deaths


def is_noticed(url: str, deaths: float) -> bool:
    """Whether a death is reported."""
    deadline = time.monotonic() + _NOTICE_SECONDS
    while time.monotonic() < deadline:
        if look_at(url)[1] > deaths:
            return True
        time.sleep(_POLL_SECONDS)
    return False


def kill_one(app: psutil.Process) -> int | None:
    """Send SIGKILL to one worker process of the app; returns its id, None where there is none."""
    for template in app.children():
        try:
            if any("amorsize.engines.process.template" in part for part in template.cmdline()):
                for worker in template.children():
                    worker.kill()
                    return worker.pid
        except psutil.NoSuchProcess:
            continue
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
