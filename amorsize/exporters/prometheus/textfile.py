"""A text file for the node exporter's textfile collector, whole at every moment."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

_KEPT = b"amorsize_last_success_timestamp_seconds"


class TextFile:
    """A text file that is replaced as a whole.

    Times of last successes that the file holds from an earlier program stay in it until this
    program has its own: an alert on a job that did not succeed in time must not fall silent
    because today's job failed.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept: dict[bytes, bytes] = {}
        try:
            before = path.read_bytes()
        except OSError:
            return
        for line in before.splitlines():
            if line.startswith(_KEPT + b"{"):
                self._kept[line.rpartition(b" ")[0]] = line

    def write(self, page: bytes) -> None:
        """Replace the file's content.

        Raises:
            OSError: it cannot be written.
        """
        kept = [line for series, line in self._kept.items() if b"\n" + series + b" " not in page]
        if kept:
            header = b"# TYPE " + _KEPT + b" gauge\n"
            page = page.replace(header, header + b"".join(line + b"\n" for line in kept), 1)
        write_atomically(self._path, page)


def write_atomically(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace a file, so that a reader sees the old one or the new one, whole.

    The new file is made beside it under a hidden name without the suffix, which readers ignore.

    Args:
        path: of the file.
        content: all of it.
        mode: its permissions. Everybody can read it by default: the node exporter and Prometheus
            are other users.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix="~", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
