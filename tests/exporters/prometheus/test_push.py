"""Pushing and writing: what is sent, how it is protected, and that no gateway harms a run."""

from __future__ import annotations

import base64
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from prometheus_client import CollectorRegistry, Counter
from waiting import PATIENCE, slowness

from amorsize.errors import InvalidTypeError, InvalidValueError
from amorsize.exporters.delivery import Delivery, Interval
from amorsize.exporters.prometheus.exporter import PrometheusExporter
from amorsize.exporters.prometheus.program import program_name
from amorsize.exporters.prometheus.pushgateway import GatewayGroups, Pushgateway
from amorsize.exporters.prometheus.settings import DeliverySettings
from amorsize.exporters.prometheus.textfile import TextFile, write_atomically
from amorsize.exporters.sender import RefusedError, Sender
from amorsize.exporters.series import Series
from amorsize.exporters.totals import TotalsExporter
from amorsize.hooks import HookContext, HookEvent, HookManager

from ..certificates import Certificates
from ..events import Run

SECRET = "hunter2"


class Gateway:
    """Records what is pushed to it."""

    def __init__(self, status: int = 200, tls: Any = None, location: str = "") -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.methods: list[str] = []
        self.reads: list[tuple[str, dict[str, str]]] = []
        self.content = b'{"status": "success", "data": []}'
        self.status = status
        self.read_status = 0
        self.refused_path = ""
        self.answered = threading.Semaphore(0)
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                gateway.requests.append((self.path, dict(self.headers), body))
                gateway.methods.append(self.command)
                refused = gateway.refused_path == self.path
                self.send_response(400 if refused else gateway.status)
                if location:
                    self.send_header("Location", location)
                self.end_headers()
                self.wfile.write(b"what the gateway says\n")
                gateway.answered.release()

            do_PUT = do_POST

            def do_GET(self) -> None:
                gateway.reads.append((self.path, dict(self.headers)))
                status = gateway.read_status or gateway.status
                self.send_response(status)
                self.end_headers()
                body = gateway.content if status == 200 else b"what the gateway says\n"
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *args: None  # type: ignore[method-assign]
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def wait(self) -> tuple[str, dict[str, str], bytes]:
        assert self.answered.acquire(timeout=PATIENCE)
        return self.requests[-1]

    def pushed(self) -> dict[str, bytes]:
        """The last page of each group, by its path."""
        return {path: body for path, _, body in self.requests}

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    yield gateway
    gateway.close()


PROGRAM = f"program/{quote(program_name(), safe='')}"
PARSE = "/metrics/job/nightly/function/parse"


def test_the_end_of_a_run_is_pushed(manager: HookManager, gateway: Gateway) -> None:
    """As Prometheus text, to the groups of the job; nothing listens."""
    with PrometheusExporter(
        pushgateway=gateway.url, job="nightly", grouping_key={"site": "here"}
    ).attach(manager) as exporter:
        run = Run(manager)
        run.begin()
        run.complete_chunk(3)
        run.end()
        for _ in range(2):
            _, headers, _ = gateway.wait()
        assert (exporter.port, exporter.url) == (0, "")
        assert repr(exporter) == "<PrometheusExporter (delivering)>"
    assert set(gateway.pushed()) == {
        "/metrics/job/nightly/site/here/function/parse",
        f"/metrics/job/nightly/site/here/{PROGRAM}",
    }
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "Authorization" not in headers
    page = gateway.pushed()["/metrics/job/nightly/site/here/function/parse"]
    assert b'amorsize_items_processed_total{executor="process",function="parse"} 3\n' in page
    assert b"amorsize_hook_errors_total" not in page


