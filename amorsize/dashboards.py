"""Writes the dashboards, rules and provisioning of the package into a folder.

The files are package data. ``dashboards/generator`` in the repository generates them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from amorsize.errors import AmorsizeError, InvalidValueError

GRAFANA_URL = "http://localhost:3000"
"""The default Grafana that the alerts link to."""

RUNBOOK_URL = "docs/dashboards.md"
"""The page that says what to do for each alert, where nothing else is given: in the sources."""

FOLDERS = ("grafana", "prometheus", "datadog", "cloudwatch")

_PACKAGE = Path(__file__).parent
_PLACES = (_PACKAGE / "_dashboards", _PACKAGE.parent / "dashboards")
"""In an installed package, and in a checkout."""


def write_dashboards(
    directory: str | os.PathLike[str],
    *,
    grafana_url: str = GRAFANA_URL,
    runbook_url: str = RUNBOOK_URL,
    force: bool = False,
) -> list[Path]:
    """Write dashboards, recording rules, alerts and provisioning into a folder.

    Args:
        directory: the folder; made if it is missing.
        grafana_url: the address of the Grafana that the alerts link to.
        runbook_url: the address of the page that they link to for what to do; each alert has a
            heading of its name there. The default is the page of the documentation.
        force: whether to replace existing files that are different.

    Returns:
        The files, sorted.

    Raises:
        InvalidValueError: an address is not that of a web page.
        AmorsizeError: different files exist already, in which case nothing is written; or a file
            cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     files = write_dashboards(directory)
        ...     any(file.name == "alerts.yml" for file in files)
        True
    """
    _require_address("grafana_url", grafana_url, GRAFANA_URL)
    if runbook_url != RUNBOOK_URL:
        _require_address("runbook_url", runbook_url, "https://wiki.example.com/amorsize")
    target = Path(directory)
    replaced = {GRAFANA_URL: grafana_url.rstrip("/"), f"{RUNBOOK_URL}#": f"{runbook_url}#"}
    texts = {target / name: text for name, text in _files(replaced)}
    try:
        if not force:
            _refuse_to_replace(texts)
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise AmorsizeError(f"cannot write into {str(target)!r}: {error}") from error
    return sorted(texts)


def _require_address(setting: str, address: str, example: str) -> None:
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.netloc or "#" in address:
        raise InvalidValueError(
            f"{setting} is {address!r}; it must be an address such as {example!r}"
        )


def _refuse_to_replace(texts: dict[Path, str]) -> None:
    different = [
        str(path)
        for path, text in texts.items()
        if path.exists() and path.read_bytes() != text.encode()
    ]
    if different:
        raise AmorsizeError(
            f"{len(different)} of the files exist already and are different: "
            f"{', '.join(sorted(different)[:3])}{', ...' if len(different) > 3 else ''}; "
            "write into another folder, or replace them with --force"
        )


def _files(replaced: dict[str, str]) -> Iterator[tuple[Path, str]]:
    root = next((place for place in _PLACES if (place / FOLDERS[0]).is_dir()), None)
    if root is None:
        raise AmorsizeError(
            f"this installation has no dashboards: neither {_PLACES[0]} nor {_PLACES[1]} has "
            "them; reinstall amorsize"
        )
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".json", ".yml"):
                text = path.read_text(encoding="utf-8")
                for shipped, address in replaced.items():
                    text = text.replace(shipped, address)
                yield path.relative_to(root), text
