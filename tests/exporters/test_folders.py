"""One folder a backend: what two of them need stands beside the folders."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import amorsize.exporters.registry

ROOM = Path(amorsize.exporters.__file__).parent
BACKENDS = sorted(path.parent.name for path in ROOM.glob("*/__init__.py"))
IMPORT = re.compile(r"amorsize\.exporters\.(\w+)")


def test_there_is_a_folder_for_each_backend() -> None:
    """The name of the folder is the name of the exporter."""
    assert set(amorsize.exporters.registry.OWN) <= set(BACKENDS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_backend_knows_another(backend: str) -> None:
    """A folder could be taken out."""
    for path in (ROOM / backend).rglob("*.py"):
        others = set(IMPORT.findall(path.read_text())) & set(BACKENDS) - {backend}
        assert not others, f"{path.relative_to(ROOM)} imports from {others}"


def test_shared_modules_import_no_backend() -> None:
    """The registry finds them by name, and imports none."""
    for path in ROOM.glob("*.py"):
        imports = re.findall(
            r"^ *(?:from|import) amorsize\.exporters\.(\w+)", path.read_text(), re.M
        )
        assert not set(imports) & set(BACKENDS), path.name
