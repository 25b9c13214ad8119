"""Servers whose work is done by several processes: real ones, and one page of all of them."""

from __future__ import annotations

import os
import re
import signal
import sys
import textwrap
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ports import free_port
from prometheus_client.parser import text_string_to_metric_families
from waiting import PATIENCE, poll, wait_until

from amorsize.exporters.prometheus.settings import DIRECTORY_VARIABLE
from stack.processes import ServerProcess

from .backends import PrometheusServer

pytestmark = pytest.mark.e2e

ITEMS = "amorsize_items_processed_total"
IN_PROGRESS = "amorsize_executions_in_progress"

WORK = """
import os, time
import amorsize

def work(item):
    return item * item

def run(path):
    if path == "/run":
        amorsize.execute(work, range(10), executor="serial")
    elif path == "/hang":
        amorsize.execute(time.sleep, [1000], executor="serial", name="hang")
    return str(os.getpid()).encode()
"""

WSGI = f"""{WORK}
ENABLE
metrics = exporter.wsgi_app()

def app(environ, start_response):
    if environ["PATH_INFO"] == "/metrics":
        def start(status, headers):
            return start_response(status, [*headers, ("X-Pid", str(os.getpid()))])
        return metrics(environ, start)
    body = run(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body]
"""

ASGI = f"""{WORK}
import asyncio
ENABLE
metrics = exporter.asgi_app()

async def app(scope, receive, send):
    if scope["type"] == "lifespan" or scope["path"] == "/metrics":
        async def answer(message):
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-pid", str(os.getpid()).encode()))
            await send(message)
        return await metrics(scope, receive, answer)
    body = await asyncio.to_thread(run, scope["path"])
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": body}})
"""

MOUNTED = "exporter = amorsize.enable_prometheus(listen=False)"

GUNICORN = ["-m", "gunicorn", "app:app", "--no-control-socket", "--bind", "127.0.0.1:PORT"]
THREADS = ["--worker-class", "gthread", "--threads", "4"]
UVICORN = ["-m", "uvicorn", "app:app", "--host", "127.0.0.1", "--port", "PORT"]

SERVERS = {
    "gunicorn": (WSGI, [*GUNICORN, "--workers", "3"]),
    "gunicorn --preload": (WSGI, [*GUNICORN, "--workers", "3", "--preload"]),
    "gunicorn, threads": (WSGI, [*GUNICORN, *THREADS, "--workers", "3"]),
    "uvicorn": (ASGI, [*UVICORN, "--workers", "3"]),
}
every_server = pytest.mark.parametrize("kind", SERVERS)


