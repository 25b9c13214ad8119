"""The benchmarks run, and every figure is there; how fast it was is no matter of a test."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest

import benchmarks
from benchmarks import memory
from benchmarks.__main__ import main
from benchmarks.choice import options
from benchmarks.choice.workloads import WORKLOADS
from benchmarks.harness import FIGURES, Budget, Contender, Figure, Result
from benchmarks.report import rows

SHORTEST = Budget(rounds=1, seconds=0.0)
PAGE = (Path(__file__).parent.parent / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def test_every_figure_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All with the fewest rounds: each value and its peers' are positive.

    A figure that is held against a peer has that peer.
    """
    file = tmp_path / "results.json"
    assert main(["--json", str(file)], budget=SHORTEST) == 0

    measured = json.loads(file.read_text(encoding="utf-8"))["figures"]
    assert [each["name"] for each in measured] == list(FIGURES)
    for each in measured:
        assert each["seconds"] > 0, each["name"]
        assert all(peer["seconds"] > 0 for peer in each["peers"].values()), each["name"]
        against = FIGURES[each["name"]].against
        assert against is None or against in each["peers"], each["name"]
    shown = capsys.readouterr().out
    for declared in FIGURES.values():
        assert declared.title in shown


def test_the_page_names_commands_workloads_and_figures_that_exist() -> None:
    """What its tables call a figure or a workload is what the benchmarks call it."""
    for command in re.findall(r"python -m (benchmarks[.\w]*)([^\n`#]*)", PAGE):
        module, arguments = command
        path = Path(benchmarks.__file__).parents[1].joinpath(*module.split("."))
        source = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        text = source.read_text() + inspect.getsource(options)
        assert [each for each in re.findall(r"--[a-z]+", arguments) if each not in text] == []
    main(["--list"])  # which declares all figures
    of_calls, _, of_figures = PAGE.partition("## Results: figures")
    first_cells = re.compile(r"^\| ([^|]+) \|", re.MULTILINE)
    rows = set(first_cells.findall(of_figures)) - {"figure", "---", " "}
    assert rows <= {figure.title for figure in FIGURES.values()}
    assert len(rows) > 20
    _, _, results = of_calls.partition("## Results: whole calls")
    summaries = {"workload", "---", "geometric mean", "worst cell"}
    workloads = set(first_cells.findall(results)) - summaries
    assert workloads == {workload.title for workload in WORKLOADS.values()}


def test_memory_is_measured_for_every_engine(capsys: pytest.CaptureFixture[str]) -> None:
    """Whether it is flat is no matter of so few chunks."""
    memory.main(["--chunks", "50"])
    lines = capsys.readouterr().out.splitlines()
    assert [line[2:18].strip() for line in lines[1:]] == list(memory.ENGINES)
    assert all("ms a chunk" in line and "flat" in line for line in lines[1:])


def test_only_chooses_figures_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    """``--only`` and ``--list`` name the figures that would be measured."""
    assert main(["--only", "trigger", "--list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == ["trigger-0", "trigger-1", "trigger-5"]


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The message lists the names that exist."""
    with pytest.raises(SystemExit, match="2"):
        main(["--only", "nonsense"])
    said = capsys.readouterr().err
    assert "no figure is called like nonsense; there are context, " in said


def test_a_ratio_is_that_of_the_same_round() -> None:
    """Ratios and differences compare rounds in pairs, so that a slow minute cancels out."""
    result = _result([1.0, 10.0, 2.0], [2.0, 20.0, 4.0], at_most=0.6)
    assert result.ratio("peer") == 0.5
    assert result.difference("peer") == -2.0
    assert result.seconds() == 2.0
    assert rows(result) == [
        ("a title", "2 s", "peer", "4 s", "0.50", "< 1%", "0.6: reached"),
    ]


def test_a_missed_target_is_said() -> None:
    """The table shows it."""
    assert rows(_result([3.0], [4.0], at_most=0.6))[0][-1] == "0.6: NOT reached"


def test_noise_is_what_the_same_contender_differs_by() -> None:
    """The noise floor compares a peer with itself."""
    assert _result([1.0], [4.0], again=[5.0]).noise == pytest.approx(0.2)


def _result(
    ours: list[float],
    peers: list[float],
    *,
    at_most: float | None = None,
    again: list[float] | None = None,
) -> Result:
    declared = Figure(
        "name",
        "a title",
        "s",
        lambda: iter([{"amorsize": Contender(float)}]),
        at_most=at_most,
        against="peer",
    )
    return Result(declared, {"amorsize": ours, "peer": peers}, again or peers)
