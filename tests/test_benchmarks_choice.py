"""The benchmark of the choice runs whole cells and judges what it measured; no speed is held."""

from __future__ import annotations

import pytest

from benchmarks.choice import table
from benchmarks.choice.__main__ import main
from benchmarks.choice.contenders import CONTENDERS
from benchmarks.choice.table import Row
from benchmarks.choice.workloads import WORKLOADS


def test_every_contender_runs_a_workload(capsys: pytest.CaptureFixture[str]) -> None:
    """Each in a process of its own, whose pools do not keep the benchmark waiting."""
    assert main(["--only", "too-small", "--rounds", "1"]) == 0
    shown = capsys.readouterr().out
    for name in CONTENDERS:
        assert name in shown
    assert "First call in a process" in shown
    assert "A later call" in shown
    assert "geometric mean, first calls: " in shown


def test_ratios_are_to_the_best_peer_of_the_row() -> None:
    """And the figures to be reached are judged by them."""
    seconds = {name: {"first": [4.0], "later": [4.0]} for name in CONTENDERS}
    seconds["amorsize"] = {"first": [3.0, 2.4, 2.0], "later": [1.0]}
    seconds["joblib"] = {"first": [2.0], "later": [2.0]}
    row = Row("cpu-5ms", seconds, {"first": ("joblib", [2.2]), "later": ("mpire", [4.0])})
    assert row.best_peer("first") == "joblib"
    assert row.ratio("amorsize", "first") == 1.2
    assert row.ratio("amorsize", "later") == 0.5
    assert row.noise("first") == pytest.approx(0.1)
    assert row.noise("later") == 0.0
    judged = table.judge([row])
    assert judged[0] == "geometric mean, first calls: 1.20, at most 1.05: NOT reached"
    assert judged[1] == "geometric mean, later calls: 0.50, at most 1.00: reached"
    assert judged[-1].endswith("1 of 1 rows, at least a third: reached")


def test_a_cell_that_fails_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a cell could not do ends the benchmark, with its name."""
    monkeypatch.setattr(table, "CONTENDERS", {"nobody": None})
    with pytest.raises(RuntimeError, match="nobody on too-small ended with exit code 1"):
        list(table.run(["too-small"], 1))


def test_an_unknown_workload_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """With those that there are."""
    with pytest.raises(SystemExit, match="2"):
        main(["--only", "nonsense"])
    assert f"there are {', '.join(WORKLOADS)}" in capsys.readouterr().err
