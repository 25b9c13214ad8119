"""Writes the constraints of ``make lowest``: every requirement of the package at its lower bound.

The bounds of pyproject.toml are then the versions that the tests have run with, whatever they are.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest() -> Iterator[str]:
    """List ``name==version`` for each requirement of the package and of its extras."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    for requirement in (*project["dependencies"], *chain.from_iterable(extras)):
        if requirement.startswith(f"{project['name']}["):
            continue
        if not re.fullmatch(r"[\w.-]+>=[\w.]+", requirement):
            raise ValueError(f"{requirement} has no lower bound, such as name>=1.2")
        yield requirement.replace(">=", "==")


if __name__ == "__main__":
    print(*lowest(), sep="\n")
