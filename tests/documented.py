"""What the documentation lists, for tests that hold the code to it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

EVENTS = Path(__file__).parent.parent / "docs" / "events.md"


@cache
def documented_keys() -> frozenset[str]:
    """Return the metadata keys of docs/events.md: the first column of the table of fields."""
    _, _, table = EVENTS.read_text(encoding="utf-8").partition("| key | in | meaning |")
    table, _, _ = table.partition("\n\n")
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return frozenset(re.findall(r"`(\w+)`", " ".join(first_cells)))
