"""A text file for the node exporter's textfile collector, whole at every moment."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from amorsize.exporters.metrics import COUNTING_SINCE
from amorsize.exporters.prometheus.earlier import (
    Earlier,
    Family,
    by_function,
    families_of_text,
)
from amorsize.exporters.prometheus.exposition import TextEncoder
from amorsize.exporters.series import Series

logger = logging.getLogger(__name__)


class TextFile:
    """A text file that is replaced as a whole, and continues what earlier programs wrote into it.

    Args:
        path: of the file.
        labels: further labels of amorsize's metrics.
        continues: whether counters go on; otherwise only what stays true is kept, as the time of
            a last success.
    """

    def __init__(self, path: Path, labels: Mapping[str, str], *, continues: bool = True) -> None:
        self._path = path
        self._encoder = TextEncoder(labels)
        try:
            families = families_of_text(path.read_text(encoding="utf-8"))
            self._earlier = Earlier(each for each in families if continues or _stays_true(each))
        except FileNotFoundError:
            self._earlier = Earlier()
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be read, its counters begin at zero: %s", path, error)
            self._earlier = Earlier()

    def write(self, series: Series, others: bytes = b"") -> None:
        """Replace the file's content.

        Args:
            series: amorsize's, of this program.
            others: the page of the application's own metrics.

        Raises:
            OSError: it cannot be written.
        """
        whole = self._earlier.continued(by_function(series))
        write_atomically(self._path, self._encoder.encode(whole).encode() + others)


def _stays_true(family: Family) -> bool:
    """Say whether a family is true beside counters that begin at zero."""
    return family.type == "gauge" and family.name != COUNTING_SINCE.prometheus


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
