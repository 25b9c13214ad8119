"""The lower bounds of the extras are versions that CI runs."""

from __future__ import annotations

import subprocess
import tomllib

import lowest
import pytest


def test_every_requirement_has_its_lowest_version() -> None:
    """Of the package and of every extra, once; and what CI runs installs them."""
    project = tomllib.loads(lowest.PYPROJECT.read_text(encoding="utf-8"))["project"]
    pins = list(lowest.lowest())
    for name, requirements in {
        **project["optional-dependencies"],
        "": project["dependencies"],
    }.items():
        if name != "all":
            assert {each.replace(">=", "==") for each in requirements} <= set(pins)
    assert len(pins) == len(set(pins))
    root = lowest.PYPROJECT.parent
    assert "\nmake lowest\n" in (root / ".ci" / "run").read_text(encoding="utf-8")
    steps = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "--always-make", "lowest"],
        cwd=root,
        capture_output=True,
        text=True,
    ).stdout
    assert "tests/lowest.py > .venv/lowest.txt" in steps
    assert "--constraint .venv/lowest.txt" in steps
    assert ".venv/lowest/bin/python -m pytest -n 4 tests/exporters" in steps


def test_a_requirement_without_a_bound_is_refused(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would know which version was meant."""
    path = tmp_path_factory.mktemp("project") / "pyproject.toml"
    path.write_text(
        '[project]\nname = "a"\ndependencies = ["b"]\n[project.optional-dependencies]\nc = []\n'
    )
    monkeypatch.setattr(lowest, "PYPROJECT", path)
    with pytest.raises(ValueError, match=r"^b has no lower bound, such as name>=1\.2$"):
        list(lowest.lowest())
