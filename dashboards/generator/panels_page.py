"""Generates the part of ``docs/dashboards.md`` that describes each panel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "dashboards.md"

BEGIN = "<!-- Written by `make dashboards`, to the end mark; do not edit by hand. -->"
END = "<!-- The end mark. -->"


def to_markdown(boards: Iterable[Mapping[str, Any]]) -> str:
    """Write a table for each dashboard, in the order of its panels."""
    lines = []
    for board in boards:
        name = board["title"].removeprefix("amorsize / ")
        picture = f"images/{board['uid'].replace('amorsize-', 'dashboard-')}.png"
        lines += [f"### {name}", "", board["description"], ""]
        lines += [f"![The dashboard {name}, drawn from a real run]({picture})", ""]
        lines += ["| panel | what it is for |", "|---|---|"]
        for panel in board["panels"]:
            if panel["type"] == "row":
                lines.append(f"| **{panel['title']}** | |")
            else:
                lines.append(f"| {panel['title']} | {panel['description']} |")
        lines.append("")
    return "\n".join(lines)


def put_into(page: str, tables: str) -> str:
    """Replace the text between the marks of the page.

    Raises:
        ValueError: the page has no marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}"
