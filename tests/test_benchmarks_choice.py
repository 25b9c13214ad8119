"""The benchmark of the choice runs whole cells and judges what it measured; no speed is held."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.choice import against, misleading, picture, sweep, table
from benchmarks.choice.__main__ import main
from benchmarks.choice.contenders import CONTENDERS
from benchmarks.choice.sweep import Setting, Swept
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
    """The benchmark ends with the name of the cell."""
    monkeypatch.setattr(table, "CONTENDERS", {"nobody": None})
    with pytest.raises(RuntimeError, match="call too-small nobody ended with exit code 1"):
        list(table.run(["too-small"], 1))


def test_a_checkout_is_run_beside_another_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Both in turns; here, this one beside itself."""
    assert against.main([str(against.HERE), "--only", "too-small", "--rounds", "1"]) == 0
    shown = capsys.readouterr().out
    assert "geometric mean" in shown
    assert "A later call, to before: " in shown
    with pytest.raises(SystemExit, match="2"):
        against.main(["no/such/folder"])
    assert "no/such/folder is not a checkout" in capsys.readouterr().err


def test_an_unknown_workload_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """With those that there are."""
    with pytest.raises(SystemExit, match="2"):
        main(["--only", "nonsense"])
    assert f"there are {', '.join(WORKLOADS)}" in capsys.readouterr().err


def test_the_regret_is_of_what_was_chosen_to_the_best_of_the_sweep() -> None:
    """Each round's choice is taken at its own time in that round."""
    best, chosen = Setting("process", 2, 5), Setting("process", 2, 25)
    seconds = {best: [1.0, 1.0, 1.2], chosen: [1.4, 1.1, 9]}
    heat = {best: 1.1, chosen: 1.2, Setting("serial", 1, 200): 0.1}  # a lucky run, not run again
    swept = Swept("cpu-5ms", [chosen, chosen, best], seconds, heat)
    assert swept.best == best
    assert swept.regret == pytest.approx(1.2)
    shown = sweep.render([swept])
    assert "process, 2 workers, chunks of 5" in shown
    assert "regret of optimize(), worst: 1.20, at most 1.15: NOT reached" in shown


def test_a_sweep_tries_every_engine(capsys: pytest.CaptureFixture[str]) -> None:
    """Each setting in a process of its own, the chosen one marked."""
    assert sweep.main(["--only", "too-small", "--rounds", "1", "--all"]) == 0
    shown = capsys.readouterr().out
    for part in ("serial", "thread, 64 workers", "process, 2 workers", "chosen", "regret"):
        assert part in shown


def test_the_picture_has_all_rows(tmp_path: Path) -> None:
    """And the number of what stands beyond its edge."""
    seconds = {name: {"first": [4.0], "later": [4.0]} for name in CONTENDERS}
    seconds["amorsize"] = {"first": [99.0], "later": [1.0]}
    again = {"first": ("joblib", [4.0]), "later": ("joblib", [4.0])}
    rows = [Row(name, seconds, again) for name in ("cpu-5ms", "trivial")]
    picture.draw(rows, tmp_path / "choice.svg", caption="a machine")
    drawn = (tmp_path / "choice.svg").read_text(encoding="utf-8")
    for text in (WORKLOADS["cpu-5ms"].title, "A later call", "a machine", "amorsize", "25"):
        assert f"<!-- {text} -->" in drawn  # matplotlib says so beside the glyphs


def test_misleading_inputs_are_beside_a_comprehension(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every one of them runs, in a process of its own; no speed is held."""
    some = {"five slow, 2,000 trivial": misleading.inputs()["five slow, 2,000 trivial"]}
    monkeypatch.setattr(misleading, "inputs", lambda: some)
    assert misleading.main(["--rounds", "1"]) == 0
    shown = capsys.readouterr().out
    assert "five slow, 2,000 trivial" in shown
    assert "worst, to the comprehension: " in shown