def test_close_pushes_once_more(manager: HookManager, gateway: Gateway) -> None:
    """What came after the last run's end, such as failures of hooks, is not lost."""
    with PrometheusExporter(pushgateway=gateway.url, job="nightly").attach(manager) as exporter:
        Run(manager).begin()
        manager.register(HookEvent.ON_PROGRESS, broken)
        manager.trigger(HookContext(HookEvent.ON_PROGRESS))
    assert b"amorsize_executions_in_progress{" in gateway.pushed()[PARSE]
    assert (
        b'amorsize_hook_errors_total{event="on_progress"} 1\n'
        in gateway.pushed()[f"/metrics/job/nightly/{PROGRAM}"]
    )
    assert exporter.counts() == (0, 0)


def broken(context: Any) -> None:
    raise RuntimeError("broken")


def test_flush_pushes_now(manager: HookManager, gateway: Gateway) -> None:
    """And says whether it arrived."""
    with PrometheusExporter(pushgateway=gateway.url, job="nightly").attach(manager) as exporter:
        Run(manager).begin()
        assert exporter.flush(PATIENCE) is True
        assert b"amorsize_executions_in_progress{" in gateway.pushed()[PARSE]


def test_credentials_are_sent_and_never_shown(gateway: Gateway, caplog: Any) -> None:
    """Not by the text of the exporter, nor in the log of a failure."""
    caplog.set_level(logging.DEBUG)
    gateway.status = 401
    settings: list[dict[str, Any]] = [
        {"pushgateway_user": "me", "pushgateway_password": SECRET},
        {"pushgateway_token": SECRET},
    ]
    for setting in settings:
        with PrometheusExporter(pushgateway=gateway.url, job="nightly", **setting) as exporter:
            assert exporter.flush(PATIENCE) is False
            assert SECRET not in repr(exporter) + repr(vars(exporter))
            assert exporter.counts() == (1, 1)
    asked = [headers for _, headers in gateway.reads]
    sent = {headers["Authorization"] for headers in asked}
    assert sent == {headers["Authorization"] for _, headers, _ in gateway.requests}
    basic = base64.b64encode(f"me:{SECRET}".encode()).decode()
    assert sent == {f"Basic {basic}", f"Bearer {SECRET}"}
    assert "the Pushgateway answered 401: what the gateway says" in caplog.text
    assert SECRET not in caplog.text
    assert basic not in caplog.text


NIGHTLY = {"job": "nightly"}


def group(url: str, **settings: Any) -> Pushgateway:
    return Pushgateway(DeliverySettings(pushgateway=url, job="nightly", **settings))


def groups_of(gateway: Gateway) -> GatewayGroups:
    return GatewayGroups(group(gateway.url), NIGHTLY)


def after_a_run(totals: TotalsExporter, manager: HookManager, function: str) -> Series:
    run = Run(manager, function=function, execution_id=function)
    run.begin()
    run.complete_chunk(2)
    run.end()
    return totals.snapshot()


@pytest.fixture
def totals(manager: HookManager) -> Iterator[TotalsExporter]:
    with TotalsExporter().attach(manager) as totals:
        yield totals


def test_what_the_gateway_holds_of_the_program_is_continued_and_replaced(
    gateway: Gateway, totals: TotalsExporter, manager: HookManager
) -> None:
    """It is read once; groups of other jobs and of other sites are not the program's."""
    sample = {
        "labels": {"function": "parse", "executor": "process", "job": "nightly"},
        "value": "5",
    }
    items = {"amorsize_items_processed_total": {"type": "COUNTER", "metrics": [sample]}}
    labels = {"job": "nightly", "function": "parse"}
    others = [{"labels": {**labels, **more}, **items} for more in ({"job": "x"}, {"site": "x"})]
    data = [*others, {"labels": {**labels, "site": ""}, **items}]
    gateway.content = json.dumps({"status": "success", "data": data}).encode()
    groups = groups_of(gateway)
    for _ in range(2):
        groups.push(after_a_run(totals, manager, "parse"))
    name = b'amorsize_items_processed_total{executor="process",function="parse"}'
    assert name + b" 9\n" in gateway.pushed()[PARSE]
    assert {path for path, _ in gateway.reads} == {"/api/v1/metrics"}
    assert len(gateway.reads) == 1
    assert set(gateway.methods) == {"PUT"}


