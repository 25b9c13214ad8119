"""Servers as processes: those that do not start, do not end, or are somebody else."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ports import free_port

from stack.errors import StackError
from stack.ports import choose, is_free
from stack.processes import ServerProcess

SERVE = """
import sys
from http.server import HTTPServer, SimpleHTTPRequestHandler
print("serving", flush=True)
HTTPServer(("127.0.0.1", int(sys.argv[1])), SimpleHTTPRequestHandler).serve_forever()
"""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
SAY_AND_FAIL = "import sys; print('line'); sys.exit('no such disk')"
SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start Python programs as servers: ``start(SERVE)``."""
    started: list[ServerProcess] = []

    def start(program: str, port: int | None = None) -> ServerProcess:
        port = free_port() if port is None else port
        started.append(
            ServerProcess(
                "The server",
                [sys.executable, "-c", program, str(port)],
                log=tmp_path / "server.log",
                ready_url=f"http://127.0.0.1:{port}/",
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.stop(1.0)


def test_a_server_is_ready_when_it_answers_and_ends_by_sigterm(
    start: Callable[..., ServerProcess],
) -> None:
    """Its exit code says so."""
    process = start(SERVE)
    process.wait_until_ready()
    assert process.exit_code is None
    process.stop()
    assert process.exit_code == -signal.SIGTERM


def test_one_that_does_not_end_is_killed(start: Callable[..., ServerProcess]) -> None:
    """After as long as it is given."""
    process = start(STUBBORN + SERVE)
    process.wait_until_ready()
    process.stop(0.1)
    assert process.exit_code == -signal.SIGKILL


def test_one_that_ends_says_why(start: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """The exit code, where its log is, and the end of that."""
    with pytest.raises(StackError) as said:
        start(SAY_AND_FAIL).wait_until_ready()
    assert str(said.value) == (
        "The server ended with exit code 1. The end of its log, "
        f"{tmp_path / 'server.log'}:\n  line\n  no such disk"
    )


def test_one_that_never_answers_is_not_waited_for_for_ever(
    start: Callable[..., ServerProcess],
) -> None:
    """Nor when somebody asks to stop meanwhile."""
    process = start(SLEEP)
    with pytest.raises(
        StackError, match=r"The server was not ready within 0 s\. Its log, .* empty"
    ):
        process.wait_until_ready(0.2)
    cancelled = threading.Event()
    cancelled.set()
    before = time.monotonic()
    process.wait_until_ready(60.0, cancelled=cancelled)
    assert time.monotonic() - before < 30.0


def test_somebody_elses_server_is_not_taken_for_ones_own(
    start: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    """A port that was taken between choice and start: another server answers there."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            process.stop()  # it has lost the port, and ended
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            process = start(SLEEP, other.server_port)
            with pytest.raises(StackError, match="ended with exit code"):
                process.wait_until_ready()
        finally:
            other.shutdown()
            thread.join()


def test_a_program_that_is_not_there_is_said(tmp_path: Path) -> None:
    """The error names the program and the reason; with setpriv the reason stands in the log."""
    with pytest.raises(StackError, match=r"Ghost (cannot be started|ended with exit code)"):
        ServerProcess(
            "Ghost",
            [str(tmp_path / "ghost")],
            log=tmp_path / "ghost.log",
            ready_url="http://127.0.0.1:9/",
        ).wait_until_ready()


def test_a_wanted_port_is_taken_where_it_is_free() -> None:
    """And another one where somebody listens."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        port = server.server_port
        assert not is_free(port)
        assert choose(port) != port
    assert is_free(port)
    assert choose(port) == port
