"""Events and service checks by the HTTP API, on a real HTTP server; and the key stays secret."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from waiting import PATIENCE

from amorsize.errors import InvalidTypeError, InvalidValueError
from amorsize.exporters.datadog.exporter import DatadogExporter, enable_datadog
from amorsize.hooks import HookEvent, HookManager

from ..backends import dead_port
from ..events import Run, emit_run

KEY = "hunter2hunter2"


class Datadog:
    """Keeps what is posted. ``statuses`` are its next answers, 202 after them."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, str | None, str | None, Any]] = []
        self.statuses: list[int] = []
        self.answered = threading.Semaphore(0)
        datadog = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                key, kind = self.headers["DD-API-KEY"], self.headers["Content-Type"]
                datadog.posts.append((self.path, key, kind, body))
                self.send_response(datadog.statuses.pop(0) if datadog.statuses else 202)
                self.send_header("Location", "/elsewhere")
                answer = json.dumps({"status": "ok", "errors": [f"key {key}"]}).encode()
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)
                datadog.answered.release()

            do_GET = do_POST

            def log_message(self, *args: object) -> None:
                """Keep quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("DD_", "DATADOG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DD_HOSTNAME", "worker-7")


@pytest.fixture
def datadog() -> Iterator[Datadog]:
    backend = Datadog()
    yield backend
    backend.close()


def test_events_and_checks_are_posted(
    monkeypatch: pytest.MonkeyPatch, manager: HookManager, datadog: Datadog
) -> None:
    """With the key in its header, the tags of the environment, and no metrics."""
    monkeypatch.setenv("DD_ENV", "staging")
    monkeypatch.setenv("DD_TAGS", "a:b,env:staging")
    exporter = DatadogExporter(
        api_key=KEY, api_host=datadog.url, tags=["team:data"], events=["error", "completed"]
    )
    with exporter.attach(manager):
        emit_run(manager)
        assert exporter.flush(PATIENCE)
    tags = ["function:parse", "executor:process", "team:data", "a:b", "env:staging"]  # each once
    assert [post[:3] for post in datadog.posts] == [
        ("/api/v1/events", KEY, "application/json"),
        ("/api/v1/events", KEY, "application/json"),
        ("/api/v1/check_run", KEY, "application/json"),
    ]
    failed, completed, check = [post[3] for post in datadog.posts]
    assert failed.pop("text").startswith("%%% \n- function: `parse`\n")
    assert isinstance(failed.pop("date_happened"), int)
    assert failed == {
        "title": "parse failed: ValueError",
        "alert_type": "error",
        "aggregation_key": "run of parse",
        "host": "worker-7",
        "tags": tags,
    }
    assert (completed["title"], completed["alert_type"]) == ("parse completed", "success")
    assert isinstance(check.pop("timestamp"), int)
    assert check == {
        "check": "amorsize.execution",
        "status": 0,
        "message": "parse: ok",
        "host_name": "worker-7",
        "tags": tags,
    }
    assert exporter.counts() == (0, 0)


def test_a_text_is_cut_to_the_limit_of_the_api(manager: HookManager, datadog: Datadog) -> None:
    """In characters."""
    with DatadogExporter(api_key=KEY, api_host=datadog.url).attach(manager):
        run = Run(manager)
        run.begin()
        error = ValueError("é" * 9000)
        run.emit(HookEvent.ON_ERROR, error=error, error_traceback="👍" * 9000 + "end")
        run.end("error", error=error)
    text = datadog.posts[0][3]["text"]
    assert len(text) == 4000
    assert text.endswith("👍end\n```\n %%%")
    assert datadog.posts[1][3]["status"] == 2


def test_the_key_and_the_site_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, manager: HookManager, datadog: Datadog, caplog: Any
) -> None:
    """Then somebody may expect metrics, which there are none."""
    monkeypatch.setenv("DD_API_KEY", KEY)
    monkeypatch.setenv("DD_SITE", "datadoghq.eu")
    with DatadogExporter() as exporter:
        assert repr(exporter) == "<DatadogExporter (https://api.datadoghq.eu)>"
    assert "Datadog receives events and service checks, but no metrics" in caplog.text
    with DatadogExporter(api_host=datadog.url).attach(manager):
        emit_run(manager, status="error")
    assert [post[1] for post in datadog.posts] == [KEY, KEY]


def test_an_answer_that_may_pass_is_tried_again(manager: HookManager, datadog: Datadog) -> None:
    """And nothing is posted twice."""
    datadog.statuses = [503, 429]
    with DatadogExporter(api_key=KEY, api_host=datadog.url).attach(manager) as exporter:
        emit_run(manager)
        for _ in range(2):
            assert datadog.answered.acquire(timeout=PATIENCE)
            exporter._sender.nudge()
        assert exporter.flush(PATIENCE)
        assert exporter.counts() == (0, 2)
    assert [post[0].rpartition("/")[2] for post in datadog.posts] == ["events"] * 3 + ["check_run"]


@pytest.mark.parametrize("status", [403, 302])
def test_a_refusal_is_counted_and_the_key_is_not_shown(
    manager: HookManager, datadog: Datadog, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """Neither in the log nor, by a redirection, to another host."""
    caplog.set_level(logging.DEBUG)
    datadog.statuses = [status, status]
    with DatadogExporter(api_key=KEY, api_host=datadog.url).attach(manager) as exporter:
        emit_run(manager)
        assert not exporter.flush(PATIENCE)
        assert exporter.counts() == (2, 2)
        assert f"RefusedError: Datadog answered {status}" in caplog.text
        said = f"{caplog.text} {exporter!r} {exporter._sender.stats()} {exporter._api!r}"
        assert KEY not in said
    assert {post[0] for post in datadog.posts} == {"/api/v1/events", "/api/v1/check_run"}


def test_a_dead_api_loses_the_messages_and_nothing_else(
    manager: HookManager, caplog: pytest.LogCaptureFixture
) -> None:
    """All of it is counted."""
    caplog.set_level(logging.DEBUG)
    with dead_port() as port:
        url = f"http://127.0.0.1:{port}"
        exporter = DatadogExporter(api_key=KEY, api_host=url).attach(manager)
        emit_run(manager)
        exporter.close()
    dropped, errors = exporter.counts()
    assert dropped == 2
    assert errors >= 1
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"api_key": 5}, InvalidTypeError, "api_key must be a string; got a int"),
        ({"api_key": f"{KEY}\n"}, InvalidValueError, "api_key must be printable ASCII"),
        ({"api_key": ""}, InvalidValueError, "api_key must be printable ASCII"),
        ({"api_key": KEY, "api_host": 5}, InvalidTypeError, "api_host must be a URL, or None"),
        ({"api_key": KEY, "api_host": "api.datadoghq.eu"}, InvalidValueError, "make a URL like"),
        ({"api_key": KEY, "api_host": "http://a:b"}, InvalidValueError, "make a URL like"),
        ({"api_key": KEY, "api_host": f"http://u:{KEY}@a"}, InvalidValueError, "without a user"),
        ({"api_key": KEY, "api_host": "http://a", "port": 1}, InvalidValueError, "neither host"),
    ],
)
def test_a_wrong_setting_is_refused(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    """And no message shows the key."""
    with pytest.raises(error, match=message) as refused:
        enable_datadog(**settings)
    assert KEY not in str(refused.value)


def test_enabling_twice_with_another_key_shows_neither() -> None:
    """The message names the setting."""
    with (
        enable_datadog(api_key=KEY, api_host="http://127.0.0.1:9"),
        pytest.raises(RuntimeError, match="another api_key") as refused,
    ):
        enable_datadog(api_key="hunter3", api_host="http://127.0.0.1:9")
    assert "hunter" not in str(refused.value)
