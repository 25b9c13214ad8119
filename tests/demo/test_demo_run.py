"""The demo's run: three stages that work, checks that notice, a port that is free."""

from __future__ import annotations

import os
import socket

import pytest

from amorsize.demo import run
from amorsize.demo.run import DemoOptions, run_round
from amorsize.demo.sources import Sources, find_sources
from amorsize.demo.stages import Download, Measures, Packed
from amorsize.errors import AmorsizeError, PortInUseError
from amorsize.exporters.prometheus.exporter import PrometheusExporter
from amorsize.exporters.prometheus.settings import PORT_VARIABLE

NO_WAIT = (0.001, 0.002)


@pytest.fixture
def sources():
    return find_sources(max_files=30)


@pytest.fixture
def taken_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_round_runs_three_stages_and_checks_their_results(sources):
    """Every file is measured, is in a bundle, and is asked about."""
    reports = run_round(sources, wait_seconds=NO_WAIT)
    assert [report.name for report in reports] == ["measure", "compress", "fetch"]
    assert [report.items for report in reports] == [30, len(list(sources.bundles())), 30]
    for report in reports:
        assert (report.status, report.failed) == ("ok", 0)
        assert report.engine in {"serial", "thread", "process"}
        assert min(report.n_jobs, report.chunksize) >= 1
        assert report.seconds > 0
        assert report.reason
    measured, compressed, fetched = (report.finding for report in reports)
    assert "functions in" in measured
    assert f"{sources.total_bytes / 1e6:.1f} MB become" in compressed
    assert fetched == "30 answers, all equal to what stage one measured"


def test_what_the_service_refuses_is_reported_as_failed(sources):
    """The round goes on, and its report says how many."""
    *_, fetched = run_round(sources, wait_seconds=NO_WAIT, refuse_one_in=2)
    assert 0 < fetched.failed < 30
    assert f"; {fetched.failed} refused on purpose" in fetched.finding


def test_wrong_results_are_noticed(tmp_path):
    """Each stage's results are compared with what is known from elsewhere."""
    sources = Sources(tmp_path, {"a.py": 5})
    right, wrong = Measures(sources.path("a.py"), 5, 1), Measures(sources.path("a.py"), 6, 1)
    assert "0 functions in 1 lines" in run._check_measures([right], sources)
    with pytest.raises(AmorsizeError, match="stage 'measure' gave a wrong result"):
        run._check_measures([wrong], sources)
    with pytest.raises(AmorsizeError, match="stage 'compress' gave a wrong result"):
        run._check_packed([Packed(4, 1, "bz2")], sources)
    with pytest.raises(AmorsizeError, match="stage 'fetch' gave a wrong result"):
        run._check_answers([Download("a.py", 5, 2)], [right], sources)


def test_a_taken_default_port_is_replaced_by_a_free_one(monkeypatch, capsys, taken_port):
    """The demo runs beside another one, and says where."""
    monkeypatch.delenv(PORT_VARIABLE, raising=False)
    monkeypatch.setattr("amorsize.exporters.prometheus.settings.DEFAULT_PORT", taken_port)
    with run._open_exporter(DemoOptions()) as exporter:
        assert exporter.port != taken_port
        assert f"serves its metrics on port {exporter.port}" in capsys.readouterr().out


def test_a_taken_port_that_was_asked_for_is_an_error(monkeypatch, taken_port):
    """A port that is named, on the command line or in the environment, is used or refused."""
    with pytest.raises(PortInUseError, match=rf"port {taken_port} .* a free one with --port 0"):
        run._open_exporter(DemoOptions(port=taken_port))
    monkeypatch.setenv(PORT_VARIABLE, str(taken_port))
    with pytest.raises(PortInUseError, match=rf"port {taken_port} .*{PORT_VARIABLE}"):
        run._open_exporter(DemoOptions())


def test_without_tqdm_the_demo_says_how_to_install_it(monkeypatch, capsys):
    """The demo runs without progress bars."""
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    assert run._can_show_progress() is False
    assert "pip install 'amorsize[progress]'" in capsys.readouterr().out


def test_the_report_is_made_of_what_its_own_metrics_say(monkeypatch, capsys, tmp_path):
    """Printed whole, with the lines of /metrics and what must hold in PromQL."""
    monkeypatch.setattr(run, "QUICK_FILES", 30)
    path = tmp_path / "summary.json"
    assert run.run_demo(DemoOptions(quick=True, port=0, json_path=path)) == 0
    out = capsys.readouterr().out
    assert "amorsize_items_processed_total" in out
    assert 'sum(amorsize_items_processed_total{function="measure"}) == 30' in out
    assert "amorsize demo --serve" in out
    assert os.path.getsize(path) > 500


def test_a_pushgateway_that_does_not_take_the_metrics_is_said(taken_port, monkeypatch):
    """A short job whose push is lost has not done its work: it fails, and its log says why."""
    monkeypatch.setattr(run, "LAST_PUSH_SECONDS", 0.2)
    url = f"http://127.0.0.1:{taken_port}"  # listens, and never answers
    with (
        PrometheusExporter(port=0, pushgateway=url, job="test") as exporter,
        pytest.raises(AmorsizeError, match=f"the Pushgateway at {url} did not accept the metrics"),
    ):
        run._push(exporter, url)