@pytest.mark.parametrize(
    ("status", "content", "reads"),
    [(403, b"", 1), (404, b"", 1), (503, b"", 3), (200, b"<html>", 1), (200, b"{}", 1)],
)
def test_a_gateway_that_cannot_be_read_keeps_what_is_not_pushed(
    gateway: Gateway,
    totals: TotalsExporter,
    manager: HookManager,
    caplog: Any,
    status: int,
    content: bytes,
    reads: int,
) -> None:
    """The counters begin at zero; the log says so, once."""
    gateway.read_status, gateway.content = status, content
    groups = groups_of(gateway)
    series = after_a_run(totals, manager, "parse")
    for _ in range(reads - 1):
        with pytest.raises(ConnectionError, match="answered 503"):
            groups.push(series)
        assert gateway.requests == []
    for _ in range(2):
        groups.push(series, again=True)
    assert len(gateway.reads) == reads
    assert set(gateway.methods) == {"POST"}
    assert [each.levelname for each in caplog.records] == ["WARNING"]
    assert "cannot be read" in caplog.text
    assert "Its counters begin at zero" in caplog.text


def test_the_end_of_a_run_pushes_what_has_changed(
    gateway: Gateway, totals: TotalsExporter, manager: HookManager
) -> None:
    """There may be little time; at the interval all is pushed, which the gateway may have lost."""
    groups = groups_of(gateway)
    groups.push(after_a_run(totals, manager, "parse"))
    del gateway.requests[:]
    series = after_a_run(totals, manager, "store")
    groups.push(series)
    assert PARSE not in gateway.pushed()
    assert PARSE.replace("parse", "store") in gateway.pushed()
    del gateway.requests[:]
    groups.push(series)
    assert gateway.requests == []
    groups.push(series, again=True)
    assert PARSE in gateway.pushed()


def test_a_group_that_is_refused_keeps_no_other_from_its_push(
    gateway: Gateway, totals: TotalsExporter, manager: HookManager
) -> None:
    """Somebody else's metrics may clash with those of one function."""
    gateway.refused_path = PARSE
    for function in ("parse", "store"):
        series = after_a_run(totals, manager, function)
    with pytest.raises(RefusedError, match="answered 400"):
        groups_of(gateway).push(series)
    assert PARSE.replace("parse", "store") in gateway.pushed()
    assert f"/metrics/job/nightly/{PROGRAM}" in gateway.pushed()


def test_the_applications_own_metrics_have_the_group_of_the_job(
    gateway: Gateway, manager: HookManager
) -> None:
    """Where others may have theirs, too: nothing is replaced but the metrics of the same names."""
    registry = CollectorRegistry()
    Counter("orders", "Orders", registry=registry).inc(3)
    with PrometheusExporter(pushgateway=gateway.url, job="nightly", registry=registry).attach(
        manager
    ) as exporter:
        Run(manager).begin()
        assert exporter.flush(PATIENCE)
    page = gateway.pushed()["/metrics/job/nightly"]
    assert b"orders_total 3.0\n" in page
    assert b"amorsize_" not in page
    methods = dict(zip([path for path, _, _ in gateway.requests], gateway.methods, strict=True))
    assert methods["/metrics/job/nightly"] == "POST"
    assert methods[PARSE] == "PUT"


def test_a_user_who_names_the_program_is_obeyed(gateway: Gateway, manager: HookManager) -> None:
    """Two of the same script, say, at the same time."""
    with PrometheusExporter(
        pushgateway=gateway.url, job="nightly", grouping_key={"program": "second"}
    ).attach(manager):
        pass
    assert set(gateway.pushed()) == {"/metrics/job/nightly/program/second"}


