"""Debian's Pushgateway, and the samples that it shows."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import TypeAlias

from ports import free_port
from prometheus_client.parser import text_string_to_metric_families
from waiting import PATIENCE

from stack import servers

from .backends import require_program

Samples: TypeAlias = dict[tuple[str, frozenset[tuple[str, str]]], float]
"""Values by name and labels."""


class Gateway:
    """A Pushgateway process.

    Args:
        directory: for its data and its log.

    Attributes:
        address: ``host:port``, for Prometheus.
        url: for programs that push.
    """

    def __init__(self, directory: Path) -> None:
        require_program(servers.PUSHGATEWAY)
        self._directory = directory
        self._port = free_port()
        self.address = f"127.0.0.1:{self._port}"
        self.url = f"http://{self.address}"
        self._start()

    def _start(self) -> None:
        self._process = servers.start_pushgateway(self._directory, self._port)
        self._process.wait_until_ready(PATIENCE)

    def text(self) -> str:
        """Its page of metrics."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=PATIENCE) as response:
            page: str = response.read().decode()
            return page

    def samples(self) -> Samples:
        return samples(self.text())

    def restart(self, *, remembers: bool) -> None:
        """End it, and start it again."""
        self.close()
        if not remembers:
            (self._directory / "metrics").unlink(missing_ok=True)
        self._start()

    def close(self) -> None:
        self._process.stop()


def samples(text: str) -> Samples:
    """The samples of a page of metrics."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float | None:
    """The sum of the samples with a name and (at least) these labels; None without any."""
    values = [
        number
        for (sample, its), number in found.items()
        if sample == name and labels.items() <= set(its)
    ]
    return sum(values) if values else None