class Server:
    """A web server with several workers.

    Args:
        directory: for its application, its log, and its temporary files.
        app: its application.
        arguments: its command line, with PORT for its port.
        enable: the lines of the application that enable the exporter.
        path: that is answered when it is ready.
        **variables: of its environment.
    """

    def __init__(
        self,
        directory: Path,
        app: str,
        arguments: list[str],
        enable: str,
        path: str = "/pid",
        **variables: str,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = directory / "server.log"
        self.temporary = directory / "temporary"
        self.temporary.mkdir()
        (directory / "app.py").write_text(app.replace("ENABLE", textwrap.dedent(enable)))
        python_path = os.pathsep.join([str(directory), os.environ.get("PYTHONPATH", "")])
        self._process = ServerProcess(
            "the server",
            [sys.executable, *(each.replace("PORT", str(self.port)) for each in arguments)],
            log=self.log,
            ready_url=self.url + path,
            environment={
                **os.environ,
                "PYTHONPATH": python_path,
                "TMPDIR": str(self.temporary),
                **variables,
            },
        )
        try:
            self._process.wait_until_ready(PATIENCE)
        except BaseException:
            self.close()
            raise

    def get(self, path: str) -> str:
        """Ask for a path; return the answer."""
        with urllib.request.urlopen(self.url + path, timeout=PATIENCE) as response:
            return str(response.read().decode())

    def page(self) -> tuple[int, Callable[..., float]]:
        """Scrape; return the process that answered, and a function that adds up samples."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=PATIENCE) as response:
            return int(response.headers["X-Pid"]), sums(response.read().decode())

    def pages_of(self, workers: int, name: str = ITEMS) -> dict[int, float]:
        """Scrape until so many workers have answered with the same value; return theirs."""
        values: dict[int, float] = {}

        def scrape() -> bool:
            pid, value = self.page()
            values[pid] = value(name)
            return len(values) >= workers and len(set(values.values())) == 1

        wait_until(scrape, "the pages of all workers")
        return values

    @property
    def directories(self) -> list[Path]:
        """The directories of programs."""
        return list(self.temporary.glob("amorsize-*/*"))

    @property
    def logged(self) -> str:
        return self.log.read_text()

    def close(self) -> None:
        self._process.stop()


def sums(page: str) -> Callable[..., float]:
    samples = [
        sample for family in text_string_to_metric_families(page) for sample in family.samples
    ]

    def value(name: str, **labels: str) -> float:
        return sum(
            sample.value
            for sample in samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    return value


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(kind: str, *further: str, enable: str = MOUNTED, **variables: str) -> Server:
        app, arguments = SERVERS[kind]
        servers.append(Server(tmp_path, app, [*arguments, *further], enable, **variables))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@every_server
def test_each_worker_shows_the_items_of_all(start: Callable[..., Server], kind: str) -> None:
    """No page shows less than an earlier one, whoever answers, and in the end all are equal."""
    server = start(kind)
    shown = []
    for _ in range(32):
        server.get("/run")
        shown.append(server.page()[1](ITEMS))
    assert shown == sorted(shown)
    assert shown[0] > 0
    wait_until(lambda: server.page()[1](ITEMS) == 320, "all items")
    assert set(server.pages_of(3).values()) == {320}
    assert server.page()[1]("amorsize_execution_duration_seconds_count") == 32
    assert server.page()[1]("amorsize_build_info") == 1
    assert "inert" not in server.logged
    (directory,) = server.directories
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}


@every_server
def test_a_killed_worker_leaves_its_totals(start: Callable[..., Server], kind: str) -> None:
    """And takes along what it had in progress."""
    import threading

    server = start(kind)
    for _ in range(8):
        server.get("/run")
    wait_until(lambda: server.page()[1](ITEMS) == 80, "all items")

    def hang() -> None:
        try:
            server.get("/hang")
        except OSError:
            pass  # its worker is killed

    hanging = threading.Thread(target=hang)
    hanging.start()
    wait_until(lambda: server.page()[1](IN_PROGRESS, function="hang") == 1, "the hanging run")
    for pid in {pid for pid, value in busy_processes(server)}:
        os.kill(pid, signal.SIGKILL)
    hanging.join()
    wait_until(lambda: server.page()[1](IN_PROGRESS, function="hang") == 0, "the end of that run")
    assert set(server.pages_of(3).values()) == {80}
    server.get("/run")
    wait_until(lambda: server.page()[1](ITEMS) == 90, "the items of those that go on")


def busy_processes(server: Server) -> list[tuple[int, str]]:
    """The processes whose file says that a run is in progress."""
    (directory,) = server.directories
    found = []
    for path in directory.glob("process-*.json"):
        if '[["hang","serial"],1.0,' in path.read_text().replace(",1,", ",1.0,"):
            found.append((int(path.name.split("-")[2]), path.name))
    return found


def test_the_asgi_app_is_an_application_of_its_own(tmp_path: Path) -> None:
    """For a server that has nothing else to serve; it starts and stops without a complaint."""
    app = f"{WORK}\nENABLE\napp = exporter.asgi_app()\n"
    server = Server(tmp_path, app, [*UVICORN, "--lifespan", "on"], MOUNTED, path="/-/healthy")
    try:
        assert "amorsize_build_info{" in server.get("/metrics")
    finally:
        server.close()
    assert "Application shutdown complete" in server.logged


def test_recycled_workers_leave_their_totals_in_one_file(start: Callable[..., Server]) -> None:
    """Each ends in the regular way after five requests: none of its runs is lost."""
    server = start("gunicorn", "--max-requests", "5")
    pids = {server.get("/run") for _ in range(60)}
    assert len(pids) > 6
    wait_until(lambda: server.page()[1](ITEMS) == 600, "all items")
    (directory,) = server.directories

    def files() -> list[str]:
        server.page()
        return sorted(path.name for path in directory.iterdir())

    poll(files, lambda names: len(names) <= 5 and "ended.json" in names, "the files")


@every_server
def test_prometheus_sees_no_growth_of_an_idle_server(
    start: Callable[..., Server], prometheus_server: Callable[..., PrometheusServer], kind: str
) -> None:
    """Whichever worker answers each scrape."""
    server = start(kind)
    for _ in range(16):
        server.get("/run")
    assert set(server.pages_of(3).values()) == {160}
    often = {"scrape_interval": "250ms", "scrape_timeout": "250ms"}
    prometheus = prometheus_server(targets=[f"127.0.0.1:{server.port}"], scrape=often)
    prometheus.wait_for(f"sum({ITEMS})", 160)
    wait_until(
        lambda: (prometheus.value(f"sum(count_over_time({ITEMS}[5m]))") or 0) >= 8, "eight scrapes"
    )
    assert prometheus.value(f"sum(increase({ITEMS}[5m]))") == 0
    assert prometheus.value(f"sum(resets({ITEMS}[5m]))") == 0
    assert prometheus.scrape_errors() == [""]


def test_the_files_of_a_server_that_has_ended_are_removed(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    """By itself where its first process has the application, or else by the next program."""
    server = start("gunicorn --preload")
    server.get("/run")
    assert len(server.directories) == 1
    server.close()
    assert server.directories == []


# --- where nothing is mounted ----


@pytest.mark.parametrize("kind", ["gunicorn", "gunicorn --preload", "uvicorn"])
def test_one_process_listens_for_all(start: Callable[..., Server], kind: str) -> None:
    """On a port of amorsize's own, in whichever process; when it is killed, another one does."""
    port = free_port()
    server = start(
        kind,
        enable=f"""
            exporter = amorsize.enable_prometheus({port}, multiprocess=True)
        """,
    )
    for _ in range(16):
        server.get("/run")
    url = f"http://127.0.0.1:{port}/metrics"

    def items() -> float | None:
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as response:
                return sums(response.read().decode())(ITEMS)
        except OSError:
            return None

    poll(items, lambda value: value == 160, "the page")
    if kind != "gunicorn --preload":  # there the first process listens, and ends with the server
        killed = listening_process(port)
        os.kill(killed, signal.SIGKILL)
        poll(items, lambda value: value == 160, "the page of another process")
        assert listening_process(port) != killed


def listening_process(port: int) -> int:
    import psutil

    (pid,) = {
        each.pid
        for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN
        and each.laddr
        and each.laddr.port == port
        and each.pid
        and "gunicorn" not in psutil.Process(each.pid).name()
    }
    return int(pid or 0)


def test_the_environment_alone_enables_it_in_all_workers(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    """The application does not know of it."""
    port = free_port()
    base = tmp_path / "metrics"
    base.mkdir()
    server = start(
        "uvicorn",
        enable="""
            class exporter:
                def asgi_app():
                    async def nothing(scope, receive, send):
                        while True:
                            message = await receive()
                            await send({"type": message["type"] + ".complete"})
                            if "shutdown" in message["type"]:
                                return
                    return nothing
        """,
        AMORSIZE_EXPORTERS="prometheus",
        AMORSIZE_PROMETHEUS_PORT=str(port),
        AMORSIZE_EXPORTERS_IN_CHILDREN="1",
        **{DIRECTORY_VARIABLE: str(base)},
    )
    for _ in range(16):
        server.get("/run")

    def items() -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as answer:
            return sums(answer.read().decode())(ITEMS)

    wait_until(lambda: items() == 160, "the items of all workers")
    assert len(list(base.glob("amorsize-*/*"))) == 1
    assert server.directories == []


INERT = re.compile(
    r"The (\w+) exporter is inert in this process \(\d+, a child of \d+\), whose executions are not"
)


@pytest.mark.parametrize("kind", ["gunicorn --preload", "uvicorn"])
def test_an_exporter_that_is_inert_in_the_workers_says_so(
    start: Callable[..., Server], kind: str
) -> None:
    """Once in each that runs executions, with what to do; the requests are answered."""
    server = start(kind, enable="exporter = amorsize.enable_prometheus(0)")
    pids = {server.get("/run") for _ in range(32)}
    assert INERT.findall(server.logged) == ["prometheus"] * len(pids)
    assert "Enable it with multiprocess=True, for one page of all processes; or" in server.logged


def test_an_exporter_works_in_workers_where_it_is_asked_for(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    """Each has one of its own."""
    server = start(
        "uvicorn",
        enable=f"""
            amorsize.enable_in_child_process()
            amorsize.enable_prometheus(port=0, file_sd={str(tmp_path)!r})
            from amorsize.exporters.prometheus import PrometheusExporter
            exporter = PrometheusExporter(listen=False, multiprocess=False)
        """,
    )
    for _ in range(16):
        server.get("/run")

    def entries() -> list[str]:
        found = [path.read_text() for path in tmp_path.glob("amorsize-*.json")]
        return re.findall(r'"127.0.0.1:(\d+)"', " ".join(found))

    ports = poll(entries, lambda found: len(found) == 3, "the entries of all workers")
    total = 0.0
    for port in ports:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as answer:
            total += sums(answer.read().decode())(ITEMS)
    assert total == 160
    assert "inert" not in server.logged


# --- celery ----

TASKS = """
import os, sys
import amorsize
from celery import Celery

ENABLE

folder = os.environ["BROKER_FOLDER"]
app = Celery("tasks", broker="filesystem://")
app.conf.broker_transport_options = {
    "data_folder_in": folder, "data_folder_out": folder, "control_folder": folder,
}
app.conf.worker_hijack_root_logger = False
app.conf.broker_connection_retry_on_startup = True

def work(item):
    return item * item

@app.task(name="run")
def run(size):
    amorsize.execute(work, range(size), executor="serial")
    amorsize.execute(work, range(size), executor="thread", n_jobs=2)

if __name__ == "__main__":
    for _ in range(int(sys.argv[1])):
        run.delay(10)
"""


class Celery:
    """A celery worker with a prefork pool of two, and its queue on the disk."""

    def __init__(self, directory: Path, enable: str, *arguments: str) -> None:
        self._directory = directory
        self.log = directory / "celery.log"
        self.port = free_port()
        (directory / "queue").mkdir()
        tasks = TASKS.replace("ENABLE", textwrap.dedent(enable).replace("PORT", str(self.port)))
        (directory / "tasks.py").write_text(tasks)
        python_path = os.pathsep.join([str(directory), os.environ.get("PYTHONPATH", "")])
        self._environment = {
            **os.environ,
            "PYTHONPATH": python_path,
            "TMPDIR": str(directory),
            "BROKER_FOLDER": str(directory / "queue"),
        }
        command = ["-m", "celery", "--app", "tasks", "worker", "--concurrency", "2"]
        quiet = [
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
            "--loglevel",
            "INFO",
        ]
        self._process = ServerProcess(
            "celery",
            [sys.executable, *command, *quiet, *arguments],
            log=self.log,
            ready_url="",
            environment=self._environment,
        )

    def call(self, times: int) -> None:
        """Put tasks of ten items into the queue; each runs them twice."""
        import subprocess

        subprocess.run(
            [sys.executable, str(self._directory / "tasks.py"), str(times)],
            env=self._environment | {"AMORSIZE_SENDS": "1"},
            check=True,
            timeout=PATIENCE,
        )

    def items(self) -> float | None:
        try:
            url = f"http://127.0.0.1:{self.port}/metrics"
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                return sums(answer.read().decode())(ITEMS)
        except OSError:
            return None

    def close(self) -> None:
        self._process.stop()


SENDER = 'if "AMORSIZE_SENDS" not in os.environ: '


@pytest.fixture
def celery(tmp_path: Path) -> Iterator[Callable[..., Celery]]:
    workers: list[Celery] = []

    def start(enable: str, *arguments: str) -> Celery:
        workers.append(Celery(tmp_path, SENDER + enable, *arguments))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


@pytest.mark.parametrize("recycling", [(), ("--max-tasks-per-child", "2")], ids=["", "recycled"])
def test_the_pool_of_a_task_queue_is_one_page(
    celery: Callable[..., Celery], recycling: tuple[str, ...]
) -> None:
    """The first process listens, the pool's run the tasks; those that have ended are counted."""
    worker = celery("amorsize.enable_prometheus(PORT, multiprocess=True)", *recycling)
    worker.call(12)
    poll(worker.items, lambda value: value == 240, "the items of all tasks")
    assert "inert" not in worker.log.read_text()


def test_an_exporter_that_is_inert_in_a_pool_says_so(celery: Callable[..., Celery]) -> None:
    """In each process that runs a task."""
    worker = celery("amorsize.enable_prometheus(PORT)")
    worker.call(4)
    wait_until(lambda: INERT.search(worker.log.read_text()), "the warning")
    assert worker.items() == 0