def test_tls_and_a_client_certificate(certificates: Certificates) -> None:
    """The gateway is known by its authority, and knows the program by its certificate."""
    gateway = Gateway(tls=certificates.server_context(clients=True))
    try:
        both = group(
            gateway.url,
            pushgateway_cafile=certificates.ca,
            pushgateway_certfile=certificates.client,
        )
        both.push(NIGHTLY, b"# page\n")
        assert gateway.requests[-1][2] == b"# page\n"
        with pytest.raises(OSError, match="certificate verify failed"):
            group(gateway.url).push(NIGHTLY, b"")
        with pytest.raises(OSError, match=r".") as refused:
            group(gateway.url, pushgateway_cafile=certificates.ca).push(NIGHTLY, b"")
        assert not isinstance(refused.value, RefusedError)
        assert len(gateway.requests) == 1
    finally:
        gateway.close()


def test_a_redirection_is_not_followed(gateway: Gateway) -> None:
    """It would send the credentials to another host."""
    other = Gateway(status=302, location=f"{gateway.url}/elsewhere")
    try:
        with pytest.raises(RefusedError, match="answered 302"):
            group(other.url, pushgateway_token=SECRET).push(NIGHTLY, b"")
        assert gateway.requests == []
    finally:
        other.close()


def test_a_busy_gateway_is_asked_again(gateway: Gateway) -> None:
    """500s, 408 and 429 pass; nothing else does."""
    for status, kind in ((503, ConnectionError), (429, ConnectionError), (400, RefusedError)):
        gateway.status = status
        with pytest.raises(kind, match=f"answered {status}"):
            group(gateway.url).push(NIGHTLY, b"")


@pytest.fixture(params=["dead", "hanging", "refusing", "failing"])
def bad_gateway(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a gateway that is no good."""
    if request.param == "dead":
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))  # bound, and nobody listens
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    elif request.param == "hanging":
        with socket.create_server(("127.0.0.1", 0)) as sock:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    else:
        gateway = Gateway(400 if request.param == "refusing" else 503)
        yield gateway.url
        gateway.close()


def test_a_bad_gateway_neither_stops_nor_fails_a_run(
    tmp_path: Path, manager: HookManager, bad_gateway: str
) -> None:
    """The text file is written all the same, the events wait for nobody, close() is bounded."""
    file = tmp_path / "parse.prom"
    exporter = PrometheusExporter(pushgateway=bad_gateway, job="nightly", textfile=file)
    exporter.attach(manager)
    began = time.monotonic()
    for number in range(200):
        run = Run(manager, execution_id=str(number))
        run.begin()
        run.complete_chunk(1)
        run.end()
    reported_seconds = time.monotonic() - began
    began = time.monotonic()
    exporter.close()
    assert (
        time.monotonic() - began < 5 * slowness()
    )  # it waits a second; the rest is a slow machine's
    assert reported_seconds < 5 * slowness()  # one timeout of the hanging gateway alone
    assert manager.get_stats()["error_counts"] == {}
    assert b'status="ok"} 200\n' in file.read_bytes()
    assert sum(exporter.counts()) >= 1


def test_an_unwritable_file_does_not_fail_a_run(tmp_path: Path, manager: HookManager) -> None:
    """Its directory may go away at any time."""
    directory = tmp_path / "gone"
    directory.mkdir()
    with PrometheusExporter(textfile=directory / "x.prom").attach(manager) as exporter:
        directory.rmdir()
        run = Run(manager)
        run.begin()
        run.end()
        assert exporter.flush(0.1) is False
    assert manager.get_stats()["error_counts"] == {}
    assert exporter.counts()[1] >= 1


def test_a_running_execution_is_pushed_at_the_interval(
    manager: HookManager, gateway: Gateway
) -> None:
    """Without any event of its own; and no more once it is over."""
    with PrometheusExporter(pushgateway=gateway.url, job="nightly", push_interval=1).attach(
        manager
    ):
        Run(manager).begin()
        for _ in range(4):  # two groups, twice
            gateway.wait()
        assert gateway.pushed().keys() == {PARSE, f"/metrics/job/nightly/{PROGRAM}"}
        assert b"amorsize_executions_in_progress{" in gateway.pushed()[PARSE]


def test_the_interval_calls_only_while_there_is_a_reason() -> None:
    """And begins again with the next one."""
    reason = True
    acted = threading.Semaphore(0)
    asked = threading.Semaphore(0)

    def has_reason() -> bool:
        asked.release()
        return reason

    interval = Interval(0.01, has_reason, acted.release)
    interval.wake()
    assert acted.acquire(timeout=PATIENCE)
    assert acted.acquire(timeout=PATIENCE)
    reason = False
    thread = interval._thread
    assert thread is not None
    while interval._has_woken:
        assert asked.acquire(timeout=PATIENCE)
    reason = True
    interval.wake()
    assert acted.acquire(timeout=PATIENCE)
    interval.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_the_text_file_is_whole_at_every_moment(tmp_path: Path) -> None:
    """A reader sees one content or the other."""
    path = tmp_path / "x.prom"
    contents = [b"a" * 100_000, b"b" * 100_000]
    write_atomically(path, contents[0])
    done = threading.Event()

    def write() -> None:
        for number in range(200):
            write_atomically(path, contents[number % 2])
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not done.is_set():
        assert path.read_bytes() in contents
    thread.join()
    assert os.listdir(tmp_path) == ["x.prom"]


def test_a_text_file_that_cannot_be_replaced_leaves_no_temporary_file(tmp_path: Path) -> None:
    """Here because a directory is in the way."""
    (tmp_path / "x.prom" / "full").mkdir(parents=True)
    with pytest.raises(OSError, match=r"x\.prom"):
        TextFile(tmp_path / "x.prom", {}).write({})
    assert os.listdir(tmp_path) == ["x.prom"]


GOOD = {"pushgateway": "http://127.0.0.1:9091", "job": "nightly"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**GOOD, "job": None}, "pushgateway needs job"),
        ({**GOOD, "job": ""}, "job must not be empty"),
        ({**GOOD, "pushgateway": "127.0.0.1:9091"}, "must be a URL like 'http://pushgateway:9091'"),
        ({**GOOD, "pushgateway": "ftp://host"}, "with http or https and a host; got 'ftp://host'"),
        ({**GOOD, "pushgateway": "http://host:x"}, "pushgateway must be a URL like"),
        ({**GOOD, "pushgateway": "http://host/metrics/job/a"}, "URL of the gateway alone"),
        ({**GOOD, "pushgateway": f"http://me:{SECRET}@host"}, "pass pushgateway_user= and pushg"),
        ({**GOOD, "pushgateway": f"http://:{SECRET}@host:x"}, "must be a URL like"),
        ({**GOOD, "grouping_key": {"1a": "x"}}, "must be letters, digits and underscores"),
        ({**GOOD, "grouping_key": {"__a": "x"}}, "nor two underscores; got '__a'"),
        ({**GOOD, "grouping_key": {"job": "x"}}, "must not hold 'job', which is passed as job="),
        ({**GOOD, "grouping_key": {"status": "x"}}, "which is a label of the metrics"),
        ({**GOOD, "push_interval": 0.1}, "push_interval must be at least 1 second"),
        ({**GOOD, "push_interval": float("nan")}, "push_interval must be at least 1 second"),
        ({**GOOD, "pushgateway_user": "me"}, "belong together; pushgateway_password is missing"),
        ({**GOOD, "pushgateway_password": SECRET}, "pushgateway_user is missing"),
        ({**GOOD, "pushgateway_user": "a:b", "pushgateway_password": SECRET}, "contain a colon"),
        ({**GOOD, "pushgateway_token": f"{SECRET}\n"}, "printable ASCII without spaces"),
        (
            {
                **GOOD,
                "pushgateway_token": SECRET,
                "pushgateway_user": "me",
                "pushgateway_password": SECRET,
            },
            "pass pushgateway_token, or a user and a password, not both",
        ),
        ({**GOOD, "pushgateway_cafile": __file__}, "need a pushgateway URL with https"),
        ({**GOOD, "pushgateway_cafile": "/nowhere"}, "'/nowhere': No such file or directory"),
        (
            {**GOOD, "pushgateway": "https://host", "pushgateway_cafile": __file__},
            "in PEM format; they cannot be loaded",
        ),
        (
            {**GOOD, "pushgateway": "https://host", "pushgateway_keyfile": __file__},
            "pushgateway_keyfile needs pushgateway_certfile",
        ),
        ({"job": "nightly"}, "job needs pushgateway or textfile"),
        ({"grouping_key": {"a": "b"}}, "grouping_key needs pushgateway or textfile"),
        ({"pushgateway_token": SECRET}, "pushgateway_token needs pushgateway"),
        ({"textfile": "x.txt"}, r"must end in \.prom"),
        ({"textfile": "/nowhere/x.prom"}, "'/nowhere' is not one. Create it first"),
        ({**GOOD, "addr": "0.0.0.0"}, "addr would have no effect, because no port is opened"),
        ({**GOOD, "certfile": "x", "user": "x"}, "certfile and user would have no effect"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    """At once, with what is allowed, and without secrets."""
    with pytest.raises(InvalidValueError, match=message) as raised:
        PrometheusExporter(**settings)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**GOOD, "pushgateway": 9091}, "pushgateway must be a URL like"),
        ({**GOOD, "job": 5}, "job must be a string; got 5"),
        ({**GOOD, "grouping_key": "a=b"}, "grouping_key must be a mapping"),
        ({**GOOD, "grouping_key": {"a": 1}}, "grouping_key must map strings to strings; got 'a'"),
        ({**GOOD, "push_interval": "5"}, "push_interval must be seconds, or None; got '5'"),
        ({**GOOD, "pushgateway_token": b"hunter2"}, "pushgateway_token must be a string; got a by"),
        ({**GOOD, "pushgateway_cafile": 5}, "pushgateway_cafile must be the path of a file; got 5"),
        ({"textfile": 5}, "textfile must be the path of a file; got 5"),
        ({"listen": "no"}, "listen must be True, False or None; got 'no'"),
    ],
)
def test_settings_of_a_wrong_type_are_refused(settings: dict[str, Any], message: str) -> None:
    """At once, with what is allowed, and without secrets."""
    with pytest.raises(InvalidTypeError, match=message) as raised:
        PrometheusExporter(**settings)
    assert SECRET not in str(raised.value)


def test_runs_that_end_during_an_outage_are_no_overflow() -> None:
    """One page waits, however often it is asked for between the attempts: it shows what is true."""
    attempts = threading.Semaphore(0)
    recovered, arrived = threading.Event(), threading.Event()

    def deliver() -> None:
        attempts.release()
        if not recovered.is_set():
            raise OSError("down")
        arrived.set()

    senders: list[Sender[Any]] = []

    def new_sender(send: Any, **bounds: Any) -> Sender[Any]:
        quick = {"backoff_seconds": 0.001, "max_backoff_seconds": 0.001, "linger_seconds": 0}
        sender: Sender[Any] = Sender(send, **{**bounds, **quick, "attempts": 100_000})
        senders.append(sender)
        return sender

    delivery = Delivery(new_sender, deliver)
    for _ in range(20):
        delivery.request()
        assert attempts.acquire(timeout=PATIENCE)
        assert attempts.acquire(timeout=PATIENCE)
    recovered.set()
    [sender] = senders
    assert sender.flush(PATIENCE)
    assert arrived.is_set()
    assert sender.stats().dropped == 0
    sender.close()
